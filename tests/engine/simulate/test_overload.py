"""Too much for two cores: what is begun is brought to its end, branches agree, and no camera has it all."""

from typing import Any

import pytest

from engine.decide.rungs import Rungs
from engine.simulate.report import Report
from engine.simulate.run import run
from engine.simulate.scenario import Scenario, scenario_of

DETECTOR = {"max_batch": 4, "service": {"base_s": 0.005, "per_item_s": 0.035, "spread": "lognormal", "cv": 0.1}}
READER = {"service": {"base_s": 0.2, "spread": "lognormal", "cv": 0.5}}
SPEECH = {"max_batch": 8, "service": {"base_s": 0.3, "per_item_s": 0.1, "spread": "lognormal", "cv": 0.1}}
JOIN = {"max_batch": 8, "service": {"base_s": 0.05, "per_item_s": 0.00625}}
CASCADE = (
    {"detector": DETECTOR, "reader": READER},
    {"objects": {"pool": "detector"}, "text": {"pool": "reader", "inputs": ["objects"]}},
    0.145 / 4 + 0.2,  # what a segment takes of a core, with full batches
)
BRANCHES = (
    {"detector": DETECTOR, "speech": SPEECH, "join": JOIN},
    {
        "objects": {"pool": "detector"},
        "words": {"pool": "speech"},
        "answer": {"pool": "join", "inputs": ["objects", "words"]},
    },
    0.145 / 4 + 1.1 / 8 + 0.1 / 8,
)
Graph = tuple[dict[str, Any], dict[str, Any], float]


def cameras(graph: Graph, load: float, seed: int = 1, kind: str = "regular", num_segments: int = 1500) -> Scenario:
    pools, stages, each_s = graph
    per_s = load * 2 / each_s
    streams = [{"num": 8, "max_lag_s": 3.0, "arrivals": {"per_s": per_s / 8, "kind": kind}}]
    shape = {"seed": seed, "duration_s": num_segments / per_s, "num_cores": 2}
    return scenario_of(shape | {"pools": pools, "stages": stages, "streams": streams})


def wasted(report: Report) -> float:
    return report.segments.wasted_s / report.segments.computed_s


@pytest.mark.parametrize("graph", [CASCADE, BRANCHES], ids=["cascade", "branches"])
@pytest.mark.parametrize("kind", ["regular", "poisson"])
def test_of_twice_what_the_machine_can_do_nearly_half_is_answered_in_time(graph: Graph, kind: str) -> None:
    found = run(cameras(graph, 2.0, kind=kind))
    assert found.in_time >= 0.45
    assert wasted(found) <= 0.1
    without = run(cameras(graph, 2.0, kind=kind), asks_passage=False)
    assert without.in_time < found.in_time
    assert wasted(without) > 2 * wasted(found)


@pytest.mark.parametrize("seed", range(4))
def test_no_camera_is_answered_for_the_luck_of_its_moments(seed: int) -> None:
    shares = run(cameras(CASCADE, 2.0, seed)).segments.shares
    assert shares[-1] - shares[0] < 0.2
    without = run(cameras(CASCADE, 2.0, seed), asks_passage=False).segments.shares
    assert without[-1] - without[0] > 0.4


def shares_of(load: float, weights: dict[float, int], num_segments: int = 2400) -> list[float]:
    """Of so many cameras of each weight, the share that is answered in time."""
    pools, stages, each_s = BRANCHES
    per_s = load * 2 / each_s / sum(weights.values())
    every = {"max_lag_s": 3.0, "arrivals": {"per_s": per_s, "kind": "poisson"}}
    streams = [every | {"num": num, "weight": weight} for weight, num in weights.items()]
    shape = {"duration_s": num_segments / per_s / sum(weights.values()), "num_cores": 2}
    found = run(scenario_of(shape | {"pools": pools, "stages": stages, "streams": streams})).segments.by_stream
    of = [[each for name, each in found.items() if name.startswith(f"{number}/")] for number in range(len(weights))]
    return [sum(good for good, _ in each) / sum(num for _, num in each) for each in of]


def test_of_twice_the_weight_nearly_twice_as_many_are_answered() -> None:
    one, two = shares_of(2.0, {1.0: 4, 2.0: 4})
    assert 1.6 < two / one < 2.4
    assert one + two > 0.9, "and together no fewer than of equals"


def test_one_of_little_weight_is_not_forgotten_and_one_of_much_takes_no_more_than_it_has_use_for() -> None:
    one, dear, cheap = shares_of(2.0, {1.0: 4, 100.0: 2, 0.01: 2})
    assert dear > 0.8
    assert one > 0.3
    assert cheap > 0


def test_equals_are_as_alike_whatever_their_weight() -> None:
    assert shares_of(1.2, {0.25: 8}) == shares_of(1.2, {1.0: 8}) == shares_of(1.2, {4.0: 8})


def test_weights_mean_nothing_where_there_is_room_for_all() -> None:
    assert shares_of(0.7, {1.0: 4, 10.0: 2, 0.1: 2}) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("graph", [CASCADE, BRANCHES], ids=["cascade", "branches"])
def test_where_there_is_time_for_all_none_is_refused(graph: Graph) -> None:
    assert run(cameras(graph, 0.8, num_segments=600)).in_time == 1.0


def test_a_recording_of_an_hour_keeps_no_camera_waiting_and_is_not_kept_waiting_for_good() -> None:
    """All of it is there at once; the cameras would take half of the machine."""
    pools, stages, each_s = CASCADE
    streams = [
        {"num": 8, "max_lag_s": 3.0, "arrivals": {"per_s": 0.5 * 2 / each_s / 8}},
        {"num": 1, "arrivals": {"kind": "trace", "per_s": 50, "intervals": [0.0] * 500 + [1000.0]}},
    ]
    found = run(scenario_of({"duration_s": 60, "num_cores": 2, "pools": pools, "stages": stages, "streams": streams}))
    in_time = {name: good / num for name, (good, num) in found.segments.by_stream.items()}
    assert min(share for name, share in in_time.items() if name.startswith("0/")) > 0.9
    assert in_time["1/0"] == 1.0


class Once(Rungs):
    chooses_again = False


def test_what_is_held_up_on_its_way_is_in_time_on_lower_rungs() -> None:
    """Three models in a row, of which batches take ten times as long now and then."""
    varied = {"spread": "lognormal", "cv": 0.3, "straggle": 0.02, "straggle_times": 10}
    pools = {f"{at}": {"max_batch": 4, "service": {"base_s": 0.05, "per_item_s": 0.08, **varied}} for at in range(3)}
    pools |= {f"{at}q": {"max_batch": 4, "service": {"base_s": 0.02, "per_item_s": 0.02, **varied}} for at in range(3)}
    stages = {
        f"s{at}": {
            "pool": f"{at}",
            "inputs": [f"s{at - 1}" if at else "media"],
            "lower": [{"pool": f"{at}q", "quality": 0.8}],
        }
        for at in range(3)
    }
    streams = [{"num": 8, "max_lag_s": 6.0, "latency_s": 2.0, "arrivals": {"per_s": 0.6, "kind": "bursty", "cv": 3.0}}]
    shape = {"num_cores": 2, "duration_s": 300, "pools": pools, "stages": stages, "streams": streams}

    def within(rungs_of: type[Rungs], seed: int) -> float:
        found = run(scenario_of({"seed": seed} | shape), rungs_of=rungs_of).segments
        return sum(took <= 2.0 for took in found.took_s) / len(found.took_s)

    again, once = (sum(within(each, seed) for seed in range(2)) / 2 for each in (Rungs, Once))
    assert again > once + 0.02


@pytest.mark.parametrize("lag_s", [2.0, 10.0])
def test_a_latency_is_held_beside_streams_that_are_due_sooner_than_its_stream(lag_s: float) -> None:
    """One camera whose answers are wanted within two seconds, of a stream that may lag ten, beside eight that may lag
    five and have more than the machine can do."""
    pools = {"best": {"service": {"base_s": 0.4}}, "small": {"service": {"base_s": 0.1}}}
    look = {"pool": "best", "lower": [{"pool": "small", "quality": 0.8}]}
    arrivals = [
        {"num": 1, "max_lag_s": lag_s, "latency_s": 2.0, "arrivals": {"per_s": 0.5}},
        {"num": 8, "max_lag_s": 5.0, "arrivals": {"per_s": 0.7, "kind": "poisson"}},
    ]
    scenario = {"num_cores": 2, "duration_s": 300, "pools": pools, "stages": {"look": look}, "streams": arrivals}
    segments = run(scenario_of(scenario)).segments
    good, num = segments.by_stream["0/0"]
    assert good / num > 0.98
