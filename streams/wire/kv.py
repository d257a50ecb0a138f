"""Buckets: small values by key that may change, in NATS KV's own layout, so that any NATS client reads and writes them.

Delivery guarantee: a write that returns is stored, once; what is stored is seen by every later read, on whatever
connection, because reads are answered by the leader or by a replica that has all the leader had. `create`, `update`
and `delete` with a revision compare and swap. They are repeated while the server is away, and a refusal is compared
with what stands there, so one whose first answer was lost still learns that it was stored; it is told None if somebody
else has changed the key again by then. `watch` only hints: the truth is always a read.
"""

import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import anyio
import msgspec
import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.js.api import Header

from streams.errors import LinkError, UserError
from streams.subjects import token
from streams.wire import jetstream
from streams.wire.jetstream import MAX_SUBJECTS_A_READ
from streams.wire.ledger import HEADROOM_BYTES
from streams.wire.link import REQUEST_TIMEOUT_S, Link, Refused

WRONG_LAST_REVISION = 10071
STILL_STORING = {10158, 10164}  # this very write, which is being tried again, or another: whose, is not known yet
OPERATION, DELETED = "KV-Operation", {"DEL", "PURGE"}
MARKER_REASON = "Nats-Marker-Reason"  # of the server, which forgot a value by its age
MARKER_TTL_S = 3600  # deletions are remembered this long, for clients that follow the bucket
MAX_HISTORY = 64
MAX_DUPLICATE_S = 120.0
MAX_RECORDS_A_PAGE = 1024  # nor does the server answer for more subjects in one request
MAX_PAGES = 64
REREAD_S = 60.0  # though nothing hints at a change
MAX_TRIES = 5  # of creating a key that others create and delete

_KEY = re.compile(r"[A-Za-z0-9_/=-]+(\.[A-Za-z0-9_/=-]+)*")
_PREFIX = re.compile(r"([A-Za-z0-9_/=-]+\.)*[A-Za-z0-9_/=-]*")


class Held(msgspec.Struct, frozen=True, gc=False):
    """A key's value. Revisions order all writes to one bucket; `created_ns` is the server's Unix time."""

    key: str
    value: bytes
    revision: int
    created_ns: int


class _Record(NamedTuple):
    """What is stored last of a key: a value or that it was deleted. `once` is the name of the write."""

    held: Held
    is_live: bool
    once: str


class _Known(NamedTuple):
    """What a bucket held when it was last read."""

    made: str
    up_to: int  # the revision
    values: dict[str, Held]  # never changed: others have it
    read_s: float  # when it was read whole (monotonic)

    def can_be_followed(self, stands: jetstream.Standing, now_s: float) -> bool:
        return self.made == stands.made and self.up_to <= stands.last_seq and now_s < self.read_s + REREAD_S


class Bucket:
    """Values by key. Made by `open_bucket`. `max_age_s` is how long a value is kept; None: until it is deleted."""

    def __init__(self, link: Link, name: str, config: Mapping[str, Any]) -> None:
        """`config` is the JetStream stream's, as the server has it."""
        self.link = link
        self.name = name
        self.max_age_s: float | None = config.get("max_age", 0) / 1e9 or None
        self.stream = f"KV_{name}"  # the JetStream stream that holds it
        self._prefix = f"$KV.{name}."
        self._is_direct = bool(config.get("allow_direct"))
        self._is_replicated = link.is_clustered or config.get("num_replicas", 1) > 1  # or may be soon
        self._known: _Known | None = None
        self._following = anyio.Lock()
        self._num_begun = 0  # reads of all
        self._latest: tuple[int, dict[str, Held]] = 0, {}  # which of them came to an end last, and what it found
        self._deletion = {OPERATION: "DEL"}
        if config.get("allow_msg_ttl") and config.get("max_msgs_per_subject") == 1:  # there is nothing it still hides
            self._deletion[Header.MSG_TTL.value] = str(MARKER_TTL_S)

    # --- one key -------------------------------------------------------------------------------------------

    async def get(self, key: str) -> Held | None:
        """The key's value, None where it has none."""
        last = await self._last(self._subject(key))
        return last.held if last is not None and last.is_live else None

    async def put(self, key: str, value: bytes) -> int:
        """Give the key a value, whatever it had before; its revision."""
        revision = await self._store(key, value, {})
        if revision is None:
            raise LinkError(f"the server refused {key} in bucket {self.name} for a condition that was not made")
        return revision

    async def create(self, key: str, value: bytes) -> int | None:
        """Give a value to a key that has none; its revision, None where one stands."""
        once = secrets.token_hex(12)
        expected = 0
        for _ in range(MAX_TRIES):
            revision = await self._store(key, value, {Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: str(expected)}, once)
            if revision is not None:
                return revision
            last = await self._last(self._subject(key))
            if last is not None and last.is_live:
                return last.held.revision if last.once == once else None
            expected = 0 if last is None else last.held.revision  # of the deletion
        return None

    async def update(self, key: str, value: bytes, revision: int) -> int | None:
        """Give the key a value if `revision` is its last; the new revision, None where it has moved."""
        return await self._swap(key, value, revision, {})

    async def delete(self, key: str, revision: int | None = None) -> bool:
        """Take the key's value away, if `revision` is given only where that is its last. False where there was none or
        it has moved."""
        if revision is not None:
            return await self._swap(key, b"", revision, self._deletion) is not None
        if await self.get(key) is None:
            return False
        return await self._store(key, b"", self._deletion) is not None

    async def _swap(self, key: str, value: bytes, revision: int, headers: Mapping[str, str]) -> int | None:
        once = secrets.token_hex(12)
        expected = {**headers, Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: str(revision)}
        stored = await self._store(key, value, expected, once)
        if stored is not None:
            return stored
        last = await self._last(self._subject(key))
        return last.held.revision if last is not None and last.once == once else None

    async def _store(self, key: str, value: bytes, headers: Mapping[str, str], once: str = "") -> int | None:
        """The revision; None where the expectation in the headers does not hold."""
        subject = self._subject(key)
        max_bytes = self.link.max_payload_bytes - HEADROOM_BYTES
        if len(value) > max_bytes:
            raise UserError(f"{key} in bucket {self.name}: {len(value)} bytes; a value has at most {max_bytes}")
        named = {**headers, Header.MSG_ID.value: once or secrets.token_hex(12)}  # the server stores it once

        async def attempt() -> int | None:
            try:
                ack = await self.link.jetstream.publish(subject, value, REQUEST_TIMEOUT_S, headers=named)
            except nats.js.errors.APIError as error:
                if error.err_code in STILL_STORING:
                    raise nats.errors.TimeoutError from error
                if error.err_code != WRONG_LAST_REVISION:
                    raise
                return None
            return int(ack.seq)

        return await self.link.patiently(attempt, f"store {key} in bucket {self.name}")

    async def _last(self, subject: str) -> _Record | None:
        if self._is_replicated or not self._is_direct:
            message = await jetstream.from_leader(self.link, self.stream, {"last_by_subj": subject})
        else:
            message = await jetstream.direct(self.link, self.stream, subject)
        return None if message is None else self._record(message)

    # --- many keys -----------------------------------------------------------------------------------------

    async def all(self, prefix: str = "") -> Mapping[str, Held]:
        """Every key that begins with `prefix` and has a value; without one, the same object as before while nothing has
        changed. Not a snapshot: what changes meanwhile is read as it was or as it is, and what does not change is never
        left out."""
        if not _PREFIX.fullmatch(prefix):
            raise UserError(f"{prefix!r} begins no key: use A-Z a-z 0-9 _ / = - and single dots between them")
        if self._is_direct and self.max_age_s is None:
            found = await self._shared()
        else:
            found = await self._whole(f"{self._prefix}{prefix[: prefix.rfind('.') + 1]}>")
        return {key: held for key, held in found.items() if key.startswith(prefix)} if prefix else found

    async def _shared(self) -> dict[str, Held]:
        """All there is, by a read that began after this was called: all who come during one share the next."""
        num_begun = self._num_begun
        async with self._following:
            if self._latest[0] <= num_begun:
                self._num_begun += 1
                self._latest = self._num_begun, await self._followed()
            return self._latest[1]

    async def _followed(self) -> dict[str, Held]:
        """All there is, the same object while it is the same, by what has changed since it was last read: a value moves
        to a higher revision with every write, and a deletion is one. What somebody took away behind the bucket's back
        shows by the number of messages, or when all is read again, after REREAD_S."""
        try:
            stands = await jetstream.standing(self.link, self.stream)
        except Refused as error:
            if error.code != jetstream.NO_STREAM:
                raise
            return await self._whole(f"{self._prefix}>")  # who keeps it up may be about to make it again
        known = self._known
        if known is not None and known.can_be_followed(stands, time.monotonic()):
            changed = await self._changed(known.up_to, stands.last_seq)
            if changed is not None:
                values = known.values | _values(changed) if changed else known.values
                for key in [key for key, record in changed.items() if not record.is_live]:
                    values.pop(key, None)
                num_later = sum(each.is_live and each.held.revision > stands.last_seq for each in changed.values())
                if len(values) - num_later <= stands.num_messages:
                    self._known = known._replace(up_to=stands.last_seq, values=values)
                    return values
        values = await self._whole(f"{self._prefix}>")
        self._known = _Known(stands.made, stands.last_seq, values, time.monotonic())
        return values

    async def _changed(self, up_to: int, last: int) -> dict[str, _Record] | None:
        """What was stored behind one revision and up to another, at least; None where who answers cannot tell."""
        found: dict[str, _Record] = {}
        for _ in range(MAX_PAGES):
            if up_to >= last:
                return found
            read = partial(jetstream.since, self.link, self.stream, up_to + 1, MAX_RECORDS_A_PAGE)
            messages = await self.link.patiently(read, f"read from bucket {self.name}")
            if not messages:
                return None  # the last has gone, or a replica lags
            found |= {record.held.key: record for record in map(self._record, messages)}
            up_to = messages[-1].seq
        return None

    async def _whole(self, pattern: str) -> dict[str, Held]:
        found = await self._sweep([pattern]) if self._is_direct else None
        return _values(await self._read_each(pattern) if found is None else found)

    async def _sweep(self, subjects: list[str]) -> dict[str, _Record] | None:
        """What is stored on subjects or patterns, by direct get. None where that cannot tell: there are too many, they
        change faster than they are read, or who answers does not have all that the leader had before.

        Pages follow each other by revision, and a value that changes moves to a higher one: what was not read yet is
        read later, what was is read again."""
        at_least = await jetstream.last_seq(self.link, self.stream) if self._is_replicated else 0
        found: dict[str, _Record] = {}
        revision = 1
        for _ in range(MAX_PAGES):
            read = partial(jetstream.page, self.link, self.stream, subjects, MAX_RECORDS_A_PAGE, revision)
            page = await self.link.patiently(read, f"read from bucket {self.name}")
            if page is None or page.up_to < at_least:
                return None
            found |= {record.held.key: record for record in map(self._record, page.messages)}
            if page.next_seq is None:
                return found
            revision = page.next_seq
        return None

    async def _read_each(self, pattern: str) -> dict[str, _Record]:
        subjects = list(await jetstream.subjects_of(self.link, self.stream, pattern))
        found: dict[str, _Record] = {}
        if self._is_direct and not self._is_replicated:
            for start in range(0, len(subjects), MAX_SUBJECTS_A_READ):
                found |= await self._sweep(subjects[start : start + MAX_SUBJECTS_A_READ]) or {}
        for subject in subjects:
            if self._key(subject) not in found and (record := await self._last(subject)) is not None:
                found[record.held.key] = record
        return found

    # --- changes -------------------------------------------------------------------------------------------

    async def watch(self, on_change: Callable[[str], None], *, repeats: bool = True) -> Callable[[], Awaitable[None]]:
        """Have `on_change` called with each key that somebody writes or deletes, and with "" after a reconnection:
        anything may have changed. Without `repeats`, not with a key that is written as it was when last heard of.
        Returns what ends it.

        These are hints. One may be missed, one may come twice, none comes for a value that is forgotten by its age, and
        one may come a moment before a read shows the change. Whoever watches first and reads then misses no change
        but by a lost message, so read also without a hint from time to time."""

        heard: dict[str, bytes] = {}

        async def on_message(message: Msg) -> None:
            key = self._key(message.subject)
            if not repeats and message.data and heard.get(key) == message.data:
                return
            if not repeats:
                heard[key] = message.data
                if not message.data:  # it is gone
                    del heard[key]
            on_change(key)

        try:
            subscription = await self.link.subscribe(f"{self._prefix}>", on_message)
        except (nats.errors.Error, OSError) as error:
            raise LinkError(f"cannot watch bucket {self.name}: {error}") from error
        forget: list[Callable[[], None]] = [self.link.on_reconnect(lambda: on_change(""))]

        async def end() -> None:
            if forget:
                forget.pop()()
                with suppress(nats.errors.Error):  # the connection is closed
                    await subscription.unsubscribe()

        return end

    # --- layout --------------------------------------------------------------------------------------------

    def _subject(self, key: str) -> str:
        if not _KEY.fullmatch(key):
            raise UserError(f"{key!r} is no key: use A-Z a-z 0-9 _ / = - and single dots between them")
        return self._prefix + key

    def _key(self, subject: str) -> str:
        return subject.removeprefix(self._prefix)

    def _record(self, message: jetstream.Raw) -> _Record:
        headers = message.headers
        is_live = headers.get(OPERATION) not in DELETED and MARKER_REASON not in headers
        held = Held(self._key(message.subject), message.data, message.seq, message.stored_ns)
        return _Record(held, is_live, headers.get(Header.MSG_ID.value, ""))


def _values(records: Mapping[str, _Record]) -> dict[str, Held]:
    return {key: record.held for key, record in records.items() if record.is_live}


async def open_bucket(
    link: Link, name: str, *, max_age_s: float | None = None, history: int = 1, num_replicas: int = 1
) -> Bucket:
    """The bucket of that name, made where it is missing; an existing one keeps its own settings. `max_age_s` is how
    long a value is kept after it was written, None: until it is deleted; `history` how many values of a key are kept.
    """
    if not 1 <= history <= MAX_HISTORY:
        raise UserError(f"bucket {name}: history {history}: give from 1 to {MAX_HISTORY}")
    if max_age_s is not None and not 0.1 <= max_age_s <= 1e9:
        raise UserError(f"bucket {name}: max_age_s {max_age_s:g}: give at least 0.1, or None to keep values")
    return Bucket(link, name, await jetstream.made(link, _config(token(name), max_age_s or 0.0, history, num_replicas)))


def _config(name: str, max_age_s: float, history: int, num_replicas: int) -> dict[str, Any]:
    return {
        "name": f"KV_{name}",
        "subjects": [f"$KV.{name}.>"],
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "max_msgs_per_subject": history,
        "max_age": int(max_age_s * 1e9),
        "duplicate_window": int(min(max_age_s or MAX_DUPLICATE_S, MAX_DUPLICATE_S) * 1e9),
        "num_replicas": num_replicas,
        "allow_rollup_hdrs": True,
        "allow_direct": True,
        "allow_msg_ttl": True,
        "deny_delete": True,
    }
