"""Drift: whether batches take what the profile says they take. Pure.

The mean of how long batches lately took over what the profile says of their size, in which each counts DECAY of the one
after it. A profile says two times, alone and with every core busy, and any between them is as it says. Beyond OFF times
as long, or as short, over NUM of them, it does not hold: the media are others, or segments as long, or the machine is.
"""

DECAY = 0.95
NUM = 20
OFF = 1.5


class Drift:
    """Of one pool. `alone`, `busy`: the profile's lines, a and c of a + c b, s."""

    def __init__(self, alone: tuple[float, float], busy: tuple[float, float]) -> None:
        self._alone = alone
        self._busy = busy
        self._num = 0
        self._ratio = self._weight = 0.0
        self._was_off = False

    def note(self, batch_size: int, service_s: float) -> bool:
        """A batch of so many took so long; whether it is by this one that the profile does not hold any more."""
        said_s = sorted(base_s + per_item_s * batch_size for base_s, per_item_s in (self._alone, self._busy))
        if said_s[0] <= 0:
            return False
        self._num += 1
        self._ratio = DECAY * self._ratio + service_s / min(max(service_s, said_s[0]), said_s[1])
        self._weight = DECAY * self._weight + 1
        was_off, self._was_off = self._was_off, self.is_off
        return self._was_off and not was_off

    @property
    def ratio(self) -> float | None:
        """How long they take over what was said; None before NUM of them."""
        return self._ratio / self._weight if self._num >= NUM else None

    @property
    def is_off(self) -> bool:
        return self.ratio is not None and not 1 / OFF <= self.ratio <= OFF
