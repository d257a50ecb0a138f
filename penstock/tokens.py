"""The bearer token: who may ask a node that listens to more than this machine.

On loopback nobody is asked for it, unless the node is told to: whoever can connect there is on the machine already, and
pages of other sites are kept out by name and origin. On any other address a request bears it (RFC 6750) or is told so;
only the probes `/healthz` and `/readyz` are answered to everybody, with a word and no details.
"""

import hmac
import ipaddress
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Literal

from streams.errors import UserError

Auth = Literal["auto", "always", "off"]

TOKEN = "PENSTOCK_HTTP_TOKEN"
FILE = "http.token"
MIN_LENGTH = 16
OPEN = frozenset({"/healthz", "/readyz"})
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, token68


def known_token(store: Path) -> str | None:
    """The token in the environment, else the one in the store, if there is one. Raises UserError for one that cannot be
    used."""
    given = os.environ.get(TOKEN)
    if given is not None:
        return _checked(given.strip(), TOKEN)
    path = store / FILE
    try:
        return _checked(path.read_text(encoding="utf-8").strip(), str(path))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'not text'}") from error


def token_of(store: Path) -> str:
    """The token of a store's nodes, made where there is none. Raises UserError where that cannot be."""
    if (known := known_token(store)) is not None:
        return known
    path = store / FILE
    try:
        store.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError), os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as f:
            f.write(secrets.token_urlsafe(32) + "\n")
    except OSError as error:
        raise UserError(f"cannot make {path}: {error.strerror}; name a folder you can write to with --store") from error
    return _checked(path.read_text().strip(), str(path))


def asked_for(auth: Auth, address: str, host: str, token: str | None) -> str | None:
    """The token that requests have to bear at this address of a node; None where they need none. Raises UserError
    where they would need one and there is none."""
    if auth == "off" or (auth == "auto" and ipaddress.ip_address(host.partition("%")[0]).is_loopback):
        return None
    if token is None:
        raise UserError(
            f"--http {address} can be reached from other machines, and there is no token to ask them for: make one "
            "with `penstock token`, listen on 127.0.0.1, or give --http-auth off where something else keeps others out"
        )
    return token


def bears(authorization: bytes, token: str) -> bool:
    """Whether a request's Authorization header bears it."""
    scheme, _, given = authorization.partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), token.encode())


def _checked(token: str, where: str) -> str:
    if len(token) < MIN_LENGTH or not _TOKEN.fullmatch(token):
        raise UserError(f"{where}: that is no token: give at least {MIN_LENGTH} of A-Z a-z 0-9 - . _ ~ + /")
    return token
