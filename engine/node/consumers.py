"""Consumers, as the server knows them. The leader answers."""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import anyio

from engine.decide.running_graph import RunningGroup, running_groups
from engine.run.registry import Registry
from streams.wire.link import Link, Refused
from streams.wire.retention import MEDIA, RESULTS

Floor = Mapping[str, float]


async def is_idle(link: Link, group: RunningGroup) -> bool | None:
    """Whether the group's consumers have nothing left for it; None where it has none."""
    floors = await acknowledged(link, group)
    return None if floors is None else all(map(math.isinf, floors.values()))


async def acknowledged(link: Link, group: RunningGroup) -> Floor | None:
    """By JetStream stream, the sequence up to which the group has acknowledged all that is for it, infinite where
    nothing is left; None where it has no consumer."""
    floors: dict[str, float] = {}
    for name in (RESULTS,) if group.has_ranges_only else (MEDIA, RESULTS):  # what waits for the end may know it already
        try:
            floors[name] = _floor(await link.api(f"CONSUMER.INFO.{name}.{group.name}-{group.stream}"))
        except Refused:  # it reads nothing there, or is not served
            continue
    return floors or None


def _floor(info: Mapping[str, Any]) -> float:
    if not info["num_pending"] and not info["num_ack_pending"]:
        return math.inf
    return float(info["ack_floor"]["stream_seq"])


class Floors:
    """How far the groups that run over each stream are, read once for all the jobs of a node that wait: with a thousand
    of them, a thousand times is what keeps them waiting."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._groups: dict[str, tuple[float, list[RunningGroup]]] = {}
        self._read: dict[str, dict[str, tuple[float, Floor | None]]] = {}  # by stream and group
        self._reading: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)

    async def since(
        self, stream: str, at_s: float, stages: Collection[str]
    ) -> Sequence[tuple[RunningGroup, Floor | None]]:
        """The groups of a stream that make any of these stages, and what each has acknowledged, as it was at a moment
        (of the event loop's clock) or later."""
        async with self._reading[stream]:
            read_s, groups = self._groups.get(stream, (-math.inf, []))
            if read_s < at_s:
                read_s = anyio.current_time()
                groups = running_groups(job for job in await self._registry.jobs() if job.stream == stream)
                self._groups[stream] = read_s, groups
                before = self._read.get(stream, {})
                self._read[stream] = {group.name: before[group.name] for group in groups if group.name in before}
            found = self._read[stream]
            concerned = [group for group in groups if any(stage.id in stages for stage in group.stages)]
            for group in concerned:
                if found.get(group.name, (-math.inf, None))[0] < at_s:
                    read_s = anyio.current_time()
                    found[group.name] = read_s, await acknowledged(self._registry.link, group)
            return [(group, found[group.name][1]) for group in concerned]
