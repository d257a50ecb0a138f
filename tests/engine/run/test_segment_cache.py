"""The cache: what the ledger holds, decoded once and within a bound; what cannot be read is a gap."""

from collections.abc import AsyncIterator

import anyio
import msgspec
import pytest
import toys

from engine.decide.instructions import Known
from engine.run.segment_cache import KEEP_RESULTS_S, OVERHEAD_BYTES, SegmentCache
from engine.spec.operator import Media
from streams import subjects
from streams.records import EndOfStream, Gap, Result, encode
from streams.subjects import Key
from streams.wire.ledger import Ledger, Stored, open_ledger
from streams.wire.link import connect

pytestmark = pytest.mark.anyio
PARENT = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"


@pytest.fixture
async def ledger(nats_url: str) -> AsyncIterator[Ledger]:
    async with connect(nats_url) as link:
        yield await open_ledger(link)


def cache_on(ledger: Ledger) -> SegmentCache:
    cache = SegmentCache(ledger, "s")
    cache.serve({"id": toys.Number})
    return cache


def segment(index: int, value: int = 0) -> bytes:
    return encode(toys.toy_segment("s", index, value))


def result(index: int, value: int) -> bytes:
    output = msgspec.Raw(encode(toys.Number(value=value)))
    return encode(Result(stage="id", stream="s", first=index, last=index, output=output))


def stored(seq: int, data: bytes) -> Stored:
    return Stored("", seq, data, PARENT)


async def forget(ledger: Ledger, stream: str) -> None:
    await ledger.link.api(f"STREAM.PURGE.PENSTOCK_{stream}")


async def test_what_is_stored_is_found_and_then_at_hand(ledger: Ledger) -> None:
    cache = cache_on(ledger)
    for index in (0, 1, 3):
        await ledger.put(subjects.media("s", index), segment(index, 10 + index), PARENT)
    for index in (0, 2):
        await ledger.put(subjects.result("id", "s", Key.of(index)), result(index, index), PARENT)
    for _ in range(2):  # the second time, the ledger is empty
        media, results = await cache.get("media", range(5)), await cache.get("id", range(5))
        assert {index: toys.number(known.value) for index, known in media.items()} == {0: 10, 1: 11, 3: 13}
        assert {index: known.value for index, known in results.items()} == {n: toys.Number(value=n) for n in (0, 2)}
        assert [media[index].seq for index in (0, 1, 3)] == [1, 2, 3]
        assert {known.traceparent for known in (*media.values(), *results.values())} == {PARENT}
        assert all(isinstance(known.value, Media) for known in media.values())
        await forget(ledger, "MEDIA")
        await forget(ledger, "RESULTS")


async def test_those_least_recently_used_go_first(ledger: Ledger) -> None:
    cache = cache_on(ledger)
    cache.max_bytes = 2 * (len(segment(1)) + OVERHEAD_BYTES)
    for index in range(2):
        cache.keep_media(index, stored(index + 1, segment(index)))
    await cache.get("media", [0])
    cache.keep_media(2, stored(3, segment(2)))
    assert set(await cache.get("media", range(4))) == {0, 2}  # the ledger is empty


async def test_views_that_overlap_are_read_once(ledger: Ledger) -> None:
    cache = cache_on(ledger)
    for index in range(8):
        await ledger.put(subjects.media("s", index), segment(index, index), PARENT)
    num_before = ledger.link.client.stats["in_msgs"]
    async with anyio.create_task_group() as tasks:
        for first in range(4):
            tasks.start_soon(cache.get, "media", range(first, first + 5))
    num_answers = 4  # ends of what was asked for: the first view, then one segment of each, by itself
    assert ledger.link.client.stats["in_msgs"] - num_before <= 8 + num_answers
    assert set(await cache.get("media", range(8))) == set(range(8))


async def test_of_a_stream_that_was_made_anew_nothing_old_is_at_hand(ledger: Ledger) -> None:
    cache = cache_on(ledger)
    for index in range(3):
        cache.keep_media(index, stored(index + 1, segment(index, 1)))
    cache.keep_media(0, stored(9, segment(0, 2)))
    found = await cache.get("media", range(3))  # the ledger is empty
    assert {index: toys.number(known.value) for index, known in found.items()} == {0: 2}


async def test_results_that_nobody_asks_for_any_more_are_let_go(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    monkeypatch.setattr("engine.run.segment_cache.time.monotonic", lambda: now_s)
    cache = cache_on(ledger)
    for index in range(10):
        now_s = index * KEEP_RESULTS_S / 4
        cache.keep_result("id", Key.of(index), stored(index + 1, result(index, index)))
        assert 0 in await cache.get("id", [0])  # the ledger is empty
    assert set(await cache.get("id", range(10))) == {0, 5, 6, 7, 8, 9}


async def test_only_so_many_results_are_at_hand(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.run.segment_cache.MAX_RESULTS", 3)
    cache = cache_on(ledger)
    for index in range(5):
        cache.keep_result("id", Key.of(index), stored(index + 1, result(index, index)))
    assert set(await cache.get("id", range(5))) == {2, 3, 4}


async def test_the_end_is_known_once_it_is_stored(ledger: Ledger) -> None:
    cache = cache_on(ledger)
    assert await cache.end() is None
    assert cache.num_segments is None
    await ledger.put(subjects.media("s", 0), segment(0))
    await ledger.put(subjects.media_end("s"), encode(EndOfStream(stream="s", num_segments=1)))
    assert cache.num_segments is None  # nobody has asked
    assert await cache.end() == (2, EndOfStream(stream="s", num_segments=1))
    assert cache.num_segments == 1
    await forget(ledger, "MEDIA")
    assert await cache.end() is not None


async def test_gaps_are_read_again_for_they_may_be_replaced(ledger: Ledger) -> None:
    cache = cache_on(ledger)
    subject = subjects.result("id", "s", Key.of(0))
    gap = Gap(stage="id", stream="s", first=0, last=0, cause="late")
    placed = await ledger.put(subject, encode(gap))
    known = (await cache.get("id", [0]))[0]
    assert (known.gap, known.value) == (gap, None)
    instead = {"Nats-Expected-Last-Subject-Sequence": str(placed.seq)}
    await ledger.link.jetstream.publish(subject, result(0, 5), headers=instead)
    known = (await cache.get("id", [0]))[0]
    assert (known.gap, known.value) == (None, toys.Number(value=5))


DAMAGED = [
    b"",
    b"\x81\xa1",
    b"\x00",
    segment(0)[:-3],
    b"\x81\xa4type\xa1\xff",
    b"\x82\xa4type\xa7segment\xa1x" + b"\x91" * 100_000,
]


@pytest.mark.parametrize(
    "data", [*DAMAGED, encode(EndOfStream(stream="s", num_segments=3))], ids=lambda data: str(data[:12])
)
async def test_media_that_cannot_be_read_are_a_gap(data: bytes, ledger: Ledger) -> None:
    cache = cache_on(ledger)
    placed = await ledger.put(subjects.media("s", 4), data, PARENT)
    known = (await cache.get("media", [4]))[4]
    assert known.gap is not None
    assert (known.gap.stage, known.gap.first, known.gap.last) == ("media", 4, 4)
    assert known.gap.detail.startswith("the stored record cannot be read: ")
    assert (known.seq, known.traceparent, known.value) == (placed.seq, PARENT, None)
    assert cache.num_segments is None


@pytest.mark.parametrize("data", [*DAMAGED, segment(0)], ids=lambda data: str(data[:12]))
async def test_an_end_that_cannot_be_read_is_none(data: bytes, ledger: Ledger) -> None:
    await ledger.put(subjects.media_end("s"), data)
    assert await cache_on(ledger).end() is None


async def test_a_result_of_another_type_is_a_gap(ledger: Ledger) -> None:
    output = msgspec.Raw(encode({"value": "not a number"}))
    mistyped = encode(Result(stage="id", stream="s", first=0, last=0, output=output))
    latin = encode(Result(stage="id", stream="s", first=0, last=0, output=msgspec.Raw(b"\x81\xa5value\xa1\xff")))
    for data in (mistyped, latin, *DAMAGED):
        known = cache_on(ledger).keep_result("id", Key.of(0), stored(7, data))
        assert known.gap is not None
        assert known.gap.stage == "id"


async def test_whatever_bits_are_flipped_the_cache_takes_it(ledger: Ledger) -> None:
    cache = cache_on(ledger)
    for data in flips(segment(0)):
        known = cache_on(ledger).keep_media(0, stored(1, data))
        assert known is not None
        assert (known.value is None) == (known.gap is not None)
    for data in flips(result(0, 3)):
        known = cache.keep_result("id", Key.of(0), stored(1, data))
        assert (known.value is None) == (known.gap is not None)


def flips(data: bytes) -> list[bytes]:
    """`data` with each of its bits flipped."""
    return [data[: n // 8] + bytes([data[n // 8] ^ 1 << n % 8]) + data[n // 8 + 1 :] for n in range(8 * len(data))]


async def test_what_was_computed_here_need_not_be_read(ledger: Ledger) -> None:
    cache = cache_on(ledger)
    cache.keep_value("id", Key.of(2), Known(9, PARENT, toys.Number(value=4)))
    gap = Gap(stage="id", stream="s", first=3, last=3, cause="late")
    cache.keep_value("id", Key.of(3), Known(10, PARENT, gap=gap))
    found = await cache.get("id", [2, 3])
    assert {index: known.value for index, known in found.items()} == {2: toys.Number(value=4)}


async def test_a_record_that_says_it_is_another_is_a_gap_and_spoils_no_other(ledger: Ledger) -> None:
    cache = cache_on(ledger)
    foreign = encode(toys.toy_segment("t", 6, 1))
    for index, data in ((5, segment(7, 1)), (6, foreign)):
        known = cache.keep_media(index, stored(index + 1, data))
        assert known is not None
        assert known.gap is not None
        assert "it says it is segment" in known.gap.detail
    real = cache.keep_media(7, stored(9, segment(7, 70)))
    assert real is not None
    assert (real.seq, toys.number(real.value)) == (9, 70)

    known = cache.keep_result("id", Key.of(3), stored(4, result(4, 1)))
    assert known.gap is not None
    assert cache.keep_result("id", Key.of(4), stored(5, result(4, 40))).value == toys.Number(value=40)


async def test_segments_at_hand_have_a_bound_in_bytes(ledger: Ledger) -> None:
    cache = cache_on(ledger)
    sizes = [len(segment(index)) + OVERHEAD_BYTES for index in range(7)]
    cache.max_bytes = sum(sizes[3:6])
    for index in range(6):
        cache.keep_media(index, stored(index + 1, segment(index)))
        assert cache.num_bytes <= cache.max_bytes
    assert cache.num_bytes == cache.max_bytes, "3, 4 and 5"
    cache.max_bytes = 1
    cache.keep_media(6, stored(7, segment(6)))
    assert cache.num_bytes == sizes[6], "the last one stays, however large"
