"""The command that tells what happened to a segment, and why."""

from __future__ import annotations  # what reads the ledger is loaded when it is asked for

import argparse
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from penstock.cli.links import add_options, linked
from penstock.cli.show import between, console, lines
from penstock.places import default_store
from streams.errors import UserError

if TYPE_CHECKING:
    from engine.decide.answer import Answer
    from engine.decide.story import Line
    from streams.wire.ledger import Ledger

Run = Callable[[Callable[[], Awaitable[Any]]], Any]


def add_command(commands: Any, run: Run) -> None:
    """Add it to the command line's parser."""
    help = "tell what happened to a segment, or to an answer, and why"
    parser = commands.add_parser("story", help=help, description=help, allow_abbrev=False)
    parser.add_argument("stream", nargs="?", default="", metavar="STREAM", help="its name; not needed if there is one")
    parser.add_argument("segment", nargs="?", type=_index, metavar="SEGMENT", help="its number; default: all")
    parser.add_argument("--stage", default="", metavar="NAME", help="of this stage only")
    parser.add_argument("--answer", type=_index, metavar="N", help="of the Nth answer about the stream, from 1")
    add_options(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a line on stdout")

    def call(parsed: argparse.Namespace) -> int:
        run(partial(_story, parsed))
        return 0

    parser.set_defaults(command=call)


def _index(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number: give 0, 1, 2 ...")
    return int(text)


async def _story(parsed: argparse.Namespace) -> None:
    from engine.node.story import Storyteller
    from engine.run.registry import open_registry
    from streams.wire.ledger import open_ledger

    async with linked(parsed.nats, parsed.store or default_store(), "penstock-story") as link:
        ledger = await open_ledger(link)
        stream = await _stream(ledger, parsed.stream)
        teller = Storyteller(await open_registry(link), ledger, stream)
        if parsed.answer is not None:
            answer, told = await teller.answer(parsed.answer)
            _show(told, parsed.json, answer)
        else:
            _show(await teller.segment(parsed.segment, parsed.stage), parsed.json)


async def _stream(ledger: Ledger, asked: str) -> str:
    """The stream that is meant: by its name, its beginning, or because there is no other."""
    there = sorted({name.split(".")[2] for name in await ledger.subjects("penstock.media.>")})
    meant = [name for name in there if name == asked] or [name for name in there if name.startswith(asked)]
    if len(meant) == 1:
        return meant[0]
    known = ", ".join(there[:8]) or "none"
    raise UserError(f"which stream? {asked!r} could be {len(meant)} of those there are: {known}")


def _show(told: Sequence[Line], as_json: bool, answer: Answer | None = None) -> None:
    if as_json:
        lines([*([answer] if answer else []), *told])
        return
    results = console()
    if answer is not None:
        results.print(f"[bold]{escape(answer.question or answer.stages[-1].stage)}[/]", soft_wrap=True)
        results.print(f"  {escape(answer.answer)}  [dim](confidence {answer.confidence:.2f})[/]", soft_wrap=True)
        for item in answer.evidence:
            results.print(
                f"  {between(item.start_s, item.end_s)}  {escape(f'{item.kind:<6}')} {escape(item.text)}",
                soft_wrap=True,
            )
        results.print()
    began_ns = told[0].at_ns if told else 0
    width = max((len(line.stage) for line in told), default=0)
    for line in told:
        stage = line.stage or "media"
        who = f"  [dim]{escape(line.worker)}[/]" if line.worker else ""
        at = f"{(line.at_ns - began_ns) / 1e9:+9.3f} s"
        what = f"{escape(f'{stage:<{max(width, 5)}}')}  [bold]{escape(line.what)}[/]"
        results.print(f"{at}  [cyan]{line.segment:>6}[/]  {what}: {escape(line.why)}{who}", soft_wrap=True)
