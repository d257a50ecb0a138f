"""Runs a scenario: segments come, the engine's rules decide what is computed when, and what became of all is counted.

As in a worker, each stage's messages wait at the server; admission (`engine.decide.admission`) says how many are taken,
the batcher which of those run, lateness which are not worth it any more. A stage is computed when all that it reads is
there; what is dropped is a gap, and gaps make gaps.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from engine.decide import lateness
from engine.decide.admission import Wants, credit, room, without_patient
from engine.decide.batcher import Batcher, Item
from engine.decide.cores import whose_turn
from engine.decide.entrance import Entrance
from engine.decide.inflight import InFlight
from engine.decide.lanes import CORES
from engine.decide.passage import Segment, running_by_resource
from engine.decide.rungs import Ladder, Rungs
from engine.decide.signals import PoolSignals
from engine.decide.way import Opens, StageCost
from engine.simulate.arrivals import times_s
from engine.simulate.fleet import Held, Scaled, ScalingOf, usual_scaling
from engine.simulate.pools import Batching, Cores, Ended, Limiting, SimulatedPool, Turn
from engine.simulate.report import PoolReport, Report, Segments
from engine.simulate.scenario import Scenario, SimulatedPoolSpec, StageSpec, StreamsSpec
from engine.simulate.world import NS, World
from engine.spec.workflow import MEDIA
from streams.errors import PenstockError

ESTIMATE_S = 1.0  # how often it is estimated anew how long things take
BatchingOf = Callable[[str, SimulatedPoolSpec], Batching]
LimitingOf = Callable[[int], Limiting]  # by the most that is allowed


def usual(name: str, pool: SimulatedPoolSpec) -> Batching:
    """The engine's own."""
    return Batcher(pool.max_batch)


@dataclass(slots=True)
class _Segment:
    """One on its way. `left`: of each stage, how many of its inputs are still to come."""

    name: Segment
    spec: StreamsSpec
    opens: frozenset[str]  # the gates that it will find open, whether or not anybody looks
    came_ns: int
    due_ns: int
    left: dict[str, int]
    num_open: int
    counts: bool
    is_whole: bool = True
    computed_s: float = 0.0  # of lanes, its share of the batches
    quality: float = 1.0
    open_to: dict[str, bool] = field(default_factory=dict)


class _Stage:
    """One as it is run."""

    def __init__(self, name: str, spec: StageSpec, pools: Mapping[str, SimulatedPool]) -> None:
        self.name = name
        self.spec = spec
        self.pool = pools[spec.pool]
        self.rungs = [(self.pool, 1.0), *((pools[rung.pool], rung.quality) for rung in spec.lower)]  # with quality
        self.behind: list[str] = []
        self.opens = Opens()


class _Group:
    """A stage of one stream: what waits for it at the server, and how much of it was taken."""

    def __init__(self, stage: _Stage, stream: str) -> None:
        self.name = f"{stage.name}/{stream}"
        self.stage = stage
        self.stream = stream
        self.waiting: deque[_Segment] = deque()
        self.num_taken = 0


def run(
    scenario: Scenario,
    batching_of: BatchingOf = usual,
    turn: Turn = whose_turn,
    *,
    asks_passage: bool = True,
    rungs_of: Callable[[], Rungs] = Rungs,
    limiting_of: LimitingOf = InFlight,
    scaling_of: ScalingOf = usual_scaling,
) -> Report:
    """What became of it; by the engine's own batchers, turns, passage, choice of rungs, limits in flight and fleet, or
    by others. Deterministic: the same scenario and seed give the same report."""
    entrance = Entrance(rungs_of) if asks_passage else None
    return _Run(scenario, batching_of, turn, entrance, limiting_of, scaling_of).report()


class _Run:
    def __init__(
        self,
        scenario: Scenario,
        batching_of: BatchingOf,
        turn: Turn,
        entrance: Entrance | None,
        limiting_of: LimitingOf,
        scaling_of: ScalingOf,
    ) -> None:
        self.scenario = scenario
        self.entrance = entrance
        self.ladders = {streams.stages: Ladder({}) for streams in scenario.streams}
        self.changes: list[tuple[float, str, str, int]] = []
        self.world = World(scenario.seed)
        cores = Cores(scenario.num_cores, self.world, turn, scenario.workers)
        self.pools = {
            name: SimulatedPool(
                self.world,
                name,
                spec.shape,
                spec.max_batch,
                spec.service,
                [each for each in scenario.slow if each.pool == name],
                cores,
                batching_of(name, spec),
                is_warm=not spec.is_cold,
                limiting=limiting_of(spec.max_async) if spec.runs_in == "async" else None,
                replicas=spec.replicas,
            )
            for name, spec in scenario.pools.items()
        }
        self.stages = {name: _Stage(name, scenario.stages[name], self.pools) for name in scenario.order()}
        for name, stage in self.stages.items():
            for source in stage.spec.inputs:
                if source != MEDIA:
                    self.stages[source].behind.append(name)
        self.groups: dict[tuple[str, str], _Group] = {}
        self.hungry: dict[str, OrderedDict[str, _Group]] = {}  # for which something waits, by the pool of the best rung
        self.lines: dict[str, list[str]] = {name: [] for name in self.pools}  # by pool, those of stages that may use it
        for stage in self.stages.values():
            self.hungry[stage.pool.name] = OrderedDict()
            for pool, _ in stage.rungs:
                if stage.pool.name not in self.lines[pool.name]:
                    self.lines[pool.name].append(stage.pool.name)
        self.pools_of = {
            line: [self.pools[name] for name, lines in self.lines.items() if line in lines] for line in self.hungry
        }
        self.taking: set[str] = set()  # lines: what is late is over at once, and would have the next one taken
        self.wants = Wants()
        self.chance = self.world.chance("gates")
        self.segments = Segments()
        self.num_came = self.num_over = 0
        scaled = {name: pool.replicas for name, pool in self.pools.items() if pool.replicas is not None}
        if cores.workers is not None:
            scaled[CORES] = cores.workers
        self.scaled = Scaled(scenario, self.world, scaled, scaling_of)
        self._estimated_ns = 0

    def report(self) -> Report:
        for number, streams in enumerate(self.scenario.streams):
            self._feed(number, streams)
        if self.scaled.replicas:
            self.scaled.start(self._held, self._is_over)
        self.world.run()
        for group in self.groups.values():
            if group.waiting or group.num_taken:
                raise PenstockError(f"{group.name}: {len(group.waiting)} segments wait for good, {group.num_taken} run")
        seconds = self.world.now_ns / NS - 1
        pools = {name: PoolReport.of(pool, seconds) for name, pool in self.pools.items()}
        fleet = self.scaled.report()
        return Report(seconds=seconds, segments=self.segments, pools=pools, changes=tuple(self.changes), fleet=fleet)

    def _is_over(self) -> bool:
        return self.num_over == self.num_came and self.world.now_ns >= NS + self.scenario.duration_s * NS

    def _held(self, resource: str) -> Held:
        """What is there of a resource's work."""
        waiting = [
            (len(group.waiting), group.stage.pool.learned.unit_s, not group.waiting[0].due_ns)
            for group in self.groups.values()
            if group.waiting and group.stage.pool.resource == resource
        ]
        pools = [pool for pool in self.pools.values() if pool.resource == resource]
        waiting += [(pool.num_waiting, pool.learned.unit_s, False) for pool in pools if pool.num_waiting]
        refused = self.entrance.num_refused(resource) if self.entrance is not None else 0
        return Held(
            waiting_s=None
            if any(unit_s is None for _, unit_s, _ in waiting)
            else sum(num * (unit_s or 0.0) for num, unit_s, is_patient in waiting if not is_patient),
            patient_s=sum(num * (unit_s or 0.0) for num, unit_s, is_patient in waiting if is_patient),
            num_waiting=sum(num for num, _, _ in waiting),
            num_in_service=sum(pool.num_in_service for pool in pools),
            num_lost=refused + sum(pool.num_dropped for pool in pools),
        )

    # --- what comes ----------------------------------------------------------------------------------------------

    def _feed(self, number: int, streams: StreamsSpec) -> None:
        chance = self.world.chance(f"arrivals/{number}")
        num_apart = 1 if streams.together else streams.num
        for stream in range(num_apart):
            first = 0.0 if streams.together else chance.random()
            own = self.world.chance(f"arrivals/{number}/{stream}")
            times = times_s(streams.arrivals, self.scenario.phases, own, first)
            every = range(streams.num) if streams.together else [stream]
            self._next(times, streams, [f"{number}/{each}" for each in every])

    def _next(self, times: Iterator[float], streams: StreamsSpec, names: Sequence[str]) -> None:
        at_s = next(times, None)
        if at_s is None or at_s >= self.scenario.duration_s:
            return

        def comes() -> None:
            for name in names:
                self._come(name, streams)
            self._next(times, streams, names)

        self.world.at(NS + round(at_s * NS), comes)

    def _come(self, stream: str, spec: StreamsSpec) -> None:
        now_ns, lag_s = self.world.now_ns, spec.max_lag_s
        self.num_came += 1
        wanted = {name: self.stages[name] for name in spec.stages or self.stages}
        gated = [stage for stage in wanted.values() if stage.spec.share < 1]
        segment = _Segment(
            opens=frozenset(stage.name for stage in gated if self.chance.random() < stage.spec.share),
            name=(stream, self.num_came),
            spec=spec,
            came_ns=now_ns,
            due_ns=now_ns + round(lag_s * NS) if lag_s else 0,
            left={name: len(stage.spec.inputs) for name, stage in wanted.items()},
            num_open=len(wanted),
            counts=now_ns >= NS + self.scenario.warm_up_s * NS,
        )
        for stage in wanted.values():
            if stage.pool.resource in self.scaled.demands:
                share = stage.opens.share
                self.scaled.demands[stage.pool.resource].comes(share, stage.pool.learned.unit_s if lag_s else 0.0)
        for stage in wanted.values():
            if MEDIA in stage.spec.inputs:
                self._arrive(stage, segment)

    def _arrive(self, stage: _Stage, segment: _Segment, *, is_gap: bool = False) -> None:
        """One of a stage's inputs is there."""
        segment.left[stage.name] -= 1
        if is_gap:
            segment.open_to[stage.name] = False
        if segment.left[stage.name]:
            return
        if segment.open_to.get(stage.name) is False:
            self._resolve(stage, segment, is_gap=True)
        elif stage.spec.share < 1 and not stage.opens.note(is_open=stage.name in segment.opens):
            self._resolve(stage, segment)  # its gate is shut
        else:
            self._wait(stage, segment)

    # --- what is done about it -----------------------------------------------------------------------------------

    def _wait(self, stage: _Stage, segment: _Segment) -> None:
        """At the server, until admission lends its group something."""
        key = stage.name, segment.name[0]
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = _Group(stage, segment.name[0])
        group.waiting.append(segment)
        self.hungry[stage.pool.name].setdefault(group.name, group)
        self._take(stage.pool.name)

    def _now_on(self, stream: str) -> Mapping[str, int]:
        """The rungs that new segments take, by stage, where that is not the best."""
        return {} if self.entrance is None else self.entrance.now_on(stream)

    def _take(self, line: str) -> None:
        """As many as admission lends, group by group."""
        if line in self.taking:
            return
        self.taking.add(line)
        hungry = self.hungry[line]
        num_refused = 0
        open_to: dict[str, PoolSignals] | None = None
        while num_refused < len(hungry):
            if open_to is None:
                open_to = self._with_room(line)
            if not open_to:
                break
            name, group = hungry.popitem(last=False)
            pool, _ = group.stage.rungs[self._now_on(group.stream).get(group.stage.name, 0)]
            self.wants.note(name, {pool.name: pool.max_batch}, len(group.waiting))
            signals, is_prompt = open_to.get(pool.name), group.waiting[0].due_ns > 0
            lent = credit(name, group.num_taken, [signals], self.wants, is_prompt=is_prompt).num if signals else 0
            num_refused = 0 if lent > 0 else num_refused + 1
            num_before = group.num_taken
            for _ in range(min(lent, len(group.waiting))):
                self._submit(group, group.waiting.popleft())
            if lent > 0:
                open_to = None
            if not group.waiting:
                self.wants.forget(name)
                continue
            hungry[name] = group
            if lent > 0 and group.num_taken == num_before:  # all were over at once: it asks again before others do
                hungry.move_to_end(name, last=False)
        self.taking.remove(line)

    def _with_room(self, line: str) -> dict[str, PoolSignals]:
        """How the pools stand that a line's groups may use and that can use more; the others lend nobody anything."""
        signals = {pool.name: pool.signals() for pool in self.pools_of[line]}
        return {name: each for name, each in signals.items() if room(without_patient(each)) > 0}

    def _submit(self, group: _Group, segment: _Segment) -> None:
        stage = group.stage
        group.num_taken += 1
        if not segment.due_ns:
            stage.pool.submit(Item(0), partial(self._ended, group, segment, stage.pool))
            return
        self._estimate()
        now_ns = self.world.now_ns
        is_begun = self._enters(segment)
        pool, quality = stage.rungs[self._rung_of(stage, segment)]
        ladder = self.ladders[segment.spec.stages]
        way = ladder.way({}) if self.entrance is None else self.entrance.way_of(segment.name, ladder)
        done_ns = lateness.latest_ns(segment.due_ns, way.behind_ns.get(stage.name, 0), segment.spec.max_lag_s)
        expires_ns = lateness.latest_ns(segment.due_ns, way.with_it_ns[stage.name], segment.spec.max_lag_s)
        ended = partial(self._ended, group, segment, pool)
        if not is_begun or lateness.is_late(expires_ns, now_ns):
            ended(Ended(now_ns, now_ns, 0))
            return
        segment.quality *= quality
        wanted_ns = lateness.wanted_ns(done_ns, segment.spec.max_lag_s, segment.spec.latency_s)
        item = Item(0, expires_ns, done_ns, wanted_ns, round(segment.spec.max_lag_s * NS))
        pool.submit(item, ended, partial(self._passed, stage, segment))

    def _enters(self, segment: _Segment) -> bool:
        if self.entrance is None:
            return True
        if (said := self.entrance.said(segment.name)) is not None:
            return not said
        running_s = running_by_resource(self.pools.values())
        when = segment.due_ns, segment.spec.max_lag_s, segment.spec.latency_s, self.world.now_ns
        told = self.ladders[segment.spec.stages], running_s
        why, changes = self.entrance.enters(segment.name, *when, *told, weight=segment.spec.weight)
        self.changes += ((self.world.now_ns / NS - 1, segment.name[0], each.stage, each.rung) for each in changes)
        return not why

    def _rung_of(self, stage: _Stage, segment: _Segment) -> int:
        if self.entrance is None:
            return 0
        ladder, running = self.ladders[segment.spec.stages], partial(running_by_resource, self.pools.values())
        return self.entrance.rung_of(segment.name, stage.name, self.world.now_ns, ladder, running)[0]

    def _passed(self, stage: _Stage, segment: _Segment) -> None:
        if self.entrance is not None:
            self.entrance.passed(segment.name, stage.name)

    def _ended(self, group: _Group, segment: _Segment, pool: SimulatedPool, ended: Ended) -> None:
        group.num_taken -= 1
        if ended.batch_size:
            segment.computed_s += (ended.ended_ns - ended.began_ns) / NS / ended.batch_size
        self._resolve(group.stage, segment, is_gap=not ended.batch_size)
        for line in self.lines[pool.name]:
            self._take(line)

    def _resolve(self, stage: _Stage, segment: _Segment, *, is_gap: bool = False) -> None:
        """A stage has said what it has to say of a segment."""
        self._passed(stage, segment)
        if is_gap and self.entrance is not None and segment.is_whole:
            self.entrance.lost(segment.name)
        segment.num_open -= 1
        is_over = not segment.num_open
        self.num_over += is_over
        segment.is_whole = segment.is_whole and not is_gap
        for name in stage.behind:
            if name in segment.left:
                self._arrive(self.stages[name], segment, is_gap=is_gap)
        if is_over and segment.counts:
            took_s = (self.world.now_ns - segment.came_ns) / NS
            is_late = bool(segment.due_ns) and self.world.now_ns > segment.due_ns
            self.segments.note(
                segment.name[0],
                segment.came_ns / NS - 1,
                took_s,
                segment.computed_s,
                whole=segment.is_whole,
                late=is_late,
                quality=segment.quality,
                opened=bool(segment.opens),
            )

    def _estimate(self) -> None:
        """How long what is begun now will take, by what batches took."""
        if self._estimated_ns and self.world.now_ns < self._estimated_ns + ESTIMATE_S * NS:
            return
        self._estimated_ns = self.world.now_ns
        costs = {
            name: [StageCost.on(pool, stage.spec.inputs, stage.opens.share, worth) for pool, worth in stage.rungs]
            for name, stage in self.stages.items()
        }
        self.ladders = {names: Ladder({name: costs[name] for name in names or costs}) for names in self.ladders}
