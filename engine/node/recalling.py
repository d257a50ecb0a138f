"""What workers remember, asked of all of them at once. What does not come in time is left out."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio
import anyio.streams.memory
import msgspec

from engine.decide.decisions import Decision
from engine.run.journal import DECISIONS, OfDecisions
from streams.decoding import from_json
from streams.errors import LinkError, Malformed
from streams.wire.link import Link

ASK_S = 0.25  # how long workers are waited for
MAX_BEHIND = 1000  # decisions that whoever follows may be behind; what is more is lost

T = TypeVar("T")


async def recalled(link: Link, subject: str, request: msgspec.Struct, kind: type[T]) -> list[T]:
    """What all workers that are there answer, each with a list."""
    found: list[T] = []

    async def on_reply(message: object) -> None:
        try:
            found.extend(from_json(message.data, list[kind]))  # type: ignore[attr-defined,valid-type]
        except Malformed:
            return

    inbox = link.client.new_inbox()
    watch = await link.subscribe(inbox, on_reply)
    try:
        await link.publish(subject, msgspec.json.encode(request), inbox)
        await anyio.sleep(ASK_S)
    except LinkError:
        pass
    finally:
        await link.unsubscribe(watch)
    return found


async def decisions(link: Link, stream: str = "", loop: str = "") -> list[Decision]:
    """What workers decided of late, in order of time; of one stream and of all together, or of all; by one loop, or by
    each."""
    found = await recalled(link, DECISIONS, OfDecisions(stream=stream, loop=loop), Decision)
    return sorted(found, key=lambda each: each.at_ns)


@asynccontextmanager
async def following_decisions(link: Link, stream: str = "") -> AsyncIterator[AsyncIterator[Decision]]:
    """What is decided from now on, as it comes. Delivery guarantee: none."""
    send, receive = anyio.create_memory_object_stream[Decision](MAX_BEHIND)

    async def on_message(message: object) -> None:
        try:
            decision = from_json(message.data, Decision)  # type: ignore[attr-defined]
        except Malformed:
            return
        if not stream or decision.stream in ("", stream):
            try:
                send.send_nowait(decision)
            except anyio.WouldBlock:
                return

    watch = await link.subscribe(f"{DECISIONS}.*", on_message)
    try:
        with send, receive:
            yield receive
    finally:
        await link.unsubscribe(watch)
