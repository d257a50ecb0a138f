"""SPEAK: text as speech, by a small voice that is a package of its own (hibari, 24 kHz, English) or by espeak-ng, the
floor that Debian has.

Each sentence is a piece of sound of its own; one follows the other from where what they reply to ends. Sound is Opus in
Ogg, written so that the same sound gives the same bytes. The voice's noise has a fixed seed: the same text gives the
same sound.
"""

import io
import shutil
import subprocess
import tempfile
import wave
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from engine.spec.operator import Device, Inputs, Machine, Operator, Rung, Settings
from operators import weights
from operators.capabilities import SPEAK, SpeakParams
from operators.heard import Spoken, Voice
from streams.errors import Permanent, Transient
from streams.records import Evidence, MediaInfo

NAME = "hibari-heart"
RATE = 48_000  # of Opus
BIT_RATE = 24_000
MAX_CHARS = 2000  # of what is spoken for one observation
WORDS_A_MINUTE = 165
ESPEAK = ("espeak-ng", "espeak")
ESPEAK_S = 60.0

Sound = NDArray[np.float32]


class Speaking(Operator):
    """What all voices have in common."""

    capability = SPEAK
    timeout_s = 120.0

    def process(self, batch: Sequence[Inputs]) -> Sequence[Voice]:
        return [self._voice(item.here("text"), item.params) for item in batch]

    def _voice(self, said: Evidence, params: SpeakParams) -> Voice:
        spoken: list[Spoken] = []
        at_ns = 0
        for each in said.observations:
            at_ns = max(at_ns, each.end_ns)
            for sentence in self.sentences(" ".join(each.text.split())[:MAX_CHARS]):
                sound, rate = self.sound(sentence, params.speed)
                lasts_ns = len(sound) * 1_000_000_000 // rate
                if lasts_ns:
                    audio = opus(sound, rate)
                    spoken.append(Spoken(start_ns=at_ns, end_ns=at_ns + lasts_ns, text=sentence, audio=audio))
                at_ns += lasts_ns
        return Voice(observations=tuple(spoken))

    @abstractmethod
    def sentences(self, text: str) -> Sequence[str]:
        """A text in pieces that are spoken by themselves."""

    @abstractmethod
    def sound(self, sentence: str, speed: float) -> tuple[Sound, int]:
        """float32 [samples], -1..1, mono, and how many there are a second."""


class SmallVoice(Speaking):
    """Speaks with hibari's American voice."""

    name = "hibari"
    _hibari: Any

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        """Quality: 4.43 of 5 by UTMOS, as its makers say; read back word for word by Whisper base."""
        return (Rung("hibari-heart", 0.88, Settings()),)

    @classmethod
    def missing(cls, knobs: Settings, machine: Machine, media: MediaInfo | None) -> str | None:
        return weights.lacking(NAME)

    def load(self, device: Device) -> None:
        model = weights.folder_of(NAME) / "hibari.onnx"
        from hibari import Hibari

        self._hibari = Hibari(model=str(model), threads=device.num_threads)

    def sentences(self, text: str) -> Sequence[str]:
        return list(self._hibari.split_sentences(text))

    def sound(self, sentence: str, speed: float) -> tuple[Sound, int]:
        made: Sound = self._hibari(sentence, speed=speed, seed=0)
        return made, int(self._hibari.sample_rate)


class Espeak(Speaking):
    """Speaks with espeak-ng."""

    name = "espeak"

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return (Rung("espeak-ng", 0.4, Settings()),)  # understood, and nobody takes it for a voice: not measured

    @classmethod
    def missing(cls, knobs: Settings, machine: Machine, media: MediaInfo | None) -> str | None:
        return None if _espeak() else "espeak-ng is not here: install the system's package of that name"

    def sentences(self, text: str) -> Sequence[str]:
        return [text] if text else []

    def sound(self, sentence: str, speed: float) -> tuple[Sound, int]:
        program = _espeak()
        if program is None:
            raise Permanent("espeak-ng is not here: install the system's package of that name")
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "spoken.wav"
            how = ["-w", str(place), "-s", str(round(WORDS_A_MINUTE * speed)), "--stdin"]
            try:
                done = subprocess.run(
                    [program, *how], input=sentence.encode(), capture_output=True, timeout=ESPEAK_S, check=False
                )
                with wave.open(str(place)) as file:
                    rate = file.getframerate()
                    samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
            except (OSError, EOFError, wave.Error, subprocess.TimeoutExpired) as error:
                raise Transient(f"{program} does not speak: {error}") from error
        if done.returncode:
            raise Transient(f"{program} does not speak: exit {done.returncode}")
        return samples.astype(np.float32) / np.float32(32768), rate


def _espeak() -> str | None:
    return next((path for name in ESPEAK if (path := shutil.which(name))), None)


def opus(sound: Sound, rate: int) -> bytes:
    """An Ogg file with one mono Opus stream. sound: float32 [samples], -1..1."""
    out = io.BytesIO()
    how = {"fflags": "+bitexact", "serial_offset": "1"}  # else each file has a number of its own
    with av.open(out, "w", format="ogg", options=how) as container:
        stream: Any = container.add_stream("libopus", rate=RATE, layout="mono", options={"flags": "+bitexact"})
        stream.bit_rate = BIT_RATE
        resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE, frame_size=stream.frame_size or 960)
        samples = (np.clip(sound, -1, 1) * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = rate
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return out.getvalue()
