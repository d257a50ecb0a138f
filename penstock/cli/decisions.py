"""`penstock decisions` and `penstock replay`: what the control loops changed and why, and what would have happened."""

from __future__ import annotations  # what simulates is loaded when it is asked for

import argparse
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import msgspec
from rich.markup import escape
from rich.table import Table

from engine.decide.decisions import Loop
from penstock.cli.show import console, lines
from penstock.cli.terminal import json_line
from streams.errors import Malformed, UserError

if TYPE_CHECKING:
    from engine.decide.decisions import Decision
    from engine.spec.recording import Outcome, Recording

Run = Callable[[Callable[[], Awaitable[Any]]], Any]


def add_commands(commands: Any, duration_s: Callable[[str], float], run: Run) -> None:
    """Add them to the command line's parser. `run` runs an async function until it ends or is interrupted."""
    help = "tell what the control loops of the workers changed lately, and why"
    telling = commands.add_parser("decisions", help=help, description=help, allow_abbrev=False)

    def call(parsed: argparse.Namespace) -> int:
        run(lambda: _decisions(parsed))
        return 0

    telling.set_defaults(command=call)
    telling.add_argument("--stream", default="", metavar="NAME", help="of this stream, and of all together")
    telling.add_argument("--loop", default="", choices=get_args(Loop), help="of this loop")
    telling.add_argument("--follow", action="store_true", help="and go on with what is decided from now on")
    telling.add_argument("--record", type=Path, metavar="FILE", help="write what it was decided on, for `replay`")
    telling.add_argument("--for", dest="for_s", type=duration_s, default=300.0, metavar="5m", help="of --record (5m)")
    telling.add_argument("--nats", metavar="URL", help="the NATS server of the nodes (default: $PENSTOCK_NATS)")
    telling.add_argument("--store", type=Path, metavar="DIR", help="of the node on this machine, without --nats")
    telling.add_argument("--json", action="store_true", help="one JSON object a line on stdout")

    help = "say what would have happened with another setting"
    again = commands.add_parser("replay", help=help, description=help, allow_abbrev=False)
    again.set_defaults(command=_replay)
    again.add_argument("recording", type=Path, metavar="FILE", help="of `penstock decisions --record FILE`")
    again.add_argument(
        "--with",
        dest="settings",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="cores=4, load=2, max_lag=2s, latency=1s, rungs=best, passage=off, max_batch=8, faster.POOL=2; several"
        " times",
    )
    again.add_argument("--json", action="store_true", help="one JSON object a line on stdout")


async def _decisions(parsed: argparse.Namespace) -> None:
    from penstock.client import connect

    async with connect(parsed.nats, store=parsed.store) as client:
        if parsed.record is not None:
            recording = await client.recording(parsed.for_s, parsed.stream)
            _write(parsed.record, recording)
            came = recording.outcome
            said = (
                f"{came.num_segments} segments of {len(recording.streams)} streams, {100 * came.in_time:.1f} % in time"
            )
            console(stderr=True).print(f"{escape(str(parsed.record))}: {said}", soft_wrap=True)
            return
        if parsed.follow:
            async for decision in client.follow_decisions(parsed.stream, parsed.loop):
                _tell(decision, parsed.json)
        wanted = await client.decisions(parsed.stream, parsed.loop)
        for decision in wanted:
            _tell(decision, parsed.json)
        if not wanted:
            of = " ".join(
                each
                for each in (f"on {parsed.stream}" * bool(parsed.stream), f"by {parsed.loop}" * bool(parsed.loop))
                if each
            )
            console(stderr=True).print(f"nothing was decided lately {of}".rstrip(), soft_wrap=True)


def _tell(decision: Decision, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json_line(decision) + "\n")
        sys.stdout.flush()
    else:
        _show(decision)


def _show(decision: Decision) -> None:
    from engine.decide.answer import time_of_day

    about = " ".join(each for each in (decision.stream, decision.segment, decision.stage, decision.pool) if each)
    figures = ", ".join(f"{name} {value:.3g}" for name, value in decision.inputs.items())
    told = "; ".join(each for each in (figures, decision.worker) if each)
    what = f"{about}: {decision.what}" if about else decision.what
    console().print(
        f"{time_of_day(decision.at_ns)}  [bold]{escape(decision.loop)}[/]  {escape(what)}:"
        f" {escape(decision.why)}  [dim]({escape(told)})[/]",
        soft_wrap=True,
    )


def _write(path: Path, recording: Recording) -> None:
    try:
        path.write_bytes(msgspec.json.encode(recording) + b"\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; give a file in a folder you can write") from error


def _replay(parsed: argparse.Namespace) -> int:
    from engine.simulate.replaying import Replayed, changed, outcome, scenario_of_recording
    from engine.spec.recording import Recording
    from streams.decoding import from_json

    try:
        recording = from_json(parsed.recording.read_bytes(), Recording)
    except OSError as error:
        raise UserError(f"cannot read {parsed.recording}: {error.strerror}") from error
    except Malformed as error:
        wrong = f"{parsed.recording} is no recording: {error}; `penstock decisions --record FILE` writes one"
        raise UserError(wrong) from error
    scenario = scenario_of_recording(recording)
    found = [("as it was", recording.outcome), ("as simulated", outcome(Replayed(scenario)))]
    if parsed.settings:
        found.append((f"with {', '.join(parsed.settings)}", outcome(changed(scenario, parsed.settings))))
    if parsed.json:
        lines({"what": what, **msgspec.to_builtins(each)} for what, each in found)
        return 0
    for notice in recording.notices:
        console(stderr=True).print(f"note: {escape(notice)}", soft_wrap=True)
    console().print(_table(found))
    return 0


def _table(found: list[tuple[str, Outcome]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in ("segments", "in time", "half within", "99 of 100 within", "quality"):
        table.add_column(name, justify="right")
    for what, each in found:
        times = ["" if took_s is None else f"{took_s:.2f} s" for took_s in (each.p50_s, each.p99_s)]
        in_time, quality = f"{100 * each.in_time:.1f} %", f"{100 * each.quality:.0f} %"
        table.add_row(escape(what), str(each.num_segments), in_time, *times, quality)
    return table
