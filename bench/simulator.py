"""How far the simulator is from queueing theory, and from the engine as it runs.

Theory: means of long runs against formulas (limit: 1 %).

    M/M/1, M/M/c: 1/mu + C(c, a) / (c mu - lambda)          Erlang's C
    M/D/1:        1/mu + rho / (2 mu (1 - rho))             Pollaczek and Khinchine
    M/D/1, batches of all that waits up to B: mean number left behind, by the chain over it

The engine: a real pool (`engine.run.pool`) with a model that sleeps for as long as a curve says, and one with the
bundled detector, at loads at which its curve was not measured, against a simulated pool with that curve: share in time,
how long the half and 99 of 100 took, batches, each as the share by which the simulator is off (limit: 10 %).

    simulator.py [--seconds 20]
"""

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Sequence
from functools import partial
from random import Random
from typing import Any

import anyio
import numpy as np
from measure import at_most, keep, say

from engine.decide.batcher import Batcher, Item
from engine.decide.lanes import PoolShape
from engine.run.cores import Cores as WorkerCores
from engine.run.done import Done, all_done
from engine.run.pool import Pool
from engine.simulate.arrivals import Arrivals, times_s
from engine.simulate.pools import Cores, Ended, SimulatedPool
from engine.simulate.report import quantile
from engine.simulate.run import run
from engine.simulate.scenario import scenario_of
from engine.simulate.services import Service
from engine.simulate.world import NS, World
from engine.spec.operator import Device, Inputs, Operator, Rung, Settings
from operators import weights
from operators.capabilities import COUNT_OBJECTS
from operators.seen import Counts
from operators.vision.detect_objects import NAME, TAKES, NanoDet

NUM = 400_000  # items of a run against a formula
LOADS = (0.3, 0.6, 0.9, 1.3)
CALIBRATION = 12  # batches of each size
SLACK_S = 0.6


def erlang_c(num: int, offered: float) -> float:
    inverse = 1.0
    for each in range(1, num + 1):
        inverse = 1 + inverse * each / offered
    blocked = 1 / inverse
    return blocked / (1 - offered / num * (1 - blocked))


def batches_stay(per_s: float, most: int, num_states: int = 400) -> float:
    """How long an item stays where all that waits, up to `most`, is served in 1 s: by the chain over the number that is
    left when a batch ends. The mean number over time follows from it, the stay from that by Little's law."""
    came = [math.exp(-per_s)]
    for k in range(1, num_states):
        came.append(came[-1] * per_s / k)
    step = np.zeros((num_states, num_states))
    for left in range(num_states):
        still = max(0, max(left, 1) - most)  # from 0 it waits for one, which is served alone
        for k in range(num_states - still):
            step[left, still + k] += came[k]
    step /= step.sum(axis=1, keepdims=True)
    share = np.full(num_states, 1 / num_states)
    for _ in range(4000):
        share = share @ step
    begins = np.maximum(np.arange(num_states), 1)  # items there are when a batch begins
    cycle_s = 1 + share[0] / per_s
    mean = float((share * (begins + per_s / 2)).sum())  # those, and what comes meanwhile, over a second
    return mean / float(cycle_s) / per_s


def simulated_mean_s(per_s: float, service: dict[str, Any], lanes: int, most: int, seed: int) -> float:
    pool = {"max_batch": most, "num_instances": lanes, "service": service}
    streams = [{"arrivals": {"per_s": per_s, "kind": "poisson"}}]
    table = {"seed": seed, "duration_s": NUM / per_s, "pools": {"p": pool}, "stages": {"s": {"pool": "p"}}}
    return statistics.fmean(run(scenario_of(table | {"streams": streams})).segments.took_s)


def theory() -> dict[str, dict[str, float]]:
    exponential, constant = {"per_item_s": 1.0, "spread": "exponential"}, {"base_s": 1.0}
    cases: dict[str, tuple[float, dict[str, Any], int, int, float]] = {
        "M/M/1, rho 0.5": (0.5, exponential, 1, 1, 2.0),
        "M/M/1, rho 0.8": (0.8, exponential, 1, 1, 5.0),
        "M/M/4, rho 0.75": (3.0, exponential, 4, 1, 1 + erlang_c(4, 3.0) / (4 - 3.0)),
        "M/D/1, rho 0.7": (0.7, constant, 1, 1, 1 + 0.7 / (2 * 0.3)),
        "M/D/1, batches of 4, rho 0.6": (2.4, constant, 1, 4, batches_stay(2.4, 4)),
    }
    found: dict[str, dict[str, float]] = {}
    for name, (per_s, service, lanes, most, right) in cases.items():
        mean_s = statistics.fmean(simulated_mean_s(per_s, service, lanes, most, seed) for seed in range(3))
        found[name] = {
            "simulated": round(mean_s, 5),
            "formula": round(right, 5),
            "off": round(abs(mean_s / right - 1), 5),
        }
        say(f"{name:32} {mean_s:.4f} s, by the formula {right:.4f} s")
    return found


# --- against the engine -------------------------------------------------------------------------------------------


class Sleeping(Operator):
    """Takes as long as a curve says, a little more or less."""

    capability = COUNT_OBJECTS
    name = "sleeping"
    max_batch = 8
    chance = Random(7)

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return (Rung("sleeping", 1.0, Settings()),)

    def process(self, batch: Sequence[Inputs]) -> Sequence[Counts]:
        time.sleep((0.04 + 0.01 * len(batch)) * self.chance.uniform(0.8, 1.2))
        return [Counts() for _ in batch]


class Detecting(Operator):
    """The bundled detector on one picture of noise."""

    capability = COUNT_OBJECTS
    name = "detecting"
    max_batch = 4

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return (Rung("detecting", 1.0, Settings()),)

    def load(self, device: Device) -> None:
        self.model = NanoDet(weights.folder_of(NAME), 1, TAKES)
        self.picture = np.random.default_rng(1).integers(0, 256, (480, 640, 3), np.uint8)

    def process(self, batch: Sequence[Inputs]) -> Sequence[Counts]:
        for _ in batch:
            self.model.objects_of(self.picture, 0.4)
        return [Counts() for _ in batch]


NOTHING = Inputs("s", 0, 0, Settings(), {})


async def calibrated(operator: type[Operator]) -> tuple[float, float, float]:
    """What a batch takes by itself, from handing in to what comes of it: base_s and per_item_s of the line, and the
    coefficient of variation about it."""
    took: list[tuple[int, float]] = []
    async with anyio.create_task_group() as tasks:
        pool = Pool(operator, Settings(), Device(), WorkerCores(1), tasks)
        await all_done(pool, [NOTHING])
        for size in sorted({1, 2, operator.max_batch // 2, operator.max_batch}) * CALIBRATION:
            began_s = time.perf_counter()
            await all_done(pool, [NOTHING] * size)
            took.append((size, time.perf_counter() - began_s))
        tasks.cancel_scope.cancel()
    sizes, seconds = (np.array(each) for each in zip(*took, strict=True))
    per_item_s, base_s = np.polyfit(sizes, seconds, 1)
    cv = float(np.std(seconds / (base_s + per_item_s * sizes)))
    return max(0.0, float(base_s)), max(0.0, float(per_item_s)), cv


async def ran(operator: type[Operator], came_s: Sequence[float]) -> dict[str, float]:
    """What becomes of items that come then, by the engine's own pool."""
    done: list[tuple[float, Done]] = []
    over = anyio.Event()

    def note(since_s: float, each: Done) -> None:
        done.append((since_s, each))
        if len(done) == len(came_s):
            over.set()

    async with anyio.create_task_group() as tasks:
        pool = Pool(operator, Settings(), Device(), WorkerCores(1), tasks)
        for size in (1, 2, 2, operator.max_batch, operator.max_batch):
            await all_done(pool, [NOTHING] * size)
        began_s = time.time()
        for at_s in came_s:
            if (left_s := began_s + at_s - time.time()) > 0:
                await anyio.sleep(left_s)
            done_ns = round((began_s + at_s + SLACK_S) * 1e9)
            expires_ns = done_ns - round((pool.learned.usual_s or 0.0) * 1e9)
            pool.submit(NOTHING, partial(note, began_s + at_s), due_ns=expires_ns, done_ns=done_ns)
        await over.wait()
        tasks.cancel_scope.cancel()
    good = [(since_s, each) for since_s, each in done if each.error is None]
    return figures(
        [each.ended_ns / 1e9 - since_s for since_s, each in good], [each.batch_size for _, each in good], len(done)
    )


def simulated(operator: type[Operator], came_s: Sequence[float], curve: tuple[float, float, float]) -> dict[str, float]:
    """The same, where nothing is computed."""
    base_s, per_item_s, cv = curve
    world = World(1)
    service = Service(base_s=base_s, per_item_s=per_item_s, spread="lognormal", cv=cv)
    most = operator.max_batch
    pool = SimulatedPool(world, "p", PoolShape(runs_in="thread"), most, service, (), Cores(1, world), Batcher(most))
    for size in (1, 2, 2, most, most):
        pool.batching.took(size, service.mean_s(size))
    done: list[tuple[int, Ended]] = []

    def comes() -> None:
        since_ns = world.now_ns
        done_ns = since_ns + round(SLACK_S * NS)
        expires_ns = done_ns - round((pool.learned.usual_s or 0.0) * NS)
        pool.submit(Item(0, expires_ns, done_ns), lambda ended: done.append((since_ns, ended)))

    for at_s in came_s:
        world.at(NS + round(at_s * NS), comes)
    world.run()
    good = [(since_ns, each) for since_ns, each in done if each.batch_size]
    took_s = [(each.ended_ns - since_ns) / NS for since_ns, each in good]
    return figures(took_s, [each.batch_size for _, each in good], len(done))


def figures(took_s: Sequence[float], batches: Sequence[int], num: int) -> dict[str, float]:
    in_time_s = [each for each in took_s if each <= SLACK_S]
    return {
        "in_time": len(in_time_s) / num,
        "p50_s": quantile(in_time_s, 0.5),
        "p99_s": quantile(in_time_s, 0.99),
        "batch": statistics.fmean(batches),  # that an item is in
    }


def engine(seconds: float) -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = []
    for operator in (Sleeping, Detecting):
        curve = anyio.run(calibrated, operator)
        base_s, per_item_s, cv = curve
        say(f"{operator.name}: {1000 * base_s:.1f} ms + {1000 * per_item_s:.1f} ms an item, CV {cv:.2f}")
        most = operator.max_batch
        for load in LOADS:
            per_s = load * most / (base_s + per_item_s * most)
            times = times_s(Arrivals(per_s=per_s, kind="poisson"), (), Random(3))
            came_s = list(itertools.takewhile(lambda at_s: at_s < seconds, times))
            real, toy = anyio.run(ran, operator, came_s), simulated(operator, came_s, curve)
            off = {name: round(abs(toy[name] / real[name] - 1), 4) for name in real}
            table.append({"pool": operator.name, "load": load, "engine": real, "simulated": toy, "off": off})
            say(f"  load {load}: " + ", ".join(f"{name} {real[name]:.3f} / {toy[name]:.3f}" for name in real))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run of the engine")
    asked = parser.parse_args()
    table = engine(asked.seconds)
    formulas = theory()
    keep(
        "simulator",
        {
            "formulas": formulas,
            "worst_against_a_formula": at_most(max(each["off"] for each in formulas.values()), 0.01),
            "engine": table,
            "worst_against_the_engine": at_most(max(max(each["off"].values()) for each in table), 0.10),
            "median_against_the_engine": statistics.median(off for each in table for off in each["off"].values()),
        },
    )


if __name__ == "__main__":
    main()
