"""Signals as metrics: what each metric is now. Pure; both ways out, OTLP and Prometheus, go by it."""

from collections.abc import Iterator
from typing import NamedTuple

from engine.decide.signals import PoolSignals, StreamSignals, WorkerSignals
from engine.run import conventions as names


class Sample(NamedTuple):
    metric: names.Metric
    value: float
    attributes: dict[str, str]


def samples(signals: WorkerSignals) -> Iterator[Sample]:
    """What a worker says, but for how long batches took. What is not known is left out."""
    yield Sample(names.FRAMES, signals.frame_bytes, {})
    yield Sample(names.MAX_FRAMES, signals.max_frame_bytes, {})
    for path, num in sorted(signals.decoded_by.items()):
        yield Sample(names.DECODED, num, {names.DECODE_PATH: path})
    yield Sample(names.DECODE_TIME, signals.decode_s, {})
    yield Sample(names.ACKS, signals.acks_pending, {})
    for pool in signals.pools:
        yield from _of_pool(pool)
    for stream in signals.streams:
        yield from _of_stream(stream)


def _of_pool(pool: PoolSignals) -> Iterator[Sample]:
    told = {names.POOL: pool.pool}
    yield Sample(names.WAITING, pool.num_waiting, told)
    yield Sample(names.PATIENT, pool.num_patient, told)
    yield Sample(names.AHEAD, pool.num_ahead, told)
    yield Sample(names.IN_SERVICE, pool.num_in_service, told)
    yield Sample(names.IN_FLIGHT, pool.num_in_flight, told)
    yield Sample(names.MAX_IN_FLIGHT, pool.max_in_flight, told)
    yield Sample(names.INSTANCES, pool.num_instances, told)
    if pool.queue_wait_s is not None:
        yield Sample(names.QUEUE_WAIT, pool.queue_wait_s, told)
    yield Sample(names.ARRIVED, pool.num_arrived, told)
    yield Sample(names.DONE, pool.num_done, told)
    yield Sample(names.FAILED, pool.num_failed, told)
    yield Sample(names.LATE, pool.num_late, told)
    yield Sample(names.HELD_BACK, pool.num_held_back, told)


def _of_stream(stream: StreamSignals) -> Iterator[Sample]:
    told = {names.STREAM: stream.stream}
    if stream.num_waiting is not None:
        yield Sample(names.PENDING, stream.num_waiting, told)
    yield Sample(names.TAKEN, stream.num_in_service, told)
    if stream.lag_s is not None:
        yield Sample(names.LAG, stream.lag_s, told)
    yield Sample(names.STREAM_FRAMES, stream.frame_bytes, told)
    yield Sample(names.SHELF, stream.cache_bytes, told)
    yield Sample(names.STORED, stream.num_stored, told)
    for cause, num in sorted(stream.gaps.items()):
        yield Sample(names.GAPS, num, {**told, names.GAP: cause})
