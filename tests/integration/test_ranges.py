"""What follows a stage that makes one output of a range: one output of that range, in turn."""

from collections.abc import AsyncIterator

import anyio
import pytest
from live_service import Service, running_service

from engine.spec.workflow import Stage, Workflow
from streams import subjects
from streams.records import Gap, decode_result, encode
from streams.subjects import Key

pytestmark = pytest.mark.anyio
VALUES = [10, 20, 30, 40]
BEHIND = Workflow(
    name="behind",
    stages={
        "read": Stage(capability="toy_read", inputs={"media": "media"}),
        "total": Stage(capability="toy_total", inputs={"numbers": ("read",)}),
        "more": Stage(capability="toy_add", inputs={"numbers": "total"}, params={"add": 1}),
        "most": Stage(capability="toy_add", inputs={"numbers": "more"}, params={"add": 100}),
    },
)


@pytest.fixture
async def service(nats_url: str) -> AsyncIterator[Service]:
    async with running_service(nats_url) as service:
        service.stand_by()
        yield service


async def num_of(service: Service, **asked: object) -> int:
    """Asks; of how many segments the answer is, which is what it should be."""
    job = await service.submit(workflow=BEHIND, **asked)
    (answer,) = await service.answers(job, 1)
    assert [note.stage for note in answer.stages] == ["read", "total", "more", "most"]
    assert answer.gaps == ()
    assert answer.output["value"] == sum(VALUES[answer.first : answer.last + 1]) + 101
    return answer.last + 1 - answer.first


async def test_a_whole_stream_and_a_part_of_it_have_one_answer_each(service: Service) -> None:
    service.work()
    await service.publish(VALUES, end=True)
    assert await num_of(service) == 4
    assert await num_of(service, start="1s", end="2.5s") == 2
    assert await num_of(service, start="1s", end="2.5s") == 2  # from what is stored


async def test_it_is_computed_when_the_range_has_come(service: Service) -> None:
    """Also where workers come later than everything else."""
    await service.publish(VALUES[:2])
    job = await service.submit(workflow=BEHIND, start="0s")
    await service.publish(VALUES[2:], first=2, end=True)
    service.work()
    (answer,) = await service.answers(job, 1)
    assert answer.output["value"] == sum(VALUES[: answer.last + 1]) + 101


async def test_a_standing_job_has_an_answer_for_each_window(service: Service) -> None:
    service.work()
    await service.publish(VALUES[:1])
    job = await service.submit(workflow=BEHIND, standing=True, window_s=2.0, start="0s")
    await service.publish(VALUES[1:], first=1, end=True)
    answers = await service.answers(job, 4)
    assert [answer.output["value"] for answer in answers] == [111, 131, 151, 171]


async def test_what_is_gone_is_computed_again_for_whoever_asks(service: Service) -> None:
    service.work()
    await service.publish(VALUES, end=True)
    assert await num_of(service) == 4
    await service.ledger.purge(subjects.results_of("*", "s"))
    with anyio.fail_after(30):
        assert await num_of(service) == 4


async def test_a_gap_in_the_range_s_place_is_handed_on(service: Service) -> None:
    """The operator behind it is not called with nothing."""
    await service.publish(VALUES, end=True)
    job = await service.submit(workflow=BEHIND)
    spec = await service.registry.job(job.job)
    by_name = {stage.name: stage for stage in spec.plan.stages}
    whole = Key(0, len(VALUES) - 1)
    gap = Gap(stage=by_name["total"].id, stream="s", first=0, last=whole.last, cause="dropped", detail="no room")
    await service.ledger.put(subjects.result(by_name["total"].id, "s", whole), encode(gap))
    service.work()
    (answer,) = await service.answers(job, 1)
    assert {note.stage: note.cause for note in answer.gaps} == {
        "total": "dropped",
        "more": "upstream",
        "most": "upstream",
    }
    stored = await service.ledger.get(subjects.result(by_name["most"].id, "s", whole))
    assert stored is not None
    record = decode_result(stored.data)
    assert isinstance(record, Gap) and (record.first, record.last) == whole
