"""The entrance of a worker: whether a segment of a live stream is begun, and on which rungs. Pure.

`engine.decide.rungs` chooses the rungs for it, `engine.decide.passage` whether there is time for it on these; a segment
keeps both through all its stages, but that what is left of it goes down where it is held up.
"""

from collections.abc import Callable, Mapping
from functools import partial

from engine.decide.passage import Passage, Segment
from engine.decide.rungs import CARRIES, Changed, Ladder, Rungs, steps_down
from engine.decide.way import NS, Way

NONE: Mapping[str, int] = {}


class Entrance:
    """Of one worker."""

    def __init__(self, rungs_of: Callable[[], Rungs] = Rungs) -> None:
        self._rungs_of = rungs_of
        self._passage = Passage()
        self._rungs: dict[str, Rungs] = {}  # of streams whose stages may run on more than one
        self.num_asked: dict[str, int] = {}  # segments that came, by each resource that they take
        self.num_late: dict[str, int] = {}  # of them, those for which there was no time when they were taken
        self.asked_s: dict[str, float] = {}  # what they take on the best rungs, begun or not: seconds of a lane

    def said(self, segment: Segment) -> str | None:
        """What was decided about it: empty where it was begun, else why not; None where nobody has asked yet."""
        return self._passage.said(segment)

    def enters(
        self,
        segment: Segment,
        due_ns: int,
        lag_s: float,
        latency_s: float,
        now_ns: int,
        ladder: Ladder,
        running_s: Mapping[str, float],
        *,
        by_latency: bool = True,
        weight: float = 1.0,
    ) -> tuple[str, list[Changed]]:
        """Why it is not begun, empty where it is; and the rungs that were changed before that was decided. The same for
        all stages that ask, until it is due. `lag_s`: what its stream may lag; `latency_s`: within which it is wanted
        (0: as the lag allows); `running_s`: by resource, what the batches that run still take; `by_latency`: whether it
        is refused where it would come later than that, for nobody wants it then; `weight`: of its stream among those
        for which there is not room for all."""
        if (said := self.said(segment)) is not None:
            return said, []
        changes: list[Changed] = []
        within_s = min(lag_s, latency_s or lag_s)
        wanted_ns = due_ns - round((lag_s - within_s) * NS)  # what comes later would only make the next ones later
        stream = segment[0]
        if ladder.has_choice and wanted_ns > now_ns:
            rungs = self._rungs.setdefault(stream, self._rungs_of())
            predict = partial(self._passage.predict, wanted_ns, running_s=running_s)
            carries = partial(self._passage.carries, stream, share=CARRIES)
            changes = rungs.choose(ladder, (wanted_ns - now_ns) / NS, now_ns, predict, carries)
        now_on = self.now_on(stream)
        until_ns, within_s = (wanted_ns, within_s) if by_latency else (due_ns, lag_s)
        way = ladder.way(now_on)
        asked = segment, due_ns, within_s, now_ns, way, running_s, now_on, until_ns, weight, wanted_ns
        return self._passage.enters(*asked), changes

    def asked(self, ladder: Ladder, *, is_late: bool = False) -> None:
        """A segment came, whatever becomes of it: told once, whichever workers do its stages. `is_late`: there was no
        time for it when it was taken."""
        best = ladder.way(NONE)
        for resource, seconds in best.work_s.values():
            self.asked_s[resource] = self.asked_s.get(resource, 0.0) + seconds
        for resource in best.num_lanes:
            self.num_asked[resource] = self.num_asked.get(resource, 0) + 1
            self.num_late[resource] = self.num_late.get(resource, 0) + is_late

    def num_refused(self, resource: str) -> int:
        """Segments that were not begun: they would have waited for it too long, or there was no time left at all."""
        return self._passage.num_refused.get(resource, 0) + self.num_late.get(resource, 0)

    def now_on(self, stream: str) -> Mapping[str, int]:
        """The rungs that new segments take, by stage, where that is not the best."""
        rungs = self._rungs.get(stream)
        return NONE if rungs is None else rungs.now

    def rung_of(
        self, segment: Segment, stage: str, now_ns: int, ladder: Ladder, running: Callable[[], Mapping[str, float]]
    ) -> tuple[int, list[Changed]]:
        """Which of its rungs a stage takes for a segment, the best for one that was not asked for here; and what was
        changed for it alone before that was decided. `running`: says, by resource, what the batches that run take."""
        rungs, of_stream = self._passage.rungs_of(segment) or NONE, self._rungs.get(segment[0])
        here, left_ns = rungs.get(stage, 0), self._passage.wanted_ns(segment) - now_ns
        if of_stream is None or not of_stream.chooses_again or left_ns <= 0:
            return here, []
        left_s, behind, running_s = left_ns / NS, ladder.behind(stage), running()

        def rest_of(way: Way) -> Way:
            return way.from_stage(stage, behind)

        rest = rest_of(ladder.way(rungs))
        if self._passage.takes_at_most_s(rest, running_s) <= left_s:  # as of most
            return here, []
        predict = partial(self._passage.predict_rest, segment, running_s=running_s)
        steps, enough = steps_down(ladder, rungs, left_s, predict, {stage, *behind}, rest_of)
        if not steps or not enough:
            return here, []
        takes_s, resource = predict(rest)
        why = f"{resource} would take {takes_s:.2f} s more, and {left_s:.2f} s are left of what is asked for"
        below = {**rungs, **{id: rungs.get(id, 0) + steps.count(id) for id in steps}}
        self._passage.lowered(segment, below, rest_of(ladder.way(below)))
        return below.get(stage, 0), [Changed(id, below[id], why) for id in dict.fromkeys(steps)]

    def way_of(self, segment: Segment, ladder: Ladder) -> Way:
        """Through the stages on the rungs that a segment takes, or would that is begun now."""
        rungs = self._passage.rungs_of(segment)
        return ladder.way(self.now_on(segment[0]) if rungs is None else rungs)

    def passed(self, segment: Segment, stage: str) -> None:
        """A stage has begun on it, or there is nothing to do of it."""
        self._passage.passed(segment, stage)

    def lost(self, segment: Segment) -> None:
        """It was begun and will not be whole in time."""
        self._passage.lost(segment)

    def forget(self, stream: str) -> None:
        """It is not served here any more."""
        self._rungs.pop(stream, None)
