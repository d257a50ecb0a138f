"""The spans of a worker's work: steps that add up, links between the items of a batch, gaps that say why."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import running
import toys

from engine.node.answer_spans import LEAST_WAIT_NS, holes
from engine.node.submission import submit_whole
from engine.run import conventions as names
from engine.run.assignment import Assignment
from engine.run.registry import open_registry
from engine.run.telemetry import Telemetry
from engine.run.worker import Worker
from engine.spec.catalogue import Catalogue
from engine.spec.operator import Machine
from engine.spec.plan import make_plan
from engine.spec.stream import StreamSpec
from engine.spec.workflow import Stage, Workflow
from streams import subjects
from streams.records import EndOfStream, encode
from streams.subjects import Key
from streams.wire.ledger import Ledger, NewRecord, open_ledger
from streams.wire.link import connect

CATALOGUE = Catalogue(toys.ALL)
NUM = 6
ERROR = 2


@pytest.fixture
async def ledger(nats_url: str) -> AsyncIterator[Ledger]:
    async with connect(nats_url) as link:
        yield await open_ledger(link)


async def spans_of(ledger: Ledger, workflow: Workflow, values: list[int], path: Path) -> list[dict[str, Any]]:
    """What a worker tells of a job over these, its stages in one group."""
    traces = Telemetry("worker", path, "w")
    plan = make_plan(workflow, CATALOGUE, Machine(num_cores=2))
    records = [
        NewRecord(subjects.media("s", i), encode(toys.toy_segment("s", i, value))) for i, value in enumerate(values)
    ]
    end = EndOfStream(stream="s", num_segments=len(values), duration_ns=10**9 * len(values))
    await ledger.put_many([*records, NewRecord(subjects.media_end("s"), encode(end))])
    await submit_whole(await open_registry(ledger.link), ledger, plan, StreamSpec(name="s"))
    wanted = [subjects.result(stage.id, "s", Key.of(i)) for stage in plan.stages for i in range(len(values))]
    async with anyio.create_task_group() as tasks:
        assignment = Assignment(url="", name="w", num_cores=2, ack_wait_s=5, retry=running.POLICY)
        tasks.start_soon(Worker(ledger, assignment, CATALOGUE, traces).run)
        with anyio.fail_after(30):
            while len(await ledger.get_many(wanted)) < len(wanted):  # noqa: ASYNC110 - in the ledger
                await anyio.sleep(0.02)
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    traces.close()
    return list(_spans_in(path))


def _spans_in(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines():
        for resource in json.loads(line)["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                for span in scope["spans"]:
                    told = {each["key"]: next(iter(each["value"].values())) for each in span["attributes"]}
                    yield {**span, "attributes": told}


def children_of(spans: list[dict[str, Any]], span: dict[str, Any]) -> list[dict[str, Any]]:
    found = [each for each in spans if each["parentSpanId"] == span["spanId"]]
    return sorted(found, key=lambda each: (int(each["startTimeUnixNano"]), int(each["endTimeUnixNano"])))


@pytest.mark.anyio
async def test_steps_add_up_and_what_follows_goes_on_from_what_was_stored(ledger: Ledger, tmp_path: Path) -> None:
    chain = Workflow(
        name="chain",
        stages={
            "read": Stage(capability="toy_read", inputs={"media": "media"}),
            "add": Stage(capability="toy_add", inputs={"numbers": "read"}),
        },
    )
    spans = await spans_of(ledger, chain, list(range(NUM)), tmp_path / "spans.jsonl")
    by_id = {span["spanId"]: span for span in spans}
    done = [span for span in spans if span["name"] == names.PROCESS]
    assert sorted(span["attributes"][names.STAGE] for span in done) == ["add"] * NUM + ["read"] * NUM
    for span in done:
        at = span["startTimeUnixNano"]
        for step in children_of(spans, span):
            assert step["startTimeUnixNano"] == at
            at = step["endTimeUnixNano"]
        assert int(at) <= int(span["endTimeUnixNano"])
        assert [step["name"].split(" ")[0] for step in children_of(spans, span)][-2:] == ["compute", "publish"]
        if span["attributes"][names.STAGE] == "add":
            before = by_id[span["parentSpanId"]]
            assert before["name"] == names.PUBLISH_RESULT
            assert by_id[before["parentSpanId"]]["attributes"][names.STAGE] == "read"
            assert int(span["startTimeUnixNano"]) >= int(before["startTimeUnixNano"])
    computed = [span for span in spans if span["name"].startswith("compute ")]
    processes = {span["spanId"] for span in done}
    for span in computed:  # linked to the others of its batch, and to them alone
        others = {link["spanId"] for link in span["links"]}
        assert others <= processes - {span["parentSpanId"]}
        assert len(others) == int(span["attributes"][names.BATCH_SIZE]) - 1


@pytest.mark.anyio
async def test_a_gap_says_why(ledger: Ledger, tmp_path: Path) -> None:
    bad = Workflow(name="bad", stages={"bad": Stage(capability="toy_bad", inputs={"media": "media"})})
    spans = await spans_of(ledger, bad, [1, 13], tmp_path / "spans.jsonl")
    done = [span for span in spans if span["name"] == names.PROCESS]
    fine, *of_13 = sorted(done, key=lambda span: str(span["attributes"][names.SEGMENT]))
    assert fine["status"] == {}
    assert all(span["status"]["code"] == ERROR for span in of_13)
    assert any("unlucky number" in span["status"]["message"] for span in of_13)
    (gap,) = [span for span in of_13 if names.GAP in span["attributes"]]
    assert gap["attributes"][names.GAP] == "dead_lettered"
    assert children_of(spans, gap)[-1]["name"] == names.PUBLISH_RESULT
    failed = [span for span in spans if span["name"] == "compute toy_bad" and span["status"]]
    assert failed
    assert all("unlucky number" in span["status"]["message"] for span in failed)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([], [(0, 100)]),
        ([(0, 100)], []),
        ([(10, 20), (15, 40), (60, 70)], [(0, 10), (40, 60), (70, 100)]),
        ([(-50, 30), (90, 300)], [(30, 90)]),
        ([(0, 0), (0, 100)], []),
        ([(150, 200)], [(0, 100)]),
    ],
)
def test_what_is_left_uncovered(times: list[tuple[int, int]], expected: list[tuple[int, int]]) -> None:
    ms = LEAST_WAIT_NS
    found = holes([(a * ms, b * ms) for a, b in times], 0, 100 * ms)
    assert found == [(a * ms, b * ms) for a, b in expected]
    assert holes([(1, 100 * ms)], 0, 100 * ms) == []
