"""Egress: a proxy on loopback that connects only where it is allowed to.

Whatever opens a URL for somebody else follows redirects and playlists and asks the resolver again, so it cannot be kept
to some addresses by a look at the URL. What goes through this proxy is resolved here, once for each connection, and the
connection is made to the very address that was judged. It speaks HTTP as FFmpeg and httpx ask a proxy: CONNECT, and
requests with the whole URL; one exchange a connection. Only who knows its password is served.

Bounds: MAX_CONNECTIONS at once, HEAD_BYTES and HEAD_S for a request's head, CONNECT_S to connect; a connection on
which neither side says anything for SILENT_S ends.
"""

import base64
import hmac
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

import anyio
import anyio.abc
import structlog

from streams.errors import UserError

log = structlog.get_logger(__name__)

MAX_CONNECTIONS = 512
HEAD_BYTES, HEAD_S = 65536, 10.0
CONNECT_S = 10.0
SILENT_S = 300.0
PIECE_BYTES = 65536
OURS = frozenset({"proxy-authorization", "proxy-connection", "connection", "keep-alive"})


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a client asks for: whom to connect to, and what to say there first."""

    host: str
    port: int
    first: bytes  # empty: a tunnel


class _No(Exception):
    """The request is refused, with this status line."""


@asynccontextmanager
async def egress(allows: Callable[[str], bool]) -> AsyncIterator[str]:
    """Serve while it is open; the proxy's URL, password included. `allows` judges IP addresses."""
    secret = secrets.token_urlsafe(24)
    expected = b"basic " + base64.b64encode(f"penstock:{secret}".encode())
    room = anyio.CapacityLimiter(MAX_CONNECTIONS)

    async def serve(client: anyio.abc.SocketStream) -> None:
        async with client, room:
            with suppress(anyio.BrokenResourceError, anyio.EndOfStream, anyio.ClosedResourceError, OSError):
                try:
                    with anyio.fail_after(HEAD_S):
                        head, rest = await _head(client)
                    asked = _asked(head, expected)
                    async with await _connected(asked, allows) as server:
                        if asked.first:
                            await server.send(asked.first + rest)
                        else:
                            await client.send(b"HTTP/1.1 200 Connected\r\n\r\n")
                        await _relay(client, server)
                except (_No, TimeoutError) as refusal:
                    status = str(refusal) or "408 Request Timeout"
                    await client.send(f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode())

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield f"http://penstock:{secret}@127.0.0.1:{port}"
        tasks.cancel_scope.cancel()


async def allowed_address(host: str, port: int, allows: Callable[[str], bool]) -> str:
    """The first address of a host that is allowed. Raises UserError where there is none, whatever the cause: who asks
    is not to learn what there is in networks that are not theirs."""
    with suppress(OSError, UnicodeError):
        for _, _, _, _, place in await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            if allows(str(place[0])):
                return str(place[0])
    raise UserError(f"{host}: cannot be reached from this node, or may not be")


async def _head(client: anyio.abc.SocketStream) -> tuple[bytes, bytes]:
    """The head of a request, and what came behind it."""
    said = b""
    while b"\r\n\r\n" not in said:
        if len(said) > HEAD_BYTES:
            raise _No("431 Request Header Fields Too Large")
        said += await client.receive(PIECE_BYTES)
    head, _, rest = said.partition(b"\r\n\r\n")
    return head, rest


def _asked(head: bytes, expected: bytes) -> _Asked:
    """Raises _No. Pure."""
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = [(name.strip().lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    given = dict(headers).get("proxy-authorization", "").encode("latin-1")
    scheme, _, password = given.partition(b" ")
    if not hmac.compare_digest(scheme.lower() + b" " + password.strip(), expected):
        raise _No('407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm="penstock"')
    try:
        method, target, version = first.split(" ")
        parts = urlsplit(f"//{target}" if method == "CONNECT" else target)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise _No("400 Bad Request") from None
    if host is None or (method == "CONNECT") == bool(parts.scheme) or parts.scheme not in ("", "http"):
        raise _No("400 Bad Request")
    if method == "CONNECT":
        if port is None:
            raise _No("400 Bad Request")
        return _Asked(host, port, b"")
    place = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    kept = [line for line, (name, _) in zip(lines, headers, strict=True) if name not in OURS]
    said = "\r\n".join([f"{method} {place} {version}", *kept, "Connection: close", "", ""])
    return _Asked(host, port or 80, said.encode("latin-1"))


async def _connected(asked: _Asked, allows: Callable[[str], bool]) -> anyio.abc.SocketStream:
    try:
        with anyio.fail_after(CONNECT_S):
            address = await allowed_address(asked.host, asked.port, allows)
            return await anyio.connect_tcp(address, asked.port)
    except UserError as error:
        log.warning("not_let_out", host=asked.host, port=asked.port)
        raise _No("403 Forbidden") from error
    except OSError as error:
        raise _No("502 Bad Gateway") from error


async def _relay(client: anyio.abc.SocketStream, server: anyio.abc.SocketStream) -> None:
    """Both ways, until the server has said all, or neither says anything any more."""
    async with anyio.create_task_group() as tasks:
        deadline = tasks.cancel_scope

        async def pass_on(source: anyio.abc.SocketStream, sink: anyio.abc.SocketStream, *, is_last: bool) -> None:
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
                while True:
                    deadline.deadline = anyio.current_time() + SILENT_S
                    await sink.send(await source.receive(PIECE_BYTES))
            with suppress(OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
                await sink.send_eof()
            if is_last:
                deadline.cancel()

        tasks.start_soon(partial(pass_on, client, server, is_last=False))
        tasks.start_soon(partial(pass_on, server, client, is_last=True))
