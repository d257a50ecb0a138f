"""Traces: a short one for each answer, linked to one for each segment it used; and log lines that carry their ids.

Spans go to an OTLP collector when the standard OTEL_* variables name one, and to a file of OTLP JSON, one export
request a line, when asked (collectors read it with the `otlpjsonfile` receiver). Without either, contexts still travel,
so an answer always has a trace id, but no span is made. Such a context says so by its span's id, which is the first
half of the trace's: whoever makes a span under it elsewhere begins the trace, for nobody would find one above it.
"""

import os
import random
import re
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import structlog

from engine.run.conventions import MAX_LINKS, SCHEMA_URL, SCOPE, UNLINKED, Kind
from streams.errors import UserError

OTLP_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
FLUSH_TIMEOUT_MS = 800
Attributes = Mapping[str, str | int | float | bool]
_random = random.Random()  # seeded by the system; ids have to be unlike each other, not secret
_UNRECORDED = re.compile(r"[0-9a-f]{2}-(([0-9a-f]{16})[0-9a-f]{16})-\2-[0-9a-f]{2}")
_begun: ContextVar[int] = ContextVar("begun", default=0)  # the trace that the next span begins; 0: a new one


class Span:
    """A piece of work under way. `traceparent` is what its children and followers carry (W3C Trace Context)."""

    def __init__(self, traceparent: str, span: Any = None) -> None:
        self.traceparent = traceparent
        self._span = span

    def rename(self, name: str) -> None:
        """What it is about has turned out only now."""
        if self._span is not None:
            self._span.update_name(name)

    def end(self, ended_ns: int | None = None, attributes: Attributes | None = None, *, error: str = "") -> None:
        """It is over; `error` says what failed, where something did."""
        if self._span is None:
            return
        if attributes:
            self._span.set_attributes(attributes)
        if error:
            from opentelemetry.trace import StatusCode

            self._span.set_status(StatusCode.ERROR, error)
        self._span.end(ended_ns or time.time_ns())


class Telemetry:
    """Makes spans where somebody wants them, and passes contexts on where nobody does."""

    def __init__(self, service: str, trace_file: Path | None = None, instance: str = "") -> None:
        exports_otlp = any(os.environ.get(name) for name in OTLP_ENDPOINTS)
        wanted = os.environ.get("OTEL_SDK_DISABLED", "").lower() != "true"
        self._provider: Any = None
        if wanted and (exports_otlp or trace_file is not None):
            self._provider, self._otlp = _provider(service, instance, trace_file, exports_otlp)
            self._tracer = self._provider.get_tracer(SCOPE, product_version(), schema_url=SCHEMA_URL)

    @property
    def enabled(self) -> bool:
        return self._provider is not None

    def span(
        self,
        name: str,
        parent: str = "",
        *,
        kind: Kind = "internal",
        started_ns: int | None = None,
        links: Iterable[str] = (),
        attributes: Attributes | None = None,
    ) -> Span:
        """Begin a span under `parent` (a traceparent; a new trace where empty), with MAX_LINKS of its links. Times are
        Unix nanoseconds."""
        if self._provider is None:
            return Span(parent or unrecorded())
        from opentelemetry import trace

        told = dict(attributes or {})
        others = [link for link in dict.fromkeys(links) if link]
        if len(others) > MAX_LINKS:
            told[UNLINKED] = len(others) - MAX_LINKS
        begins = _unrecorded_id(parent)
        before = _begun.set(begins)
        try:
            span = self._tracer.start_span(
                name,
                _context("" if begins else parent),
                kind=trace.SpanKind[kind.upper()],
                start_time=started_ns or time.time_ns(),
                links=[_link(other) for other in others[:MAX_LINKS]],
                attributes=told,
            )
        finally:
            _begun.reset(before)
        own = span.get_span_context()
        return Span(f"00-{own.trace_id:032x}-{own.span_id:016x}-{int(own.trace_flags):02x}", span)

    def record(
        self,
        name: str,
        parent: str,
        started_ns: int,
        ended_ns: int,
        *,
        kind: Kind = "internal",
        links: Iterable[str] = (),
        attributes: Attributes | None = None,
        error: str = "",
    ) -> str:
        """A span that is over already; its traceparent."""
        if self._provider is None:
            return parent
        span = self.span(name, parent, kind=kind, started_ns=started_ns, links=links, attributes=attributes)
        span.end(ended_ns, error=error)
        return span.traceparent

    def close(self) -> None:
        """Send what is still here, within a second."""
        if self._provider is not None:
            self._provider.force_flush(FLUSH_TIMEOUT_MS)
            if self._otlp is not None:
                self._otlp.shutdown()  # ends its retries, which would hold up the provider
            self._provider.shutdown()


def unrecorded() -> str:
    """The context of something new that nobody makes a span of."""
    first, second = _random.getrandbits(64) or 1, _random.getrandbits(64)
    return f"00-{first:016x}{second:016x}-{first:016x}-01"


def _unrecorded_id(traceparent: str) -> int:
    """The trace's id where nobody has made a span of its first context; else 0."""
    match = _UNRECORDED.fullmatch(traceparent)
    return int(match[1], 16) if match is not None else 0


def trace_id(traceparent: str) -> str:
    """The trace id of a traceparent, empty where it is malformed."""
    parts = traceparent.split("-")
    return parts[1] if len(parts) == 4 and len(parts[1]) == 32 else ""


@cache
def product_version() -> str:
    try:
        return version("penstock")
    except PackageNotFoundError:  # run from a tree that is not installed
        return "0.0.0+unknown"  # of a form that NATS services take too


def resource(service: str, instance: str) -> Any:
    """What spans and metrics of this process are of."""
    from opentelemetry.sdk.resources import Resource

    told: dict[str, str | int] = {
        "service.name": service,
        "service.namespace": "penstock",
        "service.version": product_version(),
        "service.instance.id": instance or str(os.getpid()),
        "host.name": socket.gethostname(),
        "process.pid": os.getpid(),
        "process.runtime.name": sys.implementation.name,
        "process.runtime.version": ".".join(map(str, sys.version_info[:3])),
    }
    return Resource.create({**told}, SCHEMA_URL)  # $OTEL_RESOURCE_ATTRIBUTES and $OTEL_SERVICE_NAME add to it


def _link(traceparent: str) -> Any:
    from opentelemetry import trace

    return trace.Link(trace.get_current_span(_context(traceparent)).get_span_context())


def _context(traceparent: str) -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent} if traceparent else {})


def _provider(service: str, instance: str, trace_file: Path | None, exports_otlp: bool) -> tuple[Any, Any]:
    """A tracer provider, and its OTLP exporter where it has one."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class Ids(RandomIdGenerator):
        def generate_trace_id(self) -> int:
            return _begun.get() or super().generate_trace_id()

    provider = TracerProvider(resource=resource(service, instance), id_generator=Ids(), shutdown_on_exit=False)
    otlp = None
    if exports_otlp:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        otlp = OTLPSpanExporter(timeout=5)
        provider.add_span_processor(BatchSpanProcessor(otlp))
    if trace_file is not None:
        provider.add_span_processor(BatchSpanProcessor(_file_exporter(trace_file), schedule_delay_millis=500))
    return provider, otlp


def _file_exporter(path: Path) -> Any:
    """Appends OTLP JSON lines. Several processes may write one file: each line is one write."""
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    try:
        file = path.open("ab", buffering=0)
    except OSError as error:
        raise UserError(f"cannot write the trace to {path}: {error.strerror}") from error

    class FileExporter(SpanExporter):
        def export(self, spans: Sequence[Any]) -> Any:
            file.write(msgspec.json.encode(_otlp(spans)) + b"\n")
            return SpanExportResult.SUCCESS

        def shutdown(self) -> None:
            file.close()

    return FileExporter()


def _otlp(spans: Sequence[Any]) -> dict[str, Any]:
    """Spans of one process as an OTLP ExportTraceServiceRequest in its JSON form (ids in hex, 64-bit integers as
    strings). Source: OpenTelemetry Protocol 1.x, "JSON Protobuf Encoding"."""
    scope = {"name": SCOPE, "version": product_version()}
    scope_spans = [{"scope": scope, "spans": [_otlp_span(span) for span in spans], "schemaUrl": SCHEMA_URL}]
    of = {"attributes": _otlp_attributes(spans[0].resource.attributes)} if spans else {}
    return {"resourceSpans": [{"resource": of, "scopeSpans": scope_spans, "schemaUrl": SCHEMA_URL}]}


def _otlp_span(span: Any) -> dict[str, Any]:
    context = span.context
    return {
        "traceId": f"{context.trace_id:032x}",
        "spanId": f"{context.span_id:016x}",
        "parentSpanId": f"{span.parent.span_id:016x}" if span.parent else "",
        "name": span.name,
        "kind": span.kind.value + 1,  # OTLP begins with UNSPECIFIED
        "startTimeUnixNano": str(span.start_time),
        "endTimeUnixNano": str(span.end_time),
        "attributes": _otlp_attributes(span.attributes or {}),
        "links": [
            {
                "traceId": f"{link.context.trace_id:032x}",
                "spanId": f"{link.context.span_id:016x}",
                "attributes": _otlp_attributes(link.attributes or {}),
            }
            for link in span.links
        ],
        "status": _otlp_status(span.status),
    }


def _otlp_status(status: Any) -> dict[str, Any]:
    said = {"message": status.description} if status.description else {}
    return {"code": status.status_code.value, **said} if status.status_code.value else {}


def _otlp_attributes(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _otlp_value(value)} for key, value in attributes.items()]


def _otlp_value(value: Any) -> dict[str, Any]:
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
    return {"stringValue": str(value)}


def configure_logging_once(level: str = "warning") -> None:
    """For those who use Penstock as a library: quiet, unless they have set up structlog themselves."""
    if not structlog.is_configured():
        configure_logging(level)


def configure_logging(level: str = "warning") -> None:
    """structlog to stderr: lines for people on a terminal, JSON elsewhere, each with its trace id."""
    people = sys.stderr.isatty()
    renderer: Any = structlog.dev.ConsoleRenderer() if people else structlog.processors.JSONRenderer()
    levels = {"debug": 10, "info": 20, "warning": 30, "error": 40}
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if people else [structlog.processors.format_exc_info]),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(levels.get(level.lower(), 30)),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
