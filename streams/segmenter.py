"""Cuts media into segments: slices of compressed packets, each decodable alone.

The reference track (video, else audio, else subtitles) says where to cut: a segment ends at the first keyframe that
is shown at or after its start + target. The intervals that segments own tile [0, duration). What a segment carries
beyond its interval: pictures shown before its end but decoded after the next keyframe, with that keyframe (open
groups of pictures); sound before its start, for decoders that need warming up, and two packets after its end.

What is held in memory is bounded: a segment by MAX_SEGMENT_NS and MAX_SEGMENT_BYTES, waiting for a track that lags
behind the others by MAX_LOOKAHEAD_NS. What cannot be kept within that is dropped and named in `flaws`. The same bytes
give the same records.
"""

from __future__ import annotations  # PyAV's Packet is generic to a type checker only

import base64
import hashlib
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import av.audio
from av.container import InputContainer
from av.packet import Packet as AvPacket

from streams.errors import UserError
from streams.probe import BAD_DEMUX, BAD_MEDIA, Feed, inspect, open_media, probe
from streams.records import EndOfStream, Packet, Segment, Track
from streams.timestamps import Clock, Piece, Shift

__all__ = ["SEGMENTER_VERSION", "probe", "segments", "stream_id"]

SEGMENTER_VERSION = 1  # raise it whenever the same file would give other records

MAX_TARGET_S = 300.0
MAX_SEGMENT_NS = 60_000_000_000  # without a keyframe for this long (or twice the target) it is cut anyway
MAX_SEGMENT_BYTES = 64 << 20
MAX_LOOKAHEAD_NS = 30_000_000_000
MAX_STUCK_PACKETS = 20_000  # read without media time moving on
MAX_FLAWS = 16  # lines in one record
PREROLL_NS = {"opus": 240_000_000, "libopus": 240_000_000, "mp3": 300_000_000, "mp3float": 300_000_000}
MIN_PREROLL_NS = 100_000_000  # two packets at least, this long at least
NUM_PREROLL_PACKETS = 2
NUM_POSTROLL_PACKETS = 2


def stream_id(path: Path, target_s: float) -> str:
    """The id of a file as a stream: a hash of its bytes and of everything that decides how they are cut. 27 characters
    of [a-z2-7]. Raises UserError where the file cannot be read."""
    digest = hashlib.sha256(f"{SEGMENTER_VERSION} {round(target_s * 1000)} ".encode())
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the path of a media file") from error
    return "f" + base64.b32encode(digest.digest()).decode().lower()[:26]


def segments(url: str, *, stream: str, target_s: float = 5.0) -> Iterator[Segment | EndOfStream]:
    """The segments of a file or URL in order, read as they are asked for, and then the end of the stream.

    Raises UserError where the source cannot be opened or holds nothing that can be segmented. Damage further in ends
    the stream early and is named in the flaws of what is yielded.
    """
    if not 0 < target_s <= MAX_TARGET_S:
        raise UserError(f"segment duration {target_s} s: must be above 0 and at most {MAX_TARGET_S:.0f} s")
    feeds = inspect(url)
    with open_media(url) as container:
        source = _Source(container, feeds)
        cutter = _Cutter(stream, source.tracks, source.origin_ns, round(target_s * 1e9), source.flaws)
        for piece in source.pieces():
            yield from cutter.push(piece)
        yield from cutter.finish()
        if cutter.index == 0:
            raise UserError(f"{url}: holds no packet that can be read; give a video or audio file that is complete")
        source.compare_duration(cutter.start_ns)
        flaws = (*source.end_flaws, *source.flaws)[:MAX_FLAWS]
        yield EndOfStream(stream=stream, num_segments=cutter.index, duration_ns=cutter.start_ns, flaws=flaws)


@dataclass(slots=True)
class _Source:
    """The packets of an opened container, with timestamps that can be trusted."""

    container: InputContainer
    feeds: Sequence[Feed]
    flaws: list[str] = field(default_factory=list)
    end_flaws: list[str] = field(default_factory=list)
    origin_ns: int = 0
    clocks: dict[int, Clock] = field(default_factory=dict)

    def __post_init__(self) -> None:
        heard_or_seen = [feed.first_ns for feed in self.feeds if feed.track.kind != "subtitle"]
        self.origin_ns = int(min(heard_or_seen or [feed.first_ns for feed in self.feeds]) // 1)
        shift = Shift()
        for track_index, feed in enumerate(self.feeds):
            self.clocks[feed.index] = Clock(feed, track_index, self.origin_ns, shift, self.flaws)

    @property
    def tracks(self) -> tuple[Track, ...]:
        return tuple(clock.track for clock in self.clocks.values())

    def pieces(self) -> Iterator[Piece]:
        """Every packet of the tracks that are taken, in the order of the container."""
        resampler = _to_pcm(self.feeds)
        for packet in self._packets():
            clock = self.clocks.get(packet.stream_index)
            if clock is None:  # at the end PyAV flushes every stream, taken or not
                continue
            if clock.feed.transcode and resampler:
                yield from _transcoded(packet, clock, resampler)
            elif piece := clock.stamp(packet):
                yield piece

    def compare_duration(self, reached_ns: int) -> None:
        """Note it where the stream is clearly shorter than its header promises."""
        promised = self.container.duration
        if promised and {"mp4", "matroska"} & set(self.container.format.name.split(",")):
            promised_ns = promised * 1_000_000_000 // av.time_base
            if promised_ns - reached_ns > max(1_000_000_000, promised_ns // 50):
                self.end_flaws.append(
                    f"ends at {reached_ns / 1e9:.3f} s, its header promises {promised_ns / 1e9:.3f} s"
                )

    def _packets(self) -> Iterator[AvPacket[Any]]:
        """Packets until the end, the first error, or until time stands still."""
        streams = [self.container.streams[feed.index] for feed in self.feeds]
        reached, num_stuck, stuck_bytes = None, 0, 0
        try:
            for packet in self.container.demux(streams):
                yield packet
                if packet.dts is None or packet.dts != reached:
                    reached, num_stuck, stuck_bytes = packet.dts, 0, 0
                num_stuck, stuck_bytes = num_stuck + 1, stuck_bytes + packet.size
                if num_stuck > MAX_STUCK_PACKETS or stuck_bytes > MAX_SEGMENT_BYTES:
                    self.end_flaws.append(f"reading stopped: {num_stuck} packets at one moment")
                    return
        except BAD_DEMUX as error:
            self.end_flaws.append(f"reading stopped: {str(error).splitlines()[0]}")


@dataclass(slots=True)
class _Cutter:
    """Gathers pieces, decides where a segment ends and builds it. Deterministic and without input or output."""

    stream: str
    tracks: tuple[Track, ...]
    origin_ns: int
    target_ns: int
    flaws: list[str]
    index: int = 0
    start_ns: int = 0
    end_ns: int | None = None  # of the segment being gathered, once it is known
    final_ns: int = 0
    num_bytes: int = 0
    num_late: int = 0
    lanes: list[deque[Piece]] = field(init=False)
    decoded_ns: list[int] = field(init=False)  # how far each lane has been read
    longest_ns: int = field(init=False)
    tolerance_ns: int = field(init=False)

    def __post_init__(self) -> None:
        self.lanes = [deque() for _ in self.tracks]
        self.decoded_ns = [-1 for _ in self.tracks]
        self.longest_ns = max(MAX_SEGMENT_NS, 2 * self.target_ns)
        rate = self.tracks[0].frame_rate
        self.tolerance_ns = rate[1] * 500_000_000 // rate[0] if rate[0] > 0 else 0

    def push(self, piece: Piece) -> Iterator[Segment]:
        """Take one piece; yield the segments that it completes."""
        track = piece.packet.track
        lane = self.lanes[track]
        if self.index and piece.start_ns < self.start_ns:
            self.num_late += 1
            return
        lane.append(piece)
        self.num_bytes += len(piece.packet.data)
        self.decoded_ns[track] = max(self.decoded_ns[track], piece.decode_ns)
        self.final_ns = max(self.final_ns, self._final_of(piece))
        if self.end_ns is None:
            self.end_ns = self._cut_at(piece, self.num_bytes)
        while self.end_ns is not None and self._is_complete(self.end_ns, piece):
            yield self._cut(self.end_ns)
            self.end_ns = self._next_cut()

    def finish(self) -> Iterator[Segment]:
        """Yield what is left."""
        while self.final_ns > self.start_ns:
            end_ns = self.end_ns or self._next_cut() or self.final_ns
            yield self._cut(min(end_ns, self.start_ns + self.longest_ns))
            self.end_ns = None

    def _final_of(self, piece: Piece) -> int:
        """Where the stream would end if this were its last piece: a caption does not outlast the picture."""
        caption = self.tracks[piece.packet.track].kind == "subtitle" and self.tracks[0].kind != "subtitle"
        return piece.start_ns + 1 if caption else piece.end_ns

    def _cut_at(self, piece: Piece, num_bytes: int) -> int | None:
        """Where this piece ends the segment being gathered, if it does. `num_bytes`: gathered for it so far."""
        forced_ns = self.start_ns + self.longest_ns
        if piece.start_ns > forced_ns + (MAX_LOOKAHEAD_NS if piece.packet.track else 0):
            return forced_ns
        if piece.start_ns <= self.start_ns:
            return None
        at_keyframe = piece.packet.track == 0 and piece.packet.keyframe
        if at_keyframe and piece.start_ns >= self.start_ns + self.target_ns - self.tolerance_ns:
            return piece.start_ns
        if num_bytes > MAX_SEGMENT_BYTES and (piece.packet.track == 0 or num_bytes > 2 * MAX_SEGMENT_BYTES):
            return piece.start_ns
        return None

    def _next_cut(self) -> int | None:
        """The cut that pieces gathered ahead already show."""
        for lane in self.lanes:
            num_bytes = 0
            for piece in lane:
                num_bytes += len(piece.packet.data)
                if cut_ns := self._cut_at(piece, num_bytes):
                    return cut_ns
        return None

    def _is_complete(self, end_ns: int, latest: Piece) -> bool:
        """Whether everything shown before `end_ns` has been read, or has been waited for long enough."""
        if latest.start_ns > end_ns + MAX_LOOKAHEAD_NS or self.num_bytes > 2 * MAX_SEGMENT_BYTES:
            return True
        for track, lane, decoded_ns in zip(self.tracks, self.lanes, self.decoded_ns, strict=True):
            if track.kind != "subtitle" and decoded_ns < end_ns:
                return False
            if track.kind == "audio" and not (
                len(lane) >= NUM_POSTROLL_PACKETS and lane[-NUM_POSTROLL_PACKETS].start_ns >= end_ns
            ):
                return False
        return True

    def _cut(self, end_ns: int) -> Segment:
        """Build the segment that ends here and keep only what the next one needs."""
        packets: list[Packet] = []
        for track, lane in zip(self.tracks, self.lanes, strict=True):
            if track.kind == "video":
                packets += self._video(lane, end_ns)
                keep = next((at for at, piece in enumerate(lane) if piece.start_ns >= end_ns), len(lane))
            elif track.kind == "audio":
                packets += _audio(lane, end_ns)
                keep = _preroll_from(lane, end_ns, max(MIN_PREROLL_NS, PREROLL_NS.get(track.codec, 0)))
            else:
                packets += [piece.packet for piece in lane if piece.start_ns < end_ns]
                keep = next((at for at, piece in enumerate(lane) if piece.start_ns >= end_ns), len(lane))
            for _ in range(keep):
                self.num_bytes -= len(lane.popleft().packet.data)
        if self.num_late:
            self.flaws.append(f"{self.num_late} packets came too late for the segment they belong to")
        segment = Segment(
            stream=self.stream,
            index=self.index,
            start_ns=self.start_ns,
            duration_ns=end_ns - self.start_ns,
            origin_ns=self.origin_ns,
            tracks=self.tracks,
            packets=tuple(packets),
            flaws=tuple(self.flaws[:MAX_FLAWS]),
        )
        self.flaws.clear()
        self.num_late = 0
        self.index += 1
        self.start_ns = end_ns
        return segment

    def _video(self, lane: deque[Piece], end_ns: int) -> list[Packet]:
        """From the first keyframe that is shown in the interval to the last packet, in decoding order, that is."""
        pieces = list(lane)
        while pieces and pieces[-1].start_ns >= end_ns:
            pieces.pop()
        shown_from_ns = self.start_ns if self.index else min((piece.start_ns for piece in pieces), default=0)
        usable = list(
            itertools.dropwhile(lambda piece: not piece.packet.keyframe or piece.start_ns < shown_from_ns, pieces)
        )
        num_lost = sum(self.start_ns <= piece.start_ns < end_ns for piece in pieces[: len(pieces) - len(usable)])
        if num_lost:
            self.flaws.append(f"{num_lost} pictures cannot be decoded: no keyframe before them in this segment")
        return [piece.packet for piece in usable if piece.start_ns >= shown_from_ns]


def _audio(lane: deque[Piece], end_ns: int) -> list[Packet]:
    """The preroll that was kept, what is heard in the interval, and what helps to resample its end."""
    before = [piece.packet for piece in lane if piece.start_ns < end_ns]
    after = (piece.packet for piece in lane if piece.start_ns >= end_ns)
    return before + list(itertools.islice(after, NUM_POSTROLL_PACKETS))


def _preroll_from(lane: deque[Piece], start_ns: int, preroll_ns: int) -> int:
    """Index of the first piece that a segment starting here carries."""
    first = next((at for at, piece in enumerate(lane) if piece.start_ns >= start_ns), len(lane))
    preroll = first
    while preroll > 0 and (first - preroll < NUM_PREROLL_PACKETS or lane[preroll - 1].end_ns > start_ns - preroll_ns):
        preroll -= 1
    return preroll


def _to_pcm(feeds: Sequence[Feed]) -> av.AudioResampler | None:
    """What turns decoded audio into interleaved 16-bit samples, where a track is transcoded."""
    for feed in feeds:
        if feed.transcode:
            layout = "mono" if feed.track.layout in ("mono", "1 channels") else "stereo"
            return av.AudioResampler(format="s16", layout=layout, rate=feed.track.sample_rate)
    return None


def _transcoded(packet: AvPacket[Any], clock: Clock, resampler: av.AudioResampler) -> Iterator[Piece]:
    """The packet decoded by its container's decoder, as PCM packets."""
    position = -1 if packet.pos is None else packet.pos
    try:
        frames: list[Any] = packet.decode()
        for frame in frames:
            pts = frame.pts
            for pcm in resampler.resample(frame):
                yield clock.stamp_samples(pts, pcm.samples, pcm.to_ndarray().tobytes(), position)
    except BAD_MEDIA as error:
        clock.flaws.append(f"audio at byte {position}: {str(error).splitlines()[0]}")
