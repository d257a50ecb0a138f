"""Node processes on one NATS server or cluster, which are killed and started."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCENES = """
name = "scenes"
[stages.scenes]
capability = "detect_scenes"
inputs = { media = "media" }
"""


class Nodes:
    """Node processes on one NATS server."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._folder = folder
        self._num_started = 0
        self.processes: list[subprocess.Popen[str]] = []

    def start(self) -> None:
        """A node, once it is up."""
        self._num_started += 1
        store = self._folder / f"node-{self._num_started}"
        process = subprocess.Popen(
            [sys.executable, "-m", "penstock", "worker", "--nats", self._url, "--store", str(store)],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ},
        )
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "is up" in line, line
        self.processes.append(process)

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
