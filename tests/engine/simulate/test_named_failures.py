"""What went wrong in others' controllers, each as a scenario that the engine's own rules go through: see the issue of
the project that is named."""

from typing import Any

import pytest

from engine.decide.inflight import InFlight
from engine.simulate.run import run
from engine.simulate.scenario import scenario_of

LINE = {"base_s": 0.005, "per_item_s": 0.035}
CASCADE: dict[str, Any] = {
    "num_cores": 2,
    "pools": {"detector": {"max_batch": 4, "service": LINE}, "reader": {"service": {"base_s": 0.2}}},
    "stages": {"objects": {"pool": "detector"}, "text": {"pool": "reader", "inputs": ["objects"]}},
}
WITH_RUNGS: dict[str, Any] = {
    "num_cores": 2,
    "pools": {"best": {"service": {"base_s": 0.4}}, "small": {"service": {"base_s": 0.1}}},
    "stages": {"look": {"pool": "best", "lower": [{"pool": "small", "quality": 0.8}]}},
}


def streams(per_s: float, num: int = 8, lag_s: float = 3.0, **more: Any) -> list[dict[str, Any]]:
    kind = more.pop("kind", "poisson")
    return [{"num": num, "max_lag_s": lag_s, "arrivals": {"per_s": per_s / num, "kind": kind}, **more}]


def test_a_starved_stage_is_not_taken_for_the_bottleneck() -> None:
    """ray 65540: 6,190 blocks queued before one stage while cores went to another that had nothing. Cores go where
    something is due: the dear stage keeps both busy, and what comes before it runs when it has to."""
    found = run(scenario_of(CASCADE | {"duration_s": 120, "streams": streams(1.5 * 2 / 0.236)}))
    assert sum(pool.busy for pool in found.pools.values()) > 1.9
    assert found.in_time > 0.6  # of 0.67 that can be
    assert found.segments.wasted_s < 0.1 * found.segments.computed_s


def test_cold_starts_are_no_service_times() -> None:
    """dynamo 12430: samples of a cold start made its planner take a replica for slow, for good. The first of each
    instance is left out: after the minute it loads, all that comes is in time."""
    cold = {"max_batch": 4, "is_cold": True, "num_instances": 2, "service": LINE | {"cold_s": 60.0}}
    scenario = {"duration_s": 180, "warm_up_s": 70, "pools": {"detector": cold}, "stages": {"s": {"pool": "detector"}}}
    assert run(scenario_of(scenario | {"streams": streams(20.0)})).in_time > 0.99


@pytest.mark.parametrize("load", [0.9, 1.1, 1.6])
def test_it_does_not_go_up_to_come_down_again(load: float) -> None:
    """dynamo 9294: two replicas, one, two, one. Before a rung is lifted it is seen that the upper one carries what
    comes."""
    arrivals = streams(load * 2 / 0.4, latency_s=2.0)
    found = run(scenario_of(WITH_RUNGS | {"duration_s": 600, "streams": arrivals}))
    assert found.in_time > 0.98
    assert len(found.changes) <= 8 * 2 * 600 / 60  # of eight streams, two a minute each


def test_silence_is_no_reason_to_stay_low() -> None:
    """dynamo 6985: no traffic was read as no data, and seven replicas stayed. After a silence the first segments go
    up again."""
    phases = [{"at_s": 60.0, "load": 0.0}, {"at_s": 200.0, "load": 0.2}]
    arrivals = streams(2.0 * 2 / 0.4, latency_s=2.0)
    found = run(scenario_of(WITH_RUNGS | {"duration_s": 320, "streams": arrivals, "phases": phases}))
    last = {stream: rung for _, stream, _, rung in found.changes}
    assert len(last) > 4  # went down under twice of what the best can do
    assert set(last.values()) == {0}


def test_a_low_rate_is_no_low_capacity() -> None:
    """numaflow 1407: what a stage did while little came was taken for what it can do. A surge of twenty times is
    begun at once."""
    phases = [{"at_s": 100.0, "load": 20.0}]
    found = run(scenario_of(CASCADE | {"duration_s": 130, "streams": streams(0.04 * 2 / 0.236), "phases": phases}))
    assert found.in_time > 0.98
    engine = {"runs_in": "async", "max_async": 64, "service": {"base_s": 1.0, "max_running": 64}}
    shape = {"pools": {"m": engine}, "stages": {"s": {"pool": "m"}}, "duration_s": 130, "phases": phases}
    surge = run(scenario_of(shape | {"streams": streams(2.5, lag_s=10.0)}))
    assert surge.in_time > 0.98
    assert surge.pools["m"].limits == ()


def test_what_says_nothing_changes_nothing() -> None:
    """keda 7322, 7668: a missing metric read as zero, or as the most. While an engine stalls for a minute no item ends,
    and the limit stays."""
    engine = {"runs_in": "async", "max_async": 16, "service": {"base_s": 0.5, "max_running": 16}}
    slow = [{"pool": "m", "from_s": 30.0, "to_s": 90.0, "stalls": True}]
    shape = {"pools": {"m": engine}, "stages": {"s": {"pool": "m"}}, "duration_s": 200, "slow": slow}
    found = run(scenario_of(shape | {"streams": streams(10.0, lag_s=5.0)}))
    assert [limit for at_s, limit, _ in found.pools["m"].limits if 30 < at_s < 90] == []
    late = [good for came_s, good in zip(found.segments.came_s, found.segments.is_in_time, strict=True) if came_s > 100]
    assert sum(late) / len(late) > 0.98


def test_after_a_stall_of_all_lanes_work_goes_on() -> None:
    """Of our own: two batches that stalled side by side were learned as how long batches take, and all was refused for
    good."""
    slow = [{"pool": name, "from_s": 30.0, "to_s": 45.0, "stalls": True} for name in ("detector", "reader")]
    found = run(scenario_of(CASCADE | {"duration_s": 90, "streams": streams(0.7 * 2 / 0.236), "slow": slow}))
    late = [good for came_s, good in zip(found.segments.came_s, found.segments.is_in_time, strict=True) if came_s > 50]
    assert sum(late) / len(late) > 0.98


def test_a_limit_does_not_grow_for_ever_where_service_times_are_constant() -> None:
    """concurrency-limits 137. It begins at the most that is allowed, and more is never tried."""
    limit, now_ns = InFlight(8), 0
    for _ in range(10_000):
        limit.began(50, None)
        now_ns += 125_000_000
        limit.ended(limit.limit, 1.0, now_ns)
        assert limit.limit <= 8


def test_a_probe_costs_a_step_for_a_round() -> None:
    """envoy 8337: the limit dropped to one to measure the shortest time. Here one step down is tried for a round, and
    once a minute at most."""
    engine = {"runs_in": "async", "max_async": 16, "service": {"base_s": 1.0, "max_running": 16}}
    shape = {"pools": {"m": engine}, "stages": {"s": {"pool": "m"}}, "duration_s": 600}
    found = run(scenario_of(shape | {"streams": streams(20.0, lag_s=6.0)}))
    assert min((limit for _, limit, _ in found.pools["m"].limits), default=16) >= 8
    assert found.in_time > 0.93 * 16 / 20


def test_a_batch_is_formed_when_it_runs() -> None:
    """triton 3624: a batch was formed and frozen while the model was busy. What comes meanwhile makes it larger."""
    pool = {"max_batch": 8, "num_instances": 1, "service": {"base_s": 0.5}}
    shape = {"pools": {"p": pool}, "stages": {"s": {"pool": "p"}}, "duration_s": 60}
    found = run(scenario_of(shape | {"streams": streams(12.0, lag_s=2.0)}))
    assert found.pools["p"].mean_batch > 5
    assert found.in_time > 0.97
