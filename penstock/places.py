"""Where things are on this machine, and what it has: known without loading what uses it."""

import hashlib
import os
from pathlib import Path

from engine.spec.operator import Machine

NATS_URL = "PENSTOCK_NATS"  # the server of the nodes, where --nats is not given
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")  # of this container, by cgroup v2: microseconds of each period, or "max"


def default_store() -> Path:
    """Where results are kept between runs: $PENSTOCK_STORE, or the user's data folder."""
    if given := os.environ.get("PENSTOCK_STORE"):
        return Path(given)
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "penstock"


def index_of(store: Path, url: str | None) -> Path:
    """Where what is searched in is kept: beside the store, for each server its own."""
    return store / (
        "search.sqlite" if url is None else f"search-{hashlib.sha256(url.encode()).hexdigest()[:12]}.sqlite"
    )


def title_of(file: Path) -> str:
    """What people call a file, whatever bytes its name is made of."""
    return os.fsencode(file.name).decode("utf-8", "replace")


def this_machine() -> Machine:
    """Its cores are those that this process may use: what is more is another container's."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(num_cores=min(cores, allotted_cores(cores)), has_gpu=any(Path("/dev").glob("nvidia[0-9]*")))


def allotted_cores(otherwise: int, path: Path | None = None) -> int:
    """What a quota comes to, a part of a core counted as one; `otherwise`, where there is none."""
    try:
        quota, period = (path or CPU_MAX).read_text(encoding="ascii").split()
        return otherwise if quota == "max" else max(1, -(-int(quota) // int(period)))
    except (OSError, ValueError, ZeroDivisionError):
        return otherwise
