"""MATCH_TEXT: when pictures show what a text says, by the cosine of their vectors and the text's.

The text is made a vector by the model that the pictures' vectors are of (operators.vision.embed_frames). Looks that
are sure enough and no further apart than BETWEEN_S are one match, as sure as the surest of them.

Of words that stand for pictures, a detector's label counts where no label that it knows is nearer to the text by
MARGIN: "a red bus" is no car, though a car is nearer to it than most things are.

What counts as sure enough (ENOUGH, MARGIN) was measured on nothing.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.spec.operator import Device, Inputs, Machine, Operator, Rung, Settings
from operators import weights
from operators.capabilities import MATCH_TEXT, MatchTextParams
from operators.language import embedding
from operators.lately import Lately
from operators.seen import FrameVectors, Match, Matches
from operators.vision.coco import NAMES
from operators.vision.embed_frames import CLIP, LABELLED, LABELS, SIGLIP, ByWords, unpacked
from operators.vision.towers import ASKED, Towers
from streams.errors import Permanent
from streams.records import MediaInfo

ENOUGH = {SIGLIP: 0.1, CLIP: 0.5, ByWords.name: 0.5}
MARGIN = 0.2
BETWEEN_S = 2.0
MAX_MODELS = 3
PICTURED = "a photo of {}"

Array = NDArray[np.float32]


class MatchText(Operator):
    """When pictures show what a text says."""

    capability = MATCH_TEXT
    name = "nearest"
    max_batch = 16

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return (Rung("nearest", 1.0, Settings()),)  # it is as good as the vectors are

    @classmethod
    def missing(cls, knobs: Any, machine: Machine, media: MediaInfo | None) -> str | None:
        names = (embedding.NAME, CLIP, SIGLIP)
        if any(weights.find(name) is not None for name in names):
            return None
        return f"none of {', '.join(names)} is here ({weights.named(embedding.NAME).advice})"

    def load(self, device: Device) -> None:
        self._num_threads = device.num_threads
        self._models = Lately[Any](MAX_MODELS)

    def process(self, batch: Sequence[Inputs]) -> Sequence[Matches]:
        return [self._matches(item) for item in batch]

    def _matches(self, item: Inputs) -> Matches:
        found: FrameVectors = item.here("frames")
        if not found.looks:
            return Matches()
        params: MatchTextParams = item.params
        return matches(found, self._sureness(found, params.text), params)

    def _sureness(self, found: FrameVectors, text: str) -> Array:
        """Of each row, 0..1."""
        model, vectors = found.model, unpacked(found)
        if model == ByWords.name:
            return by_words(self._models.get(model, embedding.load), found.texts, vectors, text)
        if model not in ENOUGH:
            raise Permanent(f"pictures were made vectors by {model!r}, which nobody here can put words to")
        towers: Towers = self._models.get(model, partial(_towers, model, self._num_threads))
        return towers.sureness(vectors, towers.of_words(ASKED.format(text)))


def _towers(model: str, num_threads: int) -> Towers:
    return Towers(weights.folder_of(model), num_threads)


def by_words(embedder: embedding.Embedder, texts: Sequence[str], vectors: Array, text: str) -> Array:
    """How near a text is to words that stand for pictures: float32 [rows], 0..1."""
    plain, pictured = embedder.vectors([text, PICTURED.format(text)])
    nearest = float((embedder.vectors([LABELLED.format(name) for name in NAMES]) @ pictured).max())
    is_label = np.array([each in LABELS for each in texts])
    near = np.where(is_label, vectors @ pictured, vectors @ plain)
    near[is_label & (near < nearest - MARGIN)] = 0.0
    return np.asarray(np.clip(near, 0, 1), np.float32)


def matches(found: FrameVectors, sureness: Array, params: MatchTextParams) -> Matches:
    """What is sure enough. sureness: float32 [rows]."""
    least = params.min_confidence or ENOUGH[found.model]
    runs: list[Match] = []
    for look in sorted(found.looks, key=lambda each: (each.start_ns, each.end_ns, each.row)):
        sure = round(float(sureness[look.row]), 4)
        if sure < least:
            continue
        seen = found.texts[look.row] if found.texts else ""
        this = Match(start_ns=look.start_ns, end_ns=look.end_ns, text=params.text, confidence=sure, seen=seen)
        if runs and look.start_ns - runs[-1].end_ns <= BETWEEN_S * 1e9:
            this = _together(runs.pop(), this)
        runs.append(this)
    return Matches(observations=tuple(runs))


def _together(before: Match, after: Match) -> Match:
    surest = after if after.confidence > before.confidence else before
    return Match(
        start_ns=before.start_ns,
        end_ns=max(before.end_ns, after.end_ns),
        text=before.text,
        confidence=surest.confidence,
        seen=surest.seen,
    )
