"""Random histories of workers over a toy ledger, driving the objects that the engine runs.

A history is drawn from a seed: a graph of stages in groups, workers that share the groups' consumers, and then any
order of storing, delivering (twice, and again), carrying out one instruction, failing at it, evicting and dying between
any two instructions. After every event the invariants are checked; at the end, once nothing more goes wrong, everything
that is owed must stand in the ledger, made of exactly what the scopes say.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from engine.decide import joins
from engine.decide.instructions import (
    Acknowledge,
    Compute,
    Event,
    Found,
    GiveGap,
    Instruction,
    Known,
    Read,
    Redeliver,
    StageRule,
)
from engine.decide.readiness import Readiness
from engine.decide.retry import RetryPolicy
from engine.decide.running_graph import RunningStage
from engine.simulate.clock import VirtualClock
from engine.simulate.ledger import Place, ToyConsumer, ToyLedger, ToyRecord
from engine.spec.jobs import Span
from engine.spec.operator import Fold, Map, OfRanges, PerRange, Reduce, Scope, Window
from engine.spec.plan import PlannedRung, PlannedStage, ancestors
from engine.spec.workflow import MEDIA
from streams.errors import Permanent, Transient
from streams.records import Gap
from streams.subjects import Key

SCOPES: list[Scope] = [
    Map(), Map(), Map(1, 0), Map(0, 1), Map(1, 1), Fold(), Window(1), Window(2), Window(3), Reduce(),
]  # fmt: skip
RUNG = PlannedRung(implementation="toy", rung="toy", version=1)
MAX_STEPS = 5000


def planned(name: str, scope: Scope, sources: tuple[str, ...], group: str) -> PlannedStage:
    return PlannedStage(
        id=name, name=name, capability="toy", rung=RUNG, scope=scope, group=group, inputs={"in": sources}
    )


def inputs_of(stage: PlannedStage, key: Key, num_segments: int) -> list[Place]:
    """Everything an output is made from, straight from what the scopes mean."""
    if isinstance(stage.scope, PerRange):
        return [(stage.sources[0], key)]
    match stage.scope:
        case Map(before, after):
            low, high = key.first - before, key.first + after
        case Fold() | Reduce():
            low, high = key.first, key.last
        case Window(size):
            low, high = key.first - size + 1, key.first
    indices = range(max(0, low), min(high, num_segments - 1) + 1)
    found: list[Place] = [(source, Key.of(index)) for source in stage.sources for index in indices]
    if isinstance(stage.scope, Fold) and key.first > 0:
        found.append((stage.id, Key.of(key.first - 1)))
    return found


def owed(stage: PlannedStage, spans: Sequence[Span], num_segments: int) -> set[Key]:
    """Every output that is asked for and exists."""
    found = set()
    for span in spans:
        last = num_segments - 1 if span.last is None else min(span.last, num_segments - 1)
        if isinstance(stage.scope, OfRanges):
            if span.first < num_segments:  # a range that goes beyond the end holds what there is
                found.add(Key(span.first, last if span.last is None else span.last))
        else:
            found |= {Key.of(index) for index in range(span.first, last + 1)}
    return found


@dataclass
class Worker:
    """The rules of every group, and what they have told it to do."""

    rules: list[Readiness]
    todo: list[tuple[int, Instruction]] = field(default_factory=list)
    taken: dict[tuple[int, int], int] = field(default_factory=dict)  # by group and root: which consumer it is from


@dataclass
class History:
    """One history. `faults` is how likely each step is to go wrong."""

    seed: int
    faults: float = 0.15
    evicts: bool = False
    random: Random = field(init=False)
    clock: VirtualClock = field(default_factory=VirtualClock)
    ledger: ToyLedger = field(default_factory=ToyLedger)
    num_events: int = 0

    def __post_init__(self) -> None:
        self.random = random = Random(self.seed)
        self.num_segments = random.randint(0, 4)
        self.stages = self._graph()
        order = [stage.id for stage in self.stages]
        self.groups = [
            [stage for stage in self.stages if stage.group == name]
            for name in dict.fromkeys(stage.group for stage in self.stages)
        ]
        self.spans = {stage.id: self._spans(stage) for stage in self.stages}
        for stage in reversed(self.stages):  # what is asked of a stage is owed by those it reads
            for source in stage.sources:
                if source != MEDIA and not isinstance(stage.scope, PerRange):
                    self.spans[source] = [Span(first=0)]
        for stage in self.stages:
            if isinstance(stage.scope, PerRange):
                self.spans[stage.id] = self.spans[stage.sources[0]]
        assert order == [stage.id for stage in self.stages]
        above = ancestors(self.stages)
        self.awaited = {stage.id: frozenset(joins.awaited(stage.sources, above)) for stage in self.stages}
        self.rules = [self._stage_rules(group) for group in self.groups]
        self.workers = [self._worker() for _ in range(random.choice([1, 1, 2, 3]))]
        self.consumers = [self._consumers(group) for group in self.groups]
        self.to_store = list(range(self.num_segments + 1))  # the last is the stream's end
        if not self.evicts and random.random() < 0.5:
            random.shuffle(self.to_store)

    def _graph(self) -> list[PlannedStage]:
        random = self.random
        stages: list[PlannedStage] = []
        readable = [MEDIA]  # what a reduce gives has another key
        for number in range(random.choice([1, 1, 2, 2, 3])):
            sources = tuple(sorted(random.sample(readable, random.choice([1, 1, min(2, len(readable))]))))
            group = random.choice(["g", "g", f"g{number}"])
            stage = planned(f"s{number}", random.choice(SCOPES), sources, group)
            stages.append(stage)
            if not isinstance(stage.scope, Reduce):
                readable.append(stage.id)
            while isinstance(stages[-1].scope, OfRanges) and random.random() < 0.5:
                name = f"{stages[-1].id}r"
                stages.append(planned(name, PerRange(), (stages[-1].id,), random.choice([group, f"g{name}"])))
        return stages

    def _spans(self, stage: PlannedStage) -> list[Span]:
        if not isinstance(stage.scope, Reduce) or self.random.random() < 0.6:
            return [Span(first=0)]
        first = self.random.randint(0, 2)
        return [Span(first=first, last=first + self.random.randint(0, 3))]

    def _stage_rules(self, group: Sequence[PlannedStage]) -> list[StageRule]:
        inside = {source for stage in group for source in stage.sources}
        return [
            StageRule(
                RunningStage(planned=stage, spans=tuple(self.spans[stage.id])),
                self.awaited[stage.id],
                stage.id in inside or isinstance(stage.scope, Fold),
            )
            for stage in group
        ]

    def _rule(self, stages: Sequence[StageRule]) -> Readiness:
        rule = Readiness(stages, RetryPolicy(max_attempts=3, max_deliveries=50), releases=True)
        for stage in stages:  # as a group learns when it is opened
            rule.remember(stage.id, [key for source, key in self.ledger.records if source == stage.id and key])
        return rule

    def _worker(self) -> Worker:
        return Worker([self._rule(stages) for stages in self.rules])

    def _consumers(self, group: Sequence[PlannedStage]) -> list[ToyConsumer]:
        inside = {stage.id for stage in group}
        sources = {source for stage in group for source in self.awaited[stage.id]} - inside
        if any(joins.needs_end(stage.scope) for stage in group):
            sources.add(MEDIA) if MEDIA in sources else sources.add("end only")
        media = frozenset(sources & {MEDIA, "end only"})
        results = frozenset(sources - media)
        found = []
        if media:
            found.append(ToyConsumer(self.ledger, MEDIA, frozenset([MEDIA])))
        if results:
            found.append(ToyConsumer(self.ledger, "results", results))
        return found

    # --- one step ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until nothing is left to be done."""
        for step in range(MAX_STEPS):
            calm = step > MAX_STEPS // 10
            moves = self._moves(calm)
            if not moves:
                return
            move, *arguments = moves[int(self.random.random() * len(moves))]
            move(*arguments)
        raise AssertionError(f"history {self.seed} does not come to an end")

    def _moves(self, calm: bool) -> list[Any]:
        moves: list[Any] = []
        if self.to_store:
            moves.append((self._store,))
        goes_wrong = not calm and self.random.random() < self.faults
        for number, consumers in enumerate(self.consumers):
            for at, consumer in enumerate(consumers):
                if consumer.waiting():
                    moves.append((self._deliver, number, at))
                if goes_wrong and consumer.unacknowledged:
                    moves.append((self._deliver, number, at, True))
        for worker in self.workers:
            if worker.todo:
                move = (self._carry_out, worker, calm)
                moves += (move, move)
        if goes_wrong and moves:
            moves.append((self._die, self.random.choice(self.workers)))
            if self.evicts and self.ledger.in_order[MEDIA]:
                moves.append((self._evict,))
        return moves

    def _store(self) -> None:
        index = self.to_store.pop(0)
        if index == self.num_segments:
            self.ledger.put((MEDIA, None), self.num_segments)
        elif self.random.random() < self.faults / 4:
            self.ledger.put((MEDIA, Key.of(index)), gap(MEDIA, Key.of(index)))
        else:
            self.ledger.put((MEDIA, Key.of(index)), f"m{index}")

    def _deliver(self, group: int, at: int, again: bool = False) -> None:
        consumer = self.consumers[group][at]
        delivered = consumer.deliver(again)
        if delivered is None:
            return
        record, num_delivered = delivered
        source, key = record.place
        worker = self.random.choice(self.workers)
        root = record.seq << 1 | (consumer.stream != MEDIA)
        worker.taken[group, root] = at
        event = Event(source, key, known_of(record), root, num_delivered)
        self._tell(
            worker, group, worker.rules[group].arrived(event, self.clock.now_ns, record.value if key is None else None)
        )

    def _tell(self, worker: Worker, group: int, told: list[Instruction]) -> None:
        self.num_events += 1
        worker.rules[group].validate()
        worker.todo += [(group, instruction) for instruction in told]

    def _die(self, worker: Worker) -> None:
        for (group, root), at in worker.taken.items():
            self.consumers[group][at].give_back([root >> 1])
        self.workers[self.workers.index(worker)] = self._worker()

    def _evict(self) -> None:
        record = self.random.choice(self.ledger.in_order[MEDIA])
        if record.place[1] is not None:
            self.ledger.evict(record.place)

    def _carry_out(self, worker: Worker, calm: bool) -> None:
        group, told = worker.todo.pop(int(self.random.random() * len(worker.todo)))
        rule, now_ns = worker.rules[group], self.clock.now_ns
        goes_wrong = not calm and self.random.random() < self.faults
        match told:
            case Read():
                if goes_wrong:
                    self._tell(worker, group, rule.abandoned(told, 0.1, "cut off"))
                else:
                    self._tell(worker, group, rule.found(told, self._found(told), now_ns))
            case Compute():
                if goes_wrong and self.random.random() < 0.7:
                    error = Transient("not now") if self.random.random() < 0.6 else Permanent("never")
                    self._tell(worker, group, rule.failed(told, error, 1.0))
                elif goes_wrong and self.random.random() < 0.3:
                    self._tell(worker, group, rule.late(told, "late"))
                else:
                    self._place(worker, group, told, value_of(told))
            case GiveGap():
                self._place(worker, group, told, gap(told.stage.id, told.key))
            case Acknowledge(root):
                at = worker.taken.pop((group, root), None)
                if at is not None and not goes_wrong:  # an acknowledgement may be lost
                    self.consumers[group][at].acknowledge(root >> 1)
                elif at is not None:
                    self.consumers[group][at].give_back([root >> 1])
            case Redeliver(root):
                at = worker.taken.pop((group, root), None)
                if at is not None:
                    self.consumers[group][at].give_back([root >> 1])

    def _place(self, worker: Worker, group: int, told: Compute | GiveGap, value: Any) -> None:
        record, _ = self.ledger.put((told.stage.id, told.key), value)
        self._tell(worker, group, worker.rules[group].placed(told, known_of(record), self.clock.now_ns))

    def _found(self, read: Read) -> Found:
        inputs: dict[str, dict[int, Known]] = {}
        for source, indices in read.wants.items():
            inputs[source] = {}
            for index in indices:
                place = source, Key.of(index)
                record = self.ledger.get(place)
                if record is not None:
                    inputs[source][index] = known_of(record)
                elif source == MEDIA and any(other.place == place for other in self.ledger.in_order[MEDIA]):
                    inputs[source][index] = Known(0, gap=gap(MEDIA, Key.of(index)))  # it was there once
        previous = None if read.previous is None else self.ledger.get((read.stage.id, Key.of(read.previous)))
        own = self.ledger.get((read.stage.id, read.key)) if read.own else None
        end = self.ledger.get((MEDIA, None)) if read.end else None
        return Found(
            inputs=inputs,
            previous=None if previous is None else known_of(previous),
            own=None if own is None else known_of(own),
            end=None if end is None else (end.seq, end.value),
            tails={source: self.ledger.last_seq(source) for source in read.tails},
        )

    # --- the end -----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Everything owed is there, made of what it should be made of; nothing else is; nothing is left to be done."""
        for stage in self.stages:
            there = {key for source, key in self.ledger.records if source == stage.id and key is not None}
            wanted = owed(stage, self.spans[stage.id], self.num_segments)
            assert there <= wanted, f"{stage.id} of history {self.seed}: {there - wanted} are owed to nobody"
            assert self.evicts or there == wanted, f"{stage.id} of history {self.seed}: {wanted - there} are missing"
        for worker in self.workers:
            assert not any(rule.num_under_way for rule in worker.rules)
        assert not any(consumer.unacknowledged for consumers in self.consumers for consumer in consumers)
        if not self.evicts:
            for (source, key), record in self.ledger.records.items():
                if source != MEDIA and key is not None and not isinstance(record.value, Gap):
                    stage = next(stage for stage in self.stages if stage.id == source)
                    made_from = sorted(inputs_of(stage, key, self.num_segments))
                    assert record.value == [(place, shown(self.ledger.records[place].value)) for place in made_from]


def gap(stage: str, key: Key) -> Gap:
    return Gap(stage=stage, stream="s", first=key.first, last=key.last, cause="dropped", detail="gone")


def known_of(record: ToyRecord) -> Known:
    is_gap = isinstance(record.value, Gap)
    return Known(record.seq, value=None if is_gap else record.value, gap=record.value if is_gap else None)


def shown(value: Any) -> str:
    return "gap" if isinstance(value, Gap) else str(zlib.crc32(repr(value).encode()))


def value_of(told: Compute) -> list[tuple[Place, str]]:
    """An output says what it was made from."""
    is_ranged = isinstance(told.stage.scope, PerRange)
    made: list[tuple[Place, str]] = [
        ((source, told.key if is_ranged else Key.of(index)), shown(known.gap or known.value))
        for source, found in told.inputs.items()
        for index, known in found.items()
    ]
    if told.previous is not None:
        before = Key.of(told.key.first - 1)
        made.append(((told.stage.id, before), shown(told.previous.gap or told.previous.value)))
    return sorted(made)
