"""The objective: what a job's answers are to keep to, as its user says it.

    latency<2s       an answer comes within 2 s of its segment
    quality>=good    no stage runs on a rung that is worth less than that, against the best that can run

While the machine keeps up, every stage runs on its best rung; where it does not, stages of new segments go down to
rungs that keep the quality asked for, and up again when there is room (`engine.decide.rungs`).

Where there is not room for all live streams, one whose job has twice the weight has nearly twice the share of its own
segments answered (`engine.decide.passage`).

Quality is a share of what the best rung of the stage here is worth, by the figures that rungs declare: `best` is 1,
`good` 0.8, `fair` 0.6, `any` 0. Figures of two capabilities (a word error rate, an average precision) say nothing of
each other.
"""

import re
from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta

from streams.decoding import seconds, shown
from streams.errors import Malformed, UserError

LEVELS = {"best": 1.0, "good": 0.8, "fair": 0.6, "any": 0.0}
MAX_LATENCY_S = 86400.0
LEAST_WEIGHT, MOST_WEIGHT = 0.01, 100.0
Weight = Annotated[float, Meta(ge=LEAST_WEIGHT, le=MOST_WEIGHT)]
_BOUND = re.compile(r"\s*(?P<what>[a-z]+)\s*(?P<sign><=|>=|<|>)\s*(?P<value>\S+)\s*")


class Objective(msgspec.Struct, frozen=True):
    """`latency_s` 0: as the stream's lag allows. `quality`: a share of what the best rung is worth."""

    latency_s: float = 0.0
    quality: float = 1.0


def objective_of(bounds: Iterable[str]) -> Objective:
    """What these say together. Raises UserError with the one that is wrong, and what would be right."""
    found: dict[str, float] = {}
    for text in bounds:
        matched = _BOUND.fullmatch(text)
        what, sign, value = matched.group("what", "sign", "value") if matched else ("", "", "")
        if (what, sign[:1]) not in (("latency", "<"), ("quality", ">")):
            raise UserError(f"slo {shown(text)}: give latency<2s or quality>=good")
        if what in found:
            raise UserError(f"slo {shown(text)}: {what} is bounded twice: give it once")
        found[what] = _latency(text, value) if what == "latency" else _quality(text, value)
    if "latency" not in found and found.get("quality", 1.0) < 1.0:
        raise UserError("slo: a bound of quality alone lowers nothing: give latency as well, such as latency<2s")
    return Objective(found.get("latency", 0.0), found.get("quality", 1.0))


def _latency(text: str, value: str) -> float:
    try:
        latency_s = float(value.removesuffix("ms")) / 1000 if value.endswith("ms") else seconds(value)
    except (Malformed, ValueError):
        latency_s = 0.0
    if not 0 < latency_s <= MAX_LATENCY_S:
        raise UserError(f"slo {shown(text)}: give a time such as latency<2s or latency<800ms, of a day at most")
    return latency_s


def _quality(text: str, value: str) -> float:
    try:
        quality = LEVELS[value] if value in LEVELS else float(value)
    except ValueError:
        quality = -1.0
    if not 0 <= quality <= 1:
        raise UserError(f"slo {shown(text)}: give {', '.join(LEVELS)}, or a share of the best from 0 to 1")
    return quality
