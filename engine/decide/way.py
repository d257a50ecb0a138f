"""Ways: what a segment takes through the stages of its stream in a worker, by what is known of them there. Pure."""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import msgspec

from engine.decide.lateness import behind_ns, leads_ns
from engine.decide.learned import Learned

NS = 1_000_000_000
OPENS_MEMORY = 50  # segments


class Opens:
    """Of how many segments a stage's gate is open, of late: of all, while nothing is known, and then of those that
    were seen, until they are OPENS_MEMORY."""

    def __init__(self) -> None:
        self.share = 1.0
        self._num = 1

    def note(self, *, is_open: bool) -> bool:
        self._num = min(self._num + 1, OPENS_MEMORY)
        self.share += (is_open - self.share) / self._num
        return is_open


class Costed(Protocol):
    """A pool, as far as what its items take."""

    @property
    def resource(self) -> str: ...
    @property
    def num_shared_lanes(self) -> int:
        """Of its resource."""

    @property
    def learned(self) -> Learned: ...


class StageCost(msgspec.Struct, frozen=True):
    """What is known of a stage here. `unit_s`: seconds of a lane for each item, of full batches; None: not known."""

    sources: Sequence[str]
    resource: str
    num_lanes: int
    unit_s: float | None
    service_s: float | None  # of a batch, as they are of late
    open_share: float = 1.0
    quality: float = 1.0  # of the rung it is on, against the best
    batches: bool = False  # whether it takes several items at once

    @staticmethod
    def on(pool: Costed, sources: Sequence[str], open_share: float, quality: float) -> "StageCost":
        """By what was learned of the pool that computes it."""
        known = pool.learned
        return StageCost(
            sources=sources,
            resource=pool.resource,
            num_lanes=pool.num_shared_lanes,
            unit_s=known.unit_s,
            service_s=known.usual_s,
            open_share=open_share,
            quality=quality,
            batches=known.max_batch > 1,
        )


class Way(msgspec.Struct, frozen=True):
    """What a segment takes through the stages of its stream here. `work_s`: by stage, of which resource how many
    seconds of a lane; `num_lanes`: by resource; `with_it_ns` and `behind_ns`: by stage, the longest path from it on,
    with it and without."""

    work_s: Mapping[str, tuple[str, float]]
    num_lanes: Mapping[str, int]
    with_it_ns: Mapping[str, int]
    behind_ns: Mapping[str, int]
    drops_alone: bool = False  # it is one stage whose batcher drops what would be late as well as can be

    @staticmethod
    def through(stages: Mapping[str, StageCost]) -> "Way":
        """By id."""
        sources = {id: stage.sources for id, stage in stages.items()}
        with_it_ns = leads_ns(sources, {id: stage.service_s for id, stage in stages.items()})
        return Way(
            {id: (stage.resource, (stage.unit_s or 0.0) * stage.open_share) for id, stage in stages.items()},
            {stage.resource: stage.num_lanes for stage in stages.values()},
            with_it_ns,
            behind_ns(sources, with_it_ns),
            drops_alone=len(stages) == 1 and all(stage.batches for stage in stages.values()),
        )

    def from_stage(self, stage: str, behind: Collection[str]) -> "Way":
        """What is left of it where a stage and those behind it are all there is to do."""
        work_s = {id: work for id, work in self.work_s.items() if id == stage or id in behind}
        resources = {resource for resource, _ in work_s.values()}
        lanes = {resource: num for resource, num in self.num_lanes.items() if resource in resources}
        return Way(work_s, lanes, {stage: self.with_it_ns.get(stage, 0)}, {})

    @property
    def lead_ns(self) -> int:
        return max(self.with_it_ns.values(), default=0)


NOWHERE = Way({}, {}, {}, {})
