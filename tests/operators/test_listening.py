"""Speech by an endpoint: what it is sent, what is made of what it answers, and what goes wrong."""

import io
import json
import wave
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
import pytest
from scripted_endpoint import Act, Endpoint, Request, Send, refuses, says_nothing, serving

from engine.spec.operator import Inputs, Machine, Media
from operators.heard import Transcript
from operators.language.asking import AsksModel
from operators.language.conversing import Conversing
from operators.speech.listening import Listening, ListenKnobs
from operators.speech.regions import SPEECH_AUDIO
from operators.speech.whisper import Whisper, is_here, verified_weights
from penstock.testing import inputs_of, run, segments_of
from streams.errors import Permanent, Transient

EXAMPLES = Path(__file__).parents[2] / "examples"
KEY = "sk-planted-91c4"
pytestmark = pytest.mark.anyio


def answers(said: Any, kind: str = "application/json") -> Act:
    async def act(request: Request, send: Send) -> None:
        body = said if isinstance(said, bytes) else json.dumps(said).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        await send(head.encode() + body)

    return act


def sent(request: Request) -> tuple[dict[str, list[str]], bytes]:
    """The fields of a form, and the file in it."""
    boundary = request.head.partition("boundary=")[2].split("\r\n")[0].strip().encode()
    fields: dict[str, list[str]] = {}
    file = b""
    for part in request.raw.split(b"--" + boundary)[1:-1]:
        head, _, body = part.strip(b"\r\n").partition(b"\r\n\r\n")
        name = head.partition(b'name="')[2].partition(b'"')[0].decode()
        if b"filename=" in head:
            file = body
        else:
            fields.setdefault(name, []).append(body.decode())
    return fields, file


Heard = Callable[..., Awaitable[tuple[list[Transcript], Endpoint]]]


@pytest.fixture
def heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Heard:
    """What of a reading is heard where the endpoint does these things, and the endpoint."""

    async def hear(*acts: Act, segment_s: float = 2.0, num: int = 4, more: str = "") -> Any:
        async with serving(*acts) as there:
            (tmp_path / "endpoints.toml").write_text(
                f'[[endpoint]]\nmodel = "ear"\nurl = "{there.url}"\nkey = "${{TOY_KEY}}"\nhears = true\n'
                f"quality = 0.9\n{more}\n"
            )
            monkeypatch.setenv("PENSTOCK_ENDPOINTS", str(tmp_path / "endpoints.toml"))
            monkeypatch.setenv("TOY_KEY", KEY)
            operator = Listening(ListenKnobs(model="ear"))
            segments = segments_of(EXAMPLES / "reading.ogg", segment_s, max_segments=num)
            items = inputs_of(operator, {"media": segments})
            found: dict[int, Transcript] = {}

            async def one(at: int, item: Any) -> None:
                assert isinstance(item, Inputs)
                found[at] = await operator.process_one(item, lambda text, *, anew=False: None)

            with anyio.fail_after(60):
                async with anyio.create_task_group() as tasks:
                    for at, item in enumerate(items):
                        tasks.start_soon(one, at, item)
        return [found[at] for at in sorted(found)], there

    return hear


def texts(transcripts: Sequence[Transcript]) -> list[str]:
    return [speech.text for transcript in transcripts for speech in transcript.observations]


async def test_each_cell_is_sent_once_however_many_segments_it_has(heard: Heard) -> None:
    words = [{"word": "He", "start": 0.2, "end": 0.4}, {"word": "was.", "start": 0.5, "end": 0.9}]
    said = {"text": "He was not.", "words": words}
    found, there = await heard(answers(said))
    assert len(there.requests) == 1
    (request,) = there.requests
    fields, file = sent(request)
    assert request.head.startswith("POST /v1/audio/transcriptions ")
    assert f"bearer {KEY}" in request.head.lower()
    assert (fields["model"], fields["language"], fields["response_format"]) == (["ear"], ["en"], ["verbose_json"])
    assert fields["timestamp_granularities[]"] == ["word", "segment"]
    with wave.open(io.BytesIO(file)) as sound:
        assert (sound.getframerate(), sound.getnchannels(), sound.getsampwidth()) == (16_000, 1, 2)
        assert 5 < sound.getnframes() / 16_000 < 16
        assert np.abs(np.frombuffer(sound.readframes(sound.getnframes()), "<i2")).max() > 1000
    assert texts(found) == ["He was."]
    (speech,) = (speech for transcript in found for speech in transcript.observations)
    assert [word.text for word in speech.words] == ["He", "was."]
    assert speech.confidence == 0.9, "the rung's own, where the endpoint says nothing"


@pytest.mark.parametrize(
    ("said", "kind", "found"),
    [
        ({"text": "All of it."}, "application/json", [("All of it.", 0.9)]),
        (b"All of it.", "text/plain; charset=utf-8", [("All of it.", 0.9)]),
        (
            {"segments": [{"text": " One.", "end": 1, "avg_logprob": -0.5}, {"text": "Two.", "start": 1.1}]},
            "application/json",
            [("One.", 0.6065), ("Two.", 0.9)],
        ),
        ({"text": ""}, "application/json", []),
        ({"text": "an hour and an hour and an hour and an hour and an hour"}, "application/json", []),
        ({"words": [{"word": "no", "start": at / 10, "end": at / 10} for at in range(20)]}, "application/json", []),
        ({"words": [{"word": "Late.", "start": 900, "end": 901}]}, "application/json", [("Late.", 0.9)]),
    ],
)  # fmt: skip
async def test_what_it_answers_is_believed_as_far_as_it_goes(heard: Heard, said: Any, kind: str, found: Any) -> None:
    transcripts, _ = await heard(answers(said, kind))
    assert [(each.text, each.confidence) for one in transcripts for each in one.observations] == found


@pytest.mark.parametrize(
    ("act", "kind", "why"),
    [
        (refuses(503), Transient, "upstream: ear: HTTP 503"),
        (refuses(401, KEY), Permanent, "refusal: ear: HTTP 401"),
        (refuses(400, f"no model {KEY}"), Permanent, "refusal: ear: HTTP 400: no model ..."),
        (answers(b"{"), Permanent, "schema: ear answers with what is no transcription"),
        (answers({"words": [{"word": 7}]}), Permanent, "schema: ear"),
        (answers({"words": [{"word": "a", "start": -1}]}), Permanent, "schema: ear"),
        (answers(b"x" * (1 << 20) + b"yy"), Permanent, "refusal: ear answers with over"),
        (says_nothing, Transient, "timeout: ear"),
    ],
)
async def test_what_goes_wrong_has_a_name_and_holds_no_secret(
    heard: Heard, act: Act, kind: type[Exception], why: str
) -> None:
    with pytest.raises(kind) as caught:
        await heard(act, more="first_token_s = 0.5\nanswer_s = 5")
    assert str(caught.value).startswith(why)
    assert KEY not in str(caught.value)
    assert "127.0.0.1" not in str(caught.value)


async def test_silence_is_sent_to_nobody(heard: Heard, tmp_path: Path) -> None:
    quiet = tmp_path / "quiet.wav"
    with wave.open(str(quiet), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(4 * 16_000 * 2))
    (segment,) = segments_of(quiet, 5.0)
    _, there = await heard(answers({"text": "You"}), num=1)
    before = len(there.requests)
    operator = Listening(ListenKnobs(model="ear"))
    (item,) = inputs_of(operator, {"media": [segment]})
    assert isinstance(item, Inputs)
    assert (await operator.process_one(item, lambda text, *, anew=False: None)).observations == ()
    assert len(there.requests) == before
    assert Media.decoded(segment, (SPEECH_AUDIO,)).products


async def test_an_endpoint_that_hears_is_no_language_model_and_the_other_way_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_ENDPOINTS", str(tmp_path / "endpoints.toml"))
    both = '[[endpoint]]\nmodel = "ear"\nurl = "http://h/v1"\nhears = true\n[[endpoint]]\nmodel = "head"\nurl = "http://h/v1"\n'
    (tmp_path / "endpoints.toml").write_text(both)
    assert [rung.name for rung in Listening.rungs()] == ["ear"]
    assert [rung.name for rung in Conversing.rungs()] == ["head"]
    assert issubclass(Conversing, AsksModel)
    (tmp_path / "endpoints.toml").write_text("")
    (rung,) = Listening.rungs()
    assert "names no endpoint that hears" in (Listening.missing(rung.knobs, Machine(num_cores=1), None) or "")


@pytest.mark.skipif(not is_here("tiny.en"), reason="there are no weights of Whisper tiny.en here")
async def test_a_real_whisper_behind_http_says_what_it_says_here(heard: Heard) -> None:
    import faster_whisper

    model = faster_whisper.WhisperModel(
        str(verified_weights("tiny.en")), device="cpu", compute_type="int8", cpu_threads=1
    )

    def transcribed(file: bytes) -> dict[str, Any]:
        with wave.open(io.BytesIO(file)) as sound:
            samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2").astype(np.float32) / 32768
        how: dict[str, Any] = {"temperature": 0.0, "word_timestamps": True, "condition_on_previous_text": False}
        passages, _ = model.transcribe(samples, language="en", beam_size=5, **how)
        told = list(passages)
        return {
            "text": "".join(each.text for each in told),
            "segments": [{"text": e.text, "start": e.start, "end": e.end, "avg_logprob": e.avg_logprob} for e in told],
            "words": [{"word": w.word, "start": w.start, "end": w.end} for e in told for w in e.words or ()],
        }

    async def hears(request: Request, send: Send) -> None:
        _, file = sent(request)
        await answers(await anyio.to_thread.run_sync(transcribed, file))(request, send)

    found, there = await heard(hears, segment_s=5.0, num=4)
    assert there.requests
    segments = segments_of(EXAMPLES / "reading.ogg", 5.0, max_segments=4)
    local = await anyio.to_thread.run_sync(lambda: run(Whisper, {"media": segments}, knobs={"size": "tiny.en"}))
    assert " ".join(texts(found)).split() == " ".join(texts(local)).split()
    starts = [word.start_ns for transcript in found for speech in transcript.observations for word in speech.words]
    expected = [word.start_ns for transcript in local for speech in transcript.observations for word in speech.words]
    assert max(abs(one - other) for one, other in zip(starts, expected, strict=True)) < 20_000_000
