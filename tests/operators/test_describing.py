"""Pictures put to a model that sees: what it is sent, and what is made of what it says, over real HTTP."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from anyio.from_thread import start_blocking_portal
from scripted_endpoint import Act, Endpoint, refuses, says, serving

from engine.spec.catalogue import installed
from engine.spec.operator import Machine
from engine.spec.plan import make_plan
from engine.spec.workflow import load_workflow
from operators.capabilities import CaptionFramesParams
from operators.seen import Descriptions, Moment, Moments
from operators.testing.film import film
from operators.vision.describing import MAX_FRAMES, DescribeKnobs, Describing
from penstock.testing import check_contract, run
from streams.errors import Permanent
from streams.records import MediaInfo

S = 10**9
Ask = Callable[..., tuple[Any, Endpoint]]


def written(*statements: tuple[int, str]) -> str:
    return json.dumps({"statements": [{"picture": at, "text": text} for at, text in statements]})


def pictures(num_s: int = 4) -> list[Any]:
    """Of so many seconds, red first and then blue, in one segment."""
    images = np.zeros((25 * num_s, 48, 64, 3), np.uint8)
    images[: 50 * num_s // 4, ..., 0] = 255
    images[50 * num_s // 4 :, ..., 2] = 255
    return film(images, segment_s=float(num_s))


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    def asked(
        *acts: Act, media: Any = None, params: Any = None, moments: Any = None, **knobs: Any
    ) -> tuple[Any, Endpoint]:
        with start_blocking_portal() as portal, portal.wrap_async_context_manager(serving(*acts)) as there:
            path = tmp_path / "endpoints.toml"
            path.write_text(
                f'[[endpoint]]\nmodel = "toy-vl"\nurl = "{there.url}"\nsees = true\nquality = 0.6\n'
                f'[[endpoint]]\nmodel = "blind"\nurl = "{there.url}"\n'
            )
            monkeypatch.setenv("PENSTOCK_ENDPOINTS", str(path))
            operator = Describing(DescribeKnobs(model="toy-vl", **knobs))
            inputs = {"media": media or pictures()} | ({"moments": moments} if moments else {})
            found = run(operator, inputs, params=params or CaptionFramesParams())
        return found, there

    return asked


def test_it_is_shown_the_pictures_and_says_what_each_is(ask: Ask) -> None:
    said = written((2, "A blue wall."), (1, "A red  wall."))
    (found,), there = ask(says(said), params=CaptionFramesParams(about="walls"))
    assert [(each.start_ns // S, each.end_ns // S, each.text) for each in found.observations] == [
        (0, 2, "A red wall."),
        (2, 4, "A blue wall."),
    ]
    assert {each.confidence for each in found.observations} == {0.6}
    system, user = there.requests[0].body["messages"]
    assert "2 pictures" in system["content"]
    assert "0.0 s, 2.0 s" in system["content"]
    assert "above all walls" in system["content"]
    shown = [part["image_url"]["url"] for part in user["content"] if part["type"] == "image_url"]
    images = [
        cv2.imdecode(np.frombuffer(base64.b64decode(url.removeprefix("data:image/jpeg;base64,")), np.uint8), 1)
        for url in shown
    ]
    assert [image.shape for image in images] == [(48, 64, 3)] * 2
    assert images[0][24, 32, 2] > 200 > 50 > images[0][24, 32, 0]
    assert images[1][24, 32, 0] > 200 > 50 > images[1][24, 32, 2]


def test_selected_pictures_are_shown_where_a_stage_selects(ask: Ask) -> None:
    moments = [Moments(observations=tuple(Moment(at * S, at * S, "it moves") for at in (3, 1)))]
    (found,), there = ask(says(written((1, "Red."), (2, "Blue."))), moments=moments, selected=True)
    assert [(each.start_ns // S, each.end_ns // S, each.text) for each in found.observations] == [
        (1, 3, "Red."),
        (3, 4, "Blue."),
    ]
    assert "taken at 1.0 s, 3.0 s" in there.requests[0].body["messages"][0]["content"]
    (found,), there = ask(says(written()), moments=[Moments()], selected=True)
    assert found == Descriptions()
    assert not there.requests


def test_a_picture_that_was_not_shown_is_no_source(ask: Ask) -> None:
    (found,), there = ask(says(written((3, "A dog."))), says(written((1, "A red wall."))))
    assert [each.text for each in found.observations] == ["A red wall."]
    assert len(there.requests) == 2
    assert "picture 3, of 2 shown" in there.requests[1].body["messages"][-1]["content"]
    with pytest.raises(Permanent, match=r"citation: .*A dog.* is about picture 3, of 2 shown"):
        ask(says(written((3, "A dog."))))


@pytest.mark.parametrize("said", ["a red wall", '{"statements": 3}', '{"statements": [{"picture": 1}]}'])
def test_what_is_no_statement_is_a_failure_with_a_name(ask: Ask, said: str) -> None:
    with pytest.raises(Permanent, match=r"^schema: "):
        ask(says(said))


def test_who_refuses_pictures_is_said(ask: Ask) -> None:
    with pytest.raises(Permanent, match=r"refusal: toy-vl: HTTP 400: .*no images here"):
        ask(refuses(400, '{"error": {"message": "no images here"}}'))


def test_of_many_pictures_some_are_shown_and_of_none_nothing_is_asked(ask: Ask) -> None:
    _, there = ask(says(written()), media=pictures(40), interval_ms=1000)
    parts = there.requests[0].body["messages"][1]["content"]
    assert [part["type"] for part in parts].count("image_url") == MAX_FRAMES
    sound = film(sound=np.zeros(16_000, np.int16), segment_s=1.0)
    (found,), there = ask(says(written()), media=sound)
    assert found == Descriptions()
    assert not there.requests


def test_only_those_that_see_are_rungs(ask: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ask(says(written()))
    rungs = [(rung.name, round(rung.quality, 3)) for rung in Describing.rungs()]
    assert rungs == [("toy-vl-selected", 0.612), ("toy-vl", 0.6), ("toy-vl-sparse", 0.54)]
    machine = Machine(num_cores=1)
    assert Describing.missing(DescribeKnobs(model="toy-vl"), machine, None) is None
    assert "no endpoint that sees as blind" in str(Describing.missing(DescribeKnobs(model="blind"), machine, None))
    no_pictures = MediaInfo(codecs={"audio": ("aac",)})
    assert Describing.missing(DescribeKnobs(model="toy-vl"), machine, no_pictures) == "the source has no pictures"
    (tmp_path / "none.toml").write_text("")
    monkeypatch.setenv("PENSTOCK_ENDPOINTS", str(tmp_path / "none.toml"))
    assert [rung.quality for rung in Describing.rungs()] == [0.0]


def test_the_example_asks_it_where_something_moves(ask: Ask) -> None:
    ask(says(written()))
    workflow = load_workflow(Path(__file__).parents[2] / "examples" / "described_camera.toml").for_asks(
        ["Who is there?"]
    )
    every = installed.__wrapped__()  # rungs are looked up once
    plan = make_plan(workflow, every, Machine(num_cores=1))
    described = next(stage for stage in plan.stages if stage.name == "described")
    assert described.rung.rung == "toy-vl-selected"
    assert len(described.read) == 2
    assert len(described.inputs["when"]) == 1


def test_it_holds_to_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    acts = says(written((1, "A wall.")))
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(serving(acts)) as there:
        (tmp_path / "endpoints.toml").write_text(f'[[endpoint]]\nmodel = "toy-vl"\nurl = "{there.url}"\nsees = true\n')
        monkeypatch.setenv("PENSTOCK_ENDPOINTS", str(tmp_path / "endpoints.toml"))
        check_contract(Describing, inputs={"media": pictures()}, knobs={"model": "toy-vl"})
    assert there.requests
