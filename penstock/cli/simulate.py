"""`penstock simulate`: a scenario in virtual time, with the rules that a worker goes by."""

from __future__ import annotations  # what is only shown need not be loaded

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from rich.markup import escape
from rich.table import Table

from penstock.cli.show import console, lines
from streams.errors import UserError

if TYPE_CHECKING:
    from engine.simulate.report import FleetReport, PoolReport, Report

NUM_BINS = 60  # of a picture


class Simulated(msgspec.Struct, frozen=True):
    """What became of a scenario. Times of segments are of those that were answered in time."""

    seed: int
    seconds: float  # virtual
    num_segments: int
    in_time: float  # the share of them that was answered, whole and in time
    num_gaps: int
    num_late: int
    p50_s: float | None
    p99_s: float | None
    computed_s: float  # of lanes
    wasted_s: float  # of these, for segments that were not answered in time
    least_of_a_stream: float  # the share in time of the stream that has the least
    quality: float  # what those in time are worth on average, against the best rungs
    num_rung_changes: int
    pools: dict[str, PoolReport]
    fleet: dict[str, FleetReport]  # of what has replicas


def add_command(commands: Any) -> None:
    """Add it to the command line's parser."""
    help = "run a scenario in virtual time, by the rules that workers go by"
    parser = commands.add_parser("simulate", help=help, description=help, allow_abbrev=False)
    parser.set_defaults(command=_simulate)
    parser.add_argument("scenario", type=Path, metavar="SCENARIO", help="a TOML file (docs/control.md)")
    parser.add_argument("--seed", type=int, metavar="N", help="chance other than the scenario's own")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw how it went, into a PNG or SVG file")
    parser.add_argument("--json", action="store_true", help="one JSON object a line on stdout")


def _simulate(parsed: argparse.Namespace) -> int:
    from engine.simulate.run import run
    from engine.simulate.scenario import load_scenario

    scenario = load_scenario(parsed.scenario)
    if parsed.seed is not None:
        scenario = msgspec.structs.replace(scenario, seed=parsed.seed)
    if parsed.plot is not None and parsed.plot.suffix not in (".png", ".svg"):
        raise UserError(f"--plot {parsed.plot}: name it .png or .svg")
    report = run(scenario)
    if parsed.plot is not None:
        _draw(report, parsed.plot)
    found = summary(report, scenario.seed)
    if parsed.json:
        lines([found])
    else:
        _show(found)
    return 0


def summary(report: Report, seed: int) -> Simulated:
    segments = report.segments
    is_any = segments.num_in_time > 0
    return Simulated(
        seed=seed,
        seconds=report.seconds,
        num_segments=segments.num,
        in_time=report.in_time,
        num_gaps=segments.num_gaps,
        num_late=segments.num_late,
        p50_s=segments.quantile_s(0.5) if is_any else None,
        p99_s=segments.quantile_s(0.99) if is_any else None,
        computed_s=segments.computed_s,
        wasted_s=segments.wasted_s,
        least_of_a_stream=min(segments.shares, default=1.0),
        quality=segments.quality,
        num_rung_changes=len(report.changes),
        pools=report.pools,
        fleet=report.fleet,
    )


def _show(found: Simulated) -> None:
    table = Table(
        "pool", "done", "dropped", "batch", "lanes busy", "waiting and running", "stays", box=None, pad_edge=False
    )
    for name, pool in found.pools.items():
        table.add_row(
            escape(name),
            str(pool.num_done),
            str(pool.num_dropped),
            f"{pool.mean_batch:.1f}",
            f"{pool.busy:.2f}",
            f"{pool.num_there:.2f}",
            f"{pool.stays_s:.3f} s",
        )
    out = console()
    out.print(table)
    said = f"{found.num_segments} segments in {found.seconds:.1f} s: {100 * found.in_time:.1f} % answered in time"
    if found.p50_s is not None:
        said += f"; half of those within {found.p50_s:.3f} s, 99 of 100 within {found.p99_s:.3f} s"
    out.print(said, soft_wrap=True)
    if found.num_gaps or found.num_late:
        wasted = 100 * found.wasted_s / found.computed_s if found.computed_s else 0.0
        out.print(
            f"{found.num_gaps} with a gap, {found.num_late} late; {wasted:.1f} % of the computing was for these; of the"
            f" stream with the least, {100 * found.least_of_a_stream:.1f} % in time",
            soft_wrap=True,
        )
    if found.num_rung_changes:
        worth = f"{100 * found.quality:.1f} % of the best rungs' quality on average"
        out.print(f"{found.num_rung_changes} changes of rungs; {worth}", soft_wrap=True)
    for name, pool in found.pools.items():
        for at_s, limit, why in pool.limits:
            out.print(f"{escape(name)} at {at_s:.0f} s: {limit} under way at most, {escape(why)}", soft_wrap=True)
    for name, replicas in found.fleet.items():
        mean = replicas.seconds / found.seconds if found.seconds else 0.0
        out.print(f"{escape(name)}: {mean:.1f} replicas on average, {replicas.most} at most", soft_wrap=True)
        for at_s, num, why in replicas.changes:
            out.print(f"  at {at_s:.0f} s: {num}, {escape(why)}", soft_wrap=True)


def _draw(report: Report, path: Path) -> None:
    """What came and what was answered in time, and how long that took, over the run."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("--plot needs matplotlib: pip install 'penstock[plot]'") from None
    from engine.simulate.report import quantile

    segments = report.segments
    width_s = max(report.seconds, 1e-9) / NUM_BINS
    came, good, worth = [0] * NUM_BINS, [0] * NUM_BINS, [0.0] * NUM_BINS
    took: list[list[float]] = [[] for _ in range(NUM_BINS)]
    every = zip(segments.came_s, segments.took_s, segments.is_in_time, segments.qualities, strict=True)
    for came_s, took_s, is_good, quality in every:
        place = min(NUM_BINS - 1, int(came_s / width_s))
        came[place] += 1
        if is_good:
            good[place] += 1
            worth[place] += quality
            took[place].append(took_s)
    at_s = [(place + 0.5) * width_s for place in range(NUM_BINS)]
    has_rungs, has_fleet = bool(report.changes), bool(report.fleet)
    figure = Figure(figsize=(9, 5 + 2 * has_rungs + 2 * has_fleet), layout="constrained")
    panels = figure.subplots(2 + has_rungs + has_fleet, sharex=True)
    panels[0].plot(at_s, [num / width_s for num in came], label="came", color="tab:grey")
    panels[0].plot(at_s, [num / width_s for num in good], label="answered in time", color="tab:green")
    panels[0].set_ylabel("segments a second")
    panels[0].legend()
    for share, name in ((0.5, "half"), (0.99, "99 of 100")):
        panels[1].plot(at_s, [quantile(each, share) for each in took], label=f"{name} within")
    panels[1].set_ylabel("s")
    panels[1].legend()
    if has_rungs:
        means = [sum_ / num if num else float("nan") for sum_, num in zip(worth, good, strict=True)]
        panels[2].plot(at_s, means, color="tab:purple", label="quality, against the best rungs")
        panels[2].set_ylim(0, 1.05)
        panels[2].legend()
    for name, replicas in report.fleet.items():
        at, num = [0.0, *(at_s for at_s, _, _ in replicas.changes)], [num for _, num, _ in replicas.changes]
        panels[-1].step(
            [*at, report.seconds],
            [replicas.begin, *num, (num or [replicas.begin])[-1]],
            where="post",
            label=f"replicas of {name}",
        )
        panels[-1].set_ylim(bottom=0)
        panels[-1].legend()
    panels[-1].set_xlabel("when it came, s")
    try:
        figure.savefig(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
