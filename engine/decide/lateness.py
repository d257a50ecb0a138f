"""The lateness rule: when an output is due, and whether it is late. Pure.

A segment's due time leaves ingest with it, in the server's clock, and is handed on with every result made from it. So
it is the same moment at every stage, however stages are fused and whatever a worker's clock says.

What cannot be in time any more is late before work is wasted on it: an output *expires* its stage's *lead* before its
segment is due, which is how long it lately took to compute it and what is made from it here. A lead is at most half of
what the stream may lag, so that a model slower than that still computes what came in time, and is late by its own time.
"""

from collections.abc import Mapping, Sequence
from graphlib import TopologicalSorter
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


def expires_ns(stage: RunningStage, key: Key, due_ns: int, lead_ns: int = 0) -> int:
    """When it is too late to begin an output; never (0) where it is wanted however late."""
    if not due_ns or not stage.is_prompt(key):
        return 0
    return latest_ns(due_ns, lead_ns, stage.max_lag_s)


def latest_ns(due_ns: int, lead_ns: int, max_lag_s: float) -> int:
    """When something is to be begun for what takes so long from then on, of a stream that may lag so much."""
    return due_ns - min(lead_ns, round(max_lag_s * 1e9 / 2))


def wanted_ns(done_ns: int, max_lag_s: float, latency_s: float) -> int:
    """By when something is wanted that is to be done by then at the latest, of a stream that may lag so much and whose
    answers are wanted within so much (0: as the lag allows)."""
    if not done_ns or not latency_s:
        return done_ns
    return done_ns - round(max(0.0, max_lag_s - latency_s) * 1e9)


def leads_ns(sources: Mapping[str, Sequence[str]], service_s: Mapping[str, float | None]) -> dict[str, int]:
    """The leads of stages, by what each reads and what a batch of each lately took (None: not known)."""
    found: dict[str, int] = {}
    behind: dict[str, int] = {}  # by what is read, the longest lead of those that read it
    for id in reversed([*TopologicalSorter(sources).static_order()]):
        lead_ns = round((service_s.get(id) or 0.0) * 1e9) + behind.get(id, 0)
        if id in sources:
            found[id] = lead_ns
        for source in sources.get(id, ()):
            behind[source] = max(lead_ns, behind.get(source, 0))
    return found


def behind_ns(sources: Mapping[str, Sequence[str]], leads_ns: Mapping[str, int]) -> dict[str, int]:
    """Of what is read, the longest lead of those that read it."""
    behind: dict[str, int] = {}
    for id, read in sources.items():
        for source in read:
            behind[source] = max(leads_ns[id], behind.get(source, 0))
    return behind


def is_late(due_ns: int, now_ns: int) -> bool:
    """Whether something due then is worth nothing now."""
    return 0 < due_ns < now_ns


def said_of(due_ns: int, now_ns: int) -> str:
    """For people."""
    if now_ns < due_ns:
        return f"its turn came {(due_ns - now_ns) / 1e9:.2f} s before it was due, too late to be in time"
    return f"it was due {(now_ns - due_ns) / 1e9:.2f} s before its turn came"
