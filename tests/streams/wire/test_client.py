"""One message does not make the connection deaf, by a sender that speaks the protocol by hand; and what of nats-py that
rests on."""

import asyncio
import inspect
import os
import signal
from itertools import pairwise
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
import structlog
from conftest import Eventually
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import Header
from nats.protocol.parser import Parser
from raw_nats import BAD_HEADERS, publish_line, send_raw

from streams.wire import client as client_module
from streams.wire.client import WatchedClient
from streams.wire.ledger import open_ledger
from streams.wire.link import connect
from streams.wire.pull import Pull
from streams.wire.server import embedded
from streams.wire.store import status

pytestmark = pytest.mark.anyio

UNREADABLE = {
    "short headers": publish_line(b"here.a", b"bad", BAD_HEADERS),
    "empty status": publish_line(b"here.a", b"bad", b"NATS/1.0 \xff\xff\xff\r\n\r\n"),
    "noise": publish_line(b"here.a", b"bad", b"\0\xff" * 40),
    "a subject that is no UTF-8": publish_line(b"here.\xff\xfe", b"bad"),
}


@pytest.mark.parametrize("lines", UNREADABLE.values(), ids=UNREADABLE.keys())
async def test_what_cannot_be_read_arrives_and_the_rest_does(
    nats_url: str, lines: bytes, eventually: Eventually
) -> None:
    received: list[bytes] = []

    async def on_message(message: Msg) -> None:
        received.append(message.data)

    async with connect(nats_url) as link:
        await link.subscribe("here.*", on_message)
        await link.client.flush()
        send_raw(nats_url, publish_line(b"here.a", b"before"), lines, publish_line(b"here.a", b"after"))
        await eventually(lambda: received[-1:] == [b"after"])
        assert received == [b"before", b"bad", b"after"]
        assert link.num_reconnects == 0


async def test_a_stored_record_that_cannot_be_read_is_delivered_and_read(nats_url: str, eventually: Eventually) -> None:
    async with connect(nats_url) as link:
        ledger = await open_ledger(link)
        bad, odd = b"penstock.media.s.0", b"penstock.media.s.\xff"
        noise = publish_line(bad, b"bad", b"NATS/1.0\r\nNats-Seq\xff" + b"\0\xff" * 40)
        said = b"NATS/1.0\r\nStatus: 503\r\n\r\n"
        send_raw(nats_url, noise, publish_line(odd, b"odd"), publish_line(b"penstock.media.s.2", b"", said))
        await ledger.put("penstock.media.s.3", b"good")
        pull = Pull(link, "PENSTOCK_MEDIA", "all", ["penstock.media.s.*"], 10.0)
        await pull.open()
        with anyio.fail_after(10):
            arrivals = []
            while len(arrivals) < 4:
                arrivals += await pull.take(10)
        await pull.close()
        assert [arrival.data for arrival in arrivals] == [b"bad", b"odd", b"", b"good"]
        with anyio.fail_after(10):
            for index, data in enumerate([b"bad", None, b"", b"good"]):
                stored = await ledger.get(f"penstock.media.s.{index}")
                assert (stored and stored.data) == data
            many = await ledger.get_many([f"penstock.media.s.{index}" for index in range(4)])
        assert [stored.data for _, stored in sorted(many.items())] == [b"bad", b"", b"good"]
        assert link.num_reconnects == 0


async def test_it_connects_again_when_reading_has_ended(
    nats_url: str, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "RECONNECT_PAUSE_S", 0.05)
    received: list[bytes] = []

    async def on_message(message: Msg) -> None:
        received.append(message.data)

    async def fail(data: bytes = b"") -> None:
        raise ValueError("nobody knows")

    async with connect(nats_url) as link:
        await link.subscribe("here", on_message)
        await link.client.flush()
        for num in (1, 2):
            with monkeypatch.context() as patch, structlog.testing.capture_logs() as logs:
                patch.setattr(link.client._ps, "parse", fail)
                await link.publish("here", b"lost")
                await eventually(lambda: [log for log in logs if log["event"] == "nats_reading_ended"])
            await eventually(lambda num=num: link.num_reconnects >= num)
        await link.publish("here", b"after")
        await eventually(lambda: received[-1:] == [b"after"])


async def test_it_does_not_connect_in_a_busy_loop(nats_url: str, eventually: Eventually) -> None:
    pauses: list[float] = []

    async def counted(client: WatchedClient) -> None:
        pauses.append(anyio.current_time())
        if len(pauses) == 3:
            client._status = Client.CLOSED

    client = WatchedClient()
    client._status = Client.CONNECTED

    async def ended() -> None:
        return

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client_module, "RECONNECT_PAUSE_S", 0.1)
        patch.setattr(WatchedClient, "force_reconnect", counted)
        client._reading_task = asyncio.create_task(ended())
        with anyio.fail_after(5):
            await client.watch()
    assert min(later - before for before, later in pairwise(pauses)) >= 0.09


async def test_what_is_heard_comes_in_order_and_whoever_hears_cannot_stop_it(
    nats_url: str, eventually: Eventually
) -> None:
    heard: list[Msg] = []

    def on_message(message: Msg) -> None:
        heard.append(message)
        if message.data == b"1":
            raise ValueError("not this one")

    async with connect(nats_url) as link:
        hearing = await link.client.hear("here.*", on_message)
        await link.client.flush()
        trace = {"traceparent": "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"}
        with structlog.testing.capture_logs() as logs:
            for number in range(50):
                await link.publish(f"here.{number}", str(number).encode(), "back", trace if number % 2 else None)
            await eventually(lambda: len(heard) == 50)
        assert [log["event"] for log in logs] == ["not_heard"]
        assert [message.subject for message in heard] == [f"here.{number}" for number in range(50)]
        assert [message.data for message in heard] == [str(number).encode() for number in range(50)]
        assert [message.headers for message in heard] == [trace if number % 2 else None for number in range(50)]
        assert {message.reply for message in heard} == {"back"}
        await link.client.force_reconnect()
        await eventually(lambda: link.num_reconnects == 1)
        await link.publish("here.again")
        await eventually(lambda: heard[-1].subject == "here.again")
        await hearing.unsubscribe()
        await link.publish("here.never")
        await link.client.flush()
        assert heard[-1].subject == "here.again"


@pytest.mark.parametrize("lines", UNREADABLE.values(), ids=UNREADABLE.keys())
async def test_what_cannot_be_read_is_heard_too(nats_url: str, lines: bytes, eventually: Eventually) -> None:
    heard: list[bytes] = []
    async with connect(nats_url) as link:
        await link.client.hear("here.*", lambda message: heard.append(message.data))
        await link.client.flush()
        send_raw(nats_url, lines, publish_line(b"here.a", b"after"))
        await eventually(lambda: heard == [b"bad", b"after"])


async def test_a_flush_waits_for_what_was_sent_before_it(nats_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []
    async with connect(nats_url) as link:
        await link.client.flush()
        transport = link.client._transport
        assert transport is not None
        write, write_lines = transport.write, transport.writelines
        monkeypatch.setattr(transport, "write", lambda payload: (sent.append(payload), write(payload)))
        monkeypatch.setattr(transport, "writelines", lambda parts: (sent.extend(parts), write_lines(parts)))
        assert link.client.post("here.a", b"posted")
        await link.client.flush()
    assert sent[:2] == [b"PUB here.a  6\r\nposted\r\n", b"PING\r\n"]


HEADER_TEXT = st.text(st.characters(max_codepoint=300), max_size=20)


@given(
    headers=st.dictionaries(st.sampled_from([*client_module._USUAL, *Header, "X-Other", " traceparent"]), HEADER_TEXT),
    payload=st.binary(max_size=20) | st.just(bytes(5000)),
    reply=st.sampled_from(["", "to.me"]),
)
def test_headers_are_written_as_nats_py_writes_them(headers: dict[str, str], payload: bytes, reply: str) -> None:
    """And read again as they were, where they are written here."""

    def written(client: Client) -> bytes:
        client._flush_queue = None
        asyncio.run(client._send_publish("s.x", reply, payload, len(payload), headers))
        assert client.stats["out_msgs"] == 1
        assert client.stats["out_bytes"] == len(payload)
        assert client._pending_data_size == sum(map(len, client._pending))
        return b"".join(client._pending)

    assert written(WatchedClient()) == written(Client())
    block = client_module.header_block(headers)
    if headers and block is not None and block.isascii():
        assert client_module.plain_headers(block) == headers


async def test_it_ends_with_the_link(nats_url: str) -> None:

    async with connect(nats_url):
        assert [task for task in asyncio.all_tasks() if "watch the NATS" in task.get_name()]
    await anyio.lowlevel.checkpoint()
    assert not [task for task in asyncio.all_tasks() if "watch the NATS" in task.get_name()]


async def test_it_can_be_left_while_the_server_is_away_and_something_is_pending(tmp_path: Path) -> None:
    """nats-py alone writes to the connection that is gone: from Python 3.12 on, that is a TypeError."""
    async with embedded(tmp_path) as url:
        client = WatchedClient()
        gone = anyio.Event()

        async def on_disconnected() -> None:
            gone.set()

        await client.connect(url, disconnected_cb=on_disconnected, max_reconnect_attempts=-1)
        os.kill(status(tmp_path)["pid"], signal.SIGKILL)
        with anyio.fail_after(30):
            await gone.wait()
        written: list[object] = []
        client._transport.writelines = written.append
        client._pending.append(b"PUB a 1\r\na\r\n")
        client._pending_data_size = len(client._pending[0])
        await client.close()
        assert client.is_closed
        assert not written


def test_nats_py_is_as_it_is_relied_on() -> None:
    """An upgrade that changes what `streams.wire.client` rests on fails here."""
    assert list(inspect.signature(Client._process_headers).parameters) == ["self", "headers"]
    parts = ["self", "sid", "subject", "reply", "data", "headers"]
    assert list(inspect.signature(Client._build_message).parameters) == parts
    assert inspect.iscoroutinefunction(Client._process_headers)
    assert not inspect.iscoroutinefunction(Client._build_message)
    read = inspect.getsource(Client._process_msg)
    assert "self._process_headers(" in read
    assert "self._build_message(" in read
    assert "self.nc._process_msg(sid, subject, reply, payload, hdr)" in inspect.getsource(Parser.parse)
    assert list(inspect.signature(Client._process_msg).parameters) == parts
    published = ["self", "subject", "reply", "payload", "payload_size", "headers"]
    assert list(inspect.signature(Client._send_publish).parameters) == published
    assert "await self._send_publish(subject, reply, payload, payload_size, headers)" in inspect.getsource(
        Client.publish
    )
    assert "self._reading_task = " in inspect.getsource(Client._process_connect_init)
    assert inspect.iscoroutinefunction(Client.force_reconnect)
    assert "_reading_task" in vars(Client())
