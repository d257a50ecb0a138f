"""A worker: a process that hosts pools and runs the groups of stages that the jobs need.

It takes a message only when there is a slot for it, shows progress while it works, acknowledges after what it set off
is stored, and holds nothing that its death would lose. It is started with an assignment on standard input and ends when
that closes, so it never outlives whoever started it.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

import anyio
import anyio.abc
import anyio.to_thread
import msgspec
import structlog

from engine.decide import joins
from engine.decide.retry import Again, RetryPolicy
from engine.decide.running_graph import RunningGroup, RunningStage, in_order, running_groups
from engine.run import telemetry
from engine.run.group import Group
from engine.run.pool import Capacity, Pool
from engine.run.registry import following
from engine.run.segment_cache import Shelf
from engine.run.work import GroupStage
from engine.spec.catalogue import Catalogue, installed
from engine.spec.jobs import JobSpec
from engine.spec.operator import Device, Fold
from engine.spec.plan import PlannedStage, ancestors, settings_of
from streams.errors import LinkError, PenstockError
from streams.records import encode
from streams.wire.ledger import Ledger, open_ledger
from streams.wire.link import connect
from streams.wire.pull import Acks, Arrival, Pull

log = structlog.get_logger(__name__)

DRAIN_S = 30.0  # what a group that is replaced gets to finish what it has taken
KEEP_POOL_S = 600.0  # a pool that no job needs: the next job that does finds its models loaded


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """Where a worker works, and at what: the jobs given here, or those of the bucket, whatever they are at the time."""

    jobs: tuple[JobSpec, ...] | None = None  # None: follow the bucket
    url: str
    name: str = "worker"
    num_cores: int = 1
    has_gpu: bool = False
    ack_wait_s: float = 10.0  # silence after which the server gives a message to another worker
    retry: RetryPolicy = RetryPolicy()
    trace_file: str = ""
    log_level: str = "warning"
    log_file: str = ""  # where what it says goes from now on


@dataclass(slots=True)
class _Served:
    """A group that is being served; its scopes end the taking of messages, not the work on those taken."""

    group: Group
    stage_ids: frozenset[str]
    pools: list[Pool]
    pulls: list[Pull] = field(default_factory=list)
    scopes: list[anyio.CancelScope] = field(default_factory=list)
    is_leaving: bool = False
    num_in_flight: int = 0
    drained: anyio.Event = field(default_factory=anyio.Event)

    def leave(self) -> None:
        self.is_leaving = True
        for scope in self.scopes:
            scope.cancel()
        self.note_progress()

    def note_progress(self) -> None:
        if self.is_leaving and not self.num_in_flight:
            self.drained.set()


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
        self._served: dict[tuple[str, str], _Served] = {}
        self._shelves: dict[str, Shelf] = {}
        self._pools: dict[bytes, tuple[Pool, float]] = {}  # by rung; when it was last needed (monotonic)
        self._capacity = Capacity(assignment.num_cores)

    async def run(self) -> None:
        """Returns only by being canceled; what was under way is handed back."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._show_progress)
                if self._assignment.jobs is None:
                    await self._follow(tasks)
                else:
                    await self.reconcile(self._assignment.jobs, tasks)
        finally:
            with anyio.move_on_after(0.3, shield=True):
                for arrival in self._unfinished():
                    await self._acks.again(arrival, 0)

    # --- which groups ------------------------------------------------------------------------------------------

    async def _follow(self, tasks: anyio.abc.TaskGroup) -> None:
        """Do what the bucket's jobs ask for, and go with their changes."""
        async with following(self._ledger.link) as jobs:
            async for current in jobs:
                try:
                    await self.reconcile(current, tasks)
                except PenstockError as error:
                    log.warning("cannot_follow", error=str(error))  # and once more with the next look at the bucket

    async def reconcile(self, jobs: Sequence[JobSpec], tasks: anyio.abc.TaskGroup) -> None:
        """Serve the groups that these jobs need and no other."""
        groups = running_groups(jobs)
        names = {stage.id: stage.name for job in jobs for stage in job.plan.stages}
        wanted = {(group.stream, group.name): group for group in groups}
        leaving = [self._served.pop(key) for key in list(self._served) if key not in wanted]
        for served in leaving:
            served.leave()
        self._tend_shelves(groups)
        above = _ancestors(groups)
        for key, running in wanted.items():
            stages = [self._stage(stage, running, above[running.stream], tasks) for stage in running.stages]
            if key in self._served:  # asked for by other jobs now, perhaps with another patience
                self._served[key].group.stages = stages
                continue
            kinds = frozenset(type(demand) for stage in stages for demand in _demands(stage.running, self._catalogue))
            policy, name = self._assignment.retry, self._assignment.name
            shelf = self._shelves[running.stream]
            group = Group(names, stages, shelf, self._ledger, self._traces, policy, name, Random(), kinds)
            served = _Served(group, frozenset(stage.id for stage in stages), [stage.pool for stage in stages])
            self._served[key] = served
            before = [old for old in leaving if old.group.stream == running.stream and old.stage_ids & served.stage_ids]
            tasks.start_soon(self._start, running, served, before, tasks)
        since_s = time.monotonic() - KEEP_POOL_S
        self._pools = {rung: kept for rung, kept in self._pools.items() if kept[1] >= since_s}

    def _tend_shelves(self, groups: Sequence[RunningGroup]) -> None:
        """One for each stream, which knows what will be read from it and asked of its media."""
        by_stream: dict[str, list[RunningStage]] = {}
        for group in groups:
            by_stream.setdefault(group.stream, []).extend(group.stages)
        for stream in set(self._shelves) - set(by_stream):
            del self._shelves[stream]
        for stream, stages in by_stream.items():
            if stream not in self._shelves:
                self._shelves[stream] = Shelf(self._ledger, stream, 4 + 2 * self._assignment.num_cores)
            demands = dict.fromkeys(demand for stage in stages for demand in _demands(stage, self._catalogue))
            outputs = {stage.id: self._catalogue.capability(stage.planned.capability).output for stage in stages}
            self._shelves[stream].serve(outputs, tuple(demands))

    def _stage(
        self,
        running: RunningStage,
        group: RunningGroup,
        above: dict[str, frozenset[str]],
        tasks: anyio.abc.TaskGroup,
    ) -> GroupStage:
        planned = running.planned
        capability = self._catalogue.capability(planned.capability)
        inside = {source for stage in group.stages for source in stage.planned.sources}
        return GroupStage(
            running=running,
            capability=capability,
            operator=self._catalogue.implementation(planned.capability, planned.rung.implementation),
            params=msgspec.convert(planned.params, capability.params),
            pool=self._pool(planned, tasks),
            awaited=frozenset(joins.awaited(planned.sources, above)),
            read_inside=planned.id in inside or isinstance(planned.scope, Fold),
        )

    def _pool(self, planned: PlannedStage, tasks: anyio.abc.TaskGroup) -> Pool:
        """One for all stages on the same rung, whatever the stream."""
        rung = encode([planned.capability, planned.rung])
        pool = self._pools[rung][0] if rung in self._pools else self._new_pool(planned, tasks)
        self._pools[rung] = pool, time.monotonic()
        return pool

    def _new_pool(self, planned: PlannedStage, tasks: anyio.abc.TaskGroup) -> Pool:
        operator = self._catalogue.implementation(planned.capability, planned.rung.implementation)
        on_gpu = self._assignment.has_gpu and "cuda" in operator.devices
        device = Device("cuda") if on_gpu else Device()
        return Pool(operator, settings_of(operator.Knobs, planned.rung.knobs), device, self._capacity, tasks)

    # --- serving them ------------------------------------------------------------------------------------------

    async def _start(
        self, running: RunningGroup, served: _Served, before: Sequence[_Served], tasks: anyio.abc.TaskGroup
    ) -> None:
        """Serve a group once those it takes over from have finished what they had taken, or it would do it again."""
        with anyio.move_on_after(DRAIN_S):
            for old in before:
                await old.drained.wait()
        try:
            starts = None if served.is_leaving else await served.group.open()
            if starts is None:
                return
            for pool in served.pools:
                tasks.start_soon(pool.warm_up)
            for stream, filters in served.group.external.items():
                durable = f"{running.name}-{running.stream}"
                pull = Pull(self._ledger.link, stream, durable, filters, self._assignment.ack_wait_s, starts[stream])
                await pull.open()
                served.pulls.append(pull)
                tasks.start_soon(self._serve, served, pull, tasks)
        except PenstockError as error:
            if self._assignment.jobs is not None:
                raise
            log.warning("cannot_start", group=running.name, stream=running.stream, error=str(error))
            served.leave()
            self._served.pop((running.stream, running.name), None)  # the next look at the bucket tries again

    async def _serve(self, served: _Served, pull: Pull, tasks: anyio.abc.TaskGroup) -> None:
        """Work that comes one by one fills the cores. Work that is batched has two batches on the way, one being
        computed and one being stored; what arrives meanwhile makes the next one larger."""
        max_batch = min(stage.operator.max_batch for stage in served.group.stages)
        lanes = anyio.Semaphore(self._assignment.num_cores if max_batch == 1 else 1)
        with anyio.CancelScope() as scope:
            served.scopes.append(scope)
            while not served.is_leaving:
                await lanes.acquire()
                try:
                    arrivals = await pull.take(max_batch)
                except LinkError as error:
                    log.warning("cannot_take", error=str(error))
                    lanes.release()
                    await anyio.sleep(1)
                    continue
                self._in_flight |= {id(arrival): arrival for arrival in arrivals}
                served.num_in_flight += 1
                tasks.start_soon(self._work, served, arrivals, lanes)
        left = pull.waiting
        await pull.close()
        try:
            for arrival in left:
                await self._acks.again(arrival, 0)
        except LinkError as error:
            log.warning("not_handed_back", error=str(error))  # they come again when their time is up

    async def _work(self, served: _Served, arrivals: Sequence[Arrival], lane: anyio.Semaphore) -> None:
        structlog.contextvars.bind_contextvars(trace_id=telemetry.trace_id(arrivals[0].traceparent))
        try:
            verdicts: Sequence[Again | None]
            try:
                verdicts = await served.group.handle(arrivals)
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
            served.num_in_flight -= 1
            served.note_progress()

    def _unfinished(self) -> list[Arrival]:
        """What this worker has taken and not yet done."""
        pulls = (pull for served in self._served.values() for pull in served.pulls)
        return [*self._in_flight.values(), *(arrival for pull in pulls for arrival in pull.waiting)]

    async def _show_progress(self) -> None:
        while True:
            await anyio.sleep(self._assignment.ack_wait_s / 3)
            for arrival in self._unfinished():
                try:
                    await self._acks.progress(arrival)
                except LinkError:
                    break  # while it is cut off there is nobody to tell


def _ancestors(groups: Sequence[RunningGroup]) -> dict[str, dict[str, frozenset[str]]]:
    """By stream and stage id, all that a stage's inputs are made from."""
    by_stream: dict[str, list[PlannedStage]] = {}
    for group in groups:
        by_stream.setdefault(group.stream, []).extend(stage.planned for stage in group.stages)
    return {stream: ancestors(in_order(stages)) for stream, stages in by_stream.items()}


def _demands(stage: RunningStage, catalogue: Catalogue) -> tuple[Hashable, ...]:
    """What a stage asks of its media's decoder."""
    operator = catalogue.implementation(stage.planned.capability, stage.planned.rung.implementation)
    return operator(settings_of(operator.Knobs, stage.planned.rung.knobs)).demands()


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


def _log_to(path: str) -> None:
    """Have all that is written to standard output and error, by whatever library, go to a file."""
    with Path(path).open("ab") as errors:
        for standard in (sys.stdout, sys.stderr):
            os.dup2(errors.fileno(), standard.fileno())


def main() -> None:
    die_with_parent()
    with suppress(PenstockError):  # it will be raised again where it can be said
        installed()  # imports what takes long, while the assignment is being made out
    line = sys.stdin.buffer.readline()
    if not line:
        return
    code = 0
    try:
        assignment = msgspec.json.decode(line, type=Assignment)
        if assignment.log_file:
            _log_to(assignment.log_file)
        anyio.run(partial(serve, assignment))
    except BaseException as error:
        log.error("worker_failed", exc_info=error)
        code = 4
    sys.stderr.flush()
    os._exit(code)  # a thread still inside an operator must not hold the process


if __name__ == "__main__":
    main()
