"""Storing: from what a group's work came to, to what stands in the ledger; each output by itself.

A dead letter is stored before its gap, and a gap is noted after it: a death in between loses a note, never a gap.
Where another worker was first, what it stored is what counts.
"""

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import structlog

from engine.decide.instructions import Compute, GiveGap, Known
from engine.run.host import Host
from engine.run.segment_cache import SegmentCache
from engine.run.spans import WorkSpan
from engine.run.work import dead_letter_of, gap_of
from streams import subjects
from streams.errors import PenstockError
from streams.records import Gap, Result, encode
from streams.wire.ledger import NewRecord, Placed

log = structlog.get_logger(__name__)

Work = Compute | GiveGap


def _nobody(told: Work, what: Any) -> None:
    """Hears what is of no use any more."""


class Storing:
    """For one group. `on_stands` is told what stands in an output's place, `on_failed` why nothing could be stored."""

    def __init__(
        self,
        host: Host,
        cache: SegmentCache,
        on_stands: Callable[[Work, Known], None],
        on_failed: Callable[[Work, str], None],
    ) -> None:
        self.gaps: Counter[str] = Counter()  # stored here, by cause
        self.num_stored = 0
        self._host = host
        self._cache = cache
        self._on_stands = on_stands
        self._on_failed = on_failed

    def forget(self) -> None:
        """Nobody is to be told any more."""
        self._on_stands = self._on_failed = _nobody

    def gap(self, told: GiveGap) -> None:
        """Store a gap in an output's place, after its dead letter if it has one."""
        stream = self._cache.stream
        record = gap_of(told, stream)
        span = self._host.spans.begin(told, stream)
        if not told.is_dead:
            self.result(told, record, None, span)
            return
        letter = NewRecord(
            subjects.dead(told.stage.id, stream, told.key), encode(dead_letter_of(told, stream)), span.traceparent
        )
        self._host.outbox.put(letter, partial(self._dead_letter_put, told, record, span))

    def result(self, told: Work, record: Result | Gap, value: Any, span: WorkSpan) -> None:
        """Store a record in an output's place."""
        span.storing()
        entry = NewRecord(
            subjects.result(told.stage.id, self._cache.stream, told.key),
            encode(record),
            span.traceparent,
            told.due_ns,
        )
        self._host.outbox.put(entry, partial(self._put, told, record, value, span))

    def _dead_letter_put(self, told: GiveGap, record: Gap, span: WorkSpan, placed: Placed | PenstockError) -> None:
        if isinstance(placed, PenstockError):
            self._not_stored(told, span, placed)
        else:
            self.result(told, record, None, span)

    def _put(
        self,
        told: Work,
        record: Result | Gap,
        value: Any,
        span: WorkSpan,
        placed: Placed | PenstockError,
    ) -> None:
        if isinstance(placed, PenstockError):
            self._not_stored(told, span, placed)
            return
        if isinstance(record, Gap):
            span.end(record.cause, f"{record.cause}: {record.detail}")
        else:
            span.end()
        self.num_stored += 1
        if placed.fresh:
            gap = record if isinstance(record, Gap) else None
            if gap is not None:
                self._note(gap, told)
            known = Known(placed.seq, span.traceparent, value, gap, told.due_ns, time.time_ns())
            self._cache.keep_value(told.stage.id, told.key, known)
        elif told.stage.read_inside:
            self._host.tasks.start_soon(self._stands, told)
            return
        else:
            known = Known(placed.seq, span.traceparent)
        self._on_stands(told, known)

    async def _stands(self, told: Work) -> None:
        """Another stored this output first: go on from what stands there."""
        try:
            stored = await self._host.ledger.get(subjects.result(told.stage.id, self._cache.stream, told.key))
        except PenstockError as error:
            self._on_failed(told, str(error))
            return
        if stored is None:
            self._on_failed(told, "what stood there is gone")
            return
        self._on_stands(told, self._cache.keep_result(told.stage.id, told.key, stored))

    def _note(self, gap: Gap, told: Work) -> None:
        """Have a gap where everyone can see it."""
        self.gaps[gap.cause] += 1
        note = NewRecord(subjects.gap(gap.cause, gap.stage, gap.stream, told.key), msgspec.json.encode(gap))

        def noted(placed: Placed | PenstockError) -> None:
            if isinstance(placed, PenstockError):
                log.warning("gap_not_noted", stage=told.stage.name, key=str(told.key), error=str(placed))

        self._host.outbox.put(note, noted)

    def _not_stored(self, told: Work, span: WorkSpan, error: PenstockError) -> None:
        span.end(error=str(error))
        log.warning("not_stored", stage=told.stage.name, key=str(told.key), error=str(error))
        self._on_failed(told, str(error))
