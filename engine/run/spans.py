"""The spans of a worker's work: one for each output, in the trace of its segment, with its steps inside.

An output's span begins when its last input becomes known and ends when it is stored. The steps follow one another
without a gap, so they add up to it:

    process penstock.results.{stage}.{stream}.{segment}
      wait | decode | wait | compute {capability} | publish penstock.results.{stage}.{stream}.{segment}

What is made from the output goes on from the span of its publishing. A batch has no span: the items of one are linked
to each other. An output that is made from a range belongs to no segment: it has a trace of its own, linked to theirs.
"""

import time
from collections.abc import Sequence

from engine.decide.instructions import Compute, GiveGap, Known
from engine.run import conventions as names
from engine.run.done import Done
from engine.run.frames import Decoding
from engine.run.telemetry import Attributes, Span, Telemetry, unrecorded
from engine.spec.operator import Reduce


class WorkSpan:
    """An output being made. `traceparent` goes on with what is stored. Where nobody traces, that is all it does."""

    __slots__ = ("traceparent",)

    def __init__(self, traceparent: str) -> None:
        self.traceparent = traceparent

    @property
    def item(self) -> str:
        """What the others of a batch link to; empty where nobody traces."""
        return ""

    def decoded(self, decodings: Sequence[Decoding]) -> None:
        """Its media were decoded for it."""

    def ran(self, done: Done) -> None:
        """It waited, then it was computed."""

    def storing(self) -> None:
        """From now on it is being stored."""

    def end(self, gap: str = "", error: str = "") -> None:
        """It is stored, or failed."""


class TracedSpan(WorkSpan):
    """The same, told to whoever collects it."""

    __slots__ = ("_capability", "_has_run", "_now_ns", "_process", "_stored", "_traces")

    def __init__(self, traces: Telemetry, process: Span, capability: str, since_ns: int) -> None:
        super().__init__(process.traceparent)
        self._traces = traces
        self._process = process
        self._capability = capability
        self._now_ns = since_ns  # up to here it has been told
        self._has_run = False
        self._stored: Span | None = None

    @property
    def item(self) -> str:
        return self._process.traceparent

    def decoded(self, decodings: Sequence[Decoding]) -> None:
        for decoding in decodings:
            self._wait(decoding.began_ns)
            told: Attributes = {
                names.DECODE_PATH: decoding.path,
                names.DECODE_KIND: decoding.kind,
                names.SEGMENT: decoding.index,
            }
            self._step(names.DECODE, decoding.ended_ns, told)

    def ran(self, done: Done) -> None:
        self._has_run = True
        self._wait(done.started_ns)
        told: Attributes = {
            names.BATCH_SIZE: done.batch_size,
            names.BATCH: done.batch,
            names.REASON: done.why,
            names.COMPUTE_S: done.compute_s,
        }
        others = [other for other in done.items if other != self.item]
        error = "" if done.error is None else str(done.error)
        self._step(names.compute(self._capability), done.ended_ns, told, others, error)
        for call in done.calls:
            name, said = names.called(call)
            self._traces.record(
                name,
                self._process.traceparent,
                call.began_ns,
                call.ended_ns,
                kind="client",
                attributes=said,
                error=call.error,
            )

    def storing(self) -> None:
        if not self._has_run:  # a gap
            self._wait(time.time_ns())
        self._stored = self._traces.span(
            names.PUBLISH_RESULT,
            self._process.traceparent,
            kind="producer",
            started_ns=self._now_ns,
            attributes=names.messaging("publish", names.RESULTS),
        )
        self.traceparent = self._stored.traceparent

    def end(self, gap: str = "", error: str = "") -> None:
        told = {names.GAP: gap} if gap else None
        if self._stored is not None:
            self._stored.end(error="" if gap else error)
        self._process.end(None, told, error=error)

    def _wait(self, until_ns: int) -> None:
        if until_ns > self._now_ns:
            self._step(names.WAIT, until_ns, {names.WAIT_S: (until_ns - self._now_ns) / 1e9})

    def _step(self, name: str, until_ns: int, told: Attributes, links: Sequence[str] = (), error: str = "") -> None:
        since_ns, self._now_ns = self._now_ns, max(self._now_ns, until_ns)
        parent = self._process.traceparent
        self._traces.record(name, parent, since_ns, self._now_ns, links=links, attributes=told, error=error)


class WorkSpans:
    """Makes them for one worker."""

    def __init__(self, traces: Telemetry, worker: str) -> None:
        self._traces = traces
        self._worker = worker

    def begin(self, work: Compute | GiveGap, stream: str, rung: str = "") -> WorkSpan:
        """In the trace of the output's own segment, linked to its other inputs. `rung`: that computes it, where that is
        known."""
        parent = _parent(work)
        if not self._traces.enabled:
            return WorkSpan(parent or unrecorded())
        planned = work.stage.running.planned
        told = {
            **names.messaging("process", names.RESULTS),
            names.STAGE: planned.name,
            names.STAGE_ID: planned.id,
            names.CAPABILITY: planned.capability,
            names.RUNG: rung or planned.rung.rung,
            names.STREAM: stream,
            names.SEGMENT: str(work.key),
            names.WORKER: self._worker,
            names.ATTEMPT: work.event.num_delivered,
            names.REASON: work.why,
        }
        others = [known.traceparent for found in work.inputs.values() for known in found.values()]
        since_ns = work.event.since_ns
        span = self._traces.span(
            names.PROCESS,
            parent,
            kind="consumer",
            started_ns=since_ns,
            links=_one_of_each_trace(others, parent),
            attributes=told,
        )
        return TracedSpan(self._traces, span, planned.capability, since_ns)


def _parent(work: Compute | GiveGap) -> str:
    """The input at the output's own segment; none where it is made from a range."""
    if isinstance(work.stage.scope, Reduce):
        return ""
    event, at = work.event, work.key.last
    own: Known | None = None
    for source, found in work.inputs.items():
        if source == event.source or own is None:
            own = found.get(at, own)
    return event.known.traceparent if own is None else own.traceparent


def _one_of_each_trace(traceparents: Sequence[str], parent: str) -> list[str]:
    """A trace is read as a whole: one way into each of the others is enough."""
    by_trace = {traceparent[3:35]: traceparent for traceparent in traceparents if traceparent}
    by_trace.pop(parent[3:35], None)
    return list(by_trace.values())
