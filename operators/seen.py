"""What is found in pictures: the types that flow between the capabilities that see."""

from typing import ClassVar

import msgspec

from streams.records import Evidence, Observation, Record


class Shot(Observation, frozen=True):
    """A stretch of one camera take inside one segment (`text` stays empty). `cut` says that a cut opens it; false
    where the take may go on from the segment before."""

    cut: bool = False


class Glimpse(Record, frozen=True):
    """What the first or last picture of a segment looked like: enough to judge whether a cut stands at the boundary.

    `colours`: mean RGB of 16 x 9 blocks, uint8 [9, 16, 3] as bytes. `changes`: the two largest changes of picture near
    it in the segment, in the same units."""

    colours: bytes
    changes: tuple[float, float] = (0.0, 0.0)


class Scenes(Evidence, frozen=True):
    """Shots that tile a segment with pictures. Whether a cut stands between two segments is for the reader of both to
    judge (operators.vision.detect_scenes.cut_between)."""

    kind: ClassVar[str] = "scene"
    observations: tuple[Shot, ...] = ()
    opening: Glimpse | None = None
    closing: Glimpse | None = None


class TextLine(Observation, frozen=True):
    """A line of text seen in the picture. `box` is (x, y, width, height) in fractions of the upright frame."""

    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


class ScreenText(Evidence, frozen=True):
    kind: ClassVar[str] = "text"
    observations: tuple[TextLine, ...] = ()


class DetectedObject(Observation, frozen=True):
    """An object in one frame: `text` is its class, `box` is (x, y, width, height) in fractions of the upright frame."""

    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


class Objects(Evidence, frozen=True):
    """The objects of the frames that were looked at, which are at `times_ns`."""

    kind: ClassVar[str] = "object"
    observations: tuple[DetectedObject, ...] = ()
    times_ns: tuple[int, ...] = ()


Bounds = tuple[float, float, float, float]  # x, y, width, height, in fractions of the upright frame
Place = tuple[float, float]  # x, y, in the same


class Movement(Observation, frozen=True):
    """Something moved: around where, and how much of the frame at most at once."""

    box: Bounds = (0.0, 0.0, 0.0, 0.0)
    share: float = 0.0


class Motion(Evidence, frozen=True):
    kind: ClassVar[str] = "motion"
    observations: tuple[Movement, ...] = ()


class Description(Observation, frozen=True):
    """What a picture shows, in words; it holds until the next picture that was looked at."""


class Descriptions(Evidence, frozen=True):
    kind: ClassVar[str] = "picture"
    observations: tuple[Description, ...] = ()


class Sighting(msgspec.Struct, frozen=True, array_like=True):
    """Where an object was, in a frame."""

    at_ns: int
    box: Bounds
    confidence: float = 1.0


class TrackedObject(Observation, frozen=True):
    """One object's way through a segment. `track` is its number in its stream; behind a gap, numbers are new ones."""

    track: int = 0
    path: tuple[Sighting, ...] = ()


class OpenTrack(msgspec.Struct, frozen=True):
    """A track that may go on. `velocity`: of its middle, in fractions of the frame a second."""

    id: int
    name: str
    last: Sighting
    velocity: Place = (0.0, 0.0)
    num_seen: int = 1
    held: tuple[Sighting, ...] = ()  # that was not shown yet, of a segment before

    @property
    def is_sure(self) -> bool:
        return self.num_seen >= 2  # what is seen once may be an error of the detector


class Tracks(Evidence, frozen=True):
    """The objects of a segment, each with its way; and, for the next segment, what may go on."""

    kind: ClassVar[str] = "track"
    observations: tuple[TrackedObject, ...] = ()
    open: tuple[OpenTrack, ...] = ()
    num_tracks: int = 0  # so far
    spacing_ns: int = 0  # from one frame to the next, lately
    frame_ns: int = -1  # when the last frame was; -1: there was none


class Event(Observation, frozen=True):
    """Something an object did. `what`: enters, leaves, stays or crosses; `place`: a zone or a line."""

    what: str = ""
    track: int = 0
    object: str = ""
    place: str = ""


class Inside(msgspec.Struct, frozen=True, array_like=True):
    """An object in a zone."""

    track: int
    name: str
    zone: str
    since_ns: int
    seen_ns: int  # last in it
    confidence: float = 1.0
    is_told: bool = False  # that it stays
    num_out: int = 0  # sightings outside, since then


class Events(Evidence, frozen=True):
    """What objects did in a segment; and, for the next one, where each is."""

    kind: ClassVar[str] = "event"
    observations: tuple[Event, ...] = ()
    inside: tuple[Inside, ...] = ()
    last: tuple[tuple[int, Place], ...] = ()  # by track, where it stood


class Count(Observation, frozen=True):
    """How many objects of a class there were."""

    object: str = ""
    num: int = 0
    most_at_once: int = 0


class Counts(Evidence, frozen=True):
    kind: ClassVar[str] = "count"
    observations: tuple[Count, ...] = ()

    def said(self) -> list[str]:
        return [each.text for each in self.observations]  # whenever it was


class Moment(Observation, frozen=True):
    """A moment whose picture is worth a look; `text` says why."""


class Moments(Evidence, frozen=True):
    kind: ClassVar[str] = "moment"
    observations: tuple[Moment, ...] = ()


class Look(msgspec.Struct, frozen=True, array_like=True, order=True):
    """When what a vector stands for is seen: its row, and from when to when."""

    row: int
    start_ns: int
    end_ns: int


class FrameVectors(Record, frozen=True):
    """What is seen of a segment as vectors of length 1, of the model that is named: `vectors` is float16 [rows, size]
    as bytes, little-endian. `texts`: what each row's words are, where it is words that stand for pictures."""

    model: str = ""
    size: int = 0
    vectors: bytes = b""
    looks: tuple[Look, ...] = ()
    texts: tuple[str, ...] = ()


class Match(Observation, frozen=True):
    """Pictures show what a text says (`text`); `seen`: what it is called there, where that is known."""

    seen: str = ""


class Matches(Evidence, frozen=True):
    kind: ClassVar[str] = "match"
    observations: tuple[Match, ...] = ()
