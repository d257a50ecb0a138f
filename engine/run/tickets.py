"""What a pool keeps of an item that was handed in, and of a batch that runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import anyio
import msgspec

from engine.decide.batcher import Item
from engine.run.done import OnDone
from engine.spec.operator import Emit, Inputs

if TYPE_CHECKING:
    from engine.run.pool import Pool


class Ticket(msgspec.Struct, eq=False, gc=False):
    """An item that was handed in."""

    pool: Pool
    id: int
    inputs: Inputs
    on_done: OnDone
    emit: Emit
    since_ns: int  # Unix time
    span: str
    on_begun: Callable[[], None]
    lane: Lane | None = None  # once it runs
    is_wanted: bool = True
    is_settled: bool = False

    def cancel(self) -> None:
        """It is wanted no more: one that waits will not run, a batch of which nobody wants anything is ended."""
        self.pool.cancel(self)


class Lane:
    """A batch that runs."""

    def __init__(self, tickets: Sequence[Ticket], items: Sequence[Item], number: int, why: str) -> None:
        self.tickets = tickets
        self.items = items
        self.number = number  # in its pool
        self.why = why
        self.scope = anyio.CancelScope()


def no_word(text: str, *, anew: bool = False) -> None:
    """For partial output that nobody listens to."""


def nothing() -> None:
    """For whoever need not be told."""
