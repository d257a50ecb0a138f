"""Fleet: how many replicas of a resource there are to be. Asked once a second. Pure.

A *resource* is what batches take up (`engine.decide.lanes`): the cores of the workers, or the instances of a pool on
devices of their own. A *replica* brings so many lanes of it, and takes a while to start. Work is counted in seconds of
a lane, so all resources are alike here.

Law. Wanted is the larger of

    by what comes     the least n with  offered <= n lanes - SPARE sqrt(n lanes)
    by what waits     (waiting + (offered - ready lanes) start) / (MAY_WAIT slack) / lanes

the first only where what there is does not carry what comes with less spare, TIGHT, so that it is not gone up and down
about a threshold.

*offered* is what comes of live streams on the best rungs, also what is refused or computed on lower ones: since that
changed last, which is told from chance (`since_changed`), or over SHORT samples, or as many as it takes NUM_PIECES to
come. *waiting* is what nobody has begun, and counts where it waits for over WAITS of its slack: so many that it waits
for MAY_WAIT of that, with what will have come by the time that one which is started now works. Live work whose slack is
shorter than a start is not waited for any more by then, and counts by its rate alone; what is wanted whenever counts as
if it had CHEAP times as long as a start takes, so that starting costs a small part of what is done. Where there is time
to wait and see (a start takes less than half of the slack) the rate alone starts nothing before something waits.

Queues choose the resource, speed only sizes it: what is in service counts nowhere, a slow stage without a queue gets
nothing, and one that is starved by another neither. Where both say enough, and still more than LOSES are lost while
something waits, or half of the slack is waited, what is known of service times is wrong, or it comes too unevenly: one
more is started each time the last one has had time to tell, and kept beside what is reckoned for CALM_S in which
nothing was lost.

Why it is stable. *offered* does not depend on how many replicas there are, so this is no loop but a reckoning; the
queue's part is one, with the dead time of a start, and says how many there are to be, not how many more: so it does
not wind up while they start. Fewer only by the largest that was wanted over HOLD_S, or HOLD_STARTS times as long as a
start takes if that is longer: what is left has carried the load of that time, with the same spare. Where one that was
let go is wanted again within REGRETS_S, that time doubles, up to MAX_PATIENCE times.

| | |
|---|---|
| at rest | nothing waits or runs for as long, and nothing came for LULL more: the least that is allowed, 0 if that is |
| from 0 | the first piece of work starts one at once |
| nothing is known of service times | held, but for the first one |
| no word of the resource, or an old one | held, and for as long after it: unknown is neither 0 nor much |
| a stalled model | its queue grows: one more for each time a start takes, up to the most |
| one dead replica | it is not ready, and whoever keeps them at what is wanted starts another |
| too much for all | `spread` gives each resource for which something waits one replica, before any has more |

At most MAX_CHANGES a minute.
Source: for the moment of a change, Basseville and Nikiforov, Detection of Abrupt Changes (1993), 2.4; for queues that
choose and speed that sizes, cosmos-xenna, docs/scheduler/saturation-aware; for spare by the root of the load, Halfin
and Whitt, Heavy-traffic limits for queues with many exponential servers (1981).
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import accumulate

import msgspec

LONG_S = 120.0
LEAST, SHORT, LULL = 3, 8, 30  # samples, one a second
NUM_PIECES = 120
SIGMAS = 3.5
SPARE, TIGHT = 0.25, 0.1
CHEAP = 10.0
HOLD_S, HOLD_STARTS = 15.0, 1.5
STALE_S = 5.0
LOSES = 0.02
WAITS, MAY_WAIT, WAITS_LITTLE = 0.5, 0.75, 0.2  # of the slack
PRESSED_S = 3.0
TOLD_S = 22.0  # after a start, until what was lost before it does not count any more
CALM_S = 120.0
REGRETS_S, FORGETS_S, MAX_PATIENCE = 300.0, 1800.0, 8
MAX_CHANGES = 6
MINUTE_S = 60.0


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A resource, now. Work in seconds of a lane."""

    lanes: float  # that one replica brings
    ready: int  # replicas that work
    offered: float | None  # in the last second, of what is due some time; None: not known
    num_offered: float = 0.0  # pieces of work that is
    waiting_s: float | None  # of that, not begun; None: not known
    patient_s: float = 0.0  # of what is wanted whenever, not begun
    num_waiting: int = 0  # pieces of work, whatever they take
    num_in_service: int = 0  # likewise
    slack_s: float = math.inf  # within which what waits is wanted
    start_s: float = 0.0  # until a replica works
    lost: float = 0.0  # the share of what came of late that was refused or dropped for want of this


class Wanted(msgspec.Struct, frozen=True):
    """How many replicas there are to be, and why."""

    num: int
    why: str
    inputs: Mapping[str, float] = msgspec.field(default_factory=dict)


class Fleet:
    """Of one resource, between `least` and `most` replicas. Begins with `num`."""

    def __init__(self, least: int, most: int, num: int) -> None:
        self.least = least
        self.most = most
        self.num = num
        self._offered: deque[tuple[float, float, float]] = deque()  # when, s; what came in a second, and of how much
        self._needs: deque[tuple[float, int]] = deque()  # over the hold, the largest ones
        self._changed_s: deque[float] = deque(maxlen=MAX_CHANGES)
        self._has_begun = False
        self._raised_s = -math.inf
        self._calm_s = 0.0  # when nothing was lost or waited last
        self._more = 0  # beside what is reckoned, for that was too little
        self._pressed_s = 0.0
        self._any_s = -math.inf  # when there was anything to do last
        self._lacked_s = -math.inf  # when fewer were ready than are wanted
        self._lowered_s = self._regretted_s = -math.inf
        self._heard_s = self._again_s = 0.0  # last; and since when without a break
        self._patience = 1

    def decide(self, now_s: float, seen: Seen | None) -> Wanted | None:
        """What is wanted from now on, where that is another number than before. Nothing where nothing is known now."""
        if not self._has_begun:
            self._has_begun = True
            self._calm_s = self._again_s = self._heard_s = now_s
        if seen is None:
            return None
        if now_s > self._heard_s + STALE_S:
            self._again_s = now_s  # what was needed meanwhile is not known
        self._heard_s = now_s
        is_any = bool(seen.num_waiting or seen.num_in_service or seen.offered or seen.waiting_s or seen.patient_s)
        self._any_s = now_s if is_any else self._any_s
        if seen.offered is None or seen.waiting_s is None:
            first = max(1, self.least)
            return self._change(now_s, first, "the first work came", {}) if is_any and not self.num else None
        offered = self._comes(now_s, seen)
        if now_s >= self._any_s + LULL:
            offered = 0.0
        by_rate, by_queue = self._by_rate(offered, seen), self._by_queue(offered, seen)
        need = max(by_rate, by_queue, 1 if is_any else 0, self.least)
        if seen.patient_s > self.num * seen.lanes:
            need = max(need, self.num)  # what is wanted whenever costs no more with those that are there
        if seen.ready < self.num:
            self._lacked_s = now_s
        pressed = self._pressed(now_s, seen, least_for(offered, seen.lanes))
        self._note(now_s, max(need, pressed), self._hold_s(seen))
        went_by = {
            "offered": offered,
            "waiting_s": seen.waiting_s + seen.patient_s,
            "lanes_each": seen.lanes,
            "ready": float(seen.ready),
            "lost": seen.lost,
        }
        if max(need, pressed) > self.num:
            return self._change(
                now_s, max(need, pressed), self._why(offered, seen, by_rate, by_queue, pressed), went_by
            )
        kept = self._needs[0][1]
        is_held = now_s < max(self._raised_s, self._again_s) + self._hold_s(seen)
        if kept >= self.num or is_held or (kept == 0 and is_any):
            return None
        why = f"{offered:.2f} lanes' worth comes, and no more than {kept} were needed for {self._hold_s(seen):.0f} s"
        return self._change(now_s, kept, why if kept else f"nothing was needed for {self._hold_s(seen):.0f} s", went_by)

    # --- what is needed ------------------------------------------------------------------------------------------

    def _by_rate(self, offered: float, seen: Seen) -> int:
        wanted = least_for(offered, seen.lanes) + self._more * (offered > 0)
        is_carried = self.num and least_for(offered, seen.lanes, TIGHT) + self._more <= self.num
        can_wait = self.num and 2 * seen.start_s < seen.slack_s < math.inf
        is_felt = _is_short(seen) or _waits_s(seen) > WAITS_LITTLE * seen.slack_s
        return min(wanted, self.num) if is_carried or (can_wait and not is_felt) else wanted

    def _by_queue(self, offered: float, seen: Seen) -> int:
        lanes = 0.0
        if seen.waiting_s and seen.slack_s > seen.start_s and _waits_s(seen) > WAITS * seen.slack_s:
            more_s = max(0.0, offered - seen.ready * seen.lanes) * seen.start_s
            lanes = (seen.waiting_s + more_s) / (MAY_WAIT * seen.slack_s)
        if seen.patient_s:
            lanes = max(lanes, offered) + seen.patient_s / max(CHEAP * seen.start_s, HOLD_S)
        return math.ceil(lanes / seen.lanes - 1e-9)

    def _pressed(self, now_s: float, seen: Seen, reckoned: int) -> int:
        """As many as there are, where work is lost or waits for long, and one more where those have had time to tell;
        0 where neither. `reckoned`: what would do by what comes."""
        if not _is_short(seen) and _waits_s(seen) <= WAITS * seen.slack_s:
            self._calm_s = now_s
            if self._more and now_s >= self._pressed_s + CALM_S:
                self._more, self._pressed_s = self._more - 1, now_s
            return 0
        self._pressed_s = now_s
        has_told = now_s > max(self._raised_s + seen.start_s, self._lacked_s) + TOLD_S
        if not has_told or now_s < self._calm_s + PRESSED_S or self.num >= self.most:
            return self.num
        self._more = max(self._more, self.num + 1 - reckoned) if reckoned else self._more
        return self.num + 1

    def _hold_s(self, seen: Seen) -> float:
        return self._patience * max(HOLD_S, HOLD_STARTS * seen.start_s)

    def _comes(self, now_s: float, seen: Seen) -> float:
        """A second, of samples taken about once a second: since it changed last, or, where it has not, of late."""
        self._offered.append((now_s, seen.offered or 0.0, seen.num_offered))
        while self._offered[0][0] <= now_s - LONG_S:
            self._offered.popleft()
        return since_changed(list(reversed(self._offered)))

    def _note(self, now_s: float, need: int, hold_s: float) -> None:
        """Keep the largest of the hold in front."""
        while self._needs and self._needs[-1][1] <= need:
            self._needs.pop()
        self._needs.append((now_s, need))
        while self._needs[0][0] < now_s - hold_s:
            self._needs.popleft()

    def _why(self, offered: float, seen: Seen, by_rate: int, by_queue: int, pressed: int) -> str:
        comes = f"{offered:.2f} lanes' worth comes to {self.num} of {seen.lanes:g}"
        if pressed > max(by_rate, by_queue):
            waits = f"what comes now waits for {_waits_s(seen):.1f} s"
            return f"{comes}, and {f'{seen.lost:.0%} is lost for want of it' if _is_short(seen) else waits}"
        if seen.patient_s > (seen.waiting_s or 0.0) and by_queue > by_rate:
            return f"{seen.patient_s:.1f} s of work wait that is wanted whenever, for {self.num} of {seen.lanes:g}"
        return f"{comes}, and {seen.waiting_s or 0.0:.1f} s of work wait" if by_queue > by_rate else comes

    def _change(self, now_s: float, num: int, why: str, went_by: Mapping[str, float]) -> Wanted | None:
        num = min(max(num, self.least), self.most)
        if num == self.num:
            return None
        if len(self._changed_s) == MAX_CHANGES and self._changed_s[0] > now_s - MINUTE_S and self.num:
            return None
        self._changed_s.append(now_s)
        if num < self.num:
            self._lowered_s = now_s
        else:
            self._raised_s = now_s
            if self.num and num == self.num + 1 and now_s < self._lowered_s + REGRETS_S:  # it was one too few
                self._patience, self._regretted_s = min(2 * self._patience, MAX_PATIENCE), now_s
            elif now_s > self._regretted_s + FORGETS_S:
                self._patience = 1
        self.num = num
        return Wanted(num, why, went_by)


def _waits_s(seen: Seen) -> float:
    """What comes now, with as many as are ready."""
    return (seen.waiting_s or 0.0) / (seen.lanes * max(1, seen.ready))


def _is_short(seen: Seen) -> bool:
    """Whether work is lost for want of it: what is lost where nothing waits was late before."""
    return seen.lost > LOSES and _waits_s(seen) > WAITS_LITTLE * seen.slack_s / 2


def since_changed(newest_first: Sequence[tuple[float, float, float]]) -> float:
    """What comes a second, by samples of when, how much, and in how many pieces: their mean since the moment before and
    after which the numbers of pieces differ most, in standard deviations of Poisson's, if that is over SIGMAS; else
    over SHORT samples, or as many as it takes NUM_PIECES to come. That less comes is believed after LULL: what comes in
    bursts has lulls."""
    work = list(accumulate(each[1] for each in newest_first))
    pieces = list(accumulate(each[2] for each in newest_first))
    num, most, since = len(newest_first), SIGMAS, 0
    for after in range(LEAST, num - LEAST):
        now, before = pieces[after - 1] / after, (pieces[-1] - pieces[after - 1]) / (num - after)
        if now > before or (now < before and after >= LULL):
            apart = abs(now - before) / math.sqrt(now / after + before / (num - after))
            if apart > most:
                most, since = apart, after
    if not since:
        since = next((at for at in range(SHORT, num) if pieces[at - 1] >= NUM_PIECES), num)
    return work[since - 1] / since


def least_for(offered: float, lanes: float, spare: float = SPARE) -> int:
    """The fewest replicas of so many lanes that carry what comes, with spare for that it does not come evenly."""
    if offered <= 0:
        return 0
    root = (spare + math.sqrt(spare**2 + 4 * offered)) / 2  # of x - spare sqrt(x) = offered, where x = root^2
    return math.ceil(root**2 / lanes - 1e-9)


def spread(wanted: Mapping[str, int], least: Mapping[str, int], num: int) -> dict[str, int]:
    """How many replicas each resource gets of `num` places, where all together may want more: the least of each, then
    one to each that wants any, then each time one to that which has the smallest part of what it wants."""
    given = {name: min(least.get(name, 0), want) for name, want in wanted.items()}
    for name in sorted(wanted, key=lambda name: wanted[name]):
        if wanted[name] and not given[name] and sum(given.values()) < num:
            given[name] = 1
    while sum(given.values()) < num:
        short = [name for name, want in wanted.items() if given[name] < want]
        if not short:
            break
        given[min(short, key=lambda name: given[name] / wanted[name])] += 1
    return given


class Room(msgspec.Struct, frozen=True):
    """Where replicas can be: a node, with the lanes that each brings there."""

    name: str
    lanes: float
    least: int
    most: int


def placed(lanes: float, rooms: Sequence[Room]) -> dict[str, int]:
    """How many replicas each node has, so that together they bring that many lanes, or as near as there is room for:
    the least of each, then one more each in turn. The same wherever it is worked out."""
    given = {room.name: room.least for room in rooms}
    ordered = sorted(rooms, key=lambda room: room.name)
    has = sum(room.lanes * room.least for room in rooms)
    while has < lanes - 1e-9:
        free = [room for room in ordered if given[room.name] < room.most]
        if not free:
            break
        next_one = min(free, key=lambda room: given[room.name])
        given[next_one.name] += 1
        has += next_one.lanes
    return given
