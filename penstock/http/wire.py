"""What holds for every exchange, whatever is asked: a layer between the HTTP server and the application.

A page of another site cannot have a browser change anything here: what changes something must have no Origin, or ours,
and whatever is asked must be asked of a name that is ours (`penstock.http.hosts`). Where a token is asked for, all but
the probes has to bear it (`penstock.tokens`).
A response that comes before the request's body has been read, such as the refusal of an upload, ends the connection;
what the client has sent already is taken for LINGER_S and thrown away, for a connection that is closed on unread bytes
is reset, and the client would not see the response.
"""

import time
from collections.abc import Collection
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import anyio
import msgspec
import structlog
from h11 import LocalProtocolError

from engine.run.telemetry import Telemetry
from penstock.http.hosts import HOSTS, is_ours
from penstock.http.problems import MEDIA_TYPE, Problem
from penstock.http.spans import ExchangeSpan
from penstock.tokens import OPEN, bears
from streams.decoding import shown

log = structlog.get_logger(__name__)

LINGER_S = 2.0
LINGER_BYTES = 64 << 20
HARMLESS = frozenset({"GET", "HEAD", "OPTIONS"})


class Wire:
    """An ASGI application around another."""

    def __init__(self, app: Any, traces: Telemetry, names: Collection[str], token: str | None = None) -> None:
        self._app = app
        self._traces = traces
        self._names = names
        self._token = token

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        began_s = time.perf_counter()
        span = ExchangeSpan(self._traces, scope)
        try:
            host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            if not is_ours(host, self._names):
                line = f"{shown(host)} is no name of this node: use its address, or name it in {HOSTS} where it runs"
                await exchange.refuse(HTTPStatus.MISDIRECTED_REQUEST, line)
            elif not self._is_let_in(scope):
                line = "bear the token that `penstock token` prints where this node runs: Authorization: Bearer ..."
                await exchange.refuse(HTTPStatus.UNAUTHORIZED, line, (b"www-authenticate", b"Bearer"))
            elif _is_of_another_site(scope):
                await exchange.refuse(HTTPStatus.FORBIDDEN, "pages of other sites may not change anything here")
            else:
                await self._app(scope, exchange.receive, exchange.send)
        finally:
            span.end(exchange.status)
        took_s = round(time.perf_counter() - began_s, 4)
        log.debug("http", method=scope["method"], path=scope["path"], status=exchange.status, took_s=took_s)

    def _is_let_in(self, scope: Any) -> bool:
        if self._token is None:
            return True
        known = bears(dict(scope["headers"]).get(b"authorization", b""), self._token)
        scope["state"]["is_stranger"] = not known
        return known or (scope["path"] in OPEN and scope["method"] in HARMLESS)


class _Exchange:
    """One request and its response."""

    def __init__(self, scope: Any, receive: Any, send: Any) -> None:
        self._receive = receive
        self._send = send
        self._has_all = not _has_body(scope)
        self.status = 0

    async def receive(self) -> Any:
        message = await self._receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            self._has_all = True
        return message

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = int(message["status"])
            if not self._has_all:
                message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
        elif not self._has_all and not message.get("more_body", False):
            await self._hand_on({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._hand_on(message)

    async def _hand_on(self, message: Any) -> None:
        try:
            await self._send(message)
        except LocalProtocolError as error:  # the client broke off in the middle of what it sent
            log.debug("http_not_sent", error=str(error))

    async def refuse(self, status: HTTPStatus, line: str, *more: tuple[bytes, bytes]) -> None:
        body = msgspec.json.encode(Problem(title=status.phrase, status=status, detail=line))
        headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode()), *more]
        await self.send({"type": "http.response.start", "status": int(status), "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": False})

    async def _linger(self) -> None:
        num_bytes = 0
        with anyio.move_on_after(LINGER_S):
            while not self._has_all and num_bytes < LINGER_BYTES:
                num_bytes += len((await self.receive()).get("body", b""))


def _has_body(scope: Any) -> bool:
    headers = dict(scope["headers"])
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"


def _is_of_another_site(scope: Any) -> bool:
    headers = dict(scope["headers"])
    if scope["method"] in HARMLESS or b"origin" not in headers:
        return False
    origin: str = headers[b"origin"].decode("latin-1")
    host: str = headers.get(b"host", b"").decode("latin-1")
    return urlsplit(origin).netloc != host
