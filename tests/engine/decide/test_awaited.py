"""When to look what an output lacks, and when to have it computed once more."""

import itertools

import pytest

from engine.decide.awaited import MAX_PAUSE_S, MAX_ROUNDS, Awaited
from streams.subjects import Key


def test_looks_are_further_and_further_apart() -> None:
    awaited = Awaited(Key.of(1))
    looks = [now_s for now_s in range(100) if awaited.is_due(now_s)]
    pauses = [later - before for before, later in itertools.pairwise(looks)]
    assert looks[0] == 0
    assert pauses[:4] == [2, 4, 8, 16]
    assert set(pauses[3:]) == {MAX_PAUSE_S}


@pytest.mark.parametrize(
    ("are_idle", "under_way"),
    [
        ([], [False, False, False]),
        ([True], [False, False, False]),
        ([True, False], [True, True, True]),
        ([None], [True, True, False]),  # a worker may be on its way, but not for ever
        ([None, False], [True, True, True]),
    ],
)
def test_what_groups_have_left_to_do_may_bring_it(are_idle: list[bool | None], under_way: list[bool]) -> None:
    awaited = Awaited(Key.of(1))
    assert [awaited.is_under_way(are_idle) for _ in under_way] == under_way


def test_rounds_that_bring_nothing_are_given_up_and_those_that_do_are_not() -> None:
    awaited = Awaited(Key.of(1))
    assert all(awaited.is_worth_another_round(num, is_served=True) for num in range(100, 80, -1))
    more = [awaited.is_worth_another_round(81, is_served=True) for _ in range(5)]
    assert more.index(False) == MAX_ROUNDS - 1
    assert all(Awaited(Key.of(1)).is_worth_another_round(5, is_served=False) for _ in range(100))
