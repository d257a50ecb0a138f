"""When an output is due, and whether it is late."""

from engine.decide.instructions import Known
from engine.decide.lateness import due_of, expires_ns, is_late, said_of
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
