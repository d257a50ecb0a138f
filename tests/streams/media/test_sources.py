"""Every kind of source gives the segments it holds, comes back after a loss with one gap, and stops when told to."""

import os
import re
import socket
import sys
import threading
import traceback
from pathlib import Path
from random import Random

import anyio
import anyio.to_thread
import pytest
from live_senders import (
    STATION,
    await_listener,
    ffmpeg,
    free_port,
    made_by_ffmpeg,
    needs_libsrt,
    rtsp_server,
    web_server,
)
from media_zoo import jumping_ts, make
from reading import (
    QUICK,
    WAIT_S,
    Reading,
    Record,
    assert_lost_once,
    assert_whole,
    lost_once,
    owned,
    pictures,
    reading,
)

from streams.errors import UserError
from streams.media import connection
from streams.media.addresses import files_of, streams_for
from streams.media.connection import Connection, Ended
from streams.media.pipe import Pipe, PipeClosed, PipeFull
from streams.media.probe import Opening, open_decoder, time_ns, to_decoder
from streams.media.segmenter import segments
from streams.media.sources import SourceSettings, is_live, kind_of, pause_s, public_url, read, read_bytes
from streams.records import EndOfStream, Gap, Segment, encode
from streams.subjects import token

GROUP = {"g": "10", "keyint_min": "10", "sc_threshold": "0"}
NEVER = threading.Event()


def fed(data: bytes, seed: int, *, live: bool = True, gop_s: float | None = None, **k: float) -> list[Record]:
    """What comes of bytes that a client sends in pieces of odd sizes."""
    pipe = Pipe("client", max_bytes=100_000)
    random = Random(seed)

    async def client() -> None:
        at = 0
        while at < len(data):
            piece = random.choice((1, 7, 188, 1000, 60_000))
            await pipe.put(data[at : at + piece])
            at += piece
        pipe.close()

    sending = threading.Thread(target=anyio.run, args=(client,))
    sending.start()
    try:
        return list(
            read_bytes(pipe, "s", live=live, stop=NEVER, target_s=k.get("target_s", 0.5), transcode_gop_s=gop_s)
        )
    finally:
        sending.join(WAIT_S)


# --- addresses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url,shown",
    [
        ("rtsp://user:pass@cam:554/live/1", "rtsp://cam:554/..."),
        ("rtsp://us@er:p@ss@cam/1", "rtsp://cam/..."),
        ("srt://h:9?mode=listener&passphrase=geheim&streamid=x", "srt://h:9?mode=listener"),
        ("https://h/a.m3u8?token=abc#key", "https://h/..."),
        ("rtmp://h/app/name?listen=1&auth=secret", "rtmp://h/...?listen=1"),
        ("udp://@239.0.0.1:5000?pkt_size=1316", "udp://239.0.0.1:5000?pkt_size=1316"),
        ("http://[::1/secret", "http://..."),
        ("/films/what?is@this.mp4", "/films/what?is@this.mp4"),
        ("-", "-"),
    ],
)
def test_a_public_url_has_no_credentials(url: str, shown: str) -> None:
    assert public_url(url) == shown


@pytest.mark.parametrize(
    "url,says",
    [
        ("gopher://u:secret@h/a", "gopher is not a kind of source"),
        ("udp://", "names no host and port"),
        ("srt://u:secret@h", "names no host and port"),
        ("rtsp://h:port/x?token=secret", "names no host and port"),
        ("device:secret", "names no device"),
        ("device:v4l2:/dev/no-such-device", "no such device"),
        ("no-such-folder/film.mp4", "no such file"),
        ("srt://127.0.0.1:9?passphrase=secret", "passphrase; 10 to 79 characters would do"),
        ("srt://127.0.0.1:9?pbkeylen=secret", "pbkeylen; 16, 24 or 32 would do"),
    ],
)
def test_what_is_no_source_is_refused_in_one_line(url: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as refused:
        list(read(url, "s", live=False, stop=NEVER))
    assert "\n" not in str(refused.value)
    assert "secret" not in str(refused.value) or url.startswith("device:secret")


def test_kinds_of_sources(tmp_path: Path) -> None:
    kinds = {"-": "stdin", str(STATION): "file", STATION.as_uri(): "file", str(tmp_path.parent): "folder"}
    make(tmp_path.parent / "a.wav", audio="pcm_s16le", seconds=0.1)
    kinds |= {"http://h/a.mp4": "http", "https://h/a.M3U8?x=1": "hls", "rtsps://h/x": "rtsp", "udp://@:5": "udp"}
    assert {url: kind_of(url) for url in kinds} == kinds
    assert [is_live(url) for url in kinds] == [kind not in ("stdin", "file", "folder") for kind in kinds.values()]


def test_a_folder_is_a_stream_for_each_file_each_with_a_name_of_its_own(tmp_path: Path) -> None:
    for name in ("b.mp4", "a b (1).mp4", "a-b-1.mkv", "ü.mp4", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    files = files_of(str(tmp_path))
    assert [path.name for path in files] == ["a b (1).mp4", "a-b-1.mkv", "b.mp4", "ü.mp4"]
    assert streams_for("s", files) == ["s-a-b-1", "s-a-b-1-2", "s-b", "s"]
    assert all(token(name) for name in streams_for("s" * 128, files))
    assert len(set(streams_for("s" * 128, files))) == 4
    assert files_of(str(tmp_path / "b.mp4")) == files_of("rtsp://h/x") == files_of("-") == []


def test_pauses_double_within_bounds_and_vary() -> None:
    settings = SourceSettings(first_pause_s=1.0, max_pause_s=10.0)
    random = Random(7)
    pauses = [[pause_s(num, settings, random) for _ in range(200)] for num in (1, 2, 3, 50)]
    for found, middle_s in zip(pauses, (1.0, 2.0, 4.0, 1e9), strict=True):
        assert all(min(10.0, 0.5 * middle_s) <= each <= min(10.0, 1.5 * middle_s) for each in found)
    assert len(set(pauses[1])) > 100


def test_errors_do_not_tell_what_a_url_hides() -> None:
    url = f"http://user:geheim@127.0.0.1:{free_port()}/a.ts?token=geheim"
    for live, settings in ((False, QUICK), (True, SourceSettings(first_open_s=0.0))):
        with pytest.raises(UserError) as refused:
            list(read(url, "s", live=live, stop=NEVER, settings=settings))
        assert "Connection refused" in str(refused.value)
        assert "geheim" not in "".join(traceback.format_exception(refused.value))
        assert refused.value.__context__ is None  # it would be that of FFmpeg, which names the URL


# --- recordings -------------------------------------------------------------------------------------------


def test_a_file_gives_what_the_segmenter_gives() -> None:
    for url in (str(STATION), STATION.as_uri()):
        found = [encode(each) for each in read(url, "s", live=True, stop=NEVER, target_s=20.0)]
        assert found == [encode(each) for each in segments(str(STATION), stream="s", target_s=20.0)]


def test_a_folder_is_one_stream(tmp_path: Path) -> None:
    make(tmp_path / "2.mkv", video="libx264", audio="aac", options=GROUP, seconds=2)
    make(tmp_path / "1.ts", video="libx264", audio="aac", options=GROUP, seconds=1)
    make(tmp_path / "3.wav", audio="pcm_s16le", seconds=1)
    (tmp_path / "4.mp4").write_bytes(b"this is no film")
    (tmp_path / "notes.txt").write_text("nor is this")
    records = list(read(str(tmp_path), "s", live=False, stop=NEVER, target_s=0.4))
    found = assert_whole(records)
    apart = [
        packet.data
        for name in ("1.ts", "2.mkv", "3.wav")
        for each in segments(str(tmp_path / name), stream="s", target_s=0.4)
        if isinstance(each, Segment)
        for packet in each.packets
    ]
    assert [packet.data for each in found for packet in each.packets] == apart
    assert all(each.captured_ns == 0 for each in found)
    end = records[-1]
    assert isinstance(end, EndOfStream)
    assert [flaw for flaw in end.flaws if "4.mp4: cannot be opened" in flaw]
    again = list(read(str(tmp_path), "s", live=False, stop=NEVER, target_s=0.4, first_index=7, start_ns=10**9))
    assert [each.index for each in again if isinstance(each, Segment)] == [each.index + 7 for each in found]
    assert [each.start_ns for each in again if isinstance(each, Segment)] == [each.start_ns + 10**9 for each in found]


def test_a_folder_without_media_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no media files in this folder"):
        read(str(tmp_path), "s", live=False, stop=NEVER)
    (tmp_path / "a.mp4").write_bytes(b"no film")
    with pytest.raises(UserError, match=r"a\.mp4: cannot be opened"):
        list(read(str(tmp_path), "s", live=False, stop=NEVER))


def test_standard_input_is_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film = make(tmp_path / "a.mkv", video="libx264", audio="aac", options=GROUP)
    with film.open("rb") as standard_input:
        monkeypatch.setattr(sys, "stdin", standard_input)
        records = list(read("-", "s", live=False, stop=NEVER, target_s=0.5))
    expected = [each for each in segments(str(film), stream="s", target_s=0.5) if isinstance(each, Segment)]
    assert [owned(each, "video") for each in assert_whole(records)] == [owned(each, "video") for each in expected]


def test_reading_standard_input_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, given = os.pipe()
    with os.fdopen(taken, "rb") as standard_input, os.fdopen(given, "wb"):
        monkeypatch.setattr(sys, "stdin", standard_input)
        with reading("-") as one:
            one.stop()
        assert one.records == []


# --- bytes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "suffix,options",
    [
        ("ts", {}),
        ("mkv", {}),
        ("flv", {}),
        ("mp4", {"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
    ],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_bytes_in_odd_pieces_give_what_the_file_gives(
    suffix: str, options: dict[str, str], seed: int, tmp_path: Path
) -> None:
    path = make(tmp_path / f"a.{suffix}", video="libx264", audio="aac", options=GROUP, container_options=options)
    records = fed(path.read_bytes(), seed)
    found = assert_whole(records)
    expected = [each for each in segments(str(path), stream="s", target_s=0.5) if isinstance(each, Segment)]
    for kind in ("video", "audio"):
        assert [data for each in found for data in owned(each, kind)] == [
            data for each in expected for data in owned(each, kind)
        ]
    assert [each.start_ns for each in found] == [each.start_ns for each in expected]
    assert isinstance(records[-1], EndOfStream)
    assert all(each.captured_ns > 10**18 for each in found)
    assert [len(pictures(each)) for each in found] == [len(owned(each, "video")) for each in found]


@pytest.mark.parametrize(
    "suffix,codec", [("ogg", "libopus"), ("wav", "pcm_s16le"), ("aac", "aac"), ("wav", "adpcm_ms")]
)
def test_bytes_of_sound(suffix: str, codec: str, tmp_path: Path) -> None:
    path = make(tmp_path / f"a.{suffix}", audio=codec)
    found = assert_whole(fed(path.read_bytes(), 3, live=False))
    expected = [each for each in segments(str(path), stream="s", target_s=0.5) if isinstance(each, Segment)]
    assert [len(owned(each, "audio")) for each in found] == [len(owned(each, "audio")) for each in expected]
    assert all(each.captured_ns == 0 for each in found)


@pytest.mark.parametrize(
    "data", [b"", b"no film at all\n" * 5000, b"#EXTM3U\n#EXTINF:2,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"]
)
def test_bytes_that_are_no_media_are_refused_and_their_sender_told(data: bytes) -> None:
    pipe = Pipe("client")
    pipe.feed(data)
    pipe.close()
    with pytest.raises(UserError, match="client: cannot be"):
        list(read_bytes(pipe, "s", live=True, stop=NEVER))
    with pytest.raises(PipeClosed, match="client: nobody reads any more"):
        pipe.feed(b"more")


def test_what_was_gathered_is_given_when_reading_is_stopped(tmp_path: Path) -> None:
    path = make(tmp_path / "a.ts", video="libx264", audio="aac", options=GROUP)
    pipe, stop = Pipe("client"), threading.Event()
    one = Reading(read_bytes(pipe, "s", live=True, stop=stop, target_s=0.8), stop)
    pipe.feed(path.read_bytes())
    one.wait(lambda records: len(records) == 3)
    one.stop()
    assert one.error is None
    found = assert_whole(one.records)
    assert len(found) == 4
    assert found[-1].duration_ns < 800_000_000
    assert not isinstance(one.records[-1], EndOfStream)
    with pytest.raises(PipeClosed):
        pipe.feed(b"more")


# --- what streams do ---------------------------------------------------------------------------------------


def two_sizes(tmp_path: Path, suffix: str) -> bytes:
    """Two seconds of 64x48 with sound at 44.1 kHz, then two of 96x64 at 48 kHz, in one container."""
    parts = [
        make(
            tmp_path / f"{index}.{suffix}", video="libx264", audio="aac", options=GROUP, seconds=2, size=size, rate=rate
        )
        for index, (size, rate) in enumerate((((64, 48), 44_100), ((96, 64), 48_000)))
    ]
    header_bytes = 13 if suffix == "flv" else 0
    return parts[0].read_bytes() + parts[1].read_bytes()[header_bytes:]


@pytest.mark.parametrize("suffix", ["ts", "flv"])
@pytest.mark.parametrize("gop_s", [None, 0.2])
def test_tracks_that_change_start_a_new_segment(suffix: str, gop_s: float | None, tmp_path: Path) -> None:
    found = assert_whole(fed(two_sizes(tmp_path, suffix), 5, gop_s=gop_s))
    sizes = [(each.tracks[0].width, each.tracks[0].height) for each in found]
    assert sizes == sorted(sizes)
    assert set(sizes) == {(64, 48), (96, 64)}
    shown = [pictures(each) for each in found]
    assert [set(each) for each in shown if each] == [{size} for size, each in zip(sizes, shown, strict=True) if each]
    assert [len(each) for each in shown] == [len(owned(each, "video")) for each in found]
    assert sum(map(len, shown)) >= 98  # the last before the change may be cut short
    rates = [each.tracks[1].sample_rate for each in found]
    assert rates == sorted(rates)
    assert set(rates) == {44_100, 48_000}
    for each in found:
        heard = open_decoder(each.tracks[1])
        sent = [to_decoder(packet, each.tracks[1].time_base) for packet in each.packets if packet.track == 1]
        frames = [frame for packet in sent for frame in heard.decode(packet)]  # type: ignore[attr-defined]
        assert {frame.sample_rate for frame in frames} == {each.tracks[1].sample_rate}
    assert sum(len(owned(each, "audio")) for each in found) >= 2 * 44_100 // 1024 + 2 * 48_000 // 1024


def test_joined_between_keyframes(tmp_path: Path) -> None:
    path = make(tmp_path / "a.ts", video="libx264", options={**GROUP, "g": "25", "bf": "2"}, size=(320, 240))
    data = path.read_bytes()
    found = assert_whole(fed(data[len(data) // 188 // 2 * 188 - 47 :], 1))
    (flaw,) = [flaw for flaw in found[0].flaws if "joined between keyframes" in flaw]
    num_dropped = int(re.findall(r"\d+", flaw)[0])
    assert 0 < num_dropped < 25
    assert [len(pictures(each)) for each in found] == [25]
    assert found[0].packets[0].keyframe


def test_clocks_that_wrap_and_jump_are_followed(tmp_path: Path) -> None:
    plain = make(tmp_path / "a.ts", video="libx264", audio="aac", options={**GROUP, "bf": "0"})
    wrapping = made_by_ffmpeg(
        tmp_path / "wrap.ts", "-i", plain, "-c", "copy", "-muxdelay", 0, "-output_ts_offset", 2**33 / 90_000 - 1.5
    )
    found = assert_whole(fed(wrapping.read_bytes(), 1))
    assert sum(each.duration_ns for each in found) == pytest.approx(3e9, abs=0.1e9)
    assert sum(len(pictures(each)) for each in found) == 75
    jumping = assert_whole(fed(jumping_ts(tmp_path / "jump.ts").read_bytes(), 1))
    assert sum(each.duration_ns for each in jumping) == pytest.approx(4e9, abs=0.2e9)
    assert sum("the clock jumps" in flaw for each in jumping for flaw in each.flaws) == 1


def test_long_groups_are_made_short(tmp_path: Path) -> None:
    long = make(tmp_path / "a.mkv", video="libx264", audio="aac", options={"g": "1000", "sc_threshold": "0"})
    assert len(assert_whole(fed(long.read_bytes(), 1))) == 1
    for found in (
        assert_whole(fed(long.read_bytes(), 1, gop_s=0.4)),
        assert_whole(list(read(str(long), "s", live=False, stop=NEVER, target_s=0.5, transcode_gop_s=0.4))),
    ):
        assert [each.duration_ns // 10**7 for each in found[:-1]] == [80, 80, 80]  # the second keyframe after 0.5 s
        assert [set(pictures(each)) for each in found] == [{(64, 48)}] * 4
        assert sum(len(pictures(each)) for each in found) == 75


def test_raw_pictures_are_encoded(tmp_path: Path) -> None:
    raw = make(tmp_path / "a.avi", video="rawvideo", seconds=2)
    found = assert_whole(fed(raw.read_bytes(), 1, target_s=1.0))
    assert {each.tracks[0].codec for each in found} == {"h264"}
    assert [len(pictures(each)) for each in found] == [25, 25]


# --- live -------------------------------------------------------------------------------------------------


CLIP = ("-readrate", 4, "-i", STATION, "-t", 6, "-c", "copy")


def test_udp(tmp_path: Path) -> None:
    port = free_port(socket.SOCK_DGRAM)
    to_us = (*CLIP, "-f", "mpegts", f"udp://127.0.0.1:{port}?pkt_size=1316")
    with reading(f"udp://0.0.0.0:{port}", target_s=1.0) as one:
        with ffmpeg(*to_us):
            one.wait(lambda records: len(records) >= 3)
        with ffmpeg(*to_us):
            records = one.wait(lost_once)
    assert_lost_once(records)


def test_srt_listening() -> None:
    needs_libsrt()
    port, secrets = free_port(socket.SOCK_DGRAM), "passphrase=secret-and-long&latency=50"
    to_us = (*CLIP, "-f", "mpegts", f"srt://127.0.0.1:{port}?mode=caller&{secrets}")
    with reading(f"srt://0.0.0.0:{port}?mode=listener&{secrets}", target_s=1.0) as one:
        with ffmpeg(*to_us):
            one.wait(lambda records: len(records) >= 2)
        with ffmpeg(*to_us):
            records = one.wait(lost_once)
    assert_lost_once(records)


def test_srt_calling() -> None:
    needs_libsrt()
    port, secrets = free_port(socket.SOCK_DGRAM), "passphrase=secret-and-long&latency=50"
    with (
        ffmpeg(*CLIP, "-f", "mpegts", f"srt://127.0.0.1:{port}?mode=listener&{secrets}"),
        reading(f"srt://127.0.0.1:{port}?{secrets}", target_s=1.0) as one,
    ):
        one.wait(lambda records: len(records) >= 2)
    assert_whole(one.records)


def test_rtmp() -> None:
    port = free_port()
    with reading(f"rtmp://127.0.0.1:{port}/live/name?listen=1", target_s=1.0) as one:
        for is_enough in (lambda records: len(records) >= 2, lost_once):
            await_listener(port)
            with ffmpeg(*CLIP, "-f", "flv", f"rtmp://127.0.0.1:{port}/live/name"):
                records = one.wait(is_enough)
    assert_lost_once(records)


def test_rtsp(tmp_path: Path) -> None:
    film = make(tmp_path / "a.mp4", video="libx264", audio="aac", options=GROUP, seconds=30)
    port = free_port()
    with reading(f"rtsp://user:secret@127.0.0.1:{port}/camera") as one:
        with rtsp_server(port, film):
            one.wait(lambda records: len(records) >= 2)
        with rtsp_server(port, film):
            records = one.wait(lost_once)
    assert_lost_once(records)


def test_a_source_that_is_gone_has_its_gap_before_it_returns(tmp_path: Path) -> None:
    film = make(tmp_path / "a.mp4", video="libx264", audio="aac", options=GROUP, seconds=30)
    port, told = free_port(), list[tuple[str, str]]()
    url = f"rtsp://user:secret@127.0.0.1:{port}/camera"
    with reading(url, silence_s=1.5, on_state=lambda *said: told.append(said)) as one:
        with rtsp_server(port, film):
            one.wait(lambda records: len(records) >= 2)
        records = one.wait(lambda records: any(isinstance(each, Gap) for each in records))
        assert isinstance(records[-1], Gap)  # nothing has come back
        assert "has been away for" in records[-1].detail
        with rtsp_server(port, film):
            num = len(records)
            records = one.wait(lambda records: len(records) > num + 1)
    assert sum(isinstance(each, Gap) for each in records) == 1
    assert_whole(records)
    states = [state for state, _ in told]
    assert "lost" in states[states.index("reading") :]
    assert "secret" not in repr(told)


def test_a_source_that_was_never_there_has_its_gap_and_says_why() -> None:
    told = list[tuple[str, str]]()
    with reading(
        f"http://127.0.0.1:{free_port()}/a.ts", silence_s=0.3, on_state=lambda *said: told.append(said)
    ) as one:
        (gap,) = one.wait(lambda records: records)
    assert isinstance(gap, Gap)
    assert (gap.first, gap.cause) == (0, "source_lost")
    assert told[-1][0] == "lost"
    assert "Connection refused" in told[-1][1]


def test_a_listener_that_nobody_calls_owes_nothing() -> None:
    with reading(f"udp://127.0.0.1:{free_port(socket.SOCK_DGRAM)}", silence_s=0.1) as one:
        assert not one.records
        one.stop()
        assert not one.records


def test_mpegts_over_http_comes_back(tmp_path: Path) -> None:
    make(tmp_path / "a.ts", video="libx264", audio="aac", options=GROUP)
    with web_server(tmp_path, is_endless=True) as url, reading(f"{url}/a.ts?token=secret") as one:
        records = one.wait(lambda records: sum(isinstance(each, Gap) for each in records) == 3)
    assert_whole(records)
    assert "secret" not in repr([each for each in records if isinstance(each, Gap)])


def test_what_has_a_length_ends(tmp_path: Path) -> None:
    path = make(tmp_path / "a.ts", video="libx264", audio="aac", options=GROUP)
    expected = [each for each in segments(str(path), stream="s", target_s=0.5) if isinstance(each, Segment)]
    with web_server(tmp_path) as url:
        for live in (True, False):
            records = list(read(f"{url}/a.ts", "s", live=live, stop=NEVER, target_s=0.5))
            assert [owned(each, "video") for each in assert_whole(records)] == [
                owned(each, "video") for each in expected
            ]
            assert isinstance(records[-1], EndOfStream)


def test_hls_of_a_recording_ends(tmp_path: Path) -> None:
    made_by_ffmpeg(
        tmp_path / "a.m3u8", "-i", STATION, "-t", 7, "-c", "copy", "-hls_time", 2, "-hls_playlist_type", "vod"
    )
    with web_server(tmp_path) as url:
        records = list(read(f"{url}/a.m3u8", "s", live=True, stop=NEVER, target_s=1.0))
    found = assert_whole(records)
    assert isinstance(records[-1], EndOfStream)
    assert sum(len(pictures(each)) for each in found) == 7 * 25 + 2  # as ffmpeg cuts it


def test_hls_of_a_live_stream_goes_on_until_it_says_that_it_ended(tmp_path: Path) -> None:
    playlist = tmp_path / "a.m3u8"
    live = ("-hls_time", 1, "-hls_list_size", 3, "-hls_flags", "delete_segments")
    with (
        web_server(tmp_path) as url,
        ffmpeg("-readrate", 5, "-i", STATION, "-t", 9, "-c", "copy", *live, playlist),
        reading(f"{url}/a.m3u8", target_s=1.0) as one,
    ):
        records = one.wait(lambda records: records and isinstance(records[-1], EndOfStream))
    found = assert_whole(records)
    assert len(found) >= 3
    assert all(len(pictures(each)) == len(owned(each, "video")) for each in found)


@pytest.mark.parametrize(
    "address",
    [
        "rtsp://127.0.0.1:{mute}/camera",
        "http://127.0.0.1:{mute}/a.ts",
        "udp://127.0.0.1:{free_udp}",
        "srt://127.0.0.1:{free_udp}?mode=listener",
        "rtmp://127.0.0.1:{free_tcp}/live/name?listen=1",
    ],
)
def test_a_source_that_is_silent_can_be_stopped_at_once(address: str) -> None:
    if address.startswith("srt:"):
        needs_libsrt()
    patient = SourceSettings(open_timeout_s=60.0, read_timeout_s=60.0)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        ports = {"mute": mute.getsockname()[1], "free_udp": free_port(socket.SOCK_DGRAM), "free_tcp": free_port()}
        with reading(address.format(**ports), settings=patient) as one:
            one.stop()
        assert (one.records, one.error) == ([], None)


def test_a_sender_that_falls_silent_can_be_stopped_at_once(tmp_path: Path) -> None:
    path = make(tmp_path / "a.ts", video="libx264", audio="aac", options=GROUP)
    pipe, stop = Pipe("client"), threading.Event()
    one = Reading(read_bytes(pipe, "s", live=True, stop=stop, target_s=0.5), stop)
    pipe.feed(path.read_bytes())
    one.wait(lambda records: len(records) >= 2)
    one.stop()


def test_reading_goes_on_where_another_stopped(tmp_path: Path) -> None:
    make(tmp_path / "a.ts", video="libx264", audio="aac", options=GROUP)
    with web_server(tmp_path, is_endless=True) as url:
        stop = threading.Event()
        records = read(f"{url}/a.ts", "s", live=True, stop=stop, target_s=0.5, first_index=41, start_ns=10**12)
        one = Reading(records, stop)
        found = one.wait(lambda records: any(isinstance(each, Gap) for each in records))
        one.stop()
    assert [each.first if isinstance(each, Gap) else each.index for each in found] == [  # type: ignore[union-attr]
        41 + number for number in range(len(found))
    ]
    first = found[0]
    assert isinstance(first, Segment)
    assert first.start_ns == 10**12
    assert time_ns(first.packets[0].pts, first.tracks[0].time_base, first.origin_ns) >= 10**12


class Deaf:
    """Bytes that never come, and that cannot be given up."""

    name = "deaf"

    def __init__(self) -> None:
        self.released = threading.Event()

    def read(self, max_bytes: int = -1, /) -> bytes:
        self.released.wait(WAIT_S)
        return b""

    def give_up(self, reason: str) -> None:
        pass


def test_a_connection_that_does_not_even_time_out_counts_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "GRACE_S", 0.05)
    deaf = Deaf()
    one = Connection(Opening(deaf, "deaf", timeouts_s=(0.05, 0.05)), start_ns=lambda: 0, is_live=True, group_s=None)
    *quiet, ended = one.events(NEVER)
    assert all(isinstance(each, connection.Quiet) for each in quiet)
    assert isinstance(ended, Ended)
    assert ended.reason == "it does not answer, not even with an error"
    one.abandon()
    assert one.is_running
    deaf.released.set()


def test_a_mistake_of_ours_in_the_thread_is_raised_where_segments_are_taken(tmp_path: Path) -> None:
    path = make(tmp_path / "a.wav", audio="pcm_s16le")

    def mistaken() -> int:
        raise LookupError("a mistake")

    one = Connection(Opening(str(path), "a"), start_ns=mistaken, is_live=True, group_s=None)
    with pytest.raises(LookupError, match="a mistake"):
        list(one.events(NEVER))


# --- the pipe ---------------------------------------------------------------------------------------------


def test_a_pipe_is_bounded_and_in_order() -> None:
    pipe = Pipe("client", max_bytes=10)
    pipe.feed(b"12345678")
    pipe.feed(b"9abcdef")
    with pytest.raises(PipeFull, match="client: 15 bytes wait"):
        pipe.feed(b"x")
    assert [pipe.read(3), pipe.read(100), pipe.read(100)] == [b"123", b"45678", b"9abcdef"]
    pipe.feed(b"last")
    pipe.close()
    with pytest.raises(PipeClosed, match="was closed"):
        pipe.feed(b"x")
    assert [pipe.read(), pipe.read(), pipe.read()] == [b"last", b"", b""]


@pytest.mark.anyio
async def test_feeding_waits_for_room_and_is_told_when_nobody_reads() -> None:
    pipe = Pipe("client", max_bytes=4)
    data = bytes(range(256)) * 40
    taken = bytearray()

    def take() -> None:
        while part := pipe.read(100):
            taken.extend(part)

    async def put() -> None:
        for at in range(0, len(data), 3):
            await pipe.put(data[at : at + 3])
        pipe.close()

    with anyio.fail_after(WAIT_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, take)
            tasks.start_soon(put)
    assert taken == data

    full = Pipe("client", max_bytes=1)
    full.feed(b"12")
    with anyio.fail_after(WAIT_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, full.give_up, "it is no media")
            with pytest.raises(PipeClosed, match="it is no media"):
                await full.put(b"3")
    with pytest.raises(PipeClosed):
        full.read()


@pytest.mark.anyio
async def test_waiting_for_room_can_be_cancelled() -> None:
    pipe = Pipe("client", max_bytes=1)
    pipe.feed(b"1")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pipe.put, b"2")
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert pipe.read() == b"1"
    pipe.feed(b"3")
    assert pipe.read() == b"3"
