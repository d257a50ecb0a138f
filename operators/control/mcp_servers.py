"""Tools of MCP servers: one started by a command, or one that is asked at a URL. A server is connected to when it is
first asked, and stays so while this event loop runs; where its connection broke, who asks next connects anew.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TextIO

import anyio
import httpx2
from anyio.lowlevel import RunVar
from mcp import Client, MCPError, StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CONNECTION_CLOSED, CallToolResult, TextContent

from operators import owned
from operators.control.tools import Tool
from operators.failures import failure
from streams.errors import UserError
from streams.media.references import secret

MAX_PAGES = 20  # of a server's list of tools

Where = tuple[Any, ...]


async def called(tool: Tool, arguments: Mapping[str, Any]) -> Any:
    """What the server's tool gives back. Raises Transient or Permanent, named."""
    server = _server(tool)
    client = await server.client(tool)
    try:
        given = await client.call_tool(tool.mcp_tool or tool.name, dict(arguments))
    except MCPError as error:
        raise server.broken(tool, error) from error
    except (OSError, RuntimeError, anyio.ClosedResourceError, anyio.BrokenResourceError) as error:
        raise server.lost(tool, error) from error
    return _read(tool, given)


async def described(tool: Tool) -> tuple[str, Mapping[str, Any]]:
    """What the server says of its tool: what it is for, and the JSON Schema of its arguments."""
    server = _server(tool)
    client = await server.client(tool)
    name = tool.mcp_tool or tool.name
    names: list[str] = []
    cursor: str | None = None
    for _ in range(MAX_PAGES):
        try:
            page = await client.list_tools(cursor=cursor)
        except MCPError as error:
            raise server.broken(tool, error) from error
        except (OSError, RuntimeError, anyio.ClosedResourceError, anyio.BrokenResourceError) as error:
            raise server.lost(tool, error) from error
        for each in page.tools:
            if each.name == name:
                return each.description or "", each.input_schema
            names.append(each.name)
        if (cursor := page.next_cursor) is None:
            break
    raise failure("tool", f"{tool.name}: its server has no tool {name!r}; it has {', '.join(names[:20]) or 'none'}")


def _read(tool: Tool, given: CallToolResult) -> Any:
    text = "\n".join(part.text for part in given.content if isinstance(part, TextContent))
    if given.is_error:
        raise failure("tool", f"{tool.name}: {tool.without_secrets(text)[:300] or 'it failed'}")
    match given.structured_content:
        case None:
            return text
        case {"result": result, **rest} if not rest:  # how what is no object is wrapped
            return result
        case other:
            return other


class _Server:
    """A connection, kept in a task of its own: what opened it has to close it."""

    def __init__(self) -> None:
        self._opened: asyncio.Future[Client] | None = None
        self._task: asyncio.Task[None] | None = None
        self._over = anyio.Event()

    async def client(self, tool: Tool) -> Client:
        if self._task is None or self._task.done() or self._over.is_set():
            self._over = anyio.Event()
            self._opened = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._keep(tool, self._opened, self._over))
        assert self._opened is not None
        try:
            return await asyncio.shield(self._opened)
        except (UserError, OSError, MCPError, RuntimeError) as error:
            why = str(error) if isinstance(error, UserError) else type(error).__name__
            raise failure("upstream", f"{tool.name}: its server is not up: {tool.without_secrets(why)}") from error

    async def _keep(self, tool: Tool, opened: "asyncio.Future[Client]", over: anyio.Event) -> None:
        try:
            async with Client(_transport(tool)) as client:
                opened.set_result(client)
                await over.wait()
        except Exception as error:  # of the library, of the transport, of the server
            if not opened.done():
                while isinstance(error, ExceptionGroup):
                    error = error.exceptions[0]
                known = isinstance(error, UserError | OSError | MCPError)
                opened.set_exception(error if known else RuntimeError(f"{type(error).__name__}: {error}"))
        finally:
            over.set()
            if not opened.done():
                opened.cancel()

    def broken(self, tool: Tool, error: MCPError) -> Exception:
        if error.code == CONNECTION_CLOSED:
            return self.lost(tool, error)
        return failure("tool", f"{tool.name}: {tool.without_secrets(str(error))[:300]}")

    def lost(self, tool: Tool, error: Exception) -> Exception:
        self._over.set()
        return failure("upstream", f"{tool.name}: the connection to its server broke ({type(error).__name__})")


_servers: RunVar[dict[Where, _Server]] = RunVar("penstock_mcp_servers")


def _server(tool: Tool) -> _Server:
    """The one that the tool's server is asked through, in this event loop; tools of one server share it."""
    try:
        servers = _servers.get()
    except LookupError:
        servers = {}
        _servers.set(servers)
    return servers.setdefault((tool.mcp, tool.key, tuple(sorted(tool.env.items()))), _Server())


@asynccontextmanager
async def _transport(tool: Tool) -> AsyncIterator[Any]:
    """Raises UserError where what it refers to is not there."""
    if isinstance(tool.mcp, str):
        headers = owned.bearer(tool.key)
        limits = httpx2.Timeout(tool.timeout_s)
        async with (
            httpx2.AsyncClient(headers=headers, timeout=limits, trust_env=False, follow_redirects=False) as client,
            streamable_http_client(tool.mcp, http_client=client) as streams,
        ):
            yield streams
        return
    command, *arguments = tool.mcp
    env = {name: secret(value) for name, value in tool.env.items()}
    with _silence() as silence:
        parameters = StdioServerParameters(command=command, args=arguments, env=env)
        async with stdio_client(parameters, errlog=silence) as streams:
            yield streams


def _silence() -> TextIO:
    """For what a server says beside the protocol, which may be anything."""
    return Path(os.devnull).open("w")
