"""How well people are found and followed, on a clip and labels that nobody here made.

The clip is `vtest.avi` of Debian's opencv-doc: PETS 2009, S2.L1, view 1, 795 frames at 10 a second. Its labels are
those of MOTChallenge 2015 (PETS09-S2L1/gt/gt.txt; CC BY-NC-SA, so they are not kept here): give their place. All
figures are of what `penstock run` found, by the rung it chose; the peer is the same model by itself, on each fifth
frame as OpenCV decodes it, at any threshold.

    precision, recall: of boxes that overlap a label by half (intersection over union), each label once
    AP: area under precision over recall, every threshold, no interpolation
    MOTA, IDF1, switches: by py-motmetrics (`pip install motmetrics`), at the frames that were looked at

    objects.py --labels gt.txt [--clip vtest.avi]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measure import at_least, keep, say
from numpy.typing import NDArray

from operators import weights
from operators.vision.detect_objects import NAME, TAKES, NanoDet

CLIP = Path("/usr/share/doc/opencv-doc/examples/data/vtest.avi")
OVERLAP = 0.5
ALONE = 0.90  # precision and recall of the model by itself at 0.40, as measured before the operator was written
STAGES = {
    "objects": '[stages.objects]\ncapability = "detect_objects"\ninputs = { media = "media" }\n'
    'params = { objects = ["person"] }\n',
    "tracks": '[stages.tracks]\ncapability = "track_objects"\ninputs = { objects = "objects" }\n',
}

Boxes = NDArray[np.float64]  # [N, 4]: left, top, width, height, in pixels
Labels = Mapping[int, tuple[NDArray[np.int64], Boxes]]  # by frame, from 0: who, and where
Found = Mapping[int, tuple[NDArray[np.float64], Boxes]]  # by frame: how sure, or which track; and where


def labels_of(path: Path) -> Labels:
    rows = np.loadtxt(path, delimiter=",", ndmin=2)
    frames = rows[:, 0].astype(int) - 1
    return {int(at): (rows[frames == at, 1].astype(np.int64), rows[frames == at, 2:6]) for at in np.unique(frames)}


def found_by_a_run(clip: Path, stages: Sequence[str]) -> list[dict[str, Any]]:
    """What the last of these stages found, an output a segment."""
    with tempfile.TemporaryDirectory() as folder:
        workflow = Path(folder, "objects.toml")
        workflow.write_text('name = "objects"\n' + "".join(STAGES[name] for name in stages))
        command = [sys.executable, "-m", "penstock", "run", str(workflow), "--input", str(clip), "--json"]
        done = subprocess.run(
            [*command, "--store", str(Path(folder, "store"))], stdout=subprocess.PIPE, check=True, timeout=900
        )
    return [json.loads(line)["output"] for line in done.stdout.splitlines()]


def overlaps(a: Boxes, b: Boxes) -> NDArray[np.float64]:
    """Intersection over union, [len(a), len(b)]."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum((a[:, :2] + a[:, 2:])[:, None], (b[:, :2] + b[:, 2:])[None])
    shared = np.prod(np.maximum(high - low, 0), axis=2)
    together = np.prod(a[:, 2:], 1)[:, None] + np.prod(b[:, 2:], 1)[None] - shared
    shares: NDArray[np.float64] = shared / np.maximum(together, 1e-9)
    return shares


def judged(found: Found, labels: Labels) -> tuple[NDArray[np.float64], NDArray[np.bool_], int]:
    """How sure of each box, whether it is right, and how many labels there were: the surest first."""
    sure: list[float] = []
    right: list[bool] = []
    num_labels = 0
    for at, (scores, boxes) in found.items():
        _, truth = labels.get(at, (np.zeros(0), np.zeros((0, 4))))
        num_labels += len(truth)
        free = np.ones(len(truth), bool)
        shared = overlaps(boxes, truth)
        for one in np.argsort(-scores, kind="stable"):
            best = int(np.argmax(np.where(free, shared[one], -1))) if len(truth) else -1
            is_right = best >= 0 and bool(free[best]) and shared[one, best] >= OVERLAP
            if is_right:
                free[best] = False
            sure.append(float(scores[one]))
            right.append(is_right)
    order = np.argsort(-np.array(sure), kind="stable")
    return np.array(sure)[order], np.array(right, bool)[order], num_labels


def precision_and_recall(found: Found, labels: Labels, threshold: float = 0.0) -> tuple[float, float]:
    sure, right, num_labels = judged(found, labels)
    kept = right[sure >= threshold]
    return float(kept.mean()), float(kept.sum() / num_labels)


def average_precision(found: Found, labels: Labels) -> float:
    _, right, num_labels = judged(found, labels)
    return float((np.cumsum(right) / np.arange(1, len(right) + 1))[right].sum() / num_labels)


def objects_of(outputs: Sequence[dict[str, Any]], size: NDArray[np.float64], fps: float) -> Found:
    by_time: dict[int, list[tuple[float, list[float]]]] = defaultdict(list)
    for output in outputs:
        for at_ns in output.get("times_ns", ()):
            by_time[at_ns] = []
        for each in output["observations"]:
            by_time[each["start_ns"]].append((each["confidence"], each["box"]))
    return _by_frame(by_time, size, fps)


def tracks_of(outputs: Sequence[dict[str, Any]], size: NDArray[np.float64], fps: float) -> Found:
    by_time: dict[int, list[tuple[float, list[float]]]] = defaultdict(list)
    for output in outputs:
        for each in output["observations"]:
            for at_ns, box, *_ in each["path"]:
                by_time[at_ns].append((each["track"], box))
    return _by_frame(by_time, size, fps)


def _by_frame(
    by_time: Mapping[int, Sequence[tuple[float, list[float]]]], size: NDArray[np.float64], fps: float
) -> Found:
    return {
        round(at_ns * fps / 1e9): (
            np.array([value for value, _ in some], float),
            np.array([box for _, box in some], float).reshape(-1, 4) * np.tile(size, 2),
        )
        for at_ns, some in by_time.items()
    }


def by_itself(clip: Path, every: int) -> tuple[Found, NDArray[np.float64], float]:
    """The model alone, on every so-many-th frame; and the size of a frame and how many there are a second."""
    import cv2

    model = NanoDet(weights.folder_of(NAME), 1, TAKES)
    film = cv2.VideoCapture(str(clip))
    size = np.array([film.get(cv2.CAP_PROP_FRAME_WIDTH), film.get(cv2.CAP_PROP_FRAME_HEIGHT)])
    found: dict[int, tuple[NDArray[np.float64], Boxes]] = {}
    at = 0
    while (read := film.read())[0]:
        if at % every == 0:
            boxes = model.objects_of(np.asarray(read[1], np.uint8)[:, :, ::-1], 0.02, ("person",))
            where = np.array([each[2:] for each in boxes], float).reshape(-1, 4) * np.tile(size, 2)
            found[at] = np.array([each.score for each in boxes]), where
        at += 1
    return found, size, float(film.get(cv2.CAP_PROP_FPS))


def followed(tracks: Found, looked_at: Sequence[int], labels: Labels) -> dict[str, float]:
    """How well, by py-motmetrics; frames that were not looked at do not count."""
    import motmetrics

    account = motmetrics.MOTAccumulator(auto_id=True)
    for at in looked_at:
        who, where = labels.get(at, (np.zeros(0, int), np.zeros((0, 4))))
        ids, boxes = tracks.get(at, (np.zeros(0), np.zeros((0, 4))))
        distances = 1 - overlaps(where, boxes)
        distances[distances > 1 - OVERLAP] = np.nan
        account.update(who.tolist(), ids.astype(int).tolist(), distances)
    names = ["mota", "idf1", "num_switches", "num_fragmentations", "num_unique_objects"]
    summary = motmetrics.metrics.create().compute(account, metrics=names).iloc[0]
    num_tracks = len({int(each) for ids, _ in tracks.values() for each in ids})
    return {name: round(float(summary[name]), 4) for name in names} | {"num_tracks": num_tracks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--clip", type=Path, default=CLIP)
    asked = parser.parse_args()
    labels = labels_of(asked.labels)
    alone, size, fps = by_itself(asked.clip, every=5)
    alone_precision, alone_recall = precision_and_recall(alone, labels, 0.4)
    say(f"alone: precision {alone_precision:.3f}, recall {alone_recall:.3f}, AP {average_precision(alone, labels):.3f}")
    found = objects_of(found_by_a_run(asked.clip, ["objects"]), size, fps)
    precision, recall = precision_and_recall(found, labels)
    say(f"penstock run, {len(found)} frames: precision {precision:.3f}, recall {recall:.3f}")
    tracks = tracks_of(found_by_a_run(asked.clip, ["objects", "tracks"]), size, fps)
    follow = followed(tracks, sorted(found), labels)
    say(f"followed: {follow}")
    keep(
        "objects",
        {
            "clip": asked.clip.name,
            "num_frames": len(found),
            "precision": at_least(precision, ALONE - 0.02),
            "recall": at_least(recall, ALONE - 0.02),
            "alone": {
                "num_frames": len(alone),
                "precision": round(alone_precision, 4),
                "recall": round(alone_recall, 4),
                "average_precision": round(average_precision(alone, labels), 4),
            },
            "followed": follow,
        },
    )


if __name__ == "__main__":
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
    main()
