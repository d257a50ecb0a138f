"""What the author of an operator needs, from one place: the contract, the records, the errors, the decoder.

Importing it costs little: what decodes (NumPy, FFmpeg) is loaded when it is asked for. Tests are written with
penstock.testing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from engine.spec.operator import (
    Capability,
    Demand,
    Device,
    Emit,
    Entry,
    Fold,
    Inputs,
    Machine,
    Map,
    Media,
    Operator,
    Port,
    Reduce,
    Rung,
    Scope,
    Settings,
    Window,
)
from operators.capabilities import (
    ANSWER_QUESTION,
    DETECT_SCENES,
    NOT_IN_THE_VIDEO,
    READ_TEXT,
    TRANSCRIBE,
    AnswerParams,
    Reply,
    Support,
    TranscribeParams,
)
from operators.heard import Speech, Transcript, Word
from operators.seen import Glimpse, Scenes, ScreenText, Shot, TextLine
from streams.errors import Permanent, Transient
from streams.records import Evidence, Gap, MediaInfo, Observation, Packet, Record, Segment, Track

__all__ = [
    "ANSWER_QUESTION",
    "DETECT_SCENES",
    "NOT_IN_THE_VIDEO",
    "READ_TEXT",
    "TRANSCRIBE",
    "AnswerParams",
    "Audio",
    "AudioSpec",
    "Capability",
    "Demand",
    "Device",
    "Emit",
    "Entry",
    "Evidence",
    "Fold",
    "FrameSpec",
    "Frames",
    "Gap",
    "Glimpse",
    "Inputs",
    "Machine",
    "Map",
    "Media",
    "MediaInfo",
    "Observation",
    "Operator",
    "Packet",
    "Permanent",
    "Port",
    "Record",
    "Reduce",
    "Reply",
    "Rung",
    "Scenes",
    "Scope",
    "ScreenText",
    "Segment",
    "Settings",
    "Shot",
    "Speech",
    "Support",
    "TensorSpec",
    "Tensors",
    "TextLine",
    "Track",
    "TranscribeParams",
    "Transcript",
    "Transient",
    "Window",
    "Word",
    "audio",
    "frames",
    "tensors",
]

if TYPE_CHECKING:
    from operators.media.pictures import FrameSpec, frames, tensors
    from operators.media.pixels import TensorSpec
    from operators.media.sound import Audio, AudioSpec, audio
    from operators.media.taking import Frames, Tensors

_DECODED = {
    **dict.fromkeys(("FrameSpec", "frames", "tensors"), "operators.media.pictures"),
    **dict.fromkeys(("Frames", "Tensors"), "operators.media.taking"),
    "TensorSpec": "operators.media.pixels",
    **dict.fromkeys(("Audio", "AudioSpec", "audio"), "operators.media.sound"),
}


def __getattr__(name: str) -> Any:
    if name in _DECODED:
        return getattr(import_module(_DECODED[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
