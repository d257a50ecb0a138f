"""The demo's promises on its own clip: right answers, work done once, and a trace from ingest to the answer."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from clips import EXAMPLES, STATION

from engine.decide.answer import Answer
from engine.spec.workflow import load_workflow
from penstock.cli.show import is_right
from penstock.demo import questions
from penstock.running import Options, run
from streams.wire.ledger import open_ledger
from streams.wire.link import connect
from streams.wire.server import embedded

pytestmark = pytest.mark.anyio
WORKFLOW = load_workflow(EXAMPLES / "video_qa.toml")


class Attribute(msgspec.Struct):
    key: str
    value: dict[str, Any]


class Link(msgspec.Struct):
    traceId: str
    spanId: str


class Span(msgspec.Struct):
    traceId: str
    spanId: str
    parentSpanId: str
    name: str
    startTimeUnixNano: str
    endTimeUnixNano: str
    attributes: list[Attribute] = []
    links: list[Link] = []

    def get(self, key: str) -> Any:
        return next((next(iter(a.value.values())) for a in self.attributes if a.key == key), None)


def spans_in(path: Path) -> list[Span]:
    found = []
    for line in path.read_bytes().splitlines():
        for resource in msgspec.json.decode(line)["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                found += msgspec.convert(scope["spans"], list[Span])
    return found


async def ask(store: Path, clip: Path, asks: Sequence[str], trace: Path) -> list[Answer]:
    return await run(WORKFLOW, clip, asks, Options(store=store, trace_file=trace))


async def stored_in(store: Path) -> dict[str, int]:
    """Every media and result subject of the ledger, with its sequence."""
    async with embedded(store) as url, connect(url) as link:
        ledger = await open_ledger(link)
        names = [name for kind in ("media", "results") for name in await ledger.subjects(f"penstock.{kind}.>")]
        found = {}
        for kind in ("media", "results"):
            some = [name for name in names if name.startswith(f"penstock.{kind}.")]
            found |= {name: stored.seq for name, stored in (await ledger.get_many(some)).items()}
        return found


async def test_the_demo_answers_rightly_computes_once_and_is_traced(tmp_path: Path) -> None:
    store = tmp_path / "store"
    asked = questions()
    assert len(asked) == 12
    first = await ask(store, STATION, [item.question for item in asked], tmp_path / "first.jsonl")

    by_question = {answer.question: answer for answer in first}
    right = [item for item in asked if is_right(item, by_question[item.question].answer)]
    assert sum(item.answerable for item in right) >= 9
    assert sum(not item.answerable for item in right) == 2
    for item in right:
        answer = by_question[item.question]
        assert answer.gaps == ()
        assert {note.stage for note in answer.stages} >= {"scenes", "speech", "text"}
        if item.answerable:
            near = [e for e in answer.evidence if e.start_s < item.end_s + 1 and e.end_s > item.start_s - 1]
            assert near, f"the evidence for {item.question!r} is from another time"
            assert 0 < answer.confidence <= 1
        else:
            assert answer.evidence == ()

    spans = spans_in(tmp_path / "first.jsonl")
    assert_traced(spans, first)

    before = await stored_in(store)
    copy = tmp_path / "the same under another name.mp4"
    shutil.copy(STATION, copy)
    (second,) = await ask(store, copy, ["What is the name of the baker's shop?"], tmp_path / "second.jsonl")
    after = await stored_in(store)
    assert {name: seq for name, seq in after.items() if name in before} == before
    (added,) = set(after) - set(before)
    assert added.startswith("penstock.results.")
    assert second.stream == first[0].stream
    computed = [span for span in spans_in(tmp_path / "second.jsonl") if span.name == "process"]
    assert len(computed) == 1

    (again,) = await ask(store, STATION, ["What is the name of the baker's shop?"], tmp_path / "third.jsonl")
    assert (again.answer, again.confidence) == (second.answer, second.confidence)
    assert [span for span in spans_in(tmp_path / "third.jsonl") if span.name == "process"] == []


def assert_traced(spans: list[Span], answers: list[Answer]) -> None:
    """One trace for each segment from its ingest on; what joins others links to them; an answer's trace reaches back to
    every segment it used."""
    by_id = {span.spanId: span for span in spans}
    ingests = {span.get("segment"): span for span in spans if span.name == "ingest"}
    num_segments = len(ingests)
    assert num_segments > 10
    assert len({span.traceId for span in ingests.values()}) == num_segments
    for name in ("scenes", "speech", "text"):
        of_stage = {span.get("segment"): span for span in spans if span.name == name}
        assert set(of_stage) == set(ingests)
        for segment, span in of_stage.items():
            assert span.traceId == ingests[segment].traceId
            steps = {child.name for child in spans if child.parentSpanId == span.spanId}
            assert steps >= {"queue wait", "process"}
            assert int(span.startTimeUnixNano) <= int(span.endTimeUnixNano)
    processes = {span.spanId for span in spans if span.name == "process"}
    batches = [span for span in spans if span.name == "batch"]
    assert {link.spanId for batch in batches for link in batch.links} == processes
    for answer in answers:
        (span,) = [s for s in spans if s.name.startswith("answer") and s.traceId == answer.trace_id and _is(s, answer)]
        reached = {span.traceId} | {by_id[link.spanId].traceId for link in span.links}
        assert reached == {ingest.traceId for ingest in ingests.values()}


def _is(span: Span, answer: Answer) -> bool:
    return span.name == next(note.stage for note in answer.stages if note.capability == "answer_question")
