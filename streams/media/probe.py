"""Opens media and says what is in it: which tracks are taken, what a decoder needs for them, how long it lasts.

PyAV exposes neither `block_align` nor the display matrix of a track before decoding, so `examine` decodes the first
few packets twice: with the container's own decoder and with a bare one made from the `Track` alone. Audio that only
the container can decode (ADPCM, WMA) is marked for transcoding; rotation is read from the first picture. A file is then
opened anew (`inspect`); of what can be opened only once, the packets that were read for the trial are kept.
"""

from __future__ import annotations  # PyAV's Packet is generic to a type checker only

import itertools
import struct
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, Protocol, cast

import av
import av.logging
from av.audio.codeccontext import AudioCodecContext
from av.codec.context import CodecContext, Flags2
from av.container import InputContainer
from av.error import ArgumentError, FFmpegError
from av.packet import Packet as AvPacket
from av.stream import Disposition, Stream
from av.video.codeccontext import VideoCodecContext

from streams.errors import Permanent, UserError
from streams.media import budgets
from streams.media.formats import whitelists
from streams.records import MediaInfo, Packet, Track

# What is no UTF-8 in a file's texts comes as PyAV 19 has it always: in surrogates.
METADATA: dict[str, Any] = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "surrogateescape"}
TEXT_SUBTITLES = frozenset({"mov_text", "subrip", "srt", "webvtt", "ass", "ssa", "text"})
TRIAL_PACKETS = 8  # audio packets decoded by `inspect`
TRIAL_PICTURES = 48  # video packets decoded at most until the first picture comes out
TRIAL_TOTAL = 2000  # packets of all kinds read at most
MAX_TRIAL_BYTES = 32 << 20  # of packets that are kept

BAD_MEDIA = (FFmpegError, OSError, ValueError, EOFError)  # what PyAV raises on files that are not what they claim
BAD_DEMUX = (*BAD_MEDIA, IndexError)  # the last: PyAV does not know a stream that appears on the way

av.logging.set_level(None)  # FFmpeg writes its opinion of a damaged file to stderr otherwise

NOTHING_CAME = "nothing came in time"

Kind = Literal["video", "audio", "subtitle"]


class Readable(Protocol):
    """Bytes of a container, as they come. `read` waits for some and gives b"" at the end. `give_up`, from another
    thread, ends a read under way with an error."""

    name: str

    def read(self, max_bytes: int = -1, /) -> bytes: ...

    def give_up(self, reason: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Opening:
    """How media are opened. `name` stands in errors: it has no credentials in it."""

    source: str | Readable  # what FFmpeg opens, or where the bytes come from
    name: str
    format: str | None = None  # where the bytes do not show it
    options: Mapping[str, str] = field(default_factory=dict)  # of FFmpeg
    timeouts_s: tuple[float, float] | None = None  # for opening, for each packet


@dataclass(slots=True)
class Feed:
    """One track that is taken from a container, and how."""

    index: int  # of the stream in its container
    track: Track
    first_ns: Fraction  # its first sample on the container's clock, in nanoseconds
    transcode: bool = False  # only the container's decoder can read it
    num_frame_samples: int = 0  # audio: samples of every packet, 0 where they differ


@dataclass(slots=True)
class _Trial:
    """What decoding the first packets of a track showed."""

    first_pts: int | None = None
    rotation: int = 0
    packets: list[AvPacket[Any]] = field(default_factory=list)
    num_samples: int = 0
    sample_rate: int = 0


def time_ns(ticks: int, time_base: tuple[int, int], origin_ns: int = 0) -> int:
    """Media time in nanoseconds of a timestamp, rounded down. Everything that decides who owns a sample uses this."""
    return ticks * time_base[0] * 1_000_000_000 // time_base[1] - origin_ns


@contextmanager
def open_media(media: str | Opening) -> Iterator[InputContainer]:
    """The opened container of a file's path, or of what else. Raises UserError where that is no media, or missing."""
    how = Opening(media, media, options=whitelists("file")) if isinstance(media, str) else media
    container = _opened(how)
    try:
        yield container
    finally:
        with suppress(*BAD_MEDIA):
            container.close()


def probe(url: str) -> MediaInfo:
    """The codecs of the tracks that are taken, by kind, and the duration where the container knows it. Raises UserError
    where the source cannot be opened or holds no video, audio or text subtitles."""
    with open_media(url) as container:
        codecs: dict[str, tuple[str, ...]] = {}
        for kind, stream in _chosen(container, url):
            codecs[kind] = (*codecs.get(kind, ()), stream.codec_context.name)
        duration = container.duration
    return MediaInfo(codecs=codecs, duration_s=duration / av.time_base if duration and duration > 0 else None)


def inspect(url: str) -> list[Feed]:
    """The tracks that are taken, video first, then audio, then subtitles. Raises UserError as `probe` does."""
    with open_media(url) as container:
        return examine(container, url)


def examine(
    container: InputContainer,
    name: str,
    keep: Callable[[AvPacket[Any]], None] | None = None,
    max_wait_s: float | None = None,
) -> list[Feed]:
    """The tracks of an opened container that are taken. Reads on until it has seen enough of each, of a live source no
    longer than `max_wait_s`; `keep` is called with each packet read. Raises UserError where nothing can be taken."""
    chosen = _chosen(container, name)
    trials = {stream.index: _Trial() for _, stream in chosen}
    with suppress(*BAD_DEMUX):
        _try_decoding(container, [stream for _, stream in chosen], trials, keep, max_wait_s)
    return [_feed(kind, stream, trials[stream.index]) for kind, stream in chosen]


def open_decoder(track: Track, reorder_depth: int = 0) -> CodecContext:
    """A decoder made from the track alone: one thread, and for audio no trimming of encoder delay, so that the
    timestamp of every sample is that of its packet. Raises an error of PyAV where there is no such decoder, Permanent
    where the track says what no decoder takes."""
    try:
        return _made_decoder(track, reorder_depth)
    except OverflowError as error:
        raise Permanent(f"{track.codec}: the track says what no decoder takes: {error}") from error


def _made_decoder(track: Track, reorder_depth: int) -> CodecContext:
    context: CodecContext = av.CodecContext.create(track.codec, "r")
    context.thread_count = 1
    context.options = budgets.decoder_options()
    if track.extradata:
        context.extradata = track.extradata
    if track.codec_tag.isascii() and len(track.codec_tag) == 4:
        context.codec_tag = track.codec_tag
    if isinstance(context, VideoCodecContext):
        context.width, context.height = track.width, track.height
        if track.pix_fmt:
            context.pix_fmt = track.pix_fmt
        if reorder_depth:
            context.reorder_depth = reorder_depth
    elif isinstance(context, AudioCodecContext):
        context.flags2 |= Flags2.skip_manual
        if track.sample_rate:
            context.sample_rate = track.sample_rate
        if track.layout:
            context.layout = track.layout
        if track.sample_fmt:
            context.format = track.sample_fmt
    return context


def to_decoder(packet: Packet, time_base: tuple[int, int]) -> AvPacket[Any]:
    """A packet as a decoder takes it. Decoders read beyond the end of the data; `av.Packet(data)` would let them read
    whatever lies behind the Python bytes, so the data go into memory that FFmpeg pads with zeros."""
    sent: AvPacket[Any] = AvPacket(len(packet.data))
    sent.update(packet.data)
    try:
        sent.pts, sent.dts, sent.duration, sent.time_base = (
            packet.pts,
            packet.dts,
            packet.duration,
            Fraction(*time_base),
        )
    except (OverflowError, ZeroDivisionError) as error:
        raise Permanent(f"a packet at {packet.pts} of 1/{time_base}: no decoder takes that") from error
    sent.is_keyframe = packet.keyframe
    return sent


def skipped_samples(packet: AvPacket[Any]) -> tuple[int, int]:
    """Samples of encoder delay at the start of a packet and of padding at its end, as its container declares them."""
    if not packet.has_sidedata("skip_samples"):
        return 0, 0
    data = bytes(packet.get_sidedata("skip_samples"))
    return struct.unpack_from("<II", data) if len(data) >= 8 else (0, 0)


def _opened(how: Opening) -> InputContainer:
    try:
        opened: InputContainer = av.open(
            how.source, "r", how.format, dict(how.options), timeout=how.timeouts_s, **METADATA
        )
        return opened
    except FileNotFoundError as error:
        failed: BaseException = error
        refused = UserError(f"{how.name}: there is no such file; give the path or URL of a video or audio file")
    except BAD_MEDIA as error:
        failed = error
        is_refused = isinstance(error, ArgumentError) and "format_whitelist" in how.options
        reason = "no container of media that is read from there" if is_refused else reason_of(error)
        refused = UserError(f"{how.name}: cannot be opened as media ({reason}); give a video or audio file")
    if isinstance(failed, FFmpegError) and failed.filename != how.name:  # it names the URL with all that is in it
        failed = type(failed)(failed.errno or 0, failed.strerror or "", how.name)
    raise refused from failed


def _chosen(container: InputContainer, url: str) -> list[tuple[Kind, Stream]]:
    """The best video track that is not a cover picture, the best audio track, every text subtitle track."""
    budgets.check_number(url, len(container.streams))
    chosen: list[tuple[Kind, Stream]] = []
    kinds: tuple[Literal["video", "audio"], ...] = ("video", "audio")
    for kind in kinds:
        usable = [
            stream
            for stream in container.streams
            if stream.type == kind and stream.codec_context and not stream.disposition & Disposition.attached_pic
        ]
        best = container.streams.best(kind)
        if usable:
            chosen.append((kind, next((stream for stream in usable if best and stream.index == best.index), usable[0])))
    chosen += [
        ("subtitle", stream)
        for stream in container.streams
        if stream.type == "subtitle" and stream.codec_context and stream.codec_context.name in TEXT_SUBTITLES
    ][: budgets.MAX_TEXTS]
    for _, stream in chosen:
        budgets.check_declared(url, stream.codec_context)
    if not chosen:
        found = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise UserError(f"{url}: holds no video, audio or text subtitles that can be decoded (found: {found})")
    return chosen


def _try_decoding(
    container: InputContainer,
    streams: list[Stream],
    trials: dict[int, _Trial],
    keep: Callable[[AvPacket[Any]], None] | None,
    max_wait_s: float | None,
) -> None:
    """Fill in the trials, until each has seen enough."""
    for stream in streams:
        stream.codec_context.thread_count = 1
        stream.codec_context.options = budgets.decoder_options()
        if stream.type == "audio":
            stream.codec_context.flags2 |= Flags2.skip_manual
    deadline_s = None if max_wait_s is None else time.monotonic() + max_wait_s
    num_pictures = TRIAL_PICTURES if max_wait_s is None else TRIAL_TOTAL  # a live source may begin far from a keyframe
    open_ends = {stream.index: num_pictures if stream.type == "video" else TRIAL_PACKETS for stream in streams}
    open_ends = {index: left for index, left in open_ends.items() if container.streams[index].type != "subtitle"}
    num_bytes = 0
    packets = cast("Generator[AvPacket[Any], None, None]", container.demux(streams))
    with closing(packets):  # left open, it would end the timeouts of whoever reads on
        for packet in itertools.islice(packets, TRIAL_TOTAL):
            num_bytes += packet.size
            if keep is not None:
                keep(packet)
            trial = trials.get(packet.stream_index)
            if trial is None:  # at the end PyAV flushes every stream, taken or not
                return
            if packet.size and trial.first_pts is None:
                trial.first_pts = packet.pts if packet.pts is not None else packet.dts
            if packet.stream_index in open_ends:
                open_ends[packet.stream_index] -= 1
                if _tried(packet, trial) or open_ends[packet.stream_index] <= 0:
                    del open_ends[packet.stream_index]
            if not open_ends or (deadline_s is not None and time.monotonic() > deadline_s):
                return
            if keep is not None and num_bytes > MAX_TRIAL_BYTES:
                return


def _tried(packet: AvPacket[Any], trial: _Trial) -> bool:
    """Decode one packet with the container's decoder; true when nothing more is to be learned from its track."""
    with suppress(*BAD_MEDIA):
        frames: list[Any] = packet.decode()
        if packet.stream.type == "video":
            for frame in frames:
                trial.rotation = round(frame.rotation / 90) * 90 % 360
            return bool(frames)
        trial.num_samples += sum(frame.samples for frame in frames)
        trial.sample_rate = frames[0].sample_rate if frames else trial.sample_rate
    if packet.size:
        trial.packets.append(packet)
    return False


def _feed(kind: Kind, stream: Stream, trial: _Trial) -> Feed:
    context: Any = stream.codec_context
    time_base = stream.time_base or Fraction(1, 1000)
    common: dict[str, Any] = {
        "kind": kind,
        "codec": context.name,
        "time_base": (time_base.numerator, time_base.denominator),
        "extradata": context.extradata or b"",
        "codec_tag": _codec_tag(context),
        "language": (stream.language or "").encode(errors="surrogateescape").decode(errors="replace"),
    }
    ticks = stream.start_time if stream.start_time is not None else trial.first_pts or 0
    first_ns = ticks * time_base * 1_000_000_000
    if kind == "video":
        rate = stream.average_rate or stream.guessed_rate or Fraction(0)
        aspect = getattr(stream, "sample_aspect_ratio", None) or Fraction(1)
        track = Track(
            **common,
            width=context.width,
            height=context.height,
            pix_fmt=context.pix_fmt or "",
            frame_rate=(rate.numerator, rate.denominator),
            sample_aspect_ratio=(aspect.numerator, aspect.denominator),
            rotation=trial.rotation,
        )
        return Feed(stream.index, track, first_ns)
    if kind == "subtitle":
        return Feed(stream.index, Track(**common), first_ns)
    track = Track(
        **common,
        sample_rate=trial.sample_rate or context.sample_rate,
        layout=context.layout.name,
        sample_fmt=context.format.name if context.format else "",
    )
    sizes = _bare_sizes(track, trial.packets)
    return Feed(
        stream.index,
        track,
        first_ns,
        transcode=trial.num_samples > 0 and sum(sizes) != trial.num_samples,
        num_frame_samples=sizes[0] if sizes and len(set(sizes)) == 1 else 0,
    )


def _codec_tag(context: Any) -> str:
    """Four printable characters or nothing: raw video is told apart by them."""
    try:
        tag: str = context.codec_tag
    except UnicodeDecodeError:
        return ""
    return tag if tag.isprintable() else ""


def _bare_sizes(track: Track, packets: list[AvPacket[Any]]) -> list[int]:
    """Samples that each packet gives to a decoder made from the track alone; 0 where it fails."""
    sizes = []
    try:
        context: Any = open_decoder(track)
    except (*BAD_MEDIA, RuntimeError):
        return [0 for _ in packets]
    for packet in packets:
        try:
            sizes.append(sum(frame.samples for frame in context.decode(packet)))
        except BAD_MEDIA:
            sizes.append(0)
    return sizes


def reason_of(error: BaseException) -> str:
    """What went wrong, in one line and without the URL that PyAV adds."""
    if isinstance(error, av.error.ExitError):
        return NOTHING_CAME
    return str(getattr(error, "strerror", None) or error).splitlines()[0]
