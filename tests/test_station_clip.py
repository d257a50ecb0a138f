"""The demo clip is what its ground truth says it is, and both are what the questions need."""

import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
CLIP = EXAMPLES / "station.mp4"
TRUTH: dict[str, Any] = json.loads((EXAMPLES / "station.json").read_text())
TRANSCRIPT, TEXTS, QUESTIONS = TRUTH["transcript"], TRUTH["texts"], TRUTH["questions"]
FPS = 25
SAMPLE_RATE = 48_000


@dataclass(frozen=True)
class Frames:
    """Every picture: its time and its luma, one pixel in 8 x 8. `luma`: int16 [N, 90, 160]."""

    times_s: npt.NDArray[np.float64]
    luma: npt.NDArray[np.int16]

    def between(self, start_s: float, end_s: float) -> npt.NDArray[np.int16]:
        return self.luma[(self.times_s >= start_s) & (self.times_s < end_s)]


def luma(frame: av.VideoFrame) -> npt.NDArray[np.int16]:
    rows = frame.to_ndarray()[: frame.height]  # the luma stands on top of the chroma
    return rows[::8, ::8].astype(np.int16)


@pytest.fixture(scope="module")
def frames() -> Frames:
    with av.open(CLIP) as container:
        container.streams.video[0].thread_type = "AUTO"
        seen = [(float(frame.time or 0), luma(frame)) for frame in container.decode(video=0)]
    return Frames(np.array([time_s for time_s, _ in seen]), np.stack([picture for _, picture in seen]))


@pytest.fixture(scope="module")
def sound() -> npt.NDArray[np.float32]:
    with av.open(CLIP) as container:
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])


def words(text: str) -> str:
    """Lower case, single spaces, a space at both ends: `words(a) in words(b)` matches whole words."""
    return f" {' '.join(re.findall(r'[a-z0-9.:$-]*[a-z0-9]', text.lower()))} "


def holds(text: str, question: Mapping[str, Any]) -> bool:
    """Whether one of the accepted answers stands in the text (a leading zero or dollar sign may stand before it)."""
    plain = re.sub(r"\s[$0]", " ", words(text))
    return any(words(accepted) in words(plain) for accepted in question["accepted"])


def on_screen(time_s: float) -> list[str]:
    return [text["text"] for text in TEXTS if text["start_s"] <= time_s < text["end_s"]]


def needing(*needs: str) -> list[dict[str, Any]]:
    return [question for question in QUESTIONS if question["needs"] == list(needs)]


# --- the file --------------------------------------------------------------------------------------------


def test_the_clip_is_h264_and_aac_of_the_promised_size() -> None:
    assert CLIP.stat().st_size <= 4_000_000
    with av.open(CLIP) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert (video.width, video.height, video.pix_fmt) == (1280, 720, "yuv420p")
        assert video.average_rate == FPS
        assert (audio.rate, audio.channels) == (SAMPLE_RATE, 1)


def test_it_lasts_as_long_as_it_says(frames: Frames, sound: npt.NDArray[np.float32]) -> None:
    duration_s = TRUTH["duration_s"]
    assert 75 <= duration_s <= 90
    assert len(frames.times_s) == round(duration_s * FPS)
    assert np.allclose(np.diff(frames.times_s), 1 / FPS, atol=1e-4)
    assert len(sound) / SAMPLE_RATE == pytest.approx(duration_s, abs=0.05)


def test_every_keyframe_opens_a_closed_group_of_at_most_two_seconds() -> None:
    with av.open(CLIP) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        packets = [(packet.pts, packet.is_keyframe) for packet in container.demux(stream) if packet.pts is not None]
        tick_s = stream.time_base
    opens = [n for n, (_, keyframe) in enumerate(packets) if keyframe]
    times_s = [packets[n][0] * tick_s for n in opens]
    assert times_s[0] == 0
    assert max(after - before for before, after in pairwise([*times_s, Fraction(str(TRUTH["duration_s"]))])) <= 2
    for first, after in pairwise([*opens, len(packets)]):
        group = [pts for pts, _ in packets[first:after]]
        assert min(group) == group[0]
        assert all(pts > max(group) for pts, _ in packets[after:])


# --- the pictures ----------------------------------------------------------------------------------------


def test_the_cuts_are_where_the_truth_says_and_nowhere_else(frames: Frames) -> None:
    change = np.abs(np.diff(frames.luma, axis=0)).mean(axis=(1, 2))
    cuts = [round(cut_s * FPS) for cut_s in TRUTH["cuts"]]
    assert len(cuts) >= 4
    at_cuts = change[[cut - 1 for cut in cuts]]
    elsewhere = np.delete(change, [cut - 1 for cut in cuts])
    assert at_cuts.min() > 2 * elsewhere.max()


def test_at_least_five_scenes_are_visually_distinct(frames: Frames) -> None:
    edges = [0.0, *TRUTH["cuts"], TRUTH["duration_s"]]
    middles = [frames.luma[round((start + end) / 2 * FPS)] for start, end in pairwise(edges)]
    assert len(middles) >= 5
    for n, one in enumerate(middles):
        assert all(np.abs(one - other).mean() > 20 for other in middles[:n])


def test_a_train_crosses_the_picture_from_right_to_left(frames: Frames) -> None:
    (sign,) = [text for text in TEXTS if text["text"] == "PLATFORM 14"]
    track = frames.between(sign["start_s"], sign["end_s"])[:, 44:56]  # the rows at the height of the cars
    moved = np.abs(track - track[0]).mean(axis=1) > 15
    arrivals = [int(np.argmax(moved[:, column])) for column in (155, 120, 60, 30, 4)]
    assert arrivals[0] > 0
    assert all(before < after for before, after in pairwise(arrivals))
    assert not moved[-1].any()  # and leaves it


# --- the sound -------------------------------------------------------------------------------------------


def test_the_sentences_are_heard_when_the_truth_says(sound: npt.NDArray[np.float32]) -> None:
    def loudness(start_s: float, end_s: float) -> float:
        return float(np.abs(sound[round(start_s * SAMPLE_RATE) : round(end_s * SAMPLE_RATE)]).max())

    assert len(TRANSCRIPT) >= 8
    for spoken in TRANSCRIPT:
        assert loudness(spoken["start_s"], spoken["end_s"]) > 0.3
    ends = [0.0, *(spoken["end_s"] for spoken in TRANSCRIPT)]
    starts = [*(spoken["start_s"] for spoken in TRANSCRIPT), TRUTH["duration_s"]]
    for pause_start_s, pause_end_s in zip(ends, starts, strict=True):
        assert pause_end_s - pause_start_s >= 0.5
        assert loudness(pause_start_s + 0.02, pause_end_s - 0.02) < 0.03


def test_the_voices_alternate_and_no_sentence_crosses_a_cut() -> None:
    assert {spoken["voice"] for spoken in TRANSCRIPT} == {"kal16", "rms"}
    assert all(before["voice"] != after["voice"] for before, after in pairwise(TRANSCRIPT))
    for spoken in TRANSCRIPT:
        assert not any(spoken["start_s"] <= cut_s <= spoken["end_s"] for cut_s in TRUTH["cuts"])


# --- the ground truth ------------------------------------------------------------------------------------


def test_it_is_the_truth_of_the_script_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    script = importlib.import_module("make_station")
    sentences = [(sentence.voice, sentence.text) for scene in script.SCENES for sentence in scene.sentences]
    assert [(spoken["voice"], spoken["text"]) for spoken in TRANSCRIPT] == sentences
    assert [text["text"] for text in TEXTS] == [text for scene in script.SCENES for text in scene.texts]
    assert [question["question"] for question in QUESTIONS] == [question.question for question in script.QUESTIONS]


def test_every_text_is_on_screen_for_one_whole_scene_and_at_least_four_are_not_spoken() -> None:
    scenes = list(pairwise([0.0, *TRUTH["cuts"], TRUTH["duration_s"]]))
    assert {(text["start_s"], text["end_s"]) for text in TEXTS} == set(scenes)
    spoken = words(" ".join(sentence["text"] for sentence in TRANSCRIPT))
    assert len({text["text"] for text in TEXTS if words(text["text"]) not in spoken}) >= 4


def test_twelve_questions_three_join_speech_and_picture_and_two_have_no_answer() -> None:
    assert len({question["question"] for question in QUESTIONS}) == 12
    assert len(needing("speech", "text")) == 3
    assert len(needing("speech")) == 5
    assert len(needing("text")) == 2
    assert [question["answerable"] for question in QUESTIONS].count(False) == len(needing()) == 2
    for question in QUESTIONS:
        assert set(question) == {"question", "answerable", "accepted", "start_s", "end_s", "needs"}
        assert question["question"].endswith("?")
        assert question["accepted"] == [answer.lower() for answer in question["accepted"]] != []


@pytest.mark.parametrize("question", needing("speech"), ids=lambda question: question["question"])
def test_what_needs_speech_alone_is_said_once_and_never_shown(question: dict[str, Any]) -> None:
    (said,) = [spoken for spoken in TRANSCRIPT if holds(spoken["text"], question)]
    assert (question["start_s"], question["end_s"]) == (said["start_s"], said["end_s"])
    assert not any(holds(text["text"], question) for text in TEXTS)


@pytest.mark.parametrize("question", needing("text"), ids=lambda question: question["question"])
def test_what_needs_text_alone_is_shown_once_and_never_said(question: dict[str, Any]) -> None:
    (shown,) = [text for text in TEXTS if holds(text["text"], question)]
    assert (question["start_s"], question["end_s"]) == (shown["start_s"], shown["end_s"])
    assert not any(holds(spoken["text"], question) for spoken in TRANSCRIPT)


@pytest.mark.parametrize("question", needing("speech", "text"), ids=lambda question: question["question"])
def test_what_needs_both_is_shown_while_a_sentence_says_what_it_means(question: dict[str, Any]) -> None:
    (said,) = [spoken for spoken in TRANSCRIPT if spoken["start_s"] == question["start_s"]]
    assert said["end_s"] == question["end_s"]
    (shown,) = [text for text in on_screen(said["start_s"]) if holds(text, question)]
    assert shown in on_screen(said["end_s"])
    assert not any(holds(spoken["text"], question) for spoken in TRANSCRIPT)
    (value,) = re.findall(r"PLATFORM \d+|\$\d+\.\d+|\d+:\d+", shown)
    alike = re.compile(re.sub(r"\d+", r"\\d+", value).replace("$", r"\$"))
    assert sum(bool(alike.search(text["text"])) for text in TEXTS) > 1  # so the picture alone cannot tell


@pytest.mark.parametrize("question", needing(), ids=lambda question: question["question"])
def test_what_has_no_answer_is_asked_in_the_words_of_the_clip(question: dict[str, Any]) -> None:
    assert question["accepted"] == ["not in the video"]
    assert question["start_s"] is question["end_s"] is None
    said = words(" ".join(entry["text"] for entry in [*TRANSCRIPT, *TEXTS]))
    assert sum(f" {word} " in said for word in re.findall(r"[a-z]{5,}", question["question"].lower())) >= 2
