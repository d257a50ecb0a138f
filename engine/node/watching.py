"""Watching a source while it is fed: what it is doing goes into the registry, onto `penstock.events.<stream>` and into
the log, as it changes.

Delivery guarantee: the registry has the last state, as soon as NATS takes it; an event is a hint, sent at most once.
"""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import msgspec
import structlog

from engine.decide.watching import Heard, SourceState, Told, failed_state, source_state
from engine.run.registry import Registry
from engine.spec.stream import StreamSpec
from streams import subjects
from streams.errors import PenstockError

log = structlog.get_logger(__name__)

LOOK_S = 0.5
LEAVE_S = 2.0
BAD = ("silent", "gone")

OnState = Callable[[SourceState], None]


class Watching:
    """Of one source, while one process feeds it. `tell` and `note` may be called from any thread."""

    def __init__(
        self, registry: Registry, spec: StreamSpec, node: str, goes_on: bool, on_state: OnState = lambda state: None
    ) -> None:
        self._registry = registry
        self._spec = spec
        self._node = node
        self._goes_on = goes_on
        self._on_state = on_state
        self._heard = Heard(began_ns=time.time_ns())
        self._state: SourceState | None = None
        self._told: tuple[str, str] | None = None

    def tell(self, told: Told, detail: str) -> None:
        """What the reader says."""
        self._heard = msgspec.structs.replace(self._heard, told=told, detail=detail)

    def note(self) -> None:
        """A segment was stored."""
        self._heard = msgspec.structs.replace(self._heard, last_ns=time.time_ns(), told="reading")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._run)
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()

    async def failed(self, error: str) -> None:
        """It cannot be read, as who feeds it is told."""
        self._on_state = lambda state: None
        with anyio.move_on_after(LEAVE_S):
            await self._say(failed_state(self._spec.name, self._node, time.time_ns(), error, self._state))

    async def _run(self) -> None:
        try:
            self._state = (await self._registry.source_states()).get(self._spec.name)
        except PenstockError as error:  # it is fed all the same
            log.warning("cannot_read_state", stream=self._spec.name, error=str(error))
        while True:
            await self._look()
            await anyio.sleep(LOOK_S)

    async def _look(self) -> None:
        budget_s = max(self._spec.max_lag_s, LOOK_S) + self._spec.segment_s
        state = source_state(
            self._state,
            self._heard,
            time.time_ns(),
            stream=self._spec.name,
            node=self._node,
            budget_s=budget_s,
            goes_on=self._goes_on,
        )
        await self._say(state)

    async def _say(self, state: SourceState) -> None:
        is_news = self._state is None or (state.state, state.error) != (self._state.state, self._state.error)
        if not is_news and self._state is not None and self._state.node == state.node:
            return
        try:
            await self._registry.say_source(state)
            await self._registry.link.publish(subjects.event(state.stream), msgspec.json.encode(state))
        except PenstockError as error:  # it is said again when it has changed again
            log.warning("cannot_say_state", stream=state.stream, error=str(error))
        if is_news:
            say = log.warning if state.state in BAD or state.error else log.info
            say("source_state", stream=state.stream, state=state.state, error=state.error)
            self._on_state(state)
        self._state = state
