"""Judging: how much of what is labelled a rung found, as so much right of so much. For `penstock profile --labels`.

A set of labels is a file of JSON lines. Each names a recording, beside it or by a whole path, and says what is in it:

| capability | label | judged by |
|---|---|---|
| `transcribe` | `"words": "what is said"` | word accuracy: 1 - (words inserted, left out, replaced) / words said |
| `read_text` | `"text": ["a line", ...]` | F1 of words: of those shown and those read |
| `detect_objects` | `"frames": [{"at_s": 1.0, "objects": [...]}]` | F1 of boxes of the same name that overlap by half |

An object is `{"name": "person", "box": [x, y, width, height]}`, in fractions of the upright frame; two overlap by their
intersection over their union. What is right of one recording is added to that of the others: long ones count for more.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from operators.heard import Transcript
from operators.seen import Bounds, Objects, ScreenText

OVERLAP = 0.5
NEAR_S = 0.25  # of a labelled moment, at which a frame was looked at

Box = tuple[float, float, float, float]


class LabelledObject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    box: Box


class LabelledFrame(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    at_s: Annotated[float, Meta(ge=0)]
    objects: tuple[LabelledObject, ...] = ()


class Labelled(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is in a recording."""

    media: Annotated[str, Meta(min_length=1)]
    words: str | None = None
    text: tuple[str, ...] | None = None
    frames: tuple[LabelledFrame, ...] | None = None


Judge = Callable[[Labelled, Sequence[Any]], tuple[float, float]]


class Metric(NamedTuple):
    """By what a capability is judged: `of` is the label that it needs."""

    name: str
    of: str
    judge: Judge


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def num_wrong_words(said: Sequence[str], heard: Sequence[str]) -> int:
    """Inserted, left out and replaced: Levenshtein's distance in words."""
    before = list(range(len(heard) + 1))
    for row, word in enumerate(said, 1):
        now = [row]
        for column, other in enumerate(heard, 1):
            now.append(min(before[column] + 1, now[-1] + 1, before[column - 1] + (word != other)))
        before = now
    return before[-1]


def heard_rightly(labelled: Labelled, outputs: Sequence[Transcript]) -> tuple[float, float]:
    said = words_of(labelled.words or "")
    heard = words_of(" ".join(speech.text for output in outputs for speech in output.observations))
    return len(said) - num_wrong_words(said, heard), len(said)


def read_rightly(labelled: Labelled, outputs: Sequence[ScreenText]) -> tuple[float, float]:
    """A word that stands there for long is read many times, and counts once."""
    shown = Counter(set(words_of(" ".join(labelled.text or ()))))
    read = Counter(set(words_of(" ".join(line.text for output in outputs for line in output.observations))))
    return 2.0 * (shown & read).total(), float(shown.total() + read.total())


def seen_rightly(labelled: Labelled, outputs: Sequence[Objects]) -> tuple[float, float]:
    right, of = 0, 0
    for frame in labelled.frames or ():
        found = _found_at(frame.at_s, outputs)
        num = _matched(frame.objects, found)
        right, of = right + 2 * num, of + len(frame.objects) + len(found)
    return float(right), float(of)


def _found_at(at_s: float, outputs: Sequence[Objects]) -> list[LabelledObject]:
    """In the frame that is nearest, the surest first; nothing where none was looked at then."""
    times_ns = [time_ns for output in outputs for time_ns in output.times_ns]
    nearest_ns = min(times_ns, key=lambda time_ns: abs(time_ns - at_s * 1e9), default=0)
    if abs(nearest_ns - at_s * 1e9) > NEAR_S * 1e9:
        return []
    found = [each for output in outputs for each in output.observations if each.start_ns == nearest_ns]
    surest = sorted(found, key=lambda each: -each.confidence)
    return [LabelledObject(each.text, each.box) for each in surest]


def _matched(labelled: Sequence[LabelledObject], found: Sequence[LabelledObject]) -> int:
    """How many of those found are one of those labelled, each once."""
    left = list(labelled)
    for each in found:
        same = [other for other in left if other.name == each.name and overlap(other.box, each.box) >= OVERLAP]
        if same:
            left.remove(max(same, key=lambda other: overlap(other.box, each.box)))
    return len(labelled) - len(left)


def overlap(one: Bounds, other: Bounds) -> float:
    """Intersection over union."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    common = max(0.0, width) * max(0.0, height)
    whole = one[2] * one[3] + other[2] * other[3] - common
    return common / whole if whole > 0 else 0.0


METRICS: Mapping[str, Metric] = {
    "transcribe": Metric("word accuracy", "words", heard_rightly),
    "read_text": Metric("F1 of words", "text", read_rightly),
    "detect_objects": Metric("F1 of boxes", "frames", seen_rightly),
}
