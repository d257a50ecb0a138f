"""Fair shares: what part of its segments a stream would have, were what is begun of all shared out by weight. Pure.

    fair share = min(1, weight * level),    level such that the fair shares add up to what is begun of all

so where all is begun it is 1 for each, and where it is not, one of twice the weight has twice the part of its own, up
to all of it; what one has no use for is the others'. It goes by how weights compare, not by how large they are.
Source: weighted max-min fairness, Bertsekas and Gallager, Data Networks (1992), 6.5.2.
"""


class FairShares:
    """Of the streams that use one resource."""

    def __init__(self) -> None:
        self._total = 0.0
        self._nums: dict[float, int] = {}  # streams by weight

    def __len__(self) -> int:
        return sum(self._nums.values())

    def add(self, share: float, weight: float) -> None:
        """A stream, of whose segments such a share was begun."""
        self._total += share
        self._nums[weight] = self._nums.get(weight, 0) + 1

    def remove(self, share: float, weight: float) -> None:
        """As it was added."""
        self._total -= share
        self._nums[weight] -= 1
        if not self._nums[weight]:
            del self._nums[weight]

    def of(self, weight: float) -> float:
        """The fair share of a stream."""
        left, weights = self._total, sum(each * num for each, num in self._nums.items())
        for each in sorted(self._nums, reverse=True):
            level = max(0.0, left) / weights
            if each * level < 1:
                return min(1.0, weight * level)
            left, weights = left - self._nums[each], weights - each * self._nums[each]
            if weights <= 1e-12:
                break
        return 1.0
