"""A group: fused stages fed by one stream, from arrivals to stored outputs.

What arrives is an *event*: an input that is stored. An event names the outputs it may complete; those that are complete
are computed and stored, and each stored output is an event for the group's own stages. So a fused edge is an arrival
that needed no consumer, and fused or apart the same rule runs. A message is done when nothing it set off is left to
do; a crash before that only brings it again, and what is stored by then is passed over.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import anyio
import msgspec
import structlog

from engine import joins, retry
from engine.operator import Capability, Entry, Fold, Inputs, Map, Operator, Reduce
from engine.plan import Plan, PlannedStage
from engine.pool import Done, Pool
from engine.shelf import Known, Shelf
from engine.telemetry import Attributes, Span, Telemetry
from engine.workflow import MEDIA
from streams import ledger, subjects
from streams.ledger import Ledger
from streams.pull import Arrival
from streams.records import DeadLetter, Gap, Measured, Result, encode
from streams.subjects import Key

log = structlog.get_logger(__name__)

MAX_REMEMBERED = 65536


@dataclass(frozen=True, slots=True)
class GroupStage:
    """A stage as its group runs it."""

    planned: PlannedStage
    capability: Capability
    operator: type[Operator]
    params: Any
    pool: Pool
    awaited: frozenset[str]  # the sources whose arrival may complete an output
    read_inside: bool  # whether its outputs are events for this group

    @property
    def id(self) -> str:
        return self.planned.id

    @property
    def plain(self) -> bool:
        """One input record, one output: nothing to join."""
        return self.planned.scope == Map() and len(self.planned.sources) == 1


class Event(msgspec.Struct, frozen=True, eq=False):
    """An input that is stored: a segment, a stage's output, or the end of the stream (key None)."""

    source: str
    key: Key | None
    known: Known
    root: Arrival  # the message that led to it


class Work(msgspec.Struct, frozen=True, eq=False):
    """An output to compute now: from inputs, or a gap that is already certain."""

    stage: GroupStage
    key: Key
    event: Event
    parent: str  # the traceparent of the input at the output's own segment
    links: tuple[str, ...] = ()  # those of the other inputs
    inputs: Inputs | None = None
    gap: Gap | None = None


class _Outcome(msgspec.Struct, frozen=True, eq=False):
    """What a piece of work came to: a record to store."""

    work: Work
    record: Result | Gap
    value: Any
    span: Span
    dead: DeadLetter | None = None


@dataclass(slots=True)
class Group:
    """Runs the stages of one group over one stream."""

    plan: Plan
    stages: Sequence[GroupStage]
    shelf: Shelf
    ledger: Ledger
    telemetry: Telemetry
    policy: retry.RetryPolicy
    worker: str
    random: Random
    demands: frozenset[type] = frozenset()  # the kinds of things its stages ask of the media's decoder
    _claimed: set[tuple[str, Key]] = field(default_factory=set)
    _stored: OrderedDict[tuple[str, Key], None] = field(default_factory=OrderedDict)
    _last_seq: dict[str, int] = field(default_factory=dict)

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

    async def open(self) -> bool:
        """Learn which outputs are stored already; whether there is anything left to do."""
        end = await self.shelf.end()
        lacks_some = end is None
        for stage in self.stages:
            stored = await self.ledger.subjects(subjects.results_of(stage.id, self.stream))
            for subject in stored:
                if key := subjects.parse(subject).key:
                    self._remember(stage, key)
            if end is not None:
                num_owed = 1 if isinstance(stage.planned.scope, Reduce) else end[1].num_segments
                lacks_some |= len(stored) < num_owed
        return lacks_some

    async def handle(self, arrivals: Sequence[Arrival]) -> list[retry.Again | None]:
        """Do all that these messages set off. For each: None when it is done, or when to bring it again."""
        again: dict[int, retry.Again] = {}
        events = [event for arrival in arrivals if (event := await self._event(arrival)) is not None]
        while events:
            work: list[Work] = []
            following: list[Event] = []
            try:
                for event in events:
                    for stage, key in self._contributions(event):
                        found = await self._ready(stage, key, event)
                        if isinstance(found, Work):
                            work.append(found)
                        elif found is not None:
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
                (s.id, k) for s in readers for k in joins.outputs_of(s.planned.scope, index, self.shelf.num_segments)
            )
            if media.memo and all(output in self._stored for output in owed):
                for wanted in list(media.memo):
                    if type(wanted) in self.demands:
                        media.memo.pop(wanted, None)

    # --- from events to work ---------------------------------------------------------------------------------

    async def _event(self, arrival: Arrival) -> Event | None:
        address = subjects.parse(arrival.subject)
        data = await self.ledger.whole(arrival.data, arrival.headers)
        if address.kind == "media":
            index = None if address.key is None else address.key.first
            known = self.shelf.keep_media(index, arrival.seq, data, arrival.traceparent)
            return Event(MEDIA, address.key, known or Known(arrival.seq, arrival.traceparent), arrival)
        if address.key is None:
            return None
        known = self.shelf.keep_result(address.source, address.key, arrival.seq, data, arrival.traceparent)
        return Event(address.source, address.key, known, arrival)

    def _contributions(self, event: Event) -> list[tuple[GroupStage, Key]]:
        num_segments = self.shelf.num_segments
        found: list[tuple[GroupStage, Key]] = []
        for stage in self.stages:
            scope = stage.planned.scope
            keys: list[Key] = []
            if event.key is None:
                keys = joins.outputs_of_end(scope, num_segments or 0)
            elif event.source in stage.awaited:
                keys = joins.outputs_of(scope, event.key.first, num_segments)
                if isinstance(scope, Reduce) and not keys:  # the end may be stored without having come by here
                    keys = [Key(0, 0)]
            elif event.source == stage.id:
                keys = joins.outputs_of_own(scope, event.key, num_segments)
            found += [(stage, key) for key in keys]
        return found

    async def _ready(self, stage: GroupStage, key: Key, event: Event) -> Work | Event | None:
        """The work if this event completes the output; the output's own event if it is stored already."""
        if isinstance(stage.planned.scope, Reduce):
            end = await self.shelf.end() if await self._is_last(stage, event) else None
            if end is None or end[1].num_segments == 0:
                return None
            key = Key(0, end[1].num_segments - 1)
        if (stage.id, key) in self._stored:
            return await self._stored_event(stage, key, event) if stage.read_inside else None
        found = await self._complete(stage, key, event)
        if isinstance(found, Work):  # from here on this event answers for the output, and no other need
            if (stage.id, key) in self._claimed:
                return None
            if (stage.id, key) in self._stored:  # by another, while this one was looking
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
                return None
        previous = None
        if isinstance(scope, Fold) and key.first > 0:
            previous = (await self.shelf.get(stage.id, [key.first - 1])).get(key.first - 1)
            if previous is None:
                return None
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
        return isinstance(scope, Reduce) or (isinstance(scope, Map) and key.last + scope.after >= num_segments)

    async def _is_last(self, stage: GroupStage, event: Event) -> bool:
        """Whether no input of a whole range was stored after this event, in its JetStream stream. Asked first, for it
        spares every arrival but the last one the reading of the range."""
        alike = [source for source in stage.planned.sources if (source == MEDIA) == (event.source == MEDIA)]
        if event.known.seq >= self._last_known(alike):
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
        return Event(stage.id, key, known, event.root)

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
            gap = self._gap(stage, key, "dead_lettered", lost.cause)
            return Work(stage, key, event, parent, links, gap=gap)
        if not isinstance(stage.planned.scope, Reduce):
            for source, known in here.items():
                if known is not None and known.gap is not None:
                    name = MEDIA if source == MEDIA else self.plan.stage(source).name
                    gap = self._gap(stage, key, "upstream", f"{name}: {known.gap.detail}")
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
        return Work(stage, key, event, parent, links, inputs=inputs)

    def _gap(self, stage: GroupStage, key: Key, cause: Any, detail: str) -> Gap:
        return Gap(stage=stage.id, stream=self.stream, first=key.first, last=key.last, cause=cause, detail=detail)

    # --- from work to stored outputs ---------------------------------------------------------------------------

    async def _carry_out(self, work: Sequence[Work], again: dict[int, retry.Again]) -> list[Event]:
        """Compute and store; the events that follow. What failed and may pass is noted in `again`."""
        if not work:
            return []
        outcomes: list[_Outcome] = []
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
            ledger.Entry(
                subjects.result(outcome.work.stage.id, self.stream, outcome.work.key),
                encode(outcome.record),
                outcome.span.traceparent,
            )
            for outcome in outcomes
        ]
        following: list[Event] = []
        for outcome, placed in zip(outcomes, await self.ledger.put_many(entries) if entries else [], strict=True):
            stage, key, event = outcome.work.stage, outcome.work.key, outcome.work.event
            self._remember(stage, key)
            outcome.span.end()
            if not stage.read_inside:
                continue
            if placed.fresh:
                gap = outcome.record if isinstance(outcome.record, Gap) else None
                known = Known(placed.seq, outcome.span.traceparent, outcome.value, gap)
                following.append(Event(stage.id, key, self.shelf.keep_value(stage.id, key, known), event.root))
            elif (stored := await self._stored_event(stage, key, event)) is not None:
                following.append(stored)
        return following

    async def _compute(self, items: Sequence[Work], outcomes: list[_Outcome], again: dict[int, retry.Again]) -> None:
        stage = items[0].stage
        spans = [self._span(item) for item in items]
        runnable = [item.inputs for item in items if item.inputs is not None]
        done = iter(await stage.pool.process(runnable))
        batches: dict[tuple[int, int], list[str]] = {}
        for item, span in zip(items, spans, strict=True):
            if item.inputs is None:
                dead = self._dead(item, item.gap.detail) if item.gap and item.gap.cause == "dead_lettered" else None
                assert item.gap is not None
                outcomes.append(_Outcome(item, item.gap, None, span, dead))
                continue
            ran = next(done)
            if self.telemetry.enabled:
                batches.setdefault((ran.started_ns, ran.ended_ns), []).append(self._record_steps(item, ran, span))
            if ran.error is None:
                outcomes.append(_Outcome(item, self._result(item, ran), ran.output, span))
                continue
            jitter = 0.5 + self.random.random()
            verdict = retry.after_failure(ran.error, item.event.root.num_delivered, self.policy, jitter)
            log.warning(
                "stage_failed", stage=stage.planned.name, key=str(item.key), error=str(ran.error), then=str(verdict)
            )
            if isinstance(verdict, retry.Again):
                again[id(item.event.root)] = verdict
                span.end(error=str(ran.error))
            else:
                gap = self._gap(stage, item.key, "dead_lettered", verdict.cause)
                outcomes.append(_Outcome(item, gap, None, span, self._dead(item, verdict.cause)))
        for (started_ns, ended_ns), links in batches.items():
            attributes: Attributes = {"stage": stage.planned.name, "batch.size": len(links)}
            self.telemetry.record("batch", "", started_ns, ended_ns, links=links, attributes=attributes)

    def _span(self, item: Work) -> Span:
        if not self.telemetry.enabled:
            return Span(item.parent)
        planned = item.stage.planned
        attributes: Attributes = {
            "stage": planned.name,
            "stage.id": planned.id,
            "implementation": planned.rung.rung,
            "stream": self.stream,
            "segment": str(item.key),
            "worker": self.worker,
            "delivery": item.event.root.num_delivered,
        }
        return self.telemetry.span(planned.name, item.parent, links=item.links, attributes=attributes)

    def _record_steps(self, item: Work, ran: Done, span: Span) -> str:
        waited_ns = int((anyio.current_time() - item.event.root.arrived_s) * 1e9) - (ran.ended_ns - ran.started_ns)
        self.telemetry.record("queue wait", span.traceparent, ran.started_ns - max(0, waited_ns), ran.started_ns)
        return self.telemetry.record("process", span.traceparent, ran.started_ns, ran.ended_ns)

    def _result(self, item: Work, ran: Done) -> Result:
        waited_s = max(0.0, anyio.current_time() - item.event.root.arrived_s - (ran.ended_ns - ran.started_ns) / 1e9)
        return Result(
            stage=item.stage.id,
            stream=self.stream,
            first=item.key.first,
            last=item.key.last,
            output=msgspec.Raw(ran.encoded),
            implementation=item.stage.planned.rung.rung,
            measured=Measured(compute_s=ran.compute_s, wait_s=waited_s, batch_size=ran.batch_size, worker=self.worker),
        )

    def _dead(self, item: Work, cause: str) -> DeadLetter:
        return DeadLetter(
            stage=item.stage.id,
            stream=self.stream,
            first=item.key.first,
            last=item.key.last,
            cause=cause,
            attempts=item.event.root.num_delivered,
        )

    def _remember(self, stage: GroupStage, key: Key) -> None:
        self._stored[(stage.id, key)] = None
        if len(self._stored) > MAX_REMEMBERED:
            self._stored.popitem(last=False)
