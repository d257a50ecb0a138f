"""Transcribes speech with Whisper (faster-whisper, CTranslate2), in six sizes of one implementation.

Quality is 1 - word error rate on LibriSpeech test-other, rounded: tiny 17 %, base 12 %, small 8 %, medium 6 %,
large 5 % (the paper's greedy figures; large-v3 and its turbo, which is a little worse, are set beside large-v2).
Source: Radford et al., Robust Speech Recognition via Large-Scale Weak Supervision, arXiv 2212.04356.

Decoding is greedy in temperature (0, no fallback) and carries no text from one segment to the next, so the same audio
gives the same words. A region is heard in one go, from its first utterance to its last: the encoder works on 30 s
windows whatever they hold, and pure silence, on which Whisper invents text, is never shown to it.

Weights come from PENSTOCK_WHISPER_DIR/<size>, the local cache of the hub, or the hub itself, in that order.
"""

import functools
import http.client
import os
import threading
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta

from engine.spec.operator import Device, Inputs, Machine, Map, Operator, Rung, Settings
from operators.capabilities import TRANSCRIBE, Speech, Transcript, Word
from operators.speech.regions import RATE, SPEECH_AUDIO, Clip, region_of, time_ns, utterances
from streams.errors import Permanent, Transient
from streams.records import MediaInfo

Size = Literal["large-v3", "large-v3-turbo", "medium", "small", "base", "tiny"]

QUALITY: dict[Size, float] = {
    "large-v3": 0.95,
    "large-v3-turbo": 0.945,
    "medium": 0.94,
    "small": 0.92,
    "base": 0.88,
    "tiny": 0.83,
}
SIZE_GB: dict[Size, float] = {  # of the float16 weights that faster-whisper fetches
    "large-v3": 3.1,
    "large-v3-turbo": 1.6,
    "medium": 1.5,
    "small": 0.5,
    "base": 0.15,
    "tiny": 0.08,
}
NEEDS_GPU = ("large-v3", "large-v3-turbo", "medium")
MAX_HUB_WAIT_S = 2.0
WEIGHTS_DIR = "PENSTOCK_WHISPER_DIR"


class WhisperKnobs(Settings, frozen=True):
    size: Size = "small"
    beam_size: Annotated[int, Meta(ge=1, le=16)] = 5


class Whisper(Operator):
    """What is said, by Whisper: any of its languages, with punctuation and the time of each word."""

    capability = TRANSCRIBE
    name = "faster-whisper"
    scope = Map(before=1, after=1)
    timeout_s = 600.0
    devices = ("cuda", "cpu")

    Knobs = WhisperKnobs
    knobs: WhisperKnobs
    _model: Any = None

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return tuple(Rung(f"whisper-{size}", quality, WhisperKnobs(size=size)) for size, quality in QUALITY.items())

    @classmethod
    def missing(cls, knobs: WhisperKnobs, machine: Machine, media: MediaInfo | None) -> str | None:
        if knobs.size in NEEDS_GPU and not (machine.has_gpu and num_gpus()):
            return "whisper from medium up needs a GPU: on a CPU it is slower than real time"
        if local_weights(knobs.size) is None and not hub_answers():
            return "the weights of whisper are not on this machine and the hub cannot be reached"
        return None

    @classmethod
    def notice(cls, knobs: WhisperKnobs) -> str | None:
        if local_weights(knobs.size) is None:
            return f"fetches its weights first, {SIZE_GB[knobs.size]:g} GB"
        return None

    def demands(self) -> tuple[Any, ...]:
        return (SPEECH_AUDIO,)

    def load(self, device: Device) -> None:
        import faster_whisper

        try:
            self._model = faster_whisper.WhisperModel(
                str(local_weights(self.knobs.size) or fetched_weights(self.knobs.size)),
                device=device.kind,
                device_index=device.index,
                compute_type="int8" if device.kind == "cpu" else "float16",
                cpu_threads=device.num_threads,
            )
        except (RuntimeError, ValueError) as error:
            raise Permanent(f"whisper {self.knobs.size} cannot be loaded on {device.kind}: {error}") from error

    def process(self, batch: Sequence[Inputs]) -> Sequence[Transcript]:
        return [self._transcript(inputs) for inputs in batch]

    def _transcript(self, inputs: Inputs) -> Transcript:
        languages = self._model.supported_languages
        if inputs.params.language not in languages:
            raise Permanent(f"whisper {self.knobs.size} does not know language {inputs.params.language!r}")
        region = region_of(inputs)
        spoken = utterances(region)
        if not spoken:
            return Transcript()
        clip = region.between(spoken[0].first, spoken[-1].end)
        return Transcript(observations=tuple(self._heard(clip, inputs.params.language)))

    def _heard(self, clip: Clip, language: str) -> list[Speech]:
        try:
            passages, _ = self._model.transcribe(
                clip.samples.astype(np.float32) / 32768.0,
                language=language,
                beam_size=self.knobs.beam_size,
                temperature=0.0,
                condition_on_previous_text=False,
                word_timestamps=True,
            )
            return [speech for passage in passages if (speech := _speech(passage, clip)) is not None]
        except RuntimeError as error:
            raise Transient(f"whisper {self.knobs.size} failed: {error}") from error


def _speech(passage: Any, clip: Clip) -> Speech | None:
    """A passage of the model's, in media time; None for one without words or in the silence behind the clip."""

    def at(seconds: float) -> int:
        return time_ns(min(clip.first + round(seconds * RATE), clip.end))

    text = passage.text.strip()
    if not text or at(passage.start) == time_ns(clip.end):
        return None
    words = tuple(Word(at(word.start), at(word.end), word.word.strip()) for word in passage.words or ())
    confidence = sum(word.probability for word in passage.words) / len(words) if words else np.exp(passage.avg_logprob)
    return Speech(
        start_ns=words[0].start_ns if words else at(passage.start),
        end_ns=words[-1].end_ns if words else at(passage.end),
        text=text,
        confidence=round(min(1.0, float(confidence)), 4),
        words=words,
    )


def local_weights(size: str) -> Path | None:
    """The folder on this machine that holds the weights of this size, None where none does."""
    own = Path(os.environ.get(WEIGHTS_DIR, "")) / size
    if WEIGHTS_DIR in os.environ and (own / "model.bin").is_file():
        return own
    from faster_whisper.utils import download_model

    try:
        cached = Path(download_model(size, local_files_only=True))
    except (OSError, ValueError):
        return None
    return cached if (cached / "model.bin").is_file() else None


def fetched_weights(size: str) -> Path:
    """The folder into which the weights were fetched from the hub. Raises Transient where they could not be."""
    from faster_whisper.utils import download_model

    try:
        return Path(download_model(size))
    except Exception as error:  # the hub's client lets through errors of every layer below it
        cause = " ".join(str(error).split())[:200]
        raise Transient(f"weights of whisper {size} cannot be fetched from the hub: {cause}") from error


@functools.cache
def hub_answers() -> bool:
    """Whether weights can be had from the hub. Asked once per process; decides within MAX_HUB_WAIT_S."""
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and answers(constants.ENDPOINT, MAX_HUB_WAIT_S)


def answers(url: str, max_wait_s: float) -> bool:
    """Whether a server, reached through the proxy if there is one, answers at `url` within the time, DNS included."""
    verdict: list[bool] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=max_wait_s):
                verdict.append(True)
        except (OSError, ValueError, http.client.HTTPException):
            verdict.append(False)

    asking = threading.Thread(target=ask, daemon=True, name="hub-answers")
    asking.start()
    asking.join(max_wait_s)
    return verdict == [True]


def num_gpus() -> int:
    """How many devices CTranslate2 can use: a driver without its libraries counts for nothing."""
    import ctranslate2

    return int(ctranslate2.get_cuda_device_count())
