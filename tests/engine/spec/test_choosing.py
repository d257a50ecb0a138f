"""What is computed follows from what was chosen: what a rung does not look at is left out, with all before it."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import pytest

from engine.spec.catalogue import Catalogue
from engine.spec.operator import Capability, Inputs, Machine, Media, Operator, Port, Rung, Settings
from engine.spec.plan import Plan, make_plan
from engine.spec.workflow import Stage, Workflow
from streams.errors import UserError
from streams.records import Evidence, Observation

LOOK = Capability("look", {"media": Port(Media)}, Evidence)
NEVER = Capability("never", {"media": Port(Media)}, Evidence)
TELL = Capability("tell", {"media": Port(Media), "hints": Port(Evidence, many=True, optional=True)}, Evidence)


class Look(Operator):
    capability = LOOK
    name = "looking"

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return (Rung("looking", 0.5, Settings()),)

    def process(self, batch: Sequence[Inputs]) -> Sequence[Evidence]:
        return [Evidence(observations=(Observation(0, 1, "seen"),)) for _ in batch]


class How(Settings, frozen=True):
    by: Literal["media", "hints", "both", "whatever"] = "both"


class Tell(Look):
    capability = TELL
    name = "telling"
    Knobs = How
    offered: ClassVar[tuple[tuple[str, float], ...]] = ()

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return [Rung(by, quality, How(by=by)) for by, quality in cls.offered]  # type: ignore[arg-type]

    @classmethod
    def reads(cls, knobs: How) -> frozenset[str] | None:
        if knobs.by == "whatever":
            return None
        return frozenset(("media", "hints") if knobs.by == "both" else (knobs.by,))


def planned(offered: dict[str, float], hints: str | None = "look") -> Plan:
    telling = type("Telling", (Tell,), {"offered": tuple(offered.items())})
    stages = {"look": Stage(capability="look", inputs={"media": "media"})}
    inputs: dict[str, Any] = {"media": "media"} | ({"hints": ("look",)} if hints else {})
    stages["tell"] = Stage(capability="tell", inputs=inputs)
    if not hints:
        del stages["look"]
    return make_plan(Workflow(name="w", stages=stages), Catalogue([Look, telling]), Machine(2))


def test_what_the_chosen_rung_does_not_look_at_is_not_computed() -> None:
    plan = planned({"media": 0.9, "hints": 0.5})
    assert [stage.name for stage in plan.stages] == ["tell"]
    assert plan.stages[0].inputs == {"media": ("media",)}


def test_what_it_looks_at_is() -> None:
    plan = planned({"hints": 0.9, "media": 0.5})
    look, tell = plan.stages
    assert tell.inputs == {"hints": (look.id,)}
    assert planned({"both": 0.9}).stages[1].inputs == {"hints": (look.id,), "media": ("media",)}


def test_who_looks_at_nothing_else_computes_the_same_whatever_else_a_stage_is_given() -> None:
    assert planned({"media": 0.9}).id == planned({"media": 0.9}, hints=None).id


def test_a_rung_that_looks_at_what_a_stage_is_not_given_is_passed_over() -> None:
    (tell,) = planned({"both": 0.9, "media": 0.5}, hints=None).stages
    assert tell.rung.rung == "media"
    with pytest.raises(UserError, match=r"both reads 'hints', which this stage is not given"):
        planned({"both": 0.9}, hints=None)


def test_a_rung_that_does_with_what_there_is_does() -> None:
    assert planned({"whatever": 0.9}, hints=None).stages[0].inputs == {"media": ("media",)}
    assert set(planned({"whatever": 0.9}).stages[1].inputs) == {"media", "hints"}


def test_a_stage_that_nobody_looks_at_may_lack_what_it_takes() -> None:
    class Nowhere(Look):
        capability = NEVER
        name = "nowhere"

        @classmethod
        def missing(cls, knobs: Any, machine: Any, media: Any) -> str:
            return "it is nowhere"

    telling = type("Telling", (Tell,), {"offered": (("media", 0.9), ("hints", 0.5))})
    stages = {
        "never": Stage(capability="never", inputs={"media": "media"}),
        "tell": Stage(capability="tell", inputs={"media": "media", "hints": ("never",)}),
    }
    plan = make_plan(Workflow(name="w", stages=stages), Catalogue([Nowhere, telling]), Machine(2))
    assert [stage.name for stage in plan.stages] == ["tell"]
    stages["never"] = Stage(capability="never", inputs={"medium": "media"})  # what is wrong is wrong all the same
    with pytest.raises(UserError, match="has no input 'medium'"):
        make_plan(Workflow(name="w", stages=stages), Catalogue([Nowhere, telling]), Machine(2))


def test_an_optional_input_that_is_named_has_a_source() -> None:
    stages = {"tell": Stage(capability="tell", inputs={"media": "media", "hints": ()})}
    telling = type("Telling", (Tell,), {"offered": (("media", 0.9),)})
    with pytest.raises(UserError, match="takes one source or more, got 0"):
        make_plan(Workflow(name="w", stages=stages), Catalogue([telling]), Machine(2))


def test_an_implementation_that_cannot_say_what_it_looks_at_has_others_beside_it() -> None:
    class Odd(Tell):
        name = "odd"
        offered = (("both", 1.0),)

        @classmethod
        def reads(cls, knobs: How) -> frozenset[str] | None:
            raise ValueError("who knows")

    telling = type("Telling", (Tell,), {"offered": (("media", 0.9),)})
    stages = {"tell": Stage(capability="tell", inputs={"media": "media"})}
    (stage,) = make_plan(Workflow(name="w", stages=stages), Catalogue([Odd, telling]), Machine(2)).stages
    assert stage.rung.implementation == "telling"
