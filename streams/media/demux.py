"""The packets of an opened container, in its order, with timestamps that can be trusted.

A source that can be opened only once is read on where finding out what is in it stopped; the packets read for that
come first (`join`). It is joined wherever it happens to be: pictures before its first keyframe, and those after it that
are shown before it, cannot be decoded and are left out.
"""

from __future__ import annotations  # PyAV's Packet is generic to a type checker only

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, TypeAlias, cast

import av
import av.audio
from av.container import InputContainer
from av.packet import Packet as AvPacket

from streams.media.changes import Changes
from streams.media.probe import BAD_DEMUX, BAD_MEDIA, Feed, examine
from streams.media.timestamps import MAX_HOLE_NS, Clock, Piece, Shift
from streams.records import Track

MAX_STUCK_PACKETS = 20_000  # read without media time moving on
MAX_STUCK_BYTES = 64 << 20

Arrival: TypeAlias = "tuple[AvPacket[Any], int]"  # a packet and when it came, in Unix nanoseconds; 0 where not live


@dataclass(slots=True)
class Demux:
    """What a container gives. Media time begins at `start_ns`. `flaws` collects what was repaired or left out, one line
    each; `failed` is what ended reading before the end."""

    container: InputContainer
    feeds: Sequence[Feed]
    start_ns: int = 0
    max_hole_ns: int = MAX_HOLE_NS
    packets: Iterable[Arrival] | None = None  # instead of those of the container from its beginning
    changes: Changes | None = None  # what is asked whether tracks change on the way
    flaws: list[str] = field(default_factory=list)
    failed: BaseException | None = None
    origin_ns: int = field(init=False)
    clocks: dict[int, Clock] = field(init=False)

    def __post_init__(self) -> None:
        heard_or_seen = [feed.first_ns for feed in self.feeds if feed.track.kind != "subtitle"]
        earliest_ns = int(min(heard_or_seen or [feed.first_ns for feed in self.feeds]) // 1)
        self.origin_ns = earliest_ns - self.start_ns
        shift = Shift(reached_ns=self.start_ns, max_hole_ns=self.max_hole_ns)
        self.clocks = {
            feed.index: Clock(feed, track_index, self.origin_ns, shift, self.flaws)
            for track_index, feed in enumerate(self.feeds)
        }

    @property
    def tracks(self) -> tuple[Track, ...]:
        return tuple(clock.track for clock in self.clocks.values())

    def pieces(self) -> Iterator[Piece]:
        """Every packet of the tracks that are taken. Pieces bear the time of their arrival where packets do."""
        resampler = _to_pcm(self.feeds)
        for packet, arrived_ns in self._packets():
            clock = self.clocks.get(packet.stream_index)
            if clock is None:  # at the end PyAV flushes every stream, taken or not
                continue
            for piece in self._stamped(packet, clock, resampler):
                yield replace(piece, arrived_ns=arrived_ns) if arrived_ns else piece

    def _stamped(self, packet: AvPacket[Any], clock: Clock, resampler: av.AudioResampler | None) -> Iterator[Piece]:
        if clock.feed.transcode and resampler:
            yield from _transcoded(packet, clock, resampler)
            return
        changed = self.changes.of(packet, clock.feed) if self.changes else None
        if changed:
            clock.follow(changed)
        if piece := clock.stamp(packet):
            yield replace(piece, track=clock.track) if changed else piece

    def _packets(self) -> Iterator[Arrival]:
        """Packets until the end, the first error, or until time stands still."""
        reached, num_stuck, stuck_bytes = None, 0, 0
        packets = self.packets or ((packet, 0) for packet in _packets_of(self.container, self.feeds))
        try:
            for packet, arrived_ns in packets:
                yield packet, arrived_ns
                if packet.dts is None or packet.dts != reached:
                    reached, num_stuck, stuck_bytes = packet.dts, 0, 0
                num_stuck, stuck_bytes = num_stuck + 1, stuck_bytes + packet.size
                if num_stuck > MAX_STUCK_PACKETS or stuck_bytes > MAX_STUCK_BYTES:
                    raise ValueError(f"{num_stuck} packets at one moment")
        except BAD_DEMUX as error:
            self.failed = error


def join(
    container: InputContainer,
    name: str,
    *,
    start_ns: Callable[[], int],
    arrived_ns: Callable[[], int],
    max_wait_s: float | None = None,
    max_hole_ns: int = MAX_HOLE_NS,
) -> Demux:
    """Read on in what was opened once. Returns when the first packet is there that can be decoded; only then does
    `start_ns` say where media time begins. `arrived_ns` is asked with every packet. Finding out what is in the source
    takes `max_wait_s` at most, if that is given. Raises UserError where nothing in it can be taken, and what PyAV
    raises where reading fails before the first packet."""
    before: list[Arrival] = []
    feeds = examine(container, name, lambda packet: before.append((packet, arrived_ns())), max_wait_s)
    flaws: list[str] = []
    gate = _Gate({feed.index for feed in feeds if feed.track.kind == "video"}, flaws)
    after = ((packet, arrived_ns()) for packet in _packets_of(container, feeds))
    first = [each for each in before if gate.admits(each[0])]
    onward = (each for each in after if gate.admits(each[0]))
    if not any(packet.size for packet, _ in first):
        first = list(itertools.islice((each for each in onward if each[0].size), 1))
    if not first:
        raise EOFError("it ended before there was anything that can be decoded")
    return Demux(
        container,
        _from_where_it_joins(feeds, gate),
        start_ns=start_ns(),
        max_hole_ns=max_hole_ns,
        packets=itertools.chain(first, onward),
        changes=Changes(container, feeds),
        flaws=flaws,
    )


@dataclass(slots=True)
class _Gate:
    """Lets pictures pass from the first keyframe on."""

    video: set[int]
    flaws: list[str]
    num_dropped: int = 0
    num_keyframes: int = 0
    first_pts: int | None = None  # of the first keyframe

    def admits(self, packet: AvPacket[Any]) -> bool:
        if packet.stream_index not in self.video or not packet.size:
            return True
        if packet.is_keyframe:
            self.num_keyframes += 1
            if self.num_keyframes == 1:
                self.first_pts = packet.pts if packet.pts is not None else packet.dts
                if self.num_dropped:
                    self.flaws.append(f"joined between keyframes: {self.num_dropped} pictures before the first dropped")
            return True
        if self.num_keyframes == 0:
            self.num_dropped += 1
            return False
        leads = packet.pts is not None and self.first_pts is not None and packet.pts < self.first_pts
        return not (leads and self.num_keyframes == 1)


def _from_where_it_joins(feeds: Sequence[Feed], gate: _Gate) -> list[Feed]:
    """The feeds, with video that begins at its first keyframe, or with the rest while there is none."""
    if not gate.num_dropped:
        return list(feeds)
    others_ns = [feed.first_ns for feed in feeds if feed.track.kind != "video"]
    joined = []
    for feed in feeds:
        first_ns = feed.first_ns
        if feed.index in gate.video:
            numerator, denominator = feed.track.time_base
            at_keyframe = gate.first_pts is not None
            ticks = Fraction(gate.first_pts or 0)
            first_ns = ticks * numerator * 1_000_000_000 / denominator if at_keyframe else min(others_ns)
        joined.append(replace(feed, first_ns=first_ns))
    return joined


def _packets_of(container: InputContainer, feeds: Sequence[Feed]) -> Iterator[AvPacket[Any]]:
    """The packets of these feeds from where the container stands."""
    streams = [container.streams[feed.index] for feed in feeds]
    with closing(cast("Generator[AvPacket[Any], None, None]", container.demux(streams))) as packets:
        yield from packets


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
