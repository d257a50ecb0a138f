"""How many replicas there are to be: what is known in, a number with its reason out."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.decide.fleet import (
    CHEAP,
    HOLD_S,
    HOLD_STARTS,
    MAX_CHANGES,
    SPARE,
    TOLD_S,
    Fleet,
    Room,
    Seen,
    Wanted,
    least_for,
    placed,
    spread,
)


def seen(offered: float | None = 0.0, **but: object) -> Seen:
    """Live work, of pieces that take a tenth of a lane second, with ten seconds of slack."""
    num = 10 * (offered or 0.0)
    told = {"lanes": 1.0, "ready": 1, "waiting_s": 0.0, "slack_s": 10.0, "start_s": 5.0, "num_offered": num}
    return Seen(offered=offered, **{**told, **but})  # type: ignore[arg-type]


def told(fleet: Fleet, seconds: int, what: Callable[[int], Seen | None], since: int = 0) -> list[tuple[int, Wanted]]:
    """What is decided over a while, with as many ready as were wanted."""
    found = []
    for now in range(since, since + seconds):
        if (changed := fleet.decide(float(now), what(now))) is not None:
            found.append((now, changed))
    return found


def test_what_is_enough_is_left_as_it_is() -> None:
    fleet = Fleet(0, 8, 3)
    assert told(fleet, 600, lambda now: seen(2.4, ready=3)) == []


@pytest.mark.parametrize(("offered", "lanes", "num"), [(0, 1, 0), (0.01, 1, 1), (0.7, 1, 1), (0.8, 1, 2), (2.5, 1, 3)])
def test_the_fewest_that_carry_what_comes(offered: float, lanes: float, num: int) -> None:
    assert least_for(offered, lanes) == num


@given(st.floats(0.001, 1000), st.sampled_from([1, 2, 8, 64]))
def test_they_carry_it_with_spare_and_one_less_would_not(offered: float, lanes: int) -> None:
    num = least_for(offered, lanes)

    def carried(replicas: int) -> float:
        return replicas * lanes - SPARE * math.sqrt(replicas * lanes)

    assert carried(num) >= offered - 1e-6
    assert num == 1 or carried(num - 1) < offered + 1e-6


def test_a_step_is_answered_within_seconds_and_by_all_that_it_takes() -> None:
    fleet = Fleet(1, 16, 2)
    changes = told(fleet, 120, lambda now: seen(1.5 if now < 60 else 6.0, ready=fleet.num))
    assert [60 <= at <= 63 for at, _ in changes] == [True] * len(changes)
    assert changes[-1][1].num == least_for(6.0, 1.0)
    assert "6.00 lanes' worth comes to" in changes[-1][1].why
    assert changes[-1][1].inputs["offered"] == pytest.approx(6.0)


def test_one_more_than_carries_the_load_goes_after_a_while_and_not_before() -> None:
    fleet = Fleet(1, 8, 4)
    ((at, changed),) = told(fleet, 300, lambda now: seen(1.5, ready=fleet.num))
    assert at == HOLD_S
    assert changed.num == least_for(1.5, 1) == 2
    assert f"no more than 2 were needed for {HOLD_S:.0f} s" in changed.why


def test_where_starting_takes_long_they_are_kept_for_longer() -> None:
    fleet = Fleet(1, 8, 4)
    ((at, _),) = told(fleet, 600, lambda now: seen(1.5, ready=fleet.num, start_s=60.0, slack_s=30.0))
    assert at == 60 * HOLD_STARTS


def test_a_load_about_a_threshold_does_not_have_it_go_up_and_down() -> None:
    edge = 3 - SPARE * math.sqrt(3)
    fleet = Fleet(1, 8, 3)
    changes = told(fleet, 3600, lambda now: seen(edge + 0.1 * math.sin(now), ready=fleet.num))
    assert changes == []


def test_from_none_the_first_piece_of_work_starts_one_whatever_is_known() -> None:
    for what in (seen(None, num_waiting=1, waiting_s=None, ready=0), seen(0.1, num_waiting=1, ready=0)):
        fleet = Fleet(0, 8, 0)
        assert told(fleet, 60, lambda now: seen(0.0, ready=0)) == []
        changed = fleet.decide(60.0, what)
        assert changed is not None
        assert changed.num == 1


def test_down_to_none_only_after_a_while_without_anything() -> None:
    fleet = Fleet(0, 8, 2)
    changes = told(fleet, 200, lambda now: seen(1.0 if now < 50 else 0.0, ready=fleet.num))
    assert changes[-1][1].num == 0
    assert changes[-1][0] >= 50 + HOLD_S
    assert "nothing was needed" in changes[-1][1].why


def test_what_is_in_service_is_no_reason_for_more_and_one_for_some() -> None:
    """Seventy replicas for four messages in flight is what counting them as waiting came to elsewhere."""
    fleet = Fleet(0, 100, 4)
    changes = told(fleet, 600, lambda now: seen(0.0, ready=fleet.num, num_in_service=4))
    assert [changed.num for _, changed in changes] == [1]


def test_little_that_comes_is_no_small_capacity() -> None:
    """How much one does is not read from how much it did: a queue that is short is no reason for more."""
    fleet = Fleet(1, 8, 1)
    assert told(fleet, 600, lambda now: seen(0.1, num_waiting=1, waiting_s=0.1)) == []


def test_nothing_is_something_known() -> None:
    """Elsewhere seven were left for good where no traffic was read as no data."""
    fleet = Fleet(1, 8, 7)
    assert told(fleet, 100, lambda now: seen(0.0, ready=fleet.num))[-1][1].num == 1


@pytest.mark.parametrize("word", [None, seen(None, num_waiting=50, waiting_s=None)])
def test_where_nothing_is_known_it_stays_as_it_is(word: Seen | None) -> None:
    fleet = Fleet(0, 8, 3)
    assert told(fleet, 600, lambda now: word) == []


def test_what_was_not_heard_does_not_count_as_nothing_needed() -> None:
    fleet = Fleet(0, 8, 3)
    changes = told(fleet, 200, lambda now: seen(2.4, ready=3) if now < 10 or now > 100 else None)
    assert changes == []


def test_work_that_waits_long_asks_for_more_than_the_rate_does() -> None:
    fleet = Fleet(1, 16, 2)
    changed = fleet.decide(0.0, seen(1.0, ready=2, waiting_s=40.0, num_waiting=400))
    assert changed is not None
    assert changed.num == 6  # 40 s of work within three quarters of ten seconds
    assert "40.0 s of work wait" in changed.why


def test_work_that_will_be_late_before_one_starts_counts_by_its_rate() -> None:
    fleet = Fleet(1, 16, 2)
    assert fleet.decide(0.0, seen(1.0, ready=2, waiting_s=40.0, start_s=20.0)) is None


def test_a_recording_is_shared_out_so_far_as_starting_is_cheap() -> None:
    def after(start_s: float) -> int:
        fleet = Fleet(0, 100, 1)
        changed = fleet.decide(0.0, seen(0.0, patient_s=600.0, num_waiting=60, slack_s=math.inf, start_s=start_s))
        return changed.num if changed is not None else fleet.num

    assert after(0.1) == 600 / HOLD_S
    assert after(6.0) == 600 / (CHEAP * 6.0)
    assert after(60.0) == 1


def test_where_the_reckoning_is_too_little_one_more_at_a_time_and_kept() -> None:
    """Segments are lost at two, and none at four, although one would do by what is known."""
    fleet = Fleet(1, 8, 2)
    changes = told(
        fleet,
        400,
        lambda now: seen(0.5, ready=fleet.num, lost=0.1 if fleet.num < 4 else 0.0, waiting_s=2.0 * fleet.num),
    )
    assert [changed.num for _, changed in changes][:2] == [3, 4]
    assert changes[1][0] - changes[0][0] > 5 + TOLD_S - 1, "the first gets time to tell"
    assert fleet.num >= 3
    assert "is lost for want of it" in changes[0][1].why


def test_a_stalled_model_gets_one_more_for_each_time_a_start_takes_and_no_flood() -> None:
    fleet = Fleet(1, 100, 2)
    changes = told(
        fleet, 120, lambda now: seen(1.5, ready=fleet.num, num_in_service=2, lost=1.0, waiting_s=2.0 * fleet.num)
    )
    assert 2 < fleet.num <= 2 + 120 / (5 + TOLD_S) + 1
    assert all(changed.num == before + 1 for (_, changed), before in zip(changes, range(2, 99), strict=False))


def test_never_below_what_carried_the_load_of_the_hold() -> None:
    fleet = Fleet(0, 50, 10)
    loads = [4.0 + 3.0 * math.sin(now / 40) for now in range(3600)]
    for now, load in enumerate(loads):
        before = fleet.num
        changed = fleet.decide(float(now), seen(load, ready=fleet.num))
        if changed is not None and changed.num < before:
            assert changed.num >= least_for(max(loads[max(0, now - int(HOLD_S)) : now + 1]) * 0.95, 1.0)


Loads = st.lists(
    st.tuples(
        st.one_of(st.none(), st.floats(0, 40)),
        st.one_of(st.none(), st.floats(0, 400)),
        st.floats(0, 1),
        st.floats(0, 1000),
        st.integers(0, 20),
        st.sampled_from([True, True, True, False]),
    ),
    min_size=1,
    max_size=200,
)


@given(Loads, st.integers(0, 3), st.integers(3, 30), st.floats(0, 90))
def test_bounds_and_reasons_and_changes_a_minute_whatever_comes(
    loads: list[tuple[float | None, float | None, float, float, int, bool]], least: int, most: int, start_s: float
) -> None:
    fleet = Fleet(least, most, least)
    changed_s: list[float] = []
    for now, (offered, waiting_s, lost, patient_s, num, is_heard) in enumerate(loads):
        before = fleet.num
        word = seen(
            offered,
            waiting_s=waiting_s,
            lost=lost,
            patient_s=patient_s,
            num_waiting=num,
            ready=fleet.num,
            start_s=start_s,
        )
        changed = fleet.decide(float(now), word if is_heard else None)
        assert least <= fleet.num <= most
        if changed is None:
            assert fleet.num == before
            continue
        assert changed.num == fleet.num != before
        assert changed.why
        assert all(math.isfinite(value) for value in changed.inputs.values())
        if before:
            assert len([at for at in changed_s if at > now - 60]) < MAX_CHANGES
        changed_s.append(float(now))


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.integers(0, 20), st.integers(0, 3)), min_size=1),
    st.integers(0, 60),
)
def test_places_are_shared_out_and_none_waits_without_any(wants: dict[str, tuple[int, int]], num: int) -> None:
    wanted = {name: want for name, (want, _) in wants.items()}
    least = {name: few for name, (_, few) in wants.items()}
    given_ = spread(wanted, least, num)
    floor = sum(min(wanted[name], least[name]) for name in wanted)
    assert all(given_[name] <= wanted[name] for name in wanted)
    assert sum(given_.values()) <= max(num, floor)
    assert sum(given_.values()) == max(min(num, sum(wanted.values())), floor)
    starved = [name for name in wanted if wanted[name] and not given_[name]]
    if starved:  # then nobody has more than one but by right
        assert all(given_[name] <= max(1, least[name]) for name in wanted)


def test_a_full_budget_does_not_keep_the_first_of_another_from_starting() -> None:
    assert spread({"detector": 8, "captioner": 1}, {}, 8) == {"detector": 7, "captioner": 1}
    assert spread({"detector": 8, "captioner": 8}, {}, 8) == {"detector": 4, "captioner": 4}


@given(
    st.lists(st.tuples(st.sampled_from([1.0, 2.0, 4.0]), st.integers(0, 2), st.integers(2, 6)), min_size=1, max_size=6),
    st.floats(0, 100),
)
def test_workers_are_placed_where_there_is_room(rooms: list[tuple[float, int, int]], lanes: float) -> None:
    every = [Room(f"n{at}", each, least, most) for at, (each, least, most) in enumerate(rooms)]
    num = placed(lanes, every)
    assert placed(lanes, list(reversed(every))) == num, "wherever it is worked out"
    for room in every:
        assert room.least <= num[room.name] <= room.most
    has = sum(room.lanes * num[room.name] for room in every)
    is_full = all(num[room.name] == room.most for room in every)
    assert is_full or has >= lanes - 1e-9
    above = [room for room in every if num[room.name] > room.least]
    if above and not is_full:
        assert any(has - room.lanes < lanes for room in above), "and no more than it takes"


def test_a_queue_that_stands_while_nothing_comes_is_no_reason_for_more_than_it_takes_later() -> None:
    fleet = Fleet(0, 1000, 1)
    told(fleet, 900, lambda now: seen(0.0, ready=fleet.num, waiting_s=8.0 * fleet.num, num_waiting=10, start_s=20.0))
    told(fleet, 200, lambda now: seen(0.5, ready=fleet.num), since=900)
    assert fleet.num <= 2


def test_after_a_silence_what_was_needed_is_not_known_for_as_long_as_it_is_held() -> None:
    """A worker that was started meanwhile says at first that there is nothing to do."""
    fleet = Fleet(0, 8, 1)
    told(fleet, 20, lambda now: seen(0.5, num_in_service=1))
    assert told(fleet, 60, lambda now: None, since=20) == []
    assert told(fleet, int(HOLD_S) - 1, lambda now: seen(0.0), since=80) == []
    assert told(fleet, 60, lambda now: seen(0.5, num_in_service=1), since=80 + int(HOLD_S) - 1) == []


def test_what_is_wanted_whenever_keeps_those_that_are_there_to_its_end() -> None:
    fleet = Fleet(0, 8, 1)

    def what(now: int) -> Seen:
        left_s = max(0.0, 200.0 - 2 * now)
        return seen(0.0, patient_s=left_s, num_waiting=int(left_s), ready=fleet.num, slack_s=math.inf)

    changes = [(now, changed.num) for now, changed in told(fleet, 300, what)]
    assert changes[0] == (0, 4)
    assert [num for now, num in changes if now < 95] == [4]
    assert changes[-1][1] == 0


def test_to_be_woken_is_no_regret() -> None:
    fleet = Fleet(0, 8, 1)
    for began in range(0, 600, 120):
        changes = told(fleet, 60, lambda now: seen(0.0, ready=fleet.num), since=began)
        assert changes[-1][1].num == 0
        assert changes[-1][0] < began + 50
        assert told(fleet, 60, lambda now: seen(0.5, ready=fleet.num, num_in_service=1), since=began + 60)
