"""Whether an objective can be held at all, by what was measured of the rungs. Pure.

One segment with the machine to itself takes, along the way through the plan that takes longest, what each stage waits
for more of the stream and what a batch of one takes alone on the rung that is the fastest of those that keep the
quality. No control can do better. And a stream's segments take lanes: in full batches, on the rungs that take the
least, no more than there are for as long as a segment lasts.

What was never measured is taken to take nothing: an objective is refused for what is known only.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from engine.spec.operator import Map
from engine.spec.plan import Plan, PlannedStage
from engine.spec.profile import Profile
from engine.spec.workflow import MEDIA, WHEN


class Known(NamedTuple):
    """What is known of a plan on a machine."""

    profiles: Mapping[str, Sequence[Profile | None]]  # by stage id, of its rungs, the best first
    decoding: Sequence[Profile] = ()
    shares: Mapping[str, float] = {}  # by stage id, of segments for which its gate is open; else none, without one all


def why_not(plan: Plan, known: Known, latency_s: float, segment_s: float, num_cores: int) -> str:
    """Why an answer cannot come within so long, and what could be asked for; empty where nothing says that."""
    least_s = least_latency_s(plan, known, segment_s)
    if least_s > latency_s:
        slowest = max(plan.stages, key=lambda stage: _alone_s(known, stage))
        told = f"{slowest.name} alone takes {_alone_s(known, slowest):.3g} s"
        return (
            f"latency<{latency_s:g}s cannot be held: one segment with the machine to itself takes {least_s:.3g} s"
            f" ({told}); ask for latency<{_rounded_up(least_s):g}s"
        )
    cores_s = core_s(plan, known, on_fastest=True)
    if cores_s > num_cores * segment_s:
        return (
            f"latency<{latency_s:g}s cannot be held: a segment of {segment_s:g} s takes {cores_s:.3g} s of a core on"
            f" the fastest rungs, and there are {num_cores * segment_s:.3g} s meanwhile on {num_cores} of them;"
            " ask for less quality, or of fewer stages"
        )
    return ""


def least_latency_s(plan: Plan, known: Known, segment_s: float) -> float:
    """From when a segment has come to the last answer, with nothing beside it."""
    decode_s = max((profile.alone_s for profile in known.decoding), default=0.0)
    done_s: dict[str, float] = {MEDIA: decode_s}
    for stage in plan.stages:
        after_s = max(done_s[source] for source in stage.sources)
        done_s[stage.id] = (
            waits_s(stage, segment_s) + after_s + (0.0 if stage.inputs.get(WHEN) else _alone_s(known, stage))
        )
    return max(done_s.values())


def longest_wait_s(plan: Plan, segment_s: float) -> float:
    """For how much more of the stream its answers wait, along the way that waits longest."""
    waited_s: dict[str, float] = {MEDIA: 0.0}
    for stage in plan.stages:
        waited_s[stage.id] = waits_s(stage, segment_s) + max(waited_s[source] for source in stage.sources)
    return max(waited_s.values())


def waits_s(stage: PlannedStage, segment_s: float) -> float:
    return stage.scope.after * segment_s if isinstance(stage.scope, Map) else 0.0


def core_s(plan: Plan, known: Known, *, on_fastest: bool = False) -> float:
    """Of a core, for a segment through all stages in full batches: on the best rungs, or on the fastest ones."""
    decode_s = sum(profile.mean_s(1) for profile in known.decoding)
    shares = {stage.id: known.shares.get(stage.id, 0.0 if stage.inputs.get(WHEN) else 1.0) for stage in plan.stages}
    return decode_s + sum(shares[stage.id] * _unit_s(known, stage, on_fastest) for stage in plan.stages)


def _measured(known: Known, stage: PlannedStage) -> list[Profile]:
    """Of its rungs; none where one of them was not measured: it may be the fastest."""
    profiles = list(known.profiles.get(stage.id, ()))
    return [each for each in profiles if each is not None] if profiles and None not in profiles else []


def _alone_s(known: Known, stage: PlannedStage) -> float:
    return min((profile.alone_s for profile in _measured(known, stage)), default=0.0)


def _unit_s(known: Known, stage: PlannedStage, on_fastest: bool) -> float:
    on_cores = [each for each in _measured(known, stage) if each.on_cores]
    taken = [each.unit_s for each in on_cores]
    if len(on_cores) < len(_measured(known, stage)):
        return 0.0  # what does not run on cores can take its place
    return (min(taken) if on_fastest else taken[0]) if taken else 0.0


def _rounded_up(seconds: float) -> float:
    """What one may ask for: a fifth more, in two digits."""
    return float(f"{1.2 * seconds:.2g}")
