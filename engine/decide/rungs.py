"""Rungs: which of a stage's rungs new segments of a stream run on. Pure.

A stream begins with the best rung of every stage. Where a segment would not be done within the latency that is asked
for, one stage goes a rung down, and one more, until it would; one stage only where no rung would do for it, as the next
segment may need no more. Of the steps there are it is each time the one that loses the least quality for each second of
the resource that is waited for,

    (1 - quality below / quality here) / (seconds here - seconds below)

or of its batches, where the way itself is too long, however little waits;

and of a rung that has never run, whose seconds are not known, it is taken that it would save half. The last step down
is the first one up again: HOLD_S after anything changed, and only where the machine would carry the load on the upper
rung, that is where for every resource

    sum over streams of segments a second * seconds of a lane <= CARRIES * lanes

and the segment in hand would be done within half of its latency. Where that has been easy for TRY_S on the lower rung,
the upper one is tried all the same: what is known of it is from when it ran last. So a stream changes at most
60 / HOLD_S times a minute upwards, and as often and as many times more as it has rungs downwards; that the upper rung
carries the load is looked at before, not found out by falling down again. What is not known of service times changes
nothing.

**On the way.** A segment takes the rungs of its stream as it is begun. Where it was held up since, so that it would not
be done when it is wanted, the stage whose turn it is and those behind it go down as far as that takes, for it alone;
none where no rung would do. They do not go up: a queue that is short for a moment would lift what the load does not
carry. Nor do stages beside it: they may have been handed in.
Source: for stepping by quality lost over time saved, Compass and Elastico, arXiv 2603.20821; for choosing anew for what
is left of a way, Aragog, arXiv 2511.20975.
"""

from collections.abc import Callable, Container, Mapping, Sequence

import msgspec

from engine.decide.passage import SAFE
from engine.decide.way import NS, StageCost, Way

HOLD_S = 15.0
CARRIES = 0.8
UP = 0.5  # of the latency
UNKNOWN_SAVES = 0.5
TRY_S = 180.0


class Changed(msgspec.Struct, frozen=True):
    """A stage runs on another rung, of a stream from now on or of what is left of a segment. `why` has the figures."""

    stage: str
    rung: int  # 0 is the best
    why: str


class Ladder:
    """What the stages of a stream cost here, on each of their rungs. Made anew whenever that is estimated."""

    def __init__(self, stages: Mapping[str, Sequence[StageCost]]) -> None:
        self.stages = stages
        self.has_choice = any(len(costs) > 1 for costs in stages.values())
        self._ways: dict[tuple[int, ...], Way] = {}
        self._behind: dict[str, frozenset[str]] = {}

    def behind(self, stage: str) -> frozenset[str]:
        """The stages that wait for one, whatever lies between."""
        if stage not in self._behind:
            found: set[str] = set()
            while more := {id for id, costs in self.stages.items() if {stage, *found} & {*costs[0].sources}} - found:
                found |= more
            self._behind[stage] = frozenset(found - {stage})
        return self._behind[stage]

    def way(self, rungs: Mapping[str, int]) -> Way:
        """Through the stages on these rungs; 0 of those not named."""
        key = tuple(min(rungs.get(id, 0), len(costs) - 1) for id, costs in self.stages.items())
        if key not in self._ways:
            self._ways[key] = Way.through(
                {id: costs[rung] for (id, costs), rung in zip(self.stages.items(), key, strict=True)}
            )
        return self._ways[key]

    def step_down(self, rungs: Mapping[str, int], resource: str, among: Container[str]) -> str | None:
        """Which of some stages to lower next to relieve a resource, or, where that is none (""), to make the way
        shorter; None where there is none left that would."""
        best: tuple[float, str] | None = None
        for id, costs in self.stages.items():
            here = rungs.get(id, 0)
            if id not in among or here + 1 >= len(costs) or resource not in ("", costs[here].resource):
                continue
            saved_s = (
                _seconds(costs, here, resource) - _seconds(costs, here + 1, resource)
                if resource
                else _takes_s(costs, here) - _takes_s(costs, here + 1)
            )
            if saved_s <= 0:
                continue
            loses = 1 - costs[here + 1].quality / costs[here].quality if costs[here].quality else 0.0
            if best is None or loses / saved_s < best[0]:
                best = loses / saved_s, id
        return best[1] if best else None


def _seconds(costs: Sequence[StageCost], rung: int, resource: str) -> float:
    """Of a resource, on one rung; guessed where it has never run, by the one above."""
    cost = costs[rung]
    if cost.resource != resource:
        return 0.0
    if cost.unit_s is not None:
        return cost.unit_s * cost.open_share
    return UNKNOWN_SAVES * _seconds(costs, rung - 1, resource) if rung else 0.0


def _takes_s(costs: Sequence[StageCost], rung: int) -> float:
    """How long a batch takes on one rung; guessed as above."""
    took_s = costs[rung].service_s
    if took_s is not None:
        return took_s
    return UNKNOWN_SAVES * _takes_s(costs, rung - 1) if rung else 0.0


Predict = Callable[[Way], tuple[float, str]]  # what a way would take, s, and which resource is waited for


def steps_down(
    ladder: Ladder,
    rungs: Mapping[str, int],
    left_s: float,
    predict: Predict,
    among: Container[str],
    rest_of: Callable[[Way], Way] = lambda way: way,
) -> tuple[list[str], bool]:
    """The stages, of some, that go a rung down for what is to be done within `left_s`, in order; and whether that is
    enough. `rest_of`: what of a way is still to be done."""
    steps, below = list[str](), dict(rungs)
    while True:
        rest = rest_of(ladder.way(below))
        takes_s, waits_for = predict(rest)
        if takes_s <= left_s:
            return steps, True
        if SAFE * rest.lead_ns > left_s * NS:
            waits_for = ""  # it is the way itself that is too long
        stage = ladder.step_down(below, waits_for, among)
        if stage is None:
            return steps, False
        steps.append(stage)
        below[stage] = below.get(stage, 0) + 1


class Rungs:
    """Of one stream."""

    chooses_again = True  # for what is left of a segment that was held up

    def __init__(self) -> None:
        self.now: dict[str, int] = {}  # by stage, where it is not the best one
        self._steps: list[str] = []
        self._changed_ns = 0

    def choose(
        self,
        ladder: Ladder,
        left_s: float,
        now_ns: int,
        predict: Predict,
        carries: Callable[[Way], bool],
    ) -> list[Changed]:
        """For a segment that is to be done within `left_s`. `carries`: whether the machine would bear all streams with
        this one on a way."""
        self._forget(ladder)
        changes: list[Changed] = []
        took_s, resource = predict(ladder.way(self.now))
        steps, enough = steps_down(ladder, self.now, left_s, predict, ladder.stages)
        for stage in steps if enough else steps[:1]:
            why = f"{resource} would take {took_s:.2f} s, and {left_s:.2f} s are left of what is asked for"
            changes.append(self._down(stage, now_ns, why))
        if changes or not self._steps or now_ns < self._changed_ns + HOLD_S * NS:
            return changes
        above = ladder.way(self._above())
        above_s, _ = predict(above)
        if above_s <= UP * left_s and carries(above):
            return [self._up(now_ns, f"it would take {above_s:.2f} s of {left_s:.2f} s there")]
        if took_s <= UP * left_s and carries(ladder.way(self.now)) and now_ns > self._changed_ns + TRY_S * NS:
            return [self._up(now_ns, f"to see whether it takes {above_s:.2f} s there still")]
        return []

    def _above(self) -> dict[str, int]:
        """The rungs before the last step down."""
        stage = self._steps[-1]
        above = {**self.now, stage: self.now[stage] - 1}
        return {id: rung for id, rung in above.items() if rung}

    def _down(self, stage: str, now_ns: int, why: str) -> Changed:
        self._steps.append(stage)
        self.now = {**self.now, stage: self.now.get(stage, 0) + 1}
        self._changed_ns = now_ns
        return Changed(stage, self.now[stage], why)

    def _up(self, now_ns: int, why: str) -> Changed:
        self.now = self._above()
        stage = self._steps.pop()
        self._changed_ns = now_ns
        return Changed(stage, self.now.get(stage, 0), why)

    def _forget(self, ladder: Ladder) -> None:
        """Stages that are no more, or have fewer rungs here."""
        lost = [id for id, rung in self.now.items() if rung >= len(ladder.stages.get(id, ()))]
        for id in lost:
            del self.now[id]
            self._steps = [step for step in self._steps if step != id]
