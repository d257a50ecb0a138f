"""How many replicas there are, and what came of it: the engine's fleet (`engine.decide.fleet`) against others'
published ways to scale (bench/scalers.py), in the simulator, in which all else is the same.

A detector's replicas take 2 s for a batch of four, a captioner's 2 s for one; what comes is due some seconds after.
What a way is *worth* is the share of segments answered in time, less PRICE for each time its replicas cost what a
clairvoyant's do: a clairvoyant knows what comes in each second and pays the same starts. Of others, and of the
clairvoyant's spare, the best setting for each row is taken in hindsight; beside that, others as they are by default.

    fleet.py [--quick] [--plot fleet.png]
"""

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from control import TRACES, trace
from measure import at_least, keep, num_cores, say
from scalers import Clairvoyant, Keda, RayServe, Still, Xenna

from engine.simulate.arrivals import times_s
from engine.simulate.fleet import Scaling, ScalingOf, usual_scaling
from engine.simulate.report import Report
from engine.simulate.run import run
from engine.simulate.scenario import ReplicasSpec, Scenario, scenario_of
from engine.simulate.world import World

PRICE = 0.1
MINUTES = 10
LAG_S = 8.0
DETECTOR = {"max_batch": 4, "service": {"base_s": 0.4, "per_item_s": 0.4, "spread": "lognormal", "cv": 0.1}}
CAPTIONER = {"max_batch": 1, "service": {"base_s": 2.0, "spread": "lognormal", "cv": 0.4}}
LONG = {"max_batch": 1, "service": {"base_s": 40.0, "spread": "lognormal", "cv": 0.3}}
UNIT_S = {"detector": 0.5, "captioner": 2.0, "long": 40.0, "reader": 2.0}


@dataclass(frozen=True)
class Row:
    """One line of the table. `load`: replicas' worth of work, for the pool that is named first."""

    name: str
    load: float
    start_s: float = 5.0
    pools: tuple[str, ...] = ("detector",)
    stages: Mapping[str, Any] | None = None  # None: one, on the first pool
    kind: Mapping[str, Any] = field(default_factory=lambda: {"kind": "poisson"})
    phases: tuple[tuple[float, float], ...] = ()  # from when, as a share of the run; how many times the load
    lag_s: float = LAG_S
    least: int = 1
    most: int = 8
    begin: int | None = None  # None: as many as its load takes
    num: int = 8
    times: int = 1  # as long as the others
    max_replicas: int | None = None
    more: Mapping[str, Any] = field(default_factory=dict)  # tables of the scenario, with times as shares

    def scenario(self, seed: int, minutes: float) -> Scenario:
        seconds = 60 * minutes * self.times
        kinds = {"detector": DETECTOR, "captioner": CAPTIONER, "reader": CAPTIONER, "long": LONG}
        begin = max(self.least, min(self.most, math.ceil(self.load * 1.1))) if self.begin is None else self.begin
        replicas = {"least": self.least, "most": self.most, "begin": begin, "start_s": self.start_s}
        stages = self.stages or {"s": {"pool": self.pools[0]}}
        per_s = self.load / UNIT_S[self.pools[0]]
        timed = {"at_s", "from_s", "to_s"}
        more = {
            name: [{key: value * seconds if key in timed else value for key, value in each.items()} for each in tables]
            for name, tables in self.more.items()
        }
        shape: dict[str, Any] = {"seed": seed, "duration_s": seconds, **more}
        if self.max_replicas is not None:
            shape["max_replicas"] = self.max_replicas
        return scenario_of(
            shape
            | {
                "pools": {name: kinds[name] | {"replicas": replicas} for name in self.pools},
                "stages": dict(stages),
                "streams": [
                    {"num": self.num, "max_lag_s": self.lag_s, "arrivals": {"per_s": per_s / self.num, **self.kind}}
                ],
                "phases": [{"at_s": at * seconds, "load": load} for at, load in self.phases],
            }
        )


STEP = ((0.3, 3.0), (0.6, 1.0))
DAY = tuple((at / 12, (0.1, 0.3, 0.8, 1.5, 2.2, 2.5)[min(at, 11 - at)]) for at in range(12))
NIGHT = ((0.15, 0.0), (0.6, 1.0))
CASCADE = {"objects": {"pool": "detector"}, "captions": {"pool": "captioner", "inputs": ["objects"], "share": 0.25}}
DIAMOND = {
    "objects": {"pool": "detector"},
    "text": {"pool": "reader", "inputs": ["objects"], "share": 0.2},
    "captions": {"pool": "captioner", "inputs": ["objects"], "share": 0.2},
}


def rows() -> list[Row]:
    found = [
        Row("steady, 0.5 replicas' worth", 0.5),
        Row("steady, 2.5", 2.5),
        Row("steady, 6.3", 6.3),
        Row("bursty (CV 4), 2", 2.0, kind={"kind": "bursty", "cv": 4.0}),
        Row("64 cameras, each in its own time, 3.3", 3.3, num=64, kind={"kind": "regular"}),
        Row("step x3 and back, start 5 s", 1.0, phases=STEP),
        Row("step x3 and back, start 60 s", 1.0, phases=STEP, start_s=60.0),
        Row("step to 1.4 of the most", 2.0, phases=((0.3, 5.6), (0.6, 1.0))),
        Row("day and night in 40 min, start 5 s", 2.0, phases=DAY, times=4),
        Row("day and night in 40 min, start 60 s", 2.0, phases=DAY, start_s=60.0, times=4),
        Row("nothing for half of the time, down to 0", 1.5, phases=NIGHT, least=0),
        Row(
            "nothing for half of the time, down to 0, start 60 s", 1.5, phases=NIGHT, least=0, start_s=60.0, lag_s=90.0
        ),
        Row(
            "one in three minutes, down to 0", 0.25 / 180, least=0, begin=0, num=1, kind={"kind": "regular"}, lag_s=30.0
        ),
        Row(
            "one a second at a captioner's, as it comes", 2.0, pools=("captioner",), kind={"kind": "bursty", "cv": 2.0}
        ),
        Row(
            "twice as slow from the middle on",
            1.5,
            more={"slow": [{"pool": "detector", "from_s": 0.5, "to_s": 1.0, "times": 2.0}]},
        ),
        Row(
            "stalls for 10 s", 2.0, more={"slow": [{"pool": "detector", "from_s": 0.5, "to_s": 0.511, "stalls": True}]}
        ),
        Row("a replica dies", 2.5, begin=3, more={"fails": [{"of": "detector", "at_s": 0.4}]}),
        Row(
            "nothing is heard for a minute, from the step on",
            1.0,
            phases=STEP,
            more={"unheard": [{"from_s": 0.3, "to_s": 0.367}]},
        ),
        Row(
            "long work (40 s), scaled down while it runs",
            3.0,
            pools=("long",),
            phases=((0.3, 0.2), (0.6, 1.0)),
            lag_s=180.0,
            begin=3,
        ),
        Row(
            "cascade, the detector starves the captioner; 8 places",
            1.5,
            pools=("detector", "captioner"),
            stages=CASCADE,
            phases=STEP,
            max_replicas=8,
        ),
        Row(
            "cascade, starts 20 s",
            1.0,
            pools=("detector", "captioner"),
            stages=CASCADE,
            phases=STEP,
            start_s=20.0,
            most=12,
        ),
        Row(
            "three pools from none, six places",
            1.0,
            pools=("detector", "captioner", "reader"),
            stages=DIAMOND,
            least=0,
            begin=0,
            max_replicas=6,
            lag_s=20.0,
        ),
    ]
    if TRACES.exists():
        found.append(Row("Azure, code (CV 13), 2", 2.0, kind=trace("code"), num=1))
        found.append(Row("Azure, conversation (CV 1.1), 3", 3.0, kind=trace("conv"), num=1))
    return found


def work(scenario: Scenario, pool: str) -> list[float]:
    """What will come for a pool in each second, in seconds of a lane: as the simulator draws it."""
    (streams,) = scenario.streams
    share = sum(stage.share for stage in scenario.stages.values() if stage.pool == pool)
    spec = scenario.pools[pool]
    unit_s = share * spec.service.mean_s(spec.max_batch) / spec.max_batch
    found = [0.0] * (math.ceil(scenario.duration_s) + 1)
    world = World(scenario.seed)
    chance = world.chance("arrivals/0")
    for stream in range(streams.num):
        own = world.chance(f"arrivals/0/{stream}")
        for at_s in times_s(streams.arrivals, scenario.phases, own, chance.random()):
            if at_s >= scenario.duration_s:
                break
            slow = math.prod(each.times for each in scenario.slow if each.from_s <= at_s < each.to_s)
            found[int(at_s)] += unit_s * slow
    return found


def clairvoyant(scenario: Scenario, full: float, name: str, spec: ReplicasSpec) -> Scaling:
    slack_s = scenario.streams[0].max_lag_s
    coming = work(scenario, name)
    return Clairvoyant(spec.least, spec.most, coming, spec.lanes, slack_s, spec.start_s, full)


def made(kind: Callable[..., Scaling], settings: tuple[Any, ...], name: str, spec: ReplicasSpec) -> Scaling:
    return kind(spec.least, spec.most, spec.begin, *settings)


def still(num: int, name: str, spec: ReplicasSpec) -> Scaling:
    return Still(spec.least, spec.most, num)


def ways(scenario: Scenario) -> dict[str, list[ScalingOf]]:
    """By name, with each setting that is tried."""
    batch = max(pool.max_batch for pool in scenario.pools.values())
    ray = [(share * batch, 5.0, up_s, down_s) for share in (0.75, 1.5) for up_s, down_s in ((2.0, 60.0), (10.0, 300.0))]
    keda = [(share * batch, 5.0, steady_s, steady_s) for share in (0.75, 1.5) for steady_s in (30.0, 120.0)]
    xenna = [(3.0, 0.1, 24.0), (3.0, 0.1, 6.0)]
    most = max(spec.replicas.most for spec in scenario.pools.values() if spec.replicas)
    return {
        "ours": [usual_scaling],
        "clairvoyant": [
            *(partial(clairvoyant, scenario, full) for full in (1.0, 0.9, 0.75)),
            *(partial(still, num) for num in range(most + 1)),
        ],
        "the best fixed": [partial(still, num) for num in range(most + 1)],
        "Ray Serve": [partial(made, RayServe, ())],
        "Ray Serve, tuned": [partial(made, RayServe, each) for each in ray],
        "KEDA": [partial(made, Keda, ())],
        "KEDA, tuned": [partial(made, Keda, each) for each in keda],
        "xenna": [partial(made, Xenna, ())],
        "xenna, tuned": [partial(made, Xenna, each) for each in xenna],
    }  # fmt: skip


@dataclass(frozen=True)
class Came:
    """What one run came to."""

    in_time: float
    cost: float  # seconds of replicas
    changes: float  # a minute
    settled_s: float | None  # after the step, until nine of ten of each 10 s are in time for good
    overshoot: float | None  # replicas more than were there in the end of the step


def came(report: Report, row: Row, seconds: float) -> Came:
    fleets = report.fleet.values()
    changes = sum(len(each.changes) for each in fleets) / (seconds / 60)
    settled_s = overshoot = None
    if row.phases == STEP:
        settled_s = settled(report, STEP[0][0] * seconds, STEP[1][0] * seconds)
        overshoot = over(report, STEP[0][0] * seconds, STEP[1][0] * seconds)
    return Came(report.in_time, sum(each.seconds for each in fleets), changes, settled_s, overshoot)


def settled(report: Report, since_s: float, until_s: float) -> float:
    """How long after a step most of what comes is in time for good."""
    bins: dict[int, list[bool]] = {}
    segments = report.segments
    for came_s, good in zip(segments.came_s, segments.is_in_time, strict=True):
        if since_s <= came_s < until_s:
            bins.setdefault(int((came_s - since_s) / 5), []).append(good)
    bad = [at for at, found in bins.items() if sum(found) < 0.9 * len(found)]
    return 5.0 * (max(bad) + 1) if bad else 0.0


def over(report: Report, since_s: float, until_s: float) -> float:
    """How many replicas more there were to be at most than at the end of the step, over all resources."""
    total = 0.0
    for fleet in report.fleet.values():
        during = [num for at_s, num, _ in fleet.changes if since_s <= at_s < until_s]
        total += max(during) - during[-1] if during else 0
    return total


def measured(job: tuple[Row, int, float]) -> tuple[Row, dict[str, list[Came]]]:
    """Of a row and a seed, what each way comes to with each of its settings."""
    row, seed, minutes = job
    scenario = row.scenario(seed, minutes)
    fixed: dict[int, Came] = {}
    found: dict[str, list[Came]] = {}
    for name, settings in ways(scenario).items():
        found[name] = []
        for scaling_of in settings:
            num = scaling_of.args[0] if isinstance(scaling_of, partial) and scaling_of.func is still else None
            if num in fixed:
                found[name].append(fixed[num])
                continue
            found[name].append(came(run(scenario, scaling_of=scaling_of), row, 60 * minutes * row.times))
            if num is not None:
                fixed[num] = found[name][-1]
    return row, found


def line(row: Row, found: Sequence[Mapping[str, Sequence[Came]]]) -> dict[str, Any]:
    """What stands in the table: means over the seeds, of each way's best setting."""
    told: dict[str, Any] = {"name": row.name, "ways": {}}
    against = reference([[each["clairvoyant"][at] for each in found] for at in range(len(found[0]["clairvoyant"]))])
    for name in found[0]:
        settings = [[each[name][at] for each in found] for at in range(len(found[0][name]))]
        runs = max(settings, key=lambda runs: worth(runs, against))
        cost = statistics.fmean(each.cost for each in runs)
        told["ways"][name] = {
            "worth": round(worth(runs, against), 4),
            "least_worth": round(min(worth([each], against) for each in runs), 4),
            "in_time": round(statistics.fmean(each.in_time for each in runs), 4),
            "cost": round(cost, 1),
            "cost_ratio": round(cost / against, 3),
            "changes_a_minute": round(statistics.fmean(each.changes for each in runs), 3),
            "settled_s": _mean([each.settled_s for each in runs]),
            "overshoot": _mean([each.overshoot for each in runs]),
        }
    return told


def worth(runs: Sequence[Came], against: float) -> float:
    return statistics.fmean(each.in_time - PRICE * each.cost / against for each in runs)


def reference(settings: Sequence[Sequence[Came]]) -> float:
    """What a clairvoyant's replicas cost: of the settings within two percent of the most in time, the one that costs
    the least."""
    in_time = [statistics.fmean(each.in_time for each in runs) for runs in settings]
    costs = [statistics.fmean(each.cost for each in runs) for runs in settings]
    good = [cost for cost, share in zip(costs, in_time, strict=True) if share >= max(in_time) - 0.02]
    return max(1.0, min(good))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.fmean(known), 2) if known else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument("--plot", type=Path, help="where to draw the table")
    parser.add_argument("--row", help="those rows alone whose name holds this; nothing is kept")
    asked = parser.parse_args()
    seeds, minutes = ((1,), float(MINUTES)) if asked.quick else ((11, 12, 13), float(MINUTES))
    began_s = time.perf_counter()
    every = [row for row in rows() if not asked.row or asked.row in row.name]
    table: list[dict[str, Any]] = []
    with ProcessPoolExecutor(num_cores()) as workers:
        done = workers.map(measured, [(row, seed, minutes) for row in every for seed in seeds])
        for row, of_row in itertools.groupby(done, key=lambda each: each[0].name):
            same = [found for _, found in of_row]
            table.append(line(next(each for each in every if each.name == row), same))
            say(told(table[-1]))
    say(f"{time.perf_counter() - began_s:.0f} s")
    if asked.row:
        return
    others = [name for name in table[0]["ways"] if name not in ("ours", "clairvoyant")]
    worths = [{name: each["ways"][name]["worth"] for name in each["ways"]} for each in table]
    ratios = [found["ours"] / max(found[name] for name in others) for found in worths]
    to_ideal = [found["ours"] / found["clairvoyant"] for found in worths]
    keep(
        "fleet",
        {
            "price": PRICE,
            "minutes": minutes,
            "num_seeds": len(seeds),
            "rows": table,
            "first_or_within_a_percent": at_least(sum(ratio >= 0.99 for ratio in ratios) / len(ratios), 0.9),
            "worst_against_the_best_other": at_least(min(ratios), 0.9),
            "worst_against_the_clairvoyant": at_least(min(to_ideal), 0.95),
            "median_against_the_clairvoyant": statistics.median(to_ideal),
        },
    )
    if asked.plot:
        draw(table, asked.plot)


def told(each: Mapping[str, Any]) -> str:
    cells = "  ".join(
        f"{name} {found['worth']:.3f} ({found['in_time']:.3f}, x{found['cost_ratio']:.2f}, {changes:.1f})"
        for name, found, changes in ((name, found, found["changes_a_minute"]) for name, found in each["ways"].items())
    )
    return f"{each['name']:52} {cells}"


def draw(table: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The table as a picture: a row a line, a way a column, the greener the more it is worth."""
    from matplotlib import pyplot

    names = list(table[0]["ways"])
    worths = [[each["ways"][name]["worth"] for name in names] for each in table]
    figure, axes = pyplot.subplots(figsize=(13, 0.32 * len(table) + 1.8))
    axes.imshow(worths, cmap="RdYlGn", vmin=0.3, vmax=0.9, aspect="auto")
    for at, each in enumerate(table):
        best = max(worth for name, worth in zip(names, worths[at], strict=True) if name != "clairvoyant")
        for column, name in enumerate(names):
            found = each["ways"][name]
            weight = "bold" if name != "clairvoyant" and found["worth"] >= best - 0.01 else "normal"
            said = f"{found['worth']:.2f}\n{found['in_time']:.2f} x{found['cost_ratio']:.1f}"
            axes.text(column, at, said, ha="center", va="center", fontsize=6, weight=weight)
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(table)), [each["name"] for each in table], fontsize=7)
    axes.set_title(
        "Worth: answered in time, less a tenth for each time the clairvoyant's replicas; below: in time, and how many"
        " times its replicas",
        fontsize=9,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
