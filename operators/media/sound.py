"""Decodes the sound of a segment, resampled on a global grid: sample k of any segment stands at media time
k / sample_rate, so the segments of a stream follow each other without a seam.

To that end the decoded sound is laid on a line whose origin is a common multiple of both sample periods (for 44100 to
16000 Hz: every 441st sample in is the 160th out), from a little before the segment to a little after it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, cast

import av
import numpy as np
from numpy.typing import NDArray

from engine.spec.operator import Media
from operators.media.decoders import Decoding, owns, packets_of, path_of, undecodable
from streams.media.probe import BAD_MEDIA, open_decoder, time_ns
from streams.records import Packet, Segment, Track

MARGIN_S = 0.02  # of sound resampled beyond both ends of a segment; the filter is far shorter
MAX_DRIFT_S = 0.002  # sound this close to where the packet before it ended follows it exactly


@dataclass(frozen=True)
class AudioSpec:
    """Mono, 16 bits."""

    sample_rate: int = 16_000
    track: ClassVar[str] = "audio"  # it is made from

    @classmethod
    def decode(cls, segment: Segment, wanted: Sequence["AudioSpec"]) -> Mapping["AudioSpec", "Audio"]:
        """Sound for all of them, by one decode (engine.spec.operator.Demand)."""
        return _decode_sound(segment, wanted)


@dataclass
class Audio:
    """`samples`: int16 [N], mono, read-only, the first at `start_ns`; silence where sound is missing inside the
    track."""

    start_ns: int
    sample_rate: int
    samples: NDArray[np.int16]
    path: str = ""

    def __post_init__(self) -> None:
        self.samples.flags.writeable = False

    @property
    def nbytes(self) -> int:
        return self.samples.nbytes


def audio(media: Media, spec: AudioSpec) -> Audio:
    """The sound a segment owns: every sample with start <= k / sample_rate < end, as far as the track reaches. None
    (N = 0) where it has no sound.

    What was decoded ahead is used; else it is decoded now. Raises Permanent where there are packets and not one sample
    can be had from them."""
    decoded = media.products.get(spec)
    return cast(Audio, decoded) if decoded is not None else _decode_sound(media.segment, [spec])[spec]


def _decode_sound(segment: Segment, specs: Sequence[AudioSpec]) -> dict[AudioSpec, Audio]:
    track, packets = packets_of(segment, "audio")
    if track is None or not packets:
        return {spec: Audio(segment.start_ns, spec.sample_rate, np.zeros(0, np.int16)) for spec in specs}
    try:
        decoding = Decoding(track, open_decoder(track))
    except (*BAD_MEDIA, RuntimeError) as error:
        raise undecodable(segment, track, packets, f"no such decoder: {error}") from error
    mono = list(_mono(decoding, packets))
    owned = [packet for packet in packets if owns(segment, track, packet)]
    if owned and not mono:
        raise undecodable(segment, track, owned, decoding.reason)
    return {spec: _laid_out(segment, track, packets, mono, spec.sample_rate) for spec in specs}


def _mono(decoding: Decoding, packets: Sequence[Packet]) -> Iterator[tuple[int, int, NDArray[np.int16]]]:
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
    return Audio(first * 1_000_000_000 // rate_out, rate_out, samples, path_of(track))


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
