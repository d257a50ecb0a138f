"""The capabilities that ship with Penstock and the types that flow between them."""

from typing import ClassVar

import msgspec

from engine.spec.operator import Capability, Media, Port, Settings
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


class TranscribeParams(Settings, frozen=True):
    language: str = "en"  # ISO 639-1


class AnswerParams(Settings, frozen=True):
    question: str


DETECT_SCENES = Capability("detect_scenes", {"media": Port(Media)}, Scenes)
TRANSCRIBE = Capability("transcribe", {"media": Port(Media)}, Transcript, TranscribeParams)
READ_TEXT = Capability("read_text", {"media": Port(Media), "scenes": Port(Scenes)}, ScreenText)
ANSWER_QUESTION = Capability("answer_question", {"evidence": Port(Evidence, many=True)}, Reply, AnswerParams)
