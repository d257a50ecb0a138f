"""The records that cross NATS, and the one codec for them. Decoding is total: see `streams.decoding`.

Wire structs tolerate unknown fields and give every later field a default, so a record written by a newer
version is read by an older one. Media time is integer nanoseconds from the stream's start.
"""

from typing import Annotated, Any, ClassVar, Literal, TypeVar

import msgspec

from streams.decoding import decoded
from streams.subjects import MAX_INDEX

VERSION = 1

T = TypeVar("T")


class Record(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A wire struct: keyword-only, immutable, unknown fields ignored, defaults not sent."""


# --- media -----------------------------------------------------------------------------------------------


class Track(Record, frozen=True):
    """One elementary stream inside a segment: what a decoder needs before the first packet."""

    kind: Literal["video", "audio", "subtitle"]
    codec: str  # FFmpeg decoder name, e.g. "h264", "aac", "mov_text"
    time_base: tuple[int, int]  # seconds per tick: (numerator, denominator)
    extradata: bytes = b""
    width: int = 0
    height: int = 0
    pix_fmt: str = ""
    frame_rate: tuple[int, int] = (0, 1)  # average, (0, 1) where unknown
    sample_aspect_ratio: tuple[int, int] = (1, 1)
    rotation: int = 0  # degrees counter-clockwise to turn a decoded frame so that it stands upright
    sample_rate: int = 0
    layout: str = ""  # FFmpeg channel layout, e.g. "stereo"
    sample_fmt: str = ""
    codec_tag: str = ""
    language: str = ""


class Packet(msgspec.Struct, frozen=True, array_like=True):
    """One compressed packet, timestamps in ticks of its track's time base."""

    track: int  # index into Segment.tracks
    pts: int
    dts: int
    duration: int
    keyframe: bool
    data: bytes
    position: int = -1  # byte offset in the source, -1 where unknown


class Segment(Record, frozen=True, tag="segment"):
    """A slice of a stream, decodable alone.

    It *owns* the samples whose media time t satisfies start_ns <= t < start_ns + duration_ns. It may carry packets
    beyond that (an audio preroll, the keyframe that leading pictures refer to): decode all, keep what is owned.
    Media time of a packet: pts * time_base - origin_ns. Packets stand in decoding order within each track.
    """

    stream: str
    index: int
    start_ns: int
    duration_ns: int
    origin_ns: int = 0
    tracks: tuple[Track, ...] = ()
    packets: tuple[Packet, ...] = ()
    flaws: tuple[str, ...] = ()  # what is known to be damaged or missing, one line each
    captured_ns: int = 0  # Unix time at which media time start_ns was received; 0 where it was not received live
    version: int = VERSION


class EndOfStream(Record, frozen=True, tag="end"):
    """The stream has ended: it has exactly the segments 0 .. num_segments - 1."""

    stream: str
    num_segments: Annotated[int, msgspec.Meta(ge=0, le=MAX_INDEX + 1)]
    duration_ns: int = 0
    flaws: tuple[str, ...] = ()
    version: int = VERSION


class MediaInfo(Record, frozen=True):
    """What is known of a source before it is segmented."""

    codecs: dict[str, tuple[str, ...]]  # kind of track -> decoder names, e.g. {"subtitle": ("mov_text",)}
    duration_s: float | None = None


# --- results ---------------------------------------------------------------------------------------------


class Observation(Record, frozen=True):
    """Something seen or heard, with the media time it holds for."""

    start_ns: int
    end_ns: int
    text: str = ""
    confidence: float = 1.0


class Evidence(Record, frozen=True):
    """The output of any operator whose findings can support an answer."""

    kind: ClassVar[str] = "observation"  # what a reader sees: "speech", "text", "scene"
    observations: tuple[Observation, ...] = ()

    def said(self) -> Any:
        """What it says, without how surely, for whoever is told only what is new."""
        return [msgspec.structs.replace(each, confidence=1.0) for each in self.observations]


class Support(Record, frozen=True):
    """One piece of evidence behind an answer."""

    kind: str  # the kind of evidence: "speech", "text"
    start_ns: int
    end_ns: int
    text: str


class Reply(Record, frozen=True):
    """The answer to one question. `answer` is NOT_IN_THE_VIDEO, with no evidence, when nothing supports one; `perhaps`
    is then what came nearest, which is no answer."""

    question: str
    answer: str
    confidence: float  # 0..1
    evidence: tuple[Support, ...] = ()
    perhaps: tuple[Support, ...] = ()


NOT_IN_THE_VIDEO = "not in the video"


class Spent(Record, frozen=True):
    """What was asked of language models and of tools, and what that took. The price is in the currency in which the
    machine's owner says what a token is."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    price: float = 0.0


class Measured(Record, frozen=True):
    """What a result cost. Never part of what makes two results the same."""

    compute_s: float = 0.0  # this item's share of its batch's processing time
    wait_s: float = 0.0  # from the worker taking it to processing it
    batch_size: int = 1
    worker: str = ""
    decode_s: float = 0.0  # what decoding its media cost on its behalf; 0 where they were decoded already
    decode_path: str = ""  # what decoded them, such as "software h264"
    batch: int = 0  # number of the batch in its worker's pool
    attempt: int = 1  # deliveries of the message that led to it
    started_ns: int = 0  # of the batch, the worker's Unix time
    spent: Spent | None = None
    held_back: str = ""  # why nothing was computed, and the output is the empty one


class Result(Record, frozen=True, tag="result"):
    """What a stage found for one segment (first == last) or for a range of them. `output` is the msgpack encoding of
    the capability's output type: the plan knows which."""

    stage: str
    stream: str
    first: int
    last: int
    output: msgspec.Raw
    implementation: str = ""
    measured: Measured | None = None
    version: int = VERSION


GapCause = Literal["late", "dropped", "dead_lettered", "source_lost", "upstream"]


class Gap(Record, frozen=True, tag="gap"):
    """A result a stage owed and could not deliver, and why."""

    stage: str  # "media" where the source itself lacks the segment
    stream: str
    first: int
    last: int
    cause: GapCause
    detail: str = ""
    version: int = VERSION


class DeadLetter(Record, frozen=True, tag="dead"):
    """Work that failed for good: kept with its cause, so that it can be looked at and tried again."""

    stage: str
    stream: str
    first: int
    last: int
    cause: str
    attempts: int
    version: int = VERSION


MediaMessage = Segment | EndOfStream | Gap
ResultMessage = Result | Gap

_encoder = msgspec.msgpack.Encoder(order="deterministic")
_media_decoder: msgspec.msgpack.Decoder[MediaMessage] = msgspec.msgpack.Decoder(MediaMessage)
_result_decoder: msgspec.msgpack.Decoder[ResultMessage] = msgspec.msgpack.Decoder(ResultMessage)
_dead_decoder = msgspec.msgpack.Decoder(DeadLetter)


def encode(record: Any) -> bytes:
    """msgpack bytes; equal records give equal bytes."""
    return _encoder.encode(record)


def decode_media(data: bytes) -> MediaMessage:
    """Read what a media subject holds. Raises Malformed on anything else."""
    return decoded(_media_decoder, data)


def decode_result(data: bytes) -> ResultMessage:
    """Read what a result subject holds. Raises Malformed on anything else."""
    return decoded(_result_decoder, data)


def decode_dead(data: bytes) -> DeadLetter:
    """Read what a dead-letter subject holds. Raises Malformed on anything else."""
    return decoded(_dead_decoder, data)


def decode_output(decoder: msgspec.msgpack.Decoder[T], result: Result) -> T:
    """Read a result's output, whose type the plan knows. Raises Malformed on anything else."""
    return decoded(decoder, result.output)
