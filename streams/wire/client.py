"""The NATS client as Penstock uses it: one message cannot make the connection deaf.

nats-py reads in one task (`Client._read_loop`), which ends for good, with nothing but a line in its log, on whatever a
message makes it raise: a header block of `\\0\\0\\r\\n\\r\\n`, a subject that is no UTF-8. The connection is deaf
from then on, until three pings have failed a minute later; and a message that is stored comes again and does it again.
Two things mend that:

- what such a message says in its headers and subject is read without raising, so it arrives, without headers, and
  whoever decodes it sets it aside;
- the reading task is watched: should it end otherwise, the client reconnects at once, and after that not more often
  than every RECONNECT_PAUSE_S.

Relied on of nats-py 2.16: `Client._process_headers(headers)` and `Client._build_message(sid, subject, reply, data,
headers)`, called by `_read_loop` for each message; `Client._reading_task`, made anew for each connection before its
callback `reconnected_cb` is called; `Client.force_reconnect()`. `tests/streams/wire/test_client.py` fails where an
upgrade changes one of them.
"""

import asyncio
from typing import Any

import anyio
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from streams.decoding import reason

log = structlog.get_logger(__name__)

RECONNECT_PAUSE_S = 1.0
_USUAL = frozenset({"traceparent", "Penstock-Due", "Nats-Expected-Last-Subject-Sequence"})


def plain_headers(block: bytes) -> dict[str, str] | None:
    """The headers of a block that is as servers and clients write them: a tenth of a hop's time is saved by not looking
    at each character. None for any other, which nats-py is left to read."""
    if not (block.startswith(b"NATS/1.0\r\n") and block.endswith(b"\r\n\r\n") and block.isascii()):
        return None
    found: dict[str, str] = {}
    for line in block[10:-4].decode("ascii").split("\r\n"):
        name, colon, value = line.partition(":")
        if not colon or not (name in _USUAL or name.replace("-", "").isalnum()):
            return None
        found[name] = value.strip()
    return found


class WatchedClient(Client):
    """A client that hears whatever is sent."""

    async def _process_headers(self, headers: Any) -> dict[str, str] | None:
        if not headers:
            return None
        plain = plain_headers(headers)
        if plain is not None:
            return plain
        try:
            found: dict[str, str] | None = await super()._process_headers(headers)
        except Exception as error:
            log.warning("unreadable_headers", error=reason(error))
            return None
        return found

    def _build_message(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: Any) -> Msg:
        try:
            said, answer_to = subject.decode(), reply.decode()
        except UnicodeDecodeError as error:
            log.warning("unreadable_subject", error=reason(error))
            said, answer_to = (part.decode(errors="replace") for part in (subject, reply))
        return Msg(self, said, answer_to, data, headers, _sid=sid)

    async def watch(self) -> None:
        """Until canceled: connect again where the reading has ended and nobody else sees to it."""
        while True:
            reading = self._reading_task
            if reading is not None:
                await asyncio.wait([reading])
            if self.is_closed:
                return
            if self._reading_task is reading and self.is_connected:
                log.error("nats_reading_ended", why="a message that the client cannot read: it connects again")
                await self.force_reconnect()
            await anyio.sleep(RECONNECT_PAUSE_S)
