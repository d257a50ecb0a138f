"""A one-shot job: media in, progress and answers out.

The job publishes the source's segments, never further ahead of its stages than `MAX_AHEAD`, counts what is stored in
the ledger, and makes an answer of every output of the plan's last stages. It computes nothing itself and keeps no state
that the ledger does not hold: run again, it goes on where things stand.
"""

import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import structlog

from engine.answers import Answer, make_answer, upstream_of
from engine.catalogue import Catalogue
from engine.operator import Reduce
from engine.plan import Plan
from engine.telemetry import Telemetry, trace_id
from streams import subjects
from streams.errors import LinkError, PenstockError, UserError
from streams.ledger import Ledger, Stored
from streams.records import EndOfStream, Gap, Result, Segment, decode_media, decode_result, encode
from streams.subjects import Key

log = structlog.get_logger(__name__)

MAX_AHEAD = 64  # segments: bounds what the ledger must hold of media that nobody has looked at
STORING_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)  # pauses while a record we heard of is being stored
RECOUNT_S = 2.0  # how often the count is checked against the ledger: what came by core NATS may have been missed

Source = Callable[[], Iterator[Segment | EndOfStream]]


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
    """One run of a plan over one stream. `on_progress` and `on_answer` are called as things happen."""

    def __init__(
        self,
        ledger: Ledger,
        plan: Plan,
        stream: str,
        id: str,
        catalogue: Catalogue,
        traces: Telemetry,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        on_answer: Callable[[Answer], None] = lambda answer: None,
    ) -> None:
        self.id = subjects.token(id)
        self._ledger = ledger
        self._plan = plan
        self._stream = subjects.token(stream)
        self._catalogue = catalogue
        self._traces = traces
        self._on_progress = on_progress
        self._on_answer = on_answer
        self._stored: dict[str, set[Key]] = {stage.id: set() for stage in plan.stages}
        self._end: EndOfStream | None = None
        self._changed = anyio.Event()
        self._started_s = 0.0
        self._last_read: dict[str, tuple[Key, list[Result | Gap]]] = {}

    async def run(self, source: Source) -> list[Answer]:
        """Publish, wait, answer. Raises UserError if the source cannot be read."""
        self._started_s = anyio.current_time()
        span = self._traces.span(
            "job", attributes={"job": self.id, "workflow": self._plan.workflow, "stream": self._stream}
        )
        forget = self._ledger.link.on_reconnect(self._wake)
        watches = [await self._watch(stage.id) for stage in self._plan.stages]
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._recount_regularly)
                tasks.start_soon(self._publish, source, span.traceparent)
                answers = [answer async for answer in self._answers()]
                tasks.cancel_scope.cancel()
            return answers
        finally:
            forget()
            span.end()
            with anyio.move_on_after(1, shield=True):
                for watch in watches:
                    await watch.unsubscribe()

    @property
    def _num_segments(self) -> int | None:
        return None if self._end is None else self._end.num_segments

    # --- media in ----------------------------------------------------------------------------------------------

    async def _publish(self, source: Source, job_trace: str) -> None:
        """Store every segment and the end. What is there already is refused by the ledger, and that is fine."""
        self._end = await self._stored_end()
        if self._end is None:
            iterator = source()
            num_segments = 0
            while True:
                started_ns = time.time_ns()
                record = await anyio.to_thread.run_sync(next, iterator, None)
                if record is None:
                    raise PenstockError(f"the source of {self._stream} stopped without saying that it ended")
                if isinstance(record, EndOfStream):
                    break
                span = self._traces.span(
                    "ingest",
                    started_ns=started_ns,
                    links=[job_trace],
                    attributes={"stream": self._stream, "segment": record.index},
                )
                await self._ledger.put(subjects.media(self._stream, record.index), encode(record), span.traceparent)
                span.end()
                num_segments += 1
                await self._until(partial(self._has_room_for, num_segments))
            if num_segments == 0:
                raise UserError("the input has no segment: it holds neither video nor audio that can be read")
            await self._ledger.put(subjects.media_end(self._stream), encode(record), job_trace)
            self._end = record
        self._wake()

    async def _stored_end(self) -> EndOfStream | None:
        """The end of the stream, if it and every segment before it are there; what fell out of retention is to be
        published again."""
        stored = await self._ledger.get(subjects.media_end(self._stream))
        try:
            end = decode_media(stored.data) if stored is not None else None
        except msgspec.DecodeError as error:
            raise PenstockError(f"the end of stream {self._stream} cannot be read from the ledger: {error}") from error
        if not isinstance(end, EndOfStream):
            return None
        num_there = len(subjects.keys_of(await self._ledger.subjects(subjects.media_of(self._stream))))
        return end if num_there == end.num_segments else None

    def _has_room_for(self, num_published: int) -> bool:
        """Whether the stage furthest behind, of those with an output for each segment, is near enough."""
        counts = [len(self._stored[stage.id]) for stage in self._plan.stages if not isinstance(stage.scope, Reduce)]
        return num_published - min(counts, default=num_published) <= MAX_AHEAD

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

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()

    # --- answers out -------------------------------------------------------------------------------------------

    async def _answers(self) -> AsyncIterator[Answer]:
        await self._until(lambda: self._num_segments is not None)
        waiting = {id: set(self._expected(id)) for id in self._plan.answers}
        while any(waiting.values()):
            await self._until(lambda: any(keys & self._stored[id] for id, keys in waiting.items()))
            for id, keys in waiting.items():
                for key in sorted(keys & self._stored[id]):
                    stored = await self._once_stored(id, key)
                    if stored is None:
                        self._stored[id].discard(key)
                        continue
                    keys.discard(key)
                    answer = await self._answer(id, key, stored)
                    self._on_answer(answer)
                    yield answer

    def _expected(self, stage_id: str) -> list[Key]:
        num_segments = self._num_segments or 0
        if isinstance(self._plan.stage(stage_id).scope, Reduce):
            return [Key(0, num_segments - 1)] if num_segments else []
        return [Key.of(index) for index in range(num_segments)]

    async def _once_stored(self, stage_id: str, key: Key) -> Stored | None:
        """The record we heard of. What core NATS tells is sent before it is stored, and may never be: then None, and
        it will be heard of again."""
        for pause_s in (0.0, *STORING_S):
            await anyio.sleep(pause_s)
            stored = await self._ledger.get(subjects.result(stage_id, self._stream, key))
            if stored is not None:
                return stored
        return None

    async def _answer(self, stage_id: str, key: Key, stored: Stored) -> Answer:
        record = decode_result(stored.data)
        capability = self._catalogue.capability(self._plan.stage(stage_id).capability)
        output = msgspec.msgpack.decode(record.output, type=capability.output) if isinstance(record, Result) else None
        sources = [source for source in upstream_of(self._plan, stage_id) if source != stage_id]
        used = {source: await self._records(source, key) for source in sources}
        answer = make_answer(
            self._plan,
            self.id,
            record,
            output,
            used,
            self._end.flaws if self._end else (),
            anyio.current_time() - self._started_s,
            trace_id(stored.traceparent),
        )
        subject = subjects.answers(self.id, self._stream)
        await self._ledger.append(
            subject, msgspec.json.encode(answer), f"{self.id}-{stage_id}-{key}", stored.traceparent
        )
        return answer

    async def _records(self, source: str, key: Key) -> list[Result | Gap]:
        """What a stage delivered over a range, read once for all the answers that rest on it."""
        if self._last_read.get(source, (None, []))[0] != key:
            names = [subjects.result(source, self._stream, Key.of(i)) for i in range(key.first, key.last + 1)]
            found = await self._ledger.get_many(names)
            records = [decode_result(found[name].data) for name in names if name in found]
            self._last_read[source] = (key, records)
        return self._last_read[source][1]
