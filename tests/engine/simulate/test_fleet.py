"""Replicas in the simulator: they start, drain, die and are not heard of, and every segment is accounted for."""

from collections.abc import Sequence
from typing import Any

import pytest

from engine.decide.fleet import Seen, Wanted
from engine.simulate.report import Report
from engine.simulate.run import run
from engine.simulate.scenario import ReplicasSpec, scenario_of
from streams.errors import UserError

SERVICE = {"base_s": 0.1, "per_item_s": 0.1}


def scenario(per_s: float, seconds: float = 200, lag_s: float = 5.0, **more: Any) -> dict[str, Any]:
    replicas = {"least": 1, "most": 8, "begin": 1, "start_s": 5.0} | more.pop("replicas", {})
    return {
        "duration_s": seconds,
        "pools": {"p": {"max_batch": 4, "service": SERVICE, "replicas": replicas}},
        "stages": {"s": {"pool": "p"}},
        "streams": [{"num": 4, "max_lag_s": lag_s, "arrivals": {"per_s": per_s / 4, "kind": "poisson"}}],
        **more,
    }


def went(table: dict[str, Any], **but: Any) -> Report:
    found = run(scenario_of(table), **but)
    pool = found.pools["p"]
    assert pool.num_there == pytest.approx(pool.stays_s * (pool.num_done + pool.num_dropped) / found.seconds)
    return found


def wanted(found: Report, of: str = "p") -> Sequence[int]:
    return [num for _, num, _ in found.fleet[of].changes]


def test_a_step_starts_what_it_takes_and_all_but_its_beginning_is_in_time() -> None:
    phases = [{"at_s": 100.0, "load": 4.0}]
    found = went(scenario(6.0, 400, phases=phases))
    assert 3 <= found.fleet["p"].most <= 6
    late = [at for at, good in zip(found.segments.came_s, found.segments.is_in_time, strict=True) if not good]
    assert all(100 <= at <= 125 for at in late)
    assert found.in_time > 0.97


def test_down_to_none_and_back() -> None:
    phases = [{"at_s": 60.0, "load": 0.0}, {"at_s": 200.0, "load": 1.0}]
    found = went(scenario(4.0, 300, lag_s=30.0, phases=phases, replicas={"least": 0}))
    assert wanted(found) == [0, 1]
    assert found.in_time == 1.0
    assert found.fleet["p"].seconds < 300 - 70


def test_one_that_dies_is_missed_and_another_started() -> None:
    told = scenario(25.0, 200, replicas={"begin": 3, "most": 3})
    whole = went(told)
    found = went(told | {"fails": [{"of": "p", "at_s": 50.0}]})
    assert found.segments.num == whole.segments.num
    assert found.in_time > whole.in_time - 0.05
    late = [at for at, good in zip(found.segments.came_s, found.segments.is_in_time, strict=True) if not good]
    assert any(40 <= at <= 51 for at in late), "what ran on it is lost"
    assert found.fleet["p"].seconds == pytest.approx(3 * found.seconds, rel=0.02)


def test_while_nothing_is_heard_it_stays_as_it_is() -> None:
    told = scenario(6.0, 300, phases=[{"at_s": 100.0, "load": 3.0}], unheard=[{"from_s": 95.0, "to_s": 160.0}])
    found = went(told)
    assert all(not 95 <= at < 160 for at, _, _ in found.fleet["p"].changes)
    assert wanted(found)[-1] > 1


def test_what_runs_is_done_where_there_are_to_be_fewer() -> None:
    class Down:
        num = 4

        def decide(self, now_s: float, seen: Seen | None) -> Wanted | None:
            if self.num == 4 and now_s >= 10:
                self.num = 1
                return Wanted(1, "for a test")
            return None

    told = scenario(20.0, 20, lag_s=0.0, replicas={"begin": 4})
    found = went(told, scaling_of=lambda name, spec: Down())
    assert found.in_time == 1.0
    assert found.pools["p"].num_done == found.segments.num


def test_workers_bring_cores() -> None:
    table = {
        "duration_s": 300,
        "pools": {"p": {"max_batch": 4, "service": SERVICE}, "q": {"service": {"base_s": 0.05}}},
        "stages": {"s": {"pool": "p"}, "t": {"pool": "q", "inputs": ["s"]}},
        "streams": [{"num": 4, "max_lag_s": 5.0, "arrivals": {"per_s": 1.5, "kind": "poisson"}}],
        "phases": [{"at_s": 100.0, "load": 4.0}],
        "workers": {"least": 1, "most": 6, "begin": 1, "lanes": 2, "start_s": 3.0},
        "fails": [{"of": "cores", "at_s": 200.0}],
    }
    found = run(scenario_of(table))
    whole = run(scenario_of(table | {"fails": []}))
    assert wanted(found, "cores")[0] > 1
    assert found.in_time > 0.9
    assert whole.in_time > found.in_time, "what ran on the one that died is lost"
    late = [at for at, good in zip(found.segments.came_s, found.segments.is_in_time, strict=True) if not good]
    assert any(190 <= at <= 201 for at in late)


def test_a_budget_of_places_starts_one_of_each_first() -> None:
    pool = {"service": {"base_s": 1.0}, "replicas": {"least": 0, "begin": 0, "most": 8, "start_s": 2.0}}
    table = {
        "duration_s": 120,
        "max_replicas": 4,
        "pools": {"a": pool, "b": pool},
        "stages": {"s": {"pool": "a"}, "t": {"pool": "b", "inputs": ["s"], "share": 0.2}},
        "streams": [{"num": 4, "max_lag_s": 20.0, "arrivals": {"per_s": 1.0, "kind": "poisson"}}],
    }
    found = run(scenario_of(table))
    assert found.pools["b"].num_done > 0
    assert found.fleet["a"].most <= 4
    assert found.segments.opened_in_time > 0.5


def test_the_same_seed_gives_the_same_fleet() -> None:
    told = scenario(20.0, 100, phases=[{"at_s": 30.0, "load": 2.0}])
    first, second = went(told), went(told)
    assert first.fleet == second.fleet
    assert first.segments.took_s == second.segments.took_s


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"replicas": {"begin": 9}}, "there are 9 at the beginning, not 1 to 8"),
        ({"fails": [{"of": "q", "at_s": 1.0}]}, "no replicas 'q'; there are p"),
        ({"fails": [{"of": "cores", "at_s": 1.0}]}, "no replicas 'cores'; there are p"),
    ],
)
def test_what_cannot_be_is_said(more: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        scenario_of(scenario(1.0, **more))


def test_what_batches_by_itself_has_no_replicas() -> None:
    table = scenario(1.0)
    table["pools"]["p"]["runs_in"] = "async"
    with pytest.raises(UserError, match="runs in 'async'"):
        scenario_of(table)


def test_an_owner_may_say_how_many() -> None:
    class Still:
        num = 2

        def decide(self, now_s: float, seen: Seen | None) -> Wanted | None:
            return None

    def still(name: str, spec: ReplicasSpec) -> Still:
        return Still()

    found = went(scenario(6.0, 100), scaling_of=still)
    assert found.fleet["p"].changes == ()
    assert found.fleet["p"].seconds == pytest.approx(2 * found.seconds, rel=0.02)
