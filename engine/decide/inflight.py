"""In flight: how many items are under way at once of an engine that batches by itself: vLLM, an endpoint, a tool. Pure.

More at once is more done a second, until what serves them is full; from then on they wait in there, where nobody knows
what is due first and nothing can be taken back. So the limit is kept where more would not pay. With n the items under
way, and s(n) how long one lately took,

    X(n) = n / s(n)    items a second, by Little's law

is learned for each step of n in STEPS, of items that began and ended while the limit was as it is. A *round* is ROUND
of them, or as many as the limit if that is more; EARLY where they take too long, and fewer where they fail. After each
the limit goes

- a step down, where more than FAILS of the items failed, but not all: one that is away comes back for no fewer;
- below the number under way, where an item takes over half of what its stream may lag, and the limit or half as many
  are under way; back again, for FRESH_S, where that took no more than HELPS off;
- a step down, where that does nearly as much: X there is at least X here / (1 + LITTLE (r - 1)), r being the step;
- a step up, where the limit held items back, and the step above is not known or does X here * (1 + MUCH (r - 1)).

Otherwise it stays. Where s(n) = a + c n, that is at about n = 10 a / c, where a tenth more items would do a hundredth
more. What was learned of another step holds for FRESH_S, or three rounds: so where nothing changes, a step up and one
down are tried once in that time, for a round each; one that failed is not tried sooner.

At rest nothing is held back, nothing is learned of other steps, and nothing changes. With a stalled engine no item
ends, so no round does, and one that is missing fails all: unknown is no reason. Where items have no time by which they
are wanted, the second rule is idle. It begins at the most that its owner allows.
Source: Little (1961); for hill climbing on throughput over concurrency, Heiss and Wagner, Adaptive load control in
transaction processing systems (VLDB 1991).
"""

import msgspec

STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
ROUND, EARLY = 80, 16
LITTLE, MUCH = 0.05, 0.15
HELPS = 0.1
FAILS = 0.05
FRESH_S = 60.0
MEMORY = 160  # items that a step's mean is over, about
NS = 1_000_000_000


class Limited(msgspec.Struct, frozen=True):
    """The limit is another from now on."""

    limit: int
    why: str


class _Step(msgspec.Struct):
    """What is known of one number under way. `num`: items it was learned of."""

    service_s: float
    as_of_ns: int
    num: int = 1


class InFlight:
    """Of one pool. `most`: as its owner allows."""

    def __init__(self, most: int) -> None:
        self._sizes = [size for size in STEPS if size < most] + [most]
        self._at = len(self._sizes) - 1
        self._known: dict[int, _Step] = {}
        self._failed_ns: dict[int, int] = {}  # steps at which items failed, and when
        self._has_time_s: float | None = None
        self._changed_ns = 0
        self._before_s, self._before_at = 0.0, 0  # what an item took when it was too long last, and at which step
        self._round_s, self._began_ns = 0.0, 0  # how long the last round was, and when this one began
        self._useless_ns = 0  # until when fewer would not make items faster
        self._num_ended = self._num_failed = 0  # in this round
        self._under_way = self._service_s = 0.0  # sums over them
        self._is_binding = False

    @property
    def limit(self) -> int:
        return self._sizes[self._at]

    def began(self, num_waiting: int, has_time_s: float | None) -> None:
        """An item is under way, and so many wait that might be. `has_time_s`: what its stream may lag; None: as long as
        it takes."""
        self._is_binding = self._is_binding or num_waiting > 0
        if has_time_s is not None:
            before_s = self._has_time_s
            self._has_time_s = has_time_s if before_s is None else before_s + (has_time_s - before_s) / MEMORY

    def ended(self, num_under_way: float, service_s: float, now_ns: int, *, failed: bool = False) -> Limited | None:
        """An item took so long, while so many were under way; whether the limit changes."""
        if now_ns - service_s * NS < self._changed_ns:
            return None  # it is of another time
        self._num_ended += 1
        self._num_failed += failed
        self._under_way += num_under_way
        if not failed:
            self._learn(num_under_way, service_s, now_ns)
            self._service_s += service_s
        size = max(ROUND, self.limit)
        is_failing = self._num_failed > FAILS * size and self._num_ended >= EARLY
        if self._num_ended < size and not is_failing and not self._is_too_long():
            return None
        self._round_s = (now_ns - self._began_ns) / NS if self._began_ns else 0.0
        self._began_ns = now_ns
        changed = self._decided(now_ns)
        self._num_ended = self._num_failed = 0
        self._under_way = self._service_s = 0.0
        self._is_binding = False
        return changed

    def _is_too_long(self) -> bool:
        """What items of this round take, for the time that they have."""
        num = self._num_ended - self._num_failed
        return self._has_time_s is not None and num >= EARLY and self._service_s / num > self._has_time_s / 2

    @property
    def _fresh_s(self) -> float:
        return max(FRESH_S, 3 * self._round_s)

    def _step_of(self, num: float) -> int:
        return min(range(len(self._sizes)), key=lambda place: abs(self._sizes[place] - num))

    def _learn(self, num: float, service_s: float, now_ns: int) -> None:
        at = self._step_of(num)
        known = self._known.get(at)
        if known is None or now_ns > known.as_of_ns + self._fresh_s * NS:
            self._known[at] = _Step(service_s, now_ns)
        else:
            known.num = min(MEMORY, known.num + 1)
            known.service_s += (service_s - known.service_s) / known.num
            known.as_of_ns = now_ns

    def _decided(self, now_ns: int) -> Limited | None:
        if self._num_failed == self._num_ended:
            return None
        if self._num_failed > FAILS * self._num_ended:
            self._failed_ns[self._at] = now_ns
            return self._go(self._at - 1, f"{self._num_failed} of {self._num_ended} failed", now_ns)
        at = min(self._at, self._step_of(self._under_way / self._num_ended))
        here = self._per_s(at, now_ns)
        if here is None:
            return None
        is_much = self._is_binding or 2 * self._under_way / self._num_ended > self.limit
        if self._is_too_long() and is_much and now_ns >= self._useless_ns:
            took_s, before_s = self._service_s / (self._num_ended - self._num_failed), self._before_s
            if before_s and took_s > (1 - HELPS) * before_s:
                self._useless_ns, self._before_s = now_ns + round(self._fresh_s * NS), 0.0
                return self._go(self._before_at, "fewer were no faster", now_ns)
            self._before_s, self._before_at = took_s, self._at
            return self._go(at - 1, f"an item takes {took_s:.2f} s of the {self._has_time_s:.2f} s of lag", now_ns)
        self._before_s = 0.0
        if not self._is_binding or at < self._at:
            return None
        below, above = self._per_s(self._at - 1, now_ns), self._per_s(self._at + 1, now_ns)
        if below is not None and here < below * self._gain(self._at - 1, LITTLE):
            return self._go(self._at - 1, f"{here:.2f} a second, and {below:.2f} with fewer", now_ns)
        if self._at + 1 < len(self._sizes) and not self._failed_lately(self._at + 1, now_ns):
            if above is None:
                return self._go(self._at + 1, "to see whether more pays", now_ns)
            if above >= here * self._gain(self._at, MUCH):
                return self._go(self._at + 1, f"{here:.2f} a second, and {above:.2f} with more", now_ns)
        return self._go(self._at - 1, "to see whether fewer do as much", now_ns) if below is None else None

    def _gain(self, at: int, share: float) -> float:
        """How many times as much a step up from there would have to do."""
        return 1 + share * (self._sizes[at + 1] / self._sizes[at] - 1)

    def _per_s(self, at: int, now_ns: int) -> float | None:
        """How many items a second are done with that step, if that is known."""
        known = self._known.get(at) if 0 <= at < len(self._sizes) else None
        if known is None or now_ns > known.as_of_ns + self._fresh_s * NS:
            return None
        return self._sizes[at] / max(known.service_s, 1e-9)

    def _failed_lately(self, at: int, now_ns: int) -> bool:
        return at in self._failed_ns and now_ns <= self._failed_ns[at] + self._fresh_s * NS

    def _go(self, at: int, why: str, now_ns: int) -> Limited | None:
        if not 0 <= at < len(self._sizes) or at == self._at:
            return None
        self._at, self._changed_ns = at, now_ns
        return Limited(self.limit, why)
