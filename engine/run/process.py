"""The worker process: it is started with an assignment on standard input and ends when that closes, so it never
outlives whoever started it; or, where it is told to drain, when it has done what it has taken.
"""

import ctypes
import os
import signal
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import structlog

from engine.run import heap, telemetry
from engine.run.assignment import BEAT, DRAIN, READY, Assignment
from engine.run.loading import Loading
from engine.run.signalling import Meters
from engine.run.worker import Worker
from engine.spec.catalogue import installed
from streams.errors import PenstockError
from streams.wire.ledger import open_ledger
from streams.wire.link import connect
from streams.wire.store import full_disk

log = structlog.get_logger(__name__)


BEAT_S = 1.0


async def serve(assignment: Assignment, beats: int) -> None:
    """Serve an assignment until standard input closes or a signal to end comes; `beats` is where to say that the event
    loop runs."""
    telemetry.configure_logging(assignment.log_level)
    trace_file = Path(assignment.trace_file) if assignment.trace_file else None
    traces = telemetry.Telemetry("penstock-worker", trace_file, assignment.name)
    meters = Meters.of("penstock-worker", assignment.name)
    try:
        trouble = partial(full_disk, Path(assignment.store)) if assignment.store else str
        async with (
            connect(assignment.url, name=assignment.name, trouble=trouble) as link,
            anyio.create_task_group() as tasks,
        ):
            loading = Loading(heap.settle, partial(_say, beats, READY))
            worker = Worker(await open_ledger(link), assignment, installed(), traces, meters, loading)
            heap.settle()
            tasks.start_soon(_cancel_when_told, tasks.cancel_scope, worker)
            tasks.start_soon(_beat, beats)
            tasks.start_soon(worker.run)
    finally:
        traces.close()
        meters.close()


async def _beat(beats: int) -> None:
    while True:
        _say(beats, BEAT)
        await anyio.sleep(BEAT_S)


def _say(beats: int, what: bytes) -> None:
    os.set_blocking(beats, False)
    with suppress(OSError):  # nobody has read them for long, or will
        os.write(beats, what)


async def _cancel_when_told(scope: anyio.CancelScope, worker: Worker) -> None:
    async with anyio.create_task_group() as tasks:

        async def at_end_of_input() -> None:
            while line := await anyio.to_thread.run_sync(sys.stdin.buffer.readline, abandon_on_cancel=True):
                if line.strip() == DRAIN:
                    tasks.start_soon(drain)
            scope.cancel()

        async def drain() -> None:
            await worker.drain()
            scope.cancel()

        tasks.start_soon(at_end_of_input)
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                scope.cancel()


def die_with_parent() -> None:
    """Have the kernel end this process when its parent ends, however that comes about (Linux; elsewhere the closing of
    standard input does it)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _log_to(path: str) -> None:
    """Have all that is written to standard output and error, by whatever library, go to a file."""
    with Path(path).open("ab") as errors:
        os.dup2(errors.fileno(), sys.stderr.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())


def main() -> None:
    die_with_parent()
    beats = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with suppress(PenstockError):  # it will be raised again where it can be said
        installed()  # imports what takes long, while the assignment is being made out
    line = sys.stdin.buffer.readline()
    if not line:
        return
    code = 0
    try:
        assignment = msgspec.json.decode(line, type=Assignment)
        if assignment.log_file:
            _log_to(assignment.log_file)
        anyio.run(partial(serve, assignment, beats))
    except BaseException as error:
        log.error("worker_failed", exc_info=error)
        code = 4
    sys.stderr.flush()
    os._exit(code)  # a thread still inside an operator must not hold the process
