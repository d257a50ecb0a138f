"""Pulling over a real server: no more than there is room for, and nothing lost whatever goes away."""

import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import pytest
from conftest import Eventually
from hypothesis import given
from hypothesis import strategies as st

from streams.errors import Malformed
from streams.wire.client import header_block
from streams.wire.ledger import EXPECT_EMPTY, MAX_INLINE_BYTES, Ledger, NewRecord, headers_for, open_ledger
from streams.wire.link import connect
from streams.wire.pull import Acks, Arrival, Pull, delivery
from streams.wire.server import embedded
from streams.wire.store import status

pytestmark = pytest.mark.anyio
STREAM, DURABLE, FILTER = "PENSTOCK_MEDIA", "group", "penstock.media.s.*"
PARENT = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"


@pytest.fixture
async def ledger(nats_url: str) -> AsyncIterator[Ledger]:
    async with connect(nats_url) as link:
        yield await open_ledger(link)


@asynccontextmanager
async def pulling(ledger: Ledger, ack_wait_s: float = 30, filters: Sequence[str] = (FILTER,)) -> AsyncIterator[Pull]:
    pull = Pull(ledger.link, STREAM, DURABLE, filters, ack_wait_s)
    await pull.open()
    try:
        yield pull
    finally:
        await pull.close()


async def publish(ledger: Ledger, indices: Sequence[int]) -> None:
    await ledger.put_many([NewRecord(f"penstock.media.s.{index}", str(index).encode(), PARENT) for index in indices])


async def take(pull: Pull, room: int) -> list[Arrival]:
    with anyio.fail_after(15):
        return await pull.take(room)


async def take_all(ledger: Ledger, pull: Pull, num: int, room: int = 4) -> list[int]:
    """Take and acknowledge until `num` different messages have come; all that came, in order."""
    acks, taken = Acks(ledger), list[int]()
    while len(set(taken)) < num:
        for arrival in await take(pull, room):
            taken.append(int(arrival.data))
            await acks.done(arrival)
    return taken


async def consumer(ledger: Ledger) -> dict[str, int]:
    info: dict[str, int] = await ledger.link.api(f"CONSUMER.INFO.{STREAM}.{DURABLE}")
    return info


async def settled(ledger: Ledger) -> None:
    """Wait until everything is delivered and acknowledged."""
    with anyio.fail_after(15):
        while (info := await consumer(ledger))["num_pending"] or info["num_ack_pending"]:
            pass


async def test_messages_come_as_they_were_stored(ledger: Ledger) -> None:
    await publish(ledger, range(3))
    async with pulling(ledger) as pull:
        arrivals: list[Arrival] = []
        while len(arrivals) < 3:
            arrivals += await take(pull, 3 - len(arrivals))
    assert [(each.subject, each.data, each.seq) for each in arrivals] == [
        (f"penstock.media.s.{index}", str(index).encode(), index + 1) for index in range(3)
    ]
    assert {(each.num_delivered, each.traceparent) for each in arrivals} == {(1, PARENT)}


async def test_only_what_the_filters_name_comes(ledger: Ledger) -> None:
    await publish(ledger, range(2))
    await ledger.put("penstock.media.other.0", b"100")
    await ledger.put("penstock.media.third.0", b"200")
    async with pulling(ledger, filters=["penstock.media.other.*", "penstock.media.third.*"]) as pull:
        assert await take_all(ledger, pull, 2) == [100, 200]
        await settled(ledger)


async def test_never_more_is_under_way_than_there_is_room_for(ledger: Ledger, eventually: Eventually) -> None:
    await publish(ledger, range(40))
    acks = Acks(ledger)
    async with pulling(ledger) as pull:
        held: list[Arrival] = []
        while len(held) < 5:
            held += await take(pull, 5 - len(held))
        taken = [int(arrival.data) for arrival in held]
        while len(taken) < 40:
            with anyio.fail_after(15):  # the server takes in what was acknowledged a moment later
                while (await consumer(ledger))["num_ack_pending"] > 5:
                    pass
            assert len(held) + len(pull.waiting) <= 5
            for done in held[:2]:
                await acks.done(done)
            del held[:2]
            arrivals = await take(pull, 5 - len(held))
            assert 0 < len(arrivals) <= 5 - len(held)
            held += arrivals
            taken += [int(arrival.data) for arrival in arrivals]
        assert sorted(taken) == list(range(40))
        assert (await consumer(ledger))["num_redelivered"] == 0


async def test_what_comes_late_is_covered_by_what_was_asked_for(ledger: Ledger, eventually: Eventually) -> None:
    """Asking again while nothing comes does not pile up requests: what then comes at once is still within the room."""
    async with pulling(ledger) as pull:
        for _ in range(5):
            with anyio.move_on_after(0.01):
                await pull.take(3)
        await publish(ledger, range(20))
        held: list[Arrival] = []
        while len(held) < 3:
            held += await take(pull, 3 - len(held))
        assert [int(arrival.data) for arrival in held] == [0, 1, 2]
        assert (await consumer(ledger))["num_ack_pending"] == 3
        assert pull.waiting == []


async def test_what_is_not_acknowledged_comes_again(ledger: Ledger) -> None:
    await publish(ledger, range(2))
    acks = Acks(ledger)
    async with pulling(ledger, ack_wait_s=0.2) as pull:
        first: list[Arrival] = []
        while len(first) < 2:
            first += await take(pull, 2 - len(first))
        await acks.done(first[1])
        for num_delivered in (2, 3):
            (again,) = await take(pull, 2)
            assert (again.data, again.seq, again.num_delivered) == (b"0", 1, num_delivered)
        await acks.done(again)
        await settled(ledger)


async def test_progress_keeps_it_from_coming_again(ledger: Ledger) -> None:
    await publish(ledger, [0, 1])
    acks = Acks(ledger)
    async with pulling(ledger, ack_wait_s=1) as pull:
        taken: list[Arrival] = []
        while len(taken) < 3:  # until the one that nothing is said of comes again
            for arrival in taken:
                if arrival.data == b"0":
                    await acks.progress(arrival)
            with anyio.move_on_after(0.05):
                taken += await pull.take(2)
        assert [(int(arrival.data), arrival.num_delivered) for arrival in taken] == [(0, 1), (1, 1), (1, 2)]


async def test_again_brings_it_back_after_its_delay(ledger: Ledger) -> None:
    await publish(ledger, [0])
    acks = Acks(ledger)
    async with pulling(ledger) as pull:
        (arrival,) = await take(pull, 1)
        told_ns = time.time_ns()
        await acks.again(arrival, 0.2)
        (arrival,) = await take(pull, 1)
        assert arrival.num_delivered == 2
        assert arrival.arrived_ns - told_ns >= 190_000_000
        await acks.done(arrival)
        await settled(ledger)


async def test_one_that_is_lost_begins_where_it_is_told(ledger: Ledger) -> None:
    """And not where it once began, which may be long ago."""
    await publish(ledger, range(10))
    asked: list[int] = []

    async def start_again() -> int:
        asked.append(8)
        return 9  # sequences begin with 1

    pull = Pull(ledger.link, STREAM, DURABLE, [FILTER], 30.0, 1, start_again)
    await pull.open()
    try:
        assert await take_all(ledger, pull, 10) == list(range(10))
        assert asked == []
        await ledger.link.api(f"CONSUMER.DELETE.{STREAM}.{DURABLE}")
        assert [arrival.seq for arrival in await take(pull, 10)] == [9, 10]
        assert asked == [8]
    finally:
        await pull.close()


async def test_a_consumer_deleted_under_it_is_made_again(ledger: Ledger, eventually: Eventually) -> None:
    await publish(ledger, range(3))
    async with pulling(ledger) as pull:
        assert await take_all(ledger, pull, 3) == [0, 1, 2]
        await settled(ledger)
        await ledger.link.api(f"CONSUMER.DELETE.{STREAM}.{DURABLE}")  # while nobody is taking
        assert await take_all(ledger, pull, 3) == [0, 1, 2]  # it starts over
        async with anyio.create_task_group() as tasks:
            taken: list[int] = []

            async def take_the_new_one() -> None:
                while 3 not in taken:  # a server may remember of the one it is still taking away what was acknowledged
                    taken.extend(await take_all(ledger, pull, 1))

            await settled(ledger)
            tasks.start_soon(take_the_new_one)
            await anyio.wait_all_tasks_blocked()
            await ledger.link.api(f"CONSUMER.DELETE.{STREAM}.{DURABLE}")  # while somebody waits for it
            await publish(ledger, [3])
        assert set(taken) <= {0, 1, 2, 3}


async def test_two_pulls_share_the_messages(ledger: Ledger, nats_url: str) -> None:
    taken: dict[int, list[int]] = {0: [], 1: []}
    all_taken = anyio.Event()

    async def work(number: int, its_ledger: Ledger) -> None:
        acks = Acks(its_ledger)
        async with pulling(its_ledger) as pull:
            while True:
                for arrival in await pull.take(3):
                    taken[number].append(int(arrival.data))
                    await acks.done(arrival)
                if len(taken[0]) + len(taken[1]) >= 400:
                    all_taken.set()

    async with connect(nats_url) as link, anyio.create_task_group() as tasks:
        tasks.start_soon(work, 0, ledger)
        tasks.start_soon(work, 1, await open_ledger(link))
        await publish(ledger, range(400))
        with anyio.fail_after(15):
            await all_taken.wait()
        await settled(ledger)
        tasks.cancel_scope.cancel()
    assert Counter(taken[0] + taken[1]) == Counter(range(400))
    assert min(len(taken[0]), len(taken[1])) > 0


async def test_what_one_takes_and_drops_the_other_gets(ledger: Ledger, nats_url: str) -> None:
    await publish(ledger, range(6))
    async with connect(nats_url) as link:
        other = await open_ledger(link)
        async with pulling(other, ack_wait_s=0.3) as dropping:
            dropped = [int(arrival.data) for arrival in await take(dropping, 3)]
    async with pulling(ledger, ack_wait_s=0.3) as pull:
        taken = await take_all(ledger, pull, 6)
        await settled(ledger)
    assert dropped
    assert set(taken) == set(range(6))


async def test_it_goes_on_when_the_server_comes_back(
    tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("streams.wire.link", "streams.wire.ledger"):
        monkeypatch.setattr(f"{module}.REQUEST_TIMEOUT_S", 0.5)
    async with embedded(tmp_path) as url, connect(url) as link:
        ledger = await open_ledger(link)
        acks, taken = Acks(ledger), set[int]()

        async def work() -> None:
            async with pulling(ledger, ack_wait_s=1) as pull:
                while True:
                    for arrival in await pull.take(4):
                        await acks.done(arrival)
                        taken.add(int(arrival.data))

        def more_taken_than(num: int) -> bool:
            return len(taken) > num

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            for start in (0, 50):
                await publish(ledger, range(start, start + 50))
                await eventually(partial(more_taken_than, start + 10))
                os.kill(status(tmp_path)["pid"], signal.SIGKILL)
            await publish(ledger, range(100, 150))
            await eventually(lambda: taken == set(range(150)))
            await settled(ledger)
            tasks.cancel_scope.cancel()


@given(st.text(max_size=60) | st.from_regex(r"\$JS\.ACK(\.[a-z0-9]{0,25}){5,11}"))
def test_a_subject_to_acknowledge_on_is_read_or_malformed(reply: str) -> None:
    try:
        numbers = delivery(reply)
    except Malformed:
        return
    assert all(0 <= number < 2**63 for number in numbers)


def test_both_kinds_of_subjects_to_acknowledge_on_are_read() -> None:
    assert delivery("$JS.ACK.S.c.3.17.2.1700000000000000000.5") == (3, 17, 1700000000000000000, 5)
    assert delivery("$JS.ACK.domain.account.S.c.3.17.2.1700000000000000000.5.x") == (3, 17, 1700000000000000000, 5)
    with pytest.raises(Malformed):
        delivery("$JS.ACK.S.c." + "9" * 5000 + ".17.2.1700000000000000000.5")


async def test_what_others_send_to_a_consumers_inbox_is_passed_over(ledger: Ledger) -> None:
    async with pulling(ledger) as pull:
        await send_to_inbox(pull)
        await publish(ledger, range(2))
        assert await take_all(ledger, pull, 2) == [0, 1]


async def send_to_inbox(pull: Pull) -> None:
    for reply in ("", "somewhere", "$JS.ACK.S.c.x.y.z.0.0", "$JS.ACK." + "9." * 100 + "9"):
        await pull._link.client.publish(pull._inbox, b"foreign", reply)
        await pull._link.client.publish(pull._inbox, b"", reply, {"Status": "408", "Nats-Pending-Messages": "9" * 5000})


async def test_it_may_be_closed_twice_unopened_and_without_a_connection(nats_url: str) -> None:
    async with connect(nats_url) as link:
        await open_ledger(link)
        unopened = Pull(link, "PENSTOCK_MEDIA", "unopened", ["penstock.media.s.*"], 10.0)
        opened, cut = (Pull(link, "PENSTOCK_MEDIA", name, ["penstock.media.s.*"], 10.0) for name in ("opened", "cut"))
        await opened.open()
        await cut.open()
        for pull in (unopened, unopened, opened, opened):
            await pull.close()
        await link.client.close()
        await cut.close()
        await cut.close()


async def test_what_is_asked_for_at_once_has_no_connection_closed(ledger: Ledger) -> None:
    """A server holds 64 MB for a connection, and closes it for more."""
    for index in range(100):
        await ledger.put(f"penstock.media.s.{index}", str(index).encode().ljust(MAX_INLINE_BYTES), PARENT)
    async with pulling(ledger) as pull:
        assert await take_all(ledger, pull, 100, room=100) == list(range(100))
    assert ledger.link.num_reconnects == 0


async def test_one_that_has_more_bytes_than_may_be_asked_for_comes_all_the_same(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.wire.pull.MAX_ASKED_BYTES", 5000)
    monkeypatch.setattr("streams.wire.pull.MIN_ASKED_BYTES", 5000)
    for index, size in enumerate([1, 9000, 9000, 1, 1, 9000, 1]):
        await ledger.put(f"penstock.media.s.{index}", str(index).encode().ljust(size), PARENT)
    async with pulling(ledger) as pull:
        assert await take_all(ledger, pull, 7, room=7) == list(range(7))
        await settled(ledger)


async def test_a_request_that_bounds_the_bytes_and_is_met_is_no_cause_for_doubt(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.wire.pull.MIN_ASKED_BYTES", 100_000)
    monkeypatch.setattr("streams.wire.pull.MAX_ASKED_BYTES", 100_000)
    await publish(ledger, range(40))
    doubts: list[None] = []
    monkeypatch.setattr(Pull, "_on_doubt", lambda self: doubts.append(None))
    async with pulling(ledger) as pull:
        asked = await consumer(ledger)
        assert await take_all(ledger, pull, 40, room=4) == list(range(40))
        assert pull._doubtful is False
        assert not doubts
        await settled(ledger)
    assert asked["name"] == DURABLE


async def test_what_another_has_taken_is_not_asked_for_again(
    ledger: Ledger, nats_url: str, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    """The last message said that there was more, and the other took it."""
    monkeypatch.setattr("streams.wire.pull.OWED_S", 0.05)
    await publish(ledger, range(3))
    asked: list[int] = []
    async with connect(nats_url) as link, pulling(ledger) as one, pulling(await open_ledger(link)) as other:
        (first,) = await take(one, 1)
        assert first.num_pending == 2
        rest = await take(other, 2)
        while len(rest) < 2:
            rest += await take(other, 2 - len(rest))
        looked = one._is_pending

        async def look() -> bool:
            asked.append(1)
            return await looked()

        one._is_pending = look  # type: ignore[method-assign]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.take, 1)
            await eventually(lambda: bool(asked) and not one._is_owed)
            assert (one._credit, one._doubtful) == (1, False)
            assert (await consumer(ledger))["num_waiting"] <= 2  # of each one request, at most
            tasks.cancel_scope.cancel()


async def test_a_request_whose_bytes_are_used_up_exactly_holds_nothing_up(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server ends such a request without a word."""
    await publish(ledger, range(6))
    async with pulling(ledger) as pull:
        first = await take(pull, 6)
        while len(first) < 6:
            first += await take(pull, 6 - len(first))
        await pull.delete()
    headers = len(header_block(headers_for(PARENT, 0, EXPECT_EMPTY)) or b"")
    counted = [len(each.subject) + len(each.reply) + headers + len(each.data) for each in first]
    monkeypatch.setattr("streams.wire.pull.MIN_ASKED_BYTES", sum(counted[:2]))
    monkeypatch.setattr("streams.wire.pull.MAX_ASKED_BYTES", sum(counted[:2]))
    monkeypatch.setattr("streams.wire.pull.EXPIRES_S", 3600.0)
    async with pulling(ledger) as pull:
        assert await take_all(ledger, pull, 6, room=6) == list(range(6))
