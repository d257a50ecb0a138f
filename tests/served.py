"""A node of its own process, on a store of its own."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep


@contextmanager
def serving(store: Path) -> Iterator[Path]:
    """A node on a store of its own; gives the file that says where it is."""
    store.mkdir(exist_ok=True)
    log = store / "serve.log"
    where = store / "server.json"
    with log.open("w") as err:
        command = [sys.executable, "-m", "penstock", "serve", "--http", "none", "--store", str(store)]
        node = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=err)
    try:
        deadline = monotonic() + 30
        while "is up" not in log.read_text():
            assert node.poll() is None and monotonic() < deadline, log.read_text()
            sleep(0.05)  # between two looks
        yield where
    finally:
        node.send_signal(signal.SIGINT)
        node.wait(timeout=30)
    assert node.returncode == 130, log.read_text()
    assert "Traceback" not in log.read_text()
