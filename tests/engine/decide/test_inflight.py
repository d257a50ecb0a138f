"""How many items are under way at once of an engine that batches by itself."""

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.decide.inflight import FRESH_S, ROUND, STEPS, InFlight, Limited

NS = 10**9
Takes = Callable[[int], float]


def driven(
    limit: InFlight,
    takes_s: Takes,
    num: int,
    *,
    now_s: float = 100.0,
    has_time_s: float | None = None,
    num_waiting: int = 100,
    fails_over: int = 1000,
) -> tuple[float, list[Limited]]:
    """So many items, as many at once as the limit says; when they are over, and the changes."""
    changes = []
    for _ in range(num):
        under_way = limit.limit
        limit.began(num_waiting, has_time_s)
        now_s += takes_s(under_way) / under_way
        failed = under_way > fails_over
        if (changed := limit.ended(under_way, takes_s(under_way), round(now_s * NS), failed=failed)) is not None:
            changes.append(changed)
    return now_s, changes


def failing(limit: InFlight, num: int) -> tuple[float, list[Limited]]:
    """One of three fails."""
    now_s, changes = 100.0, []
    for number in range(num):
        limit.began(9, None)
        now_s += 0.01
        changed = limit.ended(limit.limit, 0.1, round(now_s * NS), failed=number % 3 == 0 and number < 15)
        changes += [changed] if changed is not None else []
    return now_s, changes


@pytest.mark.parametrize(
    ("takes_s", "low", "high"),
    [
        (lambda n: 0.5 + 0.02 * n, 48, 64),  # each more pays nearly in full: as many as may be
        (lambda n: max(1.0, n / 8), 6, 12),  # eight are served, the others wait in there
        (lambda n: 0.2 + 0.002 * n * n, 6, 16),  # the most at ten
        (lambda n: 0.05 + 0.25 * n, 2, 8),  # one after the other
    ],
)
def test_it_stays_where_more_would_not_pay(takes_s: Takes, low: int, high: int) -> None:
    limit, seen = InFlight(64), list[int]()
    now_s, _ = driven(limit, takes_s, 2000)
    for _ in range(100):
        now_s, _ = driven(limit, takes_s, ROUND, now_s=now_s)
        seen.append(limit.limit)
    assert low <= sorted(seen)[len(seen) // 2] <= high


def test_it_begins_at_what_its_owner_allows_and_never_goes_beyond() -> None:
    for most in (1, 5, 64):
        limit = InFlight(most)
        assert limit.limit == most
        _, changes = driven(limit, lambda n: 1.0, 3000)
        assert all(1 <= change.limit <= most for change in changes)
        assert all(change.why for change in changes)


def test_where_items_fail_it_goes_down_at_once_and_is_not_tried_again_soon() -> None:
    limit = InFlight(16)
    now_s, changes = failing(limit, 16)
    assert [change.limit for change in changes] == [12]
    assert changes[0].why == "5 of 16 failed"
    end_s = now_s + FRESH_S
    tried = 0
    while now_s + 20 < end_s:  # a round is 8 s at most
        now_s, changes = driven(limit, lambda n: 0.1 * n, ROUND, now_s=now_s, fails_over=12)
        tried += any(change.limit == 16 for change in changes)
    assert tried == 0


def test_one_that_is_away_comes_back_for_no_fewer() -> None:
    """Every item fails: connections are refused."""
    limit = InFlight(16)
    _, changes = driven(limit, lambda n: 0.01, 1000, fails_over=0)
    assert (changes, limit.limit) == ([], 16)


def test_where_fewer_are_no_faster_it_goes_back() -> None:
    limit, seen = InFlight(16), list[int]()
    now_s = 100.0
    for _ in range(100):
        now_s, _ = driven(limit, lambda n: 6.0, 16, now_s=now_s, has_time_s=10.0)
        seen.append(limit.limit)
    assert sum(each == 16 for each in seen) > 70
    assert min(seen) >= 12


def test_an_item_is_to_take_no_more_than_half_of_the_time_that_it_has() -> None:
    limit = InFlight(64)
    driven(limit, lambda n: n / 8, 400, has_time_s=2.0)
    assert limit.limit / 8 <= 1.0


def test_at_rest_nothing_changes() -> None:
    """However long: what comes is done, and nothing waits."""
    limit = InFlight(64)
    assert driven(limit, lambda n: 1.0, 5000, num_waiting=0)[1] == []
    assert driven(limit, lambda n: 1.0, 5000, num_waiting=0, has_time_s=10.0)[1] == []


def test_what_was_begun_under_another_limit_is_of_another_time() -> None:
    limit = InFlight(16)
    now_s, changes = failing(limit, 16)
    assert changes
    before = dict(limit._known)
    assert limit.ended(16, 5.0, round((now_s + 1) * NS), failed=True) is None
    assert limit._known == before


@given(
    st.integers(1, 200),
    st.lists(st.tuples(st.floats(0.001, 10), st.integers(0, 3), st.booleans(), st.booleans()), max_size=400),
)
def test_whatever_happens_it_keeps_its_bounds_and_moves_a_step_at_most_for_each_round_that_is_full(
    most: int, items: list[tuple[float, int, bool, bool]]
) -> None:
    limit, now_ns = InFlight(most), 0
    for service_s, num_waiting, failed, has_time in items * 3:
        before = limit.limit
        now_ns += round(service_s * NS)
        limit.began(num_waiting, 5.0 if has_time else None)
        changed = limit.ended(Random(now_ns).randint(1, before), service_s, now_ns, failed=failed)
        assert 1 <= limit.limit <= most
        assert (changed is None) == (limit.limit == before)
        if changed is not None:
            assert changed.why
            assert limit.limit < before or limit.limit == min([*(s for s in STEPS if s > before), most])
