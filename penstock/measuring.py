"""What this machine can do: profiles of rungs over a clip, and how many streams like it a workflow can look at here."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import anyio.to_thread
import msgspec

from engine.decide.feasible import Known, core_s, least_latency_s, longest_wait_s
from engine.run.profiler import Clip, Profiler, computed_on
from engine.run.profiles import Profiles
from engine.run.profiling import Effort
from engine.run.sampling import Sample, sample
from engine.simulate.capacity import Capacity, Load, capacity
from engine.simulate.modelled import Wanted, engine_s, scenario_of_plan
from engine.simulate.scenario import Scenario
from engine.spec.catalogue import Catalogue, Offer, installed
from engine.spec.choosing import NOT_JUDGED, Pace
from engine.spec.compose import compose
from engine.spec.objective import objective_of
from engine.spec.operator import Capability
from engine.spec.plan import Plan, make_plan
from engine.spec.profile import Measured, Profile
from engine.spec.stream import BOUNDS
from engine.spec.workflow import Workflow
from operators.judging import METRICS, Labelled, Metric
from penstock.demo import clip as demo_clip
from penstock.places import default_store, this_machine, title_of
from penstock.running import local_file
from streams.decoding import from_json
from streams.errors import Malformed, PenstockError, UserError
from streams.media.probe import probe
from streams.media.segmenter import segments, stream_id
from streams.records import Segment

LONGER = 1.2  # than was asked for
MAX_LABELLED = 400  # segments of a labelled recording that are looked at
FILLER = "person"  # stands for words that a capability has to be given
WINDOW_S = 60.0  # that a stage looks back which would reduce a whole range


@dataclass(frozen=True, slots=True)
class Measuring:
    """How to measure; every part has a default that works on a laptop. `like`: a clip such as what will come, None:
    the demo's; its first `max_segments` are looked at."""

    like: str | Path | None = None
    segment_s: float = 5.0
    max_segments: int = 8
    effort: Effort = field(default_factory=Effort)
    store: Path | None = None
    anew: bool = True
    on_step: Callable[[str], None] = lambda step: None  # what is done now
    on_note: Callable[[str], None] = lambda note: None  # what could not be

    @property
    def path(self) -> Path:
        return demo_clip() if self.like is None else local_file(str(self.like))

    @property
    def window(self) -> int:
        """Segments that a stage looks back over which would reduce a whole range."""
        return max(1, round(WINDOW_S / self.segment_s))

    def profiles(self) -> Profiles:
        return Profiles.beside(self.store or default_store(), this_machine().num_cores)


async def profile(names: Sequence[str] = (), how: Measuring | None = None, labels: Path | None = None) -> list[Profile]:
    """Measure every rung that can run here of these capabilities or implementations, all of them where none is named,
    and keep what was found; with `labels` (`operators.judging`), how good each is as well. Raises UserError where there
    is no such capability, none of its rungs can run, or the labels are not of it."""
    how = how or Measuring()
    catalogue = installed()
    chosen = _named(catalogue, names)
    if labels is not None:
        for name in chosen:
            read_labels(labels, name)  # or say what is wrong before anything is measured
    cut = await _cut(how)
    found: list[Profile] = []
    for name, offers in chosen.items():
        try:
            plan = await _planned(_composed(catalogue, name), how, Pace(how.segment_s), how.window)
            taken = await sample(plan, catalogue, cut.segments, partial(_said, how, name))
        except Exception as error:  # of one capability, or of one that it reads; the others are measured
            if names and isinstance(error, UserError):
                raise
            how.on_note(f"{name} is left out: {' '.join(str(error).split())[:300]}")
            continue
        planned = next(stage for stage in plan.stages if stage.capability == name)
        profiler = _profiler(taken, cut, how)
        judged = await _judged(name, offers, labels, how) if labels is not None else {}
        for offer in offers:
            try:
                profiled = await profiler.of_offer(planned, offer)
                if offer.rung.name in judged:
                    profiled = msgspec.structs.replace(profiled, quality=judged[offer.rung.name])
                    how.profiles().keep(profiled)
                found.append(profiled)
            except Exception as error:  # of one rung; the others are measured
                how.on_note(f"{name} on {offer.rung.name} is left out: {' '.join(str(error).split())[:200]}")
    if not found:
        raise PenstockError("nothing could be measured: the notes say why")
    return found


async def _judged(name: str, offers: Sequence[Offer], labels: Path, how: Measuring) -> dict[str, Measured]:
    """How good each of a capability's rungs is on what is labelled, by rung."""
    metric, items, said = await anyio.to_thread.run_sync(read_labels, labels, name)
    scores: dict[str, list[tuple[float, float]]] = {offer.rung.name: [] for offer in offers}
    for labelled in items:
        how.on_step(f"{name} on {labelled.media}")
        each = replace(how, like=labels.parent / labelled.media, max_segments=MAX_LABELLED)
        plan = await _planned(_composed(installed(), name), each, Pace(how.segment_s), how.window)
        taken = await sample(plan, installed(), (await _cut(each)).segments)
        planned = next(stage for stage in plan.stages if stage.capability == name)
        for offer in offers:
            other = await computed_on(taken, planned, offer, this_machine(), how.segment_s)
            outputs = [value for value in taken.stages[other.id].outputs.values() if value is not None]
            scores[offer.rung.name].append(metric.judge(labelled, outputs))
    return {rung: Measured.of(metric.name, found, said) for rung, found in scores.items()}


def read_labels(path: Path, capability: str) -> tuple[Metric, list[Labelled], str]:
    """How a capability is judged, what is labelled for it, and what the set is called. Raises UserError with the line
    that is wrong."""
    metric = METRICS.get(capability)
    if metric is None:
        raise UserError(f"--labels: {capability} cannot be judged; name one of {', '.join(METRICS)}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read labels {path}: {error.strerror}; give a file of JSON lines") from error
    found = []
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            labelled = from_json(line, Labelled)
        except Malformed as error:
            raise UserError(f"{path}, line {number}: {error}") from error
        if getattr(labelled, metric.of) is None:
            raise UserError(f"{path}, line {number}: {capability} is judged by {metric.of!r}, which it does not say")
        found.append(labelled)
    if not found:
        raise UserError(f"{path}: nothing is labelled in it")
    return metric, found, f"{path.name} {hashlib.sha256(data).hexdigest()[:8]}"


def kept_profiles(names: Sequence[str] = (), how: Measuring | None = None) -> list[Profile]:
    """What was measured before, of all or of what is named."""
    every = (how or Measuring()).profiles().all()
    return [each for each in every if not names or {each.capability, each.implementation, each.rung} & set(names)]


def _said(how: Measuring, name: str, stage: str) -> None:
    how.on_step(f"{stage}, for {name}" if stage != name else name)


class Fits(msgspec.Struct, frozen=True):
    """How many streams like a clip a workflow can look at here, and what one takes."""

    workflow: str
    machine: str
    num_cores: int
    clip: str
    segment_s: float
    max_lag_s: float
    latency_s: float
    quality: float
    capacity: Capacity
    core_s: float  # of a core, for a second of one stream, every stage on its best rung
    least_latency_s: float  # of one stream alone, on the best rungs
    energy_j: float | None  # for a second of one stream
    profiles: tuple[Profile, ...]
    notices: tuple[str, ...] = ()


async def fits(
    workflow: Workflow,
    asks: Sequence[str] = (),
    slo: Sequence[str] = (),
    max_lag_s: float = 10.0,
    how: Measuring | None = None,
    on_load: Callable[[Load], None] = lambda load: None,
) -> Fits:
    """How many live streams like a clip fit here, by what was measured of the stages and the rules that workers go by.
    Raises UserError for a bad workflow, bound or clip."""
    how = how or Measuring()
    objective, catalogue, machine = objective_of(slo), installed(), this_machine()
    lag_s = min(max_lag_s, objective.latency_s or max_lag_s)
    least_s, most_s = BOUNDS["max_lag_s"]
    if not least_s <= max_lag_s <= most_s:
        raise UserError(f"a lag of {max_lag_s:g} s: give between {least_s:g} and {most_s:g} s")
    cut = await _cut(how)
    segment_s, notices = cut.segment_s, list[str]()
    if segment_s > LONGER * how.segment_s:
        told = f"segments of the clip are {segment_s:.3g} s long, for it has a keyframe no more often"
        notices.append(f"{told}: `penstock push --gop` cuts such a source anew")
    plan = await _planned(workflow.for_asks(asks), how, Pace(segment_s, lag_s), how.window, objective.quality)
    taken = await sample(plan, catalogue, cut.segments, how.on_step)
    profiler = _profiler(taken, cut, how)
    by_stage = {stage.id: [await profiler.of_stage(stage, rung) for rung in stage.rungs] for stage in plan.stages}
    known = Known(by_stage, await profiler.of_decoding(), {id: each.share for id, each in taken.stages.items()})
    wanted = Wanted(segment_s, max_lag_s, objective.latency_s)

    def scenario_of(num_streams: int, num_each: int) -> Scenario:
        return scenario_of_plan(plan, known, catalogue, wanted, num_streams, machine.num_cores, num_each)

    bound_s = max(0.001, wanted.bound_s - longest_wait_s(plan, segment_s))
    simulated = partial(capacity, scenario_of, bound_s, on_load)
    found = await anyio.to_thread.run_sync(simulated, abandon_on_cancel=True)
    best = [(known.shares[id], profiles[0]) for id, profiles in by_stage.items()]
    used_j = [share * profile.fresh * (profile.energy_j or 0.0) for share, profile in best]
    whole_s, stages_s = core_s(plan, known) + engine_s(plan), core_s(plan, known._replace(decoding=()))
    beside = whole_s / stages_s if stages_s else 1.0  # decoding and the engine take as much for each second of a core
    is_known = all(profiles[0].energy_j is not None for profiles in by_stage.values())
    return Fits(
        workflow=plan.workflow,
        machine=how.profiles().machine,
        num_cores=machine.num_cores,
        clip=cut.clip.name,
        segment_s=segment_s,
        max_lag_s=max_lag_s,
        latency_s=objective.latency_s,
        quality=objective.quality,
        capacity=found,
        core_s=whole_s / segment_s,
        least_latency_s=least_latency_s(plan, known, segment_s),
        energy_j=beside * sum(used_j) / segment_s if is_known else None,
        profiles=(*(profile for profiles in by_stage.values() for profile in profiles), *known.decoding),
        notices=(*notices, *plan.notices),
    )


class _Cut(NamedTuple):
    """The beginning of a clip."""

    clip: Clip
    segments: Sequence[Segment]

    @property
    def segment_s(self) -> float:
        """How long the segments are: the middle one."""
        lengths = sorted(segment.duration_ns for segment in self.segments)
        return lengths[len(lengths) // 2] / 1e9


async def _cut(how: Measuring) -> _Cut:
    """Raises UserError where there is nothing in it."""
    least_s, most_s = BOUNDS["segment_s"]
    if not least_s <= how.segment_s <= most_s:
        raise UserError(f"a segment of {how.segment_s:g} s: give between {least_s:g} and {most_s:g} s")

    def cut() -> _Cut:
        stream = stream_id(how.path, how.segment_s)
        every = segments(str(how.path), stream=stream, target_s=how.segment_s)
        found = list(islice((each for each in every if isinstance(each, Segment)), how.max_segments))
        if not found:
            raise UserError(f"{how.path}: no segment of media in it; give another clip with --like")
        return _Cut(Clip(f"{title_of(how.path)} {stream[1:9]}", how.segment_s), found)

    return await anyio.to_thread.run_sync(cut)


async def _planned(workflow: Workflow, how: Measuring, pace: Pace, window: int | None, floor: float = 1.0) -> Plan:
    info = await anyio.to_thread.run_sync(probe, str(how.path))
    judged = how.profiles().judged() if floor < 1 else NOT_JUDGED
    here = workflow, installed(), this_machine()
    planned = partial(make_plan, *here, info, window, pace=pace, floor=floor, judged=judged)
    return await anyio.to_thread.run_sync(planned)


def _profiler(taken: Sample, cut: _Cut, how: Measuring) -> Profiler:
    on = (taken, cut.clip, this_machine(), how.profiles(), how.effort)
    return Profiler(*on, anew=how.anew, on_rung=how.on_step)


def _named(catalogue: Catalogue, names: Sequence[str]) -> dict[str, list[Offer]]:
    """By capability, the rungs that can run here and are meant. Raises UserError where there are none."""
    runs = {
        name: [offer for offer in catalogue.offers(name) if offer.missing(this_machine(), None) is None]
        for name in sorted(catalogue.capabilities)
    }
    if not names:
        return {name: offers for name, offers in runs.items() if offers}
    found: dict[str, list[Offer]] = {}
    for name in names:
        meant = {
            each: [offer for offer in offers if name in (each, offer.operator.name, offer.rung.name)]
            for each, offers in runs.items()
        }
        if not any(meant.values()):
            every = sorted({*runs, *(offer.operator.name for offers in runs.values() for offer in offers)})
            raise UserError(
                f"no capability or implementation {name!r} that can run here; there are: {', '.join(every)}"
            )
        for each, offers in meant.items():
            if offers:
                found[each] = [*found.get(each, []), *offers]
    return found


def _composed(catalogue: Catalogue, name: str) -> Workflow:
    """What leads to a capability, of those that something here can do, with words for all that has to be given."""
    machine = this_machine()
    names = [
        each for each in catalogue.capabilities if any(o.missing(machine, None) is None for o in catalogue.offers(each))
    ]
    can = Catalogue(operator for each in names for operator in catalogue.implementations(each).values())
    workflow = compose(can, name)
    stages = {
        stage_name: msgspec.structs.replace(stage, params=_fillers(catalogue.capability(stage.capability)))
        for stage_name, stage in workflow.stages.items()
    }
    return msgspec.structs.replace(workflow, stages=stages)


def _fillers(capability: Capability) -> dict[str, str]:
    return {field.name: FILLER for field in msgspec.structs.fields(capability.params) if field.required}
