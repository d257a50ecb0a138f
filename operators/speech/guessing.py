"""GUESS_SPEECH: what is being said, by Whisper over the last seconds of a stream, as each segment comes.

It is a guess: the last words may be half heard, and the next segment may show that they were others. What two guesses
in a row agree on is settled (operators.speech.drafting).

Whisper encodes 30 s, of which all but the window is silence, and that is most of what a guess would take. It is given
the window and PADDING_S of silence: its encoder's attention takes any length, and of the silence it needs some to know
that nothing follows. With tiny.en a guess takes half as long so, on one core 0.3 s, and two or three more words of 100
are others than with all 30 s; with 1 s of padding more are (bench/drafts.py). The larger models take longer on a
processor than the segments that make it worth while.
"""

from collections.abc import Sequence
from math import ceil
from typing import Any, ClassVar

from engine.spec.operator import Device, Inputs, Machine, Rung, Scope, Window
from operators.capabilities import GUESS_SPEECH
from operators.heard import Guess, GuessedWord
from operators.speech.regions import RATE, Clip, around, time_ns
from operators.speech.whisper import LIVE_LOSS, QUALITY, Said, Whisper, WhisperKnobs, num_gpus, speech_in, with_margin
from streams.records import MediaInfo

WINDOW_S = 10.0
PADDING_S = 3.0
TOKENS, TOKENS_A_SECOND = 12, 8  # at most; five or so are usual
BRIEF_S, NUM_BRIEF = 0.03, 3
MIN_SURE = 0.2
FRAMES_A_SECOND = 100  # of Whisper's features; its encoder takes them by two


class Guessing(Whisper):
    """Guesses what is being said."""

    capability = GUESS_SPEECH
    name = "whisper-guesses"
    scope: ClassVar[Scope] = Window(10)
    version = 1
    max_batch = 1  # they are computed one by one, and each is wanted at once
    _num_frames = 0

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        """The sizes that can keep up: the smaller ones, greedy. Their quality is that of short cells."""
        return [
            Rung(f"whisper-{size}-guesses", round(quality - LIVE_LOSS, 3), WhisperKnobs(size=size, beam_size=1))
            for size, quality in sorted(QUALITY.items(), key=lambda each: -each[1])
        ]

    @classmethod
    def scope_of(cls, knobs: WhisperKnobs, segment_s: float) -> Scope:
        return Window(max(1, ceil(round(WINDOW_S / segment_s, 6))))

    @classmethod
    def missing(cls, knobs: WhisperKnobs, machine: Machine, media: MediaInfo | None) -> str | None:
        if not knobs.size.startswith("tiny") and not (machine.has_gpu and num_gpus()):
            return "guesses by whisper from base up need a GPU: on a CPU they take longer than what they are about"
        return super().missing(knobs, machine, media)

    @classmethod
    def shared_work(cls, knobs: WhisperKnobs, inputs: Inputs) -> frozenset[Any]:
        return frozenset()

    def load(self, device: Device) -> None:
        super().load(device)
        encode = self._model.encode
        self._model.encode = lambda features: encode(features[..., : self._num_frames])

    def process(self, batch: Sequence[Inputs]) -> Sequence[Guess]:  # type: ignore[override]
        return [self._guess(inputs) for inputs in batch]

    def _decoded(self, clip: Clip, language: str, **how: Any) -> list[Any]:
        """With no more tokens than anybody can say: over half a word the model may go on for ever."""
        num = ceil(TOKENS + TOKENS_A_SECOND * len(clip.samples) / RATE)
        return super()._decoded(clip, language, max_new_tokens=num, **how)

    def _words(self, window: Clip, language: str) -> list[Said]:
        """Of what the model hears, what begins while somebody speaks and is heard at all: in the silence behind that it
        invents words, or says once more what it heard, in no time."""
        span = speech_in(window)
        if span is None:
            return []
        clip = with_margin(window, *span)
        self._num_frames = round(len(clip.samples) / RATE + PADDING_S) * FRAMES_A_SECOND
        heard = (word for passage in self._passages(clip, language) for word in passage)
        return without_echo([word for word in heard if word.first < span[1]])

    def _guess(self, inputs: Inputs) -> Guess:
        own, audio = around(inputs)
        window = audio.between(max(audio.first, own.end - round(WINDOW_S * RATE)), own.end)
        said = self._words(window, self._language(inputs))
        words = (
            GuessedWord(time_ns(each.first), time_ns(each.end), each.text.strip(), round(each.probability, 3))
            for each in said
        )
        is_full = window.first > audio.first or len(window.samples) >= WINDOW_S * RATE
        return Guess(since_ns=time_ns(window.first), until_ns=time_ns(own.end), words=tuple(words), is_full=is_full)


def without_echo(words: Sequence[Said]) -> list[Said]:
    """The words up to where several follow one another faster than anybody speaks, without last ones that are hardly
    heard."""
    brief = [word.end - word.first < BRIEF_S * RATE for word in words]
    for at in range(len(words)):
        if all(brief[at : at + NUM_BRIEF]) and len(brief[at : at + NUM_BRIEF]) > 1:
            return without_echo(words[:at])
    return list(words) if not words or words[-1].probability >= MIN_SURE else without_echo(words[:-1])
