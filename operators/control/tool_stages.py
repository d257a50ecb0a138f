"""Tools as stages: each tool of this machine is the one implementation of a capability of its own name, so that a
workflow has a Python function, an HTTP service, a tool of an MCP server or an agent compute what comes between two of
its stages, and knows nothing of which it is.

A tool is given, of what there is, what its arguments name, and all of it where they name none:

    evidence    what was found: a list of {kind, start_s, end_s, text, confidence}, in order of time
    text        the texts of it, a line each
    question    of the workflow
    stream      its name
    and what the workflow has in `args`

It is not called where nothing was found. What it gives back becomes findings: a text, an object, or a list of those; of
an object, `text`, `start_s`, `end_s` and `confidence` are a finding's own, and the rest its `data`. What says no time
holds for all that the tool was shown.
"""

import importlib.util
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from engine.spec.operator import Capability, Inputs, Machine, Map, Operator, Port, Reduce, Rung, Settings
from operators.capabilities import Finding, Findings
from operators.control.calls import Caller
from operators.control.tools import Tool, place, tool_of, tools
from operators.failures import failure
from streams.errors import UserError
from streams.media.references import secret
from streams.records import Evidence, MediaInfo, Observation

MAX_FINDINGS = 1000
MAX_TEXT = 20_000
SECOND_NS = 1_000_000_000
MAX_S = 1e9


class ToolParams(Settings, frozen=True):
    """`args`: what the tool is called with beside the evidence."""

    question: Annotated[str, Meta(max_length=2000)] = ""
    args: dict[str, Any] = msgspec.field(default_factory=dict)


class ToolKnobs(Settings, frozen=True):
    tool: str = ""
    version: int = 1


class CallsTool(Operator):
    """Calls a tool with what was found."""

    runs_in = "async"
    max_in_flight = 64
    timeout_s = 3600.0  # each tool has its own

    Knobs = ToolKnobs
    knobs: ToolKnobs
    rung: ClassVar[Rung]

    def __init__(self, knobs: ToolKnobs) -> None:
        super().__init__(knobs)
        self._caller = Caller(knobs.tool)

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return (cls.rung,)

    @classmethod
    def in_flight(cls, knobs: ToolKnobs) -> int:
        tool = tool_of(knobs.tool)
        return cls.max_in_flight if tool is None else tool.max_in_flight

    @classmethod
    def missing(cls, knobs: ToolKnobs, machine: Machine, media: MediaInfo | None) -> str | None:
        tool = tool_of(knobs.tool)
        return f"there is no tool {knobs.tool!r} any more" if tool is None else lacking(tool)

    async def process_one(self, inputs: Inputs, emit: Callable[[str], None]) -> Findings:
        seen = shown(inputs)
        if not seen:
            return Findings()
        takes = await self._caller.takes()
        given = await self._caller.call(arguments_of(inputs, seen, takes.names))
        first_ns, last_ns = min(each.start_ns for _, each in seen), max(each.end_ns for _, each in seen)
        return findings_of(self.name, given, first_ns, last_ns)


def operators() -> Sequence[type[Operator]]:
    """One for each tool. Raises UserError where what the owner says of them is wrong."""
    return [_stage_of(tool) for tool in tools()]


def _stage_of(tool: Tool) -> type[Operator]:
    said = {
        "__doc__": tool.about or f"Calls the tool {tool.name!r}.",
        "__module__": str(place()),  # where a person finds it
        "__qualname__": tool.name,
        "capability": Capability(tool.name, {"evidence": Port(Evidence, many=True)}, Findings, ToolParams),
        "name": tool.name,
        "scope": Reduce() if tool.reads == "range" else Map(),
        "rung": Rung(tool.name, tool.quality, ToolKnobs(tool=tool.name, version=tool.version)),
    }
    return type(f"Calls_{tool.name}", (CallsTool,), said)


def lacking(tool: Tool) -> str | None:
    """What a tool needs that is not here; None where nothing is lacking, as far as can be told without calling it."""
    for reference in (tool.key, *tool.env.values()):
        try:
            secret(reference)
        except UserError as error:
            return f"{tool.name}: {error}"
    if tool.python:
        module = tool.python.partition(":")[0]
        try:
            found = importlib.util.find_spec(module)
        except (ImportError, ValueError):  # of a package that is not there
            found = None
        return None if found else f"{tool.name}: there is no module {module!r} here"
    if tool.mcp and not tool.place and shutil.which(tool.mcp[0]) is None:
        return f"{tool.name}: there is no command {tool.mcp[0]!r} here"
    return None


def shown(inputs: Inputs) -> list[tuple[str, Observation]]:
    """What was found, each with its kind, in order of time; gaps are passed over."""
    values = [entry.value for source in inputs.ports["evidence"] for entry in source if entry.value is not None]
    seen = [(value.kind, each) for value in values for each in value.observations]
    return sorted(seen, key=lambda each: (each[1].start_ns, each[1].end_ns, each[0], each[1].text))


def arguments_of(
    inputs: Inputs, seen: Sequence[tuple[str, Observation]], names: frozenset[str] | None
) -> dict[str, Any]:
    params: ToolParams = inputs.params
    evidence = [
        {
            "kind": kind,
            "start_s": each.start_ns / SECOND_NS,
            "end_s": each.end_ns / SECOND_NS,
            "text": each.text,
            "confidence": each.confidence,
        }
        for kind, each in seen
    ]
    there = {
        "evidence": evidence,
        "text": "\n".join(each.text for _, each in seen if each.text),
        "stream": inputs.stream,
        **({"question": params.question} if params.question else {}),
    }
    wanted = there if names is None else {name: value for name, value in there.items() if name in names}
    return {**wanted, **params.args}


def findings_of(name: str, given: Any, start_ns: int, end_ns: int) -> Findings:
    """What it gave back, as findings. Raises Permanent, named `tool`, for more than there may be."""
    if isinstance(given, Mapping) and isinstance(given.get("observations"), list | tuple):
        given = given["observations"]
    items = list(given) if isinstance(given, list | tuple) else [given]
    if len(items) > MAX_FINDINGS:
        raise failure("tool", f"{name} gave back {len(items)} findings; {MAX_FINDINGS} at most")
    made = (_finding(item, start_ns, end_ns) for item in items if item not in (None, "", {}, []))
    return Findings(observations=tuple(sorted(made, key=lambda each: (each.start_ns, each.end_ns))))


def _finding(item: Any, start_ns: int, end_ns: int) -> Finding:
    if not isinstance(item, Mapping):
        return Finding(start_ns=start_ns, end_ns=end_ns, text=_text(item))
    rest = dict(item)
    text = rest.pop("text", None)
    first_ns, last_ns = _ns(rest.pop("start_s", None), start_ns), _ns(rest.pop("end_s", None), end_ns)
    return Finding(
        start_ns=first_ns,
        end_ns=max(first_ns, last_ns),
        text=_text(item if text is None else text),
        confidence=_share(rest.pop("confidence", None)),
        data=rest,
    )


def _text(item: Any) -> str:
    return (item if isinstance(item, str) else msgspec.json.encode(item).decode())[:MAX_TEXT]


def _ns(given: Any, otherwise: int) -> int:
    is_time = isinstance(given, int | float) and not isinstance(given, bool) and 0 <= given <= MAX_S
    return round(given * SECOND_NS) if is_time else otherwise


def _share(given: Any) -> float:
    is_share = isinstance(given, int | float) and not isinstance(given, bool) and 0 <= given <= 1
    return float(given) if is_share else 1.0
