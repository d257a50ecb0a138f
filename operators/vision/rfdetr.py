"""Finds objects in sampled frames by RF-DETR (ONNX Runtime), where its weights are brought here.

The model looks at the whole frame stretched to a square, RGB, normalised as ImageNet's pictures are. Of each of its
queries it gives a box as centre, width and height in fractions of the frame (`dets`), and a logit for each of COCO's 91
category numbers (`labels`), of which eleven are no class: sigmoid(logit) is how sure it is. Queries do not double each
other, so none is taken away.

Weights: an unofficial conversion of Roboflow's (Apache-2.0), by hash; or one's own export at
$PENSTOCK_MODELS/rf-detr-nano/model.onnx. Quality is the average precision on COCO that upstream gives (48.4, 53.0). It
was not run here: this machine cannot have the weights; what its outputs mean is tested with a graph of our own.
Source: Robinson et al., RF-DETR, arXiv 2511.09554; rfdetr.roboflow.com, ONNX inference.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import numpy as np

from engine.spec.operator import Rung
from operators.media.pixels import TensorSpec
from operators.vision.coco import CATEGORIES
from operators.vision.detecting import Box, Detecting, DetectKnobs, Detector, Floats

SIDES = {"nano": 384, "small": 512}
BOXES, LOGITS = "dets", "labels"


class RfDetrKnobs(DetectKnobs, frozen=True):
    size: Literal["nano", "small"] = "nano"


class RfDetr(Detector):
    """The model, loaded."""

    def boxes_of(self, outputs: Mapping[str, Floats], threshold: float, wanted: Collection[str]) -> list[Box]:
        logits = outputs[LOGITS][0][:, list(CATEGORIES)]
        scores = 1 / (1 + np.exp(-np.clip(logits, -60, 60)))
        names = list(CATEGORIES.values())
        is_wanted = np.array([not wanted or name in wanted for name in names])
        queries, classes = np.nonzero((scores >= threshold) & is_wanted)
        x, y, width, height = outputs[BOXES][0].T
        low = np.clip(np.stack([x - width / 2, y - height / 2], axis=1), 0, 1)
        size = np.clip(np.stack([x + width / 2, y + height / 2], axis=1), 0, 1) - low
        found = [
            Box(names[number], float(scores[query, number]), *map(float, (*low[query], *size[query])))
            for query, number in zip(queries.tolist(), classes.tolist(), strict=True)
            if size[query].min() > 0
        ]
        return sorted(found, key=lambda box: (-box.score, box.name, box.x, box.y))


class DetectByRfDetr(Detecting):
    """Objects in sampled frames, by RF-DETR."""

    name = "rf-detr"
    Knobs = RfDetrKnobs
    Model = RfDetr

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return (
            Rung("rf-detr-small", 0.53, RfDetrKnobs(size="small")),
            Rung("rf-detr-nano", 0.484, RfDetrKnobs(size="nano")),
        )

    @classmethod
    def weights_of(cls, knobs: RfDetrKnobs) -> str:
        return f"rf-detr-{knobs.size}"

    @classmethod
    def takes_of(cls, knobs: RfDetrKnobs) -> TensorSpec:
        side = SIDES[knobs.size]
        return TensorSpec(side, side, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
