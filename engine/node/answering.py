"""Answering: a job's answers, from what its last stages store to what its subscribers get.

Delivery guarantee: each answer is appended to `penstock.answers.<job>.<stream>` once, in order. Every answer carries,
in a header, how far the job is with each of its last stages; an append expects to follow the answer that was the last
when it was made. So whoever goes on after a death reads the last answer and knows where to go on, and of two who answer
at once one is refused. What is heard by core NATS is a hint only: the ledger is read before anything is believed.
"""

import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import anyio
import msgspec
import structlog

from engine.decide import joins
from engine.decide.answer import NOTHING, Answer, digest, make_answer, upstream_of
from engine.node.answer_spans import AnswerSpan, Used
from engine.node.consumers import Floors
from engine.node.ends import stored_end
from engine.node.moments import Moments
from engine.node.recovery import Recovery
from engine.run.gaps import note_gaps
from engine.run.registry import Registry
from engine.run.telemetry import Telemetry
from engine.spec.catalogue import Catalogue
from engine.spec.jobs import JobSpec, Progress, Reached
from engine.spec.operator import OfRanges, Window
from streams import subjects
from streams.decoding import decoded, shown
from streams.errors import LinkError, Malformed, PenstockError
from streams.records import (
    EndOfStream,
    Gap,
    Result,
    decode_output,
    decode_result,
)
from streams.subjects import MAX_INDEX, Key
from streams.wire.ledger import Ledger, Stored

log = structlog.get_logger(__name__)

STORING_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)  # pauses while a record we heard of is being stored
RECOUNT_S = 2.0  # how often the ledger is asked for what no hint told
PROGRESS = "Penstock-Progress"
PROGRESS_S = 10.0  # how often it is said how far a job is
UNREADABLE = "the stored record cannot be read"


_progress = msgspec.json.Decoder(Progress)


class Answering:
    """The answers of one job. `on_answer` is called with each after it is stored."""

    def __init__(
        self,
        ledger: Ledger,
        registry: Registry,
        spec: JobSpec,
        catalogue: Catalogue,
        moments: Moments,
        floors: Floors,
        traces: Telemetry,
        on_answer: Callable[[Answer], None] = lambda answer: None,
    ) -> None:
        self.spec = spec
        self._ledger = ledger
        self._plan = spec.plan
        self._stream = spec.stream
        self._catalogue = catalogue
        self._moments = moments
        self._traces = traces
        self._recovery = Recovery(registry, ledger, spec, floors)
        self._registry = registry
        self._on_answer = on_answer
        self._upstream = {id: upstream_of(spec.plan, id) for id in spec.plan.answers}
        self._subject = subjects.answers(spec.id, spec.stream)
        self._heard: dict[str, set[Key]] = {id: set() for id in spec.plan.answers}
        self._changed = anyio.Event()
        self._end: EndOfStream | None = None
        self._said_end = False
        self._reached: dict[str, Reached] = {}
        self._last_seq = 0
        self._appending = anyio.Lock()
        self._last_read: dict[str, tuple[range, list[Used]]] = {}

    async def run(self) -> None:
        """Returns when every answer the job can have is stored: for a standing one, when its stream has ended."""
        forget = self._ledger.link.on_reconnect(self._wake)
        watches = [await self._watch(id) for id in self._plan.answers]
        watches.append(await self._ledger.link.subscribe(subjects.media_end(self._stream), self._on_hint))
        try:
            await self._go_on()
            async with anyio.create_task_group() as telling:
                telling.start_soon(self._tell_progress)
                async with anyio.create_task_group() as tasks:
                    for id in self._plan.answers:
                        tasks.start_soon(self._follow, id)
                telling.cancel_scope.cancel()
        finally:
            forget()
            await self._ledger.link.unsubscribe(*watches)

    # --- what there is -----------------------------------------------------------------------------------------

    async def _watch(self, stage_id: str) -> Any:
        async def on_message(message: Any) -> None:
            due = self._next(stage_id, 0)
            self._heard[stage_id] |= {key for key in subjects.keys_of([message.subject]) if key.last >= due}
            self._wake()

        return await self._ledger.link.subscribe(subjects.results_of(stage_id, self._stream), on_message)

    async def _on_hint(self, message: Any) -> None:
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()  # whoever waits next waits for the next change

    async def _stored(self, stage_id: str, key: Key) -> Stored | None:
        """The record at a key, waited for as long as it takes; None where the stream ended before."""
        subject = subjects.result(stage_id, self._stream, key)
        look_s = anyio.current_time() + RECOUNT_S  # others go on, and are heard of, while this one does not come
        while True:
            changed = self._changed
            try:
                stored = await self._ledger.get(subject)
                if stored is None and key in self._heard[stage_id]:
                    stored = await self._once_stored(subject)
                self._heard[stage_id].discard(key)
                if stored is not None:
                    return stored
                if (end := await self._known_end()) and key.last >= end.num_segments:
                    return None
                with anyio.move_on_after(max(0.0, look_s - anyio.current_time())):
                    await changed.wait()
                if anyio.current_time() >= look_s:
                    await self._recovery.look(stage_id, key, await self._known_end())
                    look_s = anyio.current_time() + RECOUNT_S
            except LinkError as error:
                log.warning("cannot_look", job=self.spec.id, error=str(error))
                await anyio.sleep(RECOUNT_S)

    async def _once_stored(self, subject: str) -> Stored | None:
        """The record we heard of. What core NATS tells is sent before it is stored, and may never be: then None, and it
        will be heard of again."""
        for pause_s in STORING_S:
            await anyio.sleep(pause_s)
            if stored := await self._ledger.get(subject):
                return stored
        return None

    async def _known_end(self) -> EndOfStream | None:
        if self._end is None:
            try:
                self._end = await stored_end(self._ledger, self._stream)
            except Malformed as error:
                if not self._said_end:
                    log.warning("cannot_read_end", job=self.spec.id, stream=self._stream, error=str(error))
                self._said_end = True
        return self._end

    # --- one last stage ----------------------------------------------------------------------------------------

    async def _go_on(self) -> None:
        """Learn from the last answer how far the job is; where that one does not say so, from the last that does, for
        anyone can publish there."""
        last = await self._ledger.look(self._subject)
        self._last_seq = 0 if last is None else last.record.seq
        reached = None if last is None else self._progress_of(last.headers)
        if last is not None and reached is None:
            log.warning("foreign_answer", job=self.spec.id, stream=self._stream, seq=self._last_seq)
            reached, seq = {}, 0
            while seq < self._last_seq and (noted := await self._ledger.next(self._subject, seq + 1)) is not None:
                seq = noted.record.seq
                reached = self._progress_of(noted.headers) or reached
        for known in (reached or {}, await self._registry.progress_of(self.spec)):
            for id, far in known.items():
                self._reached[id] = max(self._reached.get(id, far), far, key=lambda each: each.next)

    async def _tell_progress(self) -> None:
        """Say now and then how far the job is: of a standing one that has nothing new to say, no answer does. Whoever
        goes on begins there, and nobody computes again what was answered."""
        told: Progress = {}
        while True:
            await anyio.sleep(PROGRESS_S)
            if (reached := dict(self._reached)) == told:
                continue
            try:
                await self._registry.say_progress(self.spec, reached)
                told = reached
            except PenstockError as error:
                log.warning("cannot_tell_progress", job=self.spec.id, error=str(error))

    def _progress_of(self, headers: Mapping[str, str]) -> dict[str, Reached] | None:
        """None where that is no progress of this job's."""
        try:
            said = decoded(_progress, headers.get(PROGRESS, ""))
        except Malformed:
            return None
        known = {id: reached for id, reached in said.items() if id in self._upstream}
        return (
            known
            if known and known == said and all(0 <= each.next <= MAX_INDEX + 1 for each in known.values())
            else None
        )

    async def _follow(self, stage_id: str) -> None:
        reduces = isinstance(self._plan.stage(stage_id).scope, OfRanges)
        async with anyio.create_task_group() as tasks:
            if reduces:
                tasks.start_soon(self._draft, stage_id)
            async for key in self._ranges(stage_id) if reduces else self._segments(stage_id):
                stored = await self._stored(stage_id, key)
                if stored is None:
                    break
                while not await self._answer(stage_id, key, stored):
                    await self._go_on()  # another has answered meanwhile
            tasks.cancel_scope.cancel()

    async def _segments(self, stage_id: str) -> AsyncIterator[Key]:
        """The segments to answer for, in order; without end where the job has none."""
        asked = self.spec.asked
        index = self._next(stage_id, asked.first)
        while asked.last is None or index <= asked.last:
            yield Key.of(index)
            index = max(index + 1, self._next(stage_id, asked.first))

    async def _ranges(self, stage_id: str) -> AsyncIterator[Key]:
        """The one range to answer for, the longest asked for, once it is known where it ends."""
        whole = max(self.spec.spans[stage_id], key=lambda span: float("inf") if span.last is None else span.last)
        last = whole.last
        while last is None:
            changed = self._changed
            if end := await self._known_end():
                last = end.num_segments - 1
            else:
                with anyio.move_on_after(RECOUNT_S):
                    await changed.wait()
        if self._next(stage_id, whole.first) <= last:
            yield Key(whole.first, last)

    async def _draft(self, stage_id: str) -> None:
        """What the beginnings of a range say, published as it comes: it may still change, and may be missed."""
        *beginnings, _ = self.spec.spans[stage_id]
        for span in beginnings:
            key = Key(span.first, span.first if span.last is None else span.last)
            stored = await self._stored(stage_id, key)
            if stored is None:
                return
            record, output = self._decoded(stage_id, key, stored)
            if digest(output) != NOTHING:
                answer, _ = await self._made(stage_id, key, Used(record, stored.traceparent), output)
                data = msgspec.json.encode(msgspec.structs.replace(answer, partial=True))
                try:
                    await self._ledger.link.publish(subjects.partials(self.spec.id, self._stream), data)
                except LinkError as error:  # such as one too large; a draft may be missed
                    log.warning("draft_not_sent", job=self.spec.id, error=str(error))

    def _next(self, stage_id: str, first: int) -> int:
        reached = self._reached.get(stage_id)
        return first if reached is None else max(first, reached.next)

    # --- one answer --------------------------------------------------------------------------------------------

    async def _answer(self, stage_id: str, key: Key, stored: Stored) -> bool:
        """Append the answer, if this output gives one; False where another got there first."""
        if key.last < self._next(stage_id, key.first):
            return True
        record, output = self._decoded(stage_id, key, stored)
        if isinstance(record, Gap) and record.detail.startswith(UNREADABLE):
            await note_gaps(self._ledger, [record])
        said = self._reached.get(stage_id, Reached(0)).said
        if self.spec.standing:
            says = digest(output)
            if isinstance(record, Gap) or says == said:
                self._reached[stage_id] = Reached(key.last + 1, said)
                return True
            said = says
        answer, span = await self._made(stage_id, key, Used(record, stored.traceparent), output)
        async with self._appending:
            reached = {**self._reached, stage_id: Reached(key.last + 1, said)}
            headers = {PROGRESS: msgspec.json.encode(reached).decode()}
            data = msgspec.json.encode(answer)
            seq = await self._ledger.append(self._subject, data, self._last_seq, span.storing(), headers)
            if seq is None:
                return False
            span.stored(len(data))
            self._last_seq, self._reached = seq, reached
        self._on_answer(answer)
        return True

    def _decoded(self, stage_id: str, key: Key, stored: Stored) -> tuple[Result | Gap, msgspec.Struct | None]:
        """The record at a key; what cannot be read counts as a gap that says so."""
        capability = self._catalogue.capability(self._plan.stage(stage_id).capability)
        record = self._record(stage_id, key, stored.data)
        if isinstance(record, Gap):
            return record, None
        try:
            return record, decode_output(msgspec.msgpack.Decoder(capability.output), record)
        except Malformed as error:
            return unreadable(stage_id, self._stream, key, error), None

    def _record(self, stage_id: str, key: Key, data: bytes) -> Result | Gap:
        try:
            record = decode_result(data)
            if (record.stage, record.stream, record.first, record.last) != (stage_id, self._stream, *key):
                raise Malformed(f"it is of {shown(record.stage)}, {shown(record.stream)}, {record.first}-{record.last}")
        except Malformed as error:
            log.warning("cannot_read_result", job=self.spec.id, stage=stage_id, key=str(key), error=str(error))
            return unreadable(stage_id, self._stream, key, error)
        return record

    async def _made(
        self, stage_id: str, key: Key, own: Used, output: msgspec.Struct | None
    ) -> tuple[Answer, AnswerSpan]:
        reading_ns = time.time_ns()
        scope = self._plan.stage(stage_id).scope
        looked_at = joins.needs(scope, key, None)
        used = {id: await self._records(id, key, looked_at) for id in self._upstream[stage_id] if id != stage_id}
        stored_ns, clock = await self._moments.of(self._stream, key.last)
        started_ns = stored_ns if self.spec.standing else self.spec.submitted_ns
        end = self._end if self.spec.standing else await self._known_end()  # not asked for with every window
        last = self.spec.asked.last
        flaws = end.flaws if end and (last is None or last >= end.num_segments - 1) else ()
        span = AnswerSpan(
            self._traces,
            self.spec,
            own,
            {**used, stage_id: [own]},
            started_ns=started_ns,
            media_ns=stored_ns,
            reading_ns=reading_ns,
        )
        answer = make_answer(
            self.spec,
            own.record,
            output,
            {id: [each.record for each in some] for id, some in used.items()},
            flaws,
            max(0.0, (time.time_ns() - started_ns) / 1e9),
            span.trace_id,
            clock,
            looked_at.start if isinstance(scope, Window) else key.first,
        )
        return answer, span

    async def _records(self, source: str, whole: Key, indices: range) -> list[Used]:
        """What a stage delivered over a range, or of the whole of it, read once for all the answers that rest on it."""
        if self._last_read.get(source, (None, []))[0] != indices:
            is_of_ranges = isinstance(self._plan.stage(source).scope, OfRanges)
            names = {
                subjects.result(source, self._stream, key): key
                for key in ([whole] if is_of_ranges else map(Key.of, indices))
            }
            found = await self._ledger.get_many(names)
            records = [
                Used(self._record(source, key, found[name].data), found[name].traceparent)
                for name, key in names.items()
                if name in found
            ]
            self._last_read[source] = (indices, records)
        return self._last_read[source][1]


def unreadable(stage_id: str, stream: str, key: Key, error: Exception) -> Gap:
    """What stands in for a record that nobody can read."""
    detail = f"{UNREADABLE}: {error}"
    return Gap(stage=stage_id, stream=stream, first=key.first, last=key.last, cause="dead_lettered", detail=detail)
