"""Instances, lanes and cores are three numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.decide.lanes import HELD_S, Limits, PoolShape, is_worker_to_end, limits, uses_cores


@pytest.mark.parametrize("num_cores", [1, 2, 16, 128])
def test_a_model_on_a_gpu_is_loaded_as_often_as_the_plan_says_whatever_the_cores(num_cores: int) -> None:
    for planned in (1, 2):
        told = limits(PoolShape(runs_in="thread", device="cuda", num_instances=planned), 0, 0, num_cores)
        assert (told.max_in_flight, told.max_instances) == (planned, planned)
        assert not uses_cores(PoolShape(runs_in="thread", device="cuda"))


def test_an_engine_that_batches_by_itself_is_loaded_once_and_takes_many() -> None:
    told = limits(PoolShape(runs_in="async", max_async=64), 3, 0, 2)
    assert (told.max_in_flight, told.max_instances) == (64, 1)


def test_the_loop_does_one_thing_at_a_time() -> None:
    assert limits(PoolShape(runs_in="loop"), 0, 0, 16).max_in_flight == 1


@given(st.integers(1, 64), st.lists(st.integers(0, 8), min_size=1, max_size=6))
def test_a_pool_always_has_a_lane_and_takes_more_only_while_cores_are_free(num_cores: int, lanes: list[int]) -> None:
    shape = PoolShape(runs_in="process")
    for own in lanes:
        told = limits(shape, own, sum(lanes), num_cores)
        assert isinstance(told, Limits)
        assert 1 <= told.max_in_flight <= num_cores
        if told.max_in_flight > max(1, own):
            assert sum(lanes) + (told.max_in_flight - own) <= num_cores
        assert told.why


@pytest.mark.parametrize(
    ("overdue_s", "is_to_end"), [([], False), ([0.0, 0.0], False), ([0.0, HELD_S], False), ([HELD_S + 0.1, 0.0], True)]
)
def test_a_worker_ends_with_a_thread_that_holds_a_core_long_past_its_time(
    overdue_s: list[float], is_to_end: bool
) -> None:
    assert is_worker_to_end(overdue_s) is is_to_end
