"""A store: the folder in which the embedded server keeps what it holds, what it says of itself, and its disk.

It knows the standard library only, for the keeper imports it.
"""

import json
import os
import socket
from pathlib import Path
from typing import Any

STATUS = "server.json"
LOG = "nats-server.log"
ANSWER_S = 2.0
SPARE_BYTES = 16 * 1024**2
FULL_BYTES = 8 * 1024**2  # a disk with less free is full
ROOM_AGAIN_BYTES = 64 * 1024**2  # and with more it has room again


def server_name(store: Path) -> str:
    """What the server of this store calls itself: another store's server, or a copied store's, differs."""
    place = store.stat()
    return f"penstock-{place.st_dev:x}-{place.st_ino:x}"


def greeting(port: int, name: str) -> dict[str, Any] | None:
    """The INFO of the server listening on the port, if it has that name and JetStream is up; else None."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S) as connection:
            line = connection.makefile("rb").readline(65536)
    except OSError:
        return None
    try:
        info = json.loads(line.removeprefix(b"INFO "))
    except ValueError:
        return None
    as_expected = isinstance(info, dict) and info.get("server_name") == name and info.get("jetstream")
    return info if as_expected else None


def status(store: Path) -> dict[str, Any]:
    """What server.json says: url, port, pid, keeper_pid, version; or failed; or nothing. It may be out of date."""
    try:
        said = json.loads((store / STATUS).read_text())
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def last_words(store: Path) -> str:
    """The last line of the server's log that reports a failure, else its last line."""
    try:
        lines = (store / LOG).read_text(errors="replace").splitlines()[-50:]
    except OSError:
        return "it left no log"
    failures = [line for line in lines if any(mark in line for mark in ("[FTL]", "[ERR]", "panic:", "nats-server: "))]
    return (failures or lines or ["its log is empty"])[-1].strip()


def room_bytes(store: Path) -> int:
    """What the store may take of its disk: three quarters of what is free there or taken by the store already."""
    place = store
    while not place.exists() and place != place.parent:
        place = place.parent
    disk = os.statvfs(place)
    return (disk.f_bavail * disk.f_frsize + _taken_bytes(store)) * 3 // 4


def reserved_bytes(store: Path) -> int:
    """What the store's streams have reserved of it, each its `max_bytes`."""
    reserved = 0
    for path in store.glob("jetstream/*/streams/*/meta.inf"):
        try:
            most = json.loads(path.read_text())["max_bytes"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        reserved += most if isinstance(most, int) and most > 0 else 0
    return reserved


def max_store_bytes(store: Path) -> int:
    """The server's limit, looked at anew at each start, for disks fill and stores move; never below what its streams
    have reserved, for then it could not take them back, and a sixteenth for what reserves nothing."""
    reserved = reserved_bytes(store)
    return max(room_bytes(store), reserved * 17 // 16 + SPARE_BYTES if reserved else 0)


def _taken_bytes(store: Path) -> int:
    taken = 0
    for folder, _, names in os.walk(store / "jetstream"):
        for name in names:
            try:
                taken += (Path(folder) / name).stat().st_blocks * 512
            except OSError:  # it went just now
                continue
    return taken


def free_bytes(store: Path) -> int:
    disk = os.statvfs(store)
    return disk.f_bavail * disk.f_frsize


def full_disk(store: Path) -> str:
    """What is to be said of a disk that is full; nothing where it is not."""
    try:
        free = free_bytes(store)
    except OSError:
        return ""
    return "" if free >= FULL_BYTES else f"the disk of {store} is full ({free / 1024**2:.1f} MiB free): free some of it"


def has_room_again(store: Path) -> bool:
    try:
        return free_bytes(store) >= ROOM_AGAIN_BYTES
    except OSError:
        return False
