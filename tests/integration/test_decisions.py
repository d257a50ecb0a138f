"""Decisions, recordings and profiles over a real server: told, followed, replayed, learned and gone by."""

import math
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import anyio.abc
import msgspec
import pytest
from live_service import CATALOGUE, MACHINE, Service, running_service

from engine.decide.decisions import Decision
from engine.node.endpoints import Services
from engine.node.recalling import following_decisions
from engine.node.recording import Recorder
from engine.node.submission import JobRequest
from engine.run.assignment import Assignment
from engine.run.journal import MAX_DECISIONS, MAX_TOLD, Journal, _within
from engine.run.profiles import Profiles
from engine.run.telemetry import Telemetry
from engine.run.worker import Worker
from engine.simulate.replaying import changed, outcome, scenario_of_recording
from engine.spec.profile import BatchTimes, OnRung, Profile
from engine.spec.workflow import Stage, Workflow
from penstock.client import connect
from streams.errors import Infeasible, UserError
from streams.wire.ledger import open_ledger
from streams.wire.link import connect as connect_link

pytestmark = pytest.mark.anyio

WEIGHED = Workflow(name="weighed", stages={"weigh": Stage(capability="toy_weigh", inputs={"media": "media"})})
ON = OnRung("toy_weigh", "toy", "weigh-with-care", 1, {"pause_s": 0.3}, "cpu")
NUM = 60


@pytest.fixture
async def service(nats_url: str) -> AsyncIterator[Service]:
    async with running_service(nats_url) as service:
        service.work()
        service.stand_by()
        yield service


async def test_what_is_decided_is_told_followed_and_said_why(service: Service, nats_url: str) -> None:
    """Two cores weigh six a second with care, and sixty come at once that are wanted within five seconds."""
    heard: list[Decision] = []

    async def follow(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        async with connect_link(nats_url) as link, following_decisions(link, "s") as coming:
            await link.api("INFO")  # so the server has the subscription
            task_status.started()
            async for decision in coming:
                heard.append(decision)

    await service.declare(policy="live", max_lag_s=30.0)
    async with anyio.create_task_group() as tasks, connect(nats_url) as client:
        await tasks.start(follow)
        job = await service.submit(workflow=WEIGHED, standing=True, slo=("latency<5s", "quality>=good"))
        due_ns = service.ledger.clock.now_ns() + 30 * 10**9
        await service.publish(list(range(1, NUM + 1)), due_ns=due_ns)
        await service.answers(job, NUM)
        (lowered,) = [each for each in await client.decisions("s") if each.loop == "rungs"]
        assert (lowered.stream, lowered.stage, lowered.what) == ("s", "weigh", "rung weigh-quickly from now on")
        assert "left of what is asked for" in lowered.why
        assert lowered.inputs["latency_s"] == 5.0
        assert lowered.inputs["left_s"] > 0
        assert lowered.at_ns
        assert await client.decisions("another") == []
        with anyio.fail_after(10):
            while lowered not in heard:  # noqa: ASYNC110 - it comes by another connection
                await anyio.sleep(0.02)
        tasks.cancel_scope.cancel()


def test_what_is_decided_of_one_segment_stands_in_its_story() -> None:
    journal = Journal("w")
    journal.decided(Decision(1, "held up", "rung small", "late", stream="s", segment="7", stage="look"))
    assert [each.what for each in journal.told("s", 7)] == ["rung small"]
    assert journal.told("s", 8) == []


def test_a_loop_that_decides_often_drives_out_no_other_s() -> None:
    journal, heard = Journal("w"), list[Decision]()
    journal.on_decision = heard.append
    journal.decided(
        Decision(1, "rungs", "rung small from now on", "it is late", stream="s", inputs={"left_s": math.inf})
    )
    for number in range(2 * MAX_DECISIONS):
        journal.decided(Decision(2 + number, "passage", "not begun", "no time", stream="s", segment=str(number)))
    told = journal.decisions("s")
    assert told[0].loop == "rungs"
    assert told[0].inputs == {}  # JSON has no infinity
    assert len(told) == 1 + MAX_TOLD
    assert journal.decisions(loop="rungs") == told[:1]
    assert len(heard) == 1 + 2 * MAX_DECISIONS
    within = msgspec.json.decode(_within(told, 40_000), type=list[Decision])
    assert within[0] == told[0]
    assert within[-1] == told[-1]
    assert 1 < len(within) < 300


async def test_what_came_is_recorded_and_what_would_have_happened_is_told(service: Service, nats_url: str) -> None:
    await service.declare(policy="live", max_lag_s=2.0)
    job = await service.submit(workflow=WEIGHED, standing=True)
    due_ns = service.ledger.clock.now_ns() + 2 * 10**9
    await service.publish(list(range(1, 31)), due_ns=due_ns)  # nine seconds of work for two cores
    await service.answers(job, 1)
    now_ns = service.ledger.clock.now_ns()
    with anyio.fail_after(20):
        while len(await service.ledger.subjects("penstock.results.*.s.*")) < 30:  # noqa: ASYNC110 - a worker stores them
            await anyio.sleep(0.05)
    recorder = Recorder(service.registry, service.ledger, CATALOGUE)
    recording = await recorder.record(60.0, 2, now_ns + 2 * 10**9)
    assert recording.outcome.num_segments == 30
    assert 0 < recording.outcome.in_time < 0.8
    assert recording.stages["weigh"].inputs == ("media",)
    (pool,) = (each for each in recording.pools.values() if each.batches)
    assert all(mean_s > 0.29 for _, _, mean_s, _ in pool.batches)
    scenario = scenario_of_recording(msgspec.json.decode(msgspec.json.encode(recording), type=type(recording)))
    again = outcome(changed(scenario, []))
    assert again.num_segments == 30
    assert again.in_time == pytest.approx(recording.outcome.in_time, abs=0.15)
    assert outcome(changed(scenario, ["cores=12"])).in_time > again.in_time + 0.2
    async with connect(nats_url) as client:
        with pytest.raises(UserError, match="nothing came in the last"):
            await client.recording(60.0, "nobody")


# --- profiles ----------------------------------------------------------------------------------------------------


def kept(folder: Path, took_s: float, segment_s: float = 1.0) -> Profiles:
    profiles = Profiles(folder, "a machine")
    times = (BatchTimes.of(1, 1, [took_s]), BatchTimes.of(1, 2, [took_s]))
    about = {"machine": "a machine", "media": "a clip", "segment_s": segment_s, "at": "2026"}
    profiles.keep(Profile(**ON._asdict(), **about, times=times))  # type: ignore[arg-type]
    return profiles


async def test_a_bound_that_nothing_here_could_hold_is_refused_with_one_that_could(
    service: Service, tmp_path: Path
) -> None:
    async def submit(profiles: Profiles | None, latency: str) -> str:
        services = Services(service.registry, service.ledger, CATALOGUE, MACHINE, WEIGHED, profiles=profiles)
        asked = JobRequest(stream="s", workflow=WEIGHED, standing=True, slo=(f"latency<{latency}",))
        return (await services.submit(asked)).job

    with pytest.raises(Infeasible) as refused:
        await submit(kept(tmp_path, 0.3), "200ms")
    said = str(refused.value)
    assert "latency<0.2s cannot be held: one segment with the machine to itself takes 0.3 s" in said
    assert "ask for latency<0.36s. That is by profiles of a clip" in said
    for profiles, latency in [
        (kept(tmp_path, 0.3), "360ms"),
        (kept(tmp_path / "other", 0.3, segment_s=5.0), "200ms"),  # of longer segments: nothing is known of these
        (None, "200ms"),
    ]:
        assert await submit(profiles, latency)


async def test_a_worker_begins_with_what_was_measured_and_keeps_what_it_learned(nats_url: str, tmp_path: Path) -> None:
    """Measured at a hundredth of a second each, they take thirty times as long."""
    profiles = kept(tmp_path, 0.01)
    async with connect_link(nats_url) as link, running_service(nats_url) as service, connect(nats_url) as client:
        service.stand_by()
        assignment = Assignment(url=nats_url, num_cores=2, profiles=str(tmp_path), machine="a machine")
        ledger = await open_ledger(link)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Worker(ledger, assignment, CATALOGUE, Telemetry("test")).run)
            job = await service.submit(workflow=WEIGHED, standing=True)
            await service.publish(list(range(1, 31)))
            await service.answers(job, 30)
            (drifted,) = [each for each in await client.decisions() if each.loop == "profile"]
            assert drifted.inputs["ratio"] > 10
            assert "`penstock profile` measures anew" in drifted.why
            tasks.cancel_scope.cancel()
        seen = profiles.seen(ON)
        assert seen is not None
        assert seen.base_s + seen.per_item_s == pytest.approx(0.3, rel=0.2)
        assert seen.drift is not None
        assert seen.drift > 10
