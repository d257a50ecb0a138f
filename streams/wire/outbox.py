"""What a worker sends: write-once records, each with a callback that says what became of it, and words that need none.

Nothing waits for a neighbour: a record leaves when it is handed in, and its callback is called when the server has
answered. Delivery guarantee: as `Ledger.put`. What gets no word, because the server is away or the answer was lost, is
put again, patiently; the callback is called once, however that ends.
"""

from collections import deque
from collections.abc import Callable

import anyio
import anyio.abc
import msgspec
import nats.errors
import structlog
from nats.aio.msg import Msg

from streams.errors import LinkError, PenstockError
from streams.wire.ledger import (
    EXPECT_EMPTY,
    MAX_INLINE_BYTES,
    WRONG_LAST_SEQUENCE,
    Ledger,
    NewRecord,
    Placed,
    headers_for,
    standing_seq,
)
from streams.wire.publisher import decode_ack

log = structlog.get_logger(__name__)

OnPut = Callable[[Placed | PenstockError], None]  # what `Ledger.put` returns or raises


class _Open(msgspec.Struct, eq=False, gc=False):
    """A record that was sent and not answered."""

    record: NewRecord
    on_put: OnPut
    is_old: bool = False  # it was there at the last sweep
    is_asked: bool = False  # it is being put again


class Outbox:
    """Sends over one ledger's connection while `run` does."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._client = ledger.link.client
        self._inbox = self._client.new_inbox()
        self._sent: dict[str, _Open] = {}  # by the last token of the subject to answer on
        self._num_sent = 0
        self._queue: deque[tuple[str, bytes, str, dict[str, str] | None]] = deque()
        self._news = anyio.Event()
        self._tasks: anyio.abc.TaskGroup | None = None
        self._max_bytes = min(MAX_INLINE_BYTES, ledger.max_bytes)

    @property
    def num_open(self) -> int:
        """Records that were handed in and of which nothing is known yet."""
        return len(self._sent)

    def put(self, record: NewRecord, on_put: OnPut) -> None:
        """Store a record where there is none yet."""
        self._num_sent += 1
        number = str(self._num_sent)
        self._sent[number] = _Open(record, on_put)
        if len(record.data) > self._max_bytes:
            self._again(number)
            return
        headers = headers_for(record.traceparent, record.due_ns, EXPECT_EMPTY)
        self._queue.append((record.subject, record.data, f"{self._inbox}.{number}", headers))
        if not self._news.is_set():
            self._news.set()

    def send(self, subject: str, data: bytes, headers: dict[str, str] | None = None) -> None:
        """Core NATS: at most once."""
        self._queue.append((subject, data, "", headers))
        if not self._news.is_set():
            self._news.set()

    async def run(self) -> None:
        """Until canceled."""
        try:
            hearing = await self._client.hear(f"{self._inbox}.*", self._on_ack)
        except (nats.errors.Error, OSError) as error:
            raise LinkError(f"cannot listen to what became of records: {error}") from error
        forget = self._ledger.link.on_reconnect(self._on_reconnect)
        try:
            async with anyio.create_task_group() as self._tasks:
                self._tasks.start_soon(self._sweep)
                for number in [n for n, open in self._sent.items() if len(open.record.data) > self._max_bytes]:
                    self._again(number)
                while True:
                    await self.drained()
                    self._news = anyio.Event()
                    await self._news.wait()
        finally:
            forget()
            await self._ledger.link.unsubscribe(hearing)

    async def drained(self) -> None:
        """Send what is queued now."""
        while self._queue:
            subject, data, reply, headers = self._queue.popleft()
            if self._client.post(subject, data, reply, headers):
                continue
            try:
                await self._client.publish(subject, data, reply, headers)
            except (nats.errors.Error, OSError) as error:
                if reply:
                    self._again(reply.rpartition(".")[2])
                else:
                    log.warning("not_sent", subject=subject, error=str(error))
        await self._client.send_posted()

    # --- answers -----------------------------------------------------------------------------------------------

    def _on_ack(self, message: Msg) -> None:
        number = message.subject.rpartition(".")[2]
        if number not in self._sent:
            return
        ack = decode_ack(message.data)
        if ack is None:  # nobody is there to store it
            self._again(number)
        elif ack.error is None:
            self._tell(number, Placed(ack.seq, True))
        elif ack.error.err_code == WRONG_LAST_SEQUENCE:
            try:
                placed = Placed(standing_seq(ack.error.description), False)
            except PenstockError:
                self._again(number)
            else:
                self._tell(number, placed)
        else:
            self._again(number)

    def _tell(self, number: str, what: Placed | PenstockError) -> None:
        open = self._sent.pop(number, None)
        if open is None:
            return
        try:
            open.on_put(what)
        except Exception as error:  # of whoever handed it in; the other records are nothing to it
            log.error("not_taken", exc_info=error)

    def _again(self, number: str) -> None:
        """Ask again, patiently."""
        open = self._sent.get(number)
        if self._tasks is not None and open is not None and not open.is_asked:
            self._tasks.start_soon(self._put, number, open.record)
            open.is_asked = True

    async def _put(self, number: str, record: NewRecord) -> None:
        try:
            placed = await self._ledger.put(record.subject, record.data, record.traceparent, record.due_ns)
        except PenstockError as error:
            self._tell(number, error)
        else:
            self._tell(number, placed)

    def _on_reconnect(self) -> None:
        """Answers to what was sent before will not come."""
        for number in list(self._sent):
            self._again(number)

    async def _sweep(self) -> None:
        """What had no word for a whole timeout is put again."""
        while True:
            await anyio.sleep(self._ledger.link.first_timeout_s)
            for number, open in list(self._sent.items()):
                if open.is_old:
                    self._again(number)
                open.is_old = True
