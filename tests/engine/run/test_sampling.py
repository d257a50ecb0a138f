"""What stages are given over a clip, and how long they take, without a server."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import toys

from engine.run import profiling
from engine.run.profiling import Effort, cold, measured, measured_decode
from engine.run.sampling import Sample, compute, sample
from engine.spec.catalogue import Catalogue
from engine.spec.choosing import Pace
from engine.spec.operator import Device, Inputs, Machine, Operator, Rung, Settings
from engine.spec.plan import make_plan
from engine.spec.workflow import Stage, Workflow
from operators.testing.film import film
from streams.errors import Permanent

pytestmark = pytest.mark.anyio

CATALOGUE = Catalogue(toys.ALL)
SHORT = Effort(each_s=0.01)


def segments(*values: int) -> list[Any]:
    return [toys.toy_segment("clip", index, value) for index, value in enumerate(values)]


async def sampled(values: Sequence[int], window: int | None = None, **stages: Stage) -> Sample:
    workflow = Workflow(name="w", stages=stages)
    plan = make_plan(workflow, CATALOGUE, Machine(num_cores=1), window=window, pace=Pace(1.0))
    return await sample(plan, CATALOGUE, segments(*values))


def found(result: Sample) -> dict[str, list[Any]]:
    return {
        each.planned.name: [None if value is None else value.value for value in each.outputs.values()]
        for each in result.stages.values()
    }


async def test_every_scope_is_given_what_its_group_would_give_it() -> None:
    read = Stage(capability="toy_read", inputs={"media": "media"})

    def of(capability: str) -> Stage:
        return Stage(capability=capability, inputs={"numbers": "read"})

    result = await sampled(
        [1, 2, 3, 4],
        read=read,
        near=Stage(capability="toy_near", inputs={"media": "media"}),
        count=of("toy_count"),
        recent=of("toy_recent"),
        total=of("toy_total"),
    )
    assert found(result) == {
        "read": [1, 2, 3, 4],
        "near": [3, 6, 9, 7],
        "count": [1, 3, 6, 10],
        "recent": [1, 3, 6, 9],
        "total": [10],
    }


async def test_a_reduce_of_a_stream_without_end_looks_back_so_far() -> None:
    read = Stage(capability="toy_read", inputs={"media": "media"})
    total = Stage(capability="toy_total", inputs={"numbers": "read"})
    assert found(await sampled([1, 2, 3, 4], window=2, read=read, total=total))["total"] == [1, 3, 5, 7]


async def test_gaps_make_gaps_and_say_why() -> None:
    result = await sampled(
        [1, 13, 3],
        bad=Stage(capability="toy_bad", inputs={"media": "media"}),
        add=Stage(capability="toy_add", inputs={"numbers": "bad"}),
    )
    assert found(result) == {"bad": [1, None, 3], "add": [1, None, 3]}
    bad, add = result.stages.values()
    assert bad.failed == ["unlucky number"]
    assert len(add.inputs) == 2


class Shared(toys.Toy):
    """Remembers what it read, and in pairs."""

    capability = toys.READ
    name = "shared"
    runs_in = "thread"
    max_batch = 8
    known: set[int] = set()  # noqa: RUF012
    num_computed = 0

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return [Rung("shared", 0.9, Settings())]

    @classmethod
    def shared_work(cls, knobs: Any, inputs: Inputs) -> frozenset[Any]:
        return frozenset({(inputs.stream, inputs.last // 2)})

    def forget(self) -> None:
        Shared.known.clear()

    def one(self, item: Inputs) -> toys.Number:
        if item.last // 2 not in Shared.known:
            Shared.known.add(item.last // 2)
            Shared.num_computed += 1
        return super().one(item)


async def test_what_was_done_before_is_done_again_and_shares_are_counted() -> None:
    catalogue = Catalogue([Shared])
    stage = Stage(capability="toy_read", inputs={"media": "media"})
    plan = make_plan(Workflow(name="w", stages={"read": stage}), catalogue, Machine(num_cores=1))
    result = await sample(plan, catalogue, segments(1, 2, 3, 4, 5, 6))
    (planned,) = plan.stages
    Shared.num_computed = 0
    took = await measured(Shared, Settings(), Device(), result.prepared(planned, planned.rung), 1, SHORT)
    assert [each.batch_size for each in took.times] == [1]
    assert Shared.num_computed >= sum(each.num for each in took.times)
    assert took.fresh == 0.5


async def test_each_size_is_measured_alone_and_with_every_core_busy() -> None:
    result = await sampled(
        [1, 2, 3],
        read=Stage(capability="toy_read", inputs={"media": "media"}),
        add=Stage(capability="toy_add", inputs={"numbers": "read"}),
    )
    read, add = (each.planned for each in result.stages.values())
    took = await measured(toys.Add, Settings(), Device(), result.prepared(add, add.rung), 2, SHORT)
    assert [(each.batch_size, each.num_beside) for each in took.times] == [
        (size, beside) for size in (1, 2, 4, 8, 16) for beside in (1, 2)
    ]
    assert all(each.num >= 3 and each.mean_s > 0 for each in took.times)
    in_loop = await measured(toys.Read, Settings(), Device(), result.prepared(read, read.rung), 2, SHORT)
    assert [(each.batch_size, each.num_beside) for each in in_loop.times] == [(1, 1)]


def test_two_loops_are_never_at_one_place_and_no_two_items_are_of_one_stream() -> None:
    inputs = [Inputs("s", place, place, None, {}) for place in range(8)]
    for own in range(20):
        batches = [profiling._batch(inputs, loop * profiling.APART + own, 3) for loop in range(4)]
        assert len({batch[0].first for batch in batches}) == 4
        assert len({item.stream for batch in batches for item in batch}) == 12


def test_only_packages_are_counted_for_others_are_parts_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    domains = {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:1": "psys",
        "intel-rapl:2": "package-1",
    }
    for name, what in domains.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(f"{what}\n")
        (tmp_path / name / "energy_uj").write_text("1000000\n")
    monkeypatch.setattr(profiling, "RAPL", tmp_path)
    counter = profiling.EnergyCounter()
    for name in domains:
        (tmp_path / name / "energy_uj").write_text("3000000\n")
    assert counter.since(1.0, 4) == (1.0, "rapl")  # two joules of each of two packages
    monkeypatch.setattr(profiling, "RAPL", tmp_path / "none")
    assert profiling.EnergyCounter().since(2.0, 4) == (5.0, "estimate")


def test_sizes_are_powers_of_two_and_the_largest() -> None:
    assert Effort().sizes_of(1) == (1,)
    assert Effort().sizes_of(8) == (1, 2, 4, 8)
    assert Effort().sizes_of(12) == (1, 2, 4, 8, 12)
    assert Effort(sizes=(3, 5, 40)).sizes_of(16) == (3, 5, 16)


class Slowly(toys.Toy):
    capability = toys.READ
    name = "slowly"
    runs_in = "async"
    max_in_flight = 3

    async def process_one(self, inputs: Inputs, emit: Any) -> toys.Number:
        emit("a word")
        return self.one(inputs)


async def test_an_engine_that_batches_by_itself_is_measured_by_how_many_are_under_way() -> None:
    catalogue = Catalogue([Slowly])
    stage = Stage(capability="toy_read", inputs={"media": "media"})
    plan = make_plan(Workflow(name="w", stages={"read": stage}), catalogue, Machine(num_cores=1))
    result = await sample(plan, catalogue, segments(1, 2))
    assert found(result) == {"read": [1, 2]}
    (planned,) = plan.stages
    took = await measured(Slowly, Settings(), Device(), result.prepared(planned, planned.rung), 2, SHORT)
    assert [(each.batch_size, each.num_beside) for each in took.times] == [(1, 1), (1, 2), (1, 3)]


async def test_another_rung_is_given_what_it_reads() -> None:
    result = await sampled([5], weigh=Stage(capability="toy_weigh", inputs={"media": "media"}))
    (weigh,) = (each.planned for each in result.stages.values())
    assert weigh.rung.rung == "weigh-with-care"
    await compute(result, weigh)
    assert found(result) == {"weigh": [5]}


async def test_decoding_is_measured_by_kind_of_demand() -> None:
    import numpy as np

    from operators.media.pictures import FrameSpec

    pictures = np.zeros((50, 32, 32, 3), dtype=np.uint8)
    took = await measured_decode(film(pictures), [FrameSpec(10**9)], 2, SHORT)
    assert [each.num_beside for each in took["FrameSpec"]] == [1, 2]
    assert await measured_decode(film(pictures), [], 2, SHORT) == {}


async def test_a_cold_start_is_measured_in_a_process_of_its_own() -> None:
    loaded = await cold("detect_scenes", "content", {}, "cpu")
    assert loaded is not None
    assert loaded.load_s >= 0
    assert await cold("detect_scenes", "nobody", {}, "cpu") is None


class Refuses(Operator):
    capability = toys.READ
    name = "refuses"

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return [Rung("refuses", 0.9, Settings())]

    def load(self, device: Device) -> None:
        raise Permanent("it has no weights")


async def test_what_cannot_be_loaded_is_said() -> None:
    catalogue = Catalogue([Refuses])
    stage = Stage(capability="toy_read", inputs={"media": "media"})
    plan = make_plan(Workflow(name="w", stages={"read": stage}), catalogue, Machine(num_cores=1))
    with pytest.raises(Permanent, match="it has no weights"):
        await sample(plan, catalogue, segments(1))
