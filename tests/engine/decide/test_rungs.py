"""Which rungs new segments take: down where they would not be done in time, up where the machine would carry it."""

from collections.abc import Mapping
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.decide.entrance import Entrance
from engine.decide.rungs import CARRIES, HOLD_S, TRY_S, Changed, Ladder, Rungs
from engine.decide.way import StageCost, Way

S = 10**9


def cost(seconds: float | None, quality: float = 1.0, resource: str = "cores") -> StageCost:
    return StageCost(("media",), resource, 2, seconds, seconds, quality=quality)


DETECT = [cost(0.4), cost(0.1, 0.6)]
READ = [cost(0.6), cost(0.2, 0.9), cost(0.1, 0.5)]
LADDER = Ladder({"detect": DETECT, "read": READ})


def took(way: Way) -> tuple[float, str]:
    """As if a segment took nothing but its own work."""
    return sum(seconds for _, seconds in way.work_s.values()), "cores"


def carried(way: Way) -> bool:
    return True


def test_steps_lose_the_least_quality_for_each_second_they_save() -> None:
    """0.1 for 0.4 s; then 0.4 for 0.3 s; then 0.44 for 0.1 s."""
    rungs: dict[str, int] = {}
    steps = []
    while (stage := LADDER.step_down(rungs, "cores", LADDER.stages)) is not None:
        rungs[stage] = rungs.get(stage, 0) + 1
        steps.append((stage, rungs[stage]))
    assert steps == [("read", 1), ("detect", 1), ("read", 2)]
    assert LADDER.step_down({}, "gpu", LADDER.stages) is None  # none would relieve that


@pytest.mark.parametrize(("left_s", "rungs"), [(1.0, {}), (0.7, {"read": 1}), (0.35, {"read": 1, "detect": 1})])
def test_a_segment_goes_down_as_far_as_it_must(left_s: float, rungs: Mapping[str, int]) -> None:
    chosen = Rungs()
    changes = chosen.choose(LADDER, left_s, 0, took, carried)
    assert chosen.now == rungs
    assert len(changes) == len(rungs)
    assert all(change.why for change in changes)


def test_where_no_rung_would_do_it_goes_down_a_step_a_segment_to_the_last() -> None:
    chosen = Rungs()
    num = [len(chosen.choose(LADDER, 0.0, now_ns, took, carried)) for now_ns in range(5)]
    assert num == [1, 1, 1, 0, 0]
    assert chosen.now == {"read": 2, "detect": 1}


def test_it_goes_up_step_by_step_as_long_as_the_machine_carries_it() -> None:
    chosen = Rungs()
    chosen.choose(LADDER, 0.35, 0, took, carried)
    later = HOLD_S * S
    assert chosen.choose(LADDER, 5.0, round(later) - 1, took, carried) == []
    assert chosen.choose(LADDER, 5.0, round(later), took, lambda way: False) == []
    assert chosen.choose(LADDER, 1.0, round(later), took, carried) == []  # 0.6 s there, of 1 s
    (up,) = chosen.choose(LADDER, 5.0, round(later), took, carried)
    assert (up.stage, up.rung, chosen.now) == ("detect", 0, {"read": 1})
    assert chosen.choose(LADDER, 5.0, round(later) + 1, took, carried) == []
    (up,) = chosen.choose(LADDER, 5.0, round(2 * later), took, carried)
    assert (up.stage, up.rung, chosen.now) == ("read", 0, {})


def test_a_rung_that_has_never_run_is_tried() -> None:
    ladder = Ladder({"detect": [cost(0.4), cost(None, 0.6)]})
    chosen = Rungs()
    assert [change.rung for change in chosen.choose(ladder, 0.1, 0, took, carried)] == [1]


def test_a_stage_that_is_no_more_or_has_fewer_rungs_is_forgotten() -> None:
    chosen = Rungs()
    chosen.choose(LADDER, 0.2, 0, took, carried)
    assert chosen.now == {"read": 2, "detect": 1}
    chosen.choose(Ladder({"read": READ[:2]}), 9.0, 1, took, lambda way: False)
    assert chosen.now == {}
    assert chosen.choose(LADDER, 0.35, 2, took, carried)  # and goes down again


ASKED = st.lists(st.tuples(st.floats(0, 5), st.floats(0, 3), st.booleans()), max_size=80)


@given(ASKED)
def test_it_never_flaps(asked: list[tuple[float, float, bool]]) -> None:
    chosen, now_ns, ups, downs = Rungs(), 0, list[int](), 0
    for after_s, left_s, carries in asked:
        now_ns += round(after_s * S)
        before = dict(chosen.now)
        for change in chosen.choose(LADDER, left_s, now_ns, took, lambda way, carries=carries: carries):
            assert change.why
            if change.rung < before.get(change.stage, 0):
                ups.append(now_ns)
                assert carries
            else:
                downs += 1
            before[change.stage] = change.rung
        assert {id: rung for id, rung in before.items() if rung} == chosen.now
    assert all(later - earlier >= HOLD_S * S for earlier, later in pairwise(ups))
    assert downs <= len(ups) + 3


def test_a_segment_keeps_its_rungs_through_all_its_stages() -> None:
    entrance = Entrance()
    entered = ("cam", 0), 10 * S, 10.0, 2.0, 0, LADDER
    assert entrance.enters(*entered, {}) == ("", [])
    why, changes = entrance.enters(("cam", 1), 10 * S, 10.0, 2.0, 0, LADDER, {"cores": 2.0})  # behind 1 s of a core
    assert (why, [(change.stage, change.rung) for change in changes]) == ("", [("read", 1)])
    assert [on(entrance, index, 0)[0] for index in (0, 1, 2)] == [0, 1, 0]
    assert entrance.enters(*entered, {"cores": 99.0}) == ("", [])  # of another stage
    assert entrance.now_on("cam") == {"read": 1}
    entrance.forget("cam")
    assert entrance.now_on("cam") == {}
    assert on(entrance, 1, 0)[0] == 1


def test_what_is_left_of_a_segment_that_was_held_up_goes_down_for_it_alone() -> None:
    entrance = Entrance()
    assert entrance.enters(("cam", 0), 10 * S, 10.0, 4.0, 0, LADDER, {}) == ("", [])
    entrance.passed(("cam", 0), "detect")
    assert on(entrance, 0, 3 * S) == (0, [])
    rung, changes = on(entrance, 0, round(3.5 * S))  # 0.5 s are left, reading takes 0.6 s, or 0.2 s
    assert (rung, [(each.stage, each.rung) for each in changes]) == (1, [("read", 1)])
    assert changes[0].why == "cores would take 0.75 s more, and 0.50 s are left of what is asked for"
    assert on(entrance, 0, round(3.5 * S)) == (1, [])
    assert entrance.now_on("cam") == {}, "the stream's rungs are as they were"
    assert entrance.enters(("cam", 1), 10 * S, 10.0, 4.0, 0, LADDER, {}) == ("", [])
    entrance.passed(("cam", 1), "detect")
    assert on(entrance, 1, 3 * S) == (0, []), "what is left of the other counts for less now"
    assert on(entrance, 1, round(3.95 * S)) == (0, []), "none would do"
    assert on(entrance, 1, 5 * S) == (0, []), "it is late in any case"


def costs(source: str, *seconds: float, resource: str = "cores") -> list[StageCost]:
    return [StageCost((source,), resource, 2, each, each, quality=0.9**at) for at, each in enumerate(seconds)]


# detect, then watch; read beside both
BRANCHED = Ladder(
    {"detect": costs("media", 0.4, 0.1), "watch": costs("detect", 0.6, 0.1), "read": costs("media", 0.6, 0.1)}
)


def test_only_what_follows_goes_down_for_others_may_have_been_handed_in() -> None:
    entrance = Entrance()
    assert entrance.enters(("cam", 0), 10 * S, 10.0, 4.0, 0, BRANCHED, {}) == ("", [])
    entrance.passed(("cam", 0), "detect")
    before = dict(entrance._passage._left_s)
    rung, changes = entrance.rung_of(("cam", 0), "watch", round(3.5 * S), BRANCHED, dict)
    assert (rung, [each.stage for each in changes]) == (1, ["watch"])
    assert entrance.rung_of(("cam", 0), "read", 3 * S, BRANCHED, dict) == (0, [])
    assert entrance._passage._left_s["cores"] == pytest.approx(before["cores"] - 0.5), "reading is still to be done"


def test_what_is_left_waits_for_nothing_that_it_does_not_use() -> None:
    judged = Ladder({"look": costs("media", 0.2), "judge": costs("look", 0.6, 0.1, resource="gpu")})
    entrance = Entrance()
    assert entrance.enters(("cam", 0), 10 * S, 10.0, 4.0, 0, judged, {}) == ("", [])
    entrance.passed(("cam", 0), "look")
    rung, (changed,) = entrance.rung_of(("cam", 0), "judge", round(3.5 * S), judged, lambda: {"cores": 9.0})
    assert rung == 1
    assert changed.why.startswith("gpu would take 0.75 s more")


def test_a_latency_holds_also_where_another_job_has_none() -> None:
    entrance = Entrance()
    assert entrance.enters(("cam", 0), 10 * S, 10.0, 4.0, 0, LADDER, {}, by_latency=False) == ("", [])
    entrance.passed(("cam", 0), "detect")
    assert on(entrance, 0, round(3.5 * S))[0] == 1


def test_a_segment_expires_by_the_rungs_that_it_is_on() -> None:
    entrance = Entrance()
    assert entrance.enters(("cam", 0), 10 * S, 10.0, 4.0, 0, LADDER, {}) == ("", [])
    entrance.passed(("cam", 0), "detect")
    assert on(entrance, 0, round(3.5 * S))[0] == 1
    assert entrance.way_of(("cam", 0), LADDER).with_it_ns["read"] == round(0.2 * S)
    assert entrance.way_of(("cam", 1), LADDER).with_it_ns["read"] == round(0.6 * S)


def test_what_is_behind_a_stage_is_all_that_waits_for_it() -> None:
    assert BRANCHED.behind("detect") == {"watch"}
    assert BRANCHED.behind("watch") == frozenset()
    long = Ladder({"c": costs("b", 1.0), "a": costs("media", 1.0), "b": costs("a", 1.0)})
    assert long.behind("a") == {"b", "c"}


def on(entrance: Entrance, index: int, now_ns: int) -> tuple[int, list[Changed]]:
    """Which rung a segment is read on."""
    return entrance.rung_of(("cam", index), "read", now_ns, LADDER, dict)


def test_up_again_only_where_all_that_comes_would_be_carried() -> None:
    """A second of work comes each second on the upper rung, or each half: two lanes carry 1 of them, and not 1.8."""
    for every_s, carries in ((1.0, True), (0.55, False)):
        entrance, found = Entrance(), list[Changed]()
        for number in range(60):
            now_ns = round(number * every_s * S)
            running_s = {"cores": 6.0 if number == 5 else 0.0}
            asked = ("cam", number), now_ns + 10 * S, 10.0, 3.0, now_ns, LADDER, running_s
            found += entrance.enters(*asked)[1]
            entrance.passed(("cam", number), "detect")
            entrance.passed(("cam", number), "read")
        assert [change.rung for change in found if change.stage == "read"] == ([1, 0] if carries else [1])
    assert 0 < CARRIES < 1


def test_another_jobs_bound_refuses_nothing_of_those_without_one() -> None:
    entrance = Entrance()
    asked = 10 * S, 10.0, 0.05, 0, Ladder({"look": [cost(0.4)], "toy": [cost(0.01)]})
    assert entrance.enters(("cam", 0), *asked, {"cores": 0.5}, by_latency=False)[0] == ""
    assert entrance.enters(("cam", 1), *asked, {"cores": 0.5}, by_latency=True)[0]


def test_one_that_misses_its_latency_half_way_goes_on_as_it_was_begun() -> None:
    entrance = Entrance()
    assert entrance.enters(("cam", 0), 10 * S, 10.0, 2.0, 0, LADDER, {}) == ("", [])
    assert entrance.enters(("cam", 0), 10 * S, 10.0, 2.0, 5 * S, LADDER, {"cores": 9.0}) == ("", [])
    assert entrance.now_on("cam") == {}
    why, changes = entrance.enters(("cam", 1), 10 * S, 10.0, 2.0, 5 * S, LADDER, {"cores": 9.0})
    assert why  # it is past its time
    assert changes == []


def test_where_the_way_itself_is_too_long_that_is_made_shorter_whatever_is_waited_for() -> None:
    detect, describe = [cost(0.01)], [cost(3.0, resource="engine"), cost(0.5, 0.7, resource="engine")]
    for stages in ({"detect": detect, "describe": describe}, {"describe": describe, "detect": detect}):
        (changed,) = Rungs().choose(Ladder(stages), 2.0, 0, lambda way: (way.lead_ns / S, "cores"), carried)
        assert (changed.stage, changed.rung) == ("describe", 1)


def test_the_upper_rung_is_tried_again_though_it_was_slow_when_it_ran_last() -> None:
    chosen = Rungs()
    slow = Ladder({"look": [cost(4.0), cost(0.1, 0.8)]})
    chosen.choose(slow, 2.0, 0, took, carried)
    assert chosen.choose(slow, 2.0, round(TRY_S * S), took, carried) == []
    (up,) = chosen.choose(slow, 2.0, round(TRY_S * S) + 1, took, carried)
    assert (up.rung, chosen.now) == (0, {})
