"""Moments: when segments were stored and captured, remembered for all jobs of a node."""

import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable

import anyio
import structlog

from engine.decide.answer import wall_clock
from streams import subjects
from streams.errors import Malformed
from streams.records import Segment, decode_media
from streams.wire.ledger import Ledger

log = structlog.get_logger(__name__)

MAX_MOMENTS = 512

Clock = Callable[[int], str]


class Moments:
    """Made for one node: a segment is large, and every answer about it needs to know."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._known: OrderedDict[tuple[str, int], tuple[int, Clock | None]] = OrderedDict()
        self._reading: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)

    async def of(self, stream: str, index: int) -> tuple[int, Clock | None]:
        """When a segment was stored (Unix time; now where it is gone), and what turns media time into the time of day
        it was captured at, where that is known."""
        async with self._reading[stream]:
            if (stream, index) not in self._known:
                noted = await self._ledger.look(subjects.media(stream, index))
                if noted is None:
                    return time.time_ns(), None
                try:
                    record = decode_media(noted.record.data)
                    clock = wall_clock(record) if isinstance(record, Segment) else None
                except Malformed as error:  # it was captured when nobody can tell
                    log.warning("cannot_read_segment", stream=stream, segment=index, error=str(error))
                    clock = None
                self._known[stream, index] = noted.stored_ns, clock
                if len(self._known) > MAX_MOMENTS:
                    self._known.popitem(last=False)
            return self._known[stream, index]
