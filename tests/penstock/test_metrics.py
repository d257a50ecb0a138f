"""Signals over HTTP: what workers say, as JSON and as Prometheus reads it; and what is nobody's."""

from typing import Any

import anyio
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sites import EACH, site

from engine.decide.signals import SERVICE_BOUNDS_S, PoolSignals, ServiceTime, StreamSignals, WorkerSignals
from engine.decide.watching import SourceState
from engine.node.workers_heard import SILENCE_S, WorkersHeard
from operators.language.served import Load, ServedState
from penstock.http.metrics import exposition

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Samples:
    """Samples by name and labels, as Prometheus' own parser has them."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, frozenset(labels.items())))


def assert_told(samples: Samples, worker: WorkerSignals) -> None:
    """All that a worker says stands in the metrics."""
    of = {"node": worker.node, "worker": worker.worker}
    assert value(samples, "penstock_frames_usage_bytes", **of) == worker.frame_bytes
    assert value(samples, "penstock_acks_pending", **of) == worker.acks_pending
    for pool in worker.pools:
        of_it = {**of, "pool": pool.pool}
        assert value(samples, "penstock_pool_waiting", **of_it) == pool.num_waiting
        assert value(samples, "penstock_pool_ahead", **of_it) == pool.num_ahead
        assert value(samples, "penstock_pool_in_service", **of_it) == pool.num_in_service
        assert value(samples, "penstock_pool_in_flight", **of_it) == pool.num_in_flight
        assert value(samples, "penstock_pool_queue_wait_seconds", **of_it) == pool.queue_wait_s
        assert value(samples, "penstock_pool_arrived_total", **of_it) == pool.num_arrived
        assert value(samples, "penstock_pool_done_total", **of_it) == pool.num_done
        assert value(samples, "penstock_pool_failed_total", **of_it) == pool.num_failed
        for took in pool.service_times:
            name, by_size = (
                "messaging_process_duration_seconds",
                {"messaging_batch_message_count": str(took.batch_size)},
            )
            assert value(samples, f"{name}_count", **of_it, **by_size) == took.num
            assert value(samples, f"{name}_sum", **of_it, **by_size) == pytest.approx(took.mean_s * took.num)
            for bound, num in zip(SERVICE_BOUNDS_S, took.num_within, strict=True):
                assert value(samples, f"{name}_bucket", **of_it, **by_size, le=str(bound)) == num
    for stream in worker.streams:
        of_it = {**of, "stream": stream.stream}
        assert value(samples, "penstock_stream_waiting", **of_it) == stream.num_waiting
        assert value(samples, "penstock_stream_in_service", **of_it) == stream.num_in_service
        assert value(samples, "penstock_stream_lag_seconds", **of_it) == stream.lag_s
        assert value(samples, "penstock_stream_stored_total", **of_it) == stream.num_stored
        for cause, num in stream.gaps.items():
            assert value(samples, "penstock_stream_gaps_total", **of_it, gap_reason=cause) == num


@pytest.mark.anyio
async def test_a_running_node_shows_what_its_workers_do(nats_url: str) -> None:
    async with site(nats_url) as here:

        async def workers() -> list[WorkerSignals]:
            response = await here.http.get("/v1/signals")
            return msgspec.convert(response.json()["workers"], list[WorkerSignals])

        await here.publish([1])
        await here.submit(EACH, standing=True, start="0:00")
        await here.publish(range(2, 6), first=1)
        with anyio.fail_after(20):
            before: list[WorkerSignals] = []
            while [pool.num_done for worker in before for pool in worker.pools] != [5]:
                await anyio.sleep(0.05)
                before = await workers()
            while True:  # until nothing is said between the one and the other
                before = await workers()
                response = await here.http.get("/metrics")
                if before and before == await workers():
                    break
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    samples = parsed(response.text)
    (worker,) = before
    assert_told(samples, worker)
    assert value(samples, "penstock_workers") == 1
    (pool,) = worker.pools
    assert pool.pool.startswith("toy_read/")
    assert (pool.num_waiting, pool.num_in_service, pool.num_arrived) == (0, 0, 5)
    assert sum(took.num * took.batch_size for took in pool.service_times) == 5
    (stream,) = worker.streams
    assert (stream.stream, stream.num_stored, stream.gaps) == ("s", 5, {})


def full(**but: Any) -> WorkerSignals:
    took = ServiceTime(batch_size=4, num=3, mean_s=0.2, max_s=0.4, num_within=(0,) * 6 + (2,) + (3,) * 7)
    pool = PoolSignals(
        pool='a/"b"/c\\d',
        runs_in="thread",
        device="cpu",
        max_batch=4,
        num_waiting=7,
        num_ahead=5,
        num_in_service=4,
        num_in_flight=1,
        max_in_flight=2,
        num_instances=1,
        service_times=(took,),
        num_arrived=23,
        num_done=12,
        num_failed=1,
        num_late=2,
    )
    streams = (StreamSignals(stream="s", num_waiting=3, gaps={"late": 2, "dropped": 1}, lag_s=0.5),)
    fields: dict[str, Any] = {"worker": "w1", "node": "n1", "at_ns": 1, "pools": (pool,), "streams": streams} | but
    return WorkerSignals(**fields)


def test_all_that_is_known_is_told_and_what_is_not_is_left_out() -> None:
    other = full(worker="w2", streams=(StreamSignals(stream="s"),), pools=())
    samples = parsed(exposition([full(), other]).decode())
    assert_told(samples, full())
    assert_told(samples, other)
    assert value(samples, "penstock_stream_lag_seconds", node="n1", worker="w2", stream="s") is None
    assert not any(name == "penstock_pool_queue_wait_seconds" for name, _ in samples)
    assert parsed(exposition([]).decode()) == {("penstock_workers", frozenset()): 0}


def test_a_worker_that_falls_silent_is_forgotten_and_what_is_none_is_passed_over() -> None:
    now_s = [100.0]
    heard = WorkersHeard(None, lambda: now_s[0])  # type: ignore[arg-type]  # nobody listens
    heard.hear("w2", msgspec.json.encode(full(worker="w2")))
    now_s[0] += SILENCE_S / 2
    heard.hear("w1", msgspec.json.encode(full()))
    for junk in (b"", b"junk", b"{}", b"[" * 100_000, msgspec.json.encode(full(worker="another"))):
        heard.hear("w3", junk)
    assert [signals.worker for signals in heard.now] == ["w1", "w2"]
    heard.hear("w1", msgspec.json.encode(full(acks_pending=9)))
    now_s[0] += SILENCE_S / 2 + 0.1
    assert [(signals.worker, signals.acks_pending) for signals in heard.now] == [("w1", 9)]
    now_s[0] += SILENCE_S
    assert heard.now == []


def test_what_a_source_is_doing_is_one_of_its_states() -> None:
    gone = SourceState(stream="gate", state="gone", since_ns=5 * 10**9, error="no route")
    text = exposition([], [gone]).decode()
    assert 'penstock_source_state{state="gone",stream="gate"} 1.0' in text
    assert 'penstock_source_state{state="live",stream="gate"} 0.0' in text
    assert 'penstock_source_since_seconds{stream="gate"} 5.0' in text
    assert "no route" not in text


def test_models_that_the_node_serves_say_how_busy_they_are() -> None:
    busy = ServedState("m", "up", load=Load(num_running=5, num_waiting=1, cache_used=0.5))
    samples = parsed(exposition([], [], [busy, ServedState("n", "down")]).decode())
    by_model = frozenset({("model", "m")})
    assert samples["penstock_model_up", by_model] == 1
    assert samples["penstock_model_up", frozenset({("model", "n")})] == 0
    assert samples["penstock_model_requests", by_model | {("state", "running")}] == 5
    assert samples["penstock_model_requests", by_model | {("state", "waiting")}] == 1
    assert samples["penstock_model_cache_used", by_model] == 0.5
