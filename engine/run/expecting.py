"""What a pool expects of its rung before its first batch, whether that holds, and what is kept of what it learns."""

import time

from engine.decide.answer import time_of_day
from engine.decide.decisions import Decision, OnDecision
from engine.decide.drift import Drift
from engine.decide.learned import Learned
from engine.spec.profile import Expected, OnRung, Seen

MIN_BATCHES = 20  # since it was last told, for it to be worth telling


class Expectation:
    """Of one pool. `on`: under which what it learns is kept; None: it is not."""

    def __init__(self, pool: str, on: OnRung | None, expected: Expected | None, on_decision: OnDecision) -> None:
        self._pool = pool
        self._on_decision = on_decision
        self._on = on
        self._expected = expected
        profiled = None if expected is None else expected.profiled
        self._drift = None if profiled is None else Drift(*profiled)
        self._num = self._num_told = 0  # batches

    def tell(self, learned: Learned) -> None:
        """What is expected."""
        if self._expected is not None:
            learned.expect(self._expected.base_s, self._expected.per_item_s, self._expected.spread)

    def note(self, batch_size: int, service_s: float) -> None:
        """A batch, none that waited for its model to be loaded."""
        self._num += 1
        if self._drift is not None and self._drift.note(batch_size, service_s):
            what = f"batches take {self._drift.ratio:.2f} times what was measured"
            why = "the media are others than the profile's, or the machine is: `penstock profile` measures anew"
            went_by = {"batch_size": float(batch_size), "service_s": service_s, "ratio": self._drift.ratio or 0.0}
            self._on_decision(Decision(0, "profile", what, why, pool=self._pool, inputs=went_by))

    @property
    def drift(self) -> float | None:
        return None if self._drift is None else self._drift.ratio

    def seen(self, learned: Learned, machine: str) -> Seen | None:
        """What was learned, where there is anything new to it."""
        line = learned.curve.line or ((0.0, learned.curve.mean_s(1)) if learned.max_batch == 1 else None)
        if self._on is None or line is None or self._num - self._num_told < MIN_BATCHES:
            return None
        self._num_told = self._num
        base_s, per_item_s = line
        return Seen(
            **self._on._asdict(),
            machine=machine,
            at=time_of_day(time.time_ns()),
            base_s=base_s,
            per_item_s=per_item_s,
            spread=learned.curve.spread,
            num_batches=self._num,
            drift=self.drift,
        )
