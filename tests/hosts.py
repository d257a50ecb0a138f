"""Machines of their own, as far as their network goes: namespaces on one bridge, each of which can be cut off."""

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

_numbers = itertools.count()


class Host:
    """A namespace with an address."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address

    def command(self, command: Sequence[Any]) -> list[Any]:
        """What runs a command there, as the very process that is started."""
        return ["ip", "netns", "exec", self.name, *command]

    def cut(self) -> None:
        """Nothing comes or goes any more, and nobody is told."""
        ip("link", "set", f"{self.name}-b", "down")

    def join(self) -> None:
        ip("link", "set", f"{self.name}-b", "up")


def why_none() -> str:
    """Why there can be no namespaces here; "" where there can."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "network namespaces need root and the program ip"
    made = subprocess.run(["ip", "netns", "add", f"ps{os.getpid()}x"], capture_output=True, text=True)
    if made.returncode:
        return f"there can be no network namespaces here: {made.stderr.strip()}"
    ip("netns", "del", f"ps{os.getpid()}x")
    return ""


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


@contextmanager
def joined_hosts(num: int) -> Iterator[list[Host]]:
    """Hosts that reach each other and this machine, which is the first of their network; each such network is another,
    also in processes that run tests beside this one."""
    number = next(_numbers)
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw9").removeprefix("gw"))
    network = _free_network(10 * worker + number)
    id = f"p{os.getpid() % 100000}x{number % 100}"
    with ExitStack() as stack:
        ip("link", "add", id, "type", "bridge")
        stack.callback(ip, "link", "del", id)
        ip("addr", "add", f"{network}.0.1/16", "dev", id)
        ip("link", "set", id, "up")
        hosts = [Host(f"{id}n{each}", f"{network}.0.{2 + each}") for each in range(num)]
        for host in hosts:
            ip("netns", "add", host.name)
            stack.callback(ip, "netns", "del", host.name)
            ip("link", "add", f"{host.name}-b", "type", "veth", "peer", "name", "eth0", "netns", host.name)
            ip("link", "set", f"{host.name}-b", "master", id, "up")
            ip("-n", host.name, "addr", "add", f"{host.address}/16", "dev", "eth0")
            ip("-n", host.name, "link", "set", "eth0", "up")
            ip("-n", host.name, "link", "set", "lo", "up")
        yield hosts


def _free_network(start: int) -> str:
    """One that nothing here has yet: a run that was killed leaves its bridge behind."""
    taken = subprocess.run(["ip", "-o", "-4", "addr"], capture_output=True, text=True, timeout=30, check=True).stdout
    every = (f"10.{100 + (start + each) % 100}" for each in range(100))
    return next(network for network in every if f" {network}.0.1/" not in taken)


def children_of(pid: int) -> list[int]:
    """The processes that a process has started and that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        if parent == pid:
            found.append(int(path.parent.name))
    return found
