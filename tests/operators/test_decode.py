"""Decoding segments gives what decoding the whole file gives: each picture once, sound without a seam."""

import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from media_zoo import make, mutated, whole_pictures, whole_sound
from numpy.typing import NDArray

from engine.spec.operator import Media
from operators.media.decoders import Decoding, decode_path
from operators.media.pictures import FrameSpec, frames
from operators.media.sound import AudioSpec, audio
from streams.errors import Permanent, UserError
from streams.media.segmenter import segments
from streams.records import EndOfStream, Segment

GRAY = FrameSpec(pixels="gray8")

OPEN_GOP = {"x264-params": "keyint=10:min-keyint=10:scenecut=0:open-gop=1:bframes=3:b-pyramid=normal"}
VIDEOS: dict[str, tuple[str, dict[str, Any]]] = {
    "closed groups": ("a.mp4", {"video": "libx264", "audio": "aac", "options": {"g": "12", "bf": "2"}}),
    "open groups": ("a.mkv", {"video": "libx264", "audio": "aac", "options": OPEN_GOP}),
    "open groups, mp4": ("a.mp4", {"video": "libx264", "options": OPEN_GOP}),
    "mpeg-ts": ("a.ts", {"video": "libx264", "audio": "aac", "options": {"g": "12"}}),
    "variable rate": (
        "a.mp4",
        {"video": "libx264", "options": {"g": "8"}, "times": lambda i: i / 20 + (i % 5) ** 2 / 200},
    ),
    "mpeg4": ("a.avi", {"video": "mpeg4", "audio": "libmp3lame", "options": {"g": "12", "bf": "2"}}),
    "vp9": ("a.webm", {"video": "libvpx-vp9", "audio": "libopus", "options": {"g": "15", "cpu-used": "8"}}),
    "10 bits": ("a.mp4", {"video": "libx264", "pix_fmt": "yuv420p10le", "options": {"g": "12"}}),
    "odd size": ("a.mkv", {"video": "libx264", "pix_fmt": "yuv444p", "size": (67, 35), "options": {"g": "12"}}),
    "gray": ("a.mkv", {"video": "ffv1", "pix_fmt": "gray"}),
    "one picture": ("a.mp4", {"video": "libx264", "num_pictures": 1}),
    "all keyframes": ("a.avi", {"video": "mjpeg", "pix_fmt": "yuvj420p"}),
    "late sound": ("a.mp4", {"video": "libx264", "audio": "aac", "options": {"g": "12"}, "audio_delay_s": 0.7}),
    "mpeg2": ("a.mpg", {"video": "mpeg2video", "audio": "mp2", "options": {"g": "10", "bf": "2"}}),
}
SOUNDS: dict[str, tuple[str, dict[str, Any]]] = {
    "aac": ("a.m4a", {"audio": "aac"}),
    "aac, milliseconds": ("a.mkv", {"audio": "aac", "rate": 44_100}),
    "aac, mpeg-ts": ("a.ts", {"audio": "aac", "rate": 44_100}),
    "aac, flv": ("a.flv", {"audio": "aac", "rate": 44_100}),
    "mp3": ("a.mp3", {"audio": "libmp3lame", "rate": 44_100}),
    "opus": ("a.ogg", {"audio": "libopus"}),
    "opus, milliseconds": ("a.webm", {"audio": "libopus"}),
    "flac": ("a.flac", {"audio": "flac", "rate": 44_100}),
    "pcm": ("a.wav", {"audio": "pcm_s16le", "rate": 22_050}),
    "pcm, 16 kHz": ("a.wav", {"audio": "pcm_s16le", "rate": 16_000}),
    "adpcm": ("a.wav", {"audio": "adpcm_ms", "rate": 44_100}),
    "wma": ("a.asf", {"audio": "wmav2", "rate": 16_000}),
    "ac3 with video": ("a.ts", {"audio": "ac3", "video": "libx264", "options": {"g": "12", "tune": "zerolatency"}}),
}


def cut(path: Path, target_s: float = 0.5) -> list[Segment]:
    return [each for each in segments(str(path), stream="s", target_s=target_s) if isinstance(each, Segment)]


@pytest.mark.parametrize("name", VIDEOS)
def test_every_picture_appears_once_and_as_in_the_whole_file(name: str, tmp_path: Path) -> None:
    file, how = VIDEOS[name]
    path = make(tmp_path / file, **how)
    whole = whole_pictures(path)
    pieces = cut(path)
    assert len(pieces) > 3 or name == "one picture"
    decoded = [frames(Media(piece), GRAY) for piece in pieces]
    times = np.concatenate([each.times_ns for each in decoded]) + pieces[0].origin_ns
    assert np.allclose(times / 1e9, [at_s for at_s, _ in whole], atol=2e-6)
    images = [image for each in decoded for image in each.images]
    assert all(np.array_equal(image, expected) for image, (_, expected) in zip(images, whole, strict=True))


@pytest.mark.parametrize("name", SOUNDS)
def test_sound_of_the_segments_is_the_sound_of_the_file(name: str, tmp_path: Path) -> None:
    file, how = SOUNDS[name]
    path = make(tmp_path / file, **how)
    pieces = cut(path)
    assert len(pieces) > 3
    heard = [audio(Media(piece), AudioSpec()) for piece in pieces]
    starts = [each.start_ns for each in heard]
    ends = [each.start_ns + len(each.samples) * 62_500 for each in heard]
    assert ends[:-1] == starts[1:]
    got = np.concatenate([each.samples for each in heard]).astype(int)
    whole = whole_sound(path, 16_000).astype(int)
    first = 1 if 0 < starts[0] <= 62_500 else 0  # a clock that does not count samples: sample 0 is just before time 0
    count = min(len(got), len(whole) - first)
    assert abs(len(got) + first - len(whole)) <= 160
    assert count > 16_000 * 2.9
    # the outermost milliseconds differ: there the filter reaches beyond the sound
    assert np.abs(got[80 : count - 80] - whole[first + 80 : first + count - 80]).max() <= (60 if "video" in how else 40)


def test_rotation_is_applied_before_scaling(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", video="libx264", size=(96, 48), rotate=90, options={"g": "12"})
    (piece, *_) = cut(path)
    assert piece.tracks[0].rotation == 90
    upright = frames(Media(piece), GRAY)
    assert upright.images.shape[1:] == (96, 48)
    assert np.array_equal(upright.images[0], np.rot90(whole_pictures(path)[0][1]))
    assert upright.images[0][-8:, :8].mean() > 200  # the block stood top left before
    assert frames(Media(piece), FrameSpec(max_width=24)).images.shape[1:] == (48, 24, 3)


def test_one_decode_serves_all_demands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (piece, *_) = cut(make(tmp_path / "a.mp4", video="libx264", audio="aac"), 5.0)
    runs: list[str] = []
    run = Decoding.run
    monkeypatch.setattr(Decoding, "run", lambda self, packets: runs.append(self.track.kind) or run(self, packets))
    small = FrameSpec(interval_ns=1_000_000_000, max_width=32)
    media = Media.decoded(piece, (GRAY, small, AudioSpec(), AudioSpec(8000)))
    assert len(frames(media, GRAY).times_ns) == 75
    assert frames(media, small).times_ns.tolist() == [0, 1_000_000_000, 2_000_000_000]
    assert frames(media, small).images.shape == (3, 24, 32, 3)
    assert len(audio(media, AudioSpec()).samples) == 2 * len(audio(media, AudioSpec(8000)).samples)
    assert frames(media, FrameSpec(max_width=16)).images.shape == (75, 12, 16, 3)  # not demanded: decoded again
    assert runs == ["video", "audio", "video"]


def test_the_grid_of_pictures_does_not_depend_on_where_segments_are_cut(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", video="libx264", options={"g": "5"})
    spec = FrameSpec(interval_ns=300_000_000)
    taken = [
        np.concatenate([frames(Media(piece), spec).times_ns for piece in cut(path, target_s)]).tolist()
        for target_s in (0.2, 0.6, 5.0)
    ]
    assert taken[0] == taken[1] == taken[2]
    assert taken[0][:4] == [0, 320_000_000, 600_000_000, 920_000_000]


def test_a_used_decoder_gives_what_a_fresh_one_gives(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mkv", video="libx264", options=OPEN_GOP)
    pieces = cut(path)
    used = [frames(Media(piece), GRAY).images for piece in [*pieces[::-1], *pieces]][len(pieces) :]
    for piece, images in zip(pieces, used, strict=True):
        fresh: list[NDArray[np.uint8]] = []
        thread = threading.Thread(target=lambda p=piece, f=fresh: f.append(frames(Media(p), GRAY).images))  # type: ignore[misc]
        thread.start()
        thread.join()
        assert np.array_equal(fresh[0], images)


def test_no_track_gives_nothing(tmp_path: Path) -> None:
    (heard, *_) = cut(make(tmp_path / "a.wav", audio="pcm_s16le"))
    assert frames(Media(heard), FrameSpec()).images.shape == (0, 0, 0, 3)
    (seen, *_) = cut(make(tmp_path / "a.mp4", video="libx264"))
    assert audio(Media(seen), AudioSpec()).samples.shape == (0,)


def test_partial_damage_costs_the_damaged_pictures_only_and_total_damage_says_where(tmp_path: Path) -> None:
    (piece, *_) = cut(make(tmp_path / "a.avi", video="mjpeg", audio="aac", pix_fmt="yuvj420p"))
    packets = [msgspec.structs.replace(each, data=b"\0" * 40) if each.track == 0 else each for each in piece.packets]
    partly = msgspec.structs.replace(piece, packets=(*piece.packets[:5], *packets[5:]))
    assert len(frames(Media(partly), GRAY).times_ns) == 5
    with pytest.raises(Permanent, match=r"mjpeg packets .* at byte [1-9]\d*, media time 0\.000 s"):
        frames(Media(msgspec.structs.replace(piece, packets=tuple(packets))), GRAY)
    assert len(audio(Media(msgspec.structs.replace(piece, packets=tuple(packets))), AudioSpec()).samples) > 0
    lost = tuple(msgspec.structs.replace(each, data=b"\xff" * 9) for each in piece.packets)
    with pytest.raises(Permanent, match="aac packets"):
        audio(Media(msgspec.structs.replace(piece, packets=lost)), AudioSpec())


def test_an_unknown_codec_is_permanent(tmp_path: Path) -> None:
    (piece, *_) = cut(make(tmp_path / "a.mp4", video="libx264"))
    odd = msgspec.structs.replace(piece.tracks[0], codec="no_such_codec")
    with pytest.raises(Permanent, match="no such decoder"):
        frames(Media(msgspec.structs.replace(piece, tracks=(odd,))), GRAY)
    assert decode_path(piece.tracks[0]) == frames(Media(piece), GRAY).path == "software h264"
    assert decode_path(odd).startswith("none:")


@pytest.mark.parametrize("file", ["a.mp4", "a.mkv", "a.ts"])
def test_damaged_files_give_segments_and_gaps_but_never_another_error(
    file: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = {"g": "10", "bf": "2"}
    data = make(tmp_path / file, video="libx264", audio="aac", size=(32, 32), options=options, seconds=2).read_bytes()
    damaged = [data[: len(data) * part // 40] for part in range(40)] + [mutated(data, seed) for seed in range(60)]
    num_decoded = num_refused = num_lost = 0
    for number, content in enumerate(damaged):
        path = tmp_path / f"{number}-{file}"
        path.write_bytes(content)
        try:
            for index, each in enumerate(segments(str(path), stream="s", target_s=0.5)):
                assert index < 60
                if isinstance(each, EndOfStream):
                    break
                for look in (lambda media: frames(media, GRAY), lambda media: audio(media, AudioSpec())):
                    try:
                        look(Media(each))
                        num_decoded += 1
                    except Permanent:
                        num_lost += 1
        except UserError:
            num_refused += 1
    assert num_decoded > 100
    assert num_refused > 0
    assert num_lost < num_decoded
    assert capfd.readouterr() == ("", "")
