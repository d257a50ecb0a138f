"""The running graph: what all jobs of a stream ask together, as groups of stages to run. Pure.

Jobs meet by stage id: a stage that two of them ask for is one stage here, asked for all that either wants. It follows
from the jobs alone, so every worker that knows the same jobs runs the same groups and no node has to lead.

A group's consumer is named after what the group computes. When that changes, so does the name, and the new consumer
starts at the first input of something not stored yet. A round enters the name as well: a job that asks again for what
was computed and has fallen out of retention brings a new one, because its inputs were delivered and acknowledged
before.
"""

import hashlib
from collections.abc import Container, Iterable
from functools import cached_property
from graphlib import TopologicalSorter

import msgspec

from engine.spec.jobs import JobSpec, Span, distinct, merged
from engine.spec.operator import OfRanges
from engine.spec.plan import PlannedStage
from streams.records import encode
from streams.subjects import Key


class RunningStage(msgspec.Struct, frozen=True, kw_only=True):
    """A stage and what is asked of it, by all jobs together."""

    planned: PlannedStage
    spans: tuple[Span, ...]  # of a stage that reduces, each the range of one output
    patient: tuple[Span, ...] = ()  # the part of it that is wanted however late; the rest within max_lag_s
    max_lag_s: float = 0.0
    latency_s: float = 0.0  # within which its jobs would have it, where one says; 0: as the lag allows
    weight: float = 0.0  # of its stream, where there is not room for all: the most that a standing job gives it
    jobs: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return self.planned.id

    def owes(self, key: Key) -> bool:
        """Whether this output of the stage is asked for."""
        if isinstance(self.planned.scope, OfRanges):
            return any(span.first == key.first and span.last in (None, key.last) for span in self.spans)
        first = key.first
        for span in self.spans:  # noqa: SIM110 - of every arrival, and a generator costs
            if span.first <= first and (span.last is None or first <= span.last):
                return True
        return False

    def is_prompt(self, key: Key) -> bool:
        """Whether this output is worth nothing when it is late; what is made of a range is wanted however late."""
        if isinstance(self.planned.scope, OfRanges):
            return False
        for span in self.patient:  # noqa: SIM110 - of every output, and a generator costs
            if span.holds(key.last):
                return False
        return True


class RunningGroup(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Stages that run fused over one stream."""

    stream: str
    stages: tuple[RunningStage, ...]  # each after those of the group it reads
    round: int = 0

    @property
    def has_ranges_only(self) -> bool:
        """Whether all it makes is one output of each range, of results."""
        return all(stage.planned.is_of_ranges for stage in self.stages)

    @cached_property
    def name(self) -> str:
        """Of its consumers."""
        content = [[stage.id, stage.spans] for stage in sorted(self.stages, key=lambda stage: stage.id)]
        return hashlib.sha256(encode([content, self.round])).hexdigest()[:20]


def running_groups(jobs: Iterable[JobSpec]) -> list[RunningGroup]:
    """The groups that these jobs need, those that are not running passed over."""
    by_stream: dict[str, list[JobSpec]] = {}
    for job in sorted(jobs, key=lambda job: (job.submitted_ns, job.id)):
        if job.state == "running":
            by_stream.setdefault(job.stream, []).append(job)
    return [group for stream, some in by_stream.items() for group in _groups_of(stream, some)]


def _groups_of(stream: str, jobs: list[JobSpec]) -> list[RunningGroup]:
    stages = running_stages(jobs)
    rounds: dict[str, int] = {}
    for job in jobs:
        for planned in job.plan.stages:
            rounds[planned.group] = max(rounds.get(planned.group, 0), job.rounds.get(planned.id, 0))
    groups: dict[str, list[RunningStage]] = {}
    for stage in stages:
        groups.setdefault(stage.planned.group, []).append(stage)
    return [RunningGroup(stream=stream, stages=tuple(members), round=rounds[name]) for name, members in groups.items()]


def running_stages(jobs: list[JobSpec], only: Container[str] | None = None) -> list[RunningStage]:
    """The stages that jobs of one stream ask for, each after those it reads; `only` those with these ids, if given."""
    asking: dict[str, list[JobSpec]] = {}
    planned: dict[str, PlannedStage] = {}
    for job in jobs:
        for stage in job.plan.stages:
            if only is not None and stage.id not in only:
                continue
            planned.setdefault(stage.id, stage)
            asking.setdefault(stage.id, []).append(job)
    return [_running(planned[id], some) for id, some in asking.items()]


def _running(planned: PlannedStage, jobs: list[JobSpec]) -> RunningStage:
    together = distinct if isinstance(planned.scope, OfRanges) else merged
    return RunningStage(
        planned=planned,
        spans=tuple(together(span for job in jobs for span in job.spans[planned.id])),
        patient=tuple(merged(span for job in jobs for span in job.patient(planned.id))),
        max_lag_s=max(job.max_lag_s for job in jobs),
        latency_s=min((job.latency_s for job in jobs if job.latency_s), default=0.0),
        weight=max((job.weight for job in jobs if job.standing), default=0.0),
        jobs=tuple(job.id for job in jobs),
    )


def in_order(stages: Iterable[PlannedStage]) -> list[PlannedStage]:
    """Each stage once, after those it reads."""
    by_id = {stage.id: stage for stage in stages}
    reads = {id: [source for source in stage.sources if source in by_id] for id, stage in by_id.items()}
    return [by_id[id] for id in TopologicalSorter(reads).static_order()]
