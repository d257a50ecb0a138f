"""What computing an output takes beside time: what was asked of a language model or of a tool, noted by the operator as
it happens. It is kept with the result and stands as a step in its span; it is never part of what makes two results the
same."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import msgspec

from streams.records import Spent


class Call(msgspec.Struct, frozen=True):
    """Something that was asked of what is outside, in Unix time. Tokens are as whoever counted them says; the price is
    in the currency of the machine's owner."""

    operation: Literal["chat", "execute_tool"]
    of: str  # the model's or the tool's name
    began_ns: int
    ended_ns: int
    input_tokens: int = 0
    output_tokens: int = 0
    price: float = 0.0
    error: str = ""


_calls: ContextVar[list[Call] | None] = ContextVar("penstock_calls", default=None)


def note(call: Call) -> None:
    """Nothing, where nobody keeps it."""
    if (kept := _calls.get()) is not None:
        kept.append(call)


@contextmanager
def noting() -> Iterator[list[Call]]:
    """What is noted meanwhile, in this task and in those it starts."""
    calls: list[Call] = []
    token = _calls.set(calls)
    try:
        yield calls
    finally:
        _calls.reset(token)


def spent(calls: Sequence[Call]) -> Spent | None:
    """All of them together; None where there were none."""
    each = ((call.input_tokens, call.output_tokens, call.price) for call in calls)
    return all_of([Spent(calls=1, input_tokens=read, output_tokens=said, price=price) for read, said, price in each])


def all_of(spent: Sequence[Spent]) -> Spent | None:
    """Together; None where nothing was spent."""
    if not spent:
        return None
    return Spent(
        calls=sum(each.calls for each in spent),
        input_tokens=sum(each.input_tokens for each in spent),
        output_tokens=sum(each.output_tokens for each in spent),
        price=round(math.fsum(each.price for each in spent), 9),
    )
