"""Expiry of what a stream keeps for less long, or in less room, than `[retention]` says: the thin side of
`engine.decide.expiry`.

One node of all does it, under a lease. Every LOOK_S it learns what was stored since, by headers alone, and deletes what
is over. The end of a stream stays as long as `[retention]` keeps it, or who reads the stream would begin anew.
"""

from collections.abc import Mapping, Sequence

import anyio
import structlog

from engine.decide.expiry import Tally
from engine.run.registry import LEASE_TTL_S, Registry
from engine.spec.stream import Keep
from streams import subjects
from streams.errors import PenstockError
from streams.wire.lease import while_held
from streams.wire.ledger import Ledger
from streams.wire.trimming import delete_below, told

log = structlog.get_logger(__name__)

LOOK_S = 30.0
LEASE = "expiry"


class Expiry:
    """Made for one node."""

    def __init__(self, registry: Registry, ledger: Ledger, node: str) -> None:
        self._registry = registry
        self._ledger = ledger
        self._node = node
        self._tallies: dict[str, Tally] = {}  # by pattern

    async def run(self) -> None:
        """Until canceled."""
        renew_s = LEASE_TTL_S / 4
        await while_held(
            self._registry.leases, LEASE, self._node, self._look_on, renew_s=renew_s, retry_s=LEASE_TTL_S / 2
        )

    async def _look_on(self) -> None:
        self._tallies.clear()
        while True:
            try:
                kept = {name: spec.keep for name, spec in (await self._registry.streams()).items()}
                await self.look(kept)
            except PenstockError as error:
                log.warning("cannot_expire", error=str(error))
            except Exception as error:  # the node goes on
                log.error("cannot_expire", exc_info=error)
            await anyio.sleep(LOOK_S)

    async def look(self, kept: Mapping[str, Keep]) -> None:
        """Delete what is over by now, of streams by how they are kept."""
        wanted = {pattern for name, keep in kept.items() for pattern, *_ in bounds(name, keep)}
        self._tallies = {pattern: tally for pattern, tally in self._tallies.items() if pattern in wanted}
        for name, keep in kept.items():
            for pattern, max_age_s, max_bytes in bounds(name, keep):
                try:
                    await self._trim(name, pattern, max_age_s, max_bytes)
                except PenstockError as error:
                    self._tallies.pop(pattern, None)  # it may lack what was not told
                    log.warning("cannot_expire", stream=name, what=pattern, error=str(error))

    async def _trim(self, stream: str, pattern: str, max_age_s: float | None, max_bytes: int | None) -> None:
        link, tally = self._ledger.link, self._tallies.setdefault(pattern, Tally())
        async for record in told(link, pattern, tally.last_seq + 1):
            tally.note(record.seq, record.stored_ns, record.num_bytes + record.max_chunk_bytes)
        below = tally.cut(self._ledger.clock.now_ns(), max_age_s, max_bytes)
        if not below:
            return
        if pattern == subjects.media_of(stream):
            if (end := await self._ledger.look(subjects.media_end(stream))) is not None:
                below = min(below, end.record.seq)
            async for record in told(link, pattern):
                if record.seq >= below:
                    break
                if record.chunks:
                    await self._ledger.purge(record.chunks)
        await delete_below(link, pattern, below)
        log.info("expired", stream=stream, what=pattern, below=below)


def bounds(stream: str, keep: Keep) -> Sequence[tuple[str, float | None, int | None]]:
    """The patterns of a stream that are bounded, each with its age in seconds and its bytes."""
    every = [
        (subjects.media_of(stream), keep.media_s, keep.media_bytes),
        (subjects.results_of("*", stream), keep.results_s, keep.results_bytes),
        (subjects.dead_of(stream), keep.results_s, None),
        (subjects.gaps_of(stream), keep.results_s, None),
        (subjects.answers("*", stream), keep.answers_s, keep.answers_bytes),
    ]
    return [bound for bound in every if bound[1:] != (None, None)]
