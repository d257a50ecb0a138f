"""What detectors of objects have in common: which frames they look at, what comes of it, and how a model is run.

A model says what it takes (`TAKES`) and what its outputs mean (`boxes_of`); everything else is here. Frames are put to
it one by one: convolutions of several at once differ in their last bits, and a result must not depend on its company.
"""

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from engine.spec.operator import Device, Inputs, Machine, Operator, Settings
from operators import weights
from operators.capabilities import DETECT_OBJECTS, DetectObjectsParams
from operators.media.pictures import FrameSpec, no_pictures, tensors
from operators.media.pixels import TensorSpec
from operators.media.taking import Tensors, tensors_of
from operators.seen import DetectedObject, Objects
from streams.records import MediaInfo

SAME = 0.5  # intersection over union of boxes that are one object
MAX_OBJECTS = 100  # of a frame
STRIDES = (8, 16, 32)

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


class Detector:
    """A model, loaded. Deterministic: a frame gives the same in any company."""

    def __init__(self, folder: Path, num_threads: int, takes: TensorSpec) -> None:
        import onnxruntime  # long to load

        self.takes = takes
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
        options.log_severity_level = 3
        path = str(folder / "model.onnx")
        self._session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        (self._input,) = (each.name for each in self._session.get_inputs())
        self._outputs = [each.name for each in self._session.get_outputs()]

    @abstractmethod
    def boxes_of(self, outputs: Mapping[str, Floats], threshold: float, wanted: Collection[str]) -> list[Box]:
        """The objects of what the model gave for one picture, of these classes or of all, the surest first, in
        fractions of what the model sees."""

    def boxes(self, pictures: Tensors, threshold: float, wanted: Collection[str] = ()) -> list[list[Box]]:
        """The objects of each picture, brought to what the model takes; in fractions of the picture."""
        shown = pictures.shown
        scale = shown.width / self.takes.width, shown.height / self.takes.height
        found: list[list[Box]] = []
        for pixels in pictures.batches(1):
            outputs = self._session.run(self._outputs, {self._input: pixels})
            boxes = self.boxes_of(dict(zip(self._outputs, outputs, strict=True)), threshold, wanted)
            found.append([_scaled(box, scale) for box in boxes[:MAX_OBJECTS]])
        return found

    def objects_of(self, image: NDArray[np.uint8], threshold: float, wanted: Collection[str] = ()) -> list[Box]:
        """Those of one picture, uint8 [H, W, 3], RGB."""
        (boxes,) = self.boxes(tensors_of(image[None], self.takes), threshold, wanted)
        return boxes


class Detecting(Operator):
    """Objects in sampled frames."""

    capability = DETECT_OBJECTS
    max_batch = 4
    Knobs = DetectKnobs
    knobs: DetectKnobs
    Model: ClassVar[type[Detector]]
    _model: Detector

    @classmethod
    @abstractmethod
    def weights_of(cls, knobs: Any) -> str:
        """The name of a rung's weights."""

    @classmethod
    @abstractmethod
    def takes_of(cls, knobs: Any) -> TensorSpec:
        """What a rung's model takes."""

    @classmethod
    def missing(cls, knobs: Any, machine: Machine, media: MediaInfo | None) -> str | None:
        return no_pictures(media) or weights.lacking(cls.weights_of(knobs))

    def demands(self) -> tuple[Any, ...]:
        return (self._spec,)

    @property
    def _spec(self) -> FrameSpec:
        interval_ns, slack_ns = self.knobs.interval_ms * 1_000_000, self.knobs.slack_ms * 1_000_000
        return FrameSpec(interval_ns=interval_ns, slack_ns=slack_ns, tensor=self.takes_of(self.knobs))

    def load(self, device: Device) -> None:
        folder = weights.folder_of(self.weights_of(self.knobs))
        self._model = self.Model(folder, device.num_threads, self.takes_of(self.knobs))

    def process(self, batch: Sequence[Inputs]) -> Sequence[Objects]:
        return [self._objects(item) for item in batch]

    def _objects(self, item: Inputs) -> Objects:
        params: DetectObjectsParams = item.params
        sampled = tensors(item.here("media"), self._spec)
        boxes = self._model.boxes(sampled, self.knobs.threshold, frozenset(params.objects))
        times = sampled.times_ns.tolist()
        found = [_seen(box, at_ns) for at_ns, some in zip(times, boxes, strict=True) for box in some]
        return Objects(observations=tuple(found), times_ns=tuple(times))


def _seen(box: Box, at_ns: int) -> DetectedObject:
    where = (round(box.x, 4), round(box.y, 4), round(box.width, 4), round(box.height, 4))
    return DetectedObject(start_ns=at_ns, end_ns=at_ns, text=box.name, confidence=round(box.score, 4), box=where)


def _scaled(box: Box, scale: tuple[float, float]) -> Box:
    """Of what the model sees, in fractions of the frame."""
    if scale == (1.0, 1.0):
        return box
    x, y = (min(1.0, side / share) for side, share in zip((box.x, box.y), scale, strict=True))
    width, height = min(1.0 - x, box.width / scale[0]), min(1.0 - y, box.height / scale[1])
    return Box(box.name, box.score, x, y, width, height)


@cache
def cells(side: int) -> tuple[Floats, Floats]:
    """The cells of three grids over a square, of S = 8, 16 and 32 pixels, the finest first: column and row of each,
    float32 [cells, 2], and its S, float32 [cells]."""
    at, strides = [], []
    for stride in STRIDES:
        num = -(-side // stride)
        rows, columns = np.divmod(np.arange(num * num), num)
        at.append(np.stack([columns, rows], axis=1))
        strides.append(np.full(num * num, stride))
    return np.concatenate(at).astype(np.float32), np.concatenate(strides).astype(np.float32)


def surest(
    scores: Floats, names: Sequence[str], threshold: float, wanted: Collection[str]
) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """Of cells, float32 [cells, classes], those whose surest class is sure enough and wanted, or any where none is: by
    number, with that class and how sure it is."""
    best = scores.argmax(axis=1)
    sure = scores[np.arange(len(scores)), best]
    is_wanted = np.array([not wanted or name in wanted for name in names])
    kept = np.flatnonzero((sure >= threshold) & is_wanted[best])
    return kept, best[kept], sure[kept]


def distinct(
    names: Sequence[str], classes: NDArray[np.intp], scores: Floats, corners: NDArray[np.floating[Any]], least: float
) -> list[Box]:
    """Of boxes of one class that overlap by more than SAME that with the best score, the surest first; none narrower
    than `least`. corners: [N, 4], x, y, width, height, in fractions of what the model sees."""
    import cv2  # long to load

    order = cv2.dnn.NMSBoxesBatched(corners.tolist(), scores.tolist(), classes.tolist(), 0.0, SAME)
    found = [
        Box(names[classes[at]], float(scores[at]), *corners[at].tolist())
        for at in np.asarray(order, int).reshape(-1)
        if min(corners[at, 2:]) >= least
    ]
    return sorted(found, key=lambda box: (-box.score, box.name, box.x, box.y))
