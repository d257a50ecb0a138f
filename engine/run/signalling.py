"""Signalling: what a worker knows of itself, said every second, to whoever listens and as OpenTelemetry metrics.

Delivery guarantee: none. Signals go by core NATS, and the next ones say all that those before them said.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import anyio
import msgspec
import structlog

from engine.decide.signals import SERVICE_BOUNDS_S, StreamSignals, WorkerSignals
from engine.run import conventions as names
from engine.run import measures
from engine.run.group import Group
from engine.run.telemetry import product_version, resource
from streams import subjects
from streams.errors import LinkError
from streams.wire.link import Link

log = structlog.get_logger(__name__)

SAY_S = 1.0
OTLP_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
EXPORT_S = 1.0  # for one attempt, and so at most for the last one


class Meters:
    """The signals as metrics for a collector. Without a provider it keeps nothing."""

    def __init__(self, provider: Any = None) -> None:
        self._provider = provider
        self._signals: WorkerSignals | None = None
        if provider is None:
            return
        meter = provider.get_meter(names.SCOPE, product_version(), schema_url=names.SCHEMA_URL)
        duration = names.PROCESS_DURATION
        self._duration = meter.create_histogram(
            duration.name, duration.unit, duration.about, explicit_bucket_boundaries_advisory=SERVICE_BOUNDS_S
        )
        for metric in names.METRICS:
            if metric is duration:
                continue
            make = meter.create_observable_gauge if metric.kind == "gauge" else meter.create_observable_counter
            make(metric.name, [partial(self._observed, metric)], metric.unit, metric.about)

    @staticmethod
    def of(service: str, instance: str) -> "Meters":
        """Those that the standard OTEL_* variables ask for."""
        env = os.environ
        is_off = env.get("OTEL_SDK_DISABLED", "").lower() == "true" or env.get("OTEL_METRICS_EXPORTER", "") == "none"
        if is_off or not any(env.get(name) for name in OTLP_ENDPOINTS):
            return Meters()
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

        reader = PeriodicExportingMetricReader(OTLPMetricExporter(timeout=EXPORT_S))
        return Meters(MeterProvider([reader], resource(service, instance), shutdown_on_exit=False))

    def see(self, signals: WorkerSignals) -> None:
        """What is exported from now on."""
        self._signals = signals

    def served(self, pool: str, batch_size: int, service_s: float) -> None:
        """A batch was computed."""
        if self._provider is not None:
            told = {
                names.SYSTEM: names.NATS,
                names.OPERATION: "process",
                names.POOL: pool,
                names.BATCH_SIZE: batch_size,
            }
            self._duration.record(service_s, told)

    def close(self) -> None:
        """Send what is still here."""
        if self._provider is not None:
            self._provider.shutdown()

    def _observed(self, metric: names.Metric, options: Any) -> Iterable[Any]:
        """In a thread of the SDK's: it sees only values."""
        from opentelemetry.metrics import Observation

        signals = self._signals
        if signals is None:
            return []
        return [
            Observation(sample.value, sample.attributes)
            for sample in measures.samples(signals)
            if sample.metric is metric
        ]


def stream_signals(
    stream: str, groups: Sequence[Group], segment_s: dict[str, float], *, frame_bytes: int, cache_bytes: int
) -> StreamSignals:
    """What is known of a stream, by its groups."""
    slacks = [group.slack_s for group in groups if group.slack_s]
    pending = [group.num_pending for group in groups if group.num_pending is not None]
    lags = [group.lag_s for group in groups if group.lag_s is not None]
    gaps: Counter[str] = Counter()
    for group in groups:
        gaps.update(group.storing.gaps)
    return StreamSignals(
        stream=stream,
        num_waiting=max(pending) if pending else None,
        num_in_service=sum(group.num_taken for group in groups),
        num_stored=sum(group.storing.num_stored for group in groups),
        gaps=dict(gaps),
        lag_s=max(lags) if lags else None,
        frame_bytes=frame_bytes,
        cache_bytes=cache_bytes,
        slack_s=min(slacks) if slacks else None,
        segment_s=segment_s,
    )


async def say_signals(link: Link, sample: Callable[[], WorkerSignals], meters: Meters) -> None:
    """Until canceled. What is too large to be said is said without its streams."""
    while True:
        signals = sample()
        meters.see(signals)
        data = msgspec.json.encode(signals)
        if len(data) > link.max_payload_bytes:
            data = msgspec.json.encode(msgspec.structs.replace(signals, streams=()))
        try:
            await link.publish(subjects.signals(signals.worker), data)
        except LinkError as error:
            log.debug("signals_not_sent", error=str(error))
        await anyio.sleep(SAY_S)
