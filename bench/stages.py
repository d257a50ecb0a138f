"""What stages cost each other: an answer beside a slow sibling, batches across streams, two workers against one.

- *sibling*: a stage that is done at once, fused with one that takes 2 s for each segment. From its being computed to
  its result being stored and heard, in milliseconds.
- *fill*: the mean size of batches at one total rate, brought by one stream and by 32. Their ratio should be 1.
- *workers*: items a second of a stage that holds one core, by one worker and by two. The limit is what two plain
  processes that run the same loop gain over one, in the same round.

    python bench/stages.py [--rounds 3]
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import stage_operators
from measure import Target, at_least, at_most, keep, say

from engine.node.submission import submit_whole
from engine.node.worker_processes import node
from engine.run.assignment import Assignment
from engine.run.registry import open_registry
from engine.run.telemetry import Telemetry
from engine.run.worker import Worker
from engine.spec.catalogue import Catalogue
from engine.spec.operator import Machine
from engine.spec.plan import Plan, make_plan
from engine.spec.stream import StreamSpec
from engine.spec.workflow import Stage, Workflow
from streams import subjects
from streams.records import Packet, Result, Segment, Track, decode_result, encode
from streams.wire.ledger import Ledger, NewRecord, open_ledger
from streams.wire.link import connect
from streams.wire.server import embedded

HERE = str(Path(__file__).resolve().parent)
CATALOGUE = Catalogue(stage_operators.ALL)
RATE, FILL_S = 400, 6.0  # items a second in all, and for how long
NUM_BURNS = 800  # some seconds of work for two: how soon the second one joins is no part of it


def plan_of(*capabilities: str) -> Plan:
    stages = {name: Stage(capability=name, inputs={"media": "media"}) for name in capabilities}
    return make_plan(Workflow(name="w", stages=stages), CATALOGUE, Machine(num_cores=2))


def segment(stream: str, index: int) -> bytes:
    track = Track(kind="video", codec="none", time_base=(1, 1))
    packets = (Packet(0, index, index, 1, True, b"x"),)
    return encode(Segment(stream=stream, index=index, start_ns=index, duration_ns=1, tracks=(track,), packets=packets))


@asynccontextmanager
async def a_worker(ledger: Ledger, plan: Plan, streams: list[str]) -> AsyncIterator[None]:
    """One worker in this process, with a job on each stream."""
    registry = await open_registry(ledger.link)
    jobs = [await submit_whole(registry, ledger, plan, StreamSpec(name=name)) for name in streams]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Worker(ledger, Assignment(url="", num_cores=2), CATALOGUE, Telemetry("bench")).run)
        await anyio.sleep(1.0)  # its consumers are made
        yield
        tasks.cancel_scope.cancel()
    for job in jobs:
        await registry.change_job(job.id, lambda spec: msgspec.structs.replace(spec, state="canceled"))


async def results(ledger: Ledger, stage: str, streams: list[str], num: int) -> list[Result]:
    """The results of a stage, once there are so many."""
    with anyio.fail_after(120):
        while True:
            names = [n for stream in streams for n in await ledger.subjects(subjects.results_of(stage, stream))]
            if len(names) >= num:
                break
            await anyio.sleep(0.1)
    found = [decode_result(stored.data) for stored in (await ledger.get_many(names)).values()]
    return [record for record in found if isinstance(record, Result)]


async def sibling(ledger: Ledger, run: str, num: int = 12) -> list[float]:
    """Milliseconds from computed to stored and heard, beside a stage that takes 2 s."""
    plan = plan_of("quick", "sleeper")
    assert len(plan.groups) == 1, "they are to be fused"
    quick = next(stage.id for stage in plan.stages if stage.name == "quick")
    heard: dict[str, int] = {}

    async def on_message(message: Any) -> None:
        heard[message.subject] = time.time_ns()

    watch = await ledger.link.subscribe(subjects.results_of(quick, run), on_message)
    async with a_worker(ledger, plan, [run]):
        for index in range(num):
            await ledger.put(subjects.media(run, index), segment(run, index))
            await anyio.sleep(0.3)
        found = await results(ledger, quick, [run], num)
    await ledger.link.unsubscribe(watch)
    computed = {r.first: msgspec.msgpack.decode(r.output, type=stage_operators.Mark).at_ns for r in found}
    return [
        (heard[subjects.result(quick, run, subjects.Key.of(index))] - at_ns) / 1e6 for index, at_ns in computed.items()
    ]


async def fill(ledger: Ledger, run: str, num_streams: int) -> float:
    """The mean size of batches, of items that come at RATE over so many streams."""
    plan = plan_of("batched")
    (stage,) = plan.stages
    streams = [f"{run}-{number}" for number in range(num_streams)]
    num = int(RATE * FILL_S)
    async with a_worker(ledger, plan, streams):
        began_s = time.perf_counter()
        sent = 0
        while sent < num:
            due = min(num, int((time.perf_counter() - began_s) * RATE) + 1)
            some = [(streams[n % num_streams], n // num_streams) for n in range(sent, due)]
            await ledger.put_many([NewRecord(subjects.media(s, index), segment(s, index)) for s, index in some])
            sent = due
            await anyio.sleep(0.005)
        found = await results(ledger, stage.id, streams, num)
    measured = [record.measured for record in found if record.measured is not None]
    return len(measured) / len({(each.worker, each.batch) for each in measured})


async def burned(url: str, ledger: Ledger, run: str, num_workers: int, folder: Path) -> float:
    """Items a second of a stage that holds a core, by worker processes with one core each."""
    plan = plan_of("burn")
    (stage,) = plan.stages
    await ledger.put_many([NewRecord(subjects.media(run, i), segment(run, i)) for i in range(NUM_BURNS)])
    registry = await open_registry(ledger.link)
    async with node(num_workers, folder / "workers.log") as workers:
        workers.assign(Assignment(url=url, name=run, num_cores=1))
        await anyio.sleep(4.0)  # they are up
        job = await submit_whole(registry, ledger, plan, StreamSpec(name=run))
        found = await results(ledger, stage.id, [run], NUM_BURNS)
        workers.stop()
    await registry.change_job(job.id, lambda spec: msgspec.structs.replace(spec, state="canceled"))
    measured = [record.measured for record in found if record.measured is not None]
    began_ns = min(each.started_ns for each in measured)
    ended_ns = max(each.started_ns + int(each.compute_s * 1e9) for each in measured)
    return NUM_BURNS / ((ended_ns - began_ns) / 1e9)


def plain(num_processes: int) -> float:
    """Items a second of the same loop in plain processes."""
    with multiprocessing.get_context("spawn").Pool(num_processes) as pool:
        pool.map(_burn, range(num_processes))
        began_s = time.perf_counter()
        pool.map(_burn, range(NUM_BURNS), chunksize=1)
        return NUM_BURNS / (time.perf_counter() - began_s)


def _burn(_: int) -> None:
    stage_operators.burn()


async def measured(num_rounds: int) -> dict[str, Any]:
    beside: list[float] = []
    fills: dict[int, list[float]] = {1: [], 32: []}
    rates: dict[str, list[float]] = {"one_worker": [], "two_workers": [], "one_process": [], "two_processes": []}
    os.environ["PENSTOCK_OPERATORS"] = ", ".join(f"stage_operators:{each.__name__}" for each in stage_operators.ALL)
    os.environ["PYTHONPATH"] = os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        async with embedded(Path(folder)) as url, connect(url) as link:
            ledger = await open_ledger(link)
            for number in range(num_rounds):
                beside += await sibling(ledger, f"s{number}")
                for num_streams, found in fills.items():
                    found.append(await fill(ledger, f"f{number}-{num_streams}", num_streams))
                rates["one_process"].append(plain(1))
                rates["one_worker"].append(await burned(url, ledger, f"w{number}-1", 1, Path(folder)))
                rates["two_processes"].append(plain(2))
                rates["two_workers"].append(await burned(url, ledger, f"w{number}-2", 2, Path(folder)))
                say(
                    f"round {number}: beside a sibling {statistics.median(beside):.1f} ms; batches of "
                    f"{fills[1][-1]:.1f} and {fills[32][-1]:.1f}; "
                    + ", ".join(f"{name} {values[-1]:.1f}/s" for name, values in rates.items())
                )
    gain = statistics.median(t / o for t, o in zip(rates["two_workers"], rates["one_worker"], strict=True))
    limit = statistics.median(t / o for t, o in zip(rates["two_processes"], rates["one_process"], strict=True))
    ratio = statistics.median(m / o for m, o in zip(fills[32], fills[1], strict=True))
    targets: dict[str, Target] = {
        "sibling_p50_ms": at_most(statistics.median(beside), 20.0),
        "two_workers_over_one": at_least(gain, 1.8),
        "fill_32_streams_over_1": at_most(abs(1 - ratio), 0.1),
    }
    return {
        "rounds": num_rounds,
        "sibling_ms": {"p50": round(statistics.median(beside), 2), "max": round(max(beside), 2), "num": len(beside)},
        "batch_size": {str(n): [round(each, 2) for each in found] for n, found in fills.items()},
        "batch_size_ratio": round(ratio, 3),
        "items_per_s": {name: [round(each, 1) for each in values] for name, values in rates.items()},
        "two_processes_over_one": round(limit, 3),
        "targets": targets,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    keep("stages", anyio.run(measured, options.rounds))


if __name__ == "__main__":
    main()
