"""A bounded pipe of bytes from the event loop (or any thread) to a thread that reads media.

Delivery guarantee: bytes come out in the order they went in, every one once, until either side gives up. Whoever feeds
waits for room (`put`) or is refused (`feed`); nothing is dropped. Bounded: `max_bytes` and the last piece that was fed.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable

from streams.errors import Permanent, Transient

MAX_BYTES = 8 << 20


class PipeFull(Transient):
    """There is no room; what was fed was not taken."""


class PipeClosed(Permanent):
    """Nobody takes bytes any more: the pipe was closed, or its reader gave up."""


class Pipe:
    """Feed on one side, `read` on the other. Safe between threads. `name` stands in errors."""

    def __init__(self, name: str = "bytes", max_bytes: int = MAX_BYTES) -> None:
        self.name = name
        self.max_bytes = max_bytes
        self.num_bytes = 0  # fed and not yet read
        self._parts: deque[memoryview] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._given_up: str | None = None
        self._waiting: list[Callable[[], None]] = []

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take these bytes. Raises PipeFull where there is no room, PipeClosed where nobody reads any more."""
        with self._changed:
            self._refuse_if_closed()
            if self.num_bytes >= self.max_bytes:
                raise PipeFull(f"{self.name}: {self.num_bytes} bytes wait to be read; feed more when there is room")
            if data:
                self._parts.append(memoryview(bytes(data)))
                self.num_bytes += len(data)
                self._changed.notify_all()

    async def put(self, data: bytes | bytearray | memoryview) -> None:
        """As `feed`, from asyncio: waits for room. Raises PipeClosed where nobody reads any more."""
        while True:
            room = asyncio.Event()
            loop = asyncio.get_running_loop()
            with self._changed:
                if self._is_closed or self._given_up is not None or self.num_bytes < self.max_bytes:
                    self.feed(data)
                    return

                def wake(loop: asyncio.AbstractEventLoop = loop, room: asyncio.Event = room) -> None:
                    loop.call_soon_threadsafe(room.set)

                self._waiting.append(wake)
            try:
                await room.wait()
            finally:
                with self._changed:
                    if wake in self._waiting:
                        self._waiting.remove(wake)

    def close(self) -> None:
        """The bytes end here; what was fed can still be read."""
        with self._changed:
            self._is_closed = True
            self._wake_feeders()
            self._changed.notify_all()

    def give_up(self, reason: str) -> None:
        """The reader's side: take nothing more, let go of what waits. A read under way raises PipeClosed."""
        with self._changed:
            if self._given_up is None:
                self._given_up = reason
            self._parts.clear()
            self.num_bytes = 0
            self._wake_feeders()
            self._changed.notify_all()

    def read(self, max_bytes: int = -1) -> bytes:
        """The next bytes, waiting until there are some; b"" at the end. Raises PipeClosed after `give_up`."""
        with self._changed:
            while not self._parts and not self._is_closed and self._given_up is None:
                self._changed.wait()  # for a feeder, or for whoever closes the pipe or gives up
            if self._given_up is not None:
                raise PipeClosed(f"{self.name}: nobody reads any more ({self._given_up})")
            if not self._parts:
                return b""
            part = self._parts.popleft()
            if 0 <= max_bytes < len(part):
                self._parts.appendleft(part[max_bytes:])
                part = part[:max_bytes]
            self.num_bytes -= len(part)
            if self.num_bytes < self.max_bytes:
                self._wake_feeders()
            return bytes(part)

    def _refuse_if_closed(self) -> None:
        if self._given_up is not None:
            raise PipeClosed(f"{self.name}: nobody reads any more ({self._given_up})")
        if self._is_closed:
            raise PipeClosed(f"{self.name}: was closed; open another to send more")

    def _wake_feeders(self) -> None:
        waiting, self._waiting = self._waiting, []
        for wake in waiting:
            wake()
