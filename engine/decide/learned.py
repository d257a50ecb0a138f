"""What is learned of a pool: how long its batches take, and which run. Pure.

Kept beside the batcher, whichever that is; the curve is `engine.decide.curve`.
"""

from engine.decide.curve import Curve

USUAL_OVER = 20  # batches
NS = 1_000_000_000


class Learned:
    """Of one pool."""

    def __init__(self, max_batch: int) -> None:
        self.max_batch = max_batch
        self.curve = Curve()
        self._most_running = 1  # side by side
        self._usual_size = 0.0
        self._ends_ns: dict[int, int] = {}  # of the batches that run, by their first item: when they are likely to end

    def expect(self, base_s: float, per_item_s: float, spread: float) -> None:
        """Before the first batch: what was measured of others, or of these when they last ran."""
        self.curve.expect(base_s, per_item_s, spread, self.max_batch)
        self._usual_size = self._usual_size or 1.0

    def began(self, first: int, batch_size: int, now_ns: int) -> None:
        """A batch of so many runs; `first`: the number of its first item."""
        self._ends_ns[first] = now_ns + round(self.curve.mean_s(batch_size) * NS)
        self._most_running = max(self._most_running, len(self._ends_ns))

    def ended(self, first: int) -> None:
        self._ends_ns.pop(first, None)

    def took(self, batch_size: int, service_s: float) -> None:
        """A batch of so many took so long; none that waited for its model to be loaded."""
        self.curve.note(batch_size, service_s, self._most_running)
        self._usual_size += (batch_size - self._usual_size) / USUAL_OVER if self._usual_size else batch_size

    @property
    def num_running(self) -> int:
        return len(self._ends_ns)

    @property
    def unit_s(self) -> float | None:
        """Seconds of a lane that an item takes in a full batch; None while nothing is known."""
        return self.curve.mean_s(self.max_batch) / self.max_batch if self.curve.is_known else None

    @property
    def usual_s(self) -> float | None:
        """What batches take that are as large as they lately were, but for stalls; None while nothing is known."""
        return self.curve.mean_s(round(self._usual_size)) if self.curve.is_known else None

    def takes_ns(self, num_waiting: int) -> int:
        """How long a batch of what waits would take; 0 while nothing is known."""
        return round(self.curve.mean_s(min(max(1, num_waiting), self.max_batch)) * NS)

    def running_s(self, now_ns: int) -> float:
        """What the batches that run still take, together."""
        return sum(max(0, ends_ns - now_ns) for ends_ns in self._ends_ns.values()) / NS
