"""Whose turn it is when a core is free."""

from dataclasses import dataclass

from engine.decide.batcher import Item
from engine.decide.cores import PATIENCE_S, urgency_of, urgent_ns, whose_turn

S = 10**9


@dataclass
class Claim:
    name: str
    urgent_ns: int


def test_what_is_to_be_done_the_earliest_comes_first_and_of_equals_who_asked_first() -> None:
    claims = [Claim("a", 7), Claim("b", 5), Claim("c", 5)]
    assert whose_turn(claims).name == "b"


def test_what_is_wanted_whenever_gives_way_and_not_for_good() -> None:
    durable = Claim("durable", urgent_ns(0, since_ns=100 * S))
    soon, later = (Claim("live", urgent_ns((100 + PATIENCE_S + off) * S, 0)) for off in (-1, 1))  # type: ignore[arg-type]
    assert whose_turn([durable, soon]) is soon
    assert whose_turn([later, durable]) is durable


def test_a_pool_is_as_urgent_as_the_first_of_its_items() -> None:
    assert urgency_of(Item(1, due_ns=7, done_ns=9), 100) == 9
    assert urgency_of(Item(1, due_ns=7), 100) == 7
    assert urgency_of(Item(1), 100) == urgency_of(None, 100) == 100 + PATIENCE_S * S
