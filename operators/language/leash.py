"""Runs a command that must not outlive whoever started it: when standard input closes, it is asked to end, with all it
started, and then made to.

    python leash.py GRACE_S COMMAND...

On Linux whatever the command leaves behind, in whatever session, becomes a child of this process, which ends it as well
when the command ends; and the command ends should this process be killed. Elsewhere that holds for its process group.
The standard library only, and started by its path: it stays small, and the current folder has no say.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

NOT_STARTED = 127
LOOK_S = 0.1
LEFT_S = 0.2  # for what a command has left behind
KILL_S = 5.0  # for what was killed to be gone
SUBREAPER, DEATH_SIGNAL = 36, 1  # prctl's numbers


def main() -> None:
    grace_s, command = float(sys.argv[1]), sys.argv[2:]
    signal.signal(signal.SIGTERM, lambda *_: None)  # what is told to the group is for the command
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    news, heard = os.pipe()
    os.set_blocking(heard, False)
    signal.set_wakeup_fd(heard, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    _prctl(SUBREAPER, 1)
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, preexec_fn=lambda: _prctl(DEATH_SIGNAL, signal.SIGKILL)
        )
    except (OSError, ValueError) as error:
        print(f"{command[0]}: {getattr(error, 'strerror', None) or error}", file=sys.stderr, flush=True)
        os._exit(NOT_STARTED)
    code: int | None = None
    while code is None:
        ready, _, _ = select.select([0, news], [], [])
        if news in ready:
            os.read(news, 4096)
        code = _reap(process.pid)
        if 0 in ready and not os.read(0, 4096):
            code = _reap(process.pid)
            break
    is_asked = code is None
    left = _tell(signal.SIGTERM)
    until_s = time.monotonic() + (grace_s if is_asked else min(LEFT_S, grace_s))
    while left and time.monotonic() < until_s:
        time.sleep(LOOK_S)
        code = _reap(process.pid) if code is None else code
        left = _others()
    until_s = time.monotonic() + KILL_S
    while left and time.monotonic() < until_s:
        _tell(signal.SIGKILL)
        time.sleep(LOOK_S)
        code = _reap(process.pid) if code is None else code
        left = _others()
    os._exit(128 + signal.SIGKILL if code is None else code)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _reap(pid: int) -> int | None:
    """Let go of what has ended; the exit code of `pid`, if that is among it."""
    found: int | None = None
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == pid:
                code = os.waitstatus_to_exitcode(ended[1])
                found = code if code >= 0 else 128 - code
    return found


def _others() -> list[int]:
    """All that descends from this process and runs."""
    if sys.platform != "linux":
        with suppress(ChildProcessError):
            _reap(0)
        return []
    parents: dict[int, int] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208 - of the standard library the least
        with suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
            state, parent = file.read().rpartition(b")")[2].split()[:2]
            if state != b"Z":
                parents[int(name)] = int(parent)
    found: list[int] = []
    known = {os.getpid()}
    while more := [pid for pid, parent in parents.items() if parent in known and pid not in known]:
        found += more
        known.update(more)
    return found


def _tell(what: int) -> list[int]:
    """Send a signal to all of them."""
    if sys.platform != "linux":
        os.killpg(0, what)
        return []
    others = _others()
    for pid in others:
        with suppress(OSError):
            os.kill(pid, what)
    return others


if __name__ == "__main__":
    main()
