"""Computing: from what a group's rule tells it to compute to what came of that, each output by itself: whether its
segment is begun at all, what is decoded ahead of it, its pool, and what is stored.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import msgspec
import structlog

from engine.decide import lateness
from engine.decide.instructions import Compute, GiveGap, Instruction
from engine.decide.readiness import Readiness
from engine.decide.retry import cause_of
from engine.run.done import Canceled, Done, Late
from engine.run.frames import Hold
from engine.run.host import GroupStage, Host, StageRung
from engine.run.spans import WorkSpan
from engine.run.storing import Storing
from engine.run.tickets import Ticket, no_word, nothing
from engine.run.ways import DECODING, ESTIMATE_NS
from engine.run.work import empty_result_of, inputs_of, result_of
from engine.spec.operator import Media
from engine.spec.workflow import MEDIA
from streams import subjects
from streams.errors import Permanent, Transient

log = structlog.get_logger(__name__)


class Computing:
    """For one group; `do` carries out what the rule tells of what came."""

    def __init__(
        self,
        host: Host,
        stream: str,
        rule: Readiness,
        storing: Storing,
        do: Callable[[Iterable[Instruction]], None],
    ) -> None:
        self._host = host
        self._stream = stream
        self._rule = rule
        self._storing = storing
        self._do = do
        self._stages: Mapping[str, GroupStage] = {}
        self._tickets: dict[int, Ticket] = {}
        self._holds: dict[int, Hold] = {}
        self._estimated_ns = 0  # the server's time

    def serve(self, stages: Mapping[str, GroupStage]) -> None:
        """Go by these from now on, by their id."""
        self._stages = stages
        self._estimate(self._estimated_ns)  # these are new to the rule, what their pools take is not

    def cancel(self) -> None:
        """Nobody wants what is under way."""
        while self._tickets:
            self._tickets.popitem()[1].cancel()
        while self._holds:
            self._holds.popitem()[1].let_go()

    def compute(self, told: Compute) -> None:
        stage = self._stages[told.stage.id]
        stage.opens.note(is_open=True)
        if told.expires_ns:
            self._host.ways.asked(self._stream, told.stage.id, self._host.now_ns())
            if why := self._refused(told):
                self._do(self._rule.late(told, why))
                return
        place = 0  # of what is wanted whenever
        if told.expires_ns:
            place = self._host.ways.rung_of(self._stream, told.key.last, stage.rule.id, self._host.now_ns())
        rung = stage.rung(place)
        span = self._host.spans.begin(told, self._stream, rung.planned.rung)
        if rung.demands:
            self._host.tasks.start_soon(self._decode, told, stage, rung, span)
        else:
            self._submit(told, stage, rung, span, None)

    def _refused(self, told: Compute) -> str:
        """Why its segment is not begun; empty where it is."""
        lag_s = told.stage.running.max_lag_s
        return self._host.ways.enters(self._stream, told.key.last, told.due_ns, lag_s, self._host.now_ns())

    def passed(self, told: Compute | GiveGap) -> None:
        """A stage has begun on a segment, or there is nothing to do of it."""
        if isinstance(told, GiveGap):
            if told.cause == "late" and not told.was_to_be:
                self._host.ways.asked(self._stream, told.stage.id, self._host.now_ns(), is_late=True)
            self._host.ways.lost(self._stream, told.key.last)
        self._host.ways.passed(self._stream, told.key.last, told.stage.id)

    def hold_back(self, told: Compute) -> None:
        """Its gate is shut: nothing is decoded or called for it."""
        stage = self._stages[told.stage.id]
        stage.opens.note(is_open=False)
        self.passed(told)
        stage.rungs[0].pool.tally.num_held_back += 1
        record = empty_result_of(told, stage.empty, self._stream, self._host.worker, time.time_ns())
        self._storing.result(told, record, stage.empty, self._host.spans.begin(told, self._stream))

    async def _decode(self, told: Compute, stage: GroupStage, rung: StageRung, span: WorkSpan) -> None:
        """Have what the stage looks at decoded, ahead of its turn."""
        segments = [
            known.value.segment
            for found in (told.inputs.get(MEDIA, {}),)
            for known in found.values()
            if isinstance(known.value, Media)
        ]
        rung.pool.num_ahead += 1
        try:
            wanted = rung.demands_for(inputs_of(told, self._stream, stage.params, {}))
            hold = await self._host.frames.hold(self._stream, segments, wanted, told.expires_ns)
        except (Permanent, Transient) as error:
            self._failed(told, span, error)
            return
        except Exception as error:  # a decoder's own
            log.error("not_decoded", stage=told.stage.name, key=str(told.key), exc_info=error)
            self._failed(told, span, Permanent(f"decoding raised {type(error).__name__}: {error}"))
            return
        finally:
            rung.pool.num_ahead -= 1
        if not self._rule.is_wanted(told):  # its messages were handed back meanwhile
            hold.let_go()
            span.end(error="canceled")
            return
        span.decoded(hold.decodings)
        self._host.ways.passed(self._stream, told.key.last, DECODING)
        self._holds[id(told)] = hold
        self._submit(told, stage, rung, span, hold)

    def _submit(self, told: Compute, stage: GroupStage, rung: StageRung, span: WorkSpan, hold: Hold | None) -> None:
        pool, running = rung.pool, told.stage.running
        expires_ns = done_ns = 0  # of what is wanted whenever
        if told.expires_ns:  # the rungs of its segment may be others than those of its stream
            way = self._host.ways.way_of(self._stream, told.key.last, self._host.now_ns())
            times = way.with_it_ns.get(stage.rule.id, 0), way.behind_ns.get(stage.rule.id, 0)
            expires_ns, done_ns = (lateness.expires_ns(running, told.key, told.due_ns, each) for each in times)
        ticket = pool.submit(
            inputs_of(told, self._stream, stage.params, hold.media if hold is not None else {}),
            partial(self._computed, told, rung, span),
            due_ns=expires_ns,
            done_ns=done_ns,
            wanted_ns=lateness.wanted_ns(done_ns, running.max_lag_s, running.latency_s),
            lag_s=running.max_lag_s if told.expires_ns else 0.0,
            alone=told.event.num_delivered > 1,
            emit=partial(self._emit, told) if pool.is_async else no_word,
            span=span.item,
            on_begun=partial(self.passed, told) if told.expires_ns else nothing,
        )
        self._tickets[id(told)] = ticket

    def _emit(self, told: Compute, text: str, *, anew: bool = False) -> None:
        """Pass on what comes while an output is being made, to those who listen for their job's drafts."""
        for job in told.stage.running.jobs:
            said = {
                "job": job,
                "stream": self._stream,
                "stage": told.stage.name,
                "first": told.key.first,
                "last": told.key.last,
                "text": text,
                **({"anew": True} if anew else {}),
            }
            self._host.outbox.send(subjects.partials(job, self._stream), msgspec.json.encode(said))

    def _computed(self, told: Compute, rung: StageRung, span: WorkSpan, ran: Done) -> None:
        self._tickets.pop(id(told), None)
        hold = self._holds.pop(id(told), None) if self._holds else None
        if hold is not None:
            hold.let_go()
        if isinstance(ran.error, Late):
            self._do(self._rule.late(told, lateness.said_of(told.due_ns, self._host.now_ns())))
        elif isinstance(ran.error, Canceled):
            span.end(error="canceled")
            self._do(self._rule.abandoned(told, 0.0, "it was canceled"))
        elif ran.error is not None:
            self._failed(told, span, ran.error, ran)
        else:
            span.ran(ran)
            if told.expires_ns and (now_ns := self._host.now_ns()) > self._estimated_ns + ESTIMATE_NS:
                self._estimate(now_ns)
            decoded = (hold.decode_s, hold.decode_path) if hold is not None else ()
            record = result_of(told, rung.planned.rung, ran, self._stream, self._host.worker, *decoded)
            self._storing.result(told, record, ran.output, span)

    def _estimate(self, now_ns: int) -> None:
        """How long what is begun now will take, by what batches took."""
        self._estimated_ns = now_ns
        way = self._host.ways.of(self._stream, now_ns)
        for id, stage in self._stages.items():
            stage.rule.lead_ns = way.with_it_ns.get(id, 0)

    def _failed(self, told: Compute, span: WorkSpan, error: Exception, ran: Done | None = None) -> None:
        if ran is not None:
            span.ran(ran)
        span.end(error=cause_of(error))
        log.warning("stage_failed", stage=told.stage.name, key=str(told.key), error=cause_of(error))
        self._do(self._rule.failed(told, error, 0.5 + self._host.random.random()))
