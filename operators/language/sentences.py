"""Words of speech with their times, and where a sentence ends."""

import re
from typing import NamedTuple

from operators.heard import Speech

_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*$")
_ABBREVIATION = re.compile(r"^(?:\w|mr|mrs|ms|dr|prof|st|no|vs|etc|tel|approx|[a-z]\.[a-z])\.$", re.IGNORECASE)


class Timed(NamedTuple):
    """A word, and when it is said."""

    start_ns: int
    end_ns: int
    text: str


def timed_words(said: Speech) -> list[Timed]:
    """The words of an utterance with their times; where they are unknown, spread evenly over its letters."""
    pieces = said.text.split()
    if len(pieces) == len(said.words):
        return [Timed(word.start_ns, word.end_ns, piece) for word, piece in zip(said.words, pieces, strict=True)]
    total = sum(map(len, pieces))
    span, done = said.end_ns - said.start_ns, 0
    timed: list[Timed] = []
    for piece in pieces:
        start = said.start_ns + span * done // total
        done += len(piece)
        timed.append(Timed(start, said.start_ns + span * done // total, piece))
    return timed


def ends_sentence(word: str) -> bool:
    return not word[-1].isalnum() and bool(_SENTENCE_END.search(word)) and not _ABBREVIATION.match(word)
