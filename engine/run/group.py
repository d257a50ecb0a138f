"""A group: fused stages over one stream. It carries out what the rule (`engine.decide.readiness`) tells, and tells the
rule what came of it.

Everything here happens in the event loop and most of it at once; only what must wait (reading what is not at hand,
decoding, computing, storing) comes back later, by a callback, and each output by itself.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import anyio
import anyio.abc
import structlog

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
    Release,
    StageRule,
)
from engine.decide.readiness import Readiness
from engine.decide.retry import cause_of
from engine.run.computing import Computing
from engine.run.host import GroupStage, Host
from engine.run.pool import Pool
from engine.run.segment_cache import SegmentCache
from engine.run.storing import Storing
from engine.spec.workflow import MEDIA
from streams import subjects
from streams.errors import LinkError, PenstockError, UserError
from streams.subjects import Address
from streams.wire import ledger as ledgers
from streams.wire.ledger import Stored
from streams.wire.pull import DONE, Arrival, again

log = structlog.get_logger(__name__)

BROKEN_PAUSE_S = 1.0  # before a message comes again of which something could not be read or stored


@dataclass(slots=True)
class Group:
    """Runs the stages of one group over one stream."""

    name: str
    host: Host
    cache: SegmentCache
    stages: dict[str, GroupStage]
    rule: Readiness
    is_leaving: bool = False
    num_pending: int | None = None  # messages the server holds for it, as the last one that came said
    lag_s: float | None = None
    drained: anyio.Event = field(default_factory=anyio.Event)
    storing: Storing = field(init=False)
    _arrivals: dict[int, Arrival] = field(default_factory=dict)
    _computing: Computing = field(init=False)
    _todo: deque[Instruction] = field(default_factory=deque)
    _is_doing: bool = False

    def __post_init__(self) -> None:
        self.storing = Storing(self.host, self.cache, self._on_stands, self._on_not_stored)
        self._computing = Computing(self.host, self.stream, self.rule, self.storing, self._do)

    @staticmethod
    def of(
        name: str, host: Host, cache: SegmentCache, stages: Sequence[GroupStage], names: Mapping[str, str]
    ) -> "Group":
        demands = tuple(demand for stage in stages for demand in stage.demands)
        rule = Readiness([stage.rule for stage in stages], host.policy, releases=bool(demands))
        rule.names = names
        group = Group(name, host, cache, {}, rule)
        group.serve(stages)
        return group

    def serve(self, stages: Sequence[GroupStage]) -> None:
        """Go by these from now on: the same stages, perhaps asked for by other jobs."""
        opens = {id: stage.opens for id, stage in self.stages.items()}  # what was learned of gates holds still
        kept = (replace(stage, opens=opens.get(stage.rule.id, stage.opens)) for stage in stages)
        self.stages = {stage.rule.id: stage for stage in kept}
        self.host.ways.serve(self.stream, self.name, self.stages)
        self.rule.serve([stage.rule for stage in stages])
        self._computing.serve(self.stages)
        demands = [demand for stage in stages for demand in stage.demands]
        if demands:
            self.host.frames.serve(self.stream, self.name, demands)

    def goes_by(self, rules: Sequence[StageRule]) -> bool:
        """Whether these say what its own say."""
        return all(self.stages[rule.id].rule.says(rule) for rule in rules)

    @property
    def stream(self) -> str:
        return self.cache.stream

    @property
    def is_prompt(self) -> bool:
        """Whether what it makes is worth nothing when it is late."""
        return any(stage.rule.running.max_lag_s for stage in self.stages.values())

    @property
    def slack_s(self) -> float:
        """Within which what it makes is wanted; 0: whenever."""
        running = [stage.rule.running for stage in self.stages.values()]
        return min((each.latency_s or each.max_lag_s for each in running if each.max_lag_s), default=0.0)

    @property
    def pools(self) -> list[Pool]:
        """Those that compute what is taken now."""
        now = (stage.rung(self.host.ways.rung_now(self.stream, id)) for id, stage in self.stages.items())
        return list({id(rung.pool): rung.pool for rung in now}.values())

    @property
    def num_taken(self) -> int:
        """Messages that were taken and are not finished."""
        return len(self._arrivals)

    @property
    def taken(self) -> list[Arrival]:
        return list(self._arrivals.values())

    @property
    def external(self) -> dict[str, list[str]]:
        """The subjects to listen to, by the JetStream stream that keeps them."""
        rules = [stage.rule for stage in self.stages.values()]
        sources = {source for rule in rules for source in rule.awaited} - set(self.stages)
        wanted = [subjects.results_of(source, self.stream) for source in sources if source != MEDIA]
        if MEDIA in sources:
            wanted.append(subjects.media_of(self.stream))
        elif any(joins.needs_end(rule.scope) for rule in rules):
            wanted.append(subjects.media_end(self.stream))
        by_stream: dict[str, list[str]] = {}
        for subject in sorted(wanted):
            by_stream.setdefault(ledgers.stream_of(subject), []).append(subject)
        return by_stream

    # --- coming and going ----------------------------------------------------------------------------------------

    def take(self, arrival: Arrival) -> None:
        """Do all that a message sets off; it is acknowledged or handed back when that is done."""
        try:
            address = subjects.parse(arrival.subject)
        except UserError as error:
            log.warning("not_ours", error=str(error))
            self._answer(arrival, DONE)
            return
        root = arrival.seq << 1 | (address.kind != "media")
        self._arrivals[root] = arrival
        if arrival.headers and ledgers.BULK in arrival.headers:
            self.host.tasks.start_soon(self._take_in_pieces, root, arrival, address)
        else:
            self._event(root, arrival, address, arrival.data)

    def leave(self, *, cancel: bool) -> None:
        """Take nothing more. With `cancel`, nobody wants what is under way: what has not begun will not, and what
        computes by itself is told."""
        self.is_leaving = True
        self.host.frames.leave(self.stream, self.name)
        self.host.ways.leave(self.stream, self.name, self.stages)
        if cancel:
            self._computing.cancel()
            for root, arrival in list(self._arrivals.items()):
                self.rule.forget(root)
                self._finish(
                    root, arrival, again(BROKEN_PAUSE_S)
                )  # not acknowledged: somebody may yet ask for it again
        self._note_drained()

    def _note_drained(self) -> None:
        if self.is_leaving and not self._arrivals and not self.drained.is_set():
            self.drained.set()
            self.storing.forget()  # or the two would keep each other, and the pools, for good

    async def _take_in_pieces(self, root: int, arrival: Arrival, address: Address) -> None:
        try:
            data = await self.host.ledger.whole(arrival.data, arrival.headers)
        except LinkError as error:
            log.warning("not_read", subject=arrival.subject, error=str(error))
            if root in self._arrivals:
                self._finish(root, arrival, again(BROKEN_PAUSE_S))
            return
        except PenstockError as error:
            log.warning("incomplete", subject=arrival.subject, error=str(error))
            data = b""
        if root in self._arrivals:  # it may have been handed back meanwhile
            self._event(root, arrival, address, data)

    def _event(self, root: int, arrival: Arrival, address: Address, data: bytes) -> None:
        """What a message says."""
        stored = Stored(arrival.subject, arrival.seq, data, arrival.traceparent, arrival.due_ns)
        num_segments: int | None = None
        if address.kind == "media":
            index = None if address.key is None else address.key.first
            known = self.cache.keep_media(index, stored)
            if known is None:
                num_segments = self.cache.num_segments
                if num_segments is None:
                    log.warning("not_read", subject=arrival.subject, error="it is no end of a stream")
                    self._do([Acknowledge(root, "it cannot be read")])
                    return
                known = Known(arrival.seq, arrival.traceparent)
            event = Event(MEDIA, address.key, known, root, arrival.num_delivered, arrival.arrived_ns)
        elif address.key is None:
            self._do([Acknowledge(root, "it is nothing of ours")])
            return
        else:
            known = self.cache.keep_result(address.source, address.key, stored)
            event = Event(address.source, address.key, known, root, arrival.num_delivered, arrival.arrived_ns)
        self._do(self.rule.arrived(event, self.host.now_ns(), num_segments))

    # --- carrying out --------------------------------------------------------------------------------------------

    def _do(self, told: Iterable[Instruction]) -> None:
        """Carry out what was told, and what that leads to at once, one after the other."""
        self._todo += told
        if self._is_doing:
            return
        self._is_doing = True
        try:
            while self._todo:
                self._carry_out(self._todo.popleft())
        finally:
            self._is_doing = False

    def _carry_out(self, told: Instruction) -> None:
        match told:
            case Read():
                found = self.cache.peek(told)
                if found is None:
                    self.host.tasks.start_soon(self._look, told)
                else:
                    self._todo += self.rule.found(told, found, self.host.now_ns())
            case Compute(is_empty=True):
                self._note(told, "hold back", told.why)
                self._computing.hold_back(told)
            case Compute():
                self._note(told, "compute", told.why)
                self._computing.compute(told)
            case GiveGap():
                self._note(told, f"gap: {told.cause}", told.why)
                self._computing.passed(told)
                self.storing.gap(told)
            case Acknowledge(root):
                arrival = self._arrivals.get(root)
                if arrival is not None:
                    self._finish(root, arrival, DONE)
            case Redeliver(root, delay_s, why):
                arrival = self._arrivals.get(root)
                if arrival is not None:
                    self.host.journal.note(self.stream, arrival.subject.rpartition(".")[2], "", "again", why)
                    self._finish(root, arrival, again(delay_s))
            case Release(index):
                self.host.frames.release(self.stream, self.name, index)

    def _note(self, told: Compute | GiveGap, what: str, why: str) -> None:
        self.host.journal.note(self.stream, told.key, told.stage.name, what, why)

    def _finish(self, root: int, arrival: Arrival, word: bytes) -> None:
        self._arrivals.pop(root, None)
        self._answer(arrival, word)

    def _answer(self, arrival: Arrival, word: bytes) -> None:
        self.host.outbox.send(arrival.reply, word)
        self._note_drained()
        self.host.on_done()

    async def _look(self, read: Read) -> None:
        found: Found | None = None
        try:
            found = await self.cache.look(read)
        except PenstockError as error:
            log.warning("not_read", stage=read.stage.name, key=str(read.key), error=str(error))
            self._do(self.rule.abandoned(read, BROKEN_PAUSE_S, str(error)))
        except Exception as error:
            log.error("not_read", stage=read.stage.name, key=str(read.key), exc_info=error)
            self._do(self.rule.abandoned(read, BROKEN_PAUSE_S, cause_of(error)))
        if found is not None:
            self._do(self.rule.found(read, found, self.host.now_ns()))

    # --- stored --------------------------------------------------------------------------------------------------

    def _on_stands(self, told: Compute | GiveGap, known: Known) -> None:
        now_ns = self.host.now_ns()
        arrival = self._arrivals.get(told.event.root)
        if arrival is not None:
            self.lag_s = max(0.0, (now_ns - arrival.stored_ns) / 1e9)
        self._do(self.rule.placed(told, known, now_ns))

    def _on_not_stored(self, told: Compute | GiveGap, why: str) -> None:
        self._do(self.rule.abandoned(told, BROKEN_PAUSE_S, why))
