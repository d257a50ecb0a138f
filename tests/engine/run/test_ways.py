"""What is left to do of each stream, of all groups that serve it, and whether a segment of it is begun."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from engine.decide.decisions import Decision
from engine.decide.rungs import Ladder
from engine.decide.way import Opens
from engine.run.ways import DECODING, ESTIMATE_NS, Ways
from engine.spec.operator import Map, Reduce

S = 10**9


@dataclass
class Stage:
    rule: Any
    rungs: tuple[Any, ...]
    opens: Opens = field(default_factory=Opens)


def stage(service_s: float | None, *sources: str, scope: Any = None, weight: float = 1.0) -> Stage:
    learned = SimpleNamespace(usual_s=service_s, unit_s=service_s, max_batch=1)
    pool = SimpleNamespace(learned=learned, resource="cores", num_shared_lanes=2, running_s=0.0)
    rung = SimpleNamespace(pool=pool, planned=SimpleNamespace(quality=1.0, rung="best"))
    running = SimpleNamespace(latency_s=0.0, weight=weight)
    return Stage(SimpleNamespace(sources=sources, scope=scope or Map(), running=running, name="look"), (rung,))


def ways(*pools: Any) -> Ways:
    return Ways(2, lambda: pools)


def test_what_other_groups_do_behind_a_stage_counts() -> None:
    made = ways()
    look = {"look": stage(0.5, "media")}
    made.serve("gate", "second", {"read": stage(2.0, "look"), "tell": stage(0.25, "read")})
    made.serve("gate", "first", look)
    made.serve("yard", "first", {"look": stage(9.0, "media")})
    found = made.of("gate", 0)
    assert {id: ns / 1e9 for id, ns in found.with_it_ns.items()} == {"look": 2.75, "read": 2.25, "tell": 0.25}
    assert {id: ns / 1e9 for id, ns in found.behind_ns.items()} == {"media": 2.75, "look": 2.25, "read": 0.25}
    made.leave("gate", "second", {})  # one that had the name before
    assert made.of("gate", 1) == found
    second = made._groups["gate"]["second"]
    made.leave("gate", "second", second)
    assert made.of("gate", 1).with_it_ns == {"look": 500_000_000}
    made.leave("gate", "first", look)
    assert made.of("gate", 1) == Ladder({}).way({})
    assert made.of("yard", 1).with_it_ns == {"look": 9_000_000_000}


def test_it_is_worked_out_anew_once_a_second() -> None:
    made, slow = ways(), stage(1.0, "media")
    made.serve("gate", "first", {"look": slow})
    before = made.of("gate", 0)
    slow.rungs[0].pool.learned.usual_s = 3.0
    assert made.of("gate", ESTIMATE_NS) is before
    assert made.of("gate", ESTIMATE_NS + 1).with_it_ns == {"look": 3_000_000_000}


def test_decoding_is_work_of_the_cores_and_what_is_made_of_ranges_is_not_of_each_segment() -> None:
    made = ways()
    made.note_decoded("gate", 5.0)  # of a stream that nobody serves
    made.serve("gate", "first", {"look": stage(1.0, "media"), "sum": stage(7.0, "look", scope=Reduce())})
    made.note_decoded("gate", 0.5)
    assert made.of("gate", 0).work_s == {"look": ("cores", 1.0), DECODING: ("cores", 0.5)}


def test_a_stream_has_the_weight_of_the_job_that_gives_it_most() -> None:
    made = ways()
    for name, weights in {"plain": [1.0], "dear": [4.0], "both": [1.0, 4.0]}.items():
        made.serve(name, "first", {f"look{weight}": stage(1.0, "media", weight=weight) for weight in weights})
        made.enters(name, 0, 3 * S, 3.0, 0)
    streams = made._entrance._passage._streams
    assert {name: stream.weight for name, stream in streams.items()} == {"plain": 1.0, "dear": 4.0, "both": 4.0}


def test_what_is_left_of_a_segment_that_was_held_up_goes_down_and_that_is_told() -> None:
    told: list[Decision] = []
    look, read, quick = stage(0.5, "media"), stage(1.0, "look"), stage(0.1, "look")
    quick.rungs[0].planned = SimpleNamespace(quality=0.8, rung="quick")
    read.rungs, read.rule.name = (*read.rungs, *quick.rungs), "read"
    made = Ways(2, lambda: [each.pool for each in (*look.rungs, *read.rungs)], told.append)
    made.serve("gate", "first", {"look": look, "read": read})
    assert not made.enters("gate", 0, 3 * S, 3.0, 0)
    assert made.rung_of("gate", 0, "look", 0) == 0
    made.passed("gate", 0, "look")
    assert made.rung_of("gate", 0, "read", 1 * S) == 0
    assert told == []
    assert made.rung_of("gate", 0, "read", round(2.6 * S)) == 1
    (decision,) = told
    assert (decision.loop, decision.stream, decision.segment, decision.stage) == ("held up", "gate", "0", "read")
    assert decision.inputs == {"cores_running_s": 0.0}
    assert decision.what == "rung quick for what is left of it"
    assert "1.25 s more, and 0.40 s are left" in decision.why


def test_a_segment_is_begun_behind_what_runs_and_what_was_begun() -> None:
    look = stage(1.0, "media")
    made = ways(look.rungs[0].pool)
    made.serve("gate", "first", {"look": look, "tell": stage(0.0, "media")})
    assert not made.enters("gate", 0, 3 * S, 3.0, 0)
    assert not made.enters("gate", 1, 3 * S, 3.0, 0)
    look.rungs[0].pool.running_s = 2.0
    assert "cores would take 3.25 s, and 3.00 s are left" in made.enters("gate", 2, 3 * S, 3.0, 0)
    made.passed("gate", 0, "look")
    assert "as a whole" in made.enters("gate", 2, 3 * S, 3.0, 0)
    assert not made.enters("gate", 3, 3 * S, 3.0, 0)
    made.lost("gate", 3)
