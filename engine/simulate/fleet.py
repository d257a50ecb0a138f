"""Replicas in a world where nothing is computed: they take a while to start, drain when they are let go, and die.

Who says how many there are to be is asked once a second, is told what a node would be, and may be the engine's own
(`engine.decide.fleet`) or another, to hold it against.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, Protocol

from engine.decide.demand import Lost
from engine.decide.fleet import Fleet, Seen, Wanted, spread
from engine.simulate.report import FleetReport
from engine.simulate.scenario import ReplicasSpec, Scenario
from engine.simulate.world import NS, World

ASK_S = 1.0
SILENCE_S = 5.0  # as engine.node.workers_heard: one that died is missed after so long


class Scaling(Protocol):
    """What says how many replicas there are to be."""

    num: int

    def decide(self, now_s: float, seen: Seen | None) -> Wanted | None: ...


ScalingOf = Callable[[str, ReplicasSpec], Scaling]  # by resource


def usual_scaling(name: str, spec: ReplicasSpec) -> Scaling:
    """The engine's own."""
    return Fleet(spec.least, spec.most, spec.begin)


class Replicas:
    """Of one resource. `on_ready`: there may be more to do; `on_lost`: lanes are gone, with what ran on them."""

    def __init__(
        self, world: World, spec: ReplicasSpec, on_ready: Callable[[], None], on_lost: Callable[[int], None]
    ) -> None:
        self.spec = spec
        self.ready = spec.begin
        self.num_dead = 0  # that nobody has missed yet
        self._world = world
        self._starting: dict[int, None] = {}
        self._num_started = 0
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._since_ns = world.now_ns
        self.seconds = 0.0  # of replicas, those that start included
        self.most = spec.begin

    @property
    def num(self) -> int:
        """As far as anybody knows."""
        return self.ready + len(self._starting) + self.num_dead

    @property
    def lanes(self) -> int:
        return self.ready * self.spec.lanes

    def want(self, num: int) -> None:
        """Have so many: those that are starting are the first to be given up, and one that works ends what it does."""
        self.count()
        while self.num < num:
            self._start()
        while self.num > num and self._starting:
            self._starting.popitem()
        self.ready -= min(self.ready, max(0, self.num - num))
        self.most = max(self.most, self.num)

    def die(self, num: int) -> None:
        self.count()
        num = min(num, self.ready)
        self.ready -= num
        self.num_dead += num
        self._on_lost(num * self.spec.lanes)

        def is_missed() -> None:
            self.count()
            self.num_dead -= num

        self._world.after(SILENCE_S, is_missed)

    def count(self) -> None:
        """What they cost up to now."""
        now_ns = self._world.now_ns
        self.seconds += self.num * (now_ns - self._since_ns) / NS
        self._since_ns = now_ns

    def _start(self) -> None:
        self._num_started += 1
        number = self._num_started
        self._starting[number] = None

        def works() -> None:
            if number in self._starting:
                self.count()
                del self._starting[number]
                self.ready += 1
                self._on_ready()

        self._world.after(self.spec.start_s, works)


class Demand:
    """What came for a resource, second by second, and what of it was lost."""

    def __init__(self) -> None:
        self.came = 0.0  # pieces of work, since it was asked last
        self.seconds: float | None = 0.0  # of a lane, for these; None: not known
        self._lost = Lost()
        self._num_lost = 0

    def comes(self, share: float, unit_s: float | None) -> None:
        """A piece of work, or that share of one."""
        self.came += share
        self.seconds = None if unit_s is None or self.seconds is None else self.seconds + share * unit_s

    def taken(self, now_s: float, num_lost: int) -> tuple[float | None, float]:
        """What came in the last second, and the share that was lost of late; `num_lost` is counted from the beginning.
        Nothing is nothing, also where it is not known how long things take."""
        offered = self.seconds / ASK_S if self.seconds is not None else None
        lost = self._lost.share(now_s, self.came, num_lost - self._num_lost)
        self._num_lost, self.came, self.seconds = num_lost, 0.0, 0.0
        return offered, lost


class Held(NamedTuple):
    """What is there of a resource's work. Seconds of a lane; None: not known."""

    waiting_s: float | None
    patient_s: float
    num_waiting: int
    num_in_service: int
    num_lost: int  # since the beginning


class Scaled:
    """All that has replicas, in one run."""

    def __init__(
        self, scenario: Scenario, world: World, replicas: Mapping[str, Replicas], scaling_of: ScalingOf
    ) -> None:
        self.replicas = replicas
        self.demands = {name: Demand() for name in replicas}
        self._scenario = scenario
        self._world = world
        self._scalings = {name: scaling_of(name, each.spec) for name, each in replicas.items()}
        self._changes: dict[str, list[tuple[float, int, str]]] = {name: [] for name in replicas}
        slacks = [min(each.latency_s or math.inf, each.max_lag_s or math.inf) for each in scenario.streams]
        self._slack_s = min(slacks)

    def start(self, held: Callable[[str], Held], is_over: Callable[[], bool]) -> None:
        """Ask who decides, every second, until all is over."""
        for fails in self._scenario.fails:
            self._world.at(NS + round(fails.at_s * NS), partial(self.replicas[fails.of].die, fails.num))

        def ask() -> None:
            self._decide(held)
            if not is_over():
                self._world.after(ASK_S, ask)

        self._world.at(NS, ask)

    def report(self) -> dict[str, FleetReport]:
        for each in self.replicas.values():
            each.count()
        return {
            name: FleetReport(each.seconds, each.spec.begin, each.most, tuple(self._changes[name]))
            for name, each in self.replicas.items()
        }

    def _decide(self, held: Callable[[str], Held]) -> None:
        now_s = self._world.now_ns / NS - 1
        is_heard = not any(each.from_s <= now_s < each.to_s for each in self._scenario.unheard)
        wants: dict[str, int] = {}
        for name, replicas in self.replicas.items():
            there = held(name)
            num_offered = self.demands[name].came
            offered, lost = self.demands[name].taken(now_s, there.num_lost)
            seen = Seen(
                lanes=replicas.spec.lanes,
                ready=replicas.ready + replicas.num_dead,
                offered=offered,
                num_offered=num_offered,
                waiting_s=there.waiting_s,
                patient_s=there.patient_s,
                num_waiting=there.num_waiting,
                num_in_service=there.num_in_service,
                slack_s=self._slack_s,
                start_s=replicas.spec.start_s,
                lost=lost,
            )
            wanted = self._scalings[name].decide(now_s, seen if is_heard else None)
            if wanted is not None:
                self._changes[name].append((now_s, wanted.num, wanted.why))
            wants[name] = self._scalings[name].num
        if (most := self._scenario.max_replicas) is not None and sum(wants.values()) > most:
            wants = spread(wants, {name: each.spec.least for name, each in self.replicas.items()}, most)
        for name, num in sorted(wants.items(), key=lambda each: each[1] - self.replicas[each[0]].num):
            self.replicas[name].want(num)  # those that give up places first
