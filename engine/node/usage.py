"""Usage: what each stream takes of the ledger, by kind of record."""

from collections import defaultdict

import msgspec

from engine.decide.answer import time_of_day
from streams.records import Record
from streams.subjects import PREFIX, stream_in
from streams.wire.ledger import Ledger
from streams.wire.trimming import told

KINDS = {  # of records, and what they are counted as
    "media": "media",
    "bulk": "media",
    "results": "results",
    "dead": "results",
    "gaps": "results",
    "answers": "answers",
}


class Usage(Record, frozen=True, omit_defaults=False):
    """What is stored of one stream. The bytes of results include dead letters and gaps."""

    stream: str
    num_segments: int = 0
    num_results: int = 0
    num_answers: int = 0
    media_bytes: int = 0
    results_bytes: int = 0
    answers_bytes: int = 0
    oldest: str = ""  # RFC 3339: when the first of it was stored


async def usage(ledger: Ledger) -> list[Usage]:
    """By stream, in order of name. Records are told by their headers: some 30,000 in a second."""
    found: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
    oldest: dict[str, int] = {}
    for kind, counted_as in KINDS.items():
        async for record in told(ledger.link, f"{PREFIX}.{kind}.>"):
            stream = stream_in(record.subject)
            counts = found[stream]
            counts[f"{counted_as}_bytes"] += record.num_bytes
            if kind in ("media", "results", "answers") and not record.subject.endswith(".end"):
                counts[{"media": "num_segments"}.get(kind, f"num_{kind}")] += 1
            oldest[stream] = min(record.stored_ns, oldest.get(stream, record.stored_ns))
    return [Usage(stream=name, oldest=time_of_day(oldest[name]), **found[name]) for name in sorted(found)]


def total(found: list[Usage]) -> Usage:
    """Of all streams together."""
    numbers = [name for name in Usage.__struct_fields__ if name.startswith("num_") or name.endswith("_bytes")]
    sums = {name: sum(getattr(each, name) for each in found) for name in numbers}
    return msgspec.structs.replace(Usage(stream="all"), **sums, oldest=min((each.oldest for each in found), default=""))
