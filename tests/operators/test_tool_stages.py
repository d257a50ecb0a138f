"""Tools as stages: each a capability of its own, what it is given, and what becomes of what it gives back."""

from pathlib import Path
from typing import Any

import pytest
import toy_tools

from engine.spec.catalogue import Catalogue
from engine.spec.operator import Machine, Map, Reduce
from engine.spec.plan import make_plan
from engine.spec.workflow import parse_workflow
from operators.capabilities import Findings
from operators.control.tool_stages import findings_of, operators
from operators.heard import Speech, Transcript
from operators.language.quoting import Quoting
from operators.seen import ScreenText, TextLine
from operators.speech.captions import Captions
from penstock.testing import gap, run
from streams.errors import Permanent, UserError
from streams.records import MediaInfo

S = 10**9
SPEECH = [
    Transcript(observations=(Speech(start_ns=0, end_ns=S, text="Wheat is dear.", confidence=0.9),)),
    Transcript(),
    Transcript(observations=(Speech(start_ns=2 * S, end_ns=3 * S, text="Maize is cheap."),)),
]
SCREEN = [ScreenText(observations=(TextLine(start_ns=0, end_ns=S, text="PRICES"),)), ScreenText(), ScreenText()]
MACHINE = Machine(num_cores=2)
CAPTIONED = MediaInfo(codecs={"subtitle": ("mov_text",)})


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PENSTOCK_TOOLS", str(tmp_path / "tools.toml"))
    return tmp_path / "tools.toml"


def tool(file: Path, name: str, more: str = "") -> Any:
    file.write_text(f'[[tool]]\nname = "{name}"\npython = "toy_tools:{name}"\n{more}\n')
    (found,) = operators()
    return found


def texts(findings: Any) -> list[str]:
    return [each.text for each in findings.observations]


def test_a_function_is_given_what_its_arguments_name(file: Path) -> None:
    shouted = tool(file, "shouted")
    first, second, third = run(shouted, {"evidence": [SPEECH]})
    assert texts(first) == ["WHEAT IS DEAR."]
    assert (first.observations[0].start_ns, first.observations[0].end_ns) == (0, S)
    assert texts(second) == [], "nobody is asked about nothing"
    assert texts(third) == ["MAIZE IS CHEAP."]
    lines = tool(file, "lines")
    assert texts(run(lines, {"evidence": [SPEECH]}, params={"args": {"prefix": "*"}})[0]) == ["* Wheat is dear."]


def test_one_that_takes_anything_is_given_all_there_is(file: Path) -> None:
    toy_tools.CALLS.clear()
    both = [[*SPEECH[:1], gap("the camera was off")], SCREEN[:2]]
    run(tool(file, "everything"), {"evidence": both}, params={"question": "What costs what?", "args": {"to": "me"}})
    (given,) = toy_tools.CALLS
    assert given.pop("stream")
    assert given == {
        "evidence": [
            {"kind": "speech", "start_s": 0.0, "end_s": 1.0, "text": "Wheat is dear.", "confidence": 0.9},
            {"kind": "text", "start_s": 0.0, "end_s": 1.0, "text": "PRICES", "confidence": 1.0},
        ],
        "text": "Wheat is dear.\nPRICES",
        "question": "What costs what?",
        "to": "me",
    }


def test_an_agent_reads_a_whole_range(file: Path) -> None:
    file.write_text('[[tool]]\nname = "agent"\npython = "toy_tools:graph.invoke"\nreads = "range"\n')
    (agent,) = operators()
    assert isinstance(agent.scope, Reduce)
    (found,) = run(agent, {"evidence": [SPEECH]}, params={"question": "What of wheat?"})
    (finding,) = found.observations
    assert (finding.text, finding.confidence, finding.data) == ("Wheat is dear.", 0.6, {"asked": "What of wheat?"})
    assert (finding.start_ns, finding.end_ns) == (0, 3 * S)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (None, []),
        ("", []),
        ([], []),
        ("a", [("a", 5, 9, 1.0, {})]),
        (7, [("7", 5, 9, 1.0, {})]),
        (["a", {"text": "b", "start_s": 2e-9}], [("b", 2, 9, 1.0, {}), ("a", 5, 9, 1.0, {})]),
        ({"observations": ["a"]}, [("a", 5, 9, 1.0, {})]),
        ({"price": 2}, [('{"price":2}', 5, 9, 1.0, {"price": 2})]),
        ({"text": "a", "start_s": 8e-9, "end_s": 6e-9}, [("a", 8, 8, 1.0, {})]),
        ({"text": "a", "start_s": -1, "end_s": "soon"}, [("a", 5, 9, 1.0, {})]),
        ({"text": "a", "confidence": 3}, [("a", 5, 9, 1.0, {})]),
        ({"text": "a", "confidence": 0.25, "of": 1}, [("a", 5, 9, 0.25, {"of": 1})]),
    ],
)
def test_what_a_tool_gives_back_becomes_findings(given: Any, found: list[Any]) -> None:
    observed = findings_of("toy", given, 5, 9).observations
    assert [(each.text, each.start_ns, each.end_ns, each.confidence, each.data) for each in observed] == found


def test_more_than_there_may_be_is_a_failure_with_a_name() -> None:
    with pytest.raises(Permanent, match=r"^tool: toy gave back 1001 findings; 1000 at most"):
        findings_of("toy", ["x"] * 1001, 0, 1)


def test_a_tool_is_planned_by_the_name_of_its_capability_and_what_it_finds_is_evidence(file: Path) -> None:
    catalogue = Catalogue([tool(file, "shouted", "version = 3"), Captions, Quoting])
    workflow = parse_workflow(
        'name = "w"\n[stages.speech]\ncapability = "transcribe"\ninputs = { media = "media" }\n'
        '[stages.loud]\ncapability = "shouted"\ninputs = { evidence = "speech" }\n'
        '[stages.answer]\ncapability = "answer_question"\ninputs = { evidence = ["speech", "loud"] }\n'
        'params = { question = "What is dear?" }\n'
    )
    plan = make_plan(workflow, catalogue, MACHINE, CAPTIONED)
    loud = next(stage for stage in plan.stages if stage.name == "loud")
    assert (loud.rung.rung, loud.scope, loud.rung.knobs) == ("shouted", Map(), {"tool": "shouted", "version": 3})
    findings = [findings_of("t", "Barley costs nine.", 0, S), Findings(), Findings()]
    (reply,) = run(Quoting, {"evidence": [SPEECH, findings]}, params={"question": "What does barley cost?"})
    assert "Barley costs nine." in reply.answer
    assert [each.kind for each in reply.evidence] == ["finding"]


def test_a_tool_whose_module_is_not_here_is_missing_and_one_that_is_called_as_we_are_is_set_aside(file: Path) -> None:
    file.write_text('[[tool]]\nname = "gone"\npython = "not.here:f"\n')
    (gone,) = operators()
    why = gone.missing(gone.rungs()[0].knobs, MACHINE, None)
    assert why == "gone: there is no module 'not.here' here"
    file.write_text('[[tool]]\nname = "web"\nurl = "http://h/x"\nkey = "${NOBODY_SET_THIS}"\n')
    (web,) = operators()
    assert "there is no such variable" in (web.missing(web.rungs()[0].knobs, MACHINE, None) or "")
    file.write_text('[[tool]]\nname = "transcribe"\npython = "toy_tools:shouted"\n')
    catalogue = Catalogue([Captions])
    catalogue.add_family_or_set_aside("operators.control.tool_stages:operators")
    assert f"{file}:transcribe declares 'transcribe' with other ports" in catalogue.set_aside[0]
    file.write_text("[[tool]]\nname = 7\n")
    catalogue.add_family_or_set_aside("operators.control.tool_stages:operators")
    assert str(file) in catalogue.set_aside[1]
    catalogue.add_family_or_set_aside("toy_tools:fails")
    assert catalogue.set_aside[2] == "toy_tools:fails raised RuntimeError: it is broken"
    with pytest.raises(UserError, match="no capability 'gone'"):
        catalogue.capability("gone")
