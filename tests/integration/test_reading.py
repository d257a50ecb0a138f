"""A language model answers through the engine: workers call it, and what it says is judged."""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from media_zoo import make
from planted import nothing_holds
from scripted_endpoint import Act, Endpoint, refuses, says, serving

from engine.decide.answer import Answer
from engine.spec.catalogue import installed
from engine.spec.workflow import Stage, Workflow
from penstock.running import Options, run

pytestmark = pytest.mark.anyio
ASKS = ("When does the train to Porto leave?", "What does breakfast cost?")
CAPTIONS = ((0.1, 1.9, "The train to Porto leaves at nine twenty."), (2.1, 3.9, "Breakfast costs eleven euros."))
KEY = "sk-planted-91c4"
WORKFLOW = Workflow(
    name="read",
    stages={
        "speech": Stage(capability="transcribe", inputs={"media": "media"}),
        "answer": Stage(capability="answer_question", inputs={"evidence": ("speech",)}, params={"question": "$ask"}),
    },
)


def answers(text: str, passage: int) -> Act:
    return says(json.dumps({"answer": text, "passages": [passage], "confidence": 0.9}))


@asynccontextmanager
async def asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *acts: Act
) -> AsyncIterator[tuple[list[Answer], Endpoint]]:
    clip = make(tmp_path / "clip.mkv", video="libx264", audio="aac", seconds=4, captions=CAPTIONS)
    async with serving(*acts) as there:
        (tmp_path / "endpoints.toml").write_text(
            f'[[endpoint]]\nmodel = "toy/model"\nurl = "{there.url}"\nkey = "${{TOY_KEY}}"\n'
            "quality = 0.9\nanswer_s = 5\n"
        )
        monkeypatch.setenv("PENSTOCK_ENDPOINTS", str(tmp_path / "endpoints.toml"))
        monkeypatch.setenv("TOY_KEY", KEY)
        installed.cache_clear()  # the rungs are those of the file
        try:
            options = Options(segment_s=2.0, store=tmp_path / "store", trace_file=tmp_path / "trace.json")
            with anyio.fail_after(90):
                found = await run(WORKFLOW, clip, ASKS, options)
        finally:
            installed.cache_clear()
        yield found, there


async def test_a_model_that_is_named_answers_each_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with asked(tmp_path, monkeypatch, answers("At nine twenty.", 1), answers("At nine twenty.", 1)) as (
        found,
        there,
    ):
        by_ask = {each.question: each for each in found}
        assert by_ask[ASKS[0]].answer == "At nine twenty."
        assert [each.text for each in by_ask[ASKS[0]].evidence] == [" ".join(text for *_, text in CAPTIONS)]
        assert {note.implementation for note in by_ask[ASKS[0]].stages} == {"captions", "toy/model"}
        assert len(there.requests) == 2
        assert all(f"authorization: bearer {KEY}" in each.head.lower() for each in there.requests)
    assert nothing_holds(KEY, tmp_path), "in no store, log or trace"
    assert nothing_holds("127.0.0.1:" + there.url.split(":")[2], tmp_path / "store"), "nor where the endpoint is"
    assert os.environ["TOY_KEY"] == KEY


async def test_what_a_model_makes_up_is_no_answer_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with asked(tmp_path, monkeypatch, answers("At 7:45, as every day.", 1)) as (found, _):
        pass
    assert [each.answer for each in found] == ["", ""]
    for each in found:
        (gap,) = each.gaps
        assert gap.cause == "dead_lettered"
        assert "citation: 'At 7:45, as every day.'" in gap.detail


async def test_an_endpoint_that_is_away_for_a_while_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acts = [refuses(503, Retry_After="30")] * 3 + [answers("At nine twenty.", 1)]
    async with asked(tmp_path, monkeypatch, *acts) as (found, there):
        assert {each.answer for each in found} == {"At nine twenty."}
        assert len(there.requests) == 5
