"""The cores of a worker: who computes on the processor has one, as `engine.decide.cores` says."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

import anyio

from engine.decide.cores import whose_turn


class Claim(Protocol):
    """What wants a core, and says how urgently each time one is free."""

    @property
    def urgent_ns(self) -> int: ...
    @property
    def takes_ns(self) -> int: ...
    @property
    def is_full(self) -> bool: ...

    def granted(self) -> bool:
        """A core is its own, until `give`: whether it has a use for it."""


class Cores:
    """One for each worker. A claim has one core at a time for each time it wanted one."""

    def __init__(self, num: int, now_ns: Callable[[], int] = time.time_ns) -> None:
        self.num = num
        self.now_ns = now_ns  # the server's time
        self.num_lanes = 0  # of pools: batches that run or wait for one; kept by these
        self._num_free = num
        self._wanting: list[Claim] = []
        self._is_offering = False

    @property
    def num_wanting(self) -> int:
        return len(self._wanting)

    def want(self, claim: Claim) -> None:
        """Have it granted one, now or later; who wants one already does not want another."""
        if claim not in self._wanting:
            self._wanting.append(claim)
            self._offer()

    def withdraw(self, claim: Claim) -> None:
        if claim in self._wanting:
            self._wanting.remove(claim)

    def give(self) -> None:
        """One is free again."""
        self._num_free += 1
        self._offer()

    @asynccontextmanager
    async def turn(self, urgent_ns: int) -> AsyncIterator[None]:
        """A core, for as long as it lasts."""
        claim = _Turn(urgent_ns)
        self.want(claim)
        try:
            await claim.is_granted.wait()
        except BaseException:
            if claim.is_granted.is_set():
                self.give()
            self.withdraw(claim)
            raise
        try:
            yield
        finally:
            self.give()

    def _offer(self) -> None:
        if self._is_offering:  # what is granted one may want another, or drop what others wait for
            return
        self._is_offering = True
        try:
            while self._num_free and self._wanting:
                claim = whose_turn(self._wanting, self.now_ns())
                self._wanting.remove(claim)
                self._num_free -= 1
                has_use = False
                try:
                    has_use = claim.granted()
                finally:  # one that raises has none, and keeps none from the others
                    self._num_free += not has_use
        finally:
            self._is_offering = False


class _Turn:
    """Of something that is done once, alone."""

    takes_ns = 0
    is_full = True

    def __init__(self, urgent_ns: int) -> None:
        self.urgent_ns = urgent_ns
        self.is_granted = anyio.Event()

    def granted(self) -> bool:
        self.is_granted.set()
        return True
