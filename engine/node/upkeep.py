"""Upkeep: what Penstock keeps its records in is there, also when somebody deletes it under a running node.

A JetStream stream or bucket of ours that is missing is made again, empty, as soon as the server tells of its end, or
LOOK_S later. What was in it is lost; that the jobs it served compute it again, or say what they lack, is the work of
`engine.node.recovery`.

A server tells of a stream's end before it removes the stream's folder (`stream.stop` of nats-server 2.15). One that is
made in that moment has its folder taken away: it is listed, and nothing can be stored in it. So what was deleted is
made again a moment later, and looked at once it is there.
"""

from typing import Any

import anyio
import anyio.abc
import structlog

from engine.run.registry import open_registry
from streams.errors import PenstockError
from streams.subjects import PREFIX
from streams.wire.jetstream import NO_STREAM, config_of
from streams.wire.ledger import open_ledger
from streams.wire.link import Link, Refused
from streams.wire.retention import Retention, keep_replicas
from streams.wire.room import MAKING

log = structlog.get_logger(__name__)

LOOK_S = 30.0
PAUSE_S = 1.0
GOING_S = 0.25  # what a server gets to remove the folder of a stream it told the end of
NO_FILE = "no such file or directory"
DELETED = "$JS.EVENT.ADVISORY.STREAM.DELETED"


async def keep_up(
    link: Link,
    retention: Retention | None = None,
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Until canceled; started once it listens."""
    news = anyio.Event()
    deleted = set[str]()

    async def on_deleted(message: Any) -> None:
        name = message.subject.removeprefix(f"{DELETED}.")
        if name != MAKING and name.startswith((f"{PREFIX.upper()}_", f"KV_{PREFIX}_")):
            log.error("deleted_under_a_node", stream=name)
            deleted.add(name)
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
            if deleted:
                await anyio.sleep(GOING_S)
            try:
                ledger = await open_ledger(link, retention)
                registry = await open_registry(link)
                await keep_replicas(link, [*ledger.streams, *(bucket.stream for bucket in registry.buckets)])
                for name in sorted(deleted):
                    deleted.discard(name)
                    try:
                        await look_at(link, name)  # which may delete it, and so have it looked at once more
                    except PenstockError:
                        deleted.add(name)
                        raise
            except PenstockError as error:
                log.warning("cannot_keep_up", error=str(error))
                await anyio.sleep(PAUSE_S)
                news.set()
    finally:
        forget()
        await link.unsubscribe(watch)


async def look_at(link: Link, name: str) -> None:
    """Delete this stream, which was just made, where the server has no folder for it; its end is told of as any is.
    Seen by having the server write down the configuration that the stream has. Raises LinkError."""
    try:
        await link.api(f"STREAM.UPDATE.{name}", await config_of(link, name))
    except Refused as error:
        if error.code == NO_STREAM:
            return
        if NO_FILE not in str(error):
            raise
        log.error("made_while_its_folder_went", stream=name)
        await link.api(f"STREAM.DELETE.{name}")
