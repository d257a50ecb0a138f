"""What the workers say of themselves, as a node hears it: the last word of each, for as long as it goes on speaking."""

from collections.abc import Callable
from time import monotonic
from typing import Any

import anyio
import structlog

from engine.decide.signals import WorkerSignals
from streams import subjects
from streams.decoding import from_json, shown
from streams.errors import Malformed
from streams.wire.link import Link

log = structlog.get_logger(__name__)

SILENCE_S = 5.0  # after which a worker is forgotten
MAX_WORKERS = 10_000


class WorkersHeard:
    """Made for one node."""

    def __init__(self, link: Link, now_s: Callable[[], float] = monotonic) -> None:
        self._link = link
        self._now_s = now_s
        self._last: dict[str, tuple[float, WorkerSignals]] = {}
        self._said = ""

    async def run(self) -> None:
        """Until canceled."""
        watch = await self._link.subscribe(subjects.signals("*"), self._on_message)
        try:
            await anyio.sleep_forever()
        finally:
            await self._link.unsubscribe(watch)

    @property
    def now(self) -> list[WorkerSignals]:
        """What each worker said last, by name."""
        self._forget()
        return [signals for _, (_, signals) in sorted(self._last.items())]

    def within(self, seconds: float) -> list[WorkerSignals]:
        """What each worker said last that has said something since so long ago."""
        self._forget()
        since_s = self._now_s() - seconds
        return [signals for _, (heard_s, signals) in sorted(self._last.items()) if heard_s > since_s]

    async def _on_message(self, message: Any) -> None:
        self.hear(message.subject.rpartition(".")[2], message.data)

    def hear(self, worker: str, data: bytes) -> None:
        """Anybody can say anything here; what is no worker's is passed over."""
        try:
            signals = from_json(data, WorkerSignals)
            if signals.worker != worker:
                raise Malformed(f"it calls itself {shown(signals.worker)}")
        except Malformed as error:
            if str(error) != self._said:
                log.warning("not_heard", worker=worker, error=str(error))
                self._said = str(error)
            return
        if worker not in self._last and len(self._last) >= MAX_WORKERS:
            self._forget()
        if worker in self._last or len(self._last) < MAX_WORKERS:
            self._last[worker] = self._now_s(), signals

    def _forget(self) -> None:
        since_s = self._now_s() - SILENCE_S
        self._last = {worker: kept for worker, kept in self._last.items() if kept[0] > since_s}
