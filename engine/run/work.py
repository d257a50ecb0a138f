"""Pieces of a group's work: what sets which outputs off, what one is made from, and the records it comes to. Pure, but
for spans."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from engine.decide import joins
from engine.decide.running_graph import RunningStage
from engine.run.pool import Done, Pool
from engine.run.segment_cache import Known
from engine.run.telemetry import Attributes, Span, Telemetry
from engine.spec.operator import Capability, Inputs, Map, Operator, Reduce
from engine.spec.plan import PlannedStage
from streams.records import DeadLetter, Gap, GapCause, Measured, Result
from streams.subjects import Key
from streams.wire.pull import Arrival

OPEN = -1  # last of a range that ends with the stream, while its end is not known


@dataclass(frozen=True, slots=True)
class GroupStage:
    """A stage as its group runs it."""

    running: RunningStage
    capability: Capability
    operator: type[Operator]
    params: Any
    pool: Pool
    awaited: frozenset[str]  # the sources whose arrival may complete an output
    read_inside: bool  # whether its outputs are events for this group

    @property
    def planned(self) -> PlannedStage:
        return self.running.planned

    @property
    def id(self) -> str:
        return self.running.id

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
    since_ns: int  # Unix time it became known here


class Work(msgspec.Struct, frozen=True, eq=False):
    """An output to compute now: from inputs, or a gap that is already certain."""

    stage: GroupStage
    key: Key
    event: Event
    parent: str  # the traceparent of the input at the output's own segment
    links: tuple[str, ...] = ()  # those of the other inputs
    inputs: Inputs | None = None
    gap: Gap | None = None
    deadline_ns: int | None = None  # Unix time after which it is worth nothing


class Outcome(msgspec.Struct, frozen=True, eq=False):
    """What a piece of work came to: a record to store."""

    work: Work
    record: Result | Gap
    value: Any
    span: Span
    dead: DeadLetter | None = None


def contributions(
    stages: Sequence[GroupStage], event: Event, num_segments: int | None
) -> list[tuple[GroupStage, list[Key]]]:
    """The outputs that an event may complete, of those that are asked for; by stage, in order."""
    found: list[tuple[GroupStage, list[Key]]] = []
    for stage in stages:
        scope = stage.planned.scope
        keys: list[Key] = []
        if isinstance(scope, Reduce):
            if event.key is None or event.source in stage.awaited:
                keys = _ranges(stage, event.key)
        elif event.key is None:
            keys = joins.outputs_of_end(scope, num_segments or 0)
        elif event.source in stage.awaited:
            keys = joins.outputs_of(scope, event.key.first, num_segments)
        elif event.source == stage.id:
            keys = joins.outputs_of_own(scope, event.key, num_segments)
        if not isinstance(scope, Reduce):
            keys = [key for key in keys if stage.running.owes(key)]
        if keys:
            found.append((stage, keys))
    return found


def _ranges(stage: GroupStage, key: Key | None) -> list[Key]:
    """The ranges asked of a stage that this segment, or the stream's end, belongs to."""
    return [
        Key(span.first, OPEN if span.last is None else span.last)
        for span in stage.running.spans
        if (span.last is None if key is None else span.holds(key.first))
    ]


def result_of(work: Work, ran: Done, stream: str, worker: str) -> Result:
    """The record of an output that was computed."""
    return Result(
        stage=work.stage.id,
        stream=stream,
        first=work.key.first,
        last=work.key.last,
        output=msgspec.Raw(ran.encoded),
        implementation=work.stage.planned.rung.rung,
        measured=Measured(
            compute_s=ran.compute_s,
            wait_s=max(0, ran.started_ns - work.event.since_ns) / 1e9,
            batch_size=ran.batch_size,
            worker=worker,
        ),
    )


def gap_of(stage_id: str, stream: str, key: Key, cause: GapCause, detail: str) -> Gap:
    """The record of an output that there will not be."""
    return Gap(stage=stage_id, stream=stream, first=key.first, last=key.last, cause=cause, detail=detail)


def dead_letter_of(work: Work, stream: str, cause: str) -> DeadLetter:
    """What is kept of work that was given up."""
    return DeadLetter(
        stage=work.stage.id,
        stream=stream,
        first=work.key.first,
        last=work.key.last,
        cause=cause,
        attempts=work.event.root.num_delivered,
    )


def begin_span(telemetry: Telemetry, work: Work, stream: str, worker: str) -> Span:
    """The span of an output, in the trace of its own segment, linked to its other inputs."""
    if not telemetry.enabled:
        return Span(work.parent)
    planned = work.stage.planned
    attributes: Attributes = {
        "stage": planned.name,
        "stage.id": planned.id,
        "implementation": planned.rung.rung,
        "stream": stream,
        "segment": str(work.key),
        "worker": worker,
        "delivery": work.event.root.num_delivered,
    }
    started_ns = work.event.since_ns
    return telemetry.span(planned.name, work.parent, started_ns=started_ns, links=work.links, attributes=attributes)


def record_steps(telemetry: Telemetry, work: Work, ran: Done, span: Span) -> str:
    """The steps of an output that ran: waiting, then processing, whose traceparent is returned."""
    telemetry.record("queue wait", span.traceparent, min(work.event.since_ns, ran.started_ns), ran.started_ns)
    return telemetry.record("process", span.traceparent, ran.started_ns, ran.ended_ns)
