"""What is decoded for the pictures that were asked for, and that they are those a whole decode gives."""

from pathlib import Path
from typing import Any

import av
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from media_zoo import make

from engine.spec.operator import Media
from operators.media.choosing import Shown, chosen, runs_for
from operators.media.decoders import Decoding
from operators.media.pictures import FrameSpec, each_picture, frames, picture_at
from operators.media.references import unreferenced
from operators.testing.film import segments_of
from streams.records import Packet, Track

MS = 1_000_000
HEVC = "log-level=none:keyint=20:min-keyint=20:scenecut=0:bframes=4:b-pyramid=1"
# name: (file, codec, options, the largest share of all packets that may be decoded for a picture each 0.4 s)
STREAMS: dict[str, tuple[str, str, dict[str, str], float]] = {
    "h264, closed groups": ("a.mp4", "libx264", {"g": "25", "bf": "3"}, 0.75),
    "h264, open groups": (
        "a.mkv",
        "libx264",
        {"x264-params": "keyint=10:min-keyint=10:scenecut=0:open-gop=1:bframes=3:b-pyramid=normal"},
        0.75,
    ),
    "h264, start codes": ("a.ts", "libx264", {"g": "25", "bf": "3"}, 0.75),
    "h264, one group": ("a.mp4", "libx264", {"g": "1000", "bf": "7", "x264-params": "scenecut=0:b-adapt=0"}, 0.5),
    "h264, no b": ("a.mp4", "libx264", {"g": "25", "tune": "zerolatency"}, 1.0),
    "hevc": ("a.mp4", "libx265", {"x265-params": HEVC}, 0.75),
    "hevc, open groups": ("a.mkv", "libx265", {"x265-params": HEVC + ":open-gop=1"}, 0.75),
    "hevc, start codes": ("a.ts", "libx265", {"x265-params": HEVC}, 0.75),
    "hevc, temporal layers": ("a.mp4", "libx265", {"x265-params": HEVC + ":temporal-layers=3"}, 0.9),
    "mpeg2": ("a.mpg", "mpeg2video", {"g": "12", "bf": "2"}, 0.75),
    "mpeg4": ("a.avi", "mpeg4", {"g": "12", "bf": "2"}, 0.9),
    "vp9": ("a.webm", "libvpx-vp9", {"g": "15", "cpu-used": "8"}, 1.0),
    "av1": ("a.mkv", "libsvtav1", {"g": "15", "preset": "12", "svtav1-params": "fast-decode=1"}, 1.0),
    "mjpeg": ("a.avi", "mjpeg", {}, 0.2),
}


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The pts of what decoders are given."""
    seen: list[int] = []
    run = Decoding.run

    def counted(self: Decoding, packets: Any) -> Any:
        given = list(packets)
        seen.extend(packet.pts for packet in given)
        return run(self, given)

    monkeypatch.setattr(Decoding, "run", counted)
    return seen


def written(path: Path, codec: str, options: dict[str, str]) -> Path:
    if codec not in av.codecs_available:
        pytest.skip(f"this build of FFmpeg has no {codec}")
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    return make(path, video=codec, options=options, pix_fmt=pix_fmt, size=(128, 80), seconds=4)


@pytest.mark.parametrize("name", STREAMS)
def test_the_pictures_asked_for_are_those_of_a_whole_decode(name: str, tmp_path: Path, fed: list[int]) -> None:
    file, codec, options, most = STREAMS[name]
    path = written(tmp_path / file, codec, options)
    for segment_s in (0.5, 10.0):
        pieces = segments_of(path, segment_s)
        num_packets = sum(len(piece.packets) for piece in pieces)
        for spec in (
            FrameSpec(interval_ns=400 * MS),
            FrameSpec(interval_ns=1000 * MS, pixels="gray8"),
            FrameSpec(interval_ns=1000 * MS, slack_ns=900 * MS),
            FrameSpec(interval_ns=90 * MS),
            FrameSpec(moments_ns=(0, 1234 * MS, 1235 * MS, 3333 * MS)),
        ):
            whole = [frames(Media(piece), FrameSpec(pixels=spec.pixels)) for piece in pieces]
            fed.clear()
            some = [frames(Media(piece), spec) for piece in pieces]
            assert sum(len(each.times_ns) for each in some) > 0
            assert len(fed) <= num_packets  # nothing was decoded twice
            if spec.interval_ns == 400 * MS:
                assert len(fed) <= most * num_packets
            for every, each in zip(whole, some, strict=True):
                at = np.flatnonzero(np.isin(every.times_ns, each.times_ns))
                assert every.times_ns[at].tolist() == each.times_ns.tolist()
                assert not len(at) or np.array_equal(every.images[at], each.images)


def test_the_picture_of_a_moment_is_the_one_that_is_seen_then(tmp_path: Path, fed: list[int]) -> None:
    path = written(tmp_path / "a.mp4", "libx264", {"g": "20", "bf": "2"})
    (piece,) = segments_of(path, 10.0)
    moments = (-5 * MS, 39 * MS, 41 * MS, 79 * MS, 2000 * MS, 99_000 * MS)
    seen = frames(Media(piece), FrameSpec(moments_ns=moments))
    assert seen.times_ns.tolist() == [0, 40 * MS, 2000 * MS, 3960 * MS]
    for at_ns, image in zip(seen.times_ns.tolist(), seen.images, strict=True):
        when, picture = picture_at(piece, at_ns + 39 * MS)
        assert when == at_ns
        assert np.array_equal(picture, image)
    fed.clear()
    assert not len(frames(Media(piece), FrameSpec(moments_ns=())).times_ns)
    assert not fed


def test_of_damage_the_next_picture_stands_for_the_one_of_a_moment(tmp_path: Path) -> None:
    (piece, *_) = segments_of(written(tmp_path / "a.avi", "mjpeg", {}), 10.0)
    packets = list(piece.packets)
    packets[25] = msgspec.structs.replace(packets[25], data=b"\0" * 40)
    damaged = msgspec.structs.replace(piece, packets=tuple(packets))
    for moments, expected in [((1010,), [1040]), ((500, 1010, 1030), [520, 1040]), ((500,), [480])]:
        spec = FrameSpec(moments_ns=tuple(at * MS for at in moments))
        assert frames(Media(damaged), spec).times_ns.tolist() == [at * MS for at in expected]


def test_a_keyframe_within_the_slack_is_decoded_alone(tmp_path: Path, fed: list[int]) -> None:
    path = written(tmp_path / "a.mp4", "libx264", {"g": "20", "bf": "2", "x264-params": "scenecut=0"})
    (piece,) = segments_of(path, 10.0)
    some = frames(Media(piece), FrameSpec(interval_ns=1000 * MS, slack_ns=800 * MS))
    assert some.times_ns.tolist() == [0, 1600 * MS, 2400 * MS, 3200 * MS]
    assert len(fed) == 4
    fed.clear()
    assert frames(Media(piece), FrameSpec(interval_ns=1000 * MS)).times_ns.tolist() == [
        0,
        1000 * MS,
        2000 * MS,
        3000 * MS,
    ]
    assert 4 < len(fed) < len(piece.packets) / 2


def test_where_what_was_chosen_is_damaged_the_next_one_is_taken(tmp_path: Path) -> None:
    (piece, *_) = segments_of(written(tmp_path / "a.avi", "mjpeg", {}), 10.0)
    packets = list(piece.packets)
    packets[25] = msgspec.structs.replace(packets[25], data=b"\0" * 40)
    damaged = msgspec.structs.replace(piece, packets=tuple(packets))
    some = frames(Media(damaged), FrameSpec(interval_ns=1000 * MS))
    assert some.times_ns.tolist() == [0, 1040 * MS, 2000 * MS, 3000 * MS]


def test_stages_that_ask_together_get_what_they_get_apart(tmp_path: Path) -> None:
    path = written(tmp_path / "a.mp4", "libx264", {"g": "20", "bf": "2"})
    specs = [
        FrameSpec(interval_ns=400 * MS, max_width=64),
        FrameSpec(interval_ns=1000 * MS, slack_ns=500 * MS),
        FrameSpec(interval_ns=300 * MS, pixels="gray8"),
        FrameSpec(max_width=32),
        FrameSpec(moments_ns=(500 * MS, 1700 * MS, 1701 * MS)),
    ]
    for piece in segments_of(path, 1.0):
        for asked in (specs[:3], specs[2:], specs):
            together = FrameSpec.decode(piece, asked)
            for spec in asked:
                alone = FrameSpec.decode(piece, [spec])[spec]
                assert together[spec].times_ns.tolist() == alone.times_ns.tolist()
                assert np.array_equal(together[spec].images, alone.images)


# --- the rules by themselves --------------------------------------------------------------------------------


@given(
    times=st.lists(st.integers(0, 200), unique=True, min_size=1).map(sorted),
    keys=st.sets(st.integers(0, 200)),
    first=st.integers(0, 50),
    interval=st.integers(1, 40),
    slack=st.integers(0, 39),
)
def test_every_multiple_has_its_picture(
    times: list[int], keys: set[int], first: int, interval: int, slack: int
) -> None:
    shown = [Shown(at, at in keys) for at in times]
    taken = chosen(shown, first, interval, min(slack, interval - 1))
    assert taken == sorted(set(taken))
    assert set(taken) <= set(times)
    assert chosen(shown, first, 0) == times
    next_ns = first
    for at in taken:
        before = [each for each in times if next_ns <= each <= at]
        if len(before) > 1:  # the first was passed over: for a keyframe, the first one, within the slack
            assert at in keys
            assert at <= next_ns + slack
            assert not keys & set(before[:-1])
        next_ns = (at // interval + 1) * interval
    assert not [each for each in times if each >= next_ns]


@given(
    groups=st.lists(st.lists(st.tuples(st.integers(-3, 20), st.booleans()), max_size=6), min_size=1, max_size=5),
    opens=st.booleans(),
    data=st.data(),
)
def test_what_a_picture_refers_to_is_decoded_before_it(
    groups: list[list[tuple[int, bool]]], opens: bool, data: st.DataObject
) -> None:
    packets: list[Packet] = []
    free: list[bool] = []
    group_of: list[int] = []
    for number, others in enumerate(groups):
        packets.append(Packet(0, number * 100, 0, 1, number > 0 or opens, b"x"))
        free.append(False)
        group_of.append(number)
        for away, is_free in others:
            packets.append(Packet(0, number * 100 + away, 0, 1, False, b"x"))
            free.append(is_free)
            group_of.append(number)
    wanted = data.draw(st.sets(st.integers(0, len(packets) - 1)))
    runs = runs_for(packets, free, wanted)
    assert [at for run in runs for at in run] == sorted({at for run in runs for at in run})
    assert wanted <= {at for run in runs for at in run}
    assert all(run[0] == group_of.index(group_of[run[0]]) for run in runs)  # from the beginning of a group
    for run in runs:
        for at in run:
            if at in wanted:
                leads = group_of[at] > 0 and packets[at].pts < group_of[at] * 100
                first = group_of.index(group_of[at] - leads)
                assert {each for each in range(first, at) if not free[each]} <= set(run)
            else:
                assert not free[at]
    assert runs_for(packets, free, range(len(packets))) == [list(range(len(packets)))]


@pytest.mark.parametrize("codec", ["h264", "hevc", "mpeg2video", "mpeg4", "vp9"])
@given(data=st.lists(st.binary(max_size=60), max_size=4), extra=st.binary(max_size=24))
def test_packets_of_noise_are_read_without_an_error(codec: str, data: list[bytes], extra: bytes) -> None:
    track = Track(kind="video", codec=codec, time_base=(1, 25), extradata=extra)
    packets = [Packet(0, at, at, 1, at == 0, each) for at, each in enumerate(data)]
    assert len(unreferenced(track, packets)) == len(packets)


def test_a_segment_without_a_keyframe_is_decoded_from_its_beginning() -> None:
    packets = [Packet(0, at, at, 1, False, b"x") for at in range(4)]
    assert runs_for(packets, [False] * 4, {2}) == [[0, 1, 2]]
    assert runs_for(packets, [False] * 4, set()) == []
    assert runs_for([], [], set()) == []


@pytest.mark.parametrize("name", ["raw.h264", "three.mkv", "packed.avi"])
def test_timestamps_that_are_wrong_cost_no_picture_and_depend_on_nobody(name: str, tmp_path: Path) -> None:
    """Made up in the order of decoding; three pictures each at one time; several pictures in a packet."""
    if name == "raw.h264":
        path = make(tmp_path / name, video="libx264", options={"g": "25", "bf": "3"}, seconds=4, format="h264")
        pieces = segments_of(path, 10.0)
    else:
        path = make(tmp_path / "a.avi", video="mpeg4", options={"g": "12", "bf": "2"}, seconds=4)
        pieces = segments_of(path, 10.0)
        packets = list(pieces[0].packets)
        if name == "three.mkv":
            packets = [msgspec.structs.replace(each, pts=each.pts // 3 * 3) for each in packets]
        else:
            both = packets[2].data + packets[3].data
            packets = [*packets[:2], msgspec.structs.replace(packets[2], data=both), *packets[4:]]
        pieces = [msgspec.structs.replace(pieces[0], packets=tuple(packets))]
    specs = [FrameSpec(interval_ns=120 * MS), FrameSpec(interval_ns=400 * MS), FrameSpec(interval_ns=80 * MS)]
    for piece in pieces:
        together = FrameSpec.decode(piece, specs)
        for spec in specs:
            alone = FrameSpec.decode(piece, [spec])[spec]
            assert together[spec].times_ns.tolist() == alone.times_ns.tolist() == sorted(set(alone.times_ns.tolist()))
            assert np.array_equal(together[spec].images, alone.images)
        if name == "raw.h264":
            times = [at_ns for at_ns, _ in each_picture(piece)]
            assert times == sorted(set(times))
            assert len(times) == len(piece.packets)
