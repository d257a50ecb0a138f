"""Node processes on one NATS server or cluster, which are killed and started."""

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hosts import Host

SCENES = """
name = "scenes"
[stages.scenes]
capability = "detect_scenes"
inputs = { media = "media" }
"""


class Nodes:
    """Node processes on one NATS server or cluster."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._folder = folder
        self._num_started = 0
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, host: Host | None = None, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """A node, once it is up, here or on a host of its own."""
        self._num_started += 1
        store = self._folder / f"node-{self._num_started}"
        said = [f"{name}={value}" for name, value in (environment or {}).items()]  # nothing to who starts it there
        command = ["env", *said, sys.executable, "-m", "penstock", "worker", "--nats", self._url, "--store", str(store)]
        process = subprocess.Popen(
            command if host is None else host.command(command),
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ},
            start_new_session=True,
        )
        assert process.stderr is not None
        said = []
        while "is up" not in (line := process.stderr.readline()):
            said.append(line)
            assert line, "".join(said)  # it has ended
        threading.Thread(target=process.stderr.read, daemon=True).start()  # what nobody reads would hold it up
        self.processes.append(process)
        return process

    def kill(self, seeded: random.Random) -> None:
        victim = self.processes.pop(seeded.randrange(len(self.processes)))
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        assert victim.stderr is not None
        victim.stderr.close()


@contextmanager
def running_nodes(url: str, folder: Path, num: int) -> Iterator[Nodes]:
    nodes = Nodes(url, folder)
    try:
        for _ in range(num):
            nodes.start()
        yield nodes
    finally:
        while nodes.processes:
            nodes.kill(random.Random(0))
