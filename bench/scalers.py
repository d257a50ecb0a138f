"""Ways to say how many replicas there are to be that others have published, to hold the engine's own against: each as
its source describes it, asked once a second, with what a node would be told (`engine.decide.fleet.Seen`).
Each is an `engine.simulate.fleet.Scaling`.
"""

import math
from collections import deque
from collections.abc import Sequence

from engine.decide.fleet import Seen, Wanted


class Still:
    """As many as its owner says."""

    def __init__(self, least: int, most: int, num: int) -> None:
        self.least, self.most = least, most
        self.num = min(max(num, least), most)

    def decide(self, now_s: float, seen: Seen | None) -> Wanted | None:
        before = self.num
        if seen is not None:
            self.num = min(max(self.wanted(now_s, seen), self.least), self.most)
        return None if self.num == before else Wanted(self.num, "")

    def wanted(self, now_s: float, seen: Seen) -> int:
        return self.num


class RayServe(Still):
    """So many ongoing requests (waiting and in service) for each replica, on average over `look_back_s`; up where that
    has said so for `up_s`, down for `down_s`. Source: Ray Serve 2.5x, AutoscalingConfig, whose defaults are 2 requests,
    30 s, 30 s and 600 s."""

    def __init__(
        self, least: int, most: int, num: int, target: float = 2.0, look_back_s: float = 30.0, up_s: float = 30.0,
        down_s: float = 600.0,
    ) -> None:  # fmt: skip
        super().__init__(least, most, num)
        self.target, self.look_back_s, self.up_s, self.down_s = target, look_back_s, up_s, down_s
        self.ongoing: deque[tuple[float, int]] = deque()
        self.up_since = self.down_since = math.inf

    def wanted(self, now_s: float, seen: Seen) -> int:
        self.ongoing.append((now_s, seen.num_waiting + seen.num_in_service))
        while self.ongoing[0][0] <= now_s - self.look_back_s:
            self.ongoing.popleft()
        mean = sum(num for _, num in self.ongoing) / len(self.ongoing)
        if not self.num:  # a request to a deployment without replicas has one started at once
            return 1 if self.ongoing[-1][1] else 0
        wanted = math.ceil(mean / self.target - 1e-9)
        self.up_since = min(self.up_since, now_s) if wanted > self.num else math.inf
        self.down_since = min(self.down_since, now_s) if wanted < self.num else math.inf
        if now_s >= self.up_since + self.up_s or now_s >= self.down_since + self.down_s:
            self.up_since = self.down_since = math.inf
            return wanted
        return self.num


class Keda(Still):
    """So many messages that are not done for each replica, looked at every `poll_s`; up at once, by no more than twice
    or four; down to the most that was wanted over `steady_s`; to none after `cool_s` without any. Source: KEDA 2.19,
    NATS JetStream scaler (lag: pending and not acknowledged; threshold 10 in its example), every 30 s, cooled down for
    300 s; Kubernetes, HorizontalPodAutoscaler: every 15 s, within a tenth it stays, stabilised for 300 s."""

    def __init__(
        self, least: int, most: int, num: int, threshold: float = 10.0, poll_s: float = 30.0, steady_s: float = 300.0,
        cool_s: float = 300.0,
    ) -> None:  # fmt: skip
        super().__init__(least, most, num)
        self.threshold, self.poll_s, self.steady_s, self.cool_s = threshold, poll_s, steady_s, cool_s
        self.looked_s = -math.inf
        self.active_s = -math.inf
        self.wants: deque[tuple[float, int]] = deque()

    def wanted(self, now_s: float, seen: Seen) -> int:
        if now_s < self.looked_s + self.poll_s:
            return self.num
        self.looked_s = now_s
        lag = seen.num_waiting + seen.num_in_service
        if lag:
            self.active_s = now_s
        if not self.num:
            return 1 if lag else 0
        ratio = lag / self.threshold / self.num
        wanted = self.num if abs(ratio - 1) <= 0.1 else max(1, math.ceil(lag / self.threshold))
        self.wants.append((now_s, wanted))
        while self.wants[0][0] < now_s - self.steady_s:
            self.wants.popleft()
        if wanted > self.num:
            return min(wanted, max(2 * self.num, self.num + 4))
        if self.least == 0 and now_s >= self.active_s + self.cool_s:
            return 0
        return min(self.num, max(num for _, num in self.wants))


class Xenna(Still):
    """Every 10 s: where a batch waits, as many as what comes takes with a tenth to spare, one more at a time until five
    have been timed; fewer by a rate that follows what comes down slowly, to the least where no stock has been there for
    six times. Source: cosmos-xenna, docs/scheduler/saturation-aware (1, 3 and 5) and its SaturationAwareConfig; there,
    stages of a batch pipeline."""

    def __init__(
        self, least: int, most: int, num: int, interval_s: float = 10.0, headroom: float = 0.1, release: float = 24.0
    ) -> None:
        super().__init__(least, most, num)
        self.interval_s, self.headroom, self.release = interval_s, headroom, release
        self.looked_s = 0.0
        self.work = self.num_seen = 0.0
        self.sustained: float | None = None
        self.num_empty = 0

    def wanted(self, now_s: float, seen: Seen) -> int:
        self.work += seen.offered or 0.0
        self.num_seen += 1
        if now_s < self.looked_s + self.interval_s:
            return self.num
        came = self.work / self.num_seen / seen.lanes
        self.looked_s, self.work, self.num_seen = now_s, 0.0, 0.0
        has_input = seen.num_waiting > 0
        if seen.offered is None:
            return self.num + has_input
        before = self.sustained if self.sustained is not None else came
        self.sustained = before + (came - before) * (0.3 if came > before else 1 / self.release)
        self.num_empty = 0 if seen.num_waiting or seen.num_in_service or came else self.num_empty + 1
        if self.num_empty >= 6:
            return self.least
        target = math.ceil(max(came, self.sustained) * (1 + self.headroom) - 1e-9)
        if target > self.num and (has_input or not self.num):
            return target
        return max(1, min(self.num, math.ceil(self.sustained - 1e-9)))


class Clairvoyant(Still):
    """Knows what will come in each second, in seconds of a lane, and has them started in time: as many as let what
    comes be done within its slack, with some part to spare; none is kept that is not needed again before another could
    be started. It pays the same starts."""

    def __init__(
        self, least: int, most: int, work: Sequence[float], lanes: int, slack_s: float, start_s: float, full: float
    ) -> None:
        needs = needed(work, lanes * full, slack_s)
        ahead = math.ceil(start_s) + 2
        self.plan = [max(needs[at : at + ahead], default=0) for at in range(len(needs))]
        for at in range(len(self.plan)):  # kept where it is needed again soon
            again = max(self.plan[at : at + ahead], default=0)
            if at and self.plan[at] < self.plan[at - 1] and again > self.plan[at]:
                self.plan[at] = min(self.plan[at - 1], again)
        super().__init__(least, most, self.plan[0] if self.plan else least)

    def wanted(self, now_s: float, seen: Seen) -> int:
        at = int(now_s)
        is_any = bool(seen.num_waiting or seen.num_in_service)
        return max(self.plan[at] if at < len(self.plan) else 0, 1 if is_any else 0)

    def decide(self, now_s: float, seen: Seen | None) -> Wanted | None:
        return super().decide(now_s, seen or Seen(lanes=1, ready=1, offered=0.0, waiting_s=0.0))


def needed(work: Sequence[float], lanes: float, slack_s: float) -> list[int]:
    """In each second, how many lanes' worth what comes then and after takes, if it may wait for `slack_s`."""
    total = [0.0]
    for each in work:
        total.append(total[-1] + each)
    found = []
    for at in range(len(work)):
        most = 0.0
        for width in (1, 2, 3, 5, 8, 13, 21, 34, 55):
            until = min(len(work), at + width)
            most = max(most, (total[until] - total[at]) / (until - at + 0.7 * min(slack_s, 10.0)))
        found.append(math.ceil(most / lanes - 1e-9))
    return found
