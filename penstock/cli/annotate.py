"""The commands that show what was found in the pictures: a film with boxes and text, or one picture."""

from __future__ import annotations  # what reads the ledger is loaded when it is asked for

import argparse
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from rich.markup import escape

from penstock.cli.links import add_options, linked
from penstock.cli.show import bars_on, console
from penstock.places import default_store
from streams.errors import UserError

if TYPE_CHECKING:
    from engine.run.registry import Registry
    from penstock.annotating import Annotating

Run = Callable[[Callable[[], Awaitable[Any]]], Any]


def add_commands(commands: Any, run: Run) -> None:
    """Add them to the command line's parser."""
    help = "write a film of a stream with boxes, ways, text and what is said drawn into it"
    filming = commands.add_parser("annotate", help=help, description=help, allow_abbrev=False)
    filming.add_argument("stream", metavar="STREAM", help="a stream's name or its file's")
    filming.add_argument("--out", type=Path, required=True, metavar="FILE", help="an MP4 file")
    filming.add_argument("--from", dest="start", default="", metavar="-10m", help="-10m, 1:05 or a time of day")
    filming.add_argument("--to", dest="end", default="", metavar="1:05", help="the same; default: all there is")
    add_options(filming)

    help = "write what a stream shows at a moment, with what was found in it"
    shooting = commands.add_parser("snapshot", help=help, description=help, allow_abbrev=False)
    shooting.add_argument("stream", metavar="STREAM", help="a stream's name or its file's")
    shooting.add_argument("--at", default="now", metavar="1:05", help="-10m, 1:05 or a time of day; default: now")
    shooting.add_argument("--out", type=Path, required=True, metavar="FILE", help="a JPEG file")
    shooting.add_argument("--plain", action="store_true", help="nothing is drawn into it")
    add_options(shooting)

    def call(work: Callable[[argparse.Namespace], Awaitable[None]], parsed: argparse.Namespace) -> int:
        check_place(parsed.out)
        run(partial(work, parsed))
        return 0

    filming.set_defaults(command=partial(call, _film))
    shooting.set_defaults(command=partial(call, _snapshot))


def check_place(path: Path, input: Path | None = None) -> None:
    """Raises UserError where no file can be written there, or where that would be the input itself: before the work,
    not behind it."""
    from operators.media.writing import place_for

    place = place_for(path)
    if input is not None and place.exists() and place.samefile(input):
        raise UserError(f"{path} is the input itself: give another name")
    if not place.parent.is_dir() or not os.access(place.parent, os.W_OK):
        raise UserError(f"cannot write {path}: give a file in a folder you can write")


async def write_film(about: Annotating, path: Path, start: str = "", end: str = "") -> None:
    """With a bar, where somebody looks on; and a note of what it is."""
    notes = console(stderr=True)
    bars = bars_on(notes)
    with bars:
        bar = bars.add_task("film", total=None, unit="segments")
        made = await about.film(path, start, end, lambda done, of: bars.update(bar, completed=done, total=of))
    left_out = f"; {made.num_lost} segments are gone or cannot be decoded" * (made.num_lost > 0)
    notes.print(f"{made.num_pictures} pictures in {escape(str(path))}{left_out}", soft_wrap=True)


async def film_of_job(nats: str | None, store: Path | None, stream: str, job: str, path: Path) -> None:
    """A film of what one job found in a stream."""
    async with _opened(nats, store) as about:
        await write_film(await about(stream, job), path)


async def _film(parsed: argparse.Namespace) -> None:
    async with _opened(parsed.nats, parsed.store) as about:
        await write_film(await about(parsed.stream), parsed.out, parsed.start, parsed.end)


async def _snapshot(parsed: argparse.Namespace) -> None:
    async with _opened(parsed.nats, parsed.store) as about:
        data = await (await about(parsed.stream)).snapshot(parsed.at, marked=not parsed.plain)
    try:
        await anyio.Path(parsed.out).write_bytes(data)
    except OSError as error:
        raise UserError(f"cannot write {parsed.out}: {error.strerror}; give a file you can write") from error


@asynccontextmanager
async def _opened(nats: str | None, store: Path | None) -> AsyncIterator[Callable[..., Awaitable[Annotating]]]:
    """Gives who annotates a stream, by its name or its file's."""
    from engine.run.registry import open_registry
    from engine.spec.catalogue import installed
    from penstock.annotating import Annotating
    from streams.wire.ledger import open_ledger

    async with linked(nats, store or default_store(), "penstock-annotate") as link:
        registry, ledger = await open_registry(link), await open_ledger(link)

        async def about(stream: str, job: str = "") -> Annotating:
            return Annotating(registry, ledger, installed(), await _meant(registry, stream), job)

        yield about


async def _meant(registry: Registry, asked: str) -> str:
    streams = await registry.streams()
    titles = {name: spec.title or name for name, spec in sorted(streams.items())}
    found = [name for name, title in titles.items() if asked in (name, title)]
    if len(found) > 1:
        raise UserError(f"{len(found)} streams are of a file {asked!r}: name one of {', '.join(found[:8])}")
    if not found:
        there = ", ".join(list(titles.values())[:8]) or "none yet"
        raise UserError(f"no stream {asked!r} is stored; there are: {there}")
    return found[0]
