"""Which groups a worker runs: one bad job stops no other, and what nobody can serve waits alone."""

from collections.abc import Sequence

import msgspec
import toys
from hypothesis import given
from hypothesis import strategies as st

from engine.decide.reconcile import Reconciled, devices_of, offers, reconcile, unserved
from engine.spec.catalogue import Catalogue
from engine.spec.jobs import JobSpec, Span, spans_of
from engine.spec.operator import Machine
from engine.spec.plan import make_plan
from engine.spec.workflow import Stage, Workflow

CATALOGUE = Catalogue(toys.ALL)
MACHINE = Machine(num_cores=2)
HERE = offers(CATALOGUE, devices_of(MACHINE))
CHAIN = {
    "read": Stage(capability="toy_read", inputs={"media": "media"}),
    "near": Stage(capability="toy_near", inputs={"media": "media"}),
    "add": Stage(capability="toy_add", inputs={"numbers": "read"}),
}


def job(id: str = "j", stages: dict[str, Stage] | None = None, stream: str = "s") -> JobSpec:
    plan = make_plan(Workflow(name="w", stages=stages or CHAIN), CATALOGUE, MACHINE)
    return JobSpec(id=id, stream=stream, plan=plan, spans=spans_of(plan, Span(first=0)))


def with_rung(spec: JobSpec, stage: str, **changes: object) -> JobSpec:
    stages = tuple(
        msgspec.structs.replace(each, rung=msgspec.structs.replace(each.rung, **changes))
        if each.name == stage
        else each
        for each in spec.plan.stages
    )
    return msgspec.structs.replace(spec, plan=msgspec.structs.replace(spec.plan, stages=stages))


def names(told: Reconciled) -> list[list[str]]:
    return sorted(sorted(stage.planned.name for stage in group.stages) for group in told.start)


def test_groups_are_started_kept_and_left() -> None:
    first = reconcile([job()], [], CATALOGUE, HERE)
    assert names(first) == [["add"], ["near", "read"]]
    running = [(group.stream, group.name) for group in first.start]
    second = reconcile([job(), job("k")], running, CATALOGUE, HERE)
    assert (second.start, len(second.keep), second.leave) == ((), 2, ())
    assert {name for group in second.keep for stage in group.stages for name in stage.jobs} == {"j", "k"}
    assert set(reconcile([], running, CATALOGUE, HERE).leave) == set(running)


def test_one_more_question_starts_its_own_group_and_leaves_the_others_as_they_are() -> None:
    running: list[tuple[str, str]] = []
    jobs: list[JobSpec] = []
    for number in range(5):
        ask = Stage(capability="toy_total", inputs={"numbers": ("add",)}, params={"add": number})
        jobs.append(job(f"j{number}", CHAIN | {"ask": ask}))
        told = reconcile(jobs, running, CATALOGUE, HERE)
        assert (len(told.keep), told.leave) == (len(running), ())
        assert [[stage.planned.params for stage in group.stages] for group in told.start[-1:]] == [[{"add": number}]]
        running += [(group.stream, group.name) for group in told.start]
    assert len(running) == 2 + len(jobs)


def test_a_job_whose_operator_is_not_here_is_left_to_others_and_stops_nobody() -> None:
    strange = with_rung(job("strange", stream="t"), "read", implementation="elsewhere")
    told = reconcile([strange, job()], [], CATALOGUE, HERE)
    assert names(told) == [["add"], ["add"], ["near"], ["near", "read"]]
    (why,) = told.lacking.values()
    assert "not implemented by 'elsewhere' here" in why


def test_settings_that_an_upgrade_renamed_are_lacking_not_fatal() -> None:
    renamed = with_rung(job("old"), "read", knobs={"gone": 1})
    told = reconcile([renamed], [], CATALOGUE, HERE)
    assert names(told) == [["add"], ["near"]]
    (why,) = told.lacking.values()
    assert why.startswith("the installed toy knows other settings")


def test_another_version_is_another_computation() -> None:
    told = reconcile([with_rung(job(), "read", version=2)], [], CATALOGUE, HERE)
    assert list(told.lacking.values()) == ["toy is installed in version 1, not 2"]


def test_what_is_planned_for_a_gpu_never_runs_on_the_processor() -> None:
    told = reconcile([with_rung(job(), "read", device="cuda")], [], CATALOGUE, HERE)
    assert names(told) == [["add"], ["near"]]
    assert list(told.lacking.values()) == ["toy is to run on cuda, and there is none here"]


def test_what_not_every_node_can_serve_is_not_fused_with_what_every_node_can() -> None:
    less = frozenset(offered for offered in HERE if not offered.startswith("toy_near/"))
    both = {"n1": HERE, "n2": less}
    rich = reconcile([job()], [], CATALOGUE, HERE, both)
    poor = reconcile([job()], [], Catalogue([op for op in toys.ALL if op is not toys.Near]), less, both)
    assert names(rich) == [["add"], ["near"], ["read"]]
    assert names(poor) == [["add"], ["read"]]
    shared = {group.name for group in rich.start} & {group.name for group in poor.start}
    assert len(shared) == 2  # they meet on the same consumers


@given(st.lists(st.just(HERE), max_size=5))
def test_how_many_nodes_there_are_makes_no_difference_while_they_are_alike(nodes: Sequence[frozenset[str]]) -> None:
    alone = reconcile([job()], [], CATALOGUE, HERE)
    told = reconcile([job()], [], CATALOGUE, HERE, {str(n): offered for n, offered in enumerate(nodes)})
    assert [group.name for group in told.start] == [group.name for group in alone.start]


def test_a_job_that_nobody_can_serve_says_what_it_waits_for() -> None:
    strange = with_rung(job(), "read", implementation="elsewhere", version=3, device="cuda")
    assert unserved(strange, [HERE]) == ["read: no node has elsewhere (version 3) on cuda"]
    assert unserved(strange, []) == []  # nobody has said what there is
    assert unserved(job(), [frozenset(), HERE]) == []
    assert unserved(msgspec.structs.replace(strange, state="done"), [HERE]) == []


def test_third_party_code_that_cannot_be_made_is_lacking() -> None:
    class Broken(toys.Read):
        def demands(self) -> tuple[()]:
            raise ZeroDivisionError("at import")

    told = reconcile([job()], [], Catalogue([Broken, *(op for op in toys.ALL if op is not toys.Read)]), HERE)
    assert list(told.lacking.values()) == ["toy cannot be made: ZeroDivisionError: at import"]
