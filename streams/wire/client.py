"""The NATS client as Penstock uses it: one message cannot make the connection deaf.

nats-py reads in one task (`Client._read_loop`), which ends for good, with nothing but a line in its log, on whatever a
message makes it raise: a header block of `\\0\\0\\r\\n\\r\\n`, a subject that is no UTF-8. The connection is deaf
from then on, until three pings have failed a minute later; and a message that is stored comes again and does it again.
Two things mend that:

- what such a message says in its headers and subject is read without raising, so it arrives, without what could not be
  read, and whoever decodes it sets it aside;
- the reading task is watched: should it end otherwise, the client reconnects at once, and after that not more often
  than every RECONNECT_PAUSE_S.

And what comes by the thousand, records and what became of them, is heard (`hear`): handed over as it is read, with no
queue and no task between (`sieve`), which halves what a message costs.

Relied on of nats-py 2.16: `Client._process_msg(sid, subject, reply, data, headers)`, called by `_read_loop` for each
message, and that it calls `Client._process_headers(headers)` and `Client._build_message(sid, subject, reply, data,
headers)`; `Client._parse_header_lines(block)`; that `publish` calls `Client._send_publish(subject, reply, payload,
payload_size, headers)`, which counts, appends to `_pending`, whose size is `_pending_data_size`, and sees to it that
somebody flushes; `Subscription._id`, which is that `sid` and outlives a reconnection; `Client._reading_task`, made anew
for each connection before its callback `reconnected_cb` is called; `Client.force_reconnect()`; that `Client._close`
writes `_pending` to `_transport`. `tests/streams/wire/test_client.py` fails where an upgrade changes one of them.
"""

import asyncio
import re
from collections.abc import Callable
from typing import Any

import anyio
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from streams.decoding import reason
from streams.wire.sieve import SievedTransport

log = structlog.get_logger(__name__)

RECONNECT_PAUSE_S = 1.0
MIN_APART_BYTES = 4096  # of a payload that is not copied to stand beside its line
_BLANK = re.compile(r"[ \t\r\n]")  # in a subject it would end the line, or begin another
_USUAL = frozenset({"traceparent", "Penstock-Due", "Nats-Expected-Last-Subject-Sequence"})


def plain_headers(block: bytes) -> dict[str, str] | None:
    """The headers of a block that is as servers and clients write them: a tenth of a hop's time is saved by not looking
    at each character. None for any other, which nats-py is left to read."""
    if not (block.startswith(b"NATS/1.0\r\n") and block.endswith(b"\r\n\r\n") and block.isascii()):
        return None
    found: dict[str, str] = {}
    for line in block[10:-4].decode("ascii").split("\r\n"):
        name, colon, value = line.partition(":")
        if not colon or not (name in _USUAL or name.replace("-", "").isalnum()):
            return None
        found[name] = value.strip()
    return found


def read_headers(block: bytes) -> dict[str, str] | None:
    """The headers of any block, as nats-py reads them, or what of them can be read; None where nothing can."""
    plain = plain_headers(block)
    if plain is not None:
        return plain
    first, _, rest = block.partition(b"\r\n")
    if not first.startswith(b"NATS/1.0"):
        return None
    found: dict[str, str] = {}
    status, _, description = first[8:].decode(errors="replace").strip().partition(" ")
    if status.isdecimal():
        found["Status"] = status
        if description:
            found["Description"] = description
    found |= Client._parse_header_lines(rest)
    return found or None


def header_block(headers: dict[str, str]) -> bytes | None:
    """The block of headers that can be written as they are; None where one cannot, which nats-py is left to write."""
    parts = ["NATS/1.0\r\n"]
    for name, value in headers.items():
        if name not in _USUAL or "\n" in value or "\r" in value or value != value.strip():
            return None
        parts += name, ": ", value, "\r\n"  # joined, not formatted: nats-py's own names are an enumeration's members
    parts.append("\r\n")
    return "".join(parts).encode()


class Hearing:
    """A subject that is heard. Made by `WatchedClient.hear`."""

    def __init__(self, subscription: Subscription, heard: dict[int, Callable[[Msg], None]]) -> None:
        self._subscription = subscription
        self._heard = heard

    async def unsubscribe(self) -> None:
        self._heard.pop(self._subscription._id, None)
        await self._subscription.unsubscribe()


class WatchedClient(Client):
    """A client that hears whatever is sent."""

    def __init__(self) -> None:
        super().__init__()
        self._heard: dict[int, Callable[[Msg], None]] = {}
        self.was_left = False  # closed by whoever uses it; else by the server

    async def close(self) -> None:
        self.was_left = True
        await super().close()

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        """nats-py writes what is pending even to a connection that is gone, and raises whatever asyncio does then: from
        Python 3.12 on a TypeError, before it has cleaned up."""
        is_gone = isinstance(self._transport, SievedTransport) and self._transport.is_gone
        if not self.is_connected or self._transport is None or is_gone or self._transport.at_eof():
            self._pending.clear()
            self._pending_data_size = 0
        await super()._close(status, do_cbs)

    async def hear(self, subject: str, on_message: Callable[[Msg], None]) -> Hearing:
        """Core NATS: at most once. `on_message` is called while the connection is read: it must not take long. What it
        raises is logged."""
        subscription = await self.subscribe(subject)
        self._heard[subscription._id] = on_message
        return Hearing(subscription, self._heard)

    async def _connect_to_server(self, s: Any) -> None:
        if self._transport is None and s.uri.scheme not in ("ws", "wss"):
            self._transport = SievedTransport(self._take)
        await super()._connect_to_server(s)

    def _take(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> bool:
        """Hand a message to whoever hears it; false where nobody does."""
        on_message = self._heard.get(sid)
        if on_message is None:
            return False
        self.stats["in_msgs"] += 1
        self.stats["in_bytes"] += len(data)
        try:
            said = read_headers(headers) if headers else None
            on_message(self._build_message(sid, subject, reply, data, said))
        except Exception as error:
            log.error("not_heard", subject=subject.decode(errors="replace"), exc_info=error)
        return True

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: Any) -> None:
        if not self._take(sid, subject, reply, data, headers):
            await super()._process_msg(sid, subject, reply, data, headers)

    async def _send_publish(
        self, subject: str, reply: str, payload: bytes, payload_size: int, headers: dict[str, str] | None
    ) -> None:
        block = header_block(headers) if headers and subject else None
        if block is None:
            await super()._send_publish(subject, reply, payload, payload_size, headers)
            return
        self._write(subject, reply, payload, block)
        if 0 < self._max_pending_size < self._pending_data_size:
            await self._flush_pending(force_flush=True)
        await self.send_posted()

    def post(self, subject: str, payload: bytes, reply: str = "", headers: dict[str, str] | None = None) -> bool:
        """As `publish`, without waiting; false where that would have to wait or would raise, and nothing was written.
        What was posted goes with whatever is sent next, or with `send_posted`."""
        block = header_block(headers) if headers else b""
        num_bytes = self._pending_data_size + len(payload)
        if block is None or not self.is_connected or len(payload) > self._max_payload:
            return False
        if 0 < self._max_pending_size < num_bytes or not subject or _BLANK.search(subject) or _BLANK.search(reply):
            return False
        self._write(subject, reply, payload, block)
        return True

    async def send_posted(self) -> None:
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    def _write(self, subject: str, reply: str, payload: bytes, block: bytes) -> None:
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += len(payload)
        if block:
            line = f"HPUB {subject} {reply} {len(block)} {len(block) + len(payload)}\r\n".encode()
        else:
            line = f"PUB {subject} {reply} {len(payload)}\r\n".encode()
        if len(payload) < MIN_APART_BYTES:
            self._pending.append(b"".join((line, block, payload, b"\r\n")))
        else:  # over TCP they are joined, or sent as they are, when they are flushed
            self._pending += line + block, bytes(payload), b"\r\n"
        self._pending_data_size += len(line) + len(block) + len(payload) + 2

    async def flush(self, timeout: int = 10) -> None:  # noqa: ASYNC109 - as nats-py has it
        """Until the server has read all that was written before. nats-py's ping overtakes what is still pending: a
        subscription made before such a flush need not stand after it."""
        await self._flush_pending(force_flush=True)
        await super().flush(timeout)

    async def _process_headers(self, headers: Any) -> dict[str, str] | None:
        return read_headers(headers) if headers else None

    def _build_message(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: Any) -> Msg:
        try:
            said, answer_to = subject.decode(), reply.decode()
        except UnicodeDecodeError as error:
            log.warning("unreadable_subject", error=reason(error))
            said, answer_to = (part.decode(errors="replace") for part in (subject, reply))
        return Msg(self, said, answer_to, data, headers, _sid=sid)

    async def watch(self) -> None:
        """Until canceled, or the connection is closed for good, as the server may have it: connect again where the
        reading has ended and nobody else sees to it."""
        while True:
            reading = self._reading_task
            if reading is not None:
                await asyncio.wait([reading])
            if self.is_closed:
                return
            if self._reading_task is reading and self.is_connected:
                log.error("nats_reading_ended", why="a message that the client cannot read: it connects again")
                await self.force_reconnect()
            await anyio.sleep(RECONNECT_PAUSE_S)
