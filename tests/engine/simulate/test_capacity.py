"""How many streams fit, by a plan and what was measured of it."""

import msgspec
import pytest
import toys

from engine.decide.feasible import Known, core_s
from engine.simulate.capacity import IN_TIME, Capacity, capacity, limit
from engine.simulate.modelled import ENGINE, Wanted, engine_s, scenario_of_plan
from engine.simulate.run import run
from engine.simulate.scenario import Scenario
from engine.spec.catalogue import Catalogue
from engine.spec.choosing import Pace
from engine.spec.operator import Machine
from engine.spec.plan import Plan, make_plan
from engine.spec.profile import BatchTimes, Profile
from engine.spec.workflow import Stage, Workflow

CATALOGUE = Catalogue(toys.ALL)
WEIGH = Stage(capability="toy_weigh", inputs={"media": "media"})
ADD = Stage(capability="toy_add", inputs={"numbers": "weigh"})


def plan(floor: float = 1.0, **stages: Stage) -> Plan:
    workflow = Workflow(name="w", stages=stages or {"weigh": WEIGH})
    return make_plan(workflow, CATALOGUE, Machine(num_cores=2), pace=Pace(1.0, 2.0), floor=floor)


def profile(name: str, took_s: float, max_batch: int = 1, sd_s: float = 0.0, **more: object) -> Profile:
    times = tuple(
        BatchTimes(
            batch_size=size, num_beside=2, num=9, mean_s=took_s, sd_s=sd_s, p50_s=took_s, p95_s=took_s, max_s=took_s
        )
        for size in {1, max_batch}
    )
    on = {"capability": "c", "implementation": name, "rung": name, "version": 1, "device": "cpu", "machine": "m"}
    about = {"media": "c", "segment_s": 1.0, "at": "", "max_batch": max_batch, "times": times, **more}
    return Profile(**on, **about)  # type: ignore[arg-type]


def known(plan: Plan, **took: Profile) -> Known:
    profiles = {stage.id: [took[rung.rung.replace("-", "_")] for rung in stage.rungs] for stage in plan.stages}
    return Known(profiles)


def found(plan: Plan, known: Known, wanted: Wanted, num_cores: int = 2) -> Capacity:
    def scenario_of(num_streams: int, num_each: int) -> Scenario:
        return scenario_of_plan(plan, known, CATALOGUE, wanted, num_streams, num_cores, num_each)

    return capacity(scenario_of, wanted.bound_s, num_seeds=1)


def test_of_what_takes_always_the_same_nearly_as_many_fit_as_the_lanes_allow() -> None:
    made = plan()
    told = known(made, weigh_with_care=profile("care", 0.1))
    fits = found(made, told, Wanted(1.0, 4.0))
    most = 2 / (0.1 + engine_s(made))
    assert fits.most == pytest.approx(most)
    assert fits.binds == "cores"
    assert fits.on_best is fits.on_any
    assert fits.on_best is not None
    assert 0.9 * most - 1 <= fits.on_best.num_streams <= most
    assert fits.on_best.in_time >= IN_TIME > fits.over.in_time
    assert fits.over.num_streams == fits.on_best.num_streams + 1
    assert fits.on_best.busy["cores"] == pytest.approx(fits.on_best.num_streams / most, rel=0.05)


def test_twice_the_cores_carry_twice_as_many() -> None:
    made = plan()
    told = known(made, weigh_with_care=profile("care", 0.1))
    two, four = (found(made, told, Wanted(1.0, 4.0), num_cores=num).on_best for num in (2, 4))
    assert two is not None
    assert four is not None
    assert four.num_streams == pytest.approx(2 * two.num_streams, abs=2)


def test_lower_rungs_carry_more_and_it_is_said_what_that_is_worth() -> None:
    made = plan(floor=0.5)
    told = known(made, weigh_with_care=profile("care", 0.2), weigh_quickly=profile("quick", 0.05))
    fits = found(made, told, Wanted(1.0, 4.0, latency_s=2.0))
    assert fits.on_best is not None
    assert fits.on_any is not None
    assert fits.on_any.num_streams > 1.5 * fits.on_best.num_streams
    assert fits.on_best.quality == 1.0
    assert 0.75 / 0.9 - 0.01 <= fits.on_any.quality < 1.0


def test_where_not_one_fits_none_does() -> None:
    made = plan()
    fits = found(made, known(made, weigh_with_care=profile("care", 2.5)), Wanted(1.0, 2.0))
    assert fits.on_best is None
    assert fits.on_any is None
    assert fits.over.num_streams == 1
    assert fits.over.in_time < IN_TIME


def test_a_scenario_has_the_plan_s_stages_decoding_and_what_the_engine_does() -> None:
    made = plan(weigh=WEIGH, add=ADD)
    told = known(made, weigh_with_care=profile("care", 0.1, fresh=0.5), toy_add_toy=profile("add", 0.2, 16, sd_s=0.1))
    told = told._replace(decoding=[profile("pictures", 0.03)], shares={made.stages[1].id: 0.25})
    scenario = scenario_of_plan(made, told, CATALOGUE, Wanted(1.0, 2.0), 3, 2, 20)
    assert scenario.stages["c/pictures/pictures"].inputs == (ENGINE,)
    assert scenario.stages["weigh"].inputs == ("c/pictures/pictures",)
    assert scenario.stages["add"].inputs == ("weigh",)
    assert scenario.stages["add"].share == 0.25
    service = scenario.pools["c/add/add@cpu"].service
    assert scenario.pools["c/add/add@cpu"].max_batch == 16
    assert service.mean_s(16) == pytest.approx(0.2)
    assert service.cv == pytest.approx(0.5)
    assert scenario.pools["c/care/care@cpu"].service.fresh == 0.5
    assert core_s(made, told) == pytest.approx(0.03 + 0.05 + 0.25 * 0.2 / 16)
    bound, _ = limit(scenario_of_plan(made, told, CATALOGUE, Wanted(1.0, 2.0), 1, 2, 20), with_lower=False)
    assert bound == pytest.approx(2 / (core_s(made, told) + engine_s(made)))


def test_what_waits_for_the_stream_has_that_much_less_time() -> None:
    near = Stage(capability="toy_near", inputs={"media": "media"})
    made = plan(near=near)
    told = Known({made.stages[0].id: [profile("near", 0.1)]})
    (streams,) = scenario_of_plan(made, told, CATALOGUE, Wanted(1.0, 3.0, 2.5), 1, 1, 20).streams
    assert streams.max_lag_s == pytest.approx(2.0)
    assert streams.latency_s == pytest.approx(1.5)


def test_a_rung_takes_less_where_no_other_core_is_busy() -> None:
    made = plan()
    both, alone = profile("care", 0.3), profile("care", 0.2)
    times = tuple(msgspec.structs.replace(each, num_beside=1) for each in alone.times)
    told = known(made, weigh_with_care=msgspec.structs.replace(both, times=(*times, *both.times)))
    scenario = scenario_of_plan(made, told, CATALOGUE, Wanted(1.0, 4.0), 1, 2, 20)
    service = scenario.pools["c/care/care@cpu"].service
    assert (service.mean_s(1), service.alone) == pytest.approx((0.3, 2 / 3))
    assert [service.beside(num, 3) for num in (1, 2, 3)] == pytest.approx([2 / 3, 5 / 6, 1.0])
    assert service.beside(1, 1) == 1.0, "there is no other"
    took_s = run(scenario).segments.took_s
    assert took_s == pytest.approx([0.2 + engine_s(made)] * len(took_s), rel=0.01)
