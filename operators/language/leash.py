"""Runs a command that must not outlive whoever started it: when standard input closes, it is asked to end, with all it
started, and then made to.

    python -m operators.language.leash GRACE_S COMMAND...

Both are one process group, of which this process is the leader. The standard library only: it stays small.
"""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

NOT_STARTED = 127


def main() -> None:
    grace_s, command = float(sys.argv[1]), sys.argv[2:]
    signal.signal(signal.SIGTERM, lambda *_: None)  # what is told to the group is for the command
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(NOT_STARTED)
    threading.Thread(target=_end_with, args=(process,), daemon=True).start()
    with suppress(OSError):
        sys.stdin.buffer.read()
    os.killpg(0, signal.SIGTERM)
    threading.Event().wait(grace_s)  # unless the command ends before, and this process with it
    os.killpg(0, signal.SIGKILL)


def _end_with(process: "subprocess.Popen[bytes]") -> None:
    code = process.wait()
    os._exit(code if code >= 0 else 128 - code)  # what it left behind is for whoever waits for this


if __name__ == "__main__":
    main()
