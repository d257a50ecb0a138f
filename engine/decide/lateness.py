"""The lateness rule: when an output is due, and whether it is late. Pure.

A segment's due time leaves ingest with it, in the server's clock, and is handed on with every result made from it. So
it is the same moment at every stage, however stages are fused and whatever a worker's clock says.
"""

from collections.abc import Mapping
from typing import Any

from engine.decide.running_graph import RunningStage
from streams.subjects import Key


def due_of(key: Key, said_ns: int, inputs: Mapping[str, Mapping[int, Any]]) -> int:
    """When the segment that an output stands for is due, by the inputs at that segment; `said_ns` is what the arrival
    that completed it says. 0: never."""
    due_ns = 0
    for found in inputs.values():  # of every output: no generator
        known = found.get(key.last)
        if known is not None and known.due_ns > due_ns:
            due_ns = known.due_ns
    return due_ns or said_ns


def expires_ns(stage: RunningStage, key: Key, due_ns: int) -> int:
    """When an output is worth nothing any more: when its segment is due, or never (0) where it is wanted however
    late."""
    return due_ns if due_ns and stage.is_prompt(key) else 0


def is_late(due_ns: int, now_ns: int) -> bool:
    """Whether something due then is worth nothing now."""
    return 0 < due_ns < now_ns


def said_of(due_ns: int, now_ns: int) -> str:
    """For people."""
    return f"it was due {(now_ns - due_ns) / 1e9:.2f} s before its turn came"
