"""What a job waits for is evicted under it: it is computed again or a gap says so, and the job ends."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
import msgspec
import pytest
import running
import toys

from engine.decide import awaited
from engine.decide.answer import Answer
from engine.decide.running_graph import RunningGroup
from engine.node import answering, consumers
from engine.node.consumers import Floors
from engine.node.recovery import Recovery
from engine.node.submission import submit_whole
from engine.node.tasks import Duties
from engine.run import segment_cache
from engine.run.registry import NodeStatus, Registry, open_registry
from engine.run.telemetry import Telemetry
from engine.spec.catalogue import Catalogue
from engine.spec.jobs import JobSpec, Reached
from engine.spec.operator import Machine
from engine.spec.plan import Plan, make_plan
from engine.spec.stream import StreamSpec
from engine.spec.workflow import Stage, Workflow
from streams import subjects
from streams.records import EndOfStream, encode
from streams.subjects import Key
from streams.wire.ledger import Ledger, open_ledger
from streams.wire.link import Link, connect

pytestmark = pytest.mark.anyio
CATALOGUE = Catalogue(toys.ALL)
VALUES = [1, 2, 4, 8, 16, 32]
TOTAL = Workflow(
    name="total",
    stages={
        "read": Stage(capability="toy_read", inputs={"media": "media"}),
        "add": Stage(capability="toy_add", inputs={"numbers": "read"}),
        "total": Stage(capability="toy_total", inputs={"numbers": ("add",)}),
    },
)


@pytest.fixture
async def ledger(nats_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ledger]:
    monkeypatch.setattr(answering, "RECOUNT_S", 0.1)
    monkeypatch.setattr(awaited, "FIRST_PAUSE_S", 0.1)
    monkeypatch.setattr(awaited, "MAX_PAUSE_S", 0.4)
    async with connect(nats_url) as link:
        yield await open_ledger(link)


@pytest.fixture
async def registry(ledger: Ledger) -> Registry:
    return await open_registry(ledger.link)


def plan_of(workflow: Workflow = TOTAL) -> Plan:
    return make_plan(workflow, CATALOGUE, Machine(num_cores=2))


async def publish(ledger: Ledger, values: Sequence[int], is_end: bool = True) -> None:
    for index, value in enumerate(values):
        await ledger.put(subjects.media("s", index), encode(toys.toy_segment("s", index, value)))
    if is_end:
        await ledger.put(subjects.media_end("s"), encode(EndOfStream(stream="s", num_segments=len(values))))


async def evict(ledger: Ledger, *names: str) -> None:
    for name in names:
        kind = name.split(".")[1].upper()
        await ledger.link.api(f"STREAM.PURGE.PENSTOCK_{kind}", {"filter": name})


@asynccontextmanager
async def answering_node(registry: Registry, ledger: Ledger) -> AsyncIterator[None]:
    """A node that answers jobs and has no workers."""
    status = NodeStatus(id="n1", host="here", pid=1, num_cores=2)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Duties(registry, ledger, CATALOGUE, Telemetry("test"), status).run)
        yield
        tasks.cancel_scope.cancel()


async def done(registry: Registry, ledger: Ledger, job: JobSpec) -> list[Answer]:
    """The job's answers, once it has ended."""
    with anyio.fail_after(30):
        while (await registry.job(job.id)).state != "done":  # noqa: ASYNC110 - another task decides
            await anyio.sleep(0.02)
    return [msgspec.json.decode(s.data, type=Answer) async for s in ledger.every(subjects.answers(job.id, "s"))]


async def answered(ledger: Ledger, job: JobSpec, num: int) -> None:
    with anyio.fail_after(20):
        while len([s async for s in ledger.every(subjects.answers(job.id, "s"))]) < num:  # noqa: ASYNC110
            await anyio.sleep(0.02)


async def all_there(ledger: Ledger, stage_id: str, num: int) -> None:
    with anyio.fail_after(20):
        while len(await ledger.subjects(subjects.results_of(stage_id, "s"))) < num:  # noqa: ASYNC110
            await anyio.sleep(0.02)


async def submitted(registry: Registry, ledger: Ledger, workflow: Workflow = TOTAL) -> JobSpec:
    return await submit_whole(registry, ledger, plan_of(workflow), StreamSpec(name="s"))


async def test_media_that_go_before_they_are_looked_at_leave_gaps_in_an_answer_over_all(
    ledger: Ledger, registry: Registry
) -> None:
    job = await submitted(registry, ledger)
    await publish(ledger, VALUES)
    await evict(ledger, subjects.media("s", 0), subjects.media("s", 1))
    async with answering_node(registry, ledger), running.workers(ledger, CATALOGUE):
        (answer,) = await done(registry, ledger, job)
    assert answer.output["value"] == sum(VALUES[2:])
    assert {(gap.stage, gap.first, gap.cause) for gap in answer.gaps} >= {
        ("read", 0, "dropped"),
        ("read", 1, "dropped"),
    }


async def test_results_that_go_before_they_are_read_are_computed_again(ledger: Ledger, registry: Registry) -> None:
    """The results of the first stages go after their messages were acknowledged, and nobody has them in memory."""
    job = await submitted(registry, ledger)
    read, add, _ = (stage.id for stage in job.plan.stages)
    async with answering_node(registry, ledger):
        async with running.workers(ledger, CATALOGUE):
            await publish(ledger, VALUES, is_end=False)
            await all_there(ledger, add, len(VALUES))
        names = [subjects.result(id, "s", subjects.Key.of(index)) for id in (read, add) for index in (0, 1, 2)]
        await evict(ledger, *names)
        async with running.workers(ledger, CATALOGUE):
            await publish(ledger, VALUES)
            (answer,) = await done(registry, ledger, job)
    assert answer.output["value"] == sum(VALUES)
    assert answer.gaps == ()


async def test_a_result_that_goes_with_its_media_is_a_gap(ledger: Ledger, registry: Registry) -> None:
    job = await submitted(registry, ledger)
    read, add, _ = (stage.id for stage in job.plan.stages)
    async with answering_node(registry, ledger):
        async with running.workers(ledger, CATALOGUE):
            await publish(ledger, VALUES, is_end=False)
            await all_there(ledger, add, len(VALUES))
        first = subjects.Key.of(0)
        await evict(ledger, *(subjects.result(id, "s", first) for id in (read, add)), subjects.media("s", 0))
        async with running.workers(ledger, CATALOGUE):
            await publish(ledger, [], is_end=False)
            await ledger.put(subjects.media_end("s"), encode(EndOfStream(stream="s", num_segments=len(VALUES))))
            (answer,) = await done(registry, ledger, job)
    assert answer.output["value"] == sum(VALUES[1:])
    assert ("add", 0, "dropped") in {(gap.stage, gap.first, gap.cause) for gap in answer.gaps}


async def test_an_answer_for_each_segment_goes_on_behind_results_that_went(ledger: Ledger, registry: Registry) -> None:
    """One node's worker computes everything; what was stored goes before the job's first answer is made."""
    each = Workflow(name="each", stages={name: TOTAL.stages[name] for name in ("read", "add")})
    job = await submitted(registry, ledger, each)
    async with running.workers(ledger, CATALOGUE):
        await publish(ledger, VALUES)
        await all_there(ledger, job.plan.answers[0], len(VALUES))
    await evict(ledger, subjects.results_of("*", "s"))
    async with answering_node(registry, ledger), running.workers(ledger, CATALOGUE):
        answers = await done(registry, ledger, job)
    assert [answer.output["value"] for answer in answers] == VALUES


async def test_results_that_go_while_the_stream_goes_on_are_computed_again_from_what_is_not_answered(
    ledger: Ledger, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something is heard of and under way all the time, and what was answered before is wanted by nobody."""
    monkeypatch.setattr(answering, "RECOUNT_S", 0.4)
    monkeypatch.setattr(answering, "PROGRESS_S", 0.05)
    each = Workflow(name="each", stages={name: TOTAL.stages[name] for name in ("read", "add")})
    job = await submitted(registry, ledger, each)
    last, num = job.plan.answers[0], len(VALUES)

    async def keep_coming() -> None:
        for index in range(num, 1000):
            await ledger.put(subjects.media("s", index), encode(toys.toy_segment("s", index, index)))
            await anyio.sleep(0.1)  # no silence is as long as a look waits for

    async with running.workers(ledger, CATALOGUE):
        async with answering_node(registry, ledger):
            await publish(ledger, VALUES[:4], is_end=False)
            await answered(ledger, job, 4)
            with anyio.fail_after(20):
                while (said := await registry.progress_of(job)) != {last: Reached(4)}:
                    assert said.get(last, Reached(0)).next <= 4
                    await anyio.sleep(0.02)
        await publish(ledger, VALUES, is_end=False)
        await all_there(ledger, last, num)
        await evict(ledger, subjects.results_of("*", "s"))
        async with answering_node(registry, ledger), anyio.create_task_group() as tasks:
            tasks.start_soon(keep_coming)
            await answered(ledger, job, num + 2)
            tasks.cancel_scope.cancel()
    stored = {key.first for key in subjects.keys_of(await ledger.subjects(subjects.results_of(last, "s")))}
    assert stored >= {4, 5}
    assert not stored & {0, 1, 2, 3}


async def test_what_is_never_kept_long_enough_is_given_up(
    ledger: Ledger, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retention is too small for what the answer must read at once, and workers have no memory to speak of."""
    monkeypatch.setattr(segment_cache, "MAX_RESULTS", 1)
    config = (await ledger.link.api("STREAM.INFO.PENSTOCK_RESULTS"))["config"]
    await ledger.link.api("STREAM.UPDATE.PENSTOCK_RESULTS", {**config, "max_msgs": 4})
    job = await submitted(registry, ledger)
    await publish(ledger, VALUES)
    async with answering_node(registry, ledger), running.workers(ledger, CATALOGUE):
        (answer,) = await done(registry, ledger, job)
    (gap,) = [gap for gap in answer.gaps if gap.stage == "total"]
    assert (gap.first, gap.last, gap.cause) == (0, 5, "dropped")
    assert "falls out of retention before it can be read" in gap.detail


async def test_a_job_after_everything_went_gets_a_round_of_its_own(ledger: Ledger, registry: Registry) -> None:
    """The consumers of the job before have had every input acknowledged, and are still there."""
    each = Workflow(name="each", stages={"read": TOTAL.stages["read"]})
    async with answering_node(registry, ledger), running.workers(ledger, CATALOGUE):
        before = await submitted(registry, ledger, each)
        await publish(ledger, VALUES)
        await done(registry, ledger, before)
        await evict(ledger, subjects.results_of("*", "s"))
        after = await submitted(registry, ledger, each)
        assert after.rounds != before.rounds
        assert len(await done(registry, ledger, after)) == len(VALUES)


async def test_what_is_still_to_come_is_waited_for_without_a_list_of_what_is_kept(
    ledger: Ledger, registry: Registry, listed: list[str]
) -> None:
    """A job on a camera waits for the next segment nearly always, and a week of segments is long to list."""
    await publish(ledger, VALUES[:2], is_end=False)
    spec = await submit_whole(registry, ledger, plan_of(), StreamSpec(name="s"))
    recovery = Recovery(registry, ledger, spec, Floors(registry))
    listed.clear()
    await recovery.look(spec.plan.answers[0], Key.of(2), None)
    assert listed == [subjects.media("s", 2)]
    await Recovery(registry, ledger, spec, Floors(registry)).look(spec.plan.answers[0], Key.of(1), None)
    assert subjects.media_of("s") in listed


async def test_how_far_groups_are_is_read_once_for_all_who_wait(
    ledger: Ledger, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = await submitted(registry, ledger)
    ids = {stage.id for stage in spec.plan.stages}
    num_read = 0
    read = consumers.acknowledged

    async def counted(link: Link, group: RunningGroup) -> consumers.Floor | None:
        nonlocal num_read
        num_read += 1
        return await read(link, group)

    monkeypatch.setattr(consumers, "acknowledged", counted)
    floors = Floors(registry)
    marked_s = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(floors.since, "s", marked_s, ids)
    num_groups = num_read
    assert len(await floors.since("s", marked_s, ids)) == num_groups == num_read  # what was read since serves
    assert await floors.since("s", anyio.current_time(), {"another"}) == []
    assert num_read == num_groups  # those of other questions are not asked after
    await floors.since("s", anyio.current_time(), ids)
    assert num_read == 2 * num_groups
