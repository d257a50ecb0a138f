"""Backup: all that a server keeps of ours in one file, taken while nodes run, and brought back to a server that has
none of it.

The file is a tar archive: `penstock.json` says the format and, for each JetStream stream, what the server told of it;
`<stream>` is what it holds, in the server's own form. Streams are copied one after the other, and what is made from
something is copied before it: a backup may hold media whose results it lacks, which will be computed, never the other
way round. Who holds a lease and which nodes were there is left out.
"""

import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import anyio
import msgspec

from engine.run.registry import LEASES, NODES, open_registry
from streams.decoding import from_json, shown
from streams.errors import LinkError, Malformed, UserError
from streams.wire import jetstream
from streams.wire.ledger import open_ledger
from streams.wire.link import NO_ROOM, Link, Refused
from streams.wire.retention import names
from streams.wire.snapshot import CHUNK_BYTES, copy_in, copy_out

FORMAT = 1
ABOUT = "penstock.json"
MAX_ABOUT_BYTES = 16 * 1024**2
Tell = Callable[[str, int], None]  # a stream, and its bytes


class About(msgspec.Struct):
    """What `penstock.json` says."""

    format: int
    streams: dict[str, dict[str, Any]]


async def back_up(link: Link, path: Path, tell: Tell = lambda name, num_bytes: None) -> None:
    """Write a backup to a new file, its owner's alone: sources may hold passwords. Raises UserError where it cannot be
    written; what was begun is taken away again."""
    try:
        out = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; give a new file in a folder you can write") from error
    try:
        with out, tarfile.open(fileobj=out, mode="w") as archive:
            await _copied(link, archive, path.parent, tell)
    except OSError as error:
        _take_away(path)
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    except BaseException:
        _take_away(path)
        raise


def _take_away(path: Path) -> None:
    path.unlink(missing_ok=True)


async def _copied(link: Link, archive: tarfile.TarFile, folder: Path, tell: Tell) -> None:
    registry = await open_registry(link)
    buckets = [bucket.stream for bucket in registry.buckets if bucket.name not in (NODES, LEASES)]
    about = About(FORMAT, {})
    for name in [*buckets, *reversed((await open_ledger(link)).streams)]:
        with tempfile.TemporaryFile(dir=folder) as copied:
            about.streams[name] = await copy_out(link, name, copied.write)
            num_bytes = copied.tell()
            copied.seek(0)
            _add(archive, name, copied, num_bytes)
        tell(name, num_bytes)
    said = msgspec.json.encode(about)
    with tempfile.TemporaryFile(dir=folder) as written:
        written.write(said)
        written.seek(0)
        _add(archive, ABOUT, written, len(said))


def _add(archive: tarfile.TarFile, name: str, content: IO[bytes], num_bytes: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = num_bytes, 0o600
    archive.addfile(entry, content)


async def bring_back(link: Link, path: Path, tell: Tell = lambda name, num_bytes: None) -> None:
    """Put a backup on a server that has nothing of ours. Raises UserError for a file that is none, a server that has
    something already or too little room for it."""
    try:
        with tarfile.open(path, mode="r:") as archive:
            about = _about(archive, path)
            await _check_empty(link, about)
            await _put_back(link, archive, about, tell)
    except (tarfile.TarError, KeyError, EOFError) as error:
        raise UserError(f"{path} is no backup: it breaks off or lacks a part ({error})") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Refused as error:
        if error.code not in NO_ROOM:
            raise
        raise UserError(
            f"there is too little room for what is in {path}: {error}; free some, then begin anew"
        ) from error


async def _put_back(link: Link, archive: tarfile.TarFile, about: About, tell: Tell) -> None:
    """All of it or nothing."""
    begun: list[str] = []
    try:
        for name, told in about.streams.items():
            entry = archive.getmember(name)
            begun.append(name)
            await copy_in(link, name, told, _chunks(archive, entry))
            tell(name, entry.size)
    except BaseException:
        with anyio.CancelScope(shield=True):
            for name in begun:
                with suppress(LinkError):
                    await link.api(f"STREAM.DELETE.{name}")
        raise


def _about(archive: tarfile.TarFile, path: Path) -> About:
    entry = archive.getmember(ABOUT)
    content = archive.extractfile(entry)
    if content is None or entry.size > MAX_ABOUT_BYTES:
        raise UserError(f"{path} is no backup: {ABOUT} is no file of a backup")
    try:
        about = from_json(content.read(), About)
    except Malformed as error:
        raise UserError(f"{path} is no backup: {ABOUT}: {error}") from error
    known = {*names()}
    if about.format != FORMAT:
        raise UserError(f"{path} has format {about.format}, this version of Penstock knows {FORMAT}")
    for name, told in about.streams.items():
        if name not in known and not name.startswith("KV_penstock_"):
            raise UserError(f"{path} is no backup: Penstock keeps nothing that is called {shown(name)}")
        if "config" not in told or "state" not in told:
            raise UserError(f"{path} is no backup: it does not say how {name} was kept")
    return about


async def _check_empty(link: Link, about: About) -> None:
    """What was begun is taken away again where it fails, so nothing of that name may be anybody's."""
    there = []
    for name in dict.fromkeys([*names(), *about.streams]):
        try:
            await jetstream.config_of(link, name)
        except Refused:
            continue
        there.append(name)
    if there:
        raise UserError(f"the server has {', '.join(there)} already: bring a backup back to a new store or server")


def _chunks(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> Iterator[bytes]:
    content = archive.extractfile(entry)
    if content is None:
        raise LinkError(f"{entry.name} is no file of a backup")
    while chunk := content.read(CHUNK_BYTES):
        yield chunk
