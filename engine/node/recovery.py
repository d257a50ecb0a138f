"""Recovery: an output that a job waits for and that nobody will compute, because what it is made from has fallen out of
retention.

Delivery guarantee: it is computed again where its media are still there, and a gap says so where they are not. What is
evicted faster than it is computed is tried some times (`engine.decide.awaited`) and then a gap as well: no job waits
without end while workers serve it.

Workers make each output once, when its input arrives. Of an input that was delivered and acknowledged before, nobody
brings word again, unless the job gets a new round (engine/decide/running_graph.py). It gets one when something it lacks
could be computed and all that was stored when it was first looked at has been acknowledged. The round begins at what
the jobs have not answered (engine/decide/starting_points.py).
"""

from collections.abc import Collection, Iterable

import anyio
import msgspec
import structlog

from engine.decide.awaited import Awaited
from engine.decide.lacking import Lacking, lacking
from engine.node.consumers import Floors
from engine.run.gaps import put_gaps
from engine.run.registry import Registry
from engine.spec.jobs import JobSpec
from streams import subjects
from streams.records import EndOfStream, Gap
from streams.subjects import Key
from streams.wire import retention
from streams.wire.lease import holder_of
from streams.wire.ledger import Ledger

log = structlog.get_logger(__name__)


class Recovery:
    """Made for one job; looks at what an output lacks that is long in coming."""

    def __init__(self, registry: Registry, ledger: Ledger, spec: JobSpec, floors: Floors) -> None:
        self._floors = floors
        self._registry = registry
        self._ledger = ledger
        self._spec = spec
        self._awaited: dict[str, Awaited] = {}  # by last stage

    async def look(self, stage_id: str, key: Key, end: EndOfStream | None) -> None:
        """Do what can be done for an output that a last stage owes and that does not come."""
        awaited = self._awaited.get(stage_id)
        if awaited is None or awaited.key != key:
            awaited = self._awaited[stage_id] = Awaited(key)
        stream = self._spec.stream
        is_there = end is not None or bool(await self._ledger.subjects(subjects.media(stream, key.last)))
        if not awaited.is_due(anyio.current_time(), is_there):
            return
        kept = {k.first for k in subjects.keys_of(await self._ledger.subjects(subjects.media_of(stream)))}
        num_segments = end.num_segments if end is not None else max(kept, default=-1) + 1
        if key.last >= num_segments:
            return
        if end is not None and len(kept) < num_segments and await holder_of(self._registry.leases, f"feed.{stream}"):
            return  # somebody brings the stream once more
        looked_s = awaited.looked_s  # only from then on does it matter how far groups are
        ids = {stage.id for stage in self._spec.plan.stages}
        running = [] if looked_s is None else await self._floors.since(stream, looked_s, ids)
        missing = await self._lacking(stage_id, key, kept, num_segments)
        gone = [lost(id, stream, k) for id, keys in missing.lost.items() for k in sorted(keys)]
        if gone:
            log.warning("inputs_lost", job=self._spec.id, num=len(gone))
            await put_gaps(self._ledger, gone)
            return
        if not missing.num:
            return
        floors = [floor for group, floor in running if any(stage.id in missing.computable for stage in group.stages)]
        lasts = {name: await self._ledger.last_stored(name) for name in (retention.MEDIA, retention.RESULTS)}
        verdict = awaited.judged(anyio.current_time(), missing.num, lasts, floors)
        if verdict == "give up":
            log.warning("inputs_never_kept", job=self._spec.id, stage=stage_id, key=str(key))
            await put_gaps(self._ledger, [_never_kept(stage_id, stream, key)])
        elif verdict == "again":
            log.warning("computed_again", job=self._spec.id, num=missing.num)
            await self._new_round(missing.computable)

    async def _lacking(self, stage_id: str, key: Key, kept: Collection[int], num_segments: int) -> Lacking:
        ids = [stage.id for stage in self._spec.plan.stages]
        stored = await stored_of(self._ledger, self._spec.stream, ids)
        return lacking(self._spec.plan.stages, stage_id, key, stored, kept, num_segments)

    async def _new_round(self, stages: Collection[str]) -> None:
        last = await self._ledger.last_stored(retention.RESULTS)

        def renewed(spec: JobSpec) -> JobSpec:
            round = max([last, *(number + 1 for number in spec.rounds.values())])
            return msgspec.structs.replace(spec, rounds=spec.rounds | dict.fromkeys(stages, round))

        await self._registry.change_job(self._spec.id, renewed)


async def stored_of(ledger: Ledger, stream: str, stages: Iterable[str]) -> dict[str, set[Key]]:
    """What is stored of each of these stages of a stream, which may have thousands: every question is one."""
    return {id: subjects.keys_of(await ledger.subjects(subjects.results_of(id, stream))) for id in stages}


def lost(stage_id: str, stream: str, key: Key) -> Gap:
    """The record of an output whose media fell out of retention before it was computed."""
    detail = "its media fell out of retention before it was computed"
    return Gap(stage=stage_id, stream=stream, first=key.first, last=key.last, cause="dropped", detail=detail)


def _never_kept(stage_id: str, stream: str, key: Key) -> Gap:
    detail = "what it is made from falls out of retention before it can be read"
    return Gap(stage=stage_id, stream=stream, first=key.first, last=key.last, cause="dropped", detail=detail)
