"""Consumers, as the server knows them."""

from engine.decide.running_graph import RunningGroup
from streams.wire.link import Link, Refused
from streams.wire.retention import MEDIA, RESULTS


async def is_idle(link: Link, group: RunningGroup) -> bool | None:
    """Whether the group's consumers have nothing left for it; None where it has none. The leader answers."""
    infos = []
    for name in (MEDIA, RESULTS):
        try:
            infos.append(await link.api(f"CONSUMER.INFO.{name}.{group.name}-{group.stream}"))
        except Refused:  # it reads nothing there, or is not served
            continue
    return all(not info["num_pending"] and not info["num_ack_pending"] for info in infos) if infos else None
