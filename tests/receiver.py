"""A receiver of webhooks, as its users run one."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, slots=True)
class Got:
    """A request as it came."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    replied: int

    @property
    def key(self) -> str:
        return self.headers["idempotency-key"]


Reply = Callable[[int, bytes], tuple[int, dict[str, str]]]


@dataclass(slots=True)
class Receiver:
    """An HTTP server that keeps what it gets and replies as it is told: `reply(number of the request, body)`."""

    url: str = ""
    reply: Reply = lambda number, body: (204, {})
    got: list[Got] = field(default_factory=list)

    @property
    def taken(self) -> list[bytes]:
        return [got.body for got in self.got if 200 <= got.replied < 300]


@contextmanager
def receiving(reply: Reply = lambda number, body: (204, {})) -> Iterator[Receiver]:
    receiver = Receiver(reply=reply)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            with lock:
                status, headers = receiver.reply(len(receiver.got), body)
                lowered = {name.lower(): value for name, value in self.headers.items()}
                receiver.got.append(Got(self.path, lowered, body, status))
            if not status:  # no reply at all
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        receiver.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
