"""The ledger: write-once records by subject, read back by subject.

Delivery guarantee: `put` returns once the server has stored the record or already had one under that subject; a
retry can never duplicate or overwrite. What has been put is seen by every later read, on whatever connection: reads go
to the leader (where a stream has one replica, a direct get is answered by it).

Records above the payload limit are cut into chunks on subjects named by their stream and content, and read back whole.
"""

import hashlib
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from functools import partial

import msgspec
import nats.errors
import nats.js.errors
import structlog
from nats.js.api import Header

from streams.decoding import shown, whole_number
from streams.errors import LinkError, Malformed, Permanent
from streams.subjects import PREFIX, stream_in
from streams.wire import jetstream
from streams.wire.clock import ServerClock
from streams.wire.jetstream import MAX_SUBJECTS_A_READ
from streams.wire.link import REQUEST_TIMEOUT_S, Link
from streams.wire.publisher import Message, Publisher
from streams.wire.retention import ANSWERS, MEDIA, RESULTS, Retention, configurations
from streams.wire.room import made_to_fit

log = structlog.get_logger(__name__)

EXPECT_EMPTY = {Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: "0"}
WRONG_LAST_SEQUENCE = 10071
BEING_STORED = 10164  # another record, or this very one, is on its way to the replicas: ask again
MAX_PAGES = 2 * MAX_SUBJECTS_A_READ  # of one read, were each record a page of its own
BULK = "Penstock-Bulk"  # header: <stream>.<digest>.<number of chunks>
TRACEPARENT = "traceparent"
DUE = "Penstock-Due"  # header: when what is made of this is worth nothing any more, server's Unix time in nanoseconds
HEADROOM_BYTES = 4096  # for headers, which count towards the limit
PROBE, PROBED = "probe", bytes(8192)  # more than is left of a block of the disk
MAX_INLINE_BYTES = 1024 * 1024 - HEADROOM_BYTES  # below the server's default payload limit, and quick to pass on


class Stored(msgspec.Struct, frozen=True, gc=False):
    """A record as the ledger holds it. `seq` orders all records of one JetStream stream by the time of storing."""

    subject: str
    seq: int
    data: bytes
    traceparent: str = ""
    due_ns: int = 0  # server's Unix time; 0: never


class Noted(msgspec.Struct, frozen=True, gc=False):
    """A record with all its headers and when it was stored (Unix time)."""

    record: Stored
    headers: Mapping[str, str]
    stored_ns: int


class Placed(msgspec.Struct, frozen=True, gc=False):
    """Where a record stands after `put`; `fresh` is false where one stood there before."""

    seq: int
    fresh: bool


class NewRecord(msgspec.Struct, frozen=True, gc=False):
    """A record to put."""

    subject: str
    data: bytes
    traceparent: str = ""
    due_ns: int = 0  # server's Unix time after which what is made of it is worth nothing; 0: never


class Ledger:
    """The write-once record of what every stage owed and delivered. Made by `open_ledger`."""

    def __init__(self, link: Link, streams: Iterable[str], replicated: frozenset[str]) -> None:
        self.link = link
        self.streams = tuple(streams)  # the JetStream streams that hold it
        self.clock = ServerClock(link, MEDIA)  # as good as `clock.run` keeps it
        self._replicated = replicated
        self._publisher = Publisher(link)
        self.max_bytes = link.max_payload_bytes - HEADROOM_BYTES  # of a record in one piece

    # --- writing -------------------------------------------------------------------------------------------

    async def put(self, subject: str, data: bytes, traceparent: str = "", due_ns: int = 0) -> Placed:
        """Store a record where there is none yet."""
        message = await self._message(subject, data, EXPECT_EMPTY, traceparent, due_ns=due_ns)
        seq = await self._publish(message, f"store {subject}")
        return Placed(abs(seq), seq > 0)

    async def put_many(self, records: Sequence[NewRecord]) -> list[Placed]:
        """Store several records, all under way at once; in their order. Not atomic: each is stored or not."""
        messages = [
            await self._message(r.subject, r.data, EXPECT_EMPTY, r.traceparent, due_ns=r.due_ns) for r in records
        ]
        acks = await self._publisher.send(messages, self.link.first_timeout_s)
        placed = []
        for record, ack in zip(records, acks, strict=True):
            if ack is not None and ack.error is None:
                placed.append(Placed(ack.seq, True))
            elif ack is not None and ack.error is not None and ack.error.err_code == WRONG_LAST_SEQUENCE:
                placed.append(Placed(standing_seq(ack.error.description), False))
            else:  # no word, or no: ask again, patiently
                placed.append(await self.put(record.subject, record.data, record.traceparent, record.due_ns))
        return placed

    async def append(
        self,
        subject: str,
        data: bytes,
        after: int,
        traceparent: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> int | None:
        """Add a record to a subject that holds many, behind the one stored there at sequence `after` (0: as the first).
        Whoever listens there gets it whole, up to the server's payload limit. Its sequence; None where another record
        stands behind that one, unless it is this very one: a retry that finds its own work done has done it."""
        expected = {Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: str(after), **(headers or {})}
        message = await self._message(subject, data, expected, traceparent, self.max_bytes)
        seq = await self._publish(message, f"append to {subject}")
        if seq > 0:
            return seq
        standing = await self.get(subject)
        return standing.seq if standing is not None and standing.data == data else None

    async def prove(self, timeout_s: float) -> None:
        """Store a few bytes where media, results and answers are kept, and take them away again. Raises LinkError where
        that is not done in time: a server whose disk is full answers everything else."""
        names = (MEDIA, RESULTS, ANSWERS)
        messages = [Message(f"{PREFIX}.{name.rpartition('_')[2].lower()}.{PROBE}", PROBED, {}) for name in names]
        acks = await self._publisher.send(messages, timeout_s)
        for name, ack in zip(names, acks, strict=True):
            if ack is None or ack.error is not None:
                said = ack.error.description if ack is not None and ack.error is not None else ""
                why = said or f"no word within {timeout_s:g} s: is its disk full?"
                raise LinkError(self.link.trouble() or f"NATS stores nothing in {name}: {why}")
        for name, ack in zip(names, acks, strict=True):
            if ack is not None:
                await self.link.api(f"STREAM.MSG.DELETE.{name}", {"seq": ack.seq, "no_erase": True})

    async def purge(self, pattern: str) -> None:
        """Delete every record whose subject matches."""
        await self.link.api(f"STREAM.PURGE.{stream_of(pattern)}", {"filter": pattern})

    async def _publish(self, message: Message, what: str) -> int:
        """The sequence it was stored at; where another record stood in the way, minus that one's."""

        async def attempt() -> int:
            publish = self.link.jetstream.publish
            try:
                return (await publish(message.subject, message.data, REQUEST_TIMEOUT_S, headers=message.headers)).seq
            except nats.js.errors.APIError as error:
                if error.err_code == BEING_STORED:
                    raise nats.errors.TimeoutError from error
                if error.err_code != WRONG_LAST_SEQUENCE:
                    raise
                return -standing_seq(error.description or "")

        return await self.link.patiently(attempt, what)

    async def _message(
        self,
        subject: str,
        data: bytes,
        headers: dict[str, str],
        traceparent: str,
        max_bytes: int = MAX_INLINE_BYTES,
        due_ns: int = 0,
    ) -> Message:
        headers = headers_for(traceparent, due_ns, headers)
        if len(data) > min(max_bytes, self.max_bytes):
            headers = {**headers, BULK: await self._put_chunks(stream_in(subject) or subject.split(".")[2], data)}
            data = b""
        return Message(subject, data, headers)

    async def _put_chunks(self, owner: str, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()[:40]
        size = min(MAX_INLINE_BYTES, self.max_bytes)
        chunks = [data[start : start + size] for start in range(0, len(data), size)]
        for number, chunk in enumerate(chunks):
            await self.put(f"{PREFIX}.bulk.{owner}.{digest}.{number}", chunk)
        return f"{owner}.{digest}.{len(chunks)}"

    # --- reading -------------------------------------------------------------------------------------------

    async def get(self, subject: str) -> Stored | None:
        """The record at `subject`, the last one where there are several; None where there is none."""
        noted = await self.look(subject)
        return None if noted is None else noted.record

    async def look(self, subject: str) -> Noted | None:
        """As `get`, with what was noted of the record."""
        stream = stream_of(subject)
        if stream in self._replicated:
            return await self._noted(await jetstream.from_leader(self.link, stream, {"last_by_subj": subject}))
        pattern = {"last_by_subj": subject} if subject.endswith("*") else subject
        return await self._noted(await jetstream.direct(self.link, stream, pattern))

    async def get_many(self, subjects: Iterable[str]) -> dict[str, Stored]:
        """The records at `subjects`, those that exist; all of one JetStream stream."""
        wanted = list(dict.fromkeys(subjects))
        found: dict[str, Stored] = {}
        one_by_one = set(wanted) if len(wanted) == 1 else set[str]()
        if not one_by_one:
            for start in range(0, len(wanted), MAX_SUBJECTS_A_READ):
                some = wanted[start : start + MAX_SUBJECTS_A_READ]
                page = await self._read(some)
                found |= page or {}
                one_by_one |= set(some) if page is None else set()
        for subject in wanted:  # single reads, and what a lagging replica did not have yet
            if subject not in found and (subject in one_by_one or stream_of(subject) in self._replicated):
                stored = await self.get(subject)
                if stored is not None:
                    found[subject] = stored
        return found

    async def next(self, filter_subject: str, seq: int) -> Noted | None:
        """The first record stored at `seq` or later whose subject matches. One of which a part is gone has no data: who
        goes through records goes past it."""
        stream = stream_of(filter_subject)
        get = jetstream.from_leader if stream in self._replicated else jetstream.direct
        message = await get(self.link, stream, {"seq": seq, "next_by_subj": filter_subject})
        try:
            return await self._noted(message)
        except Permanent as error:
            if message is None:
                raise
            log.warning("incomplete", subject=message.subject, seq=message.seq, error=str(error))
            return Noted(Stored(message.subject, message.seq, b""), message.headers, message.stored_ns)

    async def every(self, filter_subject: str) -> AsyncIterator[Stored]:
        """The records stored so far whose subject matches, in the order of storing."""
        last = await self.last_seq(filter_subject)
        seq = 0
        while seq < last and (noted := await self.next(filter_subject, seq + 1)) is not None:
            seq = noted.record.seq
            yield noted.record

    async def last_seq(self, filter_subject: str) -> int:
        """The sequence of the record stored last among those whose subject matches; 0 where there is none."""
        stored = await self.get(filter_subject)
        return 0 if stored is None else stored.seq

    async def last_stored(self, stream: str) -> int:
        """The sequence of the record stored last in a JetStream stream."""
        return await jetstream.last_seq(self.link, stream)

    async def subjects(self, filter_subject: str) -> set[str]:
        """Every stored subject that matches."""
        return await jetstream.subjects_of(self.link, stream_of(filter_subject), filter_subject)

    async def whole(self, data: bytes, headers: Mapping[str, str] | None) -> bytes:
        """A record's bytes, put together where it came in chunks. Raises Permanent if a chunk is gone."""
        reference = headers.get(BULK) if headers else None
        if not reference:
            return data
        match = _BULK.fullmatch(reference)
        if match is None:
            raise Permanent(f"a record names its chunks {shown(reference)}: that is no digest and number")
        where, digest, number = match[0].rpartition(".")[0], match[1], int(match[2])
        whole = bytearray()
        for index in range(number):
            chunk = await self._chunk(f"{PREFIX}.bulk.{where}.{index}")
            if chunk is None:
                break
            whole += chunk
        if hashlib.sha256(whole).hexdigest()[:40] != digest:
            raise Permanent(
                f"part of a record of {number} chunks is gone from the ledger ({digest}): it fell out of retention"
            )
        return bytes(whole)

    async def _chunk(self, subject: str) -> bytes | None:
        """A chunk as it stands: one that says it is in chunks itself is none."""
        stream = stream_of(subject)
        if stream in self._replicated:
            message = await jetstream.from_leader(self.link, stream, {"last_by_subj": subject})
        else:
            message = await jetstream.direct(self.link, stream, subject)
        return None if message is None or BULK in message.headers else message.data

    async def _read(self, subjects: Sequence[str]) -> dict[str, Stored] | None:
        """None where they can only be read one by one."""
        stream = stream_of(subjects[0])
        found: dict[str, Stored] = {}
        seq = 1
        for _ in range(MAX_PAGES):
            read = partial(jetstream.page, self.link, stream, subjects, len(subjects), seq)
            async with self.link.paging:
                page = await self.link.patiently(read, f"read from {stream}")
            if page is None:
                return None
            found |= {message.subject: await self._stored(message) for message in page.messages}
            if page.next_seq is None:
                return found
            seq = page.next_seq
        raise LinkError(f"read from {stream}: not all of {len(subjects)} records came in {MAX_PAGES} pages")

    async def _noted(self, message: jetstream.Raw | None) -> Noted | None:
        if message is None:
            return None
        return Noted(await self._stored(message), message.headers, message.stored_ns)

    async def _stored(self, message: jetstream.Raw) -> Stored:
        data = await self.whole(message.data, message.headers)
        headers = message.headers
        return Stored(message.subject, message.seq, data, traceparent_of(headers), due_of(headers))


def headers_for(traceparent: str, due_ns: int, headers: dict[str, str]) -> dict[str, str]:
    """Headers with what is noted of a record."""
    headers = headers.copy()
    if traceparent:
        headers[TRACEPARENT] = traceparent
    if due_ns:
        headers[DUE] = str(due_ns)
    return headers


def traceparent_of(headers: Mapping[str, str] | None) -> str:
    """The trace context a record came with; empty where it has none, or what it has is none: it is handed on with
    everything that is made of the record."""
    said = headers.get(TRACEPARENT, "") if headers else ""
    return said if _TRACEPARENT.fullmatch(said) else ""


def due_of(headers: Mapping[str, str] | None) -> int:
    """When a record is due, as its headers say; 0 where they do not, or not in a way that can be read."""
    said = (headers or {}).get(DUE, "")
    try:
        return whole_number(said) if said else 0
    except Malformed:
        return 0


async def open_ledger(link: Link, retention: Retention | None = None) -> Ledger:
    """The ledger of the server that `link` is connected to; its JetStream streams are made where they are missing, with
    the limits that there is room for. An existing stream keeps its own settings. Raises UserError where there is too
    little room for any."""
    configs = await made_to_fit(link, configurations(link, retention or Retention()))
    names = [config["name"] for config in configs]
    replicated = (c["name"] for c in configs if link.is_clustered or c.get("num_replicas", 1) > 1)  # or may be soon
    return Ledger(link, names, frozenset(replicated))


def chunks_of(reference: str, owner: str) -> tuple[str, int] | None:
    """Where the chunks of a record of a stream are, as a pattern of subjects, and how many; None where the reference is
    none, or names another's: anyone may have written it."""
    match = _BULK.fullmatch(reference)
    where, _, number = reference.rpartition(".")
    return (f"{PREFIX}.bulk.{where}.*", int(number)) if match and where.rpartition(".")[0] in ("", owner) else None


def stream_of(subject: str) -> str:
    """The JetStream stream that keeps a subject."""
    return f"{PREFIX.upper()}_{subject.split('.', 2)[1].upper()}"


_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")  # W3C Trace Context
_BULK = re.compile(r"(?:[A-Za-z0-9_-]{1,128}\.)?([0-9a-f]{40})\.([0-9]{1,9})")  # of older ones nobody is the owner
_WRONG_LAST = re.compile(r"wrong last sequence: (\d+)")


def standing_seq(refusal: str) -> int:
    """The sequence of the record already there, which the refusal tells."""
    match = _WRONG_LAST.search(refusal)
    if match is None:
        raise LinkError(f"the server refused a write-once record without saying why: {refusal!r}")
    return int(match[1])
