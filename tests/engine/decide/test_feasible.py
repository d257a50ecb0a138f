"""Whether an objective can be held at all."""

from collections.abc import Sequence

import pytest

from engine.decide.feasible import Known, core_s, least_latency_s, longest_wait_s, why_not
from engine.spec.operator import Map
from engine.spec.plan import Plan, PlannedRung, PlannedStage
from engine.spec.profile import BatchTimes, Profile


def stage(id: str, *sources: str, rungs: int = 1, scope: Map = Map(), gate: str = "") -> PlannedStage:  # noqa: B008
    each = [PlannedRung(implementation=f"{id}{n}", rung=f"{id}{n}", version=1) for n in range(rungs)]
    inputs: dict[str, tuple[str, ...]] = {"in": sources} | ({"when": (gate,)} if gate else {})
    return PlannedStage(
        id=id, name=id, capability=id, rung=each[0], lower=tuple(each[1:]), scope=scope, group="g", inputs=inputs
    )


def profile(name: str, took_s: float, max_batch: int = 1, device: str = "cpu", runs_in: str = "thread") -> Profile:
    times = (BatchTimes.of(1, 1, [took_s]), BatchTimes.of(max_batch, 1, [took_s]))
    on = {"capability": name, "implementation": name, "rung": name, "version": 1, "machine": "m", "media": "c"}
    about = {"segment_s": 2.0, "at": "", "max_batch": max_batch, "times": times, "runs_in": runs_in, "device": device}
    return Profile(**on, **about)  # type: ignore[arg-type]


def known(**took_s: Sequence[float | None]) -> Known:
    return Known({id: [None if each is None else profile(id, each) for each in times] for id, times in took_s.items()})


CHAIN = Plan(
    workflow="w",
    stages=(stage("a", "media", rungs=2), stage("b", "a"), stage("c", "media")),
    answers=("b", "c"),
)


def test_the_way_that_takes_longest_counts_on_the_fastest_rungs() -> None:
    assert least_latency_s(CHAIN, known(a=[0.5, 0.2], b=[0.3], c=[0.4]), 2.0) == pytest.approx(0.5)
    assert least_latency_s(CHAIN, known(a=[0.5, 0.2], b=[0.3], c=[0.9]), 2.0) == pytest.approx(0.9)


def test_decoding_comes_first_and_waiting_for_the_stream_takes_its_time() -> None:
    waiting = Plan(workflow="w", stages=(stage("a", "media", scope=Map(1, 2)), stage("b", "a")), answers=("b",))
    found = known(a=[0.5], b=[0.3])._replace(decoding=[profile("d", 0.1), profile("e", 0.05)])
    assert longest_wait_s(waiting, 2.0) == 4.0
    assert least_latency_s(waiting, found, 2.0) == pytest.approx(4.9)


def test_it_is_refused_with_what_could_be_asked_for() -> None:
    said = why_not(CHAIN, known(a=[0.5, 0.2], b=[0.3], c=[0.1]), 0.4, 2.0, 4)
    assert said.startswith("latency<0.4s cannot be held: one segment with the machine to itself takes 0.5 s")
    assert said.endswith("(b alone takes 0.3 s); ask for latency<0.6s")
    assert not why_not(CHAIN, known(a=[0.5, 0.2], b=[0.3], c=[0.1]), 0.5, 2.0, 4)


def test_what_was_not_measured_refuses_nothing() -> None:
    assert not why_not(CHAIN, known(a=[9.0, None], c=[0.1]), 0.2, 2.0, 4)
    assert not why_not(CHAIN, Known({}), 0.001, 2.0, 1)


def test_a_stage_behind_a_gate_need_not_take_anything() -> None:
    gated = Plan(workflow="w", stages=(stage("a", "media"), stage("b", "media", gate="a")), answers=("b",))
    assert least_latency_s(gated, known(a=[0.1], b=[5.0]), 2.0) == pytest.approx(0.1)


def test_a_gate_that_may_be_shut_refuses_nothing() -> None:
    gated = Plan(workflow="w", stages=(stage("a", "media"), stage("b", "media", gate="a")), answers=("b",))
    assert not why_not(gated, known(a=[0.01], b=[5.0]), 1.0, 2.0, 2)
    assert why_not(gated, known(a=[0.01], b=[5.0])._replace(shares={"b": 1.0}), 1.0, 2.0, 2)


def test_what_comes_has_to_fit_on_the_cores() -> None:
    heavy = known(a=[3.0, 1.5], b=[1.0], c=[0.9])
    assert why_not(CHAIN, heavy, 9.0, 2.0, 2) == ""
    said = why_not(CHAIN, heavy, 9.0, 2.0, 1)
    assert (
        "a segment of 2 s takes 3.4 s of a core on the fastest rungs, and there are 2 s meanwhile on 1 of them" in said
    )
    assert core_s(CHAIN, heavy) == pytest.approx(4.9)
    assert core_s(CHAIN, heavy._replace(shares={"a": 0.5})) == pytest.approx(3.4)


def test_full_batches_count_and_what_runs_elsewhere_takes_no_core() -> None:
    one = Plan(workflow="w", stages=(stage("a", "media"),), answers=("a",))
    assert core_s(one, Known({"a": [profile("a", 1.0, max_batch=4)]})) == pytest.approx(0.25)
    assert core_s(one, Known({"a": [profile("a", 1.0, device="cuda")]})) == 0.0
    assert core_s(one, Known({"a": [profile("a", 1.0, runs_in="async")]})) == 0.0
