"""Encodes video anew with a keyframe at least every so often, so that segments can be short where groups are long.

A camera that sends a keyframe every half minute would make every segment half a minute late. Its pictures are decoded
and encoded with libx264 (fastest preset, no delay, constant quality), or as MPEG-4 where that is missing. Raw pictures,
as devices give them, must go this way too. Timestamps are kept to the tick; other tracks pass through untouched.
"""

from __future__ import annotations  # PyAV's Packet is generic to a type checker only

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import av
import msgspec
from av.video.frame import PictureType

from streams.media.probe import BAD_MEDIA, open_decoder, to_decoder
from streams.media.timestamps import Piece
from streams.records import Packet, Track

ENCODERS = {  # encoder -> decoder, options
    "libx264": ("h264", {"preset": "ultrafast", "tune": "zerolatency", "crf": "20", "g": "100000"}),
    "mpeg4": ("mpeg4", {"qmin": "3", "qmax": "3", "g": "600"}),
}
MAX_WAITING = 256  # packets given to the decoder whose picture has not come out


@dataclass(slots=True)
class ShortGroups:
    """Turns the pieces of the video track `index` into others, with a keyframe every `group_ns`."""

    index: int
    source: Track
    group_ns: int
    flaws: list[str]
    track: Track = field(init=False)  # of what comes out
    _encoder_name: str = field(init=False)
    _decoder: Any = None
    _encoder: Any = None
    _num_encoded: int = 0
    _next_key_ns: int | None = None
    _decoding: dict[int, Piece] = field(default_factory=dict)  # by timestamp
    _encoding: deque[Piece] = field(default_factory=deque)  # in the order in which they come out

    def __post_init__(self) -> None:
        self._encoder_name = next(name for name in ENCODERS if name in av.codecs_available)
        self.track = self._track_of(self.source.width, self.source.height)

    def through(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """All the pieces of a source, with its video encoded anew."""
        for piece in pieces:
            yield from self._push(piece)
        yield from self._decode(None)
        yield from self._encode(None)

    def _push(self, piece: Piece) -> Iterator[Piece]:
        """The pieces that come out for this one."""
        if piece.packet.track != self.index:
            yield piece
            return
        if piece.track is not None:
            yield from self._decode(None)
            self.source, self._decoder = piece.track, None
        self._decoding[piece.packet.pts] = piece
        while len(self._decoding) > MAX_WAITING:
            self._decoding.pop(next(iter(self._decoding)))
        yield from self._decode(piece.packet)

    def _decode(self, packet: Packet | None) -> Iterator[Piece]:
        """Encode the pictures that come out for a packet, or with None those that the decoder holds back."""
        try:
            if self._decoder is None and packet is not None:
                self._decoder = open_decoder(self.source)
            sent = to_decoder(packet, self.source.time_base) if packet is not None else None
            frames: list[Any] = self._decoder.decode(sent) if self._decoder is not None else []
        except (*BAD_MEDIA, RuntimeError) as error:
            self.flaws.append(f"a picture cannot be decoded: {str(error).splitlines()[0]}")
            return
        for frame in frames:
            piece = self._decoding.pop(frame.pts, None) if frame.pts is not None else None
            if piece is not None:
                yield from self._encode(frame, piece)

    def _encode(self, frame: Any, piece: Piece | None = None) -> Iterator[Piece]:
        """The pieces that come out for a picture, or with None those that the encoder holds back."""
        try:
            if piece is not None:
                size = (frame.width // 2 * 2, frame.height // 2 * 2)
                if self._encoder is None or size != (self._encoder.width, self._encoder.height):
                    yield from self._encode(None)
                    self._encoder = self._open_encoder(*size)
                    track = self._track_of(*size)
                    piece = replace(piece, track=None if track == self.track else track)
                    self.track, self._next_key_ns = track, None
                else:
                    piece = replace(piece, track=None)
                frame = self._prepared(frame, piece.start_ns, *size)
                self._encoding.append(piece)
            packets: list[Any] = self._encoder.encode(frame) if self._encoder is not None else []
        except (*BAD_MEDIA, RuntimeError) as error:
            self.flaws.append(f"a picture cannot be encoded: {str(error).splitlines()[0]}")
            return
        for packet in packets:
            yield self._out(packet)

    def _prepared(self, frame: Any, at_ns: int, width: int, height: int) -> Any:
        """The picture as the encoder takes it, as a keyframe where one is due."""
        is_key = self._next_key_ns is None or at_ns >= self._next_key_ns
        if is_key:
            due_ns = (at_ns if self._next_key_ns is None else self._next_key_ns) + self.group_ns
            self._next_key_ns = due_ns if due_ns > at_ns else at_ns + self.group_ns
        scaled = frame.reformat(width, height, "yuv420p")
        scaled.pts, scaled.time_base = self._num_encoded, Fraction(1, 25)  # constant quality: the rate does not matter
        scaled.pict_type = PictureType.I if is_key else PictureType.NONE
        self._num_encoded += 1
        return scaled

    def _out(self, packet: Any) -> Piece:
        """An encoded packet in the place of the picture that it is."""
        piece = self._encoding.popleft()
        taken = piece.packet
        made = Packet(
            taken.track, taken.pts, taken.pts, taken.duration, packet.is_keyframe, bytes(packet), taken.position
        )
        return replace(piece, packet=made, decode_ns=piece.start_ns)

    def _open_encoder(self, width: int, height: int) -> Any:
        encoder: Any = av.CodecContext.create(self._encoder_name, "w")
        encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
        encoder.time_base, encoder.framerate = Fraction(1, 25), Fraction(25)
        encoder.thread_count = 1
        encoder.options = ENCODERS[self._encoder_name][1]
        encoder.open()
        return encoder

    def _track_of(self, width: int, height: int) -> Track:
        """What comes out for pictures of this size: the decoder's parameters are repeated in the packets."""
        codec = ENCODERS[self._encoder_name][0]
        return msgspec.structs.replace(
            self.source,
            codec=codec,
            extradata=b"",
            codec_tag="",
            pix_fmt="yuv420p",
            width=width // 2 * 2,
            height=height // 2 * 2,
        )
