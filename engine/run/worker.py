"""A worker: a process that hosts pools and runs the groups of stages that the jobs need.

It takes a message only when there is a slot for it, shows progress while it works, acknowledges after what it set off
is stored, and holds nothing that its death would lose.
"""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from random import Random

import anyio
import anyio.abc
import anyio.to_thread
import msgspec
import structlog

from engine.decide import joins
from engine.decide.admission import is_held_back
from engine.decide.instructions import StageRule, rules_of
from engine.decide.reconcile import GroupName, Reconciled, devices_of, offers, reconcile
from engine.decide.running_graph import RunningGroup, RunningStage
from engine.decide.signals import StreamSignals, WorkerSignals
from engine.decide.starting_points import left_of
from engine.run import telemetry
from engine.run.assignment import Assignment
from engine.run.credit import CreditDesk
from engine.run.frames import FrameStore
from engine.run.group import Group
from engine.run.host import GroupStage, Host
from engine.run.journal import Journal, tell_stories
from engine.run.loading import Loading
from engine.run.pools import Pools, stage_rungs
from engine.run.registry import Registry, following, open_registry
from engine.run.segment_cache import SegmentCache
from engine.run.served import Served, ancestors_of
from engine.run.signalling import Meters, say_signals, stream_signals
from engine.run.spans import WorkSpans
from engine.run.starting import start_again, where_to_start
from engine.run.ways import Ways
from engine.spec.catalogue import Catalogue
from engine.spec.jobs import JobSpec, Span
from engine.spec.operator import Fold, Machine
from engine.spec.workflow import MEDIA
from streams.errors import LinkError, PenstockError
from streams.records import Segment
from streams.wire.ledger import Ledger
from streams.wire.outbox import Outbox
from streams.wire.pull import PROGRESS, Arrival, Pull, again

log = structlog.get_logger(__name__)

LOOK_AGAIN_S = 30.0  # though jobs and nodes are as they were: pools are let go that no job needs
SEEN_S = 10.0  # after which every worker has seen a change of the jobs
DRAIN_S = 30.0  # what a group that is replaced gets to finish what it has taken
MAX_CACHE_BYTES = 1 << 25  # of segments at hand, shared by all streams, beyond those that one output looks at


class Worker:
    """Serves an assignment over a ledger until canceled."""

    def __init__(
        self,
        ledger: Ledger,
        assignment: Assignment,
        catalogue: Catalogue,
        traces: telemetry.Telemetry,
        meters: Meters | None = None,
        loading: Loading | None = None,
    ) -> None:
        self._ledger = ledger
        self._loading = loading or Loading(lambda: None, lambda: None)
        self._assignment = assignment
        self._catalogue = catalogue
        self._traces = traces
        self._outbox = Outbox(ledger)
        self._served: dict[GroupName, Served] = {}
        self._draining: list[Served] = []  # that take nothing more and have not finished what they took
        self._is_leaving = False
        self._again_s = 0.0  # when to reconcile next in any case (monotonic)
        self._caches: dict[str, SegmentCache] = {}
        self._journal = Journal(assignment.name)
        self._spans = WorkSpans(traces, assignment.name)
        self._meters = meters or Meters()
        self._credit = CreditDesk(self._is_held_back)
        told = (ledger.clock.now_ns, self._credit.note_change, self._meters.served)
        self._pools = Pools(catalogue, assignment.num_cores, *told, assignment.kept_profiles, self._journal.decided)
        self._ways = Ways(assignment.num_cores, self._pools.all, self._journal.decided)
        self._frames = FrameStore(self._pools.cores, on_decoded=self._on_decoded)
        machine = Machine(num_cores=assignment.num_cores, has_gpu=assignment.has_gpu)
        self._offers = offers(catalogue, devices_of(machine))
        self._registry: Registry | None = None
        self._jobs: dict[str, JobSpec] = {}
        self._said: dict[str, str] = {}  # of stages, why they were not served when last looked at

    async def run(self) -> None:
        """Returns only by being canceled; what was under way is handed back."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._outbox.run)
                tasks.start_soon(self._credit.run)
                tasks.start_soon(self._ledger.clock.run)
                tasks.start_soon(tell_stories, self._journal, self._ledger.link, self._outbox)
                tasks.start_soon(self._show_progress)
                tasks.start_soon(self._pools.end_when_held)
                tasks.start_soon(say_signals, self._ledger.link, self.signals, self._meters)
                await self._follow(tasks)
        finally:
            self._pools.tell_profiles()
            with anyio.move_on_after(0.3, shield=True):
                for arrival in self._unfinished():
                    self._outbox.send(arrival.reply, again(0))
                await self._outbox.drained()

    async def drain(self) -> None:
        """Take nothing more; returns when what was taken is done, or as much later as its operators may take, and
        DRAIN_S."""
        self._is_leaving = True
        served = [*self._served.values(), *self._draining]
        for each in served:
            each.leave(cancel=False)
        longest_s = max((pool.operator.timeout_s for each in served for pool in each.pools), default=0.0)
        with anyio.move_on_after(DRAIN_S + longest_s):
            for each in served:
                await each.group.drained.wait()
            await self._outbox.drained()

    # --- which groups ------------------------------------------------------------------------------------------

    async def _follow(self, tasks: anyio.abc.TaskGroup) -> None:
        """Do what the bucket's jobs ask for, and go with their changes."""
        seen: tuple[list[JobSpec], dict[str, frozenset[str]]] | None = None
        self._registry = await open_registry(self._ledger.link)
        async with following(self._registry) as desired:
            async for every, nodes in desired:
                jobs = [job for job in every if job.state == "running"]
                serving = {node.id: frozenset(node.serves) for node in nodes if node.serves}
                if self._is_leaving or (seen == (jobs, serving) and time.monotonic() < self._again_s):
                    continue
                began_s = time.monotonic()
                seen, self._again_s = (jobs, serving), began_s + LOOK_AGAIN_S
                try:
                    await self._reconcile(jobs, tasks, serving)
                    self._loading.begun()
                except PenstockError as error:
                    self._again_s = 0.0  # with the next look at the bucket
                    log.warning("cannot_follow", error=str(error))
                except Exception as error:
                    self._again_s = 0.0
                    log.error("cannot_follow", exc_info=error)
                await anyio.sleep(time.monotonic() - began_s)  # half of the time is for the work, however many jobs

    async def _reconcile(
        self, jobs: Sequence[JobSpec], tasks: anyio.abc.TaskGroup, nodes: Mapping[str, frozenset[str]] | None = None
    ) -> None:
        """Serve the groups that these jobs need and no other. `nodes` are the offers of those that are there."""
        self._jobs = {job.id: job for job in jobs}
        told = reconcile(jobs, self._served.keys(), self._catalogue, self._offers, nodes)
        self._say(told)
        names = {stage.id: stage.name for job in jobs for stage in job.plan.stages}
        groups = [*told.keep, *told.start]
        still_asked = {(group.stream, stage.id) for group in groups for stage in group.stages}
        leaving = [self._served.pop(name) for name in told.leave]
        for served in leaving:
            self._credit.forget(served.place)
            asked = any((served.group.stream, id) in still_asked for id in served.stage_ids)
            served.leave(cancel=not asked)
            tasks.start_soon(self._end, served)
        self._draining = [old for old in [*self._draining, *leaving] if not old.group.drained.is_set()]
        self._tend_caches(groups)
        above = ancestors_of(groups)
        for running in told.keep:
            served = self._served[running.stream, running.name]
            rules = rules_of(running.stages, above[running.stream])
            if served.group.goes_by(rules):
                self._pools.need(served.pools)
                continue  # as with nearly all, however many there are
            served.running = running  # asked for by other jobs now, perhaps with another patience
            served.group.serve([self._stage(rule, tasks) for rule in rules])
        for running in told.start:
            stages = [self._stage(rule, tasks) for rule in rules_of(running.stages, above[running.stream])]
            place = f"{running.stream}/{running.name}"
            group = Group.of(running.name, self._host(place, tasks), self._caches[running.stream], stages, names)
            pools = list({id(rung.pool): rung.pool for stage in stages for rung in stage.rungs}.values())
            served = Served(running, group, place, pools)
            self._served[running.stream, running.name] = served
            before = [old for old in leaving if old.group.stream == running.stream and old.stage_ids & served.stage_ids]
            is_first = self._loading.begin()
            tasks.start_soon(self._start, served, before, tasks, is_first)
        self._pools.tend()

    def _host(self, place: str, tasks: anyio.abc.TaskGroup) -> Host:
        return Host(
            worker=self._assignment.name,
            ledger=self._ledger,
            outbox=self._outbox,
            frames=self._frames,
            ways=self._ways,
            journal=self._journal,
            spans=self._spans,
            policy=self._assignment.retry,
            random=Random(),
            tasks=tasks,
            now_ns=self._ledger.clock.now_ns,
            on_done=partial(self._credit.note_finished, place),
        )

    def _say(self, told: Reconciled) -> None:
        """What cannot be served here, once."""
        for stage, why in told.lacking.items():
            if self._said.get(stage) != why:
                log.warning("not_served", stage=stage, why=why)
        self._said = dict(told.lacking)

    def _tend_caches(self, groups: Sequence[RunningGroup]) -> None:
        """One for each stream, which knows what will be read from it."""
        by_stream: dict[str, list[RunningStage]] = {}
        for group in groups:
            by_stream.setdefault(group.stream, []).extend(group.stages)
        for stream in set(self._caches) - set(by_stream):
            del self._caches[stream]
        for stream, stages in by_stream.items():
            if stream not in self._caches:
                self._caches[stream] = SegmentCache(self._ledger, stream)
            self._caches[stream].max_bytes = MAX_CACHE_BYTES // len(by_stream)
            scopes = (stage.planned.scope for stage in stages if MEDIA in stage.planned.sources)
            self._caches[stream].num_looked_at = max((joins.width(scope) for scope in scopes), default=1)
            read = {source for stage in stages for source in stage.planned.sources}
            outputs = {
                stage.id: self._catalogue.capabilities[stage.planned.capability].output
                for stage in stages
                if (stage.id in read or isinstance(stage.planned.scope, Fold))
                and stage.planned.capability in self._catalogue.capabilities
            }
            self._caches[stream].serve(outputs)

    def _stage(self, rule: StageRule, tasks: anyio.abc.TaskGroup) -> GroupStage:
        planned = rule.running.planned
        capability = self._catalogue.capability(planned.capability)
        return GroupStage(
            rule=rule,
            params=msgspec.convert(planned.params, capability.params),
            rungs=stage_rungs(planned, self._catalogue, self._offers, partial(self._pools.of, tasks=tasks)),
            empty=capability.output() if rule.is_gated else None,
        )

    # --- serving them ------------------------------------------------------------------------------------------

    async def _start(
        self, served: Served, before: Sequence[Served], tasks: anyio.abc.TaskGroup, is_first: bool
    ) -> None:
        """Serve a group once those it takes over from have finished what they had taken, or it would do it again."""
        running, group = served.running, served.group
        with anyio.move_on_after(DRAIN_S):
            for old in before:
                await old.group.drained.wait()
        try:
            starts = None if group.is_leaving else await where_to_start(self._ledger, group, await self._left(running))
            if starts is None:
                return
            for pool in served.pools:
                self._loading.begin(is_first=is_first)
                tasks.start_soon(self._loading.warm_up, pool, is_first)
            for stream, start in starts.items():
                durable = f"{running.name}-{running.stream}"
                again = partial(start_again, self._ledger, group, partial(self._left, running), stream, start.seq)
                how = (start.filters, self._assignment.ack_wait_s, start.seq, again)
                pull = Pull(self._ledger.link, stream, durable, *how)
                served.pulls.append(pull)
                await pull.open()
                if not group.is_leaving:
                    self._credit.note_waiting(served.place, group.pools, None)
                tasks.start_soon(self._serve, served, pull)
        except Exception as error:  # it ends nobody else's work
            is_known = isinstance(error, PenstockError)
            said = {"error": str(error)} if is_known else {"exc_info": error}
            log.warning("cannot_start", group=running.name, stream=running.stream, **said)
            for pull in served.pulls:
                await pull.close()
            served.leave(cancel=True)
            self._again_s = 0.0  # the next look at the bucket tries again
            if self._served.get((running.stream, running.name)) is served:
                del self._served[running.stream, running.name]
                self._credit.forget(served.place)
        finally:
            self._loading.end(is_first=is_first)

    async def _end(self, served: Served) -> None:
        """Take away the consumers of a group that nobody asks for any more, once every worker must have seen that: the
        server would keep them for an hour of silence."""
        with anyio.move_on_after(DRAIN_S):
            await served.group.drained.wait()
        await anyio.sleep(SEEN_S)
        if (served.running.stream, served.running.name) in self._served:
            return
        for pull in served.pulls:
            try:
                await pull.delete()
            except PenstockError as error:
                log.info("consumer_not_deleted", group=served.running.name, error=str(error))

    async def _left(self, running: RunningGroup) -> Mapping[str, Sequence[Span]]:
        """What the group's jobs have not answered."""
        asking = {id for stage in running.stages for id in stage.jobs}
        progress = {} if self._registry is None else await self._registry.progress()
        return left_of([job for id, job in self._jobs.items() if id in asking], progress)

    async def _serve(self, served: Served, pull: Pull) -> None:
        """Take what there is credit for."""
        with anyio.CancelScope() as scope:
            served.scopes.append(scope)
            while not served.group.is_leaving:
                taken = served.place, lambda: served.group.num_taken, served.group.pools
                num = await self._credit.of(*taken, is_prompt=served.group.is_prompt)
                try:
                    arrivals = await pull.take(num)
                except LinkError as error:
                    log.warning("cannot_take", error=str(error))
                    await anyio.sleep(1)
                    continue
                if served.group.is_leaving:  # they came in the same moment
                    for arrival in arrivals:
                        self._outbox.send(arrival.reply, again(0))
                    break
                served.group.num_pending = arrivals[-1].num_pending
                self._credit.note_waiting(served.place, served.group.pools, served.group.num_pending)
                for arrival in arrivals:
                    served.group.take(arrival)
        left = pull.waiting
        await pull.close()
        for arrival in left:
            self._outbox.send(arrival.reply, again(0))

    def _is_held_back(self) -> bool:
        if self._frames.pinned_bytes <= self._frames.max_bytes:  # nearly always, and asked for every message
            return False
        has_taken = any(served.group.num_taken for served in self._served.values())
        return is_held_back(self._frames.pinned_bytes, self._frames.max_bytes, has_taken=has_taken)

    def _on_decoded(self, stream: str, segment: Segment, kind: type, began_ns: int, ended_ns: int) -> None:
        took_s = (ended_ns - began_ns) / 1e9
        self._ways.note_decoded(stream, took_s)
        self._journal.note(stream, str(segment.index), "", "decode", f"{kind.__name__} in {took_s:.3f} s")

    def _unfinished(self) -> list[Arrival]:
        """What this worker has taken and not yet done."""
        found: list[Arrival] = []
        for served in [*self._served.values(), *self._draining]:
            found += served.group.taken
            found += (arrival for pull in served.pulls for arrival in pull.waiting)
        return found

    async def _show_progress(self) -> None:
        while True:
            await anyio.sleep(self._assignment.ack_wait_s / 3)
            for arrival in self._unfinished():
                self._outbox.send(arrival.reply, PROGRESS)

    def signals(self) -> WorkerSignals:
        """All that is known here, as things stand."""
        by_stream: dict[str, list[Group]] = {}
        for served in self._served.values():
            by_stream.setdefault(served.group.stream, []).append(served.group)
        return WorkerSignals(
            worker=self._assignment.name,
            node=self._assignment.node,
            at_ns=self._ledger.clock.now_ns(),
            pools=tuple(pool.signals() for pool in self._pools.all()),
            streams=tuple(self._stream_signals(stream, some) for stream, some in sorted(by_stream.items())),
            frame_bytes=self._frames.num_bytes,
            max_frame_bytes=self._frames.max_bytes,
            num_decoded=self._frames.num_decoded,
            decoded_by=dict(self._frames.decoded_by),
            decode_s=self._frames.decode_s,
            acks_pending=self._outbox.num_open,
            resources=self._ways.resources(),
            clock_offset_s=None if self._ledger.clock.error_ns is None else self._ledger.clock.offset_ns / 1e9,
            is_ready=self._loading.is_ready,
        )

    def _stream_signals(self, stream: str, groups: Sequence[Group]) -> StreamSignals:
        cache_bytes = self._caches[stream].num_bytes if stream in self._caches else 0
        frame_bytes = self._frames.bytes_of(stream)
        segment_s = self._ways.segment_s(stream, self._ledger.clock.now_ns())
        return stream_signals(stream, groups, segment_s, frame_bytes=frame_bytes, cache_bytes=cache_bytes)
