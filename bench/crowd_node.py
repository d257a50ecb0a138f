"""The node of bench/crowd.py, and what is seen of it: what it holds, how it answers its owner, what is left behind."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.abc
import httpx
import msgspec
from crowd_parts import Timing, kind_of, timing
from live_parts import Part, Used, those_with, toy_segment, used
from measure import ROOT, at_most

import penstock
from engine.spec.catalogue import EXTRA
from engine.spec.workflow import Stage, Workflow
from penstock.client import Client
from streams import subjects
from streams.errors import PenstockError
from streams.records import encode
from streams.wire import store as stores
from streams.wire.ledger import Ledger, open_ledger
from streams.wire.link import Link, connect

T = TypeVar("T")

HERE = Path(__file__).resolve().parent
MIB = 1 << 20
MARGIN_FDS = 12
MARGIN_BYTES = 64 * MIB
MARGIN_SERVER_BYTES = 128 * MIB  # a Go heap is given back slowly
PROBE_LIMIT_MS = 1000.0
UP_S = 60.0
SETTLE_S = 20.0
LOOK_S = 0.25
READY_EVERY_S, ASK_EVERY_S = 0.2, 0.5
PROBE_S = 30.0  # what one probe may take
LEAVE_S = 15.0

CAPTIONS = ((0.1, 0.9, "A coffee costs three dollars."), (1.0, 1.9, "The train leaves from platform nine."))
ASK = "What does a coffee cost?"
EXPECTED = "three dollars"
DESK = "desk"  # the stream that the owner asks of


class Size(msgspec.Struct, frozen=True):
    """How much of it there is."""

    base_s: float = 8.0
    load_s: float = 12.0
    down_s: float = 24.0
    num_connections: int = 500
    num_jobs: int = 1000
    num_asks: int = 10_000
    step: int = 250
    num_alone: int = 20  # asked or submitted one by one, as the baseline
    most_asks_s: float = 100.0


class Outcome(msgspec.Struct):
    """Of a part: its figures, its targets, and what was not correct."""

    figures: dict[str, Any]
    targets: dict[str, Any]
    wrong: list[str]


class Watch(msgspec.Struct):
    """The most that each process held while something went on."""

    own_bytes: dict[str, int] = {}
    num_fds: dict[str, int] = {}


class Node:
    """`penstock serve` over a store of its own, and the bench's own connections to it."""

    def __init__(self, folder: Path, process: anyio.abc.Process, url: str, clip: bytes) -> None:
        self.url = url
        self.clip = clip
        self.log = folder / "log"
        self.store = folder / "store"
        self.nats = str(msgspec.json.decode((self.store / "server.json").read_bytes())["url"])
        self.pid = process.pid
        self.next_index: Counter[str] = Counter()  # of the streams that are fed
        self.http: httpx.AsyncClient
        self.client: Client
        self.link: Link
        self.ledger: Ledger

    def used(self) -> dict[str, Used]:
        server = int(stores.status(self.store).get("pid", 0))
        workers = [pid for worker in those_with(1, self.pid) for pid in those_with(3, worker)]
        return {"node": used([self.pid]), "server": used([server]), "worker": used(workers)}

    async def bring(self, stream: str, clip: bytes) -> None:
        """A stream that is whole, and of which all but answers is computed."""
        (await self.http.post(f"/v1/streams/{stream}/media", content=clip)).raise_for_status()
        answer = await self.client.ask(stream, ASK)
        if EXPECTED not in answer.answer or answer.gaps:
            raise RuntimeError(f"{stream}: {answer.answer!r}, gaps {answer.gaps}")

    async def num_consumers(self) -> int:
        """Of all that JetStream keeps."""
        found = 0
        for stream in ("PENSTOCK_MEDIA", "PENSTOCK_RESULTS", "PENSTOCK_ANSWERS"):
            state = (await self.link.api(f"STREAM.INFO.{stream}"))["state"]
            found += int(state["consumer_count"])
        return found

    def events(self) -> dict[str, int]:
        """What it and its worker have warned of, by name: so many times."""
        found: Counter[str] = Counter()
        for path in (self.log, self.store / "workers.log"):
            if path.exists():
                found.update(re.findall(r'"event": ?"(\w+)"', path.read_text(errors="replace")))
        return dict(found)

    def logged(self, word: str, since: int = 0) -> list[str]:
        """The lines of its log that hold a word."""
        with self.log.open("rb") as file:
            file.seek(since)
            said = file.read().decode(errors="replace")
        return [line for line in said.splitlines() if word in line]


@asynccontextmanager
async def serving(folder: Path, clip: bytes) -> AsyncIterator[Node]:
    """A node that is up, and ended here."""
    environment = {
        **os.environ,
        EXTRA: "crowd_parts:Repeat",
        "PYTHONPATH": f"{HERE}{os.pathsep}{ROOT}",
        "NO_COLOR": "1",
    }
    command = [sys.executable, "-m", "penstock", "serve", "--store", str(folder / "store"), "--http", "127.0.0.1:0"]
    async with await anyio.open_file(folder / "log", "wb") as log:
        process = await anyio.open_process(
            command, stdin=subprocess.DEVNULL, stdout=log.wrapped, stderr=log.wrapped, env=environment
        )
    try:
        url = await _up(folder / "log", process)
        async with AsyncExitStack() as stack:
            node = Node(folder, process, url, clip)
            node.http = await stack.enter_async_context(
                httpx.AsyncClient(base_url=url, timeout=PROBE_S, trust_env=False)
            )
            node.link = await stack.enter_async_context(connect(node.nats, name="bench"))
            node.ledger = await open_ledger(node.link)
            node.client = await stack.enter_async_context(penstock.connect(node.nats))
            with anyio.fail_after(UP_S):
                while (await node.http.get("/readyz")).status_code != 200:  # noqa: ASYNC110 - another process
                    await anyio.sleep(LOOK_S)
            yield node
    finally:
        with anyio.CancelScope(shield=True):
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
                with anyio.move_on_after(LEAVE_S):
                    await process.wait()
                process.kill()
            await process.aclose()


async def _up(log: Path, process: anyio.abc.Process) -> str:
    """The URL of its HTTP, once it says that it is up."""
    with anyio.move_on_after(UP_S):
        while process.returncode is None:
            said = _said(log)
            if (found := re.search(r"HTTP +(http://\S+)", said)) and "Ctrl-C" in said:
                return found[1]
            await anyio.sleep(0.05)
    raise RuntimeError(f"the node does not come up: {_said(log)[-500:]}")


def _said(log: Path) -> str:
    return log.read_text(errors="replace")


# --- what goes on ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def crowd(kind: str, order: Any) -> AsyncIterator[Part]:
    """A crowd that is there, in a process that ends here."""
    environment = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{ROOT}"}
    process = await anyio.open_process(
        [sys.executable, str(HERE / "crowd_parts.py"), kind], stderr=None, env=environment
    )
    running = Part(process)
    try:
        assert process.stdin is not None
        await process.stdin.send(msgspec.json.encode(order) + b"\n")
        with anyio.fail_after(2 * UP_S):
            await running.line()
        yield running
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        with anyio.CancelScope(shield=True):
            await process.aclose()


async def ended(running: Part, kind: type[T]) -> T:
    """A crowd's report, which goes now."""
    await running.end()
    with anyio.fail_after(2 * UP_S):
        return await running.report(kind)


@asynccontextmanager
async def fed(node: Node, stream: str, every_s: float) -> AsyncIterator[None]:
    """A stream that has a small segment at a pace, for as long as this lasts."""

    async def feed() -> None:
        due_s = anyio.current_time()
        while True:
            await anyio.sleep_until(due_s)
            due_s += every_s
            index = node.next_index[stream]
            segment = toy_segment(stream, index, time.time_ns(), round(every_s * 1e9))
            await node.ledger.put(subjects.media(stream, index), encode(segment))
            node.next_index[stream] += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(feed)
        yield
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def watched(node: Node) -> AsyncIterator[Watch]:
    """What the processes hold at most meanwhile."""
    watch = Watch({}, {})

    async def look() -> None:
        while True:
            for name, holds in node.used().items():
                watch.own_bytes[name] = max(watch.own_bytes.get(name, 0), holds.own_bytes)
                watch.num_fds[name] = max(watch.num_fds.get(name, 0), holds.num_fds)
            await anyio.sleep(LOOK_S)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(look)
        yield watch
        tasks.cancel_scope.cancel()


class Probed(msgspec.Struct):
    """What the owner of the node saw while something went on."""

    ready: Timing
    submit: Timing
    answer: Timing  # from the submit on
    failed: dict[str, int]


class Probes:
    """`/readyz` and questions of its owner, until it is told to end."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._took_s: dict[str, list[float]] = {"ready": [], "submit": [], "answer": []}
        self._failed: Counter[str] = Counter()

    async def run(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._again_and_again, READY_EVERY_S, self._ready)
            tasks.start_soon(self._again_and_again, ASK_EVERY_S, self._ask)

    def probed(self) -> Probed:
        timings = {name: timing(took_s) for name, took_s in self._took_s.items()}
        return Probed(**timings, failed=dict(self._failed))

    async def _again_and_again(self, every_s: float, probe: Callable[[], Awaitable[None]]) -> None:
        while True:
            began_s = anyio.current_time()
            try:
                with anyio.fail_after(PROBE_S):
                    await probe()
            except (PenstockError, httpx.HTTPError, TimeoutError) as error:
                self._failed[kind_of(error)] += 1
            await anyio.sleep_until(max(began_s + every_s, anyio.current_time()))

    async def _ready(self) -> None:
        began_s = time.perf_counter()
        response = await self._node.http.get("/readyz")
        self._took_s["ready"].append(time.perf_counter() - began_s)
        if response.status_code != 200:
            self._failed[f"readyz: {response.status_code} {response.text[:100]}"] += 1

    async def _ask(self) -> None:
        began_s = time.perf_counter()
        job = await self._node.client.submit(DESK, (ASK,))
        self._took_s["submit"].append(time.perf_counter() - began_s)
        async for _ in job.answers():
            self._took_s["answer"].append(time.perf_counter() - began_s)


@asynccontextmanager
async def probing(node: Node) -> AsyncIterator[Probes]:
    probes = Probes(node)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(probes.run)
        yield probes
        tasks.cancel_scope.cancel()


async def quiet(node: Node, seconds: float) -> Probed:
    """The baseline."""
    async with probing(node) as probes:
        await anyio.sleep(seconds)
    return probes.probed()


async def settled(node: Node, before: dict[str, Used]) -> dict[str, Any]:
    """What is left behind, once as much as can has come back."""
    began_s, now = time.perf_counter(), node.used()
    with anyio.move_on_after(SETTLE_S):
        while any(_is_left(name, now[name], before[name]) for name in now):
            await anyio.sleep(LOOK_S)
            now = node.used()
    left = {
        name: {
            "fds": now[name].num_fds - before[name].num_fds,
            "threads": now[name].num_threads - before[name].num_threads,
            "mib": round((now[name].own_bytes - before[name].own_bytes) / MIB, 1),
        }
        for name in now
    }
    return {"after_s": round(time.perf_counter() - began_s, 2), **left}


def _is_left(name: str, now: Used, before: Used) -> bool:
    return now.num_fds > before.num_fds + MARGIN_FDS or now.own_bytes > before.own_bytes + _margin_bytes(name)


def _margin_bytes(name: str) -> int:
    return MARGIN_SERVER_BYTES if name == "server" else MARGIN_BYTES


def came_back(left: dict[str, Any]) -> dict[str, Any]:
    names = ("node", "server", "worker")
    fds = {f"{name}_fds_left": at_most(left[name]["fds"], MARGIN_FDS) for name in names}
    return fds | {f"{name}_mib_left": at_most(left[name]["mib"], _margin_bytes(name) / MIB) for name in names}


def grown(watch: Watch, before: dict[str, Used]) -> dict[str, float]:
    return {name: round((watch.own_bytes[name] - before[name].own_bytes) / MIB, 1) for name in before}


def within(probed: Probed) -> dict[str, Any]:
    """The probes' targets."""
    names = ("ready", "submit", "answer")
    targets: dict[str, Any] = {
        f"{name}_p99_ms": at_most(getattr(probed, name).p99_ms, PROBE_LIMIT_MS) for name in names
    }
    return {**targets, "failed": at_most(sum(probed.failed.values()), 0)}


async def standing(node: Node, stream: str, num_bytes: int, id: str, webhook: str = "") -> str:
    """A job that answers about each segment of a stream, with so many bytes."""
    stage = Stage(capability="crowd_repeat", inputs={"media": "media"}, params={"num_bytes": num_bytes})
    workflow = Workflow(name="repeat", stages={"repeat": stage})
    job = await node.client.submit(stream, (), workflow, standing=True, webhook=webhook, id=id)
    return job.id


async def declared(node: Node, stream: str) -> None:
    request = {"policy": "live", "segment_s": 1.0, "max_lag_s": 60.0}
    (await node.http.put(f"/v1/streams/{stream}", json=request)).raise_for_status()


async def answering(node: Node, job: str, stream: str) -> None:
    """Returns when a job has said something."""
    with anyio.fail_after(UP_S):
        while await node.ledger.get(subjects.answers(job, stream)) is None:  # noqa: ASYNC110 - a node stores it
            await anyio.sleep(LOOK_S)
