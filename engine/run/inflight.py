"""How many items of an engine that batches by itself are under way in a pool, as `engine.decide.inflight` says."""

import time
from typing import Any

import structlog

from engine.decide.decisions import Decision, OnDecision
from engine.decide.inflight import InFlight
from engine.spec.operator import Operator
from streams.errors import Permanent

log = structlog.get_logger(__name__)


class PoolLimit:
    """Of one pool."""

    def __init__(self, operator: type[Operator], knobs: Any, pool: str, on_decision: OnDecision) -> None:
        self._pool = pool
        self._on_decision = on_decision
        try:
            most = operator.in_flight(knobs)
        except Exception as error:  # of its owner's file; whoever computes will say so
            log.warning("no_limit", pool=pool, error=f"{type(error).__name__}: {error}")
            most = operator.max_in_flight
        self._in_flight = InFlight(max(1, min(most, operator.max_in_flight)))
        self.why = ""  # it is what it is

    @property
    def limit(self) -> int:
        return self._in_flight.limit

    def began(self, num_waiting: int, has_time_s: float | None) -> None:
        self._in_flight.began(num_waiting, has_time_s)

    def ended(self, num_under_way: float, service_s: float, failed: Exception | None) -> None:
        """An item's own fault says nothing of what serves it."""
        if isinstance(failed, Permanent):
            return
        limit = self.limit
        changed = self._in_flight.ended(num_under_way, service_s, time.monotonic_ns(), failed=failed is not None)
        if changed is not None:
            self.why = changed.why
            went_by = {"max_in_flight": float(limit), "num_in_flight": num_under_way, "service_s": service_s}
            what = f"at most {changed.limit} under way"
            told = Decision(0, "in flight", what, changed.why, pool=self._pool, inputs=went_by)
            self._on_decision(told)
