"""The names that a node answers to.

A page of another site can have its own name lead to this machine (DNS rebinding); its requests then count as of the
same site, and could start jobs about the files, the screen and the microphone here and read the answers. What they
cannot do is send another Host than that name. So a node answers to addresses, to the names of this machine and to those
it was told of, and to no other.
"""

import ipaddress
import os
import re
import socket
from collections.abc import Collection
from contextlib import suppress

from streams.errors import UserError

HOSTS = "PENSTOCK_HTTP_HOSTS"
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")


def own_names() -> frozenset[str]:
    """Those of this machine, and those in the environment. Raises UserError where these are none."""
    told = [name.strip().lower() for name in os.environ.get(HOSTS, "").split(",") if name.strip()]
    for name in told:
        if not _NAME.fullmatch(name):
            raise UserError(
                f"{HOSTS}: {name!r} is no name of a host: give names without ports, such as penstock.example"
            )
    return frozenset({"localhost", socket.gethostname().lower(), *told})


def is_ours(host: str, names: Collection[str]) -> bool:
    """Whether a Host header names this node; an address always does, and none at all is not what a page can send."""
    name = host.strip().lower()
    if name.startswith("[") and "]" in name:
        name = name[1:].partition("]")[0]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    name = name.removesuffix(".")
    with suppress(ValueError):
        ipaddress.ip_address(name)
        return True
    return not name or name in names or name.endswith(".localhost")
