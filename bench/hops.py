"""What a hop costs: three stages in a chain, durable and write-once, against raw nats-py and against FastStream.

- limit: raw nats-py doing the same for each hop (fetch, write-once publish, acknowledge), in one process;
- peer: FastStream with JetStream pull subscribers that publish to the next subject;
- latency of a hop at low load: the time from one stage's record being seen to the next stage's, one item at a time.

All of it in the same run, on one embedded nats-server, interleaved; medians are reported. The clock runs from the
start of the worker, or of the subscribers, to the last item seen: with a second's worth of items the start (a worker
looks up jobs, nodes and stored results before it takes anything) was a fifth of what was measured, so there are
seconds' worth of them, and the time to the first item is told beside. Prints one JSON line and keeps it in
bench/results/hops.json.

    python bench/hops.py [--items N] [--rounds N]
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import msgspec
import nats
from faststream.nats import JStream, NatsBroker, NatsMessage, PullSub
from measure import keep
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, StreamConfig

from engine.node.submission import submit_whole
from engine.run import heap
from engine.run.assignment import Assignment
from engine.run.registry import open_registry
from engine.run.telemetry import Telemetry
from engine.run.worker import Worker
from engine.spec.catalogue import Catalogue
from engine.spec.jobs import JobSpec
from engine.spec.operator import Capability, Inputs, Machine, Media, Operator, Port, Rung, Settings
from engine.spec.plan import Plan, make_plan
from engine.spec.stream import StreamSpec
from engine.spec.workflow import Stage, Workflow
from streams import subjects
from streams.records import Packet, Record, Segment, Track, encode
from streams.wire.ledger import Ledger, NewRecord, open_ledger
from streams.wire.link import connect
from streams.wire.server import embedded

BATCH = 256
ONCE = {"Nats-Expected-Last-Subject-Sequence": "0"}
HOPS = 3


class Blob(Record, frozen=True):
    data: bytes


FIRST = Capability("first", {"media": Port(Media)}, Blob)
NEXT = Capability("next", {"blob": Port(Blob)}, Blob)


class Pass(Operator):
    """Hands on what it gets: all that is left is the hop."""

    name = "pass"
    runs_in = "loop"
    max_batch = BATCH

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return [Rung(cls.capability.name, 1.0, Settings())]

    def process(self, batch: Sequence[Inputs]) -> Sequence[Blob]:
        return [item.here("blob") for item in batch]


class PassNext(Pass):
    capability = NEXT


class PassFirst(Pass):
    capability = FIRST

    def process(self, batch: Sequence[Inputs]) -> Sequence[Blob]:
        return [Blob(data=item.here("media").segment.packets[0].data) for item in batch]


CATALOGUE = Catalogue([PassFirst, PassNext])


def chain() -> Plan:
    stages = {"a": Stage(capability="first", inputs={"media": "media"})}
    for before, name in (("a", "b"), ("b", "c")):
        stages[name] = Stage(capability="next", inputs={"blob": before})
    return make_plan(Workflow(name="chain", stages=stages), CATALOGUE, Machine(num_cores=1))


def segment(stream: str, index: int, data: bytes) -> bytes:
    track = Track(kind="video", codec="none", time_base=(1, 1))
    packets = (Packet(0, index, index, 1, True, data),)
    return encode(Segment(stream=stream, index=index, start_ns=index, duration_ns=1, tracks=(track,), packets=packets))


@dataclass(frozen=True, slots=True)
class Taken:
    """What `num` items took, in seconds: until the first was through the last hop, and until all were."""

    num: int
    first_s: float
    all_s: float

    @property
    def rate(self) -> float:
        return self.num / self.all_s


async def seen(client: Any, subject: str, num: int) -> Callable[[float], Coroutine[Any, Any, Taken]]:
    """Counts distinct messages on a subject; what is returned waits for `num` of them."""
    names: set[str] = set()
    first_s: list[float] = []
    done = asyncio.Event()

    async def on_message(message: Any) -> None:
        if not first_s:
            first_s.append(time.perf_counter())
        names.add(message.subject)
        if len(names) >= num:
            done.set()

    subscription = await client.subscribe(subject, cb=on_message, pending_msgs_limit=-1, pending_bytes_limit=-1)
    await client.flush()

    async def wait(began_s: float) -> Taken:
        async with asyncio.timeout(300):
            await done.wait()
        taken = Taken(num, first_s[0] - began_s, time.perf_counter() - began_s)
        await subscription.unsubscribe()
        return taken

    return wait


def canceled(job: JobSpec) -> JobSpec:
    return msgspec.structs.replace(job, state="canceled")


async def ours(ledger: Ledger, run: str, data: bytes, num: int) -> Taken:
    """Items through three stages of Penstock, one worker in this process."""
    plan = chain()
    for start in range(0, num, BATCH):
        entries = [
            NewRecord(subjects.media(run, i), segment(run, i, data)) for i in range(start, min(num, start + BATCH))
        ]
        await ledger.put_many(entries)
    last = plan.stage(plan.answers[0])
    wait = await seen(ledger.link.client, subjects.results_of(last.id, run), num)
    registry = await open_registry(ledger.link)
    job = await submit_whole(registry, ledger, plan, StreamSpec(name=run))
    assignment = Assignment(url="", num_cores=1)
    async with anyio.create_task_group() as tasks:
        began_s = time.perf_counter()
        tasks.start_soon(Worker(ledger, assignment, CATALOGUE, Telemetry("bench")).run)
        taken = await wait(began_s)
        for stage in plan.stages:  # what core NATS shows is stored a moment later
            async with asyncio.timeout(10):
                while len(await ledger.subjects(subjects.results_of(stage.id, run))) < num:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        tasks.cancel_scope.cancel()
    await registry.change_job(job.id, canceled)
    for pattern in (subjects.media_of(run), subjects.results_of("*", run)):  # as the others' streams are deleted
        await ledger.purge(pattern)
    return taken


async def filled(url: str, run: str, data: bytes, num: int) -> tuple[Client, JetStreamContext]:
    """A connection, and a JetStream stream with the first hop's items in it."""
    client = await nats.connect(url)
    js = client.jetstream(publish_async_max_pending=4096)
    await js.add_stream(StreamConfig(name=run, subjects=[f"{run}.>"]))
    for start in range(0, num, BATCH):
        futures = [
            await js.publish_async(f"{run}.0.{i}", data, headers=ONCE) for i in range(start, min(num, start + BATCH))
        ]
        await asyncio.gather(*futures)
    return client, js


async def raw(url: str, run: str, data: bytes, num: int) -> Taken:
    """Items through three hops of plain nats-py: fetch, write-once publish, acknowledge."""
    client, js = await filled(url, run, data, num)

    async def hop(number: int) -> None:
        config = ConsumerConfig(max_ack_pending=65536)
        pull = await js.pull_subscribe(f"{run}.{number}.*", durable=f"hop{number}", stream=run, config=config)
        while True:
            try:
                messages = await pull.fetch(BATCH, timeout=5)
            except TimeoutError:
                continue
            futures = [
                await js.publish_async(f"{run}.{number + 1}.{m.subject.rsplit('.', 1)[1]}", m.data, headers=ONCE)
                for m in messages
            ]
            await asyncio.gather(*futures)
            for message in messages:
                await message.ack()

    wait = await seen(client, f"{run}.{HOPS}.*", num)
    began_s = time.perf_counter()
    hops = [asyncio.create_task(hop(number)) for number in range(HOPS)]
    taken = await wait(began_s)
    async with asyncio.timeout(10):
        while (await js.stream_info(run)).state.messages < num * (HOPS + 1):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    for task in hops:
        task.cancel()
    await asyncio.gather(*hops, return_exceptions=True)
    await js.delete_stream(run)
    await client.close()
    return taken


async def faststream(url: str, run: str, data: bytes, num: int) -> Taken:
    """Items through three FastStream subscribers on JetStream pull consumers."""
    client, js = await filled(url, run, data, num)
    broker = NatsBroker(url, logger=None)
    stream = JStream(run, subjects=[f"{run}.>"], declare=False)

    def hop(number: int) -> None:
        @broker.subscriber(
            f"{run}.{number}.*", stream=stream, durable=f"hop{number}", pull_sub=PullSub(batch_size=BATCH, timeout=5.0)
        )
        async def handle(body: bytes, message: NatsMessage) -> None:
            item = message.raw_message.subject.rsplit(".", 1)[1]
            await broker.publish(body, f"{run}.{number + 1}.{item}", stream=run, headers=ONCE)

    for number in range(HOPS):
        hop(number)
    wait = await seen(client, f"{run}.{HOPS}.*", num)
    began_s = time.perf_counter()
    await broker.start()
    taken = await wait(began_s)
    await broker.stop()
    await js.delete_stream(run)
    await client.close()
    return taken


async def latency(ledger: Ledger, run: str, data: bytes, num: int) -> list[float]:
    """Seconds a hop adds at low load: from stage a's record being seen to stage b's, and from b's to c's."""
    plan = chain()
    times: dict[str, dict[str, float]] = {stage.id: {} for stage in plan.stages}
    arrived = asyncio.Event()

    async def on_message(message: Any) -> None:
        _, _, stage, _, index = message.subject.split(".")
        times[stage][index] = time.perf_counter()
        if stage == plan.answers[0]:
            arrived.set()

    subscription = await ledger.link.client.subscribe(f"penstock.results.*.{run}.*", cb=on_message)
    registry = await open_registry(ledger.link)
    job = await submit_whole(registry, ledger, plan, StreamSpec(name=run))
    assignment = Assignment(url="", num_cores=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Worker(ledger, assignment, CATALOGUE, Telemetry("bench")).run)
        for index in range(num):
            arrived.clear()
            await ledger.put(subjects.media(run, index), segment(run, index, data))
            async with asyncio.timeout(30):
                await arrived.wait()
        tasks.cancel_scope.cancel()
    await subscription.unsubscribe()
    await registry.change_job(job.id, canceled)
    a, b, c = (times[stage.id] for stage in plan.stages)
    warm = [str(index) for index in range(num // 10, num)]
    return [b[i] - a[i] for i in warm] + [c[i] - b[i] for i in warm]


async def measured(num_items: int, num_rounds: int) -> dict[str, Any]:
    found: dict[str, Any] = {"rounds": num_rounds, "hops": HOPS}
    heap.settle()  # as a worker does when it has started; the three share one process and what this does
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        async with embedded(Path(folder)) as url, connect(url) as link:
            ledger = await open_ledger(link)
            for size in (300, 20_000):
                num = num_items
                runs: dict[str, list[Taken]] = {"penstock": [], "raw": [], "faststream": []}
                for number in range(num_rounds):
                    run = f"r{size}-{number}"
                    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
                    runs["penstock"].append(await ours(ledger, run, data, num))
                    runs["raw"].append(await raw(url, f"raw-{run}", data, num))
                    runs["faststream"].append(await faststream(url, f"fast-{run}", data, num))
                    print(
                        f"{size} B, round {number}: " + str({k: round(v[-1].rate) for k, v in runs.items()}),
                        file=sys.stderr,
                    )
                ratios = [p.rate / r.rate for p, r in zip(runs["penstock"], runs["raw"], strict=True)]
                peers = [p.rate / f.rate for p, f in zip(runs["penstock"], runs["faststream"], strict=True)]
                found[f"{size}_B"] = {
                    "items": num,
                    "items_per_s": {
                        name: round(statistics.median(t.rate for t in taken)) for name, taken in runs.items()
                    },
                    "first_item_s": {
                        name: round(statistics.median(t.first_s for t in taken), 3) for name, taken in runs.items()
                    },
                    "vs_raw": round(statistics.median(ratios), 3),
                    "vs_faststream": round(statistics.median(peers), 2),
                }
            added = sorted(await latency(ledger, "slow", bytes(300), 1000))
            found["hop_latency_ms"] = {
                "p50": round(1e3 * added[len(added) // 2], 3),
                "p99": round(1e3 * added[int(len(added) * 0.99)], 3),
            }
    found["targets"] = {"vs_raw": 0.95, "vs_faststream": 3}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--items", type=int, default=24_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    keep("hops", anyio.run(measured, options.items, options.rounds))


if __name__ == "__main__":
    main()
