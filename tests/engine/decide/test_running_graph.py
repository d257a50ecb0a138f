"""The running graph: jobs meet by stage id, and every worker that knows the same jobs runs the same groups."""

from itertools import permutations
from typing import Any

import msgspec
import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st

from engine.decide.running_graph import RunningGroup, RunningStage, in_order, running_groups, running_stages
from engine.spec.catalogue import Catalogue
from engine.spec.jobs import JobSpec, Span, spans_of
from engine.spec.operator import Machine, Reduce
from engine.spec.plan import Plan, PlannedStage, make_plan
from engine.spec.workflow import Stage, Workflow
from streams.subjects import Key

CATALOGUE = Catalogue(toys.ALL)


def read(**params: Any) -> Stage:
    return Stage(capability="toy_read", inputs={"media": "media"}, params=params)


def over(capability: str, *sources: str, **params: Any) -> Stage:
    return Stage(capability=capability, inputs={"numbers": sources}, params=params)


def plan_of(stages: dict[str, Stage], window: int | None = None) -> Plan:
    return make_plan(Workflow(name="w", stages=stages), CATALOGUE, Machine(num_cores=2), window=window)


def job(
    id: str,
    stages: dict[str, Stage],
    first: int = 0,
    last: int | None = None,
    *,
    drafts: bool = False,
    window: int | None = None,
    **more: Any,
) -> JobSpec:
    plan = plan_of(stages, window)
    spans = spans_of(plan, Span(first=first, last=last), drafts)
    return JobSpec(**({"id": id, "stream": "cam", "plan": plan, "spans": spans} | more))


CHAIN = {"read": read(), "add": over("toy_add", "read", add=1)}
WHOLE = {"read": read(), "total": over("toy_total", "read")}


def id_of(spec: JobSpec, name: str) -> str:
    return next(stage.id for stage in spec.plan.stages if stage.name == name)


def running(spec: JobSpec, *others: JobSpec, name: str) -> RunningStage:
    wanted = id_of(spec, name)
    return next(stage for stage in running_stages([spec, *others]) if stage.id == wanted)


# --- where jobs meet -------------------------------------------------------------------------------------------


def test_a_stage_that_two_jobs_ask_for_is_one_asked_for_what_either_wants() -> None:
    one = job("one", CHAIN, 0, 4, max_lag_s=0.0)
    two = job("two", {"numbers": read(), "other": over("toy_add", "numbers", add=2)}, 3, 9, max_lag_s=8.0)
    stages = running_stages([one, two])
    assert [(stage.planned.name, stage.jobs) for stage in stages] == [
        ("read", ("one", "two")),
        ("add", ("one",)),
        ("other", ("two",)),
    ]
    assert stages[0].spans == (Span(first=0, last=9),)
    assert stages[0].max_lag_s == running(two, one, name="numbers").max_lag_s == 8.0
    assert stages[1].spans == (Span(first=0, last=4),)


def test_a_stage_has_the_weight_of_the_job_that_gives_it_most() -> None:
    alone, dear = job("a", CHAIN, standing=True, weight=0.1), job("b", CHAIN, standing=True, weight=3.0)
    question = job("c", CHAIN, last=3)  # has none, and gives none
    assert running(alone, question, name="read").weight == 0.1
    assert running(alone, dear, question, name="read").weight == 3.0
    assert running(question, name="read").weight == 0.0


def test_ranges_of_a_stage_that_reduces_stay_apart() -> None:
    one, two = job("one", WHOLE, 0, 4), job("two", WHOLE, 3, 9)
    assert running(one, two, name="total").spans == (Span(first=0, last=4), Span(first=3, last=9))
    assert running(one, two, name="read").spans == (Span(first=0, last=9),)


@pytest.mark.parametrize(
    ("asked", "owed", "not_owed"),
    [
        ([(2, 4)], [(2, 2), (4, 4)], [(1, 1), (5, 5)]),
        ([(2, None)], [(2, 2), (10**6, 10**6)], [(1, 1)]),
        ([(0, 1), (5, 6)], [(1, 1), (5, 5)], [(2, 2), (4, 4)]),
    ],
)
def test_a_stage_owes_the_segments_it_is_asked_for(asked: list[Any], owed: list[Any], not_owed: list[Any]) -> None:
    jobs = [job(f"j{number}", CHAIN, *span) for number, span in enumerate(asked)]
    stage = running(*jobs, name="add")
    assert all(stage.owes(Key(*key)) for key in owed)
    assert not any(stage.owes(Key(*key)) for key in not_owed)


@pytest.mark.parametrize(
    ("asked", "drafts", "owed", "not_owed"),
    [
        ([(2, 6)], False, [(2, 6)], [(2, 2), (2, 5), (3, 6), (2, 7), (0, 6)]),
        ([(2, 6)], True, [(2, 2), (2, 3), (2, 5), (2, 6)], [(2, 4), (3, 6)]),
        ([(2, None)], False, [(2, 2), (2, 40)], [(0, 40), (3, 40)]),
        ([(0, 3), (2, 6)], False, [(0, 3), (2, 6)], [(0, 6), (2, 3)]),
    ],
)
def test_a_stage_that_reduces_owes_just_the_ranges(
    asked: list[Any], drafts: bool, owed: list[Any], not_owed: list[Any]
) -> None:
    jobs = [job(f"j{number}", WHOLE, *span, drafts=drafts) for number, span in enumerate(asked)]
    stage = running(*jobs, name="total")
    assert all(stage.owes(Key(*key)) for key in owed)
    assert not any(stage.owes(Key(*key)) for key in not_owed)


def test_an_output_is_prompt_where_no_job_would_wait_for_it() -> None:
    live = job("live", CHAIN, 3, prompt_from=6, max_lag_s=2.0)
    stage = running(live, name="add")
    assert [stage.is_prompt(Key.of(index)) for index in (3, 5, 6, 100)] == [False, False, True, True]
    patient = job("patient", CHAIN, 7, 8)
    stage = running(live, patient, name="add")
    assert [stage.is_prompt(Key.of(index)) for index in (5, 6, 7, 8, 9)] == [False, True, False, False, True]


# --- groups ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["done", "canceled", "failed"])
def test_only_jobs_that_run_need_groups(state: str) -> None:
    assert running_groups([job("j", CHAIN, state=state)]) == []
    alone = running_groups([job("one", CHAIN)])
    assert running_groups([job("one", CHAIN), job("two", WHOLE, state=state)]) == alone != []


def test_the_same_stages_on_two_streams_are_two_groups() -> None:
    groups = running_groups([job("one", CHAIN), job("two", CHAIN, stream="door")])
    assert [(group.stream, [stage.jobs for stage in group.stages]) for group in groups] == [
        ("cam", [("one",)]),
        ("cam", [("one",)]),
        ("door", [("two",)]),
        ("door", [("two",)]),
    ]


def test_stages_run_in_the_group_their_plan_gives_them() -> None:
    plan = plan_of(CHAIN)
    spec = job("one", CHAIN)
    assert [len(group.stages) for group in running_groups([spec])] == [1, 1]
    fused = plan.regrouped([[stage.id for stage in plan.stages]])
    (group,) = running_groups([msgspec.structs.replace(spec, plan=fused)])
    assert [stage.planned.name for stage in group.stages] == ["read", "add"]


def test_jobs_that_ask_the_same_give_one_group_by_one_name() -> None:
    names = {
        tuple(group.name for group in running_groups(jobs))
        for jobs in (
            [job("one", CHAIN)],
            [job("two", {"x": read(), "y": over("toy_add", "x", add=1)}, submitted_ns=9, max_lag_s=4.0)],
            [job("one", CHAIN), job("two", CHAIN)],
            [job("one", CHAIN), job("three", CHAIN, 4, 9)],  # within what is asked for already
        )
    }
    assert len(names) == 1


def test_the_name_of_a_group_does_not_depend_on_which_of_its_jobs_came_first() -> None:
    def jobs(*submitted_ns: int) -> list[JobSpec]:
        return [job(f"j{n}", {"read": read(add=n)}, submitted_ns=at) for n, at in enumerate(submitted_ns)]

    (there,), (back,) = running_groups(jobs(1, 2)), running_groups(jobs(2, 1))
    assert [stage.id for stage in there.stages] == [stage.id for stage in back.stages[::-1]]
    assert there.name == back.name


@pytest.mark.parametrize(
    "changed",
    [
        lambda spec: job("one", CHAIN, 1),
        lambda spec: job("one", CHAIN, 0, 9),
        lambda spec: job("one", {"read": read(), "add": over("toy_add", "read", add=2)}),
        lambda spec: msgspec.structs.replace(spec, rounds={id_of(spec, "add"): 3}),
    ],
)
def test_a_consumer_begins_anew_under_another_name_when_what_its_group_computes_changes(changed: Any) -> None:
    spec = job("one", CHAIN)
    before = {group.name for group in running_groups([spec])}
    after = {group.name for group in running_groups([changed(spec)])}
    assert len(after - before) >= 1


def test_a_group_is_in_the_newest_round_of_the_jobs_that_ask_for_its_stages() -> None:
    one, two = job("one", CHAIN), job("two", CHAIN)
    read_id, add_id = id_of(one, "read"), id_of(one, "add")
    jobs = [
        msgspec.structs.replace(one, rounds={read_id: 3, add_id: 8}),
        msgspec.structs.replace(two, rounds={read_id: 5}),
    ]
    rounds = {stage.id: group.round for group in running_groups(jobs) for stage in group.stages}
    assert rounds == {read_id: 5, add_id: 8}


@st.composite
def jobs(draw: st.DrawFn) -> list[JobSpec]:
    """A few jobs over few streams that have much in common."""
    found = []
    for number in range(draw(st.integers(0, 5))):
        stages = {
            "read": read(add=draw(st.integers(0, 1))),
            "add": over("toy_add", "read", add=draw(st.integers(0, 1))),
            "recent": over("toy_recent", draw(st.sampled_from(["read", "add"]))),
            "total": over("toy_total", *draw(st.sampled_from([("recent",), ("add", "recent")]))),
        }
        first = draw(st.integers(0, 5))
        found.append(
            job(
                f"j{number}",
                stages,
                first,
                draw(st.one_of(st.none(), st.integers(first, 9))),
                drafts=draw(st.booleans()),
                window=draw(st.sampled_from([None, 2, 3])),
                stream=draw(st.sampled_from(["cam", "door"])),
                state=draw(st.sampled_from(["running", "running", "running", "done"])),
                submitted_ns=draw(st.integers(0, 2)),
                prompt_from=draw(st.one_of(st.none(), st.integers(0, 9))),
            )
        )
    return found


@given(jobs(), st.randoms(use_true_random=False))
def test_groups_follow_from_the_jobs_not_from_their_order(jobs: list[JobSpec], random: Any) -> None:
    shuffled = list(jobs)
    random.shuffle(shuffled)
    key = lambda group: (group.stream, group.name)  # noqa: E731
    there, back = (sorted(running_groups(each), key=key) for each in (jobs, shuffled))
    assert there == back
    assert [group.name for group in there] == [group.name for group in back]


@given(jobs())
def test_groups_run_each_stage_once_and_owe_what_every_job_asks_for(jobs: list[JobSpec]) -> None:
    groups = running_groups(jobs)
    stages = {(group.stream, stage.id): stage for group in groups for stage in group.stages}
    assert len(stages) == sum(len(group.stages) for group in groups)
    assert len({(group.stream, group.name) for group in groups}) == len(groups)
    wanted = {(job.stream, planned.id) for job in jobs if job.state == "running" for planned in job.plan.stages}
    assert set(stages) == wanted
    for job in jobs:
        if job.state != "running":
            continue
        for planned in job.plan.stages:
            stage = stages[job.stream, planned.id]
            assert job.id in stage.jobs
            for span in job.spans[planned.id]:
                last = 20 if span.last is None else span.last
                each = [Key(span.first, last)] if isinstance(planned.scope, Reduce) else map(Key.of, (span.first, last))
                for key in each:
                    assert stage.owes(key)
                    assert job.prompt_from is None or key.last >= job.prompt_from or not stage.is_prompt(key)


@given(jobs())
def test_a_stage_stands_after_those_of_its_group_that_it_reads(jobs: list[JobSpec]) -> None:
    for group in running_groups(jobs):
        _stand_in_order([stage.planned for stage in group.stages])


def test_stages_are_put_in_order_each_once() -> None:
    plan = plan_of({"read": read(), "add": over("toy_add", "read"), "sum": over("toy_sum", "read", "add")})
    for order in permutations(plan.stages):
        found = in_order([*order, *order])
        assert sorted(stage.id for stage in found) == sorted(stage.id for stage in plan.stages)
        _stand_in_order(found)
    assert in_order(plan.stages[1:]) == list(plan.stages[1:])  # what is read may be elsewhere


def _stand_in_order(stages: list[PlannedStage]) -> None:
    inside = {stage.id for stage in stages}
    seen: set[str] = set()
    for stage in stages:
        assert set(stage.sources) & inside <= seen
        seen.add(stage.id)


def test_a_group_is_named_by_a_token_whatever_its_stream() -> None:
    (group, _) = running_groups([job("one", CHAIN)])
    assert len(group.name) == 20
    assert group.name == RunningGroup(stream="other", stages=group.stages).name  # the stream is in the consumer's name
