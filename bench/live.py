"""What Penstock adds to a live answer, how many streams a machine holds, and what becomes of them in time and in need.

Four processes on an embedded nats-server: a node (duties and services) with its worker, a feeder that stores each
segment when it is due, and this one, which submits standing jobs and sees their answers as any subscriber does.

    added = answer seen - end of its segment (when it was due) - compute of that segment's stages

The compute is what the results say they took. Where the rest goes is told by the times at which the server stored
media, results and answer. A toy job is a model that keeps a core busy for a known time and the sum over the last five
segments, which changes with every one; `real` is detect_scenes on the demo's clip, played again and again.

The limit for the number of streams is plain nats-py: the same media, read and put write-once twice and answered, by one
process with one consumer for each hop, at the rate of the largest number held, on a server of its own.

    live.py                       latency at 1 and 8 streams, and streams held
    live.py --long-run MINUTES    8 streams with 10 standing jobs each: memory flat, lag bounded, ledger complete?
    live.py --overload [MINUTES]  live streams with twice the work the machine can do, and a durable one beside them
"""

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec
from live_parts import (
    SECOND_NS,
    FeedOrder,
    FeedReport,
    NodeReport,
    Put,
    RawOrder,
    RawReport,
    Rig,
    Used,
    cameras,
    part,
    rig,
    told,
    used,
    workflow,
)
from measure import at_most, keep, say

from engine.node.submission import JobRequest, Submitted
from engine.run.gaps import count_gaps
from engine.spec.workflow import Stage, Workflow
from streams import subjects
from streams.records import Gap, Result, decode_result
from streams.subjects import Key
from streams.wire import store as stores
from streams.wire.ledger import Noted, open_ledger
from streams.wire.link import connect
from streams.wire.retention import Retention
from streams.wire.server import embedded

WINDOW = 5  # segments that a toy answer is made from
MODEL_S = 0.02  # of a core, for each segment of a toy stream
NUM_LEFT_OUT = 2  # segments of each stream, at first: what is new is made ready
SETTLE_S = 10.0  # how long answers are waited for when nothing is fed any more
LATENCIES = {"1_stream": (1, 20), "8_streams": (8, 8), "real_1_stream": (1, 10), "real_8_streams": (8, 10)}  # , seconds
RAMP = (64, 128, 256, 384, 512)
STEP_S = 8
NUM_LONG, NUM_JOBS_EACH = 8, 10
NUM_OVERLOADED, MAX_LAG_S = 8, 3.0
DRAIN_S = 120.0

TOY = workflow("bench_look", cpu_s=MODEL_S)
REAL = Workflow(name="scenes", stages={"scenes": Stage(capability="detect_scenes", inputs={"media": "media"})})


# --- answers as they are seen ----------------------------------------------------------------------------------


class Said(msgspec.Struct):
    """What the benches read of an answer."""

    job: str
    last: int
    gaps: tuple[Any, ...]
    output: Any = None
    seen_ns: int = 0

    @property
    def value(self) -> int:
        return int(self.output["value"])


class Watch:
    """Every answer, by job and segment, with the moment it came."""

    def __init__(self) -> None:
        self.said: dict[tuple[str, int], Said] = {}
        self.num_twice = 0

    async def note(self, message: Any) -> None:
        now_ns = time.time_ns()
        said = msgspec.json.decode(message.data, type=Said)
        said.seen_ns = now_ns
        self.num_twice += (said.job, said.last) in self.said
        self.said.setdefault((said.job, said.last), said)

    async def settled(self, wanted: Iterable[tuple[str, int]]) -> None:
        """Returns when all these have come, or SETTLE_S have passed."""
        missing = set(wanted)
        with anyio.move_on_after(SETTLE_S):
            while missing := {key for key in missing if key not in self.said}:  # noqa: ASYNC110 - they just come
                await anyio.sleep(0.05)

    def delay_s(self, job: str, put: Put) -> float:
        """From the end of a segment to its answer; infinite where there is none."""
        said = self.said.get((job, put.index))
        return math.inf if said is None else (said.seen_ns - put.due_ns) / SECOND_NS

    def wrong(self, jobs: Mapping[str, str], puts: Iterable[Put]) -> list[str]:
        """Which of a toy's answers are not what they must be. `jobs` by stream."""
        return [
            f"{put.stream}/{put.index}: {said.output}, {len(said.gaps)} gaps"
            for put in puts
            if (said := self.said.get((jobs[put.stream], put.index))) is not None
            and (said.value != told(put.index, WINDOW) or said.gaps)
        ]


@asynccontextmanager
async def watch(rig: Rig) -> AsyncIterator[Watch]:
    watching = Watch()
    subscription = await rig.link.subscribe("penstock.answers.*.*", watching.note)
    yield watching
    await subscription.unsubscribe()


# --- latency ---------------------------------------------------------------------------------------------------


class Way(msgspec.Struct):
    """Where the time between the end of a segment and its answer went, s."""

    added: float  # all but the compute; the sum of what follows
    feeding: float  # until the segment was stored
    queue: float  # in the worker, waiting for its turn
    handing_on: float  # to the worker, from stage to stage, and storing
    answering: float  # from the last result to the answer being stored
    telling: float  # until a subscriber had it; below 0 where that came first
    compute: float


async def latency(
    rig: Rig, watch: Watch, name: str, num: int, num_seconds: int, is_real: bool
) -> tuple[list[Way], list[str]]:
    """The ways of the answers of standing jobs on some streams, one each; and what is wrong with them."""
    names = [f"{name}-{number}" for number in range(num)]
    jobs = await standing(rig, names, REAL if is_real else TOY)
    await rig.ready()
    streams = {"looped": tuple(names)} if is_real else {"paced": cameras(names)}
    async with rig.feed(num_segments=num_seconds, **streams) as feeder:
        fed = await feeder.report(FeedReport)
    ids = {name: jobs[name].job for name in names}
    await watch.settled((ids[put.stream], put.index) for put in fed.puts)
    wrong = [f"{p.stream}/{p.index}: none" for p in fed.puts if (ids[p.stream], p.index) not in watch.said]
    wrong += [] if is_real else watch.wrong(ids, fed.puts)
    ways = []
    for stream, job in ids.items():
        puts = [put for put in fed.puts if put.stream == stream][NUM_LEFT_OUT:]
        ways += await ways_of(rig, watch, job, puts)
    await rig.cancel(jobs.values())
    return ways, wrong


async def standing(rig: Rig, names: Iterable[str], asked: Workflow, **spec: Any) -> dict[str, Submitted]:
    """A standing job on each of these streams, by stream."""
    jobs = {}
    for name in names:
        await rig.declare(name, **spec)
        request = JobRequest(stream=name, workflow=asked, standing=True, window_s=float(WINDOW))
        jobs[name] = await rig.submit(request)
    return jobs


async def ways_of(rig: Rig, watch: Watch, job: str, puts: Sequence[Put]) -> list[Way]:
    """The ways of a job whose stages stand in a row."""
    spec = await rig.registry.job(job)
    answered_ns = {}
    seq = 0
    while (noted := await rig.ledger.next(subjects.answers(job, spec.stream), seq + 1)) is not None:
        seq = noted.record.seq
        answered_ns[msgspec.json.decode(noted.record.data, type=Said).last] = noted.stored_ns
    ways = []
    for put in puts:
        media = await rig.ledger.look(subjects.media(spec.stream, put.index))
        found = [await result_of(rig, stage.id, spec.stream, put.index) for stage in spec.plan.stages]
        said = watch.said.get((job, put.index))
        if media is None or said is None or any(result is None for _, result in found):
            continue
        measured = [result.measured for _, result in found if result is not None and result.measured is not None]
        compute_s = sum(each.compute_s for each in measured)
        queue_s = sum(each.wait_s for each in measured)
        last_ns = max(stored_ns for stored_ns, _ in found)
        ways.append(
            Way(
                added=(said.seen_ns - put.due_ns) / SECOND_NS - compute_s,
                feeding=(media.stored_ns - put.due_ns) / SECOND_NS,
                queue=queue_s,
                handing_on=(last_ns - media.stored_ns) / SECOND_NS - compute_s - queue_s,
                answering=(answered_ns[put.index] - last_ns) / SECOND_NS,
                telling=(said.seen_ns - answered_ns[put.index]) / SECOND_NS,
                compute=compute_s,
            )
        )
    return ways


async def result_of(rig: Rig, stage: str, stream: str, index: int) -> tuple[int, Result | None]:
    """When a record was stored, and the record where it is a result."""
    noted: Noted | None = await rig.ledger.look(subjects.result(stage, stream, Key.of(index)))
    record = None if noted is None else decode_result(noted.record.data)
    return 0 if noted is None else noted.stored_ns, record if isinstance(record, Result) else None


def percentiles(values_s: Iterable[float]) -> dict[str, float]:
    """In ms, by nearest rank: of fewer than 100 values, p99 is the largest."""
    ordered = sorted(values_s) or [math.inf]

    def at(share: float) -> float:
        return round(1000 * ordered[math.ceil(share * len(ordered)) - 1], 2)

    return {"p50": at(0.5), "p95": at(0.95), "p99": at(0.99), "max": at(1.0)}


# --- how many streams ------------------------------------------------------------------------------------------


class Step(msgspec.Struct):
    """So many streams for STEP_S."""

    num_streams: int
    is_held: bool
    num_missing: int  # answers that had not come SETTLE_S after the last segment
    is_growing: bool
    delay_ms: dict[str, float]  # from the end of a segment to its answer
    feeder_late_ms: dict[str, float]  # from the end of a segment to when the feeder came to store it
    submit_ms: float  # one more job, as its client waits
    cpu_s_per_stream_s: dict[str, float]
    own_bytes: dict[str, int]
    wrong: list[str] = []
    num_twice: int = 0  # so far. Beyond what is held, requests time out and are sent again: a listener hears both


async def holding(rig: Rig, watch: Watch) -> list[Step]:
    """More and more streams with a standing job each, until answers do not keep up."""
    steps: list[Step] = []
    jobs: dict[str, Submitted] = {}
    firsts: dict[str, int] = {}
    for num in RAMP:
        began_s = time.perf_counter()
        new = [f"held-{number}" for number in range(len(jobs), num)]
        jobs |= await standing(rig, new, workflow("bench_pass"))
        submit_ms = 1000 * (time.perf_counter() - began_s) / len(new)
        await rig.ready()
        firsts |= dict.fromkeys(new, 0)
        step = await hold(rig, watch, {name: job.job for name, job in jobs.items()}, firsts)
        firsts = {name: first + STEP_S for name, first in firsts.items()}
        step.submit_ms = round(submit_ms, 1)
        steps.append(step)
        say(f"  {num} streams: answers after {step.delay_ms} ms, CPU a stream {step.cpu_s_per_stream_s}")
        if not step.is_held:
            break
    return steps


async def hold(rig: Rig, watch: Watch, jobs: Mapping[str, str], firsts: Mapping[str, int]) -> Step:
    async with rig.feed(num_segments=STEP_S, paced=cameras(firsts)) as feeder:
        began_s, before, own_s = time.perf_counter(), rig.used(), time.process_time()
        fed = await feeder.report(FeedReport)
        lasted_s, after, own_s = time.perf_counter() - began_s, rig.used(), time.process_time() - own_s
    await watch.settled((jobs[put.stream], put.index) for put in fed.puts)
    puts = [put for put in fed.puts if put.index >= firsts[put.stream] + NUM_LEFT_OUT]
    puts.sort(key=lambda put: put.due_ns)
    delays_s = [watch.delay_s(jobs[put.stream], put) for put in puts]
    third = len(delays_s) // 3
    early_s, late_s = statistics.median(delays_s[:third]), statistics.median(delays_s[-third:])
    is_growing = late_s > 2 * early_s + 0.1
    delay_ms = percentiles(delays_s)
    stream_s = len(jobs) * lasted_s
    cpu_s = {name: after[name].cpu_s - before[name].cpu_s for name in after} | {"feeder": fed.cpu_s, "watcher": own_s}
    return Step(
        num_streams=len(jobs),
        is_held=delay_ms["p95"] <= 1000 and not is_growing,
        num_missing=sum(math.isinf(delay_s) for delay_s in delays_s),
        is_growing=is_growing,
        delay_ms=delay_ms,
        feeder_late_ms=percentiles((put.begun_ns - put.due_ns) / SECOND_NS for put in puts),
        submit_ms=0.0,
        cpu_s_per_stream_s={name: round(seconds / stream_s, 5) for name, seconds in cpu_s.items()},
        own_bytes={name: each.own_bytes for name, each in after.items()},
        wrong=watch.wrong(jobs, fed.puts),
        num_twice=watch.num_twice,
    )


async def plain(num: int, folder: Path) -> dict[str, Any]:
    """CPU seconds for each second of a stream where nats-py alone does what it must."""
    async with embedded(folder) as url, connect(url) as link:
        await open_ledger(link)
        server = stores.status(folder)["pid"]
        paced = cameras(f"raw-{number}" for number in range(num))
        async with part("raw", RawOrder(url, str(folder))) as raw:
            order = FeedOrder(url=url, store=str(folder), num_segments=STEP_S, paced=paced)
            async with part("feed", order) as feeder:
                began_s, before = time.perf_counter(), {"client": used([raw.pid]), "server": used([server])}
                fed = await feeder.report(FeedReport)
                lasted_s, after = time.perf_counter() - began_s, {"client": used([raw.pid]), "server": used([server])}
            await anyio.sleep(1)
            await raw.end()
            report = await raw.report(RawReport)
    stream_s = num * lasted_s
    return {
        "num_streams": num,
        "num_answers": report.num_answers,
        "num_segments": len(fed.puts),
        "cpu_s_per_stream_s": {name: round((after[name].cpu_s - before[name].cpu_s) / stream_s, 5) for name in after},
    }


async def usual(num_rounds: int) -> dict[str, Any]:
    ways: dict[str, list[list[Way]]] = {name: [] for name in LATENCIES}
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="penstock-bench-", ignore_cleanup_errors=True) as folder:
        async with rig(Path(folder, "live")) as live, watch(live) as watching:
            for number in range(num_rounds):
                for name, (num, num_seconds) in LATENCIES.items():
                    is_real = name.startswith("real")
                    found, bad = await latency(live, watching, f"{name}-{number}", num, num_seconds, is_real)
                    ways[name].append(found)
                    wrong += bad
                    say(f"  {name}, round {number + 1}: added {percentiles(way.added for way in found)} ms")
            steps = await holding(live, watching)
        held = [step for step in steps if step.is_held]
        num_twice = held[-1].num_twice if held else watching.num_twice
        limit = await plain(held[-1].num_streams if held else RAMP[0], Path(folder, "plain"))
    wrong += [each for step in steps for each in step.wrong]
    figures: dict[str, Any] = {"correct": not wrong and not num_twice, "wrong": wrong[:20], "num_twice": num_twice}
    added = {name: percentiles(way.added for round in rounds for way in round) for name, rounds in ways.items()}
    figures["targets"] = {
        f"{name}_added_{which}_ms": at_most(added[name][which], bound)
        for name in ("1_stream", "8_streams")
        for which, bound in (("p50", 10), ("p99", 30))
    }
    figures["latency_ms"] = {name: in_parts(rounds) for name, rounds in ways.items()}
    figures["largest_held"] = held[-1].num_streams if held else 0
    figures["is_largest_tried"] = steps[-1].is_held
    figures["limit"] = limit
    if held:
        figures["over_limit"] = over_limit(held[-1], limit)
        figures["own_bytes_per_stream"] = growth(steps[0], held[-1])
    figures["steps"] = steps
    return figures


def in_parts(rounds: Sequence[Sequence[Way]]) -> dict[str, Any]:
    every = [way for round in rounds for way in round]
    return {
        "num_answers": len(every),
        "added_p50_by_round": [percentiles(way.added for way in round)["p50"] for round in rounds],
        **{part: percentiles(getattr(way, part) for way in every) for part in Way.__struct_fields__},
    }


def over_limit(step: Step, limit: Mapping[str, Any]) -> dict[str, float]:
    """How many times the CPU of plain nats-py it takes."""
    ours, theirs = step.cpu_s_per_stream_s, limit["cpu_s_per_stream_s"]
    return {
        "worker_and_node_over_client": round((ours["worker"] + ours["node"]) / theirs["client"], 2),
        "server_over_server": round(ours["server"] / theirs["server"], 2),
    }


def growth(few: Step, many: Step) -> dict[str, int]:
    """Memory that one more stream takes; the server's holds what the stream's records take in its index, too."""
    more = max(1, many.num_streams - few.num_streams)
    return {name: (many.own_bytes[name] - few.own_bytes[name]) // more for name in few.own_bytes}


# --- the long run ----------------------------------------------------------------------------------------------


async def long_run(minutes: float) -> dict[str, Any]:
    """What the ledger holds grows until retention begins, so retention is a sixth of the run. What comes before it has
    begun is warm-up, and so are the three minutes in which the server's heap grows into what it needs, where the run is
    long enough. What falls out of retention was counted before."""
    age_s = max(20.0, 10 * minutes)
    warm_s = max(age_s + 10, min(200.0, 30 * minutes))
    names = [f"long-{number}" for number in range(NUM_LONG)]
    asked = [workflow("bench_look", question=f"question {number}", cpu_s=MODEL_S) for number in range(NUM_JOBS_EACH)]
    samples: list[tuple[float, dict[str, Used]]] = []
    counted: dict[tuple[str, str], set[int]] = {}
    with tempfile.TemporaryDirectory(prefix="penstock-bench-", ignore_cleanup_errors=True) as folder:
        async with rig(Path(folder), Retention(max_age_s=age_s)) as live, watch(live) as watching:
            jobs: list[dict[str, Submitted]] = [await standing(live, names, each) for each in asked]
            specs = [await live.registry.job(job.job) for each in jobs for job in each.values()]
            counted = {(stage.id, spec.stream): set() for spec in specs for stage in spec.plan.stages}
            await live.ready()
            began_s = time.perf_counter()
            order = {"num_segments": round(60 * minutes), "paced": cameras(names)}
            async with live.feed(**order) as feeder, anyio.create_task_group() as tasks:
                tasks.start_soon(sample, live, samples, began_s, max(1.0, minutes / 10))
                tasks.start_soon(count, live, names, counted, age_s / 4)
                fed = await feeder.report(FeedReport)
                tasks.cancel_scope.cancel()
            await watching.settled((job.job, put.index) for put in fed.puts for job in [jobs[-1][put.stream]])
            await count_once(live, names, counted)
            gaps = {name: await count_gaps(live.ledger, name) for name in names}
            await live.node.end()
            num_restarts = (await live.node.report(NodeReport)).num_restarts
    indices = {name: {put.index for put in fed.puts if put.stream == name} for name in names}
    missing = {f"{stage}/{name}": len(indices[name] - found) for (stage, name), found in counted.items()}
    warm_ns = fed.started_ns + round(warm_s * SECOND_NS)
    delays = [
        (put.due_ns, watching.delay_s(each[put.stream].job, put))
        for put in sorted(fed.puts, key=lambda put: put.due_ns)
        for each in jobs
        if put.due_ns > warm_ns
    ]
    first, last = thirds(delays)
    warm = [(at_s, each) for at_s, each in samples if at_s > warm_s]
    wrong = [text for each in jobs for text in watching.wrong({n: j.job for n, j in each.items()}, fed.puts)]
    complete = not any(missing.values()) and not any(gaps.values())
    correct = complete and not wrong and not watching.num_twice and not num_restarts
    late = percentiles(delay_s for _, delay_s in last)
    return {
        "correct": correct,
        "minutes": minutes,
        "retention_s": age_s,
        "warm_up_s": warm_s,
        "num_streams": NUM_LONG,
        "num_jobs": NUM_LONG * NUM_JOBS_EACH,
        "num_segments": len(fed.puts),
        "num_answers": len(watching.said),
        "wrong": wrong[:20],
        "num_twice": watching.num_twice,
        "num_records_missing": sum(missing.values()),
        "num_restarts": num_restarts,
        "gaps": gaps,
        "targets": flatness(warm) | {"last_third_delay_p95_ms": at_most(late["p95"], 1000)},
        "delay_ms": {"first_third": percentiles(delay_s for _, delay_s in first), "last_third": late},
        "own_bytes_over_time": over_time(samples),
        "used": {"first_third": medians(thirds(warm)[0]), "last_third": medians(thirds(warm)[1])},
        "cpu_s_per_stream_s": cpu_between(warm, NUM_LONG),
    }


async def sample(rig: Rig, samples: list[tuple[float, dict[str, Used]]], began_s: float, every_s: float) -> None:
    while True:
        samples.append((time.perf_counter() - began_s, rig.used()))
        await anyio.sleep(every_s)


async def count(rig: Rig, names: Sequence[str], counted: dict[tuple[str, str], set[int]], every_s: float) -> None:
    """Which records there are, before they fall out of retention."""
    while True:
        await anyio.sleep(every_s)
        await count_once(rig, names, counted)


async def count_once(rig: Rig, names: Sequence[str], counted: dict[tuple[str, str], set[int]]) -> None:
    for name in names:
        for subject in await rig.ledger.subjects(subjects.results_of("*", name)):
            _, _, stage, stream, key = subject.split(".")
            counted[stage, stream].add(int(key))


def thirds(values: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    third = max(1, len(values) // 3)
    return values[:third], values[-third:]


def medians(samples: Sequence[tuple[float, dict[str, Used]]]) -> dict[str, dict[str, float]]:
    def median(process: str, field: str) -> float:
        return float(round(statistics.median(getattr(each[process], field) for _, each in samples)))

    fields = ("own_bytes", "rss_bytes", "num_fds", "num_threads")
    return {process: {field: median(process, field) for field in fields} for process in samples[0][1]}


def over_time(samples: Sequence[tuple[float, dict[str, Used]]]) -> dict[str, list[float]]:
    """Memory of each process in each twelfth of the run, warm-up included."""
    size = max(1, len(samples) // 12)
    parts = [medians(samples[start : start + size]) for start in range(0, len(samples), size)]
    return {process: [part[process]["own_bytes"] for part in parts] for process in parts[0]}


def flatness(samples: Sequence[tuple[float, dict[str, Used]]]) -> dict[str, Any]:
    """Of each process, from the first third to the last: memory, and what may leak. The server's Go runtime starts
    threads as it likes."""
    before, after = (medians(third) for third in thirds(samples))
    targets: dict[str, Any] = {}
    for process in before:
        targets[f"{process}_memory"] = at_most(after[process]["own_bytes"] / before[process]["own_bytes"], 1.05)
        for field in ("num_fds",) if process == "server" else ("num_fds", "num_threads"):
            targets[f"{process}_more_{field}"] = at_most(after[process][field] - before[process][field], 0)
    return targets


def cpu_between(samples: Sequence[tuple[float, dict[str, Used]]], num_streams: int) -> dict[str, float]:
    (began_s, before), (ended_s, after) = samples[0], samples[-1]
    stream_s = num_streams * (ended_s - began_s)
    return {name: round((after[name].cpu_s - before[name].cpu_s) / stream_s, 5) for name in before}


# --- overload --------------------------------------------------------------------------------------------------


class Outcome(msgspec.Struct):
    """What the stages of a stream stored."""

    num_records: int = 0
    num_gaps: int = 0
    lags_s: list[float] = []  # from a segment being stored to its last record being stored

    @property
    def num_results(self) -> int:
        return self.num_records - self.num_gaps


async def overload(minutes: float) -> dict[str, Any]:
    """First what the machine can do, then live streams that ask for twice that, and a durable one beside them."""
    names = [f"over-{number}" for number in range(NUM_OVERLOADED)]
    with tempfile.TemporaryDirectory(prefix="penstock-bench-", ignore_cleanup_errors=True) as folder:
        async with rig(Path(folder)) as live, watch(live) as watching:
            capacity = await capacity_of(live, watching)
            cpu_s = 2 * capacity / NUM_OVERLOADED
            say(f"  the machine does {capacity:.2f} s of work a second: {cpu_s:.3f} s for each segment")
            asked = workflow("bench_look", cpu_s=cpu_s)
            jobs = await standing(live, names, asked, max_lag_s=MAX_LAG_S)
            jobs |= await standing(live, ["kept"], asked, policy="durable")
            await live.ready()
            pids = live.worker_pids()
            paced = {"paced": cameras(names), "max_lag_s": MAX_LAG_S}
            order = {"num_segments": round(60 * minutes), **paced, "ends": True}
            async with live.feed(**order, held_back=("kept",)) as feeder:
                fed = await feeder.report(FeedReport)
            ended_s = time.perf_counter()
            unfinished = await live.drained(jobs.values(), DRAIN_S)
            drain_s = time.perf_counter() - ended_s
            outcomes = {name: await outcome(live, job) for name, job in jobs.items()}
            noted = {name: await count_gaps(live.ledger, name) for name in jobs}
            is_same_worker = set(pids) <= set(live.worker_pids())
            await live.node.end()
            num_restarts = (await live.node.report(NodeReport)).num_restarts
        crashes = {"num_restarts": num_restarts, "num_log_errors": num_errors(Path(folder))}
    num_fed = {name: sum(put.stream == name for put in fed.puts) for name in names} | {"kept": fed.num_held_back}
    kept = outcomes.pop("kept")
    is_complete = all(each.num_records == 2 * num_fed[name] for name, each in outcomes.items())
    are_visible = all(sum(noted[name].values()) == each.num_gaps for name, each in outcomes.items())
    num_lost = 2 * num_fed["kept"] - kept.num_results
    nothing_crashed = is_same_worker and not any(crashes.values()) and not unfinished
    lags = percentiles(lag_s for each in outcomes.values() for lag_s in each.lags_s)
    return {
        "correct": is_complete and are_visible and not num_lost and nothing_crashed,
        "minutes": minutes,
        "work_s_per_s": round(capacity, 3),
        "work_s_per_segment": round(cpu_s, 3),
        "max_lag_s": MAX_LAG_S,
        "targets": {
            # What was begun in time may take its own time, beside another, and then there is the second stage.
            "live_lag_p99_s": at_most(lags["p99"] / 1000, MAX_LAG_S + 2 * cpu_s + 1),
            "durable_results_lost": at_most(num_lost, 0),
        },
        "live": {
            "num_streams": NUM_OVERLOADED,
            "num_segments": sum(num_fed[name] for name in names),
            "num_computed": [each.num_results // 2 for each in outcomes.values()],
            "num_gaps": [each.num_gaps for each in outcomes.values()],
            "gaps_noted": [noted[name] for name in names],
            "is_complete": is_complete,
            "are_gaps_visible": are_visible,
            "lag_ms": lags,
        },
        "durable": {
            "num_segments": num_fed["kept"],
            "num_gaps": kept.num_gaps,
            "longest_hold_s": round(fed.longest_hold_s, 2),
            "lag_ms": percentiles(kept.lags_s),
        },
        "drain_s": round(drain_s, 2),
        "unfinished_jobs": unfinished,
        "is_same_worker": is_same_worker,
        **crashes,
    }


async def capacity_of(rig: Rig, watch: Watch) -> float:
    """Seconds of a toy's work the machine does in a second, by durable streams as fast as it goes."""
    cpu_s, num_left_out = 0.05, 10
    names = tuple(f"capacity-{number}" for number in range(4))
    jobs = await standing(rig, names, workflow("bench_look", cpu_s=cpu_s), policy="durable")
    await rig.ready()
    async with rig.feed(num_segments=4, held_back=names) as feeder:
        await feeder.report(FeedReport)
    await rig.drained(jobs.values(), DRAIN_S)
    ids = {job.job for job in jobs.values()}
    seen_ns = sorted(said.seen_ns for said in watch.said.values() if said.job in ids)[num_left_out:]
    return cpu_s * (len(seen_ns) - 1) * SECOND_NS / (seen_ns[-1] - seen_ns[0])


async def outcome(rig: Rig, job: Submitted) -> Outcome:
    """What a stream's job came to, by what is stored."""
    spec = await rig.registry.job(job.job)
    fed_ns = {key: noted.stored_ns async for key, noted in stored(rig, subjects.media_of(spec.stream))}
    came_to = Outcome()
    for stage in spec.plan.stages:
        async for key, noted in stored(rig, subjects.results_of(stage.id, spec.stream)):
            came_to.num_records += 1
            came_to.num_gaps += isinstance(decode_result(noted.record.data), Gap)
            if stage.id in spec.plan.answers:
                came_to.lags_s.append((noted.stored_ns - fed_ns[key]) / SECOND_NS)
    return came_to


async def stored(rig: Rig, filter_subject: str) -> AsyncIterator[tuple[str, Noted]]:
    """Every record that matches, but for a stream's end, by segment."""
    seq = 0
    while (noted := await rig.ledger.next(filter_subject, seq + 1)) is not None:
        seq = noted.record.seq
        if (key := noted.record.subject.rpartition(".")[2]) != subjects.END:
            yield key, noted


def num_errors(store: Path) -> int:
    """Lines of the parts' and the workers' logs that report an error."""
    lines = [line for log in store.glob("*.log") for line in log.read_text(errors="replace").splitlines()]
    return sum('"level": "error"' in line or line.startswith("Traceback") for line in lines)


# --- the command -----------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="of the latencies")
    parser.add_argument("--long-run", type=float, metavar="MINUTES", help="instead: the long run")
    parser.add_argument("--overload", type=float, nargs="?", const=1.0, metavar="MINUTES", help="instead: overload")
    options = parser.parse_args()
    runs = {
        "live_long_run": partial(long_run, options.long_run) if options.long_run else None,
        "live_overload": partial(overload, options.overload) if options.overload else None,
    }
    if not any(runs.values()):
        runs = {"live": partial(usual, options.rounds)}
    correct = True
    for name, run in runs.items():
        if run is not None:
            say(name)
            figures = anyio.run(run)
            keep(name, figures)
            correct &= figures["correct"]
    return 0 if correct else 1


if __name__ == "__main__":
    sys.exit(main())
