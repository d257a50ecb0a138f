"""Arrears: how far the stages of a stream are behind its source. Pure.

Of N segments that are stored, a stage that reads media could have delivered R = N - a outputs, where it looks `a`
segments ahead; one that reads other stages could have delivered the least of theirs, less its own `a`. It is behind by
the outputs below R that are asked of it and not stored, whatever it reads. A stage that reduces delivers at the end of
its range and is never behind.

A source looks every CHECK_EVERY segments, and stores on while those that wait and the next ones are within MAX_AHEAD.
"""

from collections.abc import Collection, Mapping, Sequence

from engine.decide.running_graph import RunningStage
from engine.decide.stored_keys import StoredKeys
from engine.spec.operator import Map, OfRanges
from engine.spec.workflow import MEDIA

MAX_AHEAD = 64  # segments of a durable stream that wait to be looked at
CHECK_EVERY = 8  # segments


def has_room(behind: Mapping[str, int]) -> bool:
    """Whether the source may store CHECK_EVERY segments more."""
    return max(behind.values(), default=0) <= MAX_AHEAD - CHECK_EVERY


def nothing_comes(behind: Mapping[str, int], idle: Collection[str]) -> bool:
    """Whether each stage that is behind has acknowledged all it was brought (`idle`, before `behind` was counted): then
    what it lacks was there once and has fallen out of retention."""
    return all(not num or id in idle for id, num in behind.items())


def num_behind(
    stages: Sequence[RunningStage], stored: Mapping[str, StoredKeys], num_segments: int, since: int = 0
) -> dict[str, int]:
    """By how many outputs each stage is behind, `num_segments` being there; of segments before `since`, which are gone,
    none is counted. Nothing known of a stage is nothing done. `stages` each after those it reads."""
    reach = {MEDIA: num_segments}
    behind: dict[str, int] = {}
    for stage in stages:
        scope = stage.planned.scope
        if isinstance(scope, OfRanges):
            reach[stage.id] = behind[stage.id] = 0
            continue
        ahead = scope.after if isinstance(scope, Map) else 0
        reach[stage.id] = max(0, min(reach.get(source, num_segments) for source in stage.planned.sources) - ahead)
        behind[stage.id] = 0
        for span in stage.spans:
            first = max(since, span.first)
            end = reach[stage.id] if span.last is None else min(reach[stage.id], span.last + 1)
            done = stored[stage.id].num_within(first, end) if stage.id in stored else 0
            behind[stage.id] += max(0, end - first) - done
    return behind
