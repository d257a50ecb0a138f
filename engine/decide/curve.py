"""How long a batch takes by its size, learned from batches that ran. Pure.

A line, mean(b) = a + c b with a, c >= 0, by least squares in which what is old counts less: each batch weighs DECAY of
the one after it, so that about 1 / (1 - DECAY) of them count, and a drift is followed within as many. While all batches
were of one size nothing is known of the slope: a larger one is taken to take as long as several, a smaller one as long
as that one, which is the worst either can be.

`spread` is how far batches were from what the line said, on average, as a share of it and at most all of it, times
1.25 (of a normal distribution the mean distance is sigma / 1.25); `safe_s` adds SAFE of it. Of one that took more than
OUTLIER times what the line says nothing is learned, unless more do one after the other than MAX_ODD, or than run side
by side: a stall, which these have in common, is not how long batches take. Nor is anything learned of batches that were
interrupted, or that waited for their model to be loaded: whoever tells of them leaves those out.
What is expected before the first batch (`engine.spec.profile`) counts as EXPECTED batches, half of them of one item and
half full, and for less with each that runs.
Source: Ljung, System Identification (1999), 11.2, for recursive least squares with forgetting.
"""

DECAY = 0.95
OUTLIER = 4.0
MAX_ODD = 4
SAFE = 1.0
MIN_BATCHES = 3  # before which nothing is said
EXPECTED = 4.0


class Curve:
    """Of one pool."""

    def __init__(self) -> None:
        self._num = 0
        self._weight = self._b = self._s = self._bb = self._bs = 0.0  # sums
        self._base_s = self._per_item_s = self._flat_s = 0.0
        self.spread = 0.0
        self._num_odd = 0  # one after the other, up to now

    @property
    def is_known(self) -> bool:
        return self._num >= MIN_BATCHES

    def expect(self, base_s: float, per_item_s: float, spread: float, max_batch: int) -> None:
        """Begin with a line, of batches of which none was seen yet."""
        if self._num or base_s + per_item_s <= 0:
            return
        self._num, self.spread = MIN_BATCHES, min(1.25, spread)
        for batch_size in (1, max_batch):
            self._weigh(batch_size, base_s + per_item_s * batch_size, EXPECTED / 2)
        self._fit()

    def note(self, batch_size: int, service_s: float, num_lanes: int = 1) -> None:
        """A batch of so many took so long, where so many run side by side."""
        said_s = self.mean_s(batch_size)
        if self.is_known and said_s > 0:
            self._num_odd = self._num_odd + 1 if service_s > OUTLIER * said_s else 0
            if 0 < self._num_odd <= max(MAX_ODD, num_lanes):
                return
            off = 1.25 * min(abs(service_s / said_s - 1), 1.0)
            self.spread = DECAY * self.spread + (1 - DECAY) * off if self._num > MIN_BATCHES else off
        self._num += 1
        self._weight, self._b, self._s = DECAY * self._weight, DECAY * self._b, DECAY * self._s
        self._bb, self._bs = DECAY * self._bb, DECAY * self._bs
        self._weigh(batch_size, service_s, 1.0)
        self._fit()

    def _weigh(self, batch_size: int, service_s: float, weight: float) -> None:
        self._weight += weight
        self._b += weight * batch_size
        self._s += weight * service_s
        self._bb += weight * batch_size * batch_size
        self._bs += weight * batch_size * service_s

    @property
    def line(self) -> tuple[float, float] | None:
        """What a batch takes however small, and the more for each item, s; None where nothing is known of the slope."""
        return (self._base_s, self._per_item_s) if self.is_known and not self._flat_s else None

    def _fit(self) -> None:
        mean_b, mean_s = self._b / self._weight, self._s / self._weight
        variance = self._bb / self._weight - mean_b * mean_b
        if variance <= 1e-6 * mean_b * mean_b:
            self._base_s, self._per_item_s = 0.0, mean_s / mean_b
            self._flat_s = mean_s
            return
        slope = (self._bs / self._weight - mean_b * mean_s) / variance
        slope = min(max(slope, 0.0), mean_s / mean_b)  # a >= 0
        self._base_s, self._per_item_s = mean_s - slope * mean_b, slope
        self._flat_s = 0.0

    def mean_s(self, batch_size: int) -> float:
        """What a batch of so many takes, on average; 0 while nothing is known."""
        if not self._num:
            return 0.0
        return max(self._flat_s, self._base_s + self._per_item_s * batch_size)

    def safe_s(self, batch_size: int) -> float:
        """What it hardly takes more than."""
        return self.mean_s(batch_size) * (1 + SAFE * self.spread)
