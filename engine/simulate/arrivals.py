"""When segments come: processes of arrivals at unit rate, bent by how the load changes.

With load(t), what is to come by t is Lambda(t) = integral of rate * load; the n-th arrival of a process of unit rate
that comes at u is at the t where Lambda(t) = u. So a Poisson process stays one, and a bursty one keeps its bursts.
Source: Cinlar, Introduction to Stochastic Processes (1975), 4.7, for the time change.

| kind | intervals at unit rate |
|---|---|
| `regular` | 1, shifted by chance within `jitter` of it |
| `poisson` | exponential |
| `bursty` | gamma distributed, with coefficient of variation `cv` |
| `trace` | as measured, of mean 1, from a place that chance chooses, over and over |
| `times` | none: at these moments, however the load bends, and no more |
"""

import math
from collections.abc import Iterator, Sequence
from random import Random
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Positive = Annotated[float, Meta(gt=0)]


class Arrivals(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How something comes, `per_s` a second on average where the load is 1."""

    per_s: Positive
    kind: Literal["regular", "poisson", "bursty", "trace", "times"] = "regular"
    cv: Annotated[float, Meta(gt=0, le=50)] = 1.0
    jitter: Annotated[float, Meta(ge=0, le=1)] = 0.0
    intervals: tuple[Annotated[float, Meta(ge=0)], ...] = ()  # of a trace, s
    at_s: tuple[Annotated[float, Meta(ge=0)], ...] = ()  # of `times`, in order


class Phase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From then on the load is this many times what is usual."""

    at_s: Annotated[float, Meta(ge=0)]
    load: Annotated[float, Meta(ge=0)]


def times_s(arrivals: Arrivals, phases: Sequence[Phase], chance: Random, first: float = 0.0) -> Iterator[float]:
    """When they come, without end, or until the load is 0 for good. `first`: of a regular one, what part of an interval
    has passed at the beginning."""
    if arrivals.kind == "times":
        yield from arrivals.at_s
        return
    bends = [(0.0, 1.0), *((phase.at_s, phase.load) for phase in sorted(phases, key=lambda each: each.at_s))]
    piece, since_u = 0, 0.0
    for u in _units(arrivals, chance, first):
        while True:
            since_s, load = bends[piece]
            until_s = bends[piece + 1][0] if piece + 1 < len(bends) else math.inf
            rate = arrivals.per_s * load
            at_s = since_s + (u - since_u) / rate if rate > 0 else math.inf
            if at_s < until_s:
                break
            if math.isinf(until_s):
                return
            since_u += (until_s - since_s) * rate
            piece += 1
        yield at_s


def _units(arrivals: Arrivals, chance: Random, first: float) -> Iterator[float]:
    """At unit rate, without end."""
    match arrivals.kind:
        case "regular":
            at = 1.0 - first
            while True:
                yield max(0.0, at + arrivals.jitter * (chance.random() - 0.5))
                at += 1.0
        case "trace":
            yield from _of_trace(arrivals.intervals, chance)
        case "poisson":
            shape = 1.0
        case "bursty":
            shape = 1.0 / arrivals.cv**2
    at = 0.0
    while True:
        at += chance.gammavariate(shape, 1 / shape)
        yield at


def _of_trace(intervals: Sequence[float], chance: Random) -> Iterator[float]:
    if not intervals or not sum(intervals) > 0:
        raise ValueError("a trace needs intervals that are not all 0")
    mean = sum(intervals) / len(intervals)
    at, place = 0.0, chance.randrange(len(intervals))
    while True:
        at += intervals[place] / mean
        place = (place + 1) % len(intervals)
        yield at
