"""A node: the worker processes of one machine, kept running.

Workers are started at once, so that they are up by the time there is something to do, and told what when it is known.

A worker that dies is started again with backoff; one that keeps dying at once is reported, with the end of its log. One
whose event loop has stopped for `SILENT_S`, because it is frozen or an operator does not let go of the interpreter, is
ended by force. How many there are may change: one that is not wanted any more takes nothing new, ends what it has
taken, and goes.
Leaving the node ends its workers, within `GRACE_S` by request and then by force, with all they started.
"""

import itertools
import os
import select
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar, TypeVarTuple, Unpack

import anyio
import anyio.to_thread
import msgspec
import structlog

from engine.run import spawn
from engine.run.assignment import DRAIN, READY, Assignment
from streams.errors import PenstockError, UserError

log = structlog.get_logger(__name__)
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

GRACE_S = 0.5
SILENT_S = 60.0
QUICK_DEATH_S, MAX_QUICK_DEATHS = 2.0, 6
FIRST_PAUSE_S, MAX_PAUSE_S = 0.05, 2.0
NOT_STARTED = 71  # as EX_OSERR
FIRST_START_S, START_MEMORY = 3.0, 4  # what one is taken to need until it works, before any has shown; starts


class Node:
    """Keeps so many workers at one assignment. `pids` are those alive now, by their number."""

    def __init__(self, num_workers: int, log_file: Path) -> None:
        self.pids: dict[int, int] = {}
        self.num_restarts = 0
        self._assignment: Assignment | None = None
        self._assigned = anyio.Event()
        self._scope = anyio.CancelScope()
        self._num_wanted = num_workers
        self._news = anyio.Event()
        self._kept: set[int] = set()
        self._leaving: set[int] = set()  # that were told to go, or are to be
        self._processes: dict[int, spawn.Process] = {}
        self._start_s = FIRST_START_S
        self._assigned_s = 0.0
        self._log_file = log_file

    def assign(self, assignment: Assignment) -> None:
        """Say what the workers are to do, once."""
        self._assignment = assignment
        self._assigned_s = anyio.current_time()
        self._assigned.set()

    def scale(self, num_workers: int) -> None:
        """Keep so many from now on. Those that are too many end what they have taken first."""
        self._num_wanted = num_workers
        for number in self._staying[num_workers:]:
            self._leaving.add(number)
            if number in self._processes:
                drain(self._processes[number])
        self._news.set()

    @property
    def start_s(self) -> float:
        """How long one lately took until it had loaded what there was to do."""
        return self._start_s

    @property
    def _staying(self) -> list[int]:
        """The numbers of those that are to stay, or to be started again."""
        return sorted(self._kept - self._leaving)

    def stop(self) -> None:
        """Begin to end the workers; leaving the node waits until they are gone."""
        self._scope.cancel()

    async def run(self) -> None:
        """Until stopped. Raises PenstockError when a worker cannot stay alive."""
        with self._scope:
            async with anyio.create_task_group() as tasks:
                while True:
                    self._news = anyio.Event()
                    while len(self._staying) < self._num_wanted:
                        number = next(number for number in itertools.count() if number not in self._kept)
                        self._kept.add(number)
                        tasks.start_soon(self._keep, number)
                    await self._news.wait()

    async def _keep(self, number: int) -> None:
        """While it is wanted."""
        num_quick = 0
        pause_s = FIRST_PAUSE_S
        while number not in self._leaving:
            started_s = anyio.current_time()
            code = await self._run_once(number)
            lived_s = anyio.current_time() - started_s
            if number in self._leaving:
                break
            is_own_fault = code not in (-signal.SIGKILL, NOT_STARTED)
            num_quick = num_quick + 1 if lived_s < QUICK_DEATH_S and is_own_fault else 0
            if num_quick >= MAX_QUICK_DEATHS:
                raise PenstockError(
                    f"worker {number} ended {num_quick} times in a row at once (exit {code}): {self._last_words()}; "
                    f"its log is {self._log_file}"
                )
            pause_s = FIRST_PAUSE_S if lived_s > QUICK_DEATH_S else min(2 * pause_s, MAX_PAUSE_S)
            log.warning("worker_ended", number=number, exit=code, pause_s=pause_s)
            self.num_restarts += 1
            await anyio.sleep(pause_s)
        self._kept.discard(number)
        self._leaving.discard(number)

    async def _run_once(self, number: int) -> int:
        began_s = anyio.current_time()
        try:
            with self._log_file.open("ab") as errors:
                process = spawn.started_ahead() or spawn.worker(errors)
        except OSError as error:  # no memory, no processes left: for now
            log.error("worker_not_started", number=number, error=str(error))
            return NOT_STARTED
        self.pids[number] = process.pid
        try:
            await self._assigned.wait()
            assert self._assignment is not None
            named = msgspec.structs.replace(
                self._assignment, name=f"{self._assignment.name}-{number}", log_file=str(self._log_file.absolute())
            )
            await _in_a_thread(_write, process, msgspec.json.encode(named) + b"\n")
            self._processes[number] = process
            if number in self._leaving:
                drain(process)

            def is_ready() -> None:
                took_s = anyio.current_time() - max(began_s, self._assigned_s)
                self._start_s += (took_s - self._start_s) / START_MEMORY

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_end_when_silent, process, number, is_ready)
                code = await _in_a_thread(process.wait)
                tasks.cancel_scope.cancel()
            return code
        finally:
            del self.pids[number]
            self._processes.pop(number, None)
            with anyio.CancelScope(shield=True):
                await _end(process)

    def _last_words(self) -> str:
        try:
            lines = self._log_file.read_bytes()[-4096:].decode(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1][:300] if lines else "it left no word"


async def _in_a_thread(call: Callable[[Unpack[Ts]], T], *arguments: *Ts) -> T:
    """A thread for each, however many workers there are; whoever does not wait leaves it behind."""
    alone = anyio.CapacityLimiter(1)
    return await anyio.to_thread.run_sync(call, *arguments, abandon_on_cancel=True, limiter=alone)


def _write(process: spawn.Process, line: bytes) -> None:
    assert process.stdin is not None
    with suppress(OSError):  # it has died, as its exit code will say
        process.stdin.write(line)
        process.stdin.flush()


def drain(process: spawn.Process) -> None:
    """Have a worker take nothing more, and end when it has done what it has taken."""
    _write(process, DRAIN + b"\n")


async def _end_when_silent(process: spawn.Process, number: int, on_ready: Callable[[], None]) -> None:
    assert process.stdout is not None
    beats = process.stdout.fileno()
    allowed_s: float | None = None  # before the first: it may be loading for long
    while True:
        with anyio.move_on_after(allowed_s):
            await anyio.wait_readable(beats)
        if not select.select([beats], [], [], 0)[0]:  # this node may have been stopped as well, with beats to be read
            log.error("worker_hung", number=number, pid=process.pid, silent_s=allowed_s)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            return
        said = os.read(beats, 4096)
        if not said:
            return
        if READY in said:
            on_ready()
        allowed_s = SILENT_S


async def _end(process: spawn.Process) -> None:
    """End a worker and all it started. One that is still loading has nothing to hand back, and is gone at once."""
    with anyio.move_on_after(GRACE_S):
        process.terminate()
        await _in_a_thread(process.wait)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await _in_a_thread(process.wait)
    spawn.let_go(process)


@asynccontextmanager
async def node(num_workers: int, log_file: Path) -> AsyncIterator[Node]:
    """A running node, with nothing to do yet. Raises UserError where its log cannot be written."""
    _check_writable(log_file)
    running = Node(num_workers, log_file)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(running.run)
        try:
            yield running
        finally:
            running.stop()


def _check_writable(log_file: Path) -> None:
    try:
        log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        log_file.touch()
    except OSError as error:
        raise UserError(f"cannot write {log_file}: {error.strerror}; choose another store") from error
