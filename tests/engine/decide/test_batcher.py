"""What of the waiting items runs now, by tables and properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.decide.batcher import Batcher, Drop, Item, Run, WakeAt


def batcher(max_batch: int, *items: Item) -> Batcher:
    made = Batcher(max_batch)
    for item in items:
        made.add(item)
    return made


def ids(decisions: list[Run | Drop | WakeAt]) -> list[list[int]]:
    return [[item.id for item in decision.items] for decision in decisions if isinstance(decision, Run)]


def test_nothing_runs_while_no_lane_is_free() -> None:
    waiting = batcher(4, Item(1), Item(2))
    assert waiting.decide(0, 0) == []
    assert ids(waiting.decide(0, 1)) == [[1, 2]]
    assert len(waiting) == 0


def test_what_came_while_all_lanes_were_busy_makes_the_next_batch_larger() -> None:
    waiting = batcher(4, *(Item(number) for number in range(10)))
    assert ids(waiting.decide(0, 2)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert ids(waiting.decide(0, 2)) == [[8, 9]]


def test_the_earliest_due_goes_first_whoever_came_first() -> None:
    waiting = batcher(2, Item(1), Item(2, due_ns=900), Item(3, due_ns=500), Item(4))
    assert ids(waiting.decide(0, 3)) == [[3, 2], [1, 4]]


def test_what_is_late_is_dropped_at_once_though_no_lane_is_free() -> None:
    waiting = batcher(2, Item(1, due_ns=100), Item(2, due_ns=200))
    assert waiting.decide(100, 0) == [WakeAt(101)]
    dropped, wake = waiting.decide(101, 0)
    assert isinstance(dropped, Drop)
    assert dropped.item.id == 1
    assert wake == WakeAt(201)


def test_weights_fill_a_batch() -> None:
    waiting = batcher(4, Item(1, weight=3), Item(2, weight=2), Item(3), Item(4, weight=9), Item(5))
    assert ids(waiting.decide(0, 9)) == [[1], [2, 3], [4], [5]]  # what is heavier than a batch runs all the same


def test_what_must_run_alone_does() -> None:
    waiting = batcher(4, Item(1), Item(2, alone=True), Item(3), Item(4))
    assert ids(waiting.decide(0, 9)) == [[1], [2], [3, 4]]


def test_what_is_canceled_neither_runs_nor_is_late() -> None:
    waiting = batcher(2, Item(1), Item(2, due_ns=5), Item(3))
    waiting.cancel(1)
    waiting.cancel(2)
    waiting.cancel(77)
    assert len(waiting) == 1
    assert ids(waiting.decide(10, 2)) == [[3]]
    assert waiting.decide(10, 2) == []


def wants(id: int, *shared: int) -> Item:
    return Item(id, shared=frozenset(shared))


def test_what_wants_the_same_work_runs_together() -> None:
    waiting = batcher(4, wants(1, 7), wants(2, 8), wants(3, 7, 8), wants(4, 7), wants(5, 9), Item(6))
    assert ids(waiting.decide(0, 1)) == [[1, 3, 4, 6]]  # and what shares nothing goes with any


def test_what_is_being_done_is_not_begun_beside_it() -> None:
    waiting = batcher(4, wants(1, 7), wants(2, 7, 8), wants(3, 8), wants(4, 9))
    (first, second) = (each for each in waiting.decide(0, 4) if isinstance(each, Run))
    assert [[item.id for item in each.items] for each in (first, second)] == [[1, 2], [4]]
    assert ids(waiting.decide(0, 4)) == []
    waiting.ended(second.items)
    assert ids(waiting.decide(0, 4)) == []
    waiting.ended(first.items)
    assert ids(waiting.decide(0, 4)) == [[3]]
    assert len(waiting) == 0


SHARING = st.lists(st.frozensets(st.integers(0, 4), max_size=3), max_size=25)


@given(SHARING, st.integers(1, 5), st.lists(st.integers(0, 9), max_size=40))
def test_no_two_batches_do_the_same_work_and_none_waits_when_all_have_ended(
    items: list[frozenset[int]], max_batch: int, ends: list[int]
) -> None:
    waiting = batcher(max_batch, *(Item(id, shared=shared) for id, shared in enumerate(items)))
    running: list[tuple[Item, ...]] = []
    seen: list[int] = []
    for end in [*ends, *([0] * len(items))]:
        for decision in waiting.decide(0, 2 - len(running)):
            assert isinstance(decision, Run)
            first = decision.items[0].shared
            assert all(not item.shared or first & item.shared or not first for item in decision.items)
            running.append(decision.items)
            seen += [item.id for item in decision.items]
        work = [frozenset[int]().union(*(item.shared for item in batch)) for batch in running]
        assert sum(map(len, work)) == len(frozenset[int]().union(*work))
        if running:
            waiting.ended(running.pop(end % len(running)))
    assert sorted(seen) == list(range(len(items)))
    assert len(waiting) == 0


ITEMS = st.lists(
    st.tuples(st.sampled_from([0, 10, 20, 30]), st.sampled_from([0.5, 1.0, 2.0]), st.booleans(), st.booleans()),
    max_size=30,
)


@given(ITEMS, st.integers(1, 6), st.lists(st.tuples(st.integers(0, 15), st.integers(0, 3)), max_size=20))
def test_every_item_runs_once_or_is_dropped_once_and_no_batch_is_too_heavy(
    items: list[tuple[int, float, bool, bool]], max_batch: int, moments: list[tuple[int, int]]
) -> None:
    waiting = Batcher(max_batch)
    canceled = set()
    for id, (due_ns, weight, alone, cancel) in enumerate(items):
        waiting.add(Item(id, due_ns, weight, alone))
        if cancel and id % 3 == 0:
            waiting.cancel(id)
            canceled.add(id)
    seen: list[int] = []
    now_ns = 0
    for step, num_free in [*moments, (0, 1000)]:
        now_ns += step
        for decision in waiting.decide(now_ns, num_free):
            match decision:
                case Run(batch):
                    assert batch
                    assert len(batch) == 1 or sum(item.weight for item in batch) <= max_batch
                    assert len(batch) == 1 or not any(item.alone for item in batch)
                    assert all(item.due_ns == 0 or item.due_ns >= now_ns for item in batch)
                    seen += [item.id for item in batch]
                case Drop(item):
                    assert 0 < item.due_ns < now_ns
                    seen.append(item.id)
                case WakeAt(at_ns):
                    assert at_ns > now_ns
    assert sorted(seen) == sorted(set(range(len(items))) - canceled)
    assert len(waiting) == 0


# --- in time -------------------------------------------------------------------------------------------------

MS = 1_000_000


def knowing(max_batch: int, base_ms: float, per_item_ms: float, *items: Item) -> Batcher:
    """That has learned what batches take."""
    made = batcher(max_batch, *items)
    for size in (1, 2, max_batch) * 5:
        made.took(size, (base_ms + per_item_ms * size) / 1000)
    return made


def wanted(id: int, done_ms: float) -> Item:
    return Item(id, due_ns=round(done_ms * MS) - 1, done_ns=round(done_ms * MS))


def test_a_batch_is_made_smaller_where_its_first_item_would_be_late() -> None:
    """20 + 10 b: of the first one's 45 ms two can be done, and all the others after that."""
    waiting = knowing(8, 20, 10, wanted(0, 45), *(wanted(id, 500) for id in range(1, 8)))
    (run, *_) = waiting.decide(0, 1)
    assert isinstance(run, Run)
    assert [item.id for item in run.items] == [0, 1]
    assert run.why == "a lane is free and more would be late"
    assert ids(waiting.decide(40 * MS, 1)) == [[2, 3, 4, 5, 6, 7]]


def test_where_more_wait_than_a_batch_holds_one_is_dropped_for_many() -> None:
    """Two in 40 ms, or eight in 100: while a full batch waits, a lane is worth 8 in 100 ms."""
    waiting = knowing(8, 20, 10, wanted(0, 45), *(wanted(id, 101) for id in range(1, 20)))
    drop, run, *_ = waiting.decide(0, 1)
    assert isinstance(drop, Drop)
    assert (drop.item.id, drop.why) == (0, "waiting for it would have made more of the others late")
    assert isinstance(run, Run)
    assert [item.id for item in run.items] == list(range(1, 9))


def test_what_cannot_be_in_time_any_more_runs_as_long_as_its_time_is_not_up() -> None:
    waiting = knowing(4, 20, 10, Item(1, due_ns=90 * MS, done_ns=10 * MS), Item(2, due_ns=90 * MS, done_ns=10 * MS))
    assert ids(waiting.decide(0, 1)) == [[1, 2]]


def test_what_is_to_be_done_by_no_time_fills_batches() -> None:
    assert ids(knowing(4, 500, 100, *(Item(id) for id in range(6))).decide(0, 2)) == [[0, 1, 2, 3], [4, 5]]


def test_what_batches_take_is_told_of_what_waits_and_of_what_runs() -> None:
    waiting = knowing(4, 20, 10, *(wanted(id, 500) for id in range(5)))
    known = waiting.learned
    assert (round(known.takes_ns(len(waiting)) / MS), known.unit_s) == (60, pytest.approx(0.015))
    assert ids(waiting.decide(0, 1)) == [[0, 1, 2, 3]]
    assert round(known.takes_ns(len(waiting)) / MS) == 30
    assert (known.num_running, known.running_s(10 * MS)) == (1, pytest.approx(0.05))
    assert known.running_s(100 * MS) == 0  # whatever holds it up
    assert (batcher(4).learned.takes_ns(3), batcher(4).learned.unit_s, batcher(4).learned.usual_s) == (0, None, None)


DUES = st.lists(st.tuples(st.integers(1, 400), st.integers(0, 60)), min_size=1, max_size=40)


@given(DUES, st.integers(1, 8), st.integers(0, 30), st.integers(1, 20), st.integers(1, 3))
def test_a_free_lane_waits_for_nothing_and_what_runs_is_in_time_if_it_can_be(
    dues: list[tuple[int, int]], max_batch: int, base_ms: int, per_item_ms: int, num_lanes: int
) -> None:
    waiting = knowing(max_batch, base_ms, per_item_ms)
    came = sorted(enumerate(dues), key=lambda each: each[1][1])
    running: list[tuple[int, tuple[Item, ...]]] = []
    seen: list[int] = []
    now = 0
    while came or running or len(waiting):
        moments = [at for at, _ in running] + [at * MS for _, (_, at) in came[:1]]
        now = min(moments, default=now) if not len(waiting) or len(running) == num_lanes else now
        for each in [each for each in running if each[0] <= now]:
            running.remove(each)
            waiting.ended(each[1])
        while came and came[0][1][1] * MS <= now:
            id, (lag, at) = came.pop(0)
            waiting.add(wanted(id, at + lag))
        free = num_lanes - len(running)
        for told in waiting.decide(now, free):
            if isinstance(told, Run):
                took = round((base_ms + per_item_ms * len(told.items)) * MS)
                running.append((now + took, told.items))
                seen += [item.id for item in told.items]
                first = min(item.done_ns for item in told.items)
                alone = round((base_ms + per_item_ms) * MS)
                assert now + took <= first + MS or now + alone > first - MS  # a line that is learned is off by a little
            elif isinstance(told, Drop):
                seen.append(told.item.id)
        assert not len(waiting) or len(running) == num_lanes
    assert sorted(seen) == list(range(len(dues)))


def test_what_is_wanted_sooner_comes_first_and_expires_when_it_is_due() -> None:
    waiting = batcher(1, Item(1, due_ns=5000 * MS, done_ns=5100 * MS))
    waiting.add(Item(2, due_ns=10_000 * MS, done_ns=10_100 * MS, wanted_ns=2100 * MS))
    assert ids(waiting.decide(0, 1)) == [[2]]
    waiting.add(Item(3, due_ns=10_000 * MS, done_ns=10_100 * MS, wanted_ns=2100 * MS))
    told = waiting.decide(3000 * MS, 0)  # it is late for whoever wanted it, and worth something still
    assert told == [WakeAt(5000 * MS + 1)]
    assert [each.item.id for each in waiting.decide(6000 * MS, 0) if isinstance(each, Drop)] == [1]
    assert ids(waiting.decide(6000 * MS, 1)) == [[3]]
