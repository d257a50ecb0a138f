"""What is kept of the pictures that a decoder gives: for each who asked, those that are taken, as asked for."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from operators.media.pixels import Filled, TensorSpec, filled
from operators.media.pixels_host import HostScaling, normalised
from streams.records import Track

if TYPE_CHECKING:
    from operators.media.pictures import FrameSpec


@dataclass
class Frames:
    """`times_ns`: int64 [N], ascending media time. `images`: uint8 [N, H, W, 3] RGB or [N, H, W], upright,
    C-contiguous, host memory, read-only: all who look at a segment look at the same. All of one size: that of the
    first one, scaled."""

    times_ns: NDArray[np.int64]
    images: NDArray[np.uint8]
    path: str = ""

    def __post_init__(self) -> None:
        self.times_ns.flags.writeable = self.images.flags.writeable = False

    @property
    def nbytes(self) -> int:
        return self.times_ns.nbytes + self.images.nbytes


@dataclass
class Tensors:
    """Pictures as a model takes them, but for normalisation. `times_ns`: int64 [N], ascending media time. `scaled`:
    uint8 [N, 3, H, W], channels in the order of `spec`, upright, C-contiguous, host memory, read-only. `size`: width
    and height of the upright pictures as they were; `shown`: the part of the tensor that shows them."""

    times_ns: NDArray[np.int64]
    scaled: NDArray[np.uint8]
    spec: TensorSpec
    size: tuple[int, int]
    shown: Filled
    path: str = ""

    def __post_init__(self) -> None:
        self.times_ns.flags.writeable = self.scaled.flags.writeable = False

    @property
    def nbytes(self) -> int:
        return self.times_ns.nbytes + self.scaled.nbytes

    def batches(self, num: int) -> Iterator[NDArray[Any]]:
        """What the model takes, so many pictures at a time, the last batch perhaps fewer; of float32 NCHW each batch is
        written over the one before."""
        reused: NDArray[np.float32] | None = None
        for start in range(0, len(self.scaled), num):
            some = self.scaled[start : start + num]
            if reused is None:
                reused = np.empty(some.shape, np.float32)
            yield normalised(some, self.spec, reused[: len(some)])


def tensors_of(images: NDArray[np.uint8], spec: TensorSpec) -> Tensors:
    """Pictures at hand, uint8 [N, H, W, 3], RGB, as a model takes them; their times are their numbers."""
    scaled, scaling = np.empty((len(images), 3, spec.height, spec.width), np.uint8), HostScaling()
    for image, out in zip(images, scaled, strict=True):
        scaling.scale(VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24"), spec, out)
    height, width = images.shape[1:3]
    return Tensors(np.arange(len(images)), scaled, spec, (width, height), filled(width, height, spec))


@dataclass(slots=True)
class Each:
    """The first one at or after each multiple of an interval."""

    next_ns: int
    interval_ns: int

    def __call__(self, at_ns: int) -> bool:
        if at_ns < self.next_ns:
            return False
        if self.interval_ns > 0:
            self.next_ns = (at_ns // self.interval_ns + 1) * self.interval_ns
        return True


class Behind:
    """The first one at or after each of these times."""

    def __init__(self, times_ns: Iterable[int]) -> None:
        self._left = sorted(times_ns, reverse=True)

    def __call__(self, at_ns: int) -> bool:
        is_wanted = bool(self._left) and at_ns >= self._left[-1]
        while self._left and at_ns >= self._left[-1]:
            self._left.pop()
        return is_wanted


class Listed:
    """Those of these times, each once."""

    def __init__(self, times_ns: Iterable[int]) -> None:
        self._left = set(times_ns)

    def __call__(self, at_ns: int) -> bool:
        is_wanted = at_ns in self._left
        self._left.discard(at_ns)
        return is_wanted


@dataclass(slots=True)
class Taken:
    """The pictures taken for one spec."""

    spec: "FrameSpec"
    takes: Callable[[int], bool]  # whether a picture of that time; asked in order of time
    rotation: int = 0
    size: tuple[int, int] = (0, 0)
    reformatter: VideoReformatter = field(default_factory=VideoReformatter)
    times_ns: list[int] = field(default_factory=list)
    images: list[NDArray[np.uint8]] = field(default_factory=list)

    def offer(self, frame: VideoFrame, at_ns: int) -> None:
        if not self.takes(at_ns):
            return
        if not self.images:
            self.size = self._scaled(frame.width, frame.height)
        pixels = "gray" if self.spec.pixels == "gray8" else "rgb24"
        scaled = self.reformatter.reformat(frame, *self.size, pixels, threads=1)
        image = _view(scaled)
        self.images.append(np.rot90(image, self.rotation // 90) if self.rotation else image)
        self.times_ns.append(at_ns)

    def _scaled(self, width: int, height: int) -> tuple[int, int]:
        upright_width = height if self.rotation % 180 else width
        scale = min(1.0, self.spec.max_width / upright_width) if self.spec.max_width else 1.0
        return max(1, round(width * scale)), max(1, round(height * scale))

    def result(self) -> Frames:
        times_ns = np.array(self.times_ns, dtype=np.int64)
        order = np.argsort(times_ns, kind="stable")
        if not self.images:
            return Frames(times_ns, np.zeros((0, 0, 0, 3) if self.spec.pixels == "rgb24" else (0, 0, 0), np.uint8))
        images = np.empty((len(order), *self.images[0].shape), np.uint8)
        for place, at in enumerate(order):  # one by one, so that they are never all held twice
            images[place] = self.images[at]
            self.images[at] = images[place]
        return Frames(times_ns[order], images)


@dataclass(slots=True)
class Scaled:
    """The pictures taken for one spec with a tensor; `num` of them at most."""

    spec: "FrameSpec"
    takes: Callable[[int], bool]
    num: int
    rotation: int = 0
    size: tuple[int, int] = (0, 0)
    scaling: HostScaling = field(default_factory=HostScaling)
    times_ns: list[int] = field(default_factory=list)
    scaled: NDArray[np.uint8] | None = None

    @property
    def tensor(self) -> TensorSpec:
        return cast(TensorSpec, self.spec.tensor)

    def offer(self, frame: VideoFrame, at_ns: int) -> None:
        if not self.takes(at_ns) or len(self.times_ns) == self.num:
            return
        num_turns = -self.rotation // 90 % 4  # a track says it the other way round
        if self.scaled is None:
            self.scaled = np.empty((self.num, 3, self.tensor.height, self.tensor.width), np.uint8)
            self.size = (frame.height, frame.width) if num_turns % 2 else (frame.width, frame.height)
        self.scaling.scale(frame, self.tensor, self.scaled[len(self.times_ns)], num_turns)
        self.times_ns.append(at_ns)

    def result(self) -> Tensors:
        times_ns = np.array(self.times_ns, dtype=np.int64)
        if self.scaled is None:
            none = np.empty((0, 3, self.tensor.height, self.tensor.width), np.uint8)
            return Tensors(times_ns, none, self.tensor, (0, 0), Filled(0, 0, 0, 0))
        scaled = self.scaled[: len(times_ns)]
        if (np.diff(times_ns) < 0).any():
            order = np.argsort(times_ns, kind="stable")
            times_ns, scaled = times_ns[order], scaled[order]
        return Tensors(times_ns, scaled, self.tensor, self.size, filled(*self.size, self.tensor))


Product = Frames | Tensors


def taking(spec: "FrameSpec", takes: Callable[[int], bool], num: int, track: Track | None) -> Taken | Scaled:
    rotation = track.rotation % 360 // 90 * 90 if track is not None else 0
    return Taken(spec, takes, rotation) if spec.tensor is None else Scaled(spec, takes, num, rotation)


def _view(frame: VideoFrame) -> NDArray[np.uint8]:
    """A frame of rgb24 or gray as it lies there, uint8 [H, W, 3] or [H, W]: it is copied once, in the end."""
    plane = frame.planes[0]
    rows = np.frombuffer(cast(Any, plane), np.uint8).reshape(-1, plane.line_size)[: frame.height]
    if frame.format.name == "rgb24":
        return rows[:, : 3 * frame.width].reshape(frame.height, frame.width, 3)
    return rows[:, : frame.width]
