"""A scenario of a plan: its stages, with what was measured of them, and streams like a clip. Pure.

| of the plan | in the scenario |
|---|---|
| a rung | a pool, shared by all stages on it; s(b) and its spread by its profile, with as many cores busy as are |
| an engine that batches by itself | an `async` pool; how long an item takes by how many are under way |
| decoding | a stage of its own for each kind of demand, ahead of those that look at the media |
| a gate | open for the share of segments for which it was open in the clip |
| a stage that waits for more of the stream | that much less time for everything |
| what the engine does for a segment, in its event loops and at the server | a stage of its own, ahead of all others |

The last takes SEGMENT_S and for each stage OUTPUT_S of a core. With few streams it is more, for some is taken at rest
as well (`bench/capacity.py --overhead`, on an AMD EPYC: 15 to 22 ms a segment of one stage, 40 of six); with many it is
less, for they share what is done at once.
"""

from typing import NamedTuple

import msgspec

from engine.decide.feasible import Known, longest_wait_s
from engine.simulate.arrivals import Arrivals
from engine.simulate.scenario import LowerSpec, Scenario, SimulatedPoolSpec, StageSpec, StreamsSpec
from engine.simulate.services import Service
from engine.spec.catalogue import Catalogue
from engine.spec.plan import Plan, PlannedRung, PlannedStage, settings_of
from engine.spec.profile import Profile, fitted
from engine.spec.workflow import MEDIA

ENGINE = "(engine)"  # a name that no stage has
SEGMENT_S, OUTPUT_S = 0.012, 0.0025
WARM_UP = 8  # segments
RUNGS_WARM_UP_S = 60.0  # until streams are on the rungs that the load wants
JITTER = 0.2  # of what is between two segments of a stream


class Wanted(NamedTuple):
    """How streams come, and by when their answers are wanted, s."""

    segment_s: float
    max_lag_s: float
    latency_s: float = 0.0  # 0: as the lag allows

    @property
    def bound_s(self) -> float:
        return self.latency_s or self.max_lag_s


def scenario_of_plan(
    plan: Plan, known: Known, catalogue: Catalogue, wanted: Wanted, num_streams: int, num_cores: int, num_each: int
) -> Scenario:
    """So many streams at once, each of `num_each` segments behind those in which the machine finds its way, which count
    for nothing. Raises UserError as a scenario does."""
    pools: dict[str, SimulatedPoolSpec] = {}
    stages: dict[str, StageSpec] = {}
    decodes = []
    pools[ENGINE] = SimulatedPoolSpec(service=Service(base_s=engine_s(plan)))
    stages[ENGINE] = StageSpec(pool=ENGINE)
    for profile in known.decoding:
        pools[profile.name] = SimulatedPoolSpec(service=_service(profile))
        stages[profile.name] = StageSpec(pool=profile.name, inputs=(ENGINE,))
        decodes.append(profile.name)
    names = {stage.id: stage.name for stage in plan.stages}
    for stage in plan.stages:
        rungs = [
            (rung, each) for rung, each in zip(stage.rungs, known.profiles[stage.id], strict=True) if each is not None
        ]
        for rung, profile in rungs:
            pools[_pool_name(profile)] = _pool(stage, rung, profile, catalogue)
        read = (decodes or [ENGINE] if source == MEDIA else [names[source]] for source in stage.sources)
        stages[stage.name] = StageSpec(
            pool=_pool_name(rungs[0][1]),
            lower=tuple(LowerSpec(pool=_pool_name(profile), quality=rung.quality) for rung, profile in rungs[1:]),
            inputs=tuple(dict.fromkeys(each for some in read for each in some)),
            share=known.shares.get(stage.id, 1.0),
        )
    waits_s = longest_wait_s(plan, wanted.segment_s)
    warm_up_s = max(WARM_UP * wanted.segment_s, RUNGS_WARM_UP_S * any(stage.lower for stage in plan.stages))
    return Scenario(
        pools=pools,
        stages=stages,
        streams=(
            StreamsSpec(
                num=num_streams,
                arrivals=Arrivals(per_s=1 / wanted.segment_s, jitter=JITTER),
                max_lag_s=max(0.001, wanted.max_lag_s - waits_s),
                latency_s=max(0.001, wanted.latency_s - waits_s) if wanted.latency_s else 0.0,
            ),
        ),
        duration_s=warm_up_s + num_each * wanted.segment_s,
        warm_up_s=warm_up_s,
        num_cores=num_cores,
        seed=1,
    )


def engine_s(plan: Plan) -> float:
    """Of a core, that the engine itself takes for a segment."""
    return SEGMENT_S + OUTPUT_S * len(plan.stages)


def _pool_name(profile: Profile) -> str:
    return f"{profile.name}@{profile.device}"


def _pool(stage: PlannedStage, rung: PlannedRung, profile: Profile, catalogue: Catalogue) -> SimulatedPoolSpec:
    operator = catalogue.implementation(stage.capability, rung.implementation)
    if operator.runs_in == "async":
        most = max(1, min(operator.in_flight(settings_of(operator.Knobs, rung.knobs)), operator.max_in_flight))
        base_s, per_in_flight_s = fitted([(each.num_beside, each.mean_s) for each in profile.times])
        service = msgspec.structs.replace(
            _service(profile), base_s=base_s, per_item_s=0.0, per_in_flight_s=per_in_flight_s
        )
        return SimulatedPoolSpec(service=service, runs_in="async", max_async=most)
    return SimulatedPoolSpec(
        service=_service(profile),
        max_batch=operator.max_batch,
        runs_in=operator.runs_in,
        num_instances=operator.num_instances if rung.device == "cuda" else 0,
    )


def _service(profile: Profile) -> Service:
    base_s, per_item_s = profile.line
    cv = min(profile.spread, 5.0)
    return Service(
        base_s=base_s,
        per_item_s=per_item_s,
        spread="lognormal",
        cv=cv,
        fresh=profile.fresh,
        alone=_alone(profile),
    )


def _alone(profile: Profile) -> float:
    """What a batch by itself takes of what it takes with every core busy."""
    base_s, per_item_s = profile.line_alone
    alone_s, beside_s = base_s + per_item_s * profile.max_batch, profile.mean_s(profile.max_batch)
    return min(1.0, max(0.1, alone_s / beside_s)) if profile.on_cores and alone_s > 0 and beside_s > 0 else 1.0
