"""Responsibility: which of the nodes that are alive answers a job. Pure.

Each node works it out by itself, by rendezvous hashing, so when one goes only its own jobs move. Source: Thaler and
Ravishankar, "Using name-based mappings to increase hit rates", 1998.
"""

import hashlib
from collections.abc import Sequence


def responsible(job: str, nodes: Sequence[str]) -> str | None:
    """The node that answers a job: the one whose hash with it is highest."""
    return max(nodes, key=lambda node: hashlib.sha256(f"{node} {job}".encode()).digest(), default=None)
