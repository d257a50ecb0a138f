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
from collections.abc import Callable
from typing import Any, cast

from nats.aio.transport import TcpTransport

BUFFER_BYTES = 1 << 20  # what is read at once
MAX_KEPT_BYTES = 1 << 22  # of a buffer that became larger for a large message
MAX_MESSAGE_BYTES = (1 << 26) + (1 << 16)  # the most a server can be told to let through
MAX_LINE_BYTES = 1 << 20  # what a server says of itself and its cluster is the longest
MAX_LEFT_BYTES = 1 << 20  # for nats-py, before nothing more is read
_NUM_WORDS = {b"MSG": 4, b"HMSG": 5}  # without a subject to answer on, which stands before the sizes

Take = Callable[[int, bytes, bytes, bytes, bytes | None], bool]  # sid, subject, reply, payload, headers: is it heard?


def message_of(line: bytes) -> tuple[int, bytes, bytes, int, int] | None:
    """What a line announces: sid, subject, the subject to answer on, the size of its headers and of all; None for what
    is no message's."""
    words = line.split()
    num_words = _NUM_WORDS.get(words[0], 0) if words else 0
    if not num_words or len(words) not in (num_words, num_words + 1):
        return None
    try:
        sid, size = int(words[2]), int(words[-1])
        header_size = int(words[-2]) if num_words == 5 else 0
    except ValueError:
        return None
    if not 0 <= header_size <= size <= MAX_MESSAGE_BYTES:
        return None
    return sid, words[1], words[3] if len(words) > num_words else b"", header_size, size


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
        at = self._cut()
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
        while (end := buffer.find(b"\r\n", at, stop)) >= 0:
            start = end + 2
            message = message_of(bytes(view[at:end]))
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
            if take(sid, subject, reply, bytes(view[body : start + size]), headers):
                self._pass_on(passed, at)
                passed = after
            at = after
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

    def at_eof(self) -> bool:
        is_at_eof = super().at_eof()  # type: ignore[no-untyped-call]
        return bool(is_at_eof) and (self._sieve is None or self._sieve.is_over)

    def _begun(self) -> Sieve:
        reader, writer = self._io_reader, self._io_writer
        if reader is None or writer is None:
            raise ConnectionError("there is no connection to read from")
        transport = cast(asyncio.Transport, writer.transport)
        sieve = Sieve(transport, cast(asyncio.Protocol, transport.get_protocol()), self._take)
        buffered = reader._buffer  # type: ignore[attr-defined]
        first = bytes(buffered)
        buffered.clear()
        transport.set_protocol(sieve)
        if reader.at_eof():
            sieve.eof_received()
        sieve.begin(first)
        transport.resume_reading()  # the reader may have paused it, for what is in the buffer
        return sieve
