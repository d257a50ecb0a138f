"""What is left to do of each stream in a worker, by what batches lately took, and whether a segment is begun: of all
groups that serve it, not of those alone that run fused. Worked out by `engine.decide.passage`, anew once a second at
most.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from engine.decide.lanes import CORES
from engine.decide.passage import NOWHERE, Passage, StageCost, Way
from engine.run.pool import Pool
from engine.spec.operator import OfRanges
from engine.spec.workflow import MEDIA

ESTIMATE_NS = 1_000_000_000
DECODING = "decoding"  # as if it were a stage of its own
DECODE_MEMORY = 20  # segments


class Ways:
    """One for each worker. Stages are `engine.run.host.GroupStage`; `pools` are all of the worker's."""

    def __init__(self, num_cores: int, pools: Callable[[], Iterable[Pool]]) -> None:
        self._num_cores = num_cores
        self._pools = pools
        self._groups: dict[str, dict[str, Mapping[str, Any]]] = {}  # stages, by stream and group
        self._known: dict[str, tuple[int, Way]] = {}
        self._decode_s: dict[str, float] = {}  # by stream, of a segment
        self._passage = Passage()

    def serve(self, stream: str, group: str, stages: Mapping[str, Any]) -> None:
        """From now on a group runs these of a stream's stages, by their id."""
        self._groups.setdefault(stream, {})[group] = stages
        self._known.pop(stream, None)

    def leave(self, stream: str, group: str, stages: Mapping[str, Any]) -> None:
        """A group does not run these any more; another of its name may have come in its place."""
        groups = self._groups.get(stream, {})
        if groups.get(group) is stages:
            del groups[group]
            self._known.pop(stream, None)
        if not groups:
            for kept in (self._groups, self._known, self._decode_s):
                kept.pop(stream, None)

    def of(self, stream: str, now_ns: int) -> Way:
        """As of a second ago at most; `now_ns`: Unix time."""
        if stream not in self._groups:
            return NOWHERE
        known = self._known.get(stream)
        if known is None or now_ns > known[0] + ESTIMATE_NS:
            known = self._known[stream] = now_ns, self._estimated(stream)
        return known[1]

    def note_decoded(self, stream: str, took_s: float) -> None:
        """A segment's media were decoded."""
        if stream in self._groups:
            before_s = self._decode_s.setdefault(stream, took_s)
            self._decode_s[stream] = before_s + (took_s - before_s) / DECODE_MEMORY

    def enters(self, stream: str, index: int, due_ns: int, lag_s: float, now_ns: int) -> str:
        """Why a segment is not begun; empty where it is."""
        running_s: dict[str, float] = {}
        for pool in self._pools():
            running_s[pool.resource] = running_s.get(pool.resource, 0.0) + pool.running_s
        return self._passage.enters((stream, index), due_ns, lag_s, now_ns, self.of(stream, now_ns), running_s)

    def passed(self, stream: str, index: int, stage: str) -> None:
        """A stage has begun on a segment, or there is nothing to do of it."""
        self._passage.passed((stream, index), stage)

    def lost(self, stream: str, index: int) -> None:
        """A segment that was begun will not be whole in time."""
        self._passage.lost((stream, index))

    def _estimated(self, stream: str) -> Way:
        every = {id: stage for stages in self._groups.get(stream, {}).values() for id, stage in stages.items()}
        costs = {
            id: StageCost(
                sources=stage.rule.sources,
                resource=stage.pool.resource,
                num_lanes=stage.pool.num_shared_lanes,
                unit_s=stage.pool.unit_s,
                service_s=stage.pool.service_s,
                open_share=stage.opens.share,
            )
            for id, stage in every.items()
            if not isinstance(stage.rule.scope, OfRanges)  # which is not made of each segment
        }
        if decode_s := self._decode_s.get(stream, 0.0):
            costs[DECODING] = StageCost((MEDIA,), CORES, self._num_cores, decode_s, decode_s)
        return Way.through(costs)
