"""Demand: what comes and waits for each resource of all workers together, from what each of them says. Pure.

Workers count what came since they began, so what came a second is a difference of two words of the same worker; what
the server holds for a stream is said by each that reads it, as of the last message that it got of it: who is idle holds
none back, so that counts for nothing, and of the others the newest word counts. A worker that has fallen silent is not
among them: whoever asks leaves out those that have gone, for others have their part.
"""

import math
from collections import deque
from collections.abc import Sequence

import msgspec

from engine.decide.fleet import Seen
from engine.decide.signals import ResourceSignals, StreamSignals, WorkerSignals

NS = 1_000_000_000
OVER_S = 20.0  # what is lost is counted over


class _Said(msgspec.Struct, frozen=True):
    """What came and was lost between the last two words of a worker: in so many seconds, of one resource."""

    seconds: float
    num: int
    work_s: float
    num_lost: int


class Lost:
    """The share of what came that was lost, over the last OVER_S."""

    def __init__(self) -> None:
        self._lately: deque[tuple[float, float, int]] = deque()  # when, s; pieces, and lost

    def share(self, now_s: float, num: float, num_lost: int) -> float:
        """With so many that came, and were lost, since it was asked last."""
        self._lately.append((now_s, num, num_lost))
        while self._lately[0][0] <= now_s - OVER_S:
            self._lately.popleft()
        came = sum(num for _, num, _ in self._lately)
        return min(1.0, sum(num for _, _, num in self._lately) / came) if came else 0.0


class Demand:
    """Of all workers. Asked once a second."""

    def __init__(self) -> None:
        self._last: dict[str, WorkerSignals] = {}
        self._rates: dict[tuple[str, str], _Said] = {}  # by worker and resource
        self._lost: dict[str, Lost] = {}  # by resource

    def seen(self, now_s: float, workers: Sequence[WorkerSignals], start_s: float) -> dict[str, Seen]:
        """By resource. `start_s`: how long a worker takes to start."""
        news = {worker.worker for worker in workers if self._note(worker)}
        here = {worker.worker for worker in workers}
        self._last = {name: said for name, said in self._last.items() if name in here}
        self._rates = {of: said for of, said in self._rates.items() if of[0] in here}
        streams = [
            stream if _is_busy(worker) else msgspec.structs.replace(stream, num_waiting=None)
            for worker in sorted(workers, key=lambda worker: worker.at_ns)
            for stream in worker.streams
        ]
        names = dict.fromkeys(each.resource for worker in workers for each in worker.resources)
        self._lost = {name: self._lost.get(name) or Lost() for name in names}
        return {name: self._of(name, now_s, workers, news, streams, start_s) for name in names}

    def _note(self, worker: WorkerSignals) -> bool:
        """Whether it has said something new."""
        before = self._last.get(worker.worker)
        self._last[worker.worker] = worker
        if before is None or worker.at_ns <= before.at_ns:
            return False
        seconds = (worker.at_ns - before.at_ns) / NS
        was = {each.resource: each for each in before.resources}
        for now in worker.resources:
            then = was.get(now.resource) or ResourceSignals(now.resource, now.num_lanes)
            self._rates[worker.worker, now.resource] = _Said(
                seconds,
                max(0, now.num_asked - then.num_asked),
                max(0.0, now.asked_s - then.asked_s),
                max(0, now.num_refused - then.num_refused),
            )
        return True

    def _of(
        self,
        name: str,
        now_s: float,
        workers: Sequence[WorkerSignals],
        news: set[str],
        streams: Sequence[StreamSignals],
        start_s: float,
    ) -> Seen:
        have = [(worker, each) for worker in workers for each in worker.resources if each.resource == name]
        own = [each for _, each in have]
        said = {worker: rate for (worker, resource), rate in self._rates.items() if resource == name}
        num = sum(rate.num / rate.seconds for rate in said.values())
        offered = sum(rate.work_s / rate.seconds for rate in said.values())
        new = [rate for worker, rate in said.items() if worker in news]
        lost = self._lost[name].share(now_s, sum(rate.num for rate in new), sum(rate.num_lost for rate in new))
        held = _held(streams, name)
        waiting = [each.waiting_s for each in own]
        items = [pool for worker in workers for pool in worker.pools]
        return Seen(
            lanes=sum(each.num_lanes for each in own) / len(own),
            ready=sum(worker.is_ready for worker, _ in have),
            offered=None if num and not offered else offered,
            num_offered=num,
            waiting_s=None if None in waiting else sum(each or 0.0 for each in waiting) + held.prompt_s,
            patient_s=sum(each.patient_s for each in own) + held.patient_s,
            num_waiting=held.num + sum(pool.num_waiting for pool in items),
            num_in_service=sum(stream.num_in_service for stream in streams),
            slack_s=min((stream.slack_s for stream in streams if stream.slack_s), default=math.inf),
            start_s=start_s,
            lost=lost,
        )


class _Held(msgspec.Struct):
    """By the server, for all groups: messages, and what they take of one resource."""

    num: int = 0
    prompt_s: float = 0.0
    patient_s: float = 0.0


def _is_busy(worker: WorkerSignals) -> bool:
    """Whether it has anything in hand, and so a reason to leave something at the server."""
    return any(pool.num_waiting or pool.num_in_service or pool.num_ahead for pool in worker.pools) or any(
        stream.num_in_service for stream in worker.streams
    )


def _held(streams: Sequence[StreamSignals], resource: str) -> _Held:
    """Of each stream what was said last, for it is one queue; what a segment takes, as whoever does most of it says."""
    by_stream: dict[str, tuple[int, float, bool]] = {}
    for stream in streams:
        num, unit_s, is_prompt = by_stream.get(stream.stream, (0, 0.0, False))
        by_stream[stream.stream] = (
            num if stream.num_waiting is None else stream.num_waiting,
            max(unit_s, stream.segment_s.get(resource, 0.0)),
            is_prompt or stream.slack_s is not None,
        )
    held = _Held()
    for num, unit_s, is_prompt in by_stream.values():
        held.num += num
        held.prompt_s += num * unit_s * is_prompt
        held.patient_s += num * unit_s * (not is_prompt)
    return held
