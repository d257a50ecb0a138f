"""The contract of an operator, checked: what engine.spec.operator promises in words, as questions to the code.

Retries, regrouping and shared results rest on one thing: the same inputs and knobs give the same output. So every item
is computed again by the same instance in another order, by a fresh instance from media not decoded yet, and in batches
forwards and backwards. Outputs count as the same where they are stored as the same bytes.
"""

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import msgspec

from engine.spec.operator import Entry, Inputs, Media, Operator, Reduce, Settings
from operators.testing.calling import (
    ContractError,
    knobs_of,
    loaded,
    outputs_over,
    params_of,
    place,
    process,
    process_all,
    shown,
)
from operators.testing.declared import (
    RAISE_OURS,
    check_declarations,
    check_rungs,
    check_what_is_asked_before,
    foreseen,
    require,
    said,
)
from operators.testing.toy_stream import decoded, gap, toy_stream
from streams.errors import Permanent, Transient, UserError
from streams.records import MediaInfo, Segment, encode

Items = Sequence[Inputs]


def check_contract(
    operator: type[Operator],
    inputs: Mapping[str, Any],
    *,
    params: Mapping[str, Any] | Settings | None = None,
    knobs: Mapping[str, Any] | Settings | None = None,
) -> None:
    """Check everything the engine relies on, on the given inputs (as for `run`: a few short segments are enough).

    Raises ContractError for the first thing that is wrong. Raises UserError where the inputs do not fit the capability.
    """
    check_declarations(operator)
    check_rungs(operator)
    check_what_is_asked_before(operator, None)
    chosen = knobs_of(operator, knobs)
    instance = foreseen(operator, "load", lambda: loaded(operator, chosen))
    _check_demands(instance)
    stream = toy_stream(instance, inputs)
    asked = params_of(instance, params)
    check_what_is_asked_before(operator, _info_of(stream.segments()), asked)
    pairs = foreseen(operator, "process", lambda: outputs_over(instance, stream, asked))
    items = [item for item, _ in pairs if isinstance(item, Inputs)]
    if not items:
        raise UserError("every output is a gap; give at least one segment with values on all ports")
    outputs = [output for item, output in pairs if isinstance(item, Inputs)]
    _check_shared_work(operator, chosen, items)
    foreseen(operator, "process, asked again,", lambda: _check_same(operator, instance, items, outputs))
    if operator.runs_in == "process":
        foreseen(operator, "process, asked again,", lambda: _check_crosses(operator, chosen, items, outputs))
    _check_damage(operator, instance, items)


def _info_of(found: Sequence[Segment]) -> MediaInfo:
    codecs: dict[str, tuple[str, ...]] = {}
    for track in (track for segment in found for track in segment.tracks):
        codecs[track.kind] = tuple(dict.fromkeys((*codecs.get(track.kind, ()), track.codec)))
    return MediaInfo(codecs=codecs)


def _check_demands(instance: Operator) -> None:
    where = f"{place(type(instance))}, demands()"
    demands = foreseen(type(instance), "demands()", instance.demands)
    require(isinstance(demands, tuple), where, f"returned {type(demands).__name__}", "return a tuple of specs")
    try:
        hash(demands)
    except TypeError as error:
        raise ContractError(f"{where}: {error}; return a tuple of specs, such as (AudioSpec(),)") from error


def _check_shared_work(operator: type[Operator], knobs: Settings, items: Items) -> None:
    where = f"{place(operator)}, shared_work()"
    for item in items:
        named = foreseen(operator, "shared_work()", partial(operator.shared_work, knobs, item))
        try:
            frozenset(named)
        except TypeError as error:
            raise ContractError(f"{where}: {error}; return a frozenset of names, such as frozenset({{7}})") from error


def _check_same(operator: type[Operator], instance: Operator, items: Items, outputs: Sequence[Any]) -> None:
    batched = operator.max_batch > 1 and str(operator.runs_in) != "async"
    alone = [process(instance, [item])[0] for item in items] if batched else outputs
    backwards = [process(instance, [item])[0] for item in reversed(items)][::-1]
    _compare(
        operator,
        items,
        alone,
        backwards,
        "asked again in another order",
        "keep nothing between calls that shows in the output, and leave what is given as it is",
    )
    fresh = loaded(operator, instance.knobs)
    again = [process(fresh, [_afresh(item, instance.demands())])[0] for item in items]
    _compare(operator, items, alone, again, "asked of another instance", "make it depend on inputs and knobs alone")
    if batched:
        right = "compute each item as if it were alone in the batch"
        _compare(operator, items, alone, outputs, "asked in a batch", right)
        mixed = process_all(fresh, [_afresh(item, instance.demands()) for item in reversed(items)])[::-1]
        _compare(operator, items, alone, mixed, "asked in a batch in another order", right)


def _compare(
    operator: type[Operator], items: Items, before: Sequence[Any], after: Sequence[Any], when: str, right: str
) -> None:
    for item, one, other in zip(items, before, after, strict=True):
        if encode(one) != encode(other):
            where = f"{place(operator)}, segment {item.last}"
            raise ContractError(
                f"{where}: {when} it gave {shown(other)}, and {shown(one)} before; the same inputs and knobs must give"
                f" the same output: {right}"
            )


def _check_crosses(operator: type[Operator], knobs: Settings, items: Items, outputs: Sequence[Any]) -> None:
    """Whether a child process can be given the class, the knobs and the inputs, and give back the outputs."""
    where = place(operator)
    try:
        found: Any = getattr(import_module(operator.__module__), operator.__name__, None)
    except ImportError:
        found = None
    require(
        found is operator, where, 'it runs in a "process", which cannot import it', "define it in a module, at the top"
    )
    crossed = [
        _pickled(f"{where}, segment {item.last}: the {what}", value)
        for item, output in zip(items, outputs, strict=True)
        for what, value in (("inputs", item), ("output", output))
    ]
    child = loaded(operator, _pickled(f"{where}: the knobs", knobs))
    there = [process(child, [item])[0] for item in crossed[::2]]
    _compare(operator, items, outputs, there, "asked in another process", "make its inputs all that it depends on")
    _compare(
        operator, items, outputs, crossed[1::2], "after its way back from another process", "let outputs be structs"
    )


def _pickled(what: str, value: Any) -> Any:
    try:
        return pickle.loads(pickle.dumps(value))
    except Exception as error:  # whatever the value's own code raises
        raise ContractError(
            f"{what} cannot be pickled ({error}); let it be made of structs and plain values"
        ) from error


def _check_damage(operator: type[Operator], instance: Operator, items: Items) -> None:
    """Whether it takes gaps around what it answers for, and says so by its own errors where it cannot read media."""
    middle = items[len(items) // 2]
    alone = msgspec.structs.replace(middle, ports=_without_neighbours(operator, middle), previous=None)
    _check_error(instance, alone, "what may be missing is missing")
    for what, item in _malformed(items[0]):
        _check_error(instance, item, what)


def _check_error(instance: Operator, item: Inputs, what: str) -> None:
    try:
        process(instance, [item])
    except (Transient, Permanent):
        return
    except ContractError as error:
        raise ContractError(f"where {what}: {error}") from error
    except Exception as error:
        where = f"{place(type(instance))}, segment {item.last}, where {what}"
        raise ContractError(f"{where}: process raised {said(error)}; {RAISE_OURS}") from error


def _without_neighbours(operator: type[Operator], item: Inputs) -> Mapping[str, tuple[tuple[Entry, ...], ...]]:
    """Gaps in place of all entries that may be gaps: all of a reduce, those beside the output's own otherwise."""
    everything = isinstance(operator.scope, Reduce)
    lost = gap("lost")
    return _mapped(
        item, lambda entry: Entry(entry.index, None, lost) if everything or entry.index != item.last else entry
    )


def _malformed(item: Inputs) -> Iterator[tuple[str, Inputs]]:
    """The item with the media of its own segment damaged, one way after the other."""
    for what, damage in DAMAGES.items():
        touched = False

        def damaged(entry: Entry, damage: Callable[[Segment], Segment] = damage) -> Entry:
            nonlocal touched
            if entry.index != item.last or not isinstance(entry.value, Media):
                return entry
            touched = True
            return Entry(entry.index, Media(damage(entry.value.segment)))

        ports = _mapped(item, damaged)
        if touched:
            yield what, msgspec.structs.replace(item, ports=ports)


def _zeroed(segment: Segment) -> Segment:
    packets = tuple(msgspec.structs.replace(each, data=bytes(len(each.data))) for each in segment.packets)
    return msgspec.structs.replace(segment, packets=packets)


def _cut_short(segment: Segment) -> Segment:
    packets = tuple(msgspec.structs.replace(each, data=each.data[: len(each.data) // 3]) for each in segment.packets)
    return msgspec.structs.replace(segment, packets=packets)


def _of_unknown_codec(segment: Segment) -> Segment:
    tracks = tuple(msgspec.structs.replace(each, codec="no_such_codec") for each in segment.tracks)
    return msgspec.structs.replace(segment, tracks=tracks)


DAMAGES: Mapping[str, Callable[[Segment], Segment]] = {
    "the segment has no packets": lambda segment: msgspec.structs.replace(segment, packets=()),
    "the segment has no tracks": lambda segment: msgspec.structs.replace(segment, packets=(), tracks=()),
    "the packets are all zeros": _zeroed,
    "the packets are cut short": _cut_short,
    "the codec is unknown": _of_unknown_codec,
}


def _afresh(item: Inputs, demands: Sequence[Any]) -> Inputs:
    """The same item, decoded anew."""

    def fresh(entry: Entry) -> Entry:
        media = entry.value
        return Entry(entry.index, decoded(media.segment, demands)) if isinstance(media, Media) else entry

    return msgspec.structs.replace(item, ports=_mapped(item, fresh))


def _mapped(item: Inputs, change: Callable[[Entry], Entry]) -> dict[str, tuple[tuple[Entry, ...], ...]]:
    return {port: tuple(tuple(map(change, source)) for source in sources) for port, sources in item.ports.items()}
