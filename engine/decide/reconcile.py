"""Reconcile: which groups a worker runs, from the jobs there are and what can be served where. Pure.

A stage that this worker cannot serve is left to those that can; a stage that nobody can serve waits, and with it what
reads it, and nothing else. (An entry that contradicts itself never comes here: engine/spec/entries.py.)

Stages are fused as the plan has it, but only with such as the same nodes can serve. Every worker that knows the same
jobs and nodes comes to the same groups, so no node has to lead; and while all nodes are alike, which of them are there
makes no difference to the groups.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from engine.decide.running_graph import RunningGroup, RunningStage, running_groups
from engine.spec.catalogue import Catalogue
from engine.spec.jobs import JobSpec
from engine.spec.operator import Machine
from engine.spec.plan import PlannedRung, PlannedStage, settings_of
from streams.errors import PenstockError, UserError

GroupName = tuple[str, str]  # stream, and the name of its consumers


class Reconciled(msgspec.Struct, frozen=True):
    """What is to be done. Groups in `keep` may have come to be asked for by other jobs."""

    start: tuple[RunningGroup, ...]
    keep: tuple[RunningGroup, ...]
    leave: tuple[GroupName, ...]
    lacking: Mapping[str, str]  # by stage id, what this worker lacks to serve it


def offer_of(stage: PlannedStage) -> str:
    """What a node must be able to serve for this stage: its best rung."""
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


def devices_of(machine: Machine) -> tuple[str, ...]:
    """Where something can be loaded there."""
    return ("cpu", "cuda") if machine.has_gpu else ("cpu",)


def lacking(stage: PlannedStage, catalogue: Catalogue, served: frozenset[str]) -> str | None:
    """What a worker lacks to serve a stage, in one line; None where it can."""
    return lacking_rung(stage, stage.rung, catalogue, served)


def lacking_rung(stage: PlannedStage, rung: PlannedRung, catalogue: Catalogue, served: frozenset[str]) -> str | None:
    """What it lacks to serve a stage on one of its rungs."""
    try:
        operator = catalogue.implementation(stage.capability, rung.implementation)
    except UserError as error:
        return str(error)
    if operator.version != rung.version:
        return f"{rung.implementation} is installed in version {operator.version}, not {rung.version}"
    if offer(stage.capability, rung.implementation, rung.version, rung.device) not in served:
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
    nodes = [served, *(elsewhere or {}).values()]
    lacks: dict[str, str] = {}
    wanted: dict[GroupName, RunningGroup] = {}
    for group in running_groups(jobs):
        for part in _parts(group, nodes):
            here = [stage for stage in part.stages if _is_served(stage, catalogue, served, lacks)]
            if here:
                mine = part if len(here) == len(part.stages) else msgspec.structs.replace(part, stages=tuple(here))
                wanted[mine.stream, mine.name] = mine
    return Reconciled(
        start=tuple(group for name, group in wanted.items() if name not in running),
        keep=tuple(group for name, group in wanted.items() if name in running),
        leave=tuple(name for name in running if name not in wanted),
        lacking=lacks,
    )


def unserved(job: JobSpec, nodes: Collection[frozenset[str]]) -> list[str]:
    """What a job waits for: its stages that no node can serve, each in words. `nodes` are the offers of each."""
    if job.state != "running" or not nodes:
        return []
    return [
        f"{stage.name}: no node has {stage.rung.implementation} (version {stage.rung.version}) on {stage.rung.device}"
        for stage in job.plan.stages
        if not any(offer_of(stage) in offered for offered in nodes)
    ]


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
