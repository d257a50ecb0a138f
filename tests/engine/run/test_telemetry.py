"""Traces: spans as OTLP, in a file and over HTTP; contexts that survive the ledger; nothing where nobody asked."""

import json
import logging
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import toys
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from engine.run import conventions
from engine.run.telemetry import OTLP_ENDPOINTS, Telemetry, trace_id
from streams.errors import UserError
from streams.wire.ledger import NewRecord, open_ledger
from streams.wire.link import connect

TRACEPARENT = r"00-[0-9a-f]{32}-[0-9a-f]{16}-01"


@pytest.fixture(autouse=True)
def no_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*OTLP_ENDPOINTS, "OTEL_SDK_DISABLED", "OTEL_TRACES_SAMPLER"):
        monkeypatch.delenv(name, raising=False)


def spans_in(path: Path) -> dict[str, dict[str, Any]]:
    """The spans of a file of OTLP JSON lines, by name."""
    requests = [json.loads(line) for line in path.read_text().splitlines()]
    scopes = [
        scope for request in requests for resource in request["resourceSpans"] for scope in resource["scopeSpans"]
    ]
    return {span["name"]: span for scope in scopes for span in scope["spans"]}


def test_spans_are_written_as_otlp_json(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    telemetry = Telemetry("penstock", path, instance="w1")
    assert telemetry.enabled
    other = toys.new_traceparent()
    root = telemetry.span("ingest", started_ns=10**18, kind="producer")
    child = telemetry.span(
        "stage",
        root.traceparent,
        links=[other, ""],
        attributes={"stage": "read", "segment": 7, "share": 0.5, "fused": True, "long": 2**53 + 1},
    )
    child.end(None, {"more": "later"}, error="it broke")
    root.end(10**18 + 5)
    step = telemetry.record("process", child.traceparent, 10**18 + 1, 10**18 + 2, kind="client")
    telemetry.close()
    spans = spans_in(path)
    assert list(spans) == ["stage", "ingest", "process"]
    ingest, stage, process = spans["ingest"], spans["stage"], spans["process"]
    for span in spans.values():
        assert span["traceId"] == trace_id(root.traceparent)
        assert int(span["spanId"], 16) > 0
        assert len(span["spanId"]) == 16
    assert ingest["parentSpanId"] == ""
    assert stage["parentSpanId"] == ingest["spanId"]
    assert process["parentSpanId"] == stage["spanId"]
    assert step.split("-")[2] == process["spanId"]
    assert (ingest["startTimeUnixNano"], ingest["endTimeUnixNano"]) == (str(10**18), str(10**18 + 5))
    assert int(stage["startTimeUnixNano"]) <= int(stage["endTimeUnixNano"])
    assert stage["links"] == [{"traceId": trace_id(other), "spanId": other.split("-")[2], "attributes": []}]
    assert [span["kind"] for span in (stage, ingest, process)] == [1, 4, 3]  # internal, producer, client
    assert [span["status"] for span in (stage, ingest)] == [{"code": 2, "message": "it broke"}, {}]
    assert {attribute["key"]: attribute["value"] for attribute in stage["attributes"]} == {
        "stage": {"stringValue": "read"},
        "segment": {"intValue": "7"},
        "share": {"doubleValue": 0.5},
        "fused": {"boolValue": True},
        "long": {"intValue": str(2**53 + 1)},
        "more": {"stringValue": "later"},
    }
    told = json.loads(path.read_text().splitlines()[0])["resourceSpans"][0]
    assert told["schemaUrl"] == told["scopeSpans"][0]["schemaUrl"] == conventions.SCHEMA_URL
    named = {attribute["key"]: attribute["value"] for attribute in told["resource"]["attributes"]}
    assert named["service.name"] == {"stringValue": "penstock"}
    assert named["service.instance.id"] == {"stringValue": "w1"}
    assert named["process.pid"] == {"intValue": str(os.getpid())}
    assert named.keys() >= {"service.version", "host.name", "telemetry.sdk.language"}


def test_of_too_many_links_it_says_how_many_there_were(tmp_path: Path) -> None:
    telemetry = Telemetry("penstock", tmp_path / "trace.jsonl")
    others = [toys.new_traceparent() for _ in range(conventions.MAX_LINKS + 3)]
    telemetry.span("many", links=[*others, *others]).end()
    telemetry.close()
    span = spans_in(tmp_path / "trace.jsonl")["many"]
    assert len(span["links"]) == conventions.MAX_LINKS
    assert span["attributes"] == [{"key": conventions.UNLINKED, "value": {"intValue": "3"}}]


def test_no_name_tells_one_thing_from_another() -> None:
    """Names of spans are templates: what is in braces is never filled in."""
    templates = [value for name, value in vars(conventions).items() if isinstance(value, str) and "{" in value]
    assert len(templates) >= 8
    for template in templates:
        assert re.fullmatch(r"(\w+ )?penstock\.[a-z]+(\.\{[a-z]+\})+", template), template


def test_two_processes_can_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    first, second = Telemetry("a", path), Telemetry("b", path)
    parent = first.span("first")
    second.span("second", parent.traceparent).end()
    parent.end()
    second.close()
    first.close()
    spans = spans_in(path)
    assert spans["second"]["parentSpanId"] == spans["first"]["spanId"]
    assert spans["second"]["traceId"] == spans["first"]["traceId"]


def test_what_is_made_under_a_context_that_nobody_recorded_begins_its_trace(tmp_path: Path) -> None:
    path, nobody = tmp_path / "trace.jsonl", Telemetry("penstock-client")
    above = nobody.span("push").traceparent
    telemetry = Telemetry("penstock", path)
    root = telemetry.span("process", above)
    telemetry.span("fetch", root.traceparent).end()
    root.end()
    telemetry.span("alone").end()
    telemetry.close()
    spans = spans_in(path)
    assert spans["process"]["parentSpanId"] == ""
    assert spans["process"]["traceId"] == spans["fetch"]["traceId"] == trace_id(above)
    assert spans["fetch"]["parentSpanId"] == spans["process"]["spanId"]
    assert spans["alone"]["traceId"] != trace_id(above)


@pytest.mark.parametrize("half", ["z" * 16, "0" * 16, "A" * 16, "\u0663" * 16])
def test_a_parent_that_only_looks_like_one_nobody_recorded_is_malformed(tmp_path: Path, half: str) -> None:
    path = tmp_path / "trace.jsonl"
    telemetry = Telemetry("penstock", path)
    telemetry.span("stage", f"00-{half}{half}-{half}-01").end()
    telemetry.close()
    span = spans_in(path)["stage"]
    assert span["parentSpanId"] == ""
    assert int(span["traceId"], 16) > 0


def test_a_malformed_parent_begins_a_new_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    telemetry = Telemetry("a", path)
    for number, parent in enumerate(["", "junk", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "00-xyz-1-01"]):
        telemetry.span(str(number), parent).end()
    telemetry.close()
    spans = spans_in(path)
    assert {span["parentSpanId"] for span in spans.values()} == {""}
    assert len({span["traceId"] for span in spans.values()}) == 4


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write the trace to"):
        Telemetry("a", tmp_path / "nowhere" / "trace.jsonl")


@pytest.mark.parametrize(
    ("traceparent", "expected"),
    [
        ("00-" + "ab" * 16 + "-" + "cd" * 8 + "-01", "ab" * 16),
        ("", ""),
        ("ab" * 16, ""),
        ("00-abc-def-01", ""),
        ("00-" + "ab" * 16 + "-" + "cd" * 8, ""),
    ],
)
def test_trace_ids(traceparent: str, expected: str) -> None:
    assert trace_id(traceparent) == expected


def test_nothing_is_made_when_nobody_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a provider was made")

    monkeypatch.setattr("engine.run.telemetry._provider", refuse)
    telemetry = Telemetry("a")
    assert not telemetry.enabled
    parent = toys.new_traceparent()
    assert telemetry.span("child", parent, links=[parent], attributes={"a": 1}).traceparent == parent
    assert telemetry.record("step", parent, 1, 2) == parent
    root, another = telemetry.span("root"), telemetry.span("root")
    assert trace_id(root.traceparent)
    assert root.traceparent != another.traceparent
    root.end(None, {"attribute": "x"}, error="none")
    telemetry.close()
    monkeypatch.setenv("OTEL_SDK_DISABLED", "TRUE")
    monkeypatch.setenv(OTLP_ENDPOINTS[0], "http://127.0.0.1:1")
    assert not Telemetry("a", tmp_path / "trace.jsonl").enabled
    assert not (tmp_path / "trace.jsonl").exists()


@pytest.mark.anyio
async def test_a_trace_goes_on_through_the_ledger(nats_url: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    before, after = Telemetry("writer", path), Telemetry("reader", path)
    written = before.span("written")
    written.end()
    async with connect(nats_url) as link:
        ledger = await open_ledger(link)
        large = b"x" * 1_500_000
        await ledger.put("penstock.media.s.0", b"small", written.traceparent)
        await ledger.put("penstock.media.s.1", large, written.traceparent)
        await ledger.put_many([NewRecord(f"penstock.media.s.{index}", b"", written.traceparent) for index in (2, 3)])
        await ledger.append("penstock.answers.job.s", b"{}", 0, written.traceparent)
        names = [f"penstock.media.s.{index}" for index in range(4)]
        stored = [
            *(await ledger.get_many(names)).values(),
            await ledger.get(names[1]),
            await ledger.get("penstock.answers.job.s"),
        ]
    assert len(stored) == 6
    carried = {record.traceparent for record in stored if record is not None}
    assert carried == {written.traceparent}
    after.span("read", carried.pop()).end()
    before.close()
    after.close()
    spans = spans_in(path)
    assert spans["read"]["parentSpanId"] == spans["written"]["spanId"]
    assert spans["read"]["traceId"] == spans["written"]["traceId"]


@dataclass
class Collector:
    """An OTLP/HTTP endpoint that keeps what it is sent."""

    url: str
    requests: list[tuple[str, str, ExportTraceServiceRequest]] = field(default_factory=list)


@pytest.fixture
def collector() -> Iterator[Collector]:
    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            kept.requests.append((self.path, self.headers["Content-Type"], ExportTraceServiceRequest.FromString(body)))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as server:
        kept = Collector(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield kept
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("variable", "path"), [(OTLP_ENDPOINTS[0], "/v1/traces"), (OTLP_ENDPOINTS[1], "/custom")])
def test_spans_go_to_the_collector_that_the_environment_names(
    variable: str, path: str, collector: Collector, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(variable, collector.url + ("" if variable == OTLP_ENDPOINTS[0] else path))
    telemetry = Telemetry("penstock", tmp_path / "trace.jsonl")
    root = telemetry.span("ingest")
    telemetry.span("stage", root.traceparent, attributes={"segment": 3}).end()
    root.end()
    telemetry.close()
    sent = collector.requests
    assert {(where, kind) for where, kind, _ in sent} == {(path, "application/x-protobuf")}
    resources = [resource for *_, request in sent for resource in request.resource_spans]
    spans = {span.name: span for resource in resources for scope in resource.scope_spans for span in scope.spans}
    assert spans["stage"].parent_span_id == spans["ingest"].span_id
    assert spans["ingest"].trace_id.hex() == spans["stage"].trace_id.hex() == trace_id(root.traceparent)
    assert [(each.key, each.value.int_value) for each in spans["stage"].attributes] == [("segment", 3)]
    assert ("service.name", "penstock") in [
        (each.key, each.value.string_value) for each in resources[0].resource.attributes
    ]
    assert set(spans_in(tmp_path / "trace.jsonl")) == {"ingest", "stage"}


def test_a_collector_that_is_not_there_costs_no_more_than_its_spans(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(OTLP_ENDPOINTS[0], "http://127.0.0.1:1")
    caplog.set_level(logging.CRITICAL, logger="opentelemetry")
    telemetry = Telemetry("penstock", tmp_path / "trace.jsonl")
    telemetry.span("ingest").end()
    telemetry.close()
    assert set(spans_in(tmp_path / "trace.jsonl")) == {"ingest"}
