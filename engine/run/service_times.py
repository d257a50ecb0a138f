"""How long batches took, by their size, since the worker began."""

from bisect import bisect_left
from itertools import accumulate

from engine.decide.signals import SERVICE_BOUNDS_S, ServiceTime

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
