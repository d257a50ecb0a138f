"""Python functions as tools: what the hints of one's parameters say it takes, and calling it, in a thread unless it is
a coroutine."""

import asyncio
import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from operators.failures import failure

Function = Callable[..., Any]
STRUCT = "ArgumentsOfTool"
BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def function_of(place: str) -> Function:
    """What "module:function" names, of which the function may be a method, as "agent:graph.invoke". Raises Permanent,
    named `tool`."""
    module, _, path = place.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    except (Exception, SystemExit) as error:  # whatever its module does when it is imported
        raise failure("tool", f"{place} cannot be loaded: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise failure("tool", f"{place} is no function")
    return found  # type: ignore[no-any-return]


def about(function: Function) -> str:
    """The first sentence of what it says of itself."""
    text = " ".join((inspect.getdoc(function) or "").split())
    end = text.find(". ")
    return text if end < 0 else text[: end + 1]


def schema_of(function: Function) -> dict[str, Any]:
    """JSON Schema of its arguments, by its hints; of one that takes any by name, whatever is given."""
    if (kind := _arguments(function)) is None:
        return {"type": "object"}
    try:
        found = msgspec.json.schema(kind)
    except Exception as error:  # of whatever its hints are
        raise failure("tool", f"{_name(function)} has a hint that JSON has nothing for: {error}") from error
    defs = dict(found["$defs"])
    schema: dict[str, Any] = defs.pop(found["$ref"].rpartition("/")[2])
    return schema | {"$defs": defs} if defs else schema


async def called(function: Function, arguments: Mapping[str, Any], limit: anyio.CapacityLimiter) -> Any:
    """A thread that does not come back keeps its place in `limit`. Raises Permanent, named `tool`, for arguments of
    other types than its hints, and for whatever the function raises: nothing of that is ours."""
    kind = _arguments(function)
    try:
        typed = dict(arguments) if kind is None else _typed(kind, arguments)
    except msgspec.ValidationError as error:
        raise failure("tool", f"{_name(function)}: {error}") from error
    if not inspect.iscoroutinefunction(function):
        given = await anyio.to_thread.run_sync(partial(_kept, function, typed), abandon_on_cancel=True, limiter=limit)
        if isinstance(given, BaseException):
            raise _failed(function, given) from given
        if not inspect.isawaitable(given):
            return given
    async with limit:
        try:
            return await (function(**typed) if inspect.iscoroutinefunction(function) else given)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # it is we who are canceled
                raise
            raise _failed(function, error) from error
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            raise _failed(function, error) from error


def _kept(function: Function, typed: Mapping[str, Any]) -> Any:
    """What it gives back, or what it raises."""
    try:
        return function(**typed)
    except BaseException as error:
        return error


def _failed(function: Function, error: BaseException) -> Exception:
    try:
        said = str(error)
    except Exception:  # its author's as well
        said = ""
    return failure("tool", f"{_name(function)} raised {type(error).__name__}{said and f': {said}'}")


def _typed(kind: type[msgspec.Struct], arguments: Mapping[str, Any]) -> dict[str, Any]:
    made = msgspec.convert(dict(arguments), kind)
    return {name: getattr(made, name) for name in arguments}


def _arguments(function: Function) -> type[msgspec.Struct] | None:
    """What it takes as a struct; None where it takes whatever is given by name."""
    try:
        parameters = inspect.signature(function, eval_str=True).parameters.values()
        if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters):
            return None
        fields: list[Any] = []
        for each in parameters:
            if each.kind not in BY_NAME:
                if each.default is inspect.Parameter.empty and each.kind is inspect.Parameter.POSITIONAL_ONLY:
                    raise TypeError(f"it takes {each.name!r} by its place only, not by its name")
                continue
            hint = Any if each.annotation is inspect.Parameter.empty else each.annotation
            is_needed = each.default is inspect.Parameter.empty
            fields.append((each.name, hint) if is_needed else (each.name, hint | msgspec.UnsetType, msgspec.UNSET))
        return msgspec.defstruct(STRUCT, fields, kw_only=True, forbid_unknown_fields=True)
    except Exception as error:  # a builtin; a hint that is none, or that names what is not there
        raise failure("tool", f"{_name(function)} does not say what it takes: {error}") from error


def _name(function: Function) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))
