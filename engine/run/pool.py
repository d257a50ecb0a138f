"""A pool: all instances of one implementation on one kind of device in this worker. It does what the batcher
(`engine.decide.batcher`) and the lanes' rule (`engine.decide.lanes`) say.

Callers hand in items and are called back with what became of each. A batch runs in a thread, in a process or in the
loop itself, as the operator declares, or, for an engine that batches by itself, item by item side by side. A batch that
fails is run again item by item, so that one bad item does not fail its neighbours; one that takes too long is not, for
each would take as long again: its items are brought again and run alone then. A batch that nobody wants any more is
ended: by word where it runs by itself, and with its process where it runs in one, unless it is over by itself first.
A thread cannot be ended; what it returns is passed over.
"""

import time
from collections.abc import Callable, Hashable, Sequence

import anyio
import anyio.abc
import anyio.to_process
import anyio.to_thread
import msgspec
import structlog

from engine.decide import lanes
from engine.decide.batcher import Batcher, Drop, Item, Run, WakeAt
from engine.decide.cores import urgency_of
from engine.decide.decisions import OnDecision
from engine.decide.learned import Learned
from engine.decide.signals import PoolSignals
from engine.run.cores import Cores
from engine.run.done import Canceled, Done, Late, OnDone
from engine.run.expecting import Expectation
from engine.run.inflight import PoolLimit
from engine.run.instances import Answer, Instances, encoded, translated
from engine.run.tally import Tally
from engine.run.tickets import Lane, Ticket, no_word, nothing
from engine.spec.operator import Device, Emit, Inputs, Operator, Settings, shares_work
from engine.spec.profile import Expected, OnRung
from engine.spec.spending import noting

log = structlog.get_logger(__name__)

AGAIN = "run again alone, for the batch failed"
UNWANTED_S = 1.0  # what a process may finish that nobody wants any more: to start another takes about as long


class Pool:
    """Runs one operator. `now_ns` is the server's time, which due times are in."""

    def __init__(
        self,
        operator: type[Operator],
        knobs: Settings,
        device: Device,
        cores: Cores,
        tasks: anyio.abc.TaskGroup,
        *,
        name: str = "",
        now_ns: Callable[[], int] = time.time_ns,
        on_change: Callable[[], None] = lambda: None,
        on_batch: Callable[[int, float], None] = lambda batch_size, service_s: None,
        on: OnRung | None = None,
        expected: Expected | None = None,
        on_decision: OnDecision = lambda decision: None,
    ) -> None:
        self.operator = operator
        self.name = name or operator.name
        self.is_async = operator.runs_in == "async"
        self.max_batch = 1 if self.is_async else operator.max_batch
        self._knobs = knobs
        self._shares = shares_work(operator)
        self._device = device
        self._instances = Instances(operator, knobs, device)
        self._cores = cores
        self._tasks = tasks
        self._now_ns = now_ns
        self._on_change = on_change
        num = operator.num_instances
        self._shape = lanes.PoolShape(runs_in=operator.runs_in, device=device.kind, num_instances=num)
        self._in_flight = PoolLimit(operator, knobs, self.name, on_decision) if self.is_async else None
        self._batcher = Batcher(self.max_batch)
        self._uses_cores = lanes.uses_cores(self._shape)
        self.resource = lanes.resource_of(self._shape, self.name)
        self._tickets: dict[int, Ticket] = {}  # that wait
        self._num_running = 0
        self.tally = Tally()
        self.num_ahead = 0  # items to come, whose media are being decoded; kept by whoever has that done
        self._num_lanes = 0
        self._num_batches = 0
        self._news = anyio.Event()
        self._is_kept = False
        self._wake_ns = 0
        self._on_batch = on_batch
        self.expectation = Expectation(self.name, on, expected, on_decision)
        self.expectation.tell(self.learned)

    async def warm_up(self) -> bool:
        """Load the first instance ahead of the work, once; whether it was done now."""
        return await self._instances.warm_up()

    # --- handing in ----------------------------------------------------------------------------------------------

    def submit(
        self,
        inputs: Inputs,
        on_done: OnDone,
        *,
        due_ns: int = 0,
        done_ns: int = 0,
        wanted_ns: int = 0,
        lag_s: float = 0.0,
        alone: bool = False,
        emit: Emit = no_word,
        span: str = "",
        on_begun: Callable[[], None] = nothing,
    ) -> Ticket:
        """Have an item computed; `on_done` is called with what became of it, once, unless it is canceled, and
        `on_begun` when its batch begins. By when, and what that means: `engine.decide.batcher.Item`."""
        self.tally.num_arrived += 1
        ticket = Ticket(self, self.tally.num_arrived, inputs, on_done, emit, time.time_ns(), span, on_begun)
        self._tickets[ticket.id] = ticket
        shared = self._shared_work(inputs) if self._shares else frozenset[Hashable]()
        self._batcher.add(Item(ticket.id, due_ns, done_ns, wanted_ns, round(lag_s * 1e9), alone=alone, shared=shared))
        self._wake()
        return ticket

    def _shared_work(self, inputs: Inputs) -> frozenset[Hashable]:
        try:
            return frozenset(self.operator.shared_work(self._knobs, inputs))
        except Exception as error:  # it is a hint, and the operator's own
            log.warning("no_shared_work", operator=self.operator.name, error=f"{type(error).__name__}: {error}")
            return frozenset()

    def cancel(self, ticket: Ticket) -> None:
        """An item is wanted no more: one that waits will not run, a batch of which nobody wants anything is ended."""
        ticket.is_wanted = False
        if self._tickets.pop(ticket.id, None) is not None:
            self._batcher.cancel(ticket.id)
        elif (lane := ticket.lane) is not None and not any(each.is_wanted for each in lane.tickets):
            if self.is_async:
                lane.scope.cancel()
            elif self.operator.runs_in == "process":
                lane.scope.deadline = min(lane.scope.deadline, anyio.current_time() + UNWANTED_S)

    @property
    def num_shared_lanes(self) -> int:
        """Of its resource."""
        return lanes.num_shared(self._shape_now, self._cores.num)

    @property
    def learned(self) -> Learned:
        """How long its batches take."""
        return self._batcher.learned

    @property
    def running_s(self) -> float:
        """What the batches that run still take, together, as far as is known."""
        return self.learned.running_s(self._now_ns())

    @property
    def overdue_s(self) -> float:
        """How long a thread has gone on past its operator's time; 0 where none has."""
        return self._instances.overdue_s

    def signals(self, *, with_history: bool = True) -> PoolSignals:
        """As things stand. Without history, service times by batch size are left out: credit is asked for often."""
        limits, tally = self._limits(), self.tally
        return PoolSignals(
            pool=self.name,
            runs_in=self.operator.runs_in,
            device=self._device.kind,
            max_batch=self.max_batch,
            num_waiting=len(self._tickets),
            num_patient=self._batcher.num_patient,
            num_in_service=self._num_running,
            num_in_flight=self._num_lanes,
            max_in_flight=limits.max_in_flight,
            num_instances=self._instances.num_loaded,
            num_ahead=self.num_ahead,
            queue_wait_s=tally.queue_wait_s,
            service_s=tally.service_s,
            service_times=tally.service_times.so_far() if with_history else (),
            num_arrived=tally.num_arrived,
            num_done=tally.num_done,
            num_failed=tally.num_failed,
            num_late=tally.num_late,
            num_held_back=tally.num_held_back,
            drift=self.expectation.drift,
            why=self._in_flight.why or limits.why if self._in_flight is not None else limits.why,
        )

    # --- doing what the rules say --------------------------------------------------------------------------------

    def _limits(self) -> lanes.Limits:
        return lanes.limits(self._shape_now, self._num_lanes, self._cores.num_lanes, self._cores.num)

    @property
    def _shape_now(self) -> lanes.PoolShape:
        if self._in_flight is None:
            return self._shape
        return msgspec.structs.replace(self._shape, max_async=self._in_flight.limit)

    def _wake(self) -> None:
        if not self._is_kept:
            self._is_kept = True
            self._tasks.start_soon(self._keep)
        elif not self._news.is_set():
            self._news.set()

    async def _keep(self) -> None:
        """Ask the batcher when something has changed and when it wants to be asked, while there is anything to do."""
        while self._tickets:
            self._news = anyio.Event()
            self._wake_ns = 0
            self._want_core()  # where one is free it is decided at once what runs on it
            if self._tickets:
                self._decide(0 if self._uses_cores else self._limits().max_in_flight - self._num_lanes)
            if self._tickets:
                wait_s = max(0.0, (self._wake_ns - self._now_ns()) / 1e9) if self._wake_ns else 3600.0
                with anyio.move_on_after(wait_s):
                    await self._news.wait()
        self._is_kept = False

    def _decide(self, num_free: int) -> None:
        for decision in self._batcher.decide(self._now_ns(), num_free):
            match decision:
                case Drop(item):
                    self._drop(item)
                case Run(items, why):
                    self._start(items, why)
                case WakeAt(at_ns):
                    self._wake_ns = at_ns

    def _want_core(self) -> None:
        if self._uses_cores and self._tickets and self._num_lanes < self._cores.num:
            self._cores.want(self)

    @property
    def urgent_ns(self) -> int:
        """By when the first of its items is to be done."""
        oldest = next(iter(self._tickets.values()), None)
        waits_ns = time.time_ns() - oldest.since_ns if oldest is not None else 0  # by this worker's clock
        return urgency_of(self._batcher.first, self._now_ns() - waits_ns)

    @property
    def takes_ns(self) -> int:
        """How long its next batch would take, as far as is known."""
        return self.learned.takes_ns(len(self._tickets))

    @property
    def is_full(self) -> bool:
        """Whether its next batch would be full."""
        return len(self._tickets) >= self.max_batch

    def granted(self) -> bool:
        """A core is its own: whether it begins a batch on it."""
        num_before = self._num_lanes
        self._decide(1)
        if self._num_lanes == num_before:  # what waits shares its work with what runs
            return False
        self._want_core()
        return True

    def _drop(self, item: Item) -> None:
        ticket = self._tickets.pop(item.id)
        now_ns = time.time_ns()
        self.tally.num_late += 1
        self._tell(ticket, Done(None, b"", Late(), now_ns, now_ns, 1))

    def _start(self, items: Sequence[Item], why: str) -> None:
        tickets = [self._tickets.pop(item.id) for item in items]
        now_ns = time.time_ns()
        self.tally.note_waits((now_ns - ticket.since_ns) / 1e9 for ticket in tickets)
        self._num_running += len(tickets)
        self._num_lanes += 1
        if self._uses_cores:
            self._cores.num_lanes += 1
        self._num_batches += 1
        self._instances.note_children(self._num_lanes)
        lane = Lane(tickets, items, self._num_batches, why)
        for ticket in tickets:
            ticket.lane = lane
            ticket.on_begun()
        if self._shape.runs_in == "loop":
            try:
                self._run_now(lane, tickets, why)
            finally:
                self._end(lane)
        else:
            self._tasks.start_soon(self._run_lane, lane)

    async def _run_lane(self, lane: Lane) -> None:
        """One batch, from beginning to end."""
        began_ns = time.time_ns()
        try:
            with lane.scope:
                await (self._run_async(lane) if self.is_async else self._run(lane, lane.tickets, lane.why))
            if lane.scope.cancelled_caught:
                ended_ns = time.time_ns()
                for ticket in lane.tickets:
                    if not ticket.is_settled:
                        self._settle(ticket, Done(None, b"", Canceled(), began_ns, ended_ns, len(lane.tickets)))
        finally:
            self._end(lane)

    def _end(self, lane: Lane) -> None:
        for ticket in lane.tickets:
            ticket.lane = None  # the two would keep each other, and the media, for good
        self._batcher.ended(lane.items)
        self._num_running -= len(lane.tickets)
        self._num_lanes -= 1
        if self._uses_cores:
            self._cores.num_lanes -= 1
            self._cores.give()
        self._news.set()
        self._on_change()

    async def _run(self, lane: Lane, tickets: Sequence[Ticket], why: str) -> None:
        started_ns = time.time_ns()
        try:
            answer: Answer | Exception = await self._instances.call([ticket.inputs for ticket in tickets])
        except Exception as error:
            answer = error
        for ticket in self._ran(lane, tickets, why, started_ns, answer):
            await self._run(lane, [ticket], f"{why}; {AGAIN}")

    def _run_now(self, lane: Lane, tickets: Sequence[Ticket], why: str) -> None:
        """A batch that is over before anything else happens."""
        started_ns = time.time_ns()
        try:
            answer: Answer | Exception = self._instances.call_now([ticket.inputs for ticket in tickets])
        except Exception as error:
            answer = error
        for ticket in self._ran(lane, tickets, why, started_ns, answer):
            self._run_now(lane, [ticket], f"{why}; {AGAIN}")

    def _ran(
        self, lane: Lane, tickets: Sequence[Ticket], why: str, started_ns: int, answer: Answer | Exception
    ) -> Sequence[Ticket]:
        """Tell what became of a batch; those that are to run again, one by one."""
        size = len(tickets)
        spans = tuple(ticket.span for ticket in tickets if ticket.span)
        try:
            if isinstance(answer, Exception):
                raise answer
            outputs, started_ns, ended_ns = answer
            written = encoded(self.operator, outputs, size)
        except Exception as error:
            if size > 1 and not isinstance(error, TimeoutError):
                return tickets
            failed = translated(error, self.operator)
            ended_ns = time.time_ns()
            for ticket in tickets:
                self._settle(ticket, Done(None, b"", failed, started_ns, ended_ns, size, lane.number, why, spans))
            return ()
        self._note_service(size, (ended_ns - started_ns) / 1e9)
        for ticket, output, data in zip(tickets, outputs, written, strict=True):
            self._settle(ticket, Done(output, data, None, started_ns, ended_ns, size, lane.number, why, spans))
        return ()

    async def _run_async(self, lane: Lane) -> None:
        (ticket,) = lane.tickets
        started_ns, num_beside = time.time_ns(), self._num_lanes
        output, data, failed = None, b"", None
        if self._in_flight is not None:
            lag_ns = lane.items[0].lag_ns
            self._in_flight.began(len(self._tickets), lag_ns / 1e9 if lag_ns else None)
        with noting() as calls:
            try:
                output = await self._instances.call_one(ticket.inputs, ticket.emit)
                (data,) = encoded(self.operator, [output], 1)
            except Exception as error:
                output, failed = None, translated(error, self.operator)
        ended_ns = time.time_ns()
        if failed is None:
            self._note_service(1, (ended_ns - started_ns) / 1e9)
        if self._in_flight is not None:
            self._in_flight.ended((num_beside + self._num_lanes) / 2, (ended_ns - started_ns) / 1e9, failed)
        done = Done(output, data, failed, started_ns, ended_ns, 1, lane.number, lane.why, calls=tuple(calls))
        self._settle(ticket, done)

    def _settle(self, ticket: Ticket, done: Done) -> None:
        ticket.is_settled = True
        if done.error is None:
            self.tally.num_done += 1
        else:
            self.tally.num_failed += 1
        self._tell(ticket, done)

    @staticmethod
    def _tell(ticket: Ticket, done: Done) -> None:
        try:
            ticket.on_done(done)
        except Exception as error:  # whoever asked; the others of the batch are nothing to it
            log.error("not_taken", exc_info=error)

    def _note_service(self, batch_size: int, service_s: float) -> None:
        self.tally.note_batch(batch_size, service_s)
        if self.tally.num_batches > self._instances.num_loaded:  # the first of each warms it up
            self._batcher.took(batch_size, service_s)
            self.expectation.note(batch_size, service_s)
        self._on_batch(batch_size, service_s)
