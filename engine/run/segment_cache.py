"""What a worker has at hand of one stream: records it has read or written, decoded, within a bound.

The ledger is the truth; the cache only saves reading and decoding twice. Results are write-once, so nothing in it can
be stale, but a gap may be replaced once, so gaps are not kept.
"""

import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import anyio
import msgspec

from engine.decide.instructions import Found, Known, Read
from engine.spec.operator import Media
from engine.spec.workflow import MEDIA
from streams import subjects
from streams.decoding import shown
from streams.errors import Malformed
from streams.records import EndOfStream, Gap, Result, Segment, decode_media, decode_output, decode_result
from streams.subjects import Key
from streams.wire.ledger import Ledger, Stored

MAX_RESULTS = 4096
MAX_SEGMENTS = 256  # of a stream: what is kept of many small ones is looked through by each pass of Python's collector
DEFAULT_MAX_BYTES = 1 << 25
OVERHEAD_BYTES = 1024  # of a segment, beside its media
MAX_ASKED = 4096  # by name; of more it is looked what is there
MAX_EVICTED = 1_000_000  # segments before the first that is kept that are remembered to have been there
LOOK_S = 1.0
KEEP_RESULTS_S = 120.0  # since a result was last asked for: longer than any segment, so windows find theirs here


class SegmentCache:
    """Inputs of one stream by source and segment."""

    def __init__(self, ledger: Ledger, stream: str) -> None:
        self.stream = subjects.token(stream)
        self._ledger = ledger
        self._decoders: dict[str, msgspec.msgpack.Decoder[Any]] = {}
        self._media: OrderedDict[int, tuple[Known, int]] = OrderedDict()  # with the bytes of each
        self._results: OrderedDict[tuple[str, Key], tuple[Known, float]] = OrderedDict()  # the last asked for last
        self._look_s = 0.0  # when to look next for what nobody asks for any more (monotonic)
        self._reading = anyio.Lock()  # of media
        self.max_bytes = DEFAULT_MAX_BYTES  # of the segments at hand, beyond those that one output looks at
        self.num_looked_at = 1  # at once, by the widest view
        self.num_bytes = 0
        self._end: tuple[int, EndOfStream] | None = None

    @property
    def num_segments(self) -> int | None:
        """How many segments the stream has, if that is known here already."""
        return None if self._end is None else self._end[1].num_segments

    async def end(self) -> tuple[int, EndOfStream] | None:
        """The stream's end and where it stands in the order of storing; None while it goes on."""
        if self._end is None:
            stored = await self._ledger.get(subjects.media_end(self.stream))
            if stored is not None:
                self.keep_media(None, stored)
        return self._end

    # --- what a rule asks for ----------------------------------------------------------------------------------

    def peek(self, read: Read) -> Found | None:
        """What is stored of all that is asked for, if it can be said without asking the ledger."""
        if read.own or read.tails or (read.end and self._end is None):
            return None
        inputs: dict[str, dict[int, Known]] = {}
        for source, indices in read.wants.items():
            there = inputs[source] = {}
            for index in indices:
                known = self._at_hand(source, index)
                if known is None:
                    return None
                there[index] = known
        previous = None
        if read.previous is not None:
            previous = self._at_hand(read.stage.id, read.previous)
            if previous is None:
                return None
        return Found(inputs=inputs, previous=previous, end=self._end_place() if read.end else None)

    async def look(self, read: Read) -> Found:
        """What is stored of all that is asked for."""
        end = None
        if read.end:
            await self.end()
            end = self._end_place()
        own = None
        if read.own:
            stored = await self._ledger.get(subjects.result(read.stage.id, self.stream, read.key))
            if stored is not None:
                return Found(own=self.keep_result(read.stage.id, read.key, stored), end=end)
        tails: dict[str, int] = {}
        for source in read.tails:
            every = subjects.media_of(self.stream) if source == MEDIA else subjects.results_of(source, self.stream)
            tails[source] = await self._ledger.last_seq(every)
        inputs = {source: await self.get(source, indices) for source, indices in read.wants.items()}
        previous = None
        if read.previous is not None:
            previous = (await self.get(read.stage.id, [read.previous])).get(read.previous)
        return Found(inputs=inputs, previous=previous, own=own, end=end, tails=tails)

    async def get(self, source: str, indices: Iterable[int]) -> dict[int, Known]:
        """The inputs of these segments that are stored."""
        if source != MEDIA:
            return await self._get(source, indices)
        async with self._reading:  # neighbours' views overlap: what one has read the next need not
            return await self._get(source, indices)

    async def _get(self, source: str, indices: Iterable[int]) -> dict[int, Known]:
        found: dict[int, Known] = {}
        missing: dict[str, int] = {}
        if isinstance(indices, range) and len(indices) > MAX_ASKED:
            found, indices = await self._of_many(source, indices)
        for index in indices:
            known = self._at_hand(source, index)
            if known is not None:
                found[index] = known
            elif source == MEDIA:
                missing[subjects.media(self.stream, index)] = index
            else:
                missing[subjects.result(source, self.stream, Key.of(index))] = index
        if missing:
            for subject, stored in (await self._ledger.get_many(missing)).items():
                index = missing[subject]
                known = (
                    self.keep_media(index, stored)
                    if source == MEDIA
                    else self.keep_result(source, Key.of(index), stored)
                )
                if known is not None:
                    found[index] = known
        lost = [index for index in missing.values() if source == MEDIA and index not in found]
        if lost and found and min(lost) < max(found):  # media are stored in order, so these may have been there once
            kept = subjects.keys_of(await self._ledger.subjects(subjects.media_of(self.stream)))
            first = min((key.first for key in kept), default=0)
            found |= {index: Known(0, gap=_evicted(self.stream, index)) for index in lost if index < first}
        return found

    async def _of_many(self, source: str, indices: range) -> tuple[dict[int, Known], list[int]]:
        """Of a range that may be said to be as long as anybody likes: those that are there, and media that were."""
        every = subjects.media_of(self.stream) if source == MEDIA else subjects.results_of(source, self.stream)
        kept = sorted(
            {key.first for key in subjects.keys_of(await self._ledger.subjects(every)) if key.first == key.last}
        )
        there = [index for index in kept if index in indices]
        if source != MEDIA or not kept:
            return {}, there
        gone = range(max(indices.start, kept[0] - MAX_EVICTED), min(kept[0], indices.stop))
        return {index: Known(0, gap=_evicted(self.stream, index)) for index in gone}, there

    # --- what is kept ------------------------------------------------------------------------------------------

    def serve(self, outputs: Mapping[str, type[msgspec.Struct]]) -> None:
        """Know the stages that are read from here from now on, by what they give; what others give is not kept."""
        for stage, kind in outputs.items():
            if stage not in self._decoders:
                self._decoders[stage] = msgspec.msgpack.Decoder(kind)

    def keep_media(self, index: int | None, stored: Stored) -> Known | None:
        """Take in what a media subject holds; None for the end of the stream, also one that cannot be read. A segment
        that cannot be read counts as a gap that says so."""
        if index is not None and (kept := self._media.get(index)) is not None:
            if kept[0].seq == stored.seq:
                return kept[0]
            self._media.clear()  # the stream was made anew
            self.num_bytes = 0
        try:
            record = decode_media(stored.data)
            if isinstance(record, EndOfStream) != (index is None):
                raise Malformed(f"it is a {type(record).__name__}, which has no place there")
            if isinstance(record, Segment) and (record.stream, record.index) != (self.stream, index):
                raise Malformed(f"it says it is segment {record.index} of {shown(record.stream)}")
        except Malformed as error:
            if index is None:
                return None
            record = self._unreadable(MEDIA, Key.of(index), error)
        match record:
            case EndOfStream():
                self._end = (stored.seq, record)
                return None
            case Gap():
                return Known(stored.seq, stored.traceparent, gap=record, due_ns=stored.due_ns)
            case Segment():
                known = Known(stored.seq, stored.traceparent, Media(record), due_ns=stored.due_ns)
                num_bytes = len(stored.data) + OVERHEAD_BYTES
                self._media[record.index] = known, num_bytes
                self.num_bytes += num_bytes
                while len(self._media) > self.num_looked_at and (
                    self.num_bytes > self.max_bytes or len(self._media) > MAX_SEGMENTS
                ):
                    self.num_bytes -= self._media.popitem(last=False)[1][1]
                return known

    def keep_result(self, stage: str, key: Key, stored: Stored) -> Known:
        """Take in what a result subject holds."""
        kept = self._results.get((stage, key))
        if kept is not None and kept[0].seq == stored.seq:
            return kept[0]
        try:
            record = decode_result(stored.data)
            if (record.stage, record.stream, record.first, record.last) != (stage, self.stream, *key):
                raise Malformed(
                    f"it says it is of {shown(record.stage)}, {shown(record.stream)}, {record.first}-{record.last}"
                )
            decoder = self._decoders.get(stage)
            value = decode_output(decoder, record) if isinstance(record, Result) and decoder is not None else None
        except Malformed as error:
            record, value = self._unreadable(stage, key, error), None
        if isinstance(record, Gap):
            return Known(stored.seq, stored.traceparent, gap=record, due_ns=stored.due_ns)
        return self.keep_value(stage, key, Known(stored.seq, stored.traceparent, value, due_ns=stored.due_ns))

    def keep_value(self, stage: str, key: Key, known: Known) -> Known:
        """Take in a result that was computed here."""
        if known.gap is None and stage in self._decoders:
            now_s = time.monotonic()
            self._results[stage, key] = known, now_s
            if len(self._results) > MAX_RESULTS:
                self._results.popitem(last=False)
            elif now_s > self._look_s:
                self._look_s = now_s + LOOK_S
                while self._oldest_s() < now_s - KEEP_RESULTS_S:
                    self._results.popitem(last=False)
        return known

    def _at_hand(self, source: str, index: int) -> Known | None:
        if source == MEDIA:
            at_hand = self._media.get(index)
            if at_hand is None:
                return None
            self._media.move_to_end(index)
            return at_hand[0]
        key = source, Key(index, index)
        kept = self._results.get(key)
        if kept is None:
            return None
        self._results[key] = kept[0], time.monotonic()
        self._results.move_to_end(key)
        return kept[0]

    def _end_place(self) -> tuple[int, int] | None:
        return None if self._end is None else (self._end[0], self._end[1].num_segments)

    def _oldest_s(self) -> float:
        return next(iter(self._results.values()))[1]

    def _unreadable(self, source: str, key: Key, error: Exception) -> Gap:
        detail = f"the stored record cannot be read: {error}"
        return Gap(
            stage=source, stream=self.stream, first=key.first, last=key.last, cause="dead_lettered", detail=detail
        )


def _evicted(stream: str, index: int) -> Gap:
    detail = "it fell out of retention before it was looked at"
    return Gap(stage=MEDIA, stream=stream, first=index, last=index, cause="dropped", detail=detail)
