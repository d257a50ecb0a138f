"""Takes out of what a server sends the messages that are heard, each copied once; nats-py reads the rest, as ever.

nats-py reads through a stream reader: what the kernel gave is copied into its buffer, out of it in pieces of 32 kB,
into the parser's buffer and out of that again, and a task is woken for it. With records of 20 kB that was a third of
what a worker did. Here the kernel writes into one buffer, and a message that is heard (`WatchedClient.hear`) goes
straight from there to whoever hears it. Every other byte (other messages, pings, errors, what is no line of the
protocol's) is handed to nats-py's own reading task, in order.

Relied on of nats-py 2.16: `Client._connect_to_server` makes a transport only where there is none; nothing reads lines
once `Client._read_loop` has called `Transport.read`; `TcpTransport._io_reader` and `_io_writer`, which are asyncio's.
And of asyncio: that of a protocol that replaces a StreamReaderProtocol and passes on what it is told, a StreamWriter
and a StreamReader go on as before.
"""

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import Any, cast

import structlog
from nats.aio.transport import TcpTransport

from streams.errors import Malformed

log = structlog.get_logger(__name__)

BUFFER_BYTES = 1 << 20  # what is read at once
MAX_KEPT_BYTES = 1 << 22  # of a buffer that became larger for a large message
MAX_MESSAGE_BYTES = (1 << 26) + (1 << 16)  # the most a server can be told to let through
MAX_LINE_BYTES = 1 << 20  # what a server says of itself and its cluster is the longest
MAX_LEFT_BYTES = 1 << 20  # for nats-py, before nothing more is read
MAX_DIGITS = 40  # of the numbers of a line together
CLOSE_S = 1.0
_ODD = re.compile(rb"\s")

Take = Callable[[int, bytes, bytes, bytes, bytes | None], bool]  # sid, subject, reply, payload, headers: is it heard?


def message_of(line: bytes) -> tuple[int, bytes, bytes, int, int] | None:
    """What a line announces: sid, subject, the subject to answer on, the size of its headers and of all; None for what
    is no message's. Raises Malformed for a message's that cannot be read: what follows may then not be taken for lines,
    because a sender wrote it."""
    kind, *words = line.split(b" ")  # as servers write it; a subject may hold any other white space
    header, answer_to = b"0", b""
    try:
        if kind == b"MSG":
            subject, sid, *between, all = words
        elif kind == b"HMSG":
            subject, sid, *between, header, all = words
        else:
            return None
        if between:
            (answer_to,) = between
    except ValueError:
        raise Malformed("a message's line cannot be read") from None
    if not (sid.isdigit() and all.isdigit() and header.isdigit()) or len(sid) + len(all) + len(header) > MAX_DIGITS:
        raise Malformed("a message's line has no numbers where they belong")
    size, header_size = int(all), int(header)
    if header_size > size or size > MAX_MESSAGE_BYTES:
        raise Malformed(f"a message of {size} bytes, {header_size} of them headers")
    return int(sid), subject, answer_to, header_size, size


def _say_asyncio() -> None:
    """Let anyio know where it is, which it asks sniffio, if that is installed."""
    with suppress(ImportError):
        from sniffio import current_async_library_cvar

        current_async_library_cvar.set("asyncio")


class Sieve(asyncio.BufferedProtocol):
    """One connection, from the moment its handshake is over. `before` is the protocol it replaces."""

    def __init__(self, transport: asyncio.Transport, before: asyncio.Protocol, take: Take) -> None:
        self._transport = transport
        self._before = before
        self._take = take
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._num_bytes = 0  # in the buffer
        self._num_needed = 0  # before anything can be cut
        self._left: list[bytes] = []
        self._num_left_bytes = 0
        self._news = asyncio.Event()
        self._is_over = False
        self._error: Exception | None = None
        self._num_searched = 0  # bytes of an unfinished line in which no end was found
        self._context = copy_context()  # whoever hears is called by the loop, not by a task, and anyio asks where it is
        self._context.run(_say_asyncio)

    def begin(self, first: bytes) -> None:
        """With what has been read before."""
        while first:
            num = min(len(first), len(self.get_buffer(0)))
            self._view[self._num_bytes : self._num_bytes + num] = first[:num]
            self.buffer_updated(num)
            first = first[num:]

    async def left(self) -> bytes:
        """What nobody has heard; nothing at all once the connection has ended."""
        while not self._left:
            if self._error is not None:
                raise self._error
            if self._is_over:
                return b""
            self._news.clear()
            await self._news.wait()
        data = b"".join(self._left)
        self._left.clear()
        if self._num_left_bytes > MAX_LEFT_BYTES:
            self._transport.resume_reading()
        self._num_left_bytes = 0
        return data

    @property
    def is_over(self) -> bool:
        return self._is_over and not self._left

    # --- what asyncio calls --------------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._num_bytes == len(self._buffer) or self._num_needed > len(self._buffer):
            self._resize(max(self._num_needed, 2 * self._num_bytes))
        return self._view[self._num_bytes :]

    def buffer_updated(self, nbytes: int) -> None:
        self._num_bytes += nbytes
        if self._num_bytes < self._num_needed:
            return
        at = self._context.run(self._cut)
        rest = self._num_bytes - at
        if at:
            self._view[:rest] = self._view[at : self._num_bytes]
            self._num_bytes = rest
        if len(self._buffer) > MAX_KEPT_BYTES and max(rest, self._num_needed) <= BUFFER_BYTES:
            self._resize(BUFFER_BYTES)
        if self._num_needed == 0 and rest > MAX_LINE_BYTES:
            self._transport.abort()

    def eof_received(self) -> bool | None:
        self._over(None)
        return self._before.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._over(exc)
        self._before.connection_lost(exc)

    def pause_writing(self) -> None:
        self._before.pause_writing()

    def resume_writing(self) -> None:
        self._before.resume_writing()

    # --- cutting -------------------------------------------------------------------------------------------------

    def _cut(self) -> int:
        """How far what has come was made use of."""
        buffer, view, take, stop = self._buffer, self._view, self._take, self._num_bytes
        at = passed = 0  # up to `passed`, all was heard or handed on
        self._num_needed = 0
        searched, self._num_searched = self._num_searched, 0
        while (end := buffer.find(b"\r\n", max(at, searched), stop)) >= 0:
            start, searched = end + 2, 0
            try:
                message = message_of(bytes(view[at:end]))
            except Malformed as error:
                log.error("nats_unreadable", error=str(error))
                self._pass_on(passed, at)
                self._transport.abort()
                return stop
            if message is None:
                at = start
                continue
            sid, subject, reply, header_size, size = message
            after = start + size + 2
            if after > stop:
                self._num_needed = after - at
                break
            body = start + header_size
            headers = bytes(view[start:body]) if header_size else None
            is_taken = take(sid, subject, reply, bytes(view[body : start + size]), headers)
            if not is_taken and _ODD.search(subject + reply):
                log.warning("odd_subject", subject=repr(subject))
                is_taken = True  # nats-py's parser would end the connection for it, again and again
            if is_taken:
                self._pass_on(passed, at)
                passed = after
            at = after
        else:
            self._num_searched = max(0, stop - at - 1)  # its end may have half come
        self._pass_on(passed, at)
        return at

    def _pass_on(self, start: int, stop: int) -> None:
        if start == stop:
            return
        self._left.append(bytes(self._view[start:stop]))
        had = self._num_left_bytes
        self._num_left_bytes += stop - start
        self._news.set()
        if had <= MAX_LEFT_BYTES < self._num_left_bytes:
            self._transport.pause_reading()

    def _resize(self, num_bytes: int) -> None:
        buffer = bytearray(num_bytes)
        buffer[: self._num_bytes] = self._view[: self._num_bytes]
        self._buffer, self._view = buffer, memoryview(buffer)

    def _over(self, error: Exception | None) -> None:
        self._is_over = True
        self._error = self._error or error
        self._news.set()


class SievedTransport(TcpTransport):
    """A transport of nats-py's that is read through a sieve once the client's reading task begins."""

    def __init__(self, take: Take) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._take = take
        self._sieve: Sieve | None = None

    def __bool__(self) -> bool:
        return True

    async def connect(self, *args: Any, **kwargs: Any) -> None:
        self._sieve = None
        await super().connect(*args, **kwargs)

    async def connect_tls(self, *args: Any, **kwargs: Any) -> None:
        self._sieve = None
        await super().connect_tls(*args, **kwargs)

    async def read(self, buffer_size: int) -> bytes:
        if self._sieve is None:
            self._sieve = self._begun()
        return await self._sieve.left()

    @property
    def is_gone(self) -> bool:
        """Whether nothing that is written now gets anywhere."""
        return self._io_writer is None or self._io_writer.transport.is_closing()

    async def wait_closed(self) -> None:
        """Within CLOSE_S: a server that is frozen never takes what is still to be sent."""
        try:
            async with asyncio.timeout(CLOSE_S):
                await super().wait_closed()  # type: ignore[no-untyped-call]
        except TimeoutError:
            if self._io_writer is not None:
                self._io_writer.transport.abort()
        except OSError:
            pass  # so it is closed

    def at_eof(self) -> bool:
        is_at_eof = super().at_eof()  # type: ignore[no-untyped-call]
        return bool(is_at_eof) and (self._sieve is None or self._sieve.is_over)

    def _begun(self) -> Sieve:
        reader, writer = self._io_reader, self._io_writer
        if reader is None or writer is None:
            raise ConnectionError("there is no connection to read from")
        transport = cast(asyncio.Transport, writer.transport)
        before = cast(asyncio.Protocol | None, None if transport.is_closing() else transport.get_protocol())
        sieve = Sieve(transport, before or asyncio.Protocol(), self._take)
        buffered = reader._buffer  # type: ignore[attr-defined]
        first = bytes(buffered)
        buffered.clear()
        is_at_eof = reader.at_eof()
        if before is not None:
            transport.set_protocol(sieve)
        sieve.begin(first)
        if before is None:  # it has been lost already, and nobody else will say so
            sieve.connection_lost(reader.exception())
        elif is_at_eof:
            sieve.eof_received()
        else:
            transport.resume_reading()  # the reader may have paused it, for what is in the buffer
        return sieve
