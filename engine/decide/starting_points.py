"""Starting points: what a group has yet to do of what is asked of it, and so where its consumers begin. Pure."""

from collections.abc import Iterable, Mapping, Sequence

from engine.decide import joins
from engine.decide.instructions import Known, StageRule
from engine.spec.jobs import JobProgress, JobSpec, Span
from engine.spec.operator import Fold, OfRanges, Reduce
from streams.subjects import Key


def first_inputs(
    stages: Sequence[StageRule],
    stored: Mapping[str, set[Key]],
    num_segments: int | None,
    left: Mapping[str, Sequence[Span]] | None = None,
) -> dict[str, int] | None:
    """For each source from outside the group, the first segment that what is lacking is made from; None where nothing
    is lacking. `left`, by stage: what is asked for still, where that is less than all that was. What a stage lacks of
    another stage of the group leads on to what that one was made from, stored or not: it is the other's output that
    sets this one off, and a fold's own one before. Pure."""
    inside = {stage.id for stage in stages}
    lacking: dict[str, int] = {}
    for stage in stages:
        spans = stage.running.spans if left is None else left.get(stage.id, ())
        first = first_lacking(stage, spans, stored[stage.id], num_segments)
        if first is not None:
            lacking[stage.id] = first
    if not lacking:
        return None
    firsts: dict[str, int] = {}
    for stage in reversed(stages):
        if stage.id not in lacking:
            continue
        scope = stage.scope
        index = joins.needs(scope, Key.of(lacking[stage.id]), None).start
        if isinstance(scope, Fold):
            index = max(0, index - 1)
        for source in stage.awaited:
            found = lacking if source in inside else firsts
            found[source] = min(index, found.get(source, index))
    return firsts


def ranges_lacking(
    stages: Sequence[StageRule],
    stored: Mapping[str, set[Key]],
    num_segments: int | None,
    left: Mapping[str, Sequence[Span]] | None = None,
) -> list[tuple[StageRule, Key]] | None:
    """What is lacking of a group that only makes one output of each range, of results of others; None for any other
    group, and where it is not known where a range ends. Pure."""
    inside = {stage.id for stage in stages}
    found: list[tuple[StageRule, Key]] = []
    for stage in stages:
        is_reducing = isinstance(stage.scope, Reduce) and stage.running.planned.is_of_ranges
        if not is_reducing or not inside.isdisjoint(stage.sources):
            return None
        for span in stage.running.spans if left is None else left.get(stage.id, ()):
            if first_lacking(stage, [span], stored[stage.id], num_segments) is None:
                continue
            last = span.last if num_segments is None else num_segments - 1
            if last is None or last < span.first:
                return None
            found.append((stage, Key(span.first, last if span.last is None else min(last, span.last))))
    return found


def stored_last(stage: StageRule, inputs: Mapping[str, Mapping[int, Known]], num: int) -> tuple[str, int, int] | None:
    """Of `num` inputs from each source: the source, the segment and the sequence of the one stored last, which sets the
    output off and is all that has to be delivered; None where one is not stored. Pure."""
    if any(len(inputs.get(source, ())) < num for source in stage.sources):
        return None
    seq, source, index = max((known.seq, source, at) for source, there in inputs.items() for at, known in there.items())
    return (source, index, seq) if source in stage.awaited else None


def left_of(jobs: Iterable[JobSpec], progress: Mapping[str, JobProgress]) -> dict[str, list[Span]]:
    """What jobs that are answered so far ask for still, by stage. What was answered is wanted by nobody, also where its
    results have gone. Pure."""
    left: dict[str, list[Span]] = {}
    for job in jobs:
        said = progress.get(job.id)
        is_of_this = said is not None and said.submitted_ns == job.submitted_ns
        for id, spans in job.spans_left(said.reached if said is not None and is_of_this else {}).items():
            left.setdefault(id, []).extend(spans)
    return left


def first_lacking(stage: StageRule, spans: Iterable[Span], stored: set[Key], num_segments: int | None) -> int | None:
    """The first segment of an output that is asked for and not stored; None where all are. Pure."""
    found: list[int] = []
    last_known = None if num_segments is None else num_segments - 1
    for span in spans:
        last = span.last if last_known is None else min(last_known, last_known if span.last is None else span.last)
        if isinstance(stage.scope, OfRanges):
            if last is None or Key(span.first, last) not in stored:
                found.append(span.first)
            continue
        index = span.first
        while (last is None or index <= last) and Key.of(index) in stored:
            index += 1
        if last is None or index <= last:
            found.append(index)
    return min(found, default=None)
