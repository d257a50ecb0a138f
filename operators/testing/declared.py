"""What an operator declares, checked: attributes, capability, rungs, and what a plan asks of it on every run."""

import numbers
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec

from engine.spec.operator import Capability, Fold, Machine, Map, Media, Operator, Reduce, Rung, Settings, Window
from operators.testing.calling import ContractError, one_line, place, shown
from streams import subjects
from streams.errors import Permanent, Transient, UserError
from streams.records import MediaInfo

MAX_MISSING_S = 3.0
RAISE_OURS = "compute what there is, or raise Permanent (it never will) or Transient (it may pass)"
SEGMENTS_S = (0.2, 5.0, 60.0)  # the shortest there can be, the usual, the longest
RUNS_IN = ("loop", "thread", "process", "async")

T = TypeVar("T")


def check_declarations(operator: type[Operator]) -> None:
    require(
        isinstance(operator, type) and issubclass(operator, Operator),
        shown(operator),
        "is not an operator",
        "derive a class from Operator",
    )
    where = place(operator)
    lacking = sorted(getattr(operator, "__abstractmethods__", ()))
    computes = "process_one" if getattr(operator, "runs_in", "") == "async" else "process"
    if getattr(operator, computes) is getattr(Operator, computes):
        lacking.append(computes)
    require(not lacking, where, f"does not define {', '.join(lacking)}", "define it")
    capability = getattr(operator, "capability", None)
    if not isinstance(capability, Capability):
        raise ContractError(f"{where}: capability is {shown(capability)}; declare a Capability")
    _check_capability(where, capability)
    name = getattr(operator, "name", None)
    require(isinstance(name, str) and name != "", where, f"name is {shown(name)}", "give it a name, such as 'rms'")
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
        require(holds, where, f"{attribute} is {shown(getattr(operator, attribute))}", right)


def _check_capability(where: str, capability: Capability) -> None:
    here = f"{where}, capability {capability.name!r}"
    try:
        subjects.token(capability.name)
    except (UserError, TypeError) as error:
        raise ContractError(f"{here}: its name cannot be part of a subject; use A-Z a-z 0-9 _ -") from error
    require(bool(capability.inputs), here, "has no inputs", "give at least one port")
    for name, port in capability.inputs.items():
        holds = port.type is Media or _is_struct(port.type)
        require(holds, here, f"port {name!r} has type {shown(port.type)}", "give Media or an output type")
    require(_is_struct(capability.output), here, f"output is {shown(capability.output)}", "derive it from Record")
    strict = capability.output.__struct_config__.forbid_unknown_fields
    require(not strict, here, "output refuses unknown fields, so no later version can be read", "derive it from Record")
    require(_is_settings(capability.params), here, f"params is {shown(capability.params)}", "derive it from Settings")


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


def check_rungs(operator: type[Operator]) -> None:
    where = f"{place(operator)}, rungs()"
    rungs = foreseen(operator, "rungs()", operator.rungs)
    require(isinstance(rungs, Sequence), where, f"returned {shown(rungs)}", "return a list of Rungs")
    require(bool(rungs), where, "there are none", "return at least one Rung")
    for rung in rungs:
        require(isinstance(rung, Rung), where, f"{shown(rung)} is no Rung", "return Rung(name, quality, knobs)")
        here = f"{where}, {rung.name!r}"
        in_range = _is_number(rung.quality) and 0 <= rung.quality <= 1
        require(in_range, here, f"quality is {shown(rung.quality)}", "give a number from 0 to 1")
        known = isinstance(rung.knobs, operator.Knobs)
        require(known, here, f"knobs is {shown(rung.knobs)}", f"give {operator.Knobs.__name__}, which Knobs names")
        try:  # a plan holds knobs as data
            data = msgspec.json.decode(msgspec.json.encode(msgspec.to_builtins(rung.knobs)))
            same = msgspec.convert(data, operator.Knobs) == rung.knobs
        except (TypeError, ValueError) as error:
            raise ContractError(
                f"{here}: knobs cannot be written to a plan and read back ({error}); give fields types that JSON has"
            ) from error
        require(same, here, "knobs are not the same after being written to a plan", "give fields types that JSON has")
    names = [rung.name for rung in rungs]
    twice = next((name for name in names if names.count(name) > 1), None)
    require(twice is None, where, f"two are called {twice!r}", "give each a name of its own")
    ordered = [rung.quality for rung in rungs] == sorted((rung.quality for rung in rungs), reverse=True)
    require(ordered, where, "they are not in order of quality", "put the best first")


def check_what_is_asked_before(
    operator: type[Operator], media: MediaInfo | None, params: Settings | None = None
) -> None:
    """`scope_of`, `missing` and `cannot`, which a plan asks on every run, for a source that is known or not."""
    machines = [Machine(num_cores=os.cpu_count() or 1), Machine(num_cores=1, has_gpu=True)]
    for rung in operator.rungs():
        where = f"{place(operator)}, rung {rung.name!r}"
        for segment_s in SEGMENTS_S:
            scope = foreseen(operator, "scope_of()", partial(operator.scope_of, rung.knobs, segment_s))
            right = type(scope) is type(operator.scope) and _is_scope(scope)
            kind = type(operator.scope).__name__
            require(right, where, f"scope_of() returned {shown(scope)}", f"return a {kind}, as the class declares")
        for machine in machines:
            _check_line(f"{where}: missing()", partial(operator.missing, rung.knobs, machine, media))
        if params is not None:
            _check_line(f"{where}: cannot()", partial(operator.cannot, rung.knobs, params))


def _check_line(where: str, ask: Callable[[], Any]) -> None:
    """Whether it says one line or None, in time. One that hangs is left behind."""
    answers: list[Any] = []

    def answer() -> None:
        try:
            answers.append(ask())
        except Exception as error:
            answers.append(error)

    asking = threading.Thread(target=answer, daemon=True)
    began_s = time.monotonic()
    asking.start()
    asking.join(MAX_MISSING_S)
    took_s = time.monotonic() - began_s
    in_time = f"answer within {MAX_MISSING_S:g} s: it is asked on every run"
    require(bool(answers), where, f"has not answered after {took_s:.1f} s", in_time)
    (answered,) = answers
    right = "return one line that says why it cannot run, or None"
    if isinstance(answered, Exception):
        raise ContractError(f"{where}: raised {said(answered)}; {right}") from answered
    holds = answered is None or (isinstance(answered, str) and answered != "" and len(answered.splitlines()) == 1)
    require(holds, where, f"returned {shown(answered)}", right)


def require(holds: bool, where: str, what: str, right: str) -> None:
    if not holds:
        raise ContractError(f"{where}: {what}; {right}")


def foreseen(operator: type[Operator], what: str, work: Callable[[], T]) -> T:
    """What it gives on the given inputs, on which nothing should fail."""
    try:
        return work()
    except (ContractError, UserError):
        raise
    except (Transient, Permanent) as error:
        right = "check it where it can work, on inputs that it can compute"
        raise ContractError(f"{place(operator)}: {what} raised {said(error)}; {right}") from error
    except Exception as error:
        raise ContractError(f"{place(operator)}: {what} raised {said(error)}; {RAISE_OURS}") from error


def said(error: Exception) -> str:
    return f"{type(error).__name__} ({one_line(str(error))})"
