"""What a worker lends its groups, and a stage as its group runs it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import anyio.abc

from engine.decide.instructions import StageRule
from engine.decide.retry import RetryPolicy
from engine.decide.way import Opens
from engine.run.frames import FrameStore
from engine.run.journal import Journal
from engine.run.pool import Pool
from engine.run.spans import WorkSpans
from engine.run.ways import Ways
from engine.spec.operator import Demand, Inputs
from engine.spec.plan import PlannedRung
from streams.wire.ledger import Ledger
from streams.wire.outbox import Outbox


@dataclass(frozen=True, slots=True)
class StageRung:
    """One of the rungs that may compute a stage."""

    planned: PlannedRung
    pool: Pool
    demands: tuple[Demand, ...] = ()
    demands_for: Callable[[Inputs], tuple[Demand, ...]] = lambda inputs: ()  # of one output


@dataclass(frozen=True, slots=True)
class GroupStage:
    """A stage as its group runs it: the rule's view of it, and what computes it, the best rung first."""

    rule: StageRule
    params: Any
    rungs: tuple[StageRung, ...]
    empty: Any = None  # what is stored where its gate is shut
    opens: Opens = field(default_factory=Opens)

    def rung(self, place: int) -> StageRung:
        """The best is 0; the last where there are fewer: some may have gone since a segment was begun."""
        return self.rungs[min(place, len(self.rungs) - 1)]

    @property
    def demands(self) -> tuple[Demand, ...]:
        """What its best rung asks of the decoder of its media."""
        return self.rungs[0].demands


@dataclass(slots=True)
class Host:
    """What a worker lends its groups."""

    worker: str
    ledger: Ledger
    outbox: Outbox
    frames: FrameStore
    ways: Ways
    journal: Journal
    spans: WorkSpans
    policy: RetryPolicy
    random: Random
    tasks: anyio.abc.TaskGroup
    now_ns: Callable[[], int] = time.time_ns  # the server's time
    on_done: Callable[[], None] = lambda: None  # a message was finished
