"""The contract of an operator, checked: what engine.spec.operator promises in words, as questions to the code.

Retries, regrouping and shared results rest on one thing: the same inputs and knobs give the same output. So every item
is computed again by the same instance in another order, by a fresh instance from media not decoded yet, and in batches
forwards and backwards. Outputs count as the same where they are stored as the same bytes.
"""

import inspect
import numbers
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import msgspec

from engine.spec.operator import (
    Capability,
    Entry,
    Fold,
    Inputs,
    Machine,
    Map,
    Media,
    Operator,
    Reduce,
    Rung,
    Settings,
    Window,
)
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
from operators.testing.toy_stream import gap, toy_stream
from streams import subjects
from streams.errors import PenstockError, Permanent, Transient, UserError
from streams.records import MediaInfo, Segment, encode

MAX_MISSING_S = 3.0
RUNS_IN = ("loop", "thread", "process", "async")

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
    _check_declarations(operator)
    _check_rungs(operator)
    chosen = knobs_of(operator, knobs)
    instance = loaded(operator, chosen)
    _require_hashable(instance)
    stream = toy_stream(instance, inputs)
    _check_what_is_asked_before(operator, stream.segments())
    asked = params_of(instance, params)
    try:
        pairs = outputs_over(instance, stream, asked)
    except PenstockError as error:
        raise ContractError(
            f"{place(operator)}: process raised {type(error).__name__} on the given inputs ({error}); give inputs that"
            " it can compute"
        ) from error
    items = [item for item, _ in pairs if isinstance(item, Inputs)]
    if not items:
        raise UserError("every output is a gap; give at least one segment with values on all ports")
    outputs = [output for item, output in pairs if isinstance(item, Inputs)]
    _check_same(operator, instance, items, outputs)
    if operator.runs_in == "process":
        _check_crosses(operator, chosen, items, outputs)
    _check_damage(operator, instance, items)


# --- what it declares --------------------------------------------------------------------------------------


def _require(holds: bool, where: str, what: str, right: str) -> None:
    if not holds:
        raise ContractError(f"{where}: {what}; {right}")


def _check_declarations(operator: type[Operator]) -> None:
    _require(
        isinstance(operator, type) and issubclass(operator, Operator),
        shown(operator),
        "is not an operator",
        "derive a class from Operator",
    )
    where = place(operator)
    lacking = ", ".join(sorted(getattr(operator, "__abstractmethods__", ())))
    _require(not inspect.isabstract(operator), where, f"does not define {lacking}", "define it")
    capability = getattr(operator, "capability", None)
    if not isinstance(capability, Capability):
        raise ContractError(f"{where}: capability is {shown(capability)}; declare a Capability")
    _check_capability(where, capability)
    name = getattr(operator, "name", None)
    _require(isinstance(name, str) and name != "", where, f"name is {shown(name)}", "give it a name, such as 'rms'")
    checks: tuple[tuple[str, bool, str], ...] = (
        ("version", _is_count(operator.version), "give a whole number from 1"),
        ("max_batch", _is_count(operator.max_batch), "give a whole number from 1"),
        ("timeout_s", _is_number(operator.timeout_s) and operator.timeout_s > 0, "give seconds above 0"),
        ("runs_in", operator.runs_in in RUNS_IN, f"give one of {', '.join(RUNS_IN)}"),
        ("devices", bool(operator.devices) and set(operator.devices) <= {"cpu", "cuda"}, "give 'cpu', 'cuda' or both"),
        (
            "scope",
            _is_scope(operator.scope),
            "give Map(), Fold(), Window(size) or Reduce(), counts from 0, sizes from 1",
        ),
        ("Knobs", _is_settings(operator.Knobs), "derive it from Settings"),
    )
    for attribute, holds, right in checks:
        _require(holds, where, f"{attribute} is {shown(getattr(operator, attribute))}", right)


def _check_capability(where: str, capability: Capability) -> None:
    here = f"{where}, capability {capability.name!r}"
    try:
        subjects.token(capability.name)
    except (UserError, TypeError) as error:
        raise ContractError(f"{here}: its name cannot be part of a subject; use A-Z a-z 0-9 _ -") from error
    _require(bool(capability.inputs), here, "has no inputs", "give at least one port")
    for name, port in capability.inputs.items():
        holds = port.type is Media or _is_struct(port.type)
        _require(holds, here, f"port {name!r} has type {shown(port.type)}", "give Media or an output type")
    _require(_is_struct(capability.output), here, f"output is {shown(capability.output)}", "derive it from Record")
    strict = capability.output.__struct_config__.forbid_unknown_fields
    _require(
        not strict, here, "output refuses unknown fields, so no later version can be read", "derive it from Record"
    )
    _require(_is_settings(capability.params), here, f"params is {shown(capability.params)}", "derive it from Settings")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_struct(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, msgspec.Struct)


def _is_settings(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Settings)


def _is_scope(scope: Any) -> bool:
    match scope:
        case Map(before, after):
            return before >= 0 and after >= 0
        case Window(size):
            return size >= 1
        case _:
            return isinstance(scope, Fold | Reduce)


def _check_rungs(operator: type[Operator]) -> None:
    where = f"{place(operator)}, rungs()"
    rungs = operator.rungs()
    _require(bool(rungs), where, "there are none", "return at least one Rung")
    for rung in rungs:
        _require(isinstance(rung, Rung), where, f"{shown(rung)} is no Rung", "return Rung(name, quality, knobs)")
        here = f"{where}, {rung.name!r}"
        in_range = _is_number(rung.quality) and 0 <= rung.quality <= 1
        _require(in_range, here, f"quality is {shown(rung.quality)}", "give a number from 0 to 1")
        known = isinstance(rung.knobs, operator.Knobs)
        _require(known, here, f"knobs is {shown(rung.knobs)}", f"give {operator.Knobs.__name__}, which Knobs names")
        try:  # a plan holds knobs as data
            data = msgspec.json.decode(msgspec.json.encode(msgspec.to_builtins(rung.knobs)))
            same = msgspec.convert(data, operator.Knobs) == rung.knobs
        except (TypeError, ValueError) as error:
            raise ContractError(
                f"{here}: knobs cannot be written to a plan and read back ({error}); give fields types that JSON has"
            ) from error
        _require(same, here, "knobs are not the same after being written to a plan", "give fields types that JSON has")
    names = [rung.name for rung in rungs]
    twice = next((name for name in names if names.count(name) > 1), None)
    _require(twice is None, where, f"two are called {twice!r}", "give each a name of its own")
    ordered = [rung.quality for rung in rungs] == sorted((rung.quality for rung in rungs), reverse=True)
    _require(ordered, where, "they are not in order of quality", "put the best first")


def _check_what_is_asked_before(operator: type[Operator], found: Sequence[Segment]) -> None:
    """`missing` and `notice`, which a plan asks on every run."""
    codecs: dict[str, tuple[str, ...]] = {}
    for track in (track for segment in found for track in segment.tracks):
        codecs[track.kind] = tuple(dict.fromkeys((*codecs.get(track.kind, ()), track.codec)))
    known = [None, MediaInfo(codecs=codecs)]
    machines = [Machine(num_cores=os.cpu_count() or 1), Machine(num_cores=1, has_gpu=True)]
    for rung in operator.rungs():
        where = f"{place(operator)}, rung {rung.name!r}"
        for machine in machines:
            for media in known:
                _check_line(f"{where}: missing()", partial(operator.missing, rung.knobs, machine, media))
        _check_line(f"{where}: notice()", partial(operator.notice, rung.knobs))


def _check_line(where: str, ask: Callable[[], Any]) -> None:
    """Whether it says one line or None, in time. One that hangs is left behind."""
    said: list[Any] = []

    def answer() -> None:
        try:
            said.append(ask())
        except Exception as error:
            said.append(error)

    asking = threading.Thread(target=answer, daemon=True)
    began_s = time.monotonic()
    asking.start()
    asking.join(MAX_MISSING_S)
    took_s = time.monotonic() - began_s
    in_time = f"answer within {MAX_MISSING_S:g} s: it is asked on every run"
    _require(bool(said), where, f"has not answered after {took_s:.1f} s", in_time)
    (answered,) = said
    right = "return one line that says why it cannot run, or None"
    _require(not isinstance(answered, Exception), where, f"raised {type(answered).__name__}: {answered}", right)
    holds = answered is None or (isinstance(answered, str) and answered != "" and len(answered.splitlines()) == 1)
    _require(holds, where, f"returned {shown(answered)}", right)


# --- what it does --------------------------------------------------------------------------------------------


def _require_hashable(instance: Operator) -> None:
    where, demands = f"{place(type(instance))}, demands()", instance.demands()
    try:
        hash(demands)
    except TypeError as error:
        raise ContractError(f"{where}: {error}; return a tuple of specs, such as (AudioSpec(),)") from error
    _require(isinstance(demands, tuple), where, f"returned {type(demands).__name__}", "return a tuple of specs")


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
    again = [process(fresh, [_afresh(item)])[0] for item in items]
    _compare(operator, items, alone, again, "asked of another instance", "make it depend on inputs and knobs alone")
    if batched:
        right = "compute each item as if it were alone in the batch"
        _compare(operator, items, alone, outputs, "asked in a batch", right)
        mixed = process_all(fresh, [_afresh(item) for item in reversed(items)])[::-1]
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
    _require(
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
        raise ContractError(
            f"{place(type(instance))}, segment {item.last}, where {what}: process raised {type(error).__name__}"
            f" ({shown(error)}); compute what there is, or raise Permanent (it never will) or Transient (it may pass)"
        ) from error


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
            return Entry(entry.index, Media(damage(entry.value.segment), entry.value.demands))

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


def _afresh(item: Inputs) -> Inputs:
    """The same item, with nothing decoded yet."""

    def fresh(entry: Entry) -> Entry:
        media = entry.value
        return Entry(entry.index, Media(media.segment, media.demands)) if isinstance(media, Media) else entry

    return msgspec.structs.replace(item, ports=_mapped(item, fresh))


def _mapped(item: Inputs, change: Callable[[Entry], Entry]) -> dict[str, tuple[tuple[Entry, ...], ...]]:
    return {port: tuple(tuple(map(change, source)) for source in sources) for port, sources in item.ports.items()}
