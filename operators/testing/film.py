"""Segments to test with: cut from a file as the engine would cut it, or made from pictures and sound."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from streams.errors import UserError
from streams.records import Packet, Segment, Track

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STREAM = "test"
_NS = 1_000_000_000
_MARGIN = Fraction(1, 10)  # seconds of sound carried beyond both ends, as the segmenter does: resampling reaches there


def segments_of(path: str | Path, segment_s: float = 5.0, max_segments: int | None = None) -> list[Segment]:
    """The segments of a file, by the real segmenter; all, or the first few. Raises UserError where it is no media."""
    from streams.media.segmenter import segments

    found: list[Segment] = []
    for each in segments(str(path), stream=STREAM, target_s=segment_s):
        if not isinstance(each, Segment) or len(found) == max_segments:
            break
        found.append(each)
    return found


def film(
    pictures: "NDArray[np.uint8] | None" = None,
    sound: "NDArray[np.int16] | None" = None,
    *,
    frames_per_s: float = 25.0,
    sample_rate: int = 16_000,
    segment_s: float = 1.0,
) -> list[Segment]:
    """Segments made from pictures (uint8 [N, H, W, 3], RGB) or sound (int16 [N], mono) or both, uncompressed: what is
    decoded is exactly what was given. They are cut every `segment_s`; the last may be shorter."""
    rate = Fraction(frames_per_s).limit_denominator(1001)
    tracks: list[Track] = []
    shown: list[Packet] = []
    ends = [Fraction(0)]
    if pictures is not None:
        if pictures.ndim != 4 or pictures.shape[3] != 3 or pictures.dtype != "uint8":
            raise UserError(f"pictures are {pictures.dtype} {list(pictures.shape)}; give uint8 [N, H, W, 3], RGB")
        tracks.append(_picture_track(pictures.shape[2], pictures.shape[1], rate))
        shown = [Packet(0, at, at, 1, True, image.tobytes()) for at, image in enumerate(pictures)]
        ends.append(len(pictures) / rate)
    if sound is not None:
        if sound.ndim != 1 or sound.dtype != "int16":
            raise UserError(f"sound is {sound.dtype} {list(sound.shape)}; give int16 [N], mono")
        tracks.append(_sound_track(sample_rate))
        ends.append(Fraction(len(sound), sample_rate))
    if max(ends) == 0 or segment_s <= 0:
        raise UserError("there is nothing to cut: give pictures or sound, and a segment_s above 0")
    step = Fraction(segment_s).limit_denominator(1_000_000)
    num_segments = -(-max(ends) // step)
    made: list[Segment] = []
    for index in range(num_segments):
        start, end = step * index, min(step * (index + 1), max(ends))
        packets = [packet for packet in shown if start <= packet.pts / rate < end]
        if sound is not None:
            packets += _sounds(len(tracks) - 1, sound, sample_rate, start, end)
        made.append(
            Segment(
                stream=STREAM,
                index=index,
                start_ns=int(start * _NS),
                duration_ns=int(end * _NS) - int(start * _NS),
                tracks=tuple(tracks),
                packets=tuple(packets),
            )
        )
    return made


def _picture_track(width: int, height: int, rate: Fraction) -> Track:
    return Track(
        kind="video",
        codec="rawvideo",
        time_base=(rate.denominator, rate.numerator),
        width=width,
        height=height,
        pix_fmt="rgb24",
        frame_rate=(rate.numerator, rate.denominator),
    )


def _sound_track(sample_rate: int) -> Track:
    return Track(
        kind="audio",
        codec="pcm_s16le",
        time_base=(1, sample_rate),
        sample_rate=sample_rate,
        layout="mono",
        sample_fmt="s16",
    )


def _sounds(
    track: int, sound: "NDArray[np.int16]", sample_rate: int, start: Fraction, end: Fraction
) -> Iterator[Packet]:
    """A little before the segment, the segment, a little after it."""
    edges = [-(-at * sample_rate // 1) for at in (max(Fraction(0), start - _MARGIN), start, end, end + _MARGIN)]
    for first, last in pairwise(edges):
        samples = sound[first:last].astype("<i2")
        if len(samples):
            yield Packet(track, first, first, len(samples), True, samples.tobytes())
