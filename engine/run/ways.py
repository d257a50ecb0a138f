"""What is left to do of each stream in a worker, by what batches lately took, and whether a segment is begun: of all
groups that serve it, not of those alone that run fused. Worked out by `engine.decide.passage`, anew once a second at
most.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import msgspec

from engine.decide.decisions import Decision, Loop, OnDecision
from engine.decide.entrance import Entrance
from engine.decide.lanes import CORES
from engine.decide.passage import running_by_resource
from engine.decide.rungs import Changed, Ladder
from engine.decide.signals import ResourceSignals
from engine.decide.way import StageCost, Way
from engine.run.pool import Pool
from engine.spec.operator import OfRanges
from engine.spec.workflow import MEDIA

ESTIMATE_NS = 1_000_000_000
SAID_NS = 10 * ESTIMATE_NS  # what is said of streams of which nothing comes may be older: there may be hundreds
DECODING = "decoding"  # as if it were a stage of its own
DECODE_MEMORY = 20  # segments


class Ways:
    """One for each worker. Stages are `engine.run.host.GroupStage`; `pools` are all of the worker's."""

    def __init__(
        self,
        num_cores: int,
        pools: Callable[[], Iterable[Pool]],
        on_decision: OnDecision = lambda decision: None,
    ) -> None:
        self._on_decision = on_decision
        self._num_cores = num_cores
        self._pools = pools
        self._groups: dict[str, dict[str, Mapping[str, Any]]] = {}  # stages, by stream and group
        self._known: dict[str, tuple[int, Ladder]] = {}
        self._decode_s: dict[str, float] = {}  # by stream, of a segment
        self._first: dict[str, str] = {}  # by stream: the stage at which what comes is counted
        self._entrance = Entrance()

    def serve(self, stream: str, group: str, stages: Mapping[str, Any]) -> None:
        """From now on a group runs these of a stream's stages, by their id."""
        self._groups.setdefault(stream, {})[group] = stages
        self._known.pop(stream, None)
        self._first.pop(stream, None)

    def leave(self, stream: str, group: str, stages: Mapping[str, Any]) -> None:
        """A group does not run these any more; another of its name may have come in its place."""
        groups = self._groups.get(stream, {})
        if groups.get(group) is stages:
            del groups[group]
            self._known.pop(stream, None)
            self._first.pop(stream, None)
        if not groups:
            self._entrance.forget(stream)
            for kept in (self._groups, self._known, self._decode_s, self._first):
                kept.pop(stream, None)

    def segment_s(self, stream: str, now_ns: int) -> dict[str, float]:
        """What a segment takes here on the best rungs, in seconds of a lane, by resource."""
        found: dict[str, float] = {}
        for resource, seconds in self._ladder(stream, now_ns, SAID_NS).way({}).work_s.values():
            found[resource] = found.get(resource, 0.0) + seconds
        return found

    def resources(self) -> tuple[ResourceSignals, ...]:
        """What batches take up of which there can be more: not what batches by itself, nor the event loop."""
        found: dict[str, ResourceSignals] = {
            CORES: ResourceSignals(CORES, self._num_cores, waiting_s=0.0, **self._asked(CORES))
        }
        for pool in self._pools():
            if pool.operator.runs_in in ("loop", "async"):
                continue
            signals, unit_s = pool.signals(with_history=False), pool.learned.unit_s
            known = found.get(pool.resource)
            if known is None:
                known = ResourceSignals(pool.resource, pool.num_shared_lanes, **self._asked(pool.resource))
            num_prompt = signals.num_waiting - signals.num_patient
            is_known = known.waiting_s is not None and (unit_s is not None or not num_prompt)
            found[pool.resource] = msgspec.structs.replace(
                known,
                num_refused=known.num_refused + signals.num_late,
                waiting_s=(known.waiting_s or 0.0) + num_prompt * (unit_s or 0.0) if is_known else None,
                patient_s=known.patient_s + signals.num_patient * (unit_s or 0.0),
            )
        return tuple(found.values())

    def _asked(self, resource: str) -> dict[str, Any]:
        told = self._entrance
        return {
            "num_asked": told.num_asked.get(resource, 0),
            "asked_s": told.asked_s.get(resource, 0.0),
            "num_refused": told.num_refused(resource),
        }

    def of(self, stream: str, now_ns: int) -> Way:
        """Through a stream's stages, on the rungs that new segments take; as of a second ago at most. `now_ns`: Unix
        time."""
        return self._ladder(stream, now_ns).way(self._entrance.now_on(stream))

    def rung_of(self, stream: str, index: int, stage: str, now_ns: int) -> int:
        """Which of its rungs a stage takes for a segment that was begun here."""
        running = partial(running_by_resource, self._pools())
        rung, changes = self._entrance.rung_of((stream, index), stage, now_ns, self._ladder(stream, now_ns), running)
        for changed in changes:
            went_by = {f"{resource}_running_s": seconds for resource, seconds in running().items()}
            self._tell("held up", stream, index, changed, went_by, "for what is left of it")
        return rung

    def way_of(self, stream: str, index: int, now_ns: int) -> Way:
        """Through a stream's stages, on the rungs that a segment takes."""
        return self._entrance.way_of((stream, index), self._ladder(stream, now_ns))

    def rung_now(self, stream: str, stage: str) -> int:
        """Which of its rungs a stage takes for new segments."""
        return self._entrance.now_on(stream).get(stage, 0)

    def _ladder(self, stream: str, now_ns: int, max_age_ns: int = ESTIMATE_NS) -> Ladder:
        known = self._known.get(stream)
        if known is None or now_ns > known[0] + max_age_ns:
            known = now_ns, self._estimated(stream)
            if stream in self._groups:
                self._known[stream] = known
        return known[1]

    def note_decoded(self, stream: str, took_s: float) -> None:
        """A segment's media were decoded."""
        if stream in self._groups:
            before_s = self._decode_s.setdefault(stream, took_s)
            self._decode_s[stream] = before_s + (took_s - before_s) / DECODE_MEMORY

    def enters(self, stream: str, index: int, due_ns: int, lag_s: float, now_ns: int) -> str:
        """Why a segment is not begun; empty where it is, on rungs that are chosen now."""
        segment = stream, index
        if (said := self._entrance.said(segment)) is not None:  # as of most that ask
            return said
        running_s = running_by_resource(self._pools())
        stages = self._stages(stream)
        latencies_s = [each.rule.running.latency_s for each in stages.values()]
        latency_s = min((each for each in latencies_s if each), default=0.0)
        when = due_ns, lag_s, latency_s, now_ns
        ladder = self._ladder(stream, now_ns)
        weight = max((each.rule.running.weight for each in stages.values()), default=0.0) or 1.0
        why, changes = self._entrance.enters(
            segment, *when, ladder, running_s, by_latency=all(latencies_s), weight=weight
        )
        if not (why or changes):
            return ""
        went_by = {"left_s": (due_ns - now_ns) / 1e9, "max_lag_s": lag_s, "latency_s": latency_s}
        went_by |= {f"{resource}_running_s": seconds for resource, seconds in running_s.items()}
        for changed in changes:
            self._tell("rungs", stream, index, changed, went_by, "from now on")
        if why:
            about = {"stream": stream, "segment": str(index)}
            self._on_decision(Decision(at_ns=0, loop="passage", what="not begun", why=why, inputs=went_by, **about))
        return why

    def _tell(
        self, loop: Loop, stream: str, index: int, changed: Changed, went_by: Mapping[str, float], since: str
    ) -> None:
        """That a stage goes to another rung."""
        stage = self._stages(stream)[changed.stage]
        what = f"rung {stage.rungs[changed.rung].planned.rung} {since}"
        about = {"stream": stream, "segment": str(index), "stage": stage.rule.name}
        self._on_decision(Decision(at_ns=0, loop=loop, what=what, why=changed.why, inputs=dict(went_by), **about))

    def asked(self, stream: str, stage: str, now_ns: int, *, is_late: bool = False) -> None:
        """A segment of a live stream came to one of its stages. It is counted at one that reads the media, the same
        wherever it is done: each of its outputs is decided by one worker."""
        first = self._first.get(stream)
        if first is None:
            stages = self._stages(stream)
            first = self._first[stream] = min((id for id in stages if MEDIA in stages[id].rule.sources), default="")
        if stage == first:
            self._entrance.asked(self._ladder(stream, now_ns), is_late=is_late)

    def passed(self, stream: str, index: int, stage: str) -> None:
        """A stage has begun on a segment, or there is nothing to do of it."""
        self._entrance.passed((stream, index), stage)

    def lost(self, stream: str, index: int) -> None:
        """A segment that was begun will not be whole in time."""
        self._entrance.lost((stream, index))

    def _stages(self, stream: str) -> dict[str, Any]:
        """Of all its groups, by id."""
        return {id: stage for stages in self._groups.get(stream, {}).values() for id, stage in stages.items()}

    def _estimated(self, stream: str) -> Ladder:
        costs = {
            id: [
                StageCost.on(rung.pool, stage.rule.sources, stage.opens.share, rung.planned.quality)
                for rung in stage.rungs
            ]
            for id, stage in self._stages(stream).items()
            if not isinstance(stage.rule.scope, OfRanges)  # which is not made of each segment
        }
        if decode_s := self._decode_s.get(stream, 0.0):
            costs[DECODING] = [StageCost((MEDIA,), CORES, self._num_cores, decode_s, decode_s)]
        return Ladder(costs)
