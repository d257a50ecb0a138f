"""What is left of what jobs ask for, and where a group begins for it."""

from typing import Any

import msgspec
import toys

from engine.decide.instructions import Known, StageRule, rules_of
from engine.decide.running_graph import RunningStage, running_groups
from engine.decide.starting_points import first_inputs, left_of, ranges_lacking, stored_last
from engine.spec.catalogue import Catalogue
from engine.spec.jobs import JobProgress, JobSpec, Reached, Span, spans_of
from engine.spec.operator import Machine
from engine.spec.plan import ancestors, make_plan
from engine.spec.workflow import MEDIA, Stage, Workflow
from streams.subjects import Key

PLAN = make_plan(
    Workflow(name="w", stages={"near": Stage(capability="toy_near", inputs={"media": "media"})}),
    Catalogue(toys.ALL),
    Machine(num_cores=2),
)
NEAR = PLAN.answers[0]


def job(id: str, asked: Span, submitted_ns: int = 1) -> JobSpec:
    return JobSpec(id=id, stream="s", plan=PLAN, spans=spans_of(PLAN, asked), asked=asked, submitted_ns=submitted_ns)


def first_media(jobs: list[JobSpec], progress: dict[str, JobProgress] | None) -> int | None:
    """Where the group of all these jobs begins, with nothing stored of fifty segments."""
    (group,) = running_groups(jobs)
    above = ancestors([stage.planned for stage in group.stages])
    rules = rules_of(group.stages, above)
    left = None if progress is None else left_of(jobs, progress)
    firsts = first_inputs(rules, {rule.id: set() for rule in rules}, 50, left)
    return None if firsts is None else firsts[MEDIA]


def test_what_was_answered_is_not_begun_with_though_its_results_are_gone() -> None:
    standing = job("standing", Span(first=0))
    said = {"standing": JobProgress(submitted_ns=1, reached={NEAR: Reached(40)})}
    assert first_media([standing], None) == 0
    assert first_media([standing], {}) == 0
    assert first_media([standing], said) == 39  # with the neighbour it looks at
    assert first_media([standing, job("once", Span(first=30, last=35))], said) == 29
    whole = msgspec.structs.replace(said["standing"], reached={NEAR: Reached(50)})
    assert first_media([standing], {"standing": whole}) is None


def test_progress_of_a_job_that_had_the_same_id_before_counts_for_nothing() -> None:
    said = {"standing": JobProgress(submitted_ns=1, reached={NEAR: Reached(40)})}
    assert first_media([job("standing", Span(first=0), submitted_ns=2)], said) == 0


def rules_over(spans: dict[str, list[Span]], inside: bool = False) -> list[StageRule]:
    """Of questions to what `read` makes, and of `read` too where it is `inside`, with these ranges."""
    stages = {"read": Stage(capability="toy_read", inputs={"media": "media"})} | {
        name: Stage(capability="toy_total", inputs={"numbers": ("read",)}, params={"add": number})
        for number, name in enumerate(spans)
    }
    plan = make_plan(Workflow(name="w", stages=stages), Catalogue(toys.ALL), Machine(num_cores=2))
    asked = spans | {"read": [Span(first=0)]}
    running = [RunningStage(planned=each, spans=tuple(asked[each.name])) for each in plan.stages]
    return rules_of([stage for stage in running if inside or stage.planned.name != "read"], ancestors(plan.stages))


def lacks(rules: list[StageRule], stored: dict[str, set[Key]], *known: Any) -> list[Key] | None:
    found = ranges_lacking(rules, stored, *known)
    return None if found is None else [key for _, key in found]


def test_what_questions_lack_is_told_by_range() -> None:
    one, other = Span(first=0, last=4), Span(first=2)
    rules = rules_over({"a": [one, other], "b": [one]})
    stored: dict[str, set[Key]] = {rule.id: set() for rule in rules}
    assert lacks(rules, stored, None) is None  # where the other ends is not known
    assert lacks(rules, stored, 10) == [Key(0, 4), Key(2, 9), Key(0, 4)]
    assert lacks(rules, stored, 3) == [Key(0, 2), Key(2, 2), Key(0, 2)]  # the stream ended before
    assert lacks(rules, stored, 2) is None  # and of one of them nothing is left
    stored[rules[0].id] |= {Key(0, 4), Key(2, 9)}
    assert lacks(rules, stored, 10) == [Key(0, 4)]
    assert lacks(rules, stored, 10, {rules[1].id: []}) == []


def test_of_a_group_that_does_more_than_answer_ranges_every_input_may_matter() -> None:
    assert lacks(rules_over({"a": [Span(first=0)]}, inside=True), {}, 10) is None


def test_a_range_is_set_off_by_what_was_stored_last_of_it() -> None:
    (rule,) = rules_over({"a": [Span(first=0, last=2)]})
    (source,) = rule.sources
    there = {0: Known(7), 1: Known(9), 2: Known(8)}
    assert stored_last(rule, {source: there}, 3) == (source, 1, 9)
    assert stored_last(rule, {source: {0: Known(7), 2: Known(8)}}, 3) is None
    assert stored_last(StageRule(rule.running, frozenset(["other"]), False), {source: there}, 3) is None
