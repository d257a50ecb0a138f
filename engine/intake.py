"""Intake: media bytes that clients send on `penstock.ingest.<stream>`, as a stream.

A client cuts the bytes of any streamable container wherever it likes and sends the pieces in order; an empty message is
the end. Delivery guarantee: a piece sent as a request is answered once it is taken, in order, so a client that waits
for each answer loses nothing and is held back as the stream is. Pieces that are only published are taken as long as
there is room for MAX_WAITING_BYTES; beyond that the sender has outrun its stream: it is told in the log, its bytes are
dropped until the next empty message, and a gap follows. One node takes a stream's pieces, the one that holds its lease;
the others pass them over.
"""

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.abc
import msgspec
import structlog

from engine.feeding import Resume, Source, feed, lease_of
from engine.registry import Policy, Registry, StreamSpec
from engine.telemetry import Telemetry
from streams import subjects
from streams.errors import LinkError, PenstockError, UserError, first_error
from streams.lease import holder_of
from streams.ledger import Ledger
from streams.pipe import Pipe, PipeClosed
from streams.sources import read_bytes

log = structlog.get_logger(__name__)

MAX_WAITING_BYTES = 64 << 20
LOOK_S = 1.0  # how often a node without the lease looks who has it
SILENCE_S = 30.0  # after which a sender that said nothing has gone
POLICY, SEGMENT = "Penstock-Policy", "Penstock-Segment"  # headers of the first piece: live or durable, seconds


@dataclass(slots=True)
class _Sender:
    """What one stream's sender has sent and is not yet read."""

    pipe: Pipe
    spec: StreamSpec
    waiting: deque[Any] = field(default_factory=deque)
    num_bytes: int = 0
    news: anyio.Event = field(default_factory=anyio.Event)
    is_ours: anyio.Event = field(default_factory=anyio.Event)  # this node holds the stream's lease
    is_outrun: bool = False

    def let_go(self) -> None:
        """Of what has come and is another node's to take."""
        self.waiting.clear()
        self.num_bytes = 0


class Intake:
    """Made for one node."""

    def __init__(self, registry: Registry, ledger: Ledger, traces: Telemetry, node: str) -> None:
        self._registry = registry
        self._ledger = ledger
        self._traces = traces
        self._node = node
        self._senders: dict[str, _Sender] = {}

    async def run(self) -> None:
        """Until canceled."""
        async with anyio.create_task_group() as tasks:

            async def on_message(message: Any) -> None:
                self._take(message, tasks)

            watch = await self._ledger.link.subscribe(subjects.ingest("*"), on_message)
            try:
                await anyio.sleep_forever()
            finally:
                await self._ledger.link.unsubscribe(watch)

    def _take(self, message: Any, tasks: anyio.abc.TaskGroup) -> None:
        stream = message.subject.rpartition(".")[2]
        sender = self._senders.get(stream)
        if sender is None and not message.data:
            tasks.start_soon(self._answer, message)  # the end of what has ended
            return
        if sender is None:
            try:
                spec = _spec_of(stream, message.headers or {})
            except UserError as error:
                log.warning("not_taken", subject=message.subject, error=str(error))
                tasks.start_soon(self._answer, message, str(error))
                return
            sender = self._senders[stream] = _Sender(Pipe(subjects.ingest(stream)), spec)
            tasks.start_soon(self._serve, sender)
        if sender.is_outrun or sender.num_bytes > MAX_WAITING_BYTES:
            sender.is_outrun = True
            log.warning("sender_outran_its_stream", stream=stream, waiting_bytes=sender.num_bytes)
            return
        sender.num_bytes += len(message.data)
        sender.waiting.append(message)
        sender.news.set()

    async def _serve(self, sender: _Sender) -> None:
        """Feed the stream from what is sent, until the sender has ended or gone."""
        stream = sender.spec.name
        try:
            await self._feed(sender)
        except (PenstockError, ExceptionGroup) as error:
            cause = first_error(error)
            if not isinstance(cause, PenstockError):
                raise
            log.warning("intake_failed", stream=stream, error=str(cause))
            for message in sender.waiting:
                await self._answer(message, str(cause))
        finally:
            del self._senders[stream]

    async def _feed(self, sender: _Sender) -> None:
        standing = await self._registry.stream(sender.spec.name)
        if standing is None:
            await self._registry.declare(sender.spec)
        spec = sender.spec = standing or sender.spec

        def read_on(resume: Resume, stop: threading.Event) -> Any:
            sender.is_ours.set()
            return read_bytes(
                sender.pipe,
                spec.name,
                target_s=spec.segment_s,
                first_index=resume.next_index,
                start_ns=resume.start_ns,
                live=spec.policy == "live",
                transcode_gop_s=spec.gop_s,
                stop=stop,
            )

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._pass_on, sender)
            source = Source(read=read_on, goes_on=True, waits=spec.policy == "durable")
            await feed(self._registry, self._ledger, spec, source, self._node, self._traces)
            tasks.cancel_scope.cancel()

    async def _pass_on(self, sender: _Sender) -> None:
        """Pieces into the pipe, each answered when it is in; while another node takes them, out of the way."""
        while not sender.is_ours.is_set():
            with anyio.move_on_after(LOOK_S):
                await sender.is_ours.wait()
            if await holder_of(self._registry.leases, lease_of(sender.spec.name)) not in (None, self._node):
                if not sender.waiting:
                    sender.pipe.give_up("another node takes them")
                    return
                sender.let_go()
        while True:
            if not sender.waiting:
                sender.news = anyio.Event()
                with anyio.move_on_after(SILENCE_S) as silence:
                    await sender.news.wait()
                if silence.cancelled_caught:
                    log.warning("sender_gone", stream=sender.spec.name, silent_s=SILENCE_S)
                    sender.pipe.give_up(f"nothing came for {SILENCE_S:.0f} s")
                    return
            message = sender.waiting.popleft()
            try:
                if message.data:
                    await sender.pipe.put(message.data)
                else:
                    sender.pipe.close()
            except PipeClosed as error:
                await self._answer(message, str(error))
                return
            sender.num_bytes -= len(message.data)
            await self._answer(message)
            if not message.data:
                return

    async def _answer(self, message: Any, error: str = "") -> None:
        if message.reply:
            try:
                await self._ledger.link.publish(message.reply, msgspec.json.encode({"error": error} if error else {}))
            except LinkError as failure:
                log.warning("not_answered", subject=message.subject, error=str(failure))


def _spec_of(stream: str, headers: dict[str, str]) -> StreamSpec:
    """How a stream that comes by itself wants to be treated. Raises UserError with what would be right."""
    policy, segment = headers.get(POLICY, "durable"), headers.get(SEGMENT, "5")
    try:
        wanted: Policy = msgspec.convert(policy, Policy)
        segment_s = float(segment.removesuffix("s"))
    except (msgspec.ValidationError, ValueError):
        raise UserError(f"{POLICY}: {policy!r}, {SEGMENT}: {segment!r}: give live or durable, and seconds") from None
    if not 0.2 <= segment_s <= 60:
        raise UserError(f"{SEGMENT}: {segment!r}: give between 0.2 and 60 seconds")
    return StreamSpec(name=subjects.token(stream), policy=wanted, segment_s=segment_s)
