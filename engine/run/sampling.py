"""Sampling: what every stage of a plan is given over the first segments of a clip, computed here, without a server.

Each stage's best rung computes what the stages behind it read, as a group would have it do: gaps make gaps, and behind
a shut gate nothing is computed. So what rungs are then measured on (`engine.run.profiling`) is what they meet, and
shares of open gates are counted.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import anyio.to_thread
import msgspec

from engine.decide import joins
from engine.run.instances import load
from engine.spec.catalogue import Catalogue
from engine.spec.operator import Demand, Device, Entry, Fold, Inputs, Media, Operator, PerRange, Reduce, by_kind
from engine.spec.plan import Plan, PlannedRung, PlannedStage, settings_of
from engine.spec.workflow import MEDIA, WHEN
from streams.errors import PenstockError, Permanent
from streams.records import Gap, Segment, encode
from streams.subjects import Key

Values = Mapping[Key, Any]  # what a stage found; None: a gap


@dataclass
class Sampled:
    """A stage over the clip. `inputs` are bare: their media are not decoded yet (`Sample.prepared`)."""

    planned: PlannedStage
    inputs: list[Inputs] = field(default_factory=list)  # of what had to be computed
    outputs: dict[Key, Any] = field(default_factory=dict)
    num_shut: int = 0  # that had not, for their gate is shut
    failed: list[str] = field(default_factory=list)  # why not

    @property
    def share(self) -> float:
        """For how much of what it owes its gate was open."""
        num = len(self.inputs) + self.num_shut
        return len(self.inputs) / num if num else 1.0


@dataclass
class Sample:
    """All stages of a plan over a clip."""

    plan: Plan
    segments: Sequence[Segment]
    catalogue: Catalogue
    stages: dict[str, Sampled] = field(default_factory=dict)  # by id, in the plan's order
    _products: dict[int, dict[Any, Any]] = field(default_factory=dict)

    def operator(self, planned: PlannedStage, rung: PlannedRung) -> tuple[type[Operator], Any]:
        """A rung's code and settings."""
        operator = self.catalogue.implementation(planned.capability, rung.implementation)
        return operator, settings_of(operator.Knobs, rung.knobs)

    @cached_property
    def demands(self) -> list[Demand]:
        """What the plan's best rungs ask of the decoder of the media, each once."""
        reading = (planned for planned in self.plan.stages if MEDIA in planned.sources)
        chosen = (self.operator(planned, planned.rung) for planned in reading)
        return list(dict.fromkeys(each for operator, knobs in chosen for each in operator(knobs).demands()))

    def prepared(self, planned: PlannedStage, rung: PlannedRung) -> list[Inputs]:
        """What a rung of a stage is given, with what it asks of the decoder; what that cannot give is left out."""
        operator, knobs = self.operator(planned, rung)
        asking, found = operator(knobs), []
        for inputs in self.stages[planned.id].inputs:
            try:
                found.append(self._decoded(asking, inputs, ()))
            except Permanent:
                continue
        return found

    def _decoded(self, asking: Operator, bare: Inputs, beside: Sequence[Demand]) -> Inputs:
        """`beside`: what others ask of the same media, which one decode gives with it. Raises Permanent."""
        demands = asking.demands_for(bare)
        if not demands:
            return bare
        for entry in _media_of(bare):
            products = self._products.setdefault(entry.index, {})
            missing = [each for each in dict.fromkeys(demands) if each not in products]
            for kind, wanted in by_kind(missing).items():
                every = [each for each in beside if type(each) is kind and each not in products]
                products |= kind.decode(entry.value.segment, list(dict.fromkeys([*wanted, *every])))
        given = {
            entry.index: Media(entry.value.segment, {each: self._products[entry.index][each] for each in demands})
            for entry in _media_of(bare)
        }
        return _with_media(bare, given)


def _media_of(inputs: Inputs) -> list[Entry]:
    entries = (entry for sources in inputs.ports.values() for source in sources for entry in source)
    return list({entry.index: entry for entry in entries if isinstance(entry.value, Media)}.values())


def _with_media(inputs: Inputs, given: Mapping[int, Media]) -> Inputs:
    def entry(each: Entry) -> Entry:
        return Entry(each.index, given[each.index], each.gap) if isinstance(each.value, Media) else each

    ports = {
        port: tuple(tuple(entry(each) for each in source) for source in sources)
        for port, sources in inputs.ports.items()
    }
    return msgspec.structs.replace(inputs, ports=ports)


async def sample(
    plan: Plan,
    catalogue: Catalogue,
    segments: Sequence[Segment],
    on_stage: Callable[[str], None] = lambda name: None,
) -> Sample:
    """Compute the plan over the segments of a clip, numbered from 0. `on_stage` is told which stage is computed now.
    Raises PenstockError where an operator cannot be loaded, or fails in a way that may pass."""
    found = Sample(plan, segments, catalogue)
    for planned in plan.stages:
        on_stage(planned.name)
        await compute(found, planned)
    return found


async def compute(found: Sample, planned: PlannedStage) -> None:
    """A stage over the clip, behind those that are there: of the plan, or one of these on another rung."""
    operator, knobs = found.operator(planned, planned.rung)
    capability = found.catalogue.capability(planned.capability)
    params = msgspec.convert(planned.params, capability.params)
    sampled = found.stages[planned.id] = Sampled(planned)
    device = Device(planned.rung.device)
    instance = await anyio.to_thread.run_sync(partial(load, operator, knobs, device))
    sources: dict[str, Values] = {
        source: {Key.of(segment.index): Media(segment) for segment in found.segments}
        if source == MEDIA
        else found.stages[source].outputs
        for source in planned.sources
    }
    previous = None
    for key in _keys(planned, len(found.segments), sources):
        if _is_shut(planned, key, sources):
            sampled.num_shut += 1
            sampled.outputs[key] = capability.output()
            continue
        bare = _inputs(planned, key, len(found.segments), sources, params, previous)
        if bare is None:
            sampled.outputs[key] = previous = None
            continue
        sampled.inputs.append(bare)
        try:
            output = await _output(instance, bare, partial(found._decoded, instance, beside=found.demands))
        except Permanent as error:
            sampled.failed.append(str(error))
            output = None
        except PenstockError:
            raise
        except Exception as error:
            sampled.failed.append(f"{operator.name} raised {type(error).__name__}: {error}")
            output = None
        sampled.outputs[key] = output
        previous = output if isinstance(planned.scope, Fold) else None


async def _output(instance: Operator, bare: Inputs, decoded: Callable[[Inputs], Inputs]) -> Any:
    """As a later stage reads it."""
    inputs = await anyio.to_thread.run_sync(decoded, bare)
    with anyio.fail_after(instance.timeout_s):
        if instance.runs_in == "async":
            output: Any = await instance.process_one(inputs, _unheard)
        else:
            process = partial(instance.process, [inputs])
            (output,) = await anyio.to_thread.run_sync(process, abandon_on_cancel=True)
    return msgspec.msgpack.decode(encode(output), type=instance.capability.output)


def _unheard(text: str, *, anew: bool = False) -> None:
    """Where partial output goes."""


def _keys(planned: PlannedStage, num_segments: int, sources: Mapping[str, Values]) -> list[Key]:
    if isinstance(planned.scope, PerRange):
        return sorted({key for values in sources.values() for key in values})
    scope = planned.scope
    return sorted({key for index in range(num_segments) for key in joins.outputs_of(scope, index, num_segments)})


def _is_shut(planned: PlannedStage, key: Key, sources: Mapping[str, Values]) -> bool:
    """As `engine.decide.gating`."""
    gates = planned.inputs.get(WHEN, ())
    values = [sources[gate].get(key) for gate in gates]
    return bool(gates) and all(value is not None and not getattr(value, "observations", None) for value in values)


def _inputs(
    planned: PlannedStage,
    key: Key,
    num_segments: int,
    sources: Mapping[str, Values],
    params: Any,
    previous: Any,
) -> Inputs | None:
    """What is computed from; None where there is a gap at the output's own segment."""
    if isinstance(planned.scope, PerRange):
        wanted: Iterable[Key] = [key]
    else:
        wanted = map(Key.of, joins.needs(planned.scope, key, num_segments))
    keys = list(wanted)
    entries = {source: tuple(_entry(each, sources[source].get(each)) for each in keys) for source in planned.read}
    if not isinstance(planned.scope, Reduce):
        here = (each for source in entries.values() for each in source if each.index == key.last)
        if any(each.gap is not None for each in here):
            return None
    ports = {port: tuple(entries[source] for source in given) for port, given in planned.inputs.items() if port != WHEN}
    return Inputs("sample", key.first, key.last, params, ports, previous)


def _entry(key: Key, value: Any) -> Entry:
    if value is not None:
        return Entry(key.last, value)
    return Entry(key.last, None, Gap(stage="", stream="sample", first=key.first, last=key.last, cause="upstream"))
