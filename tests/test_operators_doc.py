"""docs/operators.md is true: what it shows is what is written, what it says to type works, and its code passes its own
tests in the package it is about."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from clips import first_seconds

PAGE = Path(__file__).parent.parent / "docs" / "operators.md"
BLOCKS = re.findall(r"(?:^`([^`]+)`[^\n]*:\n\n)?^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def blocks(language: str) -> list[str]:
    """Those that are not shown as a file."""
    return [text for file, said, text in BLOCKS if said == language and not file]


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The package after everything on the page was typed in one shell, and what the commands said."""
    folder = tmp_path_factory.mktemp("page")
    pip = {"PIP_TARGET": str(folder / "site"), "PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0"}
    environment = os.environ | pip | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PENSTOCK_STORE": str(folder / "store"),
    }  # fmt: skip
    environment.pop("PYTHONPATH", None)
    clip = first_seconds(folder / "station.mp4", 8.0)
    first, tried, installed = blocks("sh")
    there = f"cp {clip} .\n"
    script = f"set -e\n{first}{there}{tried}{installed}PYTHONPATH={folder / 'site'} penstock operators --json\n"
    words = ["bash", "-c", script]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "loudness", done.stdout


def test_every_block_is_known() -> None:
    assert {language for _, language, _ in BLOCKS} == {"sh", "python", "toml", "json"}
    assert PAGE.read_text().count("```") == 2 * len(BLOCKS)


def test_the_files_shown_are_the_files_written(typed: tuple[Path, str]) -> None:
    shown = {file: text for file, _, text in BLOCKS if file}
    assert set(shown) == {"src/loudness/__init__.py", "tests/test_loudness.py", "workflow.toml"}
    for file, text in shown.items():
        assert (typed[0] / file).read_text() == text
    (entry_point,) = blocks("toml")
    assert entry_point in (typed[0] / "pyproject.toml").read_text()


def test_the_commands_say_what_the_page_says(typed: tuple[Path, str]) -> None:
    assert "4 passed" in typed[1]
    found = [json.loads(line) for line in typed[1].splitlines() if line.startswith("{")]
    outputs = [line["output"] for line in found if "output" in line]
    (said,) = blocks("json")
    assert outputs[0] == pytest.approx(json.loads(said), abs=1e-6)
    installed = [line for line in found if line.get("capability") == "loudness"]
    assert [line["implementation"] for line in installed] == ["rms"]


def test_the_code_on_the_page_passes_its_tests(typed: tuple[Path, str]) -> None:
    folder = typed[0]
    (folder / "tests" / "test_page.py").write_text("\n\n".join(blocks("python")))
    words = [sys.executable, "-m", "pytest", "-q", "-W", "error", "tests/test_page.py"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "5 passed" in done.stdout
