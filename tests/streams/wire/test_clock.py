"""The server's clock: by rule, and against a real server with a local clock that is off."""

import os
import signal
import time
from pathlib import Path

import anyio
import pytest
from conftest import Eventually
from hypothesis import given
from hypothesis import strategies as st

from streams.wire import clock as clock_module
from streams.wire.clock import Sample, ServerClock, best
from streams.wire.ledger import open_ledger
from streams.wire.link import connect
from streams.wire.retention import RESULTS
from streams.wire.server import embedded
from streams.wire.store import status

SECOND_NS = 10**9
TRIPS = st.tuples(st.integers(0, SECOND_NS), st.integers(0, SECOND_NS), st.integers(-(10**12), 10**12))


@given(TRIPS, st.integers(0, 2 * 10**18))
def test_the_offset_is_within_half_a_round_trip(trip: tuple[int, int, int], left_ns: int) -> None:
    """Whatever the way there and the way back take, and by how much the clocks differ."""
    there_ns, back_ns, differ_ns = trip
    sample = Sample(there_ns + back_ns, left_ns + there_ns + back_ns, left_ns + there_ns + differ_ns)
    assert abs(sample.offset_ns - differ_ns) <= (there_ns + back_ns) // 2 + 1


def test_the_shortest_round_trip_is_the_best() -> None:
    samples = [Sample(30, 100, 200), Sample(10, 100, 300), Sample(20, 100, 400)]
    assert best(samples) == samples[1]
    assert best([]) is None


@pytest.mark.anyio
@pytest.mark.parametrize("off_ns", [60 * SECOND_NS, -60 * SECOND_NS, 0])
async def test_a_local_clock_that_is_off_is_set_right(nats_url: str, off_ns: int) -> None:
    async with connect(nats_url) as link:
        await open_ledger(link)
        clock = ServerClock(link, RESULTS, local_ns=lambda: time.time_ns() + off_ns)
        assert (clock.offset_ns, clock.error_ns) == (0, None)
        assert abs(clock.now_ns() - time.time_ns() - off_ns) < SECOND_NS
        assert await clock.estimate()
        assert clock.error_ns is not None
        assert 0 < clock.error_ns < SECOND_NS
        assert abs(clock.offset_ns + off_ns) <= clock.error_ns + 10**6  # the server is on this machine
        assert abs(clock.now_ns() - time.time_ns()) <= clock.error_ns + 10**7


@pytest.mark.anyio
async def test_where_the_server_says_nothing_it_stays_unknown(nats_url: str) -> None:
    async with connect(nats_url) as link:
        clock = ServerClock(link, "NOWHERE")
        assert not await clock.estimate()
        assert (clock.offset_ns, clock.error_ns) == (0, None)


@pytest.mark.anyio
async def test_it_is_estimated_again_from_time_to_time_and_after_reconnections(
    tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    off_ns = 60 * SECOND_NS

    def local_ns() -> int:
        return time.time_ns() + off_ns

    async with embedded(tmp_path) as url, connect(url) as link, anyio.create_task_group() as tasks:
        clock = ServerClock(link, RESULTS, local_ns=local_ns)
        monkeypatch.setattr(clock_module, "RETRY_S", 0.05)
        tasks.start_soon(clock.run)
        await open_ledger(link)  # the stream it asks of comes later
        await eventually(lambda: abs(clock.offset_ns + 60 * SECOND_NS) < SECOND_NS)
        off_ns = 5 * SECOND_NS  # somebody sets this machine's clock
        os.kill(status(tmp_path)["pid"], signal.SIGKILL)
        await eventually(lambda: abs(clock.offset_ns + 5 * SECOND_NS) < SECOND_NS)
        off_ns = 7 * SECOND_NS
        monkeypatch.setattr(clock_module, "EVERY_S", 0.05)
        clock._again.set()
        await eventually(lambda: abs(clock.offset_ns + 7 * SECOND_NS) < SECOND_NS)
        off_ns = 9 * SECOND_NS
        await eventually(lambda: abs(clock.offset_ns + 9 * SECOND_NS) < SECOND_NS)
        tasks.cancel_scope.cancel()
