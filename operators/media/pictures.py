"""Decodes the pictures of a segment once for everybody who asked, in host memory, and only those they asked for.

What has to be decoded for them is worked out from the packets first (`operators.media.choosing`). Pictures are
converted and scaled one by one as they leave the decoder. For whom damage keeps one back that was chosen, all packets
are decoded, and the first picture that comes at or after each multiple of the interval, or each moment, is taken.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from engine.spec.operator import Media
from operators.media.choosing import Shown, chosen, runs_for, seen_at
from operators.media.decoders import Decoding, owns, packets_of, path_of, put_back, taken_decoder, undecodable
from operators.media.pixels import TensorSpec
from operators.media.references import is_unordered, unreferenced
from operators.media.taking import Behind, Each, Frames, Listed, Product, Scaled, Taken, Tensors, taking
from streams.errors import Permanent
from streams.media.probe import BAD_MEDIA, time_ns
from streams.records import MediaInfo, Packet, Segment, Track


@dataclass(frozen=True)
class FrameSpec:
    """Which pictures, and how. With an interval, the first picture at or after each multiple of it in media time,
    wherever the stream is cut (with a variable frame rate, a multiple just before a segment may be taken twice or not
    at all). With a slack, below the interval, a keyframe that comes no later than that behind the multiple is taken in
    its place, for a fraction of the cost. With moments, those that are seen at them, and no interval counts."""

    interval_ns: int = 0  # 0: every picture
    max_width: int | None = None  # of the upright picture; smaller ones are not enlarged
    pixels: Literal["rgb24", "gray8"] = "rgb24"  # gray8: luma, black 0, white 255
    slack_ns: int = 0
    tensor: TensorSpec | None = None  # pictures as a model takes them: `Tensors`, and neither of the two above counts
    moments_ns: tuple[int, ...] | None = None  # media time
    track: ClassVar[str] = "video"  # they are made from

    @property
    def takes_all(self) -> bool:
        return self.interval_ns <= 0 and self.moments_ns is None

    @classmethod
    def decode(cls, segment: Segment, wanted: Sequence["FrameSpec"]) -> Mapping["FrameSpec", "Frames | Tensors"]:
        """Pictures for all of them, by one decode (engine.spec.operator.Demand)."""
        return _decode_pictures(segment, wanted)


def no_pictures(media: MediaInfo | None) -> str | None:
    """That a source has none, in one line; None where it has, or where nothing is known of it."""
    return "the source has no pictures" if media is not None and "video" not in media.codecs else None


def tensors(media: Media, spec: FrameSpec) -> Tensors:
    """As `frames`, for a spec with a tensor."""
    return cast(Tensors, _product(media, spec))


def frames(media: Media, spec: FrameSpec) -> Frames:
    """The pictures a segment owns. None (N = 0) where it has no video.

    What was decoded ahead is used; else it is decoded now. Partial damage costs the damaged pictures only. Raises
    Permanent where there are packets and not one picture can be had from them.
    """
    return cast(Frames, _product(media, spec))


def _product(media: Media, spec: FrameSpec) -> Any:
    decoded = media.products.get(spec)
    return decoded if decoded is not None else _decode_pictures(media.segment, [spec])[spec]


def each_picture(segment: Segment) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Every picture a segment owns that can be had, in order of time, one after the other: its media time in ns and
    uint8 [H, W, 3], RGB, upright, C-contiguous. Raises Permanent where there is no decoder for it."""
    track, packets = packets_of(segment, "video")
    if track is None or not packets:
        return
    decoding = taken_decoder(segment, track, packets)
    one = Taken(FrameSpec(), lambda at_ns: True, track.rotation % 360 // 90 * 90)
    is_odd = is_unordered(track, packets, unreferenced(track, packets))
    in_order = (each.at_ns for each in (_shown(segment, track, packets) if is_odd else ()))
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
    shown = [] if track is None else _shown(segment, track, packets)
    if track is None or not shown:
        raise Permanent(f"segment {segment.index} of {segment.stream} has no pictures")
    one = FrameSpec(moments_ns=(at_ns,))
    (wanted_ns,) = seen_at(shown, one.moments_ns or ())
    free = unreferenced(track, packets)
    found = cast(Frames, _decode_chosen(segment, track, packets, free, {one: frozenset({wanted_ns})})[0][one])
    if len(found.times_ns):
        return wanted_ns, found.images[0]
    best: tuple[int, NDArray[np.uint8]] | None = None
    for at, image in each_picture(segment):
        if best is None or at <= at_ns:
            best = at, image
    if best is None:
        raise undecodable(segment, track, packets, "")
    return best


def _decode_pictures(segment: Segment, specs: Sequence[FrameSpec]) -> dict[FrameSpec, Product]:
    track, packets = packets_of(segment, "video")
    if track is None or not packets:
        return {spec: taking(spec, Each(0, 0), 0, None).result() for spec in specs}
    shown = _shown(segment, track, packets)
    chosen_ns = {spec: frozenset(_chosen(spec, segment, shown)) for spec in specs}
    found: dict[FrameSpec, Product] = {}
    lost = list(specs)
    free = unreferenced(track, packets)
    if not is_unordered(track, packets, free):
        found, is_damaged = _decode_chosen(segment, track, packets, free, chosen_ns)
        lost = [spec for spec in specs if not _is_whole(spec, found[spec], chosen_ns[spec], is_damaged)]
    if lost:
        found |= _decode_all(segment, track, packets, lost)
    for product in found.values():
        product.path = path_of(track)
    return found


def _chosen(spec: FrameSpec, segment: Segment, shown: Sequence[Shown]) -> list[int]:
    if spec.moments_ns is not None:
        return seen_at(shown, spec.moments_ns)
    return chosen(shown, _first_wanted(spec, segment), spec.interval_ns, spec.slack_ns)


def _is_whole(spec: FrameSpec, found: Product, chosen_ns: Set[int], is_damaged: bool) -> bool:
    """Whether all came that there can be: of every picture, those that are not damaged. Of some, where damage was met
    on the way, what they look like may depend on what else was decoded."""
    if spec.takes_all:
        return len(found.times_ns) > 0 or not chosen_ns
    return not chosen_ns or (chosen_ns <= set(found.times_ns.tolist()) and not is_damaged)


def _decode_chosen(
    segment: Segment,
    track: Track,
    packets: Sequence[Packet],
    free: Sequence[bool],
    chosen_ns: Mapping[FrameSpec, Set[int]],
) -> tuple[dict[FrameSpec, Product], bool]:
    """Those of the chosen pictures that come when what is needed for them is decoded; and whether some of that is
    damaged. `free`: which packets no other refers to."""
    all_ns = frozenset[int]().union(*chosen_ns.values())
    wanted = {at for at, packet in enumerate(packets) if _at_ns(segment, track, packet.pts) in all_ns}
    taken = [
        taking(spec, Each(0, 0) if spec.takes_all else Listed(times_ns), len(times_ns), track)
        for spec, times_ns in chosen_ns.items()
    ]
    decoding = taken_decoder(segment, track, packets)
    for run in runs_for(packets, free, wanted):
        _offer_pictures(segment, decoding, [packets[at] for at in run], taken)
    put_back(decoding, packets)
    return {each.spec: each.result() for each in taken}, bool(decoding.reason)


def _decode_all(
    segment: Segment, track: Track, packets: Sequence[Packet], specs: Sequence[FrameSpec]
) -> dict[FrameSpec, Product]:
    """The first picture at or after each multiple, of those that come when everything is decoded."""
    taken = [taking(spec, _come(spec, segment), len(packets), track) for spec in specs]
    decoding = taken_decoder(segment, track, packets)
    num_owned = _offer_pictures(segment, decoding, packets, taken)
    owned = [packet for packet in packets if owns(segment, track, packet)]
    if owned and not num_owned:
        raise undecodable(segment, track, owned, decoding.reason)
    put_back(decoding, packets)
    return {each.spec: each.result() for each in taken}


def _come(spec: FrameSpec, segment: Segment) -> Each | Behind:
    """Of pictures as they come, those that are taken."""
    return Each(_first_wanted(spec, segment), spec.interval_ns) if spec.moments_ns is None else Behind(spec.moments_ns)


def _offer_pictures(
    segment: Segment, decoding: Decoding, packets: Sequence[Packet], taken: Sequence[Taken | Scaled]
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
