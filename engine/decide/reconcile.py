"""Reconcile: which groups a worker runs, from the jobs there are and what can be served where. Pure.

One bad job stops no other. A job that contradicts itself is refused and said so. A stage that this worker cannot serve
is left to those that can; a stage that nobody can serve waits, and with it what reads it, and nothing else.

Stages are fused as the plan has it, but only with such as the same nodes can serve. Every worker that knows the same
jobs and nodes comes to the same groups, so no node has to lead; and while all nodes are alike, which of them are there
makes no difference to the groups.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

import msgspec

from engine.decide.running_graph import RunningGroup, RunningStage, running_groups
from engine.spec.catalogue import Catalogue
from engine.spec.jobs import JobSpec
from engine.spec.operator import Map, Window
from engine.spec.plan import PlannedStage, settings_of
from engine.spec.workflow import MEDIA
from streams.errors import PenstockError, UserError
from streams.subjects import token

MAX_STAGES = 1000  # of a job
MAX_LOOK = 100_000  # segments that a stage looks back or ahead

GroupName = tuple[str, str]  # stream, and the name of its consumers


class Reconciled(msgspec.Struct, frozen=True):
    """What is to be done. Groups in `keep` may have come to be asked for by other jobs."""

    start: tuple[RunningGroup, ...]
    keep: tuple[RunningGroup, ...]
    leave: tuple[GroupName, ...]
    refused: Mapping[str, str]  # by job id, why it is none
    lacking: Mapping[str, str]  # by stage id, what this worker lacks to serve it


def fault_of(job: JobSpec) -> str | None:
    """What is wrong with a job in itself, in one line; None where nothing is."""
    stages = {stage.id: stage for stage in job.plan.stages}
    if not stages or len(stages) > MAX_STAGES:
        return f"it has {len(stages)} stages: a job has 1 to {MAX_STAGES}"
    try:
        token(job.id)
        token(job.stream)
        for id in stages:
            token(id)
    except UserError as error:
        return str(error)
    for id, stage in stages.items():
        spans = job.spans.get(id)
        if spans is None:
            return f"it does not say what it asks of stage {stage.name!r}"
        if any(span.first < 0 or (span.last is not None and span.last < span.first) for span in spans):
            return f"it asks stage {stage.name!r} for a range that is none"
        for source in stage.sources:
            if source != MEDIA and source not in stages:
                return f"stage {stage.name!r} reads {source!r}, which is none of its stages"
        match stage.scope:
            case Map(before, after) if not (0 <= before <= MAX_LOOK and 0 <= after <= MAX_LOOK):
                return f"stage {stage.name!r} looks {before} segments back and {after} ahead"
            case Window(size) if not 1 <= size <= MAX_LOOK:
                return f"stage {stage.name!r} has a window of {size} segments"
    unknown = [id for id in job.plan.answers if id not in stages]
    if unknown:
        return f"its answers come from {unknown[0]!r}, which is none of its stages"
    try:
        TopologicalSorter({id: [s for s in stage.sources if s != MEDIA] for id, stage in stages.items()}).prepare()
    except CycleError as error:
        return f"its stages go in a circle: {' -> '.join(reversed(error.args[1]))}"
    return None


def offer_of(stage: PlannedStage) -> str:
    """What a node must be able to serve for this stage."""
    return offer(stage.capability, stage.rung.implementation, stage.rung.version, stage.rung.device)


def offer(capability: str, implementation: str, version: int, device: str) -> str:
    return f"{capability}/{implementation}/{version}/{device}"


def offers(catalogue: Catalogue, devices: Collection[str]) -> frozenset[str]:
    """All that a worker with these implementations and devices can serve."""
    return frozenset(
        offer(capability, operator.name, operator.version, device)
        for capability in catalogue.capabilities
        for operator in catalogue.implementations(capability).values()
        for device in operator.devices
        if device in devices
    )


def lacking(stage: PlannedStage, catalogue: Catalogue, served: frozenset[str]) -> str | None:
    """What a worker lacks to serve a stage, in one line; None where it can."""
    rung = stage.rung
    try:
        operator = catalogue.implementation(stage.capability, rung.implementation)
    except UserError as error:
        return str(error)
    if operator.version != rung.version:
        return f"{rung.implementation} is installed in version {operator.version}, not {rung.version}"
    if offer_of(stage) not in served:
        return f"{rung.implementation} is to run on {rung.device}, and there is none here"
    try:
        knobs = settings_of(operator.Knobs, rung.knobs)
        settings_of(operator.capability.params, stage.params)
        operator(knobs).demands()
    except msgspec.ValidationError as error:
        return f"the installed {rung.implementation} knows other settings: {error}"
    except PenstockError as error:
        return str(error)
    except Exception as error:  # third-party code
        return f"{rung.implementation} cannot be made: {type(error).__name__}: {error}"
    return None


def reconcile(
    jobs: Iterable[JobSpec],
    running: Collection[GroupName],
    catalogue: Catalogue,
    served: frozenset[str],
    elsewhere: Mapping[str, frozenset[str]] | None = None,
) -> Reconciled:
    """What a worker is to do that runs these groups now. `served` are its own offers, `elsewhere` those of the nodes
    that are known, by their id."""
    refused: dict[str, str] = {}
    good: list[JobSpec] = []
    for job in jobs:
        if job.state != "running":
            continue
        fault = fault_of(job)
        if fault is None:
            good.append(job)
        else:
            refused[job.id] = fault
    nodes = [served, *(elsewhere or {}).values()]
    lacks: dict[str, str] = {}
    wanted: dict[GroupName, RunningGroup] = {}
    for group in running_groups(good):
        for part in _parts(group, nodes):
            here = [stage for stage in part.stages if _is_served(stage, catalogue, served, lacks)]
            if here:
                mine = part if len(here) == len(part.stages) else msgspec.structs.replace(part, stages=tuple(here))
                wanted[mine.stream, mine.name] = mine
    return Reconciled(
        start=tuple(group for name, group in wanted.items() if name not in running),
        keep=tuple(group for name, group in wanted.items() if name in running),
        leave=tuple(name for name in running if name not in wanted),
        refused=refused,
        lacking=lacks,
    )


def _is_served(stage: RunningStage, catalogue: Catalogue, served: frozenset[str], lacks: dict[str, str]) -> bool:
    why = lacking(stage.planned, catalogue, served)
    if why is not None:
        lacks[stage.id] = why
    return why is None


def _parts(group: RunningGroup, nodes: Sequence[frozenset[str]]) -> list[RunningGroup]:
    """A group's stages by the nodes that can serve them."""
    by_nodes: dict[tuple[bool, ...], list[RunningStage]] = {}
    for stage in group.stages:
        by_nodes.setdefault(tuple(offer_of(stage.planned) in offered for offered in nodes), []).append(stage)
    if len(by_nodes) == 1:
        return [group]
    return [msgspec.structs.replace(group, stages=tuple(stages)) for stages in by_nodes.values()]
