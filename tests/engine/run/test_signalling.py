"""Signals as OpenTelemetry metrics: the same values, under the conventions' names, and none where nobody asked."""

from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from engine.decide.signals import SERVICE_BOUNDS_S, PoolSignals, StreamSignals, WorkerSignals
from engine.run import conventions as names
from engine.run.measures import samples
from engine.run.signalling import OTLP_ENDPOINTS, Meters
from engine.run.tally import MAX_BATCH_SIZES, ServiceTimes

POOL = PoolSignals(
    pool="read/loop/small",
    runs_in="loop",
    device="cpu",
    max_batch=8,
    num_waiting=3,
    num_in_service=2,
    num_in_flight=1,
    max_in_flight=1,
    num_instances=1,
    queue_wait_s=0.25,
    num_arrived=9,
    num_done=4,
)
SIGNALS = WorkerSignals(
    worker="w",
    node="n",
    at_ns=1,
    pools=(POOL,),
    streams=(StreamSignals(stream="s", num_waiting=5, gaps={"late": 2}, lag_s=0.5, frame_bytes=7),),
    frame_bytes=7,
)


def read(reader: InMemoryMetricReader) -> dict[str, Any]:
    data = reader.get_metrics_data()
    assert data is not None
    (resource,) = data.resource_metrics
    (scope,) = resource.scope_metrics
    assert scope.schema_url == names.SCHEMA_URL
    return {metric.name: metric for metric in scope.metrics}


def test_signals_are_exported_under_their_names() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    meters = Meters(provider)
    meters.see(SIGNALS)
    meters.served("read/loop/small", 4, 0.03)
    found = read(reader)
    meters.close()
    duration = found.pop("messaging.process.duration")
    (point,) = duration.data.data_points
    assert (duration.unit, point.count, point.sum, point.explicit_bounds) == ("s", 1, 0.03, SERVICE_BOUNDS_S)
    assert dict(point.attributes)[names.BATCH_SIZE] == 4
    told = {
        (name, tuple(sorted(point.attributes.items()))): point.value
        for name, metric in found.items()
        for point in metric.data.data_points
    }
    assert told == {(each.metric.name, tuple(sorted(each.attributes.items()))): each.value for each in samples(SIGNALS)}
    assert found.keys() >= {"penstock.pool.waiting", "penstock.pool.in_service", "penstock.stream.lag"}
    assert found["penstock.pool.arrived"].data.is_monotonic


def test_without_a_collector_nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OTLP_ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    meters = Meters.of("penstock-worker", "w")
    meters.see(SIGNALS)
    meters.served("p", 1, 0.1)
    meters.close()
    monkeypatch.setenv(OTLP_ENDPOINTS[0], "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    assert Meters.of("penstock-worker", "w")._provider is None


def test_service_times_are_told_apart_by_batch_size() -> None:
    times = ServiceTimes()
    for size, service_s in [(2, 0.005), (1, 0.3), (1, 0.1), (1, 99.0)]:
        times.note(size, service_s)
    one, two = times.so_far()
    assert (one.batch_size, one.num, one.max_s) == (1, 3, 99.0)
    assert one.mean_s == pytest.approx(99.4 / 3)
    assert one.num_within == (0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 2)
    assert (two.batch_size, two.num_within) == (2, (1,) * len(SERVICE_BOUNDS_S))
    for size in range(3, 2 * MAX_BATCH_SIZES):
        times.note(size, 1.0)
    assert len(times.so_far()) == MAX_BATCH_SIZES
