"""Decodes the pictures of a segment once for everybody who asked, in host memory, and only those they asked for.

What has to be decoded for them is worked out from the packets first (`operators.media.choosing`). Pictures are
converted and scaled one by one as they leave the decoder. For whom damage keeps one back that was chosen, all packets
are decoded, and the first picture that comes at or after each multiple of the interval is taken.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from engine.spec.operator import Media
from operators.media.choosing import Shown, chosen, runs_for
from operators.media.decoders import Decoding, owns, packets_of, path_of, put_back, taken_decoder, undecodable
from operators.media.pixels import Filled, TensorSpec, filled
from operators.media.pixels_host import HostScaling, normalised
from operators.media.references import is_unordered, unreferenced
from streams.errors import Permanent
from streams.media.probe import BAD_MEDIA, time_ns
from streams.records import Packet, Segment, Track


@dataclass(frozen=True)
class FrameSpec:
    """Which pictures, and how. With an interval, the first picture at or after each multiple of it in media time,
    wherever the stream is cut (with a variable frame rate, a multiple just before a segment may be taken twice or not
    at all). With a slack, below the interval, a keyframe that comes no later than that behind the multiple is taken in
    its place, for a fraction of the cost."""

    interval_ns: int = 0  # 0: every picture
    max_width: int | None = None  # of the upright picture; smaller ones are not enlarged
    pixels: Literal["rgb24", "gray8"] = "rgb24"  # gray8: luma, black 0, white 255
    slack_ns: int = 0
    tensor: TensorSpec | None = None  # pictures as a model takes them: `Tensors`, and neither of the two above counts

    @classmethod
    def decode(cls, segment: Segment, wanted: Sequence["FrameSpec"]) -> Mapping["FrameSpec", "Frames | Tensors"]:
        """Pictures for all of them, by one decode (engine.spec.operator.Demand)."""
        return _decode_pictures(segment, wanted)


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


def tensors(media: Media, spec: FrameSpec) -> Tensors:
    """As `frames`, for a spec with a tensor."""
    decoded = media.products.get(spec)
    return cast(Tensors, decoded if decoded is not None else _decode_pictures(media.segment, [spec])[spec])


def tensors_of(images: NDArray[np.uint8], spec: TensorSpec) -> Tensors:
    """Pictures at hand, uint8 [N, H, W, 3], RGB, as a model takes them; their times are their numbers."""
    scaled, scaling = np.empty((len(images), 3, spec.height, spec.width), np.uint8), HostScaling()
    for image, out in zip(images, scaled, strict=True):
        scaling.scale(VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24"), spec, out)
    height, width = images.shape[1:3]
    return Tensors(np.arange(len(images)), scaled, spec, (width, height), filled(width, height, spec))


def frames(media: Media, spec: FrameSpec) -> Frames:
    """The pictures a segment owns. None (N = 0) where it has no video.

    What was decoded ahead is used; else it is decoded now. Partial damage costs the damaged pictures only. Raises
    Permanent where there are packets and not one picture can be had from them.
    """
    decoded = media.products.get(spec)
    return cast(Frames, decoded if decoded is not None else _decode_pictures(media.segment, [spec])[spec])


def each_picture(segment: Segment) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Every picture a segment owns that can be had, in order of time, one after the other: its media time in ns and
    uint8 [H, W, 3], RGB, upright, C-contiguous. Raises Permanent where there is no decoder for it."""
    track, packets = packets_of(segment, "video")
    if track is None or not packets:
        return
    decoding = taken_decoder(segment, track, packets)
    one = _Taken(FrameSpec(), lambda at_ns: True, track.rotation % 360 // 90 * 90)
    in_order = (each.at_ns for each in (_shown(segment, track, packets) if is_unordered(track, packets) else ()))
    for frame, at_ns in _owned_pictures(segment, decoding, packets):
        try:
            one.offer(frame, at_ns)
        except BAD_MEDIA:
            continue
        said_ns = one.times_ns.pop()
        yield next(in_order, said_ns), np.ascontiguousarray(one.images.pop())
    put_back(decoding, packets)


def picture_at(segment: Segment, at_ns: int) -> tuple[int, NDArray[np.uint8]]:
    """What is seen of a segment at a moment: the last picture at or before it, or the first; its media time in ns and
    uint8 [H, W, 3], RGB, upright. No more is decoded than that takes. Raises Permanent where there is none."""
    track, packets = packets_of(segment, "video")
    shown = [] if track is None else [each.at_ns for each in _shown(segment, track, packets)]
    if track is None or not shown:
        raise Permanent(f"segment {segment.index} of {segment.stream} has no pictures")
    wanted_ns = max((at for at in shown if at <= at_ns), default=shown[0])
    one = FrameSpec(interval_ns=1)
    found = cast(Frames, _decode_chosen(segment, track, packets, {one: frozenset({wanted_ns})})[0][one])
    if len(found.times_ns):
        return wanted_ns, found.images[0]
    best: tuple[int, NDArray[np.uint8]] | None = None
    for at, image in each_picture(segment):
        if best is None or at <= at_ns:
            best = at, image
    if best is None:
        raise undecodable(segment, track, packets, "")
    return best


@dataclass(slots=True)
class _Each:
    """The first one at or after each multiple of an interval."""

    next_ns: int
    interval_ns: int

    def __call__(self, at_ns: int) -> bool:
        if at_ns < self.next_ns:
            return False
        if self.interval_ns > 0:
            self.next_ns = (at_ns // self.interval_ns + 1) * self.interval_ns
        return True


class _Listed:
    """Those of these times, each once."""

    def __init__(self, times_ns: Iterable[int]) -> None:
        self._left = set(times_ns)

    def __call__(self, at_ns: int) -> bool:
        is_wanted = at_ns in self._left
        self._left.discard(at_ns)
        return is_wanted


@dataclass(slots=True)
class _Taken:
    """The pictures taken for one spec."""

    spec: FrameSpec
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
class _Scaled:
    """The pictures taken for one spec with a tensor; `num` of them at most."""

    spec: FrameSpec
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


def _taking(spec: FrameSpec, takes: Callable[[int], bool], num: int, track: Track | None) -> _Taken | _Scaled:
    rotation = track.rotation % 360 // 90 * 90 if track is not None else 0
    return _Taken(spec, takes, rotation) if spec.tensor is None else _Scaled(spec, takes, num, rotation)


def _view(frame: VideoFrame) -> NDArray[np.uint8]:
    """A frame of rgb24 or gray as it lies there, uint8 [H, W, 3] or [H, W]: it is copied once, in the end."""
    plane = frame.planes[0]
    rows = np.frombuffer(cast(Any, plane), np.uint8).reshape(-1, plane.line_size)[: frame.height]
    if frame.format.name == "rgb24":
        return rows[:, : 3 * frame.width].reshape(frame.height, frame.width, 3)
    return rows[:, : frame.width]


def _decode_pictures(segment: Segment, specs: Sequence[FrameSpec]) -> dict[FrameSpec, Product]:
    track, packets = packets_of(segment, "video")
    if track is None or not packets:
        return {spec: _taking(spec, _Each(0, 0), 0, None).result() for spec in specs}
    shown = _shown(segment, track, packets)
    chosen_ns = {
        spec: frozenset(chosen(shown, _first_wanted(spec, segment), spec.interval_ns, spec.slack_ns)) for spec in specs
    }
    found: dict[FrameSpec, Product] = {}
    lost = list(specs)
    if not is_unordered(track, packets):
        found, is_damaged = _decode_chosen(segment, track, packets, chosen_ns)
        lost = [spec for spec in specs if not _is_whole(spec, found[spec], chosen_ns[spec], is_damaged)]
    if lost:
        found |= _decode_all(segment, track, packets, lost)
    for product in found.values():
        product.path = path_of(track)
    return found


def _is_whole(spec: FrameSpec, found: Product, chosen_ns: Set[int], is_damaged: bool) -> bool:
    """Whether all came that there can be: of every picture, those that are not damaged. Of some, where damage was met
    on the way, what they look like may depend on what else was decoded."""
    if spec.interval_ns <= 0:
        return len(found.times_ns) > 0 or not chosen_ns
    return chosen_ns <= set(found.times_ns.tolist()) and not is_damaged


def _decode_chosen(
    segment: Segment, track: Track, packets: Sequence[Packet], chosen_ns: Mapping[FrameSpec, Set[int]]
) -> tuple[dict[FrameSpec, Product], bool]:
    """Those of the chosen pictures that come when what is needed for them is decoded; and whether some of that is
    damaged."""
    all_ns = frozenset[int]().union(*chosen_ns.values())
    wanted = {at for at, packet in enumerate(packets) if _at_ns(segment, track, packet.pts) in all_ns}
    taken = [
        _taking(spec, _Listed(times_ns) if spec.interval_ns > 0 else _Each(0, 0), len(times_ns), track)
        for spec, times_ns in chosen_ns.items()
    ]
    decoding = taken_decoder(segment, track, packets)
    for run in runs_for(packets, unreferenced(track, packets), wanted):
        _offer_pictures(segment, decoding, [packets[at] for at in run], taken)
    put_back(decoding, packets)
    return {each.spec: each.result() for each in taken}, bool(decoding.reason)


def _decode_all(
    segment: Segment, track: Track, packets: Sequence[Packet], specs: Sequence[FrameSpec]
) -> dict[FrameSpec, Product]:
    """The first picture at or after each multiple, of those that come when everything is decoded."""
    taken = [
        _taking(spec, _Each(_first_wanted(spec, segment), spec.interval_ns), len(packets), track) for spec in specs
    ]
    decoding = taken_decoder(segment, track, packets)
    num_owned = _offer_pictures(segment, decoding, packets, taken)
    owned = [packet for packet in packets if owns(segment, track, packet)]
    if owned and not num_owned:
        raise undecodable(segment, track, owned, decoding.reason)
    put_back(decoding, packets)
    return {each.spec: each.result() for each in taken}


def _offer_pictures(
    segment: Segment, decoding: Decoding, packets: Sequence[Packet], taken: Sequence[_Taken | _Scaled]
) -> int:
    """To all of them, those that the segment owns; how many that were."""
    num_owned = 0
    for frame, at_ns in _owned_pictures(segment, decoding, packets):
        try:
            for each in taken:
                each.offer(frame, at_ns)
            num_owned += 1
        except BAD_MEDIA as error:
            decoding.reason = decoding.reason or str(error).splitlines()[0]
    return num_owned


def _owned_pictures(
    segment: Segment, decoding: Decoding, packets: Sequence[Packet]
) -> Iterator[tuple[VideoFrame, int]]:
    end_ns = segment.start_ns + segment.duration_ns
    for frame in decoding.run(packets):
        ticks = frame.pts if frame.pts is not None else frame.dts
        if ticks is None:
            continue
        at_ns = _at_ns(segment, decoding.track, ticks)
        if segment.start_ns <= at_ns < end_ns:
            yield frame, at_ns


def _at_ns(segment: Segment, track: Track, ticks: int) -> int:
    return time_ns(ticks, track.time_base, segment.origin_ns)


def _shown(segment: Segment, track: Track, packets: Sequence[Packet]) -> list[Shown]:
    """The pictures that the segment owns, by what its packets say."""
    owned = (packet for packet in packets if owns(segment, track, packet))
    shown = [Shown(_at_ns(segment, track, packet.pts), packet.keyframe) for packet in owned]
    return sorted(shown, key=lambda each: each.at_ns)


def _first_wanted(spec: FrameSpec, segment: Segment) -> int:
    """The first multiple of the interval after the picture before the segment, which is one frame duration back."""
    if spec.interval_ns <= 0 or segment.index == 0:
        return 0
    rate = next(track.frame_rate for track in segment.tracks if track.kind == "video")
    before_ns = segment.start_ns - (rate[1] * 1_000_000_000 // rate[0] if rate[0] > 0 else 1)
    return (before_ns // spec.interval_ns + 1) * spec.interval_ns
