"""The server: a socket, uvicorn on it inside our own task, and an end that waits for nobody.

It installs no signal handlers and writes no log but ours. When it is canceled, event streams are ended, what is under
way has GRACE_S, and then every connection is closed. A client that takes no byte for as long as a request may stall is
cut off by the kernel (TCP_USER_TIMEOUT, where there is one).
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import anyio
import anyio.abc
import structlog
import uvicorn

from engine.node.endpoints import Services
from engine.node.fleet import Workforce
from engine.node.workers_heard import WorkersHeard
from engine.run.registry import Registry
from engine.run.telemetry import Telemetry, product_version
from engine.spec.catalogue import Catalogue, installed
from operators.language.served import ServedState
from penstock.http.app import application
from penstock.http.connections import Crowd, connections_of
from penstock.http.face import Face, Limits, limits_of_environment
from penstock.http.hosts import own_names
from penstock.places import this_machine
from penstock.tokens import Auth, asked_for
from streams.errors import UserError
from streams.wire.ledger import Ledger

log = structlog.get_logger(__name__)

GRACE_S = 0.5
BACKLOG = 512
EXAMPLE = "127.0.0.1:8080"


async def serve_http(
    address: str,
    services: Services,
    registry: Registry,
    ledger: Ledger,
    *,
    catalogue: Catalogue | None = None,
    traces: Telemetry | None = None,
    limits: Limits | None = None,
    auth: Auth = "auto",
    token: str | None = None,
    models: Mapping[str, ServedState] | None = None,
    heard: WorkersHeard | None = None,
    workforce: Workforce | None = None,
    task_status: anyio.abc.TaskStatus[str] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve HTTP at `host:port` (port 0: any that is free) until canceled; reports the URL. Whether requests have to
    bear the token, `auth` says. Raises UserError for an address that is none or is in use, or that others can reach
    without a token."""
    bounds, names = limits or limits_of_environment(), own_names()
    own_traces = traces or Telemetry("penstock-http")
    listener = await _listener(address, bounds)
    try:
        asked = asked_for(auth, address, listener.getsockname()[0], token)
    except UserError:
        listener.close()
        raise
    workers = heard or WorkersHeard(ledger.link)
    catalogue, models = catalogue or installed(), {} if models is None else models
    face = Face(services, registry, ledger, catalogue, this_machine(), own_traces, bounds, workers, models, workforce)
    ended = anyio.Event()
    try:
        async with anyio.create_task_group() as tasks:
            running = anyio.CancelScope(shield=True)  # it is told to end, and canceled only where it does not
            server = _Server(face, bounds, names, asked, lambda: task_status.started(_url(listener)))

            async def run() -> None:
                try:
                    with running:
                        await server.serve(sockets=[listener])
                finally:
                    ended.set()

            tasks.start_soon(run)
            if heard is None:
                tasks.start_soon(workers.run)
            try:
                await ended.wait()
            finally:
                face.closing.set()
                server.should_exit = True
                with anyio.move_on_after(GRACE_S + 0.3, shield=True):
                    await ended.wait()
                running.cancel()
                tasks.cancel_scope.cancel()
    finally:
        listener.close()
        with anyio.move_on_after(0.2, shield=True):
            await server.close_connections()
        if traces is None:
            own_traces.close()


class _Server(uvicorn.Server):
    """Uvicorn, as a guest."""

    def __init__(
        self, face: Face, limits: Limits, names: Collection[str], token: str | None, on_start: Callable[[], None]
    ) -> None:
        _log_through_structlog()
        super().__init__(
            uvicorn.Config(
                application(face, product_version(), names, token),
                http=connections_of(Crowd(limits.max_connections, limits.head_s)),  # type: ignore[arg-type]  # makes them
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=limits.head_s,  # type: ignore[arg-type]  # seconds; only ever waited for
                timeout_graceful_shutdown=GRACE_S,  # type: ignore[arg-type]  # seconds; only ever waited for
            )
        )
        self._on_start = on_start

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_start()

    async def close_connections(self) -> None:
        """Those that are still open, and what they are still at."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks)


async def _listener(address: str, limits: Limits) -> socket.socket:
    """A socket that listens. Raises UserError with what would be right."""
    host, separator, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (separator and host and port.isascii() and port.isdecimal() and int(port) < 65536):
        raise UserError(f"--http {address}: give host:port, such as {EXAMPLE}, or port 0 for any that is free")
    try:
        family, _, _, _, place = (await anyio.getaddrinfo(host, int(port), type=socket.SOCK_STREAM))[0]
        listener = socket.create_server(place, family=family, backlog=BACKLOG)
    except OSError as error:
        said = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        reason = (said or "unknown").lower()
        raise UserError(f"--http {address}: {reason}; give another, such as {EXAMPLE}, or port 0 for any") from error
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # connections inherit it
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(limits.stall_s * 1000))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _ToStructlog(logging.Handler):
    """What uvicorn has to say, as our log lines."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, asyncio.CancelledError):
            return
        say: Any = log.error if error is not None else log.info
        say("http_server", said=record.getMessage().strip(), **({"exc_info": error} if error is not None else {}))


def _log_through_structlog() -> None:
    logger = logging.getLogger("uvicorn.error")
    if not any(isinstance(handler, _ToStructlog) for handler in logger.handlers):
        logger.addHandler(_ToStructlog())
        logger.propagate = False
