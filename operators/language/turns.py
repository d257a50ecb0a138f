"""Turns: where somebody who talks has come to an end, so that it may be replied. Pure.

A turn ends with a pause of PAUSE_NS, wherever that is, and with a sentence where no more was heard in the segment. So
of a recogniser that writes sentences the reply comes with the segment in which the question ends; of one that does not,
with the next. What has not ended goes on with what the next segment holds, and ends where that holds nothing.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from operators.heard import Speech
from operators.language.sentences import ends_sentence

PAUSE_NS = 900_000_000
MAX_WORDS = 200  # of a turn: who talks for longer is replied to all the same


class Heard(NamedTuple):
    """A whole turn."""

    start_ns: int
    end_ns: int
    text: str
    confidence: float


def turns_of(pending: Sequence[Speech], said: Sequence[Speech]) -> tuple[list[Heard], tuple[Speech, ...]]:
    """The turns that are over, and what is pending then."""
    ordered = sorted(said, key=lambda each: (each.start_ns, each.end_ns))
    ended: list[Heard] = []
    open_ = list(pending)
    if open_ and not ordered:
        return [_heard(open_)], ()
    for each in ordered:
        is_long = sum(len(before.text.split()) for before in open_) >= MAX_WORDS
        if open_ and (is_long or each.start_ns - open_[-1].end_ns >= PAUSE_NS):
            ended.append(_heard(open_))
            open_ = []
        open_.append(each)
    if open_ and open_[-1].text.split() and ends_sentence(open_[-1].text.split()[-1]):
        ended.append(_heard(open_))
        open_ = []
    return [turn for turn in ended if turn.text], tuple(open_)


def _heard(said: Sequence[Speech]) -> Heard:
    text = " ".join(" ".join(each.text for each in said).split())
    confidence = sum(each.confidence for each in said) / len(said)
    return Heard(said[0].start_ns, max(each.end_ns for each in said), text, confidence)


_ASKING = re.compile(
    r"(who|what|when|where|why|which|whose|whom|how|is|are|was|were|do|does|did|can|could|will|would|should|may|has|have"
    r"|am|shall)\b",
    re.IGNORECASE,
)


def is_question(text: str) -> bool:
    """Whether somebody wants to know something, by how it begins or ends."""
    return text.rstrip().endswith("?") or _ASKING.match(text.lstrip()) is not None
