"""Publishes to JetStream, many messages under way at once, with one reply subject for all of them.

Delivery guarantee: at least once for what is acknowledged; nothing is known of what is not. A message that gets no word
within the timeout may or may not have been stored: send it again in a way that is safe to repeat.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import anyio
import msgspec
import nats.errors
from nats.aio.msg import Msg

from streams.wire.link import Link


class AckError(msgspec.Struct, frozen=True):
    err_code: int = 0
    description: str = ""


class Ack(msgspec.Struct, frozen=True):
    """What JetStream says of one message: the sequence it was stored at, or why it was not."""

    seq: int = 0
    error: AckError | None = None


_decoder = msgspec.json.Decoder(Ack)


def decode_ack(data: bytes) -> Ack | None:
    """What JetStream said of a message; None where it said nothing that can be read, so that nothing is known."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
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
            await self._client.subscribe(f"{self._inbox}.*.*", cb=self._on_ack)
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

    async def _on_ack(self, message: Msg) -> None:
        _, name, number = message.subject.rsplit(".", 2)
        batch = self._batches.get(name)
        if batch is None or not message.data:  # too late; or nobody is there to store it (503)
            return
        if batch.acks[int(number)] is None:
            batch.acks[int(number)] = decode_ack(message.data)
            batch.num_open -= 1
            if batch.num_open == 0:
                batch.settled.set()
