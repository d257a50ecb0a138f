"""A pool: all instances of one implementation in this worker, batching across whoever calls.

Callers hand in items and wait; a lane takes what has queued up, as much as the operator's largest batch, and runs it in
a thread, a process or the loop itself, as the operator declares. A batch that fails is run again item by item, so that
one bad item does not fail its neighbours.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.abc
import anyio.to_process
import anyio.to_thread
import msgspec
import structlog

from engine.spec.operator import Device, Inputs, Operator, Settings
from streams.errors import Permanent, Transient
from streams.records import encode

log = structlog.get_logger(__name__)


class Late(Exception):
    """Its time had passed before its turn came: it was not computed."""


class Done(msgspec.Struct, frozen=True):
    """What became of one item: an output and its encoding, or the error; and when its batch ran (Unix time, ns)."""

    output: msgspec.Struct | None
    encoded: bytes
    error: Exception | None
    started_ns: int
    ended_ns: int
    batch_size: int

    @property
    def compute_s(self) -> float:
        """This item's share of the batch."""
        return (self.ended_ns - self.started_ns) / 1e9 / self.batch_size


@dataclass(slots=True)
class _Ticket:
    """One caller's items, settled in order."""

    items: Sequence[Inputs]
    deadlines_ns: Sequence[int | None]
    done: dict[int, Done] = field(default_factory=dict)
    num_taken: int = 0
    settled: anyio.Event = field(default_factory=anyio.Event)

    def settle(self, index: int, done: Done) -> None:
        self.done[index] = done
        if len(self.done) == len(self.items):
            self.settled.set()


class Capacity:
    """What all pools of a worker share: as many batches run at once as there are cores, and a pool opens a lane beside
    its first only while there are fewer lanes than cores, for each costs an instance to load."""

    def __init__(self, num_cores: int) -> None:
        self.num_cores = num_cores
        self.num_lanes = 0
        self.limiter = anyio.CapacityLimiter(num_cores)


class Pool:
    """Runs one operator."""

    def __init__(
        self,
        operator: type[Operator],
        knobs: Settings,
        device: Device,
        capacity: Capacity,
        tasks: anyio.abc.TaskGroup,
    ) -> None:
        self.operator = operator
        self._knobs = knobs
        self._device = device
        self._capacity = capacity
        self._tasks = tasks
        self._num_lanes = 0
        self._num_starting = 0  # lanes that have not taken anything yet
        self._warmed = False
        self._idle: list[Operator] = []
        self._waiting: deque[_Ticket] = deque()

    async def process(self, items: Sequence[Inputs], deadlines_ns: Sequence[int | None] = ()) -> list[Done]:
        """What became of each item, in order. Never raises for a failing item. One whose deadline (Unix time) has
        passed when its turn comes is not run."""
        if not items:
            return []
        ticket = _Ticket(items, deadlines_ns or [None] * len(items))
        self._waiting.append(ticket)
        num_batches = -(-sum(len(t.items) - t.num_taken for t in self._waiting) // self.operator.max_batch)
        while self._num_starting < num_batches and self._has_room_for_a_lane():  # the other lanes are at work
            self._num_starting += 1
            self._num_lanes += 1
            self._capacity.num_lanes += 1
            self._tasks.start_soon(self._lane)
        await ticket.settled.wait()
        return [ticket.done[index] for index in range(len(items))]

    def _has_room_for_a_lane(self) -> bool:
        return self._num_lanes == 0 or self._capacity.num_lanes < self._capacity.num_cores

    async def warm_up(self) -> None:
        """Load the first lane's instance ahead of the work, once. What fails here will be reported by the work."""
        if self._warmed or self.operator.runs_in == "loop":
            return
        self._warmed = True
        load_one = (self.operator, self._knobs, self._device)
        try:
            with anyio.move_on_after(self.operator.timeout_s):
                if self.operator.runs_in == "process":
                    await anyio.to_process.run_sync(_warm_child, *load_one, cancellable=True)
                else:
                    self._idle.append(await anyio.to_thread.run_sync(load, *load_one, abandon_on_cancel=True))
        except Exception as error:
            log.info("not_warmed_up", operator=self.operator.name, error=str(error))

    async def _lane(self) -> None:
        self._num_starting -= 1
        try:
            while self._waiting:
                taken = self._take()
                if not taken:
                    continue
                batch = [ticket.items[index] for ticket, index in taken]
                for (ticket, index), done in zip(taken, await self._run(batch), strict=True):
                    ticket.settle(index, done)
        finally:
            self._num_lanes -= 1
            self._capacity.num_lanes -= 1

    def _take(self) -> list[tuple[_Ticket, int]]:
        """Up to `max_batch` waiting items, oldest first: each as its ticket and its place in it."""
        taken: list[tuple[_Ticket, int]] = []
        while self._waiting and len(taken) < self.operator.max_batch:
            ticket = self._waiting[0]
            now_ns, deadline_ns = time.time_ns(), ticket.deadlines_ns[ticket.num_taken]
            if deadline_ns is not None and now_ns > deadline_ns:
                ticket.settle(ticket.num_taken, Done(None, b"", Late(), now_ns, now_ns, 1))
            else:
                taken.append((ticket, ticket.num_taken))
            ticket.num_taken += 1
            if ticket.num_taken == len(ticket.items):
                self._waiting.popleft()
        return taken

    async def _run(self, batch: list[Inputs]) -> list[Done]:
        started_ns = time.time_ns()
        try:
            outputs, started_ns, ended_ns = await self._call(batch)
            encoded = self._encoded(outputs, len(batch))
        except Exception as error:
            if len(batch) > 1:
                return [done for item in batch for done in await self._run([item])]
            return [Done(None, b"", _translated(error, self.operator), started_ns, time.time_ns(), 1)]
        pairs = zip(outputs, encoded, strict=True)
        return [Done(output, data, None, started_ns, ended_ns, len(batch)) for output, data in pairs]

    async def _call(self, batch: list[Inputs]) -> tuple[Sequence[msgspec.Struct], int, int]:
        if self.operator.runs_in == "loop":
            operator = self._idle[0] if self._idle else self._loaded()
            return _timed(operator, batch)
        limiter = self._capacity.limiter
        with anyio.fail_after(self.operator.timeout_s):
            if self.operator.runs_in == "process":
                call = (self.operator, self._knobs, self._device, batch)
                return await anyio.to_process.run_sync(_in_child, *call, cancellable=True, limiter=limiter)
            return await anyio.to_thread.run_sync(self._in_thread, batch, abandon_on_cancel=True, limiter=limiter)

    def _in_thread(self, batch: list[Inputs]) -> tuple[Sequence[msgspec.Struct], int, int]:
        operator = self._idle.pop() if self._idle else load(self.operator, self._knobs, self._device)
        answer = _timed(operator, batch)
        self._idle.append(operator)  # one that raised is left to be loaded anew
        return answer

    def _loaded(self) -> Operator:
        operator = load(self.operator, self._knobs, self._device)
        self._idle.append(operator)
        return operator

    def _encoded(self, outputs: Sequence[msgspec.Struct], num_expected: int) -> list[bytes]:
        """What was returned, as it will be stored. Raises Permanent for what breaks the operator's contract."""
        wanted = self.operator.capability.output
        if len(outputs) != num_expected:
            raise Permanent(f"{self.operator.name} returned {len(outputs)} outputs for {num_expected} inputs")
        for output in outputs:
            if not isinstance(output, wanted):
                raise Permanent(f"{self.operator.name} returned {type(output).__name__}, not {wanted.__name__}")
        try:
            return [encode(output) for output in outputs]
        except (TypeError, ValueError, OverflowError) as error:
            raise Permanent(f"{self.operator.name} returned what cannot be encoded: {error}") from error


def load(operator: type[Operator], knobs: Settings, device: Device) -> Operator:
    """An instance ready to process."""
    instance = operator(knobs)
    instance.load(device)
    return instance


def _timed(operator: Operator, batch: Sequence[Inputs]) -> tuple[Sequence[msgspec.Struct], int, int]:
    started_ns = time.time_ns()
    outputs = operator.process(batch)
    return outputs, started_ns, time.time_ns()


_children: dict[Any, Operator] = {}


def _in_child(
    operator: type[Operator], knobs: Settings, device: Device, batch: Sequence[Inputs]
) -> tuple[Sequence[msgspec.Struct], int, int]:
    """Runs in a child process, which keeps the operator loaded."""
    return _timed(_load_in_child(operator, knobs, device), batch)


def _warm_child(operator: type[Operator], knobs: Settings, device: Device) -> None:
    _load_in_child(operator, knobs, device)


def _load_in_child(operator: type[Operator], knobs: Settings, device: Device) -> Operator:
    key = (operator, msgspec.json.encode(knobs), device)
    if key not in _children:
        _children[key] = load(operator, knobs, device)
    return _children[key]


def _translated(error: Exception, operator: type[Operator]) -> Exception:
    """The failure as the retry rule understands it. What an operator did not foresee fails the same way each time,
    unless it is the machine that ran short."""
    if isinstance(error, Transient | Permanent):
        return error
    if isinstance(error, TimeoutError):
        translated: Exception = Transient(f"{operator.name} did not finish within {operator.timeout_s:g} s")
    elif isinstance(error, MemoryError | OSError | anyio.BrokenWorkerProcess):
        translated = Transient(f"{operator.name}: {type(error).__name__}: {error}")
    else:
        translated = Permanent(f"{operator.name} raised {type(error).__name__}: {error}")
        log.error("operator_raised", operator=operator.name, exc_info=error)
    translated.__cause__ = error
    return translated
