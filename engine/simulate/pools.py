"""Pools in a world where nothing is computed: batches take the time that a curve says, and end.

What is asked when, and what is done about it, is as in `engine.run.pool`; the rules are the same objects.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import msgspec

from engine.decide import lanes
from engine.decide.batcher import Decision, Drop, Item, Run, WakeAt
from engine.decide.cores import urgency_of, whose_turn
from engine.decide.inflight import Limited
from engine.decide.learned import Learned
from engine.decide.signals import PoolSignals
from engine.simulate.fleet import Replicas
from engine.simulate.scenario import ReplicasSpec
from engine.simulate.services import Service, Slow, ends_s
from engine.simulate.sharing import Sharing
from engine.simulate.world import NS, World

NUM_RECENT = 64  # as engine.run.pool
REFUSAL_S = 0.01
MISSED_S = 10.0  # as engine.run.assignment: after such a silence a message is given to another worker


class Batching(Protocol):
    """What decides which of a pool's waiting items run: the engine's batcher, or another to hold it against."""

    def __len__(self) -> int: ...
    @property
    def first(self) -> Item | None: ...
    def add(self, item: Item) -> None: ...
    def decide(self, now_ns: int, num_free: int) -> Sequence[Decision]: ...
    def ended(self, items: Sequence[Item]) -> None: ...
    def took(self, batch_size: int, service_s: float) -> None:
        """A batch of so many took so long; none that waited for its model to be loaded."""


class Limiting(Protocol):
    """What says how many items of a pool that batches by itself are under way at once."""

    @property
    def limit(self) -> int: ...
    def began(self, num_waiting: int, has_time_s: float | None) -> None: ...
    def ended(self, num_under_way: float, service_s: float, now_ns: int, *, failed: bool = False) -> Limited | None: ...


class Ended(msgspec.Struct, frozen=True, gc=False):
    """What became of an item: when it ran, and in how large a batch; dropped where that is 0."""

    began_ns: int
    ended_ns: int
    batch_size: int


OnEnded = Callable[[Ended], None]


class _Caller(NamedTuple):
    """Who wants to know of an item, and since when it is there."""

    since_ns: int
    on_ended: OnEnded
    on_begun: Callable[[], None]


class Cores:
    """What pools share: as many batches compute at once as there are cores. A core that is free goes to the pool whose
    work is the most urgent (`engine.decide.cores`), which forms its batch then."""

    def __init__(self, num: int, world: World, turn: "Turn" = whose_turn, workers: ReplicasSpec | None = None) -> None:
        self.workers = Replicas(world, workers, self.offer, self._lose) if workers else None
        self._num = num
        self._world = world
        self.num_lanes = 0
        self._turn = turn
        self._num_used = 0
        self.pools: list[SimulatedPool] = []  # that use them
        self._wanting: list[SimulatedPool] = []

    @property
    def num(self) -> int:
        return self._num if self.workers is None else self.workers.lanes

    def want(self, pool: "SimulatedPool") -> None:
        if pool not in self._wanting:
            self._wanting.append(pool)
            self.offer()

    def offer(self) -> None:
        while self._num_used < self.num and self._wanting:
            pool = self._turn(self._wanting, self._world.now_ns)
            self._wanting.remove(pool)
            self._num_used += 1
            if not pool.granted():
                self._num_used -= 1

    def give(self) -> None:
        self._num_used -= 1

    def _lose(self, num: int) -> None:
        """Some are gone, with what ran on them."""
        num = part_lost(self._num_used, num, self.num)
        for pool in self.pools:
            num -= pool.lose(num)


def part_lost(num_used: int, num_gone: int, num_left: int) -> int:
    """Of so many lanes that were used, those that are gone: all were used alike."""
    return math.ceil(num_used * num_gone / (num_gone + num_left))


Turn = Callable[[Sequence["SimulatedPool"], int], "SimulatedPool"]


class SimulatedPool:
    """One rung on one kind of device."""

    def __init__(
        self,
        world: World,
        name: str,
        shape: lanes.PoolShape,
        max_batch: int,
        service: Service,
        slow: Sequence[Slow],
        cores: Cores,
        batching: Batching,
        *,
        is_warm: bool = True,
        limiting: Limiting | None = None,
        replicas: ReplicasSpec | None = None,
    ) -> None:
        self.name = name
        self.max_batch = max_batch
        self.batching = batching
        self._world = world
        self._shape = shape
        self._service = service
        self._limiting = limiting  # of one that is `async`
        self._sharing = Sharing(world, service, slow) if service.is_shared else None
        self.changes: list[tuple[float, Limited]] = []  # when, s
        self._slow = sorted(slow, key=lambda each: each.from_s)
        self._cores = cores
        self._chance = world.chance(f"service/{name}")
        self._callers: dict[int, _Caller] = {}  # by item
        self.learned = Learned(max_batch)  # beside what a batcher learns: others' learn nothing
        self.replicas = Replicas(world, replicas, self._ask, self._lose) if replicas else None
        if lanes.uses_cores(shape):
            cores.pools.append(self)
        self._running: dict[int, Callable[[], None]] = {}  # by a batch's first item: what fails it
        self._num_lanes = 0
        self._num_loaded = 10**6 if is_warm else 0
        self._num_items = 0
        self._num_running = 0
        self._wake_ns = 0
        self._waits_s: deque[float] = deque(maxlen=NUM_RECENT)
        self._services_s: deque[float] = deque(maxlen=NUM_RECENT)
        self._since_ns = world.now_ns
        self.num_batches = self.num_done = self.num_dropped = 0
        self.busy_s = 0.0  # of all lanes
        self.items_s = 0.0  # the integral of how many items there are
        self.sojourns_s = 0.0  # of the items that ended

    @property
    def num_waiting(self) -> int:
        return len(self.batching)

    @property
    def num_in_service(self) -> int:
        return self._num_running

    @property
    def service_s(self) -> float | None:
        """Mean of the last batches."""
        return sum(self._services_s) / len(self._services_s) if self._services_s else None

    def submit(self, item: Item, on_ended: OnEnded, on_begun: Callable[[], None] = lambda: None) -> None:
        """`item`: by whatever number."""
        self._count()
        self._num_items += 1
        self._callers[self._num_items] = _Caller(self._world.now_ns, on_ended, on_begun)
        self.batching.add(msgspec.structs.replace(item, id=self._num_items))
        self._ask()

    @property
    def resource(self) -> str:
        return lanes.resource_of(self._shape, self.name)

    @property
    def num_shared_lanes(self) -> int:
        """Of its resource."""
        return max(1, lanes.num_shared(self._shape_now, self._cores.num))

    @property
    def running_s(self) -> float:
        """What the batches that run still take, together."""
        return self.learned.running_s(self._world.now_ns)

    def signals(self) -> PoolSignals:
        return PoolSignals(
            pool=self.name,
            runs_in=self._shape.runs_in,
            device=self._shape.device,
            max_batch=self.max_batch,
            num_waiting=len(self.batching),
            num_patient=getattr(self.batching, "num_patient", 0),  # of a policy of others: it knows no difference
            num_in_service=self._num_running,
            num_in_flight=self._num_lanes,
            max_in_flight=self._limits().max_in_flight,
            num_instances=min(self._num_loaded, self._num_lanes),
            queue_wait_s=sum(self._waits_s) / len(self._waits_s) if self._waits_s else None,
            service_s=self.service_s,
        )

    def _limits(self) -> lanes.Limits:
        return lanes.limits(self._shape_now, self._num_lanes, self._cores.num_lanes, self._cores.num)

    @property
    def _shape_now(self) -> lanes.PoolShape:
        if self.replicas is not None:
            return msgspec.structs.replace(self._shape, num_instances=self.replicas.lanes)
        if self._limiting is None:
            return self._shape
        return msgspec.structs.replace(self._shape, max_async=self._limiting.limit)

    @property
    def urgent_ns(self) -> int:
        """By when the first of its items is to be done."""
        first = self.batching.first
        return urgency_of(first, self._callers[first.id].since_ns if first is not None else self._world.now_ns)

    @property
    def takes_ns(self) -> int:
        return self.learned.takes_ns(len(self.batching))

    @property
    def is_full(self) -> bool:
        return len(self.batching) >= self.max_batch

    def granted(self) -> bool:
        """A core is free for it: whether it begins a batch."""
        num_before = self._num_lanes
        self._do(1)
        if self._num_lanes == num_before:
            return False
        self._want()
        return True

    def _want(self) -> None:
        if len(self.batching) and self._num_lanes < max(1, self._cores.num):
            self._cores.want(self)

    def _ask(self) -> None:
        if lanes.uses_cores(self._shape):
            self._want()
            self._do(0)
        else:
            self._do(self._limits().max_in_flight - self._num_lanes)

    def _do(self, num_free: int) -> None:
        now_ns = self._world.now_ns
        for decision in self.batching.decide(now_ns, num_free):
            match decision:
                case Run(items):
                    self._start(items)
                case Drop(item):
                    self.num_dropped += 1
                    self._end_item(item, Ended(now_ns, now_ns, 0))
                case WakeAt(at_ns):
                    self._wake(at_ns)

    def _wake(self, at_ns: int) -> None:
        """What is asked in vain does no harm, but costs: one alarm at a time, the earliest."""
        if self._wake_ns and self._world.now_ns <= self._wake_ns <= at_ns:
            return
        self._wake_ns = at_ns

        def rings() -> None:
            if self._wake_ns == at_ns:
                self._wake_ns = 0
                self._ask()

        self._world.at(at_ns, rings)

    def _start(self, items: Sequence[Item]) -> None:
        now_ns = self._world.now_ns
        self._num_lanes += 1
        self._num_running += len(items)
        self.num_batches += 1
        self.learned.began(items[0].id, len(items), now_ns)
        for item in items:
            self._callers[item.id].on_begun()
        for item in items[-NUM_RECENT:]:
            self._waits_s.append((now_ns - self._callers[item.id].since_ns) / NS)
        if lanes.uses_cores(self._shape):
            self._cores.num_lanes += 1
        self._load(items)

    def _load(self, items: Sequence[Item]) -> None:
        """Where no instance is free, one more is loaded first."""
        num_wanted = 1 if self._shape.runs_in in ("loop", "async") else self._num_lanes
        if num_wanted <= self._num_loaded or not self._service.cold_s:
            self._begin(items, is_cold=False)
            return
        self._num_loaded += 1
        self._world.after(self._service.cold_s, lambda: self._begin(items, is_cold=True))

    def _begin(self, items: Sequence[Item], *, is_cold: bool) -> None:
        began_ns = self._world.now_ns
        if self._limiting is not None:
            self._limiting.began(len(self.batching), items[0].lag_ns / NS if items[0].lag_ns else None)
        if self._sharing is not None:
            num, drawn = self._num_running, self._service.drawn(self._chance)
            if not self._sharing.begin(drawn, lambda: self._end(items, began_ns, num, is_cold=is_cold)):
                end = partial(self._end, items, began_ns, num, is_cold=is_cold, failed=True)
                self._world.after(REFUSAL_S, end)
            return
        took_s = self._service.sampled_s(len(items), self._chance)
        if lanes.uses_cores(self._shape):
            took_s *= self._service.beside(self._cores.num_lanes, self._cores.num)
        end_s = ends_s(began_ns / NS - 1, took_s, self._slow) + 1  # the world begins at 1 s
        end = partial(self._end, items, began_ns, 0, is_cold=is_cold)
        first = items[0].id
        self._running[first] = partial(end, failed=True)

        def ends() -> None:
            if self._running.pop(first, None) is not None:
                end()

        self._world.at(round(end_s * NS), ends)

    def _end(
        self, items: Sequence[Item], began_ns: int, num_beside: int, *, is_cold: bool, failed: bool = False
    ) -> None:
        """`num_beside`: items that were under way when it began, of one that is `async`."""
        now_ns = self._world.now_ns
        took_s = (now_ns - began_ns) / NS
        if self._limiting is not None and not is_cold:
            under_way = (num_beside + self._num_running) / 2
            changed = self._limiting.ended(under_way, took_s, now_ns, failed=failed)
            if changed is not None:
                self.changes.append((now_ns / NS - 1, changed))
        self.busy_s += took_s
        self._num_lanes -= 1
        self._num_running -= len(items)
        self._services_s.append(took_s)
        self.batching.ended(items)
        self.learned.ended(items[0].id)
        if not is_cold and not failed:
            self.learned.took(len(items), took_s)
            self.batching.took(len(items), took_s)
        if lanes.uses_cores(self._shape):
            self._cores.num_lanes -= 1
            self._cores.give()
        self.num_done += len(items) * (not failed)
        self.num_dropped += len(items) * failed
        for item in items:
            self._end_item(item, Ended(began_ns, now_ns, 0 if failed else len(items)))
        self._ask()
        self._cores.offer()

    def lose(self, num: int) -> int:
        """So many of its batches are lost, where there are as many; they are missed after a while."""
        lost = list(self._running)[: max(0, num)]
        for first in lost:
            self._world.after(MISSED_S, self._running.pop(first))
        return len(lost)

    def _lose(self, num_lanes: int) -> None:
        assert self.replicas is not None
        self.lose(part_lost(self._num_lanes, num_lanes, self.replicas.lanes))

    def _end_item(self, item: Item, ended: Ended) -> None:
        self._count()
        caller = self._callers.pop(item.id)
        self.sojourns_s += (ended.ended_ns - caller.since_ns) / NS
        caller.on_ended(ended)

    def _count(self) -> None:
        now_ns = self._world.now_ns
        self.items_s += len(self._callers) * (now_ns - self._since_ns) / NS
        self._since_ns = now_ns
