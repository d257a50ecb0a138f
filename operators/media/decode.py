"""Decodes a segment once for everybody who asked, in host memory, and keeps only what they asked for.

Pictures are converted and scaled one by one as they leave the decoder. Sound is resampled on a global grid: sample k
of any segment stands at media time k / sample_rate, so the segments of a stream follow each other without a seam. To
that end the decoded sound is laid on a line whose origin is a common multiple of both sample periods (for 44100 to
16000 Hz: every 441st sample in is the 160th out), from a little before the segment to a little after it.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, cast

import av
import numpy as np
from av.codec.context import CodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from engine.spec.operator import Media
from streams.errors import Permanent
from streams.media.probe import BAD_MEDIA, open_decoder, time_ns, to_decoder
from streams.records import Packet, Segment, Track

MAX_IDLE_DECODERS = 4  # kept by each thread
MARGIN_S = 0.02  # of sound resampled beyond both ends of a segment; the filter is far shorter
MAX_DRIFT_S = 0.002  # sound this close to where the packet before it ended follows it exactly


@dataclass(frozen=True)
class FrameSpec:
    """Which pictures, and how. With an interval, the first picture at or after each multiple of it in media time,
    wherever the stream is cut (with a variable frame rate, a multiple just before a segment may be taken twice or not
    at all)."""

    interval_ns: int = 0  # 0: every picture
    max_width: int | None = None  # of the upright picture; smaller ones are not enlarged
    pixels: Literal["rgb24", "gray8"] = "rgb24"  # gray8: luma, black 0, white 255

    @classmethod
    def decode(cls, segment: Segment, wanted: Sequence["FrameSpec"]) -> Mapping["FrameSpec", "Frames"]:
        """Pictures for all of them, by one decode (engine.spec.operator.Demand)."""
        return _decode_pictures(segment, wanted)


@dataclass(frozen=True)
class AudioSpec:
    """Mono, 16 bits."""

    sample_rate: int = 16_000

    @classmethod
    def decode(cls, segment: Segment, wanted: Sequence["AudioSpec"]) -> Mapping["AudioSpec", "Audio"]:
        """Sound for all of them, by one decode (engine.spec.operator.Demand)."""
        return _decode_sound(segment, wanted)


@dataclass
class Frames:
    """`times_ns`: int64 [N], ascending media time. `images`: uint8 [N, H, W, 3] RGB or [N, H, W], upright,
    C-contiguous, host memory, read-only: all who look at a segment look at the same. All of one size: that of the
    segment's first picture, scaled."""

    times_ns: NDArray[np.int64]
    images: NDArray[np.uint8]

    def __post_init__(self) -> None:
        self.times_ns.flags.writeable = self.images.flags.writeable = False

    @property
    def nbytes(self) -> int:
        return self.times_ns.nbytes + self.images.nbytes


@dataclass
class Audio:
    """`samples`: int16 [N], mono, read-only, the first at `start_ns`; silence where sound is missing inside the
    track."""

    start_ns: int
    sample_rate: int
    samples: NDArray[np.int16]

    def __post_init__(self) -> None:
        self.samples.flags.writeable = False

    @property
    def nbytes(self) -> int:
        return self.samples.nbytes


def frames(media: Media, spec: FrameSpec) -> Frames:
    """The pictures a segment owns. None (N = 0) where it has no video.

    What was decoded ahead is used; else it is decoded now. Partial damage costs the damaged pictures only. Raises
    Permanent where there are packets and not one picture can be had from them.
    """
    decoded = media.products.get(spec)
    return cast(Frames, decoded) if decoded is not None else _decode_pictures(media.segment, [spec])[spec]


def audio(media: Media, spec: AudioSpec) -> Audio:
    """The sound a segment owns: every sample with start <= k / sample_rate < end, as far as the track reaches. None
    (N = 0) where it has no sound. Decoded ahead or now, as `frames`. Raises Permanent where there are packets and not
    one sample can be had from them."""
    decoded = media.products.get(spec)
    return cast(Audio, decoded) if decoded is not None else _decode_sound(media.segment, [spec])[spec]


def decode_path(track: Track) -> str:
    """How a track is decoded, for people: "software h264"."""
    try:
        open_decoder(track)
    except (*BAD_MEDIA, RuntimeError):
        return f"none: this build of FFmpeg has no decoder {track.codec}"
    return f"software {track.codec}"


def _packets_of(segment: Segment, kind: str) -> tuple[Track | None, list[Packet]]:
    for index, track in enumerate(segment.tracks):
        if track.kind == kind:
            return track, [packet for packet in segment.packets if packet.track == index]
    return None, []


def _owned(segment: Segment, track: Track, packets: Iterable[Packet]) -> list[Packet]:
    end_ns = segment.start_ns + segment.duration_ns
    return [
        packet
        for packet in packets
        if segment.start_ns <= time_ns(packet.pts, track.time_base, segment.origin_ns) < end_ns
    ]


def _undecodable(segment: Segment, track: Track, lost: Sequence[Packet], reason: str) -> Permanent:
    first = lost[0]
    at_s = time_ns(first.pts, track.time_base, segment.origin_ns) / 1e9
    return Permanent(
        f"segment {segment.index} of {segment.stream}: none of {len(lost)} {track.codec} packets can be decoded, the"
        f" first at byte {first.position}, media time {at_s:.3f} s ({reason or 'the decoder gave nothing back'})"
    )


@dataclass(slots=True)
class _Decoding:
    """One run of a decoder over packets; `reason` is its first complaint."""

    track: Track
    context: CodecContext
    reason: str = ""
    num_frames: int = 0

    def run(self, packets: Iterable[Packet]) -> Iterator[Any]:
        """Every frame that can be had."""
        for packet in packets:
            if packet.data:  # an empty packet would tell the decoder that the stream ends here
                yield from self._frames(to_decoder(packet, self.track.time_base))
        yield from self._frames(None)

    def _frames(self, packet: Any) -> list[Any]:
        try:
            decoded: list[Any] = cast(Any, self.context).decode(packet)
        except BAD_MEDIA as error:
            self.reason = self.reason or str(error).splitlines()[0]
            return []
        self.num_frames += len(decoded)
        return decoded


# --- pictures --------------------------------------------------------------------------------------------


class _Idle(threading.local):
    """Decoders of this thread that wait for the next segment: building one can cost more than using it."""

    def __init__(self) -> None:
        self.decoders: OrderedDict[tuple[Track, int], CodecContext] = OrderedDict()


_idle = _Idle()


@dataclass(slots=True)
class _Selection:
    """The pictures taken for one spec."""

    spec: FrameSpec
    next_ns: int
    width: int
    height: int
    reformatter: VideoReformatter
    times_ns: list[int]
    images: list[NDArray[np.uint8]]

    def offer(self, frame: VideoFrame, at_ns: int, rotation: int) -> None:
        if at_ns < self.next_ns:
            return
        if self.spec.interval_ns > 0:
            self.next_ns = (at_ns // self.spec.interval_ns + 1) * self.spec.interval_ns
        pixels = "gray" if self.spec.pixels == "gray8" else "rgb24"
        scaled = self.reformatter.reformat(frame, self.width, self.height, pixels, threads=1)
        image = cast(NDArray[np.uint8], scaled.to_ndarray())
        self.images.append(np.rot90(image, rotation // 90) if rotation else image)
        self.times_ns.append(at_ns)

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


def _decode_pictures(segment: Segment, specs: Sequence[FrameSpec]) -> dict[FrameSpec, Frames]:
    track, packets = _packets_of(segment, "video")
    selections: list[_Selection] = []
    num_owned = 0
    if track is not None and packets:
        decoding = _pictures_from(segment, track, packets)
        rotation = track.rotation % 360 // 90 * 90
        for frame, at_ns in _owned_pictures(segment, decoding, packets):
            selections = selections or [_selection(spec, segment, frame, rotation) for spec in specs]
            try:
                for selection in selections:
                    selection.offer(frame, at_ns, rotation)
                num_owned += 1
            except BAD_MEDIA as error:
                decoding.reason = decoding.reason or str(error).splitlines()[0]
        owned = _owned(segment, track, packets)
        if owned and not num_owned:
            raise _undecodable(segment, track, owned, decoding.reason)
    empty = [_Selection(spec, 0, 0, 0, VideoReformatter(), [], []) for spec in specs]
    return {selection.spec: selection.result() for selection in selections or empty}


def _pictures_from(segment: Segment, track: Track, packets: Sequence[Packet]) -> _Decoding:
    """A decoder fresh or as good as fresh."""
    key = (track, _reorder_depth(packets))
    context = _idle.decoders.pop(key, None)
    try:
        return _Decoding(track, context or open_decoder(*key))
    except (*BAD_MEDIA, RuntimeError) as error:
        raise _undecodable(segment, track, packets, f"no such decoder: {error}") from error


def _owned_pictures(
    segment: Segment, decoding: _Decoding, packets: Sequence[Packet]
) -> Iterator[tuple[VideoFrame, int]]:
    """Pictures of the interval with their media time. A decoder that met damage is not used again."""
    track = decoding.track
    end_ns = segment.start_ns + segment.duration_ns
    for frame in decoding.run(packets):
        ticks = frame.pts if frame.pts is not None else frame.dts
        if ticks is None:
            continue
        at_ns = time_ns(ticks, track.time_base, segment.origin_ns)
        if segment.start_ns <= at_ns < end_ns:
            yield frame, at_ns
    if not decoding.reason and decoding.num_frames == len(packets):
        decoding.context.flush_buffers()
        _idle.decoders[track, _reorder_depth(packets)] = decoding.context
        while len(_idle.decoders) > MAX_IDLE_DECODERS:
            _idle.decoders.popitem(last=False)


def _reorder_depth(packets: Sequence[Packet]) -> int:
    """How many pictures a decoder must hold back to put them in order: streams do not always say."""
    held: list[int] = []
    depth = 0
    for packet in packets:
        while held and held[-1] < packet.pts and len(held) > 16:
            held.pop(0)
        depth = max(depth, sum(pts > packet.pts for pts in held))
        held.append(packet.pts)
    return min(depth, 16)


def _selection(spec: FrameSpec, segment: Segment, frame: VideoFrame, rotation: int) -> _Selection:
    """What to do for a spec, with the size of the segment's first picture."""
    upright_width = frame.height if rotation % 180 else frame.width
    scale = min(1.0, spec.max_width / upright_width) if spec.max_width else 1.0
    width, height = (max(1, round(side * scale)) for side in (frame.width, frame.height))
    return _Selection(spec, _first_wanted(spec, segment), width, height, VideoReformatter(), [], [])


def _first_wanted(spec: FrameSpec, segment: Segment) -> int:
    """The first multiple of the interval after the picture before the segment, which is one frame duration back."""
    if spec.interval_ns <= 0 or segment.index == 0:
        return 0
    rate = next(track.frame_rate for track in segment.tracks if track.kind == "video")
    before_ns = segment.start_ns - (rate[1] * 1_000_000_000 // rate[0] if rate[0] > 0 else 1)
    return (before_ns // spec.interval_ns + 1) * spec.interval_ns


# --- sound -----------------------------------------------------------------------------------------------


def _decode_sound(segment: Segment, specs: Sequence[AudioSpec]) -> dict[AudioSpec, Audio]:
    track, packets = _packets_of(segment, "audio")
    if track is None or not packets:
        return {spec: Audio(segment.start_ns, spec.sample_rate, np.zeros(0, np.int16)) for spec in specs}
    try:
        decoding = _Decoding(track, open_decoder(track))
    except (*BAD_MEDIA, RuntimeError) as error:
        raise _undecodable(segment, track, packets, f"no such decoder: {error}") from error
    mono = list(_mono(decoding, packets))
    owned = _owned(segment, track, packets)
    if owned and not mono:
        raise _undecodable(segment, track, owned, decoding.reason)
    return {spec: _laid_out(segment, track, packets, mono, spec.sample_rate) for spec in specs}


def _mono(decoding: _Decoding, packets: Sequence[Packet]) -> Iterator[tuple[int, int, NDArray[np.int16]]]:
    """Decoded sound as (timestamp, sample rate, samples), all at the rate of the first."""
    mixers: dict[tuple[str, str, int], av.AudioResampler] = {}
    rate = 0
    for frame in decoding.run(packets):
        rate = rate or frame.sample_rate
        key = (frame.format.name, frame.layout.name, frame.sample_rate)
        mixer = mixers.setdefault(key, av.AudioResampler(format="s16", layout="mono", rate=rate))
        pts = frame.pts
        try:
            mixed = [each.to_ndarray().reshape(-1) for each in mixer.resample(frame)]
        except BAD_MEDIA as error:
            decoding.reason = decoding.reason or str(error).splitlines()[0]
            continue
        if pts is not None and mixed:
            yield pts, rate, cast(NDArray[np.int16], np.concatenate(mixed))


def _laid_out(
    segment: Segment,
    track: Track,
    packets: Sequence[Packet],
    mono: Sequence[tuple[int, int, NDArray[np.int16]]],
    rate_out: int,
) -> Audio:
    """The owned samples at `rate_out`, from what was decoded of the segment."""
    starts_ns = [time_ns(packet.pts, track.time_base, segment.origin_ns) for packet in packets]
    ends_ns = [time_ns(packet.pts + packet.duration, track.time_base, segment.origin_ns) for packet in packets]
    start_ns = max(segment.start_ns, min(starts_ns))
    end_ns = min(segment.start_ns + segment.duration_ns, max(ends_ns))
    first, last = (_ceil_at(limit_ns, rate_out) for limit_ns in (start_ns, max(start_ns, end_ns)))
    rate_in = mono[0][1] if mono else rate_out
    unit = rate_in // math.gcd(rate_in, rate_out)
    margin = int(rate_in * MARGIN_S)
    line_start = (start_ns * rate_in // 1_000_000_000 - margin) // unit * unit
    line = np.zeros(max(0, _ceil_at(end_ns, rate_in) + margin - line_start), np.int16)
    heard_until = _ceil_at(max(ends_ns), rate_in)
    expected: int | None = None
    for pts, _, samples in mono:
        at = _sample_at(pts, track, segment.origin_ns, rate_in)
        if expected is not None and abs(at - expected) <= rate_in * MAX_DRIFT_S:
            at = expected
        expected = at + len(samples)
        _put(line, line_start, at, samples[: max(0, heard_until - at)])
    resampled = _resampled(line, rate_in, rate_out)
    offset = first - line_start // unit * (rate_out // math.gcd(rate_in, rate_out))
    samples = np.zeros(last - first, np.int16)
    part = resampled[offset : offset + len(samples)]
    samples[: len(part)] = part
    return Audio(first * 1_000_000_000 // rate_out, rate_out, samples)


def _ceil_at(at_ns: int, rate: int) -> int:
    """The first sample at or after a time."""
    return -(-at_ns * rate // 1_000_000_000)


def _sample_at(pts: int, track: Track, origin_ns: int, rate: int) -> int:
    numerator, denominator = track.time_base
    return round(Fraction(pts * numerator * rate, denominator) - Fraction(origin_ns * rate, 1_000_000_000))


def _put(line: NDArray[np.int16], line_start: int, at: int, samples: NDArray[np.int16]) -> None:
    """Lay samples on the line at an absolute place; what falls off its ends or before time 0 is dropped."""
    skip = max(0, max(line_start, 0) - at)
    begin = at + skip - line_start
    count = max(0, min(len(samples) - skip, len(line) - begin))
    line[begin : begin + count] = samples[skip : skip + count]


def _resampled(line: NDArray[np.int16], rate_in: int, rate_out: int) -> NDArray[np.int16]:
    """By libswresample, computed in 32-bit floating point."""
    if rate_in == rate_out or not len(line):
        return line
    frame = av.AudioFrame.from_ndarray((line.astype(np.float32) / 32768)[None], format="flt", layout="mono")
    frame.sample_rate = rate_in
    resampler = av.AudioResampler(format="s16", layout="mono", rate=rate_out)
    parts = [*resampler.resample(frame), *resampler.resample(None)]
    return cast(NDArray[np.int16], np.concatenate([line[:0], *(part.to_ndarray().reshape(-1) for part in parts)]))
