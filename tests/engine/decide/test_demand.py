"""What comes and waits for a resource of all workers together, from what each of them says."""

import math

import msgspec
import pytest

from engine.decide.demand import OVER_S, Demand
from engine.decide.signals import PoolSignals, ResourceSignals, StreamSignals, WorkerSignals

NS = 1_000_000_000


def worker(name: str, at_s: float, **but: object) -> WorkerSignals:
    told = {"resource": "cores", "num_lanes": 2, **but}
    streams = told.pop("streams", ())
    pools = told.pop("pools", ())
    resources = (ResourceSignals(**told),)  # type: ignore[arg-type]
    return WorkerSignals(name, "n", round(at_s * NS), pools=pools, streams=streams, resources=resources)  # type: ignore[arg-type]


def test_what_came_is_a_difference_of_two_words_of_one_worker_and_of_all_together() -> None:
    demand = Demand()
    first = [worker("a", 1, num_asked=100, asked_s=50.0), worker("b", 1, num_asked=7, asked_s=1.0)]
    assert demand.seen(1.0, first, 3.0)["cores"].offered == 0.0, "since the beginning says nothing of now"
    second = [worker("a", 3, num_asked=104, asked_s=53.0), worker("b", 2, num_asked=8, asked_s=1.5)]
    seen = demand.seen(3.0, second, 3.0)["cores"]
    assert seen.offered == pytest.approx(3.0 / 2 + 0.5)
    assert seen.num_offered == pytest.approx(2 + 1)
    assert (seen.lanes, seen.ready, seen.start_s) == (2.0, 2, 3.0)


def test_a_worker_that_has_said_nothing_new_goes_on_as_it_was_until_it_is_forgotten() -> None:
    demand = Demand()
    for at_s in (1, 2):
        demand.seen(float(at_s), [worker("a", at_s, num_asked=at_s, asked_s=float(at_s))], 3.0)
    again = demand.seen(3.0, [worker("a", 2, num_asked=2, asked_s=2.0)], 3.0)["cores"]
    assert again.offered == pytest.approx(1.0)
    other = demand.seen(4.0, [worker("b", 4)], 3.0)["cores"]
    assert (other.offered, other.ready) == (0.0, 1)


def test_one_that_is_loading_its_models_is_there_but_not_ready() -> None:
    young = msgspec.structs.replace(worker("b", 1, num_lanes=4), is_ready=False)
    seen = Demand().seen(1.0, [worker("a", 1), young], 3.0)["cores"]
    assert (seen.lanes, seen.ready) == (3.0, 1)


def test_one_that_began_anew_counts_nothing_that_was_not() -> None:
    demand = Demand()
    demand.seen(1.0, [worker("a", 1, num_asked=50, asked_s=20.0)], 3.0)
    assert demand.seen(2.0, [worker("a", 2, num_asked=1, asked_s=0.5)], 3.0)["cores"].offered == 0.0


def test_what_comes_of_which_nobody_knows_what_it_takes_is_not_nothing() -> None:
    demand = Demand()
    demand.seen(1.0, [worker("a", 1)], 3.0)
    assert demand.seen(2.0, [worker("a", 2, num_asked=3)], 3.0)["cores"].offered is None
    waiting = demand.seen(3.0, [worker("a", 3, num_asked=3, waiting_s=None)], 3.0)["cores"]
    assert waiting.waiting_s is None


def test_what_the_server_holds_for_a_stream_counts_once_and_by_how_it_is_wanted() -> None:
    live = StreamSignals("live", num_waiting=4, slack_s=3.0, segment_s={"cores": 0.5})
    file = StreamSignals("file", num_waiting=10, segment_s={"cores": 2.0})
    quiet = StreamSignals("quiet", slack_s=1.0)
    others = tuple(msgspec.structs.replace(each, num_waiting=1) for each in (live, file))
    pools = (PoolSignals("p", "thread", "cpu", 4, 3, 2, 1, 2, 1),)
    workers = [
        worker("a", 1, waiting_s=1.0, patient_s=0.25, streams=(live, file, quiet), pools=pools),
        worker("b", 1, waiting_s=0.5, streams=others),
    ]
    seen = Demand().seen(1.0, workers, 3.0)["cores"]
    assert seen.waiting_s == pytest.approx(1.5 + 4 * 0.5)
    assert seen.patient_s == pytest.approx(0.25 + 10 * 2.0)
    assert seen.num_waiting == 4 + 10 + 3
    assert seen.slack_s == 1.0
    assert Demand().seen(1.0, [worker("a", 1, streams=(file,))], 3.0)["cores"].slack_s == math.inf


def test_what_was_lost_is_a_share_of_what_came_of_late() -> None:
    demand = Demand()
    demand.seen(0.0, [worker("a", 0)], 3.0)
    lost = [
        demand.seen(float(at), [worker("a", at, num_asked=10 * at, num_refused=min(at, 10))], 3.0)["cores"].lost
        for at in range(1, 60)
    ]
    assert lost[8] == pytest.approx(0.1)
    assert lost[int(10 + OVER_S)] == 0.0
    assert all(0 <= share <= 1 for share in lost)


def test_a_resource_is_of_those_that_have_it() -> None:
    gpu = worker("b", 1, resource="p", num_lanes=3)
    seen = Demand().seen(1.0, [worker("a", 1), gpu], 3.0)
    assert (seen["cores"].ready, seen["p"].ready, seen["p"].lanes) == (1, 1, 3.0)


def test_what_an_idle_worker_once_heard_of_the_server_s_queue_counts_for_nothing() -> None:
    """It would take what there is; and of those that are busy the last word counts."""
    waiting = StreamSignals("s", num_waiting=9, slack_s=3.0, segment_s={"cores": 1.0})
    none = msgspec.structs.replace(waiting, num_waiting=0, num_in_service=1)
    assert Demand().seen(1.0, [worker("a", 1, streams=(waiting,))], 3.0)["cores"].num_waiting == 0
    busy = msgspec.structs.replace(waiting, num_in_service=1)
    assert Demand().seen(1.0, [worker("a", 1, streams=(busy,))], 3.0)["cores"].num_waiting == 9
    both = [worker("b", 2, streams=(none,)), worker("a", 1, streams=(busy,))]
    assert Demand().seen(2.0, both, 3.0)["cores"].num_waiting == 0
