"""Renders a chart without Helm: as much of Go's templates and of Helm's functions as our chart uses, and no more.

What it does not know it refuses, so a chart that goes further fails its tests until this does, too. Where `helm` is
installed a test holds the two against each other.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

_ACTION = re.compile(r"\{\{(- )?\s*(.*?)\s*( -|-)?\}\}", re.DOTALL)
_TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|:=|[|(),]|[^\s|(),]+)')
Node = tuple[Any, ...]


class Failed(Exception):
    """The chart refuses its values, or uses what is not known here."""


def rendered(chart: Path, values: Mapping[str, Any], release: str = "penstock") -> dict[str, str]:
    """Text by template file. `values` go over those of the chart."""
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    of = merged(yaml.safe_load((chart / "values.yaml").read_text()), values)
    dot = {
        "Values": of,
        "Chart": {"Name": about["name"], "Version": about["version"], "AppVersion": about["appVersion"]},
        "Release": {"Name": release, "Namespace": "video", "Service": "Helm"},
    }
    engine = _Engine()
    files = sorted(path for path in (chart / "templates").iterdir() if path.suffix in (".yaml", ".tpl"))
    trees = {path.name: engine.parse(path.read_text()) for path in files}
    return {name: engine.run(tree, dot, {"$": dot}) for name, tree in trees.items() if name.endswith(".yaml")}


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = {key: merged(below[key], above[key]) for key in above if isinstance(below.get(key), dict) and above[key]}
    return {**below, **above, **both}


class _Engine:
    def __init__(self) -> None:
        self.named: dict[str, list[Node]] = {}

    def parse(self, text: str) -> list[Node]:
        return self._block(iter(_pieces(text)))[0]

    def _block(self, pieces: Iterator[tuple[str, str]]) -> tuple[list[Node], str]:
        """Nodes up to `end` or `else`, and which it was."""
        nodes: list[Node] = []
        for kind, what in pieces:
            word, _, rest = what.partition(" ")
            if kind == "text":
                nodes.append(("text", what))
            elif word in ("end", "else"):
                return nodes, what
            elif word in ("if", "with", "range"):
                nodes.append(self._branch(word, rest, pieces))
            elif word == "define":
                self.named[json.loads(rest)], _ = self._block(pieces)
            elif not what.startswith("/*"):
                nodes.append(("do", what))
        return nodes, ""

    def _branch(self, word: str, condition: str, pieces: Iterator[tuple[str, str]]) -> Node:
        body, end = self._block(pieces)
        otherwise: list[Node] = []
        if end.startswith("else if "):
            otherwise = [self._branch("if", end.removeprefix("else if "), pieces)]
        elif end == "else":
            otherwise, _ = self._block(pieces)
        return word, condition, body, otherwise

    def run(self, nodes: list[Node], dot: Any, names: dict[str, Any]) -> str:
        names = dict(names)
        return "".join(self._one(node, dot, names) for node in nodes)

    def _one(self, node: Node, dot: Any, names: dict[str, Any]) -> str:
        if node[0] == "text":
            return str(node[1])
        if node[0] == "do":
            name, assigned, pipeline = node[1].partition(":=")
            if assigned:
                names[name.strip()] = self.value(pipeline, dot, names)
                return ""
            return shown(self.value(node[1], dot, names))
        word, condition, body, otherwise = node
        if word == "range":
            return self._range(condition, body, otherwise, dot, names)
        value = self.value(condition, dot, names)
        if not value:
            return self.run(otherwise, dot, names)
        return self.run(body, value if word == "with" else dot, names)

    def _range(self, what: str, body: list[Node], otherwise: list[Node], dot: Any, names: dict[str, Any]) -> str:
        loops, assigned, pipeline = what.partition(":=")
        over = self.value(pipeline if assigned else what, dot, names)
        pairs = sorted(over.items()) if isinstance(over, dict) else list(enumerate(over or ()))
        loop_names = [name.strip() for name in loops.split(",")] if assigned else []
        rounds = [
            self.run(body, value, {**names, **dict(zip(loop_names, (key, value), strict=False))})
            for key, value in pairs
        ]
        return "".join(rounds) if rounds else self.run(otherwise, dot, names)

    def value(self, pipeline: str, dot: Any, names: dict[str, Any]) -> Any:
        tokens = _TOKEN.findall(pipeline)
        value, position = self._pipeline(tokens, 0, dot, names)
        if position != len(tokens):
            raise Failed(f"not understood: {pipeline}")
        return value

    def _pipeline(self, tokens: list[str], at: int, dot: Any, names: dict[str, Any]) -> tuple[Any, int]:
        piped: list[Any] = []
        while True:
            terms: list[Any] = []
            while at < len(tokens) and tokens[at] not in ("|", ")"):
                if tokens[at] == "(":
                    term, at = self._pipeline(tokens, at + 1, dot, names)
                else:
                    term = self._term(tokens[at], dot, names)
                terms.append(term)
                at += 1
            head = terms[0]
            piped = [head(*terms[1:], *piped) if callable(head) else head]
            if at == len(tokens) or tokens[at] == ")":
                return piped[0], at
            at += 1

    def _term(self, token: str, dot: Any, names: dict[str, Any]) -> Any:
        if token[0] == '"':
            return json.loads(token)
        if re.fullmatch(r"-?\d+", token):
            return int(token)
        if token[0] in ".$":
            name, *path = token.split(".")
            value = dot if not name else names[name]
            for key in filter(None, path):
                value = value.get(key) if value is not None else None
            return value
        functions: dict[str, Callable[..., Any]] = {
            **FUNCTIONS,
            "include": lambda name, of: self.run(self.named[name], of, {"$": of}),
        }
        if token not in functions:
            raise Failed(f"not known here: {token}")
        return functions[token]


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    at, strip = 0, False
    for action in _ACTION.finditer(text):
        before = text[at : action.start()]
        before = before.lstrip() if strip else before
        yield "text", before.rstrip() if action[1] else before
        yield "action", action[2]
        at, strip = action.end(), bool(action[3])
    yield "text", text[at:].lstrip() if strip else text[at:]


def shown(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _fail(message: str) -> None:
    raise Failed(message)


def _required(message: str, value: Any) -> Any:
    return value if value not in (None, "") else _fail(message)


def _nindent(count: int, text: str) -> str:
    return "\n" + "\n".join(" " * count + line for line in text.split("\n"))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "and": lambda *values: next((value for value in values if not value), values[-1]),
    "or": lambda *values: next((value for value in values if value), values[-1]),
    "not": lambda value: not value,
    "eq": lambda one, other: one == other,
    "default": lambda otherwise, value: value or otherwise,
    "fail": _fail,
    "nindent": _nindent,
    "printf": lambda form, *values: form % values,
    "quote": lambda value: json.dumps(shown(value), ensure_ascii=False),
    "required": _required,
    "sha256sum": lambda text: hashlib.sha256(text.encode()).hexdigest(),
    "toYaml": lambda value: yaml.safe_dump(value, default_flow_style=False, width=10**6).removesuffix("\n"),
}
