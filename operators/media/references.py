"""Which packets no other picture refers to: a decoder may leave them out, and what it makes of the rest is the same.

Read from the packets themselves, for containers seldom say:

- H.264: a picture is none's reference where `nal_ref_idc` is 0 in each of its slices;
- HEVC: where each slice is of a sub-layer non-reference type (even, below 16) *and* of the highest temporal layer of
  the segment, for a higher layer may refer to it;
- MPEG-1 and -2, MPEG-4 part 2: where it is a B picture. A packet with several pictures (packed DivX) is kept.

Of any other codec, and of what cannot be read, every packet counts as referred to.
Source: ITU-T H.264 7.4.1, H.265 7.4.2.2, H.262 6.3.9, ISO/IEC 14496-2 6.3.5.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from streams.records import Packet, Track

START = b"\0\0\1"
MAX_UNITS = 1000  # of a packet: one with more is kept
MAX_LAYER = 7


class Picture(NamedTuple):
    """What the slices of a packet say: whether they can be left out, and their temporal layer (HEVC)."""

    is_last: bool  # no picture of its own layer or below refers to it
    layer: int = 0


KEPT = Picture(False)


def unreferenced(track: Track, packets: Sequence[Packet]) -> list[bool]:
    """For each packet of a segment's track, in order of decoding, whether no other picture refers to its picture."""
    read = _READERS.get(track.codec)
    if read is None:
        return [False] * len(packets)
    length_bytes = _length_bytes(track)
    pictures = [read(packet.data, length_bytes) for packet in packets]
    highest = max((picture.layer for picture in pictures), default=0)
    return [picture.is_last and picture.layer == highest for picture in pictures]


def is_unordered(track: Track, packets: Sequence[Packet], free: Sequence[bool]) -> bool:
    """Whether a segment's timestamps may be wrong: several are the same, or they ascend in the order of decoding though
    there are pictures that no other refers to, which are mostly shown before what is decoded ahead of them. Then all is
    decoded, so that what is taken does not depend on who asks."""
    times = [packet.pts for packet in packets]
    ascend = all(one < other for one, other in pairwise(times))
    is_odd = len(set(times)) < len(times) or _are_packed(track, packets)
    return is_odd or (ascend and any(free))


def _are_packed(track: Track, packets: Sequence[Packet]) -> bool:
    """Whether a packet holds several pictures, as DivX packs them: its timestamp is that of none but the first."""
    return track.codec == "mpeg4" and any(packet.data.count(START + b"\xb6") > 1 for packet in packets)


def _length_bytes(track: Track) -> int:
    """How many bytes say the length of a unit of H.264 or HEVC; 0 where units begin with a start code."""
    extra = track.extradata
    at = {"h264": 4, "hevc": 21}.get(track.codec, -1)
    return (extra[at] & 3) + 1 if 0 <= at < len(extra) and extra[0] == 1 else 0


def _units(data: bytes, length_bytes: int) -> Iterator[bytes]:
    """The first bytes of each unit: enough for its header and the first bits of a slice."""
    at = 0 if length_bytes else data.find(START)
    while 0 <= at < len(data):
        if length_bytes:
            size = int.from_bytes(data[at : at + length_bytes])
            at += length_bytes
            yield data[at : at + 4]
            at += size
        else:
            yield data[at + 3 : at + 7]
            at = data.find(START, at + 3)


def _h264(data: bytes, length_bytes: int) -> Picture:
    num_slices = 0
    for number, unit in enumerate(_units(data, length_bytes)):
        if number == MAX_UNITS or not unit:
            return KEPT
        if 1 <= unit[0] & 31 <= 5:  # a slice, or a partition of one
            if unit[0] >> 5 & 3:
                return KEPT
            num_slices += 1
        elif unit[0] & 31 in (14, 20):  # of a scalable or multiview stream: another layer may refer to it
            return KEPT
    return Picture(num_slices > 0)


def _hevc(data: bytes, length_bytes: int) -> Picture:
    layers: set[int] = set()
    for number, unit in enumerate(_units(data, length_bytes)):
        if number == MAX_UNITS or len(unit) < 2:
            return KEPT
        kind = unit[0] >> 1 & 63
        if kind < 32:  # a slice
            if kind >= 16 or kind % 2:
                return Picture(False, (unit[1] & 7) - 1)
            layers.add((unit[1] & 7) - 1)
    return Picture(len(layers) == 1, max(layers, default=0))


def _mpeg2(data: bytes, length_bytes: int) -> Picture:
    return _of_kinds([unit[2] >> 3 & 7 for unit in _units(data, 0) if len(unit) > 2 and unit[0] == 0], b=3)


def _mpeg4(data: bytes, length_bytes: int) -> Picture:
    return _of_kinds([unit[1] >> 6 for unit in _units(data, 0) if len(unit) > 1 and unit[0] == 0xB6], b=2)


def _of_kinds(kinds: Sequence[int], b: int) -> Picture:
    return Picture(list(kinds) == [b])


_READERS: dict[str, Callable[[bytes, int], Picture]] = {
    "h264": _h264,
    "hevc": _hevc,
    "mpeg1video": _mpeg2,
    "mpeg2video": _mpeg2,
    "mpeg4": _mpeg4,
}
