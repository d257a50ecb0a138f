"""The journal: what a worker was told to do lately, and why. Bounded, and gone with the worker; what it led to is in
the ledger."""

import time
from collections import deque

import msgspec

from engine.decide.story import Remembered
from streams.subjects import PREFIX

MAX_ENTRIES = 20_000
MAX_TOLD = 2_000  # in one answer
STORY = f"{PREFIX}.story"  # asked of all workers at once; each that remembers something answers with a list


class Recall(msgspec.Struct, frozen=True, kw_only=True):
    """What workers are asked to remember."""

    stream: str
    segment: int | None = None


class Journal:
    """The last instructions of one worker."""

    def __init__(self, worker: str) -> None:
        self.worker = worker
        self._entries: deque[tuple[int, str, object, str, str, str]] = deque(maxlen=MAX_ENTRIES)

    def note(self, stream: str, segment: object, stage: str, what: str, why: str) -> None:
        """`segment` is what says which: a number, a key or the last token of a subject."""
        self._entries.append((time.time_ns(), stream, segment, stage, what, why))

    def told(self, stream: str, segment: int | None = None) -> list[Remembered]:
        """What was done for a stream, or for outputs that a segment belongs to, in order."""
        return [
            Remembered(at_ns=at, stream=of, segment=str(place), stage=stage, what=what, why=why, worker=self.worker)
            for at, of, place, stage, what, why in self._entries
            if of == stream and (segment is None or _holds(str(place), segment))
        ]


def _holds(place: str, segment: int) -> bool:
    first, _, last = place.partition("-")
    return first.isdigit() and int(first) <= segment <= int(last or first)
