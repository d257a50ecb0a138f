"""A group: fused stages fed by one stream, from arrivals to stored outputs.

What arrives is an *event*: an input that is stored. An event names the outputs it may complete; those that are complete
are computed and stored, and each stored output is an event for the group's own stages. So a fused edge is an arrival
that needed no consumer, and fused or apart the same rule runs. A message is done when nothing it set off is left to
do; a crash before that only brings it again, and what is stored by then is passed over.
"""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import anyio
import structlog

from engine.decide import joins, retry
from engine.decide.starting_points import where_to_start
from engine.decide.stored_keys import StoredKeys
from engine.run.gaps import note_gaps
from engine.run.pool import Late
from engine.run.segment_cache import Known, Shelf
from engine.run.telemetry import Attributes, Telemetry
from engine.run.work import (
    OPEN,
    Event,
    GroupStage,
    Outcome,
    Work,
    begin_span,
    contributions,
    dead_letter_of,
    gap_of,
    record_steps,
    result_of,
)
from engine.spec.operator import Entry, Fold, Inputs, Map, Reduce, Window
from engine.spec.workflow import MEDIA
from streams import subjects
from streams.errors import Permanent, UserError
from streams.records import Gap, encode
from streams.subjects import Key
from streams.wire import ledger
from streams.wire.ledger import Ledger
from streams.wire.pull import Arrival

log = structlog.get_logger(__name__)


class _Incomplete(Exception):
    """An input of an output is not stored yet: the first one is that of segment `index`."""

    def __init__(self, index: int) -> None:
        self.index = index


@dataclass(slots=True)
class Group:
    """Runs the stages of one group over one stream. `names` of stages are for people."""

    names: Mapping[str, str]
    stages: Sequence[GroupStage]
    shelf: Shelf
    ledger: Ledger
    telemetry: Telemetry
    policy: retry.RetryPolicy
    worker: str
    random: Random
    demands: frozenset[type] = frozenset()  # the kinds of things its stages ask of the media's decoder
    _claimed: set[tuple[str, Key]] = field(default_factory=set)
    _stored: dict[str, StoredKeys] = field(default_factory=lambda: defaultdict(StoredKeys))
    _last_seq: dict[str, int] = field(default_factory=dict)
    _last_asked: tuple[int, tuple[str, ...]] = (0, ())

    @property
    def stream(self) -> str:
        return self.shelf.stream

    @property
    def external(self) -> dict[str, list[str]]:
        """The subjects to listen to, by the JetStream stream that keeps them."""
        inside = {stage.id for stage in self.stages}
        sources = {source for stage in self.stages for source in stage.awaited} - inside
        wanted = [subjects.results_of(source, self.stream) for source in sources if source != MEDIA]
        if MEDIA in sources:
            wanted.append(subjects.media_of(self.stream))
        elif any(joins.needs_end(stage.planned.scope) for stage in self.stages):
            wanted.append(subjects.media_end(self.stream))
        by_stream: dict[str, list[str]] = {}
        for subject in sorted(wanted):
            by_stream.setdefault(ledger.stream_of(subject), []).append(subject)
        return by_stream

    async def open(self) -> dict[str, int] | None:
        """Learn which outputs are stored already. For each JetStream stream, the sequence to listen from; None where
        nothing is left to be done."""
        stored = {
            stage.id: subjects.keys_of(await self.ledger.subjects(subjects.results_of(stage.id, self.stream)))
            for stage in self.stages
        }
        for stage in self.stages:
            for key in stored[stage.id]:
                self._remember(stage, key)
        return await where_to_start(self.ledger, self.shelf, self.stages, stored, list(self.external))

    async def handle(self, arrivals: Sequence[Arrival]) -> list[retry.Again | None]:
        """Do all that these messages set off. For each: None when it is done, or when to bring it again."""
        again: dict[int, retry.Again] = {}
        events = [event for arrival in arrivals if (event := await self._event(arrival)) is not None]
        while events:
            work: list[Work] = []
            following: list[Event] = []
            try:
                for event in events:
                    for stage, keys in contributions(self.stages, event, self.shelf.num_segments):
                        for found in await self._all_ready(stage, keys, event):
                            if isinstance(found, Work):
                                work.append(found)
                            else:
                                following.append(found)
                following += await self._carry_out(work, again)
            finally:
                self._claimed.difference_update((item.stage.id, item.key) for item in work)
            events = following
        if self.demands:
            self._let_go()
        return [again.get(id(arrival)) for arrival in arrivals]

    def _let_go(self) -> None:
        """Forget what was decoded for this group of segments that all its stages are done with: frames are large, and
        to wait until the shelf is full would hold many times what is being looked at."""
        readers = [stage for stage in self.stages if MEDIA in stage.planned.sources]
        for index, media in self.shelf.media().items():
            owed = (
                (s.id, k)
                for s in readers
                for k in joins.outputs_of(s.planned.scope, index, self.shelf.num_segments)
                if s.running.owes(k)
            )
            if media.memo and all(key in self._stored[id] for id, key in owed):
                for wanted in list(media.memo):
                    if type(wanted) in self.demands:
                        media.memo.pop(wanted, None)

    # --- from events to work ---------------------------------------------------------------------------------

    async def _event(self, arrival: Arrival) -> Event | None:
        """What a message says; None where it is nothing of ours. One that cannot be read is a gap."""
        try:
            address = subjects.parse(arrival.subject)
        except UserError as error:
            log.warning("not_ours", error=str(error))
            return None
        try:
            data = await self.ledger.whole(arrival.data, arrival.headers)
        except Permanent as error:
            log.warning("incomplete", subject=arrival.subject, error=str(error))
            data = b""
        if address.kind == "media":
            index = None if address.key is None else address.key.first
            known = self.shelf.keep_media(index, arrival.seq, data, arrival.traceparent)
            known = known or Known(arrival.seq, arrival.traceparent)
            return Event(MEDIA, address.key, known, arrival, arrival.arrived_ns)
        if address.key is None:
            return None
        known = self.shelf.keep_result(address.source, address.key, arrival.seq, data, arrival.traceparent)
        return Event(address.source, address.key, known, arrival, arrival.arrived_ns)

    async def _all_ready(self, stage: GroupStage, keys: Sequence[Key], event: Event) -> list[Work | Event]:
        """What is ready of these outputs. Of windows, once one lacks an input behind the event's all later ones do."""
        found: list[Work | Event] = []
        for key in keys:
            try:
                ready = await self._ready(stage, key, event)
            except _Incomplete as lacking:
                if isinstance(stage.planned.scope, Window) and event.key and lacking.index > event.key.first:
                    break
                continue
            if ready is not None:
                found.append(ready)
        return found

    async def _ready(self, stage: GroupStage, key: Key, event: Event) -> Work | Event | None:
        """The work if this event completes the output; the output's own event if it is stored already. Raises
        _Incomplete where an input is missing."""
        if key.last == OPEN:
            end = await self.shelf.end() if await self._is_last(stage, event) else None
            if end is None or end[1].num_segments <= key.first:
                return None
            key = Key(key.first, end[1].num_segments - 1)
        if key in self._stored[stage.id]:
            return await self._stored_event(stage, key, event) if stage.read_inside else None
        found = await self._complete(stage, key, event)
        if isinstance(found, Work):  # from here on this event answers for the output, and no other need
            if (stage.id, key) in self._claimed:
                return None
            if key in self._stored[stage.id]:  # by another, while this one was looking
                return await self._ready(stage, key, event)
            self._claimed.add((stage.id, key))
        return found

    async def _complete(self, stage: GroupStage, key: Key, event: Event) -> Work | Event | None:
        if stage.plain and event.root.num_delivered == 1:
            entries = {event.source: {key.first: event.known}}
            return self._work(stage, key, event, entries, None)
        scope = stage.planned.scope
        end = await self.shelf.end() if joins.needs_end(scope) else None
        wanted = joins.needs(scope, key, end[1].num_segments if end else self.shelf.num_segments)
        if not wanted:
            return None
        entries = {}
        for source in stage.planned.sources:
            entries[source] = await self.shelf.get(source, wanted)
            if len(entries[source]) < len(wanted):
                raise _Incomplete(next(index for index in wanted if index not in entries[source]))
        previous = None
        if isinstance(scope, Fold) and key.first > 0:
            previous = (await self.shelf.get(stage.id, [key.first - 1])).get(key.first - 1)
            if previous is None:
                raise _Incomplete(key.first - 1)
        on_media = event.source == MEDIA
        seqs = [
            known.seq for source, found in entries.items() for known in found.values() if (source == MEDIA) == on_media
        ]
        if previous is not None and not on_media:
            seqs.append(previous.seq)
        if on_media and end is not None and self._is_bounded(stage, key, end[1].num_segments):
            seqs.append(end[0])
        if not joins.acts(event.known.seq, seqs):
            return None
        return await self._stored_event(stage, key, event) or self._work(stage, key, event, entries, previous)

    @staticmethod
    def _is_bounded(stage: GroupStage, key: Key, num_segments: int) -> bool:
        """Whether the stream's end is one of this output's inputs."""
        scope = stage.planned.scope
        if isinstance(scope, Reduce):
            return not any((span.first, span.last) == key for span in stage.running.spans)
        return isinstance(scope, Map) and key.last + scope.after >= num_segments

    async def _is_last(self, stage: GroupStage, event: Event) -> bool:
        """Whether no input of a whole range was stored after this event, in its JetStream stream. Asked first, for it
        spares every arrival but the last one the reading of the range."""
        alike = tuple(source for source in stage.planned.sources if (source == MEDIA) == (event.source == MEDIA))
        asked = (event.known.seq, alike)
        if event.known.seq >= self._last_known(alike) and asked != self._last_asked:  # else another stage just asked
            self._last_asked = asked
            for source in alike:
                every = subjects.media_of(self.stream) if source == MEDIA else subjects.results_of(source, self.stream)
                self._last_seq[source] = await self.ledger.last_seq(every)
        return event.known.seq >= self._last_known(alike)

    def _last_known(self, sources: Sequence[str]) -> int:
        return max((self._last_seq.get(source, 0) for source in sources), default=0)

    async def _stored_event(self, stage: GroupStage, key: Key, event: Event) -> Event | None:
        stored = await self.ledger.get(subjects.result(stage.id, self.stream, key))
        if stored is None:
            return None
        self._remember(stage, key)
        known = self.shelf.keep_result(stage.id, key, stored.seq, stored.data, stored.traceparent)
        return Event(stage.id, key, known, event.root, time.time_ns())

    def _work(
        self,
        stage: GroupStage,
        key: Key,
        event: Event,
        entries: Mapping[str, Mapping[int, Known]],
        previous: Known | None,
    ) -> Work:
        here = {source: found.get(key.last) for source, found in entries.items()}
        own = here.get(event.source) or next(iter(here.values()), None)
        parent = event.known.traceparent if own is None or isinstance(stage.planned.scope, Reduce) else own.traceparent
        links: tuple[str, ...] = ()
        if self.telemetry.enabled:
            others = dict.fromkeys(known.traceparent for found in entries.values() for known in found.values())
            links = tuple(other for other in others if other != parent)
        if (lost := retry.before_attempt(event.root.num_delivered, self.policy)) is not None:
            gap = gap_of(stage.id, self.stream, key, "dead_lettered", lost.cause)
            return Work(stage, key, event, parent, links, gap=gap)
        deadline_ns = None
        if stage.running.max_lag_s > 0 and stage.running.is_prompt(key):
            deadline_ns = event.root.stored_ns + int(stage.running.max_lag_s * 1e9)
            if time.time_ns() > deadline_ns:
                gap = gap_of(stage.id, self.stream, key, "late", self._late(stage))
                return Work(stage, key, event, parent, links, gap=gap)
        if not isinstance(stage.planned.scope, Reduce):
            for source, known in here.items():
                if known is not None and known.gap is not None:
                    name = MEDIA if source == MEDIA else self.names.get(source, source)
                    gap = gap_of(stage.id, self.stream, key, "upstream", f"{name}: {known.gap.detail}")
                    return Work(stage, key, event, parent, links, gap=gap)
        ports = {
            port: tuple(
                tuple(Entry(index, known.value, known.gap) for index, known in sorted(entries[source].items()))
                for source in sources
            )
            for port, sources in stage.planned.inputs.items()
        }
        before = previous.value if previous is not None else None
        inputs = Inputs(self.stream, key.first, key.last, stage.params, ports, before)
        return Work(stage, key, event, parent, links, inputs=inputs, deadline_ns=deadline_ns)

    @staticmethod
    def _late(stage: GroupStage) -> str:
        return f"waited longer than {stage.running.max_lag_s:g} s to be computed"

    # --- from work to stored outputs ---------------------------------------------------------------------------

    async def _carry_out(self, work: Sequence[Work], again: dict[int, retry.Again]) -> list[Event]:
        """Compute and store; the events that follow. What failed and may pass is noted in `again`."""
        if not work:
            return []
        outcomes: list[Outcome] = []
        by_stage: dict[str, list[Work]] = {}
        for item in work:
            by_stage.setdefault(item.stage.id, []).append(item)
        async with anyio.create_task_group() as tasks:
            for items in by_stage.values():
                tasks.start_soon(self._compute, items, outcomes, again)
        for outcome in outcomes:
            if outcome.dead is not None:
                subject = subjects.dead(outcome.dead.stage, self.stream, outcome.work.key)
                await self.ledger.put(subject, encode(outcome.dead), outcome.span.traceparent)
        entries = [
            ledger.NewRecord(
                subjects.result(outcome.work.stage.id, self.stream, outcome.work.key),
                encode(outcome.record),
                outcome.span.traceparent,
            )
            for outcome in outcomes
        ]
        following: list[Event] = []
        all_placed = await self.ledger.put_many(entries) if entries else []
        pairs = list(zip(outcomes, all_placed, strict=True))
        await note_gaps(self.ledger, [o.record for o, placed in pairs if placed.fresh and isinstance(o.record, Gap)])
        for outcome, placed in pairs:
            stage, key, event = outcome.work.stage, outcome.work.key, outcome.work.event
            self._remember(stage, key)
            outcome.span.end()
            if not stage.read_inside:
                continue
            if placed.fresh:
                gap = outcome.record if isinstance(outcome.record, Gap) else None
                known = Known(placed.seq, outcome.span.traceparent, outcome.value, gap)
                kept = self.shelf.keep_value(stage.id, key, known)
                following.append(Event(stage.id, key, kept, event.root, time.time_ns()))
            elif (stored := await self._stored_event(stage, key, event)) is not None:
                following.append(stored)
        return following

    async def _compute(self, items: Sequence[Work], outcomes: list[Outcome], again: dict[int, retry.Again]) -> None:
        stage = items[0].stage
        spans = [begin_span(self.telemetry, item, self.stream, self.worker) for item in items]
        runnable = [(item.inputs, item.deadline_ns) for item in items if item.inputs is not None]
        done = iter(await stage.pool.process([i for i, _ in runnable], [deadline_ns for _, deadline_ns in runnable]))
        batches: dict[tuple[int, int], list[str]] = {}
        for item, span in zip(items, spans, strict=True):
            if item.inputs is None:
                assert item.gap is not None
                dead = dead_letter_of(item, self.stream, item.gap.detail) if item.gap.cause == "dead_lettered" else None
                outcomes.append(Outcome(item, item.gap, None, span, dead))
                continue
            ran = next(done)
            if self.telemetry.enabled:
                batches.setdefault((ran.started_ns, ran.ended_ns), []).append(
                    record_steps(self.telemetry, item, ran, span)
                )
            if ran.error is None:
                outcomes.append(Outcome(item, result_of(item, ran, self.stream, self.worker), ran.output, span))
                continue
            jitter = 0.5 + self.random.random()
            if isinstance(ran.error, Late):
                gap = gap_of(stage.id, self.stream, item.key, "late", self._late(stage))
                outcomes.append(Outcome(item, gap, None, span))
                continue
            verdict = retry.after_failure(ran.error, item.event.root.num_delivered, self.policy, jitter)
            log.warning(
                "stage_failed", stage=stage.planned.name, key=str(item.key), error=str(ran.error), then=str(verdict)
            )
            if isinstance(verdict, retry.Again):
                again[id(item.event.root)] = verdict
                span.end(error=str(ran.error))
            else:
                gap = gap_of(stage.id, self.stream, item.key, "dead_lettered", verdict.cause)
                dead = dead_letter_of(item, self.stream, verdict.cause)
                outcomes.append(Outcome(item, gap, None, span, dead))
        for (started_ns, ended_ns), links in batches.items():
            attributes: Attributes = {"stage": stage.planned.name, "batch.size": len(links)}
            self.telemetry.record("batch", "", started_ns, ended_ns, links=links, attributes=attributes)

    def _remember(self, stage: GroupStage, key: Key) -> None:
        self._stored[stage.id].add(key)
