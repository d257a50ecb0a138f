"""The capabilities that ship with Penstock, with what each may be asked; what is found is in `seen` and `heard`."""

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from engine.spec.operator import Capability, Media, Port, Settings
from operators.heard import Captions, Drafts, Guess, Phrases, Transcript, Turns, Voice
from operators.seen import (
    Counts,
    Descriptions,
    Events,
    FrameVectors,
    Matches,
    Moments,
    Motion,
    Objects,
    Scenes,
    ScreenText,
    Tracks,
)
from operators.vision.coco import NAMES
from streams.records import NOT_IN_THE_VIDEO as NOT_IN_THE_VIDEO
from streams.records import Evidence, Observation
from streams.records import Reply as Reply
from streams.records import Support as Support

Fraction = Annotated[float, Meta(ge=-0.5, le=1.5)]  # of the frame: pixels are none
Corner = tuple[Fraction, Fraction]
Zone = Annotated[tuple[Corner, ...], Meta(min_length=3, max_length=100)]  # a polygon's corners
Label = Annotated[str, Meta(min_length=1, max_length=60, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]


class Selection(Evidence, frozen=True):
    """What was let through of evidence; and, for the next segment, what was told (by a digest) and when last."""

    kind: ClassVar[str] = "selection"
    told: tuple[tuple[str, int], ...] = ()


class Finding(Observation, frozen=True):
    """Something that a tool gave back. `data`: what of it is no text, time or confidence, as JSON has it."""

    data: dict[str, Any] = msgspec.field(default_factory=dict)


class Findings(Evidence, frozen=True):
    """What a tool made of the evidence it was called with."""

    kind: ClassVar[str] = "finding"
    observations: tuple[Finding, ...] = ()


class Point(Observation, frozen=True):
    """One statement of a summary, with what bears it out."""

    evidence: tuple[Support, ...] = ()


class Summary(Evidence, frozen=True):
    """What matters most of what was said or shown, in order of time; nothing where nothing was."""

    kind: ClassVar[str] = "summary"
    observations: tuple[Point, ...] = ()


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


class MatchTextParams(Settings, frozen=True):
    """`min_confidence`: how sure it has to be; 0: as sure as suits the model that pictures and words were put to."""

    text: Wanted
    min_confidence: Annotated[float, Meta(ge=0, le=1)] = 0.0


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
SELECT_FRAMES = Capability(
    "select_frames", {"media": Port(Media), "evidence": Port(Evidence, many=True, optional=True)}, Moments
)
CAPTION_FRAMES = Capability(
    "caption_frames",
    {"media": Port(Media), "moments": Port(Moments, optional=True)},
    Descriptions,
    CaptionFramesParams,
)
EMBED_FRAMES = Capability(
    "embed_frames", {"media": Port(Media), "evidence": Port(Evidence, many=True, optional=True)}, FrameVectors
)
MATCH_TEXT = Capability("match_text", {"frames": Port(FrameVectors)}, Matches, MatchTextParams)
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
