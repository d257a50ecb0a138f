"""Savings: what gates have spared, as the results of their stages say."""

import math
from collections.abc import Sequence

import msgspec

from engine.spec.plan import Plan
from engine.spec.workflow import WHEN
from streams import subjects
from streams.errors import Malformed
from streams.records import Result, decode_result
from streams.wire.ledger import Ledger

AT_ONCE = 512


class Saving(msgspec.Struct, frozen=True):
    """Of one stage on one stream: how many outputs were computed, how many were not, and what those would have taken,
    as long as the others did on average; 0 where none was computed."""

    stage: str
    num_computed: int
    num_held_back: int
    saved_s: float
    why: str = ""  # nothing was computed


async def savings(ledger: Ledger, plan: Plan, stream: str) -> Sequence[Saving]:
    """Of each stage that has a gate. What cannot be read is not counted."""
    found: list[Saving] = []
    for stage in plan.stages:
        if WHEN in stage.inputs:
            found.append(await _of_stage(ledger, stage.id, stage.name, stream))
    return found


async def _of_stage(ledger: Ledger, id: str, name: str, stream: str) -> Saving:
    took_s: list[float] = []
    num_held_back, why = 0, ""
    names = sorted(await ledger.subjects(subjects.results_of(id, stream)))
    for start in range(0, len(names), AT_ONCE):
        for stored in (await ledger.get_many(names[start : start + AT_ONCE])).values():
            try:
                record = decode_result(stored.data)
            except Malformed:
                continue
            if not isinstance(record, Result) or record.measured is None:
                continue
            if record.measured.held_back:
                num_held_back += 1
                why = record.measured.held_back
            else:
                took_s.append(record.measured.compute_s + record.measured.decode_s)
    mean_s = math.fsum(took_s) / len(took_s) if took_s else 0.0
    return Saving(name, len(took_s), num_held_back, round(num_held_back * mean_s, 3), why)
