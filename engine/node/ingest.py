"""Ingest: the records of a source, from the thread that reads it to the ledger.

Delivery guarantee: records are stored in order, each acknowledged before the next is read, so a source is never further
ahead of the ledger than one record. A source that must not lose anything is held back by `room`, which returns when
there is room beyond so many segments; one that cannot be held back (a camera) has none, and stages that fall behind
publish gaps.
"""

import time
from collections.abc import Awaitable, Callable, Iterator

import anyio
import anyio.to_thread

from engine.run import conventions as names
from engine.run.gaps import note_gaps
from engine.run.telemetry import Telemetry
from streams import subjects
from streams.errors import PenstockError
from streams.records import EndOfStream, Gap, MediaMessage, Segment, encode
from streams.wire.ledger import Ledger


async def no_bound(num_segments: int) -> None:
    """Room for whatever comes."""


async def ingest(
    ledger: Ledger,
    stream: str,
    source: Iterator[MediaMessage],
    traces: Telemetry,
    *,
    parent: str = "",
    room: Callable[[int], Awaitable[None]] = no_bound,
    alone: bool = False,
    max_lag_s: float = 0.0,
    on_record: Callable[[Segment | Gap], None] = lambda record: None,
) -> EndOfStream | None:
    """Store all that the source gives; its end, or None where it stopped without one. With `alone`, a segment that
    stands there already was put there by somebody else: PenstockError. Without, it is the same one, stored by an
    earlier run. With `max_lag_s`, each segment leaves with the time at which what is made of it is worth nothing any
    more, by the server's clock. Each begins a trace, linked to `parent`, the span of who brings them. Raises UserError
    if the source cannot be read."""
    last_trace = parent
    own_thread = anyio.CapacityLimiter(1)  # a source that blocks takes no thread from others
    while True:
        started_ns = time.time_ns()
        record = await anyio.to_thread.run_sync(next, source, None, abandon_on_cancel=True, limiter=own_thread)
        if record is None:
            return None
        if isinstance(record, EndOfStream):
            if record.num_segments:
                await ledger.put(subjects.media_end(stream), encode(record), last_trace)
            return record
        index = record.index if isinstance(record, Segment) else record.first
        told = {**names.messaging("publish", names.MEDIA), names.STREAM: stream, names.SEGMENT: str(index)}
        span = traces.span(names.PUBLISH_MEDIA, kind="producer", started_ns=started_ns, links=[parent], attributes=told)
        data = encode(record)
        due_ns = 0
        if max_lag_s:
            await ledger.clock.estimate_now_and_then()
            due_ns = ledger.clock.now_ns() + round(max_lag_s * 1e9)
        placed = await ledger.put(subjects.media(stream, index), data, span.traceparent, due_ns)
        if isinstance(record, Gap):
            span.end(None, {names.GAP: record.cause}, error=f"{record.cause}: {record.detail}")
        else:
            span.end(None, {names.BODY_BYTES: len(data)})
        last_trace = span.traceparent
        if placed.fresh and isinstance(record, Gap):
            await note_gaps(ledger, [record])
        if alone and not placed.fresh and not await _is_ours(ledger, subjects.media(stream, index), data):
            raise PenstockError(f"segment {index} of {stream} is there already: somebody else feeds this stream, too")
        on_record(record)
        await room(index + 1)


async def _is_ours(ledger: Ledger, subject: str, data: bytes) -> bool:
    """Whether what stands there is what we stored ourselves, when the word of it was lost on the way."""
    stored = await ledger.get(subject)
    return stored is not None and stored.data == data
