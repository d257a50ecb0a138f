"""Feeding streams over a real server: files, streams taken over, and bytes that any client sends."""

import random
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import anyio
import msgspec
import pytest
import running
import toys
from clips import first_seconds
from conftest import Eventually

from engine.decide import watching
from engine.decide.answer import time_of_day
from engine.decide.arrears import MAX_AHEAD
from engine.node import intake
from engine.node import watching as node_watching
from engine.node.feeding import Resume, Source, Tell, feed, lease_of, source_of, where_it_stands
from engine.node.intake import Intake
from engine.node.views import stream_views
from engine.run.gaps import count_gaps
from engine.run.registry import Registry, open_registry
from engine.run.telemetry import Telemetry
from engine.spec.catalogue import Catalogue
from engine.spec.operator import Inputs, Machine
from engine.spec.plan import make_plan
from engine.spec.stream import StreamSpec
from engine.spec.workflow import Stage, Workflow
from streams import subjects
from streams.decoding import from_json
from streams.errors import UserError
from streams.media.segmenter import segments
from streams.records import EndOfStream, Gap, MediaMessage, Segment, decode_media, encode
from streams.wire.lease import holder_of
from streams.wire.ledger import Ledger, open_ledger
from streams.wire.link import connect

pytestmark = pytest.mark.anyio
TRACES = Telemetry("test")
SPEC = StreamSpec(name="s", segment_s=2.0)


@pytest.fixture
async def ledger(nats_url: str) -> AsyncIterator[Ledger]:
    async with connect(nats_url) as link:
        yield await open_ledger(link)


@pytest.fixture
async def registry(ledger: Ledger) -> Registry:
    return await open_registry(ledger.link)


async def stored(ledger: Ledger, stream: str = "s") -> list[MediaMessage]:
    """What the ledger holds of a stream's media, in order."""
    return [decode_media(item.data) async for item in ledger.every(subjects.media_of(stream))]


async def test_a_file_is_fed_to_its_end_and_again_changes_nothing(
    ledger: Ledger, registry: Registry, tmp_path: Path
) -> None:
    clip = first_seconds(tmp_path / "clip.mp4", 8.0)
    seen: list[int] = []
    end = await feed(
        registry, ledger, SPEC, source_of(SPEC, str(clip)), "a", TRACES, on_record=lambda record: seen.append(1)
    )
    expected = list(segments(str(clip), stream="s", target_s=2.0))
    assert await stored(ledger) == expected
    assert end == expected[-1]
    assert len(seen) == len(expected) - 1
    with pytest.raises(UserError, match="has ended after"):
        await feed(registry, ledger, SPEC, source_of(SPEC, str(clip)), "b", TRACES)
    assert await stored(ledger) == expected


class Camera:
    """A source that goes on: a segment each time it is told to."""

    def __init__(self) -> None:
        self.due = threading.Semaphore(0)
        self.resumes: list[Resume] = []
        self.tell: Tell = lambda told, detail: None

    def read(self, resume: Resume, stop: threading.Event, tell: Tell) -> Iterator[MediaMessage]:
        self.resumes.append(resume)
        self.tell = tell
        index = resume.next_index
        while not stop.is_set():
            if self.due.acquire(timeout=0.02):
                if stop.is_set():  # somebody else reads by now
                    self.due.release()
                    return
                shot = toys.toy_segment("s", index, index)
                yield msgspec.structs.replace(shot, start_ns=resume.start_ns + (index - resume.next_index) * 10**9)
                index += 1


async def test_who_takes_over_a_camera_goes_on_behind_a_gap(
    ledger: Ledger, registry: Registry, eventually: Eventually
) -> None:
    camera = Camera()
    source = Source(read=camera.read, goes_on=True, waits=False)
    scopes = {name: anyio.CancelScope() for name in ("a", "b")}
    async with anyio.create_task_group() as tasks:

        async def feed_as(name: str) -> None:
            with scopes[name]:
                await feed(registry, ledger, SPEC, source, name, TRACES)

        tasks.start_soon(feed_as, "a")
        await eventually(lambda: len(camera.resumes) == 1)
        tasks.start_soon(feed_as, "b")  # waits: there is one feeder at a time
        camera.due.release(3)
        with anyio.fail_after(10):
            while len(await stored(ledger)) < 3:  # noqa: ASYNC110 - a thread reads
                await anyio.sleep(0.01)
        assert len(camera.resumes) == 1
        scopes["a"].cancel()
        await eventually(lambda: len(camera.resumes) == 2)
        camera.due.release(2)
        with anyio.fail_after(10):
            while len(await stored(ledger)) < 6:  # noqa: ASYNC110 - a thread reads
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    records = await stored(ledger)
    gap = records[3]
    assert isinstance(gap, Gap)
    assert (gap.first, gap.last, gap.cause) == (3, 3, "source_lost")
    assert "nobody read the source for" in gap.detail
    assert [record.index for record in records if isinstance(record, Segment)] == [0, 1, 2, 4, 5]
    starts = [record.start_ns for record in records if isinstance(record, Segment)]
    assert starts == sorted(starts)
    assert starts[3] >= 3 * 10**9
    assert await count_gaps(ledger, "s") == {"source_lost": 1}
    assert (await where_it_stands(ledger, "s")).next_index == 6


async def test_who_takes_over_a_recording_that_is_played_plays_on_from_where_it_stands(
    ledger: Ledger, registry: Registry, tmp_path: Path
) -> None:
    clip = first_seconds(tmp_path / "clip.mp4", 6.0)
    spec = msgspec.structs.replace(SPEC, policy="live", segment_s=1.0)
    seen: list[str] = []
    scope = anyio.CancelScope()

    async def feed_as(name: str) -> None:
        def note(record: Segment | Gap) -> None:
            seen.append(name)
            if len(seen) == 2:
                scope.cancel()

        await feed(registry, ledger, spec, source_of(spec, str(clip)), name, TRACES, on_record=note)

    with scope:
        await feed_as("a")
    await feed_as("b")
    expected = list(segments(str(clip), stream="s", target_s=1.0))
    records = await stored(ledger)
    assert [msgspec.structs.replace(r, captured_ns=0) if isinstance(r, Segment) else r for r in records] == expected
    assert seen[:2] == ["a", "a"]
    assert set(seen[2:]) == {"b"}
    captured = [record.captured_ns for record in records if isinstance(record, Segment)]
    assert captured == sorted(captured)


async def test_what_a_source_is_doing_is_told_as_it_changes(
    ledger: Ledger, registry: Registry, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "GONE_S", 3.0)
    monkeypatch.setattr(node_watching, "LOOK_S", 0.05)
    spec = msgspec.structs.replace(SPEC, policy="live", segment_s=0.2, max_lag_s=0.8)
    camera, events = Camera(), list[watching.SourceState]()

    async def on_event(message: object) -> None:
        events.append(from_json(message.data, watching.SourceState))  # type: ignore[attr-defined]

    await ledger.link.subscribe(subjects.event("*"), on_event)
    await registry.declare(spec)
    async with anyio.create_task_group() as tasks:
        source = Source(read=camera.read, goes_on=True, waits=False)
        tasks.start_soon(feed, registry, ledger, spec, source, "n1", TRACES)
        await eventually(lambda: [event.state for event in events] == ["connecting"])
        camera.tell("lost", "no route to host")
        await eventually(lambda: [event.error for event in events] == ["", "no route to host"])
        camera.due.release()
        await eventually(lambda: events[-1].state == "live")
        (view,) = await stream_views(registry, ledger, "s")
        assert (view.state, view.error, view.fed_by) == ("live", "", "n1")
        await eventually(lambda: events[-1].state == "silent")
        await eventually(lambda: events[-1].state == "gone")
        (view,) = await stream_views(registry, ledger, "s")
        assert (view.state, view.since) == ("gone", time_of_day(events[-1].since_ns))
        camera.due.release()
        await eventually(lambda: events[-1].state == "live")
        tasks.cancel_scope.cancel()
    assert [event.state for event in events] == ["connecting", "connecting", "live", "silent", "gone", "live"]
    assert {event.node for event in events} == {"n1"}
    (view,) = await stream_views(registry, ledger, "s")
    assert (view.state, view.since) == ("idle", "")
    await registry.forget_stream("s")
    assert await registry.source_states() == {}


async def test_a_source_that_cannot_be_read_is_gone_and_says_why(
    ledger: Ledger, registry: Registry, tmp_path: Path
) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"no media")
    await registry.declare(SPEC)
    with pytest.raises(UserError, match="cannot be opened as media"):
        await feed(registry, ledger, SPEC, source_of(SPEC, str(path)), "a", TRACES)
    state = (await registry.source_states())["s"]
    assert state.state == "gone"
    assert "cannot be opened as media" in state.error


def transport_stream(clip: Path, to: Path) -> bytes:
    """The clip as MPEG-TS, which can be cut anywhere."""
    import av

    with av.open(str(clip)) as source, av.open(str(to), "w", format="mpegts") as target:
        pairs = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = pairs[packet.stream.index]
                target.mux(packet)
    return to.read_bytes()


async def test_bytes_of_any_client_become_a_stream(
    ledger: Ledger, registry: Registry, nats_url: str, tmp_path: Path
) -> None:
    data = transport_stream(first_seconds(tmp_path / "clip.mp4", 8.0), tmp_path / "clip.ts")
    seeded = random.Random(3)
    async with connect(nats_url) as client, anyio.create_task_group() as tasks:
        for node in ("n1", "n2"):  # whichever takes the lease takes the bytes
            tasks.start_soon(Intake(registry, ledger, TRACES, node).run)
        with anyio.fail_after(30):
            while await asked(client, b"", "probe") is None:  # noqa: ASYNC110 - until the nodes listen
                await anyio.sleep(0.01)
            at = 0
            headers = {"Penstock-Policy": "durable", "Penstock-Segment": "2s"}
            while at < len(data):
                size = seeded.randrange(1, 60_000)
                piece = data[at : at + size]
                for _ in range(seeded.choice((1, 1, 1, 2))):  # some are sent again, as after an answer that was lost
                    answer = await asked(client, piece, "s", {**headers, "Penstock-Offset": str(at)})
                    assert answer == {"offset": at + len(piece)}
                at += len(piece)
            missing = await asked(client, b"x", "s", {"Penstock-Offset": str(at + 1)})
            assert missing == {"offset": at, "error": f"a piece at {at + 1} while {at} is due: send what is missing"}
            ended = await asked(client, b"", "s")
            while await ledger.get(subjects.media_end("s")) is None:  # noqa: ASYNC110 - a thread reads
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    records = await stored(ledger)
    kept = [record for record in records if isinstance(record, Segment)]
    assert [record.index for record in kept] == list(range(len(kept)))
    assert len(kept) >= 4
    end = records[-1]
    assert isinstance(end, EndOfStream)
    assert end.num_segments == len(kept)
    assert ended == {"offset": len(data), "num_segments": len(kept)}
    assert 7.5e9 < end.duration_ns < 8.6e9
    spec = await registry.stream("s")
    assert spec is not None
    assert (spec.policy, spec.segment_s) == ("durable", 2.0)


async def test_bytes_that_are_no_media_are_refused_at_their_end(
    ledger: Ledger, registry: Registry, nats_url: str
) -> None:
    async with connect(nats_url) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(Intake(registry, ledger, TRACES, "n1").run)
        with anyio.fail_after(30):
            while await asked(client, b"", "probe") is None:  # noqa: ASYNC110 - until the node listens
                await anyio.sleep(0.01)
            await asked(client, b"this is no media" * 5000, "s")
            ended = await asked(client, b"", "s")
        tasks.cancel_scope.cancel()
    assert isinstance(ended, dict)
    assert "cannot be read as media" in ended["error"] or "cannot be opened as media" in ended["error"]
    assert await stored(ledger) == []


@pytest.mark.parametrize("policy", ["durable", "live"])
async def test_a_sender_that_falls_silent_leaves_the_stream_open_and_a_live_one_with_a_gap(
    ledger: Ledger, registry: Registry, nats_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    monkeypatch.setattr(intake, "SILENCE_S", 0.5)
    data = transport_stream(first_seconds(tmp_path / "clip.mp4", 6.0), tmp_path / "clip.ts")
    async with connect(nats_url) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(Intake(registry, ledger, TRACES, "n1").run)
        with anyio.fail_after(30):
            while await asked(client, b"", "probe") is None:  # noqa: ASYNC110 - until the node listens
                await anyio.sleep(0.01)
            how = {"Penstock-Segment": "2s", "Penstock-Policy": policy, "Penstock-Max-Lag": "0.5s"}
            await asked(client, data, "s", how)
            while (await where_it_stands(ledger, "s")).next_index < 2:  # noqa: ASYNC110 - a thread reads
                await anyio.sleep(0.02)
            while await holder_of(registry.leases, lease_of("s")) is not None:  # noqa: ASYNC110 - it is given back
                await anyio.sleep(0.02)
            assert await ledger.get(subjects.media_end("s")) is None
            there = [type(record).__name__ for record in await stored(ledger)]
            assert there.count("Gap") == (policy == "live")
            await asked(client, data, "s")
            await asked(client, b"", "s")
        tasks.cancel_scope.cancel()
    records = await stored(ledger)
    assert [type(record).__name__ for record in records].count("Gap") == 1
    assert isinstance(records[-1], EndOfStream)


async def asked(client: object, data: bytes, stream: str, headers: dict[str, str] | None = None) -> object:
    """The answer to a piece of media, or None where nobody listens yet."""
    import nats.errors

    try:
        reply = await client.client.request(subjects.ingest(stream), data, timeout=20, headers=headers)  # type: ignore[attr-defined]
    except nats.errors.NoRespondersError:
        return None
    return msgspec.json.decode(reply.data)


# --- held back ---------------------------------------------------------------------------------------------------

NUM = 200
READ_THEN_ADD = Workflow(
    name="read_then_add",
    stages={
        "read": Stage(capability="toy_read", inputs={"media": "media"}),
        "add": Stage(capability="toy_add", inputs={"numbers": "read"}),
    },
)


class Clocked:
    """A source that says when it was last asked for a segment, and how far the last stage was behind at worst."""

    def __init__(self) -> None:
        self.num_done = self.furthest = 0
        self.asked_s = time.monotonic()

    def read(self, resume: Resume, stop: threading.Event, tell: Tell) -> Iterator[MediaMessage]:
        for index in range(NUM):
            self.asked_s = time.monotonic()
            self.furthest = max(self.furthest, index - self.num_done)
            yield toys.toy_segment("s", index, index)
        yield EndOfStream(stream="s", num_segments=NUM)

    @property
    def is_held(self) -> bool:
        return time.monotonic() > self.asked_s + 0.3

    async def feed(self, registry: Registry, ledger: Ledger) -> None:
        await feed(registry, ledger, SPEC, Source(read=self.read, goes_on=False, waits=True), "a", TRACES)


async def test_a_source_waits_for_the_readers_of_results_too(ledger: Ledger, registry: Registry) -> None:
    source = Clocked()

    class Lazy(toys.Add):
        """Begins when nothing new comes."""

        def process(self, batch: Sequence[Inputs]) -> Sequence[msgspec.Struct]:
            while not source.is_held:
                time.sleep(0.01)
            source.num_done += len(batch)
            return super().process(batch)

    catalogue = Catalogue([toys.Read, Lazy])
    plan = make_plan(READ_THEN_ADD, catalogue, Machine(num_cores=2))
    assert len(plan.groups) == 2
    async with running.asked(ledger, plan, "s") as job, running.workers(ledger, catalogue):
        with anyio.fail_after(60):
            await source.feed(registry, ledger)
            last = subjects.results_of(job.plan.answers[0], "s")
            while len(await ledger.subjects(last)) < NUM:  # noqa: ASYNC110 - workers store them
                await anyio.sleep(0.02)
    assert source.furthest <= MAX_AHEAD


async def test_a_source_waits_for_workers_that_are_not_there_yet(ledger: Ledger, registry: Registry) -> None:
    source = Clocked()
    catalogue = Catalogue(toys.ALL)
    plan = make_plan(READ_THEN_ADD, catalogue, Machine(num_cores=2))
    async with running.asked(ledger, plan, "s"), anyio.create_task_group() as tasks:
        tasks.start_soon(source.feed, registry, ledger)
        with anyio.fail_after(60):
            while not source.is_held or source.furthest == 0:  # noqa: ASYNC110 - a thread reads
                await anyio.sleep(0.02)
            assert 0 < len(await stored(ledger)) <= MAX_AHEAD
            async with running.workers(ledger, catalogue):
                while len(await ledger.subjects(subjects.media_of("s"))) <= NUM:  # noqa: ASYNC110
                    await anyio.sleep(0.02)


async def test_what_fell_out_of_retention_holds_no_source_back(ledger: Ledger, registry: Registry) -> None:
    """Half of the stream is computed, and its results go; whoever feeds the other half is not held back by them."""
    catalogue = Catalogue(toys.ALL)
    plan = make_plan(READ_THEN_ADD, catalogue, Machine(num_cores=2))
    half = NUM // 2
    async with running.asked(ledger, plan, "s") as job, running.workers(ledger, catalogue):
        for index in range(half):
            await ledger.put(subjects.media("s", index), encode(toys.toy_segment("s", index, index)))
        last = subjects.results_of(job.plan.answers[0], "s")
        with anyio.fail_after(60):
            while len(await ledger.subjects(last)) < half:  # noqa: ASYNC110 - workers store them
                await anyio.sleep(0.02)
            await ledger.link.api("STREAM.PURGE.PENSTOCK_RESULTS")
            await Clocked().feed(registry, ledger)


async def test_with_no_job_there_is_no_bound(ledger: Ledger, registry: Registry) -> None:
    with anyio.fail_after(60):
        await Clocked().feed(registry, ledger)
    assert len(await stored(ledger)) == NUM + 1
