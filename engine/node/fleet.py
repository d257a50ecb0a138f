"""The fleet of workers: how many worker processes this node keeps, as `engine.decide.fleet` says of all nodes together.

Every node hears all workers, works out how many there are to be in all and which part of them is its own, and keeps
that part: no node has to lead. Where there is no worker at all nobody says what waits; then it is looked whether
anything has come that a running job may want, and now and then one is started to look.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import anyio
import msgspec
import structlog

from engine.decide.decisions import Decision
from engine.decide.demand import Demand
from engine.decide.fleet import Fleet, Room, Seen, placed
from engine.decide.lanes import CORES
from engine.decide.signals import WorkerSignals
from engine.node.workers_heard import WorkersHeard
from engine.run.journal import Journal
from engine.run.registry import NodeStatus, Registry
from streams.errors import PenstockError
from streams.wire.jetstream import standing
from streams.wire.retention import MEDIA

log = structlog.get_logger(__name__)

LOOK_S = 1.0
PEEK_S = 600.0  # without any worker, after which one is started to look
FIRST_START_S = 5.0  # what a worker is taken to need until it works, before one has shown
MEMORY = 4  # starts
MOST = 10_000  # what is wanted may be more than there is room for: others may make some


class Speaking(Protocol):
    """A node, as far as what it says of itself."""

    status: NodeStatus


class Workforce:
    """How many worker processes a node keeps. Made for one node."""

    def __init__(self, registry: Registry, heard: WorkersHeard, journal: Journal) -> None:
        self.wanted: dict[str, int] = {}  # of all nodes together, by resource, whether or not there is room for them
        self._registry = registry
        self._heard = heard
        self._journal = journal
        self._demand = Demand()
        self._fleets: dict[str, Fleet] = {}
        self._start_s = FIRST_START_S
        self._asked_s: list[float] = []  # when those were asked for that are not there yet
        self._names: set[str] = set()
        self._rest: tuple[Any, float] = None, 0.0  # what had come when there were no workers, and since when

    async def run(self, node: Speaking, keep: Callable[[int], None]) -> None:
        """Until canceled. `keep` is told how many, whenever that is another number, and `node` says so."""
        while True:
            try:
                num = await self._look(node.status)
                if num != node.status.num_workers:
                    node.status = msgspec.structs.replace(node.status, num_workers=num)
                    keep(num)
                    await self._registry.say_alive(node.status)
            except PenstockError as error:
                log.warning("fleet_held", error=str(error))
            except Exception as error:  # as many as there are stay
                log.error("fleet_held", exc_info=error)
            await anyio.sleep(LOOK_S)

    async def _look(self, own: NodeStatus) -> int:
        """How many workers this node is to keep."""
        now_s = anyio.current_time()
        nodes = {node.id: node for node in await self._registry.nodes()} | {own.id: own}
        rooms = [room_of(node) for node in nodes.values()]
        workers = self._heard.now
        if workers:
            self._rest = None, now_s
            self._note_started(now_s, own.id, workers)
            seen = self._demand.seen(now_s, workers, self._start_s)
        else:
            seen = {CORES: await self._nobody(now_s, rooms)}
        least = sum(room.least for room in rooms)
        self.wanted = {name: self._decide(name, now_s, each, least, len(workers)) for name, each in seen.items()}
        self._fleets = {name: self._fleets[name] for name in seen}
        lanes = seen[CORES].lanes if CORES in seen else 1.0
        num = placed(max(self.wanted.values(), default=least) * lanes, rooms).get(own.id, own.num_workers)
        self._asked_s += [now_s] * (num - own.num_workers)
        return num

    def _note_started(self, now_s: float, node: str, workers: Sequence[WorkerSignals]) -> None:
        """How long those took that were asked for and are there now."""
        names = {worker.worker for worker in workers if worker.node == node}
        for _ in names - self._names:
            if self._asked_s:
                self._start_s += (now_s - self._asked_s.pop(0) - self._start_s) / MEMORY
        self._names = names

    def _decide(self, name: str, now_s: float, seen: Seen, least: int, num: int) -> int:
        """How many are wanted for a resource."""
        fleet = self._fleets.setdefault(name, Fleet(least, MOST, max(num, least)))
        fleet.least = least
        changed = fleet.decide(now_s, seen)
        if changed is not None:
            what = f"{changed.num} worker{'s' * (changed.num != 1)} from now on"
            why = f"{name}: {changed.why}"
            self._journal.decided(Decision(at_ns=0, loop="fleet", what=what, why=why, inputs=dict(changed.inputs)))
        return fleet.num

    async def _nobody(self, now_s: float, rooms: Sequence[Room]) -> Seen:
        """What is known where there is no worker to say it: whether there may be something to do."""
        came = await self._came()
        before, since_s = self._rest
        if before is None:
            self._rest = came, now_s
        is_any = came is not None and (before not in (None, came) or now_s > since_s + PEEK_S)
        lanes = sum(room.lanes for room in rooms) / len(rooms) if rooms else 1.0
        return Seen(
            lanes=lanes,
            ready=0,
            offered=None if is_any else 0.0,
            waiting_s=None if is_any else 0.0,
            num_waiting=int(is_any),
            start_s=self._start_s,
        )

    async def _came(self) -> Any:
        """What changes where a running job may have something to do; None where none runs."""
        running = sorted(job.id for job in await self._registry.jobs() if job.state == "running")
        if not running:
            return None
        return running, (await standing(self._registry.link, MEDIA)).last_seq


def room_of(node: NodeStatus) -> Room:
    """How many workers a node may have; one that does not say keeps what it has."""
    most = node.max_workers or node.num_workers
    least = min(node.min_workers, most) if node.max_workers else most
    return Room(node.id, float(max(1, node.num_cores // max(1, most))), least, most)
