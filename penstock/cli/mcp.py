"""The command that serves an agent by the Model Context Protocol, over stdin and stdout."""

from __future__ import annotations  # the protocol's library is loaded when it is asked for

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, cast

from penstock.cli.links import add_options

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

    server = server_of(partial(connect, parsed.nats, store=parsed.store))
    async with stdio_server(stdin=cast(Any, _lines())) as (requests, replies):
        await server.run(requests, replies, server.create_initialization_options())


async def _lines() -> AsyncIterator[str]:
    """What comes on stdin. Not by a thread, as in the library: one that waits for a line cannot be interrupted."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    try:
        while line := await reader.readline():
            yield line.decode(errors="replace")
    finally:
        transport.close()
