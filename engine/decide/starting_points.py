"""Starting points: what a group has yet to do of what is asked of it, and so where its consumers begin. Pure."""

from collections.abc import Mapping, Sequence

from engine.decide import joins
from engine.decide.instructions import StageRule
from engine.spec.operator import Fold, Reduce
from streams.subjects import Key


def first_inputs(
    stages: Sequence[StageRule], stored: Mapping[str, set[Key]], num_segments: int | None
) -> dict[str, int] | None:
    """For each source from outside the group, the first segment that what is lacking is made from; None where nothing
    is lacking. What a stage lacks of another stage of the group leads on to what that one was made from, stored or
    not: it is the other's output that sets this one off, and a fold's own one before. Pure."""
    inside = {stage.id for stage in stages}
    lacking: dict[str, int] = {}
    for stage in stages:
        first = first_lacking(stage, stored[stage.id], num_segments)
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


def first_lacking(stage: StageRule, stored: set[Key], num_segments: int | None) -> int | None:
    """The first segment of an output that is asked for and not stored; None where all are. Pure."""
    found: list[int] = []
    last_known = None if num_segments is None else num_segments - 1
    for span in stage.running.spans:
        last = span.last if last_known is None else min(last_known, last_known if span.last is None else span.last)
        if isinstance(stage.scope, Reduce):
            if last is None or Key(span.first, last) not in stored:
                found.append(span.first)
            continue
        index = span.first
        while (last is None or index <= last) and Key.of(index) in stored:
            index += 1
        if last is None or index <= last:
            found.append(index)
    return min(found, default=None)
