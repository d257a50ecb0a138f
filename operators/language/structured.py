"""Structured output: a msgspec struct says what an answer looks like. Its JSON Schema goes to an endpoint that can keep
to one; what comes back is decoded by the same struct, so nothing is believed for having been constrained.

Every string and list of the struct needs a bound (`Meta(max_length=...)`): a constrained model that finds no end runs
into its limit of tokens. Of an endpoint that keeps to no schema, the JSON is looked for in what it says: fenced, or
between the first brace and the one that closes it.
"""

import json
import re
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import msgspec

from operators.failures import failure
from streams.decoding import from_json
from streams.errors import Malformed

T = TypeVar("T")
MAX_DRAFT = 2048
MAX_DEPTH, MAX_NODES = 40, 2000
MAX_CHARS, MAX_TRIED = 32_768, 64  # of what is looked through for JSON
ELSEWHERE = ("$defs", "definitions", "$schema")
NOT_ASKED = (*ELSEWHERE, "title", "default", "description")


def schema_of(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """JSON Schema, all in one piece, that allows nothing else and asks for every field: what strict decoding takes.
    Raises TypeError for a string or list without a bound."""
    schema = msgspec.json.schema(kind)
    found: dict[str, Any] = _closed(inlined(schema), kind.__name__)
    return found


def read(kind: type[T], text: str) -> T:
    """Raises Permanent, named `schema`, for what is no such value."""
    text = text[-MAX_CHARS:]  # what thinks aloud ends with its answer
    why = "it holds no JSON object"
    for candidate in _objects(text):
        try:
            return from_json(candidate, kind)
        except Malformed as error:
            why = str(error)
    raise failure("schema", f"the model said {' '.join(text.split())[:120]!r}: {why}")


def _objects(text: str) -> list[str]:
    """The whole, and what lies between a brace and the one that closes it, the last one first: a model that thinks
    aloud answers at the end."""
    found = [text.strip()] if text.lstrip().startswith("{") else []
    decoder = json.JSONDecoder()
    inner: list[str] = []
    at = num_tried = 0
    while len(inner) < 8 and num_tried < MAX_TRIED and (at := text.find("{", at)) >= 0:
        num_tried += 1
        try:
            _, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            at += 1
        else:
            inner.append(text[at:end])
            at = end
    return found + inner[::-1]


def inlined(schema: Mapping[str, Any], without: Collection[str] = NOT_ASKED) -> dict[str, Any]:
    """The same in one piece, without what only describes. Of one that is too deep or too large, or refers to what is
    elsewhere: any object."""
    try:
        defs = {**schema.get("definitions", {}), **schema.get("$defs", {})}
        found = _Inlining(defs, without).of(schema, MAX_DEPTH)
    except (KeyError, TypeError, AttributeError):
        return {"type": "object"}
    return found if isinstance(found, dict) else {"type": "object"}


class _Inlining:
    """Puts what is referred to in its place, within a bound: a reference to two of a kind each doubles it."""

    def __init__(self, defs: Mapping[str, Any], without: Collection[str]) -> None:
        self._defs = defs
        self._without = without
        self._left = MAX_NODES

    def of(self, part: Any, depth: int) -> Any:
        self._left -= 1
        if not depth or self._left < 0:
            raise KeyError("it is too deep, or too large")
        if isinstance(part, list):
            return [self.of(each, depth - 1) for each in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            return self.of(self._defs[part["$ref"].rpartition("/")[2]], depth - 1)
        left_out = {*self._without, "properties"}
        found = {name: self.of(each, depth - 1) for name, each in part.items() if name not in left_out}
        if "properties" in part:  # whose names are the fields'
            found["properties"] = {name: self.of(each, depth - 1) for name, each in part["properties"].items()}
        return found


def _closed(part: Any, where: str) -> Any:
    if isinstance(part, list):
        return [_closed(each, where) for each in part]
    if not isinstance(part, dict):
        return part
    match part.get("type"):
        case "string" if "maxLength" not in part and "enum" not in part:
            raise TypeError(f"{where}: a string has no bound: give it Meta(max_length=...)")
        case "array" if "maxItems" not in part:
            raise TypeError(f"{where}: a list has no bound: give it Meta(max_length=...)")
        case "object":
            fields = {name: _closed(each, f"{where}.{name}") for name, each in part.get("properties", {}).items()}
            return {**part, "properties": fields, "required": list(fields), "additionalProperties": False}
    return {name: _closed(each, where) for name, each in part.items()}


class Growing:
    """The first field of an object whose JSON is still coming, if it has this name and is a string: `add` gives what
    has become of it with each piece, for as long as a short answer takes. Without a name, none."""

    def __init__(self, field: str) -> None:
        self._begin = re.compile(rf'\A[^{{]*\{{\s*"{re.escape(field)}"\s*:\s*"') if field else None
        self._json = ""
        self._num_given = 0

    def add(self, piece: str) -> str:
        if self._begin is None or len(self._json) > MAX_DRAFT:
            return ""
        self._json += piece
        if (found := self._begin.search(self._json)) is None:
            return ""
        begin = found.end() - 1
        text, is_escaped = [], False
        at = begin + 1
        while at < len(self._json):
            char = self._json[at]
            if is_escaped:
                is_escaped = False
                if char == "u":
                    if at + 4 >= len(self._json):
                        break
                    text.append(_unescaped(self._json[at - 1 : at + 5]))
                    at += 4
                else:
                    text.append(_unescaped(f"\\{char}"))
            elif char == "\\":
                is_escaped = True
            elif char == '"':
                break
            else:
                text.append(char)
            at += 1
        whole = "".join(text)
        grown, self._num_given = whole[self._num_given :], len(whole)
        return grown


def _unescaped(escape: str) -> str:
    try:
        found: str = json.loads(f'"{escape}"')
        return found if found.isprintable() or found.isspace() else " "
    except ValueError:
        return " "
