"""The pools of a worker: one for each rung that its stages need, kept for a while after the last of them."""

import itertools
import time
from collections.abc import Callable, Collection, Sequence

import anyio
import anyio.abc
import structlog

from engine.decide.decisions import OnDecision
from engine.decide.lanes import is_worker_to_end
from engine.decide.reconcile import lacking_rung
from engine.run.cores import Cores
from engine.run.host import StageRung
from engine.run.pool import Pool
from engine.run.profiles import Profiles
from engine.spec.catalogue import Catalogue
from engine.spec.operator import Device, shares_work
from engine.spec.plan import PlannedRung, PlannedStage, on_rung, settings_of
from engine.spec.profile import Expected, OnRung
from engine.spec.workflow import MEDIA
from streams.errors import PenstockError
from streams.records import encode

log = structlog.get_logger(__name__)

LOOK_FOR_HELD_S = 1.0
KEEP_S = 600.0  # one that no job needs: the next job that does finds its models loaded


class Pools:
    """Made for one worker. `now_ns` is the server's time; `on_batch` is told a pool's name, a batch's size and the
    seconds it took."""

    def __init__(
        self,
        catalogue: Catalogue,
        num_cores: int,
        now_ns: Callable[[], int],
        on_change: Callable[[], None],
        on_batch: Callable[[str, int, float], None],
        profiles: Profiles | None = None,
        on_decision: OnDecision = lambda decision: None,
    ) -> None:
        self._on_decision = on_decision
        self.cores = Cores(num_cores, now_ns)
        self._catalogue = catalogue
        self._now_ns = now_ns
        self._on_change = on_change
        self._on_batch = on_batch
        self._profiles = profiles
        self._pools: dict[bytes, tuple[Pool, float]] = {}  # by rung; when it was last needed (monotonic)

    def of(self, capability: str, rung: PlannedRung, tasks: anyio.abc.TaskGroup) -> Pool:
        """One for all stages on the same rung, whatever the stream."""
        key = encode([capability, rung.implementation, rung.rung, rung.version, rung.knobs, rung.device])
        pool = self._pools[key][0] if key in self._pools else self._made(capability, rung, tasks)
        self._pools[key] = pool, time.monotonic()
        return pool

    def need(self, pools: Collection[Pool]) -> None:
        """They are needed still."""
        for rung, (pool, _) in self._pools.items():
            if pool in pools:
                self._pools[rung] = pool, time.monotonic()

    def tend(self) -> None:
        """Let go of those that nobody has needed for long."""
        since_s = time.monotonic() - KEEP_S
        self.tell_profiles()
        self._pools = {rung: kept for rung, kept in self._pools.items() if kept[1] >= since_s}

    def tell_profiles(self) -> None:
        """Keep what was learned, for whoever works here next."""
        if self._profiles is None:
            return
        for pool in self.all():
            if (seen := pool.expectation.seen(pool.learned, self._profiles.machine)) is not None:
                try:
                    self._profiles.keep_seen(seen)
                except PenstockError as error:
                    log.info("profile_not_kept", pool=pool.name, error=str(error))

    async def end_when_held(self) -> None:
        """Until a thread holds a core so long past its time that the worker is to end: then raises PenstockError."""
        while not is_worker_to_end(pool.overdue_s for pool in self.all()):  # noqa: ASYNC110 - threads tell nobody
            await anyio.sleep(LOOK_FOR_HELD_S)
        raise PenstockError("an operator's thread goes on past its time: this worker ends, and with it the thread")

    def all(self) -> Sequence[Pool]:
        return [pool for pool, _ in self._pools.values()]

    def _made(self, capability: str, rung: PlannedRung, tasks: anyio.abc.TaskGroup) -> Pool:
        operator = self._catalogue.implementation(capability, rung.implementation)
        name = self._name(f"{capability}/{rung.implementation}/{rung.rung}")
        on = on_rung(capability, rung)
        return Pool(
            operator,
            settings_of(operator.Knobs, rung.knobs),
            Device(rung.device),
            self.cores,
            tasks,
            name=name,
            now_ns=self._now_ns,
            on_change=self._on_change,
            on_batch=lambda batch_size, service_s: self._on_batch(name, batch_size, service_s),
            on=None if shares_work(operator) else on,  # what its items take on average is no item's time
            on_decision=self._on_decision,
            expected=self._expected(on),
        )

    def _expected(self, on: OnRung) -> Expected | None:
        """What is known of it beforehand; nothing, whatever is wrong with what is kept."""
        try:
            return None if self._profiles is None else self._profiles.expected(on)
        except Exception as error:
            log.warning("profile_passed_over", pool=on.rung, error=f"{type(error).__name__}: {error}")
            return None

    def _name(self, rung: str) -> str:
        """No two pools have the same: the same rung may be wanted on another device, or with other knobs."""
        taken = {pool.name for pool in self.all()}
        return next(
            name for name in itertools.chain([rung], (f"{rung}#{n}" for n in itertools.count(2))) if name not in taken
        )


def stage_rungs(
    planned: PlannedStage, catalogue: Catalogue, served: frozenset[str], pool_of: Callable[[str, PlannedRung], Pool]
) -> tuple[StageRung, ...]:
    """The rungs that a stage may run on here, with their pools: the best, and those below that can be served, too."""
    found = []
    for rung in planned.rungs:
        if rung is not planned.rung and lacking_rung(planned, rung, catalogue, served) is not None:
            continue
        operator = catalogue.implementation(planned.capability, rung.implementation)
        asking = operator(settings_of(operator.Knobs, rung.knobs))
        demands = asking.demands() if MEDIA in planned.sources else ()
        found.append(StageRung(rung, pool_of(planned.capability, rung), demands, asking.demands_for))
    return tuple(found)
