"""Faults, one after the other, in a set-up of three NATS servers and two nodes, each on a host of its own, while a
stream goes on and jobs are submitted; and what became of it, against a run in which nothing happened.

All that is random comes from one seed. A fault begins, lasts, and ends before the next begins, when the servers are
whole again: one server may be missing at any time, and one node.
"""

import hashlib
import os
import random
import shutil
import signal
import statistics
import subprocess
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import disks
import msgspec
from clips import first_seconds
from clusters import Cluster, running_cluster
from hosts import Host, children_of, joined_hosts
from nodes import SCENES, Nodes, running_nodes

from engine.run.registry import open_registry
from engine.spec.stream import StreamSpec
from engine.spec.workflow import parse_workflow
from penstock.client import Client, connect
from streams import subjects
from streams.media.segmenter import segments
from streams.records import EndOfStream, Segment, encode
from streams.wire.ledger import Ledger, open_ledger
from streams.wire.link import connect as connect_link
from streams.wire.retention import RESULTS
from streams.wire.server import embedded

SEGMENT_S = 1.0
CLIP_S = 12.0
EVERY_S = 0.25  # a segment
SUBMIT_EVERY_S = 2.0
NUM_ASKED = 10  # segments a question is about, or it would be about more and more
LASTS_S = (0.5, 4.0)  # a fault
CALM_S = 1.0  # between two
DISK = "1g"
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
HAS_FAKETIME = FAKETIME.exists()
END_S = 300.0  # what is under way at the end has this long


class Outcome(msgspec.Struct):
    """What came of a run."""

    num_faults: int = 0
    num_segments: int = 0
    num_jobs: int = 0
    num_answers: int = 0
    num_lost: int = 0
    num_twice: int = 0
    num_different: int = 0  # records of the ledger, from the quiet run's
    num_refused: int = 0  # jobs that could not be submitted
    submit_s: list[float] = msgspec.field(default_factory=list)
    pause_s: dict[str, float] = msgspec.field(default_factory=dict)  # the longest without an answer, by kind of fault
    wrong: list[str] = msgspec.field(default_factory=list)
    submits_s: dict[str, float] = msgspec.field(default_factory=dict)  # the longest submit, by kind of fault
    kinds: dict[str, int] = msgspec.field(default_factory=dict)

    def submit_quantile_s(self, share: float) -> float:
        times = sorted(self.submit_s)
        return times[min(len(times) - 1, int(share * len(times)))] if times else 0.0

    @property
    def submit_median_s(self) -> float:
        return statistics.median(self.submit_s) if self.submit_s else 0.0


class World:
    """The set-up."""

    def __init__(self, cluster: Cluster, nodes: Nodes, hosts: list[Host], folder: Path) -> None:
        self.cluster = cluster
        self.nodes = nodes
        self.server_hosts, self.node_hosts = hosts[:3], hosts[3:]
        self.running: list[subprocess.Popen[str]] = []
        self._clocks = [folder / f"clock-{number}" for number in range(2)]

    def start_node(self, at: int) -> None:
        self._clocks[at].write_text("+0\n")
        environment = {"FAKETIME_TIMESTAMP_FILE": str(self._clocks[at]), "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        environment |= {"LD_PRELOAD": str(FAKETIME), "FAKETIME_CACHE_DURATION": "1", "DONT_FAKE_MONOTONIC": "1"}
        process = self.nodes.start(self.node_hosts[at], environment if HAS_FAKETIME else None)
        if at < len(self.running):
            self.running[at] = process
        else:
            self.running.append(process)

    def kill_node(self, at: int) -> None:
        process = self.running[at]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stderr is not None
        process.stderr.close()
        self.nodes.processes.remove(process)

    def set_clock(self, at: int, offset_s: int) -> None:
        self._clocks[at].write_text(f"{offset_s:+d}\n")


Ending = Callable[[], None]


def _server_killed(world: World, seeded: random.Random) -> Ending:
    at = seeded.randrange(3)
    world.cluster.kill(at)
    return lambda: world.cluster.start(at)


def _server_frozen(world: World, seeded: random.Random) -> Ending:
    at = seeded.randrange(3)
    world.cluster.signal(at, signal.SIGSTOP)
    return lambda: world.cluster.signal(at, signal.SIGCONT)


def _server_cut_off(world: World, seeded: random.Random) -> Ending:
    host = world.server_hosts[seeded.randrange(3)]
    host.cut()
    return host.join


def _server_disk_full(world: World, seeded: random.Random) -> Ending:
    at = seeded.randrange(3)
    filling = disks.fill(world.cluster.folders[at])

    def end() -> None:  # nats-server goes on refusing: whoever runs it has to start it again
        filling.unlink()
        world.cluster.kill(at)
        world.cluster.start(at)

    return end


def _node_killed(world: World, seeded: random.Random) -> Ending:
    at = seeded.randrange(2)
    world.kill_node(at)
    return lambda: world.start_node(at)


def _node_frozen(world: World, seeded: random.Random) -> Ending:
    process = world.running[seeded.randrange(2)]
    os.killpg(process.pid, signal.SIGSTOP)
    return lambda: os.killpg(process.pid, signal.SIGCONT)


def _node_cut_off(world: World, seeded: random.Random) -> Ending:
    host = world.node_hosts[seeded.randrange(2)]
    host.cut()
    return host.join


def _worker_killed(world: World, seeded: random.Random) -> Ending:
    for pid in children_of(world.running[seeded.randrange(2)].pid)[-1:]:
        os.kill(pid, signal.SIGKILL)
    return lambda: None


def _clock_jumps(world: World, seeded: random.Random) -> Ending:
    world.set_clock(seeded.randrange(2), seeded.choice([-3600, -60, -5, 5, 60, 3600]))
    return lambda: None


def _results_purged(world: World, seeded: random.Random) -> Ending:
    anyio.from_thread.run(_purge, world)
    return lambda: None


async def _purge(world: World) -> None:
    async with connect_link(world.cluster.url) as link:
        await link.api(f"STREAM.PURGE.{RESULTS}")


KINDS = {
    "server killed": _server_killed,
    "server frozen": _server_frozen,
    "server cut off": _server_cut_off,
    "server's disk full": _server_disk_full,
    "node killed": _node_killed,
    "node frozen": _node_frozen,
    "node cut off": _node_cut_off,
    "worker killed": _worker_killed,
    "clock jumps": _clock_jumps,
    "results purged": _results_purged,
}


def why_not() -> str:
    """Why this cannot be run here; "" where it can."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return "only root can mount small disks"
    return ""


def looped(folder: Path) -> Iterator[Segment]:
    """A short clip, over and over."""
    clip = first_seconds(folder / "clip.mp4", CLIP_S)
    cut = [record for record in segments(str(clip), stream="cam", target_s=SEGMENT_S) if isinstance(record, Segment)]
    index = start_ns = 0
    while True:
        for record in cut:
            origin_ns = record.origin_ns + record.start_ns - start_ns
            yield msgspec.structs.replace(record, index=index, start_ns=start_ns, origin_ns=origin_ns)
            index, start_ns = index + 1, start_ns + record.duration_ns


@asynccontextmanager
async def world_of(folder: Path) -> AsyncIterator[World]:
    with ExitStack() as stack:
        hosts = stack.enter_context(joined_hosts(5))
        (folder / "cluster").mkdir()
        for number in range(3):
            stack.enter_context(disks.mounted(folder / "cluster" / f"n{number}", DISK))
        cluster = stack.enter_context(running_cluster(folder / "cluster", hosts=hosts[:3]))
        await cluster.ready()
        world = World(cluster, stack.enter_context(running_nodes(cluster.url, folder, 0)), hosts, folder)
        async with connect_link(cluster.url) as link:
            await open_ledger(link)
            await open_registry(link)
        for at in range(2):
            await anyio.to_thread.run_sync(world.start_node, at)
        yield world


async def run_faults(
    folder: Path, seed: int, num: int, on_fault: Callable[[str], None] = lambda said: None, every_s: float = 0.0
) -> Outcome:
    """Run so many faults, each so long after the one before began or once that is over, then wait for everything that
    was asked, then compare."""
    outcome = Outcome(num_faults=num)
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(world_of(folder))
        client = await stack.enter_async_context(connect(world.cluster.url))
        link = await stack.enter_async_context(connect_link(world.cluster.url, patience_s=120.0))
        ledger, registry = await open_ledger(link), await open_registry(link)
        await registry.declare(StreamSpec(name="cam", segment_s=SEGMENT_S))
        run = _Run(client, ledger, outcome, folder)
        async with anyio.create_task_group() as tasks:
            await run.submit("standing", standing=True)
            tasks.start_soon(run.watch)
            tasks.start_soon(run.feed)
            tasks.start_soon(run.ask_now_and_then)
            await run.some_answered()
            await _inflict(world, random.Random(seed), num, run, on_fault, every_s)
            run.is_over.set()
            with anyio.fail_after(END_S):
                await run.all_answered.wait()
        outcome.num_segments = run.num_stored
        found = await _results(ledger)
    expected = await _quietly(folder, outcome.num_segments)
    outcome.num_different = sum(expected.get(subject) != digest for subject, digest in found.items())
    return outcome


async def _inflict(
    world: World, seeded: random.Random, num: int, run: "_Run", on_fault: Callable[[str], None], every_s: float
) -> None:
    names = [name for name in KINDS if name != "clock jumps" or HAS_FAKETIME]
    order = [names[number % len(names)] for number in range(num)]
    seeded.shuffle(order)
    for number, name in enumerate(order):
        began_s = time.monotonic()
        run.cause = name
        run.outcome.kinds[name] = run.outcome.kinds.get(name, 0) + 1
        lasts_s = seeded.uniform(*LASTS_S)
        on_fault(f"{number + 1}/{num} {name}, {lasts_s:.1f} s")
        end = await anyio.to_thread.run_sync(KINDS[name], world, seeded)
        await anyio.sleep(lasts_s)
        await anyio.to_thread.run_sync(end)
        async with connect_link(world.cluster.url) as link:
            await world.cluster.whole(link)
        await anyio.sleep(max(CALM_S, began_s + every_s - time.monotonic()))


class _Run:
    """One stream, fed, and jobs on it."""

    def __init__(self, client: Client, ledger: Ledger, outcome: Outcome, folder: Path) -> None:
        self._client = client
        self._ledger = ledger
        self._folder = folder
        self.outcome = outcome
        self.cause = "nothing"
        self.num_stored = 0
        self._starts_s: deque[float] = deque(maxlen=NUM_ASKED)  # of the last segments
        self.is_over = anyio.Event()
        self.all_answered = anyio.Event()
        self._first = anyio.Event()
        self._asked_all = anyio.Event()
        self._workflow = parse_workflow(SCENES)
        self._asked: dict[str, list[int]] = {}  # one-shot jobs, and the segments they are about

    async def submit(self, id: str, standing: bool = False) -> None:
        start = f"{self._starts_s[0]:.3f}s" if self._starts_s else "0s"
        began_s = time.monotonic()
        job = await self._client.submit(
            "cam", workflow=self._workflow, standing=standing, id=id, start="" if standing else start, end=""
        )
        took_s = time.monotonic() - began_s
        self.outcome.submit_s.append(took_s)
        self.outcome.submits_s[self.cause] = max(took_s, self.outcome.submits_s.get(self.cause, 0.0))
        self.outcome.num_jobs += 1
        if not standing:
            last = job.submitted.last  # of a stream that has ended meanwhile, none: as far as it goes
            self._asked[id] = list(range(job.submitted.first, self.num_stored if last is None else last + 1))

    async def feed(self) -> None:
        records = looped(self._folder)
        while not self.is_over.is_set():
            record = next(records)
            await self._ledger.put(subjects.media("cam", record.index), encode(record))
            self.num_stored = record.index + 1
            self._starts_s.append(record.start_ns / 1e9)
            with anyio.move_on_after(EVERY_S):
                await self.is_over.wait()
        end = EndOfStream(stream="cam", num_segments=self.num_stored)
        await self._ledger.put(subjects.media_end("cam"), encode(end))

    async def some_answered(self) -> None:
        with anyio.fail_after(60):
            await self._first.wait()

    async def ask_now_and_then(self) -> None:
        await self._first.wait()
        number = 0
        while not self.is_over.is_set():
            number += 1
            try:
                await self.submit(f"once-{number}")
            except Exception as error:
                self.outcome.num_refused += 1
                print(f"refused: {error!r}")
            with anyio.move_on_after(SUBMIT_EVERY_S):
                await self.is_over.wait()
        self._asked_all.set()

    async def watch(self) -> None:
        """Read the standing job's answers until the stream's end, then the others'."""
        seen: list[int] = []
        heard_s = time.monotonic()
        async for answer in self._client.answers("standing", "cam", until_done=True):
            now_s = time.monotonic()
            if seen:
                longest = self.outcome.pause_s.get(self.cause, 0.0)
                self.outcome.pause_s[self.cause] = max(longest, now_s - heard_s)
            heard_s = now_s
            seen.append(answer.last)
            self._first.set()
        self._count("standing", seen, list(range(self.num_stored)))
        await self._asked_all.wait()
        for id, wanted in self._asked.items():
            answered = [answer.last async for answer in self._client.answers(id, "cam", until_done=True)]
            self._count(id, answered, wanted)
        self.all_answered.set()

    def _count(self, job: str, seen: list[int], wanted: list[int]) -> None:
        if sorted(seen) != wanted:
            self.outcome.wrong.append(f"{job}: lacks {sorted(set(wanted) - set(seen))}, {len(seen)} answers")
        self.outcome.num_answers += len(seen)
        self.outcome.num_lost += len(set(wanted) - set(seen))
        self.outcome.num_twice += len(seen) - len(set(seen))


async def _results(ledger: Ledger) -> dict[str, str]:
    """What every stage delivered, by subject, but for how long it took and where."""
    found = {}
    async for stored in ledger.every(subjects.results_of("*", "cam")):
        record = msgspec.msgpack.decode(stored.data)
        record.pop("measured", None)
        found[stored.subject] = hashlib.sha256(msgspec.msgpack.encode(record)).hexdigest()
    return found


async def _quietly(folder: Path, num_segments: int) -> dict[str, str]:
    """The results where nothing goes wrong."""
    async with embedded(folder / "quiet") as url, connect(url) as client, connect_link(url) as link:
        ledger, registry = await open_ledger(link), await open_registry(link)
        await registry.declare(StreamSpec(name="cam", segment_s=SEGMENT_S))
        for record, _ in zip(looped(folder), range(num_segments), strict=False):
            await ledger.put(subjects.media("cam", record.index), encode(record))
        await ledger.put(subjects.media_end("cam"), encode(EndOfStream(stream="cam", num_segments=num_segments)))
        with running_nodes(url, folder / "quiet", 0) as nodes:
            await anyio.to_thread.run_sync(nodes.start)
            job = await client.submit("cam", workflow=parse_workflow(SCENES), id="all")
            assert len([answer async for answer in job.answers()]) == num_segments
        return await _results(ledger)
