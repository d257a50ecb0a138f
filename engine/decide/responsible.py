"""Responsibility: which of the nodes that are alive answers a job or tells of a stream, and whether it matters which.
Pure.

Each node works it out by itself, by rendezvous hashing, so when one goes only its own jobs move. Source: Thaler and
Ravishankar, "Using name-based mappings to increase hit rates", 1998.
"""

import hashlib
from collections.abc import Mapping, Sequence


def responsible(name: str, nodes: Sequence[str]) -> str | None:
    """The node that answers the job, or tells of the stream, of that name: the one whose hash with it is highest."""
    return max(nodes, key=lambda node: hashlib.sha256(f"{node} {name}".encode()).digest(), default=None)


def unlike_signers(signs: Mapping[str, str]) -> str:
    """What is to be said of nodes that would sign the same webhook differently, by what tells their keys apart; nothing
    where it makes no difference which of them sends."""
    by_key: dict[str, list[str]] = {}
    for node, key in sorted(signs.items()):
        by_key.setdefault(key, []).append(node)
    if len(by_key) < 2:
        return ""
    said = [f"{', '.join(nodes)} {f'with key {key}' if key else 'not at all'}" for key, nodes in sorted(by_key.items())]
    return f"webhooks are signed differently: by {'; by '.join(said)}"
