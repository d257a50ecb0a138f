"""The plan: for each stage of a workflow, what computes it here, and which stages run fused.

Pure but for asking each implementation whether it can run on this machine. For now a stage has one rung: the best that
can run here on this input. A stage is planned if an answer needs it, given what was chosen for those behind it: what a
rung does not look at is not computed.

A stage id is a hash of what is computed: capability, rungs, parameters and the ids of the inputs; so equal
computations meet on equal subjects, whoever asks for them.
"""

import base64
import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from engine.spec.catalogue import Catalogue, Offer
from engine.spec.choosing import NOT_JUDGED, USUAL, Judged, Pace, choose, device_for, lower
from engine.spec.operator import (
    Capability,
    Machine,
    Map,
    Media,
    OfRanges,
    Operator,
    PerRange,
    Port,
    Reduce,
    Scope,
    Settings,
    Window,
)
from engine.spec.profile import OnRung
from engine.spec.workflow import MEDIA, WHEN, Stage, Workflow
from streams.errors import UserError
from streams.records import Evidence, MediaInfo, encode


class PlannedRung(msgspec.Struct, frozen=True, kw_only=True):
    """An implementation with its knobs, as data: a worker finds the code in its own catalogue."""

    implementation: str
    rung: str
    version: int
    knobs: dict[str, Any] = {}
    device: Literal["cpu", "cuda"] = "cpu"  # where it is to run; never part of what makes two computations the same
    quality: float = 1.0  # against the best of its stage, as judged or declared; never part of it either


def on_rung(capability: str, rung: PlannedRung) -> OnRung:
    return OnRung(capability, rung.implementation, rung.rung, rung.version, rung.knobs, rung.device)


class PlannedStage(msgspec.Struct, frozen=True, kw_only=True):
    """A stage as it will run. `inputs` holds stage ids, or "media"."""

    id: str
    name: str
    capability: str
    rung: PlannedRung
    scope: Scope
    lower: tuple[PlannedRung, ...] = ()  # that may compute it under load, the best first (engine/spec/objective.py)
    group: str  # stages of one stream with the same group run fused, whichever jobs brought them
    params: dict[str, Any] = {}
    inputs: dict[str, tuple[str, ...]] = {}

    @property
    def rungs(self) -> tuple[PlannedRung, ...]:
        """All that may compute it, the best first."""
        return (self.rung, *self.lower)

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(source for port in self.inputs.values() for source in port))

    @property
    def read(self) -> tuple[str, ...]:
        """The sources that it is computed from: all but its gate's."""
        ports = (sources for port, sources in self.inputs.items() if port != WHEN)
        return tuple(dict.fromkeys(source for sources in ports for source in sources))

    @property
    def is_of_ranges(self) -> bool:
        """Whether it makes one output of each range, of results."""
        return isinstance(self.scope, OfRanges) and MEDIA not in self.sources


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Stages, each after those it reads."""

    workflow: str
    stages: tuple[PlannedStage, ...]
    answers: tuple[str, ...]  # ids of the stages whose outputs are the workflow's answers
    notices: tuple[str, ...] = ()  # what a person should know of the choice made

    @property
    def id(self) -> str:
        """Equal for workflows that compute the same, however they were written."""
        return hashlib.sha256(encode(sorted(stage.id for stage in self.stages))).hexdigest()[:16]

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The ids of the stages that run fused."""
        groups: dict[str, list[str]] = {}
        for stage in self.stages:
            groups.setdefault(stage.group, []).append(stage.id)
        return tuple(tuple(group) for group in groups.values())

    def stage(self, id: str) -> PlannedStage:
        return next(stage for stage in self.stages if stage.id == id)

    def regrouped(self, groups: Sequence[Sequence[str]]) -> "Plan":
        """The same plan with its stages fused otherwise. Raises ValueError unless each stage is in one group."""
        if sorted(id for group in groups for id in group) != sorted(stage.id for stage in self.stages):
            raise ValueError("every stage of the plan must be in exactly one group")
        named = {id: _group_name(sorted(group)) for group in groups for id in group}
        stages = tuple(msgspec.structs.replace(stage, group=named[stage.id]) for stage in self.stages)
        return msgspec.structs.replace(self, stages=stages)


def ancestors(stages: Sequence[PlannedStage]) -> dict[str, frozenset[str]]:
    """For each stage, the sources it was made from, near and far; not those behind a reduce. `stages` in order."""
    found: dict[str, frozenset[str]] = {}
    for stage in stages:
        if isinstance(stage.scope, Reduce):
            found[stage.id] = frozenset()
            continue
        found[stage.id] = frozenset(stage.sources).union(*(found.get(s, frozenset()) for s in stage.sources))
    return found


def make_plan(
    workflow: Workflow,
    catalogue: Catalogue,
    machine: Machine,
    media: MediaInfo | None = None,
    window: int | None = None,
    elsewhere: Collection[str] = (),
    pace: Pace = USUAL,
    floor: float = 1.0,
    judged: Judged = NOT_JUDGED,
) -> Plan:
    """Choose and check. `elsewhere` are the rungs that other nodes can run (`rung_on`). With a `floor`, a stage may run
    under load on lower rungs, of which each is worth so much of the best, as they were `judged` here or else declare.
    With `window`, a stage that would reduce a
    whole range looks at the last `window` segments instead, for a stream that does not end. Raises UserError for an
    unknown capability, a wrong port, a type that does not fit, a bad parameter, or a capability that nothing can
    compute."""
    planned: dict[str, PlannedStage] = {}
    notices = [f"set aside: {why}" for why in catalogue.set_aside]
    chosen = _chosen(workflow, catalogue, machine, media, elsewhere, pace)
    for name, (stage, capability, asked, offer, passed_over) in chosen.items():
        operator, rung = offer
        notices += [notice for notice in passed_over if notice not in notices]
        inputs = {port: _ids(stage, port, capability, planned) for port in sorted(stage.inputs)}
        params = _written(name, asked)

        def placed(each: Offer, quality: float, capability: Capability = capability) -> PlannedRung:
            return PlannedRung(
                implementation=each.operator.name,
                rung=each.rung.name,
                version=each.operator.version,
                knobs=msgspec.to_builtins(each.rung.knobs),
                device=device_for(each, capability, machine, media, elsewhere),
                quality=quality,
            )

        given = frozenset(stage.inputs)
        below = lower(catalogue, capability, offer, machine, media, elsewhere, pace, asked, given, floor, judged)
        planned_rung = placed(offer, 1.0)
        lower_rungs = tuple(placed(each, worth) for each, worth in below)
        if MEDIA in stage.all_sources and (lacking := _lacks_track(operator(rung.knobs), media)):
            notices.append(f"{name} finds nothing: the source has no {lacking}")
        scope = operator.scope_of(rung.knobs, pace.segment_s)
        if window is not None and isinstance(scope, Reduce):
            scope = Window(window)
        scope = _behind_ranges(name, stage, scope, planned)
        if stage.sources(WHEN) and not isinstance(scope, Map):
            raise UserError(f"stage {name!r}: only what looks at segments one by one can have an input {WHEN!r}")
        planned[name] = PlannedStage(
            id=stage_id(capability.name, [planned_rung, *lower_rungs], scope, params, inputs),
            name=name,
            capability=capability.name,
            rung=planned_rung,
            lower=lower_rungs,
            scope=scope,
            group=fused(inputs, operator(rung.knobs)),
            params=params,
            inputs=inputs,
        )
    stages = _with_ranges_apart({stage.id: stage for stage in planned.values()}.values())
    answers = tuple(dict.fromkeys(planned[name].id for name in workflow.answers))
    return Plan(workflow=workflow.name, stages=stages, answers=answers, notices=tuple(notices))


def _lacks_track(operator: Operator, media: MediaInfo | None) -> str:
    """What a source has none of, where that is all that an operator asks of it; empty where it has, or nobody knows."""
    tracks = {getattr(type(demand), "track", "") for demand in operator.demands()}
    if media is None or not tracks or "" in tracks or tracks & set(media.codecs):
        return ""
    return "sound" if tracks == {"audio"} else "pictures"


class _Choice(NamedTuple):
    """What computes a stage: `stage` with no more inputs than that looks at."""

    stage: Stage
    capability: Capability
    asked: Settings
    offer: Offer
    passed_over: list[str]


def _chosen(
    workflow: Workflow,
    catalogue: Catalogue,
    machine: Machine,
    media: MediaInfo | None,
    elsewhere: Collection[str],
    pace: Pace,
) -> dict[str, _Choice]:
    """What computes each stage that an answer needs, in order: those that nothing looks at, given what was chosen, are
    left out."""
    capabilities = {name: _checked(name, workflow.stages[name], workflow, catalogue) for name in workflow.order()}
    needed = set(workflow.answers)
    chosen: dict[str, _Choice] = {}
    for name in reversed(workflow.order()):
        if name not in needed:
            continue
        stage, capability = workflow.stages[name], capabilities[name]
        asked = msgspec.convert(stage.params, capability.params)
        given = frozenset(stage.inputs)
        operator, rung, passed_over = choose(catalogue, capability, machine, media, elsewhere, pace, asked, given)
        read = operator.reads(rung.knobs)
        inputs = {port: given for port, given in stage.inputs.items() if read is None or port in read or port == WHEN}
        stage = msgspec.structs.replace(stage, inputs=inputs)
        needed.update(stage.all_sources)
        chosen[name] = _Choice(stage, capability, asked, Offer(operator, rung), passed_over)
    return dict(reversed(chosen.items()))


def _written(name: str, params: Settings) -> dict[str, Any]:
    """Parameters as they travel. Raises UserError for what would be something else on arrival."""
    try:
        written: dict[str, Any] = msgspec.to_builtins(params)
        arrived = msgspec.json.decode(msgspec.json.encode(written), type=type(params))
    except msgspec.ValidationError as error:
        raise UserError(f"stage {name!r}: {error}: a number has to be finite") from None
    except RecursionError:
        raise UserError(f"stage {name!r}: its parameters are too deep") from None
    if arrived != params:
        raise UserError(f"stage {name!r}: its parameters cannot be written as JSON")
    return written


def _behind_ranges(name: str, stage: Stage, scope: Scope, planned: Mapping[str, PlannedStage]) -> Scope:
    """How a stage reads one that makes one output of a whole range. Raises UserError where it cannot."""
    before = [each for each in stage.all_sources if each != MEDIA and isinstance(planned[each].scope, OfRanges)]
    if not before:
        return scope
    if scope != Map() or len(stage.all_sources) > 1:
        raise UserError(
            f"stage {name!r} reads {before[0]!r}, which makes one output of a whole range: what follows that may read"
            " nothing else, and only one output at a time"
        )
    return PerRange()


def stage_id(
    capability: str,
    rungs: Sequence[PlannedRung],
    scope: Scope,
    params: Mapping[str, Any],
    inputs: Mapping[str, Sequence[str]],
) -> str:
    """20 characters of [a-z2-7] (100 bits of SHA-256) naming a computation."""
    computed = [[rung.implementation, rung.version, dict(rung.knobs)] for rung in rungs]
    content = [capability, computed, msgspec.to_builtins(scope), dict(params), {p: list(s) for p, s in inputs.items()}]
    try:
        named = encode(content)
    except OverflowError as error:
        raise UserError(f"{capability}: a parameter is beyond 64 bits: give a smaller number") from error
    return base64.b32encode(hashlib.sha256(named).digest()).decode().lower()[:20]


def fused(inputs: Mapping[str, Sequence[str]], operator: Operator) -> str:
    """The group of a stage: the same for those that ask the same kind of thing of a decoder of the same media, so that
    it is decoded once; and for those that read the same stages, so that what these find is delivered once."""
    sources = {source for port in inputs.values() for source in port}
    kinds = sorted({type(demand).__qualname__ for demand in operator.demands()})
    return _group_name([MEDIA, *kinds] if MEDIA in sources and kinds else sorted(sources))


def _with_ranges_apart(stages: Iterable[PlannedStage]) -> tuple[PlannedStage, ...]:
    """The stages with those that reduce the same results in a group of this plan's own. A group starts anew when a
    stage joins it or leaves, and one that grew with each question to a stream would do nothing else."""
    apart: dict[str, list[str]] = {}
    for stage in stages:
        if stage.is_of_ranges:
            apart.setdefault(stage.group, []).append(stage.id)
    names = {id: _group_name([group, *sorted(ids)]) for group, ids in apart.items() for id in ids}
    return tuple(msgspec.structs.replace(stage, group=names.get(stage.id, stage.group)) for stage in stages)


def _group_name(what: Sequence[str]) -> str:
    return hashlib.sha256(encode(what)).hexdigest()[:16]


def _ids(stage: Stage, port: str, capability: Capability, planned: Mapping[str, PlannedStage]) -> tuple[str, ...]:
    """The ids a port reads from; of a port that takes many, sorted, for their order means nothing."""
    ids = [source if source == MEDIA else planned[source].id for source in stage.sources(port)]
    return tuple(sorted(set(ids)) if port == WHEN or capability.inputs[port].many else ids)


def _checked(name: str, stage: Stage, workflow: Workflow, catalogue: Catalogue) -> Capability:
    try:
        capability = catalogue.capability(stage.capability)
    except UserError as error:
        raise UserError(f"stage {name!r}: {error}") from None
    ports = dict(capability.inputs)
    if WHEN in stage.inputs and WHEN not in ports:
        ports[WHEN] = Port(Evidence, many=True)
        _check_empty(name, capability)
    for given in stage.inputs:
        if given not in ports:
            raise UserError(f"stage {name!r}: {capability.name!r} has no input {given!r}; it has {', '.join(ports)}")
    for port_name, port in ports.items():
        sources = stage.sources(port_name)
        if not sources and port.optional and port_name not in stage.inputs:
            continue
        if not sources or (len(sources) > 1 and not port.many):
            wanted = "one source or more" if port.many else "exactly one source"
            raise UserError(
                f"stage {name!r}: input {port_name!r} of {capability.name!r} takes {wanted}, got {len(sources)}"
            )
        for source in sources:
            type_ = Media if source == MEDIA else catalogue.capability(workflow.stages[source].capability).output
            if not issubclass(type_, port.type):
                wanted = port.type.__name__
                raise UserError(
                    f"stage {name!r}: input {port_name!r} takes {wanted}, but {source!r} gives {type_.__name__}"
                )
    try:
        msgspec.convert(stage.params, capability.params)
    except msgspec.ValidationError as error:
        allowed = ", ".join(capability.params.__struct_fields__) or "none"
        raise UserError(f"stage {name!r}: parameters: {error}; {capability.name!r} has: {allowed}") from error
    return capability


def _check_empty(name: str, capability: Capability) -> None:
    """Raises UserError where its output cannot be empty: there would be nothing to store where its gate is shut."""
    try:
        capability.output()
    except TypeError:
        kind = capability.output.__name__
        raise UserError(
            f"stage {name!r}: {capability.name!r} cannot have an input {WHEN!r}: no {kind} is empty"
        ) from None


def settings_of(kind: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Typed settings from what a plan carries."""
    return msgspec.convert(dict(values), kind)
