"""An operator that holds a core past its time: the worker ends with it, and everything else is done by the next."""

import threading
from collections.abc import AsyncIterator, Sequence
from typing import ClassVar

import anyio
import msgspec
import pytest
import running
import toys

from engine.decide import lanes
from engine.node.submission import submit_whole
from engine.run import pools
from engine.run.assignment import Assignment
from engine.run.registry import open_registry
from engine.run.telemetry import Telemetry
from engine.run.worker import Worker
from engine.spec.catalogue import Catalogue
from engine.spec.operator import Capability, Inputs, Machine, Media, Operator, Port, Rung, Settings
from engine.spec.plan import make_plan
from engine.spec.stream import StreamSpec
from engine.spec.workflow import Stage, Workflow
from streams import subjects
from streams.errors import PenstockError
from streams.records import EndOfStream, Gap, decode_result, encode
from streams.wire.ledger import Ledger, open_ledger
from streams.wire.link import connect

pytestmark = pytest.mark.anyio

POISON = 3
HOLDS = Capability("toy_holds", {"media": Port(Media)}, toys.Number, toys.Added)


class Holds(Operator):
    """Never comes back from one number."""

    capability = HOLDS
    name = "holds"
    runs_in = "thread"
    max_batch = 1
    timeout_s = 0.2
    let_go: ClassVar[threading.Event]

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return [Rung("holds", 0.5, Settings())]

    def process(self, batch: Sequence[Inputs]) -> Sequence[msgspec.Struct]:
        (item,) = batch
        if item.first == POISON:
            self.let_go.wait(60)
        return [toys.Number(value=item.first)]


@pytest.fixture
async def ledger(nats_url: str) -> AsyncIterator[Ledger]:
    async with connect(nats_url) as link:
        yield await open_ledger(link)


async def test_a_worker_ends_with_what_it_cannot_end_and_only_that_is_given_up(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "HELD_S", 0.1)
    monkeypatch.setattr(pools, "LOOK_FOR_HELD_S", 0.02)
    Holds.let_go = threading.Event()
    catalogue = Catalogue([Holds])
    stages = {"holds": Stage(capability="toy_holds", inputs={"media": "media"})}
    plan = make_plan(Workflow(name="w", stages=stages), catalogue, Machine(num_cores=2))
    await submit_whole(await open_registry(ledger.link), ledger, plan, StreamSpec(name="s"))
    num, num_ended = 8, 0
    for index in range(num):
        await ledger.put(subjects.media("s", index), encode(toys.toy_segment("s", index, index)))
    await ledger.put(subjects.media_end("s"), encode(EndOfStream(stream="s", num_segments=num)))

    async def keep_a_worker() -> None:
        nonlocal num_ended
        assignment = Assignment(url="", name="w", num_cores=2, ack_wait_s=5, retry=running.POLICY)
        while True:
            with pytest.raises(ExceptionGroup) as raised:
                await Worker(ledger, assignment, catalogue, Telemetry("test")).run()
            assert raised.group_contains(PenstockError, match="past its time")
            num_ended += 1

    names: set[str] = set()
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keep_a_worker)
            with anyio.fail_after(40):
                while len(names) < num:
                    await anyio.sleep(0.02)
                    names = await ledger.subjects(subjects.results_of("*", "s"))
            tasks.cancel_scope.cancel()
    finally:
        Holds.let_go.set()
    records = [decode_result(each.data) for each in (await ledger.get_many(sorted(names))).values()]
    gaps = [record for record in records if isinstance(record, Gap)]
    assert [gap.first for gap in gaps] == [POISON]
    assert "did not finish within" in gaps[0].detail
    assert 1 <= num_ended <= running.POLICY.max_attempts
