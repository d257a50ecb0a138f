"""Ways to form batches that others have published, to hold the engine's own against: each as its source describes it,
with the service times of the pool given where its source takes them as measured ahead (ours learns them).
Each is an `engine.simulate.pools.Batching`, or what is said of it.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from engine.decide.batcher import NEVER, Decision, Drop, Item, Run, WakeAt
from engine.decide.inflight import Limited
from engine.decide.rungs import Changed, Ladder, Rungs
from engine.decide.way import NS, Way

Mean = Callable[[int], float]  # what a batch of so many takes, s


class Fifo:
    """First come, first served, as many as wait and `most` at most; nothing is dropped. What Ray Serve does with
    `batch_wait_timeout_s` = 0, and anybody does without thinking."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.waiting: deque[Item] = deque()

    def __len__(self) -> int:
        return len(self.waiting)

    @property
    def first(self) -> Item | None:
        return self.waiting[0] if self.waiting else None

    def add(self, item: Item) -> None:
        self.waiting.append(item)

    def ended(self, items: Sequence[Item]) -> None: ...

    def took(self, batch_size: int, service_s: float) -> None: ...

    def decide(self, now_ns: int, num_free: int) -> list[Decision]:
        decisions: list[Decision] = []
        for _ in range(num_free):
            if not self.waiting:
                break
            decisions.append(self.run(min(self.most, len(self.waiting))))
        return decisions

    def run(self, num: int) -> Run:
        return Run(tuple(self.waiting.popleft() for _ in range(num)), "")


class Dropping(Fifo):
    """The same, but what is past its time to begin is dropped: what this engine did before it learned service times."""

    def decide(self, now_ns: int, num_free: int) -> list[Decision]:
        dropped: list[Decision] = [Drop(item) for item in self.waiting if 0 < item.due_ns < now_ns]
        self.waiting = deque(item for item in self.waiting if not 0 < item.due_ns < now_ns)
        decisions = dropped + super().decide(now_ns, num_free)
        due_ns = min((item.due_ns for item in self.waiting if item.due_ns), default=NEVER)
        return decisions if due_ns == NEVER else [*decisions, WakeAt(due_ns + 1)]


class Triton(Fifo):
    """NVIDIA Triton's dynamic batcher: a full batch goes at once, a smaller one when its first item has waited for
    `max_queue_delay`. Source: Triton's documentation, Dynamic Batcher."""

    def __init__(self, most: int, delay_s: float) -> None:
        super().__init__(most)
        self.delay_ns = round(delay_s * 1e9)
        self.since: deque[int] = deque()
        self.new = 0

    def add(self, item: Item) -> None:
        super().add(item)
        self.new += 1

    def decide(self, now_ns: int, num_free: int) -> list[Decision]:
        self.since.extend([now_ns] * self.new)
        self.new = 0
        decisions: list[Decision] = []
        for _ in range(num_free):
            num = min(self.most, len(self.waiting))
            if not num or (num < self.most and now_ns - self.since[0] < self.delay_ns):
                break
            for _ in range(num):
                self.since.popleft()
            decisions.append(self.run(num))
        if self.waiting and num_free > len(decisions):
            decisions.append(WakeAt(self.since[0] + self.delay_ns))
        return decisions


class Clipper(Fifo):
    """The size of batches rises by one while they are over within the time there is, and falls by a tenth where one is
    not. Source: Crankshaw et al., Clipper (NSDI 2017), 4.3.1."""

    def __init__(self, most: int, lag_s: float) -> None:
        super().__init__(most)
        self.limit = most
        self.size = 1.0
        self.lag_s = lag_s

    def took(self, batch_size: int, service_s: float) -> None:
        if service_s > self.lag_s / 2:  # one batch is waited for, on the worst day
            self.size *= 0.9
        elif batch_size >= int(self.size):
            self.size += 1
        self.size = min(max(self.size, 1.0), self.limit)
        self.most = int(self.size)


class Nexus(Fifo):
    """A size is planned of which two batches are over within the time there is; what would make a batch smaller is
    dropped. Source: Shen et al., Nexus (SOSP 2019), 4.1 and 6.3 (early drop)."""

    def __init__(self, most: int, mean_s: Mean, lag_s: float) -> None:
        sizes = [size for size in range(1, most + 1) if 2 * mean_s(size) <= lag_s]
        super().__init__(max(sizes, default=1))
        self.mean_s = mean_s

    def fits(self, item: Item, size: int, now_ns: int) -> bool:
        return not item.done_ns or now_ns + self.mean_s(size) * 1e9 <= item.done_ns

    def decide(self, now_ns: int, num_free: int) -> list[Decision]:
        decisions: list[Decision] = []
        for _ in range(num_free):
            while self.waiting:
                first = self.waiting[0]
                if self.fits(first, min(self.most, len(self.waiting)), now_ns):
                    break
                decisions.append(Drop(self.waiting.popleft()))
            if not self.waiting:
                break
            decisions.append(self.run(min(self.most, len(self.waiting))))
        return decisions


class Symphony(Nexus):
    """A batch is put off until it could not grow any more and be in time: until its first item's time, less what one
    more would take. Source: Chen et al., Symphony, arXiv 2308.07470, 4 (deferred batch scheduling)."""

    def decide(self, now_ns: int, num_free: int) -> list[Decision]:
        decisions: list[Decision] = []
        for _ in range(num_free):
            while self.waiting and not self.fits(self.waiting[0], min(self.most, len(self.waiting)), now_ns):
                decisions.append(Drop(self.waiting.popleft()))
            if not self.waiting:
                break
            num = self.largest(now_ns)
            last_ns = self.waiting[0].done_ns - round(self.mean_s(num + 1) * 1e9)
            if num < self.most and now_ns < last_ns:
                decisions.append(WakeAt(last_ns))
                break
            decisions.append(self.run(num))
        return decisions

    def largest(self, now_ns: int) -> int:
        first = self.waiting[0]
        sizes = range(1, min(self.most, len(self.waiting)) + 1)
        return max((size for size in sizes if self.fits(first, size, now_ns)), default=1)


class Board:
    """What the pools of a graph know of each other: how long items lately waited in each, and which come behind it."""

    def __init__(self, behind: Mapping[str, Sequence[str]]) -> None:
        self.behind = behind
        self.waits_s: dict[str, float] = {}

    def ahead_s(self, pool: str) -> float:
        """What is waited for behind a pool, on the way on which that is longest."""
        return max(
            (self.waits_s.get(each, 0.0) + self.ahead_s(each) for each in self.behind.get(pool, ())), default=0.0
        )


class Pard(Nexus):
    """What would be late at the end is dropped at once: by what it has been, a batch here, and, of the stages behind,
    what items lately waited there and half a batch to form one. Of the others those with the least time left go first
    where less comes than can be done, and those with the most where more does. Source: Zhao et al., PARD, arXiv
    2602.08747, 4 (proactive dropping by the state on both sides; requests by their budget and the workload), in which a
    module has its own devices, and execution times are profiled ahead."""

    def __init__(self, most: int, mean_s: Mean, lag_s: float, board: Board, name: str, num_lanes: int) -> None:
        super().__init__(most, mean_s, lag_s)
        self.board, self.name = board, name
        self.per_s = num_lanes * self.most / mean_s(self.most)
        self.since: dict[int, int] = {}
        self.came: deque[int] = deque(maxlen=64)

    def decide(self, now_ns: int, num_free: int) -> list[Decision]:
        for item in self.waiting:
            if item.id not in self.since:
                self.since[item.id] = now_ns
                self.came.append(now_ns)
        until_ns = now_ns + round((self.mean_s(self.most) + self.board.ahead_s(self.name)) * 1e9)
        decisions: list[Decision] = [Drop(item) for item in self.waiting if item.done_ns and until_ns > item.done_ns]
        self.waiting = deque(item for item in self.waiting if not (item.done_ns and until_ns > item.done_ns))
        if num_free and len(self.waiting) > self.most:
            seconds = (self.came[-1] - self.came[0]) / 1e9
            is_too_much = len(self.came) > 1 and len(self.came) > self.per_s * seconds
            self.waiting = deque(sorted(self.waiting, key=lambda item: item.done_ns, reverse=is_too_much))
        for _ in range(num_free):
            if not self.waiting:
                break
            run = self.run(min(self.most, len(self.waiting)))
            for item in run.items:
                waited_s = (now_ns - self.since[item.id]) / 1e9
                before_s = self.board.waits_s.get(self.name, 0.0)
                self.board.waits_s[self.name] = before_s + (waited_s + self.mean_s(1) / 2 - before_s) / 20
            decisions.append(run)
        for decision in decisions:
            for item in [decision.item] if isinstance(decision, Drop) else getattr(decision, "items", ()):
                self.since.pop(item.id, None)
        return decisions


class Once(Rungs):
    """The engine's, but that a segment keeps its rungs through all its stages."""

    chooses_again = False


class Thresholds(Rungs):
    """A rung down where the queue is longer than what the latency allows on this one, a rung up where it is shorter
    than what the upper one would allow, and `patience_s` have passed; what comes is not looked at. Source: Elastico's
    thresholds of queue depth with hysteresis (Compass, arXiv 2603.20821)."""

    patience_s = 5.0
    chooses_again = False

    def choose(
        self,
        ladder: Ladder,
        left_s: float,
        now_ns: int,
        predict: Callable[[Way], tuple[float, str]],
        carries: Callable[[Way], bool],
    ) -> list[Changed]:
        took_s, resource = predict(ladder.way(self.now))
        if took_s > left_s:
            stage = ladder.step_down(self.now, resource, ladder.stages)
            return [] if stage is None else [self._down(stage, now_ns, "the queue")]
        if not self._steps or now_ns < self._changed_ns + self.patience_s * NS:
            return []
        if predict(ladder.way(self._above()))[0] > left_s:
            return []
        return [self._up(now_ns, "the queue")]


# --- how many in flight: each is an `engine.simulate.pools.Limiting` ------------------------------------------


class Fixed:
    """As many as its owner says."""

    def __init__(self, limit: float) -> None:
        self.size = limit
        self.num_changes = 0

    @property
    def limit(self) -> int:
        return max(1, int(self.size))

    def began(self, num_waiting: int, has_time_s: float | None) -> None: ...

    def ended(self, num_under_way: float, service_s: float, now_ns: int, *, failed: bool = False) -> Limited | None:
        before = self.limit
        self.learn(num_under_way, service_s, failed=failed)
        self.num_changes += self.limit != before
        return None if self.limit == before else Limited(self.limit, "")

    def learn(self, num: float, service_s: float, *, failed: bool) -> None: ...


class Aimd(Fixed):
    """One more while items are within their time, a tenth less where one is not or fails. Source: Netflix,
    concurrency-limits, AIMDLimit (its timeout: half of the time that items have)."""

    def __init__(self, limit: float, timeout_s: float) -> None:
        super().__init__(min(20, limit))
        self.most, self.timeout_s = limit, timeout_s

    def learn(self, num: float, service_s: float, *, failed: bool) -> None:
        if failed or service_s > self.timeout_s:
            self.size = max(1.0, self.size * 0.9)
        elif num * 2 >= self.size:
            self.size = min(self.most, self.size + 1)


class Vegas(Fixed):
    """By how many of those under way seem to wait: limit (1 - shortest / service). Source: Netflix, concurrency-limits,
    VegasLimit, with its defaults."""

    def __init__(self, limit: float) -> None:
        super().__init__(min(20, limit))
        self.most = limit
        self.shortest_s = math.inf
        self.num = 0

    def learn(self, num: float, service_s: float, *, failed: bool) -> None:
        self.num += 1
        if self.num >= 30 * self.size:  # the shortest is looked for anew
            self.num, self.shortest_s = 0, service_s
        if failed:
            self.size = max(1.0, self.size - math.log10(max(10, self.size)))
            return
        self.shortest_s = min(self.shortest_s, service_s)
        if num * 2 < self.size:
            return
        step = max(1.0, math.log10(max(1, self.size)))
        queue = math.ceil(self.size * (1 - self.shortest_s / service_s))
        if queue <= step:
            self.size += 6 * step
        elif queue < 3 * step:
            self.size += step
        elif queue > 6 * step:
            self.size -= step
        self.size = min(max(1.0, self.size), self.most)


class Gradient2(Fixed):
    """By the long mean of service times over the last one. Source: Netflix, concurrency-limits, Gradient2Limit, with
    its defaults (queue 4, tolerance 1.5, smoothing 0.2, window 600)."""

    def __init__(self, limit: float) -> None:
        super().__init__(min(20, limit))
        self.most = limit
        self.long_s = 0.0
        self.num = 0

    def learn(self, num: float, service_s: float, *, failed: bool) -> None:
        self.num += 1
        weight = 1 / self.num if self.num <= 10 else 2 / 601
        self.long_s += (service_s - self.long_s) * weight
        if self.long_s / service_s > 2:
            self.long_s *= 0.95
        if num < self.size / 2:
            return
        gradient = max(0.5, min(1.0, 1.5 * self.long_s / service_s))
        self.size = min(max(1.0, self.size * 0.8 + (self.size * gradient + 4) * 0.2), self.most)
