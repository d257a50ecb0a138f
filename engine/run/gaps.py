"""Gaps where everyone can see them: each is noted, as JSON, on `penstock.gaps.<cause>.<stage>.<stream>.<segment>`.

The gap itself is the record that stands in the place of the result; the note, stored behind it, makes gaps a subject to
subscribe to and their number a question to the server. A death between the two loses a note, never a gap.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from streams import subjects
from streams.records import Gap, encode
from streams.subjects import Key
from streams.wire.ledger import Ledger, NewRecord


async def note_gaps(ledger: Ledger, gaps: Iterable[Gap]) -> None:
    """Note gaps that were stored just now."""
    records = [
        NewRecord(subjects.gap(gap.cause, gap.stage, gap.stream, Key(gap.first, gap.last)), msgspec.json.encode(gap))
        for gap in gaps
    ]
    if records:
        await ledger.put_many(records)


async def put_gaps(ledger: Ledger, gaps: Sequence[Gap]) -> None:
    """Store gaps in the places of results that nobody will compute, where there are none, and note them."""
    records = [NewRecord(subjects.result(gap.stage, gap.stream, Key(gap.first, gap.last)), encode(gap)) for gap in gaps]
    placed = await ledger.put_many(records)
    await note_gaps(ledger, [gap for gap, place in zip(gaps, placed, strict=True) if place.fresh])


async def count_gaps(ledger: Ledger, stream: str) -> dict[str, int]:
    """How many outputs of stages of a stream, and segments of it, there are gaps for, by cause."""
    counts: Counter[str] = Counter()
    for subject in await ledger.subjects(subjects.gaps_of(stream)):
        counts[subject.split(".")[2]] += 1
    return dict(counts)
