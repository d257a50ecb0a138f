"""How many segments are answered in time: the engine's batcher and admission against others' published ways to form
batches, in the simulator, in which all else is the same (bench/policies.py).

A pool of one of three kinds of service time (a detector on a GPU, one on a processor, a recogniser of speech), with
segments that are due `slack` full batches after they come, is offered a share of what it can do at most. Every figure
is the share of segments answered in time, over that of the limit: a lane that could be shared out at will among items
and knew when each comes (each takes s(B) / B of a lane; those that cannot be in time are left out; no schedule does
better). Others' parameters are chosen in hindsight, for each row the best.

Then whole workflows on two cores that their stages share, and what each rule of the engine is worth there.

Then how many are under way at once of engines that batch by themselves, against Netflix's limits and the best fixed.
And how much of what was asked for in time came, and how good, where stages have lower rungs, against thresholds of the
queue (Elastico's) and against either rung alone.

    control.py [--quick] [--plot control.png]
"""

import argparse
import csv
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from measure import at_least, keep, num_cores, say
from policies import (
    Aimd,
    Board,
    Clipper,
    Dropping,
    Fifo,
    Fixed,
    Gradient2,
    Nexus,
    Once,
    Pard,
    Symphony,
    Thresholds,
    Triton,
    Vegas,
)

from engine.decide.batcher import Batcher
from engine.decide.cores import whose_turn
from engine.decide.inflight import InFlight
from engine.decide.rungs import Rungs
from engine.simulate.arrivals import times_s
from engine.simulate.pools import Batching, SimulatedPool, Turn
from engine.simulate.report import Report
from engine.simulate.run import BatchingOf, LimitingOf, run, usual
from engine.simulate.scenario import Scenario, SimulatedPoolSpec, scenario_of
from engine.simulate.services import ends_s
from engine.simulate.world import World

TRACES = Path(__file__).parents[2] / "shared" / "data" / "traces"
NUM = 4000  # segments a run, about
CURVES: dict[str, tuple[float, float, int, int]] = {  # base_s, per_item_s, max_batch, lanes
    "detector, GPU": (0.020, 0.002, 32, 1),
    "detector, processor": (0.005, 0.035, 4, 2),
    "speech": (0.300, 0.100, 8, 2),
}


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    curve: str
    load: float
    slack: float = 3.0
    arrivals: Mapping[str, Any] = field(default_factory=lambda: {"kind": "poisson"})
    num: int = 1
    together: bool = False
    phases: tuple[tuple[float, float], ...] = ()  # from when, as a share of the run; how many times the load
    slow: tuple[float, float, float] = ()  # type: ignore[assignment]  # from, to, as shares; times (0: it stalls)
    cold_s: float = 0.0
    straggle: float = 0.0

    def scenario(self, seed: int, num: int = NUM) -> Scenario:
        base_s, per_item_s, most, lanes = CURVES[self.curve]
        full_s = base_s + per_item_s * most
        per_s = self.load * lanes * most / full_s
        seconds = max(num / per_s, 40 * full_s)
        service = {"base_s": base_s, "per_item_s": per_item_s, "spread": "lognormal", "cv": 0.1}
        service |= {"cold_s": self.cold_s, "straggle": self.straggle}
        slow = []
        if self.slow:
            since, until, times = self.slow
            slow = [{"pool": "p", "from_s": since * seconds, "to_s": until * seconds, "stalls": not times}]
            slow[0]["times"] = times or 1.0
        return scenario_of(
            {
                "seed": seed,
                "duration_s": seconds,
                "pools": {
                    "p": {
                        "max_batch": most,
                        "num_instances": lanes,
                        "service": service,
                        "is_cold": bool(self.cold_s),
                    }
                },
                "stages": {"s": {"pool": "p"}},
                "streams": [
                    {
                        "num": self.num,
                        "together": self.together,
                        "max_lag_s": self.slack * full_s,
                        "arrivals": dict(self.arrivals) | {"per_s": per_s / self.num},
                    }
                ],
                "phases": [{"at_s": at * seconds, "load": load} for at, load in self.phases],
                "slow": slow,
            }
        )


def trace(name: str) -> dict[str, Any]:
    """Intervals between requests to a service of Azure's, November 2023 (CC-BY; Patel et al., Splitwise, ISCA 2024)."""
    with (TRACES / f"AzureLLMInferenceTrace_{name}.csv").open() as file:
        came = [datetime.fromisoformat(line["TIMESTAMP"][:26]) for line in csv.DictReader(file)]
    intervals = [(after - before).total_seconds() for before, after in itertools.pairwise(came)]
    return {"kind": "trace", "intervals": intervals}


def rows() -> Iterator[Row]:
    for curve in CURVES:
        for load in (0.2, 0.5, 0.8, 1.0, 1.4, 2.0):
            yield Row(f"Poisson, load {load:g}", curve, load)
        for load in (0.5, 0.8, 1.4):
            yield Row(f"Poisson, load {load:g}, tight", curve, load, slack=1.5)
        yield Row("Poisson, load 2, slack", curve, 2.0, slack=10.0)
        for load in (0.5, 0.9):
            yield Row(f"bursty (CV 4), load {load:g}", curve, load, arrivals={"kind": "bursty", "cv": 4.0})
        yield Row("16 cameras at one moment, load 0.8", curve, 0.8, arrivals={"kind": "regular"}, num=16, together=True)
        yield Row("64 cameras, each in its own time, load 0.95", curve, 0.95, arrivals={"kind": "regular"}, num=64)
        yield Row("step x3 and back, from load 0.5", curve, 0.5, phases=((0.3, 3.0), (0.6, 1.0)))
        yield Row(
            "day and night",
            curve,
            1.0,
            phases=tuple((at / 8, (0.2, 0.5, 1.0, 1.4)[min(at, 7 - at)]) for at in range(8)),
        )
        yield Row("twice as slow from the middle on", curve, 0.8, slow=(0.5, 1.0, 2.0))
        yield Row("stalls for a tenth of the run", curve, 0.7, slow=(0.4, 0.5, 0.0))
        yield Row("one batch in 50 takes ten times as long", curve, 0.7, straggle=0.02)
        if TRACES.exists():
            yield Row("Azure, code (CV 13), load 0.6", curve, 0.6, arrivals=trace("code"))
            yield Row("Azure, conversation (CV 1.1), load 0.9", curve, 0.9, arrivals=trace("conv"))


# Whole workflows on two cores: stages, and what a segment costs on average, in seconds of a core with full batches.
DETECTOR = {"max_batch": 4, "service": {"base_s": 0.005, "per_item_s": 0.035, "spread": "lognormal", "cv": 0.1}}
READER = {"service": {"base_s": 0.2, "spread": "lognormal", "cv": 0.5}}
SPEECH = {"max_batch": 8, "service": {"base_s": 0.3, "per_item_s": 0.1, "spread": "lognormal", "cv": 0.1}}
CHEAP = {"service": {"base_s": 0.02}}
JOIN = {"max_batch": 8, "service": {"base_s": 0.05, "per_item_s": 0.00625}}
GRAPHS: dict[str, tuple[dict[str, Any], dict[str, Any], float]] = {
    "cascade": (
        {"detector": DETECTOR, "reader": READER},
        {"objects": {"pool": "detector"}, "text": {"pool": "reader", "inputs": ["objects"], "share": 0.3}},
        0.145 / 4 + 0.3 * 0.2,
    ),
    "cascade without a gate": (
        {"detector": DETECTOR, "reader": READER},
        {"objects": {"pool": "detector"}, "text": {"pool": "reader", "inputs": ["objects"]}},
        0.145 / 4 + 0.2,
    ),
    "diamond": (
        {"detector": DETECTOR, "reader": READER, "tracker": CHEAP, "join": JOIN},
        {
            "objects": {"pool": "detector"},
            "text": {"pool": "reader", "inputs": ["objects"], "share": 0.5},
            "tracks": {"pool": "tracker", "inputs": ["objects"]},
            "answer": {"pool": "join", "inputs": ["text", "tracks"]},
        },
        0.145 / 4 + 0.5 * 0.2 + 0.02 + 0.1 / 8,
    ),
    "sight and sound": (
        {"detector": DETECTOR, "speech": SPEECH, "join": JOIN},
        {
            "objects": {"pool": "detector"},
            "words": {"pool": "speech"},
            "answer": {"pool": "join", "inputs": ["objects", "words"]},
        },
        0.145 / 4 + 1.1 / 8 + 0.1 / 8,
    ),
}
NUM_CORES = 2
LOADS = ((0.8, "poisson"), (0.8, "bursty"), (1.4, "poisson"), (2.0, "poisson"), (2.0, "regular"))


def graph(name: str, load: float, kind: str, seed: int, num: int) -> Scenario:
    pools, stages, each_s = GRAPHS[name]
    per_s = load * NUM_CORES / each_s
    streams = [{"num": 8, "max_lag_s": 3.0, "arrivals": {"per_s": per_s / 8, "kind": kind, "cv": 4.0}}]
    shape = {"seed": seed, "duration_s": num / per_s, "num_cores": NUM_CORES}
    return scenario_of(shape | {"pools": pools, "stages": stages, "streams": streams})


def first_come(wanting: Sequence[SimulatedPool], now_ns: int) -> SimulatedPool:
    return wanting[0]


def nexus(name: str, pool: SimulatedPoolSpec) -> Batching:
    return Nexus(pool.max_batch, pool.service.mean_s, 1.0)  # a third of the time there is, for each of three steps


def pard(graph: str) -> BatchingOf:
    """Of pools that know of each other, for one run."""
    _, stages, _ = GRAPHS[graph]
    behind: dict[str, list[str]] = {}
    for stage in stages.values():
        for source in stage.get("inputs", ()):
            if source in stages:
                behind.setdefault(stages[source]["pool"], []).append(stage["pool"])
    board = Board(behind)
    return lambda name, pool: Pard(pool.max_batch, pool.service.mean_s, 3.0, board, name, NUM_CORES)


def earliest(wanting: Sequence[SimulatedPool], now_ns: int) -> SimulatedPool:
    return min(wanting, key=lambda pool: pool.urgent_ns)


# How batches are formed, who has a core, and whether it is asked of each segment if it is begun.
WAYS: dict[str, tuple[BatchingOf | None, Turn, bool]] = {
    "ours": (usual, whose_turn, True),
    "ours, all begun": (usual, whose_turn, False),
    "ours, the earliest first": (usual, earliest, True),
    "our batches alone": (usual, first_come, False),
    "dropping": (lambda name, pool: Dropping(pool.max_batch), first_come, False),
    "Nexus": (nexus, first_come, False),
    "PARD": (None, first_come, False),
    "first come": (lambda name, pool: Fifo(pool.max_batch), first_come, False),
}


def of_graph(job: tuple[str, float, str, Sequence[int], int]) -> dict[str, Any]:
    """What share of segments was answered, whole and in time, and of computing was wasted, by each way."""
    name, load, kind, seeds, num = job
    shares, wasted, least, opened = {}, {}, {}, {}
    for way, (batching_of, turn, asks) in WAYS.items():
        found = [
            run(graph(name, load, kind, seed, num), batching_of or pard(name), turn, asks_passage=asks)
            for seed in seeds
        ]
        shares[way] = round(statistics.fmean(each.in_time for each in found), 4)
        wasted[way] = round(
            statistics.fmean(each.segments.wasted_s / max(each.segments.computed_s, 1e-9) for each in found), 4
        )
        opened[way] = round(statistics.fmean(each.segments.opened_in_time for each in found), 4)
        least[way] = round(statistics.fmean(each.segments.shares[0] for each in found), 4)
    title = f"{name}, {kind}, load {load:g}"
    told = {"name": title, "in_time": shares, "wasted": wasted, "least_of_a_stream": least}
    return told | (
        {"opened_in_time": opened} if any(stage.get("share", 1) < 1 for stage in GRAPHS[name][1].values()) else {}
    )


# Detector and reader of text on two cores, each with a cheaper rung, and cameras whose answers are wanted within 2 s.
SMALL = {"max_batch": 4, "service": {"base_s": 0.005, "per_item_s": 0.012, "spread": "lognormal", "cv": 0.1}}
BRIEF = {"service": {"base_s": 0.06, "spread": "lognormal", "cv": 0.5}}
LATENCY_S = 2.0
SHAPES: dict[
    str, tuple[float, tuple[tuple[float, float], ...]]
] = {  # load on the best rungs; from when, how many times
    "steady, load 0.7": (0.7, ()),
    "steady, load 1.3": (1.3, ()),
    "step from 0.6 to 1.6 and back": (0.6, ((0.25, 2.6), (0.6, 1.0))),
    "day and night, 0.3 to 2": (1.0, tuple((at / 8, (0.3, 0.8, 1.4, 2.0)[min(at, 7 - at)]) for at in range(8))),
    "more than any rung carries, load 6": (6.0, ()),
}
# Three models in a row; segments that come unevenly, or batches that take ten times as long now and then, hold segments
# up on their way. By name: the load, how segments come, and what share of batches that is.
HELD_UP: dict[str, tuple[float, str, float]] = {
    "three models, bursty, load 0.8": (0.8, "bursty", 0.0),
    "three models, poisson, load 1.3": (1.3, "poisson", 0.0),
    "three models, bursty, load 1.3": (1.3, "bursty", 0.0),
    "three models, stragglers, poisson, load 0.8": (0.8, "poisson", 0.02),
}
RUNGS_S = 400.0


def with_rungs(shape: str, seed: int, seconds: float, *, only: int | None = None) -> Scenario:
    """`only`: the best rungs alone (0), or the last ones (1)."""
    if shape in HELD_UP:
        return in_a_row(*HELD_UP[shape], seed, seconds, only=only)
    load, phases = SHAPES[shape]
    pools = {"detector": DETECTOR, "reader": READER, "small": SMALL, "brief": BRIEF}
    kept = {"objects": [("detector", 1.0), ("small", 0.8)], "text": [("reader", 1.0), ("brief", 0.9)]}
    stages: dict[str, Any] = {}
    for name, rungs in kept.items():
        (pool, _), *lower = rungs if only is None else [rungs[only]]
        stages[name] = {"pool": pool, "lower": [{"pool": below, "quality": quality} for below, quality in lower]}
    stages["text"]["inputs"] = ["objects"]
    per_s = load * NUM_CORES / (0.145 / 4 + 0.2)
    arrivals = {"per_s": per_s / 8, "kind": "poisson"}
    streams = [{"num": 8, "max_lag_s": 3.0, "latency_s": LATENCY_S, "arrivals": arrivals}]
    shape_of = {"seed": seed, "duration_s": seconds, "num_cores": NUM_CORES}
    turns = [{"at_s": at * seconds, "load": times} for at, times in phases]
    return scenario_of(shape_of | {"pools": pools, "stages": stages, "streams": streams, "phases": turns})


def in_a_row(load: float, kind: str, straggle: float, seed: int, seconds: float, *, only: int | None) -> Scenario:
    """Each of the three has a rung that takes a third of the time or less."""
    varied = {"spread": "lognormal", "cv": 0.3, "straggle": straggle, "straggle_times": 10}
    takes = {
        "detect": (8, (0.02, 0.03), (0.01, 0.008)),
        "read": (4, (0.05, 0.1), (0.02, 0.03)),
        "judge": (4, (0.1, 0.1), (0.02, 0.02)),
    }
    pools, stages, before, each_s = dict[str, Any](), dict[str, Any](), "media", 0.0
    for name, (most, *rungs) in takes.items():
        for at, (base_s, per_item_s) in enumerate(rungs):
            service = {"base_s": base_s, "per_item_s": per_item_s, **varied}
            pools[f"{name}-{at}"] = {"max_batch": most, "service": service}
        lower = [{"pool": f"{name}-1", "quality": 0.85}] if only is None else []
        stages[name] = {"pool": f"{name}-{only or 0}", "inputs": [before], "lower": lower}
        before, each_s = name, each_s + (rungs[0][0] + most * rungs[0][1]) / most
    arrivals = {"per_s": load * NUM_CORES / each_s / 8, "kind": kind, **({"cv": 3.0} if kind == "bursty" else {})}
    streams = [{"num": 8, "max_lag_s": 6.0, "latency_s": LATENCY_S, "arrivals": arrivals}]
    shape = {"seed": seed, "duration_s": seconds, "num_cores": NUM_CORES}
    return scenario_of(shape | {"pools": pools, "stages": stages, "streams": streams})


def of_rungs(job: tuple[str, Sequence[int], float]) -> dict[str, Any]:
    """What came in time, what that is worth against the best rungs, and how often a stream changed in a minute."""
    shape, seeds, seconds = job
    found: dict[str, Any] = {"name": shape}
    last = 0.85**3 if shape in HELD_UP else 0.8 * 0.9
    for way in ("ours", "chosen once", "thresholds", "the best alone", "the last alone"):
        only = {"the best alone": 0, "the last alone": 1}.get(way)
        rungs_of = {"thresholds": Thresholds, "chosen once": Once}.get(way, Rungs)
        runs = [run(with_rungs(shape, seed, seconds, only=only), rungs_of=rungs_of) for seed in seeds]
        worth = [each.segments.quality * (last if only == 1 else 1.0) for each in runs]
        found[way] = {
            "in_time": round(statistics.fmean(each.in_time for each in runs), 4),
            "quality": round(statistics.fmean(worth), 4),
            "delivered": round(statistics.fmean(each.in_time * q for each, q in zip(runs, worth, strict=True)), 4),
            "within_latency": round(statistics.fmean(within(each) for each in runs), 4),
            "changes_a_minute": round(statistics.fmean(len(each.changes) / 8 / (seconds / 60) for each in runs), 3),
        }
    return found


def within(report: Report) -> float:
    """The share of segments that came within the latency asked for."""
    segments = report.segments
    good = sum(ok and took <= LATENCY_S for ok, took in zip(segments.is_in_time, segments.took_s, strict=True))
    return good / max(1, segments.num)


# Engines that batch by themselves, of which 64 may be under way: how long one takes, and what is done a second at most.
TIME_S = 6.0
MOST = 64
VARIED = {"spread": "lognormal", "cv": 0.4}
ENGINES: dict[str, tuple[dict[str, Any], float]] = {
    "decodes 64 together": ({"base_s": 0.5, "per_in_flight_s": 0.02, "max_running": 64}, 64 / 1.78),
    "serves 8, the others wait in it": ({"base_s": 1.0, "max_running": 8}, 8.0),
    "slows down beyond ten": ({"base_s": 0.2, "per_in_flight2_s": 0.002}, 25.0),
    "refuses more than 12": ({"base_s": 1.0, "refuses_over": 12}, 12.0),
    "does one after the other": ({"base_s": 0.05, "per_in_flight_s": 0.25}, 4.0),
}
ENGINE_LOADS = (
    ("load 0.7", 0.7, ()),
    ("load 1.3", 1.3, ()),
    ("load 0.9, half as fast for a third", 0.9, (0.4, 0.7, 2.0)),
)


def engine(name: str, load: float, slow: Sequence[float], seed: int, seconds: float) -> Scenario:
    service, most_per_s = ENGINES[name]
    pools = {"m": {"runs_in": "async", "max_async": MOST, "service": service | VARIED}}
    streams = [{"num": 8, "max_lag_s": TIME_S, "arrivals": {"per_s": load * most_per_s / 8, "kind": "poisson"}}]
    shape: dict[str, Any] = {"seed": seed, "duration_s": seconds, "pools": pools, "stages": {"s": {"pool": "m"}}}
    if slow:
        since, until, times = slow
        shape["slow"] = [{"pool": "m", "from_s": since * seconds, "to_s": until * seconds, "times": times}]
    return scenario_of(shape | {"streams": streams})


def of_engine(job: tuple[str, str, float, Sequence[float], Sequence[int], float]) -> dict[str, Any]:
    """The share of items in time by each way to limit what is under way; of fixed limits, the best in hindsight."""
    name, title, load, slow, seeds, seconds = job
    ways: dict[str, list[LimitingOf]] = {
        "ours": [InFlight],
        "as many as may be": [Fixed],
        "the best fixed": [partial(_fixed, size) for size in (1, 2, 4, 8, 12, 16, 24, 32, 64)],
        "AIMD": [lambda most: Aimd(most, TIME_S / 2)],
        "Vegas": [Vegas],
        "Gradient2": [Gradient2],
    }
    shares, changes = {}, 0.0
    for way, tried in ways.items():
        means = []
        for limiting_of in tried:
            runs = [run(engine(name, load, slow, seed, seconds), limiting_of=limiting_of) for seed in seeds]
            means.append(statistics.fmean(each.in_time for each in runs))
            if way == "ours":
                changes = statistics.fmean(len(each.pools["m"].limits) / (seconds / 60) for each in runs)
        shares[way] = round(max(means), 4)
    return {"name": f"{name}, {title}", "in_time": shares, "changes_a_minute": round(changes, 2)}


def _fixed(size: int, most: int) -> Fixed:
    return Fixed(size)


Made = Callable[[], Batching]


def policies(pool: SimulatedPoolSpec, lag_s: float) -> dict[str, list[Made]]:
    """By name, with each setting that is tried, for a pool whose items are due so long after they come."""
    most, mean_s = pool.max_batch, pool.service.mean_s
    sizes = sorted({min(size, most) for size in (1, 2, 4, 8, 16, 32)})
    return {
        "ours": [partial(Batcher, most)],
        "first come": [partial(Fifo, size) for size in sizes],
        "dropping": [partial(Dropping, size) for size in sizes],
        "Triton": [partial(Triton, most, share * mean_s(most)) for share in (0.0, 0.5, 1.0)],
        "Clipper": [partial(Clipper, most, lag_s)],
        "Nexus": [partial(Nexus, most, mean_s, lag_s)],
        "Symphony": [partial(Symphony, most, mean_s, lag_s)],
        "PARD": [lambda: Pard(most, mean_s, lag_s, Board({}), "p", max(1, pool.num_instances))],
    }


def by(make: Made) -> BatchingOf:
    return lambda name, pool: make()


def limit(scenario: Scenario) -> float:
    """The share of segments that could be in time at most: see above."""
    (streams,), pool = scenario.streams, scenario.pools["p"]
    each_s = pool.service.mean_s(pool.max_batch) / pool.max_batch / pool.num_instances
    slow = list(scenario.slow)
    came: list[float] = []
    world = World(scenario.seed)
    chance = world.chance("arrivals/0")
    for stream in range(1 if streams.together else streams.num):
        first = 0.0 if streams.together else chance.random()
        own = world.chance(f"arrivals/0/{stream}")
        times = times_s(streams.arrivals, scenario.phases, own, first)
        came += itertools.takewhile(lambda at_s: at_s < scenario.duration_s, times)
    came = sorted(came * (streams.num if streams.together else 1))
    free_s, num = 0.0, 0
    for at_s in came:
        done_s = ends_s(max(free_s, at_s), each_s, slow)
        if done_s <= at_s + streams.max_lag_s:
            free_s, num = done_s, num + 1
    return num / max(1, len(came))


def measured(job: tuple[Row, int, int]) -> tuple[Row, int, dict[str, list[float]], float]:
    """Of a row and a seed, what each policy comes to with each of its settings; and the limit."""
    row, seed, num = job
    scenario = row.scenario(seed, num)
    tried = policies(scenario.pools["p"], scenario.streams[0].max_lag_s)
    found = {
        name: [run(scenario, by(make), asks_passage=name == "ours").in_time for make in made]
        for name, made in tried.items()
    }
    return row, seed, found, limit(scenario)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fifth of the segments, one seed")
    parser.add_argument("--plot", type=Path, help="where to draw the table")
    asked = parser.parse_args()
    seeds, num = ((1,), NUM // 5) if asked.quick else ((1, 2, 3, 4, 5), NUM)
    began_s = time.perf_counter()
    table: list[dict[str, Any]] = []
    every = list(rows())
    with ProcessPoolExecutor(num_cores()) as workers:
        done = workers.map(measured, [(row, seed, num) for row in every for seed in seeds])
        for row, of_row in itertools.groupby(done, key=lambda each: each[0]):
            table.append(line(row, list(of_row)))
            say(told(table[-1]))
        jobs = [(name, load, kind, seeds, num) for name in GRAPHS for load, kind in LOADS]
        graphs = list(workers.map(of_graph, jobs))
        seconds = 600.0 / (5 if asked.quick else 1)
        asking = [(name, *how, seeds[:3], seconds) for name in ENGINES for how in ENGINE_LOADS]
        engines = list(workers.map(of_engine, asking))
        rungs_s = RUNGS_S / (5 if asked.quick else 1)
        rungs = list(workers.map(of_rungs, [(shape, seeds, rungs_s) for shape in (*SHAPES, *HELD_UP)]))
    for each in graphs:
        cells = " ".join(f"{way}: {share:.3f}" for way, share in each["in_time"].items())
        say(f"{each['name']:44} {cells}")
    for each in engines:
        say(f"{each['name']:70} {each['in_time']} {each['changes_a_minute']} changes a minute")
    for each in rungs:
        cells = " ".join(f"{way}: {told}" for way, told in each.items() if way != "name")
        say(f"{each['name']:44} {cells}")
    say(f"{time.perf_counter() - began_s:.0f} s")
    others = [max(value for name, value in each["shares"].items() if name != "ours") for each in table]
    ratios = [each["shares"]["ours"] / best for each, best in zip(table, others, strict=True)]
    keep(
        "control",
        {
            "rows": table,
            "graphs": graphs,
            "engines": engines,
            "engines_against_the_best_fixed": at_least(
                min(each["in_time"]["ours"] / each["in_time"]["the best fixed"] for each in engines), 0.9
            ),
            "rungs": rungs,
            "graphs_first": at_least(
                sum(found["ours"] >= 0.99 * max(found.values()) for found in map(looked_for, graphs)) / len(graphs),
                0.9,
            ),
            "num_seeds": len(seeds),
            "first_or_within_a_percent": at_least(sum(ratio >= 0.99 for ratio in ratios) / len(ratios), 0.9),
            "worst_against_the_best_other": at_least(min(ratios), 0.9),
            "worst_against_the_limit": at_least(min(each["shares"]["ours"] for each in table), 0.95),
            "median_against_the_limit": statistics.median(each["shares"]["ours"] for each in table),
        },
    )
    if asked.plot:
        draw(table, asked.plot)


def looked_for(graph: Mapping[str, Any]) -> dict[str, float]:
    """What counts of a graph: of those with gates, segments that open one, for something is found in them. A way that
    drops those and answers the others, in which there is nothing, answers more."""
    found: dict[str, float] = graph.get("opened_in_time") or graph["in_time"]
    return found


def line(row: Row, found: Sequence[tuple[Row, int, dict[str, list[float]], float]]) -> dict[str, Any]:
    """What stands in the table: means over the seeds, of each policy's best setting, over the limit."""
    limits = [most for *_, most in found]
    shares: dict[str, float] = {}
    spread: dict[str, tuple[float, float]] = {}
    for name in found[0][2]:
        by_setting = [
            [values[name][setting] / most for (_, _, values, most) in found]
            for setting in range(len(found[0][2][name]))
        ]
        best = max(by_setting, key=statistics.fmean)
        shares[name], spread[name] = round(statistics.fmean(best), 4), (round(min(best), 4), round(max(best), 4))
    return {
        "name": row.name,
        "curve": row.curve,
        "limit": round(statistics.fmean(limits), 4),
        "shares": shares,
        "spread": spread,
    }


def told(each: Mapping[str, Any]) -> str:
    cells = " ".join(f"{name} {share:.3f}" for name, share in each["shares"].items())
    return f"{each['curve']:20} {each['name']:44} limit {each['limit']:.3f}  {cells}"


def draw(table: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The table as a picture: a row a line, a policy a column, the greener the nearer to the limit."""
    from matplotlib import pyplot

    names = list(table[0]["shares"])
    shares = [[each["shares"][name] for name in names] for each in table]
    figure, axes = pyplot.subplots(figsize=(11, 0.24 * len(table) + 1.5))
    axes.imshow(shares, cmap="RdYlGn", vmin=0.3, vmax=1.0, aspect="auto")
    for at, row in enumerate(shares):
        for column, share in enumerate(row):
            weight = "bold" if share >= max(row) - 0.01 else "normal"
            axes.text(column, at, f"{share:.2f}", ha="center", va="center", fontsize=7, weight=weight)
    axes.set_xticks(range(len(names)), names)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(table)), [f"{each['curve']}: {each['name']}" for each in table], fontsize=7)
    axes.set_title("Segments answered in time, over what could be (bold: within a percent of the best)", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
