"""Findings of redundancy: stages of which fewer would do, as programs and people are told of them. Pure."""

import math
from collections.abc import Iterable, Mapping
from typing import Literal

from engine.decide.running_graph import RunningStage
from streams.records import Record

Kind = Literal["same-but-for-wording", "different-rungs", "windows", "same-source", "upstream"]
Outputs = Literal["same", "other wording", "better rung", "other rung", "longer window", "other segments"]


class Cost(Record, frozen=True):
    """What a stage has cost: seconds of compute for each second of media, the mean of `num_results`."""

    compute_s_per_s: float
    num_results: int = 1


class StageUse(Record, frozen=True, omit_defaults=False):
    """A stage as it runs on a stream, and who asks for it."""

    id: str
    name: str
    capability: str
    implementation: str
    stream: str
    jobs: tuple[str, ...]


class Redundancy(Record, frozen=True, omit_defaults=False):
    """Stages of which fewer would do."""

    kind: Kind
    keep: str  # the id of the stage, or for `same-source` the name of the stream, that serves all
    streams: tuple[str, ...]
    stages: tuple[StageUse, ...]  # the one to keep first; for `same-source` each that runs on several of the streams
    followers: tuple[StageUse, ...]  # saved as well: stages further down that the merge makes equal to others
    why: str  # one line for people, with what to change
    outputs: Outputs  # what those get who are moved to the one kept
    saves_compute_s_per_s: float  # seconds of compute for each second of media, while all are asked for
    is_measured: bool  # False where something saved has no result yet; it is not in the figure then


def use_of(stage: RunningStage, stream: str) -> StageUse:
    """A stage as it runs on a stream."""
    planned = stage.planned
    return StageUse(
        id=planned.id,
        name=planned.name,
        capability=planned.capability,
        implementation=planned.rung.rung,
        stream=stream,
        jobs=stage.jobs,
    )


def saving(ids: Iterable[str], costs: Mapping[str, Cost]) -> float:
    """Of stages that are not computed any more; those not measured count nothing."""
    return math.fsum(costs[id].compute_s_per_s for id in ids if id in costs)
