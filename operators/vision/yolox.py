"""Finds objects in sampled frames by YOLOX (ONNX Runtime), where its weights are put.

The model looks at the frame at the upper left of a square, with grey (114) beside it, BGR, 0 to 255 as it is. For each
cell (i, j) of three grids, of S = 8, 16 and 32 pixels, it gives, in this order and the finest grid first,

    x = (tx + j) S    y = (ty + i) S    width = exp(tw) S    height = exp(th) S

an objectness and a score for each of COCO's 80 classes; how sure it is, is their product. Boxes of one class that
overlap by half are one object.

Weights: Megvii's (Apache-2.0) as their releases have them, or one's own export, at $PENSTOCK_MODELS/yolox-s/model.onnx.
Quality is the average precision on COCO that upstream gives (40.5, 32.8). It was not run here: this machine cannot have
the weights; what its outputs mean is tested with a graph of our own.
Source: Ge et al., YOLOX, arXiv 2107.08430; github.com/Megvii-BaseDetection/YOLOX, demo/ONNXRuntime.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import numpy as np

from engine.spec.operator import Rung
from operators.media.pixels import TensorSpec
from operators.vision.coco import NAMES
from operators.vision.detecting import Box, Detecting, DetectKnobs, Detector, Floats, cells, distinct, surest

SIDES = {"s": 640, "tiny": 416}


class YoloxKnobs(DetectKnobs, frozen=True):
    size: Literal["s", "tiny"] = "s"


class Yolox(Detector):
    """The model, loaded."""

    def boxes_of(self, outputs: Mapping[str, Floats], threshold: float, wanted: Collection[str]) -> list[Box]:
        (rows,) = (each[0] for each in outputs.values())
        scores = rows[:, 4:5] * rows[:, 5:]
        kept, classes, sure = surest(scores, NAMES, threshold, wanted)
        if not len(kept):
            return []
        side = self.takes.width
        at, strides = cells(side)
        middle = (rows[kept, :2] + at[kept]) * strides[kept, None]
        size = np.exp(np.clip(rows[kept, 2:4], -20, 20)) * strides[kept, None]
        low, high = (np.clip(corner, 0, side) for corner in (middle - size / 2, middle + size / 2))
        corners = np.concatenate([low, high - low], axis=1).astype(np.float32) / side
        return distinct(NAMES, classes, sure, corners, 1 / side)


class DetectByYolox(Detecting):
    """Objects in sampled frames, by YOLOX."""

    name = "yolox"
    Knobs = YoloxKnobs
    Model = Yolox

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return (
            Rung("yolox-s", 0.405, YoloxKnobs(size="s")),
            Rung("yolox-tiny", 0.328, YoloxKnobs(size="tiny")),
        )

    @classmethod
    def weights_of(cls, knobs: YoloxKnobs) -> str:
        return f"yolox-{knobs.size}"

    @classmethod
    def takes_of(cls, knobs: YoloxKnobs) -> TensorSpec:
        side = SIDES[knobs.size]
        return TensorSpec(side, side, fit="letterbox", place="top_left", std=(1.0, 1.0, 1.0), order="bgr")
