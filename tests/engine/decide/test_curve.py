"""How long a batch takes, learned from batches that ran."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.decide.curve import MAX_ODD, Curve


def learned(*batches: tuple[int, float]) -> Curve:
    curve = Curve()
    for size, took_s in batches:
        curve.note(size, took_s)
    return curve


def test_of_nothing_nothing_is_known() -> None:
    assert not learned().is_known
    assert learned().mean_s(8) == 0.0
    assert not learned((1, 0.1), (4, 0.2)).is_known


def test_a_line_is_found_in_what_is_noisy() -> None:
    chance = Random(1)
    curve = learned(*((size, (0.02 + 0.003 * size) * chance.gauss(1, 0.1)) for size in [1, 8, 3, 16, 5, 12] * 30))
    for size in (1, 8, 16, 32):
        assert curve.mean_s(size) == pytest.approx(0.02 + 0.003 * size, rel=0.1)
    assert 0.05 < curve.spread < 0.2
    assert curve.safe_s(8) == pytest.approx(curve.mean_s(8) * (1 + curve.spread))


def test_of_one_size_others_are_taken_to_be_as_bad_as_they_can_be() -> None:
    curve = learned((4, 0.2), (4, 0.2), (4, 0.2))
    assert [curve.mean_s(size) for size in (1, 4, 8)] == pytest.approx([0.2, 0.2, 0.4])


def test_what_costs_nothing_to_begin_and_what_costs_the_same_whatever_its_size() -> None:
    curve = learned(*((size, 0.05 * size) for size in (1, 2, 4, 8)))
    assert curve.mean_s(16) == pytest.approx(0.8)
    flat = learned(*((size, 0.1) for size in (1, 2, 4, 8)))
    assert flat.mean_s(1) == pytest.approx(flat.mean_s(64)) == pytest.approx(0.1)
    falling = learned(*((size, 0.2 - 0.01 * size) for size in (1, 2, 4, 8)))  # by accident
    assert falling.mean_s(64) == pytest.approx(falling.mean_s(1))


def test_a_drift_is_followed() -> None:
    sizes = [1, 2, 3, 4] * 30
    curve = learned(*((size, 0.1 + 0.01 * size) for size in sizes), *((size, 0.2 + 0.02 * size) for size in sizes[:60]))
    assert curve.mean_s(4) == pytest.approx(0.28, rel=0.06)


def test_a_stall_is_no_service_time_though_several_lanes_have_it_and_a_drift_is() -> None:
    steady = [(size, 0.1) for size in (1, 2, 3, 4, 5)] * 4
    before = learned(*steady)
    assert learned(*steady, (2, 3.0)).mean_s(2) == before.mean_s(2)
    assert learned(*steady, (2, 3.0), (2, 0.1), (3, 3.0)).mean_s(2) == pytest.approx(0.1)
    assert learned(*steady, *[(2, 3.0)] * MAX_ODD).mean_s(2) == before.mean_s(2)
    assert learned(*steady, *[(2, 3.0)] * (MAX_ODD + 1)).mean_s(2) > 0.15


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(0, 1e4)), max_size=60), st.integers(1, 63))
def test_a_larger_batch_never_takes_less(batches: list[tuple[int, float]], size: int) -> None:
    curve = learned(*batches)
    assert 0 <= curve.mean_s(size) <= curve.mean_s(size + 1) * (1 + 1e-9)
    assert 0 <= curve.mean_s(size) <= curve.safe_s(size)
    assert curve.spread <= 1.25


def test_what_is_expected_holds_until_batches_say_otherwise() -> None:
    curve = Curve()
    curve.expect(0.1, 0.05, 0.2, 8)
    assert curve.is_known
    assert [curve.mean_s(size) for size in (1, 4, 8)] == pytest.approx([0.15, 0.3, 0.5])
    assert curve.spread == 0.2
    for size in [1, 2, 4, 8] * 2:
        curve.note(size, 0.2 + 0.1 * size)
    assert curve.mean_s(8) == pytest.approx(1.0, rel=0.25)
    for size in [1, 2, 4, 8] * 20:
        curve.note(size, 0.2 + 0.1 * size)
    assert curve.mean_s(8) == pytest.approx(1.0, rel=0.02)


def test_what_is_expected_comes_before_what_is_known_or_not_at_all() -> None:
    curve = learned((1, 0.1), (1, 0.1), (1, 0.1))
    curve.expect(5.0, 5.0, 0.0, 8)
    assert curve.mean_s(1) == pytest.approx(0.1)
    nothing = Curve()
    nothing.expect(0.0, 0.0, 0.0, 8)
    assert not nothing.is_known


def test_an_expectation_far_too_short_is_given_up_after_a_few_batches() -> None:
    curve = Curve()
    curve.expect(0.0, 0.001, 0.0, 1)
    for _ in range(MAX_ODD + 12):
        curve.note(1, 0.5)
    assert curve.mean_s(1) == pytest.approx(0.5, rel=0.35)
