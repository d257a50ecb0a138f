"""Tells what tracked objects do: enter a zone or leave it, stay in it for long, cross a line.

An object is where it stands: in the middle of the lower edge of its box. A zone is a polygon in fractions of the frame;
a point on its edge may count either way. An object that is in a zone when it is first seen has entered it. It has left
once it was outside MIN_OUT times in a row, or when its track is given up in it: who stands at the edge does not come
and go. One that is there when the stream ends has not left. A line is crossed where the step from one sighting to the
next cuts it, to the left or to the right of whoever looks from its first point to its second. Events are in order
within a segment; that somebody has left is told late, and says since when.
Source: O'Rourke, Computational Geometry in C (2nd ed.), 7.4 for points in polygons by crossings, 1.5 for segments.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import msgspec

from engine.spec.operator import Fold, Inputs, Operator, Rung, Scope, Settings
from operators.capabilities import WATCH_ZONES, WatchZonesParams
from operators.seen import Event, Events, Inside, Sighting, Tracks
from operators.seen import Place as Point

LEFT, RIGHT = "left", "right"
MIN_OUT = 2
INSIDE = 1 - 1e-6


class WatchZones(Operator):
    """Events of tracks in zones and at lines."""

    capability = WATCH_ZONES
    name = "zones"
    scope: ClassVar[Scope] = Fold()
    runs_in = "loop"
    max_batch = 16

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return (Rung("zones", 1.0, Settings()),)  # it follows from the tracks

    def process(self, batch: Sequence[Inputs]) -> Sequence[Events]:
        return [events_of(item.here("tracks"), item.previous, item.params) for item in batch]


def events_of(tracks: Tracks, before: Events | None, params: WatchZonesParams) -> Events:
    """What happened in a segment, given what had before."""
    inside = {(each.track, each.zone): each for each in (before.inside if before is not None else ())}
    last = dict(before.last) if before is not None else {}
    found: list[Event] = []
    for track in tracks.observations:
        for seen in track.path:
            where = feet(seen)
            for zone, corners in params.zones.items():
                found += _in_zone(inside, track.track, track.text, seen, zone, is_in(where, corners), params.stays_s)
            if (was := last.get(track.track)) is not None:
                found += _over_lines(params.lines, was, where, seen, track.track, track.text)
            last[track.track] = where
    alive = {track.id for track in tracks.open}
    for key in [key for key in inside if key[0] not in alive]:
        gone = inside.pop(key)
        found.append(_event("leaves", gone.name, gone.track, gone.zone, gone.seen_ns, gone.confidence))
    return Events(
        observations=tuple(sorted(found, key=lambda event: (event.start_ns, event.track, event.what, event.place))),
        inside=tuple(inside[key] for key in sorted(inside)),
        last=tuple((track, last[track]) for track in sorted(last) if track in alive),
    )


def _in_zone(
    inside: dict[tuple[int, str], Inside],
    track: int,
    name: str,
    seen: Sighting,
    zone: str,
    is_inside: bool,
    stays_s: float,
) -> Iterator[Event]:
    was = inside.get((track, zone))
    if not is_inside:
        if was is not None and was.num_out + 1 >= MIN_OUT:
            del inside[track, zone]
            yield _event("leaves", name, track, zone, seen.at_ns, seen.confidence)
        elif was is not None:
            inside[track, zone] = msgspec.structs.replace(was, num_out=was.num_out + 1)
        return
    since_ns, is_told = (was.since_ns, was.is_told) if was else (seen.at_ns, False)
    if was is None:
        yield _event("enters", name, track, zone, seen.at_ns, seen.confidence)
    if stays_s and not is_told and seen.at_ns - since_ns >= stays_s * 1e9:
        is_told = True
        yield Event(
            start_ns=since_ns,
            end_ns=seen.at_ns,
            text=f"{name} {track} stays in {zone} for {stays_s:g} s",
            confidence=seen.confidence,
            what="stays",
            track=track,
            object=name,
            place=zone,
        )
    inside[track, zone] = Inside(track, name, zone, since_ns, seen.at_ns, seen.confidence, is_told)


def _over_lines(
    lines: Mapping[str, Sequence[Point]], was: Point, now: Point, seen: Sighting, track: int, name: str
) -> Iterator[Event]:
    for line, (start, end) in lines.items():
        if (side := crossed(was, now, start, end)) is not None:
            yield _event("crosses", name, track, line, seen.at_ns, seen.confidence, f" to the {side}")


def _event(what: str, name: str, track: int, place: str, at_ns: int, confidence: float, how: str = "") -> Event:
    return Event(
        start_ns=at_ns,
        end_ns=at_ns,
        text=f"{name} {track} {what} {place}{how}",
        confidence=confidence,
        what=what,
        track=track,
        object=name,
        place=place,
    )


def feet(seen: Sighting) -> Point:
    """Where it stands, inside the frame: what is cut off by the frame's edge stands there."""
    x, y, width, height = seen.box
    return min(max(x + width / 2, 0.0), INSIDE), min(max(y + height, 0.0), INSIDE)


def is_in(point: Point, corners: Sequence[Point]) -> bool:
    """Whether a ray from the point to the right cuts the polygon's edges an odd number of times."""
    x, y = point
    is_inside = False
    for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0):
            is_inside = not is_inside
    return is_inside


def crossed(was: Point, now: Point, start: Point, end: Point) -> str | None:
    """To which side a step crosses a line; None where it does not. On the line counts as to the right of it."""
    before, after = _side(start, end, was), _side(start, end, now)
    one, other = min(was, now), max(was, now)  # the same there and back
    if (before >= 0) == (after >= 0) or (_side(one, other, start) >= 0) == (_side(one, other, end) >= 0):
        return None
    return LEFT if after < 0 else RIGHT


def _side(start: Point, end: Point, point: Point) -> float:
    """Positive where the point is to the right, in a picture whose y grows downwards."""
    return (end[0] - start[0]) * (point[1] - start[1]) - (end[1] - start[1]) * (point[0] - start[0])
