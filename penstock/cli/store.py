"""The commands about what is stored: how much it is, a copy of it, and its end."""

from __future__ import annotations  # what reads the ledger is loaded when it is asked for

import argparse
import shutil
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from penstock.cli.links import linked
from penstock.cli.show import console, lines
from penstock.places import default_store
from streams.errors import UserError

if TYPE_CHECKING:
    from engine.node.usage import Usage

Run = Callable[[Callable[[], Awaitable[Any]]], Any]
UNITS = ("B", "kB", "MB", "GB", "TB")


def add_command(commands: Any, run: Run) -> None:
    """Add it to the command line's parser."""
    help = "say what a store holds, copy it, bring a copy back, delete it"
    parser = commands.add_parser("store", help=help, description=help, allow_abbrev=False)
    kinds = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, help: str, work: Callable[[argparse.Namespace], Awaitable[None]]) -> Any:
        parser = kinds.add_parser(name, help=help, description=help, allow_abbrev=False)
        parser.add_argument("--store", type=Path, metavar="DIR", help="the store; of the node on this machine")

        def call(parsed: argparse.Namespace) -> int:
            run(partial(work, parsed))
            return 0

        parser.set_defaults(command=call)
        return parser

    counting = command("du", "say what each stream takes", _du)
    copying = command("backup", "copy all that is stored to a new file, while nodes run", _backup)
    copying.add_argument("file", type=Path, metavar="FILE")
    returning = command("restore", "bring a backup back, to a new store or a server that has nothing of ours", _restore)
    returning.add_argument("file", type=Path, metavar="FILE")
    for reading in (counting, copying, returning):
        reading.add_argument("--nats", metavar="URL", help="this NATS server instead (default: $PENSTOCK_NATS)")
        reading.add_argument("--json", action="store_true", help="one JSON object a line on stdout")
    deleting = command("rm", "delete a store that nothing runs on", _rm)
    deleting.add_argument("--yes", action="store_true", help="do it")


async def _du(parsed: argparse.Namespace) -> None:
    from engine.node.usage import total, usage
    from streams.wire.ledger import open_ledger

    async with linked(parsed.nats, parsed.store or default_store(), "penstock-store") as link:
        found = await usage(await open_ledger(link))
    if parsed.json:
        lines(found)
    else:
        _show(found, total(found))


def _show(found: list[Usage], whole: Usage) -> None:
    table = Table("stream", box=None, pad_edge=False)
    for name in ("segments", "media", "results", "", "answers", ""):
        table.add_column(name, justify="right")
    table.add_column("oldest")
    for item in [*found, whole] if len(found) > 1 else found:
        table.add_row(
            escape(item.stream or "(none)"),
            str(item.num_segments),
            readable(item.media_bytes),
            str(item.num_results),
            readable(item.results_bytes),
            str(item.num_answers),
            readable(item.answers_bytes),
            item.oldest,
        )
    console().print(table if found else "nothing is stored")


def readable(num_bytes: int) -> str:
    """In the largest unit that leaves a number from 1 on."""
    size, unit = float(num_bytes), 0
    while size >= 999.95 and unit < len(UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.1f} {UNITS[unit]}" if unit else f"{num_bytes} B"


async def _backup(parsed: argparse.Namespace) -> None:
    from engine.node.backup import back_up

    async with linked(parsed.nats, parsed.store or default_store(), "penstock-store") as link:
        await back_up(link, parsed.file, _told)
    _done(parsed, "backup")


async def _restore(parsed: argparse.Namespace) -> None:
    from engine.node.backup import bring_back

    async with linked(parsed.nats, parsed.store or default_store(), "penstock-store", is_new=True) as link:
        await bring_back(link, parsed.file, _told)
    _done(parsed, "restored")


def _told(name: str, num_bytes: int) -> None:
    console(stderr=True).print(f"  {name}  {readable(num_bytes)}")


def _done(parsed: argparse.Namespace, what: str) -> None:
    size = parsed.file.stat().st_size
    if parsed.json:
        lines([{what: str(parsed.file), "bytes": size}])
    else:
        console().print(f"{what} {escape(str(parsed.file))}, {readable(size)}", soft_wrap=True)


async def _rm(parsed: argparse.Namespace) -> None:
    from streams.wire.server import alone

    store = parsed.store or default_store()
    with alone(store) as found:
        if not parsed.yes:
            raise UserError(f"{found} would be deleted with all streams, jobs and answers in it: say --yes")
        try:
            shutil.rmtree(found)
        except OSError as error:
            raise UserError(f"cannot delete {error.filename or found}: {error.strerror}") from error
    console().print(f"deleted {escape(str(found))}", soft_wrap=True)
