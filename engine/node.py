"""A node: the worker processes of one machine, kept running.

Workers are started at once, so that they are up by the time there is something to do, and told what when it is known.

A worker that dies is started again with backoff; one that keeps dying at once is reported, with the end of its log.
Leaving the node ends its workers, within `GRACE_S` by request and then by force, with all they started.
"""

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import anyio.abc
import msgspec
import structlog

from engine.worker import Assignment
from streams.errors import PenstockError, UserError

log = structlog.get_logger(__name__)

# A frame is megabytes, and what a model computes from it is tens of them. By default glibc gives each back to the
# kernel when it is let go, takes it anew page fault by page fault, and keeps an arena for each thread: a tenth of the
# demo's time. To keep all that was ever freed lets memory grow with the length of a stream; these bounds keep what a
# segment's frames take. Other C libraries ignore them.
KEEP_FREED_FRAMES = {
    "MALLOC_MMAP_THRESHOLD_": str(128 * 1024**2),
    "MALLOC_TRIM_THRESHOLD_": str(128 * 1024**2),
    "MALLOC_ARENA_MAX": "1",
}
GRACE_S = 0.5
QUICK_DEATH_S, MAX_QUICK_DEATHS = 2.0, 6
FIRST_PAUSE_S, MAX_PAUSE_S = 0.05, 2.0


class Node:
    """Keeps `num_workers` workers at one assignment. `pids` are those alive now."""

    def __init__(self, num_workers: int, log_file: Path) -> None:
        self.pids: dict[int, int] = {}
        self.num_restarts = 0
        self._assignment: Assignment | None = None
        self._assigned = anyio.Event()
        self._scope = anyio.CancelScope()
        self._num_workers = num_workers
        self._log_file = log_file

    def assign(self, assignment: Assignment) -> None:
        """Say what the workers are to do, once."""
        self._assignment = assignment
        self._assigned.set()

    def stop(self) -> None:
        """Begin to end the workers; leaving the node waits until they are gone."""
        self._scope.cancel()

    async def run(self) -> None:
        """Until stopped. Raises PenstockError when a worker cannot stay alive."""
        with self._scope:
            async with anyio.create_task_group() as tasks:
                for number in range(self._num_workers):
                    tasks.start_soon(self._keep, number)

    async def _keep(self, number: int) -> None:
        num_quick = 0
        pause_s = FIRST_PAUSE_S
        while True:
            started_s = anyio.current_time()
            code = await self._run_once(number)
            lived_s = anyio.current_time() - started_s
            num_quick = num_quick + 1 if lived_s < QUICK_DEATH_S and code != -signal.SIGKILL else 0
            if num_quick >= MAX_QUICK_DEATHS:
                raise PenstockError(
                    f"worker {number} ended {num_quick} times in a row at once (exit {code}): {self._last_words()}; "
                    f"its log is {self._log_file}"
                )
            pause_s = FIRST_PAUSE_S if lived_s > QUICK_DEATH_S else min(2 * pause_s, MAX_PAUSE_S)
            log.warning("worker_ended", number=number, exit=code, pause_s=pause_s)
            self.num_restarts += 1
            await anyio.sleep(pause_s)

    async def _run_once(self, number: int) -> int:
        with self._log_file.open("ab") as errors:
            process = await anyio.open_process(
                [sys.executable, "-m", "engine.worker"],
                stdout=errors,
                stderr=errors,
                env={**KEEP_FREED_FRAMES, **os.environ},
                start_new_session=True,  # Ctrl-C at the terminal is for the one who started it all
            )
        self.pids[number] = process.pid
        try:
            assert process.stdin is not None
            await self._assigned.wait()
            assert self._assignment is not None
            named = msgspec.structs.replace(self._assignment, name=f"{self._assignment.name}-{number}")
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                await process.stdin.send(msgspec.json.encode(named) + b"\n")
            return await process.wait()
        finally:
            del self.pids[number]
            with anyio.CancelScope(shield=True):
                await _end(process)

    def _last_words(self) -> str:
        try:
            lines = self._log_file.read_bytes()[-4096:].decode(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1][:300] if lines else "it left no word"


async def _end(process: anyio.abc.Process) -> None:
    """End a worker and all it started. One that is still loading has nothing to hand back, and is gone at once."""
    if process.returncode is None:
        with anyio.move_on_after(GRACE_S), suppress(ProcessLookupError):
            process.terminate()
            await process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
    await process.aclose()


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
        log_file.parent.mkdir(parents=True, exist_ok=True)
        log_file.touch()
    except OSError as error:
        raise UserError(f"cannot write {log_file}: {error.strerror}; choose another store") from error
