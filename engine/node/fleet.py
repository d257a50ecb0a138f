"""The fleet of workers: how many worker processes this node keeps, as `engine.decide.fleet` says of all nodes together.

Every node hears all workers, works out how many there are to be in all and which part of them is its own, and keeps
that part: no node has to lead. Where workers are kept and none is heard, all stays as it is. Where none is kept nobody
says what waits; then it is looked whether anything has come since that a running job may want, and now and then one is
started to look.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import anyio
import msgspec
import structlog

from engine.decide.decisions import Decision
from engine.decide.demand import Demand
from engine.decide.fleet import Fleet, Room, Seen, placed
from engine.decide.lanes import CORES
from engine.decide.reconcile import offer_of
from engine.node.workers_heard import WorkersHeard
from engine.run.journal import Journal
from engine.run.registry import NodeStatus, Registry
from streams.errors import PenstockError
from streams.wire.jetstream import standing
from streams.wire.retention import MEDIA

log = structlog.get_logger(__name__)

LOOK_S = 1.0
SILENT_S = 2.5  # after which what a worker said counts no more: others have its part by now
PEEK_S = 600.0  # without any worker, after which one is started to look
NEEDS_S = 5.0  # how often it is looked what jobs need
FORGET_S = 60.0  # a resource of which nobody has said anything
MOST = 10_000  # what is wanted may be more than there is room for: others may make some


class Speaking(Protocol):
    """A node, as far as what it says of itself."""

    status: NodeStatus


class Keeping(Protocol):
    """What keeps worker processes."""

    @property
    def start_s(self) -> float:
        """How long one takes until it works."""

    def scale(self, num_workers: int) -> None: ...


class Came(NamedTuple):
    """The jobs that run, and how far the media have come."""

    jobs: frozenset[str]
    last_seq: int


NOTHING = Came(frozenset(), -1)


class Workforce:
    """How many worker processes a node keeps. Made for one node."""

    def __init__(
        self,
        registry: Registry,
        heard: WorkersHeard,
        journal: Journal,
        now_s: Callable[[], float] = anyio.current_time,
    ) -> None:
        self.wanted: dict[str, int] = {}  # of all nodes together, by resource, whether or not there is room for them
        self._registry = registry
        self._heard = heard
        self._journal = journal
        self._now_s = now_s
        self._demand = Demand()
        self._fleets: dict[str, tuple[Fleet, float]] = {}  # by resource; when it was heard of last
        self._rest = NOTHING  # what had come when it was decided that nobody is needed
        self._rests_since_s: float | None = None
        self._needs: tuple[frozenset[str], float] = frozenset(), 0.0  # of running jobs; until when

    async def run(self, node: Speaking, workers: Keeping) -> None:
        """Until canceled. `workers` are told how many, whenever that is another number, and `node` says so."""
        while True:
            try:
                num = await self.look(node.status, workers.start_s)
                if num != node.status.num_workers:
                    node.status = msgspec.structs.replace(node.status, num_workers=num)
                    workers.scale(num)
                    await self._registry.say_alive(node.status)
            except PenstockError as error:
                log.warning("fleet_held", error=str(error))
            except Exception as error:  # as many as there are stay
                log.error("fleet_held", exc_info=error)
            await anyio.sleep(LOOK_S)

    async def look(self, own: NodeStatus, start_s: float) -> int:
        """How many workers this node is to keep."""
        now_s = self._now_s()
        nodes = {node.id: node for node in await self._registry.nodes()} | {own.id: own}
        least = sum(room_of(node).least for node in nodes.values())
        came = await self._came() if not least else NOTHING  # before it is decided: what comes later is news
        workers = self._heard.within(SILENT_S)
        if not workers and any(node.num_workers for node in nodes.values()):
            return own.num_workers  # unknown is not nothing
        is_news = not workers and self._is_news(now_s, came)
        seen = self._demand.seen(now_s, workers, start_s) if workers else {CORES: _nobody(nodes, start_s, is_news)}
        had = max(self.wanted.values(), default=0)
        self.wanted = {name: self._decide(name, now_s, each, least, len(workers)) for name, each in seen.items()}
        self._forget(now_s, seen)
        if not max(self.wanted.values(), default=0) and (had or self._rests_since_s is None):
            self._rest, self._rests_since_s = came, now_s
        if any(room.least < room.most for room in map(room_of, nodes.values())):
            await self._look_at_needs(now_s)
        num = max((self._part(name, num, nodes, seen, own.id) for name, num in self.wanted.items()), default=least)
        most = room_of(own).most
        return min(most, max(num, 1)) if is_news and self._is_of_use(own) else num  # whoever has heard of it begins

    # --- how many ------------------------------------------------------------------------------------------------

    def _decide(self, name: str, now_s: float, seen: Seen, least: int, num: int) -> int:
        """How many are wanted for a resource."""
        fleet = self._fleets[name][0] if name in self._fleets else Fleet(least, MOST, max(num, least))
        self._fleets[name] = fleet, now_s
        fleet.least = least
        changed = fleet.decide(now_s, seen)
        if changed is not None:
            what = f"{changed.num} worker{'s' * (changed.num != 1)} from now on"
            why = f"{name}: {changed.why}"
            self._journal.decided(Decision(at_ns=0, loop="fleet", what=what, why=why, inputs=dict(changed.inputs)))
        return fleet.num

    def _forget(self, now_s: float, seen: Mapping[str, Seen]) -> None:
        """One that has only fallen silent stays as it was."""
        self._fleets = {name: kept for name, kept in self._fleets.items() if kept[1] > now_s - FORGET_S}
        self.wanted |= {name: fleet.num for name, (fleet, _) in self._fleets.items() if name not in seen}

    # --- whose part it is ----------------------------------------------------------------------------------------

    def _part(self, name: str, num: int, nodes: Mapping[str, NodeStatus], seen: Mapping[str, Seen], own: str) -> int:
        """How many of those that are wanted for a resource this node is to keep."""
        rooms = [room_of(node, is_of_use=self._is_of_use(node, name)) for node in nodes.values()]
        mean = sum(room.lanes for room in rooms) / len(rooms)
        lanes = seen[name].lanes if name in seen and name == CORES else mean
        return placed(num * lanes, rooms)[own]

    def _is_of_use(self, node: NodeStatus, resource: str = CORES) -> bool:
        """Whether it can do anything of what jobs need, or has the device that a pool is on."""
        needs, _ = self._needs
        if resource != CORES:
            begins = resource.rpartition("/")[0] + "/"
            return any(each.startswith(begins) and each.endswith("/cuda") for each in node.serves)
        return not needs or not needs.isdisjoint(node.serves)

    async def _look_at_needs(self, now_s: float) -> None:
        if now_s >= self._needs[1]:
            running = (job for job in await self._registry.jobs() if job.state == "running")
            offers = frozenset(offer_of(stage) for job in running for stage in job.plan.stages)
            self._needs = offers, now_s + NEEDS_S

    # --- where there is no worker --------------------------------------------------------------------------------

    def _is_news(self, now_s: float, came: Came) -> bool:
        """Whether there may be something to do that nobody has seen."""
        if not came.jobs:
            return False
        is_other = not came.jobs <= self._rest.jobs or came.last_seq != self._rest.last_seq
        return is_other or (self._rests_since_s is not None and now_s > self._rests_since_s + PEEK_S)

    async def _came(self) -> Came:
        running = frozenset(job.id for job in await self._registry.jobs() if job.state == "running")
        return Came(running, (await standing(self._registry.link, MEDIA)).last_seq if running else -1)


def _nobody(nodes: Mapping[str, NodeStatus], start_s: float, is_news: bool) -> Seen:
    """What is known where there is no worker to say it."""
    rooms = [room_of(node) for node in nodes.values()]
    return Seen(
        lanes=sum(room.lanes for room in rooms) / len(rooms),
        ready=0,
        offered=None if is_news else 0.0,
        waiting_s=None if is_news else 0.0,
        num_waiting=int(is_news),
        start_s=start_s,
    )


def room_of(node: NodeStatus, *, is_of_use: bool = True) -> Room:
    """How many workers a node may have; one that does not say keeps what it has, one of no use as few as it may."""
    most = node.max_workers or node.num_workers
    least = min(node.min_workers, most) if node.max_workers else most
    return Room(node.id, float(max(1, node.num_cores // max(1, most))), least, most if is_of_use else least)
