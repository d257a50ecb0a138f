"""Leases over a real server: one at a time, taken over from the dead, given back by the living."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog
from conftest import Eventually

from streams.errors import LinkError, UserError
from streams.wire import lease as lease_module
from streams.wire.kv import Bucket, Held, open_bucket
from streams.wire.lease import holder_of, while_held
from streams.wire.link import Link, Refused, connect
from streams.wire.server import embedded
from streams.wire.store import status

pytestmark = pytest.mark.anyio

HOLDER = """
import sys
import anyio
from streams.wire.kv import open_bucket
from streams.wire.lease import while_held
from streams.wire.link import connect

async def body():
    print("held", flush=True)
    await anyio.sleep_forever()

async def hold(url):
    async with connect(url) as link:
        bucket = await open_bucket(link, "leases")
        await while_held(bucket, "x", "killed", body, renew_s=0.2, retry_s=0.1)

anyio.run(hold, sys.argv[1])
"""


class Work:
    """What contenders do under the lease: says who is at it, and notices two at once."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.ended: list[str] = []
        self.at_it: list[str] = []
        self.most_at_once = 0
        self.may_end: dict[str, anyio.Event] = {}

    def of(self, who: str) -> Callable[[], Awaitable[None]]:
        self.may_end[who] = anyio.Event()

        async def body() -> None:
            self.began.append(who)
            self.at_it.append(who)
            self.most_at_once = max(self.most_at_once, len(self.at_it))
            try:
                await self.may_end[who].wait()
            finally:
                self.at_it.remove(who)
                self.ended.append(who)

        return body


@pytest.fixture
async def link(nats_url: str) -> AsyncIterator[Link]:
    async with connect(nats_url) as link:
        yield link


@pytest.fixture
async def long(link: Link) -> Bucket:
    """Leases that outlast the test."""
    return await open_bucket(link, "leases", max_age_s=60)


@pytest.fixture
async def other(nats_url: str, long: Bucket) -> AsyncIterator[Bucket]:
    """The same bucket over another connection."""
    async with connect(nats_url) as link:
        yield await open_bucket(link, "leases")


async def hold(
    bucket: Bucket, who: str, body: Callable[[], Awaitable[None]], renew_s: float = 0.1, retry_s: float = 0.1
) -> None:
    await while_held(bucket, "x", who, body, renew_s=renew_s, retry_s=retry_s)


async def test_whoever_waits_goes_on_as_soon_as_the_lease_is_given_back(
    long: Bucket, other: Bucket, eventually: Eventually
) -> None:
    work = Work()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hold, long, "a", work.of("a"), 50.0, 1000.0)
        await eventually(lambda: work.began == ["a"])
        assert await holder_of(other, "x") == "a"
        assert await holder_of(other, "y") is None
        tasks.start_soon(hold, other, "b", work.of("b"), 50.0, 1000.0)
        tasks.start_soon(hold, long, "c", work.of("c"), 50.0, 1000.0)
        await eventually(lambda: len(long.link.client._subs) > 2)
        assert work.began == ["a"]
        work.may_end["a"].set()
        await eventually(lambda: len(work.began) == 2)
        second = work.began[1]
        assert await holder_of(long, "x") == second
        work.may_end[second].set()
        await eventually(lambda: len(work.began) == 3)
        work.may_end[work.began[2]].set()
    assert sorted(work.began) == ["a", "b", "c"]
    assert work.ended == work.began
    assert work.most_at_once == 1
    assert await holder_of(long, "x") is None


async def test_a_hint_that_comes_before_the_change_can_be_read_is_not_lost(
    long: Bucket, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work()
    await long.put("x", b"dead")
    get, num_looks, num_stale = long.get, 0, 0
    stale = await get("x")

    async def lagging(key: str) -> Held | None:
        nonlocal num_looks, num_stale
        num_looks += 1
        if num_stale:
            num_stale -= 1
            return stale
        return await get(key)

    monkeypatch.setattr(long, "get", lagging)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hold, long, "a", work.of("a"), 50.0, 1000.0)
        await eventually(lambda: num_looks == 1)
        num_stale = 1
        await long.delete("x", 1)
        await eventually(lambda: work.at_it == ["a"])
        tasks.cancel_scope.cancel()


async def test_a_lease_is_renewed_beyond_its_age(link: Link, nats_url: str, eventually: Eventually) -> None:
    bucket = await open_bucket(link, "leases", max_age_s=3)
    work = Work()
    created: list[int] = []

    async def look() -> None:
        while not created or created[-1] - created[0] < 4e9:
            if (held := await bucket.get("x")) is not None:
                assert held.value == b"a"
                created.append(held.created_ns)
            await anyio.sleep(0.05)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hold, bucket, "a", work.of("a"), 0.1, 0.1)
        await eventually(lambda: work.began == ["a"])
        tasks.start_soon(hold, bucket, "b", work.of("b"), 0.1, 0.1)
        await look()
        assert work.began == work.at_it == ["a"]
        tasks.cancel_scope.cancel()


async def test_the_lease_of_a_killed_holder_is_free_when_it_is_forgotten(
    link: Link, nats_url: str, eventually: Eventually
) -> None:
    bucket = await open_bucket(link, "leases", max_age_s=1)
    work = Work()
    command = [sys.executable, "-c", HOLDER, nats_url]
    async with await anyio.open_process(command, stdin=None, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            said = b""
            while b"held\n" not in said:
                said += await holder.stdout.receive()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(hold, bucket, "b", work.of("b"))
                holder.kill()
                await holder.wait()
                assert await holder_of(bucket, "x") in ("killed", None)
                await eventually(lambda: work.at_it == ["b"])
                assert await holder_of(bucket, "x") == "b"
                tasks.cancel_scope.cancel()
        finally:
            with suppress(ProcessLookupError):
                holder.kill()


async def test_a_lease_is_not_taken_before_it_is_forgotten(link: Link, eventually: Eventually) -> None:
    bucket = await open_bucket(link, "leases", max_age_s=1)
    work = Work()
    await bucket.put("x", b"dead")
    dead = await bucket.get("x")
    assert dead is not None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hold, bucket, "b", work.of("b"), 0.5, 0.02)
        await eventually(lambda: work.at_it == ["b"])
        taken = await bucket.get("x")
        assert taken is not None
        assert taken.value == b"b"
        assert taken.created_ns - dead.created_ns >= 1e9
        tasks.cancel_scope.cancel()


async def test_a_lease_that_is_taken_away_ends_the_work_until_it_is_free(long: Bucket, eventually: Eventually) -> None:
    work = Work()
    with structlog.testing.capture_logs() as logs:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hold, long, "a", work.of("a"), 0.05, 1000.0)
            await eventually(lambda: work.at_it == ["a"])
            await long.put("x", b"thief")
            await eventually(lambda: work.ended == ["a"])
            assert await holder_of(long, "x") == "thief"
            assert work.began == ["a"]
            await long.delete("x")
            await eventually(lambda: work.at_it == ["a"])
            assert await holder_of(long, "x") == "a"
            await long.delete("x")  # nobody took it: it is taken again
            await eventually(lambda: len(work.began) == 3)
            work.may_end["a"].set()
    assert work.ended == ["a"] * 3
    assert [entry["why"] for entry in logs if entry["event"] == "lease_lost"] == ["it was taken or deleted"] * 2


async def test_work_ends_before_another_can_begin_though_nothing_is_heard_of_the_server(
    link: Link, nats_url: str, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = await open_bucket(link, "leases", max_age_s=1)
    work = Work()

    async def not_answered(*args: Any) -> None:
        await anyio.sleep_forever()

    monkeypatch.setattr(bucket, "update", not_answered)
    async with connect(nats_url) as link_of_b:
        its = await open_bucket(link_of_b, "leases")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hold, bucket, "a", work.of("a"), 0.1, 1000.0)
            await eventually(lambda: work.at_it == ["a"])
            tasks.start_soon(hold, its, "b", work.of("b"), 0.1, 0.01)
            await eventually(lambda: work.at_it == ["b"])
            assert work.ended == ["a"]
            assert work.most_at_once == 1
            tasks.cancel_scope.cancel()


async def test_the_lease_is_kept_though_the_server_dies(
    tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("streams.wire.link", "streams.wire.kv"):
        monkeypatch.setattr(f"{module}.REQUEST_TIMEOUT_S", 0.5)
    work = Work()
    renewed: list[int | None] = []
    async with embedded(tmp_path) as url, connect(url) as link:
        bucket = await open_bucket(link, "leases", max_age_s=30)
        update = bucket.update

        async def noted(key: str, value: bytes, revision: int) -> int | None:
            renewed.append(await update(key, value, revision))
            return renewed[-1]

        monkeypatch.setattr(bucket, "update", noted)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hold, bucket, "a", work.of("a"))
            await eventually(lambda: len(renewed) > 2)
            os.kill(status(tmp_path)["pid"], signal.SIGKILL)
            await eventually(lambda: link.num_reconnects == 1)
            num_renewed = len(renewed)
            await eventually(lambda: len(renewed) > num_renewed + 2)
            assert (work.began, work.ended) == (["a"], [])
            assert None not in renewed
            tasks.cancel_scope.cancel()


async def test_work_goes_on_after_the_server_was_away_for_too_long(
    tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("streams.wire.link", "streams.wire.kv"):
        monkeypatch.setattr(f"{module}.REQUEST_TIMEOUT_S", 0.2)
    work = Work()
    async with embedded(tmp_path) as url, connect(url, patience_s=0.4) as link:
        bucket = await open_bucket(link, "leases", max_age_s=1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hold, bucket, "a", work.of("a"))
            await eventually(lambda: work.at_it == ["a"])
            server = status(tmp_path)["pid"]
            with structlog.testing.capture_logs() as logs:
                os.kill(server, signal.SIGSTOP)
                try:
                    await eventually(lambda: work.ended == ["a"])
                    await eventually(lambda: [entry for entry in logs if entry["event"] == "lease_unknown"])
                finally:
                    os.kill(server, signal.SIGCONT)
            assert "it could not be renewed in time" in [entry.get("why") for entry in logs]
            await eventually(lambda: work.at_it == ["a"])
            tasks.cancel_scope.cancel()


# --- how it ends -----------------------------------------------------------------------------------------------------


async def test_whoever_is_canceled_gives_the_lease_back(long: Bucket, eventually: Eventually) -> None:
    work = Work()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hold, long, "a", work.of("a"))
        await eventually(lambda: work.at_it == ["a"])
        assert await holder_of(long, "x") == "a"
        tasks.cancel_scope.cancel()
    assert work.ended == ["a"]
    assert await holder_of(long, "x") is None


async def test_only_what_is_ours_is_given_back(long: Bucket, eventually: Eventually) -> None:
    work = Work()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hold, long, "a", work.of("a"), 50.0)
        await eventually(lambda: work.at_it == ["a"])
        await long.put("x", b"thief")
        work.may_end["a"].set()
    assert await holder_of(long, "x") == "thief"


async def test_whoever_is_canceled_while_waiting_leaves_the_lease_alone(
    long: Bucket, other: Bucket, eventually: Eventually
) -> None:
    work = Work()
    await long.put("x", b"b")
    num_subscriptions = len(other.link.client._subs)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hold, other, "b", work.of("b"))  # of the same name
        await eventually(lambda: len(other.link.client._subs) > num_subscriptions)
        tasks.cancel_scope.cancel()
    assert await holder_of(long, "x") == "b"
    assert work.began == []
    assert len(other.link.client._subs) == num_subscriptions


@pytest.mark.parametrize("canceled", [True, False])
async def test_a_lease_whose_renewal_was_not_heard_of_is_given_back(
    canceled: bool, long: Bucket, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work()
    update, stored = long.update, []

    async def stored_but_not_told(*args: Any) -> None:
        stored.append(await update(*args))
        await anyio.sleep_forever()

    monkeypatch.setattr(long, "update", stored_but_not_told)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hold, long, "a", work.of("a"))
        await eventually(lambda: stored)
        if canceled:
            tasks.cancel_scope.cancel()
        else:
            work.may_end["a"].set()
    assert stored[0] is not None
    assert await holder_of(long, "x") is None


async def test_what_the_work_raises_is_raised_and_the_lease_given_back(long: Bucket) -> None:
    async def body() -> None:
        raise ValueError("of the work")

    with pytest.raises(ValueError, match="of the work"):
        await hold(long, "a", body)
    assert await holder_of(long, "x") is None


async def test_the_end_does_not_wait_for_a_server_that_is_away(
    long: Bucket, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work()

    async def not_answered(*args: Any) -> None:
        await anyio.sleep_forever()

    monkeypatch.setattr(lease_module, "GIVE_BACK_S", 0.1)
    monkeypatch.setattr(long, "delete", not_answered)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hold, long, "a", work.of("a"))
        await eventually(lambda: work.at_it == ["a"])
        work.may_end["a"].set()
    assert await holder_of(long, "x") == "a"  # until it is forgotten


async def test_work_that_swallows_its_cancellation_has_not_ended(long: Bucket, eventually: Eventually) -> None:
    began: list[int] = []
    may_end = anyio.Event()

    async def stubborn() -> None:
        began.append(1)
        turn = len(began)
        try:
            await may_end.wait()
        except anyio.get_cancelled_exc_class():
            if turn == 2:
                raise ValueError("while it is canceled") from None

    with structlog.testing.capture_logs() as logs:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hold, long, "a", stubborn, 0.05, 0.05)
            for turn in (1, 2):
                await eventually(lambda turn=turn: len(began) == turn)
                await long.put("x", b"thief")
                await eventually(lambda: [entry["event"] for entry in logs].count("lease_lost") == len(began))
                await long.delete("x")
            await eventually(lambda: len(began) == 3)
            may_end.set()
    assert [entry["exc_info"].args for entry in logs if entry["event"] == "lease_lost_badly"] == [
        ("while it is canceled",)
    ]


@pytest.mark.parametrize("method", ["get", "create", "update"])
async def test_what_passes_is_waited_for_and_what_does_not_is_raised(
    method: str, long: Bucket, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work()
    errors: list[Exception] = [LinkError("away"), LinkError("away")]
    original = getattr(long, method)

    async def failing(*args: Any) -> Any:
        if errors:
            raise errors.pop()
        return await original(*args)

    monkeypatch.setattr(long, method, failing)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hold, long, "a", work.of("a"), 0.02, 0.02)
        await eventually(lambda: work.at_it == ["a"] and not errors)
        tasks.cancel_scope.cancel()
    assert work.began == ["a"]
    errors.append(Refused("no", 10000))
    with pytest.raises(Refused, match="no"), anyio.fail_after(15):
        await hold(long, "b", work.of("b"), 0.02, 0.02)
    monkeypatch.setattr(long, method, original)
    assert work.at_it == []
    assert await holder_of(long, "x") is None or method == "update"


async def test_a_closed_link_is_not_waited_for(nats_url: str) -> None:
    work = Work()
    async with connect(nats_url) as link:
        bucket = await open_bucket(link, "leases", max_age_s=60)

        async def body() -> None:
            await link.client.close()
            await work.of("a")()

        with pytest.raises(LinkError, match="store x in bucket leases"), anyio.fail_after(15):
            await hold(bucket, "a", body)
    assert work.ended == ["a"]
    with pytest.raises(LinkError, match="cannot watch bucket leases"):
        await hold(bucket, "a", body)


async def test_what_cannot_be_a_lease_is_refused(link: Link, long: Bucket) -> None:
    lasting = await open_bucket(link, "lasting")
    body = Work().of("a")
    with pytest.raises(UserError, match="bucket lasting keeps its values: open one with max_age_s"):
        await hold(lasting, "a", body)
    for renew_s, retry_s in ((0, 1), (-1, 1), (54, 1), (60, 1), (1, 0)):
        with pytest.raises(UserError, match="give above 0, and renew_s below 54"):
            await hold(long, "a", body, renew_s, retry_s)
    with pytest.raises(UserError, match="is no key"):
        await while_held(long, "a b", "a", body, renew_s=1, retry_s=1)
