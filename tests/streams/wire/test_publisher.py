"""The publisher passes over what is no word of JetStream's; what got no word is asked for again by the ledger."""

import anyio
import pytest
from conftest import Eventually

from streams.wire.ledger import NewRecord, open_ledger
from streams.wire.link import connect
from streams.wire.publisher import Message, Publisher

pytestmark = pytest.mark.anyio

NO_WORDS = [
    b"\xff",
    b"[]",
    b"[" * 100_000,
    b'{"seq":"many"}',
    b'{"seq":' + b"9" * 5000 + b"}",
    b'{"error":{"err_code":[]}}',
]


async def test_a_word_that_cannot_be_read_counts_as_none(nats_url: str, eventually: Eventually) -> None:
    async with connect(nats_url) as link:
        ledger = await open_ledger(link)
        publisher = Publisher(link)
        acks = await publisher.send([Message("penstock.media.s.0", b"", {})], 5.0)
        assert [ack and ack.seq for ack in acks] == [1]
        outcome: list[object] = []

        async def send() -> None:
            outcome.extend(await publisher.send([Message("nobody.listens.here", b"", {})], 1.0))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            await eventually(lambda: "2" in publisher._batches)
            for word in NO_WORDS:
                for where in ("2.0", "2.7", "2." + "9" * 1000, "2.x", "3.0", "x.y"):
                    await link.client.publish(f"{publisher._inbox}.{where}", word)
        assert outcome == [None]
        placed = await ledger.put_many([NewRecord("penstock.media.s.1", b"x")])
        assert placed[0].fresh
