"""An endpoint of a language model that does what a script says, good or bad: real HTTP, on this machine."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel

from streams.errors import first_error

Send = Callable[[bytes], Awaitable[None]]
Act = Callable[["Request", Send], Awaitable[None]]


class Request:
    """What was asked."""

    def __init__(self, head: str, body: bytes) -> None:
        self.head = head
        self.raw = body
        self.body: dict[str, Any] = json.loads(body) if body.startswith(b"{") else {}


class Endpoint:
    """`acts` are done one after the other, one for each request; the last one goes on being done."""

    def __init__(self, *acts: Act) -> None:
        self.acts = list(acts)
        self.requests: list[Request] = []
        self.url = ""
        self.num_open = 0
        self.most_open = 0

    async def handle(self, stream: anyio.abc.SocketStream) -> None:
        async with stream:
            received = bytearray()
            while b"\r\n\r\n" not in received:
                received += await stream.receive()
            head, _, body = bytes(received).partition(b"\r\n\r\n")
            (length,) = (
                int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
            )
            while len(body) < length:
                body += await stream.receive()
            request = Request(head.decode(), body)
            act = self.acts[min(len(self.requests), len(self.acts) - 1)]
            self.requests.append(request)
            self.num_open += 1
            self.most_open = max(self.most_open, self.num_open)
            try:
                await act(request, stream.send)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass
            finally:
                self.num_open -= 1


@asynccontextmanager
async def serving(*acts: Act) -> AsyncIterator[Endpoint]:
    endpoint = Endpoint(*acts)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    (port,) = {each.extra(anyio.abc.SocketAttribute.local_port) for each in listener.listeners}
    endpoint.url = f"http://127.0.0.1:{port}/v1"
    try:
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, endpoint.handle)
            yield endpoint
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise first_error(group) from None


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def piece(content: str = "", **more: Any) -> bytes:
    """A piece of an answer, as it is streamed."""
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": None, **more}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


DONE = piece(finish_reason="stop") + b"data: [DONE]\n\n"


def says(text: str, end: bytes = DONE) -> Act:
    """The text, in pieces of seven characters, and how it ends."""

    async def act(request: Request, send: Send) -> None:
        await send(HEAD)
        for at in range(0, len(text), 7):
            await send(piece(text[at : at + 7]))
        await send(end)

    return act


def refuses(status: int, body: str = "", **headers: str) -> Act:
    async def act(request: Request, send: Send) -> None:
        lines = [f"HTTP/1.1 {status} No", f"Content-Length: {len(body)}", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await send("\r\n".join([*lines, "", body]).encode())

    return act


async def says_nothing(request: Request, send: Send) -> None:
    await anyio.sleep_forever()


async def never_ends(request: Request, send: Send) -> None:
    await send(HEAD)
    while True:
        await send(piece("and an hour "))
        await anyio.lowlevel.checkpoint()


async def a_line_without_end(request: Request, send: Send) -> None:
    await send(HEAD)
    while True:
        await send(bytes(b"x" * 65536))


async def goes_away(request: Request, send: Send) -> None:
    await send(HEAD + piece("half an ans"))
