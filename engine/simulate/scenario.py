"""Scenarios: what is simulated, as a file says it.

seed = 1
duration_s = 60
num_cores = 2

[pools.detector]
max_batch = 4
service = { base_s = 0.01, per_item_s = 0.03, spread = "lognormal", cv = 0.2 }

[stages.objects]
pool = "detector"

[[streams]]
num = 8
max_lag_s = 2.0
arrivals = { per_s = 0.5 }

[[phases]]
at_s = 20
load = 3.0
"""

from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from engine.decide.lanes import CORES, PoolShape, RunsIn
from engine.simulate.arrivals import Arrivals, Phase
from engine.simulate.services import Service, Slow
from engine.spec.objective import Weight
from engine.spec.workflow import MEDIA
from streams.decoding import from_toml
from streams.errors import Malformed, UserError

NotNegative = Annotated[float, Meta(ge=0, le=1e7)]
MAX_STREAMS = 10_000  # that are told apart
MAX_SEGMENTS = 5_000_000  # each takes a while and some memory


class ReplicasSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many replicas there may be: of a pool on devices of its own, each of which is loaded on one more; or of
    workers, each of which brings cores."""

    least: Annotated[int, Meta(ge=0, le=1024)] = 1
    most: Annotated[int, Meta(ge=1, le=1024)] = 1
    begin: Annotated[int, Meta(ge=0, le=1024)] = 1
    lanes: Annotated[int, Meta(ge=1, le=1024)] = 1  # that each brings
    start_s: NotNegative = 0.0  # until one that is wanted works

    def __post_init__(self) -> None:
        if not self.least <= self.begin <= self.most:
            raise UserError(f"of replicas there are {self.begin} at the beginning, not {self.least} to {self.most}")


class Fails(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Replicas that die: what runs on them is lost, and noticed some time later. `of`: a pool, or `cores`."""

    of: str
    at_s: NotNegative
    num: Annotated[int, Meta(ge=1, le=1024)] = 1


class Unheard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A while in which nothing is heard of how things stand."""

    from_s: NotNegative
    to_s: NotNegative


class SimulatedPoolSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rung on one kind of device."""

    service: Service
    max_batch: Annotated[int, Meta(ge=1, le=4096)] = 1
    runs_in: RunsIn = "thread"
    num_instances: Annotated[int, Meta(ge=0, le=1024)] = 0  # on a GPU of its own; 0: on the processor, as cores allow
    max_async: Annotated[int, Meta(ge=1, le=100_000)] = 16
    is_cold: bool = False  # nothing is loaded at the beginning
    replicas: ReplicasSpec | None = None  # None: always as many as there are

    @property
    def shape(self) -> PoolShape:
        return PoolShape(
            runs_in=self.runs_in,
            device="cuda" if self.num_instances or self.replicas else "cpu",
            num_instances=max(1, self.num_instances),  # with replicas: not what holds
            max_async=self.max_async,
        )


class LowerSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rung that may compute a stage under load, and what it is worth against the best."""

    pool: str
    quality: Annotated[float, Meta(ge=0, le=1)]


class StageSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A stage: which pool computes it, on its best rung and on lower ones, the best first; what it reads, and for what
    share of segments its gate is open."""

    pool: str
    lower: tuple[LowerSpec, ...] = ()
    inputs: tuple[str, ...] = (MEDIA,)
    share: Annotated[float, Meta(ge=0, le=1)] = 1.0


class StreamsSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Streams that are alike. `together`: a segment of each comes at the same moment."""

    arrivals: Arrivals
    num: Annotated[int, Meta(ge=1, le=MAX_STREAMS)] = 1
    max_lag_s: NotNegative = 0.0  # 0: whatever comes is wanted however late
    latency_s: NotNegative = 0.0  # within which it is wanted, on lower rungs if need be; 0: as the lag allows
    weight: Weight = 1.0  # among those for which there is not room for all
    together: bool = False
    stages: tuple[str, ...] = ()  # that are computed of them; empty: all


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pools: dict[str, SimulatedPoolSpec]
    stages: dict[str, StageSpec]
    streams: tuple[StreamsSpec, ...]
    duration_s: Annotated[float, Meta(gt=0, le=1e7)] = 60.0
    warm_up_s: NotNegative = 0.0  # what comes before counts for nothing
    num_cores: Annotated[int, Meta(ge=1, le=4096)] = 2
    seed: int = 0
    phases: tuple[Phase, ...] = ()
    slow: tuple[Slow, ...] = ()
    workers: ReplicasSpec | None = None  # which bring the cores; None: `num_cores` are always there
    max_replicas: Annotated[int, Meta(ge=1, le=10_000)] | None = None  # of all pools together
    fails: tuple[Fails, ...] = ()
    unheard: tuple[Unheard, ...] = ()

    def __post_init__(self) -> None:
        if not (self.pools and self.stages and self.streams):
            raise UserError("a scenario needs [pools], [stages] and [[streams]]")
        if MEDIA in self.stages:
            raise UserError(f"no stage can be called {MEDIA!r}: that is what streams bring")
        for name, stage in self.stages.items():
            for pool in (stage.pool, *(rung.pool for rung in stage.lower)):
                if pool not in self.pools:
                    raise UserError(f"stage {name!r} has no pool {pool!r}; there are {', '.join(self.pools)}")
            for source in stage.inputs:
                if source != MEDIA and source not in self.stages:
                    raise UserError(f"stage {name!r} reads {source!r}; there are {', '.join([MEDIA, *self.stages])}")
            if not stage.inputs:
                raise UserError(f"stage {name!r} reads nothing; give it inputs")
        scaled = {name for name, pool in self.pools.items() if pool.replicas} | ({CORES} if self.workers else set())
        for failing in self.fails:
            if failing.of not in scaled:
                raise UserError(f"[[fails]] names no replicas {failing.of!r}; there are {', '.join(scaled) or 'none'}")
        for name, spec in self.pools.items():
            if spec.replicas and spec.runs_in in ("loop", "async"):
                raise UserError(f"pool {name!r} runs in {spec.runs_in!r}, and there is one of it; leave out replicas")
        for each in self.slow:
            if each.pool not in self.pools:
                raise UserError(f"[[slow]] names no pool {each.pool!r}; there are {', '.join(self.pools)}")
        for streams in self.streams:
            for name in streams.stages:
                if name not in self.stages:
                    raise UserError(f"[[streams]] has no stage {name!r}; there are {', '.join(self.stages)}")
                lacking = [each for each in self.stages[name].inputs if each not in (MEDIA, *streams.stages)]
                if lacking:
                    raise UserError(f"[[streams]] with stage {name!r} need {lacking[0]!r}, too, which that reads")
            if streams.arrivals.kind == "trace" and not sum(streams.arrivals.intervals) > 0:
                raise UserError("arrivals of a trace need intervals, in seconds, that are not all 0")
        most = max((1.0, *(phase.load for phase in self.phases)))
        at_times = sum(streams.num * len(streams.arrivals.at_s) for streams in self.streams)
        by_rate = sum(s.num * s.arrivals.per_s for s in self.streams if s.arrivals.kind != "times")
        num = by_rate * most * self.duration_s + at_times
        if not num <= MAX_SEGMENTS:
            raise UserError(f"up to {num:.3g} segments would come; make it fewer than {MAX_SEGMENTS:.3g}")
        self.order()

    def order(self) -> list[str]:
        """Stages, each after those it reads. Raises UserError for a cycle."""
        done: list[str] = []
        left = dict(self.stages)
        while left:
            ready = [name for name, stage in left.items() if all(s == MEDIA or s in done for s in stage.inputs)]
            if not ready:
                raise UserError(f"the stages {', '.join(left)} wait for each other")
            done += ready
            for name in ready:
                del left[name]
        return done


def load_scenario(path: Path) -> Scenario:
    """Raises UserError with the file, the place, and what would be right."""
    try:
        table = from_toml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"cannot read scenario {path}: {why}; give a TOML file") from error
    except Malformed as error:
        raise UserError(f"{path}: not valid TOML: {error}") from error
    try:
        return scenario_of(table)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def scenario_of(table: dict[str, Any]) -> Scenario:
    """Raises UserError."""
    try:
        return msgspec.convert(table, Scenario)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        what, _, place = str(error).partition(" - at ")
        where = place.strip("`").removeprefix("$.") or "the scenario"
        raise UserError(f"{where}: {what[:1].lower()}{what[1:]}") from error
