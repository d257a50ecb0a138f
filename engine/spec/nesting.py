"""Workflows within workflows: a stage that is a workflow is put in its place, stage by stage, before anything is
planned. Pure, given how a workflow is found by its name.

    [stages.evidence]
    workflow = "evidence.toml"              # or the NAME of a table [workflows.NAME.stages.*] beside it
    inputs = { speech = "speech" }          # what it reads that is no stage of its own; media are media
    params = { summary = { max_points = 3 } }   # of its stages, by their names
    gives = "summary"                       # the stage that is read under this one's name: where it has several answers

Its stages are called `evidence-NAME`, but for the one that it gives. What a stage is called is no part of what it
computes, so the same workflow twice, or beside its stages written out, computes nothing twice.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from streams.errors import UserError

KEYS = ("workflow", "inputs", "params", "gives")
MAX_DEPTH = 8
MAX_STAGES = 1000


class Found(NamedTuple):
    """A workflow, as a table, and how those that it names are found."""

    table: Mapping[str, Any]
    find: "Find"
    place: str = ""  # where it stands, if that is elsewhere


Find = Callable[[str], Found]


def expanded(table: Mapping[str, Any], find: Find, depth: int = 0) -> dict[str, Any]:
    """A workflow, as a table, of which no stage is a workflow. Raises UserError, as `find` does."""
    rest = {key: value for key, value in table.items() if key != "workflows"}
    own, stages = table.get("workflows", {}), rest.get("stages")
    if not isinstance(own, dict):
        raise UserError("workflows is a table: [workflows.NAME.stages.*]")
    if not isinstance(stages, dict):
        return rest
    if depth > MAX_DEPTH:
        raise UserError(f"workflows are within one another more than {MAX_DEPTH} deep: is one within itself?")

    def found(name: str) -> Found:
        inner = own.get(name)
        if inner is None:
            return find(name)
        return Found({"workflows": own, **inner} if isinstance(inner, dict) else {}, found)

    out: dict[str, Any] = {}
    for name, stage in stages.items():
        is_workflow = isinstance(stage, dict) and "workflow" in stage
        for given, put in (_put(name, stage, found, depth) if is_workflow else {name: stage}).items():
            if given in out or (given != name and given in stages):
                raise UserError(f"stage {given!r} is there twice: as itself, and from the workflow of {name!r}")
            out[given] = put
        if len(out) > MAX_STAGES:
            raise UserError(f"there are more than {MAX_STAGES} stages")
    return {**rest, "stages": out}


def _put(name: str, stage: Mapping[str, Any], find: Find, depth: int) -> dict[str, Any]:
    """The stages that one of the outer workflow stands for."""
    where = f"stage {name!r}"
    if strange := [key for key in stage if key not in KEYS]:
        raise UserError(f"{where}: unknown field {strange[0]!r}; one that is a workflow has {', '.join(KEYS)}")
    reads, params, asked = stage.get("inputs", {}), stage.get("params", {}), stage["workflow"]
    if not (isinstance(asked, str) and isinstance(reads, dict) and isinstance(params, dict)):
        raise UserError(f"{where}: workflow is a name or a file, inputs and params are tables")
    inner = _inner(where, asked, find, depth)
    if not isinstance(inner, dict) or not all(isinstance(each, dict) for each in inner.values()) or not inner:
        raise UserError(f"{where}: the workflow {asked!r} has no stages")
    sources = [each for what in (*inner.values(), stage) for read in _inputs(what).values() for each in _listed(read)]
    if wrong := [each for each, what in inner.items() if not isinstance(what.get("params", {}), dict)]:
        raise UserError(f"{where}: params of stage {wrong[0]!r} of {asked!r} is no table")
    if wrong := [each for each, what in inner.items() if not isinstance(what.get("inputs", {}), dict)]:
        raise UserError(f"{where}: inputs of stage {wrong[0]!r} of {asked!r} is no table")
    if not all(isinstance(each, str) for each in sources):
        raise UserError(f"{where}: what {asked!r} reads, or is given to read, is no name of a stage")
    if strange := [key for key in params if key not in inner]:
        raise UserError(f"{where}: params has {strange[0]!r}, which is no stage of {asked!r}: {', '.join(inner)}")
    gives = _given(where, stage, inner)
    names = {each: name if each == gives else f"{name}-{each}" for each in inner}
    used: set[str] = set()

    def source(read: str) -> list[str]:
        if read in names:
            return [names[read]]
        used.add(read)
        if read not in reads and read != "media":
            raise UserError(f"{where}: {asked!r} reads {read!r}, which is no stage of it: say in inputs what that is")
        bound = reads.get(read, "media")
        return list(bound) if isinstance(bound, list | tuple) else [bound]

    put = {}
    for each, what in inner.items():
        inputs = {
            port: list(dict.fromkeys(new for one in _listed(old) for new in source(one)))  # each once: it may be many
            for port, old in _inputs(what).items()
        }
        one = {port: many[0] if len(many) == 1 else many for port, many in inputs.items()}
        own = params.get(each, {})
        if not isinstance(own, dict):
            raise UserError(f"{where}: params.{each} is no table")
        put[names[each]] = {**what, "inputs": one, "params": {**what.get("params", {}), **own}}
    if unread := [read for read in reads if read not in used]:
        raise UserError(f"{where}: no stage of {asked!r} reads {unread[0]!r}")
    return put


def _inner(where: str, asked: str, find: Find, depth: int) -> Any:
    """The stages of the workflow that is asked for."""
    table, deeper, place = find(asked)
    try:
        if strange := [key for key in table if key not in ("name", "stages", "workflows")]:
            raise UserError(f"unknown field {strange[0]!r}: a workflow has name, stages and workflows")
        return expanded(table, deeper, depth + 1).get("stages")
    except UserError as error:
        raise UserError(f"{where}: {place}: {error}") if place else error from error


def _given(where: str, stage: Mapping[str, Any], inner: Mapping[str, Any]) -> str:
    read = {source for what in inner.values() for given in _inputs(what).values() for source in _listed(given)}
    answers = [each for each in inner if each not in read]
    gives = stage.get("gives", answers[0] if len(answers) == 1 else None)
    if not isinstance(gives, str) or gives not in inner:
        raise UserError(f"{where}: say which stage it gives: gives = one of {', '.join(answers or inner)}")
    return gives


def _inputs(what: Mapping[str, Any]) -> Mapping[str, Any]:
    found = what.get("inputs", {})
    return found if isinstance(found, dict) else {}


def _listed(given: Any) -> list[Any]:
    return list(given) if isinstance(given, list | tuple) else [given]
