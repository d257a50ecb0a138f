"""When to look what an output lacks, and when to have it computed once more."""

import itertools
import math

import pytest

from engine.decide.awaited import ABSENT_S, FIRST_PAUSE_S, MAX_ABSENT_S, MAX_PAUSE_S, MAX_ROUNDS, Awaited
from streams.subjects import Key


def test_looks_are_further_and_further_apart() -> None:
    awaited = Awaited(Key.of(1))
    looks = [now_s for now_s in range(100) if awaited.is_due(now_s)]
    pauses = [later - before for before, later in itertools.pairwise(looks)]
    assert looks[0] == 0
    assert pauses[:4] == [2, 4, 8, 16]
    assert set(pauses[3:]) == {MAX_PAUSE_S}


def test_what_is_still_to_come_is_looked_at_seldom_and_at_once_when_it_is_there() -> None:
    awaited = Awaited(Key.of(1))
    looks = [now_s for now_s in range(4000) if awaited.is_due(now_s, is_there=False)]
    pauses = [later - before for before, later in itertools.pairwise([0, *looks])]
    assert pauses[:3] == [ABSENT_S, ABSENT_S, 2 * ABSENT_S]
    assert max(pauses) == pauses[-1] == MAX_ABSENT_S
    assert awaited.is_due(4000)
    assert not awaited.is_due(4000 + FIRST_PAUSE_S - 0.1)
    assert awaited.is_due(4000 + FIRST_PAUSE_S)


IDLE = {"MEDIA": math.inf, "RESULTS": math.inf}
AT_5 = {"MEDIA": 5, "RESULTS": 5}


@pytest.mark.parametrize(
    ("floors", "verdicts"),
    [
        ([], ["wait", "again"]),
        ([IDLE], ["wait", "again"]),
        ([AT_5, {"MEDIA": 4.0}], ["wait", "wait", "wait", "wait"]),  # it is about what was stored before the first look
        ([AT_5, {"MEDIA": 7.0, "RESULTS": 4.0}], ["wait", "wait", "wait"]),
        ([{"MEDIA": 5.0}, {"MEDIA": 7.0, "RESULTS": math.inf}], ["wait", "again"]),  # and something always comes
        ([None], ["wait", "wait", "again"]),  # a worker may be on its way, but not for ever
        ([None, {"MEDIA": 4.0}], ["wait", "wait", "wait", "wait"]),
    ],
)
def test_what_was_not_acknowledged_may_bring_it(floors: list[dict[str, float] | None], verdicts: list[str]) -> None:
    awaited = Awaited(Key.of(1))
    lasts = itertools.count(5)  # more is stored all the time
    assert [
        awaited.judged(0, 3, {"MEDIA": (last := next(lasts)), "RESULTS": last}, floors) for _ in verdicts
    ] == verdicts


def test_what_came_since_the_look_before_may_bring_more() -> None:
    awaited = Awaited(Key.of(1))
    assert [awaited.judged(0, num, AT_5, [IDLE]) for num in (9, 8, 7, 7)] == ["wait", "wait", "wait", "again"]


def test_rounds_that_bring_nothing_are_given_up_and_those_that_do_are_not() -> None:
    awaited = Awaited(Key.of(1))
    found = [awaited.judged(0, num, AT_5, [IDLE]) for num in range(100, 80, -1) for _ in range(2)]
    assert found == ["wait", "again"] * 20
    assert [awaited.judged(0, 81, AT_5, [IDLE]) for _ in range(2 * MAX_ROUNDS)] == [
        *["wait", "again"] * (MAX_ROUNDS - 1),
        "wait",
        "give up",
    ]


def test_rounds_that_nobody_served_are_not_counted() -> None:
    awaited = Awaited(Key.of(1))
    assert "give up" not in [awaited.judged(0, 5, AT_5, [None]) for _ in range(100)]
