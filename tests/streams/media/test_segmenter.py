"""Segments tile a stream, are the same every time, carry what decoders need, and survive what files do."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from media_zoo import jumping_ts, make

from streams.errors import UserError
from streams.media import demux, segmenter
from streams.media.probe import time_ns
from streams.media.segmenter import Cutter, probe, segments, stream_id
from streams.media.timestamps import Piece
from streams.records import EndOfStream, Packet, Segment, Track, encode

MS = 1_000_000


def all_of(path: Path, target_s: float = 0.5) -> tuple[list[Segment], EndOfStream]:
    *pieces, end = segments(str(path), stream="s", target_s=target_s)
    assert isinstance(end, EndOfStream)
    assert all(isinstance(piece, Segment) for piece in pieces)
    assert end.num_segments == len(pieces)
    return pieces, end  # type: ignore[return-value]


def assert_tiled(pieces: list[Segment], duration_ns: int) -> None:
    assert [piece.index for piece in pieces] == list(range(len(pieces)))
    at_ns = 0
    for piece in pieces:
        assert piece.start_ns == at_ns
        assert piece.duration_ns > 0
        at_ns += piece.duration_ns
    assert at_ns == duration_ns


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keyframes every 0.4 s, sound, captions in the picture's time."""
    captions = ((0.2, 0.9, "one"), (1.0, 1.6, "two"), (2.5, 9.0, "three"))
    path = tmp_path_factory.mktemp("film") / "film.mkv"
    options = {"g": "10", "keyint_min": "10", "sc_threshold": "0"}
    return make(path, video="libx264", audio="aac", captions=captions, options=options)


@given(target_s=st.floats(0.01, 5.0))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_intervals_tile_and_every_packet_is_owned_once(film: Path, target_s: float) -> None:
    pieces, end = all_of(film, target_s)
    assert_tiled(pieces, end.duration_ns)
    whole, _ = all_of(film, 100.0)
    (everything,) = whole
    for index, track in enumerate(everything.tracks):
        owned = [
            packet
            for piece in pieces
            for packet in piece.packets
            if packet.track == index
            and piece.start_ns
            <= time_ns(packet.pts, track.time_base, piece.origin_ns)
            < piece.start_ns + piece.duration_ns
        ]
        expected = [packet for packet in everything.packets if packet.track == index]
        early = sum(time_ns(packet.pts, track.time_base, everything.origin_ns) < 0 for packet in expected)
        assert owned == expected[early:]


def test_a_segment_ends_at_the_first_keyframe_at_or_after_the_target(film: Path) -> None:
    starts = {target_s: [piece.start_ns // MS for piece in all_of(film, target_s)[0]] for target_s in (0.4, 0.41, 0.9)}
    assert starts[0.4] == starts[0.41]  # half a frame of tolerance
    assert [now - before for before, now in zip(starts[0.4], starts[0.4][1:], strict=False)] == [400] * (
        len(starts[0.4]) - 1
    )
    assert [now - before for before, now in zip(starts[0.9], starts[0.9][1:], strict=False)] == [1200] * (
        len(starts[0.9]) - 1
    )


def test_the_same_file_gives_the_same_bytes(film: Path) -> None:
    first, second = ([encode(each) for each in segments(str(film), stream="s", target_s=0.7)] for _ in range(2))
    assert first == second


def test_segments_are_read_as_they_are_asked_for(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    num_read = 0
    stamp = demux.Clock.stamp

    def counted(clock: Any, packet: Any) -> Any:
        nonlocal num_read
        num_read += 1
        return stamp(clock, packet)

    monkeypatch.setattr(demux.Clock, "stamp", counted)
    reading = segments(str(film), stream="s", target_s=0.4)
    next(reading)
    read_for_one = num_read
    list(reading)
    assert 0 < read_for_one < num_read / 3


def test_tracks_say_what_a_decoder_needs(film: Path) -> None:
    pieces, _ = all_of(film)
    video, audio, captions = pieces[0].tracks
    assert (video.codec, video.width, video.height, video.pix_fmt) == ("h264", 64, 48, "yuv420p")
    assert video.frame_rate == (25, 1)
    assert (audio.codec, audio.sample_rate, audio.layout, audio.time_base) == ("aac", 48_000, "stereo", (1, 48_000))
    assert captions.kind == "subtitle"
    texts = [packet.data.decode() for piece in pieces for packet in piece.packets if packet.track == 2]
    assert texts == ["one", "two", "three"]
    assert all(piece.tracks == pieces[0].tracks for piece in pieces)


def test_open_groups_carry_the_next_keyframe_and_its_leading_pictures(tmp_path: Path) -> None:
    params = "keyint=10:min-keyint=10:scenecut=0:open-gop=1:bframes=3"
    pieces, end = all_of(make(tmp_path / "a.mkv", video="libx264", options={"x264-params": params}))
    assert_tiled(pieces, end.duration_ns)
    carried = []
    for piece in pieces[:-1]:
        times = [time_ns(packet.pts, piece.tracks[0].time_base, piece.origin_ns) for packet in piece.packets]
        assert min(times) >= piece.start_ns
        beyond = [at for at, at_ns in enumerate(times) if at_ns >= piece.start_ns + piece.duration_ns]
        carried += [piece.packets[at].keyframe for at in beyond]
        assert not beyond or beyond[-1] < len(times) - 1  # a picture of this segment is decoded after it
    assert carried
    assert all(carried)


def test_sound_reaches_beyond_both_ends(tmp_path: Path) -> None:
    pieces, _ = all_of(make(tmp_path / "a.ogg", audio="libopus"))
    for piece in pieces[1:-1]:
        times = [time_ns(packet.pts, piece.tracks[0].time_base, piece.origin_ns) for packet in piece.packets]
        assert times[0] <= piece.start_ns - 80 * MS
        assert sum(at_ns >= piece.start_ns + piece.duration_ns for at_ns in times) == 2


@pytest.mark.parametrize("codec,suffix", [("adpcm_ms", "wav"), ("wmav2", "asf")])
def test_sound_that_only_its_container_can_decode_becomes_pcm(codec: str, suffix: str, tmp_path: Path) -> None:
    path = make(tmp_path / f"a.{suffix}", audio=codec)
    pieces, _ = all_of(path)
    assert probe(str(path)).codecs == {"audio": (codec,)}
    assert (pieces[0].tracks[0].codec, pieces[0].tracks[0].time_base) == ("pcm_s16le", (1, 48_000))
    for piece in pieces:
        pts = [packet.pts for packet in piece.packets]
        ends = [packet.pts + len(packet.data) // 4 for packet in piece.packets]
        assert pts[1:] == ends[:-1]


def test_a_clock_that_starts_again_is_joined_and_noted(tmp_path: Path) -> None:
    pieces, end = all_of(jumping_ts(tmp_path / "a.ts"))
    assert_tiled(pieces, end.duration_ns)
    assert 3_900 * MS < end.duration_ns < 4_200 * MS
    flaws = [flaw for piece in pieces for flaw in piece.flaws]
    assert sum("the clock jumps by" in flaw for flaw in flaws) == 1


def test_a_file_cut_short_ends_with_a_flaw(tmp_path: Path) -> None:
    path = make(
        tmp_path / "a.mp4", video="libx264", options={"g": "10"}, seconds=6, container_options={"movflags": "faststart"}
    )
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    pieces, end = all_of(path)
    assert_tiled(pieces, end.duration_ns)
    assert any(re.match(r"ends at \d\.\d+ s, its header promises 6\.\d+ s", flaw) for flaw in end.flaws)


@pytest.mark.parametrize(
    "name,content,says",
    [
        ("empty.mp4", b"", "cannot be opened as media"),
        ("text.mp4", b"this is not a film\n" * 50, "cannot be opened as media"),
        ("notes.txt", b"this is not a film\n" * 50, "no container of media that is read from there"),
        ("no-such-dir/film.mp4", None, "no such file"),
    ],
)
def test_what_is_no_media_is_refused_in_one_line(name: str, content: bytes | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    for read in (lambda: probe(str(path)), lambda: list(segments(str(path), stream="s"))):
        with pytest.raises(UserError, match=says) as refused:
            read()
        assert "\n" not in str(refused.value)
        assert str(path) in str(refused.value)


def test_a_target_out_of_range_is_refused(film: Path) -> None:
    for target_s in (0.0, -1.0, 1e9, float("nan")):
        with pytest.raises(UserError, match="segment duration"):
            next(segments(str(film), stream="s", target_s=target_s))


def test_probe_names_codecs_and_duration(film: Path) -> None:
    info = probe(str(film))
    assert info.codecs == {"video": ("h264",), "audio": ("aac",), "subtitle": ("srt",)}
    assert info.duration_s is not None and 2.9 < info.duration_s < 10


def test_stream_ids_follow_content_and_target(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"a" * 3_000_000)
    two.write_bytes(b"a" * 3_000_000)
    assert re.fullmatch(r"f[a-z2-7]{26}", stream_id(one, 5.0))
    assert stream_id(one, 5.0) == stream_id(two, 5.0) != stream_id(one, 4.0)
    two.write_bytes(b"a" * 2_999_999 + b"b")
    assert stream_id(one, 5.0) != stream_id(two, 5.0)
    with pytest.raises(UserError, match="cannot be read"):
        stream_id(tmp_path / "none", 5.0)


# --- the cutter alone, with made-up packets ----------------------------------------------------------------

VIDEO = Track(kind="video", codec="x", time_base=(1, 1000), frame_rate=(10, 1))
AUDIO = Track(kind="audio", codec="x", time_base=(1, 1000), sample_rate=1000)


def piece(track: int, at_ms: int, keyframe: bool = False, lasting_ms: int = 100, num_bytes: int = 10) -> Piece:
    packet = Packet(track, at_ms, at_ms, lasting_ms, keyframe, bytes(num_bytes))
    return Piece(packet, at_ms * MS, (at_ms + lasting_ms) * MS, at_ms * MS)


def cut_up(pieces: list[Piece], tracks: tuple[Track, ...], target_s: float = 1.0) -> list[Segment]:
    cutter = Cutter("s", tracks, 0, round(target_s * 1e9), [])
    made = [segment for each in pieces for segment in cutter.push(each)]
    made += cutter.finish()
    assert_tiled(made, max(each.end_ns for each in pieces))
    return made


def test_without_keyframes_it_is_cut_all_the_same_and_says_what_is_lost() -> None:
    made = cut_up([piece(0, at, keyframe=at in (0, 150_000)) for at in range(0, 200_000, 100)], (VIDEO,))
    assert [each.start_ns // MS for each in made] == [0, 60_000, 120_000, 150_000]
    assert [len(each.packets) for each in made] == [600, 0, 0, 500]
    assert made[1].flaws == ("600 pictures cannot be decoded: no keyframe before them in this segment",)


def test_a_long_hole_is_cut_into_empty_segments_without_loss() -> None:
    made = cut_up([piece(0, at, keyframe=True) for at in (0, 100, 130_000, 130_100)], (VIDEO,), 5.0)
    assert [len(each.packets) for each in made] == [2, 0, 0, 2]
    assert [each.flaws for each in made] == [()] * 4


def test_a_segment_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmenter, "MAX_SEGMENT_BYTES", 10_000)
    made = cut_up([piece(0, at, keyframe=True, num_bytes=3_000) for at in range(0, 2_000, 100)], (VIDEO,), 5.0)
    assert all(len(each.packets) <= 4 for each in made)
    assert sum(len(each.packets) for each in made) == 20


def test_what_lags_too_far_behind_is_dropped_and_counted() -> None:
    seen = [piece(0, at, keyframe=at % 1000 == 0) for at in range(0, 100_000, 100)]
    heard = [piece(1, at, keyframe=True) for at in range(0, 100_000, 100)]
    made = cut_up(seen + heard, (VIDEO, AUDIO))
    assert sum(packet.track == 0 for each in made for packet in each.packets) == 1000
    assert any(re.match(r"\d+ packets came too late", flaw) for each in made for flaw in each.flaws)
    together = cut_up(sorted(seen + heard, key=lambda each: each.start_ns), (VIDEO, AUDIO))
    assert not any(each.flaws for each in together)


def test_sound_that_outlasts_the_picture_goes_on_in_bounded_segments() -> None:
    made = cut_up(
        [piece(0, 0, keyframe=True)] + [piece(1, at, keyframe=True) for at in range(0, 300_000, 100)], (VIDEO, AUDIO)
    )
    assert all(each.duration_ns <= 60_000 * MS for each in made)
    assert len(made) == 5


# --- live streams and tracks that change ---------------------------------------------------------------------

WIDE = Track(kind="video", codec="x", time_base=(1, 1000), frame_rate=(10, 1), width=1920)
LOUD = Track(kind="audio", codec="x", time_base=(1, 1000), sample_rate=2000)


def live(target_s: float = 1.0, **more: int) -> Cutter:
    return Cutter("s", (VIDEO, AUDIO), 0, round(target_s * 1e9), [], patience_ns=2_000 * MS, **more)


def both(from_ms: int, to_ms: int, key_ms: int = 1000) -> list[Piece]:
    """Pictures and sound, ten a second each, a keyframe every `key_ms`."""
    return [
        piece(track, at, keyframe=track == 1 or at % key_ms == 0)
        for at in range(from_ms, to_ms, 100)
        for track in (0, 1)
    ]


def pushed(cutter: Cutter, pieces: list[Piece]) -> list[Segment]:
    return [segment for each in pieces for segment in cutter.push(each)]


def counts(segment: Segment) -> tuple[int, int]:
    return tuple(sum(packet.track == track for packet in segment.packets) for track in (0, 1))  # type: ignore[return-value]


def test_a_live_segment_is_given_with_the_second_packet_of_sound_after_its_end() -> None:
    cutter = live()
    assert pushed(cutter, both(0, 1100)) == []
    assert pushed(cutter, [piece(0, 1100)]) == []
    (made,) = pushed(cutter, [piece(1, 1100)])
    assert (made.start_ns, made.duration_ns) == (0, 1000 * MS)


def test_live_sound_that_stops_is_not_waited_for_long() -> None:
    cutter = live()
    pushed(cutter, both(0, 2000))
    made = pushed(cutter, [piece(0, at, keyframe=at % 1000 == 0) for at in range(2000, 9000, 100)])
    assert [each.start_ns // MS for each in made] == [1000, 2000, 3000, 4000, 5000]
    assert [counts(each) for each in made] == [(10, 12)] + [(10, 2)] * 4  # two from before its start


def test_a_live_picture_that_stops_is_not_waited_for_long() -> None:
    cutter = live()
    pushed(cutter, both(0, 2000))
    made = pushed(cutter, [piece(1, at, keyframe=True) for at in range(2000, 9000, 100)])
    ends_ms = [(each.start_ns + each.duration_ns) // MS for each in made]
    assert ends_ms == sorted(ends_ms)
    assert 8_900 - ends_ms[-1] <= 3_200  # the target and the patience
    assert sum(counts(each)[0] for each in made) == 10
    assert max(each.duration_ns for each in made) <= 1_100 * MS


def test_a_cutter_goes_on_at_any_number_and_time() -> None:
    cutter = live(index=7, start_ns=50_000 * MS)
    made = pushed(cutter, both(50_000, 54_000)) + list(cutter.finish())
    assert [(each.index, each.start_ns // MS) for each in made] == [(7, 50_000), (8, 51_000), (9, 52_000), (10, 53_000)]


def test_a_picture_size_that_changes_starts_a_segment() -> None:
    pieces = [
        replace(each, track=WIDE) if (each.packet.track, each.start_ns) == (0, 2500 * MS) else each
        for each in [*both(0, 2500), piece(0, 2500, keyframe=True), piece(1, 2500), *both(2600, 5000)]
    ]
    made = cut_up(pieces, (VIDEO, AUDIO))
    assert [each.start_ns // MS for each in made] == [0, 1000, 2000, 2500, 4000]
    assert [each.tracks[0].width for each in made] == [0, 0, 0, 1920, 1920]
    assert [counts(each)[0] for each in made] == [10, 10, 5, 15, 10]
    assert all(each.tracks[1] == AUDIO for each in made)
    assert not any(each.flaws for each in made)


def test_sound_that_changes_starts_a_segment_which_carries_the_pictures_since_the_keyframe() -> None:
    pieces = [
        replace(each, track=LOUD) if (each.packet.track, each.start_ns) == (1, 2500 * MS) else each
        for each in both(0, 5000)
    ]
    made = cut_up(pieces, (VIDEO, AUDIO))
    assert [each.start_ns // MS for each in made] == [0, 1000, 2000, 2500, 4000]
    assert [each.tracks[1].sample_rate for each in made] == [1000, 1000, 1000, 2000, 2000]
    starting = made[3]
    assert starting.packets[0].keyframe
    assert [packet.pts for packet in starting.packets if packet.track == 0] == list(range(2000, 4000, 100))
    assert min(packet.pts for packet in starting.packets if packet.track == 1) == 2500
    assert max(packet.pts for packet in made[2].packets if packet.track == 1) == 2400
    assert counts(made[4])[0] == 10
    assert not any(each.flaws for each in made)


def test_what_changes_before_it_began_costs_no_segment() -> None:
    pieces = [piece(1, at, keyframe=True) for at in range(0, 500, 100)]
    pieces += [replace(piece(0, 500, keyframe=True), track=WIDE), piece(1, 500), *both(600, 1200)]
    (made, _) = cut_up(pieces, (VIDEO, AUDIO))
    assert made.tracks == (WIDE, AUDIO)


def test_captured_is_when_the_start_would_have_come_with_the_least_delay() -> None:
    cutter = live()
    now_ns = 1_700_000_000_000_000_000
    delays_ms = iter([900, 800, 700, 600, 500, 400, 300, 200, 100, 30] + [50] * 10 + [3000] * 20)
    arrived = [replace(each, arrived_ns=now_ns + each.start_ns + next(delays_ms) * MS) for each in both(0, 2000)]
    made = pushed(cutter, arrived) + list(cutter.finish())
    assert [(each.captured_ns - now_ns) // MS for each in made] == [30, 4000]
    assert cutter.received_ns == now_ns + 5000 * MS
    assert live(captured_ns=now_ns).captured_ns == now_ns
