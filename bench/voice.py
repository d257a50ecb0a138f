"""How soon somebody who talks is replied to, and how often he is cut short.

Questions, spoken by a voice of their own, come as a live stream at their own pace, in segments of SEGMENT_S, and
`examples/voice_live.toml` hears, replies and speaks. Of each reply:

    whole   from the end of what was said (where the voice falls silent) to the answer with the sound
    own     what of that is neither waiting for a segment to end, nor looking ahead, nor computing: the answer's
            latency from the storing of the newest segment it was made from, less what its stages computed for it

A turn is cut short that ends while its speaker goes on: within PAUSE_S of its end he says more, and `in_a_sentence` if
its last word ends none, as a transcription without hurry writes it. That is counted on a reading that nobody here made
(speech.py's): who reads several sentences is replied to after each.

    voice.py [--rounds 1]

Needs Whisper tiny.en and the voice hibari (`penstock models list`), and for the last part Debian's
pocketsphinx-testdata.
"""

import argparse
import statistics
import subprocess
import sys
import time
import wave
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import numpy as np
from measure import at_most, keep, say
from speech import RECORDINGS, in_a_row, reference

import penstock
from engine.decide.answer import Answer
from engine.spec.workflow import load_workflow
from operators import weights
from operators.heard import Speech, Word
from operators.language.sentences import ends_sentence
from operators.language.turns import turns_of
from operators.speech.guessing import Guessing
from operators.speech.settling import Settling
from operators.speech.whisper import Whisper
from penstock.testing import run, segments_of
from streams.records import Segment

SEGMENT_S, RATE = 0.5, 24_000
OWN_MS = 30.0
PAUSE_S = 0.9
SILENCE_S = 3.0
WORKFLOW = Path(__file__).parents[1] / "examples" / "voice_live.toml"
QUESTIONS = (
    "When does the library open in the morning?",
    "How much does a library card cost?",
    "How long can books be kept?",
    "On which floor is the reading room?",
    "When is the story hour for children?",
    "Is the library open on Sundays?",
)
UP_S = 60.0
SECOND_NS = 1_000_000_000


def spoken(path: Path) -> Path:
    """The questions, with silence behind each."""
    from hibari import Hibari

    voice, silence = Hibari(), np.zeros(round(SILENCE_S * RATE), np.float32)
    parts = [silence, *(part for question in QUESTIONS for part in (voice(question, seed=1), silence))]
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((np.clip(np.concatenate(parts), -1, 1) * 32767).astype("<i2").tobytes())
    return path


@contextmanager
def node(store: Path) -> Iterator[None]:
    store.mkdir()
    log = store / "serve.log"
    with log.open("w") as told:
        command = [sys.executable, "-m", "penstock", "serve", "--http", "none", "--store", str(store)]
        serving = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=told)
    try:
        until_s = time.monotonic() + UP_S
        while "is up" not in log.read_text():
            if serving.poll() is not None or time.monotonic() > until_s:
                raise RuntimeError(log.read_text())
            time.sleep(0.05)
        yield
    finally:
        serving.terminate()
        serving.wait(30)


async def talked(clip: Path, store: Path) -> list[tuple[float, float]]:
    """Of each reply: the whole of the wait, and our own share, in seconds."""
    origin_ns = 0
    found: list[tuple[float, float]] = []

    def on_record(record: Any) -> None:
        nonlocal origin_ns
        if isinstance(record, Segment):
            origin_ns = record.captured_ns - record.start_ns

    async with penstock.connect(store=store) as client:
        await client.push(str(clip), "warm", "durable", segment_s=SEGMENT_S)  # models are loaded with this
        warm = await client.submit("warm", workflow=load_workflow(WORKFLOW), standing=True, start="0s")
        _ = [answer async for answer in warm.answers()]
        async with anyio.create_task_group() as tasks:

            async def push() -> None:
                await client.push(str(clip), "desk", "live", segment_s=SEGMENT_S, max_lag_s=20.0, on_record=on_record)

            tasks.start_soon(push)
            while not any(view.stream == "desk" for view in await client.streams()):  # noqa: ASYNC110 - another's doing
                await anyio.sleep(0.05)
            job = await client.submit("desk", workflow=load_workflow(WORKFLOW), standing=True)
            async for answer in job.answers():
                now_ns = time.time_ns()
                if said := _sound(answer):
                    found.append(((now_ns - origin_ns - said) / SECOND_NS, answer.latency_s - answer.compute_s))
    return found


def _sound(answer: Answer) -> int:
    """When what an answer replies to ended (media time, ns); 0 where it has no sound."""
    if answer.stages[-1].capability != "speak" or not answer.output:
        return 0
    return min((each["start_ns"] for each in answer.output["observations"]), default=0)


def cut_short() -> dict[str, Any]:
    """How often a turn ends while its speaker goes on."""
    with TemporaryDirectory() as folder:
        row = in_a_row(list(reference()), Path(folder) / "row.wav")
        media = segments_of(row, SEGMENT_S)
        guesses = run(Guessing, {"media": media}, knobs={"size": "tiny.en", "beam_size": 1})
        outputs = run(Settling, {"guess": guesses})
        heard = run(Whisper, {"media": segments_of(row, 10.0)}, knobs={"size": "tiny.en"})
    patient = [word for output in heard for speech in output.observations for word in speech.words]
    pending: tuple[Speech, ...] = ()
    ends, words = list[int](), list[Word]()
    for output in outputs:
        ended, pending = turns_of(pending, output.observations)
        ends += [turn.end_ns for turn in ended]
        words += [word for speech in output.observations for word in speech.words]
    starts_s = sorted(word.start_ns / SECOND_NS for word in words)
    short = [end for end in ends if any(0 <= start - end / SECOND_NS < PAUSE_S for start in starts_s)]
    sentences = [word.end_ns for word in patient if ends_sentence(word.text)]
    inside = [end for end in short if not any(abs(end - other) < SECOND_NS // 2 for other in sentences)]
    say(f"{len(ends)} turns, {len(short)} of them cut short, {len(inside)} in a sentence")
    return {"num_turns": len(ends), "num_cut_short": len(short), "in_a_sentence": len(inside)}


def quantiles(found: Sequence[float]) -> dict[str, float]:
    return {"p50": round(statistics.median(found), 4), "most": round(max(found), 4)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=1)
    asked = parser.parse_args()
    if lacking := [name for name in ("hibari-heart", "whisper-tiny.en") if weights.find(name) is None]:
        say(f"cannot be run here: {', '.join(lacking)} is not here: penstock models list")
        return 2
    found: list[tuple[float, float]] = []
    with TemporaryDirectory() as folder:
        clip = spoken(Path(folder) / "asked.wav")
        for number in range(asked.rounds):
            store = Path(folder) / f"store-{number}"
            with node(store):
                found += anyio.run(talked, clip, store)
    say(f"whole, own: {found}")
    figures: dict[str, Any] = {
        "num_questions": asked.rounds * len(QUESTIONS),
        "num_replies": len(found),
        "whole_s": quantiles([whole for whole, _ in found]),
        "own_ms": quantiles([1e3 * own for _, own in found]),
        "own_p50_ms": at_most(1e3 * statistics.median(own for _, own in found), OWN_MS),
        "segment_s": SEGMENT_S,
    }
    if RECORDINGS.is_dir():
        figures["cut_short"] = cut_short()
    keep("voice", figures)
    return 0 if len(found) >= asked.rounds * len(QUESTIONS) else 1


if __name__ == "__main__":
    sys.exit(main())
