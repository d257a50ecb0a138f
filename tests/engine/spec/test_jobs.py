"""Jobs as data: which outputs of which stage a request needs, in as few spans as can be."""

from itertools import pairwise
from typing import Any

import msgspec
import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st

from engine.decide.joins import needs
from engine.spec.catalogue import Catalogue
from engine.spec.jobs import JobSpec, Reached, Span, beginnings, distinct, merged, spans_of, widened
from engine.spec.operator import Fold, Machine, Map, Reduce, Scope, Window
from engine.spec.plan import Plan, make_plan
from engine.spec.workflow import Stage, Workflow
from streams.subjects import Key

FAR = 40  # what the tests look at of a span without end

CLOSED = st.builds(lambda first, num: Span(first=first, last=first + num), st.integers(0, 20), st.integers(0, 10))
SPANS = st.one_of(CLOSED, st.builds(Span, first=st.integers(0, 20)))
SCOPES = st.one_of(
    st.builds(Map, st.integers(0, 3), st.integers(0, 3)), st.just(Fold()), st.builds(Window, st.integers(1, 5))
)


def indices(*spans: Span) -> set[int]:
    return {index for index in range(FAR) for span in spans if span.holds(index)}


def plan_of(stages: dict[str, Stage], window: int | None = None) -> Plan:
    return make_plan(Workflow(name="w", stages=stages), Catalogue(toys.ALL), Machine(num_cores=2), window=window)


def stage(capability: str, *sources: str) -> Stage:
    return Stage(capability=capability, inputs={"media" if sources == ("media",) else "numbers": sources})


def by_name(plan: Plan, spans: dict[str, tuple[Span, ...]]) -> dict[str, list[tuple[int, int | None]]]:
    return {planned.name: [(span.first, span.last) for span in spans[planned.id]] for planned in plan.stages}


# --- spans -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("span", "held", "not_held"),
    [
        (Span(first=2, last=4), [2, 3, 4], [1, 5]),
        (Span(first=3, last=3), [3], [2, 4]),
        (Span(first=2), [2, 10**9], [0, 1]),
    ],
)
def test_a_span_holds_both_its_ends(span: Span, held: list[int], not_held: list[int]) -> None:
    assert all(span.holds(index) for index in held)
    assert not any(span.holds(index) for index in not_held)


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([], []),
        ([(5, 6), (0, 1)], [(0, 1), (5, 6)]),
        ([(0, 1), (2, 3)], [(0, 3)]),  # they touch
        ([(0, 9), (2, 3)], [(0, 9)]),
        ([(0, 3), (0, 9)], [(0, 9)]),
        ([(4, None), (0, 2)], [(0, 2), (4, None)]),
        ([(4, None), (0, 3), (7, 8)], [(0, None)]),
        ([(4, 5), (4, None)], [(4, None)]),
    ],
)
def test_overlapping_and_touching_spans_are_one(
    spans: list[tuple[int, int | None]], expected: list[tuple[int, int | None]]
) -> None:
    found = merged(Span(first=first, last=last) for first, last in spans)
    assert [(span.first, span.last) for span in found] == expected


@given(st.lists(SPANS, max_size=6), st.randoms(use_true_random=False))
def test_merged_spans_hold_the_same_and_lie_apart_whatever_their_order(spans: list[Span], random: Any) -> None:
    found = merged(spans)
    assert indices(*found) == indices(*spans)
    assert all(one.last is not None and one.last + 1 < other.first for one, other in pairwise(found))
    shuffled = list(spans)
    random.shuffle(shuffled)
    assert merged(shuffled) == found == merged(found)


@given(st.lists(SPANS, max_size=6), st.randoms(use_true_random=False))
def test_distinct_spans_are_kept_as_they_are(spans: list[Span], random: Any) -> None:
    found = distinct(spans)
    assert set(found) == set(spans)
    assert len(found) == len(set(spans))
    shuffled = list(spans)
    random.shuffle(shuffled)
    assert distinct(shuffled) == found


@given(SCOPES, CLOSED)
def test_a_span_is_widened_to_just_what_its_outputs_need(scope: Scope, span: Span) -> None:
    needed = {i for index in range(span.first, (span.last or 0) + 1) for i in needs(scope, Key.of(index), None)}
    found = widened(scope, span)
    assert indices(found) == needed


@given(st.one_of(SCOPES, st.just(Reduce())), SPANS)
def test_a_widened_span_holds_the_span_and_ends_only_where_it_does(scope: Scope, span: Span) -> None:
    found = widened(scope, span)
    assert indices(span) <= indices(found)
    assert found.first >= 0
    assert (found.last is None) == (span.last is None)


@given(CLOSED)
def test_beginnings_double_up_to_the_span_itself(span: Span) -> None:
    assert span.last is not None
    found = distinct(beginnings(span))
    assert found[-1] == span
    assert {each.first for each in found} == {span.first}
    lengths = [each.last - each.first + 1 for each in found if each.last is not None]
    assert lengths[:-1] == [2**power for power in range(len(lengths) - 1)]
    assert lengths[-2:-1] < lengths[-1:] <= [2 ** (len(lengths) - 1)]


def test_what_has_no_end_has_no_beginnings_to_draft() -> None:
    assert beginnings(Span(first=3)) == [Span(first=3)]


# --- what a plan needs -----------------------------------------------------------------------------------------

DEEP = {
    "read": stage("toy_read", "media"),
    "near": stage("toy_near", "media"),
    "recent": stage("toy_recent", "read"),
    "sum": stage("toy_sum", "recent", "near"),
}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (
            Span(first=5, last=9),
            {"read": [(3, 9)], "near": [(5, 9)], "recent": [(5, 9)], "sum": [(5, 9)]},
        ),
        (Span(first=1), {"read": [(0, None)], "near": [(1, None)], "recent": [(1, None)], "sum": [(1, None)]}),
    ],
)
def test_sources_are_needed_as_far_as_scopes_look(asked: Span, expected: dict[str, Any]) -> None:
    plan = plan_of(DEEP)
    assert by_name(plan, spans_of(plan, asked)) == expected


def test_a_reduce_needs_its_range_and_with_drafts_the_beginnings_of_it() -> None:
    plan = plan_of({"read": stage("toy_read", "media"), "total": stage("toy_total", "read")})
    asked = Span(first=2, last=7)
    assert by_name(plan, spans_of(plan, asked)) == {"read": [(2, 7)], "total": [(2, 7)]}
    drafted = by_name(plan, spans_of(plan, asked, drafts=True))
    assert drafted == {"read": [(2, 7)], "total": [(2, 2), (2, 3), (2, 5), (2, 7)]}
    assert by_name(plan, spans_of(plan, Span(first=2), drafts=True)) == {"read": [(2, None)], "total": [(2, None)]}


def test_a_stage_that_two_read_is_asked_for_what_either_needs() -> None:
    stages = {
        "read": stage("toy_read", "media"),
        "recent": stage("toy_recent", "read"),
        "add": stage("toy_add", "read"),
    }
    plan = plan_of(stages)
    found = by_name(plan, spans_of(plan, Span(first=6, last=8)))
    assert found == {"read": [(4, 8)], "recent": [(6, 8)], "add": [(6, 8)]}


def test_an_answer_that_another_stage_reads_as_well_is_asked_for_both() -> None:
    """Two names for one stage: under one it is an answer, under the other it is read."""
    stages = {
        "a": stage("toy_read", "media"),
        "b": stage("toy_read", "media"),
        "recent": stage("toy_recent", "b"),
    }
    plan = plan_of(stages)
    assert len(plan.stages) == 2
    assert by_name(plan, spans_of(plan, Span(first=6, last=8)))[plan.stages[0].name] == [(4, 8)]


CAPABILITIES = ["toy_add", "toy_recent", "toy_count", "toy_total", "toy_sum"]


@st.composite
def workflows(draw: st.DrawFn) -> dict[str, Stage]:
    """A few stages, each over media or over some before it that do not reduce."""
    stages = {"s0": stage(draw(st.sampled_from(["toy_read", "toy_near"])), "media")}
    for number in range(1, draw(st.integers(1, 5))):
        capability = draw(st.sampled_from(CAPABILITIES))
        before = [name for name, each in stages.items() if each.capability != "toy_total"]
        most = 3 if capability in ("toy_sum", "toy_total") else 1
        sources = draw(st.lists(st.sampled_from(before), min_size=1, max_size=most, unique=True))
        stages[f"s{number}"] = stage(capability, *sources)
    return stages


@given(workflows(), SPANS, st.booleans(), st.one_of(st.none(), st.integers(1, 4)))
def test_whatever_is_asked_for_its_inputs_are_asked_for_too(
    stages: dict[str, Stage], asked: Span, drafts: bool, window: int | None
) -> None:
    plan = plan_of(stages, window)
    spans = spans_of(plan, asked, drafts)
    assert set(spans) == {planned.id for planned in plan.stages}
    for answer in plan.answers:
        assert indices(asked) <= indices(*spans[answer])
    for planned in plan.stages:
        for span in spans[planned.id]:
            last = FAR if span.last is None else span.last
            keys = (
                [Key(span.first, last)]
                if isinstance(planned.scope, Reduce)
                else map(Key.of, range(span.first, last + 1))
            )
            for key in keys:
                for source in set(planned.sources) - {"media"}:
                    needed = set(needs(planned.scope, key, FAR))
                    assert needed <= indices(*spans[source])


def test_what_a_fold_stores_does_not_depend_on_where_it_was_asked_from() -> None:
    plan = plan_of({"read": stage("toy_read", "media"), "count": stage("toy_count", "read")})
    assert by_name(plan, spans_of(plan, Span(first=5, last=9))) == {"read": [(0, 9)], "count": [(0, 9)]}


# --- patience --------------------------------------------------------------------------------------------------


def job(spans: tuple[Span, ...], prompt_from: int | None) -> JobSpec:
    plan = plan_of({"read": stage("toy_read", "media")})
    return JobSpec(id="j", stream="s", plan=plan, spans={plan.answers[0]: spans}, prompt_from=prompt_from)


@given(st.lists(SPANS, max_size=4), st.one_of(st.none(), st.integers(0, 25)))
def test_a_job_is_patient_for_what_comes_before_it_turns_prompt(spans: list[Span], prompt_from: int | None) -> None:
    spec = job(tuple(spans), prompt_from)
    patient = spec.patient(spec.plan.answers[0])
    expected = {index for index in indices(*spans) if prompt_from is None or index < prompt_from}
    assert indices(*patient) == expected
    assert all(span.last is None or span.first <= span.last for span in patient)


def test_a_job_survives_the_registry() -> None:
    plan = plan_of(DEEP, window=3)
    asked = Span(first=2, last=9)
    spec = JobSpec(
        id="j1",
        stream="cam",
        plan=plan,
        spans=spans_of(plan, asked),
        standing=True,
        asks=("Where?",),
        prompt_from=4,
        max_lag_s=10.0,
        rounds={plan.answers[0]: 7},
        submitted_ns=5,
        lost=Span(first=0, last=1),
    )
    data = msgspec.json.encode(spec)
    assert msgspec.json.decode(data, type=JobSpec) == spec
    later = msgspec.json.encode({**msgspec.json.decode(data), "of_a_later_version": 1})
    assert msgspec.json.decode(later, type=JobSpec) == spec


# --- what is left of a job -------------------------------------------------------------------------------------


def job_over(plan: Plan, asked: Span) -> JobSpec:
    return JobSpec(id="j", stream="s", plan=plan, spans=spans_of(plan, asked), asked=asked)


@pytest.mark.parametrize(
    ("asked", "next", "recent", "read"),
    [
        (Span(first=2), 9, [(9, None)], [(7, None)]),
        (Span(first=2, last=12), 9, [(9, 12)], [(7, 12)]),
        (Span(first=2, last=12), 1, [(2, 12)], [(0, 12)]),
        (Span(first=2, last=12), 13, [], []),
    ],
)
def test_what_only_answers_that_were_given_rest_on_is_not_asked_for_any_more(
    asked: Span, next: int, recent: list[tuple[int, int | None]], read: list[tuple[int, int | None]]
) -> None:
    plan = plan_of({"read": stage("toy_read", "media"), "recent": stage("toy_recent", "read")})
    left = job_over(plan, asked).spans_left({plan.answers[0]: Reached(next)})
    assert by_name(plan, left) == {"read": read, "recent": recent}


def test_of_several_last_stages_the_one_that_is_furthest_behind_counts() -> None:
    plan = plan_of({"near": stage("toy_near", "media"), "read": stage("toy_read", "media")})
    one, other = plan.answers
    job = job_over(plan, Span(first=0))
    assert job.spans_left({one: Reached(5), other: Reached(3)})[one] == (Span(first=3),)
    assert job.spans_left({one: Reached(5)}) == job.spans


def test_what_a_range_rests_on_stays_asked_for() -> None:
    plan = plan_of({"read": stage("toy_read", "media"), "total": stage("toy_total", "read")})
    job = job_over(plan, Span(first=2, last=12))
    assert job.spans_left({plan.answers[0]: Reached(9)}) == job.spans
