"""What a pool keeps count of: what came and what became of it, how long items lately waited and batches lately took,
and how long batches took by their size since the worker began.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from itertools import accumulate

from engine.decide.signals import SERVICE_BOUNDS_S, ServiceTime

NUM_RECENT = 64  # items and batches that the means are over
MAX_BATCH_SIZES = 64  # that are told apart


class ServiceTimes:
    """Of one pool."""

    def __init__(self) -> None:
        self._by_size: dict[int, tuple[float, float, list[int]]] = {}  # sum, longest, and how many of each class

    def note(self, batch_size: int, service_s: float) -> None:
        if batch_size not in self._by_size and len(self._by_size) >= MAX_BATCH_SIZES:
            return
        total_s, max_s, nums = self._by_size.get(batch_size, (0.0, 0.0, [0] * (len(SERVICE_BOUNDS_S) + 1)))
        nums[bisect_left(SERVICE_BOUNDS_S, service_s)] += 1
        self._by_size[batch_size] = total_s + service_s, max(max_s, service_s), nums

    def so_far(self) -> tuple[ServiceTime, ...]:
        return tuple(
            ServiceTime(
                batch_size=size,
                num=sum(nums),
                mean_s=total_s / sum(nums),
                max_s=max_s,
                num_within=tuple(accumulate(nums[:-1])),
            )
            for size, (total_s, max_s, nums) in sorted(self._by_size.items())
        )


class Tally:
    """Of one pool."""

    def __init__(self) -> None:
        self.num_arrived = self.num_done = self.num_failed = self.num_late = 0  # items
        self.num_held_back = 0  # outputs that were not computed, for their gate was shut
        self.num_batches = 0  # that were not interrupted
        self.service_times = ServiceTimes()
        self._waits_s: deque[float] = deque(maxlen=NUM_RECENT)
        self._services_s: deque[float] = deque(maxlen=NUM_RECENT)

    def note_waits(self, waits_s: Iterable[float]) -> None:
        self._waits_s.extend(waits_s)

    def note_batch(self, batch_size: int, service_s: float) -> None:
        self.num_batches += 1
        self._services_s.append(service_s)
        self.service_times.note(batch_size, service_s)

    @property
    def queue_wait_s(self) -> float | None:
        """Mean of the last items that were taken; None before the first."""
        return sum(self._waits_s) / len(self._waits_s) if self._waits_s else None

    @property
    def service_s(self) -> float | None:
        """Mean of the last batches; None before the first."""
        return sum(self._services_s) / len(self._services_s) if self._services_s else None
