"""Stretches of a stream: which of its stored segments holds a moment, as people write it."""

import re
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Literal

import msgspec
import structlog

from engine.decide.answer import time_of_day
from engine.node.ends import readable_end
from streams import subjects
from streams.decoding import shown
from streams.errors import Malformed, UserError
from streams.records import EndOfStream, Segment, decode_media
from streams.wire.ledger import Ledger

log = structlog.get_logger(__name__)

SLACK_NS = 10_000_000_000  # how far behind the newest segment "now" may lie: clocks differ, and one is being made

_OFFSET = re.compile(r"-([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)?")
_UNIT_S = {"ms": 0.001, "s": 1.0, None: 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_CLOCK = re.compile(r"(?:([0-9]{1,9}):)?(?:([0-9]{1,2}):)?([0-9]{1,9}(?:\.[0-9]{1,9})?)s?")

Ruler = Literal["media", "wall"]


class Kept(msgspec.Struct, frozen=True):
    """What is stored of a stream."""

    kept: Sequence[int]  # segments, in order
    end: EndOfStream | None

    @property
    def first(self) -> int:
        return self.kept[0] if self.kept else 0

    @property
    def next(self) -> int:
        return self.kept[-1] + 1 if self.kept else 0


async def kept_of(ledger: Ledger, stream: str) -> Kept:
    keys = subjects.keys_of(await ledger.subjects(subjects.media_of(stream)))
    return Kept(sorted(key.first for key in keys), await readable_end(ledger, stream))


async def segment_of(ledger: Ledger, stream: str, index: int) -> Segment | None:
    """None where there is none, or what is there cannot be read."""
    found = await _looked(ledger, stream, index)
    return None if found is None else found[0]


async def _looked(ledger: Ledger, stream: str, index: int) -> tuple[Segment, int] | None:
    """A segment, and when it was stored."""
    noted = await ledger.look(subjects.media(stream, index))
    try:
        record = None if noted is None else decode_media(noted.record.data)
    except Malformed as error:
        log.warning("not_read", stream=stream, segment=index, error=str(error))
        return None
    return (record, noted.stored_ns) if noted is not None and isinstance(record, Segment) else None


def parse_moment(text: str, now_ns: int) -> tuple[Ruler, int] | None:
    """A moment as people write it: `-10m` before now, `1:05` or `65s` of media time, `2026-11-21T08:00:00Z`; as the
    ruler it is measured on and nanoseconds; None for `now`. Raises UserError on anything else."""
    said = text.strip()
    if said == "now":
        return None
    if match := _OFFSET.fullmatch(said):
        return "wall", now_ns - round(float(match[1]) * _UNIT_S[match[2]] * 1e9)
    if match := _CLOCK.fullmatch(said):
        hours, minutes = (match[1], match[2]) if match[2] else (None, match[1])
        return "media", round((int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(match[3])) * 1e9)
    try:
        moment = datetime.fromisoformat(said)
    except ValueError:
        raise UserError(f"{shown(text)} is no moment: write -10m, 1:05, now or 2026-11-21T08:00:00Z") from None
    if moment.tzinfo is None:
        raise UserError(f"{shown(text)} does not say where: end it with Z, or +01:00 and the like")
    try:
        return "wall", int(moment.timestamp() * 1_000_000) * 1000
    except (OverflowError, ValueError):
        raise UserError(f"{shown(text)} is no moment: no clock shows it") from None


async def index_at(ledger: Ledger, stream: str, media: Kept, text: str, is_live: bool) -> int:
    """The segment that holds a moment; the first that is kept where the moment is before it. Raises UserError where it
    is behind all there is, unless more of a recording is still to come."""
    moment = parse_moment(text, time.time_ns())
    if moment is None or not media.kept:
        return max(0, media.next - 1)
    ruler, wanted_ns = moment
    if (beyond := await _beyond(ledger, stream, media, ruler, wanted_ns)) and (media.end is not None or is_live):
        raise UserError(f"{text} lies beyond stream {stream!r}, {beyond}")
    low, high = 0, len(media.kept) - 1  # the last segment that begins at or before the moment
    while low < high:
        middle = (low + high + 1) // 2
        began_ns = await _began(ledger, stream, media.kept, middle, ruler)
        if began_ns is not None and began_ns <= wanted_ns:
            low = middle
        else:
            high = middle - 1
    return media.kept[low]


async def moment_in(ledger: Ledger, stream: str, media: Kept, text: str) -> tuple[Segment, int]:
    """The segment that holds a moment, and which media time that is, in ns; `now` is its end. Raises UserError where
    none is stored for it."""
    index = await index_at(ledger, stream, media, text, is_live=True)
    found = await _looked(ledger, stream, index)
    if found is None:
        raise UserError(f"nothing of stream {stream!r} is stored for {text}")
    record, stored_ns = found
    moment = parse_moment(text, time.time_ns())
    if moment is None:
        return record, record.start_ns + record.duration_ns
    ruler, wanted_ns = moment
    return record, wanted_ns - _began_at(record, stored_ns, ruler) + record.start_ns


async def _beyond(ledger: Ledger, stream: str, media: Kept, ruler: Ruler, wanted_ns: int) -> str:
    """What range there is, where a moment is behind it."""
    for index in reversed(media.kept[-8:]):
        found = await _looked(ledger, stream, index)
        if found is None:
            continue
        record = found[0]
        began_ns = _began_at(*found, ruler)
        if wanted_ns <= began_ns + record.duration_ns + SLACK_NS:
            return ""
        first_ns = await _began(ledger, stream, media.kept, 0, ruler) or 0
        write = _media_time if ruler == "media" else time_of_day
        return f"which holds {write(first_ns)} to {write(began_ns + record.duration_ns)}"
    return ""


def _media_time(ns: int) -> str:
    """As people write it, such as 1:05.2."""
    minutes, seconds = divmod(ns / 1e9, 60)
    return f"{int(minutes)}:{seconds:04.1f}"


def _began_at(record: Segment, stored_ns: int, ruler: Ruler) -> int:
    """One that does not say when it was captured counts as captured when it was stored, but for its own length."""
    return record.start_ns if ruler == "media" else record.captured_ns or stored_ns - record.duration_ns


async def _began(ledger: Ledger, stream: str, kept: Sequence[int], at: int, ruler: Ruler) -> int | None:
    """When a segment began; of one that is a gap, the one before it."""
    for index in reversed(kept[max(0, at - 8) : at + 1]):
        if (found := await _looked(ledger, stream, index)) is not None:
            return _began_at(*found, ruler)
    return None
