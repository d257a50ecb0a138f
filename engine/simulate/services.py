"""How long a batch takes, in a world where nothing is computed: a curve over its size, with a spread and bad days.

    mean(b, t) = (base_s + per_item_s * b) * slow(t)

`slow` is what `Slow` says of a stretch of time: a drift, a stall. The spread is exponential, lognormal with coefficient
of variation `cv`, or none; with probability `straggle` a batch takes `straggle_times` as long. Of items of which only a
share `fresh` have to be computed, for the others' work was done with these, b counts those that have. On cores the mean
is with all of them busy; where none is as a batch begins it takes `alone` of that, and in between in proportion.
"""

import math
from collections.abc import Sequence
from random import Random
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

DONE_S = 1e-4  # what a batch takes of which all is done
NotNegative = Annotated[float, Meta(ge=0, le=1e7)]


class Service(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of one pool."""

    base_s: NotNegative = 0.0
    per_item_s: NotNegative = 0.0
    spread: Literal["none", "exponential", "lognormal"] = "none"
    cv: NotNegative = 0.0
    straggle: Annotated[float, Meta(ge=0, le=1)] = 0.0
    straggle_times: Annotated[float, Meta(ge=1, le=1e6)] = 10.0
    fresh: Annotated[float, Meta(ge=0, le=1)] = 1.0  # of items; of the others the work was done with another's
    alone: Annotated[float, Meta(gt=0, le=1)] = 1.0  # of that, where no other core is busy
    cold_s: NotNegative = 0.0  # to load an instance
    per_in_flight_s: NotNegative = (
        0.0  # `async`: the more for each item that runs beside it, and by the square of those
    )
    per_in_flight2_s: NotNegative = 0.0
    max_running: Annotated[int, Meta(ge=0, le=100_000)] = 0  # `async`: at once; the others wait in there. 0: all
    refuses_over: Annotated[int, Meta(ge=0, le=100_000)] = 0  # `async`: items in there, beyond which it fails. 0: none

    @property
    def is_shared(self) -> bool:
        """Whether how long an item takes depends on what runs beside it."""
        return bool(self.per_in_flight_s or self.per_in_flight2_s or self.max_running or self.refuses_over)

    def mean_s(self, batch_size: int, num_running: int = 1) -> float:
        beside_s = self.per_in_flight_s * num_running + self.per_in_flight2_s * num_running**2
        return self.base_s + self.per_item_s * batch_size + beside_s

    def beside(self, num_busy: int, num_cores: int) -> float:
        """What a batch takes on one of so many busy cores, over what it takes where all are."""
        if num_cores < 2:
            return 1.0
        return self.alone + (1 - self.alone) * min(1.0, (num_busy - 1) / (num_cores - 1))

    def sampled_s(self, batch_size: int, chance: Random) -> float:
        if self.fresh < 1:
            batch_size = sum(chance.random() < self.fresh for _ in range(batch_size))
            if not batch_size:
                return DONE_S
        took_s = self.mean_s(batch_size) * self.drawn(chance)
        if self.straggle and chance.random() < self.straggle:
            took_s *= self.straggle_times
        return took_s

    def drawn(self, chance: Random) -> float:
        """How long one takes over the mean, but for stragglers."""
        took_s = 1.0
        if self.spread == "exponential":
            took_s *= chance.expovariate(1.0)
        elif self.spread == "lognormal" and self.cv > 0:
            variance = math.log1p(self.cv**2)
            took_s *= math.exp(chance.gauss(-variance / 2, math.sqrt(variance)))
        return took_s


class Slow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For a while a pool takes `times` as long; or, with `stalls`, what it does in that while does not go on."""

    pool: str
    from_s: NotNegative
    to_s: NotNegative
    times: Annotated[float, Meta(gt=0, le=1e6)] = 1.0
    stalls: bool = False


def ends_s(began_s: float, took_s: float, slow: Sequence[Slow]) -> float:
    """When a batch that began then ends, given what it takes where nothing slows it down. `slow`: of its pool, in order
    and apart."""
    at_s, left_s = began_s, took_s
    for each in slow:
        if each.to_s <= at_s:
            continue
        if at_s < each.from_s:
            if at_s + left_s <= each.from_s:
                return at_s + left_s
            left_s -= each.from_s - at_s
            at_s = each.from_s
        done_s = 0.0 if each.stalls else (each.to_s - at_s) / each.times
        if left_s <= done_s:
            return at_s + left_s * each.times
        left_s -= done_s
        at_s = each.to_s
    return at_s + left_s
