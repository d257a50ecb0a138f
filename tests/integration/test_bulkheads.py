"""What one job, stage, stream or record does stops no other: a real worker over a real server."""

import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, ClassVar

import anyio
import msgspec
import pytest
import running
import toys
from conftest import Eventually

from engine.node.submission import submit_whole
from engine.run import worker
from engine.run.registry import open_registry
from engine.spec.catalogue import Catalogue
from engine.spec.jobs import JobSpec
from engine.spec.operator import Capability, Inputs, Machine, Media, Operator, Port, Rung, Settings
from engine.spec.plan import Plan, make_plan
from engine.spec.stream import StreamSpec
from engine.spec.workflow import Stage, Workflow
from streams import subjects
from streams.records import EndOfStream, Gap, decode_result, encode
from streams.subjects import Key
from streams.wire.clock import ServerClock
from streams.wire.ledger import Ledger, open_ledger
from streams.wire.link import connect
from streams.wire.retention import MEDIA

pytestmark = pytest.mark.anyio

SLOW = Capability("toy_slow", {"media": Port(Media)}, toys.Number, toys.Added)
MANY = Capability("toy_many", {"media": Port(Media)}, toys.Number, toys.Added)


class Slow(Operator):
    """Takes as long as it is held, one by one."""

    capability = SLOW
    name = "slow"
    let_go: ClassVar[threading.Event]
    num_begun: ClassVar[int] = 0

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return [Rung("slow", 0.5, Settings())]

    def process(self, batch: Sequence[Inputs]) -> Sequence[msgspec.Struct]:
        Slow.num_begun += 1
        self.let_go.wait(30)
        return [toys.Number(value=1) for _ in batch]


class Many(Operator):
    """Takes many at once, and the first one alone until it is let go."""

    capability = MANY
    name = "many"
    max_batch = 16
    let_go: ClassVar[threading.Event]
    sizes: ClassVar[list[int]] = []

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return [Rung("many", 0.5, Settings())]

    def process(self, batch: Sequence[Inputs]) -> Sequence[msgspec.Struct]:
        Many.sizes.append(len(batch))
        self.let_go.wait(30)
        return [toys.Number(value=2) for _ in batch]


CATALOGUE = Catalogue([*toys.ALL, Slow, Many])


def plan_of(*capabilities: str) -> Plan:
    stages = {name: Stage(capability=name, inputs={"media": "media"}) for name in capabilities}
    return make_plan(Workflow(name="w", stages=stages), CATALOGUE, Machine(num_cores=2))


@pytest.fixture
async def ledger(nats_url: str) -> AsyncIterator[Ledger]:
    async with connect(nats_url) as link:
        yield await open_ledger(link)


@pytest.fixture(autouse=True)
def held() -> None:
    Slow.let_go, Many.let_go, Slow.num_begun, Many.sizes = threading.Event(), threading.Event(), 0, []


async def put(ledger: Ledger, stream: str, num: int, due_ns: int = 0, end: bool = True) -> None:
    for index in range(num):
        segment = encode(toys.toy_segment(stream, index, index))
        await ledger.put(subjects.media(stream, index), segment, "", due_ns)
    if end:
        await ledger.put(subjects.media_end(stream), encode(EndOfStream(stream=stream, num_segments=num)))


async def stored(ledger: Ledger, plan: Plan, name: str, stream: str, num: int) -> list[Any]:
    """The records of a stage, once there are so many."""
    (id,) = [stage.id for stage in plan.stages if stage.name == name]
    with anyio.fail_after(20):
        while len(names := await ledger.subjects(subjects.results_of(id, stream))) < num:  # noqa: ASYNC110
            await anyio.sleep(0.01)
    return [decode_result(each.data) for each in (await ledger.get_many(sorted(names))).values()]


async def submitted(ledger: Ledger, plan: Plan, stream: str, change: Callable[[JobSpec], JobSpec] | None = None) -> str:
    registry = await open_registry(ledger.link)
    spec = await submit_whole(registry, ledger, plan, StreamSpec(name=stream))
    if change is not None:
        await registry.change_job(spec.id, change)
    return spec.id


def with_rung(stage_name: str, **changes: Any) -> Callable[[JobSpec], JobSpec]:
    def change(spec: JobSpec) -> JobSpec:
        stages = tuple(
            msgspec.structs.replace(stage, rung=msgspec.structs.replace(stage.rung, **changes))
            if stage.name == stage_name
            else stage
            for stage in spec.plan.stages
        )
        return msgspec.structs.replace(spec, plan=msgspec.structs.replace(spec.plan, stages=stages))

    return change


async def test_a_stage_beside_a_slow_one_answers_at_once(ledger: Ledger) -> None:
    plan = plan_of("toy_read", "toy_slow")
    assert len(plan.groups) == 1
    try:
        async with running.workers(ledger, CATALOGUE):
            await submitted(ledger, plan, "s")
            await put(ledger, "s", 2)
            assert len(await stored(ledger, plan, "toy_read", "s", 2)) == 2
            assert await ledger.subjects(subjects.results_of(plan.stages[1].id, "s")) == set()
            Slow.let_go.set()
            await stored(ledger, plan, "toy_slow", "s", 2)
    finally:
        Slow.let_go.set()


async def test_a_stage_that_takes_many_gets_them_beside_one_that_takes_one(
    ledger: Ledger, eventually: Eventually
) -> None:
    plan = plan_of("toy_many", "toy_slow")
    assert len(plan.groups) == 1
    try:
        async with running.workers(ledger, CATALOGUE):
            await submitted(ledger, plan, "s")
            await put(ledger, "s", 12)
            await eventually(lambda: len(Many.sizes) > 0)
            Slow.let_go.set()
            Many.let_go.set()
            await stored(ledger, plan, "toy_many", "s", 12)
        assert max(Many.sizes) > 1
    finally:
        Slow.let_go.set()
        Many.let_go.set()


async def test_a_job_whose_operator_is_not_here_stops_no_other(ledger: Ledger) -> None:
    good, strange = plan_of("toy_read"), plan_of("toy_near")
    await submitted(ledger, strange, "strange", with_rung("toy_near", implementation="elsewhere"))
    await submitted(ledger, strange, "renamed", with_rung("toy_near", knobs={"gone": 1}))
    await submitted(ledger, strange, "gpu", with_rung("toy_near", device="cuda"))
    async with running.workers(ledger, CATALOGUE):
        await submitted(ledger, good, "s")
        await put(ledger, "s", 3)
        assert len(await stored(ledger, good, "toy_read", "s", 3)) == 3
        await put(ledger, "gpu", 2)
        await submitted(ledger, good, "t")
        await put(ledger, "t", 2)
        await stored(ledger, good, "toy_read", "t", 2)
        assert await ledger.subjects(subjects.results_of("*", "gpu")) == set()  # it did not fall to the processor


async def test_entries_that_are_none_stop_no_worker(ledger: Ledger) -> None:
    plan = plan_of("toy_read")
    await open_registry(ledger.link)
    async with running.workers(ledger, CATALOGUE):
        for number, entry in enumerate([b"\xff\xfe", b"[" * 100_000, b"{}", b'{"id": "x", "plan": 3}']):
            await ledger.link.jetstream.publish(f"$KV.penstock_jobs.bad{number}", entry)
        await submitted(ledger, plan, "s")
        await put(ledger, "s", 3)
        await stored(ledger, plan, "toy_read", "s", 3)


async def test_records_that_are_garbage_are_gaps_and_the_next_ones_go_on(ledger: Ledger) -> None:
    plan = plan_of("toy_read")
    async with running.workers(ledger, CATALOGUE):
        await submitted(ledger, plan, "evil")
        await submitted(ledger, plan, "s")
        await ledger.put(subjects.media("evil", 0), b"\xc1garbage")
        await ledger.put("penstock.media.evil.not-a-number", b"x")
        await ledger.put(subjects.media("evil", 1), encode(toys.toy_segment("evil", 1, 5)))
        await ledger.put(subjects.media_end("evil"), b"no end at all")
        await put(ledger, "s", 2)
        first, second = await stored(ledger, plan, "toy_read", "evil", 2)
        assert isinstance(first, Gap)
        assert "cannot be read" in first.detail
        assert not isinstance(second, Gap)
        await stored(ledger, plan, "toy_read", "s", 2)


@pytest.mark.parametrize("off_s", [-60, 60])
async def test_a_worker_whose_clock_is_a_minute_off_makes_nothing_late(ledger: Ledger, off_s: int) -> None:
    ledger.clock = ServerClock(ledger.link, MEDIA, local_ns=lambda: time.time_ns() + off_s * 10**9)
    await ledger.clock.estimate()
    plan = plan_of("toy_read")
    prompt = lambda spec: msgspec.structs.replace(spec, prompt_from=0)  # noqa: E731
    async with running.workers(ledger, CATALOGUE):
        await submitted(ledger, plan, "s", prompt)
        await put(ledger, "s", 3, due_ns=time.time_ns() + 30 * 10**9, end=False)
        on_time = await stored(ledger, plan, "toy_read", "s", 3)
        await submitted(ledger, plan, "t", prompt)
        await put(ledger, "t", 3, due_ns=time.time_ns() - 10**9, end=False)
        late = await stored(ledger, plan, "toy_read", "t", 3)
    assert not any(isinstance(record, Gap) for record in on_time)
    assert {record.cause for record in late} == {"late"}


async def test_lateness_does_not_depend_on_how_stages_are_fused(ledger: Ledger) -> None:
    stages = {
        "a": Stage(capability="toy_read", inputs={"media": "media"}),
        "b": Stage(capability="toy_add", inputs={"numbers": "a"}),
    }
    plan = make_plan(Workflow(name="w", stages=stages), CATALOGUE, Machine(num_cores=2))
    due_ns = time.time_ns() + 3600 * 10**9
    for name, grouped in (("fused", plan.regrouped([[s.id for s in plan.stages]])), ("apart", plan)):
        async with running.workers(ledger, CATALOGUE):
            await submitted(ledger, grouped, name)
            await put(ledger, name, 1, due_ns=due_ns)
            await stored(ledger, plan, "b", name, 1)
        kept = [await ledger.get(subjects.result(stage.id, name, Key.of(0))) for stage in plan.stages]
        assert [each.due_ns for each in kept if each is not None] == [due_ns, due_ns]


async def test_consumers_go_with_the_groups_that_nobody_asks_for(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "SEEN_S", 0.1)
    plan = plan_of("toy_read")
    registry = await open_registry(ledger.link)

    async def consumers() -> set[str]:
        return set((await ledger.link.api(f"CONSUMER.NAMES.{MEDIA}"))["consumers"] or [])

    async with running.workers(ledger, CATALOGUE, num=2):
        await put(ledger, "s", 6, end=False)
        first = await submitted(ledger, plan, "s")
        await stored(ledger, plan, "toy_read", "s", 6)
        (before,) = await consumers()
        second = await submitted(
            ledger, plan, "s", lambda spec: msgspec.structs.replace(spec, rounds={plan.stages[0].id: 7})
        )
        with anyio.fail_after(20):
            while not (now := await consumers()) or before in now:  # noqa: ASYNC110 - workers do it
                await anyio.sleep(0.02)
        assert len(now) == 1
        for job in (first, second):
            await registry.change_job(job, lambda spec: msgspec.structs.replace(spec, state="canceled"))
        with anyio.fail_after(20):
            while await consumers():  # noqa: ASYNC110 - workers do it
                await anyio.sleep(0.02)
