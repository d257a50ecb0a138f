"""Instances: an operator loaded, as often as it takes, and called where it runs: in the loop, in a thread, in a
process, or item by item side by side.
"""

import time
from collections.abc import Sequence
from typing import Any

import anyio
import anyio.to_process
import anyio.to_thread
import msgspec
import structlog

from engine.spec.operator import Device, Emit, Inputs, Operator, Settings
from streams.errors import Permanent, Transient
from streams.records import encode

log = structlog.get_logger(__name__)

MAX_STUCK = 4  # batches that have not come back, each with an instance of its own
Answer = tuple[Sequence[msgspec.Struct], int, int]  # outputs, and when they were begun and done (Unix time, ns)


class Instances:
    """Those of one operator with one setting on one device."""

    def __init__(self, operator: type[Operator], knobs: Settings, device: Device) -> None:
        self.num_loaded = 0
        self._operator = operator
        self._knobs = knobs
        self._device = device
        self._warmed = False
        self._idle: list[Operator] = []
        self._loading = anyio.Lock()
        self._stuck: dict[int, float] = {}  # batches left in their threads, past their time: when it was over

    async def warm_up(self) -> bool:
        """Load the first one ahead of the work, once; whether it was done now. What fails here will be reported by the
        work."""
        if self._warmed or self._operator.runs_in == "loop":
            return False
        self._warmed = True
        load_one = (self._operator, self._knobs, self._device)
        try:
            with anyio.move_on_after(self._operator.timeout_s):
                if self._operator.runs_in == "process":
                    await _started(anyio.CapacityLimiter(1))
                    await anyio.to_process.run_sync(_warm_child, *load_one, cancellable=True)
                    self.num_loaded = max(1, self.num_loaded)
                elif self._operator.runs_in == "async":
                    await self._one()
                else:
                    self._idle.append(await self._in_thread())
        except Exception as error:
            log.info("not_warmed_up", operator=self._operator.name, error=str(error))
            return False
        return True

    def forget(self) -> None:
        """Have those that are at hand forget what they kept of earlier items, all but what is in other processes."""
        for each in self._idle:
            each.forget()

    async def call(self, batch: list[Inputs]) -> Answer:
        """Have a batch processed. Raises what the operator raises, and TimeoutError past its time."""
        operator = self._operator
        with anyio.fail_after(operator.timeout_s):
            own = anyio.CapacityLimiter(1)
            if operator.runs_in == "process":
                await _started(own)
                call = (operator, self._knobs, self._device, batch)
                return await anyio.to_process.run_sync(_in_child, *call, cancellable=True, limiter=own)
            return await self._call_in_thread(batch, own)

    def call_now(self, batch: list[Inputs]) -> Answer:
        """Have a batch processed in the event loop."""
        if not self._idle:
            self._idle.append(self._load())
        return _timed(self._idle[0], batch)

    async def call_one(self, inputs: Inputs, emit: Emit) -> msgspec.Struct:
        """Have one item processed beside others, by the one instance they share."""
        operator = await self._one()
        with anyio.fail_after(self._operator.timeout_s):
            return await operator.process_one(inputs, emit)

    @property
    def overdue_s(self) -> float:
        """How long a thread has gone on past the operator's time; 0 where none has."""
        return time.monotonic() - min(self._stuck.values()) if self._stuck else 0.0

    def note_children(self, num: int) -> None:
        """So many processes may have it loaded."""
        if self._operator.runs_in == "process":
            self.num_loaded = max(num, self.num_loaded)

    async def _one(self) -> Operator:
        async with self._loading:
            if not self._idle:
                self._idle.append(await anyio.to_thread.run_sync(self._load, abandon_on_cancel=True))
        return self._idle[0]

    async def _in_thread(self) -> Operator:
        """One that nobody uses. Loaded one after the other: who comes while the first is being loaded gets that."""
        async with self._loading:
            if self._idle:
                return self._idle.pop()
            return await anyio.to_thread.run_sync(self._load, abandon_on_cancel=True)

    def _load(self) -> Operator:
        loaded = load(self._operator, self._knobs, self._device)
        self.num_loaded += 1
        return loaded

    async def _call_in_thread(self, batch: list[Inputs], limiter: anyio.CapacityLimiter) -> Answer:
        if len(self._stuck) >= MAX_STUCK:
            raise Transient(f"{self._operator.name}: {len(self._stuck)} batches have not come back, past their time")
        operator = await self._in_thread()
        is_over = False

        def process() -> Answer:
            nonlocal is_over
            try:
                answer = _timed(operator, batch)
            except BaseException:
                self.num_loaded -= 1  # one that raised is left to be loaded anew
                raise
            finally:
                is_over = True
                self._stuck.pop(id(operator), None)
            self._idle.append(operator)
            return answer

        try:
            return await anyio.to_thread.run_sync(process, abandon_on_cancel=True, limiter=limiter)
        except anyio.get_cancelled_exc_class():
            self._stuck[id(operator)] = time.monotonic()  # it goes on in its thread, with its instance
            if is_over:
                self._stuck.pop(id(operator), None)
            raise


async def _started(limiter: anyio.CapacityLimiter) -> None:
    """Returns when there is a child process to call; not canceled before, for anyio leaves one behind that is canceled
    as it starts."""
    with anyio.CancelScope(shield=True):
        await anyio.to_process.run_sync(_begin, limiter=limiter)


def encoded(operator: type[Operator], outputs: Sequence[msgspec.Struct], num_expected: int) -> list[bytes]:
    """What was returned, as it will be stored. Raises Permanent for what breaks the operator's contract."""
    wanted = operator.capability.output
    if len(outputs) != num_expected:
        raise Permanent(f"{operator.name} returned {len(outputs)} outputs for {num_expected} inputs")
    for output in outputs:
        if type(output) is not wanted:  # a subclass would be read back elsewhere as what it is not
            raise Permanent(f"{operator.name} returned {type(output).__name__}, not {wanted.__name__}")
    try:
        return [encode(output) for output in outputs]
    except (TypeError, ValueError, OverflowError) as error:
        raise Permanent(f"{operator.name} returned what cannot be encoded: {error}") from error


def load(operator: type[Operator], knobs: Settings, device: Device) -> Operator:
    """An instance ready to process."""
    instance = operator(knobs)
    instance.load(device)
    return instance


def _timed(operator: Operator, batch: Sequence[Inputs]) -> Answer:
    started_ns = time.time_ns()
    outputs = operator.process(batch)
    return outputs, started_ns, time.time_ns()


_children: dict[Any, Operator] = {}


def _begin() -> None:
    """Runs in a child process, which is there then."""


def _in_child(operator: type[Operator], knobs: Settings, device: Device, batch: Sequence[Inputs]) -> Answer:
    """Runs in a child process, which keeps the operator loaded."""
    return _timed(_load_in_child(operator, knobs, device), batch)


def _warm_child(operator: type[Operator], knobs: Settings, device: Device) -> None:
    _load_in_child(operator, knobs, device)


def _load_in_child(operator: type[Operator], knobs: Settings, device: Device) -> Operator:
    key = (operator, msgspec.json.encode(knobs), device)
    if key not in _children:
        _children[key] = load(operator, knobs, device)
    return _children[key]


def translated(error: Exception, operator: type[Operator]) -> Exception:
    """The failure as the retry rule understands it. What an operator did not foresee fails the same way each time,
    unless it is the machine that ran short."""
    if isinstance(error, Transient | Permanent):
        return error
    if isinstance(error, TimeoutError):
        found: Exception = Transient(f"{operator.name} did not finish within {operator.timeout_s:g} s")
    elif isinstance(error, MemoryError | OSError | anyio.BrokenWorkerProcess):
        found = Transient(f"{operator.name}: {type(error).__name__}: {error}")
    else:
        found = Permanent(f"{operator.name} raised {type(error).__name__}: {error}")
        log.error("operator_raised", operator=operator.name, exc_info=error)
    found.__cause__ = error
    return found
