"""When an output is due, and whether it is late."""

import msgspec

from engine.decide.instructions import Known
from engine.decide.lateness import due_of, expires_ns, is_late, leads_ns, said_of, wanted_ns
from engine.decide.running_graph import RunningStage
from engine.spec.jobs import Span
from engine.spec.operator import Map, Reduce, Scope
from engine.spec.plan import PlannedRung, PlannedStage
from streams.subjects import Key


def stage(scope: Scope, patient_to: int | None = None) -> RunningStage:
    rung = PlannedRung(implementation="i", rung="r", version=1)
    planned = PlannedStage(
        id="s", name="s", capability="c", rung=rung, scope=scope, group="g", inputs={"in": ("media",)}
    )
    patient = () if patient_to is None else (Span(first=0, last=patient_to),)
    return RunningStage(planned=planned, spans=(Span(first=0),), patient=patient)


def test_an_output_is_due_when_its_own_segment_is() -> None:
    inputs = {"media": {6: Known(1, due_ns=60), 7: Known(2, due_ns=70), 8: Known(3, due_ns=80)}}
    assert due_of(Key.of(7), 99, inputs) == 70


def test_what_is_wanted_however_late_never_expires() -> None:
    assert expires_ns(stage(Map(), patient_to=7), Key.of(7), 70) == 0
    assert expires_ns(stage(Map(), patient_to=6), Key.of(7), 70) == 70
    assert expires_ns(stage(Reduce()), Key(0, 7), 70) == 0


def test_what_says_nothing_of_it_is_never_late() -> None:
    assert due_of(Key.of(7), 0, {"media": {7: Known(2)}}) == 0
    assert expires_ns(stage(Map()), Key.of(7), 0) == 0
    assert not is_late(0, 10**18)
    assert not is_late(70, 70)
    assert is_late(70, 71)


def test_how_late_it_is_is_said() -> None:
    assert said_of(10**9, 3 * 10**9) == "it was due 2.00 s before its turn came"


def reading(id: str, *sources: str) -> RunningStage:
    running = stage(Map())
    planned = msgspec.structs.replace(running.planned, id=id, inputs={"in": sources})
    return msgspec.structs.replace(running, planned=planned, max_lag_s=10.0)


def test_a_lead_is_what_a_stage_takes_and_the_longest_way_behind_it() -> None:
    stages = {"a": ["media"], "b": ["a"], "c": ["a"], "d": ["b", "c"]}
    took_s = {"a": 0.5, "b": 0.1, "c": 2.0, "d": 0.25}
    found = {id: lead_ns / 1e9 for id, lead_ns in leads_ns(stages, took_s).items()}
    assert found == {"a": 2.75, "b": 0.35, "c": 2.25, "d": 0.25}
    assert leads_ns(dict(reversed(stages.items())), took_s) == leads_ns(stages, took_s)
    assert set(leads_ns(stages, {"a": None, "d": 0.25}).values()) == {250_000_000}


def test_what_cannot_be_in_time_any_more_is_late_before_work_is_wasted_on_it() -> None:
    due_ns, lead_ns = 100_000_000_000, 3_000_000_000
    assert expires_ns(reading("a", "media"), Key.of(7), due_ns, lead_ns) == due_ns - lead_ns
    slow_ns = 60_000_000_000  # it would never be in time: what comes in the first half of its time is computed
    assert expires_ns(reading("a", "media"), Key.of(7), due_ns, slow_ns) == due_ns - 5_000_000_000
    patient = msgspec.structs.replace(stage(Map(), patient_to=7), max_lag_s=10.0)
    assert expires_ns(patient, Key.of(7), due_ns, lead_ns) == 0


def test_what_is_late_before_it_is_due_says_so() -> None:
    assert said_of(3_000_000_000, 1_500_000_000) == "its turn came 1.50 s before it was due, too late to be in time"


def test_what_is_wanted_within_a_latency_is_wanted_before_it_is_due() -> None:
    assert wanted_ns(100 * 10**9, 10.0, 2.0) == 92 * 10**9
    assert wanted_ns(100 * 10**9, 10.0, 0.0) == 100 * 10**9
    assert wanted_ns(100 * 10**9, 10.0, 30.0) == 100 * 10**9
    assert wanted_ns(0, 10.0, 2.0) == 0
