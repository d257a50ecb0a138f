"""`penstock profile` and `penstock capacity`: what rungs take on this machine, and how many streams fit here."""

from __future__ import annotations  # what measures loads much: only these commands need it

import argparse
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from penstock.cli.show import brief, console, lines

if TYPE_CHECKING:
    from engine.simulate.capacity import Load
    from engine.spec.profile import BatchTimes, Measured, Profile
    from penstock.measuring import Fits, Measuring

Run = Callable[[Callable[[], Awaitable[Any]]], Any]


def add_commands(commands: Any, duration_s: Callable[[str], float], run: Run) -> None:
    """Add them to the command line's parser. `run` runs an async function until it ends or is interrupted."""

    def command(name: str, help: str, work: Callable[[argparse.Namespace], Awaitable[None]]) -> Any:
        parser = commands.add_parser(name, help=help, description=help, allow_abbrev=False)

        def call(parsed: argparse.Namespace) -> int:
            run(lambda: work(parsed))
            return 0

        parser.set_defaults(command=call)
        parser.add_argument("--like", metavar="FILE", help="a clip such as what will come (default: the demo's)")
        parser.add_argument("--segment", type=duration_s, default=5.0, metavar="5s", help="length of a segment")
        parser.add_argument("--quick", action="store_true", help="half a second for each batch size, not two")
        parser.add_argument("--store", type=Path, metavar="DIR", help="where profiles are kept")
        parser.add_argument("--json", action="store_true", help="one JSON object a line on stdout")
        return parser

    measuring = command("profile", "measure what rungs take on this machine, and keep it", _profile)
    measuring.add_argument("names", nargs="*", metavar="NAME", help="capabilities or implementations; default: all")
    measuring.add_argument("--labels", type=Path, metavar="FILE", help="JSON lines that say what is in recordings")
    measuring.add_argument("--kept", action="store_true", help="measure nothing: list what is kept")
    fitting = command("capacity", "say how many live streams a workflow can look at on this machine", _capacity)
    fitting.add_argument("workflow", metavar="WORKFLOW", type=Path, help="a workflow file (TOML)")
    fitting.add_argument("--ask", action="append", default=[], metavar="TEXT", help="a question; several times")
    fitting.add_argument("--max-lag", type=duration_s, default=10.0, metavar="10s", help="what is older is late (10s)")
    fitting.add_argument(
        "--slo", action="append", default=[], metavar="BOUND", help="'latency<2s', 'quality>=good'; several times"
    )
    fitting.add_argument("--anew", action="store_true", help="measure also what was measured on this clip before")


def _measuring(parsed: argparse.Namespace, *, anew: bool) -> Measuring:
    from engine.run.profiling import QUICK, Effort
    from penstock.measuring import Measuring

    return Measuring(
        like=parsed.like,
        segment_s=parsed.segment,
        effort=QUICK if parsed.quick else Effort(),
        store=parsed.store,
        anew=anew,
        on_step=lambda step: _say(f"measuring {step}"),
        on_note=lambda note: _say(f"note: {note}"),
    )


def _say(text: str) -> None:
    console(stderr=True).print(escape(text), style="dim", soft_wrap=True)


async def _profile(parsed: argparse.Namespace) -> None:
    from penstock.measuring import kept_profiles, profile

    how = _measuring(parsed, anew=True)
    found = kept_profiles(parsed.names, how) if parsed.kept else await profile(parsed.names, how, parsed.labels)
    if parsed.json:
        lines(found)
        return
    out = console()
    if not found:
        console(stderr=True).print("no profile is kept for this machine: penstock profile measures")
        return
    out.print(f"{found[0].machine}; one batch at a time, and on every core", soft_wrap=True)
    seen = {each.name: how.profiles().seen(each.on) for each in found} if parsed.kept else {}
    out.print(_table(found, {name: each.drift for name, each in seen.items() if each is not None and each.drift}))
    if any(each.energy_by == "estimate" for each in found):
        from engine.spec.profile import W_PER_CORE

        said = f"energy is an estimate, {W_PER_CORE:g} W for a core at work: this machine lets no counter be read"
        console(stderr=True).print(said, soft_wrap=True)


def _table(found: list[Profile], drifts: Mapping[str, float]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("capability", "rung", "on"):
        table.add_column(name)
    is_judged = any(each.quality is not None for each in found)
    judged = (*(("in work",) if drifts else ()), *(("quality",) if is_judged else ()))
    for name in ("batch", "alone", "busy", "p95", "items/s", "to load", "memory", "J/item", *judged):
        table.add_column(name, justify="right")
    for each in found:
        head = [escape(each.capability), escape(each.rung), each.device]
        tail = [
            "" if each.cold_s is None else f"{each.cold_s:.2f} s",
            "" if each.memory_bytes is None else f"{each.memory_bytes / 1e6:.0f} MB",
            "" if each.energy_j is None else f"{each.energy_j:.3g}",
            *([f"x {drifts[each.name]:.2f}" if each.name in drifts else ""] if drifts else []),
            *([_quality(each.quality)] if is_judged else []),
        ]
        by_size = _by_size(each)
        for number, (alone, busy) in enumerate([by_size[0], by_size[-1]][: len(by_size)]):
            rate = busy.num_beside * busy.batch_size / (busy.mean_s * each.fresh) if busy.mean_s * each.fresh else 0.0
            times = [_duration(took_s) for took_s in (alone.mean_s, busy.mean_s, busy.p95_s)]
            size = str(busy.batch_size) if each.runs_in != "async" else f"{busy.num_beside} at once"
            row = [*head, size, *times, _rate(rate), *tail] if not number else ["", "", "", size, *times, _rate(rate)]
            table.add_row(*row)
    return table


def _short(pool: str) -> str:
    """A pool as people know it: by its rung."""
    return "decoding" if pool.startswith("decode/") else pool.rpartition("/")[2].partition("@")[0]


def _duration(seconds: float) -> str:
    """In three digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.{2 if seconds < 10 * size else 1 if seconds < 100 * size else 0}f} {unit}"
    return f"{seconds / 1e-6:.0f} us"


def _rate(per_s: float) -> str:
    return f"{per_s:.3g}" if per_s < 1000 else f"{per_s:,.0f}"


def _quality(measured: Measured | None) -> str:
    if measured is None:
        return ""
    interval = f" ({measured.low:.3f} to {measured.high:.3f})" if measured.num > 1 else ""
    return f"{measured.value:.3f}{interval} {escape(measured.metric)}"


def _by_size(profile: Profile) -> list[tuple[BatchTimes, BatchTimes]]:
    """Of each batch size, alone and with as many beside it as were tried; of an engine that batches by itself, of each
    number under way."""
    if profile.runs_in == "async":
        return [(each, each) for each in profile.times]
    alone = {each.batch_size: each for each in profile.times if each.num_beside == 1}
    return [(alone.get(each.batch_size, each), each) for each in profile.busy]


async def _capacity(parsed: argparse.Namespace) -> None:
    from engine.spec.workflow import load_workflow
    from penstock.measuring import fits

    out = console(stderr=True)

    def tried(load: Load) -> None:
        out.print(f"{load.num_streams} streams: {100 * load.in_time:.1f} % in time", style="dim", soft_wrap=True)

    workflow = load_workflow(parsed.workflow)
    how = _measuring(parsed, anew=parsed.anew)
    found = await fits(workflow, parsed.ask, parsed.slo, parsed.max_lag, how, on_load=tried)
    for notice in found.notices:
        out.print(f"note: {escape(brief(notice))}", soft_wrap=True)
    if parsed.json:
        lines([found])
    else:
        _show(found)


def _show(found: Fits) -> None:
    from engine.simulate.capacity import IN_TIME

    out = console()
    say: Callable[[str], None] = partial(out.print, soft_wrap=True)
    capacity, bound_s = found.capacity, found.latency_s or found.max_lag_s
    on = f"{found.machine}; segments of {found.segment_s:g} s like {escape(found.clip)}"
    wanted = f"99 of 100 answered within {bound_s:g} s"
    best, any_ = capacity.on_best, capacity.on_any
    say(f"{any_.num_streams if any_ else 0} streams fit: {wanted} ({on})")
    if any_ is None:
        say(f"not even one does: of its segments, {100 * capacity.over.in_time:.1f} % would be in time")
    if any_ is not None and any_ is not best:
        say(
            f"{best.num_streams if best else 0} of them with every stage on its best rung; with all, answers are worth"
            f" {100 * any_.quality:.0f} % of that"
        )
    shown = any_ or capacity.over
    parts = sorted(shown.by_stage.items(), key=lambda each: -each[1])
    busy = ", ".join(
        f"{escape(_short(name))} {100 * lanes / sum(shown.by_stage.values()):.0f} %"
        for name, lanes in parts[:4]
        if lanes
    )
    binds = "the cores bind" if capacity.binds == "cores" else f"{escape(capacity.binds)} binds"
    say(f"{binds}: busy {100 * shown.busy.get(capacity.binds, 0.0):.0f} % of the time, {busy}")
    energy = "" if found.energy_j is None else f", about {found.energy_j:.3g} W"
    alone = f"with nothing beside it, an answer comes after {found.least_latency_s:.2f} s"
    on_best = " on the best rungs" if any_ is not best else ""
    say(f"one more takes {found.core_s:.3g} of a core{on_best}{energy}; {alone}")
    over, most = capacity.over, f"no schedule carries more than {capacity.most:.1f}"
    is_late = over.in_time < IN_TIME  # with much time, what is too much is not late for long
    say(f"with {over.num_streams}, {100 * over.in_time:.1f} % would be in time; {most}" if is_late else most)
