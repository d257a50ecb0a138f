"""What became of a simulated run, in figures that anyone can check."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from engine.simulate.pools import SimulatedPool


class PoolReport(msgspec.Struct, frozen=True):
    """Of one pool over a whole run. `num_there` is the mean number of items that wait or run: by Little's law, what
    comes a second times how long each stays."""

    num_done: int
    num_dropped: int
    num_batches: int
    mean_batch: float
    busy: float  # lanes that ran, on average
    num_there: float
    stays_s: float
    limits: tuple[tuple[float, int, str], ...] = ()  # of one that batches by itself: when, s, how many at once, and why

    @staticmethod
    def of(pool: "SimulatedPool", seconds: float) -> "PoolReport":
        num = pool.num_done + pool.num_dropped
        return PoolReport(
            num_done=pool.num_done,
            num_dropped=pool.num_dropped,
            num_batches=pool.num_batches,
            mean_batch=pool.num_done / max(1, pool.num_batches),
            busy=pool.busy_s / seconds if seconds else 0.0,
            num_there=pool.items_s / seconds if seconds else 0.0,
            stays_s=pool.sojourns_s / num if num else 0.0,
            limits=tuple((at_s, changed.limit, changed.why) for at_s, changed in pool.changes),
        )


class Segments:
    """What became of each segment: when it came, how long it took, and whether it was answered, whole and in time."""

    def __init__(self) -> None:
        self.streams: list[str] = []  # of each segment
        self.came_s: list[float] = []
        self.took_s: list[float] = []
        self.is_in_time: list[bool] = []
        self.qualities: list[float] = []  # against the best rungs
        self.by_stream: dict[str, tuple[int, int]] = {}  # in time, and all
        self.num_gaps = 0
        self.num_late = 0
        self.num_opened = self.num_opened_in_time = 0  # of those that open a gate: something is found in them
        self.computed_s = 0.0
        self.wasted_s = 0.0  # of computing, on what was not answered in time

    def note(
        self,
        stream: str,
        came_s: float,
        took_s: float,
        computed_s: float,
        *,
        whole: bool,
        late: bool,
        quality: float = 1.0,
        opened: bool = False,
    ) -> None:
        self.streams.append(stream)
        self.came_s.append(came_s)
        self.took_s.append(took_s)
        self.is_in_time.append(whole and not late)
        good, num = self.by_stream.get(stream, (0, 0))
        self.by_stream[stream] = good + (whole and not late), num + 1
        self.qualities.append(quality)
        self.num_opened += opened
        self.num_opened_in_time += opened and whole and not late
        self.num_gaps += not whole
        self.num_late += whole and late
        self.computed_s += computed_s
        if late or not whole:
            self.wasted_s += computed_s

    @property
    def num(self) -> int:
        return len(self.came_s)

    @property
    def num_in_time(self) -> int:
        return sum(self.is_in_time)

    @property
    def quality(self) -> float:
        """What those in time are worth on average, against the best rungs; 1 where there are none."""
        worth = [quality for quality, good in zip(self.qualities, self.is_in_time, strict=True) if good]
        return sum(worth) / len(worth) if worth else 1.0

    @property
    def opened_in_time(self) -> float:
        """Of those that open a gate, the share that was answered, whole and in time; 1 where none does."""
        return self.num_opened_in_time / self.num_opened if self.num_opened else 1.0

    @property
    def shares(self) -> list[float]:
        """Of each stream, the share of its segments that was answered, whole and in time; the least first."""
        return sorted(good / num for good, num in self.by_stream.values())

    def quantile_s(self, share: float) -> float:
        """How long the answered ones took at most, of that share; NaN where none was."""
        return quantile([took for took, good in zip(self.took_s, self.is_in_time, strict=True) if good], share)


class FleetReport(msgspec.Struct, frozen=True):
    """Of the replicas of one resource."""

    seconds: float  # of replicas, those that started included
    begin: int
    most: int
    changes: tuple[tuple[float, int, str], ...]  # when, s, how many there were to be, and why


class Report(msgspec.Struct, frozen=True):
    seconds: float
    segments: Segments
    pools: dict[str, PoolReport]
    changes: tuple[tuple[float, str, str, int], ...] = ()  # of rungs: when, s, of which stream and stage, to which
    fleet: dict[str, FleetReport] = {}  # by resource

    @property
    def in_time(self) -> float:
        """The share of segments that were answered, whole and in time."""
        return self.segments.num_in_time / self.segments.num if self.segments.num else 1.0


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest of them that at least that share of them does not exceed; NaN of none."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else math.nan
