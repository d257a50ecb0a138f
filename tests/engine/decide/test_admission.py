"""How many messages each group may take now."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from engine.decide.admission import Wants, credit, is_held_back, room
from engine.decide.signals import PoolSignals


def pool(
    name: str, max_batch: int = 1, lanes: int = 1, waiting: int = 0, running: int = 0, service_s: float | None = None
) -> PoolSignals:
    return PoolSignals(
        pool=name,
        runs_in="thread",
        device="cpu",
        max_batch=max_batch,
        num_waiting=waiting,
        num_in_service=running,
        num_in_flight=min(lanes, running),
        max_in_flight=lanes,
        num_instances=1,
        service_s=service_s,
    )


def test_a_pool_has_room_for_what_it_can_run_and_one_batch_more() -> None:
    assert room(pool("a", max_batch=8, lanes=2)) == 24
    assert room(pool("a", max_batch=8, lanes=2, waiting=3, running=16)) == 5
    assert room(pool("a", lanes=2, waiting=9)) == -6
    assert room(msgspec.structs.replace(pool("a", max_batch=8), num_ahead=5)) == 11


def wanting(**groups: tuple[dict[str, int], int | None]) -> Wants:
    """What groups want: their pools with the largest batches, and what waits for them."""
    wants = Wants()
    for name, (pools, num_waiting) in groups.items():
        wants.note(name, pools, num_waiting)
    return wants


def test_a_batched_stage_is_fed_beside_one_that_takes_items_one_by_one() -> None:
    pools = [pool("large", max_batch=28), pool("small", waiting=1, running=1, service_s=0.01)]
    assert credit("g", 0, pools, wanting(g=({"large": 28, "small": 1}, None))).num == 56


def test_nothing_is_taken_while_a_stage_has_seconds_of_work_waiting() -> None:
    pools = [pool("large", max_batch=28), pool("slow", waiting=2, running=1, service_s=2.0)]
    lent = credit("g", 0, pools, Wants())
    assert lent.num == 0
    assert lent.why == "slow has 4.0 s of work waiting"
    decoding = msgspec.structs.replace(pools[1], num_waiting=0, num_ahead=2)
    assert credit("g", 0, [pools[0], decoding], Wants()).num == 0, "what is being decoded will wait there too"


def test_what_is_wanted_whenever_takes_no_room_from_what_is_due() -> None:
    full = msgspec.structs.replace(pool("p", max_batch=4, waiting=40, service_s=1.0), num_patient=39)
    assert credit("recording", 0, [full], Wants()).num == 0
    assert credit("camera", 0, [full], Wants(), is_prompt=True).num == 1
    busy = msgspec.structs.replace(full, num_patient=0)
    assert credit("camera", 0, [busy], Wants(), is_prompt=True).num == 0


def test_groups_share_a_pool_by_what_waits_for_them_and_the_idle_are_lent_one() -> None:
    shared = {"p": 16}
    idle = {f"idle{number}": (shared, 0) for number in range(4)}
    wants = wanting(busy=(shared, 500), **idle)
    here = [pool("p", max_batch=16)]
    assert credit("busy", 0, here, wants).num >= 28
    assert {credit(name, 0, here, wants).num for name in idle} == {1}
    for name in idle:
        wants.forget(name)
    assert credit("busy", 0, here, wants).num == 32


def test_a_group_with_much_waiting_leaves_one_with_little_its_part() -> None:
    wants = wanting(much=({"p": 16}, 10**6), little=({"p": 16}, 16))
    assert credit("little", 0, [pool("p", max_batch=16)], wants).num == 10


def test_a_group_holds_no_more_than_its_hungriest_pool_could_use() -> None:
    """What it has taken is on its way there, or has gone on to a slower stage: more would only lie about."""
    pools = [pool("large", max_batch=28), pool("slow", waiting=40, running=1, service_s=0.01)]
    wants = wanting(g=({"large": 28, "slow": 1}, None))
    assert credit("g", 41, pools, wants).num == 15
    assert credit("g", 56, pools, wants).num == 0
    assert credit("other", 0, pools, wants).num > 0


def test_nothing_is_taken_while_frames_are_over_their_budget_and_something_will_give_them_back() -> None:
    assert is_held_back(11, 10, has_taken=True)
    assert not is_held_back(11, 10, has_taken=False), "nobody else would give them back"
    assert not is_held_back(10, 10, has_taken=True)


def test_of_no_room_nothing_is_lent() -> None:
    lent = credit("g", 0, [pool("p", waiting=2)], wanting(g=({"p": 1}, 5)))
    assert lent.num == 0
    assert lent.why == "p has no room"


@given(
    st.lists(st.tuples(st.integers(1, 32), st.integers(1, 4), st.integers(0, 50), st.integers(0, 50)), min_size=1),
    st.lists(st.tuples(st.sets(st.integers(0, 9), min_size=1), st.none() | st.integers(0, 1000)), max_size=12),
    st.sets(st.integers(0, 11)),
)
def test_what_is_lent_of_a_pool_is_its_room_and_at_most_one_for_each_group_more(
    shapes: list[tuple[int, int, int, int]], groups: list[tuple[set[int], int | None]], leaving: set[int]
) -> None:
    pools = [pool(str(n), *shape) for n, shape in enumerate(shapes)]
    wants = Wants()
    used = {f"g{n}": sorted({at % len(pools) for at in some}) for n, (some, _) in enumerate(groups)}
    for n, (_, num_waiting) in enumerate(groups):
        name = f"g{n}"
        wants.note(name, {pools[at].pool: pools[at].max_batch for at in used[name]}, 3)
        wants.note(name, {pools[at].pool: pools[at].max_batch for at in used[name]}, num_waiting)
    for n in leaving:
        wants.forget(f"g{n}")
        used.pop(f"g{n}", None)
    found = {name: credit(name, 0, [pools[at] for at in some], wants) for name, some in used.items()}
    for name, lent in found.items():
        assert lent.why
        assert 0 <= lent.num <= max(0, *(room(pools[at]) for at in used[name]), 0)
    most = max(room(each) for each in pools)
    assert sum(lent.num for lent in found.values()) <= max(0, most) * len(pools) + len(found)
    for name in used:
        wants.forget(name)
    assert not wants._wants
    assert not wants._sums
