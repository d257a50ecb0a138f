"""Composing: the workflow behind one capability, from the types of its ports. Pure.

A port that takes media reads the stream; any other reads the capabilities whose output fits it, each with what it needs
in turn. Of those that a port of many, or one that may be empty, can do without, what nothing feeds is left out.
"""

from collections.abc import Mapping
from typing import Any

from engine.spec.catalogue import Catalogue
from engine.spec.operator import Capability, Media, Port
from engine.spec.workflow import MEDIA, Stage, Workflow
from streams.errors import UserError


def compose(catalogue: Catalogue, name: str, params: Mapping[str, Any] | None = None) -> Workflow:
    """A workflow whose one answer is what the capability finds. Raises UserError where nothing here feeds one of its
    ports, or where it is known under no such name."""
    stages: dict[str, Stage] = {}
    _add(catalogue, catalogue.capability(name), dict(params or {}), stages, ())
    return Workflow(name=name, stages=stages)


def _add(
    catalogue: Catalogue,
    capability: Capability,
    params: dict[str, Any],
    stages: dict[str, Stage],
    above: tuple[str, ...],
) -> None:
    if capability.name in stages:
        return
    inputs: dict[str, str | tuple[str, ...]] = {}
    within = (*above, capability.name)
    for port_name, port in capability.inputs.items():
        fed: list[str] = []
        unfed: UserError | None = None
        for source in _sources(catalogue, port, within):
            if fed and not port.many:
                break
            before = dict(stages)
            try:
                if source != MEDIA:
                    _add(catalogue, catalogue.capability(source), {}, stages, within)
                fed.append(source)
            except UserError as error:
                stages.clear()
                stages.update(before)
                unfed = unfed or error
        if not fed and not port.optional:
            raise unfed or UserError(
                f"nothing here gives what {capability.name!r} reads on {port_name!r} ({port.type.__name__}): "
                "write a workflow that does"
            )
        if fed:
            inputs[port_name] = tuple(fed) if port.many else fed[0]
    stages[capability.name] = Stage(capability=capability.name, inputs=inputs, params=params)


def _sources(catalogue: Catalogue, port: Port, above: tuple[str, ...]) -> list[str]:
    """What fits a port, by name: the media, or the capabilities that give its type and do not need this one."""
    if issubclass(Media, port.type):
        return [MEDIA]
    return [
        name
        for name, capability in sorted(catalogue.capabilities.items())
        if name not in above and issubclass(capability.output, port.type)
    ]
