"""What the workers say of themselves, in the form that Prometheus reads.

Names are those of OpenTelemetry as its Prometheus exporters write them: dots become underscores, the unit a suffix.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from engine.decide.signals import SERVICE_BOUNDS_S, WorkerSignals
from engine.decide.watching import SourceState, State
from engine.run import conventions as names
from engine.run import measures
from operators.language.served import ServedState

MEDIA_TYPE = "text/plain; version=0.0.4"  # a charset is added to it
SUFFIXES = {"s": "_seconds", "By": "_bytes"}
OF_ALL = ("node", "worker")


def exposition(
    workers: Sequence[WorkerSignals],
    sources: Sequence[SourceState] = (),
    models: Iterable[ServedState] = (),
    wanted: Mapping[str, int] | None = None,
) -> bytes:
    """All of it, as text. `wanted`: how many workers there are to be, by resource."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(workers, sources, list(models), wanted or {}))
    return generate_latest(registry)


def name_of(metric: names.Metric) -> str:
    return metric.name.replace(".", "_") + SUFFIXES.get(metric.unit, "")


def label_of(attribute: str) -> str:
    return attribute.removeprefix("penstock.").replace(".", "_")


class _Collector:
    """Made for one look at it."""

    def __init__(
        self,
        workers: Sequence[WorkerSignals],
        sources: Sequence[SourceState],
        models: Sequence[ServedState],
        wanted: Mapping[str, int],
    ) -> None:
        self._wanted = wanted
        self._workers = workers
        self._sources = sources
        self._models = models

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        heard = GaugeMetricFamily("penstock_workers", "Workers that this node hears")
        heard.add_metric([], len(self._workers))
        yield heard
        about = "Workers there are to be for what comes for a resource, of all nodes together"
        wanted = GaugeMetricFamily("penstock_wanted_workers", about, labels=["resource"])
        for resource, num in sorted(self._wanted.items()):
            wanted.add_metric([resource], num)
        yield wanted
        found: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for worker in self._workers:
            for metric, value, attributes in measures.samples(worker):
                if metric.name not in found:
                    kind = GaugeMetricFamily if metric.kind == "gauge" else CounterMetricFamily
                    labels = [*OF_ALL, *map(label_of, attributes)]
                    found[metric.name] = kind(name_of(metric), metric.about, labels=labels)
                found[metric.name].add_metric([worker.node, worker.worker, *attributes.values()], value)
        yield from found.values()
        yield self._durations()
        yield from self._states()
        if self._models:
            yield from self._served()

    def _served(self) -> Iterator[Metric]:
        """The language models that the node serves, and how busy their servers say they are."""
        up = GaugeMetricFamily("penstock_model_up", "1 where a model's server is up", labels=["model"])
        asked = GaugeMetricFamily(
            "penstock_model_requests", "Requests that a model's server has", labels=["model", "state"]
        )
        used = GaugeMetricFamily("penstock_model_cache_used", "Share of its memory for these", labels=["model"])
        for served in self._models:
            up.add_metric([served.model], float(served.state == "up"))
            for state, num in (("running", served.load.num_running), ("waiting", served.load.num_waiting)):
                if num is not None:
                    asked.add_metric([served.model, state], num)
            if served.load.cache_used is not None:
                used.add_metric([served.model], served.load.cache_used)
        yield from (up, asked, used)

    def _states(self) -> Iterator[Metric]:
        """One sample for each state that a source can be in, of which one is 1."""
        state = GaugeMetricFamily(name_of(names.SOURCE_STATE), names.SOURCE_STATE.about, labels=["stream", "state"])
        since = GaugeMetricFamily(name_of(names.SOURCE_SINCE), names.SOURCE_SINCE.about, labels=["stream"])
        for source in self._sources:
            for each in get_args(State):
                state.add_metric([source.stream, each], float(each == source.state))
            since.add_metric([source.stream], source.since_ns / 1e9)
        yield state
        yield since

    def _durations(self) -> Metric:
        metric = names.PROCESS_DURATION
        labels = [*OF_ALL, label_of(names.POOL), label_of(names.BATCH_SIZE)]
        family = HistogramMetricFamily(name_of(metric), metric.about, labels=labels)
        for worker in self._workers:
            for pool in worker.pools:
                for took in pool.service_times:
                    buckets = [(str(bound), num) for bound, num in zip(SERVICE_BOUNDS_S, took.num_within, strict=False)]
                    of = [worker.node, worker.worker, pool.pool, str(took.batch_size)]
                    family.add_metric(of, [*buckets, ("+Inf", took.num)], took.mean_s * took.num)
        return family
