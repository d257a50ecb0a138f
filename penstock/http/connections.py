"""Connections: how many there may be, and how long one may say nothing.

A connection that has no request under way has `head_s` to send the head of one, whole: neither silence nor a head
without end holds it longer. Where there are as many as may be, the one that has waited longest without a request goes
for the new one; one peer has a part of them at most, so that it cannot shut the others out.
"""

import asyncio
import resource
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

OTHER_FILES = 256  # that a node has open, beside connections
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Crowd:
    """The connections of one server."""

    def __init__(self, max_connections: int, head_s: float) -> None:
        self.max_connections = files_for(max_connections)
        self.max_of_peer = max(1, self.max_connections // 2)
        self.head_s = head_s
        self.num = 0
        self._of_peer: Counter[str] = Counter()
        self._waiting: dict[Connection, None] = {}  # without a request, the longest first

    def enter(self, connection: "Connection") -> bool:
        """Whether there is room for it."""
        self.num += 1
        self._of_peer[connection.peer] += 1
        if self._of_peer[connection.peer] > self.max_of_peer:
            return False
        if self.num > self.max_connections:
            longest = next(iter(self._waiting), None)
            if longest is None:
                return False
            longest.transport.abort()
        return True

    def leave(self, connection: "Connection") -> None:
        self.num -= 1
        self._of_peer[connection.peer] -= 1
        if not self._of_peer[connection.peer]:
            del self._of_peer[connection.peer]
        self.stop_waiting(connection)

    def wait(self, connection: "Connection") -> None:
        self._waiting[connection] = None

    def stop_waiting(self, connection: "Connection") -> None:
        self._waiting.pop(connection, None)


def files_for(max_connections: int) -> int:
    """How many connections there can be; the process's limit of open files is raised for them as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max_connections + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY:
        return max_connections
    return max(16, min(max_connections, soft - OTHER_FILES))


class Connection(H11Protocol):
    """One connection, of a crowd."""

    def __init__(self, crowd: Crowd, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.peer = ""
        self._crowd = crowd
        self._timer: asyncio.TimerHandle | None = None
        self._is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.peer = self.client[0] if self.client else ""
        if self._crowd.enter(self):
            self._await_request()
            return
        self._is_refused = True
        transport.write(BUSY)
        transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._crowd.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        super().data_received(data)
        if self._has_request():
            self._stop_waiting()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and not self._has_request():
            self._await_request()

    def _has_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_request(self) -> None:
        self._stop_waiting()
        self._crowd.wait(self)
        self._timer = self.loop.call_later(self._crowd.head_s, self.transport.close)

    def _stop_waiting(self) -> None:
        self._crowd.stop_waiting(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def connections_of(crowd: Crowd) -> Callable[..., asyncio.Protocol]:
    """What uvicorn makes connections with."""

    def connection(*args: Any, **options: Any) -> Connection:
        return Connection(crowd, *args, **options)

    return connection
