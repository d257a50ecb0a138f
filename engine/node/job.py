"""A job that brings its own source: media in, progress and answers out.

It publishes the source's segments, never further ahead of its stages than `MAX_AHEAD`, counts what is stored in the
ledger, and answers. It computes nothing itself and keeps no state that the ledger does not hold: run again, it goes on
where things stand.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import anyio
import structlog

from engine.decide.answer import Answer
from engine.node.answering import Answering, Moments, stored_end
from engine.node.ingest import ingest
from engine.run.telemetry import Telemetry
from engine.spec.catalogue import Catalogue
from engine.spec.jobs import JobSpec, Span, spans_of
from engine.spec.operator import Reduce
from engine.spec.plan import Plan
from streams import subjects
from streams.errors import LinkError, PenstockError, UserError
from streams.records import EndOfStream, Gap, Segment
from streams.subjects import Key
from streams.wire.ledger import Ledger

log = structlog.get_logger(__name__)

MAX_AHEAD = 64  # segments: bounds what the ledger must hold of media that nobody has looked at
RECOUNT_S = 2.0  # how often the count is checked against the ledger: what came by core NATS may have been missed

Source = Callable[[], Iterator[Segment | Gap | EndOfStream]]


async def job_over(ledger: Ledger, plan: Plan, stream: str, id: str) -> JobSpec:
    """A job over a whole stream, from its first segment to its end."""
    id, stream = subjects.token(id), subjects.token(stream)
    round = await round_of(ledger, stream)
    return JobSpec(
        id=id,
        stream=stream,
        plan=plan,
        spans=spans_of(plan, Span(first=0)),
        rounds={stage.id: round for stage in plan.stages},
        submitted_ns=time.time_ns(),
    )


async def round_of(ledger: Ledger, stream: str) -> int:
    """Which round of deliveries a job that starts now belongs to. What an earlier round delivered and acknowledged is
    not delivered again in it; but results made from it may have fallen out of retention since, or belong to stages that
    are new, so a job that finds something stored starts another. All that start from the same state share one."""
    return await ledger.last_seq(subjects.results_of("*", stream))


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the stages are, by stage name, in outputs stored; of how many, where that is known."""

    stored: dict[str, int]
    total: dict[str, int | None]


class Job:
    """One run of a job over its own source. `on_progress` and `on_answer` are called as things happen."""

    def __init__(
        self,
        ledger: Ledger,
        spec: JobSpec,
        catalogue: Catalogue,
        traces: Telemetry,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        on_answer: Callable[[Answer], None] = lambda answer: None,
    ) -> None:
        self.spec = spec
        self._ledger = ledger
        self._plan = spec.plan
        self._stream = spec.stream
        self._catalogue = catalogue
        self._traces = traces
        self._on_progress = on_progress
        self._on_answer = on_answer
        self._stored: dict[str, set[Key]] = {stage.id: set() for stage in self._plan.stages}
        self._end: EndOfStream | None = None
        self._changed = anyio.Event()

    async def run(self, source: Source) -> list[Answer]:
        """Publish, wait, answer. Raises UserError if the source cannot be read."""
        span = self._traces.span(
            "job", attributes={"job": self.spec.id, "workflow": self._plan.workflow, "stream": self._stream}
        )
        answers: list[Answer] = []

        def note_answer(answer: Answer) -> None:
            answers.append(answer)
            self._on_answer(answer)

        forget = self._ledger.link.on_reconnect(self._wake)
        watches = [await self._watch(stage.id) for stage in self._plan.stages]
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._recount_regularly)
                tasks.start_soon(self._publish, source, span.traceparent)
                await Answering(self._ledger, self.spec, self._catalogue, Moments(self._ledger), note_answer).run()
                tasks.cancel_scope.cancel()
            return answers
        finally:
            forget()
            span.end()
            await self._ledger.link.unsubscribe(*watches)

    @property
    def _num_segments(self) -> int | None:
        return None if self._end is None else self._end.num_segments

    # --- media in ----------------------------------------------------------------------------------------------

    async def _publish(self, source: Source, job_trace: str) -> None:
        """Store every segment and the end. What is there already is refused by the ledger, and that is fine."""
        self._end = await self._complete_end()
        if self._end is None:
            end = await ingest(
                self._ledger, self._stream, source(), self._traces, parent=job_trace, room=self._room_for
            )
            if end is None:
                raise PenstockError(f"the source of {self._stream} stopped without saying that it ended")
            if end.num_segments == 0:
                raise UserError("the input has no segment: it holds neither video nor audio that can be read")
            self._end = end
        self._wake()

    async def _complete_end(self) -> EndOfStream | None:
        """The end of the stream, if it and every segment before it are there; what fell out of retention is to be
        published again."""
        end = await stored_end(self._ledger, self._stream)
        if end is None:
            return None
        num_there = len(subjects.keys_of(await self._ledger.subjects(subjects.media_of(self._stream))))
        return end if num_there == end.num_segments else None

    async def _room_for(self, num_published: int) -> None:
        """Wait until the stage furthest behind, of those with an output for each segment, is near enough."""
        counted = [stage.id for stage in self._plan.stages if not isinstance(stage.scope, Reduce)]
        while num_published - min((len(self._stored[id]) for id in counted), default=num_published) > MAX_AHEAD:
            await self._changed.wait()

    # --- counting ----------------------------------------------------------------------------------------------

    async def _watch(self, stage_id: str) -> Any:
        async def on_message(message: Any) -> None:
            self._note(stage_id, [message.subject])

        return await self._ledger.link.subscribe(subjects.results_of(stage_id, self._stream), on_message)

    def _note(self, stage_id: str, names: Iterable[str]) -> None:
        new = subjects.keys_of(names) - self._stored[stage_id]
        if new:
            self._stored[stage_id] |= new
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()  # whoever waits next waits for the next change
        stored = {stage.name: len(self._stored[stage.id]) for stage in self._plan.stages}
        total = {s.name: 1 if isinstance(s.scope, Reduce) else self._num_segments for s in self._plan.stages}
        self._on_progress(Progress(stored, total))

    async def _recount_regularly(self) -> None:
        while True:
            try:
                for stage in self._plan.stages:
                    self._note(stage.id, await self._ledger.subjects(subjects.results_of(stage.id, self._stream)))
            except LinkError as error:
                log.warning("cannot_count", error=str(error))
            await anyio.sleep(RECOUNT_S)
