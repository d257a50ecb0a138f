"""Workflows: TOML and Python say the same, and what is wrong is said in one line with what would be right."""

from pathlib import Path

import pytest
import toys

from engine.spec.catalogue import Catalogue
from engine.spec.operator import Machine
from engine.spec.plan import make_plan
from engine.spec.workflow import ASK, Stage, Workflow, load_workflow, parse_workflow
from streams.errors import UserError

CATALOGUE = Catalogue(toys.ALL)
MACHINE = Machine(num_cores=2)

TOML = """
name = "sums"

[stages.read]
capability = "toy_read"
inputs = { media = "media" }

[stages.add]
capability = "toy_add"
params = { add = 1 }
[stages.add.inputs]
numbers = "read"

[stages.sum]
capability = "toy_sum"
inputs = { numbers = ["read", "add"] }
"""

PYTHON = Workflow(
    name="the same, otherwise named",
    stages={
        "sum": Stage(capability="toy_sum", inputs={"numbers": ("plus", "first")}),
        "plus": Stage(capability="toy_add", inputs={"numbers": ("first",)}, params={"add": 1}),
        "first": Stage(capability="toy_read", inputs={"media": "media"}, params={"add": 0}),
    },
)


def toml(stages: str) -> str:
    return f'name = "w"\n{stages}'


READ = '[stages.read]\ncapability = "toy_read"\ninputs = { media = "media" }\n'


def test_toml_and_python_make_the_same_plan() -> None:
    from_toml = make_plan(parse_workflow(TOML), CATALOGUE, MACHINE)
    from_python = make_plan(PYTHON, CATALOGUE, MACHINE)
    assert from_toml.id == from_python.id
    assert {stage.id for stage in from_toml.stages} == {stage.id for stage in from_python.stages}
    assert from_toml.answers == from_python.answers


def test_stages_come_after_those_they_read() -> None:
    for workflow in (parse_workflow(TOML), PYTHON):
        order = workflow.order()
        for name, stage in workflow.stages.items():
            assert all(order.index(source) < order.index(name) for source in stage.all_sources if source != "media")
        assert workflow.answers == ["sum"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = ", ["not valid TOML"]),
        (f"name = 'w'\nx = {'9' * 5000}", ["not valid TOML", "4300 digits"]),
        ("name = " + "[" * 20_000, ["not valid TOML", "nested too deeply"]),
        ("name = 'w'\nstages = [", ["not valid TOML"]),
        ("name = 'w'\nx = = 1", ["not valid TOML", "line 2"]),
        ("", ["name", "the keys of workflow are name, stages"]),
        ('name = "w"', ["stages", "the keys of workflow are name, stages"]),
        ('name = "w"\nstages = {}', ["has no stages", "[stages.NAME]"]),
        ('name = "w"\nstage = {}', ["stage", "the keys of workflow are name, stages"]),
        (
            toml('[stages.a]\ncapabilty = "toy_read"'),
            ["stages", "capabilty", "the keys of stages.a are capability, inputs, params"],
        ),
        (toml("[stages.a]\ncapability = 3"), ["stages", "expected `str`", "got `int`"]),
        (toml('[stages.a]\ncapability = "toy_read"\ninputs = { media = 1 }'), ["stages", "inputs", "got `int`"]),
        (
            toml(READ + '[stages.b]\ncapability = "toy_add"\ninputs = { numbers = "raed" }'),
            ["'raed'", "media, read, b"],
        ),
        (toml(READ.replace("stages.read", "stages.media")), ['cannot be named "media"']),
        (toml(READ.replace("stages.read", 'stages."a b"')), ["'a b'", "use 1 to 128 of"]),
        (toml('[stages.a]\ncapability = "toy_add"\ninputs = { numbers = "a" }'), ["cycle", "a -> a"]),
        (
            toml(
                "".join(
                    f'[stages.{a}]\ncapability = "toy_add"\ninputs = {{ numbers = "{b}" }}\n'
                    for a, b in ("xy", "yz", "zx")
                )
            ),
            ["cycle", "x", "y", "z", " -> "],
        ),
    ],
)
def test_a_malformed_workflow_is_refused_in_one_line(text: str, said: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        parse_workflow(text)
    message = str(refused.value)
    assert "\n" not in message
    assert [part for part in said if part not in message] == [], message


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        (READ.replace("toy_read", "toy_raed"), ["stage 'read'", "no capability 'toy_raed'", "toy_add", "toy_read"]),
        (READ.replace("media =", "medium ="), ["stage 'read'", "no input 'medium'", "it has media"]),
        ('[stages.a]\ncapability = "toy_read"', ["stage 'a'", "'media'", "exactly one source", "got 0"]),
        ('[stages.a]\ncapability = "toy_sum"', ["stage 'a'", "'numbers'", "one source or more", "got 0"]),
        ('[stages.a]\ncapability = "toy_sum"\ninputs = { numbers = [] }', ["one source or more", "got 0"]),
        (
            READ + '[stages.b]\ncapability = "toy_add"\ninputs = { numbers = ["read", "media"] }',
            ["stage 'b'", "exactly one source", "got 2"],
        ),
        ('[stages.a]\ncapability = "toy_add"\ninputs = { numbers = "media" }', ["takes Number", "'media' gives Media"]),
        (
            READ + '[stages.b]\ncapability = "toy_near"\ninputs = { media = "read" }',
            ["stage 'b'", "takes Media", "'read' gives Number"],
        ),
        (READ + "params = { add = 'x' }", ["stage 'read'", "parameters", "Expected `int`", "has: add"]),
        (READ + "params = { plus = 1 }", ["stage 'read'", "parameters", "plus", "has: add"]),
    ],
)
def test_a_workflow_that_cannot_be_planned_is_refused_in_one_line(stages: str, said: list[str]) -> None:
    workflow = parse_workflow(toml(stages))
    with pytest.raises(UserError) as refused:
        make_plan(workflow, CATALOGUE, MACHINE)
    message = str(refused.value)
    assert "\n" not in message
    assert [part for part in said if part not in message] == [], message


def test_files_are_named_when_they_cannot_be_read(tmp_path: Path) -> None:
    wrong, binary = tmp_path / "wrong.toml", tmp_path / "binary.toml"
    wrong.write_text('name = "w"\n')
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "missing.toml", tmp_path, wrong, binary):
        with pytest.raises(UserError, match=path.name) as refused:
            load_workflow(path)
        assert "\n" not in str(refused.value)


def test_a_workflow_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sums.toml"
    path.write_text(TOML)
    assert load_workflow(path) == parse_workflow(TOML)


ASKING = Workflow(
    name="asking",
    stages={
        "read": Stage(capability="toy_read", inputs={"media": "media"}),
        "answer": Stage(capability="answer", inputs={"evidence": ("read",)}, params={"question": ASK, "max": 3}),
        "judge": Stage(capability="judge", inputs={"replies": "answer", "facts": "read"}),
    },
)


def test_a_question_fills_the_stages_that_ask_and_all_after_them() -> None:
    filled = ASKING.for_asks(["why?", " how? ", "why?"])
    assert list(filled.stages) == ["read", "answer-1", "answer-2", "judge-1", "judge-2"]
    assert filled.stages["read"] == ASKING.stages["read"]
    assert filled.stages["answer-1"].params == {"question": "why?", "max": 3}
    assert filled.stages["answer-2"].params == {"question": "how?", "max": 3}
    assert filled.stages["judge-2"].sources("replies") == ("answer-2",)
    assert filled.stages["judge-2"].sources("facts") == ("read",)
    assert sorted(filled.answers) == ["judge-1", "judge-2"]


@pytest.mark.parametrize(
    ("workflow", "asks", "said"),
    [
        (ASKING, [], "ask at least one"),
        (ASKING, ["why?", "  "], "a question is empty"),
        (PYTHON, ["why?"], 'no stage has a parameter "$ask"'),
    ],
)
def test_questions_that_do_not_fit_are_refused(workflow: Workflow, asks: list[str], said: str) -> None:
    with pytest.raises(UserError) as refused:
        workflow.for_asks(asks)
    assert said in str(refused.value)


def test_a_workflow_that_asks_nothing_stays_as_it_is() -> None:
    assert PYTHON.for_asks([]) == PYTHON


def test_a_numbered_copy_never_takes_the_place_of_another_stage() -> None:
    workflow = Workflow(name="twice", stages={**ASKING.stages, "answer-1": ASKING.stages["read"]})
    with pytest.raises(UserError, match="'answer-1'"):
        workflow.for_asks(["why?"])
