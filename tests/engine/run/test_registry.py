"""The registry passes over entries that cannot be relied on, says so once, and lists them."""

from collections.abc import AsyncIterator

import msgspec
import pytest
import structlog
from bad_entries import BAD_JOBS, BAD_STREAMS, sound
from hypothesis import given
from hypothesis import strategies as st
from raw_nats import publish_line, send_raw

from engine.run.registry import NodeStatus, Registry, open_registry
from engine.spec.entries import sound_job
from engine.spec.jobs import JobSpec
from engine.spec.stream import StreamSpec
from streams.errors import Malformed, PenstockError, UserError
from streams.wire.kv import open_bucket
from streams.wire.link import connect

ENTRY = msgspec.json.encode(sound())


@pytest.mark.parametrize(("key", "value"), BAD_JOBS.items(), ids=BAD_JOBS.keys())
def test_a_job_that_cannot_be_relied_on_is_malformed(key: str, value: bytes) -> None:
    with pytest.raises(Malformed) as error:
        sound_job(key, value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_a_sound_job_is_read_as_it_is() -> None:
    assert sound_job("good", ENTRY) == sound()


@given(st.integers(0, len(ENTRY) - 1), st.binary(max_size=3), st.integers(0, 5))
def test_a_mutated_job_is_sound_or_malformed(at: int, new: bytes, num_gone: int) -> None:
    try:
        job = sound_job("good", ENTRY[:at] + new + ENTRY[at + num_gone :])
    except Malformed:
        return
    assert job.id == "good"
    assert set(job.spans) >= {stage.id for stage in job.plan.stages}


@pytest.fixture
async def registry(nats_url: str) -> AsyncIterator[Registry]:
    async with connect(nats_url) as link:
        yield await open_registry(link)


async def write_all(registry: Registry, bucket: str, entries: dict[str, bytes]) -> None:
    written = await open_bucket(registry.link, bucket)
    for key, value in entries.items():
        await written.put(key, value)


@pytest.mark.anyio
async def test_bad_jobs_are_passed_over_said_once_and_listed(registry: Registry) -> None:
    await registry.add_job(sound())
    await write_all(registry, "penstock_jobs", BAD_JOBS)
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            assert [job.id for job in await registry.jobs()] == ["good"]
    assert sorted(log["key"] for log in logs if log["event"] == "set_aside") == sorted(BAD_JOBS)
    faulty = await registry.faulty()
    assert sorted((entry.kind, entry.key) for entry in faulty) == sorted(("job", key) for key in BAD_JOBS)
    assert all(entry.cause for entry in faulty)
    for key in BAD_JOBS:
        with pytest.raises(Malformed, match=f"job {key}: its entry cannot be used: "):
            await registry.job(key)
        with pytest.raises(PenstockError):
            await registry.change_job(key, lambda job: job)
        await registry.forget_faulty_job(key)
    await registry.forget_faulty_job("good")
    assert await registry.faulty() == []
    assert [job.id for job in await registry.jobs()] == ["good"]


@pytest.mark.anyio
async def test_of_jobs_that_have_ended_the_newest_are_kept(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.run.registry.KEEP_JOBS", 3)
    for number in range(30):
        await registry.add_job(sound(f"j{number:02}", state="done", submitted_ns=number))
    await registry.say_progress(sound("j00"), {})
    await registry.say_progress(sound("j29"), {})
    await registry.add_job(sound("runs"))
    await registry.add_job(sound("sends", state="done", webhook="http://example.org/"))
    await registry.change_job("j05", lambda job: msgspec.structs.replace(job, state="running"))
    await registry.forget_old_jobs()
    left = {job.id for job in await registry.jobs()}
    assert left == {"runs", "sends", "j05", "j27", "j28", "j29"}
    assert list(await registry.progress()) == ["j29"]


@pytest.mark.anyio
async def test_bad_streams_are_passed_over_and_may_be_declared_anew(registry: Registry, nats_url: str) -> None:
    await registry.declare(StreamSpec(name="good", url="rtsp://camera/1"))
    await write_all(registry, "penstock_streams", BAD_STREAMS)
    send_raw(nats_url, publish_line(b"$KV.penstock_streams.\xff", b'{"name":"s"}'))
    send_raw(nats_url, publish_line(b"$KV.penstock_streams.*", b'{"name":"*"}'))
    assert set(await registry.streams()) == {"good"}
    assert {entry.key for entry in await registry.faulty()} >= set(BAD_STREAMS)
    for key in BAD_STREAMS:
        if key != "with.dots":
            assert await registry.stream(key) is None
    await registry.declare(StreamSpec(name="policy"))
    assert set(await registry.streams()) == {"good", "policy"}


@pytest.mark.anyio
async def test_a_file_on_another_machine_is_no_fault(registry: Registry) -> None:
    elsewhere = StreamSpec(name="file", url="/not/on/this/machine.mp4")
    await write_all(registry, "penstock_streams", {"file": msgspec.json.encode(elsewhere)})
    assert await registry.streams() == {"file": elsewhere}
    with pytest.raises(UserError):
        await registry.declare(StreamSpec(name="file", url="/nor/here.mp4"))


@pytest.mark.anyio
async def test_bad_nodes_answer_nothing(registry: Registry) -> None:
    await registry.say_alive(NodeStatus(id="n1", host="here", pid=1, num_cores=2))
    bad = {"n2": b'{"id":"n3","host":"h","pid":1,"num_cores":1}', "n4": b"\xff", "n5": b"[" * 10**5}
    await write_all(registry, "penstock_nodes", bad)
    assert [node.id for node in await registry.nodes()] == ["n1"]


@pytest.mark.anyio
async def test_an_entry_that_has_not_changed_is_not_read_anew(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counted(key: str, value: bytes) -> JobSpec:
        read.append(key)
        return sound_job(key, value)

    monkeypatch.setattr(registry._jobs, "_sound", counted)
    for id in ("a", "b"):
        await registry.add_job(msgspec.structs.replace(sound(), id=id))
    first = await registry.jobs()
    assert sorted(read) == ["a", "b"]
    again = await registry.jobs()
    assert sorted(read) == ["a", "b"]
    assert all(before is after for before, after in zip(first, again, strict=True))
    await registry.change_job("a", lambda spec: msgspec.structs.replace(spec, detail="x"))
    read.clear()
    assert {job.id: job.detail for job in await registry.jobs()} == {"a": "x", "b": ""}
    assert read == ["a"]
