"""An engine that batches by itself, in a world where nothing is computed: items that run side by side share it.

With n of them, each goes on at 1 / mean(n) of itself a second,

    mean(n) = base_s + per_item_s + per_in_flight_s * n + per_in_flight2_s * n^2

`max_running` run at most; the others wait in there, first come, first served. What would be more than `refuses_over` is
refused. `Slow` holds for all of them.
"""

from collections import deque
from collections.abc import Callable, Sequence

from engine.simulate.services import Service, Slow
from engine.simulate.world import NS, World


class _Runs:
    def __init__(self, left: float, on_end: Callable[[], None]) -> None:
        self.left = left  # of itself, 1 at first where it is as long as the mean
        self.on_end = on_end


class Sharing:
    """Of one pool."""

    def __init__(self, world: World, service: Service, slow: Sequence[Slow]) -> None:
        self._world = world
        self._service = service
        self._slow = slow
        self._running: list[_Runs] = []
        self._waiting: deque[_Runs] = deque()
        self._as_of_ns = world.now_ns
        self._number = 0  # of the last plan: older ones do not hold
        self._last_pace = 0.0
        for each in slow:
            for at_s in (each.from_s, each.to_s):
                world.at(NS + round(at_s * NS), self._go_on)

    def begin(self, left: float, on_end: Callable[[], None]) -> bool:
        """`left`: how long it is, as a share of the mean. False where it is refused."""
        self._go_on()
        most = self._service.refuses_over
        if most and len(self._running) + len(self._waiting) >= most:
            return False
        self._waiting.append(_Runs(left, on_end))
        self._admit()
        return True

    def _pace(self) -> float:
        """What each does of itself in a second."""
        at_s = self._world.now_ns / NS - 1
        times = 1.0
        for each in self._slow:
            if each.from_s <= at_s < each.to_s:
                if each.stalls:
                    return 0.0
                times *= each.times
        return 1 / (self._service.mean_s(1, len(self._running)) * times)

    def _go_on(self) -> None:
        """Up to now; those that are over end."""
        now_ns = self._world.now_ns
        done = (now_ns - self._as_of_ns) / NS * self._last_pace if self._running else 0.0
        self._as_of_ns = now_ns
        for each in self._running:
            each.left -= done
        over = [each for each in self._running if each.left <= 1e-9]
        self._running = [each for each in self._running if each.left > 1e-9]
        self._admit()
        for each in over:
            each.on_end()

    def _admit(self) -> None:
        most = self._service.max_running or len(self._waiting) + len(self._running)
        while self._waiting and len(self._running) < most:
            self._running.append(self._waiting.popleft())
        self._plan()

    def _plan(self) -> None:
        """Come back when the next one is over."""
        self._last_pace = self._pace() if self._running else 0.0
        self._number += 1
        if not self._last_pace:
            return
        number, soonest = self._number, min(each.left for each in self._running)

        def rings() -> None:
            if number == self._number:
                self._go_on()

        self._world.after(max(1e-9, soonest / self._last_pace), rings)
