"""The spans of a worker's work: one for each output, in the trace of its segment, with its steps inside."""

from collections.abc import Mapping

from engine.decide.instructions import Compute, GiveGap, Known
from engine.run.pool import Done
from engine.run.telemetry import Attributes, Span, Telemetry
from engine.spec.operator import Reduce


class WorkSpan:
    """An output being made. `traceparent` goes on with what is stored."""

    __slots__ = ("_since_ns", "_span", "_traces", "traceparent")

    def __init__(self, traces: Telemetry, span: Span, since_ns: int) -> None:
        self._traces = traces
        self._span = span
        self._since_ns = since_ns
        self.traceparent = span.traceparent

    def ran(self, done: Done) -> None:
        """It waited, then it was computed."""
        if self._traces.enabled:
            waited_ns = min(self._since_ns, done.started_ns)
            self._traces.record("queue wait", self.traceparent, waited_ns, done.started_ns)
            attributes: Attributes = {"batch.size": done.batch_size, "batch": done.batch, "decision.reason": done.why}
            self._traces.record("process", self.traceparent, done.started_ns, done.ended_ns, attributes=attributes)

    def end(self, said: str = "") -> None:
        if said:
            self._span.end(said=said)
        else:
            self._span.end()


class WorkSpans:
    """Makes them for one worker."""

    def __init__(self, traces: Telemetry, worker: str) -> None:
        self._traces = traces
        self._worker = worker

    def begin(self, work: Compute | GiveGap, stream: str) -> WorkSpan:
        """In the trace of the output's own segment, linked to its other inputs."""
        parent = _parent(work)
        if not self._traces.enabled:
            return WorkSpan(self._traces, Span(parent or self._traces.span("").traceparent), work.event.since_ns)
        planned = work.stage.running.planned
        attributes: Attributes = {
            "stage": planned.name,
            "stage.id": planned.id,
            "implementation": planned.rung.rung,
            "stream": stream,
            "segment": str(work.key),
            "worker": self._worker,
            "delivery": work.event.num_delivered,
            "decision.reason": work.why,
        }
        others = dict.fromkeys(known.traceparent for found in work.inputs.values() for known in found.values())
        links = tuple(other for other in others if other != parent)
        since_ns = work.event.since_ns
        span = self._traces.span(planned.name, parent, started_ns=since_ns, links=links, attributes=attributes)
        return WorkSpan(self._traces, span, since_ns)


def _parent(work: Compute | GiveGap) -> str:
    """The input at the output's own segment; of a range, the one that completed it."""
    here: Mapping[str, Known | None] = {source: found.get(work.key.last) for source, found in work.inputs.items()}
    own = here.get(work.event.source) or next(iter(here.values()), None)
    if own is None or isinstance(work.stage.scope, Reduce):
        return work.event.known.traceparent
    return own.traceparent
