"""Calls an operator as the engine does, without the engine: no server, no retry, no threads.

An output is returned as a later stage would be given it, so after its trip through the codec.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import anyio
import msgspec

from engine.spec.operator import Device, Fold, Inputs, Machine, Operator, Settings
from operators.testing.toy_stream import ToyStream, toy_stream
from streams.errors import UserError
from streams.records import Gap, encode

MAX_SHOWN = 100  # characters of a value in an error


class ContractError(AssertionError):
    """An operator breaks the contract. The message is one line: what, where, what would be right."""


def run(
    operator: type[Operator] | Operator,
    inputs: Mapping[str, Any],
    *,
    params: Mapping[str, Any] | Settings | None = None,
    knobs: Mapping[str, Any] | Settings | None = None,
) -> list[Any]:
    """Every output over a whole toy stream, in order; a Gap where the engine would store one.

    `inputs` has for each port a list with one value a segment, `gap("why")` where there is none; for a port with many
    sources a list of such lists. A media port takes Segments (numbered from 0 as they stand) or the path of a file.
    A class is loaded with `knobs`, or those of its best rung that can run here; an instance is used as it is, so load
    it first. What the operator raises is raised. Raises UserError where the inputs do not fit the capability.
    """
    instance = _ready(operator, knobs)
    stream = toy_stream(instance, inputs)
    return [output for _, output in outputs_over(instance, stream, params_of(instance, params))]


def inputs_of(
    operator: type[Operator] | Operator,
    inputs: Mapping[str, Any],
    *,
    params: Mapping[str, Any] | Settings | None = None,
) -> list[Inputs | Gap]:
    """What the operator would be given for each output, in order, or the gap in its place: for tests of the functions
    that an operator is made of. A fold's `previous` is None throughout."""
    instance = _ready(operator, None) if isinstance(operator, Operator) else operator(knobs_of(operator, None))
    stream, asked = toy_stream(instance, inputs), params_of(instance, params)
    return [stream.inputs(key, asked) for key in stream.outputs()]


def loaded(
    operator: type[Operator],
    knobs: Mapping[str, Any] | Settings | None = None,
    device: Device | None = None,
) -> Operator:
    """An instance ready to process: for tests that use a costly one several times."""
    instance = operator(knobs_of(operator, knobs))
    instance.load(device or Device())
    return instance


def _ready(operator: type[Operator] | Operator, knobs: Mapping[str, Any] | Settings | None) -> Operator:
    if isinstance(operator, type):
        return loaded(operator, knobs)
    if knobs is not None:
        raise UserError(f"{place(type(operator))} is an instance, which has knobs already; give the class with knobs")
    return operator


def params_of(operator: Operator, params: Mapping[str, Any] | Settings | None) -> Any:
    return _settings(operator.capability.params, params or {}, f"params of {operator.capability.name!r}")


def knobs_of(operator: type[Operator], knobs: Mapping[str, Any] | Settings | None) -> Any:
    if knobs is not None:
        return _settings(operator.Knobs, knobs, f"knobs of {place(operator)}")
    machine = Machine(num_cores=os.cpu_count() or 1)
    rungs = operator.rungs()
    return next((rung for rung in rungs if operator.missing(rung.knobs, machine, None) is None), rungs[0]).knobs


def _settings(kind: type[Settings], given: Mapping[str, Any] | Settings, what: str) -> Any:
    if isinstance(given, kind):
        return given
    try:
        return msgspec.convert(msgspec.to_builtins(given), kind)
    except msgspec.ValidationError as error:
        fields = ", ".join(kind.__struct_fields__) or "none"
        raise UserError(f"{what}: {error}; there are: {fields}") from error


def outputs_over(operator: Operator, stream: ToyStream, params: Any) -> list[tuple[Inputs | Gap, Any]]:
    """What the operator was given and what it returned, for each output of the stream; gaps are answered by gaps."""
    found: list[tuple[Inputs | Gap, Any]] = []
    if isinstance(stream.scope, Fold):  # each needs the one before
        previous = None
        for key in stream.outputs():
            item = stream.inputs(key, params, previous)
            output = item if isinstance(item, Gap) else process(operator, [item])[0]
            previous = None if isinstance(output, Gap) else output
            found.append((item, output))
        return found
    items = [stream.inputs(key, params) for key in stream.outputs()]
    outputs = iter(process_all(operator, [item for item in items if isinstance(item, Inputs)]))
    return [(item, item if isinstance(item, Gap) else next(outputs)) for item in items]


def process_all(operator: Operator, items: Sequence[Inputs]) -> list[Any]:
    """In batches as large as the operator takes."""
    size = operator.max_batch
    return [output for at in range(0, len(items), size) for output in process(operator, items[at : at + size])]


def process(operator: Operator, batch: Sequence[Inputs]) -> list[Any]:
    """The outputs of one batch, each as a later stage would be given it. Raises ContractError where they cannot be
    stored."""
    where = f"{place(type(operator))}, {_spoken(batch)}"
    if str(operator.runs_in) == "async":  # it batches by itself: asked one by one
        process_one: Any = getattr(operator, "process_one")  # noqa: B009 - not every operator has it
        outputs: Sequence[Any] = [anyio.run(process_one, item, _ignored) for item in batch]
    else:
        outputs = operator.process(batch)
    if not isinstance(outputs, Sequence) or len(outputs) != len(batch):
        got = f"{len(outputs)} outputs" if isinstance(outputs, Sequence) else type(outputs).__name__
        raise ContractError(
            f"{where}: process returned {got} for {len(batch)} inputs; return a list with one output for each, in order"
        )
    return [_stored(operator, output, where) for output in outputs]


def _ignored(text: str, *, anew: bool = False) -> None:
    """Where partial output goes."""


def _stored(operator: Operator, output: Any, where: str) -> Any:
    """What a later stage reads of an output."""
    wanted = operator.capability.output
    if type(output) is not wanted:  # a subclass is read back as what it is not
        raise ContractError(f"{where}: the output is {type(output).__name__}; return {wanted.__name__} itself")
    try:
        encoded = encode(output)
    except (TypeError, ValueError, OverflowError) as error:
        raise ContractError(
            f"{where}: the output cannot be encoded ({error}); use Python's own types, such as float(x) for a NumPy"
            " scalar and bytes for an array"
        ) from error
    try:
        decoded = msgspec.msgpack.decode(encoded, type=wanted)
    except msgspec.DecodeError as error:
        raise ContractError(
            f"{where}: the output cannot be read back as {wanted.__name__} ({error}); give its fields the types that"
            " they declare"
        ) from error
    if encode(decoded) != encoded and decoded != output:  # an int where a float is declared is as good
        raise ContractError(
            f"{where}: the output is read back as {shown(decoded)}, not {shown(output)}; give its fields the types that"
            " they declare, not subclasses with more fields"
        )
    return decoded


def place(operator: type[Operator]) -> str:
    """Where a class is, as an entry point names it."""
    return f"{operator.__module__}:{operator.__qualname__}"


def shown(value: Any) -> str:
    """A value in an error."""
    return one_line(repr(value))


def one_line(text: str) -> str:
    """In an error: one line, not a long one."""
    text = " ".join(text.split())
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def _spoken(batch: Sequence[Inputs]) -> str:
    first, last = batch[0].last, batch[-1].last
    return f"segment {first}" if first == last else f"segments {min(first, last)} to {max(first, last)}"
