"""The live service over a real server: jobs on streams that go on, shared, canceled and taken over; with toy operators
whose results are known."""

import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import anyio
import anyio.abc
import msgspec
import pytest
from live_service import READ_TOTAL, TOTAL, Service, running_service

from engine.decide.answer import Answer
from engine.decide.responsible import responsible
from engine.node.submission import JobRequest
from engine.node.views import job_view
from engine.run.gaps import count_gaps
from engine.spec.jobs import BUCKET, Span
from engine.spec.workflow import Stage, Workflow
from penstock.client import connect
from streams import subjects
from streams.errors import UserError
from streams.records import Gap, decode_result
from streams.subjects import Key
from streams.wire.kv import open_bucket

pytestmark = pytest.mark.anyio


@pytest.fixture
async def service(nats_url: str) -> AsyncIterator[Service]:
    async with running_service(nats_url) as service:
        service.work()
        service.stand_by()
        yield service


def numbers(answers: Sequence[Answer]) -> list[int]:
    return [answer.output["value"] for answer in answers]


async def test_a_standing_job_answers_over_each_window(service: Service) -> None:
    job = await service.submit(standing=True, window_s=3.0)
    assert (job.first, job.last, job.shared, set(job.new)) == (0, None, (), {"read", "total"})
    await service.publish([1, 2, 3, 4, 5])
    answers = await service.answers(job, 5)
    assert numbers(answers) == [1, 3, 6, 9, 12]
    assert [(answer.first, answer.last) for answer in answers] == [(max(0, n - 2), n) for n in range(5)]
    await service.publish([6], first=5, end=True)
    assert numbers(await service.answers(job, 6))[-1] == 15
    with anyio.fail_after(20):
        while (await service.registry.job(job.job)).state != "done":  # noqa: ASYNC110 - another task decides
            await anyio.sleep(0.02)


async def test_nothing_is_said_where_nothing_changed(service: Service) -> None:
    echo = Stage(capability="toy_echo", inputs={"numbers": "read"})
    workflow = Workflow(name="echo", stages={"read": TOTAL.stages["read"], "echo": echo})
    job = await service.submit(workflow=workflow, standing=True)
    await service.publish([7, 7, 7, 8, 8, 7])
    answers = await service.answers(job, 3)
    assert numbers(answers) == [7, 8, 7]
    assert [answer.last for answer in answers] == [0, 3, 5]


async def test_a_job_that_comes_later_begins_with_a_full_window(service: Service) -> None:
    await service.publish([1, 2, 3, 4, 5])
    job = await service.submit(standing=True, window_s=3.0)
    assert job.first == 5
    await service.publish([6, 7], first=5)
    assert numbers(await service.answers(job, 2)) == [15, 18]


async def test_the_same_job_again_computes_nothing(service: Service) -> None:
    first = await service.submit(standing=True, window_s=3.0)
    await service.publish([1, 2, 3])
    await service.answers(first, 3)
    second = await service.submit(standing=True, window_s=3.0)
    assert (set(second.shared), second.new) == ({"read", "total"}, ())
    await service.publish([4, 5, 6], first=3)
    assert numbers(await service.answers(second, 3)) == [9, 12, 15]
    assert numbers(await service.answers(first, 6)) == [1, 3, 6, 9, 12, 15]
    info = await service.ledger.link.api("STREAM.INFO.PENSTOCK_RESULTS")
    assert info["state"]["messages"] == 2 * 6


async def test_a_canceled_job_stops_only_what_nobody_else_needs(service: Service) -> None:
    wide = await service.submit(workflow=TOTAL, standing=True, window_s=2.0)
    narrow = await service.submit(standing=True, window_s=2.0)
    assert (set(narrow.shared), narrow.new) == ({"read", "total"}, ())
    await service.publish([1, 2, 3])
    await service.answers(narrow, 3)
    near = next(stage for stage in (await service.registry.job(wide.job)).plan.stages if stage.name == "near")
    await service.registry.change_job(wide.job, lambda spec: msgspec.structs.replace(spec, state="canceled"))
    await service.publish([4, 5, 6, 7], first=3)
    assert numbers(await service.answers(narrow, 7))[-1] == 13
    await service.publish([8, 9], first=7)
    await service.answers(narrow, 9)
    stored = subjects.keys_of(await service.ledger.subjects(subjects.results_of(near.id, "s")))
    assert Key.of(7) not in stored


async def test_one_question_over_the_past_and_the_same_again(service: Service) -> None:
    await service.publish(list(range(10)))
    job = await service.submit(start="0:02", end="0:05")
    assert (job.first, job.last) == (2, 5)
    assert numbers(await service.answers(job, 1)) == [2 + 3 + 4 + 5]
    again = await service.submit(start="0:02", end="0:05")
    assert again.new == ()
    assert numbers(await service.answers(again, 1)) == [14]
    wider = await service.submit(start="0:01")
    assert (wider.first, wider.last) == (1, 9)
    assert numbers(await service.answers(wider, 1)) == [45]


async def test_drafts_come_before_the_answer(service: Service) -> None:
    drafts: list[Answer] = []

    async def note(message: Any) -> None:
        drafts.append(msgspec.json.decode(message.data, type=Answer))

    await service.ledger.link.subscribe(subjects.partials("*", "s"), note)
    await service.publish(list(range(1, 8)))
    job = await service.services.submit(JobRequest(stream="s", workflow=READ_TOTAL, start="0:00", drafts=True))
    assert numbers(await service.answers(job, 1)) == [28]
    assert all(draft.partial for draft in drafts)
    assert set(numbers(drafts)) <= {1, 3, 10}


async def test_what_fell_out_of_retention_is_said(service: Service) -> None:
    await service.publish(list(range(6)))
    await service.ledger.link.api("STREAM.PURGE.PENSTOCK_MEDIA", {"filter": subjects.media_of("s"), "keep": 3})
    (answer,) = await service.answers(await service.submit(start="0:00", end="0:05"), 1)
    assert answer.output["value"] == 3 + 4 + 5
    assert [(gap.stage, gap.first, gap.last) for gap in answer.gaps] == [("media", 0, 2)]
    job = await service.submit(standing=True, window_s=5.0)
    await service.publish([6], first=6)
    (answer,) = await service.answers(job, 1)
    assert answer.output["value"] == 3 + 4 + 5 + 6
    assert ("read", 2, 2, "dropped") in {(gap.stage, gap.first, gap.last, gap.cause) for gap in answer.gaps}


async def test_late_segments_of_a_live_stream_become_gaps_that_are_counted(service: Service) -> None:
    await service.declare(policy="live", max_lag_s=0.000001)
    job = await service.submit(standing=True, window_s=1.0)
    await service.publish([1, 2, 3, 4], due_ns=1)  # as ingest says it, long ago
    with anyio.fail_after(20):
        while sum((await count_gaps(service.ledger, "s")).values()) < 8:  # noqa: ASYNC110 - other tasks store them
            await anyio.sleep(0.02)
    assert await count_gaps(service.ledger, "s") == {"late": 8}
    read = (await service.registry.job(job.job)).plan.stages[0].id
    for stored in (
        await service.ledger.get_many(await service.ledger.subjects(subjects.results_of(read, "s")))
    ).values():
        assert isinstance(decode_result(stored.data), Gap)


async def test_the_past_is_never_late(service: Service) -> None:
    await service.publish([1, 2, 3], due_ns=1)
    await service.declare(policy="live", max_lag_s=0.000001)
    assert numbers(await service.answers(await service.submit(), 1)) == [6]
    assert await count_gaps(service.ledger, "s") == {}


async def test_another_node_goes_on_where_one_stopped(nats_url: str) -> None:
    seeded = random.Random(7)
    async with running_service(nats_url) as service:
        service.work()
        nodes = {id: service.stand_by(id) for id in ("n1", "n2", "n3")}
        jobs = [await service.submit(standing=True, window_s=float(window)) for window in (1, 2, 3, 4)]
        for number in range(30):
            await service.publish([number + 1], first=number)
            if number % 6 == 5:
                id = seeded.choice(sorted(nodes))
                nodes[id].cancel()
                nodes[id] = service.stand_by(id)
        for window, job in enumerate(jobs, 1):
            answers = await service.answers(job, 30)
            assert numbers(answers) == [sum(range(max(1, n - window + 1), n + 1)) for n in range(1, 31)]
        kept = await service.ledger.link.api("STREAM.INFO.PENSTOCK_ANSWERS")
        assert kept["state"]["messages"] == 30 * len(jobs)


async def test_every_job_has_one_node_and_few_move_when_one_leaves() -> None:
    nodes = [f"n{number}" for number in range(5)]
    jobs = [f"j{number}" for number in range(500)]
    before = {job: responsible(job, nodes) for job in jobs}
    after = {job: responsible(job, nodes[1:]) for job in jobs}
    assert set(before.values()) == set(nodes)
    assert {job for job in jobs if before[job] != after[job]} == {job for job in jobs if before[job] == "n0"}
    assert responsible("j", []) is None


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"stream": "nowhere"}, "no stream 'nowhere'; there are: s"),
        ({"start": "yesterday"}, "write -10m, 1:05, now"),
        ({"start": "1:05"}, "1:05 lies beyond stream 's', which holds 0:00.0 to 0:08.0"),
        ({"end": "2999-01-01T00:00:00Z"}, "lies beyond stream 's', which holds 20"),
        ({"start": "0:05", "end": "0:02"}, "ends before it begins"),
        ({"standing": True, "window_s": 0.0}, "give above 0 and at most 3600 s"),
        ({"standing": True, "end": "now"}, "has no end"),
        ({"id": "a b"}, "cannot be part of a subject"),
        ({"webhook": "ftp://somewhere/else"}, "webhook"),
        ({"start": "2026-11-21T08:00:00"}, "does not say where"),
        ({"asks": ("what?",)}, "takes no question"),
    ],
)
async def test_what_is_wrong_with_a_request_is_said(service: Service, asked: dict[str, Any], said: str) -> None:
    await service.publish(list(range(8)))
    with pytest.raises(UserError, match=said.replace("?", r"\?")) as refused:
        await service.submit(**asked)
    assert "\n" not in str(refused.value)
    assert await service.registry.jobs() == []


async def test_a_stream_that_is_forgotten_leaves_nothing_behind(service: Service) -> None:
    await service.publish([1, 2, 3])
    job = await service.submit(standing=True, window_s=2.0)
    await service.answers(await service.submit(start="0:00", end="0:02"), 1)
    with pytest.raises(UserError, match=f"jobs run on stream 's': `penstock jobs cancel` first {job.job}"):
        await service.services.forget("s")
    await service.services.cancel(job.job)
    await service.services.forget("s")
    assert await service.registry.streams() == {}
    for pattern in ("media.>", "results.>", "answers.>"):
        assert await service.ledger.subjects(f"penstock.{pattern}") == set()


async def test_a_standing_job_on_a_stream_that_has_ended_is_about_its_past(service: Service) -> None:
    await service.publish(list(range(1, 9)), end=True)
    with pytest.raises(UserError, match="stream 's' has ended: ask once, or of its past"):
        await service.submit(standing=True, window_s=2.0)
    job = await service.submit(standing=True, window_s=2.0, start="0:00")
    assert numbers(await service.answers(job, 8))[-1] == 15


async def test_jobs_that_ended_long_ago_are_forgotten(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.run.registry.KEEP_JOBS", 2)
    await service.publish(list(range(8)))
    standing = await service.submit(standing=True, window_s=2.0)
    ended = [await service.submit(start="0:00") for _ in range(4)]
    for job in ended:
        await service.answers(job, 1)
    async with service.registry.changes() as wait:
        with anyio.fail_after(15):
            while len(left := [job.id for job in await service.registry.jobs()]) > 3:
                await wait()
    assert left == [standing.job, ended[2].job, ended[3].job]


async def test_many_jobs_at_once_share_every_stage(service: Service) -> None:
    jobs = [await service.submit(standing=True, window_s=2.0) for _ in range(10)]
    await service.publish(list(range(1, 21)))
    for job in jobs:
        assert numbers(await service.answers(job, 20))[-1] == 39
    info = await service.ledger.link.api("STREAM.INFO.PENSTOCK_RESULTS")
    assert info["state"]["messages"] == 2 * 20


async def test_a_job_that_is_asked_for_twice_is_told_as_it_was_made(service: Service) -> None:
    """Its first answer was lost with the node, and the stream has gone on, and ended, since."""
    await service.publish([1, 2, 3])
    first = await service.submit(id="once", key="k", start="0")
    standing = await service.submit(id="watch", key="w", standing=True)
    assert (first.first, first.last) == (0, 2)
    await service.publish([4, 5], first=3, end=True)
    again = await service.submit(id="once", key="k", start="0")
    assert (again.job, again.first, again.last) == ("once", 0, 2)
    assert (await service.submit(id="watch", key="w", standing=True)).first == standing.first
    with pytest.raises(UserError, match="there is a job 'once' already"):
        await service.submit(id="once", key="another", start="0")
    spec = await service.registry.job("once")
    assert (await service.registry.add_job(msgspec.structs.replace(spec, asked=Span(first=1)))).asked == spec.asked


async def test_answers_of_a_job_that_is_forgotten_are_still_given(service: Service, nats_url: str) -> None:
    await service.publish([1, 2, 3], end=True)
    job = await service.submit()
    async with connect(nats_url) as client:
        before = [answer.output async for answer in client.answers(job.job, "s", until_done=True)]
        await (await open_bucket(service.ledger.link, BUCKET)).delete(job.job)
        after = [answer.output async for answer in client.answers(job.job, "s", until_done=True)]
        assert before == after != []
        with pytest.raises(UserError, match="no job 'nobody'"):
            [answer async for answer in client.answers("nobody", "s", until_done=True)]


WEIGHED = Workflow(name="weighed", stages={"weigh": Stage(capability="toy_weigh", inputs={"media": "media"})})


async def test_under_load_new_segments_take_a_lower_rung_that_keeps_the_quality_asked_for(service: Service) -> None:
    """Two cores weigh six a second with care, and sixty come at once that are wanted within five seconds."""
    await service.declare(policy="live", max_lag_s=30.0)
    slo = ("latency<5s", "quality>=good")
    job = await service.submit(workflow=WEIGHED, standing=True, slo=slo)
    (stage,) = (await service.registry.job(job.job)).plan.stages
    assert [rung.rung for rung in stage.rungs] == ["weigh-with-care", "weigh-quickly"]  # a guess is not good
    assert job_view(await service.registry.job(job.job)).latency_s == 5.0
    due_ns = service.ledger.clock.now_ns() + 30 * 10**9
    await service.publish(list(range(1, 61)), due_ns=due_ns)
    answers = await service.answers(job, 60)
    assert numbers(answers) == list(range(1, 61))
    on = [(answer.stages[0].implementation, answer.stages[0].instead_of) for answer in answers]
    assert set(on) == {("weigh-with-care", ""), ("weigh-quickly", "weigh-with-care")}
    assert on[-1] == ("weigh-quickly", "weigh-with-care")
    told = await service.told("s")
    (changed,) = [each for each in told if each["what"].startswith("rung ")]
    assert (changed["stage"], changed["what"]) == ("weigh", "rung weigh-quickly from now on")
    assert "left of what is asked for" in changed["why"]


async def test_without_a_bound_a_stage_has_its_best_rung_alone_and_is_another_computation(service: Service) -> None:
    plain = await service.submit(workflow=WEIGHED, standing=True)
    bound = await service.submit(workflow=WEIGHED, standing=True, slo=("latency<1s", "quality>=any"))
    stages = [(await service.registry.job(job.job)).plan.stages[0] for job in (plain, bound)]
    assert [len(stage.rungs) for stage in stages] == [1, 3]
    assert stages[0].id != stages[1].id


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"slo": ("latency<1s",)}, "only a standing job on a live stream has a latency"),
        ({"standing": True, "slo": ("swift",)}, "give latency<2s or quality>=good"),
        ({"standing": True, "slo": ("latency<1s",) * 3}, "3 bounds in slo"),
        ({"weight": 2.0}, "weight: it is among live streams, of a standing job"),
    ],
)
async def test_bounds_that_cannot_be_are_refused(service: Service, asked: dict[str, Any], said: str) -> None:
    await service.publish([1])
    with pytest.raises(UserError, match=said):
        await service.submit(workflow=WEIGHED, **asked)
