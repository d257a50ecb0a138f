"""TRANSCRIBE by an endpoint that takes audio as OpenAI's /audio/transcriptions does: vLLM, Speaches, whisper.cpp's
server, a hosted one. Each model of the machine's endpoints that `hears` is a rung (operators.language.endpoints); its
quality is what its owner says, 1 - word error rate.

The stream is heard in the cells in which Whisper hears it (operators.speech.cells): the endpoint is sent what is spoken
of a cell, once, as a WAV file of 16 kHz, and nothing where nothing is. What it says is believed as far as its kind of
answer goes: words with their times where it gives them, else passages with theirs, else a text for all of the cell.
Text that repeats itself is not believed (operators.speech.whisper). Confidence is what the endpoint says of a passage,
exp(mean log probability), and where it says nothing the rung's quality.
"""

import hashlib
import io
import math
import wave
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, ClassVar

import anyio
import anyio.to_thread
import msgspec
from msgspec import Meta

from engine.spec.operator import Emit, Inputs, Machine, Map, Operator, Rung, Scope, Settings
from operators.capabilities import TRANSCRIBE
from operators.failures import failure
from operators.heard import Speech, Transcript
from operators.language.endpoints import Endpoint, endpoint_of, place, that_hear
from operators.language.served import until_up
from operators.lately import LatelyAwaited
from operators.posting import posted
from operators.speech.cells import Grid
from operators.speech.regions import RATE, SPEECH_AUDIO, Clip, around, time_ns
from operators.speech.whisper import GRIDS, Said, loops, sentences, spoken, whole
from streams.decoding import from_json
from streams.errors import Malformed, UserError
from streams.records import MediaInfo

MAX_BYTES = 1 << 20
GRID: Grid = GRIDS["whole"]
Seconds = Annotated[float, Meta(ge=0, le=1e6)]


class ListenKnobs(Settings, frozen=True):
    model: str = ""


class _Word(msgspec.Struct):
    word: str
    start: Seconds = 0.0
    end: Seconds = 0.0


class _Passage(msgspec.Struct):
    text: str = ""
    start: Seconds = 0.0
    end: Seconds = 0.0
    avg_logprob: float | None = None


class _Told(msgspec.Struct):
    """What an endpoint answers; OpenAI calls it verbose JSON."""

    text: str = ""
    segments: list[_Passage] | None = None
    words: list[_Word] | None = None


class Listening(Operator):
    """Has an endpoint hear what is said."""

    capability = TRANSCRIBE
    name = "listening"
    scope: ClassVar[Scope] = Map(before=5, after=5)
    runs_in = "async"
    max_in_flight = 64
    timeout_s = 3600.0  # each endpoint has its own

    Knobs = ListenKnobs
    knobs: ListenKnobs

    def __init__(self, knobs: ListenKnobs) -> None:
        super().__init__(knobs)
        self._limit: anyio.CapacityLimiter | None = None
        self._heard: LatelyAwaited[tuple[Speech, ...]] = LatelyAwaited(32)

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        there = [Rung(each.model, each.quality, ListenKnobs(model=each.model)) for each in that_hear()]
        return sorted(there, key=lambda rung: -rung.quality) or [Rung("endpoint", 0.0, ListenKnobs())]

    @classmethod
    def scope_of(cls, knobs: Any, segment_s: float) -> Scope:
        reach = math.ceil(round(GRID.reach_s / segment_s, 6))
        return Map(before=reach, after=reach)

    @classmethod
    def missing(cls, knobs: ListenKnobs, machine: Machine, media: MediaInfo | None) -> str | None:
        if endpoint_of(knobs.model) is None:
            return f"{place()} names no endpoint that hears{knobs.model and f' as {knobs.model}'} (docs/models.md)"
        return None

    @classmethod
    def in_flight(cls, knobs: ListenKnobs) -> int:
        endpoint = endpoint_of(knobs.model)
        return cls.max_in_flight if endpoint is None else endpoint.max_in_flight

    def demands(self) -> tuple[Any, ...]:
        return (SPEECH_AUDIO,)

    def forget(self) -> None:
        self._heard.clear()

    async def process_one(self, inputs: Inputs, emit: Emit) -> Transcript:
        endpoint = self._endpoint()
        if self._limit is None:
            self._limit = anyio.CapacityLimiter(endpoint.max_in_flight)
        own, audio = around(inputs)
        language: str = inputs.params.language
        said: list[Speech] = []
        for cell in GRID.cells(audio, own.first, own.end):
            key = (endpoint, language, cell.first, hashlib.blake2b(cell.samples.tobytes()).digest())
            said += await self._heard.get(key, partial(self._speech, endpoint, cell, language))
        first_ns, end_ns = time_ns(own.first), time_ns(own.end)
        return Transcript(observations=tuple(each for each in said if first_ns <= each.start_ns < end_ns))

    def _endpoint(self) -> Endpoint:
        try:
            found = endpoint_of(self.knobs.model)
        except UserError as error:  # its owner is at it
            raise failure("upstream", str(error)) from error
        if found is None:
            raise failure("upstream", f"no endpoint of {self.knobs.model!r} is named in {place()} any more")
        return found

    async def _speech(self, endpoint: Endpoint, cell: Clip, language: str) -> tuple[Speech, ...]:
        """The sentences of a cell."""
        clip = await anyio.to_thread.run_sync(spoken, cell)
        if clip is None:
            return ()
        if not await until_up(endpoint):
            raise failure("upstream", f"{endpoint.model}: its server is not up after {endpoint.start_s:g} s")
        assert self._limit is not None
        async with self._limit:
            told = await _asked(endpoint, clip, language)
        return _speeches(told, clip, endpoint.quality)


async def _asked(endpoint: Endpoint, clip: Clip, language: str) -> _Told:
    try:
        headers = endpoint.headers
    except UserError as error:
        raise failure("upstream", f"{endpoint.model}: its key: {error}") from error
    data = {
        "model": endpoint.model,
        "language": language,
        "temperature": "0",
        "response_format": "verbose_json",
        "timestamp_granularities[]": ["word", "segment"],
    }
    answered = None
    with anyio.move_on_after(endpoint.answer_s):
        answered = await posted(
            endpoint.model,
            f"{endpoint.url.rstrip('/')}/audio/transcriptions",
            headers=headers,
            timeout_s=endpoint.first_token_s,
            max_bytes=MAX_BYTES,
            refused="refusal",
            harmless=endpoint.without_secrets,
            data=data,
            files={"file": ("speech.wav", _wav(clip), "audio/wav")},
        )
    if answered is None:
        raise failure("timeout", f"{endpoint.model} gave no answer within {endpoint.answer_s:g} s")
    if answered.kind == "text/plain":
        return _Told(text=answered.body.decode(errors="replace"))
    try:
        return from_json(answered.body, _Told)
    except Malformed as error:
        raise failure("schema", f"{endpoint.model} answers with what is no transcription: {error}") from error


def _wav(clip: Clip) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(clip.samples.astype("<i2").tobytes())
    return out.getvalue()


def _speeches(told: _Told, clip: Clip, otherwise: float) -> tuple[Speech, ...]:
    """What was said, with its times on the stream's grid; nothing that says the same again and again."""
    if told.words:
        sure = _sure(told.segments or [], otherwise)
        given = (Said(*_span(clip, each.start, each.end), each.word, sure) for each in told.words if each.word.strip())
        words = [said._replace(text=f" {said.text.strip()}") for said in whole(given)]
        return () if loops([said.text for said in words]) else tuple(sentences([words]))
    passages = told.segments or [_Passage(told.text, 0.0, len(clip.samples) / RATE)]
    return tuple(
        Speech(
            start_ns=time_ns(first),
            end_ns=time_ns(end),
            text=" ".join(each.text.split()),
            confidence=round(_sure([each], otherwise), 4),
        )
        for each in passages
        for first, end in (_span(clip, each.start, each.end),)
        if each.text.strip() and not loops(each.text.split())
    )


def _span(clip: Clip, start_s: float, end_s: float) -> tuple[int, int]:
    """From which sample to before which."""
    first = min(clip.first + round(start_s * RATE), clip.end - 1)
    return first, max(first, min(clip.first + round(end_s * RATE), clip.end))


def _sure(passages: Sequence[_Passage], otherwise: float) -> float:
    known = [each.avg_logprob for each in passages if each.avg_logprob is not None and each.avg_logprob <= 0]
    return math.exp(sum(known) / len(known)) if known else otherwise
