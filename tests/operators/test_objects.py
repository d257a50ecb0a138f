"""Objects: what is found in pictures that nobody here made, how boxes become tracks, and tracks events and counts."""

import itertools
import math
import shutil
import subprocess
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.spec.operator import Device, Media
from operators import weights
from operators.capabilities import DetectObjectsParams, WatchZonesParams
from operators.media.pictures import FrameSpec, frames
from operators.media.pixels import Filled
from operators.media.taking import tensors_of
from operators.seen import Counts, DetectedObject, Events, Objects, OpenTrack, Sighting, TrackedObject, Tracks
from operators.vision.assigning import NEVER, assigned
from operators.vision.count_objects import CountObjects
from operators.vision.detect_objects import (
    BINS,
    NAME,
    NAMES,
    SIDE,
    TAKES,
    DetectObjects,
    NanoDet,
    boxes_of,
)
from operators.vision.detecting import DetectKnobs, cells
from operators.vision.track_objects import MAX_UNSEEN_S, distance, reach, tracked
from operators.vision.watch_zones import crossed, events_of, is_in
from penstock.testing import gap, loaded, run
from streams.media.segmenter import segments
from streams.records import Segment

S = 10**9
PICTURES = Path("/usr/share/doc/opencv-doc/examples")


def found_in(name: str) -> Path:
    """A file of Debian's opencv-doc, unpacked or not; skips where that is not installed."""
    for root in (PICTURES, Path("/usr/share/opencv4/samples/data"), Path("/usr/share/doc/opencv-doc")):
        for path in sorted(root.rglob(name)) if root.is_dir() else []:
            return path
    pytest.skip(f"needs {name} of Debian's opencv-doc")


@pytest.fixture(scope="module")
def model() -> NanoDet:
    return NanoDet(weights.folder_of(NAME), 1, TAKES)


# --- finding -----------------------------------------------------------------------------------------------------


def test_the_weights_come_along_and_are_what_the_manifest_says() -> None:
    assert weights.verify(NAME).where == "bundled"


@pytest.mark.parametrize(
    ("picture", "there", "not_there"),
    [
        ("messi5.jpg", {"person", "sports ball"}, {"cat", "car", "bus"}),
        ("basketball1.png", {"person"}, {"cat", "car", "airplane"}),
        ("leuvenB.jpg", {"bicycle"}, {"cat", "airplane", "boat"}),
        ("home.jpg", set(), {"person", "cat", "airplane", "elephant"}),
    ],
)
def test_photographs_show_what_is_in_them(model: NanoDet, picture: str, there: set[str], not_there: set[str]) -> None:
    image = cv2.imread(str(found_in(picture)))
    boxes = model.objects_of(image[..., ::-1], 0.4)
    names = {box.name for box in boxes}
    assert there <= names
    assert not not_there & names
    assert all(0 <= box.x <= box.x + box.width <= 1.0001 for box in boxes)


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> list[Segment]:
    """The first ten seconds of PETS 2009's pedestrians, in segments of two. The file has a keyframe in twelve seconds,
    so it is coded anew first."""
    path = tmp_path_factory.mktemp("street") / "street.mp4"
    shutil.which("ffmpeg") or pytest.skip("needs ffmpeg")
    how = ["-t", "10", "-c:v", "libx264", "-g", "20", "-preset", "ultrafast", "-crf", "18", "-loglevel", "error"]
    subprocess.run(["ffmpeg", "-i", str(found_in("vtest.avi")), *how, str(path)], check=True, timeout=60)
    return [each for each in segments(str(path), stream="street", target_s=2.0) if isinstance(each, Segment)]


@pytest.fixture(scope="module")
def pedestrians(street: list[Segment]) -> list[Objects]:
    operator = loaded(DetectObjects, DetectKnobs(), Device())
    return run(
        operator, {"media": [Media(segment) for segment in street]}, params=DetectObjectsParams(objects=("person",))
    )


def test_people_in_a_street_are_found_in_every_frame_that_is_looked_at(pedestrians: list[Objects]) -> None:
    times = [at_ns for each in pedestrians for at_ns in each.times_ns]
    assert times == sorted(times)
    assert len(times) == pytest.approx(25, abs=2)  # every 0.4 s
    for each in pedestrians:
        for at_ns in each.times_ns:
            here = [seen for seen in each.observations if seen.start_ns == at_ns]
            assert 2 <= len(here) <= 14
            assert {seen.text for seen in here} == {"person"}


def test_a_frame_gives_the_same_in_any_company(model: NanoDet, street: list[Segment]) -> None:
    images = frames(Media(street[0]), FrameSpec(interval_ns=400_000_000)).images
    together = model.boxes(tensors_of(images, TAKES), 0.4)
    assert together == [model.objects_of(image, 0.4) for image in images]


def test_people_in_a_street_are_followed_and_counted(pedestrians: list[Objects]) -> None:
    tracks: list[Tracks] = []
    for objects in pedestrians:
        tracks.append(tracked(objects, tracks[-1] if tracks else None))
    ids = [{track.track for track in each.observations} for each in tracks]
    stayed = [len(one & next_) / len(one) for one, next_ in pairwise(ids)]
    assert min(stayed) >= 0.4  # a person is in the picture for longer than two seconds
    (count,) = counted(*tracks).observations
    assert 2 <= count.most_at_once <= 14
    assert count.most_at_once <= count.num <= 30


# --- boxes of what the model gives -----------------------------------------------------------------------------------


def output(found: Mapping[int, tuple[int, float, tuple[int, int, int, int]]]) -> tuple[Any, Any]:
    """What the model would give for objects at these cells: class, score, and whole steps to each side."""
    num = len(cells(SIDE)[1])
    scores = np.full((num, len(NAMES)), 0.01, np.float32)
    sides = np.zeros((num, 4, BINS), np.float32)
    for cell, (kind, score, steps) in found.items():
        scores[cell, kind] = score
        for side, step in enumerate(steps):
            sides[cell, side, step] = 50.0  # all of the distribution
    return scores, sides.reshape(num, 4 * BINS)


def test_a_box_is_where_its_distributions_say() -> None:
    at, strides = cells(SIDE)
    stride = float(strides[1000])
    x, y = ((at[1000] + 0.5) * stride).tolist()
    scores, sides = output({1000: (2, 0.9, (1, 2, 3, 4))})
    (box,) = boxes_of(scores, sides, 0.4)
    assert (box.name, box.score) == ("car", pytest.approx(0.9))
    expected = ((x - stride) / SIDE, (y - 2 * stride) / SIDE, 4 * stride / SIDE, 6 * stride / SIDE)
    assert box[2:] == pytest.approx(expected, abs=1e-4)
    assert boxes_of(scores, sides, 0.95) == []


def test_of_boxes_that_overlap_the_surest_of_a_class_stands() -> None:
    scores, sides = output({1000: (2, 0.9, (3, 3, 3, 3)), 1001: (2, 0.8, (3, 3, 3, 3)), 1002: (0, 0.7, (3, 3, 3, 3))})
    assert [(box.name, round(box.score, 2)) for box in boxes_of(scores, sides, 0.4)] == [("car", 0.9), ("person", 0.7)]


def test_a_box_ends_with_the_picture() -> None:
    scores, sides = output({0: (0, 0.9, (10, 10, 1, 1))})
    (box,) = boxes_of(scores, sides, 0.4)
    assert (box.x, box.y) == (0, 0)


def test_only_what_is_wanted_counts() -> None:
    scores, sides = output({1000: (2, 0.9, (1, 2, 3, 4)), 1040: (16, 0.8, (1, 1, 1, 1))})
    assert [box.name for box in boxes_of(scores, sides, 0.4, {"dog"})] == ["dog"]
    assert [box.name for box in boxes_of(scores, sides, 0.8, {"dog"})] == ["dog"]  # the threshold itself will do


def test_a_panorama_is_put_in_whole(model: NanoDet, street: list[Segment]) -> None:
    """Two pictures of a street side by side show people in both, where they are; stretched they showed nobody."""
    picture = frames(Media(street[0]), FrameSpec(interval_ns=400_000_000)).images[0]
    alone = model.objects_of(picture, 0.4, {"person"})
    wide = model.objects_of(np.concatenate([picture, picture], axis=1), 0.4, {"person"})
    assert len(wide) >= len(alone) / 2
    assert {int(2 * (box.x + box.width / 2)) for box in wide} == {0, 1}
    for box in wide:
        x = (2 * box.x) % 1.0
        assert any(abs(x - each.x) + abs(box.y - each.y) < 0.05 for each in alone)


def test_there_are_as_many_cells_as_the_model_gives(model: NanoDet) -> None:
    image = np.zeros((1, 3, SIDE, SIDE), np.float32)
    outputs = model._session.run(model._outputs, {model._input: image})
    assert sum(each.shape[1] for each in outputs if each.shape[-1] == len(NAMES)) == len(cells(SIDE)[1])


def test_pixels_are_prepared_as_the_model_was_trained() -> None:
    image = np.zeros((1, 100, 200, 3), np.uint8)
    image[..., 0], image[..., 2] = 255, 10  # red, blue
    taken = tensors_of(image, TAKES)
    (made,) = taken.batches(1)
    assert taken.shown == Filled(0, 0, SIDE, SIDE)
    assert (made.shape, made.dtype) == ((1, 3, SIDE, SIDE), np.float32)
    assert made[0, :, 5, 5] == pytest.approx([(10 - 103.53) / 57.375, -116.28 / 57.12, (255 - 123.675) / 58.395])


# --- following -------------------------------------------------------------------------------------------------------


def at(at_s: float, x: float, y: float = 0.5, name: str = "person", confidence: float = 0.9) -> DetectedObject:
    when = round(at_s * S)
    return DetectedObject(start_ns=when, end_ns=when, text=name, confidence=confidence, box=(x, y, 0.1, 0.2))


def seen(*found: DetectedObject, times_s: tuple[float, ...] = ()) -> Objects:
    times = {each.start_ns for each in found} | {round(at_s * S) for at_s in times_s}
    return Objects(observations=found, times_ns=tuple(sorted(times)))


def followed(*segments: Objects) -> list[Tracks]:
    found: list[Tracks] = []
    for segment in segments:
        found.append(tracked(segment, found[-1] if found else None))
    return found


def test_one_that_walks_is_one_track_over_segments() -> None:
    steps = [at(0.5 * n, 0.1 + 0.05 * n) for n in range(8)]
    first, second = followed(seen(*steps[:4]), seen(*steps[4:]))
    ((one,), (two,)) = (first.observations, second.observations)
    assert one.track == two.track == 1
    assert [sighting.box[0] for sighting in two.path] == pytest.approx([0.3, 0.35, 0.4, 0.45])
    assert (two.start_ns, two.end_ns, second.num_tracks) == (2 * S, round(3.5 * S), 1)


def test_one_who_leaves_in_the_middle_of_a_segment_is_shown() -> None:
    steps = [at(0.4 * n, 0.1 + 0.02 * n) for n in range(1, 11)]
    (tracks,) = followed(seen(*steps, times_s=tuple(0.4 * n for n in range(20))))
    assert [len(track.path) for track in tracks.observations] == [10]
    assert tracks.open == ()


def test_one_that_is_seen_in_a_segments_last_frame_is_shown_with_the_next() -> None:
    first, second = followed(seen(at(0.5, 0.1)), seen(at(1.0, 0.12)))
    assert first.observations == ()
    assert [sighting.at_ns for sighting in second.observations[0].path] == [S // 2, S]


@pytest.mark.parametrize("spacing_s", [2.0, 2.002, 5.0])
def test_few_frames_are_enough_to_follow_one_that_stands(spacing_s: float) -> None:
    found = followed(*(seen(at(n * spacing_s, 0.1)) for n in range(10)))
    assert found[-1].num_tracks == 1
    assert sum(len(track.path) for tracks in found for track in tracks.observations) == 10


def test_behind_a_gap_no_number_is_given_twice() -> None:
    before = tracked(seen(at(0, 0.1), at(0.5, 0.1)), None, 0)
    after = tracked(seen(at(9, 0.1), at(9.5, 0.1)), None, 3)
    (one,), (other,) = before.observations, after.observations
    assert one.track != other.track


def test_two_frames_of_one_moment_make_nobody_fast() -> None:
    steps = [at(0, 0.1), at(0.01, 0.105), at(0.5, 0.1), at(1.0, 0.1)]
    (tracks,) = followed(seen(*steps))
    assert tracks.num_tracks == 1


def test_two_that_meet_and_part_keep_their_tracks() -> None:
    """They pass through the same place: the velocity says which is which."""
    there = [at(0.25 * n, 0.1 + 0.04 * n, 0.50) for n in range(12)]
    back = [at(0.25 * n, 0.54 - 0.04 * n, 0.52) for n in range(12)]
    (tracks,) = followed(seen(*there, *back))
    assert len(tracks.observations) == 2
    for track in tracks.observations:
        xs = [sighting.box[0] for sighting in track.path]
        assert xs in (sorted(xs), sorted(xs, reverse=True))


def test_classes_are_never_joined_and_what_is_seen_once_is_not_shown() -> None:
    (tracks,) = followed(seen(at(0, 0.1), at(0.5, 0.1, name="dog"), at(1.0, 0.1), at(1.0, 0.8)))
    assert [(track.text, track.track, len(track.path)) for track in tracks.observations] == [("person", 1, 2)]
    assert tracks.num_tracks == 3


def test_one_that_is_away_for_long_is_another() -> None:
    near, far = MAX_UNSEEN_S - 0.5, MAX_UNSEEN_S + 0.5
    for away_s, num in ((near, 1), (far, 2)):
        later = [at(0.5 + away_s, 0.1), at(1.0 + away_s, 0.1)]
        empty = tuple(0.5 * n for n in range(8) if 0.5 * n < 0.5 + away_s)
        _, second = followed(seen(at(0, 0.1), at(0.5, 0.1), times_s=empty), seen(*later))
        assert second.num_tracks == num
        assert [track.track for track in second.observations] == [num]


BOXES = st.tuples(st.floats(0, 0.9), st.floats(0, 0.8)).map(lambda place: (*place, 0.1, 0.2))
SOME = st.lists(st.tuples(st.integers(0, 9), BOXES, st.sampled_from(["person", "car"])), max_size=30)


def sightings(*tracks: Tracks) -> list[tuple[int, int]]:
    """Which track was seen when."""
    return sorted((track.track, each.at_ns) for one in tracks for track in one.observations for each in track.path)


@given(SOME)
def test_however_it_is_cut_the_tracks_are_the_same(found: list[tuple[int, Any, str]]) -> None:
    every = [
        DetectedObject(start_ns=n * S // 2, end_ns=n * S // 2, text=name, confidence=0.5, box=box)
        for n, box, name in found
    ]
    times = [n * S // 2 for n in range(10)]

    def part(first: int, last: int) -> Objects:
        inside = tuple(each for each in every if first <= each.start_ns * 2 // S < last)
        return Objects(observations=inside, times_ns=tuple(times[first:last]))

    (whole,) = followed(part(0, 10))
    cut = followed(part(0, 3), part(3, 7), part(7, 10))
    assert whole.open == cut[-1].open and whole.num_tracks == cut[-1].num_tracks
    assert sightings(whole) == sightings(*cut)
    for tracks in cut:
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(tracks), type=Tracks) == tracks


@given(BOXES, BOXES)
def test_how_far_is_told_in_boxes_and_the_same_there_and_back(one: Any, other: Any) -> None:
    assert 0 <= distance(one, other) == pytest.approx(distance(other, one))
    assert distance(one, one) == 0


def test_boxes_that_touch_are_one_apart_and_much_larger_ones_are_none() -> None:
    assert distance((0.1, 0.1, 0.1, 0.2), (0.2, 0.1, 0.1, 0.2)) == pytest.approx(1)
    assert distance((0.1, 0.1, 0.1, 0.2), (0.1, 0.1, 0.2, 0.4)) == math.inf
    assert distance((0.1, 0.1, 0.0, 0.0), (0.1, 0.1, 0.0, 0.0)) == math.inf


# --- zones and lines -------------------------------------------------------------------------------------------------

GATE = ((0.4, 0.0), (0.6, 0.0), (0.6, 1.0), (0.4, 1.0))


def track(id: int, *places: tuple[float, float]) -> TrackedObject:
    """One whose feet are at these x, at these seconds."""
    path = tuple(Sighting(round(at_s * S), (x - 0.05, 0.3, 0.1, 0.2)) for at_s, x in places)
    return TrackedObject(start_ns=path[0].at_ns, end_ns=path[-1].at_ns, text="person", track=id, path=path)


def tracks(*some: TrackedObject, alive: tuple[int, ...] | None = None) -> Tracks:
    ids = tuple(each.track for each in some) if alive is None else alive
    return Tracks(
        observations=some, open=tuple(OpenTrack(id=id, name="person", last=Sighting(0, (0, 0, 0, 0))) for id in ids)
    )


def told(params: WatchZonesParams, *segments: Tracks) -> list[str]:
    said: list[str] = []
    before: Events | None = None
    for segment in segments:
        before = events_of(segment, before, params)
        before = msgspec.msgpack.decode(msgspec.msgpack.encode(before), type=Events)
        said += [f"{event.start_ns / S:g} {event.text}" for event in before.observations]
    return said


def test_who_enters_stays_and_leaves_is_told_once_each_over_segments() -> None:
    params = WatchZonesParams(zones={"the gate": GATE}, stays_s=2)
    said = told(
        params,
        tracks(track(1, (0, 0.2), (1, 0.5))),
        tracks(track(1, (2, 0.5), (3, 0.5), (4, 0.55))),
        tracks(track(1, (5, 0.7), (6, 0.8))),
    )
    assert said == ["1 person 1 enters the gate", "1 person 1 stays in the gate for 2 s", "6 person 1 leaves the gate"]


def test_who_stands_at_the_edge_does_not_come_and_go() -> None:
    params = WatchZonesParams(zones={"the gate": GATE}, stays_s=8)
    said = told(params, tracks(track(1, *((n, 0.59 if n % 3 else 0.61) for n in range(12)))))
    assert said == ["1 person 1 enters the gate", "1 person 1 stays in the gate for 8 s"]


def test_who_is_cut_off_by_the_frames_edge_stands_in_it() -> None:
    everywhere = {"all": ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))}
    path = (Sighting(0, (0.9, 0.7, 0.1001, 0.3001)),)
    whole = TrackedObject(start_ns=0, end_ns=0, text="person", track=1, path=path)
    assert told(WatchZonesParams(zones=everywhere), tracks(whole)) == ["0 person 1 enters all"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"zones": {"a": [[0, 0], [384, 0], [384, 576]]}},
        {"zones": {"a": [[0, 0], [float("nan"), 0], [1, 1]]}},
        {"zones": {"a": [[0, 0], [1, 1]]}},
        {"zones": {"": [[0, 0], [1, 0], [1, 1]]}},
        {"zones": {"a\nb": [[0, 0], [1, 0], [1, 1]]}},
        {"lines": {"a": [[0, 0], [float("inf"), 0]]}},
    ],
)
def test_what_is_no_place_in_a_frame_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, WatchZonesParams)


def test_a_class_that_nobody_can_find_is_refused() -> None:
    assert msgspec.convert({"objects": ["person", "stop sign"]}, DetectObjectsParams).objects == ("person", "stop sign")
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"objects": ["pedestrian"]}, DetectObjectsParams)


def test_who_is_lost_in_a_zone_has_left_it_when_last_seen() -> None:
    params = WatchZonesParams(zones={"the gate": GATE})
    said = told(params, tracks(track(7, (0, 0.5), (1, 0.5))), tracks(alive=(7,)), tracks(alive=()), tracks(alive=()))
    assert said == ["0 person 7 enters the gate", "1 person 7 leaves the gate"]


def test_a_line_is_crossed_to_a_side_and_only_where_it_is() -> None:
    params = WatchZonesParams(lines={"the kerb": ((0.5, 1.0), (0.5, 0.2)), "elsewhere": ((0.5, 0.0), (0.5, 0.1))})
    said = told(params, tracks(track(1, (0, 0.4))), tracks(track(1, (1, 0.6), (2, 0.7), (3, 0.3))))
    assert said == ["1 person 1 crosses the kerb to the right", "3 person 1 crosses the kerb to the left"]


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_point_is_in_a_square_as_arithmetic_says(x: float, y: float) -> None:
    if min(abs(x - 0.4), abs(x - 0.6)) > 1e-9:
        assert is_in((x, y), GATE) == (0.4 < x < 0.6 and 0.0 <= y < 1.0)


POINT = st.tuples(st.integers(-5, 5).map(float), st.integers(-5, 5).map(float))


@given(POINT, POINT, POINT, POINT)
def test_who_crosses_a_line_and_comes_back_crosses_it_to_both_sides(was: Any, now: Any, start: Any, end: Any) -> None:
    there, back = crossed(was, now, start, end), crossed(now, was, start, end)
    assert {there, back} in ({None}, {"left", "right"})


# --- counting --------------------------------------------------------------------------------------------------------


def counted(*segments: Any) -> Counts:
    (counts,) = run(CountObjects, {"tracks": list(segments)})
    return counts


def test_each_is_counted_once_and_how_many_at_once() -> None:
    counts = counted(
        tracks(track(1, (0, 0.1), (1, 0.1)), track(2, (1, 0.5))),
        tracks(track(2, (2, 0.5)), track(3, (3, 0.9))),
    )
    (count,) = counts.observations
    assert (count.object, count.num, count.most_at_once) == ("person", 3, 2)
    assert count.text == "person: 3 in all, 2 at once at most"
    assert counted(Tracks()).observations == ()


def test_behind_a_gap_numbers_begin_anew() -> None:
    (count,) = counted(tracks(track(1, (0, 0.1))), gap("lost"), tracks(track(1, (9, 0.1)))).observations
    assert count.num == 2


def test_its_names_are_cocos() -> None:
    assert (len(NAMES), len(set(NAMES)), NAMES[0], NAMES[-1]) == (80, 80, "person", "toothbrush")


# --- who goes with whom -------------------------------------------------------------------------------------


@given(
    st.integers(0, 5).flatmap(
        lambda num_rows: st.integers(0, 5).flatmap(
            lambda num_columns: st.lists(
                st.lists(st.integers(0, 9) | st.just(NEVER), min_size=num_columns, max_size=num_columns),
                min_size=num_rows,
                max_size=num_rows,
            ).map(lambda rows: np.array(rows, float).reshape(num_rows, num_columns))
        )
    )
)
def test_no_other_pairs_are_more_or_cost_less(costs: Any) -> None:
    """Against every way there is."""
    pairs = assigned(costs)
    assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == len(pairs)
    best = (0, 0.0)
    rows, columns = costs.shape
    for order in itertools.permutations([*range(columns), *[None] * rows], rows):
        some = [costs[row, column] for row, column in enumerate(order) if column is not None]
        if NEVER not in some:
            best = min(best, (-len(some), float(sum(some))))
    assert (-len(pairs), float(sum(costs[pair] for pair in pairs))) == best


def test_the_longer_one_was_not_seen_the_further_it_may_be() -> None:
    track = OpenTrack(id=1, name="person", last=Sighting(0, (0.5, 0.5, 0.1, 0.2)), num_seen=2)
    assert [reach(track, at) for at in (0, S // 2, S, 9 * S)] == [0.5, 1.0, 1.5, 1.5]
    assert reach(msgspec.structs.replace(track, num_seen=1), S // 4) == 1.25  # nobody knows how fast it is
