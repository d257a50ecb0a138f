"""What it costs to get from a film's packets to what a model takes, on a CPU.

- *decode*: pictures a second of our decoding, by one thread, against `ffmpeg -threads 1 -f null`. No picture is
  converted. *rgb*: the same as RGB arrays, against torchcodec, which gives nothing else (where `--torchcodec PYTHON`
  names an interpreter that has it).
- *prepared*: decode and 640 x 640, float32, NCHW, for all pictures by as many threads as there are cores, each a
  segment at a time, against PyAV's `to_ndarray`, OpenCV's resize and NumPy, in as many threads; and against decode
  alone. The peer resizes by INTER_LINEAR, which aliases; `antialiased` is with INTER_AREA.
- *sparse*: one picture in 50 against all of them, both as the model takes them; from a film with a keyframe in each 50
  pictures, as cameras have, and from one with a keyframe in 250, x264's default.
- *damaged*: by how much memory grows over 200 films of which bytes were changed by chance, once fifty have been read,
  and how many decoders are kept in the end.
- *once*: how often a segment is decoded that five stages of one worker look at. It is counted.

The film is `vtest.avi` of Debian's opencv-doc (PETS 2009), brought to 1920 x 1080 and H.264 by ffmpeg; with `--film`
another. Medians of interleaved rounds.

    pixels.py [--rounds 5] [--seconds 20] [--film FILE] [--torchcodec PYTHON]
"""

import argparse
import gc
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random

import anyio
import av
import cv2
import numpy as np
from measure import Spread, at_least, at_most, keep, num_cores, say, spread

from engine.run.cores import Cores
from engine.run.frames import FrameStore
from engine.spec.operator import Media
from operators.media import decoders
from operators.media.decoders import packets_of, put_back, taken_decoder
from operators.media.pictures import FrameSpec, each_picture, tensors
from operators.media.pixels import TensorSpec
from operators.testing.film import segments_of
from streams.errors import Permanent, UserError
from streams.records import Segment

CLIP = Path("/usr/share/doc/opencv-doc/examples/data/vtest.avi")
SIDE, BATCH = 640, 16
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
TAKES = TensorSpec(SIDE, SIDE, mean=MEAN, std=STD)
NUM_DAMAGED = 200
EVERY, SPARSE = 50, 2_000_000_000  # pictures, at 25 a second
SEGMENT_S = 2.0
TORCHCODEC = """
import sys, time
from torchcodec.decoders import VideoDecoder
start = time.perf_counter()
num = sum(1 for _ in VideoDecoder(sys.argv[1], num_ffmpeg_threads=1, seek_mode="approximate"))
print(num / (time.perf_counter() - start))
"""


def filmed(clip: Path, path: Path, seconds: int, group: int, size: str = "1920:1080") -> Path:
    how = ["-t", str(seconds), "-vf", f"scale={size}:flags=lanczos,fps=25", "-pix_fmt", "yuv420p"]
    code = ["-c:v", "libx264", "-preset", "medium", "-crf", "22", "-g", str(group)]
    subprocess.run(["ffmpeg", "-loglevel", "error", "-y", "-i", str(clip), *how, *code, str(path)], check=True)
    return path


def decoded(segments: Sequence[Segment]) -> int:
    """Every picture, and nothing done with it."""
    num = 0
    for segment in segments:
        track, packets = packets_of(segment, "video")
        assert track is not None
        decoding = taken_decoder(segment, track, packets)
        num += sum(1 for _ in decoding.run(packets))
        put_back(decoding, packets)
    return num


def prepared(spec: FrameSpec, segment: Segment) -> int:
    return sum(len(batch) for batch in tensors(Media(segment), spec).batches(BATCH))


def by_hand(resize: int, segment: Segment) -> int:
    """What people write: RGB arrays, resized and normalised in batches."""
    track, packets = packets_of(segment, "video")
    assert track is not None
    decoding = taken_decoder(segment, track, packets)
    frames = decoding.run(packets)
    num = 0
    while some := list(islice(frames, BATCH)):
        images = [cv2.resize(frame.to_ndarray(format="rgb24"), (SIDE, SIDE), interpolation=resize) for frame in some]
        batch = (np.stack(images).astype(np.float32) - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
        num += len(np.ascontiguousarray(batch.transpose(0, 3, 1, 2)))
    put_back(decoding, packets)
    return num


def rate(work: Callable[[Segment], int], segments: Sequence[Segment], threads: ThreadPoolExecutor) -> float:
    """Pictures a second."""
    start_s = time.perf_counter()
    num = sum(threads.map(work, segments))
    return num / (time.perf_counter() - start_s)


def ffmpeg_rate(path: Path, num: int) -> float:
    start_s = time.perf_counter()
    command = ["ffmpeg", "-loglevel", "error", "-threads", "1", "-i", str(path), "-an", "-f", "null", "-"]
    subprocess.run(command, check=True)
    return num / (time.perf_counter() - start_s)


def torchcodec_rate(python: str, path: Path) -> float:
    done = subprocess.run([python, "-c", TORCHCODEC, str(path)], check=True, capture_output=True)
    return float(done.stdout)


async def times_decoded(segments: Sequence[Segment]) -> float:
    """How often a segment is decoded that five stages look at, one after the other."""
    store = FrameStore(Cores(num_cores()))
    specs = [FrameSpec(interval_ns=400_000_000, tensor=TensorSpec(side, side)) for side in (224, 320, 416, 512, 640)]
    for number, spec in enumerate(specs):
        store.serve("s", f"stage-{number}", [spec])
    for segment in segments:
        for number, spec in enumerate(specs):
            hold = await store.hold("s", [segment], [spec])
            hold.let_go()
            store.release("s", f"stage-{number}", segment.index)
    return store.num_decoded / len(segments)


def damaged(film: bytes, folder: Path) -> tuple[float, int]:
    """MiB by which this process has grown from the 50th to the last of NUM_DAMAGED, and the decoders it keeps."""
    chance = Random(11)
    before = after = 0
    for number in range(NUM_DAMAGED):
        bad = bytearray(film)
        for _ in range(chance.randint(1, 40)):
            bad[chance.randrange(len(bad))] = chance.randrange(256)
        path = folder / f"{number}.mp4"
        path.write_bytes(bad)
        for spec in (FrameSpec(tensor=TensorSpec(224, 224)), FrameSpec(interval_ns=400_000_000, max_width=320)):
            with suppress(UserError, Permanent):
                for segment in segments_of(path, SEGMENT_S):
                    with suppress(Permanent):
                        FrameSpec.decode(segment, [spec])
        path.unlink()
        gc.collect()
        after = resident_bytes()
        before = after if number < 50 else before
    return (after - before) / 2**20, len(decoders._idle.decoders)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(ours) / statistics.median(theirs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--film", type=Path, default=CLIP)
    parser.add_argument("--torchcodec", metavar="PYTHON")
    asked = parser.parse_args()
    cv2.setNumThreads(1)
    rates: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        rates.setdefault(name, []).append(value)

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(num_cores()) as threads:
        cameras = filmed(asked.film, Path(folder, "50.mp4"), asked.seconds, EVERY)
        default = filmed(asked.film, Path(folder, "250.mp4"), asked.seconds, 250)
        segments, longer = (segments_of(path, SEGMENT_S) for path in (cameras, default))
        with av.open(str(cameras)) as container:
            num = container.streams.video[0].frames
        every, sparse = FrameSpec(tensor=TAKES), FrameSpec(interval_ns=SPARSE, slack_ns=SPARSE - 1, tensor=TAKES)
        for number in range(asked.rounds + 1):  # the first warms up
            if number == 1:
                rates.clear()
            start_s = time.perf_counter()
            note("decode", decoded(segments) / (time.perf_counter() - start_s))
            note("ffmpeg", ffmpeg_rate(cameras, num))
            start_s = time.perf_counter()
            assert sum(1 for segment in segments for _ in each_picture(segment)) == num
            note("rgb", num / (time.perf_counter() - start_s))
            if asked.torchcodec:
                note("torchcodec", torchcodec_rate(asked.torchcodec, cameras))
            note("decode, all cores", rate(lambda segment: decoded([segment]), segments, threads))
            note("prepared", rate(partial(prepared, every), segments, threads))
            note("by hand", rate(partial(by_hand, cv2.INTER_LINEAR), segments, threads))
            note("by hand, antialiased", rate(partial(by_hand, cv2.INTER_AREA), segments, threads))
            for name, some in (("camera", segments), ("default", longer)):
                start_s = time.perf_counter()
                assert sum(threads.map(partial(prepared, sparse), some)) >= num // EVERY
                note(f"sparse, {name}", num / (time.perf_counter() - start_s))
                note(f"every, {name}", rate(partial(prepared, every), some, threads))
            say(f"round {number} of {asked.rounds}: { ({name: round(found[-1]) for name, found in rates.items()}) }")
        once = anyio.run(times_decoded, segments)
        short = filmed(asked.film, Path(folder, "short.mp4"), 2, 25, size="640:360")
        grown_mib, num_decoders = damaged(short.read_bytes(), Path(folder))
    spreads: dict[str, Spread] = {name: spread(found) for name, found in rates.items()}
    keep(
        "pixels",
        {
            "film": f"{asked.film.name}, 1920x1080, 25 a second, {num} pictures",
            "pictures_a_second": spreads,
            "decode_to_ffmpeg": at_least(ratio(rates["decode"], rates["ffmpeg"]), 0.95),
            **(
                {"rgb_to_torchcodec": at_least(ratio(rates["rgb"], rates["torchcodec"]), 1.0)}
                if asked.torchcodec
                else {}
            ),
            "prepared_to_by_hand": at_least(ratio(rates["prepared"], rates["by hand"]), 2.0),
            "prepared_to_antialiased": round(ratio(rates["prepared"], rates["by hand, antialiased"]), 3),
            "prepared_to_decode": at_least(ratio(rates["prepared"], rates["decode, all cores"]), 0.85),
            "sparse_camera": at_least(ratio(rates["sparse, camera"], rates["every, camera"]), 5.0),
            "sparse_default": round(ratio(rates["sparse, default"], rates["every, default"]), 3),
            "times_decoded_for_five_stages": at_most(once, 1.0),
            "damaged": {
                "num_films": NUM_DAMAGED,
                "grown_mib": at_most(grown_mib, 16.0),
                "decoders_kept": at_most(num_decoders, decoders.MAX_IDLE_DECODERS),
            },
        },
    )


if __name__ == "__main__":
    main()
