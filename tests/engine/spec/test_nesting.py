"""Workflows within workflows: put in their places, and what is wrong with one said in a line."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.spec.catalogue import installed
from engine.spec.nesting import Found, expanded
from engine.spec.operator import Machine
from engine.spec.plan import make_plan
from engine.spec.workflow import load_workflow, parse_workflow
from streams.errors import UserError
from streams.records import MediaInfo

INNER = """
name = "inner"
[stages.text]
capability = "read_text"
inputs = { media = "media", scenes = "scenes" }
[stages.summary]
capability = "summarize"
inputs = { evidence = ["text", "said"] }
params = { max_points = 5, about = "prices" }
"""
OUTER = """
name = "outer"
[stages.scenes]
capability = "detect_scenes"
inputs = { media = "media" }
[stages.speech]
capability = "transcribe"
inputs = { media = "media" }
[stages.digest]
workflow = "inner.toml"
inputs = { scenes = "scenes", said = "speech" }
params = { summary = { max_points = 2 } }
[stages.spoken]
capability = "speak"
inputs = { text = "digest" }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inner.toml").write_text(INNER)
    (tmp_path / "outer.toml").write_text(OUTER)
    return tmp_path


def test_a_stage_that_is_a_workflow_is_put_in_its_place(folder: Path) -> None:
    workflow = load_workflow(folder / "outer.toml")
    assert list(workflow.stages) == ["scenes", "speech", "digest-text", "digest", "spoken"]
    assert workflow.stages["digest"].sources("evidence") == ("digest-text", "speech")
    assert workflow.stages["digest"].params == {"max_points": 2, "about": "prices"}
    assert workflow.stages["digest-text"].sources("scenes") == ("scenes",)
    assert workflow.answers == ["spoken"]


def test_it_computes_what_its_stages_written_out_do(folder: Path) -> None:
    written = OUTER.replace(
        OUTER[OUTER.index("[stages.digest]") : OUTER.index("[stages.spoken]")],
        """[stages.text]
capability = "read_text"
inputs = { media = "media", scenes = "scenes" }
[stages.digest]
capability = "summarize"
inputs = { evidence = ["speech", "text"] }
params = { max_points = 2, about = "prices" }
""",
    )
    machine, media = Machine(num_cores=2), MediaInfo(codecs={"subtitle": ("mov_text",), "video": ("h264",)})
    plans = [
        make_plan(each, installed(), machine, media)
        for each in (load_workflow(folder / "outer.toml"), parse_workflow(written))
    ]
    assert plans[0].id == plans[1].id


def test_one_may_stand_beside_it_and_hold_others() -> None:
    text = """
name = "outer"
[stages.all]
workflow = "both"
gives = "words"
[workflows.both.stages.words]
workflow = "heard"
[workflows.both.stages.scenes]
capability = "detect_scenes"
inputs = { media = "media" }
[workflows.heard.stages.speech]
capability = "transcribe"
inputs = { media = "media" }
"""
    workflow = parse_workflow(text)
    assert {name: stage.capability for name, stage in workflow.stages.items()} == {
        "all": "transcribe",
        "all-scenes": "detect_scenes",
    }


@pytest.mark.parametrize(
    ("was", "put", "why"),
    [
        ('workflow = "inner.toml"', 'workflow = "none.toml"', "cannot read workflow .*none.toml"),
        ('workflow = "inner.toml"', 'workflow = "none"', r"there is no \[workflows.none\]"),
        ('workflow = "inner.toml"', "workflow = 7", "workflow is a name or a file"),
        ('workflow = "inner.toml"', 'workflow = "outer.toml"', "more than 8 deep"),
        ('workflow = "inner.toml"', 'workflow = "inner.toml"\ncapability = "x"', "unknown field 'capability'"),
        (', said = "speech"', "", "reads 'said', which is no stage of it"),
        (', said = "speech"', ', said = "speech", more = "speech"', "no stage of 'inner.toml' reads 'more'"),
        ("summary = {", "sumary = {", "params has 'sumary', which is no stage of 'inner.toml': text, summary"),
        ("params = { summary = { max_points = 2 } }", "params = { summary = 2 }", "params.summary is no table"),
        (', said = "speech"', ', said = ["speech", ["x"]]', "is no name of a stage"),
        ("params = {", 'gives = ["summary"]\nparams = {', "gives = one of summary"),
        ("params = {", 'gives = "nothing"\nparams = {', "gives = one of summary"),
        ("[stages.spoken]", '[stages.digest-text]\ncapability = "caption"\n[stages.spoken]', "is there twice"),
    ],
)
def test_what_is_wrong_is_one_line(folder: Path, was: str, put: str, why: str) -> None:
    (folder / "outer.toml").write_text(OUTER.replace(was, put, 1))
    with pytest.raises(UserError, match=why) as caught:
        load_workflow(folder / "outer.toml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("was", "put", "why"),
    [
        ("params = { max_points", "params = 5 #", "params of stage 'summary' of 'inner.toml' is no table"),
        (
            'inputs = { evidence = ["text", "said"] }',
            "inputs = 5",
            "inputs of stage 'summary' of 'inner.toml' is no table",
        ),
        ('name = "inner"', 'name = "inner"\nfoo = 1', r"inner.toml: unknown field 'foo'"),
        ('name = "inner"', 'name = "inner"\nworkflows = 3', r"inner.toml: workflows is a table"),
        ('name = "inner"', "name = ", r"inner.toml: not valid TOML"),
    ],
)
def test_what_is_wrong_in_an_inner_one_is_told_of_that(folder: Path, was: str, put: str, why: str) -> None:
    (folder / "inner.toml").write_text(INNER.replace(was, put, 1))
    with pytest.raises(UserError, match=why) as caught:
        load_workflow(folder / "outer.toml")
    assert "\n" not in str(caught.value)


def test_one_that_names_another_finds_it_beside_itself(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "inner.toml").rename(folder / "sub" / "inner.toml")
    between = '[stages.digest]\nworkflow = "inner.toml"\ninputs = { scenes = "scenes", said = "said" }\n'
    (folder / "sub" / "between.toml").write_text(between)
    (folder / "outer.toml").write_text(
        OUTER.replace("inner.toml", "sub/between.toml").replace("summary = {", "digest = {")
    )
    assert load_workflow(folder / "outer.toml").answers == ["spoken"]


def test_what_is_read_many_times_over_is_read_once() -> None:
    text = ["[stages.s]", 'capability = "a"', 'inputs = { media = "media" }']
    inner = "[workflows.w0.stages.x]\ncapability = 'a'\ninputs = { e = ['y', 'y', 'y', 'y', 'y', 'y', 'y', 'y'] }\n"
    for at in range(1, 7):
        many = ", ".join(["'y'"] * 8)
        inner += f"[workflows.w{at}.stages.x]\nworkflow = 'w{at - 1}'\ninputs = {{ y = [{many}] }}\n"
    text += ["[stages.t]", "workflow = 'w6'", 'inputs = { y = "s" }', inner]
    workflow = parse_workflow('name = "laughs"\n' + "\n".join(text))
    assert workflow.stages["t"].sources("e") == ("s",)


TABLES: Any = st.recursive(
    st.none() | st.integers(0, 3) | st.sampled_from(["a", "b", "media", "x.toml"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["stages", "workflows", "workflow", "inputs", "params", "gives", "a", "b"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=25,
)


@given(st.dictionaries(st.sampled_from(["name", "stages", "workflows"]), TABLES))
def test_whatever_is_written_is_put_or_refused(table: dict[str, Any]) -> None:
    def find(name: str) -> Found:
        raise UserError(name)

    try:
        found = expanded(table, find)
    except UserError:
        return
    stages = found.get("stages")
    if isinstance(stages, dict) and isinstance(table.get("workflows", {}), dict):
        assert not any(isinstance(stage, dict) and "workflow" in stage for stage in stages.values())
