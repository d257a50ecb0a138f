"""Whether batches take what the profile says."""

from random import Random

import pytest

from engine.decide.drift import NUM, OFF, Drift


def test_nothing_is_said_before_there_were_enough() -> None:
    drift = Drift((0.1, 0.02), (0.1, 0.02))
    for _ in range(NUM - 1):
        assert not drift.note(4, 10.0)
    assert drift.ratio is None
    assert not drift.is_off
    assert drift.note(4, 10.0)
    assert drift.ratio == pytest.approx(10.0 / 0.18)


def test_it_is_said_once_and_again_only_when_it_held_in_between() -> None:
    drift = Drift((0.0, 1.0), (0.0, 1.0))
    told = [drift.note(size, size * times) for times in (1, 2, 1, 2) for size in (1, 2, 4) * 40]
    assert sum(told) == 2
    assert drift.is_off
    assert drift.ratio == pytest.approx(2.0, rel=0.01)


def test_noise_within_the_bounds_is_no_drift_and_what_is_faster_is_one() -> None:
    chance = Random(3)
    drift = Drift((0.05, 0.01), (0.05, 0.01))
    assert not any(drift.note(size, (0.05 + 0.01 * size) * chance.gauss(1.2, 0.2)) for size in [1, 8, 3] * 100)
    assert any(drift.note(size, (0.05 + 0.01 * size) / (OFF + 0.5)) for size in [1, 8, 3] * 40)


def test_of_a_profile_that_says_nothing_there_is_none() -> None:
    drift = Drift((0.0, 0.0), (0.0, 0.0))
    assert not any(drift.note(1, 1.0) for _ in range(100))
    assert drift.ratio is None


def test_what_is_between_alone_and_busy_is_as_was_said() -> None:
    for took_s in (0.1, 0.15, 0.2):
        drift = Drift((0.1, 0.0), (0.2, 0.0))
        assert not any(drift.note(1, took_s) for _ in range(60))
        assert drift.ratio == pytest.approx(1.0)
    slow = Drift((0.1, 0.0), (0.2, 0.0))
    assert any(slow.note(1, 0.4) for _ in range(60))
    assert slow.ratio == pytest.approx(2.0)
