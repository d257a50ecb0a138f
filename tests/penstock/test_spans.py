"""What a node traces beside its work: requests over HTTP, media that clients send, and attempts of webhooks."""

import json
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import anyio
import httpx
import pytest
import toys
from clips import first_seconds
from receiver import receiving
from sites import CATALOGUE, EACH, remuxed, site

from engine.node.intake import Intake
from engine.run import conventions as names
from engine.run.telemetry import Telemetry, trace_id
from engine.spec.jobs import JobSpec
from engine.spec.operator import Machine
from engine.spec.plan import make_plan
from penstock.http import serve_http
from penstock.webhooks import Pace, Webhooks
from streams import subjects
from streams.wire.link import connect

pytestmark = pytest.mark.anyio
SERVER, CLIENT, PRODUCER, CONSUMER = 2, 3, 4, 5  # as OTLP numbers the kinds
ERROR = 2


def spans_in(path: Path) -> list[dict[str, Any]]:
    """The spans of a file of OTLP JSON lines, in the order of their beginning, their attributes as plain values."""
    scopes = [
        scope
        for line in path.read_text().splitlines()
        for resource in json.loads(line)["resourceSpans"]
        for scope in resource["scopeSpans"]
    ]
    spans = [span for scope in scopes for span in scope["spans"]]
    for span in spans:
        span["attributes"] = {each["key"]: next(iter(each["value"].values())) for each in span["attributes"]}
    return sorted(spans, key=lambda span: int(span["startTimeUnixNano"]))


async def test_requests_have_a_span_named_by_their_route(nats_url: str, tmp_path: Path) -> None:
    traces, parent = Telemetry("penstock-node", tmp_path / "spans.jsonl"), toys.new_traceparent()
    async with site(nats_url, works=False) as here, anyio.create_task_group() as tasks:
        serve = partial(serve_http, catalogue=CATALOGUE, traces=traces)
        url = await tasks.start(serve, "127.0.0.1:0", here.services, here.registry, here.ledger)
        async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as http:
            await http.get("/v1/jobs", headers={"traceparent": parent})
            await http.get("/v1/jobs/nobody")
            await http.get("/nowhere/at/all")
            await http.put("/v1/streams/s", json={}, headers={"Origin": "http://elsewhere"})
            await http.request("BREW", "/v1/jobs")
            for quiet in ("/healthz", "/readyz", "/metrics"):
                await http.get(quiet)
        tasks.cancel_scope.cancel()
    traces.close()
    listed, shown, lost, foreign, made_up = spans_in(tmp_path / "spans.jsonl")
    assert (listed["name"], listed["kind"]) == ("GET /v1/jobs", SERVER)
    assert (listed["traceId"], listed["parentSpanId"]) == (trace_id(parent), parent.split("-")[2])
    assert listed["attributes"][names.STATUS] == "200"
    assert listed["attributes"][names.PORT] == url.rpartition(":")[2]
    assert (shown["name"], shown["attributes"][names.ROUTE]) == ("GET /v1/jobs/{job}", "/v1/jobs/{job}")
    assert (shown["attributes"][names.STATUS], shown["status"]) == ("404", {})  # it is the client's error
    assert (lost["name"], lost["attributes"].get(names.ROUTE)) == ("GET", None)
    assert (foreign["name"], foreign["attributes"][names.STATUS]) == ("PUT", "403")
    assert made_up["name"].split(" ")[0] == "_OTHER"


async def test_each_attempt_of_a_webhook_has_a_span_in_the_answers_trace(nats_url: str, tmp_path: Path) -> None:
    traces, parent = Telemetry("penstock-node", tmp_path / "spans.jsonl"), toys.new_traceparent()
    pace = Pace(first_pause_s=0.01, max_pause_s=0.02, look_s=0.05)

    async def over() -> bool:
        return True

    with receiving(lambda number, body: ((503, 204)[number], {})) as receiver:
        async with site(nats_url, works=False) as here:
            plan = make_plan(EACH, CATALOGUE, Machine(num_cores=2))
            spec = JobSpec(id="j", stream="s", plan=plan, spans={}, webhook=receiver.url)
            await here.ledger.append(subjects.answers("j", "s"), b"{}", 0, parent)
            with anyio.fail_after(20):
                await Webhooks(here.ledger, "", pace, Random(1), traces).send(spec, over)
    traces.close()
    refused, taken = spans_in(tmp_path / "spans.jsonl")
    assert [got.headers["traceparent"].split("-")[2] for got in receiver.got] == [refused["spanId"], taken["spanId"]]
    for number, span in enumerate((refused, taken)):
        assert (span["name"], span["kind"], span["traceId"]) == ("POST", CLIENT, trace_id(parent))
        assert span["attributes"][names.RESENT] == str(number)
        assert span["attributes"][names.URL] == receiver.url.removesuffix("/hook")  # a path may hold a secret
    assert refused["status"] == {"code": ERROR, "message": "503"}
    assert (taken["status"], taken["attributes"][names.STATUS]) == ({}, "204")


async def test_what_a_client_sends_has_one_span_that_its_segments_link_to(nats_url: str, tmp_path: Path) -> None:
    traces, parent = Telemetry("penstock-node", tmp_path / "spans.jsonl"), toys.new_traceparent()
    first_seconds(tmp_path / "clip.mp4", 3.0)
    data = remuxed(tmp_path / "clip.ts", 3.0).read_bytes()
    headers = {"traceparent": parent, "Penstock-Segment": "1s"}
    async with site(nats_url, works=False) as here, connect(nats_url) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(Intake(here.registry, here.ledger, traces, "n1").run)
        await anyio.wait_all_tasks_blocked()
        await client.client.request(subjects.ingest("s"), data[: len(data) // 2], timeout=20, headers=headers)
        await client.client.request(subjects.ingest("s"), data[len(data) // 2 :], timeout=20)
        await client.client.request(subjects.ingest("s"), b"", timeout=20)
        tasks.cancel_scope.cancel()
    traces.close()
    sender, *segments = spans_in(tmp_path / "spans.jsonl")
    assert (sender["name"], sender["kind"]) == (names.RECEIVE_MEDIA, CONSUMER)
    assert sender["traceId"] == trace_id(parent)
    assert (sender["attributes"][names.NUM_PIECES], sender["attributes"][names.NUM_BYTES]) == ("2", str(len(data)))
    assert len(segments) >= 2
    for segment in segments:
        assert (segment["name"], segment["kind"], segment["parentSpanId"]) == (names.PUBLISH_MEDIA, PRODUCER, "")
        assert [link["spanId"] for link in segment["links"]] == [sender["spanId"]]
    assert len({segment["traceId"] for segment in segments}) == len(segments)
