"""Guarding: what is done ends with what it rests on."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import anyio


@asynccontextmanager
async def guarded(watch: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """Watch over what is done inside: where `watch` raises, that is canceled and the error raised in its place. A watch
    that returns has nothing more to say; one that still watches at the end is canceled.

    No task group: what is raised inside leaves as it is, in no group."""
    with anyio.CancelScope() as scope:

        def on_end(watching: asyncio.Task[None]) -> None:
            if not watching.cancelled() and watching.exception() is not None:
                scope.cancel()

        watching = asyncio.create_task(watch, name=name)
        watching.add_done_callback(on_end)
        try:
            yield
        finally:
            watching.cancel()
    if scope.cancelled_caught and (error := watching.exception()) is not None:
        raise error
