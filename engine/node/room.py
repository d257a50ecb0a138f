"""Room: how far a source that must not lose anything may run ahead of the stages that read its stream.

Delivery guarantee: at most MAX_AHEAD segments of a stream are stored that its stage furthest behind has not looked at,
whatever that stage reads and whether or not a worker serves it yet. With no job on a stream there is no bound.

What is stored is learned from the ledger once, and then as it comes by core NATS. That may be lost, so a source that is
held back asks the ledger again every RECOUNT_S. What has fallen out of retention is no debt: what was seen stays seen,
and where every consumer has seen acknowledged all that it had, nobody is behind, whatever the ledger lacks.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import structlog

from engine.decide.arrears import CHECK_EVERY, has_room, nothing_comes, num_behind
from engine.decide.running_graph import running_groups, running_stages
from engine.decide.stored_keys import StoredKeys
from engine.node.consumers import is_idle
from engine.run.registry import Registry
from engine.spec.jobs import JobSpec
from streams import subjects
from streams.errors import LinkError
from streams.wire.ledger import Ledger

log = structlog.get_logger(__name__)

LOOK_S = 0.2  # how often a held-back source looks whether there is room again, without a hint
JOBS_S = 0.5  # how often the jobs are read anew
RECOUNT_S = 2.0  # how often the ledger is asked for what no hint told

Room = Callable[[int], Awaitable[None]]


@asynccontextmanager
async def held_back(registry: Registry, ledger: Ledger, stream: str, since: int = 0) -> AsyncIterator[Room]:
    """What returns when there is room for more than so many segments. Segments before `since` are gone."""
    waiting = Waiting(registry, ledger, stream, since)
    watch = await ledger.link.subscribe(subjects.results_of("*", stream), waiting.on_result)
    try:
        await waiting.recount()
        yield waiting.room
    finally:
        await ledger.link.unsubscribe(watch)


class Waiting:
    """What of a stream its stages have yet to look at."""

    def __init__(self, registry: Registry, ledger: Ledger, stream: str, since: int) -> None:
        self._registry = registry
        self._ledger = ledger
        self._stream = stream
        self._since = since
        self._stored: defaultdict[str, StoredKeys] = defaultdict(StoredKeys)
        self._news = anyio.Event()
        self._recounted_s = anyio.current_time()
        self._known: tuple[list[JobSpec], float] = [], -RECOUNT_S  # the stream's jobs, and when they were read

    async def on_result(self, message: Any) -> None:
        self._note([message.subject])
        self._news.set()

    def _note(self, names: Iterable[str]) -> None:
        for name in names:
            for key in subjects.keys_of([name]):
                self._stored[name.split(".")[2]].add(key)

    async def recount(self) -> None:
        self._note(await self._ledger.subjects(subjects.results_of("*", self._stream)))
        self._recounted_s = anyio.current_time()

    async def room(self, num_segments: int) -> None:
        if num_segments % CHECK_EVERY:
            return
        while True:
            self._news = anyio.Event()
            try:
                if has_room(self._behind(await self._jobs(), num_segments)):
                    return
                if anyio.current_time() > self._recounted_s + RECOUNT_S:
                    await self.recount()
                    if await self._nothing_comes(num_segments):
                        self._since = num_segments
                        return
            except LinkError as error:
                log.warning("cannot_count", stream=self._stream, error=str(error))  # and so there is no room
            with anyio.move_on_after(LOOK_S):
                await self._news.wait()

    async def _jobs(self) -> list[JobSpec]:
        """As they were a moment ago at most: a source that is held back asks with every result."""
        now_s = anyio.current_time()
        if now_s > self._known[1] + JOBS_S:
            every = await self._registry.jobs()
            self._known = [job for job in every if job.stream == self._stream and job.state == "running"], now_s
        return self._known[0]

    def _behind(self, jobs: list[JobSpec], num_segments: int) -> dict[str, int]:
        return num_behind(running_stages(jobs), self._stored, num_segments, self._since)

    async def _nothing_comes(self, num_segments: int) -> bool:
        jobs = await self._jobs()
        groups = [group for group in running_groups(jobs) if not group.has_ranges_only]  # which is never behind
        idle = {stage.id for group in groups if await is_idle(self._ledger.link, group) for stage in group.stages}
        await self.recount()  # what was stored before it was acknowledged
        return nothing_comes(self._behind(jobs, num_segments), idle)
