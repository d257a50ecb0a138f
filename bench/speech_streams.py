"""How fast several recordings are heard at once, on speech that nobody here made.

Eight streams: what bench/speech.py hears, one behind the other, each stream begun at another point of it. A node with
one worker has its model loaded by a job before; timed is from the first byte that is brought to the last answer.

Peers, in processes of their own, model loaded before, with as many threads as are fastest here (1 or all cores):
`in_turn` hears one recording after another with faster-whisper; `batched` does so with its own batched pipeline, eight
windows at once, which is how WhisperX hears. Rounds are interleaved, medians compared.

    speech_streams.py [--streams 8] [--rounds 3] [--cities two_cities.wav]
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
import wave
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import numpy as np
from measure import ROOT, at_least, keep, num_cores, say, spread
from speech import RECORDINGS, in_a_row, reference

import penstock
from engine.spec.workflow import Stage, Workflow
from penstock.demo import num_wrong_words, words

SIZE = "tiny.en"
WORKFLOW = Workflow(name="words", stages={"words": Stage(capability="transcribe", inputs={"media": "media"})})
UP_S, RUN_S = 60.0, 600.0

PEER = """
import json, sys, time
import faster_whisper
folder, threads, is_batched, *paths = sys.argv[1:]
model = faster_whisper.WhisperModel(folder, device="cpu", compute_type="int8", cpu_threads=int(threads))
how = {"language": "en", "beam_size": 5, "temperature": 0.0, "word_timestamps": True}
if is_batched == "1":
    model, how["batch_size"] = faster_whisper.BatchedInferencePipeline(model), 8
else:
    how["condition_on_previous_text"] = False
began = time.perf_counter()
texts = [" ".join(passage.text for passage in model.transcribe(path, **how)[0]) for path in paths]
print(json.dumps({"took_s": time.perf_counter() - began, "texts": texts}))
"""


def alike(path: Path, folder: Path) -> Path:
    """The recording with 16,000 samples a second, as those of LibriVox have."""
    import faster_whisper

    samples = (faster_whisper.decode_audio(str(path)) * 32767).astype(np.int16)
    with wave.open(str(folder / path.name), "wb") as made:
        made.setparams((1, 2, 16_000, 0, "NONE", ""))
        made.writeframes(samples.tobytes())
    return folder / path.name


def rotated(path: Path, num: int, folder: Path) -> list[Path]:
    """The recording, begun at `num` points of it."""
    with wave.open(str(path), "rb") as whole:
        params, frames = whole.getparams(), whole.readframes(whole.getnframes())
    width = params.sampwidth * params.nchannels
    made = []
    for number in range(num):
        at = number * (len(frames) // width) // num * width
        made.append(folder / f"stream-{number}.wav")
        with wave.open(str(made[-1]), "wb") as one:
            one.setparams(params)
            one.writeframes(frames[at:] + frames[:at])
    return made


def by_peer(folder: Path, threads: int, paths: Sequence[Path], *, is_batched: bool) -> tuple[float, list[str]]:
    command = [sys.executable, "-c", PEER, str(folder), str(threads), str(int(is_batched)), *map(str, paths)]
    said = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=RUN_S).stdout)
    return said["took_s"], said["texts"]


@asynccontextmanager
async def node(store: Path) -> AsyncIterator[penstock.Client]:
    """With nothing to choose from but what the packages carry."""
    nothing = {"HF_HUB_CACHE": str(store / "none"), "XDG_CACHE_HOME": str(store / "none"), "PENSTOCK_MODELS": ""}
    command = [sys.executable, "-m", "penstock", "serve", "--store", str(store), "--workers", "1", "--http", "none"]
    with (store / "node.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: ASYNC220 - there is nobody yet who could be kept waiting
            command, cwd=ROOT, env=os.environ | nothing, stdout=log, stderr=log
        )
        try:
            with anyio.fail_after(UP_S):
                while True:
                    try:
                        async with penstock.connect(store=store) as client:
                            while not await client.nodes():  # noqa: ASYNC110
                                await anyio.sleep(0.1)
                            break
                    except penstock.PenstockError:
                        await anyio.sleep(0.1)
            async with penstock.connect(store=store) as client:
                yield client
        finally:
            process.terminate()
            process.wait(timeout=30)


async def heard(client: penstock.Client, path: Path, texts: dict[Path, str]) -> None:
    job = await client.run((), [path], WORKFLOW)
    said: dict[int, list[str]] = {}
    async for answer in job.answers():
        said[answer.first] = [each["text"] for each in answer.output.get("observations", ())]
    texts[path] = " ".join(text for _, some in sorted(said.items()) for text in some)


async def by_node(paths: Sequence[Path], warm: Path) -> tuple[float, list[str]]:
    with TemporaryDirectory(prefix="penstock-bench-", ignore_cleanup_errors=True) as folder:
        async with node(Path(folder)) as client:
            texts: dict[Path, str] = {}
            with anyio.fail_after(RUN_S):
                await heard(client, warm, texts)
                began_s = time.perf_counter()
                async with anyio.create_task_group() as tasks:
                    for path in paths:
                        tasks.start_soon(heard, client, path, texts)
            return time.perf_counter() - began_s, [texts[path] for path in paths]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cities", type=Path)
    asked = parser.parse_args()
    if not RECORDINGS.is_dir():
        say("cannot be run here: apt-get install pocketsphinx-testdata")
        return 2
    from operators import weights

    weights_folder = weights.folder_of(f"whisper-{SIZE}")
    took: dict[str, list[float]] = {}
    texts: dict[str, list[str]] = {}

    def note(name: str, run: tuple[float, list[str]]) -> None:
        took.setdefault(name, []).append(run[0])
        texts[name] = run[1]
        say(f"{name}: {run[0]:.2f} s")

    with TemporaryDirectory() as place:
        recordings = [*reference(), *([asked.cities] if asked.cities else [])]
        row = in_a_row([alike(each, Path(place)) for each in recordings], Path(place) / "row.wav")
        paths = rotated(row, asked.streams, Path(place))
        with wave.open(str(row)) as whole:
            audio_s = asked.streams * whole.getnframes() / whole.getframerate()
        for _ in range(asked.rounds):
            for threads in dict.fromkeys((1, num_cores())):
                note(f"in_turn_{threads}", by_peer(weights_folder, threads, paths, is_batched=False))
                note(f"batched_{threads}", by_peer(weights_folder, threads, paths, is_batched=True))
            note("penstock", asyncio.run(by_node(paths, next(iter(reference())))))
    medians = {name: spread(values).median for name, values in took.items()}
    best = {kind: min(s for name, s in medians.items() if name.startswith(kind)) for kind in ("in_turn", "batched")}
    one_by_one = next(text for name, text in texts.items() if name.startswith("in_turn"))

    def others(name: str) -> float:
        pairs = [(words(own), words(peer)) for own, peer in zip(texts[name], one_by_one, strict=True)]
        return round(sum(num_wrong_words(peer, own) for own, peer in pairs) / sum(len(peer) for _, peer in pairs), 4)

    keep(
        "speech_streams",
        {
            "streams": asked.streams,
            "audio_s": round(audio_s, 1),
            "targets": {
                "over_one_after_another": at_least(best["in_turn"] / medians["penstock"], 1.3),
                "over_batched": at_least(best["batched"] / medians["penstock"], 0.95),
            },
            "words_other_than_in_turn": {name: others(name) for name in texts if not name.startswith("in_turn")},
            "took_s": {name: spread(values) for name, values in took.items()},
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
