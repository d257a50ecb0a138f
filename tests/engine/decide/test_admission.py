"""How many messages each group may take now."""

from hypothesis import given
from hypothesis import strategies as st

from engine.decide.admission import Demand, credits, room
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


def test_a_batched_stage_is_fed_beside_one_that_takes_items_one_by_one() -> None:
    pools = {"large": pool("large", max_batch=28), "small": pool("small", waiting=1, running=1, service_s=0.01)}
    assert credits([Demand(group="g", pools=("large", "small"))], pools)["g"].num == 56


def test_nothing_is_taken_while_a_stage_has_seconds_of_work_waiting() -> None:
    pools = {"large": pool("large", max_batch=28), "slow": pool("slow", waiting=2, running=1, service_s=2.0)}
    credit = credits([Demand(group="g", pools=("large", "slow"))], pools)["g"]
    assert credit.num == 0
    assert credit.why == "slow has 4.0 s of work waiting"


def test_groups_share_a_pool_by_what_waits_for_them_and_the_idle_are_lent_one() -> None:
    pools = {"p": pool("p", max_batch=16)}
    busy = Demand(group="busy", pools=("p",), num_waiting=500)
    idle = [Demand(group=f"idle{number}", pools=("p",), num_waiting=0) for number in range(4)]
    found = credits([busy, *idle], pools)
    assert found["busy"].num >= 28
    assert {found[demand.group].num for demand in idle} == {1}


def test_nothing_more_is_taken_while_frames_are_over_their_budget_and_something_will_give_them_back() -> None:
    pools = {"p": pool("p")}
    waiting = Demand(group="g", pools=("p",), num_taken=1)
    assert credits([waiting], pools, is_over_budget=True)["g"].num == 0
    assert credits([Demand(group="g", pools=("p",))], pools, is_over_budget=True)["g"].num > 0


@given(
    st.lists(st.tuples(st.integers(1, 32), st.integers(1, 4), st.integers(0, 50), st.integers(0, 50)), min_size=1),
    st.lists(st.tuples(st.sets(st.integers(0, 9), min_size=1), st.none() | st.integers(0, 1000)), max_size=12),
)
def test_what_is_lent_of_a_pool_is_its_room_and_at_most_one_for_each_group_more(
    shapes: list[tuple[int, int, int, int]], groups: list[tuple[set[int], int | None]]
) -> None:
    pools = {str(n): pool(str(n), *shape) for n, shape in enumerate(shapes)}
    demands = [
        Demand(group=f"g{n}", pools=tuple({str(at % len(pools)) for at in used}), num_waiting=waiting)
        for n, (used, waiting) in enumerate(groups)
    ]
    found = credits(demands, pools)
    assert set(found) == {demand.group for demand in demands}
    most = max((room(each) for each in pools.values()), default=0)
    for demand in demands:
        credit = found[demand.group]
        assert credit.why
        assert 0 <= credit.num <= max(0, *(room(pools[name]) for name in demand.pools))
    total = sum(credit.num for credit in found.values())
    assert total <= max(0, most) * len(pools) + len(demands)
