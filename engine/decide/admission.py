"""Admission: how many messages a group of a worker may take now. Pure.

Credit comes from the pools. A pool has *room* for the batches it can run and one more to form meanwhile, less what
waits and what is in service there and what is being decoded for it. A group may take as much as the hungriest of its
pools has room for, so a stage that takes large batches gets them beside one that takes items one by one; but nothing
while another of its pools has MAX_WAIT_S of work waiting, for what is taken here can be done nowhere else. Nor does a
group hold more messages than that pool could use: what it has taken and is not in the pool yet is on its way there, or
has gone on to one that is slower. Groups that share a pool share its room, by what the server holds for each, up to two
batches; a group that is idle is lent one message, so that it can say that it is idle no more.

What is wanted whenever gives way to what is due (`engine.decide.cores`), so what of it waits in a pool takes no room
from a group of a live stream: a recording that was taken would keep its place, and cameras would wait at the server.

What is taken is held in memory, so a worker takes nothing more while its frames are over their budget, as long as
something is under way that will give them back.

There may be hundreds of groups, and each asks for every few messages: what all of them want of a pool is kept as a sum,
so one is told without looking at the others.
"""

from collections.abc import Mapping, Sequence

import msgspec

from engine.decide.signals import PoolSignals

MAX_WAIT_S = 2.0


class Credit(msgspec.Struct, frozen=True):
    """How many messages a group may take now, and why not more."""

    num: int
    why: str


HELD_BACK = Credit(0, "the frames held are over their budget")


def room(pool: PoolSignals, num_taken: int = 0) -> int:
    """How many items more a pool can use, for a group that has taken so many messages; below 0 where it has more than
    that."""
    usable = (pool.max_in_flight + 1) * pool.max_batch
    return usable - max(num_taken, pool.num_ahead + pool.num_waiting + pool.num_in_service)


def without_patient(pool: PoolSignals) -> PoolSignals:
    """As a group sees it that is of a live stream."""
    if not pool.num_patient:
        return pool
    return msgspec.structs.replace(pool, num_waiting=max(0, pool.num_waiting - pool.num_patient))


def is_held_back(frame_bytes: int, max_frame_bytes: int, *, has_taken: bool) -> bool:
    """Whether no group may take anything: what is being looked at is over its budget, and something that was taken will
    give it back."""
    return has_taken and frame_bytes > max_frame_bytes


class Wants:
    """What the groups of a worker want of the pools that they share."""

    def __init__(self) -> None:
        self._wants: dict[str, dict[str, int]] = {}  # by group and pool
        self._sums: dict[str, int] = {}  # by pool

    def note(self, group: str, max_batches: Mapping[str, int], num_waiting: int | None) -> None:
        """The server holds so many messages for a group (None: not known) that uses these pools, with their largest
        batches."""
        self.forget(group)
        wants = {pool: max(1, min(num_waiting or 1, 2 * largest)) for pool, largest in max_batches.items()}
        self._wants[group] = wants
        for pool, want in wants.items():
            self._sums[pool] = self._sums.get(pool, 0) + want

    def forget(self, group: str) -> None:
        """A group wants nothing any more."""
        for pool, want in self._wants.pop(group, {}).items():
            self._sums[pool] -= want
            if not self._sums[pool]:
                del self._sums[pool]

    def share(self, group: str, pool: str, num: int) -> int:
        """Of so many items of a pool, how many are for a group."""
        want = self._wants.get(group, {}).get(pool, 0)
        return max(1, num * want // max(1, self._sums.get(pool, 0)))


def credit(
    group: str, num_taken: int, pools: Sequence[PoolSignals], wants: Wants, *, is_prompt: bool = False
) -> Credit:
    """What a group that uses these pools may take, beside what it has taken and not finished. `is_prompt`: it is of a
    live stream."""
    if is_prompt:
        pools = [without_patient(pool) for pool in pools]
    hungriest, most = pools[0], room(pools[0], num_taken)
    for pool in pools:
        if pool.num_ahead + pool.num_waiting >= pool.max_batch and pool.wait_ahead_s > MAX_WAIT_S:
            return Credit(0, f"{pool.pool} has {pool.wait_ahead_s:.1f} s of work waiting")
        if room(pool, num_taken) > most:
            hungriest, most = pool, room(pool, num_taken)
    if most <= 0:
        return Credit(0, f"{hungriest.pool} has no room")
    return Credit(wants.share(group, hungriest.pool, most), f"{hungriest.pool} has room for {most}")
