"""The trace of an answer: short, and whole. It begins when the job was submitted (of a standing one, when the newest
segment it looked at was stored) and ends when the answer is stored.

    answer
      bring media | stage {capability} ... | read evidence | publish penstock.answers.{job}.{stream}
                      slowest {capability}

What the stages did is known from what they stored, so the trace is told afterwards; each output's own story stands in
the trace of its segment, and these are linked. Where nobody was at work a `wait` says so: the children cover the root.
What had been computed before the job asked takes no time here and is counted.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from engine.run import conventions as names
from engine.run.telemetry import Attributes, Span, Telemetry, trace_id
from engine.spec.jobs import JobSpec
from engine.spec.plan import PlannedStage
from streams.records import Gap, Measured, Result
from streams.subjects import Key

MAX_STAGES_IN_DETAIL = 6  # beyond, the slowest outputs are left out
LEAST_WAIT_NS = 1_000_000


class Used(NamedTuple):
    """A record that an answer rests on, and the trace it comes from."""

    record: Result | Gap
    traceparent: str


class AnswerSpan:
    """An answer being made. `used` holds its own stage's record as well; media were there by `media_ns`."""

    def __init__(
        self,
        traces: Telemetry,
        spec: JobSpec,
        own: Used,
        used: Mapping[str, Sequence[Used]],
        *,
        started_ns: int,
        media_ns: int,
        reading_ns: int,
    ) -> None:
        self._traces = traces
        self._spec = spec
        self._used = used
        self._started_ns = started_ns
        self._media_ns = media_ns
        self._reading_ns = reading_ns
        self._root = Span(own.traceparent)
        self._publish = self._root
        if not traces.enabled:
            return
        first, last = own.record.first, own.record.last
        told: Attributes = {
            names.JOB: spec.id,
            names.STREAM: spec.stream,
            names.SEGMENT: str(Key(first, last)),
            names.STAGE: spec.plan.stage(own.record.stage).name,
            names.NUM_GAPS: sum(isinstance(each.record, Gap) for some in used.values() for each in some),
        }
        self._root = traces.span(names.ANSWER, started_ns=started_ns, links=self._segments(), attributes=told)

    @property
    def trace_id(self) -> str:
        return trace_id(self._root.traceparent)

    def storing(self) -> str:
        """It is being stored from now on; what goes with it."""
        if self._traces.enabled:
            self._publish = self._traces.span(
                names.PUBLISH_ANSWER,
                self._root.traceparent,
                kind="producer",
                attributes={**names.messaging("publish", names.ANSWERS), names.JOB: self._spec.id},
            )
            self._stored_from_ns = time.time_ns()
        return self._publish.traceparent

    def stored(self, num_bytes: int) -> None:
        """It is stored: tell all of it."""
        if not self._traces.enabled:
            return
        self._publish.end(None, {names.BODY_BYTES: num_bytes})
        times = [(self._reading_ns, self._stored_from_ns)]
        self._step(names.READ_EVIDENCE, *times[0], {})
        if self._media_ns > self._started_ns:
            times.append((self._started_ns, self._media_ns))
            self._step(names.BRING_MEDIA, *times[1], {names.NUM_SEGMENTS: len(self._segments())})
        in_detail = len(self._used) <= MAX_STAGES_IN_DETAIL
        for id, some in self._used.items():
            times.append(self._stage(self._spec.plan.stage(id), some, in_detail))
        for since_ns, until_ns in holes(times, self._started_ns, self._stored_from_ns):
            self._step(names.WAIT, since_ns, until_ns, {})
        self._root.end()

    def _stage(self, stage: PlannedStage, some: Sequence[Used], in_detail: bool) -> tuple[int, int]:
        """What a stage did since the job asked; when that was."""
        measured = [each.record.measured for each in some if isinstance(each.record, Result) and each.record.measured]
        ran = [
            (_times(each.record.measured), each)
            for each in some
            if isinstance(each.record, Result) and each.record.measured and each.record.measured.started_ns
        ]
        fresh = [(times, each) for times, each in ran if times.ended_ns > self._started_ns]
        since_ns = max(self._started_ns, min((times.taken_ns for times, _ in fresh), default=0))
        until_ns = min(max((times.ended_ns for times, _ in fresh), default=since_ns), self._reading_ns)
        told: Attributes = {
            names.STAGE: stage.name,
            names.STAGE_ID: stage.id,
            names.RUNG: stage.rung.rung,
            names.NUM_OUTPUTS: len(some),
            names.NUM_EARLIER: len(measured) - len(fresh),
            names.NUM_GAPS: sum(isinstance(each.record, Gap) for each in some),
            names.NUM_BATCHES: len({(each.worker, each.batch) for each in measured}),
            names.COMPUTE_S: sum(each.compute_s for each in measured),
            names.WAIT_S: sum(each.wait_s for each in measured),
            names.DECODE_S: sum(each.decode_s for each in measured),
        }
        only = [some[0].traceparent] if len(some) == 1 else []
        parent = self._step(names.stage(stage.capability), since_ns, until_ns, told, links=only)
        if in_detail and len(fresh) > 1:
            times, slowest = max(fresh, key=lambda one: one[0].ended_ns - one[0].began_ns)
            self._traces.record(
                names.slowest(stage.capability),
                parent,
                max(since_ns, times.began_ns),
                min(times.ended_ns, max(until_ns, times.began_ns)),
                links=[slowest.traceparent],
                attributes={names.SEGMENT: str(slowest.record.last)},
            )
        return since_ns, until_ns

    def _step(self, name: str, since_ns: int, until_ns: int, told: Attributes, links: Iterable[str] = ()) -> str:
        until_ns = max(since_ns, until_ns)
        return self._traces.record(name, self._root.traceparent, since_ns, until_ns, links=links, attributes=told)

    def _segments(self) -> list[str]:
        """A way into the trace of each segment: by what was made of it alone."""
        by_trace = {
            trace_id(each.traceparent): each.traceparent
            for some in self._used.values()
            for each in some
            if each.record.first == each.record.last and each.traceparent
        }
        return list(by_trace.values())


def holes(times: Iterable[tuple[int, int]], since_ns: int, until_ns: int) -> list[tuple[int, int]]:
    """What of a span of time these leave uncovered, in order; shorter than LEAST_WAIT_NS is nothing."""
    found = []
    for began_ns, ended_ns in sorted([*times, (until_ns, until_ns)]):
        if min(began_ns, until_ns) - since_ns >= LEAST_WAIT_NS:
            found.append((since_ns, min(began_ns, until_ns)))
        since_ns = max(since_ns, ended_ns)
    return found


class _Times(NamedTuple):
    """When a worker took what an output is made from, and when its batch ran (Unix time, ns)."""

    taken_ns: int
    began_ns: int
    ended_ns: int


def _times(measured: Measured) -> _Times:
    began_ns = measured.started_ns
    took_s = measured.compute_s * measured.batch_size
    return _Times(began_ns - round(measured.wait_s * 1e9), began_ns, began_ns + round(took_s * 1e9))
