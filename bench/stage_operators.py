"""Operators that bench/stages.py measures with: each does nothing but take its time. A module of their own, for worker
processes import them."""

import time
from collections.abc import Sequence

from engine.spec.operator import Capability, Inputs, Media, Operator, Port, Rung
from engine.spec.operator import Settings as NoSettings
from streams.records import Record

BURN_LOOPS = 400_000


class Mark(Record, frozen=True):
    at_ns: int = 0  # when it was computed (Unix time)


class Timed(Operator):
    name = "timed"

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return [Rung(cls.capability.name, 1.0, NoSettings())]


class Quick(Timed):
    """Done at once."""

    capability = Capability("quick", {"media": Port(Media)}, Mark)
    runs_in = "loop"

    def process(self, batch: Sequence[Inputs]) -> Sequence[Mark]:
        return [Mark(at_ns=time.time_ns()) for _ in batch]


class Sleeper(Timed):
    """Takes two seconds."""

    capability = Capability("sleeper", {"media": Port(Media)}, Mark)

    def process(self, batch: Sequence[Inputs]) -> Sequence[Mark]:
        time.sleep(2.0)
        return [Mark(at_ns=time.time_ns()) for _ in batch]


class Batched(Timed):
    """A model with a price for each call: 30 ms, and half a millisecond for each item."""

    capability = Capability("batched", {"media": Port(Media)}, Mark)
    max_batch = 32

    def process(self, batch: Sequence[Inputs]) -> Sequence[Mark]:
        time.sleep(0.03 + 0.0005 * len(batch))
        return [Mark(at_ns=time.time_ns()) for _ in batch]


class Burn(Timed):
    """Computes on one core, holding the interpreter's lock."""

    capability = Capability("burn", {"media": Port(Media)}, Mark)

    def process(self, batch: Sequence[Inputs]) -> Sequence[Mark]:
        for _ in batch:
            burn()
        return [Mark(at_ns=time.time_ns()) for _ in batch]


def burn() -> int:
    total = 0
    for number in range(BURN_LOOPS):
        total += number
    return total


ALL: tuple[type[Operator], ...] = (Quick, Sleeper, Batched, Burn)
