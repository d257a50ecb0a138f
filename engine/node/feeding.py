"""Feeding: one source into one stream, by whoever holds the stream's lease.

Delivery guarantee: a stream has one feeder at a time. Whoever feeds next goes on where the last one stopped, in number
and in media time. Of a source that goes on while nobody listens (a camera), the time away is a gap; one that stays as
it is (a file) is read again from its beginning, and what is stored already is refused by the ledger. A recording that
is played, as slowly as it was taken, is passed over up to where it stands, and plays on from there.
"""

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import msgspec
import structlog

from engine.decide.watching import Told
from engine.node.ends import stored_end
from engine.node.ingest import ingest
from engine.node.room import held_back
from engine.node.watching import OnState, Watching
from engine.run.registry import LEASE_TTL_S, Registry
from engine.run.telemetry import Telemetry
from engine.spec.stream import Policy, StreamSpec, checked
from engine.spec.workflow import MEDIA
from streams import subjects
from streams.errors import UserError, first_error
from streams.media.addresses import kind_of
from streams.media.formats import Kind
from streams.media.sources import Through, read
from streams.records import EndOfStream, Gap, MediaMessage, Segment, decode_media
from streams.wire.lease import while_held
from streams.wire.ledger import Ledger

log = structlog.get_logger(__name__)

MIN_SILENCE_S = 5.0  # a camera's clock and network may falter for as long
SILENCE_S: dict[Kind, float] = {"hls": 30.0}  # what comes in pieces of many seconds
LIVE: frozenset[Kind] = frozenset({"rtsp", "rtmp", "srt", "udp", "device"})
LIVE_OR_NOT: frozenset[Kind] = frozenset({"http", "hls"})  # as the stream's policy has it


class Resume(msgspec.Struct, frozen=True, kw_only=True):
    """Where a stream stands: the next segment, its media time, and when the last one was stored (Unix time)."""

    next_index: int = 0
    start_ns: int = 0
    stored_ns: int = 0
    is_gap_open: bool = False  # the gap for the time since then is stored already


def lease_of(stream: str) -> str:
    return f"feed.{stream}"


Tell = Callable[[Told, str], None]  # how a source does, and why


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """What feeds a stream. One that `goes_on` cannot be read again from its beginning; one that `waits` can be held
    back. Where the stream is named after what is in the source (`is_named`), what of it has fallen out of retention is
    stored again, behind its end as well.
    """

    read: Callable[[Resume, threading.Event, Tell], Iterator[MediaMessage]]
    goes_on: bool
    waits: bool
    is_named: bool = False
    is_played: bool = False  # from where the stream stands


def policy_for(url: str) -> Policy:
    """How a source is treated where nobody says. Raises UserError where the URL names no source."""
    return "live" if kind_of(url) in LIVE | {"hls"} else "durable"


def source_of(spec: StreamSpec, url: str, through: Through | None = None) -> Source:
    """The source at a URL, each connection made as `through` says, if it is given. A recording is given to a live
    stream as slowly as it plays. Raises UserError where the URL names no source."""
    kind = kind_of(url)
    live = kind in LIVE or (kind in LIVE_OR_NOT and spec.policy == "live")
    is_played = not live and spec.policy == "live"

    def read_on(resume: Resume, stop: threading.Event, tell: Tell) -> Iterator[MediaMessage]:
        records = read(
            url,
            spec.name,
            target_s=spec.segment_s,
            first_index=0 if is_played else resume.next_index,
            start_ns=0 if is_played else resume.start_ns,
            live=live,
            transcode_gop_s=spec.gop_s,
            stop=stop,
            through=through,
            on_state=tell,
            silence_s=max(spec.max_lag_s, SILENCE_S.get(kind, MIN_SILENCE_S)),
        )
        return played(records, stop, resume.next_index) if is_played else records

    goes_on = live or kind == "stdin"
    return Source(read=read_on, goes_on=goes_on, waits=not live and spec.policy == "durable", is_played=is_played)


def played(records: Iterator[MediaMessage], stop: threading.Event, first_index: int = 0) -> Iterator[MediaMessage]:
    """A recording as it plays, from a segment on: each when its last moment has come, with the time at which its first
    one had."""
    began_ns = time.time_ns()
    origin_ns: int | None = None
    for record in records:
        if isinstance(record, Segment):
            if record.index < first_index:
                began_ns = time.time_ns()
                continue
            origin_ns = record.start_ns if origin_ns is None else origin_ns
            captured_ns = began_ns + record.start_ns - origin_ns
            if stop.wait(max(0, captured_ns + record.duration_ns - time.time_ns()) / 1e9):
                return
            record = msgspec.structs.replace(record, captured_ns=captured_ns)
        yield record


async def where_it_stands(ledger: Ledger, stream: str) -> Resume:
    """Raises UserError for a stream that has ended."""
    noted = await ledger.look(subjects.media_of(stream))
    if noted is None:
        return Resume()
    record = decode_media(noted.record.data)
    match record:
        case EndOfStream():
            raise UserError(f"stream {stream!r} has ended after {record.num_segments} segments: give it another name")
        case Segment():
            return Resume(
                next_index=record.index + 1,
                start_ns=record.start_ns + record.duration_ns,
                stored_ns=noted.stored_ns,
            )
    before = await ledger.look(subjects.media(stream, record.first - 1)) if record.first else None
    segment = decode_media(before.record.data) if before is not None else None
    start_ns = segment.start_ns + segment.duration_ns if isinstance(segment, Segment) else 0
    since_ns = noted.stored_ns if before is None else before.stored_ns
    return Resume(next_index=record.last + 1, start_ns=start_ns, stored_ns=since_ns, is_gap_open=True)


async def complete_end(ledger: Ledger, stream: str) -> EndOfStream | None:
    """The end of a stream, if it and every segment before it are there."""
    end = await stored_end(ledger, stream)
    if end is None:
        return None
    num_there = len(subjects.keys_of(await ledger.subjects(subjects.media_of(stream))))
    return end if num_there == end.num_segments else None


async def feed(
    registry: Registry,
    ledger: Ledger,
    spec: StreamSpec,
    source: Source,
    holder: str,
    traces: Telemetry,
    *,
    parent: str = "",
    on_record: Callable[[Segment | Gap], None] = lambda record: None,
    on_held: Callable[[threading.Event], None] = lambda stop: None,
    on_state: OnState = lambda state: None,
) -> EndOfStream | None:
    """Feed a stream until its source ends, once nobody else does; None where the source stopped without an end.
    `on_held` is called each time reading begins because the lease is ours, with what stops it. Raises UserError for a
    source that cannot be read or a stream that has ended."""
    outcome: list[EndOfStream | UserError | None] = []

    async def body() -> None:
        stop = threading.Event()
        watching = Watching(registry, spec, holder, source.goes_on or source.is_played, on_state)

        def note(record: Segment | Gap) -> None:
            if isinstance(record, Segment):
                watching.note()
            on_record(record)

        is_read = False
        try:
            if source.is_named and (end := await complete_end(ledger, spec.name)) is not None:
                outcome.append(end)
                return
            resume = Resume() if source.is_named else await where_it_stands(ledger, spec.name)
            on_held(stop)
            is_read = True
            if source.goes_on:
                records = _after_the_time_away(spec.name, source, resume, stop, watching.tell)
            else:
                records = source.read(resume if source.is_played else Resume(), stop, watching.tell)
            store = partial(
                ingest,
                ledger,
                spec.name,
                records,
                traces,
                parent=parent,
                alone=source.goes_on or source.is_played,
                max_lag_s=spec.max_lag_s if spec.policy == "live" else 0.0,
                on_record=note,
            )
            async with watching.running():
                if source.waits:
                    since = await _first_kept(ledger, spec.name) if source.goes_on else 0
                    async with held_back(registry, ledger, spec.name, since) as room:
                        outcome.append(await store(room=room))
                else:
                    outcome.append(await store())
        except (UserError, ExceptionGroup) as error:
            cause = first_error(error)
            if not isinstance(cause, UserError):
                raise
            if is_read:
                await watching.failed(str(cause))
            outcome.append(cause)
        finally:
            stop.set()

    every_s = LEASE_TTL_S / 4
    await while_held(registry.leases, lease_of(spec.name), holder, body, renew_s=every_s, retry_s=every_s)
    result = outcome[-1]
    if isinstance(result, UserError):
        raise result
    return result


async def _first_kept(ledger: Ledger, stream: str) -> int:
    """The first segment of a stream that retention has left."""
    noted = await ledger.next(subjects.media_of(stream), 1)
    key = None if noted is None else subjects.parse(noted.record.subject).key
    return 0 if key is None else key.first


def _after_the_time_away(
    stream: str, source: Source, resume: Resume, stop: threading.Event, tell: Tell
) -> Iterator[MediaMessage]:
    """A source that went on meanwhile: first the gap, unless it is there already, then what it gives now."""
    away_ns = max(0, time.time_ns() - resume.stored_ns)
    if resume.is_gap_open:
        resume = Resume(next_index=resume.next_index, start_ns=resume.start_ns + away_ns)
    elif resume.next_index:
        detail = f"nobody read the source for {away_ns / 1e9:.1f} s"
        at = resume.next_index
        yield Gap(stage=MEDIA, stream=stream, first=at, last=at, cause="source_lost", detail=detail)
        resume = Resume(next_index=at + 1, start_ns=resume.start_ns + away_ns)
    yield from source.read(resume, stop, tell)


def treated(
    standing: StreamSpec | None,
    name: str,
    policy: Policy | None,
    otherwise: Policy,
    **settings: float | None,
) -> StreamSpec:
    """How a stream that a client brings is treated: as it stands, but for the settings that are given; `otherwise` is
    the policy where nobody has said one. Raises UserError where it stands with another policy or nodes read it."""
    if standing is not None and standing.url:
        raise UserError(f"stream {name!r} is read from its own source by the nodes: bring yours under another name")
    if standing is not None and policy not in (None, standing.policy):
        raise UserError(f"stream {name!r} is {standing.policy} already: bring it so, or under another name")
    spec = standing or StreamSpec(name=subjects.token(name), policy=policy or otherwise)
    given = {setting: value for setting, value in settings.items() if value is not None}
    return checked(msgspec.structs.replace(spec, **given))
