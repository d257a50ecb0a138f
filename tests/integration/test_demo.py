"""The demo's promises on its own clip: right answers, work done once, and a trace from ingest to the answer."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from clips import EXAMPLES, STATION

from engine.decide.answer import Answer
from engine.run import conventions as names
from engine.spec.workflow import load_workflow
from operators.capabilities import NOT_IN_THE_VIDEO
from penstock.cli.show import heard as show_heard
from penstock.cli.show import is_right, verdict
from penstock.demo import hearing, num_wrong_words, questions, reading, recording, words
from penstock.running import Options, run
from streams.wire.ledger import open_ledger
from streams.wire.link import connect
from streams.wire.server import embedded

pytestmark = pytest.mark.anyio
ALMOST_NS, ALMOST = 100_000_000, 0.02  # of what a span lasts; a busy machine stands still for as long
WORKFLOW = load_workflow(EXAMPLES / "video_qa.toml")


INTERNAL, PRODUCER, CONSUMER = 1, 4, 5  # as OTLP numbers the kinds


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
    kind: int
    startTimeUnixNano: str
    endTimeUnixNano: str
    attributes: list[Attribute] = []
    links: list[Link] = []
    status: dict[str, Any] = {}

    def get(self, key: str) -> Any:
        return next((next(iter(a.value.values())) for a in self.attributes if a.key == key), None)

    @property
    def since_ns(self) -> int:
        return int(self.startTimeUnixNano)

    @property
    def until_ns(self) -> int:
        return int(self.endTimeUnixNano)


def spans_in(path: Path) -> list[Span]:
    found = []
    for line in path.read_bytes().splitlines():
        for resource in msgspec.json.decode(line)["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                found += msgspec.convert(scope["spans"], list[Span])
    return found


def named(spans: Sequence[Span], name: str) -> list[Span]:
    return [span for span in spans if span.name == name]


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
    (foreign,) = await ask(store, STATION, ["How do volcanoes erupt under the sea?"], tmp_path / "foreign.jsonl")
    assert (foreign.answer, foreign.evidence) == (NOT_IN_THE_VIDEO, ())
    for item in right:
        answer = by_question[item.question]
        assert answer.gaps == ()
        assert {note.stage for note in answer.stages} >= {"scenes", "speech", "text"}
        if item.answerable:  # of the others, a quotation cannot tell that they ask for what is not said
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
    spans = spans_in(tmp_path / "second.jsonl")
    assert len(named(spans, names.PROCESS)) == 1
    (answered,) = named(spans, names.ANSWER)
    stages = {span.get(names.STAGE): span for span in spans if span.parentSpanId == answered.spanId}
    for stage in ("scenes", "speech", "text"):  # computed before, so it took no time of this answer's
        assert stages[stage].get(names.NUM_EARLIER) == stages[stage].get(names.NUM_OUTPUTS)
        assert stages[stage].since_ns == stages[stage].until_ns == answered.since_ns

    (again,) = await ask(store, STATION, ["What is the name of the baker's shop?"], tmp_path / "third.jsonl")
    assert (again.answer, again.confidence) == (second.answer, second.confidence)
    assert named(spans_in(tmp_path / "third.jsonl"), names.PROCESS) == []


async def test_a_natural_voice_is_heard_and_found(tmp_path: Path) -> None:
    """With the models of the lock: by meaning, in a process that knows nothing of the run."""
    heard = await run(hearing(), recording(), [], Options(store=tmp_path / "store"))
    text = " ".join(item["text"] for answer in heard for item in answer.output.get("observations", ()))
    said = words(reading().text)
    assert num_wrong_words(said, words(text)) <= len(said) / 10
    assert {answer.stages[-1].implementation for answer in heard} == {"whisper-tiny.en"}
    search = [sys.executable, "-m", "penstock", "search", "if his wife had been friendlier"]
    done = await anyio.run_process([*search, "--store", str(tmp_path / "store"), "--num", "1", "--json"])
    (hit,) = map(json.loads, done.stdout.splitlines())
    assert hit["title"] == "reading.ogg"
    assert "a more amiable woman" in hit["text"]
    write = [sys.executable, "-m", "penstock", "transcript", "reading.ogg", "--format", "srt"]
    done = await anyio.run_process([*write, "--store", str(tmp_path / "store")])
    cues = [block.split("\n", 2) for block in done.stdout.decode().strip().split("\n\n")]
    assert [number for number, _, _ in cues] == [str(at + 1) for at in range(len(cues))]
    assert words(" ".join(shown for *_, shown in cues)) == words(text)


def test_beside_json_the_verdict_is_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    verdict(questions(), [], as_json=True)
    show_heard(reading(), [], as_json=True)
    told = capsys.readouterr()
    assert told.out == ""
    assert "0 of 12 answers" in told.err
    assert "70 of the 70 words" in told.err


@pytest.mark.parametrize(
    ("said", "heard", "num"),
    [
        ("", "", 0),
        ("a b c", "a b c", 0),
        ("a b c", "a x c", 1),
        ("a b c", "b c", 1),
        ("a b", "a b c d", 2),
        ("a b", "", 2),
    ],
)
def test_wrong_words_are_counted(said: str, heard: str, num: int) -> None:
    assert num_wrong_words(said.split(), heard.split()) == num


def assert_traced(spans: list[Span], answers: list[Answer]) -> None:
    """A trace for each segment, one for each answer, and a small one for what each was made by; linked, and each whole
    in itself."""
    published = named(spans, names.PUBLISH_MEDIA)
    segments = {span.traceId for span in published}
    assert len(segments) == len(published) > 10
    by_id = {span.spanId: span for span in spans}
    traces: dict[str, list[Span]] = {}
    for span in spans:
        traces.setdefault(span.traceId, []).append(span)
        assert not span.status, f"{span.name}: {span.status}"
        assert answers[0].stream not in span.name
        assert not any(character.isdigit() for character in span.name)
        assert span.since_ns <= span.until_ns
        assert not span.parentSpanId or by_id[span.parentSpanId].traceId == span.traceId
        assert {link.spanId for link in span.links} <= by_id.keys()
    kinds = {PRODUCER: {span.name for span in spans if span.name.startswith("publish ")}, CONSUMER: {names.PROCESS}}
    for span in spans:
        assert span.kind == next((kind for kind, of_it in kinds.items() if span.name in of_it), INTERNAL)

    for process in named(spans, names.PROCESS):
        assert_adds_up(process, [span for span in spans if span.parentSpanId == process.spanId])
    for trace in segments:
        done = {span.get(names.STAGE) for span in named(traces[trace], names.PROCESS)}
        assert done == {"scenes", "speech", "text"}
        assert len(traces[trace]) <= 32, "three outputs, one of which may have had eleven segments' sound decoded"
        assert named(traces[trace], names.DECODE)
        computed = [span for span in traces[trace] if span.name.startswith("compute ")]
        assert {span.name for span in computed} == {"compute detect_scenes", "compute transcribe", "compute read_text"}
        assert all(span.get(names.REASON) for span in computed)

    assert len({answer.trace_id for answer in answers}) == len(answers)
    for answer in answers:
        trace = traces[answer.trace_id]
        assert 10 <= len(trace) <= 20, [span.name for span in trace]
        (root,) = [span for span in trace if not span.parentSpanId]
        assert root.name == names.ANSWER
        assert root.since_ns <= min(span.since_ns for span in published)
        assert root.until_ns == max(span.until_ns for span in trace)
        assert named(trace, names.PUBLISH_ANSWER)
        assert segments == {link.traceId for link in root.links}
        children = [span for span in trace if span.parentSpanId == root.spanId]
        assert {span.get(names.STAGE) for span in children} >= {note.stage for note in answer.stages}
        assert_covers(root, children)


def assert_adds_up(whole: Span, parts: list[Span]) -> None:
    """The parts follow one another without a gap, from beginning to end."""
    at_ns = whole.since_ns
    for part in sorted(parts, key=lambda part: part.since_ns):
        assert part.since_ns == at_ns, f"{part.name} begins {part.since_ns - at_ns} ns after what was before it"
        at_ns = part.until_ns
    assert 0 <= whole.until_ns - at_ns < ALMOST_NS + ALMOST * (whole.until_ns - whole.since_ns)


def assert_covers(whole: Span, parts: list[Span]) -> None:
    """The parts lie within the whole, and hardly any time of it is in none of them."""
    at_ns, uncovered_ns = whole.since_ns, 0
    for part in sorted(parts, key=lambda part: part.since_ns):
        assert whole.since_ns <= part.since_ns <= part.until_ns <= whole.until_ns, part.name
        uncovered_ns += max(0, part.since_ns - at_ns)
        at_ns = max(at_ns, part.until_ns)
    uncovered_ns += whole.until_ns - at_ns
    assert uncovered_ns < ALMOST_NS + ALMOST * (whole.until_ns - whole.since_ns)
