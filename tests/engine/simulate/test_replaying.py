"""What would have happened: recordings as scenarios, and settings that change them."""

import pytest

from engine.simulate.modelled import ENGINE
from engine.simulate.replaying import Replayed, changed, outcome, scenario_of_recording
from engine.spec.recording import DECODE, Outcome, RecordedPool, RecordedRung, RecordedStage, RecordedStream, Recording
from streams.errors import UserError


def recording(num_streams: int = 4, *, has_lower: bool = True, **more: object) -> Recording:
    """Streams of which each segment goes through a stage with a lower rung, behind decoding."""
    every_s, took_s = 1.0, 0.3
    rungs = (RecordedRung(pool="look/big"), RecordedRung(pool="look/small", quality=0.8))
    stages = {
        DECODE: RecordedStage(rungs=(RecordedRung(pool=DECODE),), inputs=("media",)),
        "look": RecordedStage(rungs=rungs if has_lower else rungs[:1], inputs=(DECODE,)),
    }
    pools = {
        DECODE: RecordedPool(batches=((1, 50, 0.02, 0.0),)),
        "look/big": RecordedPool(max_batch=4, batches=((1, 20, took_s, 0.01), (4, 10, 4 * took_s, 0.05))),
        "look/small": RecordedPool(max_batch=4, batches=((1, 20, took_s / 4, 0.01),)),
    }
    streams = {
        f"s{number}": RecordedStream(
            stages=(DECODE, "look"),
            max_lag_s=3.0,
            came_s=tuple(number / num_streams * every_s + every_s * turn for turn in range(60)),
            **more,  # type: ignore[arg-type]
        )
        for number in range(num_streams)
    }
    come_to = Outcome(num_segments=60 * num_streams, in_time=1.0)
    return Recording(
        began_ns=1, seconds=60 * every_s, num_cores=2, stages=stages, pools=pools, streams=streams, outcome=come_to
    )


def with_(recorded: Recording, *settings: str) -> Outcome:
    return outcome(changed(scenario_of_recording(recorded), settings))


def test_every_segment_that_came_comes_again() -> None:
    found = with_(recording())
    assert found.num_segments == 240
    assert found.in_time == 1.0
    assert found.p50_s is not None
    assert 0.3 < found.p50_s < 1.0
    assert with_(recording()) == found


def test_what_was_too_much_is_not_with_more_cores_or_faster_models() -> None:
    busy = recording(num_streams=8, has_lower=False)
    before = with_(busy)
    assert before.in_time < 0.95
    assert with_(busy, "cores=4").in_time == 1.0
    assert with_(busy, "faster.look/big=2").in_time > 0.99
    assert with_(busy, "load=0.5").num_segments == 240
    assert with_(busy, "load=0.5").in_time == 1.0
    assert with_(busy, "load=2").in_time < before.in_time
    assert with_(busy, "max_lag=1s").in_time <= before.in_time


def test_a_latency_has_rungs_lowered_and_best_leaves_them_alone() -> None:
    busy = recording(num_streams=8)
    lowered = with_(busy, "latency=1.5s")
    assert lowered.in_time > 0.95
    assert lowered.quality < 1.0
    assert lowered.num_rung_changes
    alone = with_(busy, "latency=1500ms", "rungs=best")
    assert alone.in_time < lowered.in_time
    assert (alone.quality, alone.num_rung_changes) == (1.0, 0)
    patient = with_(recording(num_streams=8, latency_s=1.5), "latency=off")
    assert patient.num_rung_changes < lowered.num_rung_changes or patient.quality > lowered.quality


def test_passage_and_batches_can_be_left_away() -> None:
    busy = scenario_of_recording(recording(num_streams=8))
    assert changed(busy, ["passage=off"]) == Replayed(busy, asks_passage=False)
    one = changed(busy, ["max_batch=1"]).scenario
    assert [one.pools[name].max_batch for name in ("look/big", "look/small", DECODE, ENGINE)] == [1, 1, 1, 1]
    eight = changed(busy, ["max_batch=8"]).scenario
    assert [eight.pools[name].max_batch for name in ("look/big", DECODE, ENGINE)] == [8, 1, 1]


def test_streams_with_stages_of_their_own_are_told_apart() -> None:
    recorded = recording(num_streams=2)
    stages = {**recorded.stages, "more": RecordedStage(rungs=(RecordedRung(pool="look/big"),), inputs=("look",))}
    first = recorded.streams["s0"]
    longer = RecordedStream(stages=(*first.stages, "more"), max_lag_s=3.0, came_s=first.came_s)
    streams = {**recorded.streams, "s0": longer}
    whole = Recording(
        began_ns=1,
        seconds=60.0,
        num_cores=2,
        stages=stages,
        pools=recorded.pools,
        streams=streams,
        outcome=recorded.outcome,
    )
    assert with_(whole).num_segments == 120


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("cores", "give NAME=VALUE, of cores, load"),
        ("corse=3", "give NAME=VALUE"),
        ("cores.x=3", "give NAME=VALUE"),
        ("faster=3", "give NAME=VALUE"),
        ("cores=0", "give a number from 1 to 4096"),
        ("cores=many", "give a number from 1 to 4096"),
        ("load=0.01", "that leaves none"),
        ("max_lag=soon", "no seconds"),
        ("latency=0s", "give a time such as 2s"),
        ("latency=xms", "could not convert"),
        ("rungs=worst", "give best or any"),
        ("passage=perhaps", "give on or off"),
        ("faster.ears=2", "no pool 'ears' was recorded; there are: (decoding), look/big"),
    ],
)
def test_what_is_wrong_with_a_setting_is_said(setting: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        changed(scenario_of_recording(recording()), [setting])
    assert said in str(error.value)


def test_a_recording_of_what_nobody_can_simulate_is_the_user_s_error() -> None:
    recorded = recording()
    nothing = Recording(
        began_ns=1, seconds=60.0, num_cores=2, stages={}, pools={}, streams={}, outcome=recorded.outcome
    )
    with pytest.raises(UserError):
        scenario_of_recording(nothing)
