"""Penstock: answers questions about video and audio, as a dataflow of operators joined by NATS subjects."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = [
    "Answer",
    "Client",
    "Job",
    "LinkError",
    "PenstockError",
    "Permanent",
    "Stage",
    "Transient",
    "UserError",
    "Workflow",
    "connect",
    "load_workflow",
    "parse_workflow",
    "run",
]

if TYPE_CHECKING:
    from engine.decide.answer import Answer
    from engine.spec.workflow import Stage, Workflow, load_workflow, parse_workflow
    from penstock.client import Client, Job, connect
    from penstock.running import run
    from streams.errors import LinkError, PenstockError, Permanent, Transient, UserError

_PLACES = {
    "engine.decide.answer": ("Answer",),
    "engine.spec.workflow": ("Stage", "Workflow", "load_workflow", "parse_workflow"),
    "penstock.client": ("Client", "Job", "connect"),
    "penstock.running": ("run",),
    "streams.errors": ("LinkError", "PenstockError", "Permanent", "Transient", "UserError"),
}


def __getattr__(name: str) -> Any:
    """Each is loaded when it is asked for, so that a command starts at once."""
    for place, names in _PLACES.items():
        if name in names:
            return getattr(import_module(place), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
