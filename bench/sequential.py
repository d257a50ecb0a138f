"""The peer of the demo's job: the same models in a straightforward script, one thing after another in one process.

It calls the operators of the rungs that the plan chooses here (what suits this machine and its weights), so that it
does the model work with the same code; what it lacks is everything that joins them. Models are loaded once. Two ways to
write it:

- `segments`: the same cuts and the same threads as the engine, segment by segment. Same work, same outputs.
- `whole`: as one would write it first. PyAV decodes the whole file, all pictures and sound are held in memory, and each
  model runs once over all of it. FFmpeg (`thread_type="AUTO"`: frame threads) and ONNX Runtime choose how many threads
  they use. With no segment boundary in the way it has fewer frames to read text from: less work, not quite the same
  outputs.

It prints one JSON line: its answers, what loading and processing took by rung, and which threads were used.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import av
import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.decide.joins import needs
from engine.spec.catalogue import installed
from engine.spec.choosing import USUAL, choose
from engine.spec.operator import Capability, Demand, Device, Entry, Inputs, Media, Operator
from operators.capabilities import ANSWER_QUESTION, DETECT_SCENES, READ_TEXT, TRANSCRIBE, AnswerParams, TranscribeParams
from operators.media.pictures import FrameSpec
from operators.media.sound import Audio
from operators.media.taking import Frames
from operators.speech.regions import SPEECH_AUDIO
from operators.vision.detect_scenes import SMALL_FRAMES
from operators.vision.read_text import TEXT_FRAMES
from penstock.places import this_machine
from streams.media.segmenter import segments
from streams.records import Segment
from streams.subjects import Key

STREAM = "file"
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
Output = TypeVar("Output")


class Report(msgspec.Struct, kw_only=True):
    """What the script prints. Times by rung: of loading its model, and of each call."""

    media: str
    threads: str
    answers: dict[str, str] = {}
    load_s: dict[str, float] = {}
    process_s: dict[str, list[float]] = {}
    decode_s: float = 0.0


class Script:
    """The operators, loaded, with a stopwatch on each."""

    def __init__(self, report: Report, device: Device) -> None:
        self.report = report
        self._device = device
        self._scenes, self._text, self._speech, self._answer = (
            self._loaded(capability) for capability in (DETECT_SCENES, READ_TEXT, TRANSCRIBE, ANSWER_QUESTION)
        )

    def decoded(self, segment: Segment, *demands: Demand) -> Media:
        media, took_s = stopwatch(lambda: Media.decoded(segment, demands))
        self.report.decode_s += took_s
        return media

    def scenes(self, index: int, media: Media) -> Any:
        return self._call(self._scenes, index, None, {"media": [Entry(index, media)]})

    def text(self, index: int, media: Media, scenes: Any) -> Any:
        return self._call(self._text, index, None, {"media": [Entry(index, media)], "scenes": [Entry(index, scenes)]})

    def speech(self, index: int, medias: Sequence[Media]) -> Any:
        """What is said in a segment, its neighbours at hand."""
        operator = self._speech[1]
        scope = operator.scope_of(operator.knobs, USUAL.segment_s)
        near = [Entry(at, medias[at]) for at in needs(scope, Key.of(index), len(medias))]
        return self._call(self._speech, index, TranscribeParams(), {"media": near})

    def answer(self, question: str, evidence: Sequence[Sequence[Any]]) -> str:
        sources = tuple(tuple(Entry(at, value) for at, value in enumerate(source)) for source in evidence)
        inputs = Inputs(STREAM, 0, len(sources[0]) - 1, AnswerParams(question=question), {"evidence": sources})
        return str(self._timed(self._answer, inputs).answer)

    def _loaded(self, capability: Capability) -> tuple[str, Operator]:
        operator, rung, _ = choose(installed(), capability, this_machine(), None)
        instance = operator(rung.knobs)
        _, self.report.load_s[rung.name] = stopwatch(lambda: instance.load(self._device))
        return rung.name, instance

    def _call(self, named: tuple[str, Operator], index: int, params: Any, ports: dict[str, list[Entry]]) -> Any:
        sources = {port: (tuple(entries),) for port, entries in ports.items()}
        return self._timed(named, Inputs(STREAM, index, index, params, sources))

    def _timed(self, named: tuple[str, Operator], inputs: Inputs) -> Any:
        name, operator = named
        (output,), took_s = stopwatch(lambda: operator.process([inputs]))
        self.report.process_s.setdefault(name, []).append(took_s)
        return output


def stopwatch(work: Callable[[], Output]) -> tuple[Output, float]:
    """What the work gives, and the seconds it took."""
    started_s = time.perf_counter()
    output = work()
    return output, round(time.perf_counter() - started_s, 6)


def by_segments(path: Path, asks: Sequence[str]) -> Report:
    script = Script(Report(media="segments", threads="one for each decoder and model, as in the engine"), Device())
    records = [record for record in segments(str(path), stream=STREAM) if isinstance(record, Segment)]
    scenes, texts, sounds = [], [], []
    for index, record in enumerate(records):
        pictures = script.decoded(record, SMALL_FRAMES, TEXT_FRAMES)  # of one segment at a time
        scenes.append(script.scenes(index, pictures))
        texts.append(script.text(index, pictures, scenes[index]))
        sounds.append(script.decoded(record, SPEECH_AUDIO))
    speech = [script.speech(index, sounds) for index in range(len(sounds))]
    script.report.answers = {ask: script.answer(ask, (speech, texts, scenes)) for ask in asks}
    return script.report


def in_one_piece(path: Path, asks: Sequence[str]) -> Report:
    script = Script(Report(media="whole", threads="the libraries' defaults"), Device(num_threads=-1))
    media, script.report.decode_s = stopwatch(lambda: decoded(path))
    scenes = script.scenes(0, media)
    text = script.text(0, media, scenes)
    speech = script.speech(0, [media])
    script.report.answers = {ask: script.answer(ask, ([speech], [text], [scenes])) for ask in asks}
    return script.report


def decoded(path: Path) -> Media:
    """All pictures and all sound of a file, as one segment."""
    pictures = {spec: Pictures(spec) for spec in (SMALL_FRAMES, TEXT_FRAMES)}
    sound: list[NDArray[np.int16]] = []
    resampler = av.AudioResampler(format="s16", layout="mono", rate=SPEECH_AUDIO.sample_rate)
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for frame in container.decode(video=0, audio=0):
            if isinstance(frame, av.VideoFrame):
                for kept in pictures.values():
                    kept.offer(frame)
            elif isinstance(frame, av.AudioFrame):
                sound += samples(resampler.resample(frame))
        sound += samples(resampler.resample(None))
        duration_ns = 1000 * (container.duration or 0)
    heard = Audio(0, SPEECH_AUDIO.sample_rate, np.concatenate(sound))
    seen: dict[Any, Any] = {spec: kept.frames() for spec, kept in pictures.items()}
    return Media(Segment(stream=STREAM, index=0, start_ns=0, duration_ns=duration_ns), {**seen, SPEECH_AUDIO: heard})


def samples(resampled: Sequence[av.AudioFrame]) -> list[NDArray[np.int16]]:
    return [np.asarray(part.to_ndarray(), np.int16).reshape(-1) for part in resampled]


class Pictures:
    """Those a spec asks for, scaled."""

    def __init__(self, spec: FrameSpec) -> None:
        self._spec = spec
        self._next_ns = 0
        self._times_ns: list[int] = []
        self._images: list[NDArray[np.uint8]] = []

    def offer(self, frame: av.VideoFrame) -> None:
        at_ns = round(1_000_000_000 * (frame.time or 0.0))
        if at_ns < self._next_ns:
            return
        self._next_ns = (at_ns // self._spec.interval_ns + 1) * self._spec.interval_ns
        scale = min(1.0, (self._spec.max_width or frame.width) / frame.width)
        scaled = frame.reformat(round(scale * frame.width), round(scale * frame.height), "rgb24")
        self._times_ns.append(at_ns)
        self._images.append(np.asarray(scaled.to_ndarray(), np.uint8))

    def frames(self) -> Frames:
        return Frames(np.array(self._times_ns, np.int64), np.stack(self._images))


def questions() -> list[str]:
    truth = msgspec.json.decode((EXAMPLES / "station.json").read_bytes())
    return [item["question"] for item in truth["questions"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, default=EXAMPLES / "station.mp4")
    parser.add_argument("--ask", action="append", help="a question; the demo's where there is none")
    parser.add_argument("--media", choices=("segments", "whole"), default="segments")
    given = parser.parse_args()
    work = by_segments if given.media == "segments" else in_one_piece
    report = work(given.input, given.ask or questions())
    sys.stdout.write(msgspec.json.encode(report).decode() + "\n")


if __name__ == "__main__":
    main()
