"""Profiling: how long a rung takes on this machine, by batch size, alone and with every core busy.

A rung is called as its pool would call it (`engine.run.instances`): as many loops side by side as batches would run,
each going through what there is to compute over and over, for a while, as if each item of a batch were of a stream of
its own and each time of another: an operator that keeps what it did lately is told to forget it. The first batch of
each instance warms it up and counts for nothing.

Of an operator whose items share pieces of work (`Operator.shared_work`) what an item takes of which nothing is done yet
is measured, one at a time; `fresh` is for what share of a stream's items that is so.

What is measured is what holds while the machine is loaded: batches side by side share caches, memory and power, and
take longer than one alone.
"""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import anyio
import anyio.lowlevel
import anyio.to_thread
import msgspec
import structlog

from engine.run.instances import Instances, load
from engine.run.spawn import python_on
from engine.spec.catalogue import installed
from engine.spec.operator import Demand, Device, Inputs, Operator, by_kind, shares_work
from engine.spec.plan import settings_of
from engine.spec.profile import W_PER_CORE, BatchTimes, EnergyBy
from streams.decoding import from_json
from streams.errors import Malformed
from streams.records import Segment

log = structlog.get_logger(__name__)

MIN_BATCHES = 3  # of each size, however long they take
MAX_S = 60.0  # of each size
APART = 1_000_000  # numbers of calls of two loops
RAPL = Path("/sys/class/powercap")


class Effort(NamedTuple):
    """For how long each batch size is measured, and which there are."""

    each_s: float = 2.0
    sizes: tuple[int, ...] = ()  # empty: 1, 2, 4, and so on up to what the operator takes

    def sizes_of(self, most: int) -> tuple[int, ...]:
        every = self.sizes or tuple(2**power for power in range(most.bit_length()))
        return tuple(dict.fromkeys([*(size for size in every if size < most), most]))


QUICK = Effort(0.5)


class Took(NamedTuple):
    """What was measured of one rung. Of an item in a full batch: processor time of all threads, and energy."""

    times: tuple[BatchTimes, ...]
    cpu_s: float
    energy_j: float
    energy_by: EnergyBy
    fresh: float = 1.0


async def measured(
    operator: type[Operator], knobs: Any, device: Device, inputs: Sequence[Inputs], num_cores: int, effort: Effort
) -> Took:
    """Raises what the operator raises. There is one of `inputs` at least."""
    instances = Instances(operator, knobs, device)
    if operator.runs_in == "async":
        most = max(1, min(operator.in_flight(knobs), operator.max_in_flight))
        if shares_work(operator):  # of what several ask for at once, one is computed
            most = min(most, max(1, len({piece for each in inputs for piece in operator.shared_work(knobs, each)})))
        return await _by_concurrency(instances, inputs, effort, most)

    async def call(number: int, size: int = 1) -> float:
        batch = _batch(inputs, number, size)
        instances.forget()
        if operator.runs_in == "loop":
            _, began_ns, ended_ns = instances.call_now(batch)
        else:
            _, began_ns, ended_ns = await instances.call(batch)
        return (ended_ns - began_ns) / 1e9

    num_beside = 1 if operator.runs_in == "loop" or device.kind == "cuda" else num_cores
    shared = shares_work(operator)
    sizes = (1,) if shared else effort.sizes_of(operator.max_batch)
    await _side_by_side(call, num_beside, 0.0)  # every instance is loaded and warm
    found, cpu_s, energy = [], 0.0, Energy(0.0, "")
    for size in sizes:
        for beside in sorted({1, num_beside}):
            spent_s, counter = sum(os.times()[:4]), EnergyCounter()
            took_s = await _side_by_side(partial(call, size=size), beside, effort.each_s)
            num = size * len(took_s)
            in_child = operator.runs_in == "process"  # whose time is told when it has ended
            cpu_s = sum(took_s) / num if in_child else (sum(os.times()[:4]) - spent_s) / num
            energy = counter.since(cpu_s * num, num) if device.kind == "cpu" else Energy(0.0, "")
            found.append(BatchTimes.of(size, beside, took_s))
    return Took(tuple(found), cpu_s, *energy, fresh=_fresh(operator, knobs, inputs) if shared else 1.0)


async def measured_decode(
    segments: Sequence[Segment], demands: Sequence[Demand], num_cores: int, effort: Effort
) -> dict[str, tuple[BatchTimes, ...]]:
    """How long it takes to decode a segment for what is asked of it, by kind of demand."""
    found: dict[str, tuple[BatchTimes, ...]] = {}
    for kind, wanted in by_kind(demands).items():

        def decode(segment: Segment, kind: type[Demand] = kind, wanted: Sequence[Demand] = wanted) -> float:
            began_s = time.perf_counter()
            kind.decode(segment, wanted)
            return time.perf_counter() - began_s

        async def call(number: int, decode: Callable[[Segment], float] = decode) -> float:
            segment = segments[number % len(segments)]
            return await anyio.to_thread.run_sync(decode, segment, limiter=anyio.CapacityLimiter(1))

        await _side_by_side(call, num_cores, 0.0)
        every = sorted({1, num_cores})
        found[kind.__name__] = tuple(
            [BatchTimes.of(1, beside, await _side_by_side(call, beside, effort.each_s)) for beside in every]
        )
    return found


async def _side_by_side(call: Callable[[int], Awaitable[float]], num_beside: int, for_s: float) -> list[float]:
    """How long calls took: as many loops at once, for so long, and MIN_BATCHES each at least (one, for no time). Each
    is told its number, from its own beginning."""
    took_s = list[float]()

    async def loop(first: int) -> None:
        began_s, number = time.perf_counter(), first
        while (gone_s := time.perf_counter() - began_s) < for_s or number - first < (MIN_BATCHES if for_s else 1):
            took_s.append(await call(number))
            await anyio.lowlevel.checkpoint()  # what runs in the loop lets nobody else in
            number += 1
            if gone_s > MAX_S:
                break

    async with anyio.create_task_group() as tasks:
        for loop_number in range(num_beside):
            tasks.start_soon(loop, loop_number * APART)
    return took_s


async def _by_concurrency(instances: Instances, inputs: Sequence[Inputs], effort: Effort, most: int) -> Took:
    """Of an engine that batches by itself: by how many items are under way."""

    async def call(number: int) -> float:
        (item,) = _batch(inputs, number, 1)
        instances.forget()
        began_s = time.perf_counter()
        await instances.call_one(item, _unheard)
        return time.perf_counter() - began_s

    await call(0)
    sizes = Effort(sizes=effort.sizes).sizes_of(most)
    found = [BatchTimes.of(1, num, await _side_by_side(call, num, effort.each_s)) for num in sizes]
    return Took(tuple(found), 0.0, 0.0, "")


def _batch(inputs: Sequence[Inputs], number: int, size: int) -> list[Inputs]:
    """The next item of so many streams, each of which goes through all of them, over and over."""
    loop, own = divmod(number, APART)
    turn, place = divmod(own + loop, len(inputs))  # two loops are not at one place
    return [
        msgspec.structs.replace(inputs[place], stream=f"sample-{loop}-{turn}-{size}-{slot}") for slot in range(size)
    ]


def _fresh(operator: type[Operator], knobs: Any, inputs: Sequence[Inputs]) -> float:
    """Of pieces of work that items name, the share that no item before has named."""
    named = [operator.shared_work(knobs, item) for item in inputs]
    every = [piece for pieces in named for piece in pieces]
    return len(set(every)) / len(every) if every else 1.0


def _unheard(text: str, *, anew: bool = False) -> None:
    """Where partial output goes."""


class Energy(NamedTuple):
    """Of an item, and by which counter."""

    joules: float
    by: EnergyBy


class EnergyCounter:
    """What the processor's packages have used since it was made: by RAPL, where that can be read. Where it cannot, an
    estimate from processor time."""

    def __init__(self) -> None:
        self._before = self._read()

    def since(self, cpu_s: float, num: int) -> Energy:
        """For each of `num` items, of `cpu_s` together."""
        after = self._read()
        used_uj = sum(now - before for now, before in zip(after, self._before, strict=True))
        if used_uj > 0:  # a counter that began anew tells nothing
            return Energy(used_uj / 1e6 / num, "rapl")
        return Energy(cpu_s * W_PER_CORE / num, "estimate")

    @staticmethod
    def _read() -> list[int]:
        try:
            return [
                int((domain / "energy_uj").read_text())
                for domain in sorted(RAPL.glob("intel-rapl:[0-9]*"))
                if (domain / "name").read_text().startswith("package-")  # others are parts of these, or have them in
            ]
        except (OSError, ValueError):
            return []


class Cold(msgspec.Struct, frozen=True):
    """Loading a rung where nothing is loaded: how long it took, and by how much the process grew."""

    load_s: float
    memory_bytes: int


class _Asked(msgspec.Struct, frozen=True):
    capability: str
    implementation: str
    knobs: dict[str, Any]
    device: Literal["cpu", "cuda"]


async def cold(capability: str, implementation: str, knobs: dict[str, Any], device: str) -> Cold | None:
    """In a process of its own, which finds the operator in its own catalogue; None where that fails."""
    asked = msgspec.json.encode(
        {"capability": capability, "implementation": implementation, "knobs": knobs} | {"device": device}
    )
    command = python_on("engine.run.profiling")
    try:
        with anyio.fail_after(MAX_S * 2):
            done = await anyio.run_process(command, input=asked, check=False, stderr=subprocess.DEVNULL)
        return from_json(done.stdout.splitlines()[-1], Cold) if done.returncode == 0 and done.stdout else None
    except (OSError, TimeoutError, Malformed) as error:
        log.info("cold_start_not_measured", operator=implementation, error=str(error))
        return None


def main() -> None:
    """What the process of `cold` does: load a rung, and say what that took."""
    asked = from_json(sys.stdin.buffer.read(), _Asked)
    operator = installed().implementation(asked.capability, asked.implementation)
    before_bytes, began_s = _resident_bytes(), time.perf_counter()
    load(operator, settings_of(operator.Knobs, asked.knobs), Device(asked.device))
    took_s = time.perf_counter() - began_s
    print(msgspec.json.encode(Cold(took_s, max(0, _resident_bytes() - before_bytes))).decode())


def _resident_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
