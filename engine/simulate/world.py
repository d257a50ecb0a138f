"""A world whose time is virtual: what is to happen, in order, and chance that a seed decides.

Only what surrounds the rules is made up here; the rules are the engine's own. The same seed gives the same history, to
the last bit.
"""

import heapq
from collections.abc import Callable
from random import Random

from engine.simulate.clock import VirtualClock

NS = 1_000_000_000


class World:
    """Made for one run."""

    def __init__(self, seed: int = 0) -> None:
        self.clock = VirtualClock(NS)
        self.seed = seed
        self._coming: list[tuple[int, int, Callable[[], None]]] = []
        self._num = 0

    @property
    def now_ns(self) -> int:
        return self.clock.now_ns

    def chance(self, name: str) -> Random:
        """Chance of its own for each purpose: what one draws more or less is nothing to the others."""
        return Random(f"{self.seed}/{name}")

    def at(self, at_ns: int, happens: Callable[[], None]) -> None:
        """Have something happen; what is to happen at one moment does in the order in which it was asked for."""
        self._num += 1
        heapq.heappush(self._coming, (max(at_ns, self.clock.now_ns), self._num, happens))

    def after(self, seconds: float, happens: Callable[[], None]) -> None:
        self.at(self.clock.now_ns + round(seconds * NS), happens)

    def run(self, until_ns: int | None = None) -> None:
        """Until nothing is to happen any more, or until then."""
        while self._coming and (until_ns is None or self._coming[0][0] <= until_ns):
            at_ns, _, happens = heapq.heappop(self._coming)
            self.clock.now_ns = at_ns
            happens()
        if until_ns is not None:
            self.clock.now_ns = max(self.clock.now_ns, until_ns)
