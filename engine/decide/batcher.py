"""The batcher: what of a pool's waiting items runs now. Pure.

Items of all stages, jobs and streams that share the pool wait in one queue, the one that is wanted earliest first and,
of equals and of those that are wanted whenever, the one that came first. A batch is formed when a lane is free and not
before: what comes while the model is busy makes the next batch larger. It takes items while their weights fit into
`max_batch`; an item that must run alone does. An item whose time is up is dropped when it is, not when its turn would
have come.

**In time.** A larger batch takes longer: s(b), as was learned of the pool (`engine.decide.curve`). One that would make
its first item late is made smaller, or its first items are dropped, whichever lets more be in time. For each i up to
MAX_SKIPPED the items from the i-th on are tried: a batch as large as the i-th one's time allows, and behind it, as
lanes come free, batches as large as their first one's time allows, with what cannot be in time left out. What is best
has the largest

    number in time - u (time that takes),    u = B / s(B) where a batch of B is waiting, else 0

and drops nothing if that is as good: u is what the lane could do meanwhile. Where nothing is to be done by any
time, and while nothing was learned, batches are as large as they can be.

A lane that is free waits for nothing. To put off a batch that is not full, as Symphony does, was tried: beside this
rule it lost more than it won (docs/control.md).

**Work that is shared.** Items may name pieces of work that others want as well: two segments that reach into the same
half minute of speech. Those that share one with the first item of a batch run with it, and nothing that shares one with
a batch that runs is begun beside it: two lanes would do the same, or one would wait for the other. A lane takes what it
can do meanwhile.
Source: Shen et al., Nexus (SOSP 2019), 6.3, and Chen et al., Symphony, arXiv 2308.07470, for dropping what would make
batches small.
"""

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Hashable, Iterator, Sequence
from itertools import takewhile

import msgspec

from engine.decide.learned import Learned


class Item(msgspec.Struct, frozen=True, eq=False, gc=False):
    """Something to compute, in the server's Unix time. `due_ns` is when it is worth nothing any more to begin it; 0:
    never. `done_ns` is by when it should be done; 0: whenever. `wanted_ns` is by when it is wanted, where that is
    earlier."""

    id: int
    due_ns: int = 0
    done_ns: int = 0
    wanted_ns: int = 0
    lag_ns: int = 0  # what its stream may lag
    weight: float = 1.0  # of a full batch's `max_batch`
    alone: bool = False  # it came with others before, and the batch failed
    shared: frozenset[Hashable] = frozenset()  # pieces of work that other items may want as well

    @property
    def turn_ns(self) -> int:
        """Whose turn comes first: by when each is to be begun, for it to be done when it is wanted."""
        if not self.due_ns:
            return NEVER
        return self.due_ns - (self.done_ns - self.wanted_ns if self.wanted_ns else 0)


class Run(msgspec.Struct, frozen=True, gc=False):
    """Run these together now."""

    items: tuple[Item, ...]
    why: str


class Drop(msgspec.Struct, frozen=True, gc=False):
    """This one is late: it is worth nothing."""

    item: Item
    why: str = "its time was up before its turn came"


class WakeAt(msgspec.Struct, frozen=True, gc=False):
    """Ask again then, though nothing has happened: an item will be late."""

    at_ns: int


Decision = Run | Drop | WakeAt
NEVER = 1 << 63
HELD_UP = "waiting for it would have made more of the others late"
MAX_SKIPPED = 32
MAX_AHEAD = 2


class Batcher:
    """The queue of one pool."""

    def __init__(self, max_batch: int) -> None:
        self._max_batch = max_batch
        self._waiting: list[tuple[int, int, Item]] = []  # in order
        self._num_added = 0
        self._cancelled: set[int] = set()
        self._running: dict[Hashable, int] = {}  # shared work, with the number of batches that do it
        self.learned = Learned(max_batch)
        self._table_ns: list[int] = []

    def __len__(self) -> int:
        return len(self._waiting) - len(self._cancelled)

    @property
    def num_patient(self) -> int:
        """Of those that wait, how many are never late; they stand last."""
        return len(self._waiting) - bisect_left(self._waiting, (NEVER,))

    @property
    def first(self) -> Item | None:
        """Whose turn comes first."""
        return next((item for _, _, item in self._waiting if item.id not in self._cancelled), None)

    def add(self, item: Item) -> None:
        self._num_added += 1
        insort(self._waiting, (item.turn_ns, self._num_added, item))

    def cancel(self, id: int) -> None:
        """An item that waits is wanted no more."""
        if any(item.id == id for _, _, item in self._waiting):
            self._cancelled.add(id)

    def ended(self, items: Sequence[Item]) -> None:
        """A batch runs no more."""
        self.learned.ended(items[0].id)
        for shared in _work_of(items):
            self._running[shared] -= 1
            if not self._running[shared]:
                del self._running[shared]

    def took(self, batch_size: int, service_s: float) -> None:
        """A batch of so many took so long; none that waited for its model to be loaded."""
        self.learned.took(batch_size, service_s)
        self._table_ns = []

    def decide(self, now_ns: int, num_free: int) -> list[Decision]:
        """What to do now that `num_free` lanes are free. What is told to run or dropped waits no longer; when a batch
        has come to its end, that is to be said (`ended`)."""
        self._forget_cancelled()
        decisions: list[Decision] = [Drop(item) for item in self._expired(now_ns)]
        waiting = self._waiting
        num_lanes = num_free + self.learned.num_running
        for _ in range(num_free):
            if not waiting:
                break
            skipped, most = self._in_time(now_ns, num_lanes)
            decisions += [Drop(item, HELD_UP) for _, _, item in waiting[:skipped]]
            del waiting[:skipped]
            batch = self._next_batch(most)
            if not batch:
                break
            self.learned.began(batch[0].id, len(batch), now_ns)
            for shared in _work_of(batch):
                self._running[shared] = self._running.get(shared, 0) + 1
            decisions.append(Run(tuple(batch), self._why(len(batch), most)))
        due_ns = min((item.due_ns for _, _, item in self._dated() if item.due_ns), default=0)
        return [*decisions, WakeAt(due_ns + 1)] if due_ns else decisions

    def _dated(self) -> Iterator[tuple[int, int, Item]]:
        """What waits and is wanted by some time; it stands first."""
        return takewhile(lambda entry: entry[0] != NEVER, self._waiting)

    def _expired(self, now_ns: int) -> list[Item]:
        """What is worth nothing any more; it waits no longer."""
        expired = [item for _, _, item in self._dated() if 0 < item.due_ns < now_ns]
        if expired:
            gone = {item.id for item in expired}
            self._waiting = [entry for entry in self._waiting if entry[2].id not in gone]
        return expired

    def _why(self, num: int, most: int) -> str:
        if num >= self._max_batch:
            return "a lane is free and the batch is full"
        return "a lane is free and more would be late" if num >= most else "a lane is free"

    def _forget_cancelled(self) -> None:
        if self._cancelled:
            self._waiting = [entry for entry in self._waiting if entry[2].id not in self._cancelled]
            self._cancelled.clear()

    # --- how many ------------------------------------------------------------------------------------------------

    def _in_time(self, now_ns: int, num_lanes: int) -> tuple[int, int]:
        """How many of the first ones to drop, and how large a batch of the next ones may be."""
        most = self._max_batch
        first = self._waiting[0][2]
        if not (self.learned.curve.is_known and first.done_ns):
            return 0, most
        table = self._safe_ns()
        if now_ns + table[-1] <= first.done_ns:
            return 0, most
        ahead = [item.done_ns or NEVER for _, _, item in self._waiting[: MAX_AHEAD * most]]
        worth_ns = most / max(1, table[-1]) if len(ahead) > most else 0.0
        best, skipped, size = -math.inf, 0, most
        for number in range(min(len(ahead), MAX_SKIPPED + 1)):
            fits = bisect_right(table, ahead[number] - now_ns, 0, min(most, len(ahead) - number))
            if not fits:
                continue
            num_in_time, took_ns = _outcome(table, ahead, number, fits, now_ns, num_lanes)
            value = num_in_time - worth_ns * took_ns
            if value > best + 1e-9:
                best, skipped, size = value, number, fits
            if fits == most:
                break
        return skipped, size

    def _safe_ns(self) -> list[int]:
        """What a batch of 1, 2, .. `max_batch` hardly takes more than."""
        if not self._table_ns:
            sizes = range(1, self._max_batch + 1)
            self._table_ns = [round(self.learned.curve.safe_s(size) * 1e9) for size in sizes]
        return self._table_ns

    # --- which ---------------------------------------------------------------------------------------------------

    def _next_batch(self, most: int) -> list[Item]:
        """The first of those that wait and may be begun, and what may run with it; they wait no longer."""
        batch: list[Item] = []
        weight = 0.0
        taken: list[int] = []
        for place, (_, _, item) in enumerate(self._waiting):
            if item.shared and (
                not self._running.keys().isdisjoint(item.shared) or (batch and batch[0].shared.isdisjoint(item.shared))
            ):
                continue
            if batch and (item.alone or weight + item.weight > most):
                break
            taken.append(place)
            batch.append(item)
            weight += item.weight
            if item.alone or weight >= most:
                break
        for place in reversed(taken):
            del self._waiting[place]
        return batch


def _outcome(
    table_ns: Sequence[int], ahead: Sequence[int], number: int, fits: int, now_ns: int, num_lanes: int
) -> tuple[int, int]:
    """How many are in time where a batch of so many from the `number`-th on is begun now, and how much time of a lane
    that takes. `table_ns`: what batches of 1, 2, .. take; `ahead`: by when each is to be done, in about that order."""
    took_ns, num_in_time, num = 0, 0, len(ahead)
    while fits:
        took_ns += table_ns[fits - 1]
        num_in_time += fits
        number += fits
        at_ns = now_ns + took_ns // num_lanes
        number = bisect_left(ahead, at_ns + table_ns[0], number)  # those before cannot be
        if number == num:
            break
        fits = bisect_right(table_ns, ahead[number] - at_ns, 0, min(len(table_ns), num - number))
    return num_in_time, took_ns


def _work_of(batch: Sequence[Item]) -> frozenset[Hashable]:
    """All that the items of a batch share with others; where the first shares nothing none does."""
    return frozenset[Hashable]().union(*(item.shared for item in batch)) if batch[0].shared else frozenset()
