"""What the live benchmarks are made of: operators of known cost, and a node, a feeder and plain nats-py as processes.

Each part runs as a process of its own, so that what is measured of one is not another's:

    live_parts.py node    workers, duties and services, as `penstock serve` runs them
    live_parts.py feed    segments, each stored at the moment it is due
    live_parts.py raw     the reads and write-once publishes of a trivial job by nats-py alone, one connection

A part is told what to do by one JSON line on standard input, says `{}` on stdout when it is at it, ends when standard
input closes (or when it is done) and tells in a last line what it did. Its log goes into the store.
"""

import asyncio
import hashlib
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Literal, TypeVar

import anyio
import anyio.abc
import anyio.to_thread
import msgspec
import nats
from measure import ROOT, num_cores
from memory import fields, processes
from nats.js.api import ConsumerConfig, StreamConfig

from engine.decide.running_graph import running_groups
from engine.node.endpoints import Services
from engine.node.feeding import Resume, Source, feed, played, source_of
from engine.node.submission import JobRequest, Submitted
from engine.node.tasks import Duties
from engine.node.worker_processes import node
from engine.run.assignment import Assignment
from engine.run.registry import NodeStatus, Registry, new_id, open_registry
from engine.run.telemetry import Telemetry, configure_logging
from engine.spec.catalogue import EXTRA, installed
from engine.spec.operator import Capability, Inputs, Machine, Operator, Port, Reduce, Rung, Scope, Settings
from engine.spec.operator import Media as MediaInput
from engine.spec.stream import StreamSpec
from engine.spec.workflow import Stage, Workflow
from penstock import demo
from streams import subjects
from streams.media.segmenter import segments
from streams.records import EndOfStream, MediaMessage, Packet, Record, Segment, Track, encode
from streams.wire import store as stores
from streams.wire.asking import ask
from streams.wire.ledger import Ledger, open_ledger
from streams.wire.link import Link, connect
from streams.wire.retention import Retention
from streams.wire.server import embedded
from streams.wire.service import serve

T = TypeVar("T")

HERE = Path(__file__).resolve()
SECOND_NS = 1_000_000_000
SEGMENT_BYTES = 30_000  # of a second of media: as many as the demo's clip has
LEAVE_S = 20.0  # what a part gets to end
SUBMIT_S = 60.0
ONCE = {"Nats-Expected-Last-Subject-Sequence": "0"}
FETCH = 256


# --- operators -------------------------------------------------------------------------------------------------


class Found(Record, frozen=True):
    value: int


class ModelParams(Settings, frozen=True):
    cpu_s: float = 0.0  # what the model takes of one core for a segment


class TellParams(Settings, frozen=True):
    question: str = ""


LOOK = Capability("bench_look", {"media": Port(MediaInput)}, Found, ModelParams)
PASS = Capability("bench_pass", {"media": Port(MediaInput)}, Found)
TELL = Capability("bench_tell", {"found": Port(Found, many=True)}, Found, TellParams)


class Counted(Operator):
    """A segment's number, or the sum of some: every answer says which segments it was made from."""

    name = "counted"
    runs_in: ClassVar[Literal["loop", "thread", "process"]] = "loop"

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return [Rung(cls.capability.name, 1.0, Settings())]

    def process(self, batch: Sequence[Inputs]) -> Sequence[Found]:
        return [Found(value=item.here("media").segment.index) for item in batch]


class Pass(Counted):
    """Costs nothing: all that is left is what the engine costs."""

    capability = PASS


class Look(Counted):
    """Keeps a core busy as a model does: in a thread, for a known CPU time, without the interpreter's lock."""

    capability = LOOK
    runs_in = "thread"

    def process(self, batch: Sequence[Inputs]) -> Sequence[Found]:
        block = bytes(65536)
        until_s = time.thread_time() + sum(item.params.cpu_s for item in batch)
        while time.thread_time() < until_s:
            hashlib.sha256(block)
        return super().process(batch)


class Tell(Counted):
    """The sum over a window: changes with every segment, as the answer to a standing question may."""

    capability = TELL
    scope: ClassVar[Scope] = Reduce()

    def process(self, batch: Sequence[Inputs]) -> Sequence[Found]:
        return [
            Found(value=sum(entry.value.value for entry in item.around("found") if entry.value is not None))
            for item in batch
        ]


OPERATORS = ("Pass", "Look", "Tell")


def workflow(first: str, question: str = "", **params: float) -> Workflow:
    """A first stage over the media, and the sum over a window of what it finds."""
    return Workflow(
        name=first,
        stages={
            "first": Stage(capability=first, inputs={"media": "media"}, params=params),
            "tell": Stage(capability="bench_tell", inputs={"found": ("first",)}, params={"question": question}),
        },
    )


def told(index: int, window: int) -> int:
    """What Tell says of the window that ends with a segment."""
    return sum(range(max(0, index - window + 1), index + 1))


def toy_segment(stream: str, index: int, captured_ns: int, length_ns: int) -> Segment:
    """A segment of the size of a real one."""
    data = bytes(SEGMENT_BYTES * length_ns // SECOND_NS)
    track = Track(kind="video", codec="none", time_base=(1, 1))
    return Segment(
        stream=stream,
        index=index,
        start_ns=index * length_ns,
        duration_ns=length_ns,
        tracks=(track,),
        packets=(Packet(0, index, index, 1, True, data),),
        captured_ns=captured_ns,
    )


# --- the node --------------------------------------------------------------------------------------------------


class NodeOrder(msgspec.Struct, frozen=True):
    url: str
    store: str


class NodeReport(msgspec.Struct):
    num_restarts: int


async def run_node(order: NodeOrder, say_ready: Callable[[], None], told_to_end: Awaitable[None]) -> NodeReport:
    """Workers, duties and services on a NATS server, until told to end."""
    id = new_id("n")
    machine = Machine(num_cores=num_cores())
    async with (
        node(1, Path(order.store) / "workers.log") as workers,
        connect(order.url, name=id) as link,
        anyio.create_task_group() as tasks,
    ):
        ledger, registry = await open_ledger(link), await open_registry(link)
        workers.assign(Assignment(url=order.url, name=id, num_cores=machine.num_cores))
        status = NodeStatus(id=id, host="bench", pid=os.getpid(), num_cores=machine.num_cores)
        services = Services(registry, ledger, installed(), machine, demo.workflow())
        tasks.start_soon(Duties(registry, ledger, installed(), Telemetry("bench"), status).run)
        async with serve(link, "penstock", "0.1.0", services.endpoints()):
            say_ready()
            await told_to_end
        tasks.cancel_scope.cancel()
    return NodeReport(workers.num_restarts)


# --- the feeder ------------------------------------------------------------------------------------------------


class Paced(msgspec.Struct, frozen=True):
    """A stream whose segments are stored when their last moment has come, whatever becomes of them."""

    name: str
    first: int = 0
    phase: float = 0.0  # of a segment: cameras do not cut at the same moment


def cameras(streams: Iterable[str] | Mapping[str, int]) -> tuple[Paced, ...]:
    """Paced streams that cut at moments of their own, from their first segment on or from the one that is given."""
    seeded = Random(7)
    firsts = streams if isinstance(streams, Mapping) else dict.fromkeys(streams, 0)
    return tuple(Paced(name, first, seeded.random()) for name, first in firsts.items())


class FeedOrder(msgspec.Struct, frozen=True, kw_only=True):
    url: str
    store: str
    paced: tuple[Paced, ...] = ()
    clip: str = ""  # what the paced streams show, over and over; empty: toys
    looped: tuple[str, ...] = ()  # streams of the clip again and again, as it plays
    held_back: tuple[str, ...] = ()  # durable streams: as fast as they are let, for as long as the others last
    pushed: str = ""  # the clip, once, as a durable stream
    segment_s: float = 1.0
    num_segments: int = 0  # of each paced stream
    max_lag_s: float = 0.0  # theirs: each segment leaves with its due time, as ingest has it; 0: none is ever late
    ends: bool = False  # store the ends of the paced streams, too


class Put(msgspec.Struct, frozen=True, array_like=True):
    """A segment that was stored: when it was due and begun to be stored, and when that was acknowledged (Unix time)."""

    stream: str
    index: int
    due_ns: int
    begun_ns: int
    stored_ns: int


class FeedReport(msgspec.Struct):
    started_ns: int = 0  # when media time 0 of the paced streams was, but for their phases
    puts: list[Put] = []
    cpu_s: float = 0.0
    num_held_back: int = 0  # segments of the streams that are held back
    longest_hold_s: float = 0.0


class Feeder:
    """Feeds what the order names."""

    def __init__(self, order: FeedOrder, ledger: Ledger, registry: Registry) -> None:
        self.order = order
        self.report = FeedReport(started_ns=time.time_ns() + SECOND_NS // 2)
        self.length_ns = round(order.segment_s * SECOND_NS)
        self._ends_ns = self.report.started_ns + (order.num_segments + 1) * self.length_ns
        self._ledger = ledger
        self._registry = registry
        self._shown = whole_segments(order.clip, order.segment_s) if order.clip else []

    async def run(self) -> None:
        async with anyio.create_task_group() as tasks:
            for stream in self.order.paced:
                tasks.start_soon(self._pace, stream)
            for number, name in enumerate(self.order.looped):
                tasks.start_soon(self._loop, name, number / len(self.order.looped))
            for name in self.order.held_back:
                tasks.start_soon(self._hold_back, name)
            if self.order.pushed:
                tasks.start_soon(self._push, self.order.pushed)

    async def _pace(self, stream: Paced) -> None:
        began_ns = self.report.started_ns + round(stream.phase * self.length_ns)
        for number in range(self.order.num_segments):
            captured_ns = began_ns + number * self.length_ns
            due_ns = captured_ns + self.length_ns
            await anyio.sleep(max(0, due_ns - time.time_ns()) / SECOND_NS)
            begun_ns = time.time_ns()
            index = stream.first + number
            data = encode(self._segment(stream.name, index, captured_ns))
            worthless_ns = begun_ns + round(self.order.max_lag_s * SECOND_NS) if self.order.max_lag_s else 0
            await self._ledger.put(subjects.media(stream.name, index), data, due_ns=worthless_ns)
            self.report.puts.append(Put(stream.name, index, due_ns, begun_ns, time.time_ns()))
        if self.order.ends:
            end = EndOfStream(stream=stream.name, num_segments=stream.first + self.order.num_segments)
            await self._ledger.put(subjects.media_end(stream.name), encode(end))

    def _segment(self, stream: str, index: int, captured_ns: int) -> Segment:
        if not self._shown:
            return toy_segment(stream, index, captured_ns, self.length_ns)
        shown, start_ns = self._shown[index % len(self._shown)], index * self.length_ns
        moved_ns = start_ns - shown.start_ns
        changes = {"stream": stream, "index": index, "start_ns": start_ns, "duration_ns": self.length_ns}
        return msgspec.structs.replace(shown, **changes, origin_ns=shown.origin_ns - moved_ns, captured_ns=captured_ns)

    async def _loop(self, name: str, phase: float) -> None:
        """As `penstock push --live` feeds a file, but that it begins anew."""

        def note(record: Any) -> None:
            now_ns, due_ns = time.time_ns(), record.captured_ns + record.duration_ns
            self.report.puts.append(Put(name, record.index, due_ns, due_ns, now_ns))

        def read(resume: Resume, stop: threading.Event, tell: object) -> Iterator[MediaMessage]:
            return played(clip_again_and_again(name, self.order.segment_s, stop), stop)

        await anyio.sleep(phase)
        spec = StreamSpec(name=name, policy="live", segment_s=self.order.segment_s)
        source = Source(read=read, goes_on=True, waits=False)
        with anyio.move_on_after(max(0, self._ends_ns - time.time_ns()) / SECOND_NS):
            await feed(self._registry, self._ledger, spec, source, new_id("c"), Telemetry("bench"), on_record=note)

    async def _hold_back(self, name: str) -> None:
        """A stream that must not lose anything, of a source that is always ready."""
        last_s = time.perf_counter()

        def note(record: Any) -> None:
            nonlocal last_s
            now_s = time.perf_counter()
            self.report.num_held_back += 1
            self.report.longest_hold_s = max(self.report.longest_hold_s, now_s - last_s)
            last_s = now_s

        def read(resume: Resume, stop: threading.Event, tell: object) -> Iterator[MediaMessage]:
            index = 0
            while time.time_ns() < self._ends_ns and not stop.is_set():
                yield toy_segment(name, index, 0, self.length_ns)
                index += 1
            yield EndOfStream(stream=name, num_segments=index)

        spec = StreamSpec(name=name, segment_s=self.order.segment_s)
        source = Source(read=read, goes_on=False, waits=True)
        await feed(self._registry, self._ledger, spec, source, new_id("c"), Telemetry("bench"), on_record=note)

    async def _push(self, name: str) -> None:
        """As `penstock push --durable` feeds a file."""
        spec = StreamSpec(name=name, segment_s=self.order.segment_s)
        source = source_of(spec, str(demo.clip()))
        await feed(self._registry, self._ledger, spec, source, new_id("c"), Telemetry("bench"))


def whole_segments(clip: str, segment_s: float) -> list[Segment]:
    """Those of a clip that are as long as they should be."""
    every = segments(clip, stream="shown", target_s=segment_s)
    return [each for each in every if isinstance(each, Segment) and abs(each.duration_ns / 1e9 - segment_s) < 0.1]


def clip_again_and_again(stream: str, target_s: float, stop: threading.Event) -> Iterator[Segment]:
    """The demo's clip without an end."""
    index = start_ns = 0
    while not stop.is_set():
        from_here = segments(str(demo.clip()), stream=stream, target_s=target_s, first_index=index, start_ns=start_ns)
        for record in from_here:
            if isinstance(record, Segment):
                index, start_ns = record.index + 1, record.start_ns + record.duration_ns
                yield record


async def run_feed(order: FeedOrder, say_ready: Callable[[], None], told_to_end: Awaitable[None]) -> FeedReport:
    """Feed the streams until all is stored, or told to end."""
    async with connect(order.url, name="feeder") as link, anyio.create_task_group() as tasks:
        feeder = Feeder(order, await open_ledger(link), await open_registry(link))

        async def end_when_told() -> None:
            await told_to_end
            tasks.cancel_scope.cancel()

        tasks.start_soon(end_when_told)
        say_ready()
        began_s = time.process_time()
        await feeder.run()
        feeder.report.cpu_s = time.process_time() - began_s
        tasks.cancel_scope.cancel()
    return feeder.report


# --- the limit -------------------------------------------------------------------------------------------------


class RawOrder(msgspec.Struct, frozen=True):
    url: str
    store: str


class RawReport(msgspec.Struct):
    num_answers: int = 0


async def run_raw(order: RawOrder, say_ready: Callable[[], None], told_to_end: Awaitable[None]) -> RawReport:
    """Media to a first record, that to a second, that to an answer: each fetched, put write-once, acknowledged."""
    report = RawReport()
    client = await nats.connect(order.url)
    js = client.jetstream(publish_async_max_pending=4096)
    await js.add_stream(StreamConfig(name="RAW", subjects=["raw.>"]))

    async def hop(stream: str, subject: str, to: str) -> None:
        config = ConsumerConfig(max_ack_pending=65536)
        pull = await js.pull_subscribe(subject, durable=f"to-{to}", stream=stream, config=config)
        ready.release()
        while True:
            try:
                messages = await pull.fetch(FETCH, timeout=5)
            except TimeoutError:
                continue
            put = [
                await js.publish_async(f"raw.{to}.{'.'.join(m.subject.rsplit('.', 2)[1:])}", m.data[:300], headers=ONCE)
                for m in messages
            ]
            await asyncio.gather(*put)
            for message in messages:
                await message.ack()
            report.num_answers += len(messages) if to == "answer" else 0

    ready = anyio.Semaphore(0)
    hops = [("PENSTOCK_MEDIA", "penstock.media.*.*", "first"), ("RAW", "raw.first.*.*", "second")]
    async with anyio.create_task_group() as tasks:
        for stream, subject, to in [*hops, ("RAW", "raw.second.*.*", "answer")]:
            tasks.start_soon(hop, stream, subject, to)
        for _ in range(3):
            await ready.acquire()
        say_ready()
        await told_to_end
        tasks.cancel_scope.cancel()
    await client.close()
    return report


# --- parts as processes ----------------------------------------------------------------------------------------


class Part:
    """A part that runs, as the bench sees it."""

    def __init__(self, process: anyio.abc.Process) -> None:
        assert process.stdout is not None
        self.pid = process.pid
        self._process = process
        self._lines = process.stdout.__aiter__()
        self._rest = b""

    async def line(self) -> bytes:
        """Its next line. Raises RuntimeError where it has ended without one."""
        while b"\n" not in self._rest:
            try:
                self._rest += await anext(self._lines)
            except StopAsyncIteration:
                raise RuntimeError(f"a part ended with {await self._process.wait()}; its log says more") from None
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    async def report(self, kind: type[T]) -> T:
        """What it tells at its end, for which it is waited."""
        return msgspec.json.decode(await self.line(), type=kind)

    async def end(self) -> None:
        """Tell it to end."""
        assert self._process.stdin is not None
        await self._process.stdin.aclose()


@asynccontextmanager
async def part(name: str, order: NodeOrder | FeedOrder | RawOrder) -> AsyncIterator[Part]:
    """A part at work, in a process that ends here."""
    operators = ",".join(f"{HERE.stem}:{operator}" for operator in OPERATORS)
    env = {**os.environ, EXTRA: operators, "PYTHONPATH": f"{HERE.parent}{os.pathsep}{ROOT}"}
    async with await anyio.open_file(Path(order.store, f"{name}.log"), "ab") as log:
        process = await anyio.open_process([sys.executable, str(HERE), name], stderr=log.wrapped, env=env)
    running = Part(process)
    try:
        assert process.stdin is not None
        await process.stdin.send(msgspec.json.encode(order) + b"\n")
        await running.line()
        yield running
        await running.end()
        with anyio.fail_after(LEAVE_S):
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
        with anyio.CancelScope(shield=True):
            await process.aclose()


class Used(msgspec.Struct):
    """What some processes have used, and hold."""

    cpu_s: float = 0.0
    rss_bytes: int = 0
    own_bytes: int = 0  # resident and not of a file: what the kernel cannot drop, nor others' use of a library change
    num_fds: int = 0
    num_threads: int = 0


def used(pids: Iterable[int]) -> Used:
    """Together; those that have just gone count nothing."""
    total = Used()
    for pid in pids:
        try:
            stat = stat_of(pid)
            total.cpu_s += sum(map(int, stat[11:15])) / os.sysconf("SC_CLK_TCK")  # with its children that have ended
            status = fields(f"/proc/{pid}/status")
            total.rss_bytes += status.get("VmRSS", 0)
            total.own_bytes += status.get("RssAnon", 0)
            total.num_fds += sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
            total.num_threads += int(stat[17])
        except OSError:
            continue
    return total


def stat_of(pid: int) -> list[str]:
    """The fields of a process's `stat`, from the third one on: state, parent, group, session, ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def those_with(place: int, value: int) -> list[int]:
    """The processes with a value at a place of `stat_of`."""
    found = []
    for pid in processes():
        with suppress(OSError):
            if int(stat_of(pid)[place]) == value:
                found.append(pid)
    return found


class Rig:
    """A server and a node that run, and a connection to them. Made by `rig`."""

    def __init__(self, store: Path, url: str, link: Link, ledger: Ledger, registry: Registry, node: Part) -> None:
        self.store = store
        self.url = url
        self.link = link
        self.ledger = ledger
        self.registry = registry
        self.node = node

    def used(self) -> dict[str, Used]:
        """By the server, the node and its worker with all that this has started."""
        server = stores.status(self.store).get("pid", 0)
        return {"server": used([server]), "node": used([self.node.pid]), "worker": used(self.worker_pids())}

    def worker_pids(self) -> list[int]:
        """Of its workers, each of which leads a session of its own, and of all they have started."""
        return [pid for worker in those_with(1, self.node.pid) for pid in those_with(3, worker)]

    async def declare(self, name: str, **spec: Any) -> None:
        await self.registry.declare(StreamSpec(**{"name": name, "policy": "live", "segment_s": 1.0, **spec}))

    async def submit(self, request: JobRequest) -> Submitted:
        reply = await ask(self.link, "penstock.jobs.submit", msgspec.json.encode(request), timeout_s=SUBMIT_S)
        return msgspec.json.decode(reply, type=Submitted)

    async def cancel(self, jobs: Iterable[Submitted]) -> None:
        for job in jobs:
            await self.registry.change_job(job.job, lambda spec: msgspec.structs.replace(spec, state="canceled"))

    async def drained(self, jobs: Iterable[Submitted], timeout_s: float) -> list[str]:
        """Returns when these jobs, whose streams end, have ended, too; those that have not within the time."""
        running = {job.job for job in jobs}
        with anyio.move_on_after(timeout_s):
            while running := running & await self._running():  # noqa: ASYNC110 - a node ends them
                await anyio.sleep(0.1)
        return sorted(running)

    async def _running(self) -> set[str]:
        return {job.id for job in await self.registry.jobs() if job.state == "running"}

    async def ready(self, timeout_s: float = 60.0) -> None:
        """Returns when a worker listens for every group of the jobs that run."""
        jobs = await self.registry.jobs()
        wanted = {f"{group.name}-{group.stream}" for group in running_groups(jobs)}
        with anyio.fail_after(timeout_s):
            while not wanted <= await self._consumers():  # noqa: ASYNC110 - another process makes them
                await anyio.sleep(0.1)

    async def _consumers(self) -> set[str]:
        found: set[str] = set()
        for stream in ("PENSTOCK_MEDIA", "PENSTOCK_RESULTS"):
            num = 0
            while names := (await self.link.api(f"CONSUMER.NAMES.{stream}", {"offset": num}))["consumers"]:
                num += len(names)
                found |= set(names)
        return found

    def feed(self, **order: Any) -> Any:
        """A feeder at work."""
        return part("feed", FeedOrder(url=self.url, store=str(self.store), **order))


@asynccontextmanager
async def rig(store: Path, retention: Retention | None = None) -> AsyncIterator[Rig]:
    """A server over an empty store, and a node."""
    async with embedded(store) as url, connect(url, name="bench") as link:
        ledger, registry = await open_ledger(link, retention), await open_registry(link)
        async with part("node", NodeOrder(url, str(store))) as running:
            yield Rig(store, url, link, ledger, registry, running)


# --- the process of a part -------------------------------------------------------------------------------------

PARTS: dict[str, tuple[type[Any], Callable[..., Awaitable[Any]]]] = {
    "node": (NodeOrder, run_node),
    "feed": (FeedOrder, run_feed),
    "raw": (RawOrder, run_raw),
}


async def run_part(name: str) -> None:
    kind, run = PARTS[name]
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=kind)
    ended = anyio.Event()

    async def at_end_of_input(tasks: anyio.abc.TaskGroup) -> None:
        await anyio.to_thread.run_sync(sys.stdin.buffer.read, abandon_on_cancel=True)
        ended.set()

    def tell(what: Any) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(what) + b"\n")
        sys.stdout.buffer.flush()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(at_end_of_input, tasks)
        tell(await run(order, lambda: tell({}), ended.wait()))
        tasks.cancel_scope.cancel()


def main() -> None:
    configure_logging("warning")
    anyio.run(partial(run_part, sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # a thread that still waits for standard input must not hold the process


if __name__ == "__main__":
    main()
