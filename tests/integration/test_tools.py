"""Tools through the engine: as a stage, and called by a model; workers call them, and the trace tells which."""

import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest
from media_zoo import make
from planted import nothing_holds
from scripted_endpoint import refuses, says, serving

from engine.decide.answer import Answer
from engine.spec.catalogue import installed
from engine.spec.workflow import parse_workflow
from penstock.running import Options, run

pytestmark = pytest.mark.anyio
CAPTIONS = ((0.1, 1.9, "The mill buys three tonnes of wheat today."), (2.1, 3.9, "Maize stays where it was."))
KEY = "sk-planted-91c4"
TOOLS = """
[[tool]]
name = "price"
python = "toy_tools:price"

[[tool]]
name = "shouted"
about = "The same, louder"
python = "toy_tools:shouted"

[[tool]]
name = "broken"
url = "http://127.0.0.1:9/"
key = "${TOY_KEY}"
"""
WORKFLOW = """
name = "market"
[stages.speech]
capability = "transcribe"
inputs = { media = "media" }
[stages.loud]
capability = "shouted"
inputs = { evidence = "speech" }
[stages.answer]
capability = "answer_question"
inputs = { evidence = ["speech"] }
params = { question = "$ask", tools = ["price", "broken"] }
"""
ASK = "What does the wheat of the mill cost?"


def with_toys() -> str:
    """Where the workers find the functions of the tests."""
    return os.pathsep.join(filter(None, [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]))


async def ran(workflow: str, clip: Path, asks: Sequence[str], options: Options) -> list[Answer]:
    """The answers of a workflow, with the tools and models that the machine's files name now."""
    installed.cache_clear()
    try:
        with anyio.fail_after(90):
            return await run(parse_workflow(workflow), clip, asks, options)
    finally:
        installed.cache_clear()


async def test_tools_are_stages_and_are_called_by_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = make(tmp_path / "clip.mkv", video="libx264", audio="aac", seconds=4, captions=CAPTIONS)
    (tmp_path / "tools.toml").write_text(TOOLS)
    calls = (
        {"tool": "price", "arguments": {"grain": "wheat", "tonnes": 3}},
        {"tool": "broken", "arguments": {"to": "me"}},
        {"tool": "os.system", "arguments": {"command": "id"}},
        {"answer": "It costs 720 dollars.", "passages": [2], "confidence": 0.9},
    )
    async with serving(*(says(json.dumps(call)) for call in calls)) as there:
        (tmp_path / "endpoints.toml").write_text(
            f'[[endpoint]]\nmodel = "toy/model"\nurl = "{there.url}"\nprice_in = 2.0\nprice_out = 8.0\n'
        )
        for name in ("tools", "endpoints"):
            monkeypatch.setenv(f"PENSTOCK_{name.upper()}", str(tmp_path / f"{name}.toml"))
        monkeypatch.setenv("TOY_KEY", KEY)
        monkeypatch.setenv("PYTHONPATH", with_toys())
        options = Options(segment_s=2.0, store=tmp_path / "store", trace_file=tmp_path / "trace.json")
        found = await ran(WORKFLOW, clip, [ASK], options)
    (reply,) = (each for each in found if each.question)
    assert reply.answer == "It costs 720 dollars.", reply
    assert [each.kind for each in reply.evidence] == ["tool"]
    assert reply.spent is not None
    assert reply.spent.calls == 6, "four times the model, twice a tool"
    texts = [each["text"] for answer in found if answer.output for each in answer.output["observations"]]
    assert "\n".join(texts) == "\n".join(text.upper() for *_, text in CAPTIONS)
    trace = (tmp_path / "trace.json").read_text()
    assert '"execute_tool price"' in trace
    assert '"chat toy/model"' in trace
    assert "os.system" not in trace.replace("'os.system' is not among", "")
    assert nothing_holds(KEY, tmp_path)
    assert len(there.requests) == 4


async def test_a_tool_that_fails_as_a_stage_leaves_a_gap_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make(tmp_path / "clip.mkv", video="libx264", audio="aac", seconds=4, captions=CAPTIONS[:1])
    async with serving(refuses(400, f"no: {KEY}")) as there:
        (tmp_path / "tools.toml").write_text(f'[[tool]]\nname = "web"\nurl = "{there.url}"\nkey = "${{TOY_KEY}}"\n')
        monkeypatch.setenv("PENSTOCK_TOOLS", str(tmp_path / "tools.toml"))
        monkeypatch.setenv("TOY_KEY", KEY)
        found = await ran(
            'name = "w"\n[stages.speech]\ncapability = "transcribe"\ninputs = { media = "media" }\n'
            '[stages.web]\ncapability = "web"\ninputs = { evidence = "speech" }\n',
            clip,
            [],
            Options(segment_s=2.0, store=tmp_path / "store"),
        )
    (gap,) = (gap for answer in found for gap in answer.gaps)
    assert (gap.stage, gap.detail) == ("web", "tool: web: HTTP 400: no: ...")
    assert len(there.requests) == 1, "the segment in which nothing is said asks nobody"
    assert nothing_holds(KEY, tmp_path)


async def test_an_agent_of_a_library_is_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("langgraph") is None:
        pytest.skip("needs langgraph: pip install langgraph")
    clip = make(tmp_path / "clip.mkv", video="libx264", audio="aac", seconds=4, captions=CAPTIONS)
    (tmp_path / "tools.toml").write_text('[[tool]]\nname = "agent"\npython = "toy_agent:ask"\nreads = "range"\n')
    monkeypatch.setenv("PENSTOCK_TOOLS", str(tmp_path / "tools.toml"))
    monkeypatch.setenv("PYTHONPATH", with_toys())
    found = await ran(
        'name = "w"\n[stages.speech]\ncapability = "transcribe"\ninputs = { media = "media" }\n'
        '[stages.agent]\ncapability = "agent"\ninputs = { evidence = "speech" }\nparams = { question = "$ask" }\n',
        clip,
        ["What of wheat?", "What of barley?"],
        Options(segment_s=2.0, store=tmp_path / "store"),
    )
    texts = {answer.question: answer.output["observations"][0]["text"] for answer in found}
    assert texts == {
        "What of wheat?": "It was said: The mill buys three tonnes of wheat today.",
        "What of barley?": "Nobody said.",
    }
