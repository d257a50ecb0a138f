"""Which outputs are known to be stored, in little memory: nearly all of a stage's outputs follow one another, so they
are kept as stretches. Pure.
"""

from bisect import bisect_right
from collections import OrderedDict

from streams.subjects import Key

MAX_RANGES = 4096


class StoredKeys:
    """The outputs of one stage. Single segments are never forgotten; of ranges, the oldest beyond MAX_RANGES are."""

    def __init__(self) -> None:
        self._firsts: list[int] = []  # of stretches that do not touch, in order
        self._lasts: list[int] = []
        self._ranges: OrderedDict[Key, None] = OrderedDict()

    def __contains__(self, key: Key) -> bool:
        if key.first != key.last:
            return key in self._ranges
        at = bisect_right(self._firsts, key.first) - 1
        return at >= 0 and key.first <= self._lasts[at]

    def add(self, key: Key) -> None:
        if key in self:
            return
        if key.first != key.last:
            self._ranges[key] = None
            if len(self._ranges) > MAX_RANGES:
                self._ranges.popitem(last=False)
            return
        index = key.first
        at = bisect_right(self._firsts, index)  # where a stretch of its own would stand
        joins_before = at > 0 and self._lasts[at - 1] == index - 1
        joins_after = at < len(self._firsts) and self._firsts[at] == index + 1
        if joins_before and joins_after:
            self._lasts[at - 1] = self._lasts.pop(at)
            del self._firsts[at]
        elif joins_before:
            self._lasts[at - 1] = index
        elif joins_after:
            self._firsts[at] = index
        else:
            self._firsts.insert(at, index)
            self._lasts.insert(at, index)

    def num_within(self, first: int, end: int) -> int:
        """How many of the segments first .. end - 1 are known to be stored."""
        found = 0
        for at in range(max(0, bisect_right(self._firsts, first) - 1), len(self._firsts)):
            if self._firsts[at] >= end:
                break
            found += max(0, min(end, self._lasts[at] + 1) - max(first, self._firsts[at]))
        return found

    @property
    def num_stretches(self) -> int:
        return len(self._firsts)
