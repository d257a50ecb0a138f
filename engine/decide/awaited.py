"""Awaited: when to look what an output lacks that is long in coming, and when to have it computed once more. Pure.

Looks are further and further apart. At the first it is noted what is stored by then. Once everything up to there has
been acknowledged by whoever computes what is lacking, and no more of it is there than before, it will not come by
itself: an output gets another round of computing. So a stream that goes on, and always has something under way, hides
nothing. A group without a consumer counts as one that is done after some looks, for a worker may be on its way. Rounds
that bring nothing new are given up after MAX_ROUNDS.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from streams.subjects import Key

FIRST_PAUSE_S, MAX_PAUSE_S = 2.0, 16.0  # between two looks
MAX_ROUNDS = 3  # that bring nothing new
ABSENT_S, MAX_ABSENT_S = 30.0, 600.0  # the same, where its media are not there: nearly always they are still to come
NOT_SERVED = 3  # looks after which a group without a consumer counts as one that has nothing left to do

Verdict = Literal["wait", "again", "give up"]


class Awaited:
    """An output that is long in coming."""

    def __init__(self, key: Key) -> None:
        self.key = key
        self._is_there = True
        self._due_s = 0.0
        self._pause_s = FIRST_PAUSE_S
        self._num_looks = 0
        self.looked_s: float | None = None  # when last, since it was noted what is stored: floors since then are news
        self._marks: Mapping[str, int] = {}  # what was stored when it lacked `_lacked`
        self._lacked = 0
        self._fewest: int | None = None  # outputs that it lacked at any round
        self._num_rounds = 0  # since then

    def is_due(self, now_s: float, is_there: bool = True) -> bool:
        """Whether it is time to look; then the next look is put off. `is_there` says whether its media are stored."""
        if is_there != self._is_there:
            self._is_there = is_there
            self._pause_s = FIRST_PAUSE_S if is_there else ABSENT_S
            self._due_s = now_s if is_there else now_s + ABSENT_S
        if now_s < self._due_s:
            return False
        self._due_s = now_s + self._pause_s
        self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S if is_there else MAX_ABSENT_S)
        return True

    def judged(
        self, now_s: float, num_lacking: int, lasts: Mapping[str, int], floors: Sequence[Mapping[str, float] | None]
    ) -> Verdict:
        """What to do at one more look.

        `floors` of each group that would compute what is lacking: by JetStream stream, the sequence up to which it has
        acknowledged all that is for it, infinite where nothing is left; None where nobody serves it. They were read
        since `looked_s` and before `num_lacking` was counted, and `lasts`, the last sequence of each stream, after.
        """
        self._num_looks += 1
        is_first, self.looked_s = self.looked_s is None, now_s
        if is_first or num_lacking < self._lacked:
            self._marks, self._lacked = lasts, num_lacking
            return "wait"
        if None in floors and self._num_looks < NOT_SERVED:
            return "wait"
        served = [floor for floor in floors if floor is not None]
        if any(seq < self._marks.get(name, 0) for floor in served for name, seq in floor.items()):
            return "wait"
        if self._fewest is None or num_lacking < self._fewest:
            self._fewest, self._num_rounds = num_lacking, 0
        self._num_rounds += len(served) == len(floors)  # a round that brings nothing counts where it was served
        if self._num_rounds > MAX_ROUNDS:
            return "give up"
        self.looked_s, self._pause_s = None, FIRST_PAUSE_S
        return "again"
