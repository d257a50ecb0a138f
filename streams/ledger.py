"""The ledger: write-once records by subject, read back by subject.

Delivery guarantee: `put` returns once the server has stored the record or already had one under that subject; a
retry can never duplicate or overwrite. What has been put is seen by every later read, on whatever connection: reads go
to the leader (where a stream has one replica, a direct get is answered by it).

Records above the payload limit are cut into chunks on subjects named by their content, and read back whole.
"""

import hashlib
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import anyio
import msgspec
import nats.errors
import nats.js.errors
import structlog
from nats.aio.msg import Msg
from nats.js.api import Header

from streams.errors import LinkError, Permanent
from streams.link import REQUEST_TIMEOUT_S, Link, Refused
from streams.publisher import Message, Publisher
from streams.subjects import PREFIX

log = structlog.get_logger(__name__)

EXPECT_EMPTY = {Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: "0"}
WRONG_LAST_SEQUENCE, NO_MESSAGE, NAME_IN_USE = 10071, 10037, 10058
MEDIA, RESULTS, ANSWERS = (f"{PREFIX.upper()}_{kind}" for kind in ("MEDIA", "RESULTS", "ANSWERS"))
BULK = "Penstock-Bulk"  # header: <digest>.<number of chunks>
TRACEPARENT = "traceparent"
MAX_INLINE_BYTES = 1024 * 1024  # the server's default payload limit, and quick to pass on
HEADROOM_BYTES = 4096  # for headers, which count towards the limit
MAX_SUBJECTS_A_READ = 128
SUBJECTS_A_PAGE = 100_000


class Retention(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long the ledger keeps what it holds; the oldest goes first."""

    max_age_s: float = 7 * 24 * 3600.0
    max_media_bytes: int = 16 * 1024**3
    max_results_bytes: int = 4 * 1024**3
    num_replicas: int = 1


class Stored(msgspec.Struct, frozen=True, gc=False):
    """A record as the ledger holds it. `seq` orders all records of one JetStream stream by the time of storing."""

    subject: str
    seq: int
    data: bytes
    traceparent: str = ""


class Noted(msgspec.Struct, frozen=True, gc=False):
    """A record with all its headers and when it was stored (Unix time)."""

    record: Stored
    headers: dict[str, str]
    stored_ns: int


class Placed(msgspec.Struct, frozen=True, gc=False):
    """Where a record stands after `put`; `fresh` is false where one stood there before."""

    seq: int
    fresh: bool


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A record to put."""

    subject: str
    data: bytes
    traceparent: str = ""


class Ledger:
    """The write-once record of what every stage owed and delivered. Made by `open_ledger`."""

    def __init__(self, link: Link, replicated: frozenset[str]) -> None:
        self.link = link
        self._replicated = replicated
        self._publisher = Publisher(link)
        self._max_inline_bytes = min(MAX_INLINE_BYTES, link.max_payload_bytes) - HEADROOM_BYTES

    # --- writing -------------------------------------------------------------------------------------------

    async def put(self, subject: str, data: bytes, traceparent: str = "") -> Placed:
        """Store a record where there is none yet."""
        message = await self._message(Entry(subject, data, traceparent))
        seq = await self._publish(message, f"store {subject}")
        return Placed(abs(seq), seq > 0)

    async def put_many(self, entries: Sequence[Entry]) -> list[Placed]:
        """Store several records, all under way at once; in their order. Not atomic: each is stored or not."""
        messages = [await self._message(entry) for entry in entries]
        acks = await self._publisher.send(messages, REQUEST_TIMEOUT_S)
        placed = []
        for entry, ack in zip(entries, acks, strict=True):
            if ack is not None and ack.error is None:
                placed.append(Placed(ack.seq, True))
            elif ack is not None and ack.error is not None and ack.error.err_code == WRONG_LAST_SEQUENCE:
                placed.append(Placed(_standing_seq(ack.error.description), False))
            else:  # no word, or no: ask again, patiently
                placed.append(await self.put(entry.subject, entry.data, entry.traceparent))
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
        Its sequence; None where another record stands behind that one, unless it is this very one: a retry that finds
        its own work done has done it."""
        expected = {Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: str(after), **(headers or {})}
        if traceparent:
            expected[TRACEPARENT] = traceparent
        seq = await self._publish(Message(subject, data, expected), f"append to {subject}")
        if seq > 0:
            return seq
        standing = await self.get(subject)
        return standing.seq if standing is not None and standing.data == data else None

    async def _publish(self, message: Message, what: str) -> int:
        """The sequence it was stored at; where another record stood in the way, minus that one's."""

        async def attempt() -> int:
            publish = self.link.jetstream.publish
            try:
                return (await publish(message.subject, message.data, REQUEST_TIMEOUT_S, headers=message.headers)).seq
            except nats.js.errors.APIError as error:
                if error.err_code != WRONG_LAST_SEQUENCE:
                    raise
                return -_standing_seq(error.description or "")

        return await self.link.patiently(attempt, what)

    async def _message(self, entry: Entry) -> Message:
        data, headers = entry.data, EXPECT_EMPTY
        if entry.traceparent:
            headers = {**EXPECT_EMPTY, TRACEPARENT: entry.traceparent}
        if len(data) > self._max_inline_bytes:
            headers = {**headers, BULK: await self._put_chunks(data)}
            data = b""
        return Message(entry.subject, data, headers)

    async def _put_chunks(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()[:40]
        size = self._max_inline_bytes
        chunks = [data[start : start + size] for start in range(0, len(data), size)]
        for number, chunk in enumerate(chunks):
            await self.put(f"{PREFIX}.bulk.{digest}.{number}", chunk)
        return f"{digest}.{len(chunks)}"

    # --- reading -------------------------------------------------------------------------------------------

    async def get(self, subject: str) -> Stored | None:
        """The record at `subject`, the last one where there are several; None where there is none."""
        noted = await self.look(subject)
        return None if noted is None else noted.record

    async def look(self, subject: str) -> Noted | None:
        """As `get`, with what was noted of the record."""
        return await (self._get_from_leader(subject) if self._is_replicated(subject) else self._get_direct(subject))

    async def get_many(self, subjects: Iterable[str]) -> dict[str, Stored]:
        """The records at `subjects`, those that exist; all of one JetStream stream."""
        wanted = list(dict.fromkeys(subjects))
        found: dict[str, Stored] = {}
        for start in range(0, len(wanted), MAX_SUBJECTS_A_READ):
            page = wanted[start : start + MAX_SUBJECTS_A_READ]
            if len(wanted) > 1:
                stream = stream_of(page[0])
                found |= await self.link.patiently(partial(self._read_page, stream, page), f"read from {stream}")
        for subject in wanted:  # single reads, and what a lagging replica did not have yet
            if subject not in found and (len(wanted) == 1 or self._is_replicated(subject)):
                stored = await self.get(subject)
                if stored is not None:
                    found[subject] = stored
        return found

    async def next(self, filter_subject: str, seq: int) -> Noted | None:
        """The first record stored at `seq` or later whose subject matches."""
        stream = stream_of(filter_subject)
        if self._is_replicated(filter_subject):
            return await self._get_from_leader(filter_subject, seq)
        return await self._ask_direct(f"$JS.API.DIRECT.GET.{stream}", {"seq": seq, "next_by_subj": filter_subject})

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
        return int((await self.link.api(f"STREAM.INFO.{stream}"))["state"]["last_seq"])

    async def subjects(self, filter_subject: str) -> set[str]:
        """Every stored subject that matches."""
        found: set[str] = set()
        name = f"STREAM.INFO.{stream_of(filter_subject)}"
        while True:
            answer = await self.link.api(name, {"subjects_filter": filter_subject, "offset": len(found)})
            page = answer["state"].get("subjects") or {}
            found |= set(page)
            if len(page) < SUBJECTS_A_PAGE:
                return found

    async def whole(self, data: bytes, headers: Mapping[str, str] | None) -> bytes:
        """A record's bytes, put together where it came in chunks. Raises Permanent if a chunk is gone."""
        reference = headers.get(BULK) if headers else None
        if not reference:
            return data
        digest, _, number = reference.partition(".")
        names = [f"{PREFIX}.bulk.{digest}.{index}" for index in range(int(number))]
        chunks = [await self.get(name) for name in names]
        whole = b"".join(chunk.data for chunk in chunks if chunk is not None)
        if hashlib.sha256(whole).hexdigest()[:40] != digest:
            raise Permanent(
                f"part of a record of {number} chunks is gone from the ledger ({digest}): it fell out of retention"
            )
        return whole

    def _is_replicated(self, subject: str) -> bool:
        return stream_of(subject) in self._replicated

    async def _get_direct(self, subject: str) -> Noted | None:
        name = f"$JS.API.DIRECT.GET.{stream_of(subject)}"
        if subject.endswith("*"):
            return await self._ask_direct(name, {"last_by_subj": subject})
        return await self._ask_direct(f"{name}.{subject}")

    async def _ask_direct(self, name: str, request: Mapping[str, Any] | None = None) -> Noted | None:
        payload = b"" if request is None else msgspec.json.encode(request)

        async def attempt() -> Msg:
            return await self.link.client.request(name, payload, timeout=REQUEST_TIMEOUT_S)

        reply = await self.link.patiently(attempt, f"read {name.removeprefix('$JS.API.DIRECT.GET.')}")
        if _status(reply):
            return None
        headers = reply.headers or {}
        return Noted(await self._stored(reply), headers, _unix_ns(headers.get("Nats-Time-Stamp", "")))

    async def _get_from_leader(self, subject: str, seq: int | None = None) -> Noted | None:
        async def attempt() -> Any:
            ask = self.link.jetstream._jsm.get_msg
            return await ask(stream_of(subject), seq, subject, next=seq is not None)

        try:
            raw = await self.link.patiently(attempt, f"read {subject}")
        except Refused as error:
            if error.code == NO_MESSAGE:
                return None
            raise
        headers = raw.headers or {}
        data, trace = await self.whole(raw.data or b"", headers), headers.get(TRACEPARENT, "")
        stored_ns = int(raw.time.timestamp() * 1_000_000) * 1000 if raw.time else 0
        return Noted(Stored(raw.subject, raw.seq, data, trace), headers, stored_ns)

    async def _read_page(self, stream: str, subjects: list[str]) -> dict[str, Stored]:
        client = self.link.client
        replies: list[Msg] = []
        ended = anyio.Event()

        async def on_reply(message: Msg) -> None:
            replies.append(message)
            if _status(message):
                ended.set()

        inbox = client.new_inbox()
        subscription = await client.subscribe(inbox, cb=on_reply)
        try:
            request = msgspec.json.encode({"multi_last": subjects, "batch": len(subjects)})
            await client.publish(f"$JS.API.DIRECT.GET.{stream}", request, reply=inbox)
            with anyio.fail_after(REQUEST_TIMEOUT_S):
                await ended.wait()
        finally:
            with anyio.CancelScope(shield=True):
                await subscription.unsubscribe()
        last = replies.pop()
        if _status(last) == "503":
            raise nats.errors.NoRespondersError
        if _status(last) not in ("204", "404"):
            raise LinkError(f"read from {stream}: {(last.headers or {}).get('Description', 'refused')}")
        found = [await self._stored(reply) for reply in replies]
        return {stored.subject: stored for stored in found}

    async def _stored(self, reply: Msg) -> Stored:
        headers = reply.headers or {}
        data = await self.whole(reply.data, headers)
        return Stored(headers["Nats-Subject"], int(headers["Nats-Sequence"]), data, headers.get(TRACEPARENT, ""))


async def open_ledger(link: Link, retention: Retention | None = None) -> Ledger:
    """The ledger of the server that `link` is connected to; its JetStream streams are made where they are missing. An
    existing stream keeps its own settings."""
    wanted = retention or Retention()
    replicated = set()
    for kind, max_bytes in _limits(wanted).items():
        name = f"{PREFIX.upper()}_{kind.upper()}"
        try:
            info = await link.api(f"STREAM.INFO.{name}")
        except Refused:
            info = await _create_stream(link, name, f"{PREFIX}.{kind}.>", max_bytes, wanted)
        if info["config"].get("num_replicas", 1) > 1:
            replicated.add(name)
    return Ledger(link, frozenset(replicated))


async def retain(link: Link, retention: Retention) -> None:
    """Have the streams that are there keep what they hold for as long as this says, from now on."""
    for kind, max_bytes in _limits(retention).items():
        name = f"{PREFIX.upper()}_{kind.upper()}"
        config = (await link.api(f"STREAM.INFO.{name}"))["config"]
        wanted = {"max_age": int(retention.max_age_s * 1e9), "max_bytes": max_bytes}
        if any(config.get(key) != value for key, value in wanted.items()):
            window = min(config["duplicate_window"], wanted["max_age"])
            await link.api(f"STREAM.UPDATE.{name}", {**config, **wanted, "duplicate_window": window})


def _limits(retention: Retention) -> dict[str, int]:
    """The most bytes that each kind of record may take."""
    return {
        "media": retention.max_media_bytes,
        "bulk": retention.max_media_bytes,
        "results": retention.max_results_bytes,
        "answers": retention.max_results_bytes,
        "dead": retention.max_results_bytes,
        "gaps": retention.max_results_bytes // 16,
    }


async def _create_stream(link: Link, name: str, subjects: str, max_bytes: int, retention: Retention) -> Any:
    max_age_ns = int(retention.max_age_s * 1e9)
    config = {
        "name": name,
        "subjects": [subjects],
        "storage": "file",
        "retention": "limits",
        "discard": "old",
        "max_age": max_age_ns,
        "max_bytes": max_bytes,
        "num_replicas": retention.num_replicas,
        "allow_direct": True,
        "duplicate_window": min(max_age_ns, 120_000_000_000),
    }
    try:
        return await link.api(f"STREAM.CREATE.{name}", config)
    except Refused as error:
        if error.code != NAME_IN_USE:  # made by someone else in the meantime
            raise
        return await link.api(f"STREAM.INFO.{name}")


def stream_of(subject: str) -> str:
    """The JetStream stream that keeps a subject."""
    return f"{PREFIX.upper()}_{subject.split('.', 2)[1].upper()}"


_WRONG_LAST = re.compile(r"wrong last sequence: (\d+)")


def _standing_seq(refusal: str) -> int:
    """The sequence of the record already there, which the refusal tells."""
    match = _WRONG_LAST.search(refusal)
    if match is None:
        raise LinkError(f"the server refused a write-once record without saying why: {refusal!r}")
    return int(match[1])


def _unix_ns(stamp: str) -> int:
    """A server's time stamp (RFC 3339, up to nanoseconds) as Unix time; 0 where it is none."""
    match = _STAMP.fullmatch(stamp)
    if match is None:
        return 0
    whole = datetime.fromisoformat(match[1] + "+00:00")
    return int(whole.timestamp()) * 1_000_000_000 + int((match[2] or "").ljust(9, "0")[:9])


_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(?:Z|\+00:00)")


def _status(message: Msg) -> str:
    return (message.headers or {}).get("Status", "") if not message.data else ""
