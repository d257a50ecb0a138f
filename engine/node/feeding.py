"""Feeding: one source into one stream, by whoever holds the stream's lease.

Delivery guarantee: a stream has one feeder at a time. Whoever feeds next goes on where the last one stopped, in number
and in media time. Of a source that goes on while nobody listens (a camera), the time away is a gap; one that stays as
it is (a file) is read again from its beginning, and what is stored already is refused by the ledger.
"""

import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress

import anyio
import msgspec
import structlog

from engine.decide.running_graph import running_groups
from engine.node.ingest import ingest, no_bound
from engine.run.registry import LEASE_TTL_S, Policy, Registry, StreamSpec, checked
from engine.run.telemetry import Telemetry
from engine.spec.workflow import MEDIA
from streams import subjects
from streams.errors import UserError
from streams.media.addresses import Kind, kind_of
from streams.media.sources import read
from streams.records import EndOfStream, Gap, MediaMessage, Segment, decode_media
from streams.wire import ledger as ledgers
from streams.wire.lease import while_held
from streams.wire.ledger import Ledger
from streams.wire.link import Refused

log = structlog.get_logger(__name__)

MAX_AHEAD = 64  # segments of a durable stream that wait to be looked at
CHECK_EVERY = 8  # segments
LOOK_S = 0.2  # how often a held-back source looks whether there is room again

LIVE: frozenset[Kind] = frozenset({"rtsp", "rtmp", "srt", "udp", "device"})
LIVE_OR_NOT: frozenset[Kind] = frozenset({"http", "hls"})  # as the stream's policy has it


class Resume(msgspec.Struct, frozen=True, kw_only=True):
    """Where a stream stands: the next segment, its media time, and when the last one was stored (Unix time)."""

    next_index: int = 0
    start_ns: int = 0
    stored_ns: int = 0


def lease_of(stream: str) -> str:
    return f"feed.{stream}"


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """What feeds a stream. One that `goes_on` cannot be read again from its beginning; one that `waits` can be held
    back.
    """

    read: Callable[[Resume, threading.Event], Iterator[MediaMessage]]
    goes_on: bool
    waits: bool


def policy_for(url: str) -> Policy:
    """How a source is treated where nobody says. Raises UserError where the URL names no source."""
    return "live" if kind_of(url) in LIVE | {"hls"} else "durable"


def source_of(spec: StreamSpec, url: str) -> Source:
    """The source at a URL. A recording is given to a live stream as slowly as it plays. Raises UserError where the URL
    names no source."""
    kind = kind_of(url)
    live = kind in LIVE or (kind in LIVE_OR_NOT and spec.policy == "live")
    is_played = not live and spec.policy == "live"

    def read_on(resume: Resume, stop: threading.Event) -> Iterator[MediaMessage]:
        records = read(
            url,
            spec.name,
            target_s=spec.segment_s,
            first_index=resume.next_index,
            start_ns=resume.start_ns,
            live=live,
            transcode_gop_s=spec.gop_s,
            stop=stop,
        )
        return played(records, stop) if is_played else records

    goes_on = live or is_played or kind == "stdin"
    return Source(read=read_on, goes_on=goes_on, waits=not live and spec.policy == "durable")


def played(records: Iterator[MediaMessage], stop: threading.Event) -> Iterator[MediaMessage]:
    """A recording as it plays: each segment when its last moment has come, with the time at which its first one had."""
    began_ns = time.time_ns()
    origin_ns: int | None = None
    for record in records:
        if isinstance(record, Segment):
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
    before = await ledger.get(subjects.media(stream, record.first - 1)) if record.first else None
    segment = decode_media(before.data) if before is not None else None
    start_ns = segment.start_ns + segment.duration_ns if isinstance(segment, Segment) else 0
    return Resume(next_index=record.last + 1, start_ns=start_ns, stored_ns=noted.stored_ns)


async def feed(
    registry: Registry,
    ledger: Ledger,
    spec: StreamSpec,
    source: Source,
    holder: str,
    traces: Telemetry,
    *,
    on_record: Callable[[Segment | Gap], None] = lambda record: None,
    on_held: Callable[[threading.Event], None] = lambda stop: None,
) -> EndOfStream | None:
    """Feed a stream until its source ends, once nobody else does; None where the source stopped without an end.
    `on_held` is called each time reading begins because the lease is ours, with what stops it. Raises UserError for a
    source that cannot be read or a stream that has ended."""
    outcome: list[EndOfStream | UserError | None] = []

    async def body() -> None:
        stop = threading.Event()
        try:
            resume = await where_it_stands(ledger, spec.name)
            on_held(stop)
            if source.goes_on:
                records = _after_the_time_away(spec.name, source, resume, stop)
            else:
                records = source.read(Resume(), stop)
            room = _held_back(registry, ledger, spec.name) if source.waits else no_bound
            alone = source.goes_on
            outcome.append(
                await ingest(ledger, spec.name, records, traces, room=room, alone=alone, on_record=on_record)
            )
        except UserError as error:
            outcome.append(error)
        finally:
            stop.set()

    every_s = LEASE_TTL_S / 4
    await while_held(registry.leases, lease_of(spec.name), holder, body, renew_s=every_s, retry_s=every_s)
    result = outcome[-1]
    if isinstance(result, UserError):
        raise result
    return result


def _after_the_time_away(stream: str, source: Source, resume: Resume, stop: threading.Event) -> Iterator[MediaMessage]:
    """A source that went on meanwhile: first the gap, then what it gives now."""
    if resume.next_index:
        away_ns = max(0, time.time_ns() - resume.stored_ns)
        detail = f"nobody read the source for {away_ns / 1e9:.1f} s"
        at = resume.next_index
        yield Gap(stage=MEDIA, stream=stream, first=at, last=at, cause="source_lost", detail=detail)
        resume = Resume(next_index=at + 1, start_ns=resume.start_ns + away_ns)
    yield from source.read(resume, stop)


def _held_back(registry: Registry, ledger: Ledger, stream: str) -> Callable[[int], Awaitable[None]]:
    """Room on a stream that must not lose anything: what its jobs' stages have yet to look at is bounded."""

    async def room(num_segments: int) -> None:
        if num_segments % CHECK_EVERY:
            return
        while await num_waiting(registry, ledger, stream) > MAX_AHEAD:  # noqa: ASYNC110 - the server tells nobody
            await anyio.sleep(LOOK_S)

    return room


async def num_waiting(registry: Registry, ledger: Ledger, stream: str) -> int:
    """Segments of a stream that the group furthest behind has not finished; 0 where no job runs on it."""
    jobs = [job for job in await registry.jobs() if job.stream == stream]
    furthest = 0
    for group in running_groups(jobs):
        if not any(MEDIA in stage.planned.sources for stage in group.stages):
            continue
        with suppress(Refused):  # no worker has made it yet
            info = await ledger.link.api(f"CONSUMER.INFO.{ledgers.MEDIA}.{group.name}-{stream}")
            furthest = max(furthest, int(info["num_pending"]) + int(info["num_ack_pending"]))
    return furthest


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
