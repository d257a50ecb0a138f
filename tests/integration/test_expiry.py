"""A stream keeps less than the rest: of what is stored, the oldest of its own goes, by age, room and kind."""

from collections.abc import AsyncIterator

import pytest
import toys

from engine.decide import expiry as rule
from engine.node.expiry import Expiry
from engine.run.registry import open_registry
from engine.spec.stream import Keep
from streams import subjects
from streams.records import EndOfStream, encode
from streams.subjects import Key
from streams.wire.ledger import BULK, MAX_INLINE_BYTES, Ledger, open_ledger
from streams.wire.link import connect
from streams.wire.trimming import told

pytestmark = pytest.mark.anyio
LARGE = 2 * MAX_INLINE_BYTES  # in chunks


@pytest.fixture
async def ledger(nats_url: str) -> AsyncIterator[Ledger]:
    async with connect(nats_url) as link:
        yield await open_ledger(link)


async def expiry_of(ledger: Ledger, now_ns: int = 0) -> Expiry:
    if now_ns:
        ledger.clock.now_ns = lambda: now_ns  # type: ignore[method-assign]
    return Expiry(await open_registry(ledger.link), ledger, "n1")


async def indices(ledger: Ledger, stream: str) -> list[int]:
    return sorted(key.first for key in subjects.keys_of(await ledger.subjects(subjects.media_of(stream))))


async def test_media_above_their_room_go_with_their_chunks_and_those_of_others_stay(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rule, "BLOCK_BYTES", 1)  # each record is a block
    for index in range(6):
        for stream in ("cam", "other"):
            await ledger.put(subjects.media(stream, index), bytes([index]) * LARGE)
        await ledger.put(subjects.result("a1", "cam", Key.of(index)), b"x")
    await ledger.put(subjects.media_end("cam"), encode(EndOfStream(stream="cam", num_segments=6)))
    chunks = len(await ledger.subjects("penstock.bulk.cam.>"))
    await (await expiry_of(ledger)).look({"cam": Keep(media_bytes=3 * LARGE), "other": Keep()})
    assert await indices(ledger, "cam") == [4, 5]  # a chunk more is counted for each, at most
    assert await indices(ledger, "other") == [0, 1, 2, 3, 4, 5]
    assert len(await ledger.subjects("penstock.bulk.cam.>")) == chunks * 2 // 6
    assert len(await ledger.subjects("penstock.bulk.other.>")) == chunks
    assert len(await ledger.subjects(subjects.results_of("*", "cam"))) == 6
    assert await ledger.get(subjects.media_end("cam")) is not None
    stored = await ledger.get(subjects.media("cam", 4))
    assert stored is not None
    assert stored.data == bytes([4]) * LARGE


@pytest.mark.parametrize("where", ["other", "*", ">", "other.*"])
async def test_chunks_that_a_record_only_claims_stay(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Anyone who can write media can say that another stream's chunks are its own."""
    monkeypatch.setattr(rule, "BLOCK_BYTES", 1)
    await ledger.put(subjects.media("other", 0), b"x" * LARGE)
    chunks = await ledger.subjects("penstock.bulk.other.>")
    digest = next(iter(chunks)).split(".")[3]
    named = {BULK: f"{where}.{digest}.3"}
    for index in range(2):
        await ledger.link.jetstream.publish(subjects.media("cam", index), bytes(900_000), headers=named)
    await (await expiry_of(ledger)).look({"cam": Keep(media_bytes=1 << 20)})
    assert await indices(ledger, "cam") == [1]
    assert await ledger.subjects("penstock.bulk.other.>") == chunks


async def test_each_kind_has_an_age_of_its_own_and_the_end_of_a_stream_none(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rule, "BLOCK_NS", 1)
    for index in range(3):
        await ledger.put(subjects.media("cam", index), encode(toys.toy_segment("cam", index, index)))
        await ledger.put(subjects.result("a1", "cam", Key.of(index)), b"x")
        await ledger.put(subjects.dead("a1", "cam", Key.of(index)), b"x")
    await ledger.append(subjects.answers("j1", "cam"), b"{}", 0)
    await ledger.put(subjects.media_end("cam"), encode(EndOfStream(stream="cam", num_segments=3)))
    times = [record.stored_ns async for record in told(ledger.link, subjects.media_of("cam"))]
    one = await expiry_of(ledger, times[1] + 100 * 10**9)
    await one.look({"cam": Keep(media_s=100.0, results_s=1000.0)})
    assert await indices(ledger, "cam") == [1, 2]
    assert len(await ledger.subjects(subjects.results_of("*", "cam"))) == 3
    later = await expiry_of(ledger, times[-1] + 2000 * 10**9)
    await later.look({"cam": Keep(media_s=100.0, results_s=1000.0)})
    assert await ledger.subjects(subjects.media_of("cam")) == {subjects.media_end("cam")}
    assert await ledger.subjects(subjects.results_of("*", "cam")) == set()
    assert await ledger.subjects(subjects.dead_of("cam")) == set()
    assert await ledger.get(subjects.answers("j1", "cam")) is not None
    await later.look({"cam": Keep(answers_s=1000.0)})
    assert await ledger.get(subjects.answers("j1", "cam")) is None


async def test_what_is_stored_later_is_counted_with_what_was(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule, "BLOCK_BYTES", 1)
    one = await expiry_of(ledger)
    for index in range(1500):  # more than a page
        await ledger.put(subjects.media("cam", index), bytes(1000))
        if index % 500 == 499:
            await one.look({"cam": Keep(media_bytes=1 << 20)})
    assert await indices(ledger, "cam") == list(range(1500 - (1 << 20) // 1000, 1500))
