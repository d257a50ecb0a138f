"""Whether a segment is begun: by what is ahead of it, the same for all its stages, and fairly among streams."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.decide.passage import SAFE, SEEN_S, STRICTNESS, TRY_TIMES, Passage
from engine.decide.way import Opens, StageCost, Way

S = 10**9


def way(**stages: tuple[str, float]) -> Way:
    """Stages side by side, each with the resource and the seconds that an item takes, and one that takes nothing; two
    lanes of each."""
    costs = {id: StageCost(("media",), on, 2, each, each) for id, (on, each) in stages.items()}
    return Way.through(costs | {"tell": StageCost(("media",), "cores", 2, 0.0, 0.0)})


LOOK = way(look=("cores", 1.0))


def begun(passage: Passage, number: int, due_s: float = 10.0, now_s: float = 0.0, through: Way = LOOK) -> bool:
    return not passage.enters(("gate", number), round(due_s * S), due_s, round(now_s * S), through, {})


def test_what_is_begun_is_over_in_time_behind_what_was_begun_before() -> None:
    """Two lanes, a second each, and a lead of 1.25 s: of 10 s 17 have 8.75 / 2 or less ahead of them."""
    passage = Passage()
    num = sum(begun(passage, number) for number in range(40))
    assert num == int((10 - SAFE) * 2) + 1
    for number in range(4):
        passage.passed(("gate", number), "look")
    assert sum(begun(passage, number) for number in range(40, 50)) == 4


def test_it_is_decided_once_for_all_stages() -> None:
    passage = Passage()
    assert begun(passage, 0, due_s=1.3)
    assert not begun(passage, 1, due_s=1.3)
    passage.passed(("gate", 0), "look")
    assert begun(passage, 0, due_s=1.3, now_s=1.0)  # of another stage, and by now it would be too late
    assert not begun(passage, 1, due_s=1.3)


def test_what_is_due_later_is_not_ahead() -> None:
    passage = Passage()
    for number in range(10):
        assert begun(passage, number, due_s=100.0)
    assert begun(passage, 10, due_s=1.3)


def test_what_was_due_is_nothing_to_those_that_come() -> None:
    passage = Passage()
    for number in range(30):
        begun(passage, number, due_s=3.0)
    assert begun(passage, 30, due_s=5.0, now_s=3.1)


def test_it_is_the_fullest_resource_that_is_waited_for() -> None:
    passage = Passage()
    both = way(see=("cores", 0.1), hear=("gpu", 2.0))
    assert sum(begun(passage, number, through=both) for number in range(20)) == 8  # 7 s of the GPU ahead, and 2.5
    assert not begun(passage, 20, through=way(hear=("gpu", 2.0)))
    assert begun(passage, 21, through=way(see=("cores", 2.0)))


def test_what_nothing_is_ahead_of_is_begun_for_what_was_learned_may_be_wrong() -> None:
    passage = Passage()
    assert begun(passage, 0, due_s=0.5)
    assert not begun(passage, 1, due_s=0.5)
    passage.passed(("gate", 0), "look")
    assert begun(passage, 2, due_s=0.5)


def test_of_a_single_stage_that_takes_batches_and_a_single_stream_uses_all_is_begun() -> None:
    """What it drops before its batch costs nothing, and takes nothing from others."""
    alone = Way.through({"look": StageCost(("media",), "cores", 2, 1.0, 1.0, batches=True)})
    passage = Passage()
    assert all(begun(passage, number, due_s=3.0, through=alone) for number in range(20))
    assert passage.enters(("yard", 0), 3 * S, 3.0, 0, alone, {}) == ""  # none of its own was counted before
    assert passage.enters(("yard", 1), 3 * S, 3.0, 0, alone, {})


def test_batches_that_run_are_ahead_and_what_nothing_is_known_of_is_begun() -> None:
    assert Passage().enters(("gate", 0), 3 * S, 3.0, 0, LOOK, {"cores": 4.0})
    unknown = Way.through({"look": StageCost(("media",), "cores", 2, None, None)})
    assert begun(Passage(), 0, due_s=0.001, through=unknown)


def test_a_gate_that_is_shut_mostly_makes_a_stage_cheap() -> None:
    opens = Opens()
    for number in range(500):
        opens.note(is_open=number % 10 == 0)
    assert opens.share == pytest.approx(0.1, abs=0.05)
    cost = StageCost(("media",), "cores", 2, 1.0, 1.0, opens.share)
    assert Way.through({"read": cost}).work_s["read"][1] == pytest.approx(0.1, abs=0.05)


def test_a_stream_that_has_had_more_leaves_room_to_one_that_has_had_less() -> None:
    """Each second a segment of `lucky` comes just before one of `late`, and there is time for one of the two."""
    passage, num, waiting = Passage(), {"lucky": 0, "late": 0}, list[tuple[str, int]]()
    for second in range(200):
        for stream in ("lucky", "late"):
            segment = stream, second
            if not passage.enters(segment, (second + 5) * S, 5.0, second * S, way(look=("cores", 2.0)), {}):
                num[stream] += 1
                waiting.append(segment)
        if waiting:
            passage.passed(waiting.pop(0), "look")
    assert sum(num.values()) == pytest.approx(200, rel=0.1)
    assert num["late"] == pytest.approx(num["lucky"], rel=0.2)


def test_a_stream_that_can_never_be_in_time_takes_nothing_from_the_others() -> None:
    def alone(others: bool) -> int:
        passage, num = Passage(), 0
        for second in range(100):
            if others:
                slow = ("slow", second), (second + 1) * S, 1.0, second * S, way(a=("cores", 30.0))
                assert passage.enters(*slow, {"cores": 0.1})
            for number in range(3):
                asked = (f"s{number}", second), (second + 3) * S, 3.0, second * S, LOOK, {}
                num += not passage.enters(*asked)
        return num

    assert alone(others=True) == alone(others=False)


def test_streams_that_are_gone_count_no_more() -> None:
    passage = Passage()
    for second in range(30):
        passage.enters(("gone", second), (second + 1) * S, 2.0, second * S, LOOK, {"cores": 9.0})
    later_s = 30 + SEEN_S + 1
    for second in range(5):
        at = round((later_s + second) * S)
        assert not passage.enters(("here", second), at + 3 * S, 3.0, at, LOOK, {})
    assert [*passage._streams] == ["here"]
    assert len(passage._fair["cores"]) == 1
    assert passage._fair["cores"].of(1.0) == pytest.approx(1.0)
    assert STRICTNESS > 0


ASKED = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]),
        st.integers(0, 500),  # how long after the one before it came, ms
        st.integers(1, 4000),  # within what time it is due, ms
        st.lists(st.sampled_from(["look", "read", "hear"]), max_size=3),  # what has begun on it
        st.sampled_from([0.5, 1.0, 4.0]),  # the weight of its stream
    ),
    max_size=60,
)


@given(ASKED)
def test_what_is_counted_as_left_is_what_is_left_of_what_was_begun(
    asked: list[tuple[str, int, int, list[str], float]],
) -> None:
    passage, now_ns = Passage(), 0
    through = way(look=("cores", 0.3), read=("cores", 0.2), hear=("gpu", 0.1))
    for number, (stream, after_ms, lag_ms, stages, weight) in enumerate(asked):
        now_ns += after_ms * 1_000_000
        segment, due_ns = (stream, number), now_ns + lag_ms * 1_000_000
        first = passage.enters(segment, due_ns, lag_ms / 1000, now_ns, through, {}, weight=weight)
        assert bool(first) == bool(passage.enters(segment, due_ns, lag_ms / 1000, now_ns, through, {}))
        for stage in stages:
            passage.passed(segment, stage)
        left: dict[str, float] = {}
        for each in passage._begun.values():
            for resource, seconds in each.left_s.values():
                left[resource] = left.get(resource, 0.0) + seconds
        assert {resource: pytest.approx(seconds, abs=1e-9) for resource, seconds in left.items()} == {
            resource: seconds for resource, seconds in passage._left_s.items() if resource in left
        }
        assert len(passage._by_due) + len(passage._over) == len(passage._begun)
        for resource, fair in passage._fair.items():
            known = [each for each in passage._streams.values() if resource in each.resources]
            assert sum(fair.of(each.weight) for each in known) == pytest.approx(sum(each.share for each in known))
        assert all(0 <= each.share <= 1 for each in passage._streams.values())


def test_one_of_a_stream_is_begun_now_and_then_whatever_is_thought_of_it() -> None:
    """Something always runs, and what was learned is wrong: or nothing would ever be learned again."""
    passage, wrong = Passage(), way(look=("cores", 3.9))
    begun_s = [
        second
        for second in range(600)
        if not passage.enters(("gate", second), (second + 3) * S, 3.0, second * S, wrong, {"cores": 0.2})
    ]
    assert len(begun_s) > 5
    assert max(later - earlier for earlier, later in pairwise(begun_s)) <= TRY_TIMES * 3.9 + 1


def test_what_is_slow_and_can_be_in_time_is_begun_where_little_waits() -> None:
    slow = way(look=("cores", 1.7))
    assert not Passage().enters(("gate", 0), 2 * S, 2.0, 0, slow, {"cores": 0.2})


def test_stages_that_other_workers_do_count_for_as_much_as_is_done_here() -> None:
    """Two stages of a second each, of which the second is always done elsewhere: two lanes do two a second."""
    passage, num = Passage(), 0
    both = Way.through({id: StageCost(("media",), "cores", 2, 1.0, 1.0) for id in ("look", "read")})
    waiting: list[tuple[str, int]] = []
    for number in range(600):
        now_ns = number * S // 2
        if not passage.enters(("gate", number), now_ns + 10 * S, 10.0, now_ns, both, {}):
            waiting.append(("gate", number))
            num += number >= 300
        if waiting:
            passage.passed(waiting.pop(0), "look")
    assert num > 0.95 * 300


def test_one_that_is_over_is_ahead_of_nobody_and_still_known() -> None:
    passage = Passage()
    assert begun(passage, 0, due_s=100.0)
    for stage in ("look", "tell"):
        passage.passed(("gate", 0), stage)
    assert passage._by_due == []
    assert passage.said(("gate", 0)) == ""
    assert begun(passage, 1, due_s=200.0, now_s=101.0)
    assert passage.said(("gate", 0)) is None
