"""Media by HTTP: every kind of container, whole and broken off, held back, refused; and capabilities run on a file."""

import tempfile
import wave
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import anyio
import anyio.abc
import httpx
import pytest
from conftest import Eventually
from sites import CountPackets, Site, remuxed, site

from engine.node import feeding, room
from engine.spec.stream import StreamSpec
from penstock.http import uploads
from penstock.http.bodies import must_seek
from streams import subjects
from streams.media.segmenter import segments, stream_id
from streams.records import EndOfStream, Gap, Segment, decode_media, encode
from streams.wire.lease import holder_of

pytestmark = pytest.mark.anyio

SECONDS = 9.0
PIECE = 10_000


@pytest.fixture
async def here(nats_url: str) -> AsyncIterator[Site]:
    async with site(nats_url) as running:
        yield running


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MP4 as recorders write it: its index comes last."""
    return remuxed(tmp_path_factory.mktemp("clips") / "clip.mp4", SECONDS)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MPEG-TS, longer than what is looked at before the first segment is cut."""
    return remuxed(tmp_path_factory.mktemp("clips") / "long.ts", 24.0)


@pytest.fixture(scope="module")
def streamable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return remuxed(tmp_path_factory.mktemp("clips") / "clip.ts", SECONDS)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def bytes_of(path: Path) -> bytes:
    return path.read_bytes()


async def in_pieces(path: Path) -> AsyncIterator[bytes]:
    """A file as a client with a pipe sends it: chunked, without a length."""
    data = bytes_of(path)
    for start in range(0, len(data), PIECE):
        yield data[start : start + PIECE]


def expected(path: Path, stream: str, target_s: float = 5.0) -> list[bytes]:
    """What a file is as a stream, cut here."""
    records = segments(str(path), stream=stream, target_s=target_s)
    return [encode(record) for record in records if isinstance(record, Segment)]


def starts(stored: list[bytes]) -> list[tuple[int, int]]:
    """Where the segments begin and how long they are."""
    found = [decode_media(data) for data in stored]
    return [(record.start_ns, record.duration_ns) for record in found if isinstance(record, Segment)]


def detail(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    return str(response.json()["detail"])


# --- whole ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["index last", "index first", "fragmented", "mpeg-ts", "matroska"])
async def test_every_kind_of_container_becomes_the_same_segments(here: Site, tmp_path: Path, kind: str) -> None:
    name, options = {
        "index last": ("a.mp4", {}),
        "index first": ("a.mp4", {"movflags": "faststart"}),
        "fragmented": ("a.mp4", {"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
        "mpeg-ts": ("a.ts", {}),
        "matroska": ("a.mkv", {}),
    }[kind]
    path = remuxed(tmp_path / name, SECONDS, **options)
    assert must_seek(path.read_bytes()) is (kind == "index last")
    response = await here.http.post("/v1/streams/up/media", params={"segment_s": 2}, content=in_pieces(path))
    assert response.status_code == 201, response.text
    stored = await here.stored("up")
    wanted = expected(path, "up", 2.0)
    assert starts(stored) == starts(wanted)
    end_s = sum(starts(wanted)[-1]) / 1e9
    assert response.json() == {"stream": "up", "num_segments": len(wanted), "end_s": round(end_s, 3), "flaws": []}
    end = await here.ledger.get(subjects.media_end("up"))
    assert end is not None
    assert decode_media(end.data) == EndOfStream(
        stream="up", num_segments=len(wanted), duration_ns=sum(starts(wanted)[-1])
    )
    spec = await here.registry.stream("up")
    assert spec is not None
    assert (spec.policy, spec.segment_s) == ("durable", 2.0)
    view = (await here.http.get("/v1/streams/up")).json()
    assert (view["state"], view["num_segments"]) == ("ended", len(wanted))


async def test_what_is_uploaded_is_computed_on_while_it_comes(here: Site, streamable: Path) -> None:
    half = anyio.Event()
    workflow = {"name": "count", "stages": {"n": {"capability": "count_packets", "inputs": {"media": "media"}}}}

    async def body() -> AsyncIterator[bytes]:
        pieces = [piece async for piece in in_pieces(streamable)]
        for number, piece in enumerate(pieces):
            if number == 3 * len(pieces) // 4:
                await half.wait()
            yield piece

    async with anyio.create_task_group() as tasks:
        responses: list[httpx.Response] = []

        async def upload() -> None:
            responses.append(await here.http.post("/v1/streams/up/media", params={"segment_s": 1}, content=body()))

        tasks.start_soon(upload)
        while not await here.stored("up"):  # noqa: ASYNC110
            await anyio.sleep(0.01)
        asked = {"stream": "up", "workflow": workflow, "drafts": False}
        job = (await here.http.post("/v1/jobs", json=asked)).json()["job"]
        async with here.http.stream("GET", f"/v1/jobs/{job}/answers") as stream:
            lines = stream.aiter_lines()
            with anyio.fail_after(20):
                async for line in lines:
                    if line == "event: answer":  # of a stream that has not ended
                        break
                half.set()
                num = 1 + len([line async for line in lines if line == "event: answer"])
    assert responses[0].json()["num_segments"] == num


# --- broken off ----------------------------------------------------------------------------------------------------


async def broken_off(here: Site, path: str, file: Path) -> list[bytes]:
    """Send two thirds of a file to the stream "up", and go away once some of it is stored; what is stored then."""
    data = bytes_of(file)
    async with await anyio.connect_tcp("127.0.0.1", int(here.url.rpartition(":")[2])) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
        await connection.send(head.encode() + data[: len(data) * 2 // 3])
        with anyio.fail_after(20):
            while len(await here.stored("up")) < 3:  # noqa: ASYNC110
                await anyio.sleep(0.01)
    with anyio.fail_after(20):
        while await holder_of(here.registry.leases, feeding.lease_of("up")) is not None:  # noqa: ASYNC110
            await anyio.sleep(0.01)
    return await here.stored("up")


async def test_an_upload_that_broke_off_is_sent_again_and_nothing_is_torn(
    here: Site, long: Path, streamable: Path
) -> None:
    wanted = expected(long, "up", 1.0)
    torn = await broken_off(here, "/v1/streams/up/media?segment_s=1", long)
    assert 3 <= len(torn) < len(wanted)
    assert await here.ledger.get(subjects.media_end("up")) is None
    data, short = bytes_of(long), bytes_of(streamable)[: len(bytes_of(streamable)) // 3]
    without_a_piece = data[: len(data) // 6] + data[len(data) // 3 :]
    for query, other in (("?segment_s=4", data), ("?segment_s=1", short), ("?segment_s=1", without_a_piece)):
        refused = await here.http.post(f"/v1/streams/up/media{query}", content=other)
        line = "stream 'up' holds other media, or these cut otherwise: upload under another name"
        assert detail(refused, 400) == line
    assert await here.stored("up") == torn
    response = await here.http.post("/v1/streams/up/media?segment_s=1", content=in_pieces(long))
    assert response.status_code == 201, response.text
    assert response.json()["num_segments"] == len(wanted)
    assert starts(await here.stored("up")) == starts(wanted)
    again = await here.http.post("/v1/streams/up/media?segment_s=1", content=in_pieces(long))
    assert (again.status_code, again.json()) == (201, response.json())
    other = await here.http.post("/v1/streams/up/media?segment_s=1", content=short)
    assert detail(other, 409) == "stream 'up' holds other media, or these cut otherwise: upload under another name"
    form = await here.http.post("/v1/streams/up/media", files={"file": b"x"})
    assert "the body is a form" in detail(form, 415)
    assert starts(await here.stored("up")) == starts(wanted)


async def test_a_live_upload_that_broke_off_goes_on_after_a_gap(here: Site, long: Path) -> None:
    path = "/v1/streams/up/media?policy=live&segment_s=1"
    num_before = len(await broken_off(here, path, long))
    response = await here.http.post(path, content=in_pieces(long))
    assert response.status_code == 201, response.text
    records = [decode_media(data) for data in await here.stored("up")]
    gap = records[num_before]
    assert isinstance(gap, Gap)
    assert (gap.cause, gap.first) == ("source_lost", num_before)
    assert response.json()["num_segments"] == len(records) > num_before + 1
    assert [r.index for r in records if isinstance(r, Segment)] == [n for n in range(len(records)) if n != num_before]


async def test_a_sender_that_says_nothing_is_not_waited_for(nats_url: str) -> None:
    async with site(nats_url, works=False, stall_s=0.2) as here:
        async with await anyio.connect_tcp("127.0.0.1", int(here.url.rpartition(":")[2])) as connection:
            await connection.send(b"POST /v1/streams/up/media HTTP/1.1\r\nHost: ::1\r\nContent-Length: 99\r\n\r\nabc")
            received = b""
            with anyio.fail_after(20):
                while not received.endswith(b"}"):
                    received += await connection.receive()
        assert b" 408 " in received.splitlines()[0]
        assert b"no byte came for 0.2 s" in received


# --- held back, refused --------------------------------------------------------------------------------------------


async def test_a_client_is_held_back_as_the_stream_is(
    here: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    num_asked, is_room = 0, False

    def has_room(behind: Mapping[str, int]) -> bool:
        nonlocal num_asked
        num_asked += 1
        return is_room

    monkeypatch.setattr(room, "has_room", has_room)
    num_sent, piece, num_pieces = 0, bytes(1 << 20), 128

    async def body() -> AsyncIterator[bytes]:
        nonlocal num_sent
        header = tmp_path / "header.wav"
        with wave.open(str(header), "wb") as file:
            file.setparams((2, 2, 48000, 0, "NONE", ""))
            file.setnframes(num_pieces * len(piece) // 4)
            file.writeframes(b"")
        yield header.read_bytes()[:40] + (num_pieces * len(piece)).to_bytes(4, "little")
        for _ in range(num_pieces):
            yield piece
            num_sent += 1

    responses: list[httpx.Response] = []

    async def upload() -> None:
        responses.append(await here.http.post("/v1/streams/up/media", content=body()))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(upload)
        await eventually(lambda: num_asked >= 3)
        assert len(await here.stored("up")) == room.CHECK_EVERY
        assert num_sent < num_pieces
        assert not responses
        is_room = True
    assert responses[0].status_code == 201, responses[0].text
    assert responses[0].json()["end_s"] == pytest.approx(num_pieces * len(piece) / (48000 * 4), abs=0.001)


async def test_what_is_no_media_is_said_in_one_line_and_leaves_nothing(
    here: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where a list of files finds those it names
    torn = bytes_of(remuxed(tmp_path / "torn.mp4", 2.0))[:-4000]
    remuxed(tmp_path / "secret.ts", 2.0)
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nsecret.ts\n#EXT-X-ENDLIST\n"
    listing = b"ffconcat version 1.0\nfile secret.ts\n"
    for body in (b"", b"no media " * 5000, bytes(100_000), playlist, listing, torn):
        for path in ("/v1/streams/up/media", "/v1/operators/count_packets"):
            said = detail(await here.http.post(path, content=body), 400)
            assert said.startswith("the body: "), said
            assert str(tmp_path) not in said
    assert await here.registry.streams() == {}
    assert await here.ledger.subjects(subjects.media_of("*")) == set()
    assert names_in(tmp_path) == {"torn.mp4", "secret.ts"}  # what was spooled is gone


async def test_uploads_are_bounded(nats_url: str, clip: Path, streamable: Path) -> None:
    async with site(nats_url, works=False, max_upload_bytes=50_000, max_uploads=1) as here:
        for path in ("/v1/streams/up/media", "/v1/operators/count_packets"):
            for body in (bytes_of(clip), in_pieces(clip), in_pieces(streamable)):
                said = detail(await here.http.post(path, content=body), 413)
                assert said == "more than 50000 bytes: send less, or set PENSTOCK_MAX_UPLOAD_BYTES on the node"
        assert await here.ledger.get(subjects.media_end("up")) is None
        waiting = anyio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield b"x"
            waiting.set()
            await anyio.sleep_forever()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: here.http.post("/v1/streams/slow/media", content=slow()))
            await waiting.wait()
            while (response := await here.http.post("/v1/streams/up/media", content=b"x")).status_code == 400:
                pass
            assert "1 uploads are under way on this node" in detail(response, 503)
            tasks.cancel_scope.cancel()


async def test_a_stream_that_is_treated_otherwise_is_refused(
    here: Site, streamable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await here.registry.declare(StreamSpec(name="live", policy="live"))
    refused = await here.http.post("/v1/streams/live/media?policy=durable", content=b"x")
    assert detail(refused, 400) == "stream 'live' is live already: bring it so, or under another name"
    await here.registry.declare(StreamSpec(name="door", policy="live", url="rtsp://camera.invalid/door"))
    refused = await here.http.post("/v1/streams/door/media", content=b"x")
    assert detail(refused, 409) == (
        "stream 'door' is read from its own source by the nodes: bring yours under another name"
    )
    monkeypatch.setattr(uploads, "MAX_LEASE_WAIT_S", 0.2)
    await here.registry.leases.put(feeding.lease_of("fed"), b"somebody")
    refused = await here.http.post("/v1/streams/fed/media", content=in_pieces(streamable))
    assert detail(refused, 409) == "somebody else feeds stream 'fed': upload under another name"
    for query in ("policy=odd", "segment_s=0.1", "segment_s=x"):
        assert query.partition("=")[0] in detail(
            await here.http.post(f"/v1/streams/x/media?{query}", content=b"x"), 400
        )
    assert "cannot be part of a subject" in detail(await here.http.post("/v1/streams/a%20b/media", content=b"x"), 400)


# --- one capability on a file --------------------------------------------------------------------------------------


async def test_one_capability_runs_on_a_file(here: Site, clip: Path) -> None:
    wanted = [decode_media(data) for data in expected(clip, "x")]
    counts = [len(record.packets) for record in wanted if isinstance(record, Segment)]
    before = CountPackets.num_computed
    for _ in range(2):  # the second time, everything is there already
        response = await here.http.post("/v1/operators/count_packets", content=in_pieces(clip))
        assert response.status_code == 200, response.text
        assert response.json() == {
            "outputs": [
                {"first": index, "last": index, "output": {"num_packets": num}, "gap": ""}
                for index, num in enumerate(counts)
            ]
        }
        assert CountPackets.num_computed == before + len(counts)
    assert await here.stored(stream_id(clip, 5.0)) == expected(clip, stream_id(clip, 5.0))
    assert await here.registry.streams() == {}


async def test_parameters_of_a_capability_come_in_the_query(here: Site, clip: Path) -> None:
    async def outputs(query: str) -> list[int]:
        response = await here.http.post(f"/v1/operators/count_packets?{query}", content=bytes_of(clip))
        assert response.status_code == 200, response.text
        return [output["output"]["num_packets"] for output in response.json()["outputs"]]

    every, doubled = await outputs(""), await outputs("weight=2&timeout_s=30")
    assert doubled == [2 * num for num in every]
    pictures, sound = await outputs("kinds=video"), await outputs("kinds=audio&kinds=subtitle")
    assert [a + b for a, b in zip(pictures, sound, strict=True)] == every
    post = here.http.post
    said = detail(await post("/v1/operators/count_packets?weight=much", content=b"x"), 400)
    assert said.startswith("parameters of 'count_packets': Expected `int`")
    assert said.endswith("there are: weight, kinds")
    assert "unknown field `odd`" in detail(await post("/v1/operators/count_packets?odd=1", content=b"x"), 400)
    assert "timeout_s" in detail(await post("/v1/operators/count_packets?timeout_s=9999", content=b"x"), 400)


async def test_an_operator_that_nobody_runs_is_waited_for_so_long(nats_url: str, clip: Path) -> None:
    async with site(nats_url, works=False) as here:
        response = await here.http.post("/v1/operators/count_packets?timeout_s=0.2", content=bytes_of(clip))
        assert detail(response, 504).startswith("not finished within 0.2 s; job j")


async def test_operators_are_listed_with_what_they_take(here: Site) -> None:
    listed = {each["capability"]: each for each in (await here.http.get("/v1/operators")).json()["operators"]}
    assert {"count_packets", "toy_read", "toy_total"} <= set(listed)
    counting = listed["count_packets"]
    assert counting["inputs"] == [{"name": "media", "type": "media", "many": False, "optional": False}]
    assert counting["output"] == "Counted"
    assert counting["params"]["$defs"]["CountParams"]["properties"]["weight"] == {"type": "integer", "default": 1}
    (rung,) = counting["rungs"]
    assert (rung["rung"], rung["implementation"], rung["missing"]) == ("count_packets-loop", "loop", None)
    assert listed["toy_total"]["inputs"] == [{"name": "numbers", "type": "Number", "many": True, "optional": False}]


# --- what has to be there as a whole -------------------------------------------------------------------------------


def box(kind: bytes, size: int, *, wide: bool = False) -> bytes:
    body = bytes(size - (16 if wide else 8))
    return (1).to_bytes(4) + kind + size.to_bytes(8) + body if wide else size.to_bytes(4) + kind + body


@pytest.mark.parametrize(
    ("head", "seeks"),
    [
        (b"", None),
        (box(b"ftyp", 32)[:20], None),
        (box(b"ftyp", 32), None),
        (box(b"ftyp", 32) + box(b"free", 8) + box(b"mdat", 100), True),
        (box(b"ftyp", 32) + box(b"free", 5000), None),
        (box(b"ftyp", 32) + box(b"moov", 100), False),
        (box(b"ftyp", 32) + box(b"uuid", 64, wide=True) + box(b"mdat", 64, wide=True), True),
        (box(b"ftyp", 32) + box(b"odd ", 24) + box(b"moov", 64), False),
        (box(b"wide", 8) + box(b"mdat", 16), True),
        (box(b"styp", 24) + box(b"moof", 24), False),
        (box(b"ftyp", 32) + bytes(16), False),
        (bytes.fromhex("1a45dfa3") + bytes(60), False),
        (b"\x47" * 188, False),
        (b"RIFF" + bytes(40), False),
    ],
)
def test_only_files_with_their_samples_before_their_index_must_be_there_as_a_whole(
    head: bytes, seeks: bool | None
) -> None:
    assert must_seek(head) is seeks
