"""One bad message, entry, job or sender does not end a node: it is set aside, said, and the rest goes on."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
import pytest
import structlog
import toys
from bad_entries import BAD_JOBS, BAD_STREAMS, CATALOGUE, EACH, sound
from conftest import Eventually
from raw_nats import BAD_HEADERS, publish_line, send_raw

from engine.decide.answer import Answer
from engine.node import answering, tasks
from engine.node.answering import PROGRESS, Answering
from engine.node.consumers import Floors
from engine.node.endpoints import Services
from engine.node.intake import MAX_LAG, OFFSET, SEGMENT, Intake
from engine.node.moments import Moments
from engine.node.submission import JobRequest
from engine.node.tasks import Duties, _follow
from engine.node.views import stream_views
from engine.run.registry import NodeStatus, Registry, open_registry
from engine.run.telemetry import Telemetry
from engine.spec.jobs import JobSpec
from engine.spec.operator import Machine
from engine.spec.stream import StreamSpec
from streams import subjects
from streams.errors import Permanent
from streams.records import EndOfStream, Result, encode
from streams.subjects import Key
from streams.wire.kv import open_bucket
from streams.wire.ledger import Ledger, open_ledger
from streams.wire.link import connect

pytestmark = pytest.mark.anyio
DEEP = b"\x91" * 100_000


class Here:
    """A node's duties in this event loop, and what their surroundings do."""

    def __init__(self, registry: Registry, ledger: Ledger, url: str) -> None:
        self.registry = registry
        self.ledger = ledger
        self.url = url
        self.services = Services(registry, ledger, CATALOGUE, Machine(num_cores=2), EACH)

    @asynccontextmanager
    async def on_duty(self) -> AsyncIterator[None]:
        status = NodeStatus(id="n1", host="here", pid=1, num_cores=2)
        traces = Telemetry("test")
        async with anyio.create_task_group() as group:
            group.start_soon(Duties(self.registry, self.ledger, CATALOGUE, traces, status).run)
            group.start_soon(Intake(self.registry, self.ledger, traces, "n1").run)
            yield
            group.cancel_scope.cancel()

    def answering(self, job: JobSpec) -> Answering:
        return Answering(
            self.ledger,
            self.registry,
            job,
            CATALOGUE,
            Moments(self.ledger),
            Floors(self.registry),
            Telemetry("test"),
        )

    async def write(self, bucket: str, entries: dict[str, bytes]) -> None:
        written = await open_bucket(self.ledger.link, bucket)
        for key, value in entries.items():
            await written.put(key, value)

    async def media(self, num: int, stream: str = "s") -> None:
        for index in range(num):
            await self.ledger.put(subjects.media(stream, index), encode(toys.toy_segment(stream, index, index)))
        await self.ledger.put(subjects.media_end(stream), encode(EndOfStream(stream=stream, num_segments=num)))

    async def results(self, job: JobSpec, indices: range) -> None:
        for stage in job.plan.stages:
            for index in indices:
                await self.ledger.put(
                    subjects.result(stage.id, job.stream, Key.of(index)), result(job, stage.id, index)
                )

    async def answers(self, job: JobSpec) -> list[Answer]:
        found = []
        async for stored in self.ledger.every(subjects.answers(job.id, job.stream)):
            try:
                found.append(msgspec.json.decode(stored.data, type=Answer))
            except msgspec.DecodeError:
                continue
        return found

    async def ended(self, id: str) -> JobSpec:
        with anyio.fail_after(20):
            while (job := await self.registry.job(id)).state == "running":  # noqa: ASYNC110 - others change it
                await anyio.sleep(0.02)
        return job


def result(job: JobSpec, stage: str, index: int) -> bytes:
    output = msgspec.Raw(encode(toys.Number(value=index)))
    return encode(Result(stage=stage, stream=job.stream, first=index, last=index, output=output))


@pytest.fixture
async def here(nats_url: str) -> AsyncIterator[Here]:
    async with connect(nats_url) as link:
        yield Here(await open_registry(link), await open_ledger(link), nats_url)


# --- entries ---------------------------------------------------------------------------------------------------


async def test_bad_entries_end_nothing_and_are_listed(here: Here) -> None:
    await here.write("penstock_jobs", BAD_JOBS)
    await here.write("penstock_streams", BAD_STREAMS)
    async with here.on_duty():
        await here.media(3)
        job = sound(last=2)
        await here.registry.add_job(job)
        await here.results(job, range(3))
        assert (await here.ended("good")).state == "done"
        assert len(await here.answers(job)) == 3
        views = {view.job: view for view in await here.services.jobs()}
        assert set(views) == {"good", *BAD_JOBS}
        assert {key for key, view in views.items() if view.state == "unreadable"} == set(BAD_JOBS)
        assert "which does not come before it" in views["cycle"].detail
        assert "spans" in views["no_spans"].detail
        streams = {view.stream: view for view in await stream_views(here.registry, here.ledger)}
        assert {key for key, view in streams.items() if view.state == "unreadable"} == set(BAD_STREAMS)
        assert "gopher" in streams["no_source"].detail
        assert (await here.services.cancel("cycle")).state == "unreadable"
        await here.services.forget("policy")
        assert "cycle" not in {view.job for view in await here.services.jobs()}
        with anyio.fail_after(10):  # new jobs are taken as ever
            await here.services.submit(JobRequest(stream="s", workflow=EACH))


async def test_a_job_that_is_written_over_ends_alone(here: Here) -> None:
    await here.media(3)
    async with here.on_duty():
        for id in ("over", "good"):
            await here.registry.add_job(sound(id, last=2))
        await here.results(sound(last=2), range(1))
        await here.write("penstock_jobs", {"over": b"\xff"})
        await here.results(sound(last=2), range(3))
        assert (await here.ended("good")).state == "done"


# --- records ---------------------------------------------------------------------------------------------------

GARBAGE = {
    "noise": b"\xff\x00garbage",
    "nothing": b"",
    "deep": b"\x82\xa4type\xa6result\xa1x" + DEEP,
    "another output": encode(
        {"type": "result", "stage": "ID", "stream": "s", "first": 1, "last": 1, "output": {"value": "many"}}
    ),
    "of another": encode(
        {"type": "result", "stage": "ID", "stream": "t", "first": 1, "last": 1, "output": {"value": 1}}
    ),
    "a stage nobody knows": encode(
        {"type": "gap", "stage": "x", "stream": "s", "first": 1, "last": 1, "cause": "late"}
    ),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
@pytest.mark.parametrize("of_last", [True, False])
async def test_a_garbage_result_is_answered_as_a_gap(here: Here, garbage: bytes, of_last: bool) -> None:
    job = sound(last=2)
    first, last = (stage.id for stage in job.plan.stages)
    bad = last if of_last else first
    is_unread = not of_last and garbage is GARBAGE["another output"]  # for the stage which reads it to find out
    garbage = garbage.replace(b"\xa2ID", bytes([0xA0 + len(bad)]) + bad.encode())
    await here.media(3)
    await here.ledger.put(subjects.result(bad, "s", Key.of(1)), garbage)
    await here.results(job, range(3))
    async with here.on_duty():
        await here.registry.add_job(job)
        ended = await here.ended("good")
    assert (ended.state, ended.detail) == ("done", "")
    answers = await here.answers(job)
    assert [answer.first for answer in answers] == [0, 1, 2]
    if is_unread:
        return
    (gap,) = answers[1].gaps
    assert (gap.cause, gap.first) == ("dead_lettered", 1)
    assert gap.detail.startswith("the stored record cannot be read: ")
    assert not answers[0].gaps
    assert not answers[2].gaps
    if of_last:
        assert await here.ledger.get(subjects.gap("dead_lettered", last, "s", Key.of(1))) is not None


@pytest.mark.parametrize("data", [b"garbage", DEEP, b"", encode({"type": "end", "stream": "s"})])
async def test_garbage_media_spoil_their_own_stream_only(here: Here, data: bytes) -> None:
    for name in ("evil", "good"):
        await here.registry.declare(StreamSpec(name=name))
    await here.ledger.put(subjects.media("evil", 0), data)
    await here.ledger.put(subjects.media_end("evil"), data)
    await here.media(2, "good")
    views = {view.stream: view for view in await stream_views(here.registry, here.ledger)}
    assert views["good"].state == "ended"
    assert views["evil"].detail.startswith("its newest record cannot be read: ")
    async with here.on_duty():
        for name in ("evil", "good"):
            await here.registry.add_job(sound(name, name, last=0))
            await here.results(sound(name, name), range(1))
        assert (await here.ended("good")).state == "done"
        assert (await here.ended("evil")).state == "done"
    _, clock = await Moments(here.ledger).of("evil", 0)
    assert clock is None


async def test_a_record_of_chunks_that_never_were_is_said_and_passed_over(here: Here) -> None:
    await here.registry.declare(StreamSpec(name="evil"))
    for reference in ("a" * 40 + ".999999999", "x.99999999999999", "9" * 5000, ".", "*.>"):
        headers = {"Penstock-Bulk": reference}
        await here.ledger.link.jetstream.publish("penstock.media.evil.0", b"", headers=headers)
        with anyio.fail_after(5):
            with pytest.raises(Permanent):
                await here.ledger.get("penstock.media.evil.0")
            (view,) = await stream_views(here.registry, here.ledger)
        assert "cannot be read" in view.detail


# --- answers that others publish -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {PROGRESS: "\ufffd{"},
        {PROGRESS: "[" * 900},
        {PROGRESS: '{"nobody":[0]}'},
        {PROGRESS: '{"x":[' + "9" * 3000 + "]}"},
        {PROGRESS: "{}", "Penstock-Bulk": "a.b"},
    ],
)
async def test_a_foreign_answer_with_bad_progress_is_passed_over(here: Here, headers: dict[str, str]) -> None:
    job = sound(last=3)
    await here.media(4)
    await here.results(job, range(2))
    subject = subjects.answers(job.id, job.stream)
    with anyio.move_on_after(10) as first:

        async def begin() -> None:
            await here.answering(job).run()

        async with anyio.create_task_group() as group:
            group.start_soon(begin)
            while len(await here.answers(job)) < 2:  # noqa: ASYNC110 - in the ledger
                await anyio.sleep(0.01)
            group.cancel_scope.cancel()
    assert not first.cancelled_caught
    bad = {key: value for key, value in headers.items() if key == PROGRESS}
    await here.ledger.link.jetstream.publish(subject, b"foreign", headers=bad or None)
    await here.results(job, range(4))
    with anyio.fail_after(20):
        await here.answering(job).run()
    assert [answer.first for answer in await here.answers(job)] == [0, 1, 2, 3]


# --- senders ---------------------------------------------------------------------------------------------------


BAD_PIECES = [
    {OFFSET: "9" * 5000},
    {OFFSET: "9" * 19},
    {OFFSET: "-1"},
    {OFFSET: "one"},
    {SEGMENT: "nan"},
    {SEGMENT: "inf"},
    {MAX_LAG: "1e999"},
    {SEGMENT: "9" * 5000},
    {"Penstock-Policy": "x" * 100_000},
]


async def test_bad_headers_are_answered_and_the_node_goes_on(here: Here) -> None:
    async with here.on_duty(), connect(here.url) as sender:
        for number, headers in enumerate(BAD_PIECES):
            with anyio.fail_after(10):
                reply = await sender.client.request(subjects.ingest(f"bad{number}"), b"xx", timeout=9, headers=headers)
            said = msgspec.json.decode(reply.data)
            assert said["error"], headers
            assert len(said["error"]) < 500
            assert next(iter(headers)) in said["error"]
        reply = await sender.client.request(subjects.ingest("fine"), b"xx", timeout=9, headers={OFFSET: "0"})
        assert msgspec.json.decode(reply.data) == {"offset": 2}


async def test_the_end_of_a_stream_that_no_stream_can_be_is_answered(here: Here) -> None:
    async with here.on_duty(), connect(here.url) as sender:
        for name in ("cam:1", "ü", "x" * 200):
            reply = await sender.client.request(f"penstock.ingest.{name}", b"", timeout=9)
            assert "cannot be part of a subject" in msgspec.json.decode(reply.data)["error"]
        reply = await sender.client.request(subjects.ingest("fine"), b"xx", timeout=9, headers={OFFSET: "0"})
        assert msgspec.json.decode(reply.data) == {"offset": 2}


async def test_what_no_client_would_send_reaches_nobody_else(here: Here, eventually: Eventually) -> None:
    """A header block and a subject that the client library cannot read, on every subject a node listens to."""
    job = sound(last=1)
    answer_stage = job.plan.answers[0].encode()
    heard = (
        b"penstock.ingest.a",
        b"penstock.media.s.end",
        b"$KV.penstock_jobs.x",
        b"penstock.results.%s.s.0" % answer_stage,
    )
    async with here.on_duty():
        await here.media(2)
        await here.registry.add_job(job)
        for subject in heard[:3]:
            send_raw(here.url, publish_line(subject, b"x", BAD_HEADERS), publish_line(subject + b"\xff", b"x"))
        await here.results(job, range(2))
        assert (await here.ended("good")).state == "done"
        reply = await here.ledger.link.client.request(subjects.ingest("fine"), b"xx", timeout=9, headers={OFFSET: "0"})
        assert msgspec.json.decode(reply.data) == {"offset": 2}
    assert here.ledger.link.num_reconnects == 0


# --- work that raises --------------------------------------------------------------------------------------------


async def test_work_that_raises_is_begun_again_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "FIRST_PAUSE_S", 0.01)
    begun: list[str] = []
    all_done = anyio.Event()

    async def work(item: str) -> None:
        begun.append(item)
        if item == "good":
            await all_done.wait()
        elif begun.count(item) < 4:
            raise KeyError("a bug") if item == "bad" else ExceptionGroup("", [ValueError("another")])
        elif begun.count("bad") >= 4 and begun.count("worse") >= 4:
            all_done.set()

    running: dict[Any, anyio.CancelScope] = {}
    with anyio.fail_after(5), structlog.testing.capture_logs() as logs:
        async with anyio.create_task_group() as group:
            _follow(running, {name: name for name in ("bad", "worse", "good")}, group, work)
            await all_done.wait()
    assert begun.count("good") == 1
    said = [log for log in logs if log["event"] == "work_failed" and log["what"] == "bad"]
    assert [log["pause_s"] for log in said] == [0.01, 0.02, 0.04]
    assert [bool(log["exc_info"]) for log in said] == [True, False, False]


async def test_a_bug_in_answering_fails_its_job_only(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = answering.Answering._go_on

    async def go_on_or_not(self: Answering) -> None:
        if self.spec.id == "bad":
            raise KeyError("a bug")
        await go_on(self)

    monkeypatch.setattr(answering.Answering, "_go_on", go_on_or_not)
    await here.media(2)
    async with here.on_duty():
        for id in ("bad", "good"):
            await here.registry.add_job(sound(id, last=1))
        await here.results(sound(), range(2))
        assert (await here.ended("good")).state == "done"
        ended = await here.ended("bad")
    assert (ended.state, ended.detail) == ("failed", "KeyError while answering; the node's log says more")


async def test_a_job_that_cannot_be_answered_here_says_why(here: Here, eventually: Eventually) -> None:
    entry = msgspec.json.decode(msgspec.json.encode(sound("odd", last=1)))
    entry["plan"]["stages"][1]["capability"] = "nobody_has"
    await here.media(2)
    await here.write("penstock_jobs", {"odd": msgspec.json.encode(entry)})
    async with here.on_duty():
        await here.results(sound(), range(2))
        with anyio.fail_after(10):
            while not (job := await here.registry.job("odd")).detail:  # noqa: ASYNC110 - as above
                await anyio.sleep(0.02)
    assert job.state == "running"
    assert "nobody_has" in job.detail
