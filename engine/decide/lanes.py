"""Instances, lanes and cores: how often a pool loads its model, and how many of its batches run at once. Pure.

These are three numbers. *Cores* are shared by all pools of a worker: as many batches that compute on the processor run
at once as there are cores. A *lane* is a batch that runs. An *instance* is a loaded model.

| runs in | instances | lanes |
|---|---|---|
| `loop` | 1 | 1: it is over before anything else happens |
| `thread`, `process` on the processor | one for each lane | 1, and more while fewer lanes run in all pools than cores |
| `thread`, `process` on `cuda` | as the plan says, once by default | one for each instance |
| `async` | 1 | as many items as the operator allows in flight: it batches by itself |

An idle pool has one lane, so none waits for another to be idle; on a busy worker it is the cores that are waited for.
"""

from collections.abc import Iterable
from typing import Literal

import msgspec

HELD_S = 10.0  # past its time, after which a thread has its worker ended

CORES = "cores"
RunsIn = Literal["loop", "thread", "process", "async"]


class PoolShape(msgspec.Struct, frozen=True, kw_only=True):
    """What a pool is, which does not change."""

    runs_in: RunsIn
    device: Literal["cpu", "cuda"] = "cpu"
    num_instances: int = 1  # planned, of one on a GPU
    max_async: int = 16


class Limits(msgspec.Struct, frozen=True):
    """How many batches may run at once, and how often the model may be loaded, for it; and why."""

    max_in_flight: int
    max_instances: int
    why: str


def uses_cores(shape: PoolShape) -> bool:
    """Whether a batch needs a core of its own."""
    return shape.device == "cpu" and shape.runs_in in ("thread", "process")


def resource_of(shape: PoolShape, pool: str) -> str:
    """What a pool's batches take up: the cores that all pools share, or what is its own."""
    return CORES if uses_cores(shape) else pool


def num_shared(shape: PoolShape, num_cores: int) -> int:
    """How many batches that can be of at once."""
    if uses_cores(shape):
        return num_cores
    return limits(shape, 0, 0, num_cores).max_in_flight


def limits(shape: PoolShape, num_lanes_here: int, num_lanes_everywhere: int, num_cores: int) -> Limits:
    """What holds for a pool now. `num_lanes_everywhere` are those of all pools that use cores, this one's included."""
    if shape.runs_in == "async":
        return Limits(shape.max_async, 1, "it batches by itself: as many as it takes")
    if shape.runs_in == "loop":
        return Limits(1, 1, "it runs in the event loop")
    if shape.device == "cuda":
        num = shape.num_instances
        return Limits(num, num, f"the plan has it loaded {num} times")
    num_free = max(0, num_cores - num_lanes_everywhere)
    num = max(1, min(num_cores, num_lanes_here + num_free))
    return Limits(num, num, f"{num_free} of {num_cores} cores are free")


def is_worker_to_end(overdue_s: Iterable[float]) -> bool:
    """Whether a thread has gone on so long past its operator's time that the worker is to end, with it: a thread cannot
    be ended by itself, and holds a core, an instance and what it was given. The worker's other work is handed back, and
    the batch is tried elsewhere as often as the retry rule says."""
    return max(overdue_s, default=0.0) > HELD_S
