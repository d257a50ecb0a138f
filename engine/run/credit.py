"""The credit desk: whoever would take messages asks here how many, and waits until it is any. What is lent is worked
out by `engine.decide.admission`.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import anyio

from engine.decide.admission import Credit, Demand, credits
from engine.decide.signals import PoolSignals
from engine.run.frames import FrameStore

HOLDS_S = 0.01  # how long the credits of all groups hold: there may be hundreds of groups


class CreditDesk:
    """One for each worker."""

    def __init__(
        self,
        demands: Callable[[], Sequence[Demand]],
        pools: Callable[[], Mapping[str, PoolSignals]],
        frames: FrameStore,
    ) -> None:
        self._demands = demands
        self._pools = pools
        self._frames = frames
        self._credits: dict[str, Credit] = {}
        self._worked_out_s = 0.0
        self._changed = anyio.Event()
        self._num_waiting = 0
        self._has_changed = True  # since they were worked out

    def note_change(self) -> None:
        """A message was taken or finished, or a lane became free."""
        self._has_changed = True
        if self._num_waiting:
            self._changed.set()
            self._changed = anyio.Event()

    async def of(self, group: str) -> int:
        """How many messages a group may take now, once it is any."""
        while True:
            changed = self._changed
            if time.monotonic() - self._worked_out_s > HOLDS_S:
                self._work_out()
            credit = self._credits.get(group)
            if self._has_changed and (credit is None or credit.num == 0):
                self._work_out()
                credit = self._credits.get(group)
            if credit is not None and credit.num > 0:
                return credit.num
            self._num_waiting += 1
            try:
                await changed.wait()
            finally:
                self._num_waiting -= 1

    def _work_out(self) -> None:
        self._has_changed = False
        self._worked_out_s = time.monotonic()
        self._credits = credits(self._demands(), self._pools(), is_over_budget=self._frames.is_over_budget)
