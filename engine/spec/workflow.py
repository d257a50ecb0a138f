"""Workflows: what is to be found out, as stages over capabilities. No models, devices or keys in them.

The same workflow can be written in TOML or in Python; both give the same structure and so the same plan.
A stage input is "media" (the stream itself) or the name of another stage. A parameter "$ask" stands for a question
that the job brings; stages that use it run once for each question. A stage may be a workflow (engine.spec.nesting). The
input "when" is a gate (engine.decide.gating).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from engine.spec.nesting import Found, expanded
from streams.decoding import from_toml
from streams.errors import Malformed, UserError
from streams.subjects import token

T = TypeVar("T", bound=msgspec.Struct)

MEDIA = "media"
ASK = "$ask"
WHEN = "when"  # an input that any stage may have: it is computed only for segments in which that found something


class Stage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A node of a workflow: a capability, where its inputs come from, and the parameters that say what."""

    capability: str
    inputs: dict[str, str | tuple[str, ...]] = {}
    params: dict[str, Any] = {}

    def sources(self, port: str) -> tuple[str, ...]:
        given = self.inputs.get(port, ())
        return (given,) if isinstance(given, str) else given

    @property
    def all_sources(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(source for port in self.inputs for source in self.sources(port)))

    @property
    def asks(self) -> bool:
        return ASK in self.params.values()


class Workflow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Stages by name. Stages that no other stage reads are the workflow's answers."""

    name: str
    stages: dict[str, Stage]

    def __post_init__(self) -> None:
        for name, stage in self.stages.items():
            _check_name(name)
            for source in stage.all_sources:
                if source != MEDIA and source not in self.stages:
                    raise UserError(
                        f"stage {name!r} reads {source!r}, which is no stage; there are {_names(self.stages)}"
                    )
        if not self.stages:
            raise UserError(f"workflow {self.name!r} has no stages: give it at least one [stages.NAME]")
        self.order()

    def order(self) -> list[str]:
        """Names of stages, each after those it reads. Raises UserError for a cycle."""
        graph = {name: [s for s in stage.all_sources if s != MEDIA] for name, stage in self.stages.items()}
        try:
            return list(TopologicalSorter(graph).static_order())
        except CycleError as error:
            circle = " -> ".join(reversed(error.args[1]))
            raise UserError(f"workflow {self.name!r} has a cycle: {circle}; a stage cannot wait for itself") from error

    @property
    def answers(self) -> list[str]:
        read = {source for stage in self.stages.values() for source in stage.all_sources}
        return [name for name in self.order() if name not in read]

    def for_asks(self, asks: Sequence[str]) -> "Workflow":
        """The workflow with "$ask" filled in: a stage that uses it, and every stage after it, once for each question.
        Raises UserError where questions are missing or nothing takes them."""
        taking = {name for name, stage in self.stages.items() if stage.asks}
        if taking and not asks:
            raise UserError(f"workflow {self.name!r} answers questions: ask at least one (--ask TEXT)")
        if asks and not taking:
            raise UserError(f'workflow {self.name!r} takes no question: no stage has a parameter "{ASK}"')
        if any(not ask.strip() for ask in asks):
            raise UserError("a question is empty: say what you want to know (--ask TEXT)")
        for name in self.order():
            if taking & set(self.stages[name].all_sources):
                taking.add(name)
        filled: dict[str, Stage] = {}
        for name, stage in self.stages.items():
            if name not in taking:
                filled[name] = stage
                continue
            for number, ask in enumerate(dict.fromkeys(ask.strip() for ask in asks), 1):
                if f"{name}-{number}" in self.stages:
                    raise UserError(f"stage '{name}-{number}' has the name of question {number} of {name!r}: rename it")
                inputs: dict[str, str | tuple[str, ...]] = {
                    port: tuple(f"{s}-{number}" if s in taking else s for s in stage.sources(port))
                    for port in stage.inputs
                }
                params = {key: ask if value == ASK else value for key, value in stage.params.items()}
                filled[f"{name}-{number}"] = Stage(capability=stage.capability, inputs=inputs, params=params)
        return Workflow(name=self.name, stages=filled)


def load_workflow(path: Path) -> Workflow:
    """Read a workflow from a TOML file. Raises UserError with the file and what would be right."""
    text = _text(path)
    try:
        return parse_workflow(text, path.parent)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def parse_workflow(text: str, folder: Path | None = None) -> Workflow:
    """Read a workflow from TOML text; stages that are workflows of other files are looked for in `folder`."""

    try:
        outer = from_toml(text)
    except Malformed as error:
        raise UserError(f"not valid TOML: {error}") from error
    table = expanded(outer, partial(_found, folder))
    stages = table.get("stages")
    if isinstance(stages, dict):
        table["stages"] = {name: _read(stage, Stage, f"stages.{name}") for name, stage in stages.items()}
    return _read(table, Workflow, "workflow")


def _found(folder: Path | None, name: str) -> Found:
    if folder is None or not name.endswith(".toml"):
        raise UserError(f"there is no [workflows.{name}]")
    path = folder / name
    try:
        return Found(from_toml(_text(path)), partial(_found, path.parent), str(path))
    except Malformed as error:
        raise UserError(f"{path}: not valid TOML: {error}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # not UTF-8, or a name with a NUL in it
        raise UserError(
            f"cannot read workflow {path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}; give a TOML file"
        ) from error


def _read(table: Any, kind: type[T], where: str) -> T:
    """A table as a struct. Raises UserError with the place and the keys that would be right."""
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at ")
        place = where + path.strip("`").removeprefix("$")
        allowed = ", ".join(kind.__struct_fields__)
        raise UserError(f"{place}: {what[:1].lower()}{what[1:]}; the keys of {where} are {allowed}") from error


def _check_name(name: str) -> None:
    token(name)
    if name == MEDIA:
        raise UserError(f'a stage cannot be named "{MEDIA}": that is the stream itself')


def _names(stages: Mapping[str, Stage]) -> str:
    return ", ".join([MEDIA, *stages])
