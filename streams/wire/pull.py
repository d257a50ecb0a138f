"""A durable consumer that takes only what there is room for.

Credit is what has been asked for and has neither come nor expired. `take(room)` asks only for room that is not already
covered by credit, so what is under way never exceeds the room there was: nothing is prefetched, and another worker can
have what this one cannot start. Nor is more asked for at once than so many bytes, or the server would close the
connection (`jetstream.page` says why).

Delivery guarantee: at least once. A message that is not acknowledged within `ack_wait_s` of its delivery or its last
sign of progress comes again, here or elsewhere.
"""

import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import anyio
import msgspec
import structlog
from nats.aio.msg import Msg

from streams.decoding import shown, whole_number
from streams.errors import LinkError, Malformed
from streams.wire.client import Hearing
from streams.wire.ledger import MAX_INLINE_BYTES, Ledger, due_of, traceparent_of
from streams.wire.link import Link, Refused

log = structlog.get_logger(__name__)

EXPIRES_S = 5.0
HEARTBEAT_S = 1.0  # in a cluster
OWED_S = 1.0  # without a message, where the last one said that there are more
STARTS_ELSEWHERE = {10012, 10148}  # made by another in the meantime, or with another starting point
MAX_ASKED_BYTES, MIN_ASKED_BYTES = 32 << 20, 2 << 20  # on a connection, by all its consumers; by one of many
SPENT = ("Message Size Exceeds MaxBytes", "Batch Completed")  # how a request ends that bounds the bytes
INACTIVE_S = 3600.0  # the server forgets a consumer that nobody asks of for this long; it starts over when made again


_NUMBERS = r"[^.]+\.[^.]+\.(\d{1,18})\.(\d{1,18})\.\d{1,18}\.([0-8]?\d{1,18})\.(\d{1,18})"  # after stream and consumer
_SHORT = re.compile(rf"\$JS\.ACK\.{_NUMBERS}", re.ASCII)
_LONG = re.compile(rf"\$JS\.ACK\.[^.]+\.[^.]+\.{_NUMBERS}(?:\.[^.]*)?", re.ASCII)

# What is said of a message, on its `reply` subject. Lost words only cause a redelivery.
DONE, PROGRESS = b"+ACK", b"+WPI"


def again(delay_s: float) -> bytes:
    """Have it brought again, here or elsewhere, after a delay."""
    return b'-NAK {"delay": %d}' % int(delay_s * 1e9)


class Arrival(msgspec.Struct, eq=False, gc=False):
    """A message that was delivered and is not yet acknowledged."""

    subject: str
    data: bytes
    seq: int
    num_delivered: int
    reply: str
    traceparent: str
    arrived_ns: int  # Unix time
    stored_ns: int  # Unix time of the server
    num_pending: int = 0  # messages behind it that the server holds for the consumer
    due_ns: int = 0  # Unix time of the server; 0: never
    headers: dict[str, str] | None = None


class Pull:
    """Messages of one durable consumer, taken into free slots, between `open` and `close`."""

    def __init__(
        self,
        link: Link,
        stream: str,
        durable: str,
        filters: Sequence[str],
        ack_wait_s: float,
        start_seq: int = 1,
        start_again: Callable[[], Awaitable[int]] | None = None,
    ) -> None:
        """`start_again` says where one that is lost begins when it is made again; without it, where this one did."""
        self._link = link
        self._stream = stream
        self._durable = durable
        self._filters = list(filters)
        self._ack_wait_s = ack_wait_s
        self._start_seq = start_seq
        self._start_again = start_again
        self._arrived: deque[Arrival] = deque()
        self._news = anyio.Event()
        self._credit = 0
        self._is_large = False  # the next message has more bytes than may be asked for: it comes alone
        self._doubtful = False  # the consumer or our requests to it may be gone
        self._is_owed = False  # there is more, by the last message
        self._made: Any = None  # when the stream was, as the server says
        self._inbox = link.client.new_inbox()
        self._hearing: Hearing | None = None
        self._is_closed = False
        self._forget = link.on_reconnect(self._on_doubt)

    async def open(self) -> None:
        """Make the consumer where it is missing and start listening."""
        await self._create()
        self._hearing = await self._link.client.hear(self._inbox, self._on_message)
        self._link.num_pulls += 1

    async def close(self) -> None:
        """Whether or not it was opened; a second time it does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        self._forget()
        if self._hearing is not None:
            self._link.num_pulls -= 1
            await self._link.unsubscribe(self._hearing)

    async def delete(self) -> None:
        """Close it, and take the consumer away, if it is there."""
        await self.close()
        with suppress(Refused):
            await self._link.api(f"CONSUMER.DELETE.{self._stream}.{self._durable}")

    @property
    def waiting(self) -> list[Arrival]:
        """What has come and was not taken yet."""
        return list(self._arrived)

    async def take(self, room: int) -> list[Arrival]:
        """Up to `room` messages, at least one: waits for it for as long as it takes."""
        while not self._arrived:
            self._news = anyio.Event()  # before anything is waited for, or what is heard meanwhile is no news
            if self._doubtful:
                self._doubtful, self._credit = False, 0
                await self._create()
            if room > self._credit and self._credit <= room // 2:  # or a request would be made for each few that come
                await self._ask(room - self._credit)
            with anyio.move_on_after(self._patience_s()) as silence:
                await self._news.wait()
            if silence.cancelled_caught and (not self._is_owed or await self._is_pending()):
                self._on_doubt()
            self._is_owed = self._is_owed and not silence.cancelled_caught
        return [self._arrived.popleft() for _ in range(min(room, len(self._arrived)))]

    async def _is_pending(self) -> bool:
        """Whether the server still has something for the consumer: another worker may have taken what was owed."""
        try:
            info = await self._link.api(f"CONSUMER.INFO.{self._stream}.{self._durable}")
        except Refused:
            return True  # it is gone, which is doubt enough
        return bool(info.get("num_pending"))

    def _patience_s(self) -> float:
        """For how long there may be not even a word that our request expired. A request whose bytes are used up exactly
        ends without one, so where something is owed a second of silence is enough."""
        if self._is_owed:
            return OWED_S
        return 2.5 * HEARTBEAT_S if self._link.is_clustered else EXPIRES_S + 2

    async def _ask(self, num: int) -> None:
        num = 1 if self._is_large else num
        self._is_large = False
        wanted = {"batch": num, "expires": int(EXPIRES_S * 1e9)}
        max_bytes = max(MIN_ASKED_BYTES, MAX_ASKED_BYTES // max(1, self._link.num_pulls))
        if num > 1 and num * MAX_INLINE_BYTES > max_bytes:
            wanted["max_bytes"] = max_bytes
        if self._link.is_clustered:  # a leader that has died says nothing
            wanted["idle_heartbeat"] = int(HEARTBEAT_S * 1e9)
        request = msgspec.json.encode(wanted)
        self._credit += num
        try:
            await self._link.publish(f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._durable}", request, self._inbox)
        except LinkError as error:
            self._credit -= num
            log.warning("pull_refused", consumer=self._durable, error=str(error))
            await anyio.sleep(0.2)

    def _on_message(self, message: Msg) -> None:
        headers = message.headers
        status = (headers or {}).get("Status", "") if not message.reply else None  # else a record, whatever it says
        if status is None:
            try:
                delivered, seq, stored_ns, num_pending = delivery(message.reply)
            except Malformed as error:  # somebody else's message, on our own subject
                log.warning("not_delivered_by_the_consumer", consumer=self._durable, error=str(error))
                return
            trace = traceparent_of(headers)
            now_ns = time.time_ns()
            self._arrived.append(
                Arrival(
                    message.subject,
                    message.data,
                    seq,
                    delivered,
                    message.reply,
                    trace,
                    now_ns,
                    stored_ns,
                    num_pending,
                    due_of(headers),
                    headers,
                )
            )
            self._credit = max(0, self._credit - 1)
            self._is_owed = num_pending > 0
        elif status == "408" or (status == "409" and (headers or {}).get("Description") in SPENT):
            num_expired = _num_expired(headers or {})
            self._credit = max(0, self._credit - num_expired)
            self._is_large = status == "409" and num_expired > 0 and not self._arrived
        elif status != "100":
            log.info("pull_status", consumer=self._durable, status=status, said=(headers or {}).get("Description", ""))
            self._doubtful = True
        self._news.set()

    def _on_doubt(self) -> None:
        self._doubtful = True
        self._news.set()

    async def _create(self) -> None:
        """Where another worker has made it already, its starting point holds. In a stream that was made anew since this
        was opened it starts at the beginning."""
        if self._made is not None:
            with suppress(Refused):
                await self._link.api(f"CONSUMER.INFO.{self._stream}.{self._durable}")
                return
            log.warning("consumer_lost", consumer=self._durable)
            if self._start_again is not None:
                self._start_seq = await self._start_again()
        made = (await self._link.api(f"STREAM.INFO.{self._stream}")).get("created")
        if self._made not in (None, made):
            log.warning("stream_made_anew", stream=self._stream, consumer=self._durable)
            self._start_seq = 1
        self._made = made
        config = {
            "durable_name": self._durable,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": max(1, self._start_seq),
            "ack_policy": "explicit",
            "ack_wait": int(self._ack_wait_s * 1e9),
            "max_ack_pending": 65536,
            "max_waiting": 4096,
            "inactive_threshold": int(INACTIVE_S * 1e9),
            "filter_subjects": self._filters,
        }
        request = {"stream_name": self._stream, "config": config, "action": "create"}  # and never another's updated
        try:
            await self._link.api(f"CONSUMER.DURABLE.CREATE.{self._stream}.{self._durable}", request)
        except Refused as error:
            if error.code not in STARTS_ELSEWHERE:
                raise


def delivery(reply: str) -> tuple[int, int, int, int]:
    """Which delivery of which record it is, when that was stored (Unix time, ns) and how many are pending behind it, by
    the subject to acknowledge on:
    `$JS.ACK.<stream>.<consumer>.<delivered>.<seq>.<consumer seq>.<stored>.<pending>`, with domain and account before
    the stream by newer servers. Raises Malformed for what is none."""
    said = _SHORT.fullmatch(reply) or _LONG.fullmatch(reply)
    if said is None:
        raise Malformed(f"{shown(reply)} is no subject to acknowledge on")
    delivered, seq, stored_ns, num_pending = said.groups()
    return int(delivered), int(seq), int(stored_ns), int(num_pending)


def _num_expired(headers: Mapping[str, str]) -> int:
    try:
        return whole_number(headers.get("Nats-Pending-Messages", "1"))
    except Malformed:
        return 1


class Acks:
    """Says what became of messages, for those who wait until it is sent."""

    def __init__(self, ledger: Ledger) -> None:
        self._link = ledger.link

    async def done(self, arrival: Arrival) -> None:
        await self._link.publish(arrival.reply, DONE)

    async def progress(self, arrival: Arrival) -> None:
        await self._link.publish(arrival.reply, PROGRESS)

    async def again(self, arrival: Arrival, delay_s: float) -> None:
        await self._link.publish(arrival.reply, again(delay_s))
