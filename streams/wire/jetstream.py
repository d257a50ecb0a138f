"""What the ledger and the buckets have in common: JetStream streams, made where they are missing and read by subject.

A direct get is answered by any server that has the stream, of which a replica may lag; the leader's API has all that
was stored. Where a stream has one replica the two are the same, and direct gets are cheaper.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, NamedTuple

import anyio
import msgspec
import nats.errors
from nats.aio.msg import Msg

from streams.errors import LinkError
from streams.wire.link import REQUEST_TIMEOUT_S, Link, Refused

NO_MESSAGE, NAME_IN_USE, NO_STREAM = 10037, 10058, 10059
SUBJECTS_A_PAGE = 100_000
MAX_SUBJECTS_A_READ = 128  # of a page of direct gets: more, and the server refuses it for what they might match


class Raw(NamedTuple):
    """A message as a stream holds it; `stored_ns` is the server's Unix time."""

    subject: str
    seq: int
    data: bytes
    headers: Mapping[str, str]
    stored_ns: int


class Page(NamedTuple):
    """Some of the last messages of several subjects."""

    messages: list[Raw]
    next_seq: int | None  # where to read on; None where that was all
    up_to: int  # the last sequence that whoever answered knew of


async def made(link: Link, config: Mapping[str, Any]) -> Any:
    """The configuration of the stream of that name, which is made so where it is missing."""
    name = config["name"]
    try:
        return (await link.api(f"STREAM.INFO.{name}"))["config"]
    except Refused as missing:
        if missing.code != NO_STREAM:
            raise
    try:
        return (await link.api(f"STREAM.CREATE.{name}", config))["config"]
    except Refused as error:
        if error.code != NAME_IN_USE:  # made by someone else in the meantime
            raise
        return (await link.api(f"STREAM.INFO.{name}"))["config"]


async def subjects_of(link: Link, stream: str, pattern: str) -> set[str]:
    """Every subject with a message that matches, by the leader."""
    found: set[str] = set()
    while True:
        wanted = {"subjects_filter": pattern, "offset": len(found)}
        page = (await link.api(f"STREAM.INFO.{stream}", wanted))["state"].get("subjects") or {}
        found |= set(page)
        if len(page) < SUBJECTS_A_PAGE:
            return found


async def last_seq(link: Link, stream: str) -> int:
    """The sequence of the message stored last, by the leader."""
    return int((await link.api(f"STREAM.INFO.{stream}"))["state"]["last_seq"])


async def from_leader(link: Link, stream: str, wanted: Mapping[str, Any]) -> Raw | None:
    """The message that `wanted` names (`last_by_subj`, or `next_by_subj` with `seq`); None where there is none."""
    try:
        message = (await link.api(f"STREAM.MSG.GET.{stream}", wanted))["message"]
    except Refused as error:
        if error.code == NO_MESSAGE:
            return None
        raise
    return Raw(
        message["subject"],
        message["seq"],
        base64.b64decode(message.get("data", "")),
        dict(headers_of(base64.b64decode(message.get("hdrs", "")))),
        unix_ns(message["time"]),
    )


async def direct(link: Link, stream: str, wanted: str | Mapping[str, Any]) -> Raw | None:
    """The last message on a subject, or the one that `wanted` names as in `from_leader`; None where there is none."""
    name, payload = f"$JS.API.DIRECT.GET.{stream}", b""
    if isinstance(wanted, str):
        name = f"{name}.{wanted}"
    else:
        payload = msgspec.json.encode(wanted)

    async def attempt() -> Msg:
        return await link.client.request(name, payload, timeout=REQUEST_TIMEOUT_S)

    what = f"read {wanted}" if isinstance(wanted, str) else f"read from {stream}"
    reply = await link.patiently(attempt, what)
    match _status(reply):
        case "":
            return _raw(reply)
        case "404":
            return None
    raise LinkError(f"{what}: {_description(reply)}")


async def page(link: Link, stream: str, subjects: Sequence[str], max_messages: int, first_seq: int = 1) -> Page | None:
    """The last messages on subjects or patterns, of those from a sequence on the first so many, by one direct get. None
    where the server will not answer for so many. May raise what `Link.patiently` tries again."""
    replies: list[Msg] = []
    ended = anyio.Event()

    async def on_reply(message: Msg) -> None:
        replies.append(message)
        if _status(message):
            ended.set()

    inbox = link.client.new_inbox()
    subscription = await link.client.subscribe(inbox, cb=on_reply)
    try:
        wanted = {"multi_last": list(subjects), "batch": max_messages, "seq": first_seq}
        await link.client.publish(f"$JS.API.DIRECT.GET.{stream}", msgspec.json.encode(wanted), reply=inbox)
        with anyio.fail_after(REQUEST_TIMEOUT_S):
            await ended.wait()
    finally:
        with anyio.CancelScope(shield=True), suppress(nats.errors.Error):
            await subscription.unsubscribe()
    last = replies.pop()
    messages = [_raw(reply) for reply in replies]
    next_seq = messages[-1].seq + 1 if messages else first_seq
    headers = last.headers or {}
    match _status(last), _description(last):
        case "204", _:
            is_all = headers["Nats-Num-Pending"] == "0"
            return Page(messages, None if is_all else next_seq, int(headers["Nats-UpTo-Sequence"]))
        case "404", "No Results":
            return Page(messages, None, 0)
        case "404", _:  # one went after it was looked up
            return Page(messages, next_seq, 0)
        case "413", _:
            return None
        case "503", _:
            raise nats.errors.NoRespondersError
    raise LinkError(f"read from {stream}: {_description(last)}")


def headers_of(block: bytes) -> Iterator[tuple[str, str]]:
    """The headers of a stored message, as NATS writes them: a line for the version, then one for each."""
    for line in block.decode(errors="replace").split("\r\n")[1:]:
        name, colon, value = line.partition(":")
        if colon:
            yield name, value.strip()


def unix_ns(stamp: str) -> int:
    """RFC 3339 in UTC with up to nine decimals, as the server writes it."""
    seconds = datetime.fromisoformat(f"{stamp[:19]}+00:00").timestamp()
    return int(seconds) * 1_000_000_000 + int(stamp[19:].strip(".Z").ljust(9, "0"))


def _raw(reply: Msg) -> Raw:
    headers = reply.headers or {}
    seq, stored_ns = int(headers["Nats-Sequence"]), unix_ns(headers["Nats-Time-Stamp"])
    return Raw(headers["Nats-Subject"], seq, reply.data, headers, stored_ns)


def _status(message: Msg) -> str:
    """Of an answer that holds no record; "" where it does."""
    headers = message.headers or {}
    return "" if "Nats-Sequence" in headers else headers.get("Status", "500")


def _description(message: Msg) -> str:
    return (message.headers or {}).get("Description", "refused")
