"""Admission: how many messages each group of a worker may take now. Pure.

Credit comes from the pools. A pool has *room* for the batches it can run and one more to form meanwhile, less what
waits and what is in service there. A group may take as much as the hungriest of its pools has room for, so a stage that
takes large batches gets them beside one that takes items one by one; but nothing while another of its pools has
MAX_WAIT_S of work waiting, for what is taken here can be done nowhere else. Groups that share a pool share its room, by
what the server holds for each; a group that is idle is lent one message, so that it can say that it is idle no more.

What is taken is held in memory, so a worker takes nothing more while its frames are over their budget, as long as
something is under way that will give them back.
"""

from collections.abc import Mapping, Sequence

import msgspec

from engine.decide.signals import PoolSignals

MAX_WAIT_S = 2.0


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What a group would take."""

    group: str
    pools: tuple[str, ...]  # of its stages
    num_waiting: int | None = None  # messages that the server holds for it; None: not known
    num_taken: int = 0  # messages that it has taken and not finished


class Credit(msgspec.Struct, frozen=True):
    """How many messages a group may take now, and why not more."""

    num: int
    why: str


def room(pool: PoolSignals) -> int:
    """How many items more a pool can use; below 0 where it has more than that."""
    return (pool.max_in_flight + 1) * pool.max_batch - pool.num_waiting - pool.num_in_service


def credits(
    demands: Sequence[Demand], pools: Mapping[str, PoolSignals], *, is_over_budget: bool = False
) -> dict[str, Credit]:
    """The credit of every group."""
    if is_over_budget and any(demand.num_taken for demand in demands):
        return {demand.group: Credit(0, "the frames held are over their budget") for demand in demands}
    found: dict[str, Credit] = {}
    sharing: dict[str, list[tuple[Demand, int]]] = {}
    for demand in demands:
        of_group = [pools[name] for name in demand.pools]
        full = next((p for p in of_group if p.num_waiting >= p.max_batch and p.wait_ahead_s > MAX_WAIT_S), None)
        if full is not None:
            found[demand.group] = Credit(0, f"{full.pool} has {full.wait_ahead_s:.1f} s of work waiting")
            continue
        hungriest = max(of_group, key=room)
        most = room(hungriest)
        if most <= 0:
            found[demand.group] = Credit(0, f"{hungriest.pool} has no room")
            continue
        sharing.setdefault(hungriest.pool, []).append((demand, most))
    for pool, some in sharing.items():
        wanted = {demand.group: max(1, min(demand.num_waiting or 1, most)) for demand, most in some}
        total = sum(wanted.values())
        for demand, most in some:
            num = most if len(some) == 1 else max(1, most * wanted[demand.group] // total)
            found[demand.group] = Credit(num, f"{pool} has room for {most}")
    return found
