"""Operators small enough to check by hand, over toy media whose one packet holds a number."""

import time
from collections.abc import Sequence
from typing import ClassVar
from uuid import uuid4

import msgspec

from engine.spec.operator import (
    Capability,
    Fold,
    Inputs,
    Map,
    Media,
    Operator,
    Port,
    Reduce,
    Rung,
    Scope,
    Settings,
    Window,
)
from streams.errors import Permanent, Transient
from streams.records import Packet, Record, Segment, Track


class Number(Record, frozen=True):
    value: int
    seen: tuple[int, ...] = ()  # which inputs it was made from


class Added(Settings, frozen=True):
    add: int = 0


READ = Capability("toy_read", {"media": Port(Media)}, Number, Added)
ADD = Capability("toy_add", {"numbers": Port(Number)}, Number, Added)
SUM = Capability("toy_sum", {"numbers": Port(Number, many=True)}, Number, Added)
TOTAL = Capability("toy_total", {"numbers": Port(Number, many=True)}, Number, Added)
COUNT = Capability("toy_count", {"numbers": Port(Number)}, Number, Added)
RECENT = Capability("toy_recent", {"numbers": Port(Number)}, Number, Added)
NEAR = Capability("toy_near", {"media": Port(Media)}, Number, Added)


class Toy(Operator):
    name = "toy"
    runs_in = "loop"

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return [Rung(f"{cls.capability.name}-toy", 0.5, Settings())]

    def process(self, batch: Sequence[Inputs]) -> Sequence[msgspec.Struct]:
        return [self.one(item) for item in batch]

    def one(self, item: Inputs) -> Number:
        entries = [entry for sources in item.ports.values() for source in sources for entry in source]
        values = [number(entry.value) for entry in entries if entry.value is not None]
        seen = tuple(entry.index for entry in entries if entry.value is not None)
        before = item.previous.value if item.previous is not None else 0
        return Number(value=before + sum(values) + item.params.add, seen=seen)


def number(value: object) -> int:
    return value.value if isinstance(value, Number) else int(value.segment.packets[0].data)  # type: ignore[attr-defined]


class Read(Toy):
    capability = READ


class Add(Toy):
    capability = ADD
    max_batch = 16
    runs_in = "thread"


class Sum(Toy):
    capability = SUM


class Near(Toy):
    capability = NEAR
    scope: ClassVar[Scope] = Map(1, 1)


class Count(Toy):
    capability = COUNT
    scope: ClassVar[Scope] = Fold()


class Recent(Toy):
    capability = RECENT
    scope: ClassVar[Scope] = Window(3)


class Total(Toy):
    capability = TOTAL
    scope: ClassVar[Scope] = Reduce()


ECHO = Capability("toy_echo", {"numbers": Port(Number)}, Number, Added)


class Echo(Toy):
    """The number alone, not what it was made from."""

    capability = ECHO

    def one(self, item: Inputs) -> Number:
        return Number(value=super().one(item).value)


BAD = Capability("toy_bad", {"media": Port(Media)}, Number, Added)


class Bad(Toy):
    """Cannot do number 13, and fails twice for 7 (by luck that lasts as long as the process)."""

    capability = BAD
    failed: ClassVar[int] = 0

    def one(self, item: Inputs) -> Number:
        found = super().one(item)
        if found.value == 13:
            raise Permanent("unlucky number")
        if found.value == 7 and Bad.failed < 2:
            Bad.failed += 1
            raise Transient("not in the mood")
        return found


WEIGH = Capability("toy_weigh", {"media": Port(Media)}, Number, Added)


class Pause(Settings, frozen=True):
    pause_s: float = 0.0


class Weigh(Toy):
    """The number, weighed carefully, quickly, or by guess."""

    capability = WEIGH
    runs_in = "thread"
    Knobs = Pause

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return [
            Rung("weigh-with-care", 0.9, Pause(pause_s=0.3)),
            Rung("weigh-quickly", 0.75, Pause(pause_s=0.001)),
            Rung("weigh-by-guess", 0.2, Pause()),
        ]

    def one(self, item: Inputs) -> Number:
        time.sleep(self.knobs.pause_s)
        return super().one(item)


ALL: tuple[type[Operator], ...] = (Read, Add, Sum, Near, Count, Recent, Total, Echo, Bad, Weigh)


def toy_segment(stream: str, index: int, value: int) -> Segment:
    track = Track(kind="video", codec="toy", time_base=(1, 1))
    packet = Packet(0, index, index, 1, True, str(value).encode())
    return Segment(
        stream=stream, index=index, start_ns=index * 10**9, duration_ns=10**9, tracks=(track,), packets=(packet,)
    )


def new_traceparent() -> str:
    """The context of somebody else's span."""
    return f"00-{uuid4().hex}-{uuid4().hex[:16]}-01"
