"""The ledger over a real server: written once, read by everybody, kept through the server's death."""

import hashlib
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import anyio
import pytest
import structlog
from conftest import Eventually

from streams.errors import LinkError, Permanent
from streams.wire.jetstream import MAX_SUBJECTS_A_READ
from streams.wire.ledger import (
    HEADROOM_BYTES,
    MAX_INLINE_BYTES,
    Ledger,
    NewRecord,
    Placed,
    Stored,
    open_ledger,
    stream_of,
    traceparent_of,
)
from streams.wire.link import Link, connect
from streams.wire.retention import Retention, retain
from streams.wire.server import embedded
from streams.wire.store import status

pytestmark = pytest.mark.anyio
PARENT = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"


def media(index: int) -> str:
    return f"penstock.media.s.{index}"


@pytest.fixture
async def link(nats_url: str) -> AsyncIterator[Link]:
    async with connect(nats_url) as link:
        yield link


@pytest.fixture
async def ledger(link: Link) -> Ledger:
    return await open_ledger(link)


async def test_what_is_written_stays_as_it_is(ledger: Ledger) -> None:
    assert await ledger.put(media(0), b"first", PARENT) == Placed(1, True)
    assert await ledger.put(media(1), b"") == Placed(2, True)
    assert await ledger.put(media(0), b"second") == Placed(1, False)
    assert await ledger.put(media(1), b"more") == Placed(2, False)
    assert await ledger.get(media(0)) == Stored(media(0), 1, b"first", PARENT)
    assert await ledger.get(media(1)) == Stored(media(1), 2, b"", "")
    assert await ledger.get(media(2)) is None


async def test_many_at_once_new_and_old(ledger: Ledger) -> None:
    old = [await ledger.put(media(index), b"old") for index in (3, 5, 600)]
    with structlog.testing.capture_logs() as logs:
        placed = await ledger.put_many([NewRecord(media(index), b"new", PARENT) for index in range(700)])
    assert [index for index in range(700) if not placed[index].fresh] == [3, 5, 600]
    assert [placed[index].seq for index in (3, 5, 600)] == [each.seq for each in old]
    fresh = [each.seq for each in placed if each.fresh]
    assert fresh == sorted(set(fresh))
    assert logs == []  # a record that stands already is nothing to report
    stored = await ledger.get_many(media(index) for index in range(700))
    assert {subject: record.seq for subject, record in stored.items()} == {media(n): placed[n].seq for n in range(700)}
    assert {subject for subject, record in stored.items() if record.data == b"old"} == {media(3), media(5), media(600)}
    assert stored[media(0)].traceparent == PARENT
    assert await ledger.put_many([NewRecord(media(0), b"x")]) == [Placed(placed[0].seq, False)]


async def test_the_same_subject_twice_in_one_batch_is_stored_once(ledger: Ledger) -> None:
    first, second = await ledger.put_many([NewRecord(media(0), b"a"), NewRecord(media(0), b"b")])
    assert (first, second) == (Placed(1, True), Placed(1, False))
    stored = await ledger.get(media(0))
    assert stored is not None
    assert stored.data == b"a"


async def test_of_writers_at_once_exactly_one_is_first(ledger: Ledger, nats_url: str) -> None:
    placed: dict[int, list[Placed]] = {}

    async def write(number: int, its_ledger: Ledger) -> None:
        order = Random(number).sample(range(40), 40)
        entries = [NewRecord(media(index), str(number).encode()) for index in order]
        if number % 2:
            found = await its_ledger.put_many(entries)
        else:
            found = [await its_ledger.put(entry.subject, entry.data) for entry in entries]
        placed[number] = [each for _, each in sorted(zip(order, found, strict=True), key=lambda pair: pair[0])]

    async with connect(nats_url) as other:
        others = await open_ledger(other)
        async with anyio.create_task_group() as tasks:
            for number in range(6):
                tasks.start_soon(write, number, ledger if number < 3 else others)
    stored = await ledger.get_many(media(index) for index in range(40))
    for index in range(40):
        answers = {number: placed[number][index] for number in placed}
        (winner,) = (number for number, answer in answers.items() if answer.fresh)
        assert stored[media(index)].data == str(winner).encode()
        assert {answer.seq for answer in answers.values()} == {stored[media(index)].seq}


@pytest.mark.parametrize("num", [0, 1, 2, MAX_SUBJECTS_A_READ, MAX_SUBJECTS_A_READ + 1, 3 * MAX_SUBJECTS_A_READ + 1])
async def test_many_are_read_at_once(num: int, ledger: Ledger) -> None:
    await ledger.put_many([NewRecord(media(index), str(index).encode()) for index in range(0, 400, 2)])
    wanted = [media(index) for index in range(num)]
    found = await ledger.get_many(wanted + wanted)
    assert {subject: int(record.data) for subject, record in found.items()} == {
        media(index): index for index in range(0, min(num, 400), 2)
    }


async def test_what_another_link_stored_is_seen_at_once(ledger: Ledger, nats_url: str) -> None:
    async with connect(nats_url) as link:
        other = await open_ledger(link)
        for index in range(50):
            await other.put(media(index), b"x")
            assert await ledger.get(media(index)) is not None
            assert len(await ledger.get_many([media(index), media(index + 1)])) == 1


async def test_subjects_are_listed_by_pattern(ledger: Ledger) -> None:
    names = {f"penstock.results.{stage}.{stream}.{index}" for stage in "ab" for stream in "xy" for index in range(3)}
    assert await ledger.subjects("penstock.results.a.x.*") == set()
    await ledger.put_many([NewRecord(name, b"") for name in sorted(names)])
    assert await ledger.subjects("penstock.results.>") == names
    for stage in "ab":
        wanted = {name for name in names if name.startswith(f"penstock.results.{stage}.y.")}
        assert await ledger.subjects(f"penstock.results.{stage}.y.*") == wanted
    assert await ledger.subjects("penstock.results.a.x.1") == {"penstock.results.a.x.1"}


async def test_subjects_are_listed_page_by_page(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    await ledger.put_many([NewRecord(media(index), b"") for index in range(7)])
    asked: list[int] = []
    api = ledger.link.api

    async def paged(name: str, request: dict[str, object]) -> object:  # the server's pages are 100,000 subjects long
        asked.append(offset := int(str(request["offset"])))
        answer = await api(name, request)
        every = sorted((await api(name, {"subjects_filter": "penstock.media.>"}))["state"]["subjects"].items())
        answer["state"]["subjects"] = dict(every[offset : offset + 3])
        return answer

    monkeypatch.setattr("streams.wire.jetstream.SUBJECTS_A_PAGE", 3)
    monkeypatch.setattr(ledger.link, "api", paged)
    assert await ledger.subjects("penstock.media.>") == {media(index) for index in range(7)}
    assert asked == [0, 3, 6]


async def test_the_last_sequence_of_a_pattern(ledger: Ledger) -> None:
    assert await ledger.last_seq("penstock.media.s.*") == 0
    await ledger.put(media(5), b"")
    await ledger.put(media(2), b"")
    await ledger.put("penstock.media.other.0", b"")
    await ledger.put(media(5), b"refused")
    assert await ledger.last_seq("penstock.media.s.*") == 2
    assert await ledger.last_seq("penstock.media.other.*") == 3
    assert await ledger.last_seq("penstock.media.>") == 3
    assert await ledger.last_seq(media(5)) == 1


@pytest.mark.parametrize("num_bytes", [1024**2 - 5000, 1024**2 - 4096, 1024**2, 3 * 1024**2, 20 * 1024**2])
async def test_records_of_any_size_come_back_whole(num_bytes: int, ledger: Ledger) -> None:
    data = Random(1).randbytes(num_bytes)
    placed = await ledger.put(media(0), data, PARENT)
    assert placed.fresh
    assert not (await ledger.put(media(0), data + b"x")).fresh
    (many,) = await ledger.put_many([NewRecord(media(1), data, PARENT)])
    assert many.fresh
    expected = Stored(media(0), placed.seq, data, PARENT)
    assert await ledger.get(media(0)) == expected
    assert (await ledger.get_many([media(0), media(1)]))[media(0)] == expected


async def test_large_records_share_equal_chunks(ledger: Ledger) -> None:
    data = Random(2).randbytes(3 * 1024**2)
    await ledger.put(media(0), data)
    before = await ledger.subjects("penstock.bulk.>")
    await ledger.put_many([NewRecord(media(1), data), NewRecord(media(2), data)])
    assert await ledger.subjects("penstock.bulk.>") == before
    assert len(before) == 4


async def test_a_record_that_lost_a_chunk_is_gone_for_good(ledger: Ledger) -> None:
    data = Random(3).randbytes(3 * 1024**2)
    await ledger.put(media(0), data)
    digest = hashlib.sha256(data).hexdigest()[:40]
    await ledger.link.api("STREAM.PURGE.PENSTOCK_BULK", {"filter": f"penstock.bulk.*.{digest}.1"})
    with pytest.raises(Permanent, match="part of a record of 4 chunks is gone") as gone:
        await ledger.get(media(0))
    assert "\n" not in str(gone.value)
    with pytest.raises(Permanent):
        await ledger.get_many([media(0), media(1)])


async def test_what_is_appended_follows_what_was_last_and_a_retry_adds_nothing(ledger: Ledger) -> None:
    subject = "penstock.answers.job.s"
    first = await ledger.append(subject, b"1", 0)
    assert first is not None
    assert await ledger.append(subject, b"1", 0) == first  # the same again: its own work, done before
    assert await ledger.append(subject, b"other", 0) is None
    second = await ledger.append(subject, b"2", first, headers={"Penstock-Progress": "x"})
    assert second is not None
    assert second > first
    assert await ledger.append(subject, b"3", first) is None
    info = await ledger.link.api("STREAM.INFO.PENSTOCK_ANSWERS")
    assert info["state"]["messages"] == 2
    stored = await ledger.get(subject)
    assert stored is not None
    assert stored.data == b"2"
    noted = await ledger.look(subject)
    assert noted is not None
    assert (noted.record, noted.headers["Penstock-Progress"]) == (stored, "x")
    assert abs(time.time_ns() - noted.stored_ns) < 60e9


@pytest.mark.parametrize("num_over", [-1, 0, 1, 3_000_000])
async def test_what_is_appended_comes_whole_up_to_the_payload_limit(ledger: Ledger, num_over: int) -> None:
    """Also twice the same: the second finds the first's pieces."""
    subject = "penstock.answers.job.s"
    data = os.urandom(ledger.link.max_payload_bytes - HEADROOM_BYTES + num_over)
    first = await ledger.append(subject, data, 0)
    assert first is not None
    second = await ledger.append(subject, data, first)
    assert second is not None
    assert [stored.data for stored in [s async for s in ledger.every(subject)]] == [data, data]
    noted = await ledger.look(subject)
    assert noted is not None
    assert ("Penstock-Bulk" in noted.headers) == (num_over > 0)


async def test_opening_it_again_keeps_what_is_there(ledger: Ledger, nats_url: str) -> None:
    await ledger.put(media(0), b"x")
    async with connect(nats_url) as link:
        again = await open_ledger(link, Retention(max_age_s=3600))
        assert (await again.get(media(0))) == Stored(media(0), 1, b"x")


async def test_the_oldest_goes_first_and_its_place_is_free_again(link: Link) -> None:
    ledger = await open_ledger(link, Retention(max_media_bytes=100_000))
    for index in range(20):
        assert (await ledger.put(media(index), bytes(10_000))).fresh
    kept = await ledger.subjects("penstock.media.>")
    assert kept == {media(index) for index in range(20 - len(kept), 20)}
    assert 5 <= len(kept) < 11
    assert await ledger.put(media(0), b"again") == Placed(21, True)


async def test_opened_by_many_at_once(nats_url: str) -> None:
    opened: list[Ledger] = []

    async def open_one() -> None:
        opened.append(await open_ledger(shared))

    async with connect(nats_url) as shared, anyio.create_task_group() as tasks:
        for _ in range(6):
            tasks.start_soon(open_one)
    assert len(opened) == 6


async def test_a_read_that_nobody_answers_is_tried_again_and_then_given_up(nats_url: str) -> None:
    async with connect(nats_url, patience_s=0.3) as link:
        await open_ledger(link)
        await link.api("STREAM.DELETE.PENSTOCK_MEDIA")
        ledger = Ledger(link, (), frozenset())
        with pytest.raises(LinkError, match="gave up after"):
            await ledger.get(media(0))
        with pytest.raises(LinkError, match="gave up after"):
            await ledger.get_many([media(0), media(1)])
        with pytest.raises(LinkError, match="gave up after"):
            await ledger.put(media(0), b"")


def test_a_subject_names_the_stream_that_keeps_it() -> None:
    assert stream_of(media(0)) == "PENSTOCK_MEDIA"
    assert stream_of("penstock.results.>") == "PENSTOCK_RESULTS"


@pytest.mark.parametrize("many", [False, True])
async def test_all_that_was_acknowledged_survives_the_server(
    many: bool, tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records are written while nats-server is killed and restarted by its keeper: writers wait, nothing is lost."""
    for module in ("streams.wire.link", "streams.wire.ledger"):
        monkeypatch.setattr(f"{module}.REQUEST_TIMEOUT_S", 0.5)
    acknowledged: dict[str, int] = {}
    stop = anyio.Event()

    async def write(ledger: Ledger, writer: int) -> None:
        number = 0
        while not stop.is_set():
            names = [f"penstock.media.w{writer}.{number + each}" for each in range(20 if many else 1)]
            number += len(names)
            entries = [NewRecord(name, name.encode()) for name in names]
            placed = await ledger.put_many(entries) if many else [await ledger.put(names[0], names[0].encode())]
            acknowledged.update({name: each.seq for name, each in zip(names, placed, strict=True)})

    async def more_acknowledged() -> None:
        wanted = len(acknowledged) + 300
        await eventually(lambda: len(acknowledged) >= wanted)

    async with embedded(tmp_path) as url, connect(url) as link, connect(url) as reading:
        ledger = await open_ledger(link)
        async with anyio.create_task_group() as tasks:
            for writer in range(3):
                tasks.start_soon(write, ledger, writer)
            for _ in range(2):
                await more_acknowledged()
                num_reconnects = link.num_reconnects
                os.kill(status(tmp_path)["pid"], signal.SIGKILL)
                while link.num_reconnects == num_reconnects:  # noqa: ASYNC110
                    await anyio.sleep(0.01)
            await more_acknowledged()
            stop.set()
        other = await open_ledger(reading)
        stored = await other.get_many(acknowledged)
        assert {name: record.seq for name, record in stored.items()} == acknowledged
        assert all(record.data == name.encode() for name, record in stored.items())
        assert await other.subjects("penstock.media.>") == acknowledged.keys()


async def test_retention_can_be_changed_and_nothing_else_is(ledger: Ledger) -> None:
    await ledger.put(media(0), b"x")
    before = (await ledger.link.api("STREAM.INFO.PENSTOCK_MEDIA"))["config"]
    await retain(ledger.link, Retention(max_age_s=60.0, max_media_bytes=1 << 20))
    after = (await ledger.link.api("STREAM.INFO.PENSTOCK_MEDIA"))["config"]
    changed = {key for key in after if after[key] != before.get(key)}
    assert changed == {"max_age", "max_bytes", "duplicate_window"}
    assert (after["max_age"], after["max_bytes"]) == (60_000_000_000, 1 << 20)
    for index in range(1, 5):
        await ledger.put(media(index), bytes(400_000))
    assert await ledger.get(media(0)) is None  # the oldest goes first
    assert await ledger.get(media(4)) is not None


@pytest.mark.parametrize("said", ["", "x" * 1_000_000, "00-" + "AB" * 16 + "-" + "cd" * 8 + "-01", "a\x00b"])
def test_a_trace_context_that_is_none_goes_no_further(said: str) -> None:
    assert traceparent_of({"traceparent": said}) == ""
    assert traceparent_of(None) == ""
    right = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
    assert traceparent_of({"traceparent": right}) == right


async def test_what_is_read_at_once_has_no_connection_closed(ledger: Ledger) -> None:
    """A server holds 64 MB for a connection, and closes it for more."""
    names = [media(index) for index in range(16)]
    for name in names:
        await ledger.put(name, bytes(MAX_INLINE_BYTES))
    found: list[dict[str, Stored]] = []

    async def read() -> None:
        found.append(await ledger.get_many(names))

    async with anyio.create_task_group() as tasks:
        for _ in range(12):
            tasks.start_soon(read)
    assert [set(each) for each in found] == 12 * [set(names)]
    assert ledger.link.num_reconnects == 0
