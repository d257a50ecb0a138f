"""Where a group's consumers begin: what is stored already is learnt, and the rest is left to the rule."""

from engine.decide.starting_points import first_inputs
from engine.run.group import Group
from engine.spec.workflow import MEDIA
from streams import subjects
from streams.wire import retention
from streams.wire.ledger import Ledger

MAX_OUT_OF_ORDER = 64  # results under way at once: how far the order of storing may differ from that of the stream


async def where_to_start(ledger: Ledger, group: Group) -> dict[str, int] | None:
    """Tell a group what is stored. For each JetStream stream it listens to, the sequence of the first input of anything
    that is still to be done; None where nothing is."""
    stored = {id: subjects.keys_of(await ledger.subjects(subjects.results_of(id, group.stream))) for id in group.stages}
    for id, keys in stored.items():
        group.rule.remember(id, keys)
    end = await group.cache.end()
    names = list(group.external)
    lasts = {name: await ledger.last_stored(name) for name in names}
    rules = [stage.rule for stage in group.stages.values()]
    firsts = first_inputs(rules, stored, None if end is None else end[1].num_segments)
    if firsts is None:
        return None
    starts: dict[str, list[int]] = {name: [] for name in names}
    for source, index in firsts.items():
        name = retention.MEDIA if source == MEDIA else retention.RESULTS
        seq = await _seq_from(ledger, group.stream, source, index)
        starts[name].append(lasts[name] + 1 if seq is None else seq)
    return {name: min(found, default=1) for name, found in starts.items()}


async def _seq_from(ledger: Ledger, stream: str, source: str, index: int) -> int | None:
    """The first sequence, in the order of storing, of a source's records from a segment on."""
    every = subjects.media_of(stream) if source == MEDIA else subjects.results_of(source, stream)
    found = sorted(key for key in subjects.keys_of(await ledger.subjects(every)) if key.first >= index)
    names = [
        subjects.media(stream, key.first) if source == MEDIA else subjects.result(source, stream, key)
        for key in found[:MAX_OUT_OF_ORDER]
    ]
    return min((stored.seq for stored in (await ledger.get_many(names)).values()), default=None)
