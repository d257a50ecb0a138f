"""Penstock: answers questions about video and audio, as a dataflow of operators joined by NATS subjects."""

from engine.answers import Answer
from engine.workflow import Stage, Workflow, load_workflow, parse_workflow
from penstock.client import Client, Job, connect
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
