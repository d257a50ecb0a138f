"""Intake: media bytes that clients send on `penstock.ingest.<stream>`, as a stream.

A client cuts the bytes of any streamable container wherever it likes and sends the pieces in order; an empty message is
the end. A piece sent as a request is answered when it is taken into memory, so a client that waits for each answer is
held back as the stream is. With the header OFFSET (bytes sent before this piece) it may be sent again: what was taken
is passed over. The end is answered when all is stored, with the number of segments, or with what was wrong.

Delivery guarantee: what the node that feeds the stream has taken is stored as long as that node lives; when it dies,
what it held in memory is lost, and a gap follows. Pieces that are only published are taken while there is room for
MAX_WAITING_BYTES; a sender that outruns that is cut off: what it sends is dropped up to its end, and a gap follows. One
that says nothing for SILENCE_S, or for as long as its live stream may lag, has gone: the stream stays open and goes on
behind a gap, which a live stream has at once. One node takes a stream's pieces, the one that holds its lease; the
others pass them over.
"""

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.abc
import msgspec
import structlog

from engine.node.feeding import Resume, Source, Tell, feed, lease_of
from engine.run import conventions as names
from engine.run.registry import Registry
from engine.run.telemetry import Telemetry
from engine.spec.stream import Policy, StreamSpec, checked
from streams import subjects
from streams.decoding import converted, seconds, shown, whole_number
from streams.errors import LinkError, Malformed, PenstockError, UserError, first_error
from streams.media.pipe import Pipe, PipeClosed
from streams.media.sources import read_bytes
from streams.records import EndOfStream, Gap, MediaMessage, Segment
from streams.wire.lease import holder_of
from streams.wire.ledger import Ledger, traceparent_of
from streams.wire.service import ERROR

log = structlog.get_logger(__name__)

MAX_WAITING_BYTES = 64 << 20
LOOK_S = 1.0  # how often a node without the lease looks who has it
SILENCE_S = 30.0  # after which a sender that said nothing has gone
POLICY, SEGMENT, MAX_LAG = "Penstock-Policy", "Penstock-Segment", "Penstock-Max-Lag"  # of the first piece
OFFSET = "Penstock-Offset"


class Taken(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer to a piece: the bytes taken so far; to the end: the segments; or what was wrong."""

    offset: int | None = None
    num_segments: int | None = None
    error: str = ""


@dataclass(slots=True)
class _Sender:
    """What one stream's sender has sent and is not yet read."""

    pipe: Pipe
    spec: StreamSpec
    waiting: deque[Any] = field(default_factory=deque)
    num_bytes: int = 0
    next_offset: int | None = None  # of the piece that is due
    news: anyio.Event = field(default_factory=anyio.Event)
    is_ours: anyio.Event = field(default_factory=anyio.Event)  # this node holds the stream's lease
    stop: threading.Event = field(default_factory=threading.Event)
    end: Any = None  # the message that ended it
    is_outrun: bool = False
    num_pieces: int = 0  # taken
    parent: str = ""  # the sender's own span, if it says so
    is_gone: bool = False

    @property
    def silence_s(self) -> float:
        """After which it has gone."""
        return max(SILENCE_S, self.spec.max_lag_s) if self.spec.policy == "live" else SILENCE_S

    def let_go(self) -> None:
        """Of what has come and is another node's to take."""
        self.waiting.clear()
        self.num_bytes = 0

    def due_part(self, message: Any) -> bytes:
        """What of a piece was not taken yet. Raises UserError where pieces before it are missing."""
        data: bytes = message.data
        said = (message.headers or {}).get(OFFSET)
        try:
            offset = whole_number(said) if said else self.next_offset
        except Malformed as error:
            raise UserError(f"{OFFSET}: {error}: give the bytes sent before this piece") from error
        if self.next_offset is None or offset is None:
            self.next_offset = offset or 0
            offset = self.next_offset
        if offset > self.next_offset:
            raise UserError(f"a piece at {offset} while {self.next_offset} is due: send what is missing")
        return data[self.next_offset - offset :]


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
            tasks.start_soon(self._answer_unless_elsewhere, message, stream)  # the end of what has ended
            return
        if sender is None:
            try:
                spec = _spec_of(stream, message.headers or {})
            except UserError as error:
                tasks.start_soon(self._answer, message, Taken(error=str(error)))
                return
            sender = self._senders[stream] = _Sender(
                Pipe(subjects.ingest(stream)), spec, parent=traceparent_of(message.headers)
            )
            tasks.start_soon(self._serve, sender)
        if sender.is_outrun or sender.num_bytes > MAX_WAITING_BYTES:
            if not sender.is_outrun:
                log.warning("sender_outran_its_stream", stream=stream, waiting_bytes=sender.num_bytes)
                sender.is_outrun = True
                sender.stop.set()
            refused = Taken(error=f"sent faster than {stream} takes it: wait for the answer to each piece")
            tasks.start_soon(self._answer, message, refused)
            return
        sender.num_bytes += len(message.data)
        sender.waiting.append(message)
        sender.news.set()

    async def _serve(self, sender: _Sender) -> None:
        """Feed the stream from what is sent, until the sender has ended or gone."""
        stream = sender.spec.name
        outcome = Taken(error=f"stream {stream!r} has ended: send to another name")
        last = outcome
        has_failed = False
        told = {**names.messaging("process", names.INGEST), names.STREAM: stream}
        span = self._traces.span(names.RECEIVE_MEDIA, sender.parent, kind="consumer", attributes=told)
        try:
            end = await self._feed(sender, span.traceparent)
            if end is not None:
                last = Taken(offset=sender.next_offset, num_segments=end.num_segments)
        except Exception as error:  # of this sender; the others go on
            cause = first_error(error)
            is_ours = isinstance(cause, PenstockError)
            log.warning("intake_failed", stream=stream, error=str(cause), exc_info=not is_ours and cause)
            line = str(cause) if is_ours else "internal error: the log of the node that took it has it"
            outcome = last = Taken(error=line)
            has_failed = True
        finally:
            del self._senders[stream]
        if sender.is_ours.is_set() or has_failed:  # only who held the lease can have failed
            taken = {names.NUM_PIECES: sender.num_pieces, names.NUM_BYTES: sender.next_offset or 0}
            span.end(None, taken, error=last.error)
            for message in [sender.end] * (sender.end is not None) + list(sender.waiting):
                await self._answer(message, outcome if message.data else last)

    async def _feed(self, sender: _Sender, parent: str) -> EndOfStream | None:
        standing = await self._registry.stream(sender.spec.name)
        if standing is None:
            await self._registry.declare(sender.spec)
        spec = sender.spec = standing or sender.spec
        end: list[EndOfStream | None] = [None]

        def on_held(stop: threading.Event) -> None:
            sender.stop = stop
            sender.is_ours.set()

        def read_on(resume: Resume, stop: threading.Event, tell: Tell) -> Iterator[MediaMessage]:
            index = resume.next_index
            for record in read_bytes(
                sender.pipe,
                spec.name,
                target_s=spec.segment_s,
                first_index=resume.next_index,
                start_ns=resume.start_ns,
                live=spec.policy == "live",
                transcode_gop_s=spec.gop_s,
                stop=stop,
            ):
                index += isinstance(record, Segment)
                yield record
            if sender.is_gone and spec.policy == "live" and index:
                detail = f"the sender said nothing for {sender.silence_s:g} s"
                yield Gap("media", stream=spec.name, first=index, last=index, cause="source_lost", detail=detail)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._pass_on, sender, tasks.cancel_scope)
            source = Source(read=read_on, goes_on=True, waits=spec.policy == "durable")
            end[0] = await feed(
                self._registry, self._ledger, spec, source, self._node, self._traces, parent=parent, on_held=on_held
            )
            tasks.cancel_scope.cancel()
        return end[0]

    async def _pass_on(self, sender: _Sender, scope: anyio.CancelScope) -> None:
        """Pieces into the pipe, each answered when it is in; while another node takes them, out of the way."""
        while not sender.is_ours.is_set():
            with anyio.move_on_after(LOOK_S):
                await sender.is_ours.wait()
            if await holder_of(self._registry.leases, lease_of(sender.spec.name)) not in (None, self._node):
                if not sender.waiting:
                    scope.cancel()
                    return
                sender.let_go()
        while sender.end is None:
            if not sender.waiting:
                sender.news = anyio.Event()
                with anyio.move_on_after(sender.silence_s) as silence:
                    await sender.news.wait()
                if silence.cancelled_caught:
                    log.warning("sender_gone", stream=sender.spec.name, silent_s=sender.silence_s)
                    sender.is_gone = True
                    sender.stop.set()  # what was gathered is stored; the stream stays open
                    return
            message = sender.waiting.popleft()
            sender.num_bytes -= len(message.data)
            try:
                part = sender.due_part(message)
                if not message.data:
                    sender.end = message
                    sender.pipe.close()
                    return
                if part:
                    await sender.pipe.put(part)
            except UserError as error:
                await self._answer(message, Taken(offset=sender.next_offset, error=str(error)))
                continue
            except PipeClosed as error:
                await self._answer(message, Taken(error=str(error)))
                return
            sender.next_offset = (sender.next_offset or 0) + len(part)
            sender.num_pieces += 1
            await self._answer(message, Taken(offset=sender.next_offset))

    async def _answer_unless_elsewhere(self, message: Any, stream: str) -> None:
        try:
            holder = await holder_of(self._registry.leases, lease_of(subjects.token(stream)))
        except PenstockError as error:  # a name that no stream can have, or nobody knows who reads it
            await self._answer(message, Taken(error=str(error)))
            return
        if holder in (None, self._node):
            await self._answer(message, Taken())

    async def _answer(self, message: Any, said: Taken) -> None:
        if not message.reply:
            return
        headers = {ERROR: " ".join(said.error.split())} if said.error else None
        try:
            await self._ledger.link.publish(message.reply, msgspec.json.encode(said), headers=headers)
        except LinkError as failure:
            log.warning("not_answered", subject=message.subject, error=str(failure))


def _spec_of(stream: str, headers: dict[str, str]) -> StreamSpec:
    """How a stream that comes by itself wants to be treated. Raises UserError with what would be right."""
    policy, segment, max_lag = headers.get(POLICY, "durable"), headers.get(SEGMENT, "5"), headers.get(MAX_LAG, "10")
    try:
        wanted: Policy = converted(policy, Policy)
        segment_s, max_lag_s = seconds(segment), seconds(max_lag)
    except Malformed:
        raise UserError(
            f"{POLICY}: {shown(policy)}, {SEGMENT}: {shown(segment)}, {MAX_LAG}: {shown(max_lag)}: "
            "give live or durable, and seconds"
        ) from None
    return checked(StreamSpec(name=subjects.token(stream), policy=wanted, segment_s=segment_s, max_lag_s=max_lag_s))
