"""A group as a worker serves it: what it takes its messages from, and what computes them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import anyio

from engine.decide.running_graph import RunningGroup, in_order
from engine.run.group import Group
from engine.run.pool import Pool
from engine.spec.plan import PlannedStage, ancestors
from streams.wire.pull import Pull


@dataclass(slots=True)
class Served:
    """A group that is being served; its scopes end the taking of messages, not the work on those taken."""

    running: RunningGroup
    group: Group
    place: str  # stream and group
    pools: list[Pool]  # of all rungs
    pulls: list[Pull] = field(default_factory=list)
    scopes: list[anyio.CancelScope] = field(default_factory=list)

    @property
    def stage_ids(self) -> frozenset[str]:
        return frozenset(self.group.stages)

    def leave(self, *, cancel: bool) -> None:
        for scope in self.scopes:
            scope.cancel()
        self.group.leave(cancel=cancel)


def ancestors_of(groups: Sequence[RunningGroup]) -> dict[str, dict[str, frozenset[str]]]:
    """By stream and stage id, all that a stage's inputs are made from."""
    by_stream: dict[str, list[PlannedStage]] = {}
    for group in groups:
        by_stream.setdefault(group.stream, []).extend(stage.planned for stage in group.stages)
    return {stream: ancestors(in_order(stages)) for stream, stages in by_stream.items()}
