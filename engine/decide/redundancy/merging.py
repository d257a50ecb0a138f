"""Merging: the stages of one stream that could be one. Pure.

They are found from the media down, as if each merge found before had been made. Stages behind a merge that become equal
by it are its followers and count as part of it, so a stage is counted as saved once and savings add up. Stages that are
asked for different stretches of a stream compute nothing twice.
"""

import math
import unicodedata
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from engine.decide.redundancy.findings import Cost, Kind, Outputs, Redundancy, StageUse, saving, use_of
from engine.decide.running_graph import RunningStage, in_order
from engine.spec.catalogue import Catalogue
from engine.spec.jobs import Span, distinct, merged
from engine.spec.operator import OfRanges, Window
from engine.spec.plan import PlannedStage, stage_id
from streams.records import encode

MAX_NAMED = 3  # jobs in a line for people
MAX_SHOWN = 60  # characters of a parameter in it
FINAL = " .?!,;:…。؟、"


@dataclass(frozen=True, slots=True)
class _Stage:
    """A stage as it is now, and as it would be once the merges found so far are made."""

    now: PlannedStage
    planned: PlannedStage
    spans: tuple[Span, ...]
    use: StageUse
    covers: tuple[str, ...]  # the ids, as they are now, of all that it serves for
    order: tuple[int, int]  # the smaller, the rather it is kept: by number of jobs, then by age


@dataclass(slots=True)
class _Finding:
    """A redundancy whose followers are still being found."""

    kind: Kind
    keep: _Stage
    others: Sequence[_Stage]
    outputs: Outputs
    why: str
    followers: list[_Stage] = field(default_factory=list)


class Merging:
    """The merges of one stream's stages, from the media down."""

    def __init__(self, stream: str, catalogue: Catalogue, costs: Mapping[str, Cost]) -> None:
        self._stream = stream
        self._catalogue = catalogue
        self._costs = costs
        self._findings: list[_Finding] = []
        self._becomes: dict[str, str] = {}  # by the id of a stage now, its id after the merges
        self._causes: dict[str, frozenset[int]] = {}  # by the id now, the findings by which it becomes another

    def run(self, stages: Sequence[RunningStage], passed_over: Collection[str]) -> None:
        """Find them, those of other stages than `passed_over`."""
        depths: dict[str, int] = {}
        for planned in in_order(stage.planned for stage in stages):
            depths[planned.id] = 1 + max((depths.get(source, 0) for source in planned.sources), default=0)
        levels: dict[int, list[_Stage]] = {}
        for number, stage in enumerate(stages):
            if stage.id not in passed_over:
                levels.setdefault(depths[stage.id], []).append(self._stage(stage, number))
        for _, level in sorted(levels.items()):
            left = self._reunited([self._after_merges(stage) for stage in level])
            left = _each(left, _rung_and_scope, self._merge_wordings)
            left = _each(left, _shape, self._merge_rungs)
            left = _each(left, _window, self._merge_windows)
            self._becomes |= {id: stage.planned.id for stage in left for id in stage.covers}

    def found(self) -> list[Redundancy]:
        """What `run` came to."""
        return [self._redundancy(finding) for finding in self._findings]

    def _stage(self, stage: RunningStage, number: int) -> _Stage:
        use = use_of(stage, self._stream)
        return _Stage(stage.planned, stage.planned, stage.spans, use, (stage.id,), (-len(stage.jobs), number))

    # --- what becomes equal by merges above --------------------------------------------------------------------

    def _after_merges(self, stage: _Stage) -> _Stage:
        """The stage with the inputs it would have."""
        now = stage.now
        inputs = {port: tuple(sorted({self._becomes.get(s, s) for s in ids})) for port, ids in now.inputs.items()}
        if inputs == now.inputs:
            return stage
        self._causes[now.id] = self._causes_of(now.sources)
        id = stage_id(now.capability, now.rungs, now.scope, now.params, inputs)
        return replace(stage, planned=msgspec.structs.replace(now, id=id, inputs=inputs))

    def _reunited(self, stages: Sequence[_Stage]) -> list[_Stage]:
        """Those that have become equal as one, noted with the findings that made them so."""
        by_id: dict[str, list[_Stage]] = {}
        for stage in sorted(stages, key=lambda stage: (stage.planned.id != stage.now.id, stage.order)):
            by_id.setdefault(stage.planned.id, []).append(stage)
        for equals in by_id.values():
            for keep, *others in _overlapping(equals):
                self._follow(keep, others)
        return [_joined(keep, others) for keep, *others in by_id.values()]

    def _follow(self, keep: _Stage, others: Sequence[_Stage]) -> None:
        """Note what one finding has made equal with it, and what several have as a finding of its own."""
        by_roots: dict[frozenset[int], list[_Stage]] = {}
        for other in others:
            by_roots.setdefault(self._roots(keep.now, other.now), []).append(other)
        for roots, some in by_roots.items():
            if len(roots) == 1:
                (root,) = roots
                self._findings[root].followers += some
                self._note(keep, some, root)
            else:
                names = " and ".join(dict.fromkeys(self._findings[root].keep.use.name for root in sorted(roots)))
                why = f"{_told([keep, *some])} differ only in what they read, and are one once {names} are merged"
                self._merge("upstream", keep, some, "same", why)

    def _roots(self, one: PlannedStage, other: PlannedStage) -> frozenset[int]:
        """The findings without which what these two read would not become equal."""
        roots: frozenset[int] = frozenset()
        for source in dict.fromkeys(self._becomes.get(s, s) for s in one.sources):
            mine, theirs = ({s for s in it.sources if self._becomes.get(s, s) == source} for it in (one, other))
            if mine != theirs:
                causes = self._causes_of(mine)
                roots |= (causes ^ self._causes_of(theirs)) or causes
        return roots

    def _causes_of(self, ids: Iterable[str]) -> frozenset[int]:
        return frozenset().union(*(self._causes.get(id, frozenset()) for id in ids))

    # --- what may become equal ---------------------------------------------------------------------------------

    def _merge_wordings(self, alike: Sequence[_Stage]) -> list[_Stage]:
        keep, *others = sorted(alike, key=lambda stage: stage.order)
        params = [stage.planned.params for stage in alike]
        name = next(name for name in sorted(set().union(*params)) if len({encode(p.get(name)) for p in params}) > 1)
        told = _told([keep, *others], lambda stage: _shown(stage.planned.params.get(name)))
        why = f"{told} differ in the wording of {name!r} only: let {_jobs_of(others)} ask as {_jobs_of([keep])}"
        return [self._merge("same-but-for-wording", keep, others, "other wording", why)]

    def _merge_rungs(self, alike: Sequence[_Stage]) -> list[_Stage]:
        keep, *others = sorted(alike, key=self._rung_order)
        outputs: Outputs = "better rung" if self._quality(others[-1]) < self._quality(keep) else "other rung"
        told = _told([keep, *others], lambda stage: _rung_name(stage.planned))
        why = f"{told} look for the same on different rungs: let {_jobs_of(others)} use {_rung_name(keep.planned)}"
        return [self._merge("different-rungs", keep, others, outputs, why)]

    def _merge_windows(self, alike: Sequence[_Stage]) -> list[_Stage]:
        """The longest, and those on a better rung than any that is longer."""
        covering: list[list[_Stage]] = []
        for stage in sorted(alike, key=lambda stage: (-_size(stage.planned), self._rung_order(stage))):
            wider = next((some for some in covering if self._covers(some, stage)), None)
            if wider is None:
                covering.append([stage])
            else:
                wider.append(stage)
        return [self._windowed(keep, others) for keep, *others in covering]

    def _windowed(self, keep: _Stage, others: Sequence[_Stage]) -> _Stage:
        if not others:
            return keep
        told = _told([keep, *others], lambda stage: f"{_size(stage.planned)} segments")
        why = f"{told} differ in how far they look back: the longest covers the others, let {_jobs_of(others)} use it"
        return self._merge("windows", keep, others, "longer window", why)

    def _covers(self, longer: Sequence[_Stage], shorter: _Stage) -> bool:
        """Whether the first of these, if it served for all of them, would serve for one more."""
        return self._quality(longer[0]) >= self._quality(shorter) and any(_meet(each, shorter) for each in longer)

    def _merge(self, kind: Kind, keep: _Stage, others: Sequence[_Stage], outputs: Outputs, why: str) -> _Stage:
        self._findings.append(_Finding(kind, keep, others, outputs, why))
        self._note(keep, others, len(self._findings) - 1)
        return _joined(keep, others)

    def _note(self, keep: _Stage, others: Sequence[_Stage], finding: int) -> None:
        """Others become what one becomes, by the finding."""
        to_one = self._causes.get(keep.now.id, frozenset())
        for other in others:
            before = self._causes.get(other.now.id, frozenset())
            for id in other.covers:
                self._causes[id] = (self._causes.get(id, frozenset()) - before) | to_one | {finding}

    def _rung_order(self, stage: _Stage) -> tuple[float, int, float, tuple[int, int]]:
        """The best first, then the newest version, then the cheapest."""
        cost = self._costs.get(stage.now.id)
        cost_s = math.inf if cost is None else cost.compute_s_per_s
        return (-self._quality(stage), -stage.planned.rung.version, cost_s, stage.order)

    def _quality(self, stage: _Stage) -> float:
        """As the catalogue has it; 0 of a rung that is not installed here."""
        rung = stage.planned.rung
        offered = (
            offer.rung
            for offer in self._catalogue.offers(stage.planned.capability)
            if offer.operator.name == rung.implementation
        )
        return next((each.quality for each in offered if msgspec.to_builtins(each.knobs) == rung.knobs), 0.0)

    def _redundancy(self, finding: _Finding) -> Redundancy:
        dropped = [stage.now.id for stage in (*finding.others, *finding.followers)]
        return Redundancy(
            kind=finding.kind,
            keep=finding.keep.use.id,
            streams=(self._stream,),
            stages=tuple(stage.use for stage in (finding.keep, *finding.others)),
            followers=tuple(stage.use for stage in finding.followers),
            why=finding.why,
            outputs=finding.outputs,
            saves_compute_s_per_s=saving(dropped, self._costs),
            is_measured=all(id in self._costs for id in dropped),
        )


def _each(
    stages: Sequence[_Stage], alike: Callable[[PlannedStage], Hashable], merge: Callable[[list[_Stage]], list[_Stage]]
) -> list[_Stage]:
    """What is left of stages when those are merged that ask the same of the same inputs and are alike, too."""
    groups: dict[Hashable, list[_Stage]] = {}
    for stage in stages:
        planned = stage.planned
        asked = encode([planned.capability, normalised(planned.params), planned.inputs])
        groups.setdefault((asked, alike(planned)), []).append(stage)
    every = [together for group in groups.values() for together in _overlapping(group)]
    return [stage for together in every for stage in (merge(together) if len(together) > 1 else together)]


def _rung_and_scope(planned: PlannedStage) -> Hashable:
    rung = planned.rung
    return encode([rung.implementation, rung.version, rung.knobs, planned.scope])


def _shape(planned: PlannedStage) -> Hashable:
    """Equal for stages whose outputs stand for the same segments and look back as far."""
    return isinstance(planned.scope, OfRanges), _size(planned)


def _window(planned: PlannedStage) -> Hashable:
    """Equal for stages that look back over windows; of any other, its own."""
    return "window" if isinstance(planned.scope, Window) else planned.id


def _size(planned: PlannedStage) -> int:
    return planned.scope.size if isinstance(planned.scope, Window) else 0


def _joined(keep: _Stage, others: Sequence[_Stage]) -> _Stage:
    """A stage that serves for others as well."""
    every = (keep, *others)
    together = distinct if isinstance(keep.planned.scope, OfRanges) else merged
    spans = tuple(together(span for stage in every for span in stage.spans))
    jobs = tuple(dict.fromkeys(job for stage in every for job in stage.use.jobs))
    use = msgspec.structs.replace(keep.use, jobs=jobs)
    return replace(keep, spans=spans, use=use, covers=tuple(id for stage in every for id in stage.covers))


def _overlapping(stages: Sequence[_Stage]) -> list[list[_Stage]]:
    """The stages in the least groups such that no two of different groups are asked for the same output."""
    groups: list[list[_Stage]] = []
    for stage in stages:
        met = [group for group in groups if any(_meet(stage, other) for other in group)]
        groups = [group for group in groups if group not in met]
        groups.append([*(other for group in met for other in group), stage])
    return groups


def _meet(one: _Stage, other: _Stage) -> bool:
    """Whether some output is asked of both."""
    if isinstance(one.planned.scope, OfRanges):
        return not set(one.spans).isdisjoint(other.spans)
    return any(
        (b.last is None or a.first <= b.last) and (a.last is None or b.first <= a.last)
        for a in one.spans
        for b in other.spans
    )


def normalised(value: Any) -> Any:
    """Equal for parameters that differ in case, spaces, final punctuation or the Unicode form of texts only."""
    match value:
        case str():
            folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", value).casefold())
            words = " ".join(folded.split())
            return words.rstrip(FINAL) or words
        case dict():
            return {key: normalised(item) for key, item in value.items()}
        case list() | tuple():
            return [normalised(item) for item in value]
    return value


# --- what people are told ----------------------------------------------------------------------------------------


def _told(stages: Sequence[_Stage], what: Callable[[_Stage], str] = lambda stage: stage.use.name) -> str:
    told = ", ".join(f"{what(stage)} ({_jobs_of([stage])})" for stage in stages)
    return f"{stages[0].use.name}: {told}"


def _jobs_of(stages: Sequence[_Stage]) -> str:
    jobs = list(dict.fromkeys(job for stage in stages for job in stage.use.jobs))
    more = [f"{len(jobs) - MAX_NAMED} more"] if len(jobs) > MAX_NAMED else []
    return " and ".join([*jobs[:MAX_NAMED], *more])


def _shown(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def _rung_name(planned: PlannedStage) -> str:
    return f"{planned.rung.rung} (version {planned.rung.version})" if planned.rung.version > 1 else planned.rung.rung
