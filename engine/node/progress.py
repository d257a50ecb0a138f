"""Progress: how many outputs of each stage of a job are stored. For people to see; nothing rests on it.

What core NATS tells is counted at once; the ledger is asked every RECOUNT_S for what it did not tell.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import anyio
import structlog

from engine.node.ends import stored_end
from engine.spec.jobs import JobSpec
from engine.spec.operator import OfRanges
from streams import subjects
from streams.errors import PenstockError
from streams.subjects import Key
from streams.wire.ledger import Ledger

log = structlog.get_logger(__name__)

RECOUNT_S = 2.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the stages are, by stage name, in outputs stored; of how many, where that is known."""

    stored: dict[str, int]
    total: dict[str, int | None]


async def show_progress(ledger: Ledger, spec: JobSpec, on_progress: Callable[[Progress], None]) -> None:
    """Call `on_progress` with each change, until canceled."""
    stages = spec.plan.stages
    stored: dict[str, set[Key]] = {stage.id: set() for stage in stages}
    num_segments: int | None = None

    def show() -> None:
        counts = {stage.name: len(stored[stage.id]) for stage in stages}
        total = {stage.name: 1 if isinstance(stage.scope, OfRanges) else num_segments for stage in stages}
        on_progress(Progress(counts, total))

    def note(names: Iterable[str]) -> None:
        num_before = sum(map(len, stored.values()))
        for name in names:
            if (stage_id := name.split(".")[2]) in stored:
                stored[stage_id] |= subjects.keys_of([name])
        if sum(map(len, stored.values())) != num_before:
            show()

    async def on_message(message: Any) -> None:
        note([message.subject])

    every = subjects.results_of("*", spec.stream)
    watch = await ledger.link.subscribe(every, on_message)
    try:
        while True:
            try:
                note(await ledger.subjects(every))
                if num_segments is None and (end := await stored_end(ledger, spec.stream)) is not None:
                    num_segments = end.num_segments
                    show()
            except PenstockError as error:
                log.warning("cannot_count", job=spec.id, error=str(error))
            await anyio.sleep(RECOUNT_S)
    finally:
        await ledger.link.unsubscribe(watch)
