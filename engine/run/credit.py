"""The credit desk: whoever would take messages asks here how many, and waits until it is any. What is lent is worked
out by `engine.decide.admission`.
"""

from collections.abc import Callable, Sequence

import anyio

from engine.decide.admission import HELD_BACK, Credit, Wants, credit
from engine.run.pool import Pool

Line = tuple[bool, tuple[str, ...]]  # whether live, and the names of its pools: groups of one line wait for the same


class CreditDesk:
    """One for each worker, while `run` does. `is_held_back` says whether nothing more may be taken at all."""

    def __init__(self, is_held_back: Callable[[], bool]) -> None:
        self._is_held_back = is_held_back
        self._wants = Wants()
        self._full: dict[Line, tuple[Sequence[Pool], anyio.Event]] = {}  # those that wait for room in a pool
        self._busy: dict[str, anyio.Event] = {}  # groups that wait until they have finished something
        self._news = anyio.Event()

    def note_waiting(self, group: str, pools: Sequence[Pool], num_waiting: int | None) -> None:
        """The server holds so many messages for a group (None: not known)."""
        self._wants.note(group, {pool.name: pool.max_batch for pool in pools}, num_waiting)

    def forget(self, group: str) -> None:
        """It takes no more."""
        self._wants.forget(group)

    def note_finished(self, group: str) -> None:
        """It has finished a message."""
        if self._busy and (let_go := self._busy.pop(group, None)) is not None:
            let_go.set()
        self.note_change()

    def note_change(self) -> None:
        """A lane became free."""
        if self._full:
            self._news.set()

    async def run(self) -> None:
        """Until canceled: let go on those that wait for room, once there is any."""
        while True:
            await self._news.wait()
            self._news = anyio.Event()
            for line, (pools, let_go) in list(self._full.items()):
                if self._credit("", 0, pools, is_prompt=line[0]).num:
                    del self._full[line]
                    let_go.set()

    async def of(
        self, group: str, num_taken: Callable[[], int], pools: Sequence[Pool], *, is_prompt: bool = False
    ) -> int:
        """How many messages a group may take now, beside those it has taken and not finished, once it is any.
        `is_prompt`: it is of a live stream."""
        while not (lent := self._credit(group, num_taken(), pools, is_prompt=is_prompt)).num:
            if self._credit(group, 0, pools, is_prompt=is_prompt).num:
                let_go = self._busy.setdefault(group, anyio.Event())
            else:
                line = is_prompt, tuple(pool.name for pool in pools)
                _, let_go = self._full.setdefault(line, (pools, anyio.Event()))
            await let_go.wait()
        return lent.num

    def _credit(self, group: str, num_taken: int, pools: Sequence[Pool], *, is_prompt: bool) -> Credit:
        if self._is_held_back():
            return HELD_BACK
        signals = [pool.signals(with_history=False) for pool in pools]
        return credit(group, num_taken, signals, self._wants, is_prompt=is_prompt)
