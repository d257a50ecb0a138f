"""A job over a file that its submitter brings, beside others: how it ends, and what it shares."""

import threading
from collections.abc import AsyncIterator, Callable, Iterator

import anyio
import pytest
import running
import toys
from conftest import Eventually

from engine.run.registry import Registry, open_registry
from engine.spec.catalogue import Catalogue
from engine.spec.operator import Machine
from engine.spec.plan import Plan, make_plan
from engine.spec.workflow import Stage, Workflow
from streams import subjects
from streams.errors import UserError
from streams.records import EndOfStream, MediaMessage
from streams.wire.ledger import Ledger, open_ledger
from streams.wire.link import connect

pytestmark = pytest.mark.anyio
CATALOGUE = Catalogue(toys.ALL)
VALUES = [1, 2, 4, 8, 16, 32]


def plan_of(add: int = 0) -> Plan:
    read = Stage(capability="toy_read", inputs={"media": "media"})
    total = Stage(capability="toy_total", inputs={"numbers": ("read",)}, params={"add": add})
    return make_plan(Workflow(name="t", stages={"read": read, "total": total}), CATALOGUE, Machine(num_cores=2))


class File:
    """Counts how often it is read; with a gate, it stops before its last segment."""

    def __init__(self, num: int = len(VALUES), gate: threading.Event | None = None) -> None:
        self.num_reads = self.num_given = 0
        self._num = num
        self._gate = gate

    def __call__(self) -> Iterator[MediaMessage]:
        self.num_reads += 1
        for index in range(self._num):
            if self._gate is not None and index == self._num - 1:
                self._gate.wait(timeout=20)
            self.num_given += 1
            yield toys.toy_segment("s", index, VALUES[index])
        yield EndOfStream(stream="s", num_segments=self._num)


@pytest.fixture
async def ledger(nats_url: str) -> AsyncIterator[Ledger]:
    async with connect(nats_url) as link:
        yield await open_ledger(link)


@pytest.fixture
async def registry(ledger: Ledger) -> Registry:
    return await open_registry(ledger.link)


async def total(ledger: Ledger, read: Callable[[], Iterator[MediaMessage]], add: int = 0) -> int:
    with anyio.fail_after(30):
        (answer,) = await running.answered(ledger, CATALOGUE, plan_of(add), "s", read)
    return int(answer.output["value"])


async def states(registry: Registry) -> list[tuple[str, str]]:
    return [(job.state, job.detail) for job in await registry.jobs()]


async def test_it_is_done_when_it_ends_and_its_stream_is_listed_but_not_read(
    ledger: Ledger, registry: Registry
) -> None:
    async with running.workers(ledger, CATALOGUE):
        assert await total(ledger, File()) == 63
    assert await states(registry) == [("done", "")]
    (stream,) = (await registry.streams()).values()
    assert (stream.name, stream.url) == ("s", "")


async def test_one_that_is_left_is_canceled(ledger: Ledger, registry: Registry, eventually: Eventually) -> None:
    gate = threading.Event()
    file = File(gate=gate)
    async with running.workers(ledger, CATALOGUE), anyio.create_task_group() as tasks:
        tasks.start_soon(total, ledger, file)
        await eventually(lambda: file.num_given == len(VALUES) - 1)
        tasks.cancel_scope.cancel()
    gate.set()
    assert await states(registry) == [("canceled", "")]


async def test_a_file_with_nothing_in_it_fails_in_words(ledger: Ledger, registry: Registry) -> None:
    async with running.workers(ledger, CATALOGUE):
        with pytest.raises(UserError, match="the input has no segment"):
            await total(ledger, File(num=0))
    ((state, detail),) = await states(registry)
    assert state == "failed"
    assert "has no segment" in detail


async def test_of_two_at_once_one_feeds_and_both_are_answered(
    ledger: Ledger, registry: Registry, eventually: Eventually
) -> None:
    gate = threading.Event()
    files = [File(gate=gate), File(gate=gate)]
    found: list[int] = []

    async def ask(number: int) -> None:
        found.append(await total(ledger, files[number], number))

    async with running.workers(ledger, CATALOGUE), anyio.create_task_group() as tasks:
        for number in range(2):
            tasks.start_soon(ask, number)
        await eventually(lambda: sum(file.num_given for file in files) == len(VALUES) - 1)
        with anyio.fail_after(20):
            while len(await registry.jobs()) < 2:  # noqa: ASYNC110 - the other task adds it
                await anyio.sleep(0.01)
        gate.set()
    assert sorted(found) == [63, 64]
    assert sorted(file.num_reads for file in files) == [0, 1]
    assert await states(registry) == [("done", ""), ("done", "")]


async def test_what_retention_took_of_the_file_is_published_again(ledger: Ledger, registry: Registry) -> None:
    async with running.workers(ledger, CATALOGUE):
        assert await total(ledger, File()) == 63
        for index in (0, 1):
            await ledger.link.api("STREAM.PURGE.PENSTOCK_MEDIA", {"filter": subjects.media("s", index)})
        await ledger.link.api("STREAM.PURGE.PENSTOCK_RESULTS", {"filter": subjects.results_of("*", "s")})
        again, once_more = File(), File()
        assert await total(ledger, again) == 63
        assert again.num_reads == 1
        assert await total(ledger, once_more, 7) == 70
        assert once_more.num_reads == 0
    assert len(await ledger.subjects(subjects.media_of("s"))) == len(VALUES) + 1
