"""Follows objects from frame to frame: which boxes are one and the same.

Each track expects its next box where its last one was, moved by its velocity for the time that has passed. How far a
box is from there is told in boxes, for at a few frames a second people are a box's width on and overlap with themselves
no more:

    far = 2 * hypot(dx / (width + width'), dy / (height + height'))        1: they touch, side by side

A track and a box of one class, of sizes that differ by MAX_GROWN at most, can be a pair where

    far <= min(MAX_FAR, NEAR + rate * seconds passed)

for the longer it was not seen, the further it may be from where it was expected; `rate` is STRAYS for a track whose
velocity is known, STRIDES for one that was seen once. Of all ways to pair them the one is taken that has the most pairs
and, of those, the least sum of far + |log(height / height')|. A velocity forgets by half in HALF_LIFE_S. A track begins
with a box of MIN_BEGIN or surer, and goes on with any; it is shown from its second box on, and is given up after
MAX_UNSEEN_S, or MAX_UNSEEN_FRAMES frames, without one.

This is SORT with distance for overlap and a fixed gain in place of a Kalman filter; that what begins a track is surer
than what carries it on is ByteTrack's. The libraries for it keep their state in objects of their own; here it has to be
in the output, which the next segment's worker reads.
Source: Bewley et al., Simple Online and Realtime Tracking, arXiv 1602.00763; Zhang et al., ByteTrack, arXiv 2110.06864.
Quality: IDF1 on PETS09-S2L1 behind the bundled detector, a frame in 0.4 s (bench/objects.py); the constants were chosen
there, at five spacings from 0.1 to 0.8 s, so elsewhere it may be less.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

import msgspec
import numpy as np

from engine.spec.operator import Fold, Inputs, Operator, Rung, Scope, Settings
from operators.capabilities import TRACK_OBJECTS
from operators.seen import Bounds, DetectedObject, Objects, OpenTrack, Sighting, TrackedObject, Tracks
from operators.vision.assigning import NEVER, assigned

MAX_FAR, MAX_GROWN = 1.5, 1.6
NEAR, STRAYS, STRIDES = 0.5, 1.0, 3.0  # boxes; boxes a second: people stride about three of their widths
HALF_LIFE_S = 0.4
MIN_BEGIN = 0.5
MAX_UNSEEN_S, MAX_UNSEEN_FRAMES = 3.0, 2.5  # whichever is longer
MIN_STEP_S = 0.1  # between frames, for a velocity
MAX_OPEN = 500  # tracks
MAX_A_SEGMENT = 10_000  # tracks that begin


class TrackObjects(Operator):
    """Joins boxes to tracks, over the segments of a stream."""

    capability = TRACK_OBJECTS
    name = "nearest"
    version = 2
    scope: ClassVar[Scope] = Fold()
    max_batch = 16

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return (Rung("nearest", 0.7, Settings()),)

    def process(self, batch: Sequence[Inputs]) -> Sequence[Tracks]:
        return [tracked(item.here("objects"), item.previous, item.first) for item in batch]


def tracked(objects: Objects, before: Tracks | None, first: int = 0) -> Tracks:
    """The tracks of a segment, the `first`-th, given those of the segment before."""
    open_ = list(before.open) if before is not None else []
    num_tracks = before.num_tracks if before is not None else first * MAX_A_SEGMENT  # none is given twice behind a gap
    spacing_ns = before.spacing_ns if before is not None else 0
    by_time: dict[int, list[DetectedObject]] = {at_ns: [] for at_ns in objects.times_ns}
    for each in objects.observations:
        by_time.setdefault(each.start_ns, []).append(each)
    last_ns = before.frame_ns if before is not None else -1
    seen: dict[int, list[Sighting]] = {}
    known = {track.id: track for track in open_}  # those that are given up in this segment as well
    for at_ns in sorted(by_time):
        if 0 <= last_ns < at_ns:
            spacing_ns = at_ns - last_ns if not spacing_ns else min(at_ns - last_ns, 2 * spacing_ns)
        last_ns = at_ns
        unseen_ns = max(MAX_UNSEEN_S * 1e9, MAX_UNSEEN_FRAMES * spacing_ns)
        open_ = [track for track in open_ if at_ns - track.last.at_ns <= unseen_ns]
        left = sorted(by_time[at_ns], key=lambda each: (-each.confidence, each.text, each.box))
        matched = _matched(open_, left, at_ns)
        for at, number in matched:
            open_[at] = _moved(open_[at], left[number])
        taken = {number for _, number in matched}
        others = [each for number, each in enumerate(left) if number not in taken and each.confidence >= MIN_BEGIN]
        for found in others[: max(0, MAX_OPEN - len(open_))]:
            num_tracks += 1
            open_.append(OpenTrack(id=num_tracks, name=found.text, last=_sighting(found), num_seen=1))
        for track in open_:
            known[track.id] = track
            if track.last.at_ns == at_ns:
                seen.setdefault(track.id, []).append(track.last)
    shown = [_shown(known[id], [*known[id].held, *some]) for id, some in sorted(seen.items()) if known[id].is_sure]
    return Tracks(
        observations=tuple(shown),
        open=tuple(_kept(track, seen.get(track.id, ())) for track in open_),
        num_tracks=num_tracks,
        spacing_ns=spacing_ns,
        frame_ns=last_ns,
    )


def _kept(track: OpenTrack, sightings: Sequence[Sighting]) -> OpenTrack:
    """A track as the next segment has it; what was not shown of it yet is shown there, if it is seen again."""
    held = () if track.is_sure else (*track.held, *sightings)
    return msgspec.structs.replace(track, held=held)


def _shown(track: OpenTrack, sightings: Sequence[Sighting]) -> TrackedObject:
    return TrackedObject(
        start_ns=sightings[0].at_ns,
        end_ns=sightings[-1].at_ns,
        text=track.name,
        confidence=round(sum(each.confidence for each in sightings) / len(sightings), 4),
        track=track.id,
        path=tuple(sightings),
    )


def _sighting(found: DetectedObject) -> Sighting:
    return Sighting(found.start_ns, found.box, found.confidence)


def _matched(tracks: Sequence[OpenTrack], found: Sequence[DetectedObject], at_ns: int) -> list[tuple[int, int]]:
    """Pairs of a track and a box, by number; each in one pair at most."""
    costs = np.full((len(tracks), len(found)), NEVER)
    for at, track in enumerate(tracks):
        expected = expected_at(track, at_ns)
        limit = reach(track, at_ns)
        for number, each in enumerate(found):
            if each.text == track.name and (far := distance(expected, each.box)) <= limit:
                costs[at, number] = far + abs(math.log(each.box[3] / expected[3]))
    return assigned(costs)


def reach(track: OpenTrack, at_ns: int) -> float:
    """How far from where it is expected a track may be by then, in boxes."""
    rate = STRAYS if track.num_seen > 1 else STRIDES
    return min(MAX_FAR, NEAR + rate * (at_ns - track.last.at_ns) / 1e9)


def expected_at(track: OpenTrack, at_ns: int) -> Bounds:
    """Where a track's box should be by then."""
    x, y, width, height = track.last.box
    passed_s = (at_ns - track.last.at_ns) / 1e9
    return (x + track.velocity[0] * passed_s, y + track.velocity[1] * passed_s, width, height)


def _moved(track: OpenTrack, found: DetectedObject) -> OpenTrack:
    passed_s = (found.start_ns - track.last.at_ns) / 1e9
    velocity = track.velocity
    if passed_s >= MIN_STEP_S:
        (x0, y0), (x1, y1) = middle(track.last.box), middle(found.box)
        now = ((x1 - x0) / passed_s, (y1 - y0) / passed_s)
        kept = 0.5 ** (passed_s / HALF_LIFE_S) if track.num_seen > 1 else 0.0
        velocity = (_mean(velocity[0], now[0], kept), _mean(velocity[1], now[1], kept))
    return msgspec.structs.replace(track, last=_sighting(found), velocity=velocity, num_seen=track.num_seen + 1)


def _mean(old: float, now: float, kept: float) -> float:
    return round(kept * old + (1 - kept) * now, 6)


def middle(box: Bounds) -> tuple[float, float]:
    return box[0] + box[2] / 2, box[1] + box[3] / 2


def distance(one: Bounds, other: Bounds) -> float:
    """How far apart two boxes are, in boxes; infinite where one is much larger than the other."""
    if min(one[2], one[3], other[2], other[3]) <= 0 or max(one[3], other[3]) > MAX_GROWN * min(one[3], other[3]):
        return math.inf
    (x0, y0), (x1, y1) = middle(one), middle(other)
    return 2 * math.hypot((x1 - x0) / (one[2] + other[2]), (y1 - y0) / (one[3] + other[3]))
