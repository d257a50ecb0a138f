"""Draws into pictures what was found in them: boxes and ways of objects, zones, text, events, what is said.

What is shown at a moment:

- a track's box, between two sightings where it must have been (linear), up to MAX_BETWEEN_S apart; its way of the last
  TRAIL_S behind it. Objects that nobody tracks have their boxes until the next frame that was looked at;
- lines of text as long as they are visible; events for EVENT_S, the latest below; what is said as subtitles.

Each track has a colour of its own: hues a golden angle apart, so that numbers in a row are far from each other.
"""

import colorsys
import unicodedata
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from operators.capabilities import WatchZonesParams
from operators.heard import Transcript
from operators.seen import Bounds, DetectedObject, Event, Events, Objects, Place, ScreenText, Sighting, TextLine, Tracks
from operators.speech.subtitles import Cue, cues_of

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

NS = 1_000_000_000
MAX_BETWEEN_S = 3.0
TRAIL_S = 4.0
EVENT_S, MAX_EVENTS = 2.5, 4
MAX_SHOWN_S = 2.0  # of an object that nobody tracks
SHOWN: tuple[type[msgspec.Struct], ...] = (Objects, Tracks, Events, ScreenText, Transcript)  # what it can show
GOLDEN = 0.61803399
FONTS = ("NotoSans-Regular.ttf", "DejaVuSans.ttf", "LiberationSans-Regular.ttf", "Arial.ttf", "arial.ttf")
DARK, LIGHT, YELLOW = (16, 16, 16), (250, 250, 250), (255, 214, 64)

Colour = tuple[int, int, int]
Image = NDArray[np.uint8]


@dataclass(slots=True)
class Way:
    """Where a track was seen, in order of time."""

    name: str
    number: int
    sightings: list[Sighting] = field(default_factory=list)

    def box_at(self, at_ns: int) -> Bounds | None:
        """Where it is then; None where it is not seen."""
        behind = bisect_right(self.sightings, at_ns, key=lambda each: each.at_ns)
        if behind == 0:
            return None
        before = self.sightings[behind - 1]
        if before.at_ns == at_ns:
            return before.box
        if behind == len(self.sightings) or self.sightings[behind].at_ns - before.at_ns > MAX_BETWEEN_S * NS:
            return None
        after = self.sightings[behind]
        part = (at_ns - before.at_ns) / (after.at_ns - before.at_ns)
        x, y, width, height = (a + part * (b - a) for a, b in zip(before.box, after.box, strict=True))
        return x, y, width, height

    def trail_at(self, at_ns: int) -> list[Place]:
        """Where it stood lately, the oldest first."""
        first = bisect_left(self.sightings, at_ns - int(TRAIL_S * NS), key=lambda each: each.at_ns)
        last = bisect_right(self.sightings, at_ns, key=lambda each: each.at_ns)
        return [foot(each.box) for each in self.sightings[first:last]]


def foot(box: Bounds) -> Place:
    """Where an object stands: in the middle of the lower edge of its box."""
    return box[0] + box[2] / 2, box[1] + box[3]


class Overlay:
    """What was found in a stream, to be drawn into its pictures."""

    def __init__(self, outputs: Iterable[Any], zones: Sequence[WatchZonesParams] = ()) -> None:
        """`outputs`: of any stages, in any order; those it cannot show are passed over."""
        self.zones = tuple(zones)
        ways: dict[int, Way] = {}
        objects: dict[int, list[DetectedObject]] = defaultdict(list)
        said: list[Any] = []
        self.lines: list[TextLine] = []
        self.events: list[Event] = []
        for output in outputs:
            match output:
                case Tracks():
                    for track in output.observations:
                        ways.setdefault(track.track, Way(track.text, track.track)).sightings += track.path
                case Objects():
                    for at_ns in output.times_ns:
                        objects[at_ns] += ()
                    for seen in output.observations:
                        objects[seen.start_ns].append(seen)
                case ScreenText():
                    self.lines += output.observations
                case Events():
                    self.events += output.observations
                case Transcript():
                    said += output.observations
        for way in ways.values():
            way.sightings.sort(key=lambda each: each.at_ns)
        self.objects = {} if ways else dict(sorted(objects.items()))
        self._times = list(self.objects)
        self.events.sort(key=lambda each: each.start_ns)
        self._begins = [each.start_ns for each in self.events]
        self.cues: list[Cue] = cues_of(said)
        self._ways = _by_second((way, way.sightings[0].at_ns, way.sightings[-1].at_ns) for way in ways.values())
        self._lines = _by_second((line, line.start_ns, line.end_ns) for line in self.lines)

    def ways_at(self, at_ns: int) -> list[tuple[Way, Bounds]]:
        found = ((way, way.box_at(at_ns)) for way in self._ways.get(at_ns // NS, ()))
        return [(way, box) for way, box in found if box is not None]

    def objects_at(self, at_ns: int) -> Sequence[DetectedObject]:
        behind = bisect_right(self._times, at_ns)
        if not behind or at_ns - self._times[behind - 1] > MAX_SHOWN_S * NS:
            return ()
        return self.objects[self._times[behind - 1]]

    def lines_at(self, at_ns: int) -> list[TextLine]:
        return [line for line in self._lines.get(at_ns // NS, ()) if line.start_ns <= at_ns < line.end_ns]

    def events_at(self, at_ns: int) -> Sequence[Event]:
        first = bisect_left(self._begins, at_ns - int(EVENT_S * NS))
        return self.events[first : bisect_right(self._begins, at_ns)][-MAX_EVENTS:]

    def said_at(self, at_ns: int) -> str:
        behind = bisect_right(self.cues, at_ns, key=lambda cue: cue.start_ns)
        return self.cues[behind - 1].text if behind and at_ns < self.cues[behind - 1].end_ns else ""

    def drawn(self, image: Image, at_ns: int) -> Image:
        """A picture with all that is to be seen at its time. image: uint8 [H, W, 3], RGB."""
        from PIL import Image as Images
        from PIL import ImageDraw

        canvas = Images.fromarray(image)
        pen = _Pen(ImageDraw.Draw(canvas, "RGBA"), canvas.width, canvas.height)
        for params in self.zones:
            pen.zones(params)
        for line in self.lines_at(at_ns):
            pen.box(line.box, line.text, YELLOW)
        for seen in self.objects_at(at_ns):
            pen.box(seen.box, f"{seen.text} {seen.confidence:.0%}", colour_of(hash_of(seen.text)))
        for way, box in self.ways_at(at_ns):
            pen.trail([*way.trail_at(at_ns), foot(box)], colour_of(way.number))
            pen.box(box, f"{way.name} {way.number}", colour_of(way.number))
        pen.list([event.text for event in self.events_at(at_ns)])
        pen.subtitle(self.said_at(at_ns))
        return np.asarray(canvas)


def _by_second(spans: Iterable[tuple[Any, int, int]]) -> Mapping[int, list[Any]]:
    """What there is in each second of media time."""
    found: dict[int, list[Any]] = defaultdict(list)
    for what, start_ns, end_ns in spans:
        for second in range(start_ns // NS, end_ns // NS + 1):
            found[second].append(what)
    return found


def colour_of(number: int) -> Colour:
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(number * GOLDEN % 1, 0.75, 1.0))
    return red, green, blue


def hash_of(text: str) -> int:
    return sum(text.encode())


@cache
def font_of(size: int) -> Any:
    """The first of FONTS that this machine has; else Pillow's own, which has ASCII only."""
    from PIL import ImageFont

    for name in FONTS:
        with suppress(OSError):
            return ImageFont.truetype(name, size)
    return ImageFont.load_default(size)


def writable(text: str, font: Any) -> str:
    """A text as a font can draw it: without one of FONTS, letters lose their accents, and others are ?."""
    if text.isascii() or isinstance(getattr(font, "path", None), str):
        return text
    parts = unicodedata.normalize("NFKD", text)
    return "".join(part if part.isascii() else "?" for part in parts if not unicodedata.combining(part))


class _Pen:
    """Draws on a picture of width x height pixels; places are fractions of it."""

    def __init__(self, draw: "ImageDraw", width: int, height: int) -> None:
        self._draw, self._width, self._height = draw, width, height
        self._line = max(1, round(height / 280))
        size = max(10, round(height / 36))
        self._font, self._large = font_of(size), font_of(round(size * 1.5))

    def _at(self, place: Place) -> tuple[float, float]:
        return place[0] * self._width, place[1] * self._height

    def box(self, box: Bounds, label: str, colour: Colour) -> None:
        label = writable(label, self._font)
        x0, y0 = self._at((box[0], box[1]))
        x1, y1 = self._at((box[0] + box[2], box[1] + box[3]))
        self._draw.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=colour, width=self._line)
        _, top, right, bottom = self._draw.textbbox((0, 0), label, font=self._font)
        room = bottom - top + 4
        y = y0 - room if y0 >= room else max(y0, y1)  # above it, or below where the picture ends
        x = min(x0, max(0.0, self._width - right - 4))
        self._draw.rectangle((x, y, x + right + 4, y + room), fill=(*colour, 220))
        self._draw.text((x + 2, y + 2 - top), label, fill=DARK, font=self._font)

    def trail(self, places: Sequence[Place], colour: Colour) -> None:
        if len(places) > 1:
            self._draw.line([self._at(place) for place in places], fill=(*colour, 170), width=self._line)

    def zones(self, params: WatchZonesParams) -> None:
        for name, corners in params.zones.items():
            points = [self._at(corner) for corner in corners]
            self._draw.polygon(points, outline=(*LIGHT, 150), fill=(*LIGHT, 18), width=self._line)
            self._name(name, min(corners, key=lambda corner: (corner[1], corner[0])))
        for name, (start, end) in params.lines.items():
            self._draw.line([self._at(start), self._at(end)], fill=(*LIGHT, 200), width=self._line)
            self._name(name, min(start, end, key=lambda corner: corner[1]))

    def _name(self, name: str, place: Place) -> None:
        name = writable(name, self._font)
        x, y = self._at(place)
        right = float(self._draw.textlength(name, font=self._font))
        where = min(max(0.0, x + 4), max(0.0, self._width - right - 2)), max(0.0, y + 2)
        self._draw.text(where, name, fill=(*LIGHT, 220), font=self._font, stroke_width=1, stroke_fill=DARK)

    def list(self, texts: Sequence[str]) -> None:
        """At the lower left, the last one lowest."""
        for number, said in enumerate(reversed(texts)):
            text = writable(said, self._font)
            _, top, right, bottom = self._draw.textbbox((0, 0), text, font=self._font)
            room = bottom - top + 8
            y = self._height * 0.98 - room * (number + 1)
            self._draw.rectangle((8, y, 16 + right, y + room - 2), fill=(*DARK, 190))
            self._draw.text((12, y + 3 - top), text, fill=LIGHT, font=self._font)

    def subtitle(self, text: str) -> None:
        if not text:
            return
        text = writable(text, self._large)
        left, top, right, bottom = self._draw.multiline_textbbox((0, 0), text, font=self._large, align="center")
        x, y = (self._width - right) / 2, self._height * 0.94 - bottom
        self._draw.rectangle((x + left - 8, y + top - 5, x + right + 8, y + bottom + 5), fill=(*DARK, 190))
        self._draw.multiline_text((x, y), text, fill=LIGHT, font=self._large, align="center")
