"""Awaited: when to look what an output lacks that is long in coming, and when to have it computed once more. Pure.

Looks are further and further apart. An output gets another round of computing when the consumers of the groups that
would compute it have nothing left; a group without a consumer counts as one after some looks, for a worker may be on
its way. Rounds that bring nothing new are given up after MAX_ROUNDS.
"""

from collections.abc import Sequence

from streams.subjects import Key

FIRST_PAUSE_S, MAX_PAUSE_S = 2.0, 16.0  # between two looks
MAX_ROUNDS = 3  # that bring nothing new
NOT_SERVED = 3  # looks after which a group without a consumer counts as one that has nothing left to do


class Awaited:
    """An output that is long in coming."""

    def __init__(self, key: Key) -> None:
        self.key = key
        self._due_s = 0.0
        self._pause_s = FIRST_PAUSE_S
        self._num_looks = 0
        self._fewest: int | None = None  # outputs that it lacked
        self._num_rounds = 0  # since then

    def is_due(self, now_s: float) -> bool:
        """Whether it is time to look; then the next look is put off."""
        if now_s < self._due_s:
            return False
        self._due_s = now_s + self._pause_s
        self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S)
        return True

    def is_under_way(self, are_idle: Sequence[bool | None]) -> bool:
        """Whether it may still come by itself, at one more look at the groups that would compute it: whether each has
        nothing left to do; None where nobody serves it."""
        self._num_looks += 1
        return False in are_idle or (None in are_idle and self._num_looks < NOT_SERVED)

    def is_worth_another_round(self, num_lacking: int, *, is_served: bool) -> bool:
        """A round that brings nothing counts where there were workers for it."""
        if self._fewest is None or num_lacking < self._fewest:
            self._fewest, self._num_rounds = num_lacking, 0
        self._num_rounds += is_served
        return self._num_rounds <= MAX_ROUNDS
