"""The command that searches in what was said and shown in all that is kept."""

from __future__ import annotations  # what reads the ledger is loaded when it is asked for

import argparse
import os
from collections.abc import Awaitable, Callable
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio.to_thread
from rich.markup import escape

from penstock.cli.links import add_options, linked
from penstock.cli.show import between, console, lines
from penstock.places import NATS_URL, default_store, index_of

if TYPE_CHECKING:
    from engine.node.searching import Hit

Run = Callable[[Callable[[], Awaitable[Any]]], Any]


def add_command(commands: Any, run: Run) -> None:
    """Add it to the command line's parser."""
    help = "find what was said or shown, in all streams that are kept"
    parser = commands.add_parser("search", help=help, description=help, allow_abbrev=False)
    parser.add_argument("text", metavar="TEXT", help="what to look for: some words, or a question")
    parser.add_argument(
        "--stream", action="append", default=[], metavar="NAME", help="only there; give it several times"
    )
    parser.add_argument("--num", type=_num, default=10, metavar="N", help="how many to show (default 10)")
    add_options(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a line on stdout")

    def call(parsed: argparse.Namespace) -> int:
        run(partial(_search, parsed))
        return 0

    parser.set_defaults(command=call)


def _num(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 3 or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 100")
    return int(text)


async def _search(parsed: argparse.Namespace) -> None:
    from engine.node.searching import Search, Searching, checked
    from engine.run.registry import open_registry
    from engine.spec.catalogue import installed
    from operators.language.index import open_index
    from streams.wire.ledger import open_ledger

    wanted = checked(Search(text=parsed.text, streams=tuple(parsed.stream), num=parsed.num))
    store = parsed.store or default_store()
    async with linked(parsed.nats, store, "penstock-search") as link:
        path = index_of(store, parsed.nats or os.environ.get(NATS_URL) or None)
        index = await anyio.to_thread.run_sync(open_index, path)
        searching = Searching(await open_registry(link), await open_ledger(link), installed(), index)
        notes = console(stderr=True)
        with closing(index), notes.status("reading what has come since") as status:

            def on_progress(num: int) -> None:
                status.update(f"{num} passages are new")

            hits = await searching.find(wanted, on_progress)
    _show(hits, parsed.json)


def _show(hits: list[Hit], as_json: bool) -> None:
    if as_json:
        lines(hits)
        return
    results = console()
    if not hits:
        console(stderr=True).print("nothing was found")
    for hit in hits:
        what = f"[dim]{escape(hit.kind)}, {hit.score:.2f}[/]"
        where = f"[bold]{escape(hit.title or hit.stream)}[/]  {between(hit.start_s, hit.end_s)}  {what}"
        results.print(f"{where}\n  {escape(hit.text)}", soft_wrap=True)
