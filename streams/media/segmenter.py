"""Cuts media into segments: slices of compressed packets, each decodable alone.

The reference track (video, else audio, else subtitles) says where to cut: a segment ends at the first keyframe that
is shown at or after its start + target, and wherever a track becomes another one (another picture size). The intervals
that segments own tile the stream. What a segment carries beyond its interval: pictures shown before its end but
decoded after the next keyframe, with that keyframe (open groups of pictures); sound before its start, for decoders that
need warming up, and two packets after its end; pictures from the last keyframe, where it was cut for the sound's sake.

What is held in memory is bounded: a segment by MAX_SEGMENT_NS and MAX_SEGMENT_BYTES, waiting for a track that lags
behind the others by MAX_LOOKAHEAD_NS, or less in a live stream. What cannot be kept within that is dropped and named in
`flaws`. The same bytes give the same records.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av
from av.container import InputContainer

from streams.errors import UserError
from streams.media.demux import Demux
from streams.media.probe import inspect, open_media, probe
from streams.media.timestamps import Piece
from streams.records import EndOfStream, Packet, Segment, Track

__all__ = ["SEGMENTER_VERSION", "Cutter", "probe", "segments", "stream_id", "target_ns_of"]

SEGMENTER_VERSION = 1  # raise it whenever the same file would give other records

MAX_TARGET_S = 300.0
MAX_SEGMENT_NS = 60_000_000_000  # without a keyframe for this long (or twice the target) it is cut anyway
MAX_SEGMENT_BYTES = 64 << 20
MAX_LOOKAHEAD_NS = 30_000_000_000
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


def target_ns_of(target_s: float) -> int:
    """The target length of segments. Raises UserError where it is out of range."""
    if not 0 < target_s <= MAX_TARGET_S:
        raise UserError(f"segment duration {target_s} s: must be above 0 and at most {MAX_TARGET_S:.0f} s")
    return round(target_s * 1e9)


def segments(
    url: str, *, stream: str, target_s: float = 5.0, first_index: int = 0, start_ns: int = 0
) -> Iterator[Segment | EndOfStream]:
    """The segments of a file or URL in order, read as they are asked for, and then the end of the stream. They are
    numbered from `first_index`, and media time begins at `start_ns`.

    Raises UserError where the source cannot be opened or holds nothing that can be segmented. Damage further in ends
    the stream early and is named in the flaws of what is yielded.
    """
    target_ns = target_ns_of(target_s)
    feeds = inspect(url)
    with open_media(url) as container:
        demux = Demux(container, feeds, start_ns)
        cutter = Cutter(stream, demux.tracks, demux.origin_ns, target_ns, demux.flaws, first_index, start_ns)
        for piece in demux.pieces():
            yield from cutter.push(piece)
        yield from cutter.finish()
        if cutter.index == first_index:
            raise UserError(f"{url}: holds no packet that can be read; give a video or audio file that is complete")
        stopped = [f"reading stopped: {str(demux.failed).splitlines()[0]}"] if demux.failed else []
        flaws = (*stopped, *_falls_short(container, cutter.start_ns - start_ns), *demux.flaws)[:MAX_FLAWS]
        yield EndOfStream(stream=stream, num_segments=cutter.index, duration_ns=cutter.start_ns, flaws=flaws)


def _falls_short(container: InputContainer, reached_ns: int) -> Iterator[str]:
    """What to say where a file is clearly shorter than its header promises."""
    promised = container.duration
    if promised and {"mp4", "matroska"} & set(container.format.name.split(",")):
        promised_ns = promised * 1_000_000_000 // av.time_base
        if promised_ns - reached_ns > max(1_000_000_000, promised_ns // 50):
            yield f"ends at {reached_ns / 1e9:.3f} s, its header promises {promised_ns / 1e9:.3f} s"


@dataclass(slots=True)
class Cutter:
    """Gathers pieces, decides where a segment ends and builds it. Deterministic and without input or output."""

    stream: str
    tracks: tuple[Track, ...]  # of the segment being gathered
    origin_ns: int
    target_ns: int
    flaws: list[str]
    index: int = 0
    start_ns: int = 0
    patience_ns: int | None = None  # live: how long a track that says nothing is waited for, in media time
    end_ns: int | None = None  # of the segment being gathered, once it is known
    final_ns: int = 0
    num_bytes: int = 0
    num_late: int = 0
    captured_ns: int = 0  # of the segment before
    received_ns: int = 0  # Unix time at which media time start_ns was received, judged by the segment before
    is_first: bool = True
    decodable_ns: int = field(init=False)  # pictures from here on are carried
    lanes: list[deque[Piece]] = field(init=False)
    decoded_ns: list[int] = field(init=False)  # how far each lane has been read
    longest_ns: int = field(init=False)
    lookahead_ns: int = field(init=False)
    tolerance_ns: int = field(init=False)

    def __post_init__(self) -> None:
        self.lanes = [deque() for _ in self.tracks]
        self.decoded_ns = [self.start_ns - 1 for _ in self.tracks]
        self.decodable_ns = self.final_ns = self.start_ns
        self.longest_ns = max(MAX_SEGMENT_NS, 2 * self.target_ns)
        self.lookahead_ns = MAX_LOOKAHEAD_NS if self.patience_ns is None else self.patience_ns
        rate = self.tracks[0].frame_rate
        self.tolerance_ns = rate[1] * 500_000_000 // rate[0] if rate[0] > 0 else 0

    def push(self, piece: Piece) -> Iterator[Segment]:
        """Take one piece; yield the segments that it completes."""
        track = piece.packet.track
        lane = self.lanes[track]
        if piece.track is not None and (not lane or piece.start_ns <= self.start_ns):
            self._change(track, piece.track, num_before=len(lane))
        if not self.is_first and piece.start_ns < self.start_ns:
            self.num_late += 1
            return
        lane.append(piece)
        self.num_bytes += len(piece.packet.data)
        self.decoded_ns[track] = max(self.decoded_ns[track], piece.decode_ns)
        self.final_ns = max(self.final_ns, self._final_of(piece))
        if self.end_ns is None:
            self.end_ns = self._cut_at(piece, self.num_bytes)
        if piece.track is not None and len(lane) > 1:
            self.end_ns = min(piece.start_ns, self.end_ns or piece.start_ns)
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
        if piece.start_ns > forced_ns + (self.lookahead_ns if piece.packet.track else 0):
            return forced_ns
        if piece.start_ns <= self.start_ns:
            return None
        wanted_ns = self.start_ns + self.target_ns
        if piece.packet.track == 0:
            if piece.packet.keyframe and piece.start_ns >= wanted_ns - self.tolerance_ns:
                return piece.start_ns
        elif self.patience_ns is not None and piece.start_ns > max(wanted_ns, self.decoded_ns[0]) + self.patience_ns:
            return max(wanted_ns, self.decoded_ns[0] + 1)
        if num_bytes > MAX_SEGMENT_BYTES and (piece.packet.track == 0 or num_bytes > 2 * MAX_SEGMENT_BYTES):
            return piece.start_ns
        return None

    def _next_cut(self) -> int | None:
        """The cut that pieces gathered ahead already show."""
        changes_ns = [piece.start_ns for lane in self.lanes for piece in _changes(lane)]
        for lane in self.lanes:
            num_bytes = 0
            for piece in lane:
                num_bytes += len(piece.packet.data)
                if cut_ns := self._cut_at(piece, num_bytes):
                    return min([cut_ns, *changes_ns])
        return min(changes_ns, default=None)

    def _is_complete(self, end_ns: int, latest: Piece) -> bool:
        """Whether everything shown before `end_ns` has been read, or has been waited for long enough."""
        if latest.start_ns > end_ns + self.lookahead_ns or self.num_bytes > 2 * MAX_SEGMENT_BYTES:
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
        captured_ns = self._captured(end_ns)
        is_change = any(piece.start_ns == end_ns for lane in self.lanes for piece in _changes(lane))
        decodable_ns = end_ns
        for track, lane in zip(self.tracks, self.lanes, strict=True):
            ended = _before_change(lane)
            keep = next((at for at, piece in enumerate(lane) if piece.start_ns >= end_ns), len(lane))
            if track.kind == "video":
                packets += self._video(ended, end_ns)
                if is_change:
                    keep = _keyframe_from(lane, end_ns, keep)
                    decodable_ns = min(end_ns, lane[keep].start_ns) if keep < len(lane) else end_ns
            elif track.kind == "audio":
                packets += _audio(ended, end_ns)
                keep = _preroll_from(lane, end_ns, max(MIN_PREROLL_NS, PREROLL_NS.get(track.codec, 0)))
            else:
                packets += [piece.packet for piece in lane if piece.start_ns < end_ns]
            self._forget(lane, keep)
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
            captured_ns=captured_ns,
        )
        self.flaws.clear()
        self.num_late = 0
        self.index += 1
        self.is_first = False
        self.start_ns, self.decodable_ns = end_ns, decodable_ns
        self.captured_ns, self.received_ns = captured_ns, captured_ns and captured_ns + segment.duration_ns
        self._take_up_changes()
        return segment

    def _captured(self, end_ns: int) -> int:
        """When the start of the segment was received: judged by that of its packets which came with the least delay,
        because those that a connection begins with, or that come a file at a time, have waited. It never goes back."""
        received_ns = [
            piece.arrived_ns - (piece.start_ns - self.start_ns)
            for lane in self.lanes
            for piece in lane
            if piece.arrived_ns and self.start_ns <= piece.start_ns < end_ns
        ]
        return max(self.captured_ns, min(received_ns, default=self.received_ns))

    def _change(self, index: int, track: Track, num_before: int) -> None:
        """From here on a track is another one: packets before are of no use to its decoder."""
        self.tracks = (*self.tracks[:index], track, *self.tracks[index + 1 :])
        self._forget(self.lanes[index], num_before)

    def _take_up_changes(self) -> None:
        """Let the changes hold that lie at the start of the segment now gathered."""
        for index, lane in enumerate(self.lanes):
            for at in reversed(range(len(lane))):
                track = lane[at].track
                if track is not None and (at == 0 or lane[at].start_ns <= self.start_ns):
                    self._change(index, track, num_before=at)
                    break

    def _forget(self, lane: deque[Piece], num_pieces: int) -> None:
        for _ in range(num_pieces):
            self.num_bytes -= len(lane.popleft().packet.data)

    def _video(self, lane: Sequence[Piece], end_ns: int) -> list[Packet]:
        """From the first keyframe that is shown in the interval to the last packet, in decoding order, that is."""
        pieces = list(lane)
        while pieces and pieces[-1].start_ns >= end_ns:
            pieces.pop()
        shown_from_ns = min((piece.start_ns for piece in pieces), default=0) if self.is_first else self.decodable_ns
        usable = list(
            itertools.dropwhile(lambda piece: not piece.packet.keyframe or piece.start_ns < shown_from_ns, pieces)
        )
        num_lost = sum(self.start_ns <= piece.start_ns < end_ns for piece in pieces[: len(pieces) - len(usable)])
        if num_lost:
            self.flaws.append(f"{num_lost} pictures cannot be decoded: no keyframe before them in this segment")
        return [piece.packet for piece in usable if piece.start_ns >= shown_from_ns]


def _changes(lane: deque[Piece]) -> Iterator[Piece]:
    """The pieces with which the track of a lane becomes another one than it is at its beginning."""
    return (piece for piece in itertools.islice(lane, 1, None) if piece.track is not None)


def _before_change(lane: deque[Piece]) -> Sequence[Piece]:
    """The pieces of a lane that belong to the track as it is at its beginning."""
    return [
        *itertools.islice(lane, 1),
        *itertools.takewhile(lambda each: each.track is None, itertools.islice(lane, 1, None)),
    ]


def _keyframe_from(lane: deque[Piece], end_ns: int, default: int) -> int:
    """Index of the last keyframe shown at `end_ns` or before it."""
    return max(
        (at for at, piece in enumerate(lane) if piece.packet.keyframe and piece.start_ns <= end_ns), default=default
    )


def _audio(lane: Sequence[Piece], end_ns: int) -> list[Packet]:
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
