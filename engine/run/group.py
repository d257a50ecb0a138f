"""A group: fused stages over one stream. It carries out what the rule (`engine.decide.readiness`) tells, and tells the
rule what came of it.

Everything here happens in the event loop and most of it at once; only what must wait (reading what is not at hand,
decoding, computing, storing) comes back later, by a callback, and each output by itself.
"""

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import anyio
import anyio.abc
import msgspec
import structlog

from engine.decide import joins, lateness
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
from engine.run.done import Canceled, Done, Late
from engine.run.frames import Hold
from engine.run.host import GroupStage, Host
from engine.run.leads import ESTIMATE_NS
from engine.run.segment_cache import SegmentCache
from engine.run.spans import WorkSpan
from engine.run.storing import Storing
from engine.run.tickets import Ticket, no_word
from engine.run.work import empty_result_of, inputs_of, result_of
from engine.spec.operator import Media
from engine.spec.workflow import MEDIA
from streams import subjects
from streams.errors import LinkError, PenstockError, Permanent, Transient, UserError
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
    _tickets: dict[int, Ticket] = field(default_factory=dict)
    _holds: dict[int, Hold] = field(default_factory=dict)
    _estimated_ns: int = 0  # Unix time
    _todo: deque[Instruction] = field(default_factory=deque)
    _is_doing: bool = False

    def __post_init__(self) -> None:
        self.storing = Storing(self.host, self.cache, self._on_stands, self._on_not_stored)

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
        self.stages = {stage.rule.id: stage for stage in stages}
        self.host.leads.serve(self.stream, self.name, self.stages)
        self.rule.serve([stage.rule for stage in stages])
        self._estimate(self._estimated_ns)  # these are new to the rule, what their pools take is not
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
        self.host.leads.leave(self.stream, self.name, self.stages)
        if cancel:
            while self._tickets:
                self._tickets.popitem()[1].cancel()
            while self._holds:
                self._holds.popitem()[1].let_go()
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
                self._hold_back(told)
            case Compute():
                self._note(told, "compute", told.why)
                self._compute(told)
            case GiveGap():
                self._note(told, f"gap: {told.cause}", told.why)
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

    # --- computing -----------------------------------------------------------------------------------------------

    def _compute(self, told: Compute) -> None:
        stage = self.stages[told.stage.id]
        span = self.host.spans.begin(told, self.stream)
        if stage.demands:
            self.host.tasks.start_soon(self._decode, told, stage, span)
        else:
            self._submit(told, stage, span, None)

    def _hold_back(self, told: Compute) -> None:
        """Its gate is shut: nothing is decoded or called for it."""
        stage = self.stages[told.stage.id]
        stage.pool.num_held_back += 1
        record = empty_result_of(told, stage.empty, self.stream, self.host.worker, time.time_ns())
        self.storing.result(told, record, stage.empty, self.host.spans.begin(told, self.stream))

    async def _decode(self, told: Compute, stage: GroupStage, span: WorkSpan) -> None:
        """Have what the stage looks at decoded, ahead of its turn."""
        segments = [
            known.value.segment
            for found in (told.inputs.get(MEDIA, {}),)
            for known in found.values()
            if isinstance(known.value, Media)
        ]
        stage.pool.num_ahead += 1
        try:
            wanted = stage.demands_for(inputs_of(told, self.stream, stage.params, {}))
            hold = await self.host.frames.hold(self.stream, segments, wanted, told.expires_ns)
        except (Permanent, Transient) as error:
            self._failed(told, span, error)
            return
        except Exception as error:  # a decoder's own
            log.error("not_decoded", stage=told.stage.name, key=str(told.key), exc_info=error)
            self._failed(told, span, Permanent(f"decoding raised {type(error).__name__}: {error}"))
            return
        finally:
            stage.pool.num_ahead -= 1
        if not self.rule.is_wanted(told):  # its messages were handed back meanwhile
            hold.let_go()
            span.end(error="canceled")
            return
        span.decoded(hold.decodings)
        self._holds[id(told)] = hold
        self._submit(told, stage, span, hold)

    def _submit(self, told: Compute, stage: GroupStage, span: WorkSpan, hold: Hold | None) -> None:
        pool = stage.pool
        ticket = pool.submit(
            inputs_of(told, self.stream, stage.params, hold.media if hold is not None else {}),
            partial(self._computed, told, span),
            due_ns=told.expires_ns,
            done_ns=lateness.expires_ns(told.stage.running, told.key, told.due_ns, stage.rule.behind_ns),
            in_place=bool(self.num_pending),
            alone=told.event.num_delivered > 1,
            emit=partial(self._emit, told) if pool.is_async else no_word,
            span=span.item,
        )
        self._tickets[id(told)] = ticket

    def _emit(self, told: Compute, text: str, *, anew: bool = False) -> None:
        """Pass on what comes while an output is being made, to those who listen for their job's drafts."""
        for job in told.stage.running.jobs:
            said = {
                "job": job,
                "stream": self.stream,
                "stage": told.stage.name,
                "first": told.key.first,
                "last": told.key.last,
                "text": text,
                **({"anew": True} if anew else {}),
            }
            self.host.outbox.send(subjects.partials(job, self.stream), msgspec.json.encode(said))

    def _computed(self, told: Compute, span: WorkSpan, ran: Done) -> None:
        self._tickets.pop(id(told), None)
        hold = self._holds.pop(id(told), None) if self._holds else None
        if hold is not None:
            hold.let_go()
        if isinstance(ran.error, Late):
            self._do(self.rule.late(told, lateness.said_of(told.due_ns, self.host.now_ns())))
        elif isinstance(ran.error, Canceled):
            span.end(error="canceled")
            self._do(self.rule.abandoned(told, 0.0, "it was canceled"))
        elif ran.error is not None:
            self._failed(told, span, ran.error, ran)
        else:
            span.ran(ran)
            if told.expires_ns and ran.ended_ns > self._estimated_ns + ESTIMATE_NS:
                self._estimate(ran.ended_ns)
            decoded = (hold.decode_s, hold.decode_path) if hold is not None else ()
            record = result_of(told, ran, self.stream, self.host.worker, *decoded)
            self.storing.result(told, record, ran.output, span)

    def _estimate(self, now_ns: int) -> None:
        """How long what is begun now will take, by what batches took."""
        self._estimated_ns = now_ns
        leads = self.host.leads.of(self.stream, now_ns)
        for id, stage in self.stages.items():
            stage.rule.lead_ns, stage.rule.behind_ns = leads.with_it.get(id, 0), leads.behind.get(id, 0)

    def _failed(self, told: Compute, span: WorkSpan, error: Exception, ran: Done | None = None) -> None:
        if ran is not None:
            span.ran(ran)
        span.end(error=cause_of(error))
        log.warning("stage_failed", stage=told.stage.name, key=str(told.key), error=cause_of(error))
        self._do(self.rule.failed(told, error, 0.5 + self.host.random.random()))

    # --- stored --------------------------------------------------------------------------------------------------

    def _on_stands(self, told: Compute | GiveGap, known: Known) -> None:
        now_ns = self.host.now_ns()
        arrival = self._arrivals.get(told.event.root)
        if arrival is not None:
            self.lag_s = max(0.0, (now_ns - arrival.stored_ns) / 1e9)
        self._do(self.rule.placed(told, known, now_ns))

    def _on_not_stored(self, told: Compute | GiveGap, why: str) -> None:
        self._do(self.rule.abandoned(told, BROKEN_PAUSE_S, why))
