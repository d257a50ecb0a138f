"""A worker: a process that hosts pools and runs groups over one stream.

It takes a message only when there is a slot for it, shows progress while it works, acknowledges after what it set off
is stored, and holds nothing that its death would lose. It is started with an assignment on standard input and ends when
that closes, so it never outlives whoever started it.
"""

import ctypes
import hashlib
import os
import signal
import sys
from collections.abc import Hashable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random

import anyio
import anyio.abc
import anyio.to_thread
import msgspec
import structlog

from engine import joins, telemetry
from engine.catalogue import Catalogue, installed
from engine.group import Group
from engine.operator import Device, Fold
from engine.plan import Plan, settings_of
from engine.pool import Capacity, Pool
from engine.retry import Again, RetryPolicy
from engine.shelf import Shelf
from engine.work import GroupStage
from streams.errors import LinkError, PenstockError
from streams.ledger import Ledger, open_ledger
from streams.link import connect
from streams.pull import Acks, Arrival, Pull
from streams.records import encode

log = structlog.get_logger(__name__)


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is to do."""

    plan: Plan
    stream: str
    round: int = 0  # see `engine.job.round_of`
    url: str
    name: str = "worker"
    num_cores: int = 1
    has_gpu: bool = False
    ack_wait_s: float = 10.0  # silence after which the server gives a message to another worker
    retry: RetryPolicy = RetryPolicy()
    trace_file: str = ""
    log_level: str = "warning"


class Worker:
    """Serves an assignment over a ledger until canceled."""

    def __init__(
        self, ledger: Ledger, assignment: Assignment, catalogue: Catalogue, traces: telemetry.Telemetry
    ) -> None:
        self._ledger = ledger
        self._assignment = assignment
        self._catalogue = catalogue
        self._traces = traces
        self._acks = Acks(ledger)
        self._in_flight: dict[int, Arrival] = {}
        self._pulls: list[Pull] = []
        self._capacity = Capacity(assignment.num_cores)

    async def run(self) -> None:
        """Returns only by being canceled; what was under way is handed back."""
        try:
            async with anyio.create_task_group() as tasks:
                for group in self._groups(tasks):
                    if not await group.open():
                        continue
                    for stage in group.stages:
                        tasks.start_soon(stage.pool.warm_up)
                    for stream, filters in group.external.items():
                        durable = f"{_group_name(group)}-{self._assignment.stream}-{self._assignment.round}"
                        pull = Pull(self._ledger.link, stream, durable, filters, self._assignment.ack_wait_s)
                        await pull.open()
                        tasks.start_soon(self._serve, group, pull, tasks)
                tasks.start_soon(self._show_progress)
        finally:
            with anyio.move_on_after(0.3, shield=True):
                for arrival in self._unfinished():
                    await self._acks.again(arrival, 0)

    def _groups(self, tasks: anyio.abc.TaskGroup) -> list[Group]:
        plan = self._assignment.plan
        capabilities = {stage.id: self._catalogue.capability(stage.capability) for stage in plan.stages}
        pools = self._pools(tasks)
        demanded: dict[str, tuple[Hashable, ...]] = {}
        for stage in plan.stages:
            operator = pools[stage.id].operator
            demanded[stage.id] = operator(settings_of(operator.Knobs, stage.rung.knobs)).demands()
        demands = dict.fromkeys(demand for some in demanded.values() for demand in some)
        outputs = {id: capability.output for id, capability in capabilities.items()}
        num_media = 4 + 2 * self._assignment.num_cores
        shelf = Shelf(self._ledger, self._assignment.stream, outputs, tuple(demands), num_media)
        ancestors = plan.ancestors()
        groups = []
        for ids in plan.groups:
            inside = {source for id in ids for source in plan.stage(id).sources}
            stages = [
                GroupStage(
                    planned=stage,
                    capability=capabilities[stage.id],
                    operator=pools[stage.id].operator,
                    params=msgspec.convert(stage.params, capabilities[stage.id].params),
                    pool=pools[stage.id],
                    awaited=frozenset(joins.awaited(stage.sources, ancestors)),
                    read_inside=stage.id in inside or isinstance(stage.scope, Fold),
                )
                for stage in plan.stages
                if stage.id in ids
            ]
            kinds = frozenset(type(demand) for id in ids for demand in demanded[id])
            retries, name = self._assignment.retry, self._assignment.name
            group = Group(plan, stages, shelf, self._ledger, self._traces, retries, name, Random(), kinds)
            groups.append(group)
        return groups

    def _pools(self, tasks: anyio.abc.TaskGroup) -> dict[str, Pool]:
        """The pool of each stage, by its id: one for all stages on the same rung."""
        by_rung: dict[bytes, Pool] = {}
        pools: dict[str, Pool] = {}
        for stage in self._assignment.plan.stages:
            rung = encode([stage.capability, stage.rung])
            if rung not in by_rung:
                operator = self._catalogue.implementation(stage.capability, stage.rung.implementation)
                knobs = settings_of(operator.Knobs, stage.rung.knobs)
                on_gpu = self._assignment.has_gpu and "cuda" in operator.devices
                device = Device("cuda") if on_gpu else Device()
                by_rung[rung] = Pool(operator, knobs, device, self._capacity, tasks)
            pools[stage.id] = by_rung[rung]
        return pools

    async def _serve(self, group: Group, pull: Pull, tasks: anyio.abc.TaskGroup) -> None:
        """Work that comes one by one fills the cores. Work that is batched has two batches on the way, one being
        computed and one being stored; what arrives meanwhile makes the next one larger."""
        max_batch = min(stage.operator.max_batch for stage in group.stages)
        lanes = anyio.Semaphore(self._assignment.num_cores if max_batch == 1 else 1)
        self._pulls.append(pull)
        while True:
            await lanes.acquire()
            try:
                arrivals = await pull.take(max_batch)
            except LinkError as error:
                log.warning("cannot_take", error=str(error))
                lanes.release()
                await anyio.sleep(1)
                continue
            self._in_flight |= {id(arrival): arrival for arrival in arrivals}
            tasks.start_soon(self._work, group, arrivals, lanes)

    async def _work(self, group: Group, arrivals: Sequence[Arrival], lane: anyio.Semaphore) -> None:
        structlog.contextvars.bind_contextvars(trace_id=telemetry.trace_id(arrivals[0].traceparent))
        try:
            verdicts: Sequence[Again | None]
            try:
                verdicts = await group.handle(arrivals)
            except PenstockError as error:
                log.warning("not_finished", error=str(error))
                verdicts = [Again(1.0)] * len(arrivals)
            except Exception as error:
                log.error("not_finished", exc_info=error)
                verdicts = [Again(1.0)] * len(arrivals)
            for arrival, verdict in zip(arrivals, verdicts, strict=True):
                del self._in_flight[id(arrival)]
                if verdict is None:
                    await self._acks.done(arrival)
                else:
                    await self._acks.again(arrival, verdict.delay_s)
        except LinkError as error:
            log.warning("not_acknowledged", error=str(error))  # it will come again, and be found done
        finally:
            lane.release()

    def _unfinished(self) -> list[Arrival]:
        """What this worker has taken and not yet done."""
        return [*self._in_flight.values(), *(arrival for pull in self._pulls for arrival in pull.waiting)]

    async def _show_progress(self) -> None:
        while True:
            await anyio.sleep(self._assignment.ack_wait_s / 3)
            for arrival in self._unfinished():
                try:
                    await self._acks.progress(arrival)
                except LinkError:
                    break  # while it is cut off there is nobody to tell


def _group_name(group: Group) -> str:
    """Stages that run together have one consumer, whichever job brought them together."""
    return hashlib.sha256(encode(sorted(stage.id for stage in group.stages))).hexdigest()[:20]


async def serve(assignment: Assignment) -> None:
    """Serve an assignment until standard input closes or a signal to end comes."""
    telemetry.configure_logging(assignment.log_level)
    trace_file = Path(assignment.trace_file) if assignment.trace_file else None
    traces = telemetry.Telemetry("penstock-worker", trace_file, assignment.name)
    try:
        async with connect(assignment.url, name=assignment.name) as link, anyio.create_task_group() as tasks:
            worker = Worker(await open_ledger(link), assignment, installed(), traces)
            tasks.start_soon(_cancel_when_told, tasks.cancel_scope)
            tasks.start_soon(worker.run)
    finally:
        traces.close()


async def _cancel_when_told(scope: anyio.CancelScope) -> None:
    async with anyio.create_task_group() as tasks:

        async def at_end_of_input() -> None:
            await anyio.to_thread.run_sync(sys.stdin.buffer.read, abandon_on_cancel=True)
            scope.cancel()

        tasks.start_soon(at_end_of_input)
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                scope.cancel()


def die_with_parent() -> None:
    """Have the kernel end this process when its parent ends, however that comes about (Linux; elsewhere the closing of
    standard input does it)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> None:
    die_with_parent()
    with suppress(PenstockError):  # it will be raised again where it can be said
        installed()  # imports what takes long, while the assignment is being made out
    line = sys.stdin.buffer.readline()
    if not line:
        return
    code = 0
    try:
        anyio.run(partial(serve, msgspec.json.decode(line, type=Assignment)))
    except BaseException as error:
        log.error("worker_failed", exc_info=error)
        code = 4
    sys.stderr.flush()
    os._exit(code)  # a thread still inside an operator must not hold the process


if __name__ == "__main__":
    main()
