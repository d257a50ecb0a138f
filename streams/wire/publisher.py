"""Publishes to JetStream, many messages under way at once, with one reply subject for all of them.

Delivery guarantee: at least once for what is acknowledged; nothing is known of what is not. A message that gets no word
within the timeout may or may not have been stored: send it again in a way that is safe to repeat.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import anyio
import msgspec
import nats.errors
import structlog
from nats.aio.msg import Msg

from streams.decoding import decoded, reason, whole_number
from streams.errors import Malformed
from streams.wire.link import Link

log = structlog.get_logger(__name__)


class AckError(msgspec.Struct, frozen=True, gc=False):
    err_code: int = 0
    description: str = ""


class Ack(msgspec.Struct, frozen=True, gc=False):
    """What JetStream says of one message: the sequence it was stored at, or why it was not."""

    seq: int = 0
    error: AckError | None = None


_decoder = msgspec.json.Decoder(Ack)


def decode_ack(data: bytes) -> Ack | None:
    """What JetStream said of a message; None where it said nothing that can be read, so that nothing is known."""
    try:
        return decoded(_decoder, data) if data else None
    except Malformed as error:
        log.warning("unreadable_ack", error=reason(error))
        return None


class Message(msgspec.Struct, frozen=True, gc=False):
    subject: str
    data: bytes
    headers: dict[str, str]


@dataclass(slots=True)
class _Batch:
    acks: list[Ack | None]
    num_open: int
    settled: anyio.Event = field(default_factory=anyio.Event)


class Publisher:
    """Sends batches over one connection."""

    def __init__(self, link: Link) -> None:
        self._client = link.client
        self._inbox = self._client.new_inbox()
        self._batches: dict[str, _Batch] = {}
        self._num_batches = 0
        self._listening = False
        link.on_reconnect(self._give_up)  # answers to what was sent before will not come

    async def send(self, messages: Sequence[Message], timeout_s: float) -> list[Ack | None]:
        """What became of each message, in order; None where no word came in time."""
        if not messages:
            return []
        if not self._listening:
            self._listening = True
            await self._client.hear(f"{self._inbox}.*.*", self._on_ack)
        self._num_batches += 1
        name = str(self._num_batches)
        batch = self._batches[name] = _Batch([None] * len(messages), len(messages))
        try:
            for number, message in enumerate(messages):
                reply = f"{self._inbox}.{name}.{number}"
                await self._client.publish(message.subject, message.data, reply, message.headers)
            with anyio.move_on_after(timeout_s):
                await batch.settled.wait()
        except (nats.errors.Error, OSError):
            pass  # cut off: no word on those that were not sent, nor on those whose answer was lost
        finally:
            del self._batches[name]
        return batch.acks

    def _give_up(self) -> None:
        for batch in self._batches.values():
            batch.settled.set()

    def _on_ack(self, message: Msg) -> None:
        batch, number, ack = self._said(message.subject, message.data)
        if batch is not None and ack is not None and batch.acks[number] is None:
            batch.acks[number] = ack
            batch.num_open -= 1
            if batch.num_open == 0:
                batch.settled.set()

    def _said(self, subject: str, data: bytes) -> tuple[_Batch | None, int, Ack | None]:
        """Of which message of which batch it is said, and what; None where that is too late, where nobody is there to
        store it (503), or where it is no such word: that counts as none."""
        try:
            name, number = subject.rsplit(".", 2)[-2:]
            batch, at = self._batches.get(name), whole_number(number)
        except (Malformed, ValueError) as error:
            log.warning("unreadable_ack", error=reason(error))
            return None, 0, None
        return (batch if batch is not None and at < len(batch.acks) else None), at, decode_ack(data)
