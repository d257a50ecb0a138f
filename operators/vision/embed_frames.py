"""EMBED_FRAMES: what is seen of a segment as vectors, which words can be held against.

By a model of pictures and words (operators.vision.towers), each picture that is looked at is a vector. Where there is
none, the floor: what other stages found in the pictures, above all what a detector calls them and what is written in
them, as vectors of those words (operators.language.embedding), a detector's labels in a phrase: a single word says
little to a model of sentences. Either says of what model its vectors are, and whoever
compares them with words asks the same model.

Quality is the share of ImageNet's pictures that each names rightly without having been shown their classes, as its
paper gives it (CLIP ViT-B/32: 0.632, SigLIP ViT-B/16: 0.76); the floor's was not measured: it knows what the stages
before it can name.
Source: Radford et al., arXiv 2103.00020, table 11; Zhai et al., arXiv 2303.15343, table 8.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from engine.spec.operator import Device, Inputs, Machine, Operator, Rung, Settings
from operators import weights
from operators.capabilities import EMBED_FRAMES
from operators.language import embedding
from operators.media.pictures import FrameSpec, no_pictures, tensors
from operators.seen import FrameVectors, Look
from operators.vision.coco import NAMES
from operators.vision.towers import Towers, takes
from streams.records import Evidence, MediaInfo

SIGLIP, CLIP = "siglip-base-patch16-224", "clip-vit-base-patch32"
SIDE = 224  # of both
MAX_TEXTS = 200  # of a segment
LABELS = frozenset(NAMES)
LABELLED = "a photo of a {}"


class EmbedKnobs(Settings, frozen=True):
    interval_ms: Annotated[int, Meta(ge=100, le=60_000)] = 1000  # from one picture that is looked at to the next


class Embedding(Operator):
    """Pictures as vectors."""

    capability = EMBED_FRAMES
    max_batch = 2
    Knobs = EmbedKnobs
    knobs: EmbedKnobs
    _towers: Towers

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        quality = {SIGLIP: 0.76, CLIP: 0.632}[cls.name]
        sparse = EmbedKnobs(interval_ms=5000)
        return (Rung(cls.name, quality, EmbedKnobs()), Rung(f"{cls.name}-sparse", quality * 0.8, sparse))

    @classmethod
    def reads(cls, knobs: EmbedKnobs) -> frozenset[str]:
        return frozenset(("media",))

    @classmethod
    def missing(cls, knobs: Any, machine: Machine, media: MediaInfo | None) -> str | None:
        return no_pictures(media) or weights.lacking(cls.name)

    def demands(self) -> tuple[Any, ...]:
        return (self._spec,)

    @property
    def _spec(self) -> FrameSpec:
        interval_ns = self.knobs.interval_ms * 1_000_000
        tensor = takes(SIDE, is_siglip=self.name == SIGLIP)
        return FrameSpec(interval_ns=interval_ns, slack_ns=interval_ns // 2, tensor=tensor)

    def load(self, device: Device) -> None:
        self._towers = Towers(weights.folder_of(self.name), device.num_threads)

    def process(self, batch: Sequence[Inputs]) -> Sequence[FrameVectors]:
        return [self._vectors(item) for item in batch]

    def _vectors(self, item: Inputs) -> FrameVectors:
        media = item.here("media")
        seen = tensors(media, self._spec)
        times = seen.times_ns.tolist()
        ends = [*times[1:], media.segment.start_ns + media.segment.duration_ns]
        looks = tuple(map(Look, range(len(times)), times, ends))
        return packed(self.name, self._towers.of_pictures(seen), looks)


class BySiglip(Embedding):
    """Pictures as vectors, by SigLIP."""

    name = SIGLIP


class ByClip(Embedding):
    """Pictures as vectors, by CLIP."""

    name = CLIP


class ByWords(Operator):
    """What was found in pictures as vectors of what it is called."""

    capability = EMBED_FRAMES
    name = "words"
    max_batch = 8

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return (Rung("words", 0.2, Settings()),)

    @classmethod
    def reads(cls, knobs: Settings) -> frozenset[str]:
        return frozenset(("evidence",))

    @classmethod
    def missing(cls, knobs: Any, machine: Machine, media: MediaInfo | None) -> str | None:
        return weights.lacking(embedding.NAME)

    def load(self, device: Device) -> None:
        self._embedder = embedding.load()

    def process(self, batch: Sequence[Inputs]) -> Sequence[FrameVectors]:
        return [self._vectors(item) for item in batch]

    def _vectors(self, item: Inputs) -> FrameVectors:
        rows: dict[str, int] = {}
        looks: list[Look] = []
        for (entry,) in item.ports["evidence"]:
            for each in entry.value.observations if isinstance(entry.value, Evidence) else ():
                text = " ".join(each.text.split())
                if text and (text in rows or len(rows) < MAX_TEXTS):
                    looks.append(Look(rows.setdefault(text, len(rows)), each.start_ns, each.end_ns))
        said = [LABELLED.format(text) if text in LABELS else text for text in rows]
        return packed(self.name, self._embedder.vectors(said), tuple(sorted(looks)), tuple(rows))


def packed(
    model: str, vectors: NDArray[np.float32], looks: tuple[Look, ...], texts: tuple[str, ...] = ()
) -> FrameVectors:
    """Vectors, float32 [rows, size], as they travel."""
    size = vectors.shape[1] if len(vectors) else 0
    return FrameVectors(model=model, size=size, vectors=vectors.astype("<f2").tobytes(), looks=looks, texts=texts)


def unpacked(found: FrameVectors) -> NDArray[np.float32]:
    """float32 [rows, size]."""
    return np.frombuffer(found.vectors, "<f2").reshape(-1, max(1, found.size)).astype(np.float32)
