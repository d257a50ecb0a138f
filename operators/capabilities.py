"""The capabilities that ship with Penstock and the types that flow between them."""

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from engine.spec.operator import Capability, Media, Port, Settings
from operators.vision.coco import NAMES
from streams.records import NOT_IN_THE_VIDEO as NOT_IN_THE_VIDEO
from streams.records import Evidence, Observation, Record
from streams.records import Reply as Reply
from streams.records import Support as Support


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


class Word(msgspec.Struct, frozen=True, array_like=True):
    start_ns: int
    end_ns: int
    text: str


class Speech(Observation, frozen=True):
    """One utterance: `text` as a reader expects it, with the time of each word where it is known."""

    words: tuple[Word, ...] = ()


class Transcript(Evidence, frozen=True):
    kind: ClassVar[str] = "speech"
    observations: tuple[Speech, ...] = ()


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
Fraction = Annotated[float, Meta(ge=-0.5, le=1.5)]  # of the frame: pixels are none
Corner = tuple[Fraction, Fraction]
Zone = Annotated[tuple[Corner, ...], Meta(min_length=3, max_length=100)]  # a polygon's corners
Label = Annotated[str, Meta(min_length=1, max_length=60, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]


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


class Selection(Evidence, frozen=True):
    """What was let through of evidence; and, for the next segment, what was told (by a digest) and when last."""

    kind: ClassVar[str] = "selection"
    told: tuple[tuple[str, int], ...] = ()


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


class Finding(Observation, frozen=True):
    """Something that a tool gave back. `data`: what of it is no text, time or confidence, as JSON has it."""

    data: dict[str, Any] = msgspec.field(default_factory=dict)


class Findings(Evidence, frozen=True):
    """What a tool made of the evidence it was called with."""

    kind: ClassVar[str] = "finding"
    observations: tuple[Finding, ...] = ()


class Captions(Evidence, frozen=True):
    """What was said, in cues that can be read while it is said: `text` has at most two lines."""

    kind: ClassVar[str] = "caption"


class GuessedWord(msgspec.Struct, frozen=True, array_like=True):
    start_ns: int
    end_ns: int
    text: str
    probability: float = 1.0


class Guess(Record, frozen=True):
    """What may have been said from `since_ns` to `until_ns`, by somebody who has not heard the rest."""

    since_ns: int
    until_ns: int
    words: tuple[GuessedWord, ...] = ()
    is_full: bool = False  # more cannot be listened to: what is at its beginning leaves


class Draft(Observation, frozen=True):
    """Words as they are said. Those that are settled stay as they are; the others may be others in the next segment's
    draft."""

    is_settled: bool = False


class Agreement(Record, frozen=True):
    """Where guesses in a row stand: what is still open, what was settled last and until when."""

    open: tuple[GuessedWord, ...] = ()
    last: tuple[str, ...] = ()
    settled_ns: int = 0


class Drafts(Evidence, frozen=True):
    """The words that were settled in a segment, and those that are shown behind them; and what the next one needs."""

    kind: ClassVar[str] = "draft"
    observations: tuple[Draft, ...] = ()
    agreement: Agreement = Agreement()


class Phrases(Transcript, frozen=True):
    """What was said to an end in a segment, wherever it began; and what the next one needs: words of what goes on."""

    agreement: Agreement = Agreement()
    held: tuple[GuessedWord, ...] = ()


class Point(Observation, frozen=True):
    """One statement of a summary, with what bears it out."""

    evidence: tuple[Support, ...] = ()


class Summary(Evidence, frozen=True):
    """What matters most of what was said or shown, in order of time; nothing where nothing was."""

    kind: ClassVar[str] = "summary"
    observations: tuple[Point, ...] = ()


class Turn(Observation, frozen=True):
    """A turn of a conversation: what somebody said (`heard`, and when), and what is replied to it (`text`; empty where
    nothing is)."""

    heard: str = ""


class Turns(Evidence, frozen=True):
    """The turns that ended in a segment; and, for the next one, what was begun and what was said before."""

    kind: ClassVar[str] = "turn"
    observations: tuple[Turn, ...] = ()
    pending: tuple[Speech, ...] = ()
    history: tuple[tuple[str, str], ...] = ()  # heard and replied, the latest last


class Spoken(Observation, frozen=True):
    """A sentence as sound. `audio` is an Ogg file with one mono Opus stream; it lasts from start_ns to end_ns of media
    time, if it begins where what it replies to ends."""

    audio: bytes = b""


class Voice(Evidence, frozen=True):
    kind: ClassVar[str] = "voice"
    observations: tuple[Spoken, ...] = ()


class TranscribeParams(Settings, frozen=True):
    language: str = "en"  # ISO 639-1


ObjectName = Literal[*NAMES]  # type: ignore[valid-type]


class DetectObjectsParams(Settings, frozen=True):
    objects: Annotated[tuple[ObjectName, ...], Meta(max_length=80)] = ()  # their classes; none: all of them


Tools = Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=60)], ...], Meta(max_length=20)]
MaxCalls = Annotated[int, Meta(ge=1, le=20)]


class ConverseParams(Settings, frozen=True):
    """What is talked about: what there is to know, a statement each, and who talks."""

    knows: Annotated[tuple[Annotated[str, Meta(max_length=1000)], ...], Meta(max_length=500)] = ()
    role: Annotated[str, Meta(max_length=2000)] = "a friendly assistant"
    otherwise: Annotated[str, Meta(max_length=200)] = "I do not know that."  # to a question that nothing answers
    tools: Tools = ()  # what may be called to reply, by name
    max_calls: MaxCalls = 3


class SpeakParams(Settings, frozen=True):
    speed: Annotated[float, Meta(ge=0.5, le=2)] = 1.0


class WatchZonesParams(Settings, frozen=True):
    """Corners in fractions of the upright frame, from its top left."""

    zones: Annotated[dict[Label, Zone], Meta(max_length=50)] = msgspec.field(default_factory=dict)
    lines: Annotated[dict[Label, tuple[Corner, Corner]], Meta(max_length=50)] = msgspec.field(default_factory=dict)
    stays_s: Annotated[float, Meta(ge=0, le=86_400)] = 0.0  # how long is long, in a zone; 0: nobody asks


class AnswerParams(Settings, frozen=True):
    """`tools`: what a model that answers may call, by name, and how often; without any, evidence alone answers."""

    question: str
    tools: Tools = ()
    max_calls: MaxCalls = 6


Wanted = Annotated[str, Meta(min_length=1, max_length=200)]


class CaptionFramesParams(Settings, frozen=True):
    about: Annotated[str, Meta(max_length=500)] = ""  # what matters; empty: whatever is there


class FilterParams(Settings, frozen=True):
    """Nothing of it set lets everything through."""

    has: Annotated[tuple[Wanted, ...], Meta(max_length=100)] = ()  # one of these
    has_not: Annotated[tuple[Wanted, ...], Meta(max_length=100)] = ()  # none of these
    min_confidence: Annotated[float, Meta(ge=0, le=1)] = 0.0
    once_in_s: Annotated[float, Meta(ge=0, le=86_400)] = 0.0  # what says the same, numbers apart; 0: each time


class SummarizeParams(Settings, frozen=True):
    max_points: Annotated[int, Meta(ge=1, le=20)] = 5
    about: Annotated[str, Meta(max_length=500)] = ""  # what it is to be about; empty: whatever matters most


DETECT_SCENES = Capability("detect_scenes", {"media": Port(Media)}, Scenes)
TRANSCRIBE = Capability("transcribe", {"media": Port(Media)}, Transcript, TranscribeParams)
READ_TEXT = Capability("read_text", {"media": Port(Media), "scenes": Port(Scenes)}, ScreenText)
CAPTION_FRAMES = Capability("caption_frames", {"media": Port(Media)}, Descriptions, CaptionFramesParams)
DETECT_MOTION = Capability("detect_motion", {"media": Port(Media)}, Motion)
FILTER_EVIDENCE = Capability("filter_evidence", {"evidence": Port(Evidence, many=True)}, Selection, FilterParams)
DETECT_OBJECTS = Capability("detect_objects", {"media": Port(Media)}, Objects, DetectObjectsParams)
TRACK_OBJECTS = Capability("track_objects", {"objects": Port(Objects)}, Tracks)
WATCH_ZONES = Capability("watch_zones", {"tracks": Port(Tracks)}, Events, WatchZonesParams)
COUNT_OBJECTS = Capability("count_objects", {"tracks": Port(Tracks)}, Counts)
CONVERSE = Capability("converse", {"speech": Port(Transcript)}, Turns, ConverseParams)
SPEAK = Capability("speak", {"text": Port(Evidence)}, Voice, SpeakParams)
GUESS_SPEECH = Capability("guess_speech", {"media": Port(Media)}, Guess, TranscribeParams)
SETTLE_SPEECH = Capability("settle_speech", {"guess": Port(Guess)}, Phrases)
DRAFT_CAPTIONS = Capability("draft_captions", {"guess": Port(Guess)}, Drafts)
CAPTION = Capability("caption", {"speech": Port(Transcript)}, Captions)
SUMMARIZE = Capability("summarize", {"evidence": Port(Evidence, many=True)}, Summary, SummarizeParams)
ANSWER_QUESTION = Capability("answer_question", {"evidence": Port(Evidence, many=True)}, Reply, AnswerParams)
