"""Calling a tool: what it takes, and what it gives back, whatever kind it is. Its arguments are held against what it
takes before it is called, and what it gives back is bounded.

What goes wrong has a name (operators.failures): `tool` where it will not, or breaks what it says of itself; `timeout`
and `upstream`, which may pass.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.to_thread
import msgspec
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from referencing import Registry
from referencing.exceptions import Unresolvable

from operators.control import functions, services
from operators.control.tools import Tool, place, tool_of
from operators.failures import failure
from operators.language.structured import ELSEWHERE, inlined
from streams.errors import UserError
from streams.records import encode

MAX_RESULT_BYTES = 1 << 20
ANOTHERS = ("pattern", "patternProperties")  # of a server's schema: what is matched by one may take for ever
ANYTHING: Mapping[str, Any] = {"type": "object"}


@dataclass(frozen=True, slots=True)
class Takes:
    """What a tool is for, and the JSON Schema of its arguments, in one piece."""

    about: str
    schema: Mapping[str, Any]

    @property
    def names(self) -> frozenset[str] | None:
        """Of its arguments; None where it takes any."""
        return frozenset(self.schema["properties"]) if "properties" in self.schema else None


class Caller:
    """A tool, for one instance of an operator."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._limit: anyio.CapacityLimiter | None = None
        self._takes: tuple[Tool, Takes] | None = None

    def tool(self) -> Tool:
        """Raises Permanent, named `tool`, where there is none of that name; Transient where its owner is at it."""
        try:
            found = tool_of(self._name)
        except UserError as error:
            raise failure("upstream", str(error)) from error
        if found is None:
            raise failure("tool", f"no tool {self._name!r} is named in {place()}")
        return found

    async def takes(self) -> Takes:
        """Raises as a call does."""
        tool = self.tool()
        if self._takes is None or self._takes[0] != tool:
            if tool.mcp:
                await anyio.to_thread.run_sync(_import_mcp, abandon_on_cancel=True)
            with anyio.move_on_after(tool.timeout_s):
                self._takes = tool, await _takes(tool)
        if self._takes is None or self._takes[0] != tool:
            raise failure("timeout", f"{tool.name} did not say within {tool.timeout_s:g} s what it takes")
        return self._takes[1]

    async def call(self, arguments: Mapping[str, Any]) -> Any:
        """What it gives back, as JSON has it. Raises Transient or Permanent, named as said above."""
        tool = self.tool()
        check(tool, await self.takes(), arguments)
        if self._limit is None or self._limit.total_tokens != tool.max_in_flight:
            self._limit = anyio.CapacityLimiter(tool.max_in_flight)
        with anyio.move_on_after(tool.timeout_s):
            return _bounded(tool, await self._called(tool, self._limit, arguments))
        raise failure("timeout", f"{tool.name} gave nothing back within {tool.timeout_s:g} s")

    async def _called(self, tool: Tool, limit: anyio.CapacityLimiter, arguments: Mapping[str, Any]) -> Any:
        if tool.python:
            function = await anyio.to_thread.run_sync(functions.function_of, tool.python, abandon_on_cancel=True)
            return await functions.called(function, arguments, limit)
        async with limit:
            if tool.url:
                return await services.called(tool, arguments, MAX_RESULT_BYTES)
            from operators.control import mcp_servers

            return await mcp_servers.called(tool, arguments)


def _import_mcp() -> None:
    """The library takes a second to import, which everybody else shall not wait for."""
    from operators.control import mcp_servers  # noqa: F401


def check(tool: Tool, takes: Takes, arguments: Mapping[str, Any]) -> None:
    """Raises Permanent, named `tool`, for arguments that it does not take."""
    validator = Draft202012Validator(takes.schema, registry=Registry())
    try:
        wrong = best_match(validator.iter_errors(dict(arguments)))
    except (Unresolvable, RecursionError) as error:
        raise failure("tool", f"{tool.name} says what it takes by what cannot be followed") from error
    if wrong is not None:
        where = wrong.json_path.removeprefix("$").removeprefix(".")
        raise failure("tool", f"{tool.name}: {where and f'{where}: '}{wrong.message[:200]}")


async def _takes(tool: Tool) -> Takes:
    if tool.python:
        function = await anyio.to_thread.run_sync(functions.function_of, tool.python, abandon_on_cancel=True)
        found = Takes(tool.about or functions.about(function), functions.schema_of(function))
    elif tool.url:
        needed = [name for name in tool.arguments if name not in tool.optional]
        schema: Mapping[str, Any] = {
            "type": "object",
            "properties": tool.arguments,
            "required": needed,
            "additionalProperties": False,
        }
        found = Takes(tool.about, schema if tool.arguments else ANYTHING)
    else:
        from operators.control import mcp_servers

        about, schema = await mcp_servers.described(tool)
        found = Takes(tool.about or about, inlined(schema, (*ELSEWHERE, *ANOTHERS)))
    try:
        Draft202012Validator.check_schema(found.schema)
    except (SchemaError, RecursionError) as error:
        said = error.message[:200] if isinstance(error, SchemaError) else "it is too deep"
        raise failure("tool", f"{tool.name}: what it takes is no JSON Schema: {said}") from error
    return Takes(found.about, inlined(found.schema, ELSEWHERE))


def _bounded(tool: Tool, given: Any) -> Any:
    """As it will be stored, and without what the tool was trusted with."""
    try:
        data = msgspec.json.encode(msgspec.to_builtins(given, str_keys=True))
        if len(data) > MAX_RESULT_BYTES:
            raise failure("tool", f"{tool.name} gave back {len(data)} bytes; {MAX_RESULT_BYTES} at most")
        made = _scrubbed(tool, msgspec.json.decode(data))  # a number that is none has become null
        encode(made)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise failure("tool", f"{tool.name} gave back what JSON does not have: {error}") from error
    return made


def _scrubbed(tool: Tool, made: Any) -> Any:
    match made:
        case str():
            return tool.without_keys(made)
        case list():
            return [_scrubbed(tool, each) for each in made]
        case dict():
            return {tool.without_keys(name): _scrubbed(tool, each) for name, each in made.items()}
    return made
