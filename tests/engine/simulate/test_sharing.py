"""An engine that batches by itself, where nothing is computed: held to theory, and to what its limit is for."""

from typing import Any

import pytest

from engine.decide.inflight import Limited
from engine.simulate.run import run
from engine.simulate.scenario import Scenario, scenario_of


def engine(service: dict[str, Any], per_s: float, seconds: float, lag_s: float = 0.0, most: int = 1000) -> Scenario:
    return scenario_of(
        {
            "seed": 1,
            "duration_s": seconds,
            "pools": {"m": {"runs_in": "async", "max_async": most, "service": service}},
            "stages": {"s": {"pool": "m"}},
            "streams": [{"arrivals": {"per_s": per_s, "kind": "poisson"}, "max_lag_s": lag_s}],
        }
    )


class Fixed:
    def __init__(self, limit: int) -> None:
        self.limit = limit

    def began(self, num_waiting: int, has_time_s: float | None) -> None: ...

    def ended(self, num_under_way: float, service_s: float, now_ns: int, *, failed: bool = False) -> Limited | None:
        return None


def test_a_shared_server_keeps_items_as_long_as_theory_says() -> None:
    """M/G/1 with processor sharing: E[T] = s / (1 - load), whatever the spread. Source: Kleinrock, Queueing Systems II
    (1976), 4.4."""
    service = {"per_in_flight_s": 0.1, "spread": "lognormal", "cv": 1.5}
    found = run(engine(service, 6.0, 6000), limiting_of=Fixed).pools["m"]
    assert found.stays_s == pytest.approx(0.1 / (1 - 0.6), rel=0.05)
    assert found.num_there == pytest.approx(6.0 * found.stays_s, rel=0.02)  # Little's law


def test_one_that_runs_so_many_is_a_queue_of_so_many_servers() -> None:
    """M/M/2 at load 0.8: E[T] = s / (1 - load^2)."""
    service = {"base_s": 0.2, "max_running": 2, "spread": "exponential"}
    found = run(engine(service, 8.0, 4000), limiting_of=Fixed).pools["m"]
    assert found.stays_s == pytest.approx(0.2 / (1 - 0.8**2), rel=0.05)


def test_what_is_too_much_for_it_is_refused() -> None:
    service = {"base_s": 1.0, "refuses_over": 4}
    found = run(engine(service, 20.0, 60), limiting_of=Fixed).pools["m"]
    assert found.num_dropped > 10 * found.num_done / 4 > 0


def test_it_stalls_and_goes_on() -> None:
    scenario = engine({"base_s": 0.1, "max_running": 4}, 5.0, 20)
    stalled = scenario_of(
        {
            "duration_s": 20,
            "pools": {"m": {"runs_in": "async", "service": {"base_s": 0.1, "max_running": 4}}},
            "stages": {"s": {"pool": "m"}},
            "streams": [{"arrivals": {"per_s": 5.0, "kind": "regular"}}],
            "slow": [{"pool": "m", "from_s": 5.0, "to_s": 8.0, "stalls": True}],
        }
    )
    assert run(scenario).segments.num_in_time == run(scenario).segments.num
    assert 2.9 < max(run(stalled).segments.took_s) < 4.0


@pytest.mark.parametrize(
    ("service", "most_per_s", "least"),
    [
        ({"base_s": 0.5, "per_in_flight_s": 0.02, "max_running": 64}, 36.0, 0.68),
        ({"base_s": 1.0, "max_running": 8}, 8.0, 0.68),
        ({"base_s": 0.2, "per_in_flight2_s": 0.002}, 25.0, 0.65),
        ({"base_s": 1.0, "refuses_over": 12}, 12.0, 0.68),
    ],
    ids=["decodes together", "waits inside", "slows down", "refuses"],
)
def test_of_a_third_too_much_most_of_what_can_be_is_in_time(
    service: dict[str, Any], most_per_s: float, least: float
) -> None:
    varied = service | {"spread": "lognormal", "cv": 0.4}
    found = run(engine(varied, 1.3 * most_per_s, 300, lag_s=6.0, most=64))
    assert found.in_time >= least
    assert all(why for _, _, why in found.pools["m"].limits)
    assert len(found.pools["m"].limits) < 12 * 300 / 60
