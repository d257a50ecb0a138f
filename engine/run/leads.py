"""What is left to do behind each stage of a stream, by what batches lately took: of all groups of a worker that serve
it, not of those alone that run fused. Worked out by `engine.decide.lateness`, anew once a second at most.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from engine.decide import lateness

ESTIMATE_NS = 1_000_000_000


class Leads(NamedTuple):
    """By stage, ns: what it takes with all that follows, and what follows alone."""

    with_it: Mapping[str, int]
    behind: Mapping[str, int]


NONE = Leads({}, {})


class LeadsOfStreams:
    """One for each worker. Stages are `engine.run.host.GroupStage`."""

    def __init__(self) -> None:
        self._groups: dict[str, dict[str, Mapping[str, Any]]] = {}  # stages, by stream and group
        self._known: dict[str, tuple[int, Leads]] = {}

    def serve(self, stream: str, group: str, stages: Mapping[str, Any]) -> None:
        """From now on a group runs these of a stream's stages, by their id."""
        self._groups.setdefault(stream, {})[group] = stages
        self._known.pop(stream, None)

    def leave(self, stream: str, group: str, stages: Mapping[str, Any]) -> None:
        """A group does not run these any more; another of its name may have come in its place."""
        groups = self._groups.get(stream, {})
        if groups.get(group) is stages:
            del groups[group]
            self._known.pop(stream, None)
        if not groups:
            self._groups.pop(stream, None)
            self._known.pop(stream, None)

    def of(self, stream: str, now_ns: int) -> Leads:
        """As of a second ago at most; `now_ns`: Unix time."""
        if stream not in self._groups:
            return NONE
        known = self._known.get(stream)
        if known is None or now_ns > known[0] + ESTIMATE_NS:
            known = self._known[stream] = now_ns, self._estimated(stream)
        return known[1]

    def _estimated(self, stream: str) -> Leads:
        every = {id: stage for stages in self._groups.get(stream, {}).values() for id, stage in stages.items()}
        sources = {id: stage.rule.sources for id, stage in every.items()}
        leads_ns = lateness.leads_ns(sources, {id: stage.pool.service_s for id, stage in every.items()})
        return Leads(leads_ns, lateness.behind_ns(sources, leads_ns))
