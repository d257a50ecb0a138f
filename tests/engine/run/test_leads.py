"""What is left to do behind each stage, of all groups that serve a stream."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from engine.run.leads import ESTIMATE_NS, NONE, LeadsOfStreams


@dataclass
class Stage:
    rule: Any
    pool: Any


def stage(service_s: float | None, *sources: str) -> Stage:
    return Stage(SimpleNamespace(sources=sources), SimpleNamespace(service_s=service_s))


def test_what_other_groups_do_behind_a_stage_counts() -> None:
    leads = LeadsOfStreams()
    look = {"look": stage(0.5, "media")}
    leads.serve("gate", "second", {"read": stage(2.0, "look"), "tell": stage(0.25, "read")})
    leads.serve("gate", "first", look)
    leads.serve("yard", "first", {"look": stage(9.0, "media")})
    found = leads.of("gate", 0)
    assert {id: ns / 1e9 for id, ns in found.with_it.items()} == {"look": 2.75, "read": 2.25, "tell": 0.25}
    assert {id: ns / 1e9 for id, ns in found.behind.items()} == {"media": 2.75, "look": 2.25, "read": 0.25}
    leads.leave("gate", "second", {})  # one that had the name before
    assert leads.of("gate", 1) == found
    second = leads._groups["gate"]["second"]
    leads.leave("gate", "second", second)
    assert leads.of("gate", 1).with_it == {"look": 500_000_000}
    leads.leave("gate", "first", look)
    assert leads.of("gate", 1) is NONE
    assert leads.of("yard", 1).with_it == {"look": 9_000_000_000}


def test_it_is_worked_out_anew_once_a_second() -> None:
    leads, slow = LeadsOfStreams(), stage(1.0, "media")
    leads.serve("gate", "first", {"look": slow})
    before = leads.of("gate", 0)
    slow.pool.service_s = 3.0
    assert leads.of("gate", ESTIMATE_NS) is before
    assert leads.of("gate", ESTIMATE_NS + 1).with_it == {"look": 3_000_000_000}
