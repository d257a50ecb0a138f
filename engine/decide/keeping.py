"""What a frame store keeps within its budget of memory. Pure.

What is being looked at is pinned and stays. Of the rest the least recently used goes first, until what is left fits;
and what no group will look at again goes at once. Where the pinned alone fill the budget, a decode waits, unless all
that is asked for is there already.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar

from engine.spec.operator import Demand

Place = TypeVar("Place")


def evicted(unpinned: Iterable[tuple[Place, int]], num_bytes: int, max_bytes: int) -> list[Place]:
    """Which of these (place, bytes), the least recently used first, go so that `num_bytes` come down to `max_bytes`."""
    gone: list[Place] = []
    if num_bytes <= max_bytes:
        return gone
    for place, size_bytes in unpinned:
        gone.append(place)
        num_bytes -= size_bytes
        if num_bytes <= max_bytes:
            break
    return gone


def is_over(kind: type[Demand], demands: Mapping[str, Sequence[Demand]], done_by: Collection[str]) -> bool:
    """Whether every group (`demands` by group) that asks for this kind is done with the segment."""
    return all(group in done_by for group, asked in demands.items() if any(type(demand) is kind for demand in asked))


def has_to_wait(pinned_bytes: int, max_bytes: int, *, is_there: bool) -> bool:
    """Whether a decode waits until something is let go."""
    return pinned_bytes >= max_bytes and not is_there
