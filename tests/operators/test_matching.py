"""Pictures found by words: by models of both, here with weights by a formula, and by what other stages call them."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
import small_towers as small

from engine.spec.catalogue import installed
from engine.spec.operator import Machine
from engine.spec.plan import Plan, make_plan
from engine.spec.workflow import parse_workflow
from operators import weights
from operators.capabilities import MatchTextParams
from operators.language import embedding
from operators.seen import DetectedObject, FrameVectors, Look, Match, Matches, Objects, ScreenText, TextLine
from operators.testing.film import film
from operators.vision.embed_frames import CLIP, SIGLIP, ByClip, BySiglip, ByWords, EmbedKnobs, packed, unpacked
from operators.vision.match_text import MatchText, matches
from operators.vision.towers import Towers
from penstock.testing import check_contract, run
from streams.errors import Permanent
from streams.records import MediaInfo

S = 10**9
BOTH = {SIGLIP: "siglip", CLIP: "clip"}
needs_words = pytest.mark.skipif(weights.find(embedding.NAME) is None, reason=f"{embedding.NAME} is not here")
WORKFLOW = parse_workflow("""
name = "find"
stages.objects = { capability = "detect_objects", inputs = { media = "media" } }
stages.frames = { capability = "embed_frames", inputs = { media = "media", evidence = ["objects"] } }
stages.found = { capability = "match_text", inputs = { frames = "frames" }, params = { text = "a red wall" } }
""")


@pytest.fixture
def nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which nobody has put a model of pictures and words."""
    monkeypatch.setenv("PENSTOCK_MODELS", str(tmp_path))
    found = weights.find
    monkeypatch.setattr(weights, "find", lambda name: None if name in BOTH else found(name))


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both models, where users put theirs."""
    monkeypatch.setattr(small, "SIDE", 224)
    monkeypatch.setattr(small, "PATCH", 32)
    monkeypatch.setattr(small, "NUM_PATCHES", 49)
    for name, kind in BOTH.items():
        small.write(kind, tmp_path / name)
    monkeypatch.setenv("PENSTOCK_MODELS", str(tmp_path))
    return tmp_path


def pictures(num: int = 50) -> np.typing.NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (num, 36, 64, 3), np.uint8)


def asked(found: FrameVectors, text: str, min_confidence: float = 0.0) -> Matches:
    params = MatchTextParams(text=text, min_confidence=min_confidence)
    (told,) = run(MatchText, {"frames": [found]}, params=params)
    return told


@pytest.mark.parametrize(("operator", "name"), [(BySiglip, SIGLIP), (ByClip, CLIP)])
def test_each_picture_that_is_looked_at_is_a_vector(operator: type, name: str, models: Path) -> None:
    (found,) = run(operator, {"media": film(pictures(), segment_s=2.0)}, knobs=EmbedKnobs(interval_ms=500))
    assert [(look.row, look.start_ns / S, look.end_ns / S) for look in found.looks] == [
        (0, 0.0, 0.52),
        (1, 0.52, 1.0),
        (2, 1.0, 1.52),
        (3, 1.52, 2.0),
    ]
    vectors = unpacked(found)
    assert vectors.shape == (4, found.size)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=2e-3)
    towers = Towers(models / name)
    sure = towers.sureness(vectors, towers.of_words("a photo of a red wall."))
    (match,) = asked(found, "a red wall", 1e-9).observations
    assert match.confidence == pytest.approx(sure.max(), abs=1e-3)
    assert (match.start_ns, match.end_ns) == (0, 2 * S)


@needs_words
def test_by_words_it_is_what_other_stages_call_it() -> None:
    seen = ((0, "dog"), (0, "car"), (1, "dog"), (4, "dog"))
    objects = Objects(
        observations=tuple(DetectedObject(start_ns=at * S, end_ns=at * S, text=text) for at, text in seen)
    )
    signs = ScreenText(observations=(TextLine(start_ns=2 * S, end_ns=3 * S, text="Opening hours 9 - 17"),))
    inputs = {"media": film(pictures(25), segment_s=1.0), "evidence": [[objects], [signs]]}
    (found,) = run(ByWords, inputs)
    assert sorted(found.texts) == ["Opening hours 9 - 17", "car", "dog"]
    animals = asked(found, "an animal").observations
    assert [(each.start_ns / S, each.end_ns / S, each.seen) for each in animals] == [(0, 1, "dog"), (4, 4, "dog")]
    assert [each.seen for each in asked(found, "a vehicle").observations] == ["car"]
    assert [each.seen for each in asked(found, "the closing time").observations] == ["Opening hours 9 - 17"]
    assert not asked(found, "people walking").observations
    assert not asked(found, "a red bus").observations  # a car comes near, and a bus nearer


def planned() -> Plan:
    return make_plan(WORKFLOW, installed.__wrapped__(), Machine(num_cores=1), MediaInfo(codecs={"video": ("h264",)}))


def test_with_a_model_of_pictures_nothing_else_looks_at_them(models: Path) -> None:
    plan = planned()
    assert [stage.capability for stage in plan.stages] == ["embed_frames", "match_text"]
    assert plan.stages[0].rung.rung == SIGLIP
    (models / SIGLIP / "model.safetensors").unlink()
    assert planned().stages[0].rung.rung == CLIP


@needs_words
def test_without_one_others_look_for_it(nothing: None) -> None:
    plan = planned()
    assert [stage.capability for stage in plan.stages] == ["detect_objects", "embed_frames", "match_text"]
    assert plan.stages[1].rung.rung == "words"
    assert any(f"penstock models fetch {SIGLIP}" in notice for notice in plan.notices)


def test_what_is_not_here_says_what_brings_it(nothing: None) -> None:
    assert "penstock models fetch clip-vit-base-patch32" in str(ByClip.missing(EmbedKnobs(), Machine(1), None))
    no_pictures = MediaInfo(codecs={"audio": ("aac",)})
    assert ByClip.missing(EmbedKnobs(), Machine(1), no_pictures) == "the source has no pictures"


def test_looks_near_each_other_are_one_match() -> None:
    looks = tuple(Look(row, at * S, at * S + S // 2) for row, at in enumerate((0, 1, 2, 6, 7)))
    rows = np.array([0.2, 0.05, 0.6, 0.3, 0.2], np.float32)
    found = FrameVectors(model=SIGLIP, looks=looks)
    assert matches(found, rows, MatchTextParams(text="it")) == Matches(
        observations=(
            Match(start_ns=0, end_ns=2 * S + S // 2, text="it", confidence=0.6),
            Match(start_ns=6 * S, end_ns=7 * S + S // 2, text="it", confidence=0.3),
        )
    )
    surest = matches(found, rows, MatchTextParams(text="it", min_confidence=0.5)).observations
    assert [each.start_ns for each in surest] == [2 * S]


def test_vectors_nobody_can_put_words_to_are_said() -> None:
    found = packed("unheard-of", np.ones((1, 4), np.float32), (Look(0, 0, 1),))
    with pytest.raises(Permanent, match="made vectors by 'unheard-of'"):
        asked(found, "it")
    assert asked(FrameVectors(), "it") == Matches()


def test_a_text_has_to_say_something() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"text": ""}, MatchTextParams)


def test_they_hold_to_the_contract(models: Path) -> None:
    segments = film(pictures(), segment_s=1.0)
    for operator in (BySiglip, ByClip):
        check_contract(operator, {"media": segments})
    (found, *_) = run(BySiglip, {"media": segments})
    check_contract(MatchText, {"frames": [found, FrameVectors()]}, params={"text": "a red wall"})


@needs_words
def test_words_hold_to_the_contract() -> None:
    objects = [Objects(observations=(DetectedObject(start_ns=0, end_ns=1, text="dog"),)), Objects()]
    check_contract(ByWords, {"media": film(pictures(), segment_s=1.0), "evidence": [objects]})
