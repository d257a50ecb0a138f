"""The command as its users call it: what goes in, what comes out, and how it ends."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest
from clips import EXAMPLES, STATION
from conftest import Eventually
from media_zoo import make, mutated

from engine.spec.catalogue import installed
from penstock.cli.main import main
from streams.wire.ledger import open_ledger
from streams.wire.link import connect

WORKFLOW = str(EXAMPLES / "video_qa.toml")
ASK = ["--ask", "Where can I park my car?"]

TWO_STAGES = """
name = "test"
[stages.one]
{one}
[stages.two]
{two}
"""
SCENES = 'capability = "detect_scenes"\ninputs = {{ media = "{}" }}'


def penstock(*arguments: str | Path, store: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(arguments), env=environment(store), capture_output=True, text=True, timeout=120, check=False
    )


def command(arguments: Sequence[str | Path]) -> list[str]:
    return [sys.executable, "-m", "penstock", *map(str, arguments)]


def environment(store: Path) -> dict[str, str]:
    return {**os.environ, "PENSTOCK_STORE": str(store)}


def one_line(text: str) -> str:
    (line,) = text.splitlines()
    assert line.startswith("penstock: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "COMMAND"),
        (["swim"], "choose from"),
        (["run", WORKFLOW, "--ask", "x"], "--input"),
        (["run", WORKFLOW, "--input", STATION, "--asks", "x"], "--asks"),
        (["run", WORKFLOW, "--input", STATION], "--ask TEXT"),
        (["run", WORKFLOW, "--input", STATION, "--ask", "  "], "a question is empty"),
        (["run", WORKFLOW, "--input", STATION, *ASK, "--segment", "5q"], "write 5s, 500ms, 1m or 10h"),
        (["run", WORKFLOW, "--input", STATION, *ASK, "--segment", "0s"], "between 0.2 and 60 s"),
        (["run", WORKFLOW, "--input", STATION, *ASK, "--workers", "0"], "1 to 64"),
        *[
            (["serve", "--workers", each], f"'{each}' is neither a number from 1 to 64 nor two, such as 0-4")
            for each in ("0", "0-0", "1-", "-", "1-2-3", "0-100", "\uff10-4", "")
        ],
        (["serve", "--workers", "3-1"], "'3-1': the first is the fewest, and 1 is less"),
        *[
            (["jobs", "submit", "--stream", "s", "--weight", each], f"'{each}' is not a number from 0.01 to 100")
            for each in ("much", "nan", "0", "101")
        ],
        (["run", WORKFLOW, "--input", STATION, *ASK, "--trace", "/no/such/folder/t"], "cannot write the trace"),
        (["run", WORKFLOW, "--input", STATION, *ASK, "--nats", "nonsense"], "nats://host:4222"),
        (["run", WORKFLOW, "--input", "no-such-file.mp4", *ASK], "no file no-such-file.mp4"),
        (["run", WORKFLOW, "--input", "/dev/null", *ASK], "is not a file"),
        (["run", WORKFLOW, "--input", "gopher://x/y", *ASK], "gopher:// is no file, and `run` reads nothing else"),
        (["run", WORKFLOW, "--input", "http://[", *ASK], "is no file and no URL"),
        (["run", WORKFLOW, "--input", "a" * 300, *ASK], "no file aaa"),
        (["story", "s", "1", "--store", "a" * 300], "there is no store"),
        (["search", "x", "--store", "a" * 300], "there is no store"),
        (["search", " "], "there is nothing to search for"),
        (["search", "x" * 2001], "give at most 2000"),
        (["search", "x", "--num", "0"], "not a number from 1 to 100"),
        (["run", "no-such-workflow.toml", "--input", STATION, *ASK], "cannot read workflow"),
        (["run", str(STATION), "--input", STATION, *ASK], "not UTF-8 text"),
    ],
)
def test_wrong_words_get_one_line_and_exit_2(
    arguments: list[str | Path], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert said in one_line(err)


@pytest.mark.parametrize(
    ("workflow", "said"),
    [
        (TWO_STAGES.format(one=SCENES.format("two"), two=SCENES.format("one")), "cycle"),
        (TWO_STAGES.format(one=SCENES.format("media"), two=SCENES.format("three")), "'three', which is no stage"),
        (TWO_STAGES.format(one=SCENES.format("media"), two='capabilty = "x"'), "stages.two: object contains unknown"),
        (TWO_STAGES.format(one=SCENES.format("media"), two='capability = "see_ghosts"'), "no capability 'see_ghosts'"),
        (
            TWO_STAGES.format(one=SCENES.format("media"), two=SCENES.format("one")),
            "takes Media, but 'one' gives Scenes",
        ),
        ("name = ", "not valid TOML"),
        ("name = 3\n[stages.a]\ncapability='x'", "expected `str`"),
        ('name = "x"\n[stages]\n', "has no stages"),
    ],
)
def test_a_wrong_workflow_gets_one_line_and_exit_2(
    workflow: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PENSTOCK_STORE", str(tmp_path / "store"))
    path = tmp_path / "workflow.toml"
    path.write_text(workflow)
    assert main(["run", str(path), "--input", str(STATION)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert said in one_line(err)


@pytest.mark.parametrize(
    ("name", "content"), [("empty.mp4", b""), ("text.mp4", b"These are words, not pictures.\n" * 99)]
)
def test_what_is_no_media_gets_one_line_and_exit_2(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    done = penstock("run", WORKFLOW, "--input", tmp_path / name, *ASK, store=tmp_path / "store")
    assert (done.returncode, done.stdout) == (2, "")
    assert name in one_line(done.stderr)


def test_no_server_at_the_url_is_a_failure(tmp_path: Path) -> None:
    done = penstock("run", WORKFLOW, "--input", STATION, *ASK, "--nats", "nats://127.0.0.1:9", store=tmp_path / "store")
    assert (done.returncode, done.stdout) == (4, "")
    assert "no NATS server answers at nats://127.0.0.1:9" in one_line(done.stderr)


@pytest.mark.anyio
async def test_a_server_of_one_s_own_serves_as_well(nats_url: str, tmp_path: Path) -> None:
    path = make(tmp_path / "clip.mp4", video="libx264", seconds=2.0)
    words = command(["run", WORKFLOW, "--input", path, *ASK, "--nats", nats_url, "--json"])
    done = await anyio.run_process(words, env=environment(tmp_path / "store"), check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["answer"] == "not in the video"
    async with connect(nats_url) as link:
        ledger = await open_ledger(link)
        (kept,) = await ledger.subjects("penstock.answers.>")
        stored = await ledger.get(kept)
    assert stored is not None
    assert stored.data == done.stdout.strip()
    assert not (tmp_path / "store" / "server.json").exists()


ODD = {
    "silent.mp4": {"video": "libx264"},
    "blind.m4a": {"audio": "aac"},
    "odd.mkv": {"video": "libx264", "size": (67, 49), "pix_fmt": "yuv444p"},
    "one.mp4": {"video": "libx264", "num_pictures": 1},
    "uneven.mkv": {"video": "libx264", "times": lambda i: i * 0.04 + (i % 5) * 0.007, "audio": "aac"},
    "deep.mkv": {"video": "libx265", "pix_fmt": "yuv420p10le", "options": {"x265-params": "log-level=none"}},
    "turned.mp4": {"video": "libx264", "rotate": 90, "size": (96, 64)},
}


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared") / "store"


@pytest.mark.parametrize("name", ODD)
def test_odd_files_are_answered_without_a_gap(name: str, tmp_path: Path, shared_store: Path) -> None:
    path = make(tmp_path / name, seconds=2.0, **ODD[name])  # type: ignore[arg-type]
    done = penstock("run", WORKFLOW, "--input", path, *ASK, "--json", store=shared_store)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["answer"] == "not in the video"
    assert answer["gaps"] == []


def test_damaged_files_end_with_an_answer_or_one_line(tmp_path: Path, shared_store: Path) -> None:
    options = {"g": "12"}
    whole = make(tmp_path / "whole.mp4", video="libx264", audio="aac", seconds=3.0, options=options).read_bytes()
    cut_short = whole[: len(whole) // 2]
    for number, content in enumerate([cut_short, *(mutated(whole, seed) for seed in range(3))]):
        path = tmp_path / f"damaged-{number}.mp4"
        path.write_bytes(content)
        done = penstock("run", WORKFLOW, "--input", path, *ASK, "--json", store=shared_store)
        assert "Traceback" not in done.stderr
        if done.returncode == 0:
            assert json.loads(done.stdout)["answer"] == "not in the video"
        else:
            assert done.returncode == 2
            one_line(done.stderr)


@pytest.mark.anyio
async def test_interrupting_stops_at_once_and_leaves_nothing(tmp_path: Path, eventually: Eventually) -> None:
    store = tmp_path / "store"
    trace = tmp_path / "trace.jsonl"
    words = command(["run", WORKFLOW, "--input", STATION, *ASK, "--segment", "2s", "--trace", trace])
    process = await anyio.open_process(words, env=environment(store))
    await eventually(lambda: b'"process"' in trace.read_bytes() if trace.exists() else False)  # a stage is at work
    assert processes_of(store)
    process.send_signal(signal.SIGINT)
    with anyio.fail_after(10):
        assert await process.wait() == 130
    assert processes_of(store) == []
    await process.aclose()


def processes_of(store: Path) -> list[int]:
    """Live processes that were started for this store, whoever their parent is."""
    found = []
    mark = f"PENSTOCK_STORE={store}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (
                mark in (folder / "environ").read_bytes()
                and (folder / "stat").read_text().split(")")[1].split()[0] != "Z"
            ):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def test_doctor_and_operators_say_what_is_here(tmp_path: Path) -> None:
    doctor = penstock("doctor", "--json", store=tmp_path)
    found = {row["what"]: row for row in map(json.loads, doctor.stdout.splitlines())}
    assert doctor.returncode == 0
    assert found["NATS"]["ok"]
    assert "software h264" in found["decoding"]["found"]
    assert all(row["ok"] or row["advice"] for row in found.values())
    rows = [json.loads(line) for line in penstock("operators", "--json", store=tmp_path).stdout.splitlines()]
    assert {row["capability"] for row in rows} == set(installed().capabilities)
    assert {"answer_question", "detect_objects", "speak", "transcribe"} <= {row["capability"] for row in rows}
    assert any(row["rung"] == "pocketsphinx" and row["missing"] is None for row in rows)
    people = penstock("operators", store=tmp_path)
    assert "whisper-large-v3" in people.stdout
    assert people.stderr == ""


def test_answers_for_people_can_be_written_to_a_file(tmp_path: Path, shared_store: Path) -> None:
    silent = make(tmp_path / "silent.mp4", video="libx264", seconds=2.0)
    done = penstock("run", WORKFLOW, "--input", silent, *ASK, store=shared_store)
    assert done.returncode == 0, done.stderr
    assert ASK[1] in done.stdout
    assert "not in the video" in done.stdout
    assert "not in the video" not in done.stderr
    assert "note:" not in done.stdout


def test_a_run_that_finds_nothing_says_so(tmp_path: Path, shared_store: Path) -> None:
    workflow = tmp_path / "text.toml"
    scenes, text = SCENES.format("media"), 'capability = "read_text"\ninputs = { media = "media", scenes = "one" }'
    workflow.write_text(TWO_STAGES.format(one=scenes, two=text))
    grey = make(tmp_path / "grey.mp4", video="libx264", seconds=1.0)
    done = penstock("run", workflow, "--input", grey, store=shared_store)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "nothing was found"
    assert done.stdout == ""
