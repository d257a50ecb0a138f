"""What a simulated world is made of: when segments come, how long batches take, what a scenario may say."""

from itertools import islice, pairwise
from pathlib import Path
from random import Random
from statistics import fmean, pstdev
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.simulate.arrivals import Arrivals, Phase, times_s
from engine.simulate.report import quantile
from engine.simulate.run import run
from engine.simulate.scenario import load_scenario, scenario_of
from engine.simulate.services import Service, Slow, ends_s
from engine.simulate.world import NS, World
from streams.errors import UserError

EXAMPLES = Path(__file__).parents[3] / "examples"


def came(arrivals: Arrivals, num: int, *phases: Phase, first: float = 0.0) -> list[float]:
    return list(islice(times_s(arrivals, phases, Random(5), first), num))


def test_regular_ones_come_at_equal_distances_and_twice_as_dense_under_twice_the_load() -> None:
    assert came(Arrivals(per_s=2), 3) == pytest.approx([0.5, 1.0, 1.5])
    assert came(Arrivals(per_s=2), 2, first=0.5) == pytest.approx([0.25, 0.75])
    bent = came(Arrivals(per_s=1), 6, Phase(at_s=2.5, load=2.0))
    assert bent == pytest.approx([1.0, 2.0, 2.75, 3.25, 3.75, 4.25])


def test_without_load_none_come() -> None:
    assert came(Arrivals(per_s=1), 9, Phase(at_s=2.5, load=0.0)) == [1.0, 2.0]
    assert came(Arrivals(per_s=1), 4, Phase(at_s=1.5, load=0.0), Phase(at_s=10.0, load=1.0)) == [1.0, 10.5, 11.5, 12.5]


@pytest.mark.parametrize(("kind", "cv"), [("poisson", 1.0), ("bursty", 1.0), ("bursty", 3.0), ("bursty", 0.3)])
def test_intervals_vary_as_much_as_is_said(kind: Any, cv: float) -> None:
    times = came(Arrivals(per_s=4, kind=kind, cv=cv), 40_000)
    gaps = [after - before for before, after in pairwise(times)]
    assert fmean(gaps) == pytest.approx(0.25, rel=0.05)
    assert pstdev(gaps) / fmean(gaps) == pytest.approx(cv, rel=0.05)


def test_a_trace_keeps_its_order() -> None:
    times = came(Arrivals(per_s=1, kind="trace", intervals=(1.0, 2.0, 3.0)), 7)
    gaps = [round(after - before, 6) for before, after in pairwise(times)]
    assert gaps[:3] in ([0.5, 1.0, 1.5], [1.0, 1.5, 0.5], [1.5, 0.5, 1.0])
    assert gaps[3:] == gaps[:3]
    with pytest.raises(ValueError, match="not all 0"):
        came(Arrivals(per_s=1, kind="trace"), 1)


def test_service_has_the_mean_and_the_spread_that_are_said() -> None:
    how = Service(base_s=0.1, per_item_s=0.05, spread="lognormal", cv=0.5)
    chance = Random(2)
    took = [how.sampled_s(2, chance) for _ in range(20_000)]
    assert fmean(took) == pytest.approx(0.2, rel=0.02)
    assert pstdev(took) / fmean(took) == pytest.approx(0.5, rel=0.05)
    slow = Service(per_item_s=1.0, straggle=0.25, straggle_times=5.0)
    assert fmean(slow.sampled_s(1, chance) for _ in range(20_000)) == pytest.approx(2.0, rel=0.03)


SLOW = (Slow(pool="p", from_s=10, to_s=20, times=2.0), Slow(pool="p", from_s=30, to_s=35, stalls=True))


@pytest.mark.parametrize(
    ("began_s", "took_s", "ended_s"),
    [(0, 5, 5), (8, 2, 10), (8, 4, 14), (8, 7, 20), (8, 8, 21), (15, 1, 17), (32, 1, 36), (28, 4, 37), (40, 1, 41)],
)
def test_what_is_slow_takes_longer_and_what_stalls_stands_still(began_s: float, took_s: float, ended_s: float) -> None:
    assert ends_s(began_s, took_s, SLOW) == pytest.approx(ended_s)


@given(st.floats(0, 50), st.floats(0, 50), st.floats(0, 50))
def test_who_begins_later_with_as_much_to_do_is_not_done_earlier(began_s: float, later_s: float, took_s: float) -> None:
    assert ends_s(began_s + later_s, took_s, SLOW) >= ends_s(began_s, took_s, SLOW) - 1e-9


def test_what_happens_at_one_moment_happens_in_the_order_in_which_it_was_asked_for() -> None:
    world, seen = World(), list[str]()
    world.after(1.0, lambda: seen.append("b"))
    world.after(0.5, lambda: world.after(0.5, lambda: seen.append("c")))
    world.after(0.5, lambda: seen.append("a"))
    world.run(NS + NS)
    assert seen == ["a", "b", "c"]
    assert World(1).chance("x").random() == World(1).chance("x").random() != World(2).chance("x").random()


def test_a_model_is_loaded_once_for_each_lane_and_what_waits_for_it_is_no_service_time() -> None:
    noted: list[tuple[int, float]] = []

    class Noting:
        def __init__(self, batching: Any) -> None:
            self.batching = batching

        def __getattr__(self, name: str) -> Any:
            return getattr(self.batching, name)

        def __len__(self) -> int:
            return len(self.batching)

        def took(self, batch_size: int, service_s: float) -> None:
            noted.append((batch_size, round(service_s, 6)))

    from engine.simulate.run import usual

    scenario = scenario_of(
        {
            "duration_s": 10,
            "pools": {"p": {"num_instances": 1, "is_cold": True, "service": {"per_item_s": 0.25, "cold_s": 3.0}}},
            "stages": {"s": {"pool": "p"}},
            "streams": [{"arrivals": {"per_s": 1}}],
        }
    )
    found = run(scenario, lambda name, pool: Noting(usual(name, pool)))
    assert max(found.segments.took_s) == pytest.approx(3.25)
    assert min(found.segments.took_s) == pytest.approx(0.25)
    assert set(noted) == {(1, 0.25)}
    assert len(noted) == found.segments.num - 1


def test_a_quantile_is_one_of_the_values() -> None:
    assert quantile([3.0, 1.0, 2.0, 4.0], 0.5) == 2.0
    assert quantile([3.0, 1.0, 2.0, 4.0], 0.99) == 4.0
    assert quantile([3.0], 0.0) == 3.0


GOOD: dict[str, Any] = {
    "pools": {"p": {"service": {"per_item_s": 0.1}}},
    "stages": {"s": {"pool": "p"}},
    "streams": [{"arrivals": {"per_s": 1}}],
}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"pools": {}}, r"needs \[pools\], \[stages\] and \[\[streams\]\]"),
        ({"stages": {"s": {"pool": "q"}}}, "stage 's' has no pool 'q'; there are p"),
        ({"stages": {"s": {"pool": "p", "inputs": ["t"]}}}, "stage 's' reads 't'; there are media, s"),
        ({"stages": {"s": {"pool": "p", "inputs": ["s"]}}}, "the stages s wait for each other"),
        ({"stages": {"s": {"pool": "p", "inputs": []}}}, "stage 's' reads nothing"),
        ({"slow": [{"pool": "q", "from_s": 0, "to_s": 1}]}, "names no pool 'q'"),
        ({"streams": [{"arrivals": {"per_s": 0}}]}, r"streams\[0\].arrivals.per_s: expected `float` > 0"),
        ({"streams": [{"arrivals": {"per_s": 1e9}}]}, r"up to 6e\+10 segments would come; make it fewer than 5e\+06"),
        ({"streams": [{"arrivals": {"per_s": float("inf")}}]}, "up to inf segments would come"),
        ({"phases": [{"at_s": 1, "load": 1e12}]}, "segments would come"),
        ({"streams": [{"arrivals": {"per_s": 1, "kind": "trace"}}]}, "a trace need intervals"),
        ({"pools": {"p": {"service": {"base_s": float("inf")}}}}, r"pools\[...\].service.base_s: expected `float` <= "),
        ({"speed": 3}, "the scenario: object contains unknown field `speed`"),
        ({"duration_s": "long"}, "duration_s: expected `float`, got `str`"),
    ],
)
def test_a_scenario_that_cannot_be_is_refused_in_a_line(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        scenario_of(GOOD | changed)


def test_a_file_that_is_no_scenario_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("pools = 3")
    with pytest.raises(UserError, match=r"a\.toml: pools: expected `object`"):
        load_scenario(path)
    path.write_text("pools = ")
    with pytest.raises(UserError, match=r"a\.toml: not valid TOML"):
        load_scenario(path)
    with pytest.raises(UserError, match=r"cannot read scenario .*none"):
        load_scenario(tmp_path / "none.toml")


def test_the_examples_rush_hour_is_too_much_for_a_while() -> None:
    found = run(load_scenario(EXAMPLES / "rush_hour.toml"))
    rush = [good for at, good in zip(found.segments.came_s, found.segments.is_in_time, strict=True) if 200 <= at < 400]
    calm = [good for at, good in zip(found.segments.came_s, found.segments.is_in_time, strict=True) if at < 190]
    assert sum(rush) / len(rush) < 0.99 <= sum(calm) / len(calm)


def test_the_examples_lower_rungs_hold_the_latency_and_come_back_up() -> None:
    found = run(load_scenario(EXAMPLES / "lower_rungs.toml"))
    assert found.in_time > 0.99
    every = zip(found.segments.came_s, found.segments.qualities, strict=True)
    by_time = {"before": [0.0, 0], "rush": [0.0, 0], "after": [0.0, 0]}
    for came_s, quality in every:
        part = "before" if came_s < 150 else "rush" if 160 < came_s < 400 else "after" if came_s > 460 else ""
        if part:
            by_time[part][0] += quality
            by_time[part][1] += 1
    means = {part: total / num for part, (total, num) in by_time.items()}
    assert means["before"] == means["after"] == 1.0
    assert 0.8 < means["rush"] < 0.95
