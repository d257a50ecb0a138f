"""What bench/crowd.py is made of: an operator, receivers of webhooks, and crowds as processes of their own.

A crowd runs apart, so that what is measured of the node is not what it costs to be many:

    crowd_parts.py http    event-stream readers, connections kept alive that ask nothing, plain requests in a loop
    crowd_parts.py nats    connections that subscribe to answers
    crowd_parts.py deaf    event-stream readers and subscribers that never read their socket
    crowd_parts.py asks    clients that ask one question after another

A crowd is told what to do by one JSON line on standard input, says `{}` on stdout when all are there, ends when
standard input closes (or when it is done) and tells in a last line what it saw.
"""

import asyncio
import re
import resource
import socket
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from random import Random
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec
import nats

from engine.spec.operator import Capability, Inputs, Operator, Port, Rung, Settings
from engine.spec.operator import Media as MediaInput
from streams.records import Record

T = TypeVar("T")

MAX_LINE_BYTES = 4 << 20
AT_ONCE = 32  # that connect at the same time
CONNECT_S = 30.0
QUIET_S = 1.0  # without an answer: all that was on its way has come
CATCH_UP_S = 20.0
PATIENCE_S = 30.0  # for a plain request
DEAF_BYTES = 4096  # of a receive buffer that nobody empties
MAX_REASONS = 12
STEP = "step"
WORDS = ("What", "does", "a", "coffee", "cost", "?")

_VALUE = re.compile(rb'"value":(\d+),"at_ns":(\d+)')
_NUMBER = re.compile(r"\d+(\.\d+)?|\bj[0-9a-f]{12}\b")


# --- the operator ----------------------------------------------------------------------------------------------


class RepeatParams(Settings, frozen=True):
    num_bytes: int = 0  # of padding


class Repeated(Record, frozen=True, omit_defaults=False):
    """Changes with every segment, so a standing job answers about each."""

    value: int
    at_ns: int  # when the segment was made: Unix time
    padding: str = ""


class Repeat(Operator):
    """Costs nothing, and says as much as it is told to."""

    capability = Capability("crowd_repeat", {"media": Port(MediaInput)}, Repeated, RepeatParams)
    name = "repeat"
    runs_in = "loop"

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return [Rung("repeat", 1.0, Settings())]

    def process(self, batch: Sequence[Inputs]) -> Sequence[Repeated]:
        segments = [item.here("media").segment for item in batch]
        return [
            Repeated(value=segment.index, at_ns=segment.captured_ns, padding="x" * item.params.num_bytes)
            for item, segment in zip(batch, segments, strict=True)
        ]


# --- figures ---------------------------------------------------------------------------------------------------


class Timing(msgspec.Struct, frozen=True):
    """How long some things took."""

    num: int
    p50_ms: float
    p99_ms: float
    max_ms: float


def timing(seconds: Sequence[float]) -> Timing:
    ordered = sorted(seconds)
    if not ordered:
        return Timing(0, 0.0, 0.0, 0.0)
    ranks = [statistics.median(ordered), ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], ordered[-1]]
    return Timing(len(ordered), *(round(1000 * seconds, 2) for seconds in ranks))


class Seen(msgspec.Struct):
    """What those who follow answers saw, all together."""

    num_readers: int = 0
    num_answers: int = 0  # different ones
    num_missed: int = 0  # not seen by a reader, between the first it saw and the last that any saw
    num_twice: int = 0
    after: Timing = Timing(0, 0.0, 0.0, 0.0)  # from when a segment was made


class Following:
    """What one reader has seen: each answer's number and how old it was then."""

    def __init__(self) -> None:
        self.values: list[int] = []
        self.ages_s: list[float] = []

    def note(self, data: bytes) -> None:
        if found := _VALUE.search(data):
            self.values.append(int(found[1]))
            self.ages_s.append((time.time_ns() - int(found[2])) / 1e9)


def seen(readers: Sequence[Following]) -> Seen:
    every = sorted({value for reader in readers for value in reader.values})
    missed = sum(
        len([value for value in every if not reader.values or value >= reader.values[0]]) - len(set(reader.values))
        for reader in readers
    )
    return Seen(
        num_readers=len(readers),
        num_answers=len(every),
        num_missed=missed,
        num_twice=sum(len(reader.values) - len(set(reader.values)) for reader in readers),
        after=timing([age_s for reader in readers for age_s in reader.ages_s]),
    )


def kind_of(error: BaseException) -> str:
    """Why something was refused or failed, without what differs each time."""
    return f"{type(error).__name__}: {_NUMBER.sub('N', str(error))}"[:200]


def question(number: int) -> str:
    """A question of its own for each number below 16,807, to which the answer is the same: they differ by spaces."""
    said = WORDS[0]
    for word in WORDS[1:]:
        number, spaces = divmod(number, 7)
        said += " " * (spaces + 1) + word
    return said


async def caught_up(readers: Sequence[Following]) -> None:
    """Returns when nobody has seen anything new for QUIET_S."""
    ends_s = time.monotonic() + CATCH_UP_S
    before, now = -1, 0
    while time.monotonic() < ends_s and before != now:
        await asyncio.sleep(QUIET_S)
        before, now = now, sum(len(reader.values) for reader in readers)


# --- over HTTP -------------------------------------------------------------------------------------------------


class HttpOrder(msgspec.Struct, frozen=True, kw_only=True):
    url: str
    follow: tuple[str, ...] = ()  # a path for each event-stream reader
    num_idle: int = 0
    num_loops: int = 0
    paths: tuple[str, ...] = ("/healthz",)
    pause_s: float = 1.0  # of a loop, between a response and the next request


class HttpReport(msgspec.Struct):
    followed: Seen
    requests: Timing
    statuses: dict[str, int]  # of plain requests, and why some had none
    kept: Timing  # how long the node kept connections without a request; each was made again
    num_broken: int  # event streams that ended


class HttpCrowd:
    def __init__(self, order: HttpOrder) -> None:
        place = urlsplit(order.url)
        self._host, self._port = place.hostname or "", place.port or 80
        self._order = order
        self._limit = asyncio.Semaphore(AT_ONCE)
        self._random = Random(11)
        self._took_s: list[float] = []
        self._statuses: Counter[str] = Counter()
        self._readers: list[Following] = []
        self._kept_s: list[float] = []
        self._num_broken = 0
        self._there: list[asyncio.Event] = []

    async def run(self, say_ready: Callable[[], None], told_to_end: Callable[[], Awaitable[Any]]) -> HttpReport:
        order = self._order
        at_work = [
            *(self._follow(path, self._place()) for path in order.follow),
            *(self._idle(self._place()) for _ in range(order.num_idle)),
            *(self._ask_on(self._place(), number) for number in range(order.num_loops)),
        ]
        tasks = [asyncio.create_task(work) for work in at_work]
        await asyncio.wait_for(asyncio.gather(*(event.wait() for event in self._there)), CONNECT_S)
        say_ready()
        await told_to_end()
        for task in tasks[len(order.follow) :]:
            task.cancel()
        await caught_up(self._readers)
        report = HttpReport(
            followed=seen(self._readers),
            requests=timing(self._took_s),
            statuses=dict(self._statuses.most_common(MAX_REASONS)),
            kept=timing(self._kept_s),
            num_broken=self._num_broken,
        )
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        return report

    def _place(self) -> asyncio.Event:
        self._there.append(asyncio.Event())
        return self._there[-1]

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with self._limit:
            return await asyncio.open_connection(self._host, self._port, limit=MAX_LINE_BYTES)

    def _request(self, path: str, accept: str = "application/json") -> bytes:
        return f"GET {path} HTTP/1.1\r\nHost: {self._host}\r\nAccept: {accept}\r\n\r\n".encode()

    async def _follow(self, path: str, there: asyncio.Event) -> None:
        following = Following()
        self._readers.append(following)
        reader, writer = await self._connected()
        try:
            writer.write(self._request(path, "text/event-stream"))
            status = await reader.readline()
            if b" 200 " not in status:
                raise RuntimeError(f"{path}: {status.decode(errors='replace')}")
            while line := await reader.readline():
                if line.startswith(b"retry:"):
                    there.set()
                elif line.startswith(b"data:"):
                    following.note(line)
            self._num_broken += 1
        finally:
            writer.close()

    async def _idle(self, there: asyncio.Event) -> None:
        """One request, and then nothing for as long as the node lets it."""
        while True:
            reader, writer = await self._connected()
            try:
                writer.write(self._request("/healthz"))
                await self._status(reader)
                there.set()
                began_s = time.perf_counter()
                await reader.read(1)
                self._kept_s.append(time.perf_counter() - began_s)
            finally:
                writer.close()

    async def _ask_on(self, there: asyncio.Event, number: int) -> None:
        order = self._order
        reader, writer = await self._connected()
        try:
            while True:
                began_s = time.perf_counter()
                try:
                    async with asyncio.timeout(PATIENCE_S):
                        writer.write(self._request(order.paths[number % len(order.paths)]))
                        status = await self._status(reader)
                    self._statuses[status] += 1
                    self._took_s.append(time.perf_counter() - began_s)
                except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError) as error:
                    self._statuses[type(error).__name__] += 1
                    writer.close()
                    reader, writer = await self._connected()
                there.set()
                number += 1
                await asyncio.sleep(order.pause_s * self._random.uniform(0.5, 1.5))  # each at a moment of its own
        finally:
            writer.close()

    async def _status(self, reader: asyncio.StreamReader) -> str:
        """Of a response, which is read to its end."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = re.search(r"content-length: (\d+)", head)
        if length is None:
            raise ValueError("a response without a length")
        await reader.readexactly(int(length[1]))
        return head.split(" ", 2)[1]


async def run_http(
    order: HttpOrder, say_ready: Callable[[], None], told_to_end: Callable[[], Awaitable[Any]]
) -> HttpReport:
    return await HttpCrowd(order).run(say_ready, told_to_end)


# --- over NATS -------------------------------------------------------------------------------------------------


class NatsOrder(msgspec.Struct, frozen=True):
    url: str
    num: int
    subject: str


class NatsReport(msgspec.Struct):
    followed: Seen
    num_connected: int  # at the end


async def run_nats(
    order: NatsOrder, say_ready: Callable[[], None], told_to_end: Callable[[], Awaitable[Any]]
) -> NatsReport:
    limit = asyncio.Semaphore(AT_ONCE)
    readers: list[Following] = []

    async def connected() -> Any:
        following = Following()
        readers.append(following)

        async def on_message(message: Any) -> None:
            following.note(message.data)

        async with limit:
            client = await nats.connect(order.url, connect_timeout=CONNECT_S, allow_reconnect=False)
            await client.subscribe(order.subject, cb=on_message)
            await client.flush(CONNECT_S)  # type: ignore[arg-type]  # seconds
            return client

    clients = await asyncio.gather(*(connected() for _ in range(order.num)))
    say_ready()
    await told_to_end()
    await caught_up(readers)
    num_connected = sum(client.is_connected for client in clients)
    await asyncio.gather(*(client.close() for client in clients))
    return NatsReport(seen(readers), num_connected)


class DeafOrder(msgspec.Struct, frozen=True, kw_only=True):
    http: str
    paths: tuple[str, ...]  # for each event-stream reader
    nats: str
    num_nats: int
    subject: str


class DeafReport(msgspec.Struct):
    num_http: int
    num_nats: int


async def run_deaf(
    order: DeafOrder, say_ready: Callable[[], None], told_to_end: Callable[[], Awaitable[Any]]
) -> DeafReport:
    place = urlsplit(order.nats)
    said = {"auth_token": place.username, "verbose": False, "pedantic": False, "lang": "bench", "version": "0"}
    hello = b"CONNECT " + msgspec.json.encode(said) + f"\r\nSUB {order.subject} 1\r\n".encode()
    over_http = [_deaf(order.http, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()) for path in order.paths]
    over_nats = [_deaf(order.nats, hello) for _ in range(order.num_nats)]
    say_ready()
    await told_to_end()
    for each in (*over_http, *over_nats):
        each.close()
    return DeafReport(len(over_http), len(over_nats))


def _deaf(url: str, says: bytes) -> socket.socket:
    """A connection on which something is said and nothing is ever read."""
    place = urlsplit(url)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, DEAF_BYTES)  # before it connects, or it has no effect
    connection.settimeout(CONNECT_S)
    connection.connect((place.hostname, place.port))
    connection.sendall(says)
    return connection


# --- questions -------------------------------------------------------------------------------------------------


class AsksOrder(msgspec.Struct, frozen=True, kw_only=True):
    url: str
    stream: str
    expected: str  # is part of the answer
    first: int  # the number of the question that is asked first
    num: int
    num_clients: int
    num_at_once: int = 1  # of each client
    step: int = 1000  # questions after which it is said how far it is
    most_s: float = 300.0  # after which nothing more is asked
    timeout_s: float = 60.0


class Step(msgspec.Struct, frozen=True):
    """Some questions, one after the other."""

    up_to: int
    wall_s: float
    took: Timing


class AsksReport(msgspec.Struct):
    num_asked: int
    num_right: int
    num_wrong: int
    refused: dict[str, int]  # with a reason
    unanswered: dict[str, int]  # without
    wall_s: float
    took: Timing
    steps: list[Step]


async def run_asks(
    order: AsksOrder, say_ready: Callable[[], None], told_to_end: Callable[[], Awaitable[Any]]
) -> AsksReport:
    from penstock.client import Client, connect  # here, for a worker imports this module
    from streams.errors import LinkError, PenstockError

    numbers = iter(range(order.first, order.first + order.num))
    took_s: list[float] = []
    right = wrong = 0
    refused: Counter[str] = Counter()
    unanswered: Counter[str] = Counter()
    steps: list[Step] = []
    began_s = step_s = 0.0
    there = asyncio.Barrier(order.num_clients + 1)
    go = asyncio.Event()

    async def ask_on(client: Client) -> None:
        nonlocal right, wrong, step_s
        for number in numbers:
            if time.perf_counter() > began_s + order.most_s:
                return
            asked_s = time.perf_counter()
            try:
                answer = await client.ask(order.stream, question(number), timeout_s=order.timeout_s)
                right, wrong = (right + 1, wrong) if order.expected in answer.answer else (right, wrong + 1)
            except LinkError as error:
                unanswered[kind_of(error)] += 1
            except PenstockError as error:
                refused[kind_of(error)] += 1
            now_s = time.perf_counter()
            took_s.append(now_s - asked_s)
            if len(took_s) % order.step == 0:
                steps.append(Step(len(took_s), round(now_s - step_s, 2), timing(took_s[-order.step :])))
                step_s = now_s
                tell({STEP: len(took_s)})

    async def client_of_many() -> None:
        async with connect(order.url) as client:
            await there.wait()
            await go.wait()
            await asyncio.gather(*(ask_on(client) for _ in range(order.num_at_once)))

    clients = [asyncio.create_task(client_of_many()) for _ in range(order.num_clients)]
    await asyncio.wait_for(there.wait(), 2 * CONNECT_S)
    say_ready()
    began_s = step_s = time.perf_counter()
    go.set()
    await asyncio.gather(*clients)
    return AsksReport(
        num_asked=len(took_s),
        num_right=right,
        num_wrong=wrong,
        refused=dict(refused.most_common(MAX_REASONS)),
        unanswered=dict(unanswered.most_common(MAX_REASONS)),
        wall_s=round(time.perf_counter() - began_s, 2),
        took=timing(took_s),
        steps=steps,
    )


# --- receivers of webhooks -------------------------------------------------------------------------------------


class Posted(msgspec.Struct, frozen=True):
    """An answer that came by webhook."""

    job: str
    seq: int
    age_s: float  # since the segment was made


class Hook:
    """A receiver at a port of its own. It is closed at first: who connects is refused."""

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/hook"
        self.posted: list[Posted] = []
        self.num_attempts = 0  # heard, answered or not
        self._is_deaf = True
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def accept(self, *, answers: bool) -> None:
        """Take connections from now on; without `answers` nothing is said to them. What was connected before is cut."""
        self._is_deaf = not answers
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, sock=self._socket, limit=MAX_LINE_BYTES)
        for writer in list(self._writers):
            writer.transport.abort()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        self._socket.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                while True:
                    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                    length, key = (re.search(name, head) for name in (r"content-length: (\d+)", r"key: (\S+)-(\d+)\r"))
                    body = await reader.readexactly(int(length[1]) if length else 0)
                    self.num_attempts += 1
                    found = _VALUE.search(body)
                    if self._is_deaf or key is None:
                        continue
                    age_s = (time.time_ns() - int(found[2])) / 1e9 if found else 0.0
                    self.posted.append(Posted(key[1], int(key[2]), age_s))
                    writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        finally:
            self._writers.discard(writer)
            writer.close()


# --- the process of a crowd ------------------------------------------------------------------------------------

CROWDS: dict[str, tuple[type[Any], Callable[..., Awaitable[Any]]]] = {
    "http": (HttpOrder, run_http),
    "nats": (NatsOrder, run_nats),
    "deaf": (DeafOrder, run_deaf),
    "asks": (AsksOrder, run_asks),
}


def tell(what: Any) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(what) + b"\n")
    sys.stdout.buffer.flush()


async def run_crowd(name: str) -> None:
    kind, run = CROWDS[name]
    loop = asyncio.get_running_loop()
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=kind)
    ended = asyncio.Event()

    def on_end() -> None:
        loop.remove_reader(sys.stdin.fileno())
        ended.set()

    loop.add_reader(sys.stdin.fileno(), on_end)  # nothing more is said: it is readable once it is closed
    tell(await run(order, lambda: tell({}), ended.wait))


def main() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(run_crowd(sys.argv[1]))


if __name__ == "__main__":
    main()
