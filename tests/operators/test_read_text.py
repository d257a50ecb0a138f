"""Text is read exactly, once, from few frames, and with the time for which it is seen."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from engine.spec.operator import Media, Settings
from operators.media.taking import Frames
from operators.seen import Scenes, ScreenText, Shot
from operators.vision.detect_scenes import DetectScenes
from operators.vision.read_text import (
    TEXT_FRAMES,
    LineReader,
    ReadText,
    frames_to_read,
    read_lines,
    visible_intervals,
    where_visible,
)
from penstock.testing import film, run, segments_of

EXAMPLES = Path(__file__).parents[2] / "examples"
STEP_NS = TEXT_FRAMES.interval_ns
Picture = np.ndarray[Any, np.dtype[np.uint8]]


def backdrop(seed: int = 0, shift: int = 0) -> Picture:
    """A dim, soft picture, uint8 [720, 1280, 3], moved sideways by `shift` pixels."""
    rough = np.random.default_rng(seed).uniform(20, 120, (9, 16, 3)).astype(np.float32)
    soft = cv2.resize(rough, (2560, 720), interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(soft[:, shift : shift + 1280].clip(0, 255).astype(np.uint8))


def written(picture: Picture, *lines: tuple[str, int, int]) -> Picture:
    """With lines of white text at (x, baseline y)."""
    picture = picture.copy()
    for text, x, y in lines:
        cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 1.5, (255, 255, 255), 3, cv2.LINE_AA)
    return picture


def sampled(pictures: Sequence[Picture]) -> Frames:
    return Frames(np.arange(len(pictures)) * STEP_NS, np.stack(pictures))


def greys(pictures: Sequence[Picture]) -> Picture:
    return np.stack([cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.uint8) for picture in pictures])


def shots(*num_samples: int) -> list[Shot]:
    edges = np.cumsum([0, *num_samples])
    return [Shot(start_ns=int(a) * STEP_NS, end_ns=int(b) * STEP_NS) for a, b in itertools.pairwise(edges)]


def numbers(*frames: int) -> np.ndarray[Any, np.dtype[np.intp]]:
    return np.array(frames, np.intp)


@pytest.fixture(scope="module")
def reader() -> LineReader:
    return LineReader(num_threads=1)


class CountingReader(LineReader):
    """Counts the frames and the lines it is made to read."""

    def __init__(self) -> None:
        super().__init__(num_threads=1)
        self.num_frames = 0
        self.num_lines = 0

    def find(self, image: Picture) -> list[Any]:
        self.num_frames += 1
        return super().find(image)

    def read(self, image: Picture, quads: Sequence[Any]) -> list[tuple[str, float]]:
        self.num_lines += len(quads)
        return super().read(image, quads)


@pytest.fixture(scope="module")
def counting_model() -> CountingReader:
    return CountingReader()


@pytest.fixture
def counting(counting_model: CountingReader) -> CountingReader:
    counting_model.num_frames = counting_model.num_lines = 0
    return counting_model


# --- which frames to read --------------------------------------------------------------------------------


def test_one_frame_of_a_still_shot_is_read() -> None:
    still = [written(backdrop(), ("PLATFORM 9", 100, 300))] * 6
    assert len(frames_to_read(greys(still), [numbers(*range(6))], 4)) == 1


def test_text_that_pops_up_draws_the_reading() -> None:
    film = [backdrop()] * 4 + [written(backdrop(), ("LATE NEWS", 100, 300))] * 3
    assert frames_to_read(greys(film), [numbers(*range(7))], 4)[0] >= 4


def test_text_that_replaces_text_is_read_too() -> None:
    film = [written(backdrop(), ("TRAIN TO ROME", 100, 300))] * 3 + [
        written(backdrop(), ("TRAM TO OSLO", 100, 300))
    ] * 3
    chosen = frames_to_read(greys(film), [numbers(*range(6))], 4)
    assert len(chosen) == 2
    assert min(chosen) < 3 <= max(chosen)


def test_no_more_frames_than_allowed_are_read() -> None:
    film = [written(backdrop(), (f"LINE NUMBER {at}", 100, 100 + 90 * at)) for at in range(6) for _ in range(2)]
    assert len(frames_to_read(greys(film), [numbers(*range(12))], 3)) == 3


def test_the_sharp_frame_is_preferred() -> None:
    sharp = written(backdrop(), ("SHARP", 100, 300))
    soft = cv2.GaussianBlur(sharp, (0, 0), 6).astype(np.uint8)
    assert frames_to_read(greys([soft, soft, sharp, sharp, soft]), [numbers(*range(5))], 1)[0] in (2, 3)


def test_a_picture_without_detail_and_a_shot_that_came_before_are_not_read() -> None:
    plain, sign = np.full((720, 1280, 3), 40, np.uint8), written(backdrop(), ("EXIT", 100, 300))
    film = greys([plain, plain, sign, sign, plain, sign])
    assert frames_to_read(film, [numbers(0, 1), numbers(2, 3), numbers(4), numbers(5)], 2) in ([2], [3])


# --- how long a line is visible --------------------------------------------------------------------------


def quad_of(x: float, y: float, width: float, height: float) -> Any:
    return np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]], np.float32)


def test_a_line_is_visible_over_a_moving_background_until_it_changes() -> None:
    film = [written(backdrop(shift=8 * at), ("GATE 12", 100, 300)) for at in range(4)]
    film += [written(backdrop(shift=40), ("GATE 17", 100, 300)), backdrop(shift=48)]
    seen = where_visible(greys(film), quad_of(95, 262, 200, 45), 1)
    assert seen.tolist() == [True] * 4 + [False] * 2


def test_intervals_reach_to_the_edges_of_the_shot_and_join_across_cuts() -> None:
    times_ns = np.array([1, 2, 3, 4, 5, 6]) * 10
    takes = [Shot(start_ns=5, end_ns=35), Shot(start_ns=35, end_ns=70)]
    for seen, expected in [
        ([1, 1, 1, 1, 1, 1], [(5, 70)]),
        ([0, 1, 1, 0, 0, 0], [(20, 35)]),
        ([0, 0, 1, 1, 0, 1], [(30, 50), (60, 70)]),
        ([0, 0, 0, 0, 0, 0], []),
    ]:
        assert visible_intervals(np.array(seen, bool), times_ns, takes) == expected


# --- reading ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["GATE 14", "COFFEE $2.80", "Call 555 0178", "Departure 07:45"])
def test_drawn_text_is_read_exactly(reader: LineReader, text: str) -> None:
    picture = written(backdrop(3), (text, 300, 400))
    (quad,) = reader.find(picture)
    ((read, confidence),) = reader.read(picture, [quad])
    assert read == text
    assert confidence > 0.8
    assert quad[0] == pytest.approx([300, 360], abs=15)


def test_a_picture_without_text_has_no_lines(reader: LineReader) -> None:
    assert reader.find(backdrop(1)) == []
    assert reader.read(backdrop(1), []) == []


def test_nothing_is_downloaded_or_logged(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)
    models = LineReader(num_threads=1)
    picture = written(backdrop(3), ("GATE 14", 300, 400))
    assert [text for text, _ in models.read(picture, models.find(picture))] == ["GATE 14"]
    assert models.find(backdrop(1)) == []
    assert capfd.readouterr() == ("", "")


def test_a_line_that_stays_is_read_once_and_the_new_one_beside_it_too(counting: CountingReader) -> None:
    first = written(backdrop(), ("CHANNEL 5", 900, 80))
    second = written(first, ("STORM WARNING", 100, 650))
    third = written(backdrop(9), ("CHANNEL 5", 900, 80), ("SUNNY AGAIN", 100, 650))
    lines = read_lines(counting, sampled([first, first, second, second, third, third]), shots(4, 2), 4)
    assert sorted((line.text, line.visible.tolist()) for line in lines) == [
        ("CHANNEL 5", [True] * 6),
        ("STORM WARNING", [False, False, True, True, False, False]),
        ("SUNNY AGAIN", [False] * 4 + [True] * 2),
    ]
    assert counting.num_frames == 2
    assert counting.num_lines == 3


def test_one_frame_for_each_scene_is_the_most_at_the_lowest_rung(counting: CountingReader) -> None:
    film = [written(backdrop(at), (f"PAGE {at}", 100, 100 * at + 100)) for at in range(6) for _ in range(2)]
    read_lines(counting, sampled(film), shots(8, 4), 1)
    assert counting.num_frames == 2


# --- the operator ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def station() -> dict[str, list[Any]]:
    """The first segments of the station clip with their scenes."""
    demands = (*DetectScenes(Settings()).demands(), TEXT_FRAMES)
    media = [Media.decoded(segment, demands) for segment in segments_of(EXAMPLES / "station.mp4")]
    media = [each for each in media if each.segment.start_ns < 16 * 10**9]
    return {"media": media, "scenes": run(DetectScenes, {"media": media})}


@pytest.mark.parametrize("frames_per_scene", [1, 4])
def test_the_station_is_read_exactly(station: dict[str, list[Any]], frames_per_scene: int) -> None:
    found = run(ReadText, station, knobs={"frames_per_scene": frames_per_scene})
    lines = [line for each in found if isinstance(each, ScreenText) for line in each.observations]
    until_s = max(line.end_ns for line in lines) / 1e9
    truth = json.loads((EXAMPLES / "station.json").read_text())["texts"]
    expected = [each for each in truth if each["start_s"] < until_s - 1]
    assert {line.text for line in lines} == {each["text"] for each in expected}
    for each in expected:
        same = [line for line in lines if line.text == each["text"]]
        assert min(line.start_ns for line in same) / 1e9 == pytest.approx(each["start_s"], abs=0.1)
        assert max(line.end_ns for line in same) / 1e9 == pytest.approx(min(each["end_s"], until_s), abs=0.1)
        assert all(0 <= part <= 1 for line in same for part in line.box)


def test_a_segment_without_pictures_has_no_text() -> None:
    radio = film(sound=np.zeros(16_000, np.int16))
    assert run(ReadText, {"media": radio, "scenes": [Scenes()]}) == [ScreenText()]
