"""Upkeep: what Penstock keeps its records in is there, also when somebody deletes it under a running node.

A JetStream stream or bucket of ours that is missing is made again, empty, as soon as the server tells of its end, or
LOOK_S later. What was in it is lost; that the jobs it served compute it again, or say what they lack, is the work of
`engine.node.recovery`.
"""

from typing import Any

import anyio
import anyio.abc
import structlog

from engine.run.registry import open_registry
from streams.errors import PenstockError
from streams.subjects import PREFIX
from streams.wire.ledger import open_ledger
from streams.wire.link import Link
from streams.wire.retention import Retention, keep_replicas
from streams.wire.room import MAKING

log = structlog.get_logger(__name__)

LOOK_S = 30.0
PAUSE_S = 1.0
DELETED = "$JS.EVENT.ADVISORY.STREAM.DELETED"


async def keep_up(
    link: Link,
    retention: Retention | None = None,
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Until canceled; started once it listens."""
    news = anyio.Event()

    async def on_deleted(message: Any) -> None:
        name = message.subject.removeprefix(f"{DELETED}.")
        if name != MAKING and name.startswith((f"{PREFIX.upper()}_", f"KV_{PREFIX}_")):
            log.error("deleted_under_a_node", stream=name)
            news.set()

    forget = link.on_reconnect(lambda: news.set())
    watch = await link.subscribe(f"{DELETED}.*", on_deleted)
    await link.client.flush()
    task_status.started()
    try:
        while True:
            with anyio.move_on_after(LOOK_S):
                await news.wait()
            news = anyio.Event()
            try:
                ledger = await open_ledger(link, retention)
                registry = await open_registry(link)
                await keep_replicas(link, [*ledger.streams, *(bucket.stream for bucket in registry.buckets)])
            except PenstockError as error:
                log.warning("cannot_keep_up", error=str(error))
                await anyio.sleep(PAUSE_S)
                news.set()
    finally:
        forget()
        await link.unsubscribe(watch)
