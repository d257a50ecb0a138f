"""CLIP and SigLIP against another library's (tests/data/towers.json), with small weights by a formula."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_towers as small

from operators.media.pixels import TensorSpec
from operators.media.taking import Tensors, tensors_of
from operators.vision.towers import Towers, takes

KINDS = ("clip", "siglip")
THEIRS = json.loads(Path(__file__).parents[1].joinpath("data/towers.json").read_text())


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Towers]:
    return {kind: Towers(small.write(kind, tmp_path_factory.mktemp(kind))) for kind in KINDS}


class Ready:
    """Pictures as a tower takes them, already."""

    def __init__(self, pixels: Any) -> None:
        self.pixels = pixels

    def batches(self, num: int) -> Any:
        return (self.pixels[at : at + num] for at in range(0, len(self.pixels), num))


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_those_of_another_library(kind: str, towers: dict[str, Towers]) -> None:
    ours, theirs = towers[kind], THEIRS[kind]
    seen = ours.of_pictures(Ready(small.pixels()))  # type: ignore[arg-type]
    np.testing.assert_allclose(seen, theirs["pictures"], atol=2e-5)
    for text, ids in enumerate(small.TEXTS[kind]):
        ids = ids[: small.MAX_TOKENS - 1]
        padded = np.array(ids + [1] * ((small.MAX_TOKENS - len(ids)) * (kind == "siglip")))
        words = ours.of_ids(padded)
        np.testing.assert_allclose(words, theirs["words"][text], atol=2e-5)
        logits = np.array(theirs["logits"][text])
        if kind == "siglip":
            np.testing.assert_allclose(ours.sureness(seen, words), 1 / (1 + np.exp(-logits)), atol=1e-4)


def test_of_clip_it_is_a_share_among_what_it_may_be_called(towers: dict[str, Towers]) -> None:
    ours = towers["clip"]
    seen = ours.of_pictures(Ready(small.pixels()))  # type: ignore[arg-type]
    one, other = ours.of_words("a red wall"), ours.of_words("a photo.")
    sure = ours.sureness(seen, one)
    assert ((sure > 0) & (sure < 1)).all()
    assert (ours.sureness(seen, other) <= 0.5).all()  # it is one of the others


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_gives_the_same_in_any_company(kind: str, towers: dict[str, Towers]) -> None:
    images = np.random.default_rng(5).integers(0, 256, (5, 40, 60, 3), np.uint8)
    ours = towers[kind]
    together = ours.of_pictures(tensors_of(images, ours.takes))
    for at, image in enumerate(images):
        assert np.array_equal(ours.of_pictures(tensors_of(image[None], ours.takes))[0], together[at])
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    none: Tensors = tensors_of(images[:0], ours.takes)
    assert len(ours.of_pictures(none)) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_cut_where_there_are_too_many(kind: str, towers: dict[str, Towers]) -> None:
    ours = towers[kind]
    long = ours.of_words("red " * 100)
    assert np.array_equal(long, ours.of_words("red " * 200))
    assert not np.array_equal(long, ours.of_words("green " * 100))
    assert np.array_equal(ours.of_words("a  red\twall"), ours.of_words("a red wall"))
    assert np.isfinite(ours.of_words("")).all()


def test_siglip_reads_without_capitals_and_stops(towers: dict[str, Towers]) -> None:
    ours = towers["siglip"]
    assert np.array_equal(ours.of_words("A red, wall!"), ours.of_words("a red wall"))


def test_what_they_take(towers: dict[str, Towers]) -> None:
    assert towers["clip"].takes == takes(small.SIDE, is_siglip=False)
    assert towers["siglip"].takes == TensorSpec(small.SIDE, small.SIDE, mean=(127.5,) * 3, std=(127.5,) * 3)
