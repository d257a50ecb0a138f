"""Where a group's consumers begin: what is stored already is learnt, and the rest is left to the rule."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

import structlog

from engine.decide import joins
from engine.decide.instructions import StageRule
from engine.decide.starting_points import first_inputs, ranges_lacking, stored_last
from engine.run.group import Group
from engine.spec.jobs import Span
from engine.spec.workflow import MEDIA
from streams import subjects
from streams.errors import LinkError, PenstockError
from streams.subjects import Key
from streams.wire import retention
from streams.wire.ledger import Ledger

log = structlog.get_logger(__name__)

MAX_OUT_OF_ORDER = 64  # results under way at once: how far the order of storing may differ from that of the stream


class Start(NamedTuple):
    """Where a group's consumer begins in a JetStream stream, and the subjects it listens to."""

    seq: int
    filters: Sequence[str]


async def where_to_start(
    ledger: Ledger, group: Group, left: Mapping[str, Sequence[Span]] | None = None
) -> dict[str, Start] | None:
    """Tell a group what is stored. For each JetStream stream it has to listen to, where the first input is of anything
    that is still to be done, of what is `left` of what was asked; None where nothing is."""
    stored = {id: subjects.keys_of(await ledger.subjects(subjects.results_of(id, group.stream))) for id in group.stages}
    for id, keys in stored.items():
        group.rule.remember(id, keys)
    end = await group.cache.end()
    rules = [stage.rule for stage in group.stages.values()]
    num_segments = None if end is None else end[1].num_segments
    firsts = first_inputs(rules, stored, num_segments, left)
    if firsts is None:
        return None
    ranges = ranges_lacking(rules, stored, num_segments, left)
    if ranges and (start := await _at_what_completes(group, ranges)) is not None:
        return {retention.RESULTS: start}
    external = group.external
    behind = {name: await ledger.last_stored(name) + 1 for name in external}
    found: dict[str, list[int]] = {name: [] for name in external}
    for source, index in firsts.items():
        name = retention.MEDIA if source == MEDIA else retention.RESULTS
        seq = await _seq_from(ledger, group.stream, source, index)
        found[name].append(behind[name] if seq is None else seq)
    return {name: Start(min(found[name], default=1), filters) for name, filters in external.items()}


async def start_again(
    ledger: Ledger,
    group: Group,
    left: Callable[[], Awaitable[Mapping[str, Sequence[Span]]]],
    stream: str,
    began: int,
) -> int:
    """Where a consumer in a JetStream stream begins that was lost and is made again. From where it began, all would be
    computed again, in order, that was answered and has gone since: that took minutes."""
    try:
        starts = await where_to_start(ledger, group, await left())
        return starts[stream].seq if starts and stream in starts else await ledger.last_stored(stream) + 1
    except LinkError:
        raise
    except PenstockError as error:
        log.warning("cannot_tell_where_to_start", group=group.name, error=str(error))
        return began


async def _at_what_completes(group: Group, ranges: Sequence[tuple[StageRule, Key]]) -> Start | None:
    """Where every input of these is stored, the one of each that sets it off. So of an hour one result is delivered and
    not the hour, for each question, and the server need not count through what was stored since."""
    seqs: dict[str, int] = {}
    for stage, key in ranges:
        wanted = joins.needs(stage.scope, key, None)
        inputs = {source: await group.cache.get(source, wanted) for source in stage.sources}  # it will read them anyway
        last = stored_last(stage, inputs, len(wanted))
        if last is None:
            return None
        source, index, seq = last
        seqs[subjects.result(source, group.stream, Key.of(index))] = seq
    return Start(min(seqs.values()), sorted(seqs))


async def _seq_from(ledger: Ledger, stream: str, source: str, index: int) -> int | None:
    """The first sequence, in the order of storing, of a source's records from a segment on; None where none is
    stored. A stream may have hundreds of thousands: they are listed only where that segment is not there."""
    every = subjects.media_of(stream) if source == MEDIA else subjects.results_of(source, stream)
    oldest = await ledger.next(every, 1)
    if oldest is None:
        return None
    if all(key.first >= index for key in subjects.keys_of([oldest.record.subject])):
        return oldest.record.seq
    there = await _seqs(ledger, stream, source, [Key.of(at) for at in range(index, index + MAX_OUT_OF_ORDER)])
    if Key.of(index) not in there:
        found = sorted(key for key in subjects.keys_of(await ledger.subjects(every)) if key.first >= index)
        there = await _seqs(ledger, stream, source, found[:MAX_OUT_OF_ORDER])
    return min(there.values(), default=None)


async def _seqs(ledger: Ledger, stream: str, source: str, keys: Sequence[Key]) -> dict[Key, int]:
    names = {
        subjects.media(stream, key.first) if source == MEDIA else subjects.result(source, stream, key): key
        for key in keys
    }
    return {names[name]: stored.seq for name, stored in (await ledger.get_many(names)).items()}
