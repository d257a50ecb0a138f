"""Snapshots: a JetStream stream copied out of a server, and back into one that has none of that name.

Delivery guarantee: what was stored when the copy began is in it; the server goes on meanwhile. A copy that breaks off
raises LinkError, and so does one that cannot be taken back.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import anyio
import nats.errors
from nats.aio.msg import Msg

from streams.decoding import from_json
from streams.errors import LinkError, Malformed
from streams.wire.link import NO_ROOM, Link

CHUNK_BYTES = 128 * 1024
SILENCE_S = 30.0  # a server that says nothing for so long does not go on


async def copy_out(link: Link, name: str, write: Callable[[bytes], object]) -> dict[str, Any]:
    """Hand what a stream holds to `write`, in the server's own form; what it was asked and told of it: `config`,
    `state`. Raises Refused where there is no such stream."""
    news = anyio.Event()
    arrived: list[Msg] = []

    async def on_chunk(message: Msg) -> None:
        arrived.append(message)
        news.set()

    inbox = link.client.new_inbox()
    watch = await link.subscribe(inbox, on_chunk)
    try:
        wanted = {"deliver_subject": inbox, "no_consumers": True, "chunk_size": CHUNK_BYTES}
        told = await link.api(f"STREAM.SNAPSHOT.{name}", wanted)
        while True:
            with anyio.move_on_after(SILENCE_S) as silence:
                await news.wait()
            if silence.cancelled_caught:
                raise LinkError(f"copy {name}: the server does not go on")
            news = anyio.Event()
            chunks, arrived[:] = list(arrived), []
            for chunk in chunks:
                if not chunk.data:
                    if said := (chunk.headers or {}).get("Description", ""):
                        raise LinkError(f"copy {name}: {said}")
                    return {"config": told["config"], "state": told["state"]}
                write(chunk.data)
                if chunk.reply:  # it waits for this before it sends many more
                    await link.publish(chunk.reply, b"")
    finally:
        await link.unsubscribe(watch)


async def copy_in(link: Link, name: str, about: Mapping[str, Any], chunks: Iterable[bytes]) -> None:
    """Make a stream of what `copy_out` gave. Raises Refused where there is one of that name, or no room for it."""
    request = {"config": about["config"], "state": about["state"]}
    where = (await link.api(f"STREAM.RESTORE.{name}", request, final=NO_ROOM))["deliver_subject"]
    try:
        for chunk in (*chunks, b""):
            reply = await link.client.request(where, chunk, timeout=SILENCE_S)
    except nats.errors.Error as error:
        raise LinkError(f"restore {name}: the server does not go on ({error})") from error
    try:
        answer = from_json(reply.data, dict[str, Any])
    except Malformed as error:
        raise LinkError(f"restore {name}: the server's answer cannot be read: {error}") from error
    if "error" in answer:
        raise LinkError(f"restore {name}: {answer['error'].get('description', 'refused')}")
