"""Many questions to one stream: each is worked on by itself, with what is stored, and none holds up another."""

from collections.abc import AsyncIterator

import anyio
import msgspec
import pytest
import running
import toys
from conftest import Eventually

from engine.decide.answer import Answer
from engine.node.submission import submit_whole
from engine.node.tasks import Duties
from engine.run.group import Group
from engine.run.registry import NodeStatus, Registry, open_registry
from engine.run.telemetry import Telemetry
from engine.spec.catalogue import Catalogue
from engine.spec.jobs import JobSpec, Span
from engine.spec.operator import Machine
from engine.spec.plan import make_plan
from engine.spec.stream import StreamSpec
from engine.spec.workflow import Stage, Workflow
from streams import subjects
from streams.records import EndOfStream, encode
from streams.subjects import Key
from streams.wire.ledger import Ledger, open_ledger
from streams.wire.link import connect
from streams.wire.pull import Arrival

pytestmark = pytest.mark.anyio
CATALOGUE = Catalogue(toys.ALL)
NUM_SEGMENTS = 50


@pytest.fixture
async def ledger(nats_url: str) -> AsyncIterator[Ledger]:
    async with connect(nats_url) as link:
        yield await open_ledger(link)


async def ask(registry: Registry, ledger: Ledger, question: int) -> JobSpec:
    stages = {
        "read": Stage(capability="toy_read", inputs={"media": "media"}),
        "total": Stage(capability="toy_total", inputs={"numbers": ("read",)}, params={"add": question}),
    }
    plan = make_plan(Workflow(name="ask", stages=stages), CATALOGUE, Machine(num_cores=2))
    return await submit_whole(registry, ledger, plan, StreamSpec(name="s"))


async def answer_to(registry: Registry, ledger: Ledger, job: JobSpec) -> int:
    with anyio.fail_after(60):
        while (await registry.job(job.id)).state != "done":  # noqa: ASYNC110 - another task decides
            await anyio.sleep(0.05)
    (answer,) = [msgspec.json.decode(s.data, type=Answer) async for s in ledger.every(subjects.answers(job.id, "s"))]
    value: int = answer.output["value"]
    return value


async def test_a_question_to_what_is_computed_is_brought_the_last_of_it_only(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And those that come while others are worked on do not make these begin again."""
    registry = await open_registry(ledger.link)
    for index in range(NUM_SEGMENTS):
        await ledger.put(subjects.media("s", index), encode(toys.toy_segment("s", index, index)))
    await ledger.put(subjects.media_end("s"), encode(EndOfStream(stream="s", num_segments=NUM_SEGMENTS)))
    taken: list[str] = []
    take = Group.take

    def noted(self: Group, arrival: Arrival) -> None:
        taken.append(arrival.subject)
        take(self, arrival)

    monkeypatch.setattr(Group, "take", noted)
    status = NodeStatus(id="n1", host="here", pid=1, num_cores=2)
    total = sum(range(NUM_SEGMENTS))
    async with anyio.create_task_group() as tasks, running.workers(ledger, CATALOGUE):
        tasks.start_soon(Duties(registry, ledger, CATALOGUE, Telemetry("test"), status).run)
        assert await answer_to(registry, ledger, await ask(registry, ledger, 0)) == total
        before = len(taken)
        jobs = [await ask(registry, ledger, question) for question in range(1, 31)]
        answers = [await answer_to(registry, ledger, job) for job in jobs]
        assert answers == [total + question for question in range(1, 31)]
        last = subjects.result(jobs[0].plan.stages[0].id, "s", Key.of(NUM_SEGMENTS - 1))
        assert taken[before:] == [last] * len(jobs)
        tasks.cancel_scope.cancel()


async def test_a_long_stream_is_not_listed_where_what_is_asked_of_it_is_there(
    ledger: Ledger, listed: list[str], eventually: Eventually
) -> None:
    """A camera's week has 600,000 segments."""
    registry = await open_registry(ledger.link)
    hole = 10
    there = [index for index in range(3, NUM_SEGMENTS) if index != hole]
    for index in there:
        await ledger.put(subjects.media("s", index), encode(toys.toy_segment("s", index, index)))
    await ledger.put(subjects.media_end("s"), encode(EndOfStream(stream="s", num_segments=NUM_SEGMENTS)))
    read = Workflow(name="read", stages={"read": Stage(capability="toy_read", inputs={"media": "media"})})
    plan = make_plan(read, CATALOGUE, Machine(num_cores=2))
    results = subjects.results_of(plan.answers[0], "s")
    async with running.workers(ledger, CATALOGUE):
        for first in (5, 1):
            asked = Span(first=first)
            await registry.add_job(
                JobSpec(id=f"from-{first}", stream="s", plan=plan, spans={plan.answers[0]: (asked,)}, asked=asked)
            )
            num = len([index for index in there if index >= first])
            with anyio.fail_after(30):
                while len(await ledger.subjects(results)) < num:  # noqa: ASYNC110
                    await anyio.sleep(0.02)
        assert subjects.media_of("s") not in listed
        asked = Span(first=hole)
        await registry.change_job(
            "from-1", lambda spec: msgspec.structs.replace(spec, asked=asked, spans={plan.answers[0]: (asked,)})
        )
        await registry.change_job("from-5", lambda spec: msgspec.structs.replace(spec, state="canceled"))
        await eventually(lambda: subjects.media_of("s") in listed)
