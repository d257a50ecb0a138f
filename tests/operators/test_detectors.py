"""Detectors whose weights are not here: what they are given, and what is made of what they give, worked out by hand."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.spec.operator import Machine
from operators import weights
from operators.capabilities import DetectObjectsParams
from operators.media.taking import tensors_of
from operators.testing.film import film
from operators.vision.coco import CATEGORIES, NAMES
from operators.vision.detecting import Detector, cells
from operators.vision.rfdetr import DetectByRfDetr, RfDetr, RfDetrKnobs
from operators.vision.yolox import DetectByYolox, Yolox, YoloxKnobs
from penstock.testing import run
from streams.errors import Permanent
from streams.records import MediaInfo


class Given:
    """A session that gives what it is told, and keeps what it was given."""

    def __init__(self, **outputs: Any) -> None:
        self.outputs = outputs
        self.seen: list[np.ndarray] = []

    def run(self, names: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.seen += [each.copy() for each in inputs.values()]
        return [self.outputs[name] for name in names]


def model_of(kind: type[Detector], takes: Any, session: Given) -> Any:
    model: Any = object.__new__(kind)
    model.takes, model._session, model._input = takes, session, "input"
    model._outputs = list(session.outputs)
    return model


def logit(score: float) -> float:
    return math.log(score / (1 - score))


def queries(*found: tuple[int, float, tuple[float, float, float, float]]) -> dict[str, np.ndarray]:
    labels, dets = np.full((1, 300, 91), -9, np.float32), np.zeros((1, 300, 4), np.float32)
    for at, (category, score, box) in enumerate(found):
        labels[0, at, category], dets[0, at] = logit(score), box
    return {"dets": dets, "labels": labels}


def test_coco_numbers_its_categories_with_holes() -> None:
    """Of known ones: bird 16, cat 17, dog 18, cow 21, person 1, toothbrush 90."""
    assert [CATEGORIES[number] for number in (1, 3, 16, 17, 18, 21, 90)] == [
        "person",
        "car",
        "bird",
        "cat",
        "dog",
        "cow",
        "toothbrush",
    ]
    assert list(CATEGORIES.values()) == list(NAMES)


def test_rf_detr_is_given_the_stretched_picture_and_its_queries_are_boxes() -> None:
    session = Given(
        **queries((18, 0.9, (0.5, 0.5, 0.2, 0.4)), (1, 0.6, (0.05, 0.5, 0.2, 0.2)), (12, 0.99, (0, 0, 1, 1)))
    )
    takes = DetectByRfDetr.takes_of(RfDetrKnobs())
    image = np.zeros((100, 300, 3), np.uint8)
    image[..., 0] = 255
    boxes = model_of(RfDetr, takes, session).objects_of(image, 0.4)
    assert [box.name for box in boxes] == ["dog", "person"]  # 12 is no category
    assert boxes[0].score == pytest.approx(0.9, abs=1e-3)
    assert boxes[0][2:] == pytest.approx((0.4, 0.3, 0.2, 0.4), abs=1e-6)
    assert boxes[1][2:] == pytest.approx((0.0, 0.4, 0.15, 0.2), abs=1e-6)  # it ends with the picture
    (pixels,) = session.seen
    assert (pixels.shape, pixels.dtype) == ((1, 3, 384, 384), np.float32)
    assert pixels[0, :, 5, 5] == pytest.approx([(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225], abs=1e-3)
    assert [box.name for box in model_of(RfDetr, takes, session).objects_of(image, 0.4, {"person"})] == ["person"]
    assert model_of(RfDetr, takes, session).objects_of(image, 0.95) == []


def rows_of(side: int, **found: Any) -> np.ndarray:
    num = sum((side // stride) ** 2 for stride in (8, 16, 32))
    rows = np.zeros((1, num, 85), np.float32)
    for at, (offset, size, objectness, name, score) in found.items():
        row = rows[0, int(at[1:])]
        row[:2], row[2:4], row[4], row[5 + NAMES.index(name)] = offset, np.log(size), objectness, score
    return rows


def test_yolox_is_given_a_letterbox_and_its_cells_are_boxes() -> None:
    """Cell 3 of row 2 of the coarsest grid of 416: (3 + 0.5) * 32 pixels across, (2 + 0.25) * 32 down."""
    coarsest = 52 * 52 + 26 * 26
    rows = rows_of(
        416,
        **{
            f"_{coarsest + 2 * 13 + 3}": ((0.5, 0.25), (2, 1), 0.9, "cat", 0.8),
            f"_{coarsest + 2 * 13 + 4}": ((-0.5, 0.25), (2, 1), 0.9, "cat", 0.7),  # the same once more
            "_60": ((0.0, 0.0), (1, 1), 0.3, "dog", 0.9),  # not sure enough together
        },
    )
    session = Given(output=rows)
    takes = DetectByYolox.takes_of(YoloxKnobs(size="tiny"))
    image = np.zeros((208, 416, 3), np.uint8)
    image[..., 2] = 200  # blue
    (box,) = model_of(Yolox, takes, session).objects_of(image, 0.4)
    assert box.name == "cat"
    assert box.score == pytest.approx(0.72)
    assert (box.x, box.width) == pytest.approx(((112 - 32) / 416, 64 / 416), abs=1e-4)
    assert (box.y, box.height) == pytest.approx(((72 - 16) / 208, 32 / 208), abs=1e-4)  # of the picture, not the square
    (pixels,) = session.seen
    assert pixels[0, :, 100, 100].tolist() == [200, 0, 0]  # blue first, as it is
    assert pixels[0, :, 300, 100].tolist() == [114, 114, 114]


@pytest.mark.parametrize("side", [416, 640])
def test_cells_stand_where_the_model_has_them(side: int) -> None:
    at, strides = cells(side)
    expected = [
        (column, row, stride)
        for stride in (8, 16, 32)
        for row in range(side // stride)
        for column in range(side // stride)
    ]
    assert np.concatenate([at, strides[:, None]], axis=1).tolist() == [list(map(float, each)) for each in expected]


@pytest.mark.parametrize(("operator", "name"), [(DetectByRfDetr, "rf-detr-small"), (DetectByYolox, "yolox-s")])
def test_without_weights_one_is_told_how_to_bring_them(
    operator: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    rung = operator.rungs()[0]
    why = operator.missing(rung.knobs, Machine(num_cores=1), None)
    assert name in why
    assert ("penstock models fetch" if "rf" in name else "$PENSTOCK_MODELS/yolox-s") in why
    assert operator.missing(rung.knobs, Machine(num_cores=1), MediaInfo(codecs={"audio": ("aac",)})) is not None
    with pytest.raises(Permanent, match="not on this machine"):
        weights.folder_of(name)
    if name == "yolox-s":
        with pytest.raises(Permanent, match="has to be brought: put model"):
            weights.fetch(name)
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.onnx").write_bytes(b"one's own")
        monkeypatch.setenv("PENSTOCK_MODELS", str(tmp_path))
        assert operator.missing(rung.knobs, Machine(num_cores=1), None) is None
        assert weights.folder_of(name) == tmp_path / name


def test_a_film_is_looked_at_through_the_operator() -> None:
    operator: Any = DetectByRfDetr(RfDetrKnobs())
    session = Given(**queries((3, 0.8, (0.5, 0.5, 0.5, 0.5))))
    operator._model = model_of(RfDetr, operator.takes_of(operator.knobs), session)
    pictures = np.full((50, 48, 64, 3), 80, np.uint8)
    found = run(operator, {"media": film(pictures, segment_s=1.0)}, params=DetectObjectsParams(objects=("car",)))
    assert [len(each.observations) for each in found] == [len(each.times_ns) for each in found]
    assert {each.text for output in found for each in output.observations} == {"car"}
    assert len(session.seen) == 5  # every 0.4 s of two
    assert tensors_of(pictures[:1], operator.takes_of(operator.knobs)).shown.width == 384
