"""The command that serves an agent by the Model Context Protocol, over stdin and stdout."""

from __future__ import annotations  # the protocol's library is loaded when it is asked for

import argparse
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import anyio.to_thread

from penstock.cli.links import add_options
from streams.errors import UserError

Run = Callable[[Callable[[], Awaitable[Any]]], Any]
MAX_LINE_BYTES = 4 << 20


def add_command(commands: Any, run: Run) -> None:
    """Add it to the command line's parser."""
    help = "serve an agent by the Model Context Protocol (MCP), over stdin and stdout"
    parser = commands.add_parser("mcp", help=help, description=help, allow_abbrev=False)
    add_options(parser)

    def call(parsed: argparse.Namespace) -> int:
        run(partial(_serve, parsed))
        return 0

    parser.set_defaults(command=call)


async def _serve(parsed: argparse.Namespace) -> None:
    from mcp.server.stdio import stdio_server

    from penstock.client import connect
    from penstock.mcp_server import server_of

    if sys.stdin is None or sys.stdout is None:
        raise UserError("mcp: stdin or stdout is closed: an agent's host talks to it there")
    wire_in, wire_out = os.dup(0), os.dup(1)
    os.dup2(2, 1)  # what anything prints is nothing of the protocol's
    server = server_of(partial(connect, parsed.nats, store=parsed.store))
    files: Any = {"stdin": _lines(wire_in), "stdout": _Out(wire_out)}  # all that is asked of files there
    async with stdio_server(**files) as (requests, replies):
        await server.run(requests, replies, server.create_initialization_options())


async def _lines(wire: int) -> AsyncIterator[str]:
    """What comes on stdin, a line each; one that is too long is passed over. The thread that waits for it is left
    behind where nobody wants it any more, which the library's own cannot be."""
    data = bytearray()
    is_too_long = False
    while piece := await anyio.to_thread.run_sync(os.read, wire, 1 << 16, abandon_on_cancel=True):
        data += piece
        *lines, rest = data.split(b"\n")
        for line in lines:
            if not is_too_long:
                yield line.decode(errors="replace")
            is_too_long = False
        data = bytearray(rest)
        if len(data) > MAX_LINE_BYTES:
            print(f"penstock: a line of over {MAX_LINE_BYTES} bytes is passed over", file=sys.stderr)
            is_too_long = True
            data.clear()
    if data and not is_too_long:
        yield data.decode(errors="replace")


class _Out:
    """Writes to stdout in a thread that may be left behind."""

    def __init__(self, wire: int) -> None:
        self._wire = wire
        self._limiter = anyio.CapacityLimiter(1)

    async def write(self, text: str) -> None:
        data = memoryview(text.encode(errors="replace"))
        while data:
            try:
                num = await anyio.to_thread.run_sync(
                    os.write, self._wire, data, abandon_on_cancel=True, limiter=self._limiter
                )
            except BlockingIOError:  # whoever has the other end may have made it so
                await anyio.wait_writable(self._wire)
            else:
                data = data[num:]

    async def flush(self) -> None:
        """Nothing is held back."""
