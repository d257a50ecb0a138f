"""Services: what is answered when it is asked over NATS, by the NATS service protocol (ADR-32), so that `nats service
list` and any client in any language finds it, sees its figures and can ask it.

Delivery guarantee: at most once. A request that is taken is answered: with the reply, or with an error in the headers
`Nats-Service-Error-Code` and `Nats-Service-Error`. Whoever gets no answer in time does not know whether it was done.

NATS gives each request to one of those who serve it, also to one that is frozen or whose network is gone. So `ask`
(`streams.wire.asking`) asks with a header `Penstock-Offer`: who gets that request offers to do it, and does it when the
offer is accepted, which it is once; while it is being done, something is heard of it every BEAT_S. What nobody offers,
and what nothing is heard of any more, is asked again, of whoever gets it then. A node that thaws offers in vain. Only
where a node went down, or was cut off, in the middle of it may a request be done twice: what must not be carries a key.

| code | what | raised by `ask` as |
|---|---|---|
| 400 | the request is wrong | UserError |
| 422 | what is asked for cannot be held here, whatever is done | Infeasible |
| 413 | the reply is larger than NATS carries here | PenstockError |
| 500 | it failed | PenstockError |
| 503 | not now: busy, ending, or what may pass | Transient |
"""

import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any

import anyio
import msgspec
import nats.errors
import structlog
from anyio.abc import TaskGroup
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from streams.errors import Infeasible, LinkError, PenstockError, Transient, UserError
from streams.subjects import token
from streams.wire.ledger import traceparent_of
from streams.wire.link import REQUEST_TIMEOUT_S, Link

log = structlog.get_logger(__name__)

ACCEPTED, DECLINED = b"+", b"-"
CODE, ERROR = "Nats-Service-Error-Code", "Nats-Service-Error"
WRONG, TOO_LARGE, CANNOT_BE, FAILED, NOT_NOW = "400", "413", "422", "500", "503"
ENDING = "the service is ending: try again"
MAX_LINE = 1000  # characters of an error: headers are bounded
MAX_IN_FLIGHT = 64  # requests to one endpoint, unless told otherwise
OFFER, BEAT = "Penstock-Offer", "Penstock-Beat"
OFFERED_S = 2.0  # how long an offer stands
BEAT_S = 1.0
FINISH_S = 5.0  # what is under way at the end has this long
LEAVE_S = 2.0
TYPE = "io.nats.micro.v1"

_VERSION = re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")
_SUBJECT = re.compile(r"([A-Za-z0-9_-]+|\*)(\.([A-Za-z0-9_-]+|\*))*(\.>)?")


class Request(msgspec.Struct, frozen=True):
    """What was asked."""

    subject: str
    data: bytes
    headers: dict[str, str] = {}
    traceparent: str = ""


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What answers requests on a subject, which may have wildcards. Of those that share `queue`, one gets each."""

    subject: str
    handler: Callable[[Request], Awaitable[bytes]]
    queue: str = "q"
    description: str = ""
    metadata: dict[str, str] = {}


class _Refusal(msgspec.Struct, frozen=True):
    code: str
    line: str


class _Stats(msgspec.Struct):
    num_requests: int = 0
    num_errors: int = 0
    processing_time: int = 0  # nanoseconds
    last_error: str = ""


class Service:
    """A service that runs. Made by `serve`."""

    def __init__(
        self, link: Link, name: str, version: str, endpoints: Mapping[str, Endpoint], max_in_flight: int
    ) -> None:
        self.name = name
        self.id = secrets.token_hex(11)
        self._link = link
        self._version = version
        self._endpoints = dict(endpoints)
        self._max_in_flight = max_in_flight
        self._stats = {each: _Stats() for each in endpoints}
        self._in_flight = dict.fromkeys(endpoints, 0)
        self._idle = anyio.Event()
        self._started = datetime.now(UTC)
        self._requests: list[Subscription] = []
        self._discovery: list[Subscription] = []

    async def open(self, tasks: TaskGroup) -> None:
        """Returns when it is found."""
        for name, endpoint in self._endpoints.items():
            on_request = partial(self._on_request, tasks, name)
            self._requests.append(await self._subscribe(endpoint.subject, endpoint.queue, on_request))
        for verb, say in (("PING", self._ping), ("INFO", self._info), ("STATS", self._figures)):
            for subject in (f"$SRV.{verb}", f"$SRV.{verb}.{self.name}", f"$SRV.{verb}.{self.name}.{self.id}"):
                self._discovery.append(await self._subscribe(subject, "", partial(self._on_discovery, say)))
        await self._link.patiently(self._find, f"serve {self.name}")

    async def close(self) -> None:
        """Take no more requests; those that have come are begun."""
        with anyio.move_on_after(LEAVE_S, shield=True):
            try:
                for subscription in self._requests:
                    await self._link.client._send_unsubscribe(subscription._id)
                await self._find()
                for subscription in self._requests:
                    await subscription._pending_queue.join()
            except (nats.errors.Error, OSError) as error:
                log.warning("requests_left", service=self.name, error=one_line(error))
        with anyio.CancelScope(shield=True):
            for subscription in self._requests + self._discovery:
                with suppress(nats.errors.Error):  # the connection is closed
                    await subscription.unsubscribe()

    async def _find(self) -> None:
        """Ask itself: what was sent to the server before has come there, and what it sent before has come here. The
        client's own flush says neither, it overtakes what waits to be sent."""
        await self._link.client.request(f"$SRV.PING.{self.name}.{self.id}", timeout=REQUEST_TIMEOUT_S)

    async def finish(self) -> None:
        """Returns when no request is under way."""
        while any(self._in_flight.values()):
            self._idle = anyio.Event()
            await self._idle.wait()

    async def _subscribe(self, subject: str, queue: str, on_message: Callable[[Msg], Awaitable[None]]) -> Subscription:
        try:
            return await self._link.client.subscribe(subject, queue=queue, cb=on_message)
        except (nats.errors.Error, OSError) as error:
            raise LinkError(f"cannot serve {subject}: {one_line(error)}") from error

    # --- requests ------------------------------------------------------------------------------------------

    async def _on_request(self, tasks: TaskGroup, name: str, message: Msg) -> None:
        stats = self._stats[name]
        stats.num_requests += 1
        if self._in_flight[name] >= self._max_in_flight:
            line = f"busy: {self._max_in_flight} requests are under way on this node: try again"
            await self._refuse(message, stats, _Refusal(NOT_NOW, line))
            return
        self._in_flight[name] += 1
        tasks.start_soon(self._handle, name, message)

    async def _handle(self, name: str, message: Msg) -> None:
        stats, began_ns = self._stats[name], time.perf_counter_ns()
        outcome: bytes | _Refusal | None = _Refusal(NOT_NOW, ENDING)
        try:
            if OFFER not in (message.headers or {}):
                outcome = await self._outcome(name, message)
            elif not await self._is_accepted(message):
                outcome = None
            else:
                async with anyio.create_task_group() as beside:
                    beside.start_soon(self._beat, message)
                    outcome = await self._outcome(name, message)
                    beside.cancel_scope.cancel()
        finally:  # whoever is canceled says so
            self._in_flight[name] -= 1
            self._idle.set()
            stats.processing_time += time.perf_counter_ns() - began_ns
            with anyio.move_on_after(LEAVE_S, shield=True):
                if isinstance(outcome, _Refusal):
                    await self._refuse(message, stats, outcome)
                elif outcome is not None:
                    await self._reply(message, outcome)

    async def _is_accepted(self, message: Msg) -> bool:
        """Whether who asked wants it from us, and still."""
        try:
            said = await self._link.client.request(message.reply, timeout=OFFERED_S, headers={OFFER: self.id})
        except (nats.errors.Error, OSError, TimeoutError):
            return False
        return bool(said.data == ACCEPTED)

    async def _beat(self, message: Msg) -> None:
        while True:
            await anyio.sleep(BEAT_S)
            await self._reply(message, b"", {BEAT: self.id})

    async def _outcome(self, name: str, message: Msg) -> bytes | _Refusal:
        headers = message.headers or {}
        asked = {name: value for name, value in headers.items() if name != OFFER}
        request = Request(message.subject, message.data, asked, traceparent_of(headers))
        try:
            reply = await self._endpoints[name].handler(request)
        except Infeasible as error:
            return _Refusal(CANNOT_BE, one_line(error))
        except UserError as error:
            return _Refusal(WRONG, one_line(error))
        except (Transient, LinkError) as error:
            return _Refusal(NOT_NOW, one_line(error))
        except PenstockError as error:
            return _Refusal(FAILED, one_line(error))
        except Exception as error:  # its text may hold what is nobody's business
            log.error("request_failed", service=self.name, endpoint=name, subject=message.subject, exc_info=error)
            return _Refusal(FAILED, "internal error: the log of the node that serves this has it")
        max_bytes = self._link.max_payload_bytes
        if len(reply) > max_bytes:
            return _Refusal(TOO_LARGE, f"the reply has {len(reply)} bytes, NATS carries {max_bytes} here: ask for less")
        return reply

    async def _refuse(self, message: Msg, stats: _Stats, refusal: _Refusal) -> None:
        stats.num_errors += 1
        stats.last_error = f"{refusal.code}:{refusal.line}"
        await self._reply(message, b"", {CODE: refusal.code, ERROR: refusal.line})

    async def _reply(self, message: Msg, data: bytes, headers: dict[str, str] | None = None) -> None:
        if not message.reply:
            return
        try:
            await self._link.client.publish(message.reply, data, headers=headers)
        except (nats.errors.Error, OSError) as error:
            log.warning("not_answered", service=self.name, subject=message.subject, error=one_line(error))

    # --- discovery -----------------------------------------------------------------------------------------

    async def _on_discovery(self, say: Callable[[], dict[str, Any]], message: Msg) -> None:
        identity = {"name": self.name, "id": self.id, "version": self._version, "metadata": {}}
        await self._reply(message, msgspec.json.encode(identity | say()))

    def _ping(self) -> dict[str, Any]:
        return {"type": f"{TYPE}.ping_response"}

    def _info(self) -> dict[str, Any]:
        endpoints = [
            {
                "name": name,
                "subject": endpoint.subject,
                "queue_group": endpoint.queue,
                "metadata": ({"description": endpoint.description} if endpoint.description else {}) | endpoint.metadata,
            }
            for name, endpoint in self._endpoints.items()
        ]
        return {"type": f"{TYPE}.info_response", "description": "", "endpoints": endpoints}

    def _figures(self) -> dict[str, Any]:
        endpoints = [
            {
                "name": name,
                "subject": self._endpoints[name].subject,
                "queue_group": self._endpoints[name].queue,
                **msgspec.structs.asdict(stats),
                "average_processing_time": stats.processing_time // max(1, stats.num_requests),
                "data": None,
            }
            for name, stats in self._stats.items()
        ]
        started = self._started.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return {"type": f"{TYPE}.stats_response", "started": started, "endpoints": endpoints}


@asynccontextmanager
async def serve(
    link: Link, name: str, version: str, endpoints: Mapping[str, Endpoint], *, max_in_flight: int = MAX_IN_FLIGHT
) -> AsyncIterator[Service]:
    """Answer requests as long as this lasts. Handlers run at the same time, up to `max_in_flight` of each endpoint;
    beyond that, requests are refused as busy. A handler's reply is sent as it is, what it raises as an error; the text
    of what is not Penstock's own error stays in the log. At the end, what is under way has FINISH_S to finish, in a
    cancellation none. Raises UserError for a name, version or subject that is none."""
    _check(name, version, endpoints)
    service = Service(link, name, version, endpoints, max_in_flight)
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        try:
            await service.open(tasks)
            yield service
        except Exception as error:  # raised below, where no task group wraps it
            failure = error
        finally:
            await service.close()
        with anyio.move_on_after(FINISH_S):
            await service.finish()
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _check(name: str, version: str, endpoints: Mapping[str, Endpoint]) -> None:
    token(name)
    if not _VERSION.fullmatch(version):
        raise UserError(f"service {name}: version {version!r}: give one such as 1.0.0")
    for each, endpoint in endpoints.items():
        token(each)
        token(endpoint.queue)
        if not _SUBJECT.fullmatch(endpoint.subject):
            raise UserError(f"service {name}: endpoint {each}: {endpoint.subject!r} is no subject to serve")


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:MAX_LINE] or type(error).__name__
