"""The profiler: profiles of all that a workflow may run on here, over a clip; measured now where there is none yet."""

import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from engine.decide.answer import time_of_day
from engine.run.profiles import Profiles
from engine.run.profiling import Effort, cold, measured, measured_decode
from engine.run.sampling import Sample, compute
from engine.spec.catalogue import Offer
from engine.spec.operator import Device, Machine
from engine.spec.plan import PlannedRung, PlannedStage, fused, on_rung, stage_id
from engine.spec.profile import Profile
from streams.errors import PenstockError

DECODE = "decode"  # the capability that profiles of decoding are kept under


class Clip(NamedTuple):
    """What is looked at."""

    name: str  # and the beginning of its hash
    segment_s: float


class Profiler:
    """Of one machine and one clip. `anew`: what is kept is measured again."""

    def __init__(
        self,
        sample: Sample,
        clip: Clip,
        machine: Machine,
        profiles: Profiles,
        effort: Effort,
        *,
        anew: bool = False,
        on_rung: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._sample = sample
        self._clip = clip
        self._machine = machine
        self._profiles = profiles
        self._effort = effort
        self._anew = anew
        self._on_rung = on_rung

    async def of_stage(self, planned: PlannedStage, rung: PlannedRung) -> Profile:
        """Of one of a stage's rungs. Raises PenstockError where nothing of the clip could be given to it."""
        on = on_rung(planned.capability, rung)
        kept = None if self._anew else self._profiles.of(on, *self._clip)
        if kept is not None:
            return kept
        self._on_rung(f"{planned.capability}/{rung.implementation}/{rung.rung}")
        operator, knobs = self._sample.operator(planned, rung)
        inputs = self._sample.prepared(planned, rung)
        if not inputs:
            why = "; ".join(dict.fromkeys(self._sample.stages[planned.id].failed)) or "its gate is never open there"
            raise PenstockError(f"{planned.name} on {rung.rung}: nothing of {self._clip.name} comes to it: {why[:200]}")
        took = await measured(operator, knobs, Device(rung.device), inputs, self._machine.num_cores, self._effort)
        alone = await cold(planned.capability, rung.implementation, rung.knobs, rung.device)
        profile = Profile(
            **on._asdict(),
            machine=self._profiles.machine,
            media=self._clip.name,
            segment_s=self._clip.segment_s,
            at=time_of_day(time.time_ns()),
            runs_in=operator.runs_in,
            max_batch=1 if operator.runs_in == "async" else operator.max_batch,
            times=took.times,
            cold_s=None if alone is None else alone.load_s,
            memory_bytes=None if alone is None else alone.memory_bytes,
            fresh=took.fresh,
            cpu_s=took.cpu_s,
            energy_j=took.energy_j if took.energy_by else None,
            energy_by=took.energy_by,
            quality=before.quality if (before := self._profiles.of(on, *self._clip)) is not None else None,
        )
        self._profiles.keep(profile)
        return profile

    async def of_decoding(self) -> list[Profile]:
        """What decoding the clip for the plan's best rungs takes, by kind of demand. Always measured: it is soon done,
        and what is asked of the decoder hangs on all of the plan."""
        self._on_rung("decoding")
        found = await measured_decode(
            self._sample.segments, self._sample.demands, self._machine.num_cores, self._effort
        )
        return [
            Profile(
                capability=DECODE,
                implementation=kind,
                rung=kind,
                version=1,
                device="cpu",
                machine=self._profiles.machine,
                media=self._clip.name,
                segment_s=self._clip.segment_s,
                at=time_of_day(time.time_ns()),
                times=times,
            )
            for kind, times in found.items()
        ]

    async def of_offer(self, planned: PlannedStage, offer: Offer) -> Profile:
        """Of a stage on this rung, whatever it reads."""
        other = await computed_on(self._sample, planned, offer, self._machine, self._clip.segment_s)
        return await self.of_stage(other, other.rung)


async def computed_on(
    sample: Sample, planned: PlannedStage, offer: Offer, machine: Machine, segment_s: float
) -> PlannedStage:
    """The same stage on another rung, computed over the sample's clip."""
    other = on_offer(planned, offer, machine, segment_s)
    if other.id not in sample.stages:
        await compute(sample, other)
    return other


def on_offer(planned: PlannedStage, offer: Offer, machine: Machine, segment_s: float) -> PlannedStage:
    """The same stage on another rung, which may read less of it, and in another way."""
    operator, rung = offer
    read = operator.reads(rung.knobs)
    inputs = {port: given for port, given in planned.inputs.items() if read is None or port in read or port == "when"}
    placed = PlannedRung(
        implementation=operator.name,
        rung=rung.name,
        version=operator.version,
        knobs=msgspec.to_builtins(rung.knobs),
        device=offer.device_on(machine),
    )
    scope = operator.scope_of(rung.knobs, segment_s)
    return msgspec.structs.replace(
        planned,
        id=stage_id(planned.capability, [placed], scope, planned.params, inputs),
        rung=placed,
        lower=(),
        scope=scope,
        inputs=inputs,
        group=fused(inputs, operator(rung.knobs)),
    )
