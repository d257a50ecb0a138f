"""The server's clock, as this process knows it.

Records carry the time at which the server stored them. To say how late something is, that has to be compared with now
*by the same clock*, and machines' clocks differ, by seconds where nobody keeps them. JetStream says what time it is in
the `ts` of its answers (`STREAM.INFO.<stream>`). A request that left at a and was answered at b, by the local clock,
with the server's time ts in between, gives

    offset = ts - (a + b) / 2,   error <= (b - a) / 2

and of a few samples the one with the shortest round trip is the best. Source: Cristian, "Probabilistic clock
synchronization", 1989. Round trips are measured by a monotonic clock, so that one that is set meanwhile does no harm.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import anyio
import msgspec
import nats.errors
import structlog

from streams.decoding import from_json
from streams.errors import Malformed
from streams.wire.jetstream import unix_ns
from streams.wire.link import REQUEST_TIMEOUT_S, RETRIED, Link

log = structlog.get_logger(__name__)

EVERY_S = 30.0
RETRY_S = 1.0  # until the first estimate
NUM_SAMPLES = 5


class Sample(NamedTuple):
    """One request: how long it took, when it was answered by the local clock, and the server's time in its answer."""

    round_trip_ns: int
    answered_ns: int
    server_ns: int

    @property
    def offset_ns(self) -> int:
        return self.server_ns - (self.answered_ns - self.round_trip_ns // 2)


class _Said(msgspec.Struct):
    ts: str


def best(samples: Iterable[Sample]) -> Sample | None:
    """The one with the shortest round trip; None of none. Pure."""
    return min(samples, key=lambda sample: sample.round_trip_ns, default=None)


class ServerClock:
    """What time it is at the server. Before the first estimate, what time it is here, with no known error."""

    def __init__(self, link: Link, stream: str, *, local_ns: Callable[[], int] = time.time_ns) -> None:
        """`stream` is any JetStream stream that is there; `local_ns` is this process's Unix time."""
        self.offset_ns = 0
        self.error_ns: int | None = None
        self._link = link
        self._subject = f"$JS.API.STREAM.INFO.{stream}"
        self._local_ns = local_ns
        self._again = anyio.Event()
        self._estimated_s = 0.0

    def now_ns(self) -> int:
        """Unix time by the server's clock."""
        return self._local_ns() + self.offset_ns

    async def estimate_now_and_then(self) -> None:
        """Estimate where that was not done in the last EVERY_S: for those who run nothing beside."""
        if self.error_ns is None or time.monotonic() - self._estimated_s > EVERY_S:
            await self.estimate()

    async def estimate(self) -> bool:
        """Ask the server a few times; False where it does not say."""
        samples = []
        for _ in range(NUM_SAMPLES):
            try:
                samples.append(await self._sample())
            except (*RETRIED, nats.errors.Error, OSError, Malformed) as error:
                log.debug("no_time_of_the_server", error=str(error))
        found = best(samples)
        if found is None:
            return False
        self._estimated_s = time.monotonic()
        self.offset_ns, self.error_ns = found.offset_ns, found.round_trip_ns // 2
        return True

    async def run(self) -> None:
        """Until canceled: estimate at once, every EVERY_S and after each reconnection, for then it may be another
        server."""
        forget = self._link.on_reconnect(lambda: self._again.set())
        try:
            while True:
                self._again = anyio.Event()
                is_known = await self.estimate() or self.error_ns is not None
                with anyio.move_on_after(EVERY_S if is_known else RETRY_S):
                    await self._again.wait()
        finally:
            forget()

    async def _sample(self) -> Sample:
        began_ns = time.perf_counter_ns()
        reply: Any = await self._link.client.request(self._subject, timeout=REQUEST_TIMEOUT_S)
        round_trip_ns = time.perf_counter_ns() - began_ns
        answered_ns = self._local_ns()
        return Sample(round_trip_ns, answered_ns, unix_ns(from_json(reply.data, _Said).ts))
