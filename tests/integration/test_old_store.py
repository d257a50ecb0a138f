"""A store that an older version made is served as it is: what it holds is read, and asked about anew.

`store-2026-11-26.tar.xz` was made by the code of that day: a stream `camera` of four seconds with two captions, pushed
to a node, a question asked, and a job `old-1`. Its format is the first, which does not say so.
"""

import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from served import serving

from streams.wire.server import FORMAT, FORMAT_FILE

OLD = Path(__file__).parent.parent / "data" / "store-2026-11-26.tar.xz"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    with tarfile.open(OLD) as packed:
        packed.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))  # from 3.11.4 on
    (tmp_path / "store").chmod(0o700)
    return tmp_path / "store"


def said(store: Path, *words: str) -> list[Any]:
    command = [sys.executable, "-m", "penstock", *words, "--store", str(store), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_what_an_older_version_stored_is_read_and_asked_about_anew(store: Path) -> None:
    with serving(store):
        (camera,) = said(store, "streams")
        assert (camera["stream"], camera["state"]) == ("camera", "ended")
        jobs = said(store, "jobs", "list")
        assert {"old-1": "done"}.items() <= {job["job"]: job["state"] for job in jobs}.items()
        (before,) = said(store, "answers", "--job", "old-1")
        assert (before["answer"], before["gaps"]) == ("The train to Porto leaves at nine twenty.", [])
        (again,) = said(store, "ask", "What does breakfast cost?", "--stream", "camera")
        assert "eleven euros" in again["answer"]
        assert again["gaps"] == []
    assert (store / FORMAT_FILE).read_text().strip() == str(FORMAT)
