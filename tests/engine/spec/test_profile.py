"""Profiles as values: the line through what was measured."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.spec.profile import BatchTimes, Profile, fitted
from streams.decoding import from_json


def profile(*times: BatchTimes, max_batch: int = 8, fresh: float = 1.0, **more: object) -> Profile:
    return Profile(
        capability="look",
        implementation="eyes",
        rung="wide",
        version=1,
        device="cpu",
        machine="a machine",
        media="a clip",
        segment_s=2.0,
        at="2026-01-01T00:00:00+00:00",
        max_batch=max_batch,
        times=times,
        fresh=fresh,
        **more,  # type: ignore[arg-type]
    )


def test_batches_are_summed_up() -> None:
    times = BatchTimes.of(4, 2, [0.1, 0.4, 0.2, 0.3])
    assert (times.num, times.p50_s, times.p95_s, times.max_s) == (4, 0.3, 0.4, 0.4)
    assert times.mean_s == pytest.approx(0.25)
    assert times.sd_s == pytest.approx(0.1291, abs=1e-4)
    assert BatchTimes.of(1, 1, [0.5]).sd_s == 0.0


@given(st.floats(0, 1), st.floats(1e-4, 1))
def test_points_on_a_line_give_the_line(base_s: float, per_item_s: float) -> None:
    points = [(size, base_s + per_item_s * size) for size in (1, 2, 4, 8, 16)]
    found_base_s, found_per_item_s = fitted(points)
    assert found_base_s + 7 * found_per_item_s == pytest.approx(base_s + 7 * per_item_s, rel=1e-3, abs=1e-6)


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(1e-6, 100)), max_size=8))
def test_neither_part_of_a_line_is_below_nothing(points: list[tuple[int, float]]) -> None:
    base_s, per_item_s = fitted(points)
    assert base_s >= 0
    assert per_item_s >= 0
    assert (base_s + per_item_s > 0) == bool(points)


def test_a_small_batch_says_as_much_as_a_large_one() -> None:
    """By plain least squares a straggler among the large ones would have the small ones take half or twice as long."""
    points = [(1, 0.10), (2, 0.11), (4, 0.13), (16, 0.40)]
    base_s, per_item_s = fitted(points)
    assert base_s + per_item_s == pytest.approx(0.10, rel=0.15)


def test_the_line_is_that_with_every_core_busy() -> None:
    found = profile(
        BatchTimes.of(1, 1, [0.1]), BatchTimes.of(8, 1, [0.2]), BatchTimes.of(1, 2, [0.2]), BatchTimes.of(8, 2, [0.9])
    )
    assert found.line == pytest.approx((0.1, 0.1))
    assert found.alone_s == 0.1
    assert found.unit_s == pytest.approx(0.9 / 8)
    assert [each.num_beside for each in found.busy] == [2, 2]


def test_of_items_that_share_work_only_some_take_anything() -> None:
    found = profile(BatchTimes.of(1, 2, [1.2]), max_batch=16, fresh=0.25)
    assert found.line == (0.0, 1.2)
    assert found.unit_s == pytest.approx(0.3)


def test_it_travels_whole_and_an_older_one_is_read() -> None:
    found = profile(BatchTimes.of(1, 1, [0.1]), cold_s=0.5)
    assert from_json(msgspec.json.encode(found), Profile) == found
    least = {name: getattr(found, name) for name in ("capability", "implementation", "rung", "version", "device")}
    least |= {"machine": "m", "media": "c", "segment_s": 1.0, "at": "", "later": 1}
    assert from_json(msgspec.json.encode(least), Profile).line == (0.0, 0.0)
