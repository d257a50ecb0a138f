"""Tools of MCP servers: one started by a command, or one that is asked at a URL. A server is connected to when it is
first asked, and stays so while this event loop runs; where its connection broke, who asks next connects anew. One that
let a call's time pass is looked at: it is let go where it does not so much as say what tools it has.

What a server says besides its answers is shown to nobody, and errors are told without the key it was given.
"""

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

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

for _name in ("mcp", "client", "httpx2"):  # whatever a server writes would stand in the log, with its keys
    logging.getLogger(_name).setLevel(logging.CRITICAL)

MAX_PAGES = 20  # of a server's list of tools
CONNECT_S, READ_S = 10.0, 1800.0  # a tool's own time is shorter
DOUBT_S = 5.0  # for a server that is looked at
LOST = (OSError, anyio.ClosedResourceError, anyio.BrokenResourceError, anyio.EndOfStream)
# A child that ends with who started it, however that ends. Linux's prctl(PR_SET_PDEATHSIG, SIGKILL).
TIED = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execvp(sys.argv[1], sys.argv[1:])"

Where = tuple[Any, ...]
T = TypeVar("T")


async def called(tool: Tool, arguments: Mapping[str, Any]) -> Any:
    """What the server's tool gives back. Raises Transient or Permanent, named."""
    name = tool.mcp_tool or tool.name
    return _read(tool, await _asked(tool, lambda client: client.call_tool(name, dict(arguments))))


async def described(tool: Tool) -> tuple[str, Mapping[str, Any]]:
    """What the server says of its tool: what it is for, and the JSON Schema of its arguments."""
    wanted = tool.mcp_tool or tool.name
    names: list[str] = []
    cursor: str | None = None
    for _ in range(MAX_PAGES):
        page = await _asked(tool, lambda client, at=cursor: client.list_tools(cursor=at))  # type: ignore[misc]
        for each in page.tools:
            if each.name == wanted:
                return each.description or "", each.input_schema
            names.append(each.name)
        if (cursor := page.next_cursor) is None:
            break
    there = tool.without_secrets(", ".join(names[:20])) or "none"
    raise failure("tool", f"{tool.name}: its server has no tool {wanted!r}; it has {there}")


async def _asked(tool: Tool, ask: Callable[[Client], Awaitable[T]]) -> T:
    """What a server answers. Raises Transient, named `upstream`, where it is not there; Permanent, named `tool`, where
    it will not, or breaks its word."""
    server = _server(tool)
    client = await server.client(tool)
    try:
        return await ask(client)
    except asyncio.CancelledError:
        server.doubt(client)
        raise
    except MCPError as error:
        if error.code != CONNECTION_CLOSED:
            raise failure("tool", f"{tool.name}: {tool.without_secrets(str(error))[:300]}") from error
        raise server.lost(tool, error) from error
    except LOST as error:
        raise server.lost(tool, error) from error
    except Exception as error:  # the library's, for what is not as it should be; its text holds what was said
        raise failure(
            "tool", f"{tool.name}: what its server says is not as it should be ({type(error).__name__})"
        ) from error


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
        self._scope = anyio.CancelScope()
        self._doubting: asyncio.Task[None] | None = None

    async def client(self, tool: Tool) -> Client:
        if self._task is None or self._task.done() or self._over.is_set():
            self._over = anyio.Event()
            self._opened = asyncio.get_running_loop().create_future()
            self._scope = anyio.CancelScope()
            self._task = asyncio.create_task(self._keep(tool, self._opened, self._over, self._scope))
        assert self._opened is not None
        try:
            return await asyncio.shield(self._opened)
        except asyncio.CancelledError:
            if not self._opened.done():  # who asks next starts it anew: it may have hung
                self._scope.cancel()
                self._over.set()
            raise
        except (UserError, OSError, MCPError, RuntimeError) as error:
            why = str(error) if isinstance(error, UserError) else type(error).__name__
            raise failure("upstream", f"{tool.name}: its server is not up: {tool.without_secrets(why)}") from error

    async def _keep(
        self, tool: Tool, opened: "asyncio.Future[Client]", over: anyio.Event, scope: anyio.CancelScope
    ) -> None:
        error: BaseException | None = None
        try:
            with scope:  # not the task itself is canceled: the library would leave the child where it is
                async with Client(_transport(tool)) as client:
                    opened.set_result(client)
                    await over.wait()
        except Exception as failed:  # of the library, of the transport, of the server
            error = failed
            while isinstance(error, ExceptionGroup):
                error = error.exceptions[0]
        finally:
            over.set()
            if not opened.done():
                known = isinstance(error, UserError | OSError | MCPError)
                opened.set_exception(error if error and known else RuntimeError(type(error).__name__))
                opened.exception()  # it may be that nobody waits for it any more

    def doubt(self, client: Client) -> None:
        """Somebody's time is over: it may be that this tool is slow, or that nothing comes from there any more."""
        if self._doubting is None or self._doubting.done():
            self._doubting = asyncio.create_task(self._look(client, self._over))

    async def _look(self, client: Client, over: anyio.Event) -> None:
        with anyio.move_on_after(DOUBT_S) as looking:
            try:
                await client.list_tools(cache_mode="bypass")
            except Exception:
                over.set()
        if looking.cancelled_caught:
            over.set()

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
        limits = httpx2.Timeout(READ_S, connect=CONNECT_S)
        async with (
            httpx2.AsyncClient(headers=headers, timeout=limits, trust_env=False, follow_redirects=False) as client,
            streamable_http_client(tool.mcp, http_client=client) as streams,
        ):
            yield streams
        return
    env = {name: secret(value) for name, value in tool.env.items()}
    command, *arguments = _tied(tool.mcp)
    with _silence() as silence:
        parameters = StdioServerParameters(command=command, args=arguments, env=env)
        async with stdio_client(parameters, errlog=silence) as streams:
            yield streams


def _tied(command: tuple[str, ...]) -> tuple[str, ...]:
    return (sys.executable, "-I", "-S", "-c", TIED, *command) if sys.platform == "linux" else command


def _silence() -> TextIO:
    """For what a server says beside the protocol, which may be anything."""
    return Path(os.devnull).open("w")
