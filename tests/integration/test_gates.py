"""A stage with a gate is computed where its gate found something, whichever way the stages are fused."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import anyio
import msgspec
import pytest
import running
import toys

from engine.node.story import Storyteller
from engine.run.registry import open_registry
from engine.spec.catalogue import Catalogue
from engine.spec.operator import Capability, Inputs, Machine, Media, Operator, Port, Reduce, Rung, Settings
from engine.spec.plan import make_plan
from engine.spec.workflow import Stage, Workflow
from streams import subjects
from streams.errors import Permanent, UserError
from streams.records import EndOfStream, Evidence, Gap, MediaMessage, Observation, Record, Result, decode_result
from streams.wire.ledger import open_ledger
from streams.wire.link import connect

pytestmark = pytest.mark.anyio

VALUES = (0, 1, 2, 4, 13, 5, 6)  # odd: there is something to see; 13: nobody knows


class Seen(Evidence, frozen=True):
    kind: ClassVar[str] = "seen"


class Ordered(Settings, frozen=True):
    pass


class Look(Operator):
    """Sees odd numbers, and cannot look at 13."""

    capability = Capability("toy_look", {"media": Port(Media)}, Seen)
    name = "look"
    runs_in = "loop"

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return [Rung(f"{cls.capability.name}-{cls.name}", 0.5, Settings())]

    def process(self, batch: Sequence[Inputs]) -> Sequence[Any]:
        return [self.one(toys.number(item.here("media"))) for item in batch]

    def one(self, value: int) -> Any:
        if value == 13:
            raise Permanent("it is dark")
        return Seen(observations=(Observation(start_ns=0, end_ns=1, text="odd"),) if value % 2 else ())


class Study(Look):
    """What costs much."""

    capability = Capability("toy_study", {"media": Port(Media)}, Seen)
    name = "study"
    studied: ClassVar[list[int]] = []

    def one(self, value: int) -> Seen:
        Study.studied.append(value)
        return Seen(observations=(Observation(start_ns=0, end_ns=1, text=f"it is {value}"),))


class Tell(Look):
    capability = Capability("toy_tell", {"seen": Port(Seen)}, Seen)
    name = "tell"

    def process(self, batch: Sequence[Inputs]) -> Sequence[Any]:
        return [item.here("seen") for item in batch]


class Whole(toys.Toy):
    """Makes one of a range: there is no gate for that."""

    capability = Capability("toy_whole", {"media": Port(Media)}, Seen)
    scope = Reduce()


CATALOGUE = Catalogue([*toys.ALL, Look, Study, Tell, Whole])
STAGES = {
    "look": Stage(capability="toy_look", inputs={"media": "media"}),
    "study": Stage(capability="toy_study", inputs={"media": "media", "when": "look"}),
    "tell": Stage(capability="toy_tell", inputs={"seen": "study"}),
}


def read(stream: str) -> Callable[[], Iterator[MediaMessage]]:
    def media() -> Iterator[MediaMessage]:
        for index, value in enumerate(VALUES):
            yield toys.toy_segment(stream, index, value)
        yield EndOfStream(stream=stream, num_segments=len(VALUES), duration_ns=10**9)

    return media


@pytest.mark.parametrize("groups", [[[0], [1], [2]], [[0, 1, 2]], [[0, 2], [1]], [[0], [1, 2]]], ids=str)
async def test_what_its_gate_passes_over_is_not_computed(nats_url: str, groups: list[list[int]]) -> None:
    stream = f"gated-{'-'.join(''.join(map(str, group)) for group in groups)}"
    plan = make_plan(Workflow(name="gated", stages=STAGES), CATALOGUE, Machine(num_cores=1))
    ids = {stage.name: stage.id for stage in plan.stages}
    plan = plan.regrouped([[plan.stages[at].id for at in group] for group in groups])
    Study.studied.clear()
    async with connect(nats_url) as link:
        ledger = await open_ledger(link)
        async with running.workers(ledger, CATALOGUE):
            with anyio.fail_after(60):
                answers = await running.answered(ledger, CATALOGUE, plan, stream, read(stream))
        assert sorted(Study.studied) == [1, 5, 13]
        assert len(answers) == len(VALUES)  # what is held back is an answer too: that there was nothing
        found: dict[int, Record] = {}
        for name, stored in (
            await ledger.get_many(await ledger.subjects(subjects.results_of(ids["study"], stream)))
        ).items():
            found[subjects.parse(name).key.first] = decode_result(stored.data)  # type: ignore[union-attr]
        assert sorted(found) == list(range(len(VALUES)))
        for index, value in enumerate(VALUES):
            record = found[index]
            assert isinstance(record, Result)
            assert record.measured is not None
            output = msgspec.msgpack.decode(record.output, type=Seen)
            is_computed = value in (1, 5, 13)
            assert [each.text for each in output.observations] == [f"it is {value}"] * is_computed
            assert record.measured.held_back == ("" if is_computed else "look found nothing")
            assert record.measured.batch_size == is_computed
        told = await Storyteller(await open_registry(link), ledger, stream).segment(2)
        assert [(line.what, line.why) for line in told if line.stage == "study"][-2:-1] == [
            ("held back", "look found nothing: nothing was computed")
        ]
        gaps = (await ledger.get_many(await ledger.subjects(subjects.results_of(ids["look"], stream)))).values()
        assert sum(isinstance(decode_result(stored.data), Gap) for stored in gaps) == 1


def planned(**stages: Stage) -> None:
    make_plan(Workflow(name="gated", stages=stages), CATALOGUE, Machine(num_cores=1))


def test_a_gate_that_cannot_be_is_refused() -> None:
    look = STAGES["look"]
    with pytest.raises(UserError, match="input 'when' takes Evidence, but 'numbers' gives Number"):
        planned(
            numbers=Stage(capability="toy_read", inputs={"media": "media"}),
            study=Stage(capability="toy_study", inputs={"media": "media", "when": "numbers"}),
        )
    with pytest.raises(UserError, match="input 'when' takes Evidence, but 'media' gives Media"):
        planned(study=Stage(capability="toy_study", inputs={"media": "media", "when": "media"}))
    with pytest.raises(UserError, match="'toy_read' cannot have an input 'when': no Number is empty"):
        planned(look=look, read=Stage(capability="toy_read", inputs={"media": "media", "when": "look"}))
    with pytest.raises(UserError, match="only what looks at segments one by one can have an input 'when'"):
        planned(look=look, whole=Stage(capability="toy_whole", inputs={"media": "media", "when": "look"}))


def test_a_gate_makes_it_another_computation() -> None:
    plan = make_plan(
        Workflow(name="w", stages={**STAGES, "all": Stage(capability="toy_study", inputs={"media": "media"})}),
        CATALOGUE,
        Machine(num_cores=1),
    )
    ids = {stage.name: stage.id for stage in plan.stages}
    assert ids["all"] != ids["study"]
    assert next(stage for stage in plan.stages if stage.name == "study").read == ("media",)
