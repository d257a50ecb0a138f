"""What an output lacks: which outputs must be computed before it, and which of them nobody can compute. Pure.

An output that is not stored leads on to its inputs; one that is stored does not, whatever became of what it was made
from. An output is lost where the media of its own segment are gone, or where it is made from one that is lost; a
neighbour that is lost is only a gap in its view. So is one whose view is longer than can be read at once.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from engine.decide import joins
from engine.spec.operator import Fold, PerRange, Reduce
from engine.spec.plan import PlannedStage
from engine.spec.workflow import MEDIA
from streams.subjects import Key

MAX_VIEW = 1_000_000  # segments that one output can be made from

Outputs = dict[str, set[Key]]  # by stage id


class Lacking(NamedTuple):
    """Outputs that are not stored, the one that was asked about included."""

    computable: Outputs
    lost: Outputs

    @property
    def num(self) -> int:
        return sum(map(len, [*self.computable.values(), *self.lost.values()]))


def lacking(
    stages: Sequence[PlannedStage],
    stage_id: str,
    key: Key,
    stored: Mapping[str, Collection[Key]],
    media: Collection[int],
    num_segments: int,
) -> Lacking:
    """What an output lacks. `stages` each after those it reads; `media` the segments that are kept."""
    wanted: Outputs = {stage_id: {key}}
    missing: Outputs = {}
    for stage in reversed(stages):
        keys = {key for key in wanted.get(stage.id, ()) if key not in stored.get(stage.id, ())}
        if isinstance(stage.scope, Fold):
            for last in sorted(keys, reverse=True):
                keys |= _before(last, stored.get(stage.id, ()))
        missing[stage.id] = keys
        for output in keys:
            if _is_too_long(output):
                continue
            view = joins.needs(stage.scope, output, num_segments)
            for source in stage.sources:
                if source != MEDIA:
                    keys_there = [output] if isinstance(stage.scope, PerRange) else map(Key.of, view)
                    wanted.setdefault(source, set()).update(keys_there)
    lost: Outputs = {}
    for stage in stages:
        lost[stage.id] = set(filter(_is_too_long, missing[stage.id]))
        if isinstance(stage.scope, Reduce):
            continue
        for output in missing[stage.id]:
            gone = output.last not in media if MEDIA in stage.sources else False
            if gone or any(output in lost.get(source, ()) for source in stage.sources):
                lost[stage.id].add(output)
    computable = {id: keys - lost[id] for id, keys in missing.items()}
    return Lacking(*({id: keys for id, keys in some.items() if keys} for some in (computable, lost)))


def _is_too_long(key: Key) -> bool:
    return key.last - key.first >= MAX_VIEW


def _before(key: Key, stored: Collection[Key]) -> set[Key]:
    """The outputs before one of a fold's, back to the last that is stored."""
    found = set()
    index = key.first - 1
    while index >= 0 and Key.of(index) not in stored:
        found.add(Key.of(index))
        index -= 1
    return found
