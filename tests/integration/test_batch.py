"""Many files in one run: each is answered or fails for itself, and what was done is not done again."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from media_zoo import make

from engine.spec.workflow import Stage, Workflow
from penstock import batch
from penstock.batch import Outcome, files_among, run_many
from penstock.running import Options
from streams.errors import UserError

pytestmark = pytest.mark.anyio
WORKFLOW = Workflow(
    name="read",
    stages={
        "speech": Stage(capability="transcribe", inputs={"media": "media"}),
        "answer": Stage(capability="answer_question", inputs={"evidence": ("speech",)}, params={"question": "$ask"}),
    },
)
ASK = "What does breakfast cost?"


def clip(path: Path, text: str) -> Path:
    return make(path, video="libx264", audio="aac", seconds=2, captions=((0.1, 1.9, text),))


def written(folder: Path) -> Path:
    path = folder / "read.toml"
    path.write_text(
        'name = "read"\n[stages.speech]\ncapability = "transcribe"\ninputs = { media = "media" }\n[stages.answer]\n'
        'capability = "answer_question"\ninputs = { evidence = "speech" }\nparams = { question = "$ask" }\n'
    )
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "recordings"
    made.mkdir()
    for number, text in enumerate(("Breakfast costs eleven euros.", "The train leaves at nine.", "Breakfast is free.")):
        clip(made / f"{number}.mkv", text)
    (made / "3.mkv").write_bytes(b"this is no recording")
    return made


async def test_each_file_is_answered_or_fails_for_itself(folder: Path, tmp_path: Path) -> None:
    told: list[str] = []
    options = Options(segment_s=1.0, store=tmp_path / "store")
    files = files_among([str(folder)])
    outcomes = await run_many(WORKFLOW, files, [ASK], options, lambda outcome: told.append(outcome.input))
    assert [Path(outcome.input).name for outcome in outcomes] == ["0.mkv", "1.mkv", "2.mkv", "3.mkv"]
    assert sorted(told) == [str(file) for file in files]
    assert [outcome.is_done for outcome in outcomes] == [True, True, True, False]
    assert "cannot be opened as media" in outcomes[3].error
    assert [len(outcome.answers) for outcome in outcomes] == [1, 1, 1, 0]
    assert outcomes[0].answers[0].answer == "Breakfast costs eleven euros."
    assert len({outcome.stream for outcome in outcomes[:3]}) == 3

    again = await run_many(WORKFLOW, files, [ASK], options)
    assert [o.stream for o in again] == [o.stream for o in outcomes[:3]] + [""]
    assert [o.answers[0].answer for o in again[:3]] == [o.answers[0].answer for o in outcomes[:3]]
    assert sum(answer.compute_s for o in again for answer in o.answers) <= sum(
        answer.compute_s for o in outcomes for answer in o.answers
    )


async def test_what_nobody_foresaw_of_one_file_stops_no_other(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan_it = batch.planned_for

    async def planned(workflow: Workflow, path: Path, options: Options) -> object:
        if path.name == "0.mkv":
            raise ZeroDivisionError("of a decoder")
        return await plan_it(workflow, path, options)

    monkeypatch.setattr(batch, "planned_for", planned)
    files = files_among([str(folder / "0.mkv"), str(folder / "2.mkv")])
    outcomes = await run_many(WORKFLOW, files, [ASK], Options(segment_s=1.0, store=tmp_path / "store"))
    assert outcomes[0] == Outcome(str(files[0]), error="ZeroDivisionError: of a decoder", took_s=outcomes[0].took_s)
    assert outcomes[1].answers[0].answer == "Breakfast is free."


def test_what_is_meant_is_each_file_once_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    one = str(folder / "1.mkv")
    assert [file.name for file in files_among([one, str(folder), one])] == ["1.mkv", "0.mkv", "2.mkv", "3.mkv"]
    (tmp_path / "empty").mkdir()
    wrongs = {"empty": "there are no media files in this folder", "no": "there is no such file"}
    for wrong, said in wrongs.items():
        with pytest.raises(UserError, match=said):
            files_among([one, str(tmp_path / wrong)])


def run_it(folder: Path, *more: str) -> list[str]:
    workflow = str(written(folder.parent))
    command = [sys.executable, "-m", "penstock", "run", workflow, "--input", str(folder), "--ask", ASK]
    return [*command, "--segment", "1s", "--store", str(folder.parent / "store"), *more]


def test_the_command_says_what_became_of_each(folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        run_it(folder, "--json", "--report", str(tmp_path / "report")), capture_output=True, text=True
    )
    assert done.returncode == 4
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {Path(line["input"]).name for line in lines} == {"0.mkv", "1.mkv", "2.mkv"}
    assert {line["answer"] for line in lines if line["input"].endswith("0.mkv")} == {"Breakfast costs eleven euros."}
    *failed, last = done.stderr.splitlines()
    assert last == "4 files: 3 answered, 1 failed"
    assert len(failed) == 1
    assert failed[0].startswith(f"failed {folder / '3.mkv'}: cannot be opened as media")
    report = [json.loads(line) for line in (tmp_path / "report").read_text().splitlines()]
    assert {line["input"]: line["state"] for line in report} == {
        str(folder / f"{number}.mkv"): "failed" if number == 3 else "answered" for number in range(4)
    }
    (folder / "3.mkv").unlink()
    people = subprocess.run(run_it(folder), capture_output=True, text=True)
    assert people.returncode == 0
    assert people.stderr.splitlines() == ["3 files: 3 answered, 0 failed"]
    for number in range(3):
        assert str(folder / f"{number}.mkv") in people.stdout


def test_an_interrupted_run_ends_at_once_and_goes_on_where_it_was(folder: Path, tmp_path: Path) -> None:
    report = tmp_path / "report"
    os.mkfifo(report)  # to be read as it is written
    process = subprocess.Popen(run_it(folder, "--json", "--report", str(report)), stdout=subprocess.PIPE, text=True)
    with report.open() as told:
        while json.loads(told.readline())["state"] != "answered":
            pass
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode in (130, 4)  # 4: it was over before it was interrupted
    done = subprocess.run(run_it(folder, "--json"), capture_output=True, text=True)
    assert {Path(json.loads(line)["input"]).name for line in done.stdout.splitlines()} == {"0.mkv", "1.mkv", "2.mkv"}
    before = {(line["stream"], line["answer"]) for line in map(json.loads, out.splitlines())}
    after = {(line["stream"], line["answer"]) for line in map(json.loads, done.stdout.splitlines())}
    assert before <= after


def test_a_report_that_cannot_be_written_is_said(folder: Path) -> None:
    done = subprocess.run(run_it(folder, "--report", "/no/such/folder/r"), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "cannot write a report to /no/such/folder/r" in done.stderr
