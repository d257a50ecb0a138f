"""Runs a scenario: segments come, the engine's rules decide what is computed when, and what became of all is counted.

As in a worker, each stage's messages wait at the server; admission (`engine.decide.admission`) says how many are taken,
the batcher which of those run, lateness which are not worth it any more. A stage is computed when all that it reads is
there; what is dropped is a gap, and gaps make gaps.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from engine.decide import lateness
from engine.decide.admission import Wants, credit
from engine.decide.batcher import Batcher, Item
from engine.decide.cores import whose_turn
from engine.simulate.arrivals import times_s
from engine.simulate.pools import Batching, Cores, Ended, SimulatedPool, Turn
from engine.simulate.report import PoolReport, Report, Segments
from engine.simulate.scenario import Scenario, SimulatedPoolSpec, StageSpec, StreamsSpec
from engine.simulate.world import NS, World
from engine.spec.workflow import MEDIA
from streams.errors import PenstockError

ESTIMATE_S = 1.0  # how often it is estimated anew how long things take
BatchingOf = Callable[[str, SimulatedPoolSpec], Batching]


def usual(name: str, pool: SimulatedPoolSpec) -> Batching:
    """The engine's own."""
    return Batcher(pool.max_batch)


@dataclass(slots=True)
class _Segment:
    """One on its way. `left`: of each stage, how many of its inputs are still to come."""

    came_ns: int
    due_ns: int
    lag_s: float
    left: dict[str, int]
    num_open: int
    counts: bool
    is_whole: bool = True
    computed_s: float = 0.0  # of lanes, its share of the batches
    open_to: dict[str, bool] = field(default_factory=dict)


class _Stage:
    """One as it is run: what waits for it at the server, and what was taken."""

    def __init__(self, name: str, spec: StageSpec, pool: SimulatedPool) -> None:
        self.name = name
        self.spec = spec
        self.pool = pool
        self.waiting: deque[_Segment] = deque()
        self.num_taken = 0
        self.is_taking = False  # what is late is over at once, and would have the next one taken
        self.lead_ns = 0
        self.behind_ns = 0  # of the stages behind it alone
        self.behind: list[str] = []


def run(scenario: Scenario, batching_of: BatchingOf = usual, turn: Turn = whose_turn) -> Report:
    """What became of it; by the engine's own batchers and turns, or by others. Deterministic: the same scenario and
    seed give the same report."""
    return _Run(scenario, batching_of, turn).report()


class _Run:
    def __init__(self, scenario: Scenario, batching_of: BatchingOf, turn: Turn) -> None:
        self.scenario = scenario
        self.world = World(scenario.seed)
        cores = Cores(scenario.num_cores, turn)
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
            )
            for name, spec in scenario.pools.items()
        }
        specs = {name: scenario.stages[name] for name in scenario.order()}
        self.stages = {name: _Stage(name, spec, self.pools[spec.pool]) for name, spec in specs.items()}
        for name, stage in self.stages.items():
            for source in stage.spec.inputs:
                if source != MEDIA:
                    self.stages[source].behind.append(name)
        self.wants = Wants()
        self.chance = self.world.chance("gates")
        self.segments = Segments()
        self._estimated_ns = 0

    def report(self) -> Report:
        for number, streams in enumerate(self.scenario.streams):
            self._feed(number, streams)
        self.world.run()
        for stage in self.stages.values():
            if stage.waiting or stage.num_taken:
                raise PenstockError(f"{stage.name}: {len(stage.waiting)} segments wait for good, {stage.num_taken} run")
        seconds = self.world.now_ns / NS - 1
        pools = {name: PoolReport.of(pool, seconds) for name, pool in self.pools.items()}
        return Report(seconds=seconds, segments=self.segments, pools=pools)

    # --- what comes ----------------------------------------------------------------------------------------------

    def _feed(self, number: int, streams: StreamsSpec) -> None:
        chance = self.world.chance(f"arrivals/{number}")
        num_apart = 1 if streams.together else streams.num
        for stream in range(num_apart):
            first = 0.0 if streams.together else chance.random()
            own = self.world.chance(f"arrivals/{number}/{stream}")
            times = times_s(streams.arrivals, self.scenario.phases, own, first)
            self._next(times, streams, streams.num if streams.together else 1)

    def _next(self, times: Iterator[float], streams: StreamsSpec, num: int) -> None:
        at_s = next(times, None)
        if at_s is None or at_s >= self.scenario.duration_s:
            return

        def comes() -> None:
            for _ in range(num):
                self._come(streams.max_lag_s)
            self._next(times, streams, num)

        self.world.at(NS + round(at_s * NS), comes)

    def _come(self, lag_s: float) -> None:
        now_ns = self.world.now_ns
        segment = _Segment(
            came_ns=now_ns,
            due_ns=now_ns + round(lag_s * NS) if lag_s else 0,
            lag_s=lag_s,
            left={name: len(stage.spec.inputs) for name, stage in self.stages.items()},
            num_open=len(self.stages),
            counts=now_ns >= NS + self.scenario.warm_up_s * NS,
        )
        for stage in self.stages.values():
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
        elif stage.spec.share < 1 and self.chance.random() >= stage.spec.share:
            self._resolve(stage, segment)  # its gate is shut
        else:
            stage.waiting.append(segment)
            self._take(stage)

    # --- what is done about it -----------------------------------------------------------------------------------

    def _take(self, stage: _Stage) -> None:
        """As many as admission says."""
        pool = stage.pool
        while stage.waiting and not stage.is_taking:
            self.wants.note(stage.name, {pool.name: pool.max_batch}, len(stage.waiting))
            lent = credit(stage.name, stage.num_taken, [pool.signals()], self.wants).num
            if lent <= 0:
                return
            stage.is_taking = True
            for _ in range(min(lent, len(stage.waiting))):
                self._submit(stage, stage.waiting.popleft())
            stage.is_taking = False

    def _submit(self, stage: _Stage, segment: _Segment) -> None:
        self._estimate()
        stage.num_taken += 1
        item = Item(0)
        if segment.due_ns:
            done_ns = lateness.latest_ns(segment.due_ns, stage.behind_ns, segment.lag_s)
            expires_ns = lateness.latest_ns(segment.due_ns, stage.lead_ns, segment.lag_s)
            item = Item(0, expires_ns, done_ns, in_place=bool(stage.waiting))
        if lateness.is_late(item.due_ns, self.world.now_ns):
            self._ended(stage, segment, Ended(self.world.now_ns, self.world.now_ns, 0))
        else:
            stage.pool.submit(item, partial(self._ended, stage, segment))

    def _ended(self, stage: _Stage, segment: _Segment, ended: Ended) -> None:
        stage.num_taken -= 1
        if ended.batch_size:
            segment.computed_s += (ended.ended_ns - ended.began_ns) / NS / ended.batch_size
        self._resolve(stage, segment, is_gap=not ended.batch_size)
        for each in self.stages.values():
            if each.pool is stage.pool:  # what it gave back is room for all of them
                self._take(each)

    def _resolve(self, stage: _Stage, segment: _Segment, *, is_gap: bool = False) -> None:
        """A stage has said what it has to say of a segment."""
        segment.num_open -= 1
        is_over = not segment.num_open
        segment.is_whole = segment.is_whole and not is_gap
        for name in stage.behind:
            self._arrive(self.stages[name], segment, is_gap=is_gap)
        if is_over and segment.counts:
            took_s = (self.world.now_ns - segment.came_ns) / NS
            is_late = bool(segment.due_ns) and self.world.now_ns > segment.due_ns
            self.segments.note(
                segment.came_ns / NS - 1, took_s, segment.computed_s, whole=segment.is_whole, late=is_late
            )

    def _estimate(self) -> None:
        """How long what is begun now will take, by what batches took."""
        if self._estimated_ns and self.world.now_ns < self._estimated_ns + ESTIMATE_S * NS:
            return
        self._estimated_ns = self.world.now_ns
        sources: Mapping[str, tuple[str, ...]] = {name: stage.spec.inputs for name, stage in self.stages.items()}
        leads_ns = lateness.leads_ns(sources, {name: stage.pool.service_s for name, stage in self.stages.items()})
        behind_ns = lateness.behind_ns(sources, leads_ns)
        for name, stage in self.stages.items():
            stage.lead_ns, stage.behind_ns = leads_ns[name], behind_ns.get(name, 0)
