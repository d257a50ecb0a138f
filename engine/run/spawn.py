"""Starting worker processes, one of them ahead of time.

A worker takes some half second to import what it needs, and so does the command that will want one. `ahead` is called
before anything else is imported, so that both do it at once; this module imports the standard library only.
"""

import os
import subprocess
import sys
from contextlib import suppress
from typing import IO

# A frame is megabytes, and what a model computes from it is tens of them. By default glibc gives each back to the
# kernel when it is let go, takes it anew page fault by page fault, and keeps an arena for each thread: a tenth of the
# demo's time. What is kept instead is bounded: blocks from 32 MB up go back, for between them the heap would grow with
# the length of a stream; huge pages make their faults few. Other C libraries ignore all of it.
MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 1024**2),
    "MALLOC_TRIM_THRESHOLD_": str(128 * 1024**2),
    "MALLOC_ARENA_MAX": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}

Process = subprocess.Popen[bytes]

_ahead: list[Process] = []


def python_on(module: str) -> list[str]:
    """The command that runs a module's `main`. The folder one is in comes last of where modules are looked for: it may
    hold anything by the name of one of ours."""
    return [sys.executable, "-P", "-c", f"import sys; sys.path.append(''); from {module} import main; main()"]


def worker(errors: IO[bytes] | int) -> Process:
    """A worker that waits for its assignment, on standard input. What it says goes to `errors` until then; from then
    on something comes on its standard output every second, as long as its event loop runs, and once it is ready."""
    return subprocess.Popen(
        python_on("engine.run.process"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env={**MEMORY, **os.environ},
        start_new_session=True,  # Ctrl-C at the terminal is for the one who started it all
    )


def ahead() -> None:
    """Start a worker now, for whoever asks for one first."""
    _ahead.append(worker(subprocess.DEVNULL))


def started_ahead() -> Process | None:
    """The worker that was started ahead; None where there is none, or it has died: the next one will say why."""
    process = _ahead.pop() if _ahead else None
    if process is not None and process.poll() is not None:
        let_go(process)
        return None
    return process


def let_go(process: Process) -> None:
    """Close what leads to a process: one that waits for its assignment ends."""
    for end in (process.stdin, process.stdout):
        with suppress(OSError):
            if end is not None:
                end.close()
