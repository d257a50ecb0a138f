"""Which moments of a segment are worth a look."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.seen import Moment, Moments, Motion, Movement, Scenes, Shot
from operators.testing.film import film
from operators.vision.select_frames import SelectFrames, SelectKnobs, evenly, worth_a_look
from penstock.testing import check_contract, run
from streams.records import Evidence, Observation

S = 10**9
PICTURES = np.zeros((40, 8, 8, 3), np.uint8)


def seen(*found: tuple[float, float, float], text: str = "it") -> list[Observation]:
    return [
        Observation(start_ns=round(start * S), end_ns=round(end * S), text=text, confidence=sure)
        for start, end, sure in found
    ]


def seconds(moments: tuple[Moment, ...]) -> list[float]:
    return [each.start_ns / S for each in moments]


def test_without_evidence_they_are_evenly_apart() -> None:
    segments = film(PICTURES, frames_per_s=5, segment_s=4)
    first, second = run(SelectFrames(SelectKnobs(num=4)), {"media": segments})
    assert seconds(first.observations) == [0.5, 1.5, 2.5, 3.5]
    assert seconds(second.observations) == [4.5, 5.5, 6.5, 7.5]
    (one, _) = run(SelectFrames(SelectKnobs(num=1)), {"media": segments})
    assert seconds(one.observations) == [2.0]


def test_of_takes_it_is_the_middle_of_each_and_of_what_moves_where_it_does() -> None:
    segments = film(PICTURES, frames_per_s=5, segment_s=4)
    takes = [
        Scenes(observations=(Shot(start_ns=0, end_ns=3 * S), Shot(start_ns=3 * S, end_ns=4 * S, cut=True))),
        Scenes(observations=(Shot(start_ns=4 * S, end_ns=8 * S),)),
    ]
    found = run(SelectFrames(SelectKnobs(num=4)), {"media": segments, "evidence": takes})
    assert [seconds(each.observations) for each in found] == [[1.5, 3.5], [6.0]]
    moves = [Motion(observations=(Movement(start_ns=S, end_ns=2 * S, text="something moves"),)), Motion()]
    found = run(SelectFrames(SelectKnobs(num=4)), {"media": segments, "evidence": moves})
    assert [seconds(each.observations) for each in found] == [[1.5], [6.0]]
    assert found[0].observations[0].text == "something moves"
    both = run(SelectFrames(SelectKnobs(num=8)), {"media": segments, "evidence": [takes, moves]})
    assert [seconds(each.observations) for each in both] == [[1.5, 3.5], [6.0]]


def test_the_surest_comes_first_and_what_is_beside_it_adds_little() -> None:
    found = seen((1.0, 1.0, 0.9), (1.1, 1.1, 0.85), (3.0, 3.0, 0.5))
    assert seconds(worth_a_look(found, 0, 4 * S, 2)) == [1.0, 3.0]
    assert seconds(worth_a_look(found, 0, 4 * S, 1)) == [1.0]
    assert seconds(worth_a_look(seen((1.0, 1.0, 0.9), (3.0, 3.0, 0.2)), 0, 4 * S, 2)) == [1.0]  # hardly anything


def test_what_reaches_beyond_the_segment_counts_where_it_is_in_it() -> None:
    assert seconds(worth_a_look(seen((0.0, 20.0, 1.0)), 4 * S, 8 * S, 2)) == pytest.approx([6.0])
    assert seconds(worth_a_look(seen((0.0, 3.0, 1.0), (8.0, 9.0, 1.0)), 4 * S, 8 * S, 2)) == [6.0]  # none of it is


def test_without_pictures_there_is_nothing_to_look_at() -> None:
    (found,) = run(SelectFrames(SelectKnobs()), {"media": film(sound=np.zeros(16_000, np.int16))})
    assert found == Moments()


@given(
    st.lists(
        st.tuples(st.integers(-5, 20), st.integers(0, 9), st.floats(allow_nan=True, allow_infinity=True)), max_size=30
    ),
    st.integers(1, 8),
)
def test_moments_are_of_the_segment_in_order_and_no_more_than_wanted(
    found: list[tuple[int, int, float]], num: int
) -> None:
    observations = [Observation(at * S, (at + length) * S, "it", sure) for at, length, sure in found]
    moments = worth_a_look(observations, 4 * S, 8 * S, num)
    times = [each.start_ns for each in moments]
    assert 1 <= len(times) <= num
    assert times == sorted(times)
    assert all(4 * S <= at < 8 * S for at in times)
    assert worth_a_look(observations[::-1], 4 * S, 8 * S, num) == moments or any(sure != sure for *_, sure in found)


@given(st.integers(0, 10**12), st.integers(1, 10**11), st.integers(1, 64))
def test_evenly_is_within(start_ns: int, length_ns: int, num: int) -> None:
    times = [each.start_ns for each in evenly(start_ns, start_ns + length_ns, num)]
    assert len(set(times)) == len(times) <= num
    assert all(start_ns <= at < start_ns + length_ns for at in times)


def test_it_holds_to_the_contract() -> None:
    segments = film(PICTURES, frames_per_s=5, segment_s=4)
    check_contract(SelectFrames, {"media": segments})
    evidence = [Evidence(observations=tuple(seen((1, 2, 0.5)))), Evidence()]
    check_contract(SelectFrames, {"media": segments, "evidence": [evidence]})
