"""The journal: what a worker was told to do lately, what its control loops decided, and why. Bounded, and gone with the
worker; what it led to is in the ledger.

Decisions are said as they are made, too, to whoever listens. Delivery guarantee of that: none.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import msgspec
import structlog

from engine.decide.decisions import Decision
from engine.decide.story import Remembered
from streams.decoding import from_json
from streams.errors import Malformed
from streams.subjects import PREFIX
from streams.wire.link import Link
from streams.wire.outbox import Outbox

log = structlog.get_logger(__name__)

MAX_ENTRIES = 20_000
MAX_TOLD = 2_000  # in one answer
OF_SEGMENTS = ("passage", "held up")  # loops that decide of one segment each
STORY = f"{PREFIX}.story"  # asked of all workers at once; each that remembers something answers with a list
DECISIONS = f"{PREFIX}.decisions"  # the same, of decisions; what is decided is said on a subject behind it
MAX_DECISIONS = 4_000  # of each loop


class Recall(msgspec.Struct, frozen=True, kw_only=True):
    """What workers are asked to remember."""

    stream: str
    segment: int | None = None


class OfDecisions(msgspec.Struct, frozen=True, kw_only=True):
    """Which decisions workers are asked to remember."""

    stream: str = ""  # empty: of all
    loop: str = ""


class Journal:
    """The last instructions of one worker."""

    def __init__(self, worker: str) -> None:
        self.worker = worker
        self._entries: deque[tuple[int, str, object, str, str, str]] = deque(maxlen=MAX_ENTRIES)
        self._decisions: dict[str, deque[Decision]] = {}  # by loop: one that decides often drives out no other's
        self.on_decision: Callable[[Decision], None] = lambda decision: None

    def note(self, stream: str, segment: object, stage: str, what: str, why: str) -> None:
        """`segment` is what says which: a number, a key or the last token of a subject."""
        self._entries.append((time.time_ns(), stream, segment, stage, what, why))

    def decided(self, decision: Decision) -> None:
        """A control loop has changed something."""
        inputs = {name: value for name, value in decision.inputs.items() if math.isfinite(value)}  # as JSON has it
        at_ns = decision.at_ns or time.time_ns()
        decision = msgspec.structs.replace(decision, worker=self.worker, at_ns=at_ns, inputs=inputs)
        self._decisions.setdefault(decision.loop, deque(maxlen=MAX_DECISIONS)).append(decision)
        if decision.loop in ("rungs", "held up"):
            segment = decision.segment if decision.loop == "held up" else ""
            self.note(decision.stream, segment, decision.stage, decision.what, decision.why)
        if decision.loop not in OF_SEGMENTS:  # of which there are many, each told with its segment
            told = {name: value for name in ("stream", "stage", "pool") if (value := getattr(decision, name))}
            log.info(decision.loop.replace(" ", "_"), what=decision.what, why=decision.why, **told)
        self.on_decision(decision)

    def decisions(self, stream: str = "", loop: str = "") -> list[Decision]:
        """What was decided lately by each loop or by one, of all streams or of one and of all together, in order."""
        found: list[Decision] = []
        for of, decided in self._decisions.items():
            if loop in ("", of):
                found += [each for each in decided if not stream or each.stream in ("", stream)][-MAX_TOLD:]
        return sorted(found, key=lambda each: each.at_ns)

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

    async def on_decisions(message: Any) -> None:
        try:
            asked = from_json(message.data or b"{}", OfDecisions)
        except Malformed:
            return
        if message.reply:
            told = journal.decisions(asked.stream, asked.loop)
            outbox.send(message.reply, _within(told, link.max_payload_bytes))

    def say(decision: Decision) -> None:
        outbox.send(f"{DECISIONS}.{journal.worker}", msgspec.json.encode(decision))

    watches = [await link.subscribe(STORY, on_question), await link.subscribe(DECISIONS, on_decisions)]
    journal.on_decision = say
    try:
        await anyio.sleep_forever()
    finally:
        for watch in watches:
            await link.unsubscribe(watch)


def _within(decisions: Sequence[Decision], max_bytes: int) -> bytes:
    """As many as fit into one message: the newest, and of segments that were not begun half as many each time, for
    there are more of these than of all others."""
    data = msgspec.json.encode(decisions)
    while len(data) > max_bytes and decisions:
        refused = [each for each in decisions if each.loop == "passage"]
        gone = {id(each) for each in refused[: len(refused) // 2 + 1]}
        decisions = (
            [each for each in decisions if id(each) not in gone] if gone else decisions[len(decisions) // 2 + 1 :]
        )
        data = msgspec.json.encode(decisions)
    return data


def _holds(place: str, segment: int) -> bool:
    first, _, last = place.partition("-")
    return first.isdigit() and int(first) <= segment <= int(last or first)
