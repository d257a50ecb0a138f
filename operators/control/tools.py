"""Tools: what there is on this machine to be called, as a file of its owner says: any Python function, an HTTP service,
a tool of an MCP server. No workflow, plan or log holds an address or a key.

The file is $PENSTOCK_TOOLS, else penstock/tools.toml in $XDG_CONFIG_HOME or ~/.config:

    [[tool]]
    name = "grain_price"                        # a workflow calls it so
    about = "The price of a kind of grain today, in dollars a tonne"
    url = "https://prices.example/v1/price"     # its arguments are POSTed there as JSON, JSON comes back
    key = "${PRICES_KEY}"                       # or "${file:/run/secrets/key}"
    arguments = { grain = { type = "string", maxLength = 40 } }   # JSON Schema of each

    [[tool]]
    name = "tonnes"
    python = "market.units:tonnes"              # the hints of its parameters say what it takes

    [[tool]]
    name = "weather"
    mcp = ["uvx", "weather-server"]             # a command that serves on stdin and stdout; or the URL of a server
    mcp_tool = "get_forecast"

Each is a capability of its own name, for a stage (operators.control.tool_stages), and a tool that a workflow may allow
a language model to call (operators.language.acting).
"""

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from engine.spec.operator import Settings
from operators import owned
from streams.errors import UserError
from streams.media.references import is_reference

PLACE = "PENSTOCK_TOOLS"
NAME = r"^[a-z][a-z0-9_]{0,59}$"

ToolName = Annotated[str, Meta(min_length=1, max_length=60, pattern=NAME)]
Word = Annotated[str, Meta(min_length=1, max_length=4096, pattern="^[^\\x00]*$")]
Short = Annotated[str, Meta(max_length=200)]


class Tool(Settings, frozen=True):
    """Something that takes arguments and gives something back. Exactly one of `python`, `url` and `mcp` says what."""

    name: ToolName
    about: Annotated[str, Meta(max_length=2000)] = ""  # shown to models that may call it
    python: Short = ""  # "module:function"
    url: Annotated[str, Meta(max_length=2000)] = ""
    mcp: Annotated[str, Meta(max_length=2000)] | Annotated[tuple[Word, ...], Meta(max_length=200)] = ""
    mcp_tool: Short = ""  # as its server calls it; empty: by its own name
    key: Annotated[str, Meta(max_length=4096)] = ""  # a reference, not the key
    env: dict[str, Annotated[str, Meta(max_length=4096)]] = msgspec.field(
        default_factory=dict
    )  # of an MCP server's command: references
    arguments: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)  # of a url: JSON Schema of each
    optional: tuple[str, ...] = ()  # arguments that may be left away
    reads: Literal["segment", "range"] = "segment"  # what a stage that calls it gives it at once
    quality: Annotated[float, Meta(ge=0, le=1)] = 0.5
    version: Annotated[int, Meta(ge=1, le=1 << 30)] = 1  # raise it when it answers otherwise than before
    timeout_s: Annotated[float, Meta(gt=0, le=1800)] = 30.0
    max_in_flight: Annotated[int, Meta(ge=1, le=64)] = 8  # calls at once, of one worker

    def without_secrets(self, text: str) -> str:
        """A text that may have come from it, with neither key nor address."""
        parts = urlsplit(self.place)
        return owned.without(text, *self._keys, self.place, parts.netloc, parts.hostname or "")

    def without_keys(self, text: str) -> str:
        """A text of which an address may be a part."""
        return owned.without(text, *self._keys)

    @property
    def _keys(self) -> tuple[str, ...]:
        return tuple(map(owned.value_of, (self.key, *self.env.values())))

    @property
    def place(self) -> str:
        """The address it is asked at; empty where it has none."""
        return self.url or (self.mcp if isinstance(self.mcp, str) else "")


class _File(msgspec.Struct, forbid_unknown_fields=True):
    tool: list[Tool] = []


def place() -> Path:
    """Where the file is, or would be."""
    return owned.place(PLACE, "tools.toml")


def tools() -> tuple[Tool, ...]:
    """All of them; none where there is no file. Raises UserError for one that is wrong."""
    path = place()
    stamp = owned.stamp(PLACE, path)
    return () if stamp is None else _read(path, stamp)


def tool_of(name: str) -> Tool | None:
    return next((each for each in tools() if each.name == name), None)


@lru_cache(maxsize=8)
def _read(path: Path, stamp: int) -> tuple[Tool, ...]:
    found = owned.read(path, _File).tool
    names: set[str] = set()
    for each in found:
        if each.name in names:
            raise UserError(f"{path}: two tools are called {each.name!r}: a name stands for one")
        names.add(each.name)
        if sum(map(bool, (each.python, each.url, each.mcp))) != 1:
            raise UserError(f"{path}: {each.name!r} needs exactly one of python, url and mcp: where it is")
        if each.place:
            owned.check_address(path, each.name, each.place, each.key)
        elif each.key:
            raise UserError(f"{path}: {each.name!r} has a key and no url that it could be for")
        if each.python and not all(part.strip() for part in each.python.partition(":")):
            raise UserError(f"{path}: the python of {each.name!r} is not module:function")
        if bad := [variable for variable, value in each.env.items() if not is_reference(value)]:
            raise UserError(f'{path}: {bad[0]} of {each.name!r} stands there itself: write {bad[0]} = "${{NAME}}"')
        if each.env and (not each.mcp or each.place):
            raise UserError(f"{path}: {each.name!r} has an env, which only the command of an MCP server has")
        if strange := [name for name in each.optional if name not in each.arguments]:
            raise UserError(f"{path}: {each.name!r} has no argument {strange[0]!r} that could be optional")
        if each.arguments:
            _check_schema(path, each)
        if each.arguments and not each.url:
            raise UserError(f"{path}: {each.name!r} says itself what it takes: arguments are for a url")
    return tuple(found)


def _check_schema(path: Path, tool: Tool) -> None:
    """Raises UserError for arguments of which one is described by what is no JSON Schema."""
    from jsonschema import Draft202012Validator  # costs, and few tools have any
    from jsonschema.exceptions import SchemaError

    for name, schema in tool.arguments.items():
        try:
            Draft202012Validator.check_schema(schema)
        except (SchemaError, RecursionError) as error:
            why = error.message[:200] if isinstance(error, SchemaError) else "it is too deep"
            raise UserError(f"{path}: argument {name!r} of {tool.name!r} is no JSON Schema: {why}") from error
