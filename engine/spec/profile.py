"""Profiles: what a rung was measured to take on this machine, as values.

Service time is kept as it was found: for each batch size, and alone or with every core busy, how long batches took. A
line through their means, s(b) = a + c b by least squares in which each size counts alike, is what rules begin with
before they have seen batches of their own (`engine.decide.curve`).

A profile says where it is from: the machine, the clip that was looked at and its segments' length, when. It holds on
that machine only: `machine` has to be equal.
"""

from collections.abc import Sequence
from random import Random
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from streams.records import Record

Seconds = Annotated[float, Meta(ge=0, le=1e6)]
Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
EnergyBy = Literal["", "rapl", "estimate"]
RESAMPLINGS = 1000
LEAST_S = 1e-9
Line = tuple[float, float]  # a and c of a + c b
W_PER_CORE = 10.0  # of an estimate: a core of a server at work, e.g. 205 W over 20 cores of a Xeon Gold 6248


class OnRung(NamedTuple):
    """Which rung, on which kind of device."""

    capability: str
    implementation: str
    rung: str
    version: int
    knobs: dict[str, Any]
    device: str


class BatchTimes(Record, frozen=True, omit_defaults=False):
    """Batches of one size, of which `num_beside` ran side by side: the quantiles of how long they took, s."""

    batch_size: Count
    num_beside: Count
    num: Count
    mean_s: Seconds
    sd_s: Seconds
    p50_s: Seconds
    p95_s: Seconds
    max_s: Seconds

    @staticmethod
    def of(batch_size: int, num_beside: int, took_s: Sequence[float]) -> "BatchTimes":
        """Of one batch at least."""
        mean_s = sum(took_s) / len(took_s)
        in_order = sorted(took_s)
        return BatchTimes(
            batch_size=batch_size,
            num_beside=num_beside,
            num=len(took_s),
            mean_s=mean_s,
            sd_s=(sum((each - mean_s) ** 2 for each in took_s) / max(1, len(took_s) - 1)) ** 0.5,
            p50_s=in_order[len(in_order) // 2],
            p95_s=in_order[min(len(in_order) - 1, int(0.95 * len(in_order)))],
            max_s=in_order[-1],
        )


class Measured(Record, frozen=True, omit_defaults=False):
    """How good a rung was found to be on labelled media, with the interval that 95 of 100 resamplings are within."""

    metric: str  # such as "word accuracy": more is better, 1 is all
    value: float
    low: float
    high: float
    num: int  # labelled items
    labels: str  # the set's name, and the beginning of its hash

    @staticmethod
    def of(metric: str, scores: Sequence[tuple[float, float]], labels: str) -> "Measured":
        """Of items of which each is so much right of so much; their sums are held against each other, so that a long
        one counts for more. The interval is that of RESAMPLINGS of the items, each drawn as often as chance has it; of
        one item there is none.
        Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), 13.3, the percentile interval."""
        chance = Random(0)
        found = sorted(
            _share([scores[chance.randrange(len(scores))] for _ in scores]) for _ in range(RESAMPLINGS if scores else 0)
        )
        value = _share(scores)
        low, high = (
            (found[round(0.025 * len(found))], found[round(0.975 * len(found)) - 1]) if found else (value, value)
        )
        return Measured(metric=metric, value=value, low=low, high=high, num=len(scores), labels=labels)


class _OfRung(Record, frozen=True, kw_only=True, omit_defaults=False):
    """What is known of one rung on one kind of device of one machine."""

    capability: str
    implementation: str
    rung: str
    version: int
    device: str
    machine: str
    at: str  # RFC 3339
    knobs: dict[str, Any] = msgspec.field(default_factory=dict)

    @property
    def on(self) -> OnRung:
        return OnRung(self.capability, self.implementation, self.rung, self.version, self.knobs, self.device)


class Profile(_OfRung, frozen=True, kw_only=True, omit_defaults=False):
    """What it was measured to take."""

    media: str  # the clip's name, and the beginning of its hash
    segment_s: float
    runs_in: str = "thread"
    max_batch: Count = 1
    times: Annotated[tuple[BatchTimes, ...], Meta(max_length=1000)] = ()
    fresh: Share = 1.0  # of items that share work, those for which nothing is done yet; others take next to nothing
    cold_s: float | None = None  # to load it, in a process of its own; None: not measured
    memory_bytes: int | None = None  # that such a process grew by
    cpu_s: float = 0.0  # of all threads, for an item in a full batch
    energy_j: float | None = None  # for an item in a full batch
    energy_by: EnergyBy = ""
    quality: Measured | None = None

    @property
    def name(self) -> str:
        return f"{self.capability}/{self.implementation}/{self.rung}"

    @property
    def on_cores(self) -> bool:
        """Whether a batch of it takes up a core."""
        return self.device == "cpu" and self.runs_in in ("thread", "process")

    @property
    def busy(self) -> tuple[BatchTimes, ...]:
        """With as many batches side by side as the machine runs."""
        most = max((each.num_beside for each in self.times), default=0)
        return tuple(each for each in self.times if each.num_beside == most)

    @property
    def line(self) -> Line:
        """a and c of s(b) = a + c b, both of 0 or more, s; (0, 0) where nothing was measured."""
        return fitted([(each.batch_size, each.mean_s) for each in self.busy])

    @property
    def line_alone(self) -> Line:
        """With nothing beside it."""
        alone = [(each.batch_size, each.mean_s) for each in self.times if each.num_beside == 1]
        return fitted(alone) if alone else self.line

    @property
    def spread(self) -> float:
        """How far batches are from their mean, as a share of it (the coefficient of variation, over all sizes)."""
        shares = [each.sd_s / each.mean_s for each in self.busy if each.mean_s > 0 and each.num > 1]
        return sum(shares) / len(shares) if shares else 0.0

    def mean_s(self, batch_size: int) -> float:
        """Of a batch of items of many streams."""
        base_s, per_item_s = self.line
        return base_s + per_item_s * batch_size

    @property
    def unit_s(self) -> float:
        """Of a lane, for an item in a full batch."""
        return self.fresh * self.mean_s(self.max_batch) / self.max_batch

    @property
    def alone_s(self) -> float:
        """A batch of the smallest size that was measured, with nothing beside it."""
        return min(self.times, key=lambda each: (each.batch_size, each.num_beside)).mean_s if self.times else 0.0


def _share(scores: Sequence[tuple[float, float]]) -> float:
    of = sum(whole for _, whole in scores)
    return max(0.0, sum(right for right, _ in scores) / of) if of > 0 else 0.0


class Seen(_OfRung, frozen=True, kw_only=True, omit_defaults=False):
    """What a pool learned of it as it worked: the line of its batches, and how many there were."""

    base_s: Seconds = 0.0
    per_item_s: Seconds = 0.0
    spread: Annotated[float, Meta(ge=0, le=100)] = 0.0
    num_batches: int = 0
    drift: float | None = None  # how long batches lately took over what the profile says; None: nothing says


class Expected(NamedTuple):
    """What is expected of a rung before its first batch."""

    base_s: float
    per_item_s: float
    spread: float
    profiled: tuple[Line, Line] | None = None  # of the profile: alone, and with every core busy


def fitted(points: Sequence[tuple[int, float]]) -> Line:
    """a and c of the line a + c b nearest to what batches of b took, in which each point counts by its share, so that a
    large batch says no more than a small one; both of 0 or more."""
    if not points:
        return 0.0, 0.0
    points = [(size, max(took_s, LEAST_S)) for size, took_s in points]
    weights = [1 / took_s**2 for _, took_s in points]
    total = sum(weights)
    mean_b = sum(w * b for w, (b, _) in zip(weights, points, strict=True)) / total
    mean_s = sum(w * s for w, (_, s) in zip(weights, points, strict=True)) / total
    variance = sum(w * (b - mean_b) ** 2 for w, (b, _) in zip(weights, points, strict=True))
    if not variance:
        return 0.0, mean_s / mean_b
    slope = sum(w * (b - mean_b) * (s - mean_s) for w, (b, s) in zip(weights, points, strict=True)) / variance
    if slope <= 0:
        return mean_s, 0.0
    if mean_s - slope * mean_b < 0:  # through the origin
        through = sum(w * b * s for w, (b, s) in zip(weights, points, strict=True))
        return 0.0, through / sum(w * b * b for w, (b, _) in zip(weights, points, strict=True))
    return mean_s - slope * mean_b, slope
