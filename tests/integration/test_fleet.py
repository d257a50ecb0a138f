"""Workers come and go as the load is: processes of a node that drain, and a node that says how many there are to be."""

import math
import os
import select
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
import toys
from conftest import Eventually
from live_service import CATALOGUE, running_service

from engine.decide.decisions import Decision
from engine.decide.reconcile import offer_of, offers
from engine.decide.retry import RetryPolicy
from engine.decide.signals import ResourceSignals, StreamSignals, WorkerSignals
from engine.node import fleet, worker_processes
from engine.node.fleet import Workforce, room_of
from engine.node.worker_processes import node
from engine.node.workers_heard import WorkersHeard
from engine.run import spawn
from engine.run.assignment import BEAT, READY, Assignment
from engine.run.journal import Journal
from engine.run.loading import Loading
from engine.run.registry import NodeStatus, Registry, open_registry
from engine.run.telemetry import Telemetry
from engine.run.worker import Worker
from engine.spec.catalogue import Catalogue
from engine.spec.operator import Device
from engine.spec.workflow import Stage, Workflow
from streams import subjects
from streams.errors import first_error
from streams.records import decode_result
from streams.wire.ledger import Ledger, open_ledger
from streams.wire.link import Link, connect

pytestmark = pytest.mark.anyio

WEIGHED = Workflow(name="weighed", stages={"weigh": Stage(capability="toy_weigh", inputs={"media": "media"})})


async def heard_on(link: Link) -> set[str]:
    """The workers that have said something."""
    heard: set[str] = set()

    async def hear(message: Any) -> None:
        heard.add(message.subject.rpartition(".")[2])

    await link.subscribe("penstock.signals.>", hear)
    await link.client.flush()
    return heard


async def test_processes_are_added_and_those_that_are_too_many_end_by_themselves(
    nats_url: str, tmp_path: Path, eventually: Eventually
) -> None:
    log = tmp_path / "workers.log"
    async with node(0, log) as workers, connect(nats_url) as link:
        heard = await heard_on(link)
        workers.assign(Assignment(url=nats_url, name="n"))
        assert workers.pids == {}
        workers.scale(2)
        await eventually(lambda: heard == {"n-0", "n-1"})
        first, second = workers.pids[0], workers.pids[1]
        workers.scale(1)
        await eventually(lambda: workers.pids == {0: first})
        with pytest.raises(ProcessLookupError):
            os.kill(second, 0)
        workers.scale(2)
        await eventually(lambda: len(workers.pids) == 2 and second not in workers.pids.values())
        workers.scale(0)
        workers.scale(1)  # at once: those that were told to go are followed by another
        await eventually(lambda: len(workers.pids) == 1 and first not in workers.pids.values())
        assert workers.num_restarts == 0
    assert "worker_failed" not in log.read_text()


async def test_one_is_started_beside_one_that_takes_long_to_go(
    nats_url: str, tmp_path: Path, eventually: Eventually
) -> None:
    async with node(2, tmp_path / "workers.log") as workers, connect(nats_url) as link:
        heard = await heard_on(link)
        workers.assign(Assignment(url=nats_url, name="n"))
        await eventually(lambda: heard == {"n-0", "n-1"})
        os.kill(workers.pids[1], signal.SIGSTOP)  # it will not hear that it is to go
        try:
            workers.scale(1)
            workers.scale(2)
            await eventually(lambda: "n-2" in heard)
            assert set(workers.pids) == {0, 1, 2}
            assert workers.start_s < 30
        finally:
            os.kill(workers.pids[1], signal.SIGCONT)
        await eventually(lambda: set(workers.pids) == {0, 2})


async def test_one_that_ends_without_being_told_to_is_started_again_and_paused_for(
    nats_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(errors: Any) -> spawn.Process:
        return subprocess.Popen(["true"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    monkeypatch.setattr(spawn, "worker", gone)
    with pytest.raises(ExceptionGroup) as raised:
        async with node(1, tmp_path / "workers.log") as workers:
            workers.assign(Assignment(url=nats_url))
            await anyio.sleep_forever()
    assert "ended 6 times in a row at once (exit 0)" in str(first_error(raised.value))


async def test_where_no_process_can_be_started_it_is_tried_again(
    nats_url: str, tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, num = spawn.worker, 0

    def sometimes(errors: Any) -> spawn.Process:
        nonlocal num
        num += 1
        if num < 9:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return started(errors)

    monkeypatch.setattr(spawn, "worker", sometimes)
    monkeypatch.setattr(worker_processes, "MAX_PAUSE_S", 0.05)
    async with node(1, tmp_path / "workers.log") as workers, connect(nats_url) as link:
        heard = await heard_on(link)
        workers.assign(Assignment(url=nats_url, name="n"))
        await eventually(lambda: heard == {"n-0"})


def sleeper(stdout: int) -> spawn.Process:
    return subprocess.Popen(["sleep", "60"], stdin=subprocess.PIPE, stdout=stdout, start_new_session=True)


async def test_one_works_when_it_says_so_and_not_as_soon_as_it_lives(eventually: Eventually) -> None:
    there, here = os.pipe()
    process = sleeper(there)
    process.stdout = os.fdopen(there, "rb")
    said: list[str] = []

    def is_read() -> bool:
        return not select.select([there], [], [], 0)[0]

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker_processes._end_when_silent, process, 0, lambda: said.append("ready"))
            os.write(here, BEAT)
            await eventually(is_read)
            assert said == []
            os.write(here, BEAT + READY + BEAT)
            await eventually(is_read)
            assert said == ["ready"]
            os.close(here)
    finally:
        process.kill()
        process.wait()
        worker_processes.spawn.let_go(process)


async def test_a_worker_is_ready_when_what_there_was_to_do_is_loaded(nats_url: str, eventually: Eventually) -> None:
    may_load, loads = threading.Event(), threading.Event()

    class Heavy(toys.Weigh):
        def load(self, device: Device) -> None:
            loads.set()
            assert may_load.wait(60)

    told: list[str] = []
    loading = Loading(lambda: told.append("loaded"), lambda: told.append("ready"))
    catalogue = Catalogue([each for each in toys.ALL if each is not toys.Weigh] + [Heavy])
    async with running_service(nats_url) as service, anyio.create_task_group() as tasks:
        service.stand_by()
        await service.declare(name="d")
        await service.submit(stream="d", workflow=WEIGHED, standing=True)
        assignment = Assignment(url=nats_url, name="heavy", num_cores=1)
        worker = Worker(service.ledger, assignment, catalogue, Telemetry("test"), loading=loading)
        tasks.start_soon(worker.run)
        await eventually(loads.is_set)
        assert not worker.signals().is_ready
        assert told == []
        may_load.set()
        await eventually(lambda: worker.signals().is_ready)
        assert told == ["loaded", "ready"]
        tasks.cancel_scope.cancel()


async def test_a_worker_for_which_there_is_nothing_to_do_is_ready_at_once(
    nats_url: str, eventually: Eventually
) -> None:
    async with running_service(nats_url) as service, anyio.create_task_group() as tasks:
        told: list[str] = []
        loading = Loading(lambda: told.append("loaded"), lambda: told.append("ready"))
        worker = Worker(
            service.ledger, Assignment(url=nats_url, name="idle"), CATALOGUE, Telemetry("test"), loading=loading
        )
        tasks.start_soon(worker.run)
        await eventually(lambda: worker.signals().is_ready)
        assert told == [], "so little says nothing of how long a start takes"
        tasks.cancel_scope.cancel()


async def test_one_that_is_told_to_go_does_what_it_has_taken_and_leaves_the_rest_to_others(nats_url: str) -> None:
    async with running_service(nats_url) as service, anyio.create_task_group() as tasks:
        service.stand_by()

        async def work(name: str, scope: anyio.CancelScope, made: list[Worker]) -> None:
            policy = RetryPolicy(first_delay_s=0.01, max_delay_s=0.02)
            assignment = Assignment(url=nats_url, name=name, num_cores=1, ack_wait_s=60, retry=policy)
            made.append(Worker(service.ledger, assignment, CATALOGUE, Telemetry("test")))
            with scope:
                await made[0].run()

        first: list[Worker] = []
        scope = anyio.CancelScope()
        tasks.start_soon(work, "first", scope, first)
        await service.declare(name="d")
        job = await service.submit(stream="d", workflow=WEIGHED, standing=True)
        await service.publish(range(1, 21), stream="d", end=True)
        stage = (await service.registry.job(job.job)).plan.stages[0].id
        with anyio.fail_after(30):
            while not await service.ledger.subjects(subjects.results_of(stage, "d")):  # noqa: ASYNC110
                await anyio.sleep(0.01)
        num_taken = sum(each.num_in_service for each in first[0].signals().streams)
        assert num_taken > 0
        await first[0].drain()
        assert [each.num_in_service for each in first[0].signals().streams] == [0]
        num_done = sum(pool.num_done for pool in first[0].signals().pools)
        done = await service.ledger.subjects(subjects.results_of(stage, "d"))
        assert 0 < len(done) < 20, "there is something left"
        scope.cancel()
        second: list[Worker] = []
        tasks.start_soon(work, "second", anyio.CancelScope(), second)
        with anyio.fail_after(60):
            while (await service.registry.job(job.job)).state != "done":  # noqa: ASYNC110
                await anyio.sleep(0.02)
        names = await service.ledger.subjects(subjects.results_of(stage, "d"))
        records = [decode_result(stored.data) for stored in (await service.ledger.get_many(names)).values()]
        numbers = [msgspec.msgpack.decode(record.output, type=toys.Number).value for record in records]  # type: ignore[union-attr]
        assert sorted(numbers) == list(range(1, 21))
        num_done += sum(pool.num_done for pool in second[0].signals().pools)
        assert num_done == 20, "and nothing was computed twice"
        tasks.cancel_scope.cancel()


class Speaker:
    """A node, as far as it says how many workers it has."""

    def __init__(self, **but: Any) -> None:
        told = {"id": "n1", "host": "h", "pid": 1, "num_cores": 8, "num_workers": 0, "max_workers": 4}
        told["serves"] = tuple(offers(CATALOGUE, ["cpu"]))
        self.status = NodeStatus(**{**told, **but})
        self.kept: list[int] = []
        self.start_s = 5.0

    def scale(self, num_workers: int) -> None:
        self.kept.append(num_workers)


class Worked:
    """A workforce with what it goes by and what it tells."""

    def __init__(
        self, link: Link, ledger: Ledger, registry: Registry, now_s: Callable[[], float] = anyio.current_time
    ) -> None:
        self.link, self.ledger, self.registry = link, ledger, registry
        self.heard = WorkersHeard(link)
        self.journal = Journal("n1")
        self.force = Workforce(registry, self.heard, self.journal, now_s)

    def decided(self) -> list[Decision]:
        return self.journal.decisions(loop="fleet")

    def hears(self, name: str, at_s: float, asked_s: float = 0.0, num_asked: int = 0, **stream: Any) -> None:
        streams = (StreamSignals("s", num_in_service=1, **stream),) if stream else ()
        resource = ResourceSignals("cores", 2, num_asked=num_asked, asked_s=asked_s)
        signals = WorkerSignals(name, "n1", round(at_s * 1e9), streams=streams, resources=(resource,))
        self.heard.hear(name, msgspec.json.encode(signals))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "LOOK_S", 0.02)


@pytest.mark.usefixtures("quick")
async def test_a_recording_that_waits_brings_workers_and_their_number_is_said(
    nats_url: str, eventually: Eventually
) -> None:
    async with connect(nats_url) as link, anyio.create_task_group() as tasks:
        worked, speaker = Worked(link, await open_ledger(link), await open_registry(link)), Speaker(num_workers=1)
        tasks.start_soon(worked.force.run, speaker, speaker)
        worked.hears("n1-0", 1.0, num_waiting=50, segment_s={"cores": 4.0})
        await eventually(lambda: speaker.kept != [])
        assert speaker.kept == [2]  # 200 s of work, of which 50 s for each start
        assert worked.force.wanted == {"cores": 2}
        (decision,) = worked.decided()
        assert decision.what == "2 workers from now on"
        assert "200.0 s of work wait" in decision.why
        assert decision.worker == "n1"
        with anyio.fail_after(10):
            while [status.num_workers for status in await worked.registry.nodes()] != [2]:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()


async def test_from_none_one_is_started_when_there_is_something_that_nobody_has_seen(nats_url: str) -> None:
    async with running_service(nats_url) as service:
        now_s = 100.0
        worked, own = Worked(service.ledger.link, service.ledger, service.registry, lambda: now_s), Speaker().status

        async def looks() -> int:
            nonlocal now_s
            now_s += 1.0
            return await worked.force.look(own, 3.0)

        await service.publish([1, 2])
        assert [await looks(), await looks()] == [0, 0], "nobody asks for it"
        await service.submit(standing=True)
        assert await looks() == 1, "it may want what is stored already"
        assert "the first work came" in worked.decided()[0].why
        own = msgspec.structs.replace(own, num_workers=1)
        assert await looks() == 1, "it is not heard yet: unknown is not nothing"
        for at in range(60):  # an hour of nothing, and it goes
            worked.heard.hear("n1-0", idle("n1-0", at))
            if await looks() == 0:
                break
        own = msgspec.structs.replace(own, num_workers=0)
        assert worked.decided()[-1].what == "0 workers from now on"
        worked.heard = worked.force._heard = WorkersHeard(worked.link)
        assert [await looks(), await looks()] == [0, 0]
        await service.publish([3], first=2)
        assert await looks() == 1
        own = msgspec.structs.replace(own, num_workers=0)  # as if another had done it
        worked.force._fleets.clear()
        worked.force.wanted.clear()
        now_s += fleet.PEEK_S
        assert await looks() == 1, "now and then, to look"


async def test_what_comes_while_the_last_worker_leaves_is_news(nats_url: str) -> None:
    async with running_service(nats_url) as service:
        now_s = 100.0
        worked, own = Worked(service.ledger.link, service.ledger, service.registry, lambda: now_s), Speaker().status
        await service.publish([1])
        await service.submit(standing=True)
        own = msgspec.structs.replace(own, num_workers=1)
        for at in range(100):
            now_s += 1.0
            worked.heard.hear("n1-0", idle("n1-0", at))
            if await worked.force.look(own, 3.0) == 0:
                break
        await service.publish([2], first=1)  # it takes nothing any more, and is still heard
        own = msgspec.structs.replace(own, num_workers=0)
        worked.force._heard = WorkersHeard(worked.link)
        now_s += 1.0
        assert await worked.force.look(own, 3.0) == 1


async def test_where_none_is_heard_that_should_be_all_stays(nats_url: str) -> None:
    async with running_service(nats_url) as service:
        now_s = 100.0
        worked, own = Worked(service.ledger.link, service.ledger, service.registry, lambda: now_s), Speaker().status
        await service.submit(standing=True)
        own = msgspec.structs.replace(own, num_workers=3)
        for _ in range(300):
            now_s += 1.0
            assert await worked.force.look(own, 3.0) == 3
        assert worked.decided() == []


async def test_workers_are_started_where_they_can_do_something(nats_url: str) -> None:
    async with running_service(nats_url) as service:
        now_s = 100.0
        worked = Worked(service.ledger.link, service.ledger, service.registry, lambda: now_s)
        job = await service.submit(standing=True)
        (first, *_) = (await service.registry.job(job.job)).plan.stages
        able = Speaker(id="n2", serves=(offer_of(first),)).status
        await service.registry.say_alive(able)
        own = Speaker(id="n1", serves=("other/other/1/cpu",)).status
        for _ in range(3):
            now_s += 6.0
            assert await worked.force.look(own, 3.0) == 0, "what comes is nothing to it"
        other = Worked(service.ledger.link, service.ledger, service.registry, lambda: now_s)
        await service.registry.say_alive(own)
        now_s += 6.0
        assert await other.force.look(able, 3.0) == 1


def idle(name: str, at: int) -> bytes:
    resource = ResourceSignals("cores", 2)
    return msgspec.json.encode(WorkerSignals(name, "n1", at * 10**9, resources=(resource,)))


@pytest.mark.usefixtures("quick")
async def test_a_look_that_fails_leaves_the_workers_as_they_are(nats_url: str, eventually: Eventually) -> None:
    async with connect(nats_url) as link, anyio.create_task_group() as tasks:
        worked, speaker = Worked(link, await open_ledger(link), await open_registry(link)), Speaker(num_workers=1)
        num = 0

        async def broken() -> list[NodeStatus]:
            nonlocal num
            num += 1
            if num < 5:
                raise RuntimeError("for a test")
            return []

        worked.registry.nodes = broken  # type: ignore[method-assign]
        worked.hears("n1-0", 1.0, num_waiting=500, segment_s={"cores": 4.0})
        tasks.start_soon(worked.force.run, speaker, speaker)
        await eventually(lambda: speaker.kept == [4])
        assert num >= 5
        assert worked.force.wanted["cores"] > 4, "more than there is room for: others may make some"
        tasks.cancel_scope.cancel()


@pytest.mark.usefixtures("quick")
async def test_nodes_share_what_is_wanted(nats_url: str, eventually: Eventually) -> None:
    async with connect(nats_url) as link, anyio.create_task_group() as tasks:
        registry = await open_registry(link)
        other = Speaker(id="n0", num_workers=0).status
        await registry.say_alive(other)
        worked, speaker = Worked(link, await open_ledger(link), registry), Speaker(num_workers=1)
        tasks.start_soon(worked.force.run, speaker, speaker)
        worked.hears("n1-0", 1.0, num_waiting=150, segment_s={"cores": 4.0})
        await eventually(lambda: worked.force.wanted.get("cores") == 6)
        await eventually(lambda: speaker.kept == [3])
        tasks.cancel_scope.cancel()


def test_a_node_that_does_not_say_keeps_what_it_has() -> None:
    fixed = room_of(NodeStatus(id="n", host="h", pid=1, num_cores=8, num_workers=4))
    assert (fixed.least, fixed.most, fixed.lanes) == (4, 4, 2.0)
    free = room_of(NodeStatus(id="n", host="h", pid=1, num_cores=8, num_workers=0, min_workers=0, max_workers=16))
    assert (free.least, free.most, free.lanes) == (0, 16, 1.0)
    assert math.isclose(free.lanes, 1.0)
