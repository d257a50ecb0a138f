"""Capacity: how many streams like a clip a machine carries, by simulating so many with the engine's own rules.

The most for which IN_TIME of all segments are answered, whole and within the bound, is looked for from above: from
what the lanes of the busiest resource could do with no one waiting, which no rule can exceed and a good one comes near.
How soon answers come hangs on whether the segments of several streams happen to come together: each number is tried
SEEDS times, by chance, or until it cannot hold however the others go; fewer times of many streams, which are their
own mean.
"""

import math
from collections.abc import Callable, Sequence

import msgspec

from engine.decide import lanes
from engine.simulate.report import Report, quantile
from engine.simulate.run import run
from engine.simulate.scenario import MAX_STREAMS, Scenario

IN_TIME = 0.99
SEEDS = 5
BOUNDS_EACH = 40  # so many times the bound, or what is too much would not have waited for so long by the end
MAX_SEGMENTS = 12_000  # of all streams each time, and
ENOUGH = 24_000  # of all times together; but
MIN_EACH = 16  # of each stream at least
BEST = 0.999  # of quality: nothing ran on a lower rung to speak of

ScenarioOf = Callable[[int, int], Scenario]  # streams, and segments of each


class Load(msgspec.Struct, frozen=True):
    """So many streams at once."""

    num_streams: int
    in_time: float  # whole and within the bound
    p50_s: float | None
    p99_s: float | None
    quality: float
    busy: dict[str, float]  # of each resource, the share of its lanes that ran
    by_stage: dict[str, float]  # of each pool, lanes that ran


class Capacity(msgspec.Struct, frozen=True):
    """How many streams fit. `on_best`: with every stage on its best rung; `on_any`: by rungs that keep the quality,
    the same where there are none; None where not even one does. `over`: the next number that was tried."""

    on_best: Load | None
    on_any: Load | None
    over: Load
    most: float  # that the busiest resource could do, were nothing ever to wait
    binds: str  # the busiest resource


def capacity(
    scenario_of: ScenarioOf,
    bound_s: float,
    on_load: Callable[[Load], None] = lambda load: None,
    *,
    num_seeds: int = SEEDS,
) -> Capacity:
    """`on_load` is told of each number that is tried."""
    tried: dict[tuple[int, bool], Load] = {}
    per_s = scenario_of(1, MIN_EACH).streams[0].arrivals.per_s

    def load(num: int, *, with_lower: bool) -> Load:
        if (num, with_lower) not in tried:
            num_each = _num_each(num, bound_s * per_s)
            scenario = scenario_of(num, num_each)
            scenario = scenario if with_lower else without_lower(scenario)
            times = max(1, min(num_seeds, ENOUGH // (num * num_each)))
            reports: list[Report] = []
            while len(reports) < times:
                reports.append(run(msgspec.structs.replace(scenario, seed=len(reports))))
                found = load_of(scenario, reports, num, bound_s)
                if found.in_time * len(reports) + times - len(reports) < IN_TIME * times:
                    break
            tried[num, with_lower] = found
            on_load(found)
        return tried[num, with_lower]

    def most(*, with_lower: bool) -> tuple[Load | None, Load]:
        """The most that holds, and one more. Over the limit nothing does: what seems to has not yet waited long."""
        low, high = 0, 1 + math.floor(min(MAX_STREAMS - 1, limit(scenario_of(1, MIN_EACH), with_lower=with_lower)[0]))
        down, step = 1, max(1, high // 16)
        while high - low > max(1, high // 200):
            middle = (low + high) // 2 if low else max(1, high - down)
            if load(middle, with_lower=with_lower).in_time >= IN_TIME:
                low = middle
            else:
                high, down, step = middle, step, 2 * step
        return (load(low, with_lower=with_lower) if low else None), load(high, with_lower=with_lower)

    has_lower = any(stage.lower for stage in scenario_of(1, MIN_EACH).stages.values())
    on_best, over = most(with_lower=False)
    on_any = on_best
    if has_lower:
        on_any, over = most(with_lower=True)
    bound, binds = limit(scenario_of(1, MIN_EACH), with_lower=has_lower)
    return Capacity(on_best, on_any, over, bound, binds)


def without_lower(scenario: Scenario) -> Scenario:
    """With the best rungs alone."""
    stages = {name: msgspec.structs.replace(stage, lower=()) for name, stage in scenario.stages.items()}
    return msgspec.structs.replace(scenario, stages=stages)


def limit(scenario: Scenario, *, with_lower: bool) -> tuple[float, str]:
    """How many streams the busiest resource could carry, each stage in full batches on the rung that takes least, and
    which that is; of a scenario of one stream."""
    (streams,) = scenario.streams
    takes_s: dict[str, float] = {}
    num_lanes: dict[str, int] = {}
    for stage in scenario.stages.values():
        names = [stage.pool, *(rung.pool for rung in stage.lower if with_lower)]
        pool = min(names, key=lambda each: _unit_s(scenario, each))
        shape = scenario.pools[pool].shape
        resource = lanes.resource_of(shape, pool)
        takes_s[resource] = takes_s.get(resource, 0.0) + stage.share * _unit_s(scenario, pool)
        num_lanes[resource] = lanes.num_shared(shape, scenario.num_cores)
    fits = {
        resource: num_lanes[resource] / (takes_s[resource] * streams.arrivals.per_s) if takes_s[resource] else math.inf
        for resource in takes_s
    }
    binds = min(fits, key=lambda each: fits[each])
    return min(fits[binds], float(MAX_STREAMS)), binds


def _unit_s(scenario: Scenario, pool: str) -> float:
    spec = scenario.pools[pool]
    if spec.runs_in == "async":
        return spec.service.mean_s(1, spec.max_async)
    return spec.service.fresh * spec.service.mean_s(spec.max_batch) / spec.max_batch


def _num_each(num_streams: int, segments_in_bound: float) -> int:
    """Segments of each stream."""
    wanted = max(2 * MIN_EACH, math.ceil(BOUNDS_EACH * segments_in_bound))
    return max(MIN_EACH, min(wanted, MAX_SEGMENTS // num_streams))


def load_of(scenario: Scenario, reports: Sequence[Report], num_streams: int, bound_s: float) -> Load:
    """What these runs of a scenario came to together."""
    took = [
        took_s if in_time and took_s <= bound_s else None
        for report in reports
        for took_s, in_time in zip(report.segments.took_s, report.segments.is_in_time, strict=True)
    ]
    good = [took_s for took_s in took if took_s is not None]
    by_pool = {name: sum(each.pools[name].busy for each in reports) / len(reports) for name in scenario.pools}
    busy: dict[str, float] = {}
    for name, num_lanes in by_pool.items():
        shape = scenario.pools[name].shape
        resource = lanes.resource_of(shape, name)
        busy[resource] = busy.get(resource, 0.0) + num_lanes / lanes.num_shared(shape, scenario.num_cores)
    return Load(
        num_streams=num_streams,
        in_time=len(good) / len(took) if took else 1.0,
        p50_s=quantile(good, 0.5) if good else None,
        p99_s=quantile(good, 0.99) if good else None,
        quality=sum(each.segments.quality for each in reports) / len(reports),
        busy=busy,
        by_stage=by_pool,
    )
