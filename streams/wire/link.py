"""The connection to NATS: it reconnects for as long as it is open, and says what went wrong.

Delivery guarantee: a request is tried again until it is answered or `patience_s` has passed, so what is asked here
must be safe to ask twice; then LinkError. As long as it is known what is wrong (`trouble`), it is waited for without
end. Nothing that NATS reports is swallowed: it is logged and counted.
"""

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import anyio
import msgspec
import nats
import nats.errors
import nats.js.errors
import structlog
from nats.aio.subscription import Subscription

from streams.decoding import converted, from_json
from streams.errors import LinkError, Malformed, UserError
from streams.wire.client import Hearing, WatchedClient
from streams.wire.guarding import guarded
from streams.wire.identity import identity

log = structlog.get_logger(__name__)
T = TypeVar("T")

REQUEST_TIMEOUT_S = 5.0
FIRST_TIMEOUT_S = 1.0  # in a cluster: what went to a leader that has died is asked again as soon as there is a new one
PING_S, PING_CLUSTER_S = 20, 1  # three pings without an answer and another server is tried
MAX_SERVERS = 64
TURNED_AWAY = ("authorization violation", "certificate verify failed")
TIDY_S = 0.1  # in which the client closes what it has opened
HUNG_UP = ("Broken pipe", "reset by peer", "unexpected EOF")
CLUSTER_REPLICAS = 3
SCHEMES = ("nats", "tls", "ws", "wss")
FIRST_RETRY_S, MAX_RETRY_S = 0.05, 1.0
MAX_ATTEMPT_S = 6.0  # more than a request's own timeout, which says more
MAX_READS = 8  # of one record each, at once
MAX_PAGES_READ = 3  # at once: their size bounds what the server holds for a connection, see `jetstream.page`

# What may pass if the same is asked again: the server is restarting, electing a leader or out of room.
RETRIED = (
    nats.errors.TimeoutError,
    nats.errors.NoRespondersError,
    nats.errors.ConnectionReconnectingError,
    nats.errors.OutboundBufferLimitError,
    nats.errors.StaleConnectionError,
    nats.js.errors.NoStreamResponseError,
    nats.js.errors.ServiceUnavailableError,
    nats.js.errors.TooManyStalledMsgsError,
    TimeoutError,
)
NO_PEERS = 10005  # too few servers at the moment, or too little room on them
NO_STORE = 10049  # the folder of a stream of the same name that has just been deleted may still be going
NO_STORE_S = 5.0  # for how long that may be it
NO_ROOM = {10023, 10028, 10047, 10077}  # insufficient resources, memory or storage exceeded, maximum bytes exceeded


class Refused(LinkError):
    """JetStream answered, and the answer is no. `code` is its err_code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class _ApiError(msgspec.Struct):
    """What JetStream says when it says no."""

    code: int = 500
    err_code: int = 0
    description: str = ""


class Link:
    """One NATS connection. Made by `connect`."""

    def __init__(self, client: WatchedClient, url: str, patience_s: float, trouble: Callable[[], str]) -> None:
        self.client = client
        self.trouble = trouble
        self.jetstream = client.jetstream(timeout=REQUEST_TIMEOUT_S)
        self.url = url
        self.patience_s = patience_s
        self.num_reconnects = 0
        self.is_clustered = bool(client._server_info.get("cluster"))
        self.first_timeout_s = FIRST_TIMEOUT_S if self.is_clustered else REQUEST_TIMEOUT_S
        self.num_replicas = CLUSTER_REPLICAS if self.is_clustered else 1  # of what is made here, where nobody says
        self.reading = anyio.Semaphore(MAX_READS)  # for what reads a record back
        self.paging = anyio.Semaphore(MAX_PAGES_READ)  # for what reads many
        self.num_pulls = 0  # consumers that are listened to
        self._reconnected: list[Callable[[], None]] = []

    @property
    def max_payload_bytes(self) -> int:
        return int(self.client.max_payload)

    def on_reconnect(self, call: Callable[[], None]) -> Callable[[], None]:
        """Have `call` called after each reconnection; returns what ends that."""
        self._reconnected.append(call)
        return lambda: self._reconnected.remove(call)

    def note_reconnect(self) -> None:
        self.num_reconnects += 1
        for call in list(self._reconnected):
            call()

    async def publish(
        self, subject: str, data: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Core NATS: at most once. Raises LinkError where it cannot even be buffered."""
        try:
            await self.client.publish(subject, data, reply, headers)
        except (nats.errors.Error, OSError) as error:
            raise LinkError(f"cannot publish on {subject}: {_one_line(error)}") from error

    async def subscribe(self, subject: str, on_message: Callable[[Any], Awaitable[None]]) -> Subscription:
        """Core NATS: at most once. A callback is 3 to 90 times faster than iterating messages."""
        return await self.client.subscribe(subject, cb=on_message)

    async def unsubscribe(self, *subscriptions: Subscription | Hearing) -> None:
        """End subscriptions, on the way out of whatever made them: within a second, and without a word where the
        connection has ended before."""
        with anyio.move_on_after(1, shield=True), suppress(nats.errors.Error):
            for subscription in subscriptions:
                await subscription.unsubscribe()

    async def api(self, name: str, request: Any = None, final: Collection[int] = ()) -> dict[str, Any]:
        """Ask the JetStream API (`STREAM.INFO.x`); the decoded answer. Raises Refused or LinkError; Refused at once for
        the `final` codes, which are else waited out: there is no room."""
        payload = b"" if request is None else msgspec.json.encode(request)

        async def ask() -> Any:
            reply = await self.client.request(f"$JS.API.{name}", payload, timeout=REQUEST_TIMEOUT_S)
            answer = from_json(reply.data, dict[str, Any])
            if (error := answer.get("error")) is not None:
                said = converted(error, _ApiError)
                if said.err_code == NO_PEERS:
                    said.err_code = min(NO_ROOM) if "insufficient storage" in said.description else NO_PEERS
                raise nats.js.errors.APIError.from_error(msgspec.structs.asdict(said))
            return answer

        try:
            return await self.patiently(ask, name, final)
        except Malformed as error:
            raise LinkError(f"{name}: the server's answer cannot be read: {error}") from error

    async def patiently(self, attempt: Callable[[], Awaitable[T]], what: str, final: Collection[int] = ()) -> T:
        """The result of `attempt`, tried again with backoff while the failure may pass. Raises Refused where the
        server said no, LinkError where it did not answer within `patience_s`."""
        pause_s, timeout_s = FIRST_RETRY_S, self.first_timeout_s if self.is_clustered else math.inf
        began_s = anyio.current_time()
        deadline = began_s + self.patience_s
        while True:
            try:
                with anyio.CancelScope(deadline=anyio.current_time() + timeout_s) as scope:
                    forget = self.on_reconnect(scope.cancel)  # the answer to what was asked before will not come
                    try:
                        return await attempt()
                    finally:
                        forget()
                if anyio.current_time() < scope.deadline:
                    continue
                raise TimeoutError
            except nats.js.errors.APIError as error:
                code = error.err_code or 0
                may_pass = code in (*NO_ROOM, NO_PEERS) or isinstance(error, RETRIED)
                if code == NO_STORE:
                    may_pass = bool(self.trouble()) or anyio.current_time() < began_s + NO_STORE_S
                if code in final or not may_pass:
                    raise Refused(f"{what}: {error.description}", code) from error
                reason = error.description or "unavailable"
                failure: Exception = error
            except RETRIED as error:
                reason, failure = (_one_line(error) if str(error) else "no answer in time"), error
            except (nats.errors.Error, OSError) as error:
                raise LinkError(f"{what}: {_one_line(error)}") from error
            if trouble := self.trouble():
                reason = trouble
            elif anyio.current_time() + pause_s > deadline:
                raise LinkError(f"{what}: gave up after {self.patience_s:.0f} s: {reason}") from failure
            log.warning("nats_retry", what=what, reason=reason, pause_s=pause_s)
            await anyio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_RETRY_S)
            timeout_s = min(2 * timeout_s, MAX_ATTEMPT_S) if self.is_clustered else math.inf


@asynccontextmanager
async def connect(
    url: str, *, name: str = "penstock", patience_s: float = 60.0, trouble: Callable[[], str] = lambda: ""
) -> AsyncIterator[Link]:
    """A link to the server at `url`, or to any of several, separated by commas, which are one cluster: where one goes,
    the next is tried. `trouble` says what is known to be wrong with the server, such as that its disk is
    full; as long as it says something, what is asked waits. Raises LinkError if it cannot be reached within 5 s,
    UserError for a bad URL.

    Where the server ends the connection for good, such as with somebody it no longer lets in, what is done with the
    link is canceled and LinkError raised: nobody goes on deaf."""
    place, servers = without_credentials(url), servers_of(url)
    key, inbox, tls = identity()
    await _reachable(servers, place)
    link: Link | None = None
    closing = False
    refusal = ""

    async def on_error(error: Exception) -> None:
        nonlocal refusal
        is_news, refusal = _one_line(error) != refusal, _one_line(error)
        if link is None and len(servers) == 1 and any(said in refusal.lower() for said in TURNED_AWAY):
            connecting.deadline = anyio.current_time() + TIDY_S  # it would say so every time
        if link is not None and is_news:  # a server that is away is tried five times a second
            log.warning("nats_error", server=place, error=refusal)

    async def on_disconnect() -> None:
        if not closing:
            log.warning("nats_disconnected", server=place)

    async def on_reconnect() -> None:
        nonlocal refusal
        refusal = ""
        log.warning("nats_reconnected", server=place)
        if link is not None:
            link.note_reconnect()

    client = WatchedClient()
    client._public_nkey = key.public if key is not None else None
    user, password = _credentials(servers)
    connecting = anyio.move_on_after(REQUEST_TIMEOUT_S)
    try:
        with connecting:
            await client.connect(
                servers,
                name=name,
                user=user if password is not None else None,
                password=password,
                token=user if password is None else None,
                signature_cb=key.signed if key is not None else None,
                tls=tls,
                inbox_prefix=inbox,
                error_cb=on_error,
                disconnected_cb=on_disconnect,
                reconnected_cb=on_reconnect,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.2,  # type: ignore[arg-type]  # seconds; only ever slept on
                connect_timeout=2,
                ping_interval=PING_S if len(servers) == 1 else PING_CLUSTER_S,
                max_outstanding_pings=3,
                pending_size=8 * 1024 * 1024,
                skip_subject_validation=True,  # `streams.subjects` builds them of checked tokens
            )
        if connecting.cancelled_caught:
            raise TimeoutError
    except (nats.errors.Error, OSError, TimeoutError, ValueError) as error:
        with anyio.move_on_after(1, shield=True), suppress(nats.errors.Error, OSError):
            await client.close()
        reason = refusal or _one_line(error)
        if any(said in reason for said in HUNG_UP):
            reason = f"it hung up ({reason}): does it know these credentials, and do both speak TLS?"
        raise LinkError(f"no NATS server answers at {place}: {reason}; start one or give --nats URL") from error
    link = Link(client, url, patience_s, trouble)
    try:
        async with guarded(_watched(client, place), "watch the NATS client's reading"):
            yield link
    finally:
        closing = True
        with anyio.move_on_after(2, shield=True), suppress(nats.errors.Error, OSError):  # the server may be gone
            await client.close()


async def _watched(client: WatchedClient, place: str) -> None:
    """Raises LinkError where the server ends the connection for good."""
    await client.watch()
    if not client.was_left:
        said = _one_line(client.last_error) if client.last_error else "it did not say why"
        raise LinkError(f"the server at {place} ended the connection for good: {said}")


def without_credentials(url: str) -> str:
    """The URL as it may be shown and logged; of several, all."""
    return ",".join("{}://{}:{}".format(*_parts(each)) for each in servers_of(url))


def servers_of(url: str) -> list[str]:
    """The servers that are named, separated by commas. Raises UserError for what is no URL of one."""
    servers = [each.strip() for each in url.split(",")]
    if len(servers) > MAX_SERVERS:
        raise UserError(f"{len(servers)} NATS servers: name at most {MAX_SERVERS}")
    for each in servers:
        _parts(each)
    return servers


def _credentials(servers: list[str]) -> tuple[str | None, str | None]:
    """User and password, or token and None: servers that are found later are of the same cluster, and ask for the
    same."""
    for parts in map(urlsplit, servers):
        if parts.username is not None:
            return unquote(parts.username), None if parts.password is None else unquote(parts.password)
    return None, None


def _parts(url: str) -> tuple[str, str, int]:
    try:
        parts = urlsplit(url)
        if parts.scheme in SCHEMES and parts.hostname:
            return parts.scheme, parts.hostname, parts.port or 4222
    except ValueError:
        pass
    raise UserError("that is not the URL of a NATS server: it should look like nats://host:4222")


async def _reachable(servers: list[str], place: str) -> None:
    """Raises LinkError, with the reason, where nothing listens: the client itself would only go on trying."""
    reason = f"nothing within {REQUEST_TIMEOUT_S:.0f} s"
    with anyio.move_on_after(REQUEST_TIMEOUT_S):
        for each in servers:
            _, host, port = _parts(each)
            try:
                with anyio.fail_after(REQUEST_TIMEOUT_S / len(servers)):
                    await (await anyio.connect_tcp(host, port)).aclose()
            except TimeoutError:
                continue
            except OSError as error:
                reason = _one_line(error.__cause__ or error)
            else:
                return
    raise LinkError(f"no NATS server answers at {place}: {reason}; start one or give --nats URL")


def _one_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
