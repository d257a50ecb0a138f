"""The toolbox: what a language model may call, which is what its workflow allows and nothing else. The model chooses,
and the tool is called here; what it gives back is quoted to the model as data, never as an instruction.

A model calls by saying {"tool": NAME, "arguments": {...}} in place of its answer. What it says of any other tool is
refused, and nothing is called.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from engine.spec.spending import Call, note
from operators.control.calls import Caller, Takes
from operators.control.tools import place, tool_of
from operators.failures import failure
from operators.language.reading import plain
from operators.language.structured import inlined, read
from streams.errors import Permanent, Transient, UserError

MAX_SCHEMA = 2000  # characters of what a tool takes, shown to a model
MAX_GIVEN = 4000  # characters of what it gave back
MAX_ABOUT = 500


class Wanted(msgspec.Struct, frozen=True):
    """A call that a model asks for."""

    tool: str
    arguments: dict[str, Any] = msgspec.field(default_factory=dict)


class Given(msgspec.Struct, frozen=True):
    """What came of a call: whether it may be quoted, and what is said of it."""

    name: str
    text: str
    is_good: bool = True


class Toolbox:
    """For one output. `takes`: what each tool takes, by name; nothing else is ever called."""

    def __init__(self, callers: Mapping[str, Caller], takes: Mapping[str, Takes], max_calls: int) -> None:
        self._callers = callers
        self._takes = takes
        self.num_left = max_calls

    @staticmethod
    async def opened(callers: dict[str, Caller], names: Sequence[str], max_calls: int) -> "Toolbox":
        """`callers` is kept by whoever keeps the operator. Raises Transient or Permanent, named, where a tool that is
        allowed is not there."""
        for name in names:
            callers.setdefault(name, Caller(name))
        return Toolbox(callers, {name: await callers[name].takes() for name in names}, max_calls)

    def told(self) -> str:
        """What a model is told of them: a line each."""
        lines = []
        for name, takes in self._takes.items():
            schema = plain(msgspec.json.encode(takes.schema).decode())
            lines.append(f"- {name}: {plain(takes.about)[:MAX_ABOUT]} arguments: {schema[:MAX_SCHEMA]}")
        return "\n".join(lines)

    def schema(self, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        """Of what a model may say: a call, while there is one left, or the answer."""
        if not self.num_left:
            return answer
        calls = [
            {
                "type": "object",
                "properties": {"tool": {"type": "string", "enum": [name]}, "arguments": inlined(takes.schema)},
                "required": ["tool", "arguments"],
                "additionalProperties": False,
            }
            for name, takes in self._takes.items()
        ]
        return {"anyOf": [*calls, answer]}

    def wanted(self, text: str) -> Wanted | None:
        """The call that a model asks for; None where it asks for none. Raises Permanent, named: `tool` for one that is
        not allowed, `budget` for one too many, `schema` for what is no JSON."""
        said = read(dict[str, Any], text)
        if "tool" not in said:
            return None
        try:
            wanted = msgspec.convert(said, Wanted)
        except msgspec.ValidationError as error:
            raise failure("schema", f"a call is {{tool, arguments}}: {error}") from error
        if wanted.tool not in self._takes:
            allowed = ", ".join(self._takes) or "none"
            raise failure("tool", f"{wanted.tool[:60]!r} is not among the tools that may be called: {allowed}")
        if not self.num_left:
            raise failure("budget", "no more tools may be called: answer with what there is")
        return wanted

    async def call(self, wanted: Wanted) -> Given:
        """What came of it, whatever did: a failure is for the model to make something of."""
        self.num_left -= 1
        began_ns, error = time.time_ns(), "canceled"
        try:
            given = await self._callers[wanted.tool].call(wanted.arguments)
            error = ""
        except (Permanent, Transient) as failed:
            error = str(failed)
            return Given(wanted.tool, f"{wanted.tool} failed: {plain(error)}", is_good=False)
        finally:
            note(Call("execute_tool", wanted.tool, began_ns, time.time_ns(), error=error))
        return Given(wanted.tool, f"{_written(wanted)}: {plain(_text(given))}"[:MAX_GIVEN])


def unknown(names: Sequence[str]) -> str | None:
    """Which of these tools is none of this machine's; None where all are."""
    try:
        strange = [name for name in names if tool_of(name) is None]
    except UserError as error:
        return str(error)
    return f"{place()} names no tool {strange[0]!r} (docs/models.md)" if strange else None


def _written(wanted: Wanted) -> str:
    arguments = ", ".join(f"{name}={_text(value)}" for name, value in wanted.arguments.items())
    return f"{wanted.tool}({plain(arguments)[:400]})"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
