"""Jobs as data: what is asked of which segments of which stream. Pure.

A job is kept as one JSON document in the KV bucket `penstock_jobs`; the set of those that run is the desired state that
nodes reconcile to (engine/decide/running_graph.py). What it asks of a stage are *spans* of the stage's outputs, worked
out once, when it is submitted: an output of a stage at the end of the graph needs the outputs of its sources as far as
its scope looks.
"""

from collections.abc import Iterable
from typing import Literal

import msgspec

from engine.spec.operator import Fold, Map, OfRanges, PerRange, Reduce, Scope, Window
from engine.spec.plan import Plan
from engine.spec.workflow import MEDIA
from streams.records import Record

BUCKET = "penstock_jobs"
State = Literal["running", "done", "canceled", "failed"]


class Span(Record, frozen=True):
    """Segments first .. last, both included; without a last, as far as the stream goes."""

    first: int
    last: int | None = None

    def holds(self, index: int) -> bool:
        return self.first <= index and (self.last is None or index <= self.last)


class Reached(msgspec.Struct, frozen=True, array_like=True):
    """How far a last stage has been answered: the next segment to look at, and a digest of what was said last."""

    next: int
    said: str = ""


Progress = dict[str, Reached]  # by last stage


class JobProgress(Record, frozen=True):
    """How far a job was answered when it was last said."""

    submitted_ns: int  # the job's: an id may be in use again
    reached: Progress


class JobSpec(Record, frozen=True):
    """A job as it was submitted, and its state."""

    id: str
    stream: str
    plan: Plan
    spans: dict[str, tuple[Span, ...]]  # by stage id; of a stage that reduces, each is the range of one output
    asked: Span = Span(first=0)  # what answers are wanted for
    standing: bool = False  # answers as segments come, without end
    asks: tuple[str, ...] = ()
    prompt_from: int | None = None  # outputs from here on are late when older than max_lag_s; None: never
    max_lag_s: float = 0.0
    latency_s: float = 0.0  # within which answers are wanted (engine/spec/objective.py); 0: as the lag allows
    weight: float = 1.0  # of its stream among live ones, where there is not room for all
    rounds: dict[str, int] = msgspec.field(default_factory=dict)  # by stage id, see engine/decide/running_graph.py
    submitted_ns: int = 0  # Unix time
    state: State = "running"
    detail: str = ""  # why it failed
    lost: Span | None = None  # what it asks for that had fallen out of retention when it was submitted
    webhook: str = ""  # where its answers are sent as well
    confined: bool = False  # they are sent only where nodes connect for others
    key: str = ""  # of who submitted it: the same again is this very job

    def ended(self, state: State, detail: str) -> "JobSpec":
        """The job in its last state; one that ended before stays as it is."""
        return self if self.state != "running" else msgspec.structs.replace(self, state=state, detail=detail)

    def spans_left(self, progress: Progress) -> dict[str, tuple[Span, ...]]:
        """What it still asks of every stage, once it is answered so far; what is made of a range rests on all of it."""
        if any(isinstance(stage.scope, OfRanges) for stage in self.plan.stages):
            return self.spans
        nexts = [progress[id].next if id in progress else 0 for id in self.plan.answers]
        left = Span(first=max(self.asked.first, min(nexts)), last=self.asked.last)
        if left.last is not None and left.first > left.last:
            return dict.fromkeys(self.spans, ())
        return spans_of(self.plan, left)

    def patient(self, stage_id: str) -> list[Span]:
        """What the job wants of a stage however late it is."""
        spans = self.spans[stage_id]
        if self.prompt_from is None:
            return list(spans)
        before = [span for span in spans if span.first < self.prompt_from]
        return [
            span
            if span.last is not None and span.last < self.prompt_from
            else Span(first=span.first, last=self.prompt_from - 1)
            for span in before
        ]


def spans_of(plan: Plan, asked: Span, drafts: bool = False) -> dict[str, tuple[Span, ...]]:
    """What answering over `asked` needs of every stage. With `drafts`, a stage that reduces a closed range gives drafts
    over its beginnings, each twice as long as the one before."""
    needed: dict[str, list[Span]] = {id: [asked] for id in plan.answers}
    for stage in reversed(plan.stages):
        spans = needed.setdefault(stage.id, [])
        if isinstance(stage.scope, OfRanges):
            spans[:] = distinct(d for span in spans for d in (beginnings(span) if drafts else [span]))
        elif isinstance(stage.scope, Fold):  # what it finds rests on all before it, whoever asks
            spans[:] = merged(Span(first=0, last=span.last) for span in spans)
        else:
            spans[:] = merged(spans)
        for source in stage.sources:
            if source != MEDIA:
                needed.setdefault(source, []).extend(widened(stage.scope, span) for span in spans)
    return {stage.id: tuple(needed[stage.id]) for stage in plan.stages}


def widened(scope: Scope, span: Span) -> Span:
    """The inputs that outputs in `span` are computed from."""
    first, last = span.first, span.last
    match scope:
        case Map(before, after):
            first, last = first - before, None if last is None else last + after
        case Window(size):
            first -= size - 1
        case Fold() | Reduce() | PerRange():
            pass
    return Span(first=max(0, first), last=last)


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same segments in as few spans as can be, in order."""
    found: list[Span] = []
    for span in sorted(spans, key=lambda span: span.first):
        before = found[-1] if found else None
        if before is None or (before.last is not None and span.first > before.last + 1):
            found.append(span)
        elif before.last is not None and (span.last is None or span.last > before.last):
            found[-1] = Span(first=before.first, last=span.last)
    return found


def distinct(spans: Iterable[Span]) -> list[Span]:
    """Each span once, in order."""
    return sorted(set(spans), key=lambda span: (span.first, -1 if span.last is None else span.last))


def beginnings(span: Span) -> list[Span]:
    """A closed span and its beginnings of 1, 2, 4, 8 ... segments."""
    found = [span]
    num = 1
    while span.last is not None and span.first + num - 1 < span.last:
        found.append(Span(first=span.first, last=span.first + num - 1))
        num *= 2
    return found
