"""Arrears: what a group has yet to do of what is asked of it, and so where its consumers begin."""

from collections.abc import Mapping, Sequence

from engine.decide import joins
from engine.run.segment_cache import Shelf
from engine.run.work import GroupStage
from engine.spec.operator import Fold, Reduce
from engine.spec.workflow import MEDIA
from streams import subjects
from streams.subjects import Key
from streams.wire import ledger as ledgers
from streams.wire.ledger import Ledger

MAX_OUT_OF_ORDER = 64  # results under way at once: how far the order of storing may differ from that of the stream


async def where_to_start(
    ledger: Ledger,
    shelf: Shelf,
    stages: Sequence[GroupStage],
    stored: Mapping[str, set[Key]],
    names: Sequence[str],
) -> dict[str, int] | None:
    """For each of these JetStream streams, the sequence of the first input of anything that is still to be done; None
    where nothing is. `stored` has the outputs of each stage that are there."""
    end = await shelf.end()
    lasts = {name: await ledger.last_stored(name) for name in names}
    firsts = first_inputs(stages, stored, None if end is None else end[1].num_segments)
    if firsts is None:
        return None
    starts: dict[str, list[int]] = {name: [] for name in names}
    for source, index in firsts.items():
        name = ledgers.MEDIA if source == MEDIA else ledgers.RESULTS
        seq = await _seq_from(ledger, shelf.stream, source, index)
        starts[name].append(lasts[name] + 1 if seq is None else seq)
    return {name: min(found, default=1) for name, found in starts.items()}


def first_inputs(
    stages: Sequence[GroupStage], stored: Mapping[str, set[Key]], num_segments: int | None
) -> dict[str, int] | None:
    """For each source from outside the group, the first segment that what is lacking is made from; None where nothing
    is lacking. What a stage lacks of another stage of the group leads on to what that one was made from, stored or
    not: it is the other's output that sets this one off, and a fold's own one before. Pure."""
    inside = {stage.id for stage in stages}
    lacking: dict[str, int] = {}
    for stage in stages:
        first = first_lacking(stage, stored[stage.id], num_segments)
        if first is not None:
            lacking[stage.id] = first
    if not lacking:
        return None
    firsts: dict[str, int] = {}
    for stage in reversed(stages):
        if stage.id not in lacking:
            continue
        scope = stage.planned.scope
        index = joins.needs(scope, Key.of(lacking[stage.id]), None).start
        if isinstance(scope, Fold):
            index = max(0, index - 1)
        for source in stage.awaited:
            found = lacking if source in inside else firsts
            found[source] = min(index, found.get(source, index))
    return firsts


def first_lacking(stage: GroupStage, stored: set[Key], num_segments: int | None) -> int | None:
    """The first segment of an output that is asked for and not stored; None where all are. Pure."""
    found: list[int] = []
    last_known = None if num_segments is None else num_segments - 1
    for span in stage.running.spans:
        last = span.last if last_known is None else min(last_known, last_known if span.last is None else span.last)
        if isinstance(stage.planned.scope, Reduce):
            if last is None or Key(span.first, last) not in stored:
                found.append(span.first)
            continue
        index = span.first
        while (last is None or index <= last) and Key.of(index) in stored:
            index += 1
        if last is None or index <= last:
            found.append(index)
    return min(found, default=None)


async def _seq_from(ledger: Ledger, stream: str, source: str, index: int) -> int | None:
    """The first sequence, in the order of storing, of a source's records from a segment on."""
    every = subjects.media_of(stream) if source == MEDIA else subjects.results_of(source, stream)
    found = sorted(key for key in subjects.keys_of(await ledger.subjects(every)) if key.first >= index)
    names = [
        subjects.media(stream, key.first) if source == MEDIA else subjects.result(source, stream, key)
        for key in found[:MAX_OUT_OF_ORDER]
    ]
    return min((stored.seq for stored in (await ledger.get_many(names)).values()), default=None)
