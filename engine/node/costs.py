"""Costs: what stages have cost, as their results say."""

import math
import statistics
from collections.abc import Iterable, Sequence

import structlog

from engine.decide.redundancy.findings import Cost
from engine.spec.jobs import JobSpec, Span, merged
from streams import subjects
from streams.errors import Malformed, Permanent
from streams.records import Result, Segment, decode_media, decode_result
from streams.wire.ledger import Ledger

log = structlog.get_logger(__name__)

MAX_LOOKS = 5  # at segments of a stream, to learn how long they are


async def measured_costs(ledger: Ledger, jobs: Sequence[JobSpec], max_results: int = 64) -> dict[str, Cost]:
    """What the stages of running jobs have cost, by stage id: over the newest results of each on each stream, the
    compute spent for each second of the media they are about. Left out where results or media are lacking."""
    running = [job for job in jobs if job.state == "running"]
    spent_s: dict[str, list[tuple[float, float, int]]] = {}  # by stage: compute, media and number of results, by stream
    for stream in sorted({job.stream for job in running}):
        segment_s = await _segment_s(ledger, stream)
        for id in sorted({stage.id for job in running if job.stream == stream for stage in job.plan.stages}):
            results = await _newest(ledger, id, stream, max_results)
            media_s = _num_segments(results) * segment_s
            if media_s > 0:
                compute_s = math.fsum(result.measured.compute_s for result in results if result.measured)
                spent_s.setdefault(id, []).append((compute_s, media_s, len(results)))
    return {
        id: Cost(
            compute_s_per_s=math.fsum(compute_s for compute_s, _, _ in spent) / math.fsum(s for _, s, _ in spent),
            num_results=sum(num for _, _, num in spent),
        )
        for id, spent in spent_s.items()
    }


async def _newest(ledger: Ledger, id: str, stream: str, max_results: int) -> list[Result]:
    """The results stored for the latest segments, those that were measured."""
    keys = subjects.keys_of(await ledger.subjects(subjects.results_of(id, stream)))
    newest = sorted(keys, key=lambda key: (key.last, key.first))[-max_results:]
    try:
        found = await ledger.get_many(subjects.result(id, stream, key) for key in newest)
        records = [decode_result(stored.data) for stored in found.values()]
    except (Permanent, Malformed) as error:
        log.warning("cannot_measure", stage=id, stream=stream, error=str(error))
        return []
    return [record for record in records if isinstance(record, Result) and record.measured is not None]


def _num_segments(results: Iterable[Result]) -> int:
    """How many segments these results are about, each counted once."""
    spans = merged(Span(first=result.first, last=result.last) for result in results)
    return sum(span.last - span.first + 1 for span in spans if span.last is not None)


async def _segment_s(ledger: Ledger, stream: str) -> float:
    """How long the segments of a stream are: the median of a few that are stored; 0 where none is."""
    kept = sorted(subjects.keys_of(await ledger.subjects(subjects.media_of(stream))))
    durations_s: list[float] = []
    for key in kept[:: max(1, len(kept) // MAX_LOOKS)][:MAX_LOOKS]:
        try:
            stored = await ledger.get(subjects.media(stream, key.first))
            record = None if stored is None else decode_media(stored.data)
        except (Permanent, Malformed) as error:
            log.warning("cannot_measure", stream=stream, error=str(error))
            continue
        if isinstance(record, Segment):
            durations_s.append(record.duration_ns / 1e9)
    return statistics.median(durations_s) if durations_s else 0.0
