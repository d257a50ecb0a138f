"""The batcher: what of a pool's waiting items runs now. Pure.

Items of all stages, jobs and streams that share the pool wait in one queue, the one due earliest first and, of equals
and of those that are never late, the one that came first. A batch is formed when a lane is free and not before: what
comes while the model is busy makes the next batch larger. It takes items while their weights fit into `max_batch`; an
item that must run alone does. An item whose time is up is dropped when it is, not when its turn would have come.

Items may name pieces of work that others want as well: two segments that reach into the same half minute of speech.
Those that share one with the first item of a batch run with it, and nothing that shares one with a batch that runs is
begun beside it: two lanes would do the same, or one would wait for the other. A lane takes what it can do meanwhile.
"""

import heapq
from collections.abc import Hashable, Sequence

import msgspec


class Item(msgspec.Struct, frozen=True, eq=False, gc=False):
    """Something to compute. `due_ns` (server's Unix time) is when it is worth nothing any more; 0: never."""

    id: int
    due_ns: int = 0
    weight: float = 1.0  # of a full batch's `max_batch`
    alone: bool = False  # it came with others before, and the batch failed
    shared: frozenset[Hashable] = frozenset()  # pieces of work that other items may want as well


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


class Batcher:
    """The queue of one pool."""

    def __init__(self, max_batch: int) -> None:
        self._max_batch = max_batch
        self._waiting: list[tuple[int, int, Item]] = []
        self._num_added = 0
        self._cancelled: set[int] = set()
        self._running: dict[Hashable, int] = {}  # shared work, with the number of batches that do it

    def __len__(self) -> int:
        return len(self._waiting) - len(self._cancelled)

    def add(self, item: Item) -> None:
        self._num_added += 1
        heapq.heappush(self._waiting, (item.due_ns or NEVER, self._num_added, item))

    def cancel(self, id: int) -> None:
        """An item that waits is wanted no more."""
        if any(item.id == id for _, _, item in self._waiting):
            self._cancelled.add(id)

    def ended(self, items: Sequence[Item]) -> None:
        """A batch runs no more."""
        for shared in _work_of(items):
            self._running[shared] -= 1
            if not self._running[shared]:
                del self._running[shared]

    def took(self, batch_size: int, service_s: float) -> None:
        """A batch of so many took so long; none that waited for its model to be loaded."""

    def decide(self, now_ns: int, num_free: int) -> list[Decision]:
        """What to do now that `num_free` lanes are free. What is told to run or dropped waits no longer; when a batch
        has come to its end, that is to be said (`ended`)."""
        decisions: list[Decision] = []
        waiting = self._waiting
        while waiting and (waiting[0][0] < now_ns or waiting[0][2].id in self._cancelled):
            _, _, item = heapq.heappop(waiting)
            if item.id in self._cancelled:
                self._cancelled.discard(item.id)
            else:
                decisions.append(Drop(item))
        for _ in range(num_free):
            batch = self._next_batch()
            if not batch:
                break
            for shared in _work_of(batch):
                self._running[shared] = self._running.get(shared, 0) + 1
            why = "a lane is free" if len(batch) < self._max_batch else "a lane is free and the batch is full"
            decisions.append(Run(tuple(batch), why))
        if waiting and waiting[0][0] != NEVER:
            decisions.append(WakeAt(waiting[0][0] + 1))
        return decisions

    def _next_batch(self) -> list[Item]:
        batch: list[Item] = []
        weight = 0.0
        waiting = self._waiting
        passed_over: list[tuple[int, int, Item]] = []
        while waiting:
            item = waiting[0][2]
            if item.id in self._cancelled:
                heapq.heappop(waiting)
                self._cancelled.discard(item.id)
                continue
            if item.shared and (
                not self._running.keys().isdisjoint(item.shared) or (batch and batch[0].shared.isdisjoint(item.shared))
            ):
                passed_over.append(heapq.heappop(waiting))
                continue
            if batch and (item.alone or weight + item.weight > self._max_batch):
                break
            heapq.heappop(waiting)
            batch.append(item)
            weight += item.weight
            if item.alone or weight >= self._max_batch:
                break
        for entry in passed_over:
            heapq.heappush(waiting, entry)
        return batch


def _work_of(batch: Sequence[Item]) -> frozenset[Hashable]:
    """All that the items of a batch share with others; where the first shares nothing none does."""
    return frozenset[Hashable]().union(*(item.shared for item in batch)) if batch[0].shared else frozenset()
