"""Choosing: which rung computes a stage here. Pure but for asking each implementation whether it can run.

It is the best by declared quality of those that can do what is asked of the capability, look at nothing that the stage
is not given, run on this machine or another node's, and wait for no more of the stream than they should.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import inf
from typing import Literal

from engine.spec.catalogue import Catalogue, Offer, raised
from engine.spec.operator import Capability, Machine, Map, Operator, Rung, Scope, Settings
from streams.errors import UserError
from streams.records import MediaInfo


@dataclass(frozen=True, slots=True)
class Pace:
    """How a stream comes: in segments of about `segment_s`, and, of a live one, each worth nothing once it is
    `max_lag_s` old; 0: it never is."""

    segment_s: float = 5.0
    max_lag_s: float = 0.0

    @property
    def max_wait_s(self) -> float:
        """For how much more of the stream a stage may wait: the rest of the lag is for computing."""
        return self.max_lag_s / 2 if self.max_lag_s else inf

    def waits_s(self, operator: type[Operator], rung: Rung) -> float:
        scope = operator.scope_of(rung.knobs, self.segment_s)
        return scope.after * self.segment_s if isinstance(scope, Map) else 0.0

    def told(self, rung: Rung, waits_s: float) -> str:
        return f"{rung.name} waits for {waits_s:g} s more of the stream, which may lag {self.max_lag_s:g} s"


USUAL = Pace()
Judged = Mapping[tuple[str, str], float]  # by capability and rung, on labels that are the same for a capability
NOT_JUDGED: Judged = {}


def rung_on(capability: str, rung: str, device: str) -> str:
    """What a node says of a rung that it can run."""
    return f"{capability}/{rung}/{device}"


def runnable(catalogue: Catalogue, machine: Machine) -> list[str]:
    """All that can run on a machine, whatever the media; asks each implementation what it lacks."""
    return [
        rung_on(name, offer.rung.name, offer.device_on(machine))
        for name in catalogue.capabilities
        for offer in catalogue.offers(name)
        if offer.missing(machine, None) is None
    ]


def device_for(
    offer: Offer,
    capability: Capability,
    machine: Machine,
    media: MediaInfo | None,
    elsewhere: Collection[str],
) -> Literal["cpu", "cuda"]:
    """Where a rung that was chosen is to run: here if it can, else where it can."""
    if offer.missing(machine, media) is None:
        return offer.device_on(machine)
    return "cuda" if rung_on(capability.name, offer.rung.name, "cuda") in elsewhere else "cpu"


def choose(
    catalogue: Catalogue,
    capability: Capability,
    machine: Machine,
    media: MediaInfo | None,
    elsewhere: Collection[str] = (),
    pace: Pace = USUAL,
    params: Settings | None = None,
    given: Collection[str] | None = None,
) -> tuple[type[Operator], Rung, list[str]]:
    """The best rung that can do what is asked of the ports that are given (None: all), can run here or on another node
    and waits for no more of the stream than it should, or, where each waits longer, the one that waits least; and a
    line that says why no better one. Raises UserError if none can run."""
    reasons: list[str] = []
    unable: list[str] = []  # whatever is here
    slow: list[tuple[float, type[Operator], Rung]] = []
    for offer in catalogue.offers(capability.name):
        operator, rung = offer
        why_not = offer.cannot(params) if params is not None else None
        if why_not is None and given is not None:
            why_not = _lacks(offer, given)
        if why_not is not None:
            unable.append(why_not)
            continue
        reason = offer.missing(machine, media)
        if reason is not None and any(rung_on(capability.name, rung.name, d) in elsewhere for d in operator.devices):
            here = offer.missing(machine, None)
            reason = None if here is not None else reason  # what is lacking is this machine's, not the media's
        waits_s = 0.0
        if reason is None:
            try:
                operator(rung.knobs).demands()
                waits_s = pace.waits_s(operator, rung)
            except Exception as error:  # another may be chosen
                reason = raised(operator, "scope_of() or demands()", error)
        if reason is None and waits_s > pace.max_wait_s:
            slow.append((waits_s, operator, rung))
            reason = pace.told(rung, waits_s)
        elif reason is None:
            why = "; ".join(dict.fromkeys(reasons))
            said = [f"{capability.name} runs on {rung.name}: {why}"] if why else []
            return operator, rung, said
        reasons.append(reason)
    if slow:
        waits_s, operator, rung = min(slow, key=lambda each: each[0])
        return operator, rung, [pace.told(rung, waits_s)]
    raise UserError(f"nothing here can compute {capability.name!r}: {'; '.join(dict.fromkeys([*reasons, *unable]))}")


def lower(
    catalogue: Catalogue,
    capability: Capability,
    best: Offer,
    machine: Machine,
    media: MediaInfo | None,
    elsewhere: Collection[str],
    pace: Pace,
    params: Settings,
    given: Collection[str],
    floor: float,
    judged: Judged = NOT_JUDGED,
) -> list[tuple[Offer, float]]:
    """The rungs below the best that may take its place under load, the best first, each with what it is worth of that:
    at least `floor`, able to do the same here or on another node, and reading the same in the same way, so that nothing
    else changes."""
    if floor >= 1.0 or not best.rung.quality:
        return []
    try:
        alike = _reads_as(best, pace)
        offers = catalogue.offers(capability.name)
        return [
            (offer, min(1.0, round(right / of, 4)))
            for offer in offers[offers.index(best) + 1 :]
            for right, of in [worth_of(capability.name, offer.rung, best.rung, judged)]
            if right >= floor * of
            and offer.cannot(params) is None
            and _lacks(offer, given) is None
            and _runs_somewhere(offer, capability, machine, media, elsewhere)
            and _reads_as(offer, pace) == alike
        ]
    except Exception:  # an operator's own, which was well a moment ago: there is the best rung still
        return []


def worth_of(capability: str, rung: Rung, best: Rung, judged: Judged) -> tuple[float, float]:
    """How good a rung and the best one are: as both were measured to be on the same labels, where they were, else as
    they declare."""
    here, there = judged.get((capability, rung.name)), judged.get((capability, best.name))
    return (here, there) if here is not None and there else (rung.quality, best.quality)


def _runs_somewhere(
    offer: Offer, capability: Capability, machine: Machine, media: MediaInfo | None, elsewhere: Collection[str]
) -> bool:
    if offer.missing(machine, media) is None:
        return True
    rungs = (rung_on(capability.name, offer.rung.name, device) for device in offer.operator.devices)
    return offer.missing(machine, None) is not None and any(rung in elsewhere for rung in rungs)


def _reads_as(offer: Offer, pace: Pace) -> tuple[Scope, frozenset[str] | None, frozenset[str], str]:
    """How a rung reads its inputs: what of it makes stages run together, and outputs wait for inputs."""
    operator, knobs = offer.operator, offer.rung.knobs
    kinds = frozenset(type(demand).__qualname__ for demand in operator(knobs).demands())
    return operator.scope_of(knobs, pace.segment_s), operator.reads(knobs), kinds, operator.runs_in


def _lacks(offer: Offer, given: Collection[str]) -> str | None:
    """What a rung would look at that a stage does not have, in one line."""
    try:
        read = offer.operator.reads(offer.rung.knobs) or frozenset()
    except Exception as error:
        return raised(offer.operator, "reads()", error)
    lacking = sorted(read.difference(given))
    return f"{offer.rung.name} reads {lacking[0]!r}, which this stage is not given" if lacking else None
