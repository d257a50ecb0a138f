"""What the ledger and the buckets have in common: JetStream streams, made where they are missing and read by subject.

A direct get is answered by any server that has the stream, of which a replica may lag; the leader's API has all that
was stored. Where a stream has one replica the two are the same, and direct gets are cheaper.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, NamedTuple

import anyio
import msgspec
import nats.errors
from nats.aio.msg import Msg

from streams.decoding import converted, from_json, shown, whole_number
from streams.errors import LinkError, Malformed
from streams.wire.link import NO_ROOM, REQUEST_TIMEOUT_S, RETRIED, Link, Refused

NO_MESSAGE, NAME_IN_USE, NO_STREAM = 10037, 10058, 10059
SUBJECTS_A_PAGE = 100_000
MAX_SUBJECTS_A_READ = 128  # of a page of direct gets: more, and the server refuses it for what they might match
MAX_PAGE_BYTES = 4 << 20  # of a page, and one record more


_STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z", re.ASCII)


class Raw(NamedTuple):
    """A message as a stream holds it; `stored_ns` is the server's Unix time."""

    subject: str
    seq: int
    data: bytes
    headers: Mapping[str, str]
    stored_ns: int


class _Message(msgspec.Struct):
    """As the leader's API gives it; bytes are base64 there."""

    subject: str
    seq: int
    time: str
    data: bytes = b""
    hdrs: bytes = b""


class _State(msgspec.Struct):
    """Of a stream."""

    last_seq: int
    messages: int = 0
    subjects: dict[str, int] | None = None


class Standing(NamedTuple):
    """How a stream stands, by its leader."""

    made: str  # when, as the server says: another of the same name differs
    last_seq: int
    num_messages: int


class Page(NamedTuple):
    """Some of the last messages of several subjects."""

    messages: list[Raw]
    next_seq: int | None  # where to read on; None where that was all
    up_to: int  # the last sequence that whoever answered knew of


async def made(link: Link, config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the stream of that name, which is made so where it is missing. Raises Refused where there is
    no room for it (NO_ROOM): room does not come by waiting."""
    name = config["name"]
    try:
        return await config_of(link, name)
    except Refused as missing:
        if missing.code != NO_STREAM:
            raise
    try:
        return _config(await link.api(f"STREAM.CREATE.{name}", config, final=NO_ROOM))
    except Refused as error:
        if error.code != NAME_IN_USE:  # made by someone else in the meantime
            raise
        return await config_of(link, name)


async def config_of(link: Link, stream: str) -> dict[str, Any]:
    """Raises Refused where there is no such stream."""
    return _config(await link.api(f"STREAM.INFO.{stream}"))


def _config(answer: Mapping[str, Any]) -> dict[str, Any]:
    config = answer.get("config")
    if not isinstance(config, dict):
        raise LinkError("the server's answer cannot be read: it has no stream's configuration")
    return config


async def subjects_of(link: Link, stream: str, pattern: str) -> set[str]:
    """Every subject with a message that matches, by the leader."""
    found: set[str] = set()
    while True:
        wanted = {"subjects_filter": pattern, "offset": len(found)}
        page = _state(await link.api(f"STREAM.INFO.{stream}", wanted)).subjects or {}
        found |= set(page)
        if len(page) < SUBJECTS_A_PAGE:
            return found


async def last_seq(link: Link, stream: str) -> int:
    """The sequence of the message stored last, by the leader."""
    return _state(await link.api(f"STREAM.INFO.{stream}")).last_seq


async def standing(link: Link, stream: str) -> Standing:
    answer = await link.api(f"STREAM.INFO.{stream}")
    state = _state(answer)
    return Standing(str(answer.get("created")), state.last_seq, state.messages)


def _state(answer: Mapping[str, Any]) -> _State:
    try:
        state: _State = converted(answer.get("state"), _State)
    except Malformed as error:
        raise LinkError(f"the server's answer cannot be read: state: {error}") from error
    return state


async def from_leader(link: Link, stream: str, wanted: Mapping[str, Any]) -> Raw | None:
    """The message that `wanted` names (`last_by_subj`, or `next_by_subj` with `seq`); None where there is none."""
    try:
        message = (await link.api(f"STREAM.MSG.GET.{stream}", wanted)).get("message")
    except Refused as error:
        if error.code == NO_MESSAGE:
            return None
        raise
    try:
        return _read_by_leader(message)
    except Malformed as error:
        raise LinkError(f"read from {stream}: the server's answer cannot be read: {error}") from error


async def direct(link: Link, stream: str, wanted: str | Mapping[str, Any]) -> Raw | None:
    """The last message on a subject, or the one that `wanted` names as in `from_leader`; None where there is none."""
    name, payload = f"$JS.API.DIRECT.GET.{stream}", b""
    if isinstance(wanted, str):
        name = f"{name}.{wanted}"
    else:
        payload = msgspec.json.encode(wanted)

    query = {"last_by_subj": wanted} if isinstance(wanted, str) else wanted

    async def attempt() -> Msg | Raw:
        try:
            return await link.client.request(name, payload, timeout=REQUEST_TIMEOUT_S)
        except nats.errors.NoRespondersError:  # or an empty record that says so, in a header of its own
            if (found := await _from_leader_once(link, stream, query)) is not None:
                return found
            raise

    what = f"read {wanted}" if isinstance(wanted, str) else f"read from {stream}"
    async with link.reading:
        reply = await link.patiently(attempt, what)
    if isinstance(reply, Raw):
        return reply
    match _status(reply):
        case "404":
            return None
        case "" | "unreadable":  # the leader gives its headers as bytes
            return _raw(reply) or await from_leader(link, stream, query)
    raise LinkError(f"{what}: {_description(reply)}")


async def _from_leader_once(link: Link, stream: str, query: Mapping[str, Any]) -> Raw | None:
    """None where there is no such record, or no word of one."""
    try:
        reply = await link.client.request(
            f"$JS.API.STREAM.MSG.GET.{stream}", msgspec.json.encode(query), timeout=REQUEST_TIMEOUT_S
        )
        return _read_by_leader(from_json(reply.data, dict[str, Any])["message"])
    except (*RETRIED, KeyError, Malformed):
        return None


async def page(link: Link, stream: str, subjects: Sequence[str], max_messages: int, first_seq: int = 1) -> Page | None:
    """The last messages on subjects or patterns, of those from a sequence on the first so many that fit into a page, by
    one direct get. None where the server will not answer for so many, or one of them has headers that cannot be read.
    May raise what `Link.patiently` tries again.

    A server closes a connection for which it holds more than its `max_pending`, 64 MB by default, and it gives as fast
    as it reads from its disk: whoever asks bounds what comes, by the size of a page and `Link.paging`. Eight pages at
    once, 36 MB, were closed for on a busy machine; three never were."""
    wanted = {"multi_last": list(subjects), "batch": max_messages, "seq": first_seq, "max_bytes": MAX_PAGE_BYTES}
    messages, last = await _batch(link, stream, wanted)
    if messages is None:
        return None
    next_seq = messages[-1].seq + 1 if messages else first_seq
    headers = last.headers or {}
    match _status(last), _description(last):
        case "204", _:
            is_all = headers.get("Nats-Num-Pending") == "0"
            return Page(messages, None if is_all else next_seq, _up_to(headers))
        case "404", "No Results":
            return Page(messages, None, 0)
        case "404", _:  # one went after it was looked up
            return Page(messages, next_seq, 0)
        case "413", _:
            return None
        case "503", _:
            raise nats.errors.NoRespondersError
    raise LinkError(f"read from {stream}: {_description(last)}")


async def since(link: Link, stream: str, first_seq: int, max_messages: int) -> list[Raw] | None:
    """The messages of a stream from a sequence on, the first so many that fit into a page, by one direct get. None
    where one of them has headers that cannot be read, or the server will not tell. May raise what `Link.patiently`
    tries again."""
    wanted = {"next_by_subj": ">", "batch": max_messages, "seq": first_seq, "max_bytes": MAX_PAGE_BYTES}
    messages, last = await _batch(link, stream, wanted)
    match _status(last):
        case "204":
            return messages
        case "404":  # there is none
            return []
        case "503":
            raise nats.errors.NoRespondersError
    return None


async def _batch(link: Link, stream: str, wanted: Mapping[str, Any]) -> tuple[list[Raw] | None, Msg]:
    """What one direct get for several gives: the messages, None where one of them cannot be read, and the answer's
    end."""
    replies: list[Msg] = []
    ended = anyio.Event()

    def on_reply(message: Msg) -> None:
        replies.append(message)
        if _status(message) not in ("", "unreadable"):
            ended.set()

    inbox = link.client.new_inbox()
    hearing = await link.client.hear(inbox, on_reply)
    try:
        await link.client.publish(f"$JS.API.DIRECT.GET.{stream}", msgspec.json.encode(wanted), reply=inbox)
        with anyio.fail_after(REQUEST_TIMEOUT_S):
            await ended.wait()
    finally:
        with anyio.CancelScope(shield=True), suppress(nats.errors.Error):
            await hearing.unsubscribe()
    last = replies.pop()
    read = [_raw(reply) for reply in replies]
    messages = [message for message in read if message is not None]
    return (messages if len(messages) == len(read) else None), last


def headers_of(block: bytes) -> Iterator[tuple[str, str]]:
    """The headers of a stored message, as NATS writes them: a line for the version, then one for each."""
    for line in block.decode(errors="replace").split("\r\n")[1:]:
        name, colon, value = line.partition(":")
        if colon:
            yield name, value.strip()


def unix_ns(stamp: str) -> int:
    """RFC 3339 in UTC with up to nine decimals, as the server writes it. Raises Malformed."""
    if not _STAMP.fullmatch(stamp):
        raise Malformed(f"{shown(stamp)} is no time of the server's")
    try:
        seconds = datetime.fromisoformat(f"{stamp[:19]}+00:00").timestamp()
    except ValueError as error:
        raise Malformed(f"{shown(stamp)} is no time of the server's") from error
    return int(seconds) * 1_000_000_000 + int(stamp[19:].strip(".Z").ljust(9, "0"))


def _read_by_leader(message: Any) -> Raw:
    found: _Message = converted(message, _Message)
    return Raw(found.subject, found.seq, found.data, dict(headers_of(found.hdrs)), unix_ns(found.time))


def _raw(reply: Msg) -> Raw | None:
    """The record that came by direct get; None where its headers, which anyone may have written, hide the server's."""
    headers = reply.headers or {}
    try:
        seq, stored_ns = whole_number(headers["Nats-Sequence"]), unix_ns(headers["Nats-Time-Stamp"])
        return Raw(headers["Nats-Subject"], seq, reply.data, headers, stored_ns)
    except (KeyError, Malformed):
        return None


def _up_to(headers: Mapping[str, str]) -> int:
    try:
        return whole_number(headers.get("Nats-UpTo-Sequence", "0"))
    except Malformed:
        return 0


def _status(message: Msg) -> str:
    """Of an answer that holds no record; "" where it does, "unreadable" where that cannot be told."""
    headers = message.headers or {}
    return "" if "Nats-Sequence" in headers else headers.get("Status", "unreadable")


def _description(message: Msg) -> str:
    return (message.headers or {}).get("Description", "refused")
