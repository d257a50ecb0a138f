"""Penstock: answers questions about video and audio, as a dataflow of operators joined by NATS subjects."""

from typing import TYPE_CHECKING, Any

from engine.answers import Answer
from engine.workflow import Stage, Workflow, load_workflow, parse_workflow
from penstock.run import run
from streams.errors import LinkError, PenstockError, Permanent, Transient, UserError

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
    from penstock.client import Client, Job, connect


def __getattr__(name: str) -> Any:
    """The client is loaded when it is asked for: `penstock run` starts sooner without."""
    if name in ("Client", "Job", "connect"):
        from penstock import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
