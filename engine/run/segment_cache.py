"""What a worker has at hand of one stream: records it has read or written, decoded, within a bound.

The ledger is the truth; the shelf only saves reading and decoding twice. Results are write-once, so nothing on the
shelf can be stale, but a gap may be replaced once, so gaps are not kept.
"""

import time
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import msgspec

from engine.spec.operator import Media
from engine.spec.workflow import MEDIA
from streams import subjects
from streams.errors import Malformed, Permanent
from streams.records import EndOfStream, Gap, Result, Segment, decode_media, decode_output, decode_result
from streams.subjects import Key
from streams.wire.ledger import Ledger, Stored

MAX_RESULTS = 4096
KEEP_RESULTS_S = 120.0  # since a result was last asked for: longer than any segment, so windows find theirs here


class Known(msgspec.Struct, frozen=True, eq=False):
    """A stored input: its place in the order of storing, and its value (None where it is a gap)."""

    seq: int
    traceparent: str
    value: Any = None
    gap: Gap | None = None


class Shelf:
    """Inputs of one stream by source and segment."""

    def __init__(self, ledger: Ledger, stream: str, max_segments: int) -> None:
        self.stream = subjects.token(stream)
        self._ledger = ledger
        self._decoders: dict[str, msgspec.msgpack.Decoder[Any]] = {}
        self._demands: tuple[Hashable, ...] = ()
        self._media: OrderedDict[int, Known] = OrderedDict()
        self._results: OrderedDict[tuple[str, Key], tuple[Known, float]] = OrderedDict()  # the last asked for last
        self._max_segments = max_segments
        self._end: tuple[int, EndOfStream] | None = None

    @property
    def num_segments(self) -> int | None:
        """How many segments the stream has, if that is known here already."""
        return None if self._end is None else self._end[1].num_segments

    def media(self) -> dict[int, Media]:
        """The segments at hand."""
        return {index: known.value for index, known in self._media.items()}

    async def end(self) -> tuple[int, EndOfStream] | None:
        """The stream's end and where it stands in the order of storing; None while it goes on."""
        if self._end is None:
            stored = await self._ledger.get(subjects.media_end(self.stream))
            if stored is not None:
                self.keep_media(None, stored.seq, stored.data, stored.traceparent)
        return self._end

    async def get(self, source: str, indices: Iterable[int]) -> dict[int, Known]:
        """The inputs of these segments that are stored."""
        found: dict[int, Known] = {}
        missing: dict[str, int] = {}
        for index in indices:
            known = self._media.get(index) if source == MEDIA else self._result((source, Key.of(index)))
            if known is not None:
                found[index] = known
            elif source == MEDIA:
                missing[subjects.media(self.stream, index)] = index
            else:
                missing[subjects.result(source, self.stream, Key.of(index))] = index
        if missing:
            for subject, stored in (await self._ledger.get_many(missing)).items():
                found[missing[subject]] = self._keep(source, missing[subject], stored)
        lost = [index for index in missing.values() if source == MEDIA and index not in found]
        if lost and found and min(lost) < max(found):  # media are stored in order, so these may have been there once
            kept = subjects.keys_of(await self._ledger.subjects(subjects.media_of(self.stream)))
            first = min((key.first for key in kept), default=0)
            found |= {index: Known(0, "", gap=_evicted(self.stream, index)) for index in lost if index < first}
        return found

    def serve(self, outputs: Mapping[str, type[msgspec.Struct]], demands: tuple[Hashable, ...]) -> None:
        """Know the stages that are read from here from now on, and what will be asked of the media's decoder."""
        for stage, type in outputs.items():
            if stage not in self._decoders:
                self._decoders[stage] = msgspec.msgpack.Decoder(type)
        self._demands = demands

    def _keep(self, source: str, index: int, stored: Stored) -> Known:
        if source == MEDIA:
            known = self.keep_media(index, stored.seq, stored.data, stored.traceparent)
            assert known is not None  # only a stream's end has no index
            return known
        return self.keep_result(source, Key.of(index), stored.seq, stored.data, stored.traceparent)

    def keep_media(self, index: int | None, seq: int, data: bytes, traceparent: str) -> Known | None:
        """Take in what a media subject holds; None for the end of the stream. A record that cannot be read counts as a
        gap that says so."""
        if index is not None and (kept := self._media.get(index)) is not None:
            return kept
        try:
            record = decode_media(data)
            if isinstance(record, EndOfStream) != (index is None):
                raise Malformed(f"it is a {type(record).__name__}, which has no place there")
        except Malformed as error:
            if index is None:
                raise Permanent(f"the end of stream {self.stream} cannot be read: {error}") from error
            record = self._unreadable(MEDIA, Key.of(index), error)
        match record:
            case EndOfStream():
                self._end = (seq, record)
                return None
            case Gap():
                return Known(seq, traceparent, gap=record)
            case Segment():
                known = Known(seq, traceparent, Media(record, self._demands))
                self._media[record.index] = known
                while len(self._media) > self._max_segments:
                    self._media.popitem(last=False)
                return known

    def keep_result(self, stage: str, key: Key, seq: int, data: bytes, traceparent: str) -> Known:
        """Take in what a result subject holds."""
        try:
            record = decode_result(data)
            value = decode_output(self._decoders[stage], record) if isinstance(record, Result) else None
        except Malformed as error:
            record, value = self._unreadable(stage, key, error), None
        if isinstance(record, Gap):
            return Known(seq, traceparent, gap=record)
        return self.keep_value(stage, key, Known(seq, traceparent, value))

    def keep_value(self, stage: str, key: Key, known: Known) -> Known:
        """Take in a result that was computed here."""
        if known.gap is None:
            now_s = time.monotonic()
            self._results[stage, key] = known, now_s
            self._results.move_to_end((stage, key))
            while len(self._results) > MAX_RESULTS or self._oldest_s() < now_s - KEEP_RESULTS_S:
                self._results.popitem(last=False)
        return known

    def _result(self, key: tuple[str, Key]) -> Known | None:
        if (kept := self._results.get(key)) is None:
            return None
        self._results[key] = kept[0], time.monotonic()
        self._results.move_to_end(key)
        return kept[0]

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
