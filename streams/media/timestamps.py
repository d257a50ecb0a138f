"""Gives every packet a timestamp that can be trusted, whatever its container says.

A `Clock` follows one track. It fills in timestamps that are missing, closes jumps (a recording restarted, a counter
wrapped, a damaged field) by shifting what follows, and puts audio on the grid of its own samples: a container that
counts milliseconds would otherwise move each segment's sound by up to half of one. Sample n of the track stands at
n / sample_rate; a packet that is where the packets before it say it should be, within MAX_DRIFT_NS, is put exactly
there. `Shift` is shared by the clocks of one source, so that tracks that jump together stay together.
"""

from __future__ import annotations  # PyAV's Packet is generic to a type checker only

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import msgspec
from av.packet import Packet as AvPacket

from streams.media.probe import Feed, skipped_samples, time_ns
from streams.records import Packet, Track

MAX_HOLE_NS = 600_000_000_000
MAX_STEP_BACK_NS = 1_000_000_000  # a decoding timestamp this far behind its predecessor is a jump too
MAX_REORDER_NS = 10_000_000_000  # a picture is not shown later than this after it is decoded
MAX_DURATION_NS = 60_000_000_000  # of one packet; a longer one is damage
MAX_DRIFT_NS = 1_000_000
MAX_TICKS = 1 << 60


@dataclass(frozen=True, slots=True)
class Piece:
    """A packet with its place in media time. It is decoded at `decode_ns` and holds [start_ns, end_ns)."""

    packet: Packet
    start_ns: int
    end_ns: int
    decode_ns: int
    arrived_ns: int = 0  # Unix time, 0 where the source is not live
    track: Track | None = None  # set where its track is another one from this packet on


@dataclass(slots=True)
class Shift:
    """How far the source's clock has been moved, and how far media time has been read. A silence of all tracks longer
    than `max_hole_ns` is taken for a jump of the clock and closed."""

    current_ns: int = 0
    reached_ns: int = 0
    max_hole_ns: int = MAX_HOLE_NS


@dataclass(slots=True)
class Clock:
    """The timestamps of one track. `flaws` collects what had to be repaired, one line each."""

    feed: Feed
    track_index: int
    origin_ns: int
    shift: Shift
    flaws: list[str]
    track: Track = field(init=False)  # as its packets are stamped
    on_samples: bool = field(init=False)  # the source's time base does not count samples exactly
    default_ns: int = field(init=False)  # lasting of a packet that does not say
    shift_ns: int = 0
    last_ns: int | None = None  # decoding time of the packet before
    lasting_ns: int = 0
    next_sample: int | None = None

    def __post_init__(self) -> None:
        self.follow(self.feed)

    def follow(self, feed: Feed) -> None:
        """From here on the packets are those of another feed of the same track: the clock goes on."""
        self.feed, self.next_sample = feed, None
        track = feed.track
        numerator, denominator = track.time_base
        rate = track.sample_rate
        self.on_samples = self.feed.transcode or (rate > 0 and denominator % (numerator * rate) != 0)
        self.track = _on_sample_grid(self.feed) if self.on_samples else track
        self.default_ns = 40_000_000
        if track.kind == "audio":
            self.default_ns = (self.feed.num_frame_samples or 1024) * 1_000_000_000 // max(1, rate)
        elif track.frame_rate[0] > 0:
            self.default_ns = track.frame_rate[1] * 1_000_000_000 // track.frame_rate[0]

    def stamp(self, packet: AvPacket[Any]) -> Piece | None:
        """The packet in its place; None where it holds nothing."""
        if not packet.size:
            return None
        position = -1 if packet.pos is None else packet.pos
        if packet.is_corrupt:
            self._note("packet is damaged or cut short", position)
        num_delay, num_padding = skipped_samples(packet)
        pts, dts, duration = self._in_order(packet.pts, packet.dts, packet.duration or 0, position)
        if self.on_samples:
            num_samples = self.feed.num_frame_samples or max(1, round(duration * self._samples_per_tick()))
            pts = dts = self._sample(pts, num_delay, chained=self.feed.num_frame_samples > 0)
            self.next_sample, duration = pts + num_samples, num_samples
        if num_padding and self.feed.num_frame_samples:
            numerator, denominator = self.track.time_base
            num_heard = max(0, self.feed.num_frame_samples - num_padding)
            duration = min(duration, max(1, num_heard * denominator // (self.track.sample_rate * numerator)))
        return self._piece(Packet(self.track_index, pts, dts, duration, packet.is_keyframe, bytes(packet), position))

    def stamp_samples(self, pts: int | None, num_samples: int, data: bytes, position: int) -> Piece:
        """Decoded audio, `num_samples` a channel, as a packet. `pts` in ticks of the source's time base."""
        pts, _, _ = self._in_order(pts, pts, round(num_samples / self._samples_per_tick()), position)
        sample = self._sample(pts, 0, chained=True)
        self.next_sample = sample + num_samples
        return self._piece(Packet(self.track_index, sample, sample, num_samples, True, data, position))

    def _in_order(self, pts: int | None, dts: int | None, duration: int, position: int) -> tuple[int, int, int]:
        """Complete timestamps without jumps, in ticks of the source's time base."""
        time_base = self.feed.track.time_base
        pts = pts if pts is not None and abs(pts) < MAX_TICKS else dts
        dts = dts if dts is not None and abs(dts) < MAX_TICKS else pts
        if pts is None or dts is None or abs(dts) >= MAX_TICKS:
            pts = dts = self._ticks(self._expected_ns() + self.origin_ns - self.shift_ns)
        if abs(time_ns(pts - dts, time_base)) > MAX_REORDER_NS:
            self._note("presentation and decoding time are far apart", position)
            pts = dts
        self._follow_jumps(time_ns(dts, time_base, self.origin_ns), position)
        shift = self._ticks(self.shift_ns)
        pts, dts = pts + shift, dts + shift
        self.lasting_ns = time_ns(duration, time_base)
        if not 0 < self.lasting_ns <= MAX_DURATION_NS:
            self.lasting_ns = self.default_ns
            duration = self._ticks(self.lasting_ns)
        self.last_ns = time_ns(dts, time_base, self.origin_ns)
        if self.track.kind != "subtitle":
            self.shift.reached_ns = max(self.shift.reached_ns, self._expected_ns())
        return pts, dts, duration

    def _follow_jumps(self, raw_ns: int, position: int) -> None:
        """Choose the shift under which this packet follows the one before it."""
        hole_ns = self.shift.max_hole_ns
        earliest_ns = self.shift.reached_ns - hole_ns if self.last_ns is None else self.last_ns - MAX_STEP_BACK_NS
        latest_ns = max(self._expected_ns(), self.shift.reached_ns) + hole_ns
        for shift_ns in (self.shift_ns, self.shift.current_ns):
            if earliest_ns <= raw_ns + shift_ns <= latest_ns:
                self.shift_ns = shift_ns
                return
        jump_ns = raw_ns + self.shift_ns - self._expected_ns()
        self.shift_ns = self.shift.current_ns = self._expected_ns() - raw_ns
        self._note(f"the clock jumps by {jump_ns / 1e9:.3f} s; what follows was joined on", position)

    def _sample(self, pts: int, num_delay: int, chained: bool) -> int:
        """The number of the packet's first sample."""
        per_tick = self._samples_per_tick()
        sample = round(pts * per_tick)
        expected = self.next_sample if chained else None
        if num_delay and self.next_sample is None:  # the container says exactly where the track starts to count
            expected = round(self.feed.first_ns * self.track.sample_rate / 1_000_000_000) - num_delay
        drift = max(2 * per_tick, Fraction(MAX_DRIFT_NS * self.track.sample_rate, 1_000_000_000))
        return expected if expected is not None and abs(expected - sample) <= drift else sample

    def _samples_per_tick(self) -> Fraction:
        numerator, denominator = self.feed.track.time_base
        return Fraction(numerator * self.track.sample_rate, denominator)

    def _expected_ns(self) -> int:
        return self.shift.reached_ns if self.last_ns is None else self.last_ns + self.lasting_ns

    def _ticks(self, ns: int) -> int:
        numerator, denominator = self.feed.track.time_base
        return round(Fraction(ns * denominator, numerator * 1_000_000_000))

    def _piece(self, packet: Packet) -> Piece:
        time_base = self.track.time_base
        start_ns = time_ns(packet.pts, time_base, self.origin_ns)
        end_ns = time_ns(packet.pts + packet.duration, time_base, self.origin_ns)
        return Piece(packet, start_ns, max(start_ns + 1, end_ns), time_ns(packet.dts, time_base, self.origin_ns))

    def _note(self, what: str, position: int) -> None:
        self.flaws.append(f"{self.track.kind} at byte {position}: {what}")


def _on_sample_grid(feed: Feed) -> Track:
    """The track counting in samples; as plain PCM where it is transcoded."""
    track = msgspec.structs.replace(feed.track, time_base=(1, feed.track.sample_rate))
    if not feed.transcode:
        return track
    layout = "mono" if track.layout in ("mono", "1 channels") else "stereo"
    pcm = msgspec.structs.replace(track, codec="pcm_s16le", extradata=b"", codec_tag="", sample_fmt="s16")
    return msgspec.structs.replace(pcm, layout=layout)
