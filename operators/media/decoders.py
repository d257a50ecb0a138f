"""Runs a decoder over the packets of a segment's track: every frame that can be had."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from av.codec.context import CodecContext

from streams.errors import Permanent
from streams.media.probe import BAD_MEDIA, open_decoder, time_ns, to_decoder
from streams.records import Packet, Segment, Track

MAX_IDLE_DECODERS = 4  # kept by each thread


def path_of(track: Track | None) -> str:
    """How a track is decoded, for people: "software h264". Empty where there is none."""
    return f"software {track.codec}" if track is not None else ""


def decode_path(track: Track) -> str:
    """As `path_of`, once it is clear that there is such a decoder."""
    try:
        open_decoder(track)
    except (*BAD_MEDIA, RuntimeError):
        return f"none: this build of FFmpeg has no decoder {track.codec}"
    return path_of(track)


def packets_of(segment: Segment, kind: str) -> tuple[Track | None, list[Packet]]:
    """The first track of a kind, and its packets."""
    for index, track in enumerate(segment.tracks):
        if track.kind == kind:
            return track, [packet for packet in segment.packets if packet.track == index]
    return None, []


def owns(segment: Segment, track: Track, packet: Packet) -> bool:
    at_ns = time_ns(packet.pts, track.time_base, segment.origin_ns)
    return segment.start_ns <= at_ns < segment.start_ns + segment.duration_ns


def undecodable(segment: Segment, track: Track, lost: Sequence[Packet], reason: str) -> Permanent:
    first = lost[0]
    at_s = time_ns(first.pts, track.time_base, segment.origin_ns) / 1e9
    return Permanent(
        f"segment {segment.index} of {segment.stream}: none of {len(lost)} {track.codec} packets can be decoded, the"
        f" first at byte {first.position}, media time {at_s:.3f} s ({reason or 'the decoder gave nothing back'})"
    )


@dataclass(slots=True)
class Decoding:
    """Runs of one decoder; `reason` is its first complaint."""

    track: Track
    context: CodecContext
    reason: str = ""
    num_packets: int = 0
    num_frames: int = 0

    def run(self, packets: Iterable[Packet]) -> Iterator[Any]:
        """Every frame that can be had, as if nothing had been decoded before."""
        if self.num_packets:
            self.context.flush_buffers()
        for packet in packets:
            if packet.data:  # an empty packet would tell the decoder that the stream ends here
                self.num_packets += 1
                yield from self._frames(to_decoder(packet, self.track.time_base))
        yield from self._frames(None)

    def _frames(self, packet: Any) -> list[Any]:
        try:
            decoded: list[Any] = cast(Any, self.context).decode(packet)
        except BAD_MEDIA as error:
            self.reason = self.reason or str(error).splitlines()[0]
            return []
        self.num_frames += len(decoded)
        if not self.reason and any(getattr(frame, "is_corrupt", False) for frame in decoded):
            self.reason = "it conceals damage"
        return decoded


class _Idle(threading.local):
    """Decoders of this thread that wait for the next segment: building one can cost more than using it."""

    def __init__(self) -> None:
        self.decoders: OrderedDict[tuple[Track, int], CodecContext] = OrderedDict()


_idle = _Idle()


def taken_decoder(segment: Segment, track: Track, packets: Sequence[Packet]) -> Decoding:
    """A decoder for pictures, fresh or as good as fresh. Raises Permanent where there is none for such a track."""
    key = (track, _reorder_depth(packets))
    context = _idle.decoders.pop(key, None)
    try:
        return Decoding(track, context or open_decoder(*key))
    except (*BAD_MEDIA, RuntimeError) as error:
        raise undecodable(segment, track, packets, f"no such decoder: {error}") from error


def put_back(decoding: Decoding, packets: Sequence[Packet]) -> None:
    """For the next segment; but not a decoder that met damage."""
    if decoding.reason or decoding.num_frames != decoding.num_packets:
        return
    decoding.context.flush_buffers()
    _idle.decoders[decoding.track, _reorder_depth(packets)] = decoding.context
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
