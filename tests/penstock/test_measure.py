"""`penstock profile`, `capacity` and `replay`, as a person and as a program use them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from clips import first_seconds

from engine.run.profiling import Effort
from engine.simulate import capacity
from engine.spec.profile import Profile
from engine.spec.recording import Outcome, RecordedPool, RecordedRung, RecordedStage, RecordedStream, Recording
from engine.spec.workflow import Stage, Workflow
from penstock.cli.main import main
from penstock.measuring import Measuring, fits, kept_profiles, profile
from streams.errors import UserError

pytestmark = pytest.mark.anyio

SCENES = 'name = "scenes"\n[stages.scenes]\ncapability = "detect_scenes"\ninputs = { media = "media" }\n'
SHORT = Effort(each_s=0.02)


def penstock(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


async def test_a_rung_is_measured_kept_and_measured_anew(tmp_path: Path) -> None:
    steps: list[str] = []
    how = Measuring(segment_s=5.0, max_segments=2, effort=SHORT, store=tmp_path, on_step=steps.append)
    assert kept_profiles((), how) == []
    (found,) = await profile(["detect_scenes"], how)
    assert (found.name, found.device, found.max_batch) == ("detect_scenes/content/content", "cpu", 1)
    assert found.media.startswith("station.mp4 ")
    assert found.alone_s > 0
    assert found.cpu_s > 0
    assert found.energy_j is not None
    assert found.cold_s is not None
    assert steps == ["detect_scenes", "detect_scenes/content/content"]
    assert kept_profiles(["content"], how) == [found]
    assert kept_profiles(["nobody"], how) == []


async def test_what_stands_behind_others_is_given_what_these_find(tmp_path: Path) -> None:
    steps: list[str] = []
    how = Measuring(max_segments=2, effort=SHORT, store=tmp_path, on_step=steps.append)
    (found,) = await profile(["track_objects"], how)
    assert found.name == "track_objects/nearest/nearest"
    assert steps[:2] == ["objects, for track_objects", "track_objects"] or "detect_objects, for track_objects" in steps


async def test_nobody_of_that_name_is_a_user_s_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no capability or implementation 'ears' that can run here; there are: "):
        await profile(["ears"], Measuring(store=tmp_path))
    with pytest.raises(UserError, match="no file "):
        await profile(["detect_scenes"], Measuring(like=tmp_path / "none.mp4", store=tmp_path))
    (tmp_path / "text.mp4").write_text("no film")
    with pytest.raises(UserError):
        await profile(["detect_scenes"], Measuring(like=tmp_path / "text.mp4", store=tmp_path))


async def test_streams_fit_as_many_as_the_measured_stages_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "ENOUGH", 2000)
    monkeypatch.setattr(Profile, "spread", 0.0)  # what times differ by on a busy machine is another's
    how = Measuring(segment_s=2.0, max_segments=2, effort=SHORT, store=tmp_path, anew=False)
    workflow = Workflow(name="scenes", stages={"scenes": Stage(capability="detect_scenes", inputs={"media": "media"})})
    found = await fits(workflow, max_lag_s=2.0, how=how)
    best = found.capacity.on_best
    assert best is not None
    assert 0.7 * found.num_cores / found.core_s < best.num_streams <= found.num_cores / found.core_s * 1.02
    assert best.in_time >= 0.99
    assert found.capacity.over.num_streams > best.num_streams
    assert found.least_latency_s > 0
    again = await fits(workflow, max_lag_s=2.0, how=how)
    kept = [each for each in again.profiles if each.capability == "detect_scenes"]
    assert kept == [each for each in found.profiles if each.capability == "detect_scenes"]  # not measured again
    with pytest.raises(UserError, match="slo 'swift': give latency<2s or quality>=good"):
        await fits(workflow, slo=["swift"], how=how)


async def test_a_clip_with_few_keyframes_comes_in_longer_segments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "ENOUGH", 2000)
    how = Measuring(segment_s=0.5, max_segments=2, effort=SHORT, store=tmp_path)
    workflow = Workflow(name="scenes", stages={"scenes": Stage(capability="detect_scenes", inputs={"media": "media"})})
    found = await fits(workflow, max_lag_s=2.0, how=how)
    assert found.segment_s > 0.6
    assert "it has a keyframe no more often" in found.notices[0]


def test_people_are_told_in_a_table_and_in_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(capacity, "ENOUGH", 2000)
    path = tmp_path / "scenes.toml"
    path.write_text(SCENES)
    store = ("--store", str(tmp_path / "store"))
    done = penstock("profile", "detect_scenes", "--quick", "--segment", "2s", *store)
    assert done.returncode == 0, done.stderr
    first, head, row = done.stdout.splitlines()
    assert "cores" in first or "core," in first
    assert head.split()[:4] == ["capability", "rung", "on", "batch"]
    assert row.split()[:4] == ["detect_scenes", "content", "cpu", "1"]
    assert "measuring detect_scenes/content/content" in done.stderr
    kept = penstock("profile", "--kept", "--json", *store)
    assert json.loads(kept.stdout)["rung"] == "content"
    assert not kept.stderr
    none = penstock("profile", "--kept", "--store", str(tmp_path / "other"))
    assert (none.returncode, none.stdout) == (0, "")
    assert "no profile is kept for this machine" in none.stderr
    fitting = ["capacity", str(path), "--quick", "--segment", "2s", "--max-lag", "2s", *store]
    assert main(fitting) == 0
    told = capsys.readouterr().out
    assert " streams fit: 99 of 100 answered within 2 s" in told
    assert "the cores bind: busy " in told
    assert "one more takes " in told
    assert "no schedule carries more than " in told
    assert main([*fitting, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["capacity"]["on_best"]["num_streams"] > 1
    wrong = penstock("capacity", str(tmp_path / "none.toml"), *store)
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (2, 1)


def recording() -> Recording:
    stages = {"look": RecordedStage(rungs=(RecordedRung(pool="look/big"),), inputs=("media",))}
    came_s = tuple(0.5 * turn for turn in range(40))
    return Recording(
        began_ns=1,
        seconds=20.0,
        num_cores=1,
        stages=stages,
        pools={"look/big": RecordedPool(batches=((1, 40, 0.6, 0.01),))},
        streams={"s": RecordedStream(stages=("look",), max_lag_s=2.0, came_s=came_s)},
        outcome=Outcome(num_segments=40, in_time=0.8, p50_s=1.5, p99_s=1.9),
        notices=("stages that reduce ranges are left out: total",),
    )


def test_a_recording_is_replayed_with_another_setting(tmp_path: Path) -> None:
    path = tmp_path / "it.json"
    path.write_bytes(msgspec.json.encode(recording()))
    done = penstock("replay", str(path), "--with", "cores=2")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == ["as it was", "as simulated", "with cores=2"]
    assert "80.0 %" in lines[1]
    assert "100.0 %" in lines[3]
    assert done.stderr == "note: stages that reduce ranges are left out: total\n"
    told = [json.loads(line) for line in penstock("replay", str(path), "--json").stdout.splitlines()]
    assert [each["what"] for each in told] == ["as it was", "as simulated"]


def wrongly(what: str) -> dict[str, Any]:
    """A recording with something that cannot be."""
    found = msgspec.to_builtins(recording())
    look = found["stages"]["look"]
    match what:
        case "rungs":
            look["rungs"] = []
        case "cycle":
            look["inputs"] = ["look"]
        case "pool":
            look["rungs"] = [{"pool": "x"}]
        case "media":
            found["stages"]["media"] = look
    return found


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        (None, (), "cannot read"),
        ("{", (), "is no recording: "),
        ("[]", (), "is no recording: "),
        ('{"streams": 1}', (), "is no recording: "),
        ("rungs", (), "length >= 1 - at `$.stages[...].rungs`"),
        ("cycle", (), "the stages look wait for each other"),
        ("pool", (), "stage 'look' has no pool 'x'"),
        ("media", (), "no stage can be called 'media'"),
        ("good", ("--with", "corse=3"), "--with 'corse=3': give NAME=VALUE"),
    ],
)
def test_what_is_wrong_is_a_line(tmp_path: Path, text: str | None, words: tuple[str, ...], said: str) -> None:
    path = tmp_path / "it.json"
    if text is not None:
        known = {"good", "rungs", "cycle", "pool", "media"}
        path.write_bytes(msgspec.json.encode(wrongly(text)) if text in known else text.encode())
    done = penstock("replay", str(path), *words)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert said in line


async def test_labels_say_how_good_a_rung_is(tmp_path: Path) -> None:
    """The first words of the clip that comes along, heard by the floor that is always there."""
    clip, labels = first_seconds(tmp_path / "clip.mp4", 4.5), tmp_path / "set.jsonl"
    words = "Good morning, and welcome to the railway station."
    labels.write_bytes(msgspec.json.encode({"media": str(clip), "words": words}) + b"\n\n")
    how = Measuring(like=clip, max_segments=1, effort=SHORT, store=tmp_path)
    (found,) = await profile(["pocketsphinx"], how, labels)
    assert found.quality is not None
    assert (found.quality.metric, found.quality.num) == ("word accuracy", 1)
    assert 0.7 < found.quality.value <= 1.0
    assert found.quality.labels.startswith("set.jsonl ")
    assert kept_profiles(["pocketsphinx"], how) == [found]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("detect_scenes", "{}", "--labels: detect_scenes cannot be judged; name one of transcribe"),
        ("transcribe", None, "cannot read labels "),
        ("transcribe", "\n", "nothing is labelled in it"),
        ("transcribe", "{", "set.jsonl, line 1: "),
        ("transcribe", '{"media": "a.wav", "wrods": "x"}', "set.jsonl, line 1: "),
        (
            "transcribe",
            '{"media": "a.wav", "text": ["x"]}',
            "line 1: transcribe is judged by 'words', which it does not",
        ),
    ],
)
async def test_labels_that_are_wrong_are_said_before_anything_is_measured(
    tmp_path: Path, name: str, text: str | None, said: str
) -> None:
    path, steps = tmp_path / "set.jsonl", list[str]()
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as error:
        await profile([name], Measuring(store=tmp_path, on_step=steps.append), path)
    assert said in str(error.value)
    assert steps == []
