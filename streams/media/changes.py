"""Notices where a track of a running stream becomes another one: a new picture size, another sampling rate.

Containers that say it attach the new decoder parameters to a packet (FLV, and with it RTMP). Others repeat the
parameters in the packets themselves (MPEG-TS, RTSP): they are taken out of each keyframe by FFmpeg's
`extract_extradata`, and of sound the fixed part of each frame's header is looked at. Nothing is decoded until they
differ from those before; then one packet is, to learn what they mean.
"""

from __future__ import annotations  # PyAV's Packet is generic to a type checker only

from contextlib import suppress
from dataclasses import replace
from typing import Any

import msgspec
from av.bitstream import BitStreamFilterContext
from av.container import InputContainer
from av.packet import Packet as AvPacket

from streams.media.probe import BAD_MEDIA, Feed, open_decoder
from streams.records import Track

MAX_KNOWN = 16  # sets of parameters of one track whose meaning is remembered: some encoders alternate between two


class Changes:
    """The parameters of the tracks of one container, as far as it has been read."""

    def __init__(self, container: InputContainer, feeds: list[Feed]) -> None:
        self._marks: dict[int, bytes] = {}
        self._filters: dict[int, BitStreamFilterContext] = {}
        self._known: dict[tuple[int, bytes], Feed] = {}
        for feed in feeds:
            if feed.track.kind == "video":
                self._marks[feed.index] = feed.track.extradata
                if not feed.track.extradata.startswith(b"\x01"):  # those of MP4 and FLV stand outside the packets
                    with suppress(*BAD_MEDIA):  # there is no such filter for most codecs
                        stream = container.streams[feed.index]
                        self._filters[feed.index] = BitStreamFilterContext("extract_extradata", stream)

    def of(self, packet: AvPacket[Any], feed: Feed) -> Feed | None:
        """The feed as it is from this packet on, where that is another than before."""
        if not packet.size or feed.track.kind == "subtitle":
            return None
        declared = bytes(packet.get_sidedata("new_extradata")) if packet.has_sidedata("new_extradata") else b""
        if feed.track.kind == "audio":
            mark = declared or sound_header(feed.track.codec, bytes(packet))
            if feed.index not in self._marks and not declared and feed.track.sample_rate:
                self._marks[feed.index] = mark  # the first packet says what the container said
        else:
            mark = declared or self._parameters(packet, feed)
        if not mark or mark == self._marks.get(feed.index):
            return None
        if (feed.index, mark) not in self._known:
            meant = _decoded(feed, b"" if feed.track.kind == "audio" and not declared else mark, packet)
            if meant is None:  # damaged: the next one that repeats the parameters is tried
                return None
            while len(self._known) >= MAX_KNOWN:
                self._known.pop(next(iter(self._known)))
            self._known[feed.index, mark] = meant
        self._marks[feed.index] = mark
        meant = self._known[feed.index, mark]
        return None if not declared and _looks_alike(meant.track, feed.track) else meant

    def _parameters(self, packet: AvPacket[Any], feed: Feed) -> bytes:
        """The decoder parameters in a keyframe, b"" where it has none."""
        bitstream = self._filters.get(feed.index)
        if bitstream is None or not packet.is_keyframe:
            return b""
        with suppress(*BAD_MEDIA):
            copy: AvPacket[Any] = AvPacket(bytes(packet))  # the filter takes what it is given
            for filtered in bitstream.filter(copy):
                if filtered.has_sidedata("new_extradata"):
                    return bytes(filtered.get_sidedata("new_extradata"))
        return b""


def sound_header(codec: str, data: bytes) -> bytes:
    """What a frame of sound says of itself and of all others until the sound changes; b"" where nothing is known."""
    if codec == "aac" and len(data) > 6 and data[0] == 0xFF and data[1] & 0xF6 == 0xF0:  # ADTS: ISO/IEC 13818-7, 6.2
        return bytes((data[1] & 0xFE, data[2] & 0xFD, data[3] & 0xC0))  # profile, sampling rate, channels
    if codec.startswith(("mp2", "mp3")) and len(data) > 3 and data[0] == 0xFF:  # ISO/IEC 11172-3, 2.4.1.3
        return bytes((data[1] & 0xFE, data[2] & 0x0C, data[3] >= 0xC0))  # layer, sampling rate, whether mono
    if codec == "ac3" and len(data) > 6 and data[:2] == b"\x0b\x77":  # ATSC A/52, 5.3
        return bytes((data[4] & 0xC0, data[6] & 0xE0))  # sampling rate, channels
    return b""


def _looks_alike(one: Track, other: Track) -> bool:
    """Whether they differ in nothing but parameters that the packets repeat."""
    return msgspec.structs.replace(one, extradata=b"") == msgspec.structs.replace(other, extradata=b"")


def _decoded(feed: Feed, extradata: bytes, packet: AvPacket[Any]) -> Feed | None:
    """The feed as a decoder with these parameters finds it in one packet; None where it finds nothing."""
    track = msgspec.structs.replace(feed.track, extradata=extradata)
    blank = msgspec.structs.replace(track, width=0, height=0, pix_fmt="", sample_rate=0, layout="", sample_fmt="")
    frames: list[Any] = []
    with suppress(*BAD_MEDIA, RuntimeError):
        context: Any = open_decoder(blank)
        frames += context.decode(packet)
        frames += context.decode(None)
    if not frames:
        return None
    frame = frames[0]
    if track.kind == "video":
        seen = msgspec.structs.replace(track, width=frame.width, height=frame.height, pix_fmt=frame.format.name)
        return replace(feed, track=seen)
    heard = msgspec.structs.replace(
        track, sample_rate=frame.sample_rate, layout=frame.layout.name, sample_fmt=frame.format.name
    )
    return replace(feed, track=heard, num_frame_samples=feed.num_frame_samples and frame.samples)
