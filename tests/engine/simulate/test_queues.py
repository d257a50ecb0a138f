"""The simulator against queueing theory: path by path, which leaves nothing to chance, and in the mean."""

import heapq
import math
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import pytest

from engine.simulate.arrivals import Arrivals, times_s
from engine.simulate.report import Report
from engine.simulate.run import run
from engine.simulate.scenario import Scenario, scenario_of
from engine.simulate.services import Service
from engine.simulate.world import World


def queue(
    per_s: float, service: dict[str, Any], num: int, lanes: int = 1, max_batch: int = 1, seed: int = 1, **arrivals: Any
) -> Report:
    """`num` items or so through one stage on one pool."""
    table = {
        "seed": seed,
        "duration_s": num / per_s,
        "pools": {"p": {"max_batch": max_batch, "num_instances": lanes, "service": service}},
        "stages": {"s": {"pool": "p"}},
        "streams": [{"arrivals": {"per_s": per_s, "kind": "poisson"} | arrivals}],
    }
    return run(scenario_of(table))


def path(per_s: float, service: dict[str, Any], num: int, lanes: int = 1, seed: int = 1) -> list[float]:
    """How long each stays, worked out from the same chance: each begins when it has come and the first lane is free."""
    world = World(seed)
    arrivals, chance = Arrivals(per_s=per_s, kind="poisson"), world.chance("service/p")
    times = times_s(arrivals, (), world.chance("arrivals/0/0"))
    how = Service(**service)
    free = [0.0] * lanes
    stays: list[float] = []
    while (came_s := next(times)) < num / per_s:
        begins_s = max(came_s, heapq.heappop(free))
        ends_s = begins_s + how.sampled_s(1, chance)
        heapq.heappush(free, ends_s)
        stays.append(ends_s - came_s)
    return stays


EXPONENTIAL = {"per_item_s": 1.0, "spread": "exponential"}
CONSTANT = {"per_item_s": 1.0}
LONG = {"per_item_s": 1.0, "spread": "lognormal", "cv": 2.0}


PATHS = {
    "M/M/1": (0.5, EXPONENTIAL, 1),
    "M/M/1, busy": (0.9, EXPONENTIAL, 1),
    "M/M/3": (2.1, EXPONENTIAL, 3),
    "M/D/1": (0.8, CONSTANT, 1),
    "M/G/1": (0.7, LONG, 1),
    "M/G/8": (4.0, LONG, 8),
}


@pytest.mark.parametrize(("per_s", "service", "lanes"), PATHS.values(), ids=PATHS)
def test_every_item_stays_as_long_as_it_is_worked_out_to(per_s: float, service: dict[str, Any], lanes: int) -> None:
    found = queue(per_s, service, 3000, lanes).segments
    stays = path(per_s, service, 3000, lanes)
    by_came = sorted(zip(found.came_s, found.took_s, strict=True))
    assert [took for _, took in by_came] == pytest.approx(stays, abs=1e-6)


def erlang_c(num: int, offered: float) -> float:
    """The probability that one has to wait, of `num` lanes that are offered so much work."""
    inverse = 1.0
    for each in range(1, num + 1):
        inverse = 1 + inverse * each / offered
    blocked = 1 / inverse
    return blocked / (1 - offered / num * (1 - blocked))


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


@pytest.mark.parametrize(
    ("per_s", "service", "lanes", "right"),
    [
        (0.5, EXPONENTIAL, 1, 2.0),  # 1 / (mu - lambda)
        (2.0, EXPONENTIAL, 4, 1 + erlang_c(4, 2.0) / (4 - 2.0)),
        (0.6, CONSTANT, 1, 1 + 0.6 / (2 * (1 - 0.6))),  # Pollaczek and Khinchine
    ],
    ids=["M/M/1", "M/M/4", "M/D/1"],
)
def test_the_mean_is_that_of_the_formula(per_s: float, service: dict[str, Any], lanes: int, right: float) -> None:
    stays = [mean(queue(per_s, service, 20_000, lanes, seed=seed).segments.took_s) for seed in range(3)]
    assert mean(stays) == pytest.approx(right, rel=0.02)  # bench/simulator.py holds it to 1 %


def test_batches_of_constant_service_are_as_worked_out() -> None:
    """M/D/1 with batches of all that waits, at most 4: sampled by a chain over the number left behind."""
    per_s, most = 2.4, 4
    found = queue(per_s, CONSTANT | {"per_item_s": 0.0, "base_s": 1.0}, 60_000, max_batch=most)
    world = World(1)
    times = times_s(Arrivals(per_s=per_s, kind="poisson"), (), world.chance("arrivals/0/0"))
    came = []
    while (at_s := next(times)) < 60_000 / per_s:
        came.append(at_s)
    stays, begin, free_s = [], 0, 0.0
    while begin < len(came):
        free_s = max(free_s, came[begin])
        end = begin
        while end < len(came) and end < begin + most and came[end] <= free_s:
            end += 1
        free_s += 1.0
        stays += [free_s - each for each in came[begin:end]]
        begin = end
    by_came = sorted(zip(found.segments.came_s, found.segments.took_s, strict=True))
    assert [took for _, took in by_came] == pytest.approx(stays, abs=1e-6)


def came_of(scenario: Scenario) -> list[list[float]]:
    """When each stream's segments come, by the same chance."""
    world, (streams,) = World(scenario.seed), scenario.streams
    every = [
        times_s(streams.arrivals, scenario.phases, world.chance(f"arrivals/0/{stream}"))
        for stream in range(streams.num)
    ]
    return [list(takewhile(lambda at_s: at_s < scenario.duration_s, times)) for times in every]


@pytest.mark.parametrize("lag_s", [0.0, 4.0])
def test_littles_law_holds_in_every_run_and_everything_is_accounted_for(lag_s: float) -> None:
    table = {
        "seed": 3,
        "duration_s": 400,
        "num_cores": 2,
        "pools": {
            "a": {"max_batch": 4, "service": {"base_s": 0.1, "per_item_s": 0.2, "spread": "lognormal", "cv": 0.5}},
            "b": {"service": {"per_item_s": 0.6, "spread": "exponential"}},
        },
        "stages": {
            "one": {"pool": "a"},
            "two": {"pool": "b", "inputs": ["one"], "share": 0.5},
            "three": {"pool": "a", "inputs": ["one", "two"]},
        },
        "streams": [{"num": 3, "max_lag_s": lag_s, "arrivals": {"per_s": 0.7, "kind": "bursty", "cv": 2.0}}],
        "phases": [{"at_s": 100, "load": 2.0}, {"at_s": 250, "load": 0.5}],
    }
    found = run(scenario_of(table))
    for pool in found.pools.values():
        per_s = (pool.num_done + pool.num_dropped) / found.seconds
        assert pool.num_there == pytest.approx(per_s * pool.stays_s, rel=1e-6)
    segments = found.segments
    assert segments.num == sum(map(len, came_of(scenario_of(table))))
    assert segments.num_in_time + segments.num_gaps + segments.num_late == segments.num
    assert bool(segments.num_gaps) == bool(lag_s)
    again = run(scenario_of(table))
    assert (again.segments.took_s, again.pools) == (segments.took_s, found.pools)
    other = run(scenario_of(table | {"seed": 4}))
    assert other.segments.took_s != segments.took_s
