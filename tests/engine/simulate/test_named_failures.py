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


# --- of fleets -------------------------------------------------------------------------------------------------------


def fleet(load: float, seconds: float = 300, lag_s: float = 6.0, **more: Any) -> dict[str, Any]:
    """Of which each replica does two segments a second."""
    replicas = {"least": 1, "most": 8, "begin": 1, "start_s": 5.0} | more.pop("replicas", {})
    pool = {"max_batch": 4, "service": {"base_s": 0.4, "per_item_s": 0.4}, "replicas": replicas}
    shape = {"duration_s": seconds, "pools": {"detector": pool}, "stages": {"objects": {"pool": "detector"}}}
    return shape | {"streams": streams(2 * load, lag_s=lag_s)} | more


def test_one_that_is_starved_gets_no_replicas_for_it() -> None:
    """ray 65540, in a fleet: a captioner behind a detector that cannot feed it stays as it is, and the detector
    grows."""
    table = fleet(4.0, replicas={"most": 3})
    captioner = {"service": {"base_s": 1.0}, "replicas": {"least": 1, "most": 8, "begin": 1, "start_s": 5.0}}
    table["pools"] = table["pools"] | {"captioner": captioner}
    table["stages"] = table["stages"] | {"captions": {"pool": "captioner", "inputs": ["objects"], "share": 0.05}}
    found = run(scenario_of(table))
    assert found.fleet["detector"].most == 3
    assert found.fleet["captioner"].most <= 2  # until it is known how often it is wanted


@pytest.mark.parametrize("load", [0.85, 1.0, 1.7, 1.9])
def test_replicas_do_not_go_up_and_down(load: float) -> None:
    """dynamo 9294: two, one, two, one. One goes only where what is left has carried the load for a while, and what
    carries it is let alone."""
    found = run(scenario_of(fleet(load, 900, replicas={"begin": 2})))
    assert len(found.fleet["detector"].changes) <= 6
    assert found.in_time > 0.98


def test_a_fleet_without_traffic_shrinks() -> None:
    """dynamo 6985: no traffic was read as no data, and seven replicas stayed."""
    found = run(scenario_of(fleet(5.0, 400, phases=[{"at_s": 100.0, "load": 0.0}], replicas={"begin": 7, "least": 0})))
    assert found.fleet["detector"].changes[-1][1] == 0
    assert found.fleet["detector"].changes[-1][0] < 200


def test_a_surge_after_little_is_sized_by_what_a_replica_can_do() -> None:
    """numaflow 1407: what one did while little came was taken for what it can do, and tens were started."""
    found = run(scenario_of(fleet(0.1, 300, phases=[{"at_s": 150.0, "load": 30.0}], replicas={"most": 100})))
    assert 4 <= found.fleet["detector"].most <= 7  # three lanes' worth comes


def test_what_runs_is_not_taken_for_a_queue() -> None:
    """numaflow 630: four messages in flight had seventy-three replicas started."""
    table = fleet(0.05, 400, lag_s=200.0, replicas={"most": 100, "begin": 4})
    table["pools"]["detector"] |= {"max_batch": 1, "service": {"base_s": 40.0}}
    assert run(scenario_of(table)).fleet["detector"].most <= 8  # four lanes' worth comes


@pytest.mark.parametrize("since", [100.0, 115.0])
def test_a_fleet_of_which_nothing_is_heard_stays(since: float) -> None:
    """keda 7322, 7668: a metric that was missing was read as none, or as the most."""
    unheard = [{"from_s": since, "to_s": since + 120}]
    found = run(scenario_of(fleet(2.5, 300, replicas={"begin": 3}, unheard=unheard)))
    assert [at_s for at_s, _, _ in found.fleet["detector"].changes if since <= at_s < since + 120] == []
    assert found.in_time > 0.98


def test_a_dead_replica_is_given_nothing_and_replaced() -> None:
    """ray 63279: a replica that was dead went on being sent requests. Work is fetched here, and the dead fetch
    nothing; what one had taken is lost, and no more."""
    found = run(scenario_of(fleet(2.3, 300, replicas={"begin": 3}, fails=[{"of": "detector", "at_s": 100.0}])))
    late = [at_s for at_s, good in zip(found.segments.came_s, found.segments.is_in_time, strict=True) if not good]
    assert len(late) <= 4 * 3
    assert found.in_time > 0.97


def test_a_full_budget_does_not_block_the_first_start() -> None:
    """ray 59144: what was there already had the budget, and the first GPU actor never started."""
    table = fleet(8.0, replicas={"most": 6, "begin": 6})
    other = {"service": {"base_s": 0.2}, "replicas": {"least": 0, "most": 6, "begin": 0, "start_s": 5.0}}
    table["pools"] = table["pools"] | {"captioner": other}
    table["stages"] = table["stages"] | {"captions": {"pool": "captioner"}}
    found = run(scenario_of(table | {"max_replicas": 6}))
    assert found.pools["captioner"].num_done > 0.6 * found.segments.num / 2
    assert found.fleet["captioner"].most >= 1


def test_fewer_replicas_end_what_they_do_first() -> None:
    """dynamo 13559: a worker was killed five seconds after it was told to go, with its requests."""
    table = fleet(2.0, 600, lag_s=300.0, phases=[{"at_s": 200.0, "load": 0.1}], replicas={"begin": 8})
    table["pools"]["detector"] |= {"max_batch": 1, "service": {"base_s": 40.0}}
    table["streams"] = streams(0.05, lag_s=300.0)
    found = run(scenario_of(table))
    assert found.fleet["detector"].changes
    assert found.in_time == 1.0
    assert found.pools["detector"].num_done == found.segments.num
