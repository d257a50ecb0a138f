"""What a node does for the jobs and streams of the registry, beside keeping workers: it answers jobs and feeds streams.

Every job has one node that answers it (`engine.decide.responsible`). While nodes come and go two may answer the same
job for a moment; the ledger refuses the second answer. A stream that nodes read has a lease, for two readers would cut
it differently.
"""

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.abc
import anyio.to_thread
import msgspec
import structlog

from engine.decide.responsible import responsible, unlike_signers
from engine.node.answering import Answering
from engine.node.consumers import Floors
from engine.node.ends import stored_end
from engine.node.feeding import feed, source_of
from engine.node.gate import Gate
from engine.node.moments import Moments
from engine.run.registry import NODE_TTL_S, NodeStatus, Registry
from engine.run.telemetry import Telemetry
from engine.spec.catalogue import Catalogue
from engine.spec.jobs import JobSpec, State
from engine.spec.stream import StreamSpec
from streams.errors import Malformed, PenstockError, UserError, first_error
from streams.media.addresses import public_url
from streams.media.references import filled_in
from streams.wire.ledger import Ledger

log = structlog.get_logger(__name__)
T = TypeVar("T")

FIRST_PAUSE_S, MAX_PAUSE_S = 0.5, 30.0
OLD_JOBS = "old jobs"  # whoever is responsible for that forgets them
FORGET_S = 1.0
IsOver = Callable[[], Awaitable[bool]]
Sink = Callable[[JobSpec, IsOver], Coroutine[Any, Any, None]]
EventSink = Callable[[StreamSpec], Coroutine[Any, Any, None]]


class Duties:
    """Made for one node. `sinks` pass on the answers of every job of this node's that has a webhook, while it runs and
    after it has ended, until they return; `event_sink` passes on what the source of every such stream is doing."""

    def __init__(
        self,
        registry: Registry,
        ledger: Ledger,
        catalogue: Catalogue,
        traces: Telemetry,
        status: NodeStatus,
        sinks: Sequence[Sink] = (),
        gate: Gate | None = None,
        event_sink: EventSink | None = None,
    ) -> None:
        self._gate = gate or Gate()
        self._registry = registry
        self._ledger = ledger
        self._catalogue = catalogue
        self._traces = traces
        self.status = status
        self._sinks = sinks
        self._event_sink = event_sink
        self._said_signers = ""
        self._moments = Moments(ledger)
        self._floors = Floors(registry)
        self._jobs: dict[Any, anyio.CancelScope] = {}
        self._sent: dict[Any, anyio.CancelScope] = {}
        self._feeds: dict[Any, anyio.CancelScope] = {}
        self._told_of: dict[Any, anyio.CancelScope] = {}
        self._jobs_changed = anyio.Event()

    async def run(self) -> None:
        """Until canceled."""
        try:
            async with anyio.create_task_group() as tasks, self._registry.changes() as wait:
                tasks.start_soon(self._say_alive)
                tasks.start_soon(self._forget_old_jobs)
                while True:
                    try:
                        await self._reconcile(tasks)
                    except PenstockError as error:
                        log.warning("cannot_reconcile", error=str(error))
                    except Exception as error:  # the jobs and streams there are go on
                        log.error("cannot_reconcile", exc_info=error)
                    await wait()
        finally:
            with anyio.move_on_after(1, shield=True):
                await self._registry.say_gone(self.status.id)

    async def _say_alive(self) -> None:
        while True:
            try:
                await self._registry.say_alive(self.status)
            except PenstockError as error:
                log.warning("cannot_say_alive", error=str(error))
            await anyio.sleep(NODE_TTL_S / 4)

    async def _forget_old_jobs(self) -> None:
        """Beside all else: of a thousand that end at once, a thousand are to be forgotten."""
        while True:
            await self._jobs_changed.wait()
            self._jobs_changed = anyio.Event()
            try:
                await self._registry.forget_old_jobs()
            except Exception as error:
                log.warning("cannot_forget_jobs", error=str(first_error(error)))
            await anyio.sleep(FORGET_S)

    async def _reconcile(self, tasks: anyio.abc.TaskGroup) -> None:
        every = await self._registry.nodes()
        nodes = sorted({node.id for node in every} | {self.status.id})
        jobs = await self._registry.jobs()
        mine = [job for job in jobs if responsible(job.id, nodes) == self.status.id]
        _follow(self._jobs, {job.id: job for job in mine if job.state == "running"}, tasks, self.answer)
        if self._sinks:
            _follow(self._sent, {job.id: job for job in mine if job.webhook}, tasks, self._send)
        streams = await self._registry.streams()
        _follow(self._feeds, {spec.as_read: spec for spec in streams.values() if spec.url}, tasks, self._feed)
        if self._event_sink is not None:
            told_of = [spec for spec in streams.values() if spec.webhook]
            mine_to_tell = {spec: spec for spec in told_of if responsible(spec.name, nodes) == self.status.id}
            _follow(self._told_of, mine_to_tell, tasks, self._event_sink)
        self._say_signers({node.id: node.signs for node in every} | {self.status.id: self.status.signs})
        if responsible(OLD_JOBS, nodes) == self.status.id:
            self._jobs_changed.set()

    def _say_signers(self, signs: Mapping[str, str]) -> None:
        said = unlike_signers(signs)
        if said not in ("", self._said_signers):
            log.warning("webhooks_signed_differently", detail=said, advice="give all nodes the same key")
        self._said_signers = said

    async def answer(self, spec: JobSpec) -> None:
        """Answer a job to its end, whatever comes in between."""
        state, detail = await self._answered(spec)
        await self._note(spec, lambda job: job.ended(state, detail))

    async def _send(self, spec: JobSpec) -> None:
        """Have a job's answers passed on to their end, and note that they were: nobody begins anew then."""

        async def is_over() -> bool:
            try:
                return (await self._registry.job(spec.id)).state != "running"
            except (UserError, Malformed):  # it was forgotten, or written over
                return True

        try:
            async with anyio.create_task_group() as tasks:
                for sink in self._sinks:
                    tasks.start_soon(sink, spec, is_over)
        except ExceptionGroup as group:
            raise first_error(group) from group  # and once more, later
        await self._note(spec, _sent)

    async def _note(self, spec: JobSpec, change: Callable[[JobSpec], JobSpec]) -> None:
        """Change a job, once NATS is there; one that was forgotten, or written over by somebody, stays so."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                await self._registry.change_job(spec.id, change)
                return
            except (UserError, Malformed):
                return
            except PenstockError as error:
                log.warning("cannot_note", job=spec.id, error=str(error), pause_s=pause_s)
            await anyio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    async def _answered(self, spec: JobSpec) -> tuple[State, str]:
        pause_s, said = FIRST_PAUSE_S, ""
        while True:
            began_s = anyio.current_time()
            try:
                known = self._catalogue, self._moments, self._floors
                await Answering(self._ledger, self._registry, spec, *known, self._traces).run()
                return "done", ""
            except Exception as error:
                cause = first_error(error)
            if not isinstance(cause, PenstockError):
                log.error("answering_failed", job=spec.id, exc_info=cause)
                return "failed", f"{type(cause).__name__} while answering; the node's log says more"
            if anyio.current_time() - began_s > 2 * MAX_PAUSE_S:
                pause_s = FIRST_PAUSE_S
            log.warning("cannot_answer", job=spec.id, error=str(cause), pause_s=pause_s)
            if str(cause) != said:
                said = str(cause)
                await self._note(spec, partial(_detailed, said))
            await anyio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    async def _feed(self, spec: StreamSpec) -> None:
        """Feed a stream until it ends. A source that cannot be read now may be there later."""
        pause_s, said = FIRST_PAUSE_S, ""
        while True:
            began_s = anyio.current_time()
            try:
                if await stored_end(self._ledger, spec.name) is not None:
                    return
                through = await anyio.to_thread.run_sync(self._gate.of, spec)
                source = source_of(spec, filled_in(spec.url) if through is None else spec.url, through)
                await feed(self._registry, self._ledger, spec, source, self.status.id, self._traces)
            except (PenstockError, ExceptionGroup) as error:
                cause = first_error(error)
                if not isinstance(cause, PenstockError):
                    raise
                if anyio.current_time() - began_s > 2 * MAX_PAUSE_S:
                    pause_s = FIRST_PAUSE_S
                if str(cause) != said:
                    said = str(cause)
                    log.warning("cannot_feed", stream=spec.name, source=public_url(spec.url), error=said)
            await anyio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)


def _detailed(detail: str, spec: JobSpec) -> JobSpec:
    return spec if spec.state != "running" else msgspec.structs.replace(spec, detail=detail)


def _sent(spec: JobSpec) -> JobSpec:
    return msgspec.structs.replace(spec, webhook="")


def _follow(
    running: dict[Any, anyio.CancelScope],
    wanted: Mapping[Any, T],
    tasks: anyio.abc.TaskGroup,
    work: Callable[[T], Awaitable[None]],
) -> None:
    """Have exactly the wanted things being worked at. Work that raises is begun again, later each time: neither the
    rest of the work nor the node ends with it."""
    for key in list(running):
        if key not in wanted:
            running.pop(key).cancel()

    async def worked_at(key: Any, item: T) -> None:
        pause_s, said = FIRST_PAUSE_S, ""
        with running[key]:
            while True:
                began_s = anyio.current_time()
                try:
                    await work(item)
                    return
                except Exception as error:
                    cause = first_error(error)
                    line = f"{type(cause).__name__}: {cause}"
                    if anyio.current_time() - began_s > 2 * MAX_PAUSE_S:
                        pause_s = FIRST_PAUSE_S
                    name = key if isinstance(key, str) else key.name  # a stream's URL may hold credentials
                    log.error("work_failed", what=name, error=line, pause_s=pause_s, exc_info=line != said and cause)
                    said = line
                await anyio.sleep(pause_s)
                pause_s = min(2 * pause_s, MAX_PAUSE_S)

    for key, item in wanted.items():
        if key not in running:
            running[key] = anyio.CancelScope()
            tasks.start_soon(worked_at, key, item)
