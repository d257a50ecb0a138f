"""What `penstock new operator` writes is a package: its tests pass, and it is found where it is installed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from penstock.cli.main import main
from penstock.cli.templates import OPERATOR


def python(*arguments: object, cwd: Path, **more: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")} | more
    words = [sys.executable, *map(str, arguments)]
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def rows(done: "subprocess.CompletedProcess[str]", capability: str) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [row for row in map(json.loads, done.stdout.splitlines()) if row["capability"] == capability]


FOUND = {"implementation": "rms", "rung": "rms", "quality": 1.0, "runs_in": "thread", "missing": None}


@pytest.mark.parametrize(("name", "module", "named"), [
    ("how-loud", "how_loud", "HowLoud"),
    ("noise2_level", "noise2_level", "Noise2Level"),
])  # fmt: skip
def test_its_tests_pass_and_it_is_found(
    name: str, module: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", "operator", name, "--dir", str(tmp_path)]) == 0
    folder = tmp_path / name
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"{folder} is written; now: cd {folder} && python -m pytest\n")
    assert sum(path.is_file() for path in folder.rglob("*")) == len(OPERATOR)
    tested = python("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=folder, PYTHONPATH=str(folder / "src"))
    assert tested.returncode == 0, tested.stdout
    assert "4 passed" in tested.stdout
    more = {"PYTHONPATH": str(folder / "src"), "PENSTOCK_OPERATORS": f"{module}:{named}"}
    found = rows(python("-m", "penstock", "operators", "--json", cwd=tmp_path, **more), module)
    assert found == [{"capability": module} | FOUND]


def test_it_is_found_where_it_is_installed(tmp_path: Path) -> None:
    for needed in ("pip", "hatchling"):
        pytest.importorskip(needed, reason=f"building a package needs {needed}", exc_type=ImportError)
    assert main(["new", "operator", "how-loud", "--dir", str(tmp_path)]) == 0
    site = tmp_path / "site"
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    built = python("-m", "pip", "install", "-q", *offline, "--target", site, tmp_path / "how-loud", cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    found = rows(python("-m", "penstock", "operators", "--json", cwd=tmp_path, PYTHONPATH=str(site)), "how_loud")
    assert found == [{"capability": "how_loud"} | FOUND]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Loud", "'Loud' cannot be the name of an operator: use up to 40 of a-z"),
        ("", "'' cannot be the name of an operator"),
        ("../up", "'../up' cannot be the name of an operator"),
        ("a" * 41, "cannot be the name of an operator"),
        ("two words", "cannot be the name of an operator"),
        ("class", "'class' is a word of Python"),
        ("transcribe", "the capability 'transcribe' comes with Penstock; choose another name"),
        ("read-text", "the capability 'read_text' comes with Penstock"),
        ("numpy", "there is a Python module 'numpy' already"),
        ("operators", "there is a Python module 'operators' already"),
        ("level", "'level' would be Level in the code, which has another of that name"),
        ("sound", "'sound' would be SOUND in the code"),
        ("tests", "there is a Python module 'tests' already"),
    ],
)
def test_a_name_that_will_not_do_is_refused(
    name: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", "operator", name, "--dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("penstock: ")
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "how-loud" / "README.md"
    kept.parent.mkdir()
    kept.write_text("mine")
    assert main(["new", "operator", "how-loud", "--dir", str(tmp_path)]) == 2
    assert "there is already" in capsys.readouterr().err
    assert [path.name for path in kept.parent.iterdir()] == ["README.md"]
    assert kept.read_text() == "mine"
    assert main(["new", "operator", "how-loud", "--dir", str(kept)]) == 2
    assert "Not a directory; give a --dir that you can write to" in capsys.readouterr().err


def test_nothing_is_left_where_it_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, *_: Any, **__: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert main(["new", "operator", "how-loud", "--dir", str(tmp_path)]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
