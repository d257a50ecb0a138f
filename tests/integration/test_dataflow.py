"""The engine over a real server: scopes, joins, groups and failures, with toy operators whose results are known."""

import random
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import anyio
import msgspec
import pytest
import running
import toys

from engine.decide.arrears import MAX_AHEAD
from engine.node.progress import Progress
from engine.node.submission import submit_whole
from engine.run.registry import open_registry
from engine.spec.catalogue import Catalogue
from engine.spec.operator import Fold, Machine, Map, Reduce, Window
from engine.spec.plan import Plan, make_plan
from engine.spec.stream import StreamSpec
from engine.spec.workflow import Stage, Workflow
from streams import subjects
from streams.errors import UserError
from streams.records import DeadLetter, EndOfStream, Gap, Result, Segment, decode_result, encode
from streams.subjects import Key
from streams.wire.ledger import Ledger, open_ledger
from streams.wire.link import connect

pytestmark = pytest.mark.anyio
CATALOGUE = Catalogue(toys.ALL)
NUM = 9
VALUES = [10 * (index + 1) for index in range(NUM)]


def stage(capability: str, **inputs: str | tuple[str, ...]) -> Stage:
    return Stage(capability=capability, inputs=dict(inputs))


EVERY_SCOPE = Workflow(
    name="every_scope",
    stages={
        "read": stage("toy_read", media="media"),
        "add": Stage(capability="toy_add", inputs={"numbers": "read"}, params={"add": 1}),
        "sum": stage("toy_sum", numbers=("read", "add")),
        "near": stage("toy_near", media="media"),
        "count": stage("toy_count", numbers="add"),
        "recent": stage("toy_recent", numbers="add"),
        "total": stage("toy_total", numbers=("sum", "near")),
    },
)


def expected(values: Sequence[int]) -> dict[str, dict[Key, int]]:
    """What every stage of EVERY_SCOPE must hold, computed without the engine."""
    added = [value + 1 for value in values]
    last = len(values) - 1
    by_stage = {
        "read": list(values),
        "add": added,
        "sum": [a + b for a, b in zip(values, added, strict=True)],
        "near": [sum(values[max(0, i - 1) : i + 2]) for i in range(len(values))],
        "count": [sum(added[: i + 1]) for i in range(len(values))],
        "recent": [sum(added[max(0, i - 2) : i + 1]) for i in range(len(values))],
    }
    found = {name: {Key.of(i): value for i, value in enumerate(column)} for name, column in by_stage.items()}
    found["total"] = {Key(0, last): sum(by_stage["sum"]) + sum(by_stage["near"])}
    return found


def plan_of(workflow: Workflow) -> Plan:
    return make_plan(workflow, CATALOGUE, Machine(num_cores=2))


async def outputs(ledger: Ledger, plan: Plan, stream: str) -> dict[str, dict[Key, int | Gap]]:
    found: dict[str, dict[Key, int | Gap]] = {}
    for planned in plan.stages:
        names = await ledger.subjects(subjects.results_of(planned.id, stream))
        records = await ledger.get_many(name for name in names if subjects.keys_of([name]))
        found[planned.name] = {}
        for name, stored in records.items():
            record = decode_result(stored.data)
            key = subjects.parse(name).key
            assert key is not None
            value = (
                msgspec.msgpack.decode(record.output, type=toys.Number).value if isinstance(record, Result) else record
            )
            found[planned.name][key] = value
    return found


@asynccontextmanager
async def at_work(ledger: Ledger, plan: Plan, stream: str, num_workers: int = 1) -> AsyncIterator[None]:
    """Workers at a job over a stream that the test publishes."""
    async with running.asked(ledger, plan, stream), running.workers(ledger, CATALOGUE, num_workers):
        yield


async def publish(ledger: Ledger, stream: str, values: Sequence[int], order: Sequence[int]) -> None:
    """Segments in any order; an index of len(values) is the stream's end."""
    for index in order:
        if index == len(values):
            await ledger.put(subjects.media_end(stream), encode(EndOfStream(stream=stream, num_segments=len(values))))
        else:
            await ledger.put(subjects.media(stream, index), encode(toys.toy_segment(stream, index, values[index])))


async def all_stored(ledger: Ledger, plan: Plan, stream: str, num_segments: int) -> None:
    """Wait until every stage has delivered everything it owes."""
    with anyio.fail_after(30):
        for planned in plan.stages:
            wanted = 1 if isinstance(planned.scope, Reduce) else num_segments
            every = subjects.results_of(planned.id, stream)
            while len(subjects.keys_of(await ledger.subjects(every))) < wanted:  # noqa: ASYNC110
                await anyio.sleep(0.01)


@pytest.fixture
async def ledger(nats_url: str) -> AsyncIterator[Ledger]:
    async with connect(nats_url) as link:
        yield await open_ledger(link)


async def test_every_scope_delivers_what_it_owes(ledger: Ledger) -> None:
    plan = plan_of(EVERY_SCOPE)
    async with at_work(ledger, plan, "s"):
        await publish(ledger, "s", VALUES, range(NUM + 1))
        await all_stored(ledger, plan, "s", NUM)
    assert await outputs(ledger, plan, "s") == expected(VALUES)


async def test_any_order_of_arrival_completes_every_join(ledger: Ledger) -> None:
    plan = plan_of(EVERY_SCOPE)
    for seed in range(6):
        order = list(range(NUM + 1))
        random.Random(seed).shuffle(order)
        stream = f"shuffled-{seed}"
        async with at_work(ledger, plan, stream, num_workers=1 + seed % 2):
            await publish(ledger, stream, VALUES, order)
            await all_stored(ledger, plan, stream, NUM)
        assert await outputs(ledger, plan, stream) == expected(VALUES)


async def test_media_stored_before_any_worker_is_there(ledger: Ledger) -> None:
    plan = plan_of(EVERY_SCOPE)
    await publish(ledger, "early", VALUES, range(NUM + 1))
    async with at_work(ledger, plan, "early", num_workers=2):
        await all_stored(ledger, plan, "early", NUM)
    assert await outputs(ledger, plan, "early") == expected(VALUES)


async def test_fused_or_apart_the_results_are_the_same(ledger: Ledger) -> None:
    plan = plan_of(EVERY_SCOPE)
    seeded = random.Random(5)
    groupings = [[0] * 7, list(range(7)), *([seeded.randrange(3) for _ in range(7)] for _ in range(4))]
    for number, places in enumerate(groupings):
        groups: dict[int, list[str]] = {}
        for planned, place in zip(plan.stages, places, strict=True):
            groups.setdefault(place, []).append(planned.id)
        grouped = plan.regrouped(list(groups.values()))
        stream = f"grouped-{number}"
        async with at_work(ledger, grouped, stream, num_workers=2):
            await publish(ledger, stream, VALUES, range(NUM + 1))
            await all_stored(ledger, grouped, stream, NUM)
        assert await outputs(ledger, grouped, stream) == expected(VALUES)


async def test_a_restarted_worker_goes_on_where_things_stand(ledger: Ledger) -> None:
    plan = plan_of(EVERY_SCOPE)
    half = NUM // 2
    async with running.asked(ledger, plan, "halves"):
        async with running.workers(ledger, CATALOGUE):
            await publish(ledger, "halves", VALUES, range(half))
        async with running.workers(ledger, CATALOGUE):
            await publish(ledger, "halves", VALUES, range(half, NUM + 1))
            await all_stored(ledger, plan, "halves", NUM)
    assert await outputs(ledger, plan, "halves") == expected(VALUES)


async def test_failures_become_gaps_and_dead_letters_and_the_rest_goes_on(ledger: Ledger) -> None:
    toys.Bad.failed = 0
    plan = plan_of(
        Workflow(
            name="bad",
            stages={
                "bad": stage("toy_bad", media="media"),
                "add": stage("toy_add", numbers="bad"),
                "total": stage("toy_total", numbers=("add",)),
            },
        )
    )
    bad = plan.stages[0].id
    async with at_work(ledger, plan, "bad"):
        await publish(ledger, "bad", [5, 13, 7], range(4))
        await all_stored(ledger, plan, "bad", 3)
    found = await outputs(ledger, plan, "bad")
    assert found["bad"] == {
        Key.of(0): 5,
        Key.of(1): Gap(stage=bad, stream="bad", first=1, last=1, cause="dead_lettered", detail="unlucky number"),
        Key.of(2): 7,
    }
    gap = found["add"][Key.of(1)]
    assert isinstance(gap, Gap)
    assert (gap.cause, gap.detail) == ("upstream", "bad: unlucky number")
    assert found["total"] == {Key(0, 2): 12}
    dead = await ledger.get(subjects.dead(bad, "bad", Key.of(1)))
    assert dead is not None
    assert msgspec.msgpack.decode(dead.data, type=DeadLetter).cause == "unlucky number"
    assert toys.Bad.failed == 2


async def test_a_record_that_cannot_be_read_becomes_a_gap(ledger: Ledger) -> None:
    plan = plan_of(EVERY_SCOPE)
    async with at_work(ledger, plan, "torn"):
        await publish(ledger, "torn", [1, 2, 3], [0])
        await ledger.put(subjects.media("torn", 1), b"\x81\xa1")
        for name in ("media.torn.what-is-this", f"results.{plan.stages[0].id}.torn.x"):  # passed over
            await ledger.put(f"penstock.{name}", b"somebody's")
        await publish(ledger, "torn", [1, 2, 3], [2, 3])
        await all_stored(ledger, plan, "torn", 3)
    found = await outputs(ledger, plan, "torn")
    gap = found["read"][Key.of(1)]
    assert isinstance(gap, Gap)
    assert "cannot be read" in gap.detail
    assert found["read"][Key.of(2)] == 3
    assert found["near"][Key.of(0)] == 1  # the gap is only in its halo


async def test_redelivered_messages_change_nothing(ledger: Ledger) -> None:
    """Everything is delivered again while the stream still goes on; what is stored stays as and where it is."""
    plan = plan_of(EVERY_SCOPE)
    one_each = [s.id for s in plan.stages if s.scope in (Map(), Fold(), Window(3))]
    async with at_work(ledger, plan, "again"):
        await publish(ledger, "again", VALUES, range(NUM))
        with anyio.fail_after(30):
            for id in one_each:
                while len(await ledger.subjects(subjects.results_of(id, "again"))) < NUM:  # noqa: ASYNC110
                    await anyio.sleep(0.01)
    before = await sequences(ledger, "again")
    for name in ("PENSTOCK_MEDIA", "PENSTOCK_RESULTS"):  # forgetting the consumers brings every message again
        for consumer in (await ledger.link.api(f"CONSUMER.NAMES.{name}"))["consumers"]:
            await ledger.link.api(f"CONSUMER.DELETE.{name}.{consumer}")
    async with at_work(ledger, plan, "again"):
        await publish(ledger, "again", VALUES, [NUM])
        await all_stored(ledger, plan, "again", NUM)
    after = await sequences(ledger, "again")
    assert {name: seq for name, seq in after.items() if name in before} == before
    assert await outputs(ledger, plan, "again") == expected(VALUES)


async def test_results_that_fell_out_of_retention_are_computed_again(ledger: Ledger) -> None:
    plan = plan_of(EVERY_SCOPE)
    async with at_work(ledger, plan, "gone"):
        await publish(ledger, "gone", VALUES, range(NUM + 1))
        await all_stored(ledger, plan, "gone", NUM)
    lost = [plan.stages[0].id, plan.answers[0]]
    for id in lost:
        purge = {"filter": subjects.results_of(id, "gone")}
        await ledger.link.api("STREAM.PURGE.PENSTOCK_RESULTS", purge)
    async with at_work(ledger, plan, "gone"):
        await all_stored(ledger, plan, "gone", NUM)
    assert await outputs(ledger, plan, "gone") == expected(VALUES)


async def test_what_cannot_be_part_of_a_subject_is_refused_before_anything_is_sent(ledger: Ledger) -> None:
    plan = plan_of(EVERY_SCOPE)
    registry = await open_registry(ledger.link)
    for stream, id in (("a b", "job"), ("s\r\nPUB x 0", "job"), ("s", "j.>")):
        with pytest.raises(UserError):
            await submit_whole(registry, ledger, plan, StreamSpec(name=stream), id=id)


async def sequences(ledger: Ledger, stream: str) -> dict[str, int]:
    names = await ledger.subjects(f"penstock.results.*.{stream}.*")
    return {name: stored.seq for name, stored in (await ledger.get_many(names)).items()}


async def test_a_source_much_longer_than_the_window_is_never_far_ahead_and_ends(ledger: Ledger) -> None:
    plan = plan_of(EVERY_SCOPE)
    num = 3 * MAX_AHEAD
    stored = 0
    furthest = 0

    def note(progress: Progress) -> None:
        nonlocal stored
        stored = min(count for name, count in progress.stored.items() if name != "total")

    def source() -> Iterator[Segment | EndOfStream]:
        nonlocal furthest
        for index in range(num):
            furthest = max(furthest, index - stored)
            yield toys.toy_segment("long", index, index)
        yield EndOfStream(stream="long", num_segments=num)

    async with running.workers(ledger, CATALOGUE):
        with anyio.fail_after(60):
            answers = await running.answered(ledger, CATALOGUE, plan, "long", source, on_progress=note)
    assert furthest <= MAX_AHEAD
    assert len(answers) == 2 * num + 1  # of "count" and "recent" one for each segment, and the total
    assert await outputs(ledger, plan, "long") == expected(range(num))
