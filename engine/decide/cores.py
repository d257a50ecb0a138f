"""Cores: whose turn it is when one is free. Pure.

Pools of a worker share its cores, and so does decoding. A free core goes to whoever wants it for what is to be done the
earliest; a pool forms its batch only then, so that nothing is decided for a core that is yet to come. What is wanted
whenever counts as to be done PATIENCE_S after it came: it gives way to what is urgent, and not for good.

So segments that came earlier are brought to their end before others are begun: a cheap stage behind a dear one does not
wait its turn among all, while what was computed for its segments spoils.

But a batch that could grow is left to grow while others want the core and its first item can wait for the longest of
them: only what is *ripe* goes by its time, and what is not comes after. A batch is ripe that is full, or whose first
item would be late behind that one. Nobody waits for a core that is free.
Source: Jackson, Scheduling a production line to minimize maximum tardiness (1955), for the earliest due first; Chen et
al., Symphony, arXiv 2308.07470, for putting off what could be larger.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from engine.decide.batcher import Item

PATIENCE_S = 10.0


class Wants(Protocol):
    """Somebody who wants a core."""

    @property
    def urgent_ns(self) -> int:
        """By when what it wants it for is to be done (server's Unix time)."""

    @property
    def takes_ns(self) -> int:
        """How long it would have the core, as far as is known."""

    @property
    def is_full(self) -> bool:
        """Whether waiting would make nothing larger."""


W = TypeVar("W", bound=Wants)


def urgent_ns(done_ns: int, since_ns: int) -> int:
    """By when something is to be done that came then; `done_ns` 0: whenever."""
    return done_ns or since_ns + round(PATIENCE_S * 1e9)


def urgency_of(first: Item | None, since_ns: int) -> int:
    """Of a pool, by the first item of its queue; `since_ns`: when the oldest one came."""
    return urgent_ns(first.wanted_ns or first.done_ns or first.due_ns if first is not None else 0, since_ns)


def whose_turn(wanting: Sequence[W], now_ns: int) -> W:
    """Of equals the one that asked first."""
    if len(wanting) == 1:
        return wanting[0]
    takes_ns = [each.takes_ns for each in wanting]

    def order(place: int) -> tuple[bool, int]:
        each, others_ns = wanting[place], max(takes_ns[:place] + takes_ns[place + 1 :])
        can_wait = not each.is_full and now_ns + takes_ns[place] + others_ns <= each.urgent_ns
        return can_wait, each.urgent_ns

    return wanting[min(range(len(wanting)), key=order)]
