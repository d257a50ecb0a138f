"""Trimming: what is stored under some subjects, told without its bytes, and deleted up to a sequence.

The server deletes by sequence and subject, so what of one stream is old goes while what of others is as old stays.
"""

import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import NamedTuple

import anyio
import msgspec
import nats.errors
from nats.aio.msg import Msg

from streams.decoding import whole_number
from streams.errors import LinkError, Malformed
from streams.subjects import stream_in
from streams.wire.ledger import BULK, MAX_INLINE_BYTES, chunks_of, stream_of
from streams.wire.link import REQUEST_TIMEOUT_S, Link, Refused
from streams.wire.pull import delivery

A_PAGE = 1000
INACTIVE_S = 30.0  # after which the server forgets a walk that came to no end


class Told(NamedTuple):
    """A record, without its bytes."""

    subject: str
    seq: int
    stored_ns: int  # server's Unix time
    num_bytes: int  # of its own
    max_chunk_bytes: int = 0  # of its chunks, where it has some: at most
    chunks: str = ""  # pattern of their subjects


async def told(link: Link, pattern: str, first_seq: int = 1) -> AsyncIterator[Told]:
    """The records stored so far from a sequence on whose subject matches, in the order of storing. Raises LinkError
    where the server does not go on: then begin anew."""
    stream, name = stream_of(pattern), f"walk-{secrets.token_hex(8)}"
    config = {
        "name": name,
        "filter_subjects": [pattern],
        "deliver_policy": "by_start_sequence",
        "opt_start_seq": max(1, first_seq),
        "ack_policy": "none",
        "headers_only": True,
        "mem_storage": True,
        "num_replicas": 1,
        "inactive_threshold": int(INACTIVE_S * 1e9),
    }
    made = await link.api(f"CONSUMER.CREATE.{stream}.{name}", {"stream_name": stream, "config": config})
    num_left = made.get("num_pending", 0)
    try:
        while num_left:
            page = await _page(link, stream, name)
            for record, num_left in page:  # noqa: B007 - the last is what is left after the page
                yield record
            if not page:
                return
    finally:
        with anyio.CancelScope(shield=True), suppress(LinkError, Refused):
            await link.api(f"CONSUMER.DELETE.{stream}.{name}")


async def _page(link: Link, stream: str, consumer: str) -> list[tuple[Told, int]]:
    """The next records, each with how many are behind it."""
    found: list[tuple[Told, int]] = []
    ended = anyio.Event()

    def on_message(message: Msg) -> None:
        if not message.reply:  # no record: that was all there is
            ended.set()
            return
        with suppress(Malformed):  # somebody else's message, on our own subject
            _, seq, stored_ns, num_left = delivery(message.reply)
            found.append((_told(message.subject, seq, stored_ns, message.headers or {}), num_left))
            if len(found) == A_PAGE or not num_left:
                ended.set()

    inbox = link.client.new_inbox()
    hearing = await link.client.hear(inbox, on_message)
    try:
        request = msgspec.json.encode({"batch": A_PAGE, "no_wait": True})
        await link.publish(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}", request, inbox)
        with anyio.fail_after(REQUEST_TIMEOUT_S):
            await ended.wait()
    except TimeoutError as error:
        raise LinkError(f"{stream}: the server tells no more of what it holds") from error
    finally:
        with anyio.CancelScope(shield=True), suppress(nats.errors.Error):
            await hearing.unsubscribe()
    return found


def _told(subject: str, seq: int, stored_ns: int, headers: dict[str, str]) -> Told:
    num_bytes = _number(headers.get("Nats-Msg-Size", ""))
    found = chunks_of(headers.get(BULK, ""), stream_in(subject))
    if found is None:
        return Told(subject, seq, stored_ns, num_bytes)
    chunks, num = found
    return Told(subject, seq, stored_ns, num_bytes, num * MAX_INLINE_BYTES, chunks)


def _number(text: str) -> int:
    try:
        return whole_number(text)
    except Malformed:
        return 0


async def delete_below(link: Link, pattern: str, seq: int) -> None:
    """Delete the records whose subject matches that are stored before a sequence."""
    await link.api(f"STREAM.PURGE.{stream_of(pattern)}", {"filter": pattern, "seq": seq})
