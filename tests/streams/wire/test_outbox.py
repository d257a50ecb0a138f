"""What a worker sends: each record by itself, each callback once, whatever becomes of the server."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from conftest import Eventually

from streams.errors import LinkError, PenstockError
from streams.wire.ledger import Ledger, NewRecord, Placed, open_ledger
from streams.wire.link import connect
from streams.wire.outbox import Outbox
from streams.wire.server import embedded
from streams.wire.store import status

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def sending(ledger: Ledger) -> AsyncIterator[Outbox]:
    async with anyio.create_task_group() as tasks:
        outbox = Outbox(ledger)
        tasks.start_soon(outbox.run)
        yield outbox
        tasks.cancel_scope.cancel()


class Heard:
    """What was said of records, by their numbers."""

    def __init__(self) -> None:
        self.placed: dict[int, list[Placed]] = {}
        self.failed: dict[int, list[PenstockError]] = {}

    def put(self, outbox: Outbox, number: int, data: bytes = b"x", due_ns: int = 0) -> None:
        record = NewRecord(f"penstock.media.s.{number}", data, "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01", due_ns)

        def on_put(what: Placed | PenstockError) -> None:
            if isinstance(what, Placed):
                self.placed.setdefault(number, []).append(what)
            else:
                self.failed.setdefault(number, []).append(what)

        outbox.put(record, on_put)


async def test_each_record_is_said_once_where_it_stands(nats_url: str, eventually: Eventually) -> None:
    async with connect(nats_url) as link:
        ledger = await open_ledger(link)
        async with sending(ledger) as outbox:
            heard = Heard()
            for number in range(50):
                heard.put(outbox, number, due_ns=7)
            await eventually(lambda: len(heard.placed) == 50)
            assert sorted(each.seq for (each,) in heard.placed.values()) == list(range(1, 51))
            assert all(each.fresh for (each,) in heard.placed.values())
            again = Heard()
            again.put(outbox, 3, b"other")
            await eventually(lambda: again.placed)
            assert again.placed[3] == [Placed(heard.placed[3][0].seq, False)]
            stored = await ledger.get("penstock.media.s.3")
            assert stored is not None
            assert (stored.data, stored.due_ns, stored.traceparent[:5]) == (b"x", 7, "00-ab")
            assert outbox.num_open == 0


async def test_a_record_above_the_limit_is_stored_in_pieces(nats_url: str, eventually: Eventually) -> None:
    async with connect(nats_url) as link:
        ledger = await open_ledger(link)
        async with sending(ledger) as outbox:
            heard = Heard()
            large = os.urandom(3_000_000)
            heard.put(outbox, 0, large)
            heard.put(outbox, 1)
            await eventually(lambda: len(heard.placed) == 2)
            stored = await ledger.get("penstock.media.s.0")
            assert stored is not None
            assert stored.data == large


async def test_what_one_callback_raises_is_nothing_to_the_others(nats_url: str, eventually: Eventually) -> None:
    def bad(placed: Placed) -> None:
        raise ZeroDivisionError

    async with connect(nats_url) as link:
        ledger = await open_ledger(link)
        async with sending(ledger) as outbox:
            heard = Heard()
            outbox.put(NewRecord("penstock.media.bad.0", b""), bad)
            heard.put(outbox, 0)
            await eventually(lambda: 0 in heard.placed)


async def test_what_cannot_be_stored_is_said(nats_url: str, eventually: Eventually) -> None:
    async with connect(nats_url, patience_s=0.2) as link:
        ledger = await open_ledger(link)
        await link.api("STREAM.DELETE.PENSTOCK_MEDIA")
        async with sending(ledger) as outbox:
            heard = Heard()
            heard.put(outbox, 0)
            await eventually(lambda: heard.failed)
            assert [type(error) for error in heard.failed[0]] == [LinkError]
            assert not heard.placed


async def test_a_server_that_is_killed_loses_nothing_and_says_nothing_twice(
    tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("link", "ledger"):
        monkeypatch.setattr(f"streams.wire.{module}.REQUEST_TIMEOUT_S", 0.5)
    num = 400
    async with embedded(tmp_path) as url, connect(url) as link:
        ledger = await open_ledger(link)
        async with sending(ledger) as outbox:
            heard = Heard()
            for number in range(num):
                heard.put(outbox, number)
                if number in (100, 300):
                    await anyio.lowlevel.checkpoint()
                    os.kill(status(tmp_path)["pid"], signal.SIGKILL)
                    await eventually(lambda before=number: len(heard.placed) > before // 2)  # type: ignore[misc]
            await eventually(lambda: len(heard.placed) == num)
            assert {len(said) for said in heard.placed.values()} == {1}
            assert not heard.failed
            assert len(await ledger.subjects("penstock.media.s.*")) == num
