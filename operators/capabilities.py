"""The capabilities that ship with Penstock and the types that flow between them."""

from typing import ClassVar

import msgspec

from engine.operator import Capability, Media, Port, Settings
from streams.records import Evidence, Observation, Record


class Shot(Observation):
    """A stretch of one camera take inside one segment (`text` stays empty). `cut` says that a cut opens it; false
    where the take goes on from the segment before."""

    cut: bool = False


class Scenes(Evidence):
    kind: ClassVar[str] = "scene"
    observations: tuple[Shot, ...] = ()


class Word(msgspec.Struct, frozen=True, array_like=True):
    start_ns: int
    end_ns: int
    text: str


class Speech(Observation):
    """One utterance: `text` as a reader expects it, with the time of each word where it is known."""

    words: tuple[Word, ...] = ()


class Transcript(Evidence):
    kind: ClassVar[str] = "speech"
    observations: tuple[Speech, ...] = ()


class TextLine(Observation):
    """A line of text seen in the picture. `box` is (x, y, width, height) in fractions of the upright frame."""

    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


class ScreenText(Evidence):
    kind: ClassVar[str] = "text"
    observations: tuple[TextLine, ...] = ()


class Support(Record):
    """One piece of evidence behind an answer."""

    kind: str  # the kind of evidence: "speech", "text"
    start_ns: int
    end_ns: int
    text: str


class Reply(Record):
    """The answer to one question. `answer` is NOT_IN_THE_VIDEO, with no evidence, when nothing supports one."""

    question: str
    answer: str
    confidence: float  # 0..1
    evidence: tuple[Support, ...] = ()


NOT_IN_THE_VIDEO = "not in the video"


class TranscribeParams(Settings):
    language: str = "en"  # ISO 639-1


class AnswerParams(Settings):
    question: str


DETECT_SCENES = Capability("detect_scenes", {"media": Port(Media)}, Scenes)
TRANSCRIBE = Capability("transcribe", {"media": Port(Media)}, Transcript, TranscribeParams)
READ_TEXT = Capability("read_text", {"media": Port(Media), "scenes": Port(Scenes)}, ScreenText)
ANSWER_QUESTION = Capability("answer_question", {"evidence": Port(Evidence, many=True)}, Reply, AnswerParams)
