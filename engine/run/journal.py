"""The journal: what a worker was told to do lately, and why. Bounded, and gone with the worker; what it led to is in
the ledger."""

import time
from collections import deque
from typing import Any

import anyio
import msgspec

from engine.decide.story import Remembered
from streams.decoding import from_json
from streams.errors import Malformed
from streams.subjects import PREFIX
from streams.wire.link import Link
from streams.wire.outbox import Outbox

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


async def tell_stories(journal: Journal, link: Link, outbox: Outbox) -> None:
    """Tell whoever asks for a story what is remembered of it here. Until canceled."""

    async def on_question(message: Any) -> None:
        try:
            asked = from_json(message.data, Recall)
        except Malformed:
            return
        if message.reply:
            outbox.send(message.reply, msgspec.json.encode(journal.told(asked.stream, asked.segment)[-MAX_TOLD:]))

    watch = await link.subscribe(STORY, on_question)
    try:
        await anyio.sleep_forever()
    finally:
        await link.unsubscribe(watch)


def _holds(place: str, segment: int) -> bool:
    first, _, last = place.partition("-")
    return first.isdigit() and int(first) <= segment <= int(last or first)
