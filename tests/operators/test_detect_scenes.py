"""Cuts, fades and dissolves are found; movement, flashes and changes of light are not."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from engine.spec.operator import Media, Settings
from operators.media.pictures import FrameSpec, frames
from operators.seen import Glimpse, Scenes
from operators.vision.detect_scenes import DetectScenes, cut_between, signatures, take_openings
from penstock.testing import film, run, segments_of

EXAMPLES = Path(__file__).parents[2] / "examples"
FPS = 25
Picture = np.ndarray[Any, np.dtype[np.uint8]]


def scenery(seed: int, width: int = 160) -> Picture:
    """A picture with large and small shapes, uint8 [90, width, 3]."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.uniform(20, 235, (4, 7, 3)), (width, 90), interpolation=cv2.INTER_CUBIC)
    fine = cv2.resize(rng.normal(0, 20, (30, width // 3, 3)), (width, 90))
    return np.asarray((coarse + fine).clip(0, 255), np.uint8)


def still(seed: int, duration_s: float) -> list[Picture]:
    return [scenery(seed)] * round(duration_s * FPS)


def mixed(a: Picture, b: Picture, share: float) -> Picture:
    return np.asarray(a * (1 - share) + b * share, np.uint8)


def ramp(a: Picture, b: Picture, duration_s: float) -> list[Picture]:
    num_frames = round(duration_s * FPS)
    return [mixed(a, b, (at + 0.5) / num_frames) for at in range(num_frames)]


def pan(seed: int, duration_s: float, speed: int) -> list[Picture]:
    wide = scenery(seed, width=160 + speed * round(duration_s * FPS))
    return [wide[:, speed * at : speed * at + 160] for at in range(round(duration_s * FPS))]


def openings_s(film: Sequence[Picture]) -> list[float]:
    """When new takes open, with some noise of the camera on every frame."""
    rng = np.random.default_rng(0)
    noisy = [(picture + rng.normal(0, 4, picture.shape)).clip(0, 255).astype(np.uint8) for picture in film]
    times_ns = np.arange(len(film)) * (10**9 // FPS)
    return [int(times_ns[at]) / 1e9 for at in take_openings(signatures(np.stack(noisy)), times_ns)]


@pytest.mark.parametrize("seed", range(12))
def test_cuts_are_found_where_they_are(seed: int) -> None:
    film = still(seed, 1.2) + pan(seed + 100, 1.0, speed=3) + still(seed + 200, 0.48) + still(seed + 300, 1.0)
    assert openings_s(film) == [1.2, 2.2, 2.68]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("speed", [1, 4, 9, 16])
def test_a_camera_that_pans_makes_no_cut(seed: int, speed: int) -> None:
    assert openings_s(pan(seed, 4.0, speed)) == []


def test_something_that_crosses_the_picture_makes_no_cut() -> None:
    film = []
    for at in range(3 * FPS):
        picture = scenery(5).copy()
        picture[20:80, max(0, 6 * at - 50) : max(0, 6 * at)] = 255
        film.append(picture)
    assert openings_s(film) == []


def test_a_flash_of_light_makes_no_cut() -> None:
    film = still(1, 3.0)
    film[30:32] = [mixed(film[0], np.full_like(film[0], 255), 0.9)] * 2
    assert openings_s(film) == []


def test_lights_that_go_down_make_no_dissolve() -> None:
    bright, dim = scenery(2), (scenery(2) * 0.4).astype(np.uint8)
    assert openings_s([bright] * FPS + ramp(bright, dim, 1.0) + [dim] * FPS) == []


@pytest.mark.parametrize("seed", range(4))
def test_a_fade_through_black_opens_a_take_once(seed: int) -> None:
    black = np.zeros_like(scenery(0))
    film = still(seed, 1.0) + ramp(scenery(seed), black, 0.6) + [black] * 10
    film += ramp(black, scenery(seed + 50), 0.6) + still(seed + 50, 1.0)
    (opening,) = openings_s(film)
    assert 1.6 <= opening <= 2.3


@pytest.mark.parametrize("duration_s", [0.6, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_dissolve_opens_a_take_in_its_middle(seed: int, duration_s: float) -> None:
    a, b = scenery(seed), scenery(seed + 50)
    (opening,) = openings_s(still(seed, 1.5) + ramp(a, b, duration_s) + still(seed + 50, 1.5))
    assert opening == pytest.approx(1.5 + duration_s / 2, abs=0.16)


def test_a_fade_in_from_black_is_no_new_take() -> None:
    black = np.zeros_like(scenery(0))
    assert openings_s([black] * FPS + ramp(black, scenery(1), 0.8) + still(1, 1.0)) == []


def test_one_picture_is_one_take() -> None:
    assert openings_s([scenery(0)]) == []


# --- segments --------------------------------------------------------------------------------------------


def test_every_cut_of_the_station_is_found_inside_a_segment_or_between_two() -> None:
    station = segments_of(EXAMPLES / "station.mp4")
    found = run(DetectScenes, {"media": station})
    for segment, scenes in zip(station, found, strict=True):
        shots = scenes.observations
        assert shots[0].start_ns == segment.start_ns
        assert shots[-1].end_ns == segment.start_ns + segment.duration_ns
        assert all(left.end_ns == right.start_ns for left, right in itertools.pairwise(shots))
    inside = [shot.start_ns for scenes in found for shot in scenes.observations if shot.cut]
    between = [right.observations[0].start_ns for left, right in itertools.pairwise(found) if cut_between(left, right)]
    assert inside[0] == 0
    truth = json.loads((EXAMPLES / "station.json").read_text())["cuts"]
    assert [at / 1e9 for at in sorted(inside[1:] + between)] == pytest.approx(truth, abs=0.04)


def glimpsed(seed: int, changes: tuple[float, float] = (0.5, 0.4)) -> Scenes:
    colours = signatures(scenery(seed)[None]).astype(np.uint8).tobytes()
    return Scenes(opening=Glimpse(colours=colours, changes=changes), closing=Glimpse(colours=colours, changes=changes))


def test_a_boundary_is_judged_by_the_pictures_on_both_sides() -> None:
    assert cut_between(glimpsed(1), glimpsed(2))
    assert not cut_between(glimpsed(1), glimpsed(1))
    assert not cut_between(glimpsed(1), glimpsed(2, changes=(60.0, 55.0)))  # as restless as any cut
    assert not cut_between(Scenes(), glimpsed(2))
    assert not cut_between(glimpsed(1), Scenes())


def test_a_segment_without_pictures_has_no_shots() -> None:
    assert run(DetectScenes, {"media": film(sound=np.zeros(16_000, np.int16))}) == [Scenes()]


def test_it_asks_the_decoder_for_what_it_demands() -> None:
    (demand,) = DetectScenes(Settings()).demands()
    assert isinstance(demand, FrameSpec)
    (segment,) = segments_of(EXAMPLES / "station.mp4", max_segments=1)
    media, ahead = Media(segment), Media.decoded(segment, (demand,))
    assert run(DetectScenes, {"media": [media]}) == run(DetectScenes, {"media": [ahead]})
    assert frames(media, demand).images.shape[1:] == (90, 160, 3)
