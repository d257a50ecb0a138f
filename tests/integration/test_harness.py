"""The harness for authors gives what the engine gives, gap for gap: one workflow, run by both."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import toys
from media_zoo import make

from penstock.operators import Gap
from penstock.testing import gap, run, segments_of
from streams.records import Segment

TESTS = Path(__file__).parent.parent
LOST = 2  # the segment that the first stage cannot do
Found = dict[tuple[str, int], Any]  # by stage and last segment: (value, what it was made from), None for a gap

OPERATORS = """
from typing import ClassVar

from penstock.operators import Capability, Inputs, Map, Media, Permanent, Port, Scope
from toys import Added, Number, Toy


class Stamp(Toy):
    capability = Capability("toy_stamp", {"media": Port(Media)}, Number, Added)

    def one(self, item: Inputs) -> Number:
        if item.last == 2:
            raise Permanent("unlucky segment")
        return Number(value=item.here("media").segment.index + 1, seen=(item.last,))


class Beside(Toy):
    capability = Capability("toy_beside", {"numbers": Port(Number)}, Number, Added)
    scope: ClassVar[Scope] = Map(1, 1)
"""
WORKFLOW = """
name = "scopes"

[stages.stamp]
capability = "toy_stamp"
inputs = { media = "media" }
"""
READERS = {"beside": "toy_beside", "count": "toy_count", "recent": "toy_recent", "total": "toy_total"}


def by_the_engine(folder: Path, clip: Path) -> Found:
    (folder / "scopes.py").write_text(OPERATORS)
    stages = [
        f'[stages.{name}]\ncapability = "{capability}"\ninputs = {{ numbers = "stamp" }}\nparams = {{ add = 1 }}\n'
        for name, capability in READERS.items()
    ]
    (folder / "scopes.toml").write_text(WORKFLOW + "\n".join(stages))
    more = {
        "PYTHONPATH": f"{folder}:{TESTS}",
        "PENSTOCK_OPERATORS": "scopes:Stamp, scopes:Beside, toys:Count, toys:Recent, toys:Total",
        "PENSTOCK_STORE": str(folder / "store"),
    }
    words = [sys.executable, "-m", "penstock", "run", str(folder / "scopes.toml"), "--input", str(clip)]
    words += ["--segment", "500ms", "--json"]
    done = subprocess.run(words, env=os.environ | more, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: Found = {}
    for answer in map(json.loads, done.stdout.splitlines()):
        output = answer["output"]
        value = output and (output["value"], output.get("seen", []))
        found[answer["stages"][-1]["stage"], answer["last"]] = value
    return found


def by_the_harness(segments: list[Segment], scopes: Any) -> Found:
    stamps: list[Any] = []
    for index, segment in enumerate(segments):
        alone = [gap("before")] * index + [segment]
        stamps.append(gap("unlucky segment") if index == LOST else run(scopes.Stamp, {"media": alone})[index])
    found: Found = {}
    for name, operator in zip(READERS, (scopes.Beside, toys.Count, toys.Recent, toys.Total), strict=True):
        outputs = run(operator, {"numbers": stamps}, params={"add": 1})
        for index, output in enumerate(outputs, len(segments) - len(outputs)):
            found[name, index] = None if isinstance(output, Gap) else (output.value, list(output.seen))
    return found


def test_the_harness_gives_what_the_engine_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = make(tmp_path / "clip.mp4", video="libx264", seconds=3.0, options={"g": "14"})
    segments = segments_of(clip, segment_s=0.5)
    engine = by_the_engine(tmp_path, clip)
    monkeypatch.syspath_prepend(str(tmp_path))
    harness = by_the_harness(segments, importlib.import_module("scopes"))
    assert len(segments) > LOST + 2
    assert harness == engine
    assert {key for key, value in engine.items() if value is None} == {(n, LOST) for n in READERS if n != "total"}
