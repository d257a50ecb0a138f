"""What becomes of an item that was handed in to a pool."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import anyio
import msgspec

from engine.spec.operator import Inputs
from engine.spec.spending import Call


class Late(Exception):
    """Its time had passed before its turn came: it was not computed."""


class Canceled(Exception):
    """Nobody wants it any more: it was not computed to its end."""


class Done(msgspec.Struct, frozen=True, eq=False, gc=False):
    """What became of one item: an output and its encoding, or the error; and when its batch ran (Unix time, ns)."""

    output: msgspec.Struct | None
    encoded: bytes
    error: Exception | None
    started_ns: int
    ended_ns: int
    batch_size: int
    batch: int = 0  # its number in this pool
    why: str = ""  # it ran when it ran
    items: tuple[str, ...] = ()  # the spans of all items of the batch, where anybody traces
    calls: tuple[Call, ...] = ()  # of what is outside

    @property
    def compute_s(self) -> float:
        """This item's share of the batch."""
        return (self.ended_ns - self.started_ns) / 1e9 / self.batch_size


OnDone = Callable[[Done], None]


class Submits(Protocol):
    """A pool, as far as it takes items."""

    def submit(self, inputs: Inputs, on_done: OnDone, *, due_ns: int = 0) -> object: ...


async def all_done(pool: Submits, items: Sequence[Inputs], dues_ns: Sequence[int] = ()) -> list[Done]:
    """What became of each item, in order. Never raises for a failing item."""
    found: dict[int, Done] = {}
    over = anyio.Event()

    def note(index: int, done: Done) -> None:
        found[index] = done
        if len(found) == len(items):
            over.set()

    for index, item in enumerate(items):
        pool.submit(item, partial(note, index), due_ns=dues_ns[index] if dues_ns else 0)
    if items:
        await over.wait()
    return [found[index] for index in range(len(items))]
