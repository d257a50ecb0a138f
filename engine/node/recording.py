"""Recording: what came and what was done of it over the last while, read from the ledger."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt

import msgspec

from engine.run.registry import Registry
from engine.spec.catalogue import Catalogue
from engine.spec.jobs import JobSpec
from engine.spec.operator import OfRanges
from engine.spec.plan import PlannedRung, PlannedStage, settings_of
from engine.spec.recording import (
    DECODE,
    MAX_SEGMENTS,
    MAX_STREAMS,
    Outcome,
    RecordedPool,
    RecordedRung,
    RecordedStage,
    RecordedStream,
    Recording,
)
from engine.spec.workflow import MEDIA
from streams import subjects
from streams.errors import Malformed, PenstockError, UserError
from streams.records import Gap, Result, decode_result
from streams.wire.ledger import Ledger, Noted

NS = 1e9


@dataclass(slots=True)
class _Batches:
    """Of one pool: of each size, how many, the sum of how long they took, and of the squares."""

    rung: PlannedRung
    capability: str
    seen: set[tuple[str, int, int]] = field(default_factory=set)  # worker, number, when it began
    sums: dict[int, tuple[int, float, float]] = field(default_factory=dict)

    def note(self, result: Result) -> None:
        measured = result.measured
        if measured is None or not measured.batch_size:
            return
        which = measured.worker, measured.batch, measured.started_ns
        if which in self.seen:
            return
        self.seen.add(which)
        self.add(measured.batch_size, measured.compute_s * measured.batch_size)

    def add(self, size: int, took_s: float) -> None:
        num, total_s, squares = self.sums.get(size, (0, 0.0, 0.0))
        self.sums[size] = num + 1, total_s + took_s, squares + took_s * took_s

    def told(self) -> tuple[tuple[int, int, float, float], ...]:
        return tuple(
            (size, num, total_s / num, sqrt(max(0.0, squares / num - (total_s / num) ** 2)))
            for size, (num, total_s, squares) in sorted(self.sums.items())
        )


class Recorder:
    """Records what is stored on a server of streams with standing jobs."""

    def __init__(self, registry: Registry, ledger: Ledger, catalogue: Catalogue) -> None:
        self._registry = registry
        self._ledger = ledger
        self._catalogue = catalogue
        self._num_left = MAX_SEGMENTS
        self._names: dict[str, str] = {}
        self._pools: dict[str, _Batches] = {}
        self._open: Counter[str] = Counter()  # outputs of gated stages that were computed
        self._shut: Counter[str] = Counter()
        self._took: list[tuple[bool, float, float]] = []  # whole and in time, how long, and its quality

    async def record(self, seconds: float, num_cores: int, now_ns: int, stream: str = "") -> Recording:
        """Of the last so many seconds, of all live streams that somebody asks about or of one. Raises UserError where
        there is nothing to record."""
        since_ns = now_ns - round(seconds * NS)
        jobs = [
            job for job in await self._registry.jobs() if job.standing and job.max_lag_s and stream in ("", job.stream)
        ]
        by_stream: dict[str, list[JobSpec]] = {}
        for job in jobs:
            by_stream.setdefault(job.stream, []).append(job)
        names = self._names = _names(jobs)
        stages: dict[str, RecordedStage] = {}
        streams: dict[str, RecordedStream] = {}
        notices = set[str]()
        for name, asking in list(by_stream.items())[:MAX_STREAMS]:
            planned = {stage.id: stage for job in asking for stage in job.plan.stages}
            left_out = {id for id, stage in planned.items() if isinstance(stage.scope, OfRanges)}
            if left_out:
                told = ", ".join(sorted({names[id] for id in left_out}))
                notices.add(f"stages that reduce ranges are left out: {told}")
            planned = {id: stage for id, stage in planned.items() if id not in left_out}
            latencies_s = [job.latency_s for job in asking]
            latency_s = min(latencies_s) if all(latencies_s) else 0.0
            lag_s = asking[0].max_lag_s
            came_ns = await self._came(name, since_ns, now_ns - round(lag_s * NS))  # of later ones, more may come
            if came_ns:
                await self._results(name, planned.values(), came_ns, lag_s, latency_s)
                came_s = tuple(sorted((at_ns - since_ns) / NS for at_ns in came_ns.values()))
                wanted = tuple(names[id] for id in planned)
                bounds = {"max_lag_s": lag_s, "latency_s": latency_s, "weight": max(job.weight for job in asking)}
                streams[name] = RecordedStream(stages=wanted, came_s=came_s, **bounds)
                stages |= {names[id]: self._stage(stage, names) for id, stage in planned.items()}
        if not streams:
            raise UserError(f"nothing came in the last {seconds:g} s on a live stream that a standing job asks about")
        return Recording(
            began_ns=since_ns,
            seconds=seconds,
            num_cores=num_cores,
            stages={name: self._shared(name, stage) for name, stage in self._with_decoding(stages).items()},
            pools={name: self._pool(batches) for name, batches in self._pools.items()},
            streams={name: self._decoded(each) for name, each in streams.items()},
            outcome=Outcome.of(len(self._took), [(took_s, worth) for good, took_s, worth in self._took if good]),
            notices=tuple(sorted(notices)),
        )

    # --- reading -------------------------------------------------------------------------------------------------

    async def _came(self, stream: str, since_ns: int, until_ns: int) -> dict[int, int]:
        """When segments were stored, by index: the newest first, until one is too old."""
        names = await self._ledger.subjects(subjects.media_of(stream))
        indices = sorted((key.first for key in subjects.keys_of(names)), reverse=True)
        came_ns: dict[int, int] = {}
        for index in indices:
            if self._num_left <= 0:
                break
            self._num_left -= 1
            noted = await self._look(subjects.media(stream, index))
            if noted is None or noted.stored_ns > until_ns:
                continue
            if noted.stored_ns < since_ns:
                break
            came_ns[index] = noted.stored_ns
        return came_ns

    async def _results(
        self, stream: str, planned: Iterable[PlannedStage], came_ns: Mapping[int, int], lag_s: float, latency_s: float
    ) -> None:
        """What became of each of these segments."""
        done_ns: dict[int, int] = dict.fromkeys(came_ns, 0)
        quality = dict.fromkeys(came_ns, 1.0)
        lacking: set[int] = set()
        for stage in planned:
            for index in came_ns:
                noted = await self._look(subjects.result(stage.id, stream, subjects.Key.of(index)))
                record = None if noted is None else _decoded(noted)
                if noted is None or record is None or isinstance(record, Gap):
                    lacking.add(index)
                    continue
                done_ns[index] = max(done_ns[index], noted.stored_ns)
                quality[index] *= self._note(stage, record)
        for index, at_ns in came_ns.items():
            took_s = (done_ns[index] - at_ns) / NS
            in_time = index not in lacking and took_s <= (latency_s or lag_s)
            self._took.append((in_time, took_s, quality[index]))

    async def _look(self, subject: str) -> Noted | None:
        try:
            return await self._ledger.look(subject)
        except PenstockError:  # of one whose pieces are gone nothing can be told
            return None

    def _note(self, stage: PlannedStage, result: Result) -> float:
        """What a result tells of pools and gates; its quality."""
        measured = result.measured
        rung = next((each for each in stage.rungs if each.rung == result.implementation), stage.rung)
        if measured is None:
            return rung.quality
        if measured.held_back:
            self._shut[self._names[stage.id]] += 1
            return 1.0
        self._open[self._names[stage.id]] += 1
        pool = self._pools.setdefault(_pool_name(stage, rung), _Batches(rung, stage.capability))
        pool.note(result)
        if measured.decode_s:
            self._pools.setdefault(DECODE, _Batches(rung, DECODE)).add(1, measured.decode_s)
        return rung.quality

    # --- telling -------------------------------------------------------------------------------------------------

    def _stage(self, stage: PlannedStage, names: Mapping[str, str]) -> RecordedStage:
        for rung in stage.rungs:
            self._pools.setdefault(_pool_name(stage, rung), _Batches(rung, stage.capability))
        return RecordedStage(
            rungs=tuple(RecordedRung(pool=_pool_name(stage, rung), quality=rung.quality) for rung in stage.rungs),
            inputs=tuple(names.get(source, MEDIA) for source in stage.sources),
        )

    def _shared(self, name: str, stage: RecordedStage) -> RecordedStage:
        num = self._open[name] + self._shut[name]  # by the names that they have here
        share = self._open[name] / num if num and self._shut[name] else 1.0
        return RecordedStage(rungs=stage.rungs, inputs=stage.inputs, share=share)

    def _with_decoding(self, stages: Mapping[str, RecordedStage]) -> dict[str, RecordedStage]:
        """As a stage of its own, ahead of those that read the media."""
        if DECODE not in self._pools:
            return dict(stages)
        found = {DECODE: RecordedStage(rungs=(RecordedRung(pool=DECODE),), inputs=(MEDIA,))}
        for name, stage in stages.items():
            inputs = tuple(DECODE if source == MEDIA else source for source in stage.inputs)
            found[name] = RecordedStage(rungs=stage.rungs, inputs=inputs)
        return found

    def _decoded(self, stream: RecordedStream) -> RecordedStream:
        if DECODE not in self._pools:
            return stream
        stages = (DECODE, *stream.stages)
        return msgspec.structs.replace(stream, stages=stages)

    def _pool(self, batches: _Batches) -> RecordedPool:
        if batches.capability == DECODE:
            return RecordedPool(batches=batches.told())
        try:
            operator = self._catalogue.implementation(batches.capability, batches.rung.implementation)
            in_flight = operator.in_flight(settings_of(operator.Knobs, batches.rung.knobs))
        except Exception:  # it is installed elsewhere, or its owner's file is gone
            return RecordedPool(device=batches.rung.device, batches=batches.told())
        return RecordedPool(
            max_batch=operator.max_batch if operator.runs_in != "async" else 1,
            runs_in=operator.runs_in,
            device=batches.rung.device,
            num_instances=operator.num_instances,
            max_in_flight=max(1, min(in_flight, operator.max_in_flight)),
            batches=batches.told(),
        )


def _names(jobs: Sequence[JobSpec]) -> dict[str, str]:
    """Of stages, by id: their own, with a number where several have it."""
    found: dict[str, str] = {}
    for job in jobs:
        for stage in job.plan.stages:
            if stage.id not in found:
                taken = sum(name == stage.name or name.startswith(f"{stage.name}#") for name in found.values())
                found[stage.id] = stage.name if not taken else f"{stage.name}#{taken + 1}"
    return found


def _pool_name(stage: PlannedStage, rung: PlannedRung) -> str:
    return f"{stage.capability}/{rung.implementation}/{rung.rung}@{rung.device}"


def _decoded(noted: Noted) -> Result | Gap | None:
    try:
        record = decode_result(noted.record.data)
    except Malformed:
        return None
    return record if isinstance(record, Result | Gap) else None
