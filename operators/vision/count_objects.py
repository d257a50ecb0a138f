"""Counts tracked objects over a range: of each class, how many there were in all and how many at once at most.

A track is one object, so one that was lost and found again counts twice; what comes after a gap begins anew."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import ClassVar

from engine.spec.operator import Inputs, Operator, Reduce, Rung, Scope, Settings
from operators.capabilities import COUNT_OBJECTS
from operators.seen import Count, Counts, TrackedObject


class CountObjects(Operator):
    """How many objects of each class there were."""

    capability = COUNT_OBJECTS
    name = "tracks"
    scope: ClassVar[Scope] = Reduce()
    runs_in = "loop"

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return (Rung("tracks", 1.0, Settings()),)  # it follows from the tracks

    def process(self, batch: Sequence[Inputs]) -> Sequence[Counts]:
        return [_counts(item) for item in batch]


def _counts(item: Inputs) -> Counts:
    seen: dict[str, list[TrackedObject]] = defaultdict(list)
    tracks: dict[str, set[tuple[int, int]]] = defaultdict(set)
    spell = 0  # tracks are numbered anew behind a gap
    for entry in item.around("tracks"):
        if entry.value is None:
            spell += 1
            continue
        for track in entry.value.observations:
            seen[track.text].append(track)
            tracks[track.text].add((spell, track.track))
    counts = []
    for name in sorted(seen):
        at_once = Counter(each.at_ns for track in seen[name] for each in track.path)
        most = max(at_once.values(), default=0)
        num = len(tracks[name])
        counts.append(
            Count(
                start_ns=min(track.start_ns for track in seen[name]),
                end_ns=max(track.end_ns for track in seen[name]),
                text=f"{name}: {num} in all, {most} at once at most",
                confidence=round(sum(track.confidence for track in seen[name]) / len(seen[name]), 4),
                object=name,
                num=num,
                most_at_once=most,
            )
        )
    return Counts(observations=tuple(counts))
