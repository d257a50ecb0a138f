"""Passage: whether a segment of a live stream is begun here, decided once for all its stages. Pure.

A segment that cannot be in time is worth nothing, and what was computed for it was taken from others. So it is asked of
each as its first message is taken: will there be time for all that is left to do of it, behind what has been begun and
is due earlier? With

    wait = max over r of (running(r) + left(r)) / lanes(r)

of the resources r that its stages use (the worker's cores, a GPU's instances, an engine that batches by itself), where
running(r) is what the batches that run still take and left(r) what is left to do of segments that were begun and are
wanted no later, in seconds of a lane, it is begun if

    now + wait + min(SAFE lead, MOST lag) + margin <= due

`lead` is the longest path through its stages. A stage takes s(B) / B of a lane for each item, which is what it takes
when it matters, times the share of segments for which its gate is open. What is refused is a gap in all its stages at
once: no branch computes what another has dropped, and no stage what the next one will be late with.

All is begun where nothing is known, and where nothing is ahead, and one of a stream of which none was begun for TRY_S:
what was learned may be wrong by now. And of a single stage that takes batches and that a single stream uses, for what
its batcher drops costs nothing and is nothing to others.

Where several workers share a stream, a segment that is begun here may have other stages done elsewhere: each counts for
as much as it was done here of late.

**Fair.** `margin` is what a stream leaves to others that were refused more often than it was: with `share` the fraction
of its segments that were begun of late,

    margin = lag / 2 * min(1, STRICTNESS * max(0, share / fair share - 1))

where the fair share (`engine.decide.fair`) is by the streams that use the resource which is waited for and could be in
time on an idle machine: of equals it is their mean. So where there is room for all it is 0, and where there is not,
streams whose segments come at luckier moments do not have them all, and one of twice the weight has nearly twice the
share.
Source: Buttazzo, Hard Real-Time Computing Systems (2011), 9.2, for admission under earliest due first; Liang et al.,
PARD, arXiv 2602.08747, for dropping by the state of what is downstream.
"""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec

from engine.decide.fair import FairShares
from engine.decide.way import NOWHERE, NS, Opens, Way

SAFE = 1.25  # times the lead: batches take longer at times
MOST = 0.75  # of the lag, that a lead counts: what is slower is computed all the same, while nothing waits for it
STRICTNESS = 10.0
MEMORY = 20  # decisions that a stream's share is over, about
SEEN_S = 60.0  # a stream that nothing came of for so long counts no more
TRY_S = 10.0  # after which one is begun of a stream of which none was, or
TRY_TIMES = 20  # times its lead, if that is longer
MAX_STAGES = 10_000  # of which it is known how often they are done here
MAX_REFUSED = 10_000  # that are remembered

Segment = tuple[str, int]  # a stream and a number


class Busy(Protocol):
    """A pool, as far as its batches take up a resource."""

    @property
    def resource(self) -> str: ...
    @property
    def running_s(self) -> float:
        """What the batches that run still take, together."""


def running_by_resource(pools: Iterable[Busy]) -> dict[str, float]:
    """What the batches that run still take, of all pools."""
    found: dict[str, float] = {}
    for pool in pools:
        found[pool.resource] = found.get(pool.resource, 0.0) + pool.running_s
    return found


class _Begun(msgspec.Struct):
    """A segment that was begun: what is left to do of it, by stage, and on which rungs."""

    due_ns: int
    until_ns: int  # by when it is to be done: whose turn comes first
    wanted_ns: int  # by when it is wanted by those who said so
    left_s: dict[str, tuple[str, float]]
    rungs: Mapping[str, int]
    is_lost: bool = False


class _Stream(msgspec.Struct):
    """How it fared of late. `resources`: that its share is counted for; `every_s`: how often a segment comes."""

    share: float
    weight: float
    seen_ns: int
    resources: tuple[str, ...] = ()
    every_s: float = 0.0
    way: Way = NOWHERE
    begun_ns: int = 0  # when one was begun last


class Passage:
    """Of one worker."""

    def __init__(self) -> None:
        self._begun: dict[Segment, _Begun] = {}
        self._by_due: list[tuple[int, Segment]] = []  # those of which something is left to do
        self._by_turn: list[tuple[int, Segment]] = []  # the same, by when they are wanted
        self._over: deque[tuple[int, Segment]] = deque()  # the others, until they are due
        self._left_s: dict[str, float] = {}  # by resource, of all that was begun
        self._refused: dict[Segment, int] = {}  # when it was due
        self._done_here: dict[str, Opens] = {}  # by stage: of how many of those that were begun here
        self._streams: dict[str, _Stream] = {}
        self._fair: dict[str, FairShares] = {}  # by resource
        self.num_refused: dict[str, int] = {}  # by the resource that was waited for

    def said(self, segment: Segment) -> str | None:
        """What was decided about it: empty where it was begun, else why not; None where nobody has asked yet."""
        if segment in self._begun:
            return ""
        return "it was refused as a whole" if segment in self._refused else None

    def rungs_of(self, segment: Segment) -> Mapping[str, int] | None:
        """The rungs that it was begun on, by stage, where that is not the best; None where it was not begun, or is
        over."""
        begun = self._begun.get(segment)
        return None if begun is None else begun.rungs

    def wanted_ns(self, segment: Segment) -> int:
        """By when a segment that was begun is wanted by those who said so; 0 where it was not begun, or is over."""
        begun = self._begun.get(segment)
        return 0 if begun is None else begun.wanted_ns

    def predict_rest(self, segment: Segment, rest: Way, running_s: Mapping[str, float]) -> tuple[float, str]:
        """What a segment that was begun would take for what is left of a way, in seconds, and the resource that it
        would wait for."""
        begun = self._begun[segment]
        others_s = {resource: running_s.get(resource, 0.0) for resource in rest.num_lanes}
        for resource, seconds in begun.left_s.values():
            if resource in others_s:
                others_s[resource] -= seconds
        wait_s, resource = self._wait(begun.until_ns, rest, others_s)
        return wait_s + SAFE * rest.lead_ns / NS, resource

    def takes_at_most_s(self, rest: Way, running_s: Mapping[str, float]) -> float:
        """As long at most, behind all that was begun and not only what is wanted earlier."""
        waits_s = [
            (running_s.get(resource, 0.0) + self._left_s.get(resource, 0.0)) / num
            for resource, num in rest.num_lanes.items()
        ]
        return max(waits_s, default=0.0) + SAFE * rest.lead_ns / NS

    def lowered(self, segment: Segment, rungs: Mapping[str, int], rest: Way) -> None:
        """What is left of a way is done on these rungs."""
        begun = self._begun[segment]
        begun.rungs = rungs
        for id, work in rest.work_s.items():
            if id in begun.left_s:
                resource, seconds = begun.left_s[id]
                self._left_s[resource] -= seconds
                begun.left_s[id] = work[0], work[1] * self._here(id)
                self._left_s[work[0]] = self._left_s.get(work[0], 0.0) + begun.left_s[id][1]

    def predict(self, until_ns: int, way: Way, running_s: Mapping[str, float]) -> tuple[float, str]:
        """What a segment would take that is begun now and wanted by then, in seconds, and the resource that it would
        wait for."""
        wait_s, resource = self._wait(until_ns, way, running_s)
        return wait_s + SAFE * way.lead_ns / NS, resource

    def enters(
        self,
        segment: Segment,
        due_ns: int,
        lag_s: float,
        now_ns: int,
        way: Way,
        running_s: Mapping[str, float],
        rungs: Mapping[str, int] | None = None,
        until_ns: int = 0,
        weight: float = 1.0,
        wanted_ns: int = 0,
    ) -> str:
        """Why it is not begun; empty where it is. The same for all stages that ask, until it is due. `lag_s`: what its
        stream may lag; `running_s`: by resource, what the batches that run still take; `rungs`: that it would be begun
        on, by stage; `until_ns`: by when it is to be done, where that is before it is due; `weight`: of its stream;
        `wanted_ns`: by when it is wanted by those of its jobs that said so."""
        if (said := self.said(segment)) is not None:
            return said
        self._forget(now_ns)
        until_ns = until_ns or due_ns
        wait_s, resource = self._wait(until_ns, way, running_s)
        lead_s = way.lead_ns / NS
        can_be = lead_s <= lag_s  # or it would be refused whatever the others do, and is nothing to them
        lead_s = min(SAFE * lead_s, MOST * lag_s) if can_be else lead_s
        left_s = (until_ns - now_ns) / NS
        margin_s = self._margin_s(segment[0], lag_s, resource) if can_be else 0.0
        is_idle = wait_s < 1e-6  # what was learned may be wrong by now
        is_alone = way.drops_alone and len(self._fair.get(resource, ())) <= 1
        is_begun = is_idle or is_alone or wait_s + lead_s + margin_s <= left_s
        is_begun = is_begun or self._is_to_try(segment[0], now_ns, way)
        self._count(segment[0], way, now_ns, weight, is_begun=is_begun, can_be=can_be)
        if is_begun:
            when = due_ns, until_ns, wanted_ns or until_ns
            self._begin(segment, when, way, dict(rungs or {}))
            return ""
        self._refused[segment] = due_ns
        self.num_refused[resource] = self.num_refused.get(resource, 0) + 1
        if len(self._refused) > MAX_REFUSED:
            del self._refused[next(iter(self._refused))]
        why = f"{resource or 'its stages'} would take {wait_s + lead_s:.2f} s, and {max(0.0, left_s):.2f} s are left"
        return f"{why}; others were refused more often" if wait_s + lead_s <= left_s else why

    def _is_to_try(self, stream: str, now_ns: int, way: Way) -> bool:
        """Whether none of a stream was begun for so long that one is: or nothing would ever be learned of it again."""
        known = self._streams.get(stream)
        return known is not None and now_ns > known.begun_ns + max(TRY_S * NS, TRY_TIMES * way.lead_ns)

    def carries(self, stream: str, way: Way, share: float) -> bool:
        """Whether the resources that a way uses would bear what comes of all streams, with this one on that way: all
        its segments, on no more than such a share of the lanes."""
        own = self._streams.get(stream)
        if own is None or not own.every_s:
            return False
        offered = dict.fromkeys(way.num_lanes, 0.0)
        for name, each in self._streams.items():
            through = way if name == stream else each.way
            for resource, seconds in through.work_s.values():
                if resource in offered and each.every_s:
                    offered[resource] += seconds / each.every_s
        return all(lanes <= share * way.num_lanes[resource] for resource, lanes in offered.items())

    def passed(self, segment: Segment, stage: str) -> None:
        """A stage has begun on it, or there is nothing to do of it."""
        begun = self._begun.get(segment)
        if begun is None or stage not in begun.left_s:
            return
        self._note_here(stage, is_here=True)
        resource, seconds = begun.left_s.pop(stage)
        self._left_s[resource] -= seconds
        if not begun.left_s:  # it is ahead of nobody
            _take(self._by_due, (begun.due_ns, segment))
            _take(self._by_turn, (begun.until_ns, segment))
            self._over.append((begun.due_ns, segment))

    def lost(self, segment: Segment) -> None:
        """It was begun and will not be whole in time."""
        known, begun = self._streams.get(segment[0]), self._begun.get(segment)
        if begun is not None and not begun.is_lost and known is not None:
            begun.is_lost = True
            self._leave(known)
            known.share = max(0.0, known.share - 1 / MEMORY)
            self._join(known)

    # --- what is ahead -------------------------------------------------------------------------------------------

    def _wait(self, until_ns: int, way: Way, running_s: Mapping[str, float]) -> tuple[float, str]:
        """How long it would wait, and for what."""
        resources = dict.fromkeys(resource for resource, _ in way.work_s.values())
        ahead = {resource: running_s.get(resource, 0.0) + self._left_s.get(resource, 0.0) for resource in resources}
        for later_ns, other in reversed(self._by_turn):
            if later_ns <= until_ns:
                break
            for resource, seconds in self._begun[other].left_s.values():
                if resource in ahead:
                    ahead[resource] -= seconds
        waits_s = {each: max(0.0, seconds) / way.num_lanes[each] for each, seconds in ahead.items()}
        longest = max(waits_s, key=lambda each: waits_s[each], default="")
        return waits_s.get(longest, 0.0), longest

    def _begin(self, segment: Segment, when: tuple[int, int, int], way: Way, rungs: Mapping[str, int]) -> None:
        left_s = {id: (resource, seconds * self._here(id)) for id, (resource, seconds) in way.work_s.items()}
        self._begun[segment] = _Begun(*when, left_s, rungs)
        insort(self._by_due, (when[0], segment))
        insort(self._by_turn, (when[1], segment))
        for resource, seconds in left_s.values():
            self._left_s[resource] = self._left_s.get(resource, 0.0) + seconds

    def _here(self, stage: str) -> float:
        known = self._done_here.get(stage)
        return 1.0 if known is None else known.share

    def _note_here(self, stage: str, *, is_here: bool) -> None:
        """Whether it was this worker that had to do with a stage of a segment that was begun here; others take their
        part of what waits."""
        if not is_here or stage in self._done_here:
            known = self._done_here.pop(stage, None) or Opens()
            known.note(is_open=is_here)
            self._done_here[stage] = known  # the last one seen stands last
            if len(self._done_here) > MAX_STAGES:
                del self._done_here[next(iter(self._done_here))]

    def _forget(self, now_ns: int) -> None:
        """What was due is over, whatever became of it."""
        num = 0
        while num < len(self._by_due) and self._by_due[num][0] < now_ns:
            segment = self._by_due[num][1]
            begun = self._begun.pop(segment)
            _take(self._by_turn, (begun.until_ns, segment))
            for stage, (resource, seconds) in begun.left_s.items():
                self._note_here(stage, is_here=False)
                self._left_s[resource] -= seconds
            num += 1
        del self._by_due[:num]
        while self._over and self._over[0][0] < now_ns:
            self._begun.pop(self._over.popleft()[1], None)
        if not self._by_due:
            self._left_s.clear()  # and with it what rounding left
        while self._refused and next(iter(self._refused.values())) < now_ns:
            del self._refused[next(iter(self._refused))]

    # --- fair ----------------------------------------------------------------------------------------------------

    def _margin_s(self, stream: str, lag_s: float, resource: str) -> float:
        known = self._streams.get(stream)
        if known is None or resource not in self._fair:
            return 0.0
        fair = max(1e-9, self._fair[resource].of(known.weight))
        return lag_s / 2 * min(1.0, STRICTNESS * max(0.0, known.share / fair - 1))

    def _count(self, stream: str, way: Way, now_ns: int, weight: float, *, is_begun: bool, can_be: bool) -> None:
        """`can_be`: whether it could be in time on an idle machine."""
        resources = tuple(dict.fromkeys(resource for resource, _ in way.work_s.values())) if can_be else ()
        known = self._streams.pop(stream, None)
        if known is not None:
            self._leave(known)
        share = 1.0 if known is None else known.share
        share += (is_begun - share) / MEMORY
        every_s = 0.0
        if known is not None:
            since_s = (now_ns - known.seen_ns) / NS
            every_s = known.every_s + (since_s - known.every_s) / MEMORY if known.every_s else since_s
        begun_ns = now_ns if is_begun or known is None else known.begun_ns
        now = _Stream(share, weight, now_ns, resources, every_s, way, begun_ns)
        self._streams[stream] = now  # the last seen stands last
        self._join(now)
        while (first := next(iter(self._streams.items())))[1].seen_ns < now_ns - SEEN_S * NS:
            self._leave(first[1])
            del self._streams[first[0]]

    def _join(self, stream: _Stream) -> None:
        for resource in stream.resources:
            self._fair.setdefault(resource, FairShares()).add(stream.share, stream.weight)

    def _leave(self, stream: _Stream) -> None:
        for resource in stream.resources:
            self._fair[resource].remove(stream.share, stream.weight)
            if not len(self._fair[resource]):
                del self._fair[resource]


def _take(entries: list[tuple[int, Segment]], entry: tuple[int, Segment]) -> None:
    """Out of what is sorted."""
    place = bisect_left(entries, entry)
    if entries[place : place + 1] == [entry]:
        del entries[place]
