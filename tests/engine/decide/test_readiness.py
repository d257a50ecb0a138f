"""The rule of a group, driven through any history; and by hand where a number matters."""

import os
from random import Random

import pytest
from histories import RUNG, History, planned

from engine.decide import joins
from engine.decide.instructions import (
    Acknowledge,
    Compute,
    Event,
    Found,
    GiveGap,
    Instruction,
    Known,
    Read,
    Redeliver,
    StageRule,
)
from engine.decide.readiness import Readiness
from engine.decide.retry import RetryPolicy
from engine.decide.running_graph import RunningStage
from engine.spec.jobs import Span
from engine.spec.operator import Map, Reduce, Scope, Window
from engine.spec.workflow import MEDIA
from streams.errors import Permanent, Transient
from streams.subjects import Key

NUM_HISTORIES = int(os.environ.get("PENSTOCK_HISTORIES", "20000"))  # those with evictions among them
NUM_CHUNKS = 20
NUM_EVICTING = NUM_HISTORIES // (10 * NUM_CHUNKS)
NUM_EACH = NUM_HISTORIES // NUM_CHUNKS - NUM_EVICTING


@pytest.mark.parametrize("chunk", range(NUM_CHUNKS))
def test_whatever_happens_everything_owed_is_made_of_what_it_should_be(chunk: int) -> None:
    for seed in range(chunk * NUM_EACH, (chunk + 1) * NUM_EACH):
        history = History(seed)
        history.run()
        history.check()


@pytest.mark.parametrize("chunk", range(NUM_CHUNKS))
def test_what_falls_out_of_retention_never_hangs_a_group(chunk: int) -> None:
    for seed in range(chunk * NUM_EVICTING, (chunk + 1) * NUM_EVICTING):
        history = History(seed, evicts=True)
        history.run()
        history.check()


def test_the_histories_see_a_rule_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A join that lets whichever arrival comes act on what it sees would compute too early or twice; one that forgets
    the end would leave outputs out. The histories must notice."""
    monkeypatch.setattr(joins, "outputs_of_end", lambda scope, num_segments: [])
    with pytest.raises(AssertionError):
        for seed in range(3000):
            history = History(seed, faults=0.0)
            history.run()
            history.check()


# --- by hand -------------------------------------------------------------------------------------------------------


def rule_for(scope: Scope, *, read_inside: bool = False, max_lag: bool = False, last: int | None = None) -> Readiness:
    stage = RunningStage(
        planned=planned("s", scope, (MEDIA,), "g"),
        spans=(Span(first=0, last=last),),
        patient=() if max_lag else (Span(first=0),),
    )
    return Readiness([StageRule(stage, frozenset([MEDIA]), read_inside)], RetryPolicy(max_attempts=3))


def stored(index: int, seq: int | None = None, due_ns: int = 0, num_delivered: int = 1) -> Event:
    seq = index + 1 if seq is None else seq
    return Event(MEDIA, Key.of(index), Known(seq, value=index, due_ns=due_ns), seq << 1, num_delivered)


def kinds(told: list[Instruction]) -> list[str]:
    return [type(each).__name__ for each in told]


def test_one_record_in_one_out_needs_no_reading() -> None:
    rule = rule_for(Map())
    (work,) = rule.arrived(stored(0), 0)
    assert isinstance(work, Compute)
    assert work.inputs[MEDIA][0].value == 0
    assert kinds(rule.placed(work, Known(1), 0)) == ["Acknowledge"]
    assert rule.num_under_way == 0


def test_a_message_that_comes_again_looks_whether_its_output_is_there() -> None:
    rule = rule_for(Map())
    (read,) = rule.arrived(stored(0, num_delivered=2), 0)
    assert isinstance(read, Read)
    assert read.own
    assert kinds(rule.found(read, Found(own=Known(7)), 0)) == ["Acknowledge"]


def test_a_message_that_comes_again_while_it_is_under_way_is_answered_for_by_its_first_coming() -> None:
    rule = rule_for(Map())
    (work,) = rule.arrived(stored(0), 0)
    assert rule.arrived(stored(0, num_delivered=2), 0) == []
    assert isinstance(work, Compute)
    assert kinds(rule.placed(work, Known(1), 0)) == ["Acknowledge"]


def test_what_is_due_is_late_by_the_servers_clock_alone() -> None:
    rule = rule_for(Map(), max_lag=True)
    assert kinds(rule.arrived(stored(0, due_ns=1000), 1000)) == ["Compute"]
    (gap,) = rule.arrived(stored(1, due_ns=1000), 1001)
    assert isinstance(gap, GiveGap)
    assert gap.cause == "late"
    patient = rule_for(Map())
    assert kinds(patient.arrived(stored(0, due_ns=1000), 1001)) == ["Compute"]


def test_windows_are_looked_at_no_further_than_the_first_that_lacks_a_later_input() -> None:
    rule = rule_for(Window(50))
    (read,) = rule.arrived(stored(0), 0)
    assert isinstance(read, Read)
    told = rule.found(read, Found(inputs={MEDIA: {0: Known(1)}}), 0)
    assert kinds(told) == ["Compute", "Read"]
    assert isinstance(told[1], Read)
    assert kinds(rule.found(told[1], Found(inputs={MEDIA: {0: Known(1)}}), 0)) == []
    assert isinstance(told[0], Compute)
    assert kinds(rule.placed(told[0], Known(1), 0)) == ["Acknowledge"]


def test_a_closed_range_is_read_whole_only_when_what_it_lacked_is_there() -> None:
    rule = rule_for(Reduce(), last=9)
    (read,) = rule.arrived(stored(0), 0)
    assert isinstance(read, Read)
    assert read.wants[MEDIA] == range(10)
    assert kinds(rule.found(read, Found(inputs={MEDIA: {0: Known(1)}}), 0)) == ["Acknowledge"]
    for index in range(1, 9):
        (probe,) = rule.arrived(stored(index), 0)
        assert isinstance(probe, Read)
        assert probe.wants[MEDIA] == range(1, 2)
        rule.found(probe, Found(inputs={MEDIA: {}}), 0)


def test_what_fails_is_tried_again_then_given_up_with_a_dead_letter() -> None:
    rule = rule_for(Map())
    for attempt in (1, 2):
        told = rule.arrived(stored(0, num_delivered=attempt), 0)
        if isinstance(told[0], Read):
            told = rule.found(told[0], Found(inputs={MEDIA: {0: Known(1, value=0)}}), 0)
        (work,) = told
        assert isinstance(work, Compute)
        (again,) = rule.failed(work, Transient("not now"), 1.0)
        assert again == Redeliver(2, 0.25 * 2 ** (attempt - 1), "s failed: not now")
    (read,) = rule.arrived(stored(0, num_delivered=3), 0)
    assert isinstance(read, Read)
    (work,) = rule.found(read, Found(inputs={MEDIA: {0: Known(1, value=0)}}), 0)
    assert isinstance(work, Compute)
    (gap,) = rule.failed(work, Transient("not now"), 1.0)
    assert isinstance(gap, GiveGap)
    assert (gap.cause, gap.is_dead, gap.why) == ("dead_lettered", True, "not now (tried 3 times)")
    assert kinds(rule.placed(gap, Known(1), 0)) == ["Acknowledge"]


def test_what_fails_for_good_is_not_tried_again() -> None:
    rule = rule_for(Map())
    (work,) = rule.arrived(stored(0), 0)
    assert isinstance(work, Compute)
    (gap,) = rule.failed(work, Permanent("never"), 1.0)
    assert isinstance(gap, GiveGap)
    assert gap.is_dead


def test_a_message_that_kills_its_workers_is_given_up() -> None:
    rule = rule_for(Map())
    (read,) = rule.arrived(stored(0, num_delivered=21), 0)
    assert isinstance(read, Read)
    (gap,) = rule.found(read, Found(inputs={MEDIA: {0: Known(1, value=0)}}), 0)
    assert isinstance(gap, GiveGap)
    assert gap.is_dead


def test_what_was_handed_back_comes_to_nothing_here() -> None:
    rule = rule_for(Map())
    (work,) = rule.arrived(stored(0), 0)
    assert isinstance(work, Compute)
    rule.forget(2)
    assert rule.placed(work, Known(1), 0) == []
    assert rule.num_under_way == 0


def test_work_is_wanted_while_a_message_waits_for_it() -> None:
    rule = rule_for(Map())
    (told,) = rule.arrived(stored(3), 0)
    assert isinstance(told, Compute)
    assert rule.is_wanted(told)
    rule.forget(told.event.root)
    assert not rule.is_wanted(told)


def test_every_instruction_that_ends_something_says_why() -> None:
    random = Random(1)
    for seed in range(200):
        history = History(seed)
        for worker in history.workers:
            assert not worker.todo
        tell = history._tell

        def checked(worker, group, told, tell=tell):  # type: ignore[no-untyped-def]
            for each in told:
                if isinstance(each, Compute | GiveGap | Acknowledge | Redeliver):
                    assert each.why
            tell(worker, group, told)

        history._tell = checked  # type: ignore[method-assign]
        history.run()
    assert random
    assert RUNG.version == 1
