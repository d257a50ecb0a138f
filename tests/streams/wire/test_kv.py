"""Buckets over a real server: compare and swap, reads that leave nothing out, NATS KV's own layout."""

import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import nats.errors
import nats.js.errors
import pytest
from conftest import Eventually
from nats.aio.msg import Msg

from streams.errors import LinkError, UserError
from streams.wire import jetstream, kv
from streams.wire.kv import Bucket, Held, open_bucket
from streams.wire.link import Link, Refused, connect
from streams.wire.server import embedded
from streams.wire.store import status

pytestmark = pytest.mark.anyio


@pytest.fixture
async def link(nats_url: str) -> AsyncIterator[Link]:
    async with connect(nats_url) as link:
        yield link


@pytest.fixture(params=["direct", "by the leader", "replicated"])
async def bucket(link: Link, request: pytest.FixtureRequest) -> Bucket:
    """In each way a bucket is read; the server's streams have one replica, so that what is asked is what differs."""
    if request.param == "by the leader":
        await link.jetstream.create_key_value(bucket="b")  # another client's, without direct gets
    bucket = await open_bucket(link, "b")
    assert bucket._is_direct == (request.param != "by the leader")
    bucket._is_replicated = request.param == "replicated"
    return bucket


async def test_a_key_has_its_last_value(bucket: Bucket) -> None:
    assert await bucket.get("a") is None
    first = await bucket.put("a", b"1")
    held = await bucket.get("a")
    assert held is not None
    assert held == Held("a", b"1", first, held.created_ns)
    assert abs(time.time_ns() - held.created_ns) < 60e9
    second = await bucket.put("a", b"")
    assert second > first
    again = await bucket.get("a")
    assert again is not None
    assert again == Held("a", b"", second, again.created_ns)
    assert again.created_ns > held.created_ns
    assert await bucket.get("a.b") is None


async def test_a_key_is_created_once_until_it_is_deleted(bucket: Bucket) -> None:
    first = await bucket.create("a", b"1")
    assert first is not None
    assert await bucket.create("a", b"2") is None
    assert await bucket.delete("a")
    assert await bucket.get("a") is None
    again = await bucket.create("a", b"3")
    assert again is not None
    assert again > first
    assert await bucket.create("a", b"4") is None
    held = await bucket.get("a")
    assert held is not None
    assert (held.value, held.revision) == (b"3", again)


async def test_a_value_is_changed_only_where_it_has_not_moved(bucket: Bucket) -> None:
    assert await bucket.update("a", b"0", 7) is None
    first = await bucket.put("a", b"1")
    second = await bucket.update("a", b"2", first)
    assert second is not None
    assert second > first
    assert await bucket.update("a", b"3", first) is None
    assert not await bucket.delete("a", first)
    held = await bucket.get("a")
    assert held is not None
    assert held.value == b"2"
    assert await bucket.delete("a", second)
    assert await bucket.get("a") is None
    assert await bucket.update("a", b"3", second) is None


async def test_what_is_not_there_is_not_deleted(bucket: Bucket) -> None:
    assert not await bucket.delete("a")
    assert not await bucket.delete("a", 5)
    await bucket.put("a", b"1")
    assert await bucket.delete("a")
    assert not await bucket.delete("a")


async def test_of_many_who_create_a_key_one_does(bucket: Bucket, nats_url: str) -> None:
    created: list[int | None] = []

    async def create(its: Bucket, number: int) -> None:
        created.append(await its.create("a", str(number).encode()))

    async with connect(nats_url) as link:
        other = await open_bucket(link, "b")
        for _ in range(3):  # the key is new, then was deleted
            created.clear()
            async with anyio.create_task_group() as tasks:
                for number in range(10):
                    tasks.start_soon(create, other if number % 2 else bucket, number)
            (revision,) = (each for each in created if each is not None)
            held = await bucket.get("a")
            assert held is not None
            assert held.revision == revision
            assert await bucket.delete("a", revision)


async def test_no_increment_of_a_counter_is_lost(bucket: Bucket, nats_url: str) -> None:
    async def add_one(its: Bucket) -> None:
        while True:
            held = await its.get("n")
            assert held is not None
            if await its.update("n", str(int(held.value) + 1).encode(), held.revision) is not None:
                return

    await bucket.put("n", b"0")
    async with connect(nats_url) as link:
        other = await open_bucket(link, "b")
        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(add_one, other if number % 2 else bucket)
    held = await bucket.get("n")
    assert held is not None
    assert held.value == b"20"


# --- many keys -------------------------------------------------------------------------------------------------


async def values(bucket: Bucket, prefix: str = "") -> dict[str, bytes]:
    found = await bucket.all(prefix)
    assert all(key == held.key for key, held in found.items())
    return {key: held.value for key, held in found.items()}


async def test_an_empty_bucket_holds_nothing(bucket: Bucket) -> None:
    assert await bucket.all() == {}
    assert await bucket.all("a") == {}
    await bucket.put("b", b"1")
    assert await bucket.all("a.") == {}
    await bucket.delete("b")
    assert await bucket.all() == {}


async def fill(bucket: Bucket) -> dict[str, bytes]:
    """300 keys, a third of them deleted, some written again; those left."""
    expected = {f"job.{number % 7}.{number}": str(number).encode() for number in range(300)}
    for key, value in expected.items():
        await bucket.put(key, value)
    for key in [key for number, key in enumerate(expected) if number % 3 == 0]:
        await bucket.delete(key)
        del expected[key]
    for key in list(expected)[::10]:
        expected[key] = b""
        await bucket.put(key, b"")
    return expected


async def test_all_is_every_key_with_a_value(bucket: Bucket) -> None:
    expected = await fill(bucket)
    assert len(expected) == 200
    assert await values(bucket) == expected
    for prefix in ("job", "job.", "job.1", "job.1.", "job.1.1", "job.2.100", "jobs", "x."):
        assert await values(bucket, prefix) == {key: expected[key] for key in expected if key.startswith(prefix)}
    held = (await bucket.all())["job.1.1"]
    assert held == await bucket.get("job.1.1")


async def test_all_is_read_page_by_page(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = await fill(bucket)
    monkeypatch.setattr(kv, "MAX_RECORDS_A_PAGE", 7)
    assert await values(bucket) == expected


async def test_all_is_read_though_it_has_too_many_keys_for_one_request(link: Link) -> None:
    bucket = await open_bucket(link, "b")
    for number in range(1100):
        await link.client.publish(f"$KV.b.k.{number}", b"x")
    await bucket.put("last", b"y")
    assert await bucket._sweep(["$KV.b.>"]) is None
    assert await values(bucket) == {f"k.{number}": b"x" for number in range(1100)} | {"last": b"y"}
    assert len(await bucket.all("k.1")) == 211
    bucket._is_replicated = True
    assert len(await bucket.all()) == 1101


@pytest.mark.parametrize("max_pages", [64, 2])
async def test_what_is_overwritten_while_all_is_read_is_not_left_out(
    max_pages: int, bucket: Bucket, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write removes the record it replaces, which the read may just be about to look at."""
    monkeypatch.setattr(kv, "MAX_RECORDS_A_PAGE", 20)
    monkeypatch.setattr(kv, "MAX_PAGES", max_pages)
    keys = [f"k{number}" for number in range(60)]
    for key in keys:
        await bucket.put(key, b"x")

    async def overwrite(link: Link) -> None:
        while True:
            for key in keys:
                await link.client.publish(f"$KV.b.{key}", b"y")
            await link.client.flush()

    async with connect(nats_url) as other, anyio.create_task_group() as tasks:
        tasks.start_soon(overwrite, other)
        for _ in range(12):
            assert (await bucket.all()).keys() == set(keys)
        tasks.cancel_scope.cancel()


async def test_what_goes_while_all_is_read_ends_a_page_not_the_read(nats_url: str) -> None:
    """A record that was forgotten by its age after the server looked it up; the server's answers are played."""
    pages: list[list[tuple[str, int]]] = [[("a", 3), ("b", 5)], [], [("a", 9), ("c", 12)]]
    asked_from: list[int] = []

    def record(key: str, revision: int) -> dict[str, str]:
        stamp = "2026-01-01T00:00:00Z"
        return {"Nats-Subject": f"$KV.b.{key}", "Nats-Sequence": str(revision), "Nats-Time-Stamp": stamp}

    async with connect(nats_url) as link, connect(nats_url) as server:

        async def answer(message: Msg) -> None:
            asked_from.append(json.loads(message.data)["seq"])
            for key, revision in pages[len(asked_from) - 1]:
                value = str(revision).encode()
                await server.client.publish(message.reply, value, headers=record(key, revision))
            end = {"Status": "204", "Nats-Num-Pending": "0", "Nats-UpTo-Sequence": "12"}
            if len(asked_from) < len(pages):
                end = {"Status": "404", "Description": "Message Not Found"}
            await server.client.publish(message.reply, headers=end)

        await server.subscribe("$JS.API.DIRECT.GET.KV_b", answer)
        await server.api("INFO")  # the server has the subscription
        bucket = Bucket(link, "b", {"allow_direct": True})
        assert await values(bucket) == {"a": b"9", "b": b"5", "c": b"12"}
        assert asked_from == [1, 6, 6]


async def test_a_replica_that_lags_is_not_believed(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = await open_bucket(link, "b")
    bucket._is_replicated = True
    await bucket.put("a", b"1")
    asked: list[str] = []
    api = link.api

    async def ahead(name: str, request: Any = None) -> Any:
        """The leader has a record more than whoever answers direct gets."""
        asked.append(name)
        answer = await api(name, request)
        if "state" in answer:
            answer["state"]["last_seq"] += 1
        return answer

    assert await values(bucket) == {"a": b"1"}
    monkeypatch.setattr(link, "api", ahead)
    assert await values(bucket) == {"a": b"1"}
    # what has changed, and all of it, cannot be had of a replica: each key is asked for, of the leader
    assert asked == [*["STREAM.INFO.KV_b"] * 3, "STREAM.MSG.GET.KV_b"]


async def test_only_what_has_changed_is_read_again(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket, other = await open_bucket(link, "b"), await open_bucket(link, "b")
    for number in range(1500):  # more than the server answers for at once
        await other.put(f"k{number}", b"1")
    assert len(await bucket.all()) == 1500
    whole = bucket._whole

    async def refused(pattern: str) -> Any:
        raise AssertionError("all was read")

    monkeypatch.setattr(bucket, "_whole", refused)
    assert len(await bucket.all()) == 1500
    await other.put("k7", b"2")
    await other.delete("k8")
    await other.put("new", b"3")
    held = await bucket.all()
    assert (held["k7"].value, held["new"].value, "k8" in held, len(held)) == (b"2", b"3", False, 1500)
    monkeypatch.setattr(bucket, "_whole", whole)
    await link.api("STREAM.PURGE.KV_b")  # behind its back
    assert await bucket.all() == {}
    await other.put("k7", b"4")
    assert {key: held.value for key, held in (await bucket.all()).items()} == {"k7": b"4"}
    await link.api("STREAM.DELETE.KV_b")
    other = await open_bucket(link, "b")
    await other.put("again", b"5")
    assert list(await bucket.all()) == ["again"]


# --- what else uses the bucket -----------------------------------------------------------------------------------


async def test_another_client_reads_and_writes_the_same_bucket(bucket: Bucket) -> None:
    theirs = await bucket.link.jetstream.key_value("b")
    revision = await bucket.put("a.b/c=d-e_F", b"1")
    entry = await theirs.get("a.b/c=d-e_F")
    assert (entry.value, entry.revision) == (b"1", revision)
    assert await theirs.put("x", b"2") == revision + 1
    held = await bucket.get("x")
    assert held is not None
    assert (held.value, held.revision) == (b"2", revision + 1)
    assert await values(bucket) == {"a.b/c=d-e_F": b"1", "x": b"2"}

    await bucket.delete("x")
    with pytest.raises(nats.js.errors.KeyNotFoundError):
        await theirs.get("x")
    again = await theirs.create("x", b"3")
    assert await bucket.create("x", b"4") is None
    assert await bucket.update("x", b"4", again) == again + 1
    with pytest.raises(nats.js.errors.KeyWrongLastSequenceError):
        await theirs.update("x", b"5", last=again)

    await theirs.delete("x")
    await theirs.purge("a.b/c=d-e_F")
    assert await bucket.get("x") is None
    assert await bucket.get("a.b/c=d-e_F") is None
    assert await bucket.all() == {}
    assert await bucket.create("x", b"6") is not None
    assert await bucket.create("a.b/c=d-e_F", b"7") is not None
    status = await theirs.status()
    assert (status.bucket, status.history) == ("b", 1)


async def test_it_is_laid_out_as_every_client_expects(link: Link) -> None:
    await open_bucket(link, "b", max_age_s=30, history=5)
    config = (await link.api("STREAM.INFO.KV_b"))["config"]
    expected = {
        "subjects": ["$KV.b.>"],
        "max_msgs_per_subject": 5,
        "max_age": 30 * 10**9,
        "duplicate_window": 30 * 10**9,
        "discard": "new",
        "storage": "file",
        "max_msgs": -1,
        "max_bytes": -1,
        "num_replicas": 1,
        "allow_rollup_hdrs": True,
        "allow_direct": True,
        "deny_delete": True,
    }
    assert {name: config[name] for name in expected} == expected


async def test_history_is_kept(link: Link) -> None:
    bucket = await open_bucket(link, "b", history=3)
    for value in (b"1", b"2", b"3", b"4"):
        await bucket.put("a", value)
    await bucket.delete("a")
    theirs = await link.jetstream.key_value("b")
    assert (await theirs.get("a", revision=4)).value == b"4"
    assert (await theirs.status()).values == 3
    assert await bucket.all() == {}
    assert await bucket.create("a", b"5") == 6


async def test_values_are_forgotten_by_their_age(link: Link, eventually: Eventually) -> None:
    bucket = await open_bucket(link, "b", max_age_s=0.5)
    assert bucket.max_age_s == 0.5
    await bucket.put("a", b"1")
    await until(eventually, lambda: bucket.get("a"))
    assert await bucket.all() == {}
    assert await bucket.create("a", b"2") is not None


async def until(eventually: Eventually, something: Callable[[], Awaitable[object]]) -> None:
    """Wait until it is nothing."""
    last: list[object] = []

    async def look() -> None:
        while last[-1:] not in ([None], [{}]):
            last.append(await something())
            await anyio.sleep(0.01)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(look)
        await eventually(lambda: last[-1:] in ([None], [{}]))


async def test_markers_that_the_server_puts_are_no_values(link: Link, eventually: Eventually) -> None:
    await link.jetstream.create_key_value(bucket="b", ttl=1, limit_marker_ttl=3600, direct=True)
    bucket = await open_bucket(link, "b")
    assert bucket.max_age_s == 1
    await bucket.put("a", b"1")
    await until(eventually, lambda: bucket.get("a"))
    stored = await link.api("STREAM.MSG.GET.KV_b", {"last_by_subj": "$KV.b.a"})
    assert stored["message"]["seq"] == 2  # the marker
    for bucket._is_direct in (True, False):
        assert await bucket.get("a") is None
        assert await bucket.all() == {}
    assert await bucket.create("a", b"2") == 3


async def test_deletions_are_forgotten_in_the_end(
    link: Link, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv, "MARKER_TTL_S", 1)
    bucket = await open_bucket(link, "b")
    await bucket.put("a", b"1")
    await bucket.put("kept", b"1")
    await bucket.delete("a")
    held = await bucket.get("kept")
    assert held is not None
    assert await bucket.delete("kept", held.revision)
    assert await jetstream.subjects_of(link, "KV_b", "$KV.b.>") == {"$KV.b.a", "$KV.b.kept"}

    async def subjects() -> object:
        return await jetstream.subjects_of(link, "KV_b", "$KV.b.>") or None

    await until(eventually, subjects)
    assert await bucket.create("a", b"2") is not None


async def test_opening_it_again_keeps_what_is_there(link: Link) -> None:
    bucket = await open_bucket(link, "b", max_age_s=60)
    await bucket.put("a", b"1")
    again = await open_bucket(link, "b", max_age_s=5, history=9)
    assert again.max_age_s == 60
    assert await values(again) == {"a": b"1"}
    assert (await open_bucket(link, "c")).max_age_s is None


async def test_opened_by_many_at_once(link: Link) -> None:
    opened: list[Bucket] = []

    async def open_one(max_age_s: float) -> None:
        opened.append(await open_bucket(link, "b", max_age_s=max_age_s))

    async with anyio.create_task_group() as tasks:
        for number in range(6):
            tasks.start_soon(open_one, 60 + number % 2)
    (max_age_s,) = {bucket.max_age_s for bucket in opened}
    assert max_age_s in (60, 61)
    assert len(opened) == 6


# --- what goes wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", ".", "a.", ".a", "a..b", "a b", "a*", ">", "a.>", "ä", "a\n", "a\r\nb"])
async def test_what_is_no_key_is_refused(key: str, link: Link) -> None:
    bucket = await open_bucket(link, "b")
    attempts = (
        bucket.get(key),
        bucket.put(key, b""),
        bucket.create(key, b""),
        bucket.update(key, b"", 1),
        bucket.delete(key),
        bucket.delete(key, 1),
    )
    for attempt in attempts:
        with pytest.raises(UserError, match="is no key: use A-Z a-z 0-9") as refused:
            await attempt
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("prefix", [".", ".a", "a..", "a*", ">", "a b", "ä", "a\n"])
async def test_what_begins_no_key_is_refused(prefix: str, link: Link) -> None:
    bucket = await open_bucket(link, "b")
    with pytest.raises(UserError, match="begins no key"):
        await bucket.all(prefix)


async def test_what_is_no_bucket_is_refused(link: Link) -> None:
    for name in ("", "a.b", "a b", "*", ">"):
        with pytest.raises(UserError):
            await open_bucket(link, name)
    with pytest.raises(UserError, match="history 65: give from 1 to 64"):
        await open_bucket(link, "b", history=65)
    with pytest.raises(UserError, match="max_age_s 0"):
        await open_bucket(link, "b", max_age_s=0)
    with pytest.raises(Refused):  # the server's own word
        await open_bucket(link, "b", num_replicas=3)


async def test_a_value_above_the_limit_is_refused(link: Link) -> None:
    bucket = await open_bucket(link, "b")
    largest = bytes(link.max_payload_bytes - 4096)
    for attempt in (bucket.put, bucket.create):
        with pytest.raises(UserError, match=rf"a in bucket b: {len(largest) + 1} bytes; a value has at most"):
            await attempt("a", largest + b"x")
    await bucket.put("a", largest)
    assert (await bucket.all())["a"].value == largest


async def test_a_write_whose_answer_was_lost_is_done_once(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    publish = bucket.link.jetstream.publish
    num_lost = 0

    async def stored_but_not_told(*args: Any, **options: Any) -> Any:
        nonlocal num_lost
        ack = await publish(*args, **options)
        if lose:
            lose.pop()
            num_lost += 1
            raise nats.errors.TimeoutError
        return ack

    lose: list[bool] = []
    monkeypatch.setattr(bucket.link.jetstream, "publish", stored_but_not_told)
    lose = [True]
    assert await bucket.put("a", b"1") == 1
    lose = [True]
    assert await bucket.create("b", b"1") == 2
    lose = [True]
    assert await bucket.update("b", b"2", 2) == 3
    lose = [True]
    assert await bucket.delete("b", 3)
    lose = [True]
    assert await bucket.create("b", b"3") == 5
    lose = [True]
    assert await bucket.delete("a")
    assert num_lost == 6
    assert (await bucket.link.api("STREAM.INFO.KV_b"))["state"]["last_seq"] == 6
    assert await bucket.create("b", b"x") is None
    assert await values(bucket) == {"b": b"3"}


async def test_a_bucket_that_is_gone_is_given_up(nats_url: str) -> None:
    async with connect(nats_url, patience_s=0.3) as link:
        bucket = await open_bucket(link, "b")
        await link.api("STREAM.DELETE.KV_b")
        with pytest.raises(LinkError, match=r"read \$KV.b.a: gave up"):
            await bucket.get("a")
        with pytest.raises(LinkError, match="store a in bucket b: gave up"):
            await bucket.put("a", b"")
        with pytest.raises(LinkError, match="read from bucket b: gave up"):
            await bucket.all()


# --- changes -------------------------------------------------------------------------------------------------------


async def test_whoever_watches_hears_of_changes_until_it_ends(
    bucket: Bucket, nats_url: str, eventually: Eventually
) -> None:
    heard: list[str] = []
    end = await bucket.watch(heard.append)
    async with connect(nats_url) as link:
        assert await bucket.get("a.b") is None  # whatever happens from here on is heard of
        theirs = await link.jetstream.key_value("b")
        await theirs.put("a.b", b"1")
        await theirs.delete("a.b")
        await bucket.put("c", b"1")
        await eventually(lambda: heard == ["a.b", "a.b", "c"])
        also: list[str] = []
        end_also = await bucket.watch(also.append)
        await end()
        await end()
        await bucket.put("d", b"1")  # on the same connection, so behind the subscription
        await eventually(lambda: also == ["d"])
        assert heard == ["a.b", "a.b", "c"]
        await end_also()


async def test_what_is_said_again_as_it_was_is_no_news_to_who_wants_none(
    bucket: Bucket, eventually: Eventually
) -> None:
    heard: list[str] = []
    end = await bucket.watch(heard.append, repeats=False)
    for value in (b"1", b"1", b"2", b"2", b"1"):
        await bucket.put("a", value)
    await bucket.put("b", b"1")
    await bucket.delete("a")
    await bucket.put("a", b"1")
    await bucket.put("last", b"")
    await eventually(lambda: heard[-1:] == ["last"])
    assert heard == ["a", "a", "a", "b", "a", "a", "last"]
    await end()


async def test_whoever_watches_hears_that_it_may_have_missed_something(
    tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("streams.wire.link", "streams.wire.kv", "streams.wire.jetstream"):
        monkeypatch.setattr(f"{module}.REQUEST_TIMEOUT_S", 0.5)
    heard: list[str] = []
    async with embedded(tmp_path) as url:
        async with connect(url) as link, connect(url) as writing:
            bucket, other = await open_bucket(link, "b"), await open_bucket(writing, "b")
            end = await bucket.watch(heard.append)
            heard_after_its_end: list[str] = []
            await (await bucket.watch(heard_after_its_end.append))()
            assert await bucket.all() == {}
            await other.put("before", b"1")
            await eventually(lambda: heard == ["before"])
            os.kill(status(tmp_path)["pid"], signal.SIGKILL)
            await eventually(lambda: heard == ["before", ""])
            assert await values(bucket) == {"before": b"1"}
            await other.put("after", b"1")
            await eventually(lambda: heard == ["before", "", "after"])
            assert (await bucket.all()).keys() == {"before", "after"}
            assert heard_after_its_end == []
        await end()  # also when the link is closed


def test_headers_are_read_as_the_server_writes_them() -> None:
    block = b"NATS/1.0\r\nKV-Operation: DEL\r\nA:b: c\r\n\r\n"
    assert dict(jetstream.headers_of(block)) == {"KV-Operation": "DEL", "A": "b: c"}
    assert dict(jetstream.headers_of(b"")) == {}


@pytest.mark.parametrize(
    ("stamp", "ns"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:01.000000001Z", 1_000_000_001),
        ("2026-11-21T01:13:19.911297672Z", 1_795_223_599_911_297_672),
        ("2026-11-21T01:13:19.9112Z", 1_795_223_599_911_200_000),
    ],
)
def test_time_stamps_are_read_to_the_nanosecond(stamp: str, ns: int) -> None:
    assert jetstream.unix_ns(stamp) == ns


async def test_who_reads_all_at_once_shares_a_read_and_none_reads_what_was_before_he_asked(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = await open_bucket(link, "b")
    await bucket.put("k", b"0")
    num_read = 0
    followed = bucket._followed

    async def counted() -> dict[str, Held]:
        nonlocal num_read
        num_read += 1
        found = await followed()
        await anyio.lowlevel.checkpoint()  # and somebody may ask meanwhile
        return found

    monkeypatch.setattr(bucket, "_followed", counted)

    async def asks(number: int) -> None:
        await bucket.put("k", str(number).encode())
        assert int((await bucket.all())["k"].value) >= number

    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(bucket.all)
    assert num_read <= 3
    for number in range(1, 30):
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(bucket.all)
            tasks.start_soon(asks, number)
    assert await bucket.all() is await bucket.all()
