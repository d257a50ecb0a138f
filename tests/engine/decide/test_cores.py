"""Whose turn it is when a core is free."""

from dataclasses import dataclass

from engine.decide.batcher import Item
from engine.decide.cores import PATIENCE_S, urgency_of, urgent_ns, whose_turn

S = 10**9


@dataclass
class Claim:
    name: str
    urgent_ns: int
    takes_ns: int = 0
    is_full: bool = True


def test_what_is_to_be_done_the_earliest_comes_first_and_of_equals_who_asked_first() -> None:
    claims = [Claim("a", 7), Claim("b", 5), Claim("c", 5)]
    assert whose_turn(claims, 0).name == "b"


def test_what_is_wanted_whenever_gives_way_and_not_for_good() -> None:
    durable = Claim("durable", urgent_ns(0, since_ns=100 * S))
    soon, later = (Claim("live", urgent_ns((100 + PATIENCE_S + off) * S, 0)) for off in (-1, 1))  # type: ignore[arg-type]
    assert whose_turn([durable, soon], 0) is soon
    assert whose_turn([later, durable], 0) is durable


def test_a_batch_that_may_grow_is_left_to_while_its_first_item_can_wait_for_the_longest_of_the_others() -> None:
    growing = Claim("growing", 100, takes_ns=10, is_full=False)
    full = Claim("full", 200, takes_ns=40)
    brief = Claim("brief", 300, takes_ns=1)
    assert whose_turn([growing, full, brief], now_ns=50) is full  # 50 + 10 + 40 is in time
    assert whose_turn([growing, full, brief], now_ns=51) is growing
    assert whose_turn([growing], now_ns=0) is growing  # a free core waits for nothing


def test_of_batches_that_may_grow_the_earliest_is_taken() -> None:
    one, other = (Claim(name, at, takes_ns=10, is_full=False) for name, at in (("one", 900), ("other", 800)))
    assert whose_turn([one, other], now_ns=0) is other


def test_a_pool_is_as_urgent_as_the_first_of_its_items() -> None:
    assert urgency_of(Item(1, due_ns=7, done_ns=9), 100) == 9
    assert urgency_of(Item(1, due_ns=7), 100) == 7
    assert urgency_of(Item(1), 100) == urgency_of(None, 100) == 100 + PATIENCE_S * S
