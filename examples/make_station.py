"""Makes the demo clip `station.mp4`, a day at a railway station, and its ground truth `station.json`.

The voices are flite's, `station_scenery` draws the pictures, PyAV encodes both. Nothing is random: the same tools make
the same clip. Run: `python examples/make_station.py`. Needs Debian's `flite` and `fonts-dejavu-core`.
"""

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from PIL import Image
from station_scenery import BOLD, HEIGHT, SCENERY, WIDTH

FPS = 25
SAMPLE_RATE = 48_000
KEYFRAME_FRAMES = 50  # at most 2 s from keyframe to keyframe
LEAD_S, PAUSE_S, TAIL_S = 1.4, 1.5, 1.7  # silence before the first, between and after the last sentence of a scene

Pcm = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Sentence:
    voice: str
    text: str


@dataclass(frozen=True)
class Scene:
    name: str
    sentences: tuple[Sentence, ...]
    texts: tuple[str, ...]  # what is drawn, top to bottom, for as long as the scene lasts


@dataclass(frozen=True)
class Question:
    question: str
    accepted: tuple[str, ...]
    heard: str = ""  # the sentence that holds the evidence
    seen: str = ""  # the text on screen that holds it


def high(text: str) -> Sentence:
    return Sentence("kal16", text)


def low(text: str) -> Sentence:
    return Sentence("rms", text)


SCENES = (
    Scene(
        "front",
        (
            high("Good morning, and welcome to the railway station."),
            low("There is parking for ninety cars behind the building."),
            high("The station closes at midnight."),
        ),
        ("MILLBROOK STATION", "BUILT IN 1884"),
    ),
    Scene(
        "board",
        (low("Martin is taking the train to the lake."), high("Heavy snow has stopped the train to the forest.")),
        ("DEPARTURES", "07:30 FOREST", "CANCELLED", "08:10 LAKE", "ON TIME", "09:30 VALLEY", "ON TIME"),
    ),
    Scene(
        "platform",
        (
            low("Alice is waiting on this platform for her sister."),
            high("The train on this platform goes to the north."),
        ),
        ("PLATFORM 14",),
    ),
    Scene(
        "tickets",
        (
            low("The return ticket to the coast costs what you see in the window."),
            high("Children under ten travel free of charge."),
        ),
        ("TICKETS", "$18.40"),
    ),
    Scene(
        "cafe",
        (low("Breakfast is served all day."), high("The baker is called Robert.")),
        ("STATION CAFE", "COFFEE $2.80", "TEA $1.90"),
    ),
    Scene(
        "lost property",
        (
            low("The red umbrella was found on the morning train."),
            high("Everything we find is kept for thirty days."),
        ),
        ("LOST PROPERTY", "CALL 555-0178"),
    ),
    Scene(
        "night",
        (
            low("The night train to the mountains carries two hundred passengers."),
            high("The night train crosses the river on an old bridge."),
            low("We wish you a pleasant journey."),
            high("Thank you for traveling with us, and good night."),
        ),
        ("22:15 MOUNTAINS", "PLATFORM 12"),
    ),
)

QUESTIONS = (
    Question("What is the station called?", ("millbrook",), seen="MILLBROOK STATION"),
    Question(
        "Where can I park my car?",
        ("behind the building",),
        heard="There is parking for ninety cars behind the building.",
    ),
    Question(
        "When does Martin's train leave?",
        ("8:10", "eight ten", "ten past eight"),
        heard="Martin is taking the train to the lake.",
        seen="08:10 LAKE",
    ),
    Question(
        "Why is the train to the forest not running?",
        ("snow",),
        heard="Heavy snow has stopped the train to the forest.",
    ),
    Question(
        "Which platform is Alice waiting on?",
        ("platform 14", "platform fourteen", "14", "fourteen"),
        heard="Alice is waiting on this platform for her sister.",
        seen="PLATFORM 14",
    ),
    Question(
        "How much is a return ticket to the coast?",
        ("18.40", "eighteen forty", "eighteen dollars forty", "eighteen dollars and forty"),
        heard="The return ticket to the coast costs what you see in the window.",
        seen="$18.40",
    ),
    Question("What is the name of the baker?", ("robert",), heard="The baker is called Robert."),
    Question(
        "What does a coffee cost?",
        ("2.80", "two eighty", "two dollars eighty", "two dollars and eighty"),
        seen="COFFEE $2.80",
    ),
    Question(
        "What colour was the umbrella that they found?",
        ("red",),
        heard="The red umbrella was found on the morning train.",
    ),
    Question(
        "How many people travel on the night train to the mountains?",
        ("two hundred", "200"),
        heard="The night train to the mountains carries two hundred passengers.",
    ),
    Question("How much does parking at the station cost?", ("not in the video",)),
    Question("Who found the umbrella on the train?", ("not in the video",)),
)


@dataclass(frozen=True)
class Spoken:
    """A sentence and where its recording lies in the track."""

    sentence: Sentence
    start_s: float
    pcm: Pcm

    @property
    def end_s(self) -> float:
        return self.start_s + len(self.pcm) / SAMPLE_RATE


@dataclass(frozen=True)
class Placed:
    """A scene with its first frame, its length in frames and its recordings."""

    scene: Scene
    first: int
    num_frames: int
    spoken: tuple[Spoken, ...]


def decode_audio(path: Path) -> Pcm:
    """The file's sound: float32 [N], mono, SAMPLE_RATE, -1..1."""
    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
    with av.open(path) as container:
        frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
    frames += resampler.resample(None)
    return np.concatenate([frame.to_ndarray()[0] for frame in frames])


def speak(sentence: Sentence, folder: Path) -> Pcm:
    """flite's recording of one sentence, its surrounding silence cut off."""
    path = folder / "sentence.wav"
    try:
        subprocess.run(["flite", "-voice", sentence.voice, "-t", sentence.text, "-o", path], check=True)
    except FileNotFoundError:
        sys.exit("make_station: flite is not installed: `apt install flite`")
    pcm = decode_audio(path)
    first, last = sounding(pcm)
    return pcm[first:last]


def sounding(pcm: Pcm) -> tuple[int, int]:
    """The samples [first, last) in which `pcm` is louder than 1 % of its peak."""
    loud = np.flatnonzero(np.abs(pcm) > 0.01 * np.abs(pcm).max())
    return int(loud[0]), int(loud[-1]) + 1


def place(folder: Path) -> list[Placed]:
    """Lay the scenes one after another, each as long as its sentences and their pauses need."""
    placed: list[Placed] = []
    first = 0
    for scene in SCENES:
        at_s = first / FPS + LEAD_S
        spoken = []
        for sentence in scene.sentences:
            spoken.append(Spoken(sentence, at_s, speak(sentence, folder)))
            at_s = spoken[-1].end_s + PAUSE_S
        num_frames = math.ceil((spoken[-1].end_s + TAIL_S) * FPS) - first
        placed.append(Placed(scene, first, num_frames, tuple(spoken)))
        first += num_frames
    return placed


def sound_track(placed: Sequence[Placed]) -> Pcm:
    total = placed[-1].first + placed[-1].num_frames
    track = np.zeros(total * SAMPLE_RATE // FPS, np.float32)
    for spoken in (spoken for place in placed for spoken in place.spoken):
        first = round(spoken.start_s * SAMPLE_RATE)
        track[first : first + len(spoken.pcm)] = spoken.pcm * (0.7 / np.abs(spoken.pcm).max())
    return track


def pictures(placed: Sequence[Placed]) -> Iterator[Image.Image]:
    for place in placed:
        draw = SCENERY[place.scene.name]()
        for number in range(place.num_frames):
            yield draw(number / FPS)


def encode(path: Path, placed: Sequence[Placed]) -> None:
    track = sound_track(placed)
    with av.open(path, "w", options={"movflags": "+faststart"}) as container:
        x264 = {"crf": "22", "preset": "slow", "tune": "animation", "threads": "2", "x264-params": "open-gop=0"}
        video = container.add_stream("libx264", rate=FPS, options=x264)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.codec_context.gop_size = KEYFRAME_FRAMES
        video.codec_context.colorspace = video.codec_context.color_primaries = video.codec_context.color_trc = 1
        video.codec_context.color_range = 1
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        audio.bit_rate = 64_000
        samples = SAMPLE_RATE // FPS
        for number, picture in enumerate(pictures(placed)):
            frame = av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24").reformat(
                format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
            )
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(video.encode(frame))
            part = track[number * samples : (number + 1) * samples].reshape(1, -1)
            block = av.AudioFrame.from_ndarray(part, format="fltp", layout="mono")
            block.pts, block.sample_rate, block.time_base = number * samples, SAMPLE_RATE, Fraction(1, SAMPLE_RATE)
            container.mux(audio.encode(block))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))


def ground_truth(path: Path, placed: Sequence[Placed]) -> dict[str, object]:
    """What the clip holds, the sentences timed in its decoded sound."""
    track = decode_audio(path)
    transcript, texts = [], []
    for place in placed:
        for spoken in place.spoken:
            margin_s = PAUSE_S / 3
            origin = round((spoken.start_s - margin_s) * SAMPLE_RATE)
            first, last = sounding(track[origin : round((spoken.end_s + margin_s) * SAMPLE_RATE)])
            times = {"start_s": seconds(origin + first), "end_s": seconds(origin + last)}
            transcript.append({**times, "voice": spoken.sentence.voice, "text": spoken.sentence.text})
        interval = {"start_s": place.first / FPS, "end_s": (place.first + place.num_frames) / FPS}
        texts += [{**interval, "text": text} for text in place.scene.texts]
    return {
        "media": path.name,
        "duration_s": (placed[-1].first + placed[-1].num_frames) / FPS,
        "cuts": [place.first / FPS for place in placed[1:]],
        "transcript": transcript,
        "texts": texts,
        "questions": [question_entry(question, transcript, texts) for question in QUESTIONS],
    }


def seconds(samples: int) -> float:
    return round(samples / SAMPLE_RATE, 3)


def question_entry(
    question: Question, transcript: Sequence[dict[str, object]], texts: Sequence[dict[str, object]]
) -> dict[str, object]:
    """The question with the time of its evidence: the sentence where there is one, else the text."""
    heard = [entry for entry in transcript if entry["text"] == question.heard]
    seen = [entry for entry in texts if entry["text"] == question.seen]
    evidence = (heard or seen or [{}])[0]
    return {
        "question": question.question,
        "answerable": bool(heard or seen),
        "accepted": list(question.accepted),
        "start_s": evidence.get("start_s"),
        "end_s": evidence.get("end_s"),
        "needs": ["speech"] * bool(heard) + ["text"] * bool(seen),
    }


def main() -> None:
    if not BOLD.exists():
        sys.exit("make_station: the DejaVu fonts are not installed: `apt install fonts-dejavu-core`")
    here = Path(__file__).resolve().parent
    clip = here / "station.mp4"
    with tempfile.TemporaryDirectory() as folder:
        placed = place(Path(folder))
    encode(clip, placed)
    truth = ground_truth(clip, placed)
    (here / "station.json").write_text(json.dumps(truth, indent=2) + "\n")
    print(f"{clip}: {truth['duration_s']} s, {clip.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
