"""What is drawn into pictures, and where; and that films of them are films."""

import os
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import ImageFont

from operators.capabilities import WatchZonesParams
from operators.heard import Phrases, Speech, Transcript
from operators.media.sound import Audio
from operators.media.writing import SOUND_RATE, film_at, jpeg
from operators.seen import (
    DetectedObject,
    Event,
    Events,
    Objects,
    Scenes,
    ScreenText,
    Sighting,
    TextLine,
    TrackedObject,
    Tracks,
)
from operators.vision.overlay import NS, Overlay, colour_of, writable
from penstock.cli.annotate import check_place
from streams.errors import UserError

BLACK = np.zeros((240, 320, 3), np.uint8)


def track(number: int, *seen: tuple[float, float]) -> TrackedObject:
    path = tuple(Sighting(int(at_s * NS), (x, 0.5, 0.1, 0.2)) for at_s, x in seen)
    return TrackedObject(start_ns=path[0].at_ns, end_ns=path[-1].at_ns, text="person", track=number, path=path)


def coloured(image: np.ndarray, number: int) -> tuple[int, int]:
    """The first and last column that has a track's colour."""
    columns = np.flatnonzero((np.abs(image.astype(int) - colour_of(number)).max(axis=2) < 40).any(axis=0))
    return int(columns[0]), int(columns[-1])


def test_a_box_moves_between_sightings_over_segments() -> None:
    """Also where the outputs of the segments come in another order."""
    parts = [
        Tracks(observations=(track(1, (2.0, 0.4), (3.0, 0.6)),)),
        Tracks(observations=(track(1, (0.0, 0.0), (1.0, 0.2)),)),
    ]
    overlay = Overlay(parts)
    lefts = [overlay.ways_at(int(at_s * NS))[0][1][0] for at_s in (0, 0.5, 1, 1.5, 2, 2.25, 3)]
    assert lefts == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.45, 0.6])
    assert overlay.ways_at(-1) == overlay.ways_at(3 * NS + 1) == []
    drawn = overlay.drawn(BLACK, int(1.5 * NS))
    assert not BLACK.any()
    assert coloured(drawn, 1)[0] <= round(0.3 * 320) <= coloured(drawn, 1)[1]


def test_one_that_was_away_for_long_is_not_drawn_in_between() -> None:
    overlay = Overlay([Tracks(observations=(track(1, (0.0, 0.1), (10.0, 0.1)),))])
    assert [len(overlay.ways_at(at * NS)) for at in (0, 5, 10)] == [1, 0, 1]


def test_objects_are_shown_until_the_next_frame_and_only_where_nobody_tracks_them() -> None:
    seen = DetectedObject(start_ns=NS, end_ns=NS, text="dog", box=(0.1, 0.1, 0.2, 0.2))
    objects = Objects(observations=(seen,), times_ns=(0, NS, 2 * NS))
    overlay = Overlay([objects])
    assert [len(overlay.objects_at(at)) for at in (0, NS - 1, NS, 2 * NS - 1, 2 * NS, 5 * NS)] == [0, 0, 1, 1, 0, 0]
    assert Overlay([objects, Tracks(observations=(track(1, (0, 0), (1, 0)),))]).objects_at(NS) == ()
    assert overlay.drawn(BLACK, NS).any()
    assert not overlay.drawn(BLACK, 0).any()


def test_text_events_and_what_is_said_are_shown_while_they_are() -> None:
    overlay = Overlay(
        [
            ScreenText(observations=(TextLine(start_ns=NS, end_ns=2 * NS, text="EXIT", box=(0.5, 0.1, 0.2, 0.1)),)),
            Events(observations=(Event(start_ns=3 * NS, end_ns=3 * NS, text="person 1 enters the yard"),)),
            Transcript(observations=(Speech(start_ns=6 * NS, end_ns=8 * NS, text="good evening"),)),
            Scenes(),
        ],
        [WatchZonesParams(zones={"the yard": ((0.0, 0.0), (0.5, 0.0), (0.5, 0.5))}, lines={"door": ((0, 1), (1, 0))})],
    )
    assert [line.text for line in overlay.lines_at(NS)] == ["EXIT"]
    assert overlay.lines_at(2 * NS) == []
    assert [len(overlay.events_at(at * NS)) for at in (2, 3, 5, 6)] == [0, 1, 1, 0]
    assert [overlay.said_at(at * NS) for at in (5, 6, 7, 9)] == ["", "good evening", "good evening", ""]
    plain = overlay.drawn(BLACK, 20 * NS)
    assert plain.any()  # the zones
    pictures = [overlay.drawn(BLACK, at * NS) for at in (1, 3, 7)]
    assert all(not np.array_equal(picture, plain) for picture in pictures)


def test_however_odd_a_place_is_it_is_drawn() -> None:
    boxes = [(0.0, 0.0, 0.0, 0.0), (0.99, 0.99, 0.5, 0.5), (-0.2, -0.2, 0.1, 0.1), (0.2, 0.5, -0.1, -0.1)]
    seen = tuple(DetectedObject(start_ns=0, end_ns=0, text="x" * 40, box=box) for box in boxes)
    overlay = Overlay([Objects(observations=seen, times_ns=(0,)), Phrases()])
    for shape in ((1, 1, 3), (2, 900, 3), (900, 2, 3)):
        assert overlay.drawn(np.zeros(shape, np.uint8), 0).shape == shape


def test_tracks_in_a_row_have_colours_far_apart() -> None:
    for one, other in pairwise(range(50)):
        assert np.abs(np.subtract(colour_of(one), colour_of(other))).sum() > 100


# --- films -----------------------------------------------------------------------------------------------


def test_a_film_keeps_the_time_of_each_picture_and_of_the_sound(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    times = [5.0, 5.04, 5.2, 5.2, 6.0, 6.9]  # one comes twice
    tone = (np.sin(np.arange(SOUND_RATE * 2) / SOUND_RATE * 2 * np.pi * 440) * 9000).astype(np.int16)
    with film_at(path, has_sound=True) as film:
        for number, at_s in enumerate(times):
            film.picture(int(at_s * NS), np.full((49, 65, 3), number * 40, np.uint8))
            if number == 0:
                film.sound(Audio(int(4.5 * NS), SOUND_RATE, tone[:SOUND_RATE]))
                film.sound(Audio(int(6.0 * NS), SOUND_RATE, tone[:SOUND_RATE]))  # half a second is missing
    assert film.num_pictures == 5
    assert [each.name for each in tmp_path.iterdir()] == ["a.mp4"]
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # a browser plays it before it has all of it
    with av.open(str(path)) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (video.width, video.height) == (64, 48)
        shown = [round(float(frame.time), 3) for frame in container.decode(video)]
        assert shown == [0.0, 0.04, 0.2, 1.0, 1.9]
        container.seek(0)
        heard = np.concatenate([frame.to_ndarray().reshape(-1) for frame in container.decode(sound)])
    loud = [float(np.abs(heard[int(at * SOUND_RATE) :][: SOUND_RATE // 10]).mean()) for at in (0.1, 0.7, 1.2)]
    assert loud[0] > 0.05 < loud[2]
    assert loud[1] < 0.005


def test_of_a_film_that_is_not_finished_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"the one before")
    with pytest.raises(ZeroDivisionError), film_at(path, has_sound=False) as film:
        film.picture(0, BLACK)
        raise ZeroDivisionError
    assert path.read_bytes() == b"the one before"
    with film_at(path, has_sound=False) as film:
        pass  # it has no pictures
    assert path.read_bytes() == b"the one before"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match="cannot write"), film_at(tmp_path / "no" / "a.mp4", has_sound=False) as film:
        film.picture(0, BLACK)


def test_a_picture_is_a_jpeg() -> None:
    image = np.zeros((24, 32, 3), np.uint8)
    image[..., 0] = 200
    read = cv2.imdecode(np.frombuffer(jpeg(image), np.uint8), cv2.IMREAD_COLOR)
    assert read.shape == (24, 32, 3)
    assert read[12, 16, 2] > 190  # red, as OpenCV has it
    assert read[12, 16, 0] < 10


def test_a_film_takes_no_place_that_is_no_files_and_goes_where_a_link_leads(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    for name in ("pipe.mp4", "folder.mp4"):
        with pytest.raises(UserError, match="is no file"), film_at(tmp_path / name, has_sound=False) as film:
            film.picture(0, BLACK)
        with pytest.raises(UserError, match="is no file"):
            check_place(tmp_path / name)
    assert (tmp_path / "pipe.mp4").is_fifo()
    (tmp_path / "real.mp4").write_bytes(b"old")
    (tmp_path / "link.mp4").symlink_to("real.mp4")
    with film_at(tmp_path / "link.mp4", has_sound=False) as film:
        film.picture(0, BLACK)
    assert (tmp_path / "link.mp4").is_symlink()
    assert (tmp_path / "real.mp4").read_bytes()[4:8] == b"ftyp"
    with pytest.raises(UserError, match="is the input itself"):
        check_place(tmp_path / "link.mp4", tmp_path / "real.mp4")
    with pytest.raises(UserError, match="cannot write"):
        check_place(tmp_path / ("a" * 300 + ".mp4"))
    with film_at(tmp_path / ("a" * 250 + ".mp4"), has_sound=False) as film:
        film.picture(0, BLACK)


def test_a_hole_in_a_stream_is_a_short_one_in_its_film(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with film_at(path, has_sound=False) as film:
        for at_s in (0.0, 1.0, 14 * 3600.0, 14 * 3600.0 + 1):
            film.picture(int(at_s * NS), BLACK)
    with av.open(str(path)) as container:
        assert [round(float(frame.time), 2) for frame in container.decode(video=0)] == [0.0, 1.0, 2.0, 3.0]


def test_what_no_font_can_draw_is_readable_all_the_same() -> None:
    own = ImageFont.load_default(20)
    assert writable("Café Ж 漢", own) == "Cafe ? ?"
    assert writable("plain", own) == "plain"
