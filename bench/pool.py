"""What a pool of the running engine comes to, against settings swept by hand: the bundled detector, and Whisper tiny.en
beside it on the same two cores, with their real curves.

    saturation   items a second where there is always work, over the best of fixed batch sizes (limit)
    low load     p99 from handing in to what comes of it at a tenth of that, at equal distances, over the p99 of a batch
                 of one by itself
    overload     twice of what it can do, each due within SLACK_S: the share of what it can do that is in time, and the
                 p99 of those; beside it the same without due times, first come, first served (peer)
    steps        half, one and a half, half of what it can do: the share in time in each, and how long after each step
                 until it is in time again
    both         the detector and Whisper on two cores at 0.8 of what they can do together, and at 1.6
    decision     what it takes to decide whether a segment is begun, of 1,000 streams, at 100 pools

    pool.py [--seconds 20]
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from functools import partial
from random import Random
from typing import Any

import anyio
import anyio.abc
import numpy as np
from measure import at_least, at_most, keep, say
from simulator import NOTHING, Detecting

from engine.decide.entrance import Entrance
from engine.decide.rungs import Ladder
from engine.decide.way import StageCost
from engine.run.cores import Cores
from engine.run.done import Done, all_done
from engine.run.pool import Pool
from engine.simulate.report import quantile
from engine.spec.operator import Device, Inputs, Operator, Rung, Settings
from operators import weights
from operators.capabilities import COUNT_OBJECTS
from operators.seen import Counts

SLACK_S = 1.0
SIZES = (1, 2, 4, 8)
ROUNDS = 3
HEARD_S = 2.0


class Hearing(Operator):
    """Whisper tiny.en on two seconds of noise, which it takes for speech."""

    capability = COUNT_OBJECTS
    name = "hearing"

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return (Rung("hearing", 1.0, Settings()),)

    def load(self, device: Device) -> None:
        from faster_whisper import WhisperModel

        folder = str(weights.folder_of("whisper-tiny.en"))
        self.model = WhisperModel(folder, device="cpu", compute_type="int8", cpu_threads=1)
        self.sound = np.random.default_rng(1).normal(0, 0.1, round(16000 * HEARD_S)).astype(np.float32)

    def process(self, batch: Sequence[Inputs]) -> Sequence[Counts]:
        for _ in batch:
            segments, _ = self.model.transcribe(
                self.sound, beam_size=1, without_timestamps=True, max_new_tokens=8, temperature=0.0
            )
            list(segments)
        return [Counts() for _ in batch]


def sized(operator: type[Operator], most: int) -> type[Operator]:
    """The same, with another largest batch."""
    return type(f"{operator.__name__}{most}", (operator,), {"max_batch": most})


class Load:
    """Hands items in when they come, each due within SLACK_S, and notes what becomes of them."""

    def __init__(self, pool: Pool, *, has_dues: bool = True) -> None:
        self.pool = pool
        self.has_dues = has_dues
        self.took_s: list[tuple[float, float | None]] = []  # when it came, and how long it took; None: dropped
        self._left = 0
        self._over = anyio.Event()

    async def offer(self, came_s: Sequence[float]) -> None:
        self._left = len(came_s)
        began_s = time.time()
        for at_s in came_s:
            if (left_s := began_s + at_s - time.time()) > 0:
                await anyio.sleep(left_s)
            done_ns = round((began_s + at_s + SLACK_S) * 1e9)
            expires_ns = done_ns - round((self.pool.learned.usual_s or 0.0) * 1e9)
            dues_ns = (expires_ns, done_ns) if self.has_dues else (0, 0)
            note = partial(self._note, began_s, at_s)
            self.pool.submit(NOTHING, note, due_ns=dues_ns[0], done_ns=dues_ns[1])
        await self._over.wait()

    def _note(self, began_s: float, at_s: float, done: Done) -> None:
        took_s = None if done.error is not None else done.ended_ns / 1e9 - began_s - at_s
        self.took_s.append((at_s, took_s))
        self._left -= 1
        if not self._left:
            self._over.set()

    def in_time(self, since_s: float = 0.0, until_s: float = 1e9) -> float:
        """Of what came then, the share that was done when it was due."""
        some = [took_s for at_s, took_s in self.took_s if since_s <= at_s < until_s]
        return sum(took_s is not None and took_s <= SLACK_S for took_s in some) / max(1, len(some))

    def p99_s(self) -> float:
        return quantile([took_s for _, took_s in self.took_s if took_s is not None], 0.99)


def poisson(per_s: float, seconds: float, seed: int, since_s: float = 0.0) -> list[float]:
    chance, at_s, found = Random(seed), since_s, []
    while (at_s := at_s + chance.expovariate(per_s)) < since_s + seconds:
        found.append(at_s)
    return found


async def warm(operator: type[Operator], cores: Cores, tasks: anyio.abc.TaskGroup) -> Pool:
    pool = Pool(operator, Settings(), Device(), cores, tasks, name=operator.__name__)
    for size in (1, 2, operator.max_batch, operator.max_batch, 1, 2):
        await all_done(pool, [NOTHING] * size)
    return pool


async def saturated(operator: type[Operator], seconds: float) -> float:
    """Items a second where four batches always wait."""
    async with anyio.create_task_group() as tasks:
        pool = await warm(operator, Cores(1), tasks)
        num, began_s = 0, time.perf_counter()
        while time.perf_counter() < began_s + seconds:
            await all_done(pool, [NOTHING] * 4 * operator.max_batch)
            num += 4 * operator.max_batch
        took_s = time.perf_counter() - began_s
        tasks.cancel_scope.cancel()
    return num / took_s


async def offered(operator: type[Operator], came_s: Sequence[float], *, has_dues: bool = True) -> Load:
    async with anyio.create_task_group() as tasks:
        load = Load(await warm(operator, Cores(1), tasks), has_dues=has_dues)
        await load.offer(came_s)
        tasks.cancel_scope.cancel()
    return load


def alone_p99_s(operator: type[Operator], num: int = 60) -> float:
    """A batch of one, called by itself."""
    made = operator(Settings())
    made.load(Device())
    took = []
    for _ in range(num):
        began_s = time.perf_counter()
        made.process([NOTHING])
        took.append(time.perf_counter() - began_s)
    return quantile(took[5:], 0.99)


async def both(per_s: dict[type[Operator], float], seconds: float, seed: int) -> dict[str, float]:
    """Two pools on two cores, the shares in time."""
    loads: dict[str, Load] = {}
    async with anyio.create_task_group() as tasks:
        cores = Cores(2)
        for operator in per_s:
            loads[operator.__name__] = Load(await warm(operator, cores, tasks))
        async with anyio.create_task_group() as offering:
            for number, (operator, rate) in enumerate(per_s.items()):
                offering.start_soon(loads[operator.__name__].offer, poisson(rate, seconds, seed + number))
        tasks.cancel_scope.cancel()
    return {name: round(load.in_time(), 4) for name, load in loads.items()}


def decision_us() -> float:
    """Of 1,000 streams of four stages that come as fast as they are begun, at 100 pools."""
    entrance = Entrance()
    before = ("media",), ("a",), ("a",), ("b", "c")
    costs = {
        id: [StageCost(sources, "cores" if id != "d" else "gpu", 16, 0.001, 0.002)]
        for id, sources in zip("abcd", before, strict=True)
    }
    ladder = Ladder(costs)
    pools = {f"p{number}": 0.001 * number for number in range(100)}
    took, now_ns = [], 10**18
    for number in range(20_000):
        now_ns += 2_000_000
        segment = f"s{number % 1000}", number
        began_s = time.perf_counter()
        running_s: dict[str, float] = {}
        for pool, seconds in pools.items():
            resource = "cores" if number else pool
            running_s[resource] = running_s.get(resource, 0.0) + seconds
        entrance.enters(segment, now_ns + 10**9, 1.0, 0.0, now_ns, ladder, running_s)
        took.append(time.perf_counter() - began_s)
        for id in "abcd":
            entrance.passed(segment, id)
    return 1e6 * statistics.median(took)


async def measured(seconds: float) -> dict[str, Any]:
    sizes = {size: sized(Detecting, size) for size in SIZES}
    tried: dict[str, list[float]] = {}
    for number in range(ROUNDS):
        for name, operator in ({"ours": Detecting} | {str(size): each for size, each in sizes.items()}).items():
            tried.setdefault(name, []).append(await saturated(operator, seconds / 4))
        say(f"round {number + 1}: { {name: round(each[-1], 1) for name, each in tried.items()} } items a second")
    per_s = {name: statistics.median(each) for name, each in tried.items()}
    most_per_s = per_s["ours"]
    apart = [10 / most_per_s * number for number in range(round(0.2 * most_per_s * seconds))]
    low = [await offered(Detecting, apart) for _ in range(ROUNDS)]
    alone_s = statistics.median(alone_p99_s(Detecting) for _ in range(ROUNDS))
    low_s = statistics.median(load.p99_s() for load in low)
    say(f"low load: p99 {1000 * low_s:.1f} ms; a batch of one by itself {1000 * alone_s:.1f} ms")
    over, first_come = [], []
    for seed in range(ROUNDS):
        came_s = poisson(2 * most_per_s, seconds, seed)
        over.append(await offered(Detecting, came_s))
        first_come.append(await offered(Detecting, came_s, has_dues=False))
    goods = [2 * statistics.median(load.in_time() for load in loads) for loads in (over, first_come)]
    over_p99_s = statistics.median(load.p99_s() for load in over)
    say(f"overload: {goods[0]:.3f} of what it can do in time, p99 {over_p99_s:.3f} s; first come {goods[1]:.3f}")
    third = seconds / 2
    came_s = [
        at
        for part, times in enumerate((0.5, 1.5, 0.5))
        for at in poisson(times * most_per_s, third, part, part * third)
    ]
    stepped = await offered(Detecting, came_s)
    steps = [round(stepped.in_time(part * third, (part + 1) * third), 4) for part in range(3)]
    settled = next(s / 4 for s in range(40) if stepped.in_time(2 * third + s / 4, 2 * third + s / 4 + 2) > 0.99)
    say(f"steps: {steps} in time; {settled} s after the last one all is")
    heard_per_s = await saturated(Hearing, seconds / 4)
    half: dict[type[Operator], float] = {Detecting: 0.8 * most_per_s, Hearing: 0.8 * heard_per_s}  # of a core each
    together = {
        "load 0.8": await both(half, seconds, 1),
        "load 1.6": await both({operator: 2 * rate for operator, rate in half.items()}, seconds, 2),
    }
    say(f"both on two cores: {together}")
    cost_us = decision_us()
    say(f"a decision takes {cost_us:.1f} us")
    best = max(per_s[str(size)] for size in SIZES)
    return {
        "slack_s": SLACK_S,
        "items_per_s": {name: round(rate, 2) for name, rate in per_s.items()},
        "saturation_over_best_fixed": at_least(most_per_s / best, 0.97),
        "p99_low_load_over_batch_of_one": at_most(low_s / alone_s, 1.1),
        "overload_in_time_over_what_can_be": at_least(goods[0], 0.9),
        "overload_first_come_over_what_can_be": round(goods[1], 4),
        "overload_p99_s": at_most(over_p99_s, SLACK_S),
        "steps_in_time": steps,
        "settled_after_s": at_most(settled, 2.0),
        "heard_per_s": round(heard_per_s, 2),
        "both": together,
        "decision_us": at_most(cost_us, 50),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of a load")
    keep("pool", anyio.run(measured, parser.parse_args().seconds))


if __name__ == "__main__":
    main()
