"""`penstock simulate`, as a person and as a program use it."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "rush_hour.toml"
SMALL = """
duration_s = 20
pools.p = { service = { per_item_s = 0.5 } }
stages.s = { pool = "p" }
streams = [{ max_lag_s = 2.0, arrivals = { per_s = 1.0, kind = "poisson" } }]
"""

ENGINE = """
duration_s = 60
pools.m = { runs_in = "async", max_async = 64, service = { base_s = 1.0, max_running = 8 } }
stages.s = { pool = "m" }
streams = [{ max_lag_s = 5.0, arrivals = { per_s = 20.0, kind = "poisson" } }]
"""


def simulate(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock", "simulate", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_people_are_told_what_was_answered_in_time_and_what_each_pool_did() -> None:
    done = simulate(str(EXAMPLE))
    assert done.returncode == 0, done.stderr
    assert "9600 segments in" in done.stdout
    assert "% answered in time" in done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines()[:3]] == ["pool", "detector", "reader"]
    assert not done.stderr


def test_what_lower_rungs_and_limits_came_to_is_told(tmp_path: Path) -> None:
    done = simulate(str(EXAMPLE.with_name("lower_rungs.toml")))
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d+ changes of rungs; 9\d\.\d % of the best rungs' quality on average", done.stdout)
    path = tmp_path / "engine.toml"
    path.write_text(ENGINE)
    assert "m at " in simulate(str(path)).stdout
    assert json.loads(simulate(str(path), "--json").stdout)["pools"]["m"]["limits"]


def test_how_many_replicas_there_were_is_told_and_why() -> None:
    done = simulate(str(EXAMPLE.with_name("night.toml")))
    assert done.returncode == 0, done.stderr
    assert re.search(r"^cores: \d\.\d replicas on average, [3-6] at most$", done.stdout, re.MULTILINE)
    assert re.search(r"^  at 1\d\d s: 3, 2\.\d+ lanes' worth comes to 2 of 1$", done.stdout, re.MULTILINE)
    assert re.search(r"^  at 59\d s: 0, nothing was needed for 15 s$", done.stdout, re.MULTILINE)
    found = json.loads(simulate(str(EXAMPLE.with_name("night.toml")), "--json").stdout)
    assert found["fleet"]["cores"]["begin"] == 1
    assert found["in_time"] > 0.99


def test_programs_are_given_one_object_and_the_same_seed_gives_the_same(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    first, again, other = (simulate(str(path), "--json", "--seed", seed).stdout for seed in ("1", "1", "2"))
    assert first == again != other
    found = json.loads(first)
    pool = found["pools"]["p"]
    assert found["num_segments"] == pool["num_done"] + pool["num_dropped"] > 0
    assert found["seed"] == 1


def test_what_is_wrong_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    for words, said in [
        ([str(tmp_path / "none.toml")], "none.toml: No such file or directory; give a TOML file"),
        ([str(path), "--plot", "a.pdf"], "--plot a.pdf: name it .png or .svg"),
    ]:
        path.write_text(SMALL)
        done = simulate(*words)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
        assert said in done.stderr
    path.write_text(SMALL.replace("p = {", "q = {"))
    assert "stage 's' has no pool 'p'; there are q" in simulate(str(path)).stderr


@pytest.mark.skipif(find_spec("matplotlib") is not None, reason="matplotlib is here")
def test_without_what_draws_it_says_what_brings_it(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    done = simulate(str(path), "--plot", str(tmp_path / "a.png"))
    assert done.returncode == 2
    assert "pip install 'penstock[plot]'" in done.stderr
