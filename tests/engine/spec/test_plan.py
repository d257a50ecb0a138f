"""Plans: ids that name a computation, the best rung that can run, and which stages run fused."""

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, ClassVar

import msgspec
import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st

from engine.spec.catalogue import Catalogue
from engine.spec.choosing import Pace, choose, runnable
from engine.spec.operator import (
    Capability,
    Demand,
    Machine,
    Map,
    Media,
    Operator,
    PerRange,
    Port,
    Reduce,
    Rung,
    Scope,
    Settings,
    Window,
)
from engine.spec.plan import Plan, PlannedRung, ancestors, make_plan, settings_of, stage_id
from engine.spec.workflow import Stage, Workflow
from streams.errors import UserError
from streams.records import MediaInfo

MACHINE = Machine(num_cores=2)
CATALOGUE = Catalogue(toys.ALL)


def plan_of(stages: dict[str, Stage], catalogue: Catalogue = CATALOGUE) -> Plan:
    return make_plan(Workflow(name="w", stages=stages), catalogue, MACHINE)


def read(**params: Any) -> Stage:
    return Stage(capability="toy_read", inputs={"media": "media"}, params=params)


def add(*sources: str, **params: Any) -> Stage:
    return Stage(capability="toy_add", inputs={"numbers": sources}, params=params)


def total(*sources: str) -> Stage:
    return Stage(capability="toy_sum", inputs={"numbers": sources})


# --- ids -----------------------------------------------------------------------------------------------------

RUNG = PlannedRung(implementation="toy", rung="small", version=1, knobs={"width": 2})
COMPUTED: dict[str, Any] = {
    "capability": "toy_add",
    "rungs": [RUNG],
    "scope": Map(),
    "params": {"add": 1},
    "inputs": {"numbers": ["media"]},
}


@pytest.mark.parametrize(
    "changed",
    [
        {"capability": "toy_sum"},
        {"rungs": [msgspec.structs.replace(RUNG, implementation="other")]},
        {"rungs": [msgspec.structs.replace(RUNG, version=2)]},
        {"rungs": [msgspec.structs.replace(RUNG, knobs={"width": 3})]},
        {"rungs": [msgspec.structs.replace(RUNG, knobs={"height": 2})]},
        {"rungs": [RUNG, msgspec.structs.replace(RUNG, knobs={"width": 3})]},
        {"scope": Map(before=1)},
        {"scope": Map(after=1)},
        {"scope": Window(1)},
        {"params": {"add": 2}},
        {"params": {}},
        {"inputs": {"numbers": ["other"]}},
        {"inputs": {"others": ["media"]}},
        {"inputs": {"numbers": ["media", "other"]}},
        {"inputs": {"numbers": ["media"], "more": ["media"]}},
    ],
)
def test_what_affects_the_output_changes_the_id(changed: dict[str, Any]) -> None:
    assert stage_id(**(COMPUTED | changed)) != stage_id(**COMPUTED)


def test_what_does_not_affect_the_output_does_not_change_the_id() -> None:
    assert stage_id(**(COMPUTED | {"rungs": [msgspec.structs.replace(RUNG, rung="renamed")]})) == stage_id(**COMPUTED)
    knobs = {"width": 2, "height": 3}
    there, back = (
        [msgspec.structs.replace(RUNG, knobs=dict(order))] for order in (knobs.items(), [*knobs.items()][::-1])
    )
    assert stage_id(**(COMPUTED | {"rungs": there})) == stage_id(**(COMPUTED | {"rungs": back}))


def test_an_id_can_stand_in_a_subject_and_stays_as_it_was() -> None:
    assert re.fullmatch(r"[a-z2-7]{20}", stage_id(**COMPUTED))
    assert stage_id(**COMPUTED) == "a7gxmlv4mwb6w5mpdqo4"


class ReadAnew(toys.Read):
    version = 2


class ReadAround(toys.Read):
    scope: ClassVar[Scope] = Map(1, 0)


@pytest.mark.parametrize("operator", [ReadAnew, ReadAround])
def test_another_version_or_scope_of_an_operator_changes_its_stage_and_all_after_it(operator: type[Operator]) -> None:
    stages = {"read": read(), "add": add("read"), "near": Stage(capability="toy_near", inputs={"media": "media"})}
    before = {stage.name: stage.id for stage in plan_of(stages).stages}
    catalogue = Catalogue([operator, *(toy for toy in toys.ALL if toy is not toys.Read)])
    after = {stage.name: stage.id for stage in plan_of(stages, catalogue).stages}
    assert {name for name in before if before[name] != after[name]} == {"read", "add"}


def test_a_parameter_at_its_default_says_nothing_new() -> None:
    assert plan_of({"a": read()}).id == plan_of({"a": read(add=0)}).id != plan_of({"a": read(add=1)}).id


@given(st.permutations(["a", "b", "c"]), st.permutations(["a", "b", "c", "sum"]))
def test_neither_the_order_of_sources_nor_of_stages_matters(sources: list[str], order: list[str]) -> None:
    stages = {"a": read(add=1), "b": read(add=2), "c": read(add=3), "sum": total(*sources)}
    shuffled = plan_of({name: stages[name] for name in order})
    assert shuffled.id == plan_of(stages | {"sum": total("a", "b", "c")}).id


def test_equal_stages_under_two_names_are_one() -> None:
    plan = plan_of(
        {"a": read(), "b": read(add=0), "on_a": add("a"), "on_b": add("b"), "sum": total("on_a", "on_b", "a")}
    )
    assert [stage.capability for stage in plan.stages] == ["toy_read", "toy_add", "toy_sum"]
    first, second, last = plan.stages
    assert last.inputs == {"numbers": tuple(sorted([first.id, second.id]))}
    assert plan.answers == (last.id,)
    assert sorted(id for group in plan.groups for id in group) == sorted(stage.id for stage in plan.stages)


def test_a_plan_survives_the_wire() -> None:
    plan = plan_of({"a": read(add=4), "near": Stage(capability="toy_near", inputs={"media": "media"})})
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(plan), type=Plan) == plan
    assert settings_of(toys.Added, plan.stages[0].params) in (toys.Added(add=4), toys.Added())


def test_ancestors_end_at_a_reduce() -> None:
    stages = {
        "a": read(),
        "b": add("a"),
        "total": Stage(capability="toy_total", inputs={"numbers": ("b",)}),
        "c": add("total"),
    }
    plan = plan_of(stages)
    ids = {stage.name: stage.id for stage in plan.stages}
    assert ancestors(plan.stages) == {
        ids["a"]: {"media"},
        ids["b"]: {"media", ids["a"]},
        ids["total"]: frozenset(),
        ids["c"]: {ids["total"]},
    }


def test_regrouping_keeps_every_stage_once() -> None:
    plan = plan_of({"a": read(), "b": add("a")})
    a, b = (stage.id for stage in plan.stages)
    assert plan.regrouped([[a, b]]).groups == ((a, b),)
    for groups in ([[a]], [[a], [a, b]], [[a, b, "other"]]):
        with pytest.raises(ValueError, match="exactly one group"):
            plan.regrouped(groups)


# --- choosing ------------------------------------------------------------------------------------------------

GUESS = Capability("guess", {"media": Port(Media)}, toys.Number, toys.Added)


class Size(Settings, frozen=True):
    size: int = 0


class Guess(toys.Toy):
    capability = GUESS
    Knobs = Size
    offers: ClassVar[dict[int, float]] = {}  # size -> quality
    lacks: ClassVar[dict[int, str]] = {}  # size -> why it cannot run

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return [Rung(f"{cls.name}-{size}", quality, Size(size=size)) for size, quality in cls.offers.items()]

    @classmethod
    def missing(cls, knobs: Any, machine: Machine, media: MediaInfo | None) -> str | None:
        return cls.lacks.get(knobs.size)


class Clever(Guess):
    name = "clever"
    offers: ClassVar[dict[int, float]] = {1: 0.6, 3: 0.9}
    lacks: ClassVar[dict[int, str]] = {3: "needs a GPU"}


class Captioned(Guess):
    name = "captioned"
    offers: ClassVar[dict[int, float]] = {0: 1.0}

    @classmethod
    def missing(cls, knobs: Any, machine: Machine, media: MediaInfo | None) -> str | None:
        return None if media is not None and "subtitle" in media.codecs else "has no captions"


class Hopeless(Guess):
    name = "hopeless"
    offers: ClassVar[dict[int, float]] = {1: 0.8, 2: 0.7}
    lacks: ClassVar[dict[int, str]] = {1: "needs a GPU", 2: "weights are not here"}


class Plain(Guess):
    name = "plain"
    offers: ClassVar[dict[int, float]] = {1: 0.6}


GUESSES = [Plain, Hopeless, Captioned, Clever]


def test_the_best_rung_that_can_run_is_chosen_and_the_better_ones_are_accounted_for() -> None:
    operator, rung, notices = choose(Catalogue(GUESSES), GUESS, MACHINE, None)
    assert (operator, rung) == (Clever, Rung("clever-1", 0.6, Size(size=1)))  # as good as plain-1, first by name
    assert notices == ["guess runs on clever-1: has no captions; needs a GPU; weights are not here"]


def test_the_choice_depends_on_the_media() -> None:
    captioned = MediaInfo(codecs={"subtitle": ("mov_text",)})
    assert choose(Catalogue(GUESSES), GUESS, MACHINE, captioned)[1:] == (Rung("captioned-0", 1.0, Size()), [])


def test_the_choice_does_not_depend_on_the_order_of_installation() -> None:
    chosen = {choose(Catalogue(order), GUESS, MACHINE, None)[0] for order in (GUESSES, GUESSES[::-1])}
    assert chosen == {Clever}


def test_if_nothing_can_run_every_reason_is_given() -> None:
    with pytest.raises(UserError) as refused:
        choose(Catalogue([Hopeless, Captioned]), GUESS, MACHINE, None)
    assert str(refused.value) == (
        "nothing here can compute 'guess': has no captions; needs a GPU; weights are not here"
    )


class Mute(Guess):
    """Better than all, and wrong in everything that is asked of it before it runs."""

    name = "mute"
    offers: ClassVar[dict[int, float]] = {1: 0.99}

    @classmethod
    def missing(cls, knobs: Any, machine: Machine, media: MediaInfo | None) -> str | None:
        raise ValueError("no\nword")


class Boundless(Mute):
    name = "boundless"

    @classmethod
    def missing(cls, knobs: Any, machine: Machine, media: MediaInfo | None) -> str | None:
        return None

    @classmethod
    def scope_of(cls, knobs: Any, segment_s: float) -> Scope:
        raise KeyError(segment_s)


class Undemanding(Boundless):
    name = "undemanding"

    @classmethod
    def scope_of(cls, knobs: Any, segment_s: float) -> Scope:
        return cls.scope

    def demands(self) -> tuple[Demand, ...]:
        raise OSError("no disk")


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (Mute, "mute: missing() raised ValueError: no word"),
        (Boundless, "boundless: scope_of() or demands() raised KeyError: 5.0"),
        (Undemanding, "undemanding: scope_of() or demands() raised OSError: no disk"),
    ],
)
def test_one_that_cannot_answer_is_passed_over_and_stops_no_other(broken: type[Guess], why: str) -> None:
    operator, _, notices = choose(Catalogue([broken, *GUESSES]), GUESS, MACHINE, None)
    assert operator is Clever
    assert why in notices[0]
    with pytest.raises(UserError, match=re.escape(why)):
        choose(Catalogue([broken]), GUESS, MACHINE, None)
    assert runnable(Catalogue([Mute, Plain]), MACHINE) == ["guess/plain-1/cpu"]


def test_a_plan_tells_each_notice_once() -> None:
    guess = {"capability": "guess", "inputs": {"media": "media"}}
    stages = {"a": Stage(**guess), "b": Stage(**guess, params={"add": 1})}  # type: ignore[arg-type]
    plan = plan_of(stages, Catalogue([Clever]))
    assert plan.notices == ("guess runs on clever-1: needs a GPU",)
    assert {stage.rung.knobs["size"] for stage in plan.stages} == {1}


def test_a_plan_says_what_is_set_aside() -> None:
    catalogue = Catalogue([Clever])
    catalogue.add_or_set_aside("no_such_module:Better")
    plan = plan_of({"a": Stage(capability="guess", inputs={"media": "media"})}, catalogue)
    aside, choice = plan.notices
    assert aside.startswith("set aside: cannot load operator 'no_such_module:Better'")
    assert choice.startswith("guess runs on")


class Patient(Guess):
    """Sees better the longer it waits."""

    name = "patient"
    offers: ClassVar[dict[int, float]] = {15: 0.9, 5: 0.8, 1: 0.7}

    @classmethod
    def scope_of(cls, knobs: Any, segment_s: float) -> Scope:
        return Map(before=1, after=ceil(knobs.size / segment_s))


@pytest.mark.parametrize(
    ("pace", "size", "after"),
    [
        (Pace(), 15, 3),
        (Pace(segment_s=2.0), 15, 8),
        (Pace(segment_s=5.0, max_lag_s=30.0), 15, 3),
        (Pace(segment_s=5.0, max_lag_s=29.0), 5, 1),
        (Pace(segment_s=2.0, max_lag_s=12.0), 5, 3),
        (Pace(segment_s=2.0, max_lag_s=11.0), 1, 1),
        (Pace(segment_s=5.0, max_lag_s=4.0), 5, 1),  # each waits too long: the best of those that wait least
    ],
)
def test_a_live_stream_is_not_made_to_wait_for_more_than_half_its_lag(pace: Pace, size: int, after: int) -> None:
    stages = {"a": Stage(capability="guess", inputs={"media": "media"})}
    plan = make_plan(Workflow(name="w", stages=stages), Catalogue([Patient]), MACHINE, pace=pace)
    (stage,) = plan.stages
    assert (stage.rung.knobs["size"], stage.scope) == (size, Map(1, after))
    assert bool(plan.notices) == (size != 15)
    assert all(f"which may lag {pace.max_lag_s:g} s" in notice for notice in plan.notices)


# --- fusing --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pictures:
    rate: int


@dataclass(frozen=True)
class Sound:
    rate: int


class LooksA(toys.Toy):
    capability = Capability("looks_a", {"media": Port(Media)}, toys.Number, toys.Added)
    wants: ClassVar[tuple[Hashable, ...]] = (Pictures(1),)

    def demands(self) -> tuple[Hashable, ...]:
        return self.wants


class LooksB(LooksA):
    capability = Capability("looks_b", {"media": Port(Media)}, toys.Number, toys.Added)
    wants: ClassVar[tuple[Hashable, ...]] = (Pictures(5), Pictures(6))


class Hears(LooksA):
    capability = Capability("hears", {"media": Port(Media)}, toys.Number, toys.Added)
    wants: ClassVar[tuple[Hashable, ...]] = (Sound(1),)


class LooksAndHears(LooksA):
    capability = Capability("looks_and_hears", {"media": Port(Media)}, toys.Number, toys.Added)
    wants: ClassVar[tuple[Hashable, ...]] = (Sound(1), Pictures(1))


def test_stages_that_share_a_decode_run_together_and_the_others_alone() -> None:
    names = ["looks_a", "toy_read", "hears", "looks_b", "looks_and_hears"]
    stages = {name: Stage(capability=name, inputs={"media": "media"}) for name in names} | {
        "sum": total("looks_a", "hears")
    }
    plan = plan_of(stages, Catalogue([*toys.ALL, LooksA, LooksB, Hears, LooksAndHears]))
    groups = {frozenset(plan.stage(id).name for id in group) for group in plan.groups}
    alone = {"toy_read", "hears", "looks_and_hears", "sum"}
    assert groups == {frozenset({"looks_a", "looks_b"}), *(frozenset({name}) for name in alone)}


def test_what_answers_a_range_runs_with_what_was_asked_with_it_and_with_nothing_else() -> None:
    """A group starts anew when a stage joins it: questions that come one by one would keep it from ever working."""

    def ask(add: int, source: str = "read") -> Stage:
        return Stage(capability="toy_total", inputs={"numbers": (source,)}, params={"add": add})

    def groups(**stages: Stage) -> dict[str, str]:
        return {stage.name: stage.group for stage in plan_of({"read": read(), **stages}).stages}

    one, another, both = groups(a=ask(1)), groups(b=ask(2)), groups(a=ask(1), b=ask(2))
    assert one["read"] == another["read"] == both["read"]
    assert both["a"] == both["b"]
    assert len({one["a"], another["b"], both["a"], one["read"]}) == 4
    behind = groups(b=ask(1), c=over("toy_add", "b"))
    assert behind["b"] != behind["c"]


def over(capability: str, *sources: str) -> Stage:
    return Stage(capability=capability, inputs={"numbers": sources if capability == "toy_sum" else sources[0]})


def test_what_follows_a_range_has_an_output_of_that_range_where_it_can() -> None:
    stages = {"read": read(), "total": Stage(capability="toy_total", inputs={"numbers": ("read",)})}
    plan = plan_of({**stages, "more": over("toy_add", "total"), "most": over("toy_add", "more")})
    scopes = {stage.name: stage.scope for stage in plan.stages}
    assert scopes == {"read": Map(), "total": Reduce(), "more": PerRange(), "most": PerRange()}
    for bad in (over("toy_count", "total"), over("toy_recent", "total"), over("toy_sum", "total", "read")):
        with pytest.raises(UserError, match=r"stage 'bad' reads 'total', which makes one output of a whole range"):
            plan_of({**stages, "bad": bad})
    in_windows = make_plan(
        Workflow(name="w", stages={**stages, "bad": over("toy_sum", "total", "read")}), CATALOGUE, MACHINE, window=3
    )
    assert {stage.scope for stage in in_windows.stages} == {Map(), Window(3)}


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_parameters_that_would_arrive_as_something_else_are_refused(number: str) -> None:
    class Weighed(Settings, frozen=True):
        weight: float = 0.0

    weigh = Capability("toy_weigh", {"media": Port(Media)}, toys.Number, Weighed)

    class Weigh(toys.Toy):
        capability = weigh

    stages = {"weigh": Stage(capability="toy_weigh", inputs={"media": "media"}, params={"weight": float(number)})}
    with pytest.raises(UserError, match=r"stage 'weigh': .*finite"):
        plan_of(stages, Catalogue([Weigh]))


# --- rungs under load ----------------------------------------------------------------------------------------


def weighed(floor: float) -> Plan:
    stages = {"weigh": Stage(capability="toy_weigh", inputs={"media": "media"})}
    return make_plan(Workflow(name="w", stages=stages), CATALOGUE, MACHINE, floor=floor)


def test_a_stage_may_run_on_lower_rungs_that_keep_the_quality_asked_for() -> None:
    """0.9 is the best; 0.75 is worth 0.83 of it, 0.2 is worth 0.22."""
    assert [rung.rung for rung in weighed(1.0).stages[0].rungs] == ["weigh-with-care"]
    (stage,) = weighed(0.8).stages
    assert [(rung.rung, rung.quality) for rung in stage.rungs] == [("weigh-with-care", 1.0), ("weigh-quickly", 0.8333)]
    assert len(weighed(0.0).stages[0].rungs) == 3
    assert len({weighed(floor).stages[0].id for floor in (1.0, 0.8, 0.0)}) == 3
    assert weighed(0.8).stages[0].id == weighed(0.7).stages[0].id  # the same rungs


class Wide(toys.Weigh):
    """Looks at its neighbours: what waits for it would wait otherwise."""

    name = "wide"
    scope: ClassVar[Scope] = Map(1, 1)

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return [Rung("weigh-widely", 0.85, toys.Pause())]


class Absent(toys.Weigh):
    name = "absent"

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return [Rung("weigh-elsewhere", 0.85, toys.Pause())]

    @classmethod
    def missing(cls, knobs: Any, machine: Machine, media: MediaInfo | None) -> str | None:
        return "there are no scales"


def test_a_lower_rung_reads_as_the_best_does_and_can_run_here_or_elsewhere() -> None:
    catalogue = Catalogue([toys.Weigh, Wide, Absent])
    stages = {"weigh": Stage(capability="toy_weigh", inputs={"media": "media"})}
    workflow = Workflow(name="w", stages=stages)
    (stage,) = make_plan(workflow, catalogue, MACHINE, floor=0.5).stages
    assert [rung.rung for rung in stage.rungs] == ["weigh-with-care", "weigh-quickly"]
    (stage,) = make_plan(workflow, catalogue, MACHINE, elsewhere=["toy_weigh/weigh-elsewhere/cpu"], floor=0.5).stages
    assert [rung.rung for rung in stage.rungs] == ["weigh-with-care", "weigh-elsewhere", "weigh-quickly"]


@pytest.mark.parametrize(
    ("judged", "floor", "rungs"),
    [
        ({}, 0.8, {"weigh-with-care": 1.0, "weigh-quickly": 0.8333}),
        ({"weigh-with-care": 0.9, "weigh-quickly": 0.63}, 0.8, {"weigh-with-care": 1.0}),
        ({"weigh-with-care": 0.9, "weigh-quickly": 0.63}, 0.7, {"weigh-with-care": 1.0, "weigh-quickly": 0.7}),
        ({"weigh-with-care": 0.9, "weigh-by-guess": 0.95}, 0.9, {"weigh-with-care": 1.0, "weigh-by-guess": 1.0}),
        ({"weigh-quickly": 0.1}, 0.8, {"weigh-with-care": 1.0, "weigh-quickly": 0.8333}),  # there is nothing beside it
        ({"weigh-with-care": 0.0, "weigh-quickly": 0.0}, 0.8, {"weigh-with-care": 1.0, "weigh-quickly": 0.8333}),
    ],
)
def test_what_rungs_were_judged_to_be_goes_before_what_they_declare(
    judged: dict[str, float], floor: float, rungs: dict[str, float]
) -> None:
    stages = {"weigh": Stage(capability="toy_weigh", inputs={"media": "media"})}
    of = {("toy_weigh", rung): value for rung, value in judged.items()}
    (stage,) = make_plan(Workflow(name="w", stages=stages), CATALOGUE, MACHINE, floor=floor, judged=of).stages
    assert {rung.rung: rung.quality for rung in stage.rungs} == rungs
