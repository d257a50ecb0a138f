"""What moves, in pictures that nobody here made and in such as hold still; and evidence that is let through."""

from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.capabilities import FilterParams, Selection
from operators.control.filtering import selected
from operators.testing.film import film
from operators.vision.detect_motion import BETWEEN_S, DetectMotion, movements
from penstock.testing import run
from streams.records import Observation

S = 10**9
STREET = Path("/usr/share/doc/opencv-doc/examples/data/vtest.avi")
HEIGHT, WIDTH = 120, 160
RNG = np.random.default_rng(5)
SCENE = RNG.integers(20, 200, (HEIGHT // 8, WIDTH // 8)).repeat(8, 0).repeat(8, 1).astype(np.float32)


def filmed(num: int, *, noise: float = 2.0, walker: tuple[int, int] | None = None, light: float = 0.0) -> np.ndarray:
    """Frames of a scene, by a sensor with so much noise; a walker of this width and height, four pixels a frame."""
    made = np.empty((num, HEIGHT, WIDTH), np.uint8)
    for at in range(num):
        scene = SCENE + light * at + RNG.normal(0, noise, SCENE.shape)
        if walker is not None:
            width, height = walker
            scene[60 : 60 + height, 20 + 4 * at : 20 + 4 * at + width] = 240
        made[at] = np.clip(scene, 0, 255)
    return made


def times(num: int, step_s: float = 0.2) -> list[int]:
    return [round(at * step_s * S) for at in range(num)]


@pytest.mark.parametrize("noise", [0.0, 1.0, 4.0, 8.0])
def test_a_scene_at_rest_is_at_rest(noise: float) -> None:
    assert movements(times(25), filmed(25, noise=noise)) == ()


def test_light_that_changes_is_no_movement() -> None:
    assert movements(times(25), filmed(25, light=1.5)) == ()


@pytest.mark.parametrize("walker", [(5, 10), (10, 24), (40, 50)])
def test_who_walks_is_where_the_box_is(walker: tuple[int, int]) -> None:
    (found,) = movements(times(15), filmed(15, walker=walker))
    assert (found.start_ns, found.end_ns) == (times(15)[1], times(15)[-1])
    x, y, width, height = found.box
    assert abs(x - 20 / WIDTH) < 0.03
    assert abs(x + width - (20 + 4 * 14 + walker[0]) / WIDTH) < 0.03
    assert abs(y - 60 / HEIGHT) < 0.03
    assert abs(height - walker[1] / HEIGHT) < 0.05
    assert 0 < found.share < 0.3


def test_movements_apart_are_two() -> None:
    still, moving = filmed(1, noise=0)[0], filmed(4, noise=0, walker=(10, 20))
    images = np.stack([still, *moving, still, *[still] * 12, *moving, still])
    found = movements(times(len(images)), images)
    assert len(found) == 2
    assert found[1].start_ns - found[0].end_ns > BETWEEN_S * S


def test_nothing_and_one_frame_say_nothing() -> None:
    assert movements([], np.zeros((0, 0, 0), np.uint8)) == ()
    assert movements([0], filmed(1)) == ()
    assert movements([0, S], np.zeros((2, 1, 1), np.uint8)) == ()


def test_in_a_street_people_move_and_without_them_nothing_does() -> None:
    """The same street without them is the median of its pictures, filmed by a sensor with noise."""
    if not STREET.is_file():
        pytest.skip("needs vtest.avi of Debian's opencv-doc")
    with av.open(str(STREET)) as film:
        seen = [f.reformat(160, 120, "gray").to_ndarray() for at, f in enumerate(film.decode(video=0)) if at % 2 == 0]
    images = np.stack(seen)
    for start in range(0, 390, 30):
        (first, *_) = movements(times(25), images[start : start + 25])
        assert first.start_ns <= S
    street = np.median(images, axis=0)
    still = np.clip(street + RNG.normal(0, 3, (100, *street.shape)), 0, 255).astype(np.uint8)
    assert movements(times(100), still) == ()


# --- evidence that is let through -------------------------------------------------------------------------


def seen(at_s: float, text: str, confidence: float = 1.0) -> Observation:
    return Observation(start_ns=int(at_s * S), end_ns=int(at_s * S), text=text, confidence=confidence)


def texts(params: FilterParams, *segments: list[Observation]) -> list[list[str]]:
    before: Selection | None = None
    told: list[list[str]] = []
    for found in segments:
        before = selected(found, params, before)
        told.append([each.text for each in before.observations])
    return told


def test_what_is_asked_for_is_let_through() -> None:
    found = [seen(1, "car", 0.9), seen(0, "Person 3 enters"), seen(2, "carpet"), seen(3, "a red CAR, parked", 0.3)]
    everything = texts(FilterParams(), found)
    assert everything == [["Person 3 enters", "car", "carpet", "a red CAR, parked"]]
    assert texts(FilterParams(has=("car", "dog")), found) == [["car", "a red CAR, parked"]]
    assert texts(FilterParams(has=("car",), has_not=("parked",)), found) == [["car"]]
    assert texts(FilterParams(has=("red car",)), found) == [["a red CAR, parked"]]
    assert texts(FilterParams(min_confidence=0.5, has=("car",)), found) == [["car"]]


def test_the_same_is_told_once_in_a_while_over_segments() -> None:
    params = FilterParams(once_in_s=10)
    first = [seen(0, "person 1 enters"), seen(2, "person 2 enters"), seen(3, "person 1 leaves")]
    assert texts(params, first, [seen(8, "person 3 enters")], [], [seen(19, "person 4 enters")]) == [
        ["person 1 enters", "person 1 leaves"],
        [],
        [],
        ["person 4 enters"],
    ]


def test_one_that_goes_on_is_not_told_again_while_it_does() -> None:
    params = FilterParams(once_in_s=10)
    assert texts(params, *([seen(at, "car")] for at in (0, 5, 12, 19, 25, 40))) == [["car"], [], [], [], [], ["car"]]


@given(st.lists(st.lists(st.tuples(st.integers(0, 30), st.sampled_from("ab")), max_size=5), max_size=5))
def test_nothing_is_told_twice_within_the_time(segments: list[list[tuple[int, str]]]) -> None:
    found = [[seen(10 * number + at, text) for at, text in some] for number, some in enumerate(segments)]
    before: Selection | None = None
    told: list[Observation] = []
    for some in found:
        before = selected(some, FilterParams(once_in_s=7), before)
        told += before.observations
    for text in "ab":
        at = sorted(each.start_ns for each in told if each.text == text)
        assert all(later - earlier >= 7 * S for earlier, later in pairwise(at))
    assert {each.text for some in found for each in some} == {each.text for each in told}


def test_a_picture_a_second_and_segments_of_one_picture_are_enough() -> None:
    still, moving = filmed(6, noise=0), filmed(6, noise=0, walker=(10, 20))
    for fps, segment_s in ((1.0, 2.0), (5.0, 0.2)):
        for images, moves in ((still, False), (moving, True)):
            rgb = np.repeat(images[..., None], 3, axis=3)
            media = film(rgb, frames_per_s=fps, segment_s=segment_s)
            found = run(DetectMotion, {"media": media})
            assert [bool(each.observations) for each in found[1:]] == [moves] * (len(media) - 1)


def test_what_was_told_is_forgotten_once_it_does_not_count() -> None:
    before: Selection | None = None
    for second in range(2000):
        before = selected([seen(second, f"{chr(97 + second % 26) * 300} {second}x")], FilterParams(once_in_s=1), before)
    assert before is not None
    assert len(before.told) <= 62
    assert max(len(what) for what, _ in before.told) < 30
