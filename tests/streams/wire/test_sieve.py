"""The sieve by itself: in whatever pieces a server's bytes come, what is heard is handed over once, in order, and every
other byte is left as it came. And what it rests on of nats-py and asyncio."""

import asyncio
import contextvars
import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client

from streams.wire import sieve as sieve_module
from streams.wire.client import WatchedClient, read_headers
from streams.wire.sieve import MAX_LEFT_BYTES, MAX_MESSAGE_BYTES, Sieve, SievedTransport, message_of

pytestmark = pytest.mark.anyio
HEARD = {7, 8}


class Wire(asyncio.Transport):
    """A transport that notes what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def pause_reading(self) -> None:
        self.said.append("pause")

    def resume_reading(self) -> None:
        self.said.append("resume")

    def abort(self) -> None:
        self.said.append("abort")


class Before(asyncio.Protocol):
    """The protocol that was there before."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def eof_received(self) -> bool:
        self.said.append("eof")
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.said.append(exc)

    def pause_writing(self) -> None:
        self.said.append("pause")

    def resume_writing(self) -> None:
        self.said.append("resume")


def sieving() -> tuple[Sieve, list[tuple[int, bytes, bytes, bytes, bytes | None]], Wire, Before]:
    heard: list[tuple[int, bytes, bytes, bytes, bytes | None]] = []

    def take(sid: int, *rest: Any) -> bool:
        if sid in HEARD:
            heard.append((sid, *rest))
        return sid in HEARD

    wire, before = Wire(), Before()
    return Sieve(wire, before, take), heard, wire, before


def give(sieve: Sieve, data: bytes) -> None:
    """As asyncio does it."""
    while data:
        room = sieve.get_buffer(-1)
        num = min(len(room), len(data))
        room[:num] = data[:num]
        del room
        sieve.buffer_updated(num)
        data = data[num:]


def left(sieve: Sieve) -> bytes:
    return b"".join(sieve._left)


def message(sid: int, payload: bytes, reply: bytes = b"", headers: bytes | None = None) -> bytes:
    words = [b"MSG" if headers is None else b"HMSG", b"a.b", b"%d" % sid, *([reply] if reply else [])]
    if headers is not None:
        words.append(b"%d" % len(headers))
    size = len(payload) + len(headers or b"")
    return b" ".join([*words, b"%d" % size]) + b"\r\n" + (headers or b"") + payload + b"\r\n"


PAYLOADS = st.binary(max_size=40) | st.sampled_from([b"\r\n", b"MSG a 7 3\r\nabc\r\n", bytes(3000)])
MESSAGES = st.builds(
    lambda sid, payload, reply, headers: (sid, b"a.b", reply, payload, headers),
    st.sampled_from([7, 8, 9, 70]),
    PAYLOADS,
    st.sampled_from([b"", b"to.me"]),
    st.none() | st.sampled_from([b"NATS/1.0\r\n\r\n", b"\0\0\r\n\r\n"]),
)
LINES = st.sampled_from([b"PING\r\n", b"+OK\r\n", b"INFO {}\r\n", b"-ERR 'no'\r\n", b"what\r\n", b"\r\n"])


@given(items=st.lists(MESSAGES | LINES, max_size=12), cuts=st.lists(st.integers(1, 200), max_size=60))
def test_what_is_heard_is_handed_over_and_the_rest_left_in_whatever_pieces_it_comes(
    items: Sequence[Any], cuts: Sequence[int]
) -> None:
    sieve, heard, wire, _ = sieving()
    data, expected = b"", b""
    for item in items:
        if isinstance(item, bytes):
            data, expected = data + item, expected + item
            continue
        sid, _, reply, payload, headers = item
        data += message(sid, payload, reply, headers)
        expected += b"" if sid in HEARD else message(sid, payload, reply, headers)
    for cut in cuts:
        give(sieve, data[:cut])
        data = data[cut:]
    give(sieve, data)
    assert heard == [item for item in items if not isinstance(item, bytes) and item[0] in HEARD]
    assert left(sieve) == expected
    assert sieve._num_bytes == 0
    assert wire.said == []


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 1, 5 << 20])
def test_a_message_larger_than_the_buffer_is_put_together_and_the_buffer_shrinks_again(size: int) -> None:
    sieve, heard, _, _ = sieving()
    payload = bytes(range(256)) * (size // 256) + bytes(size % 256)
    give(sieve, message(7, b"before") + message(7, payload, headers=b"NATS/1.0\r\n\r\n") + message(8, b"after"))
    assert [each[3] for each in heard] == [b"before", payload, b"after"]
    assert len(sieve._buffer) <= sieve_module.MAX_KEPT_BYTES
    assert left(sieve) == b""


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"msg a 7 3",
        b"PING",
        b"MSGS a 7 3",
    ],
)
def test_a_line_that_announces_no_message_is_nats_pys(line: bytes) -> None:
    assert message_of(line) is None
    sieve, heard, _, _ = sieving()
    give(sieve, line + b"\r\n")
    assert (heard, left(sieve)) == ([], line + b"\r\n")


@pytest.mark.parametrize(
    "line",
    [
        b"MSG",
        b"MSG a 7",
        b"MSG a 7 x",
        b"MSG a 7 r 3 4",
        b"MSG a  7 3",
        b"HMSG a 7 4 3",
        b"HMSG a 7 -1 3",
        b"MSG a 7 -3",
        b"MSG a 7 1_0",
        b"MSG a +7 3",
        b"MSG a 7 %d" % (MAX_MESSAGE_BYTES + 1),
        b"MSG a 7 " + b"9" * 5000,
    ],
)
def test_a_message_s_line_that_cannot_be_read_ends_the_connection_and_nothing_behind_it_is_read(line: bytes) -> None:
    """It is a sender's, and not the protocol's."""
    sieve, heard, wire, _ = sieving()
    give(sieve, b"PING\r\n" + line + b"\r\n" + message(7, b"forged"))
    assert (heard, left(sieve), wire.said) == ([], b"PING\r\n", ["abort"])


def test_other_white_space_in_a_subject_forges_nothing() -> None:
    sieve, heard, wire, _ = sieving()
    forged = b"MSG a 8 6\r\nforged\r\n"
    for subject in (b"x.\x0bz", b"x.\x0c8", b"x.\t8"):
        for sid in (7, 9):  # heard, and not
            give(sieve, b"MSG %s %d %d\r\n%s\r\n" % (subject, sid, len(forged), forged))
    assert [(each[0], each[1], each[3]) for each in heard] == [
        (7, subject, forged) for subject in (b"x.\x0bz", b"x.\x0c8", b"x.\t8")
    ]
    assert left(sieve) == b"", "nats-py's parser would end the connection for it"
    assert wire.said == []


async def test_whoever_hears_may_use_anyio_though_no_task_runs() -> None:
    came: list[float] = []

    def take(*_: Any) -> bool:
        came.append(anyio.current_time())
        return True

    sieve = Sieve(Wire(), Before(), take)
    context = contextvars.Context()  # as of a program that runs asyncio by itself
    asyncio.get_running_loop().call_soon(partial(give, sieve, message(7, b"x")), context=context)
    with anyio.fail_after(10):
        while not came:
            await anyio.lowlevel.checkpoint()


def test_an_unfinished_line_is_not_searched_from_its_start_again() -> None:
    sieve, heard, _, _ = sieving()
    for byte in b"MSG a 7 3\r\nabc\r\n":
        give(sieve, bytes([byte]))
    assert [each[3] for each in heard] == [b"abc"]
    give(sieve, b"x" * 1000)
    assert sieve._num_searched == 999


def test_a_line_without_an_end_ends_the_connection() -> None:
    sieve, _, wire, _ = sieving()
    for _ in range(3):
        give(sieve, b"x" * (sieve_module.MAX_LINE_BYTES // 2))
    assert wire.said[:1] == ["abort"]


async def test_nothing_more_is_read_while_nats_py_does_not_take_what_is_left() -> None:
    sieve, heard, wire, _ = sieving()
    other = message(9, bytes(MAX_LEFT_BYTES // 2))
    for _ in range(4):
        give(sieve, other)
    assert wire.said == ["pause"]
    assert await sieve.left() == other * 4
    assert wire.said == ["pause", "resume"]
    give(sieve, message(7, b"x"))
    assert len(heard) == 1


async def test_what_is_left_is_given_before_the_end_and_the_end_is_told() -> None:
    sieve, _, _, before = sieving()
    give(sieve, b"PING\r\n")
    sieve.pause_writing()
    sieve.resume_writing()
    assert sieve.eof_received() is True
    assert not sieve.is_over
    assert await sieve.left() == b"PING\r\n"
    assert sieve.is_over
    assert await sieve.left() == b""
    sieve.connection_lost(None)
    assert before.said == ["pause", "resume", "eof", None]


async def test_a_connection_that_is_lost_says_why() -> None:
    sieve, _, _, before = sieving()
    error = ConnectionResetError("gone")
    async with anyio.create_task_group() as tasks:

        async def lose() -> None:
            sieve.connection_lost(error)

        tasks.start_soon(lose)
        with pytest.raises(ConnectionResetError):
            await sieve.left()
    assert before.said == [error]


# --- headers ---------------------------------------------------------------------------------------------------------

BLOCKS = [
    b"NATS/1.0\r\n\r\n",
    b"NATS/1.0 404\r\n\r\n",
    b"NATS/1.0 503\r\n\r\n",
    b"NATS/1.0 404 No Messages\r\n\r\n",
    b"NATS/1.0 409 Message Size Exceeds MaxBytes\r\nNats-Pending-Messages: 4\r\nNats-Pending-Bytes: 7\r\n\r\n",
    b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 1016\r\nNats-Last-Stream: 1024\r\n\r\n",
    b"NATS/1.0\r\na: b\r\nc:d\r\n\r\n",
    b"NATS/1.0\r\nname: \xc3\xa4\xff\r\n\xff: x\r\nno colon\r\n\r\n",
]


@pytest.mark.parametrize("block", BLOCKS)
async def test_headers_are_read_as_nats_py_reads_them(block: bytes) -> None:
    theirs = await Client()._process_headers(block)
    assert read_headers(block) == (None if not theirs else {str(getattr(k, "value", k)): v for k, v in theirs.items()})


@given(block=st.binary(max_size=60) | st.binary(max_size=40).map(lambda rest: b"NATS/1.0" + rest))
def test_no_block_of_headers_raises(block: bytes) -> None:
    found = read_headers(block)
    assert found is None or all(isinstance(text, str) for pair in found.items() for text in pair)


# --- a connection ----------------------------------------------------------------------------------------------------


async def test_a_connection_that_is_lost_before_anything_is_read_says_so() -> None:
    """Nobody tells a protocol that comes after."""
    async with await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0) as listener:
        transport = SievedTransport(lambda *_: False)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        await transport.connect(urlsplit(f"nats://127.0.0.1:{port}"), buffer_size=1024, connect_timeout=5)
        assert not transport.is_gone
        assert transport._io_writer is not None
        transport._io_writer.transport._fatal_error(ConnectionResetError("reset"))
        await asyncio.sleep(0)
        assert transport.is_gone
        with anyio.fail_after(10), pytest.raises(ConnectionResetError):
            await transport.read(10)
        await transport.wait_closed()


# --- what it rests on ------------------------------------------------------------------------------------------------


async def test_nats_py_is_as_the_sieve_relies_on() -> None:
    connecting = inspect.getsource(Client._connect_to_server)
    assert "if not self._transport:" in connecting
    assert "await self._transport.connect(" in connecting
    reading = inspect.getsource(Client._read_loop)
    assert "self._transport.at_eof()" in reading
    assert "await self._transport.read(" in reading
    handshake = inspect.getsource(Client._process_connect_init)
    assert handshake.rindex("readline()") < handshake.index("self._read_loop()")
    reader = asyncio.StreamReader()
    assert reader._buffer == bytearray()  # type: ignore[attr-defined]
    assert WatchedClient()._transport is None
