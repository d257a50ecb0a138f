"""Views: what people and programs are shown of jobs and streams. Credentials are never in them."""

import time
from collections.abc import Sequence

from engine.decide.answer import time_of_day
from engine.decide.reconcile import unserved
from engine.decide.watching import SourceState
from engine.node.feeding import lease_of
from engine.run.gaps import count_gaps
from engine.run.registry import NodeStatus, Registry
from engine.spec.entries import Faulty
from engine.spec.jobs import JobSpec
from streams import subjects
from streams.errors import Malformed, Permanent
from streams.media.addresses import public_url
from streams.records import EndOfStream, Record, Segment, decode_media
from streams.wire.lease import holder_of
from streams.wire.ledger import Ledger

SECOND_NS = 1_000_000_000
UNREADABLE = "unreadable"  # of a job or a stream whose entry cannot be used


class StageView(Record, frozen=True, omit_defaults=False):
    name: str
    id: str
    capability: str
    implementation: str
    lower: tuple[str, ...] = ()  # that it may run on under load, by the job's slo


class JobView(Record, frozen=True, omit_defaults=False):
    """A job as it is now."""

    job: str
    stream: str
    state: str
    standing: bool
    workflow: str
    asks: tuple[str, ...]
    first: int
    last: int | None  # None: as far as the stream goes
    stages: tuple[StageView, ...]
    submitted_at: str
    detail: str = ""
    latency_s: float = 0.0  # within which answers are wanted; 0: as the lag allows
    weight: float = 1.0


class StreamView(Record, frozen=True, omit_defaults=False):
    """A stream as it is now."""

    stream: str
    policy: str
    state: str  # of its source (engine/decide/watching.py) while it is read; else "idle", "ended" or UNREADABLE
    num_segments: int  # kept
    first: int | None
    last: int | None
    end_s: float  # media time reached
    idle_s: float | None  # since the last segment was stored
    gaps: dict[str, int]  # outputs that were owed and could not be delivered, by cause
    num_jobs: int  # that run
    segment_s: float
    max_lag_s: float | None
    source: str = ""
    fed_by: str | None = None
    since: str = ""  # RFC 3339: when its source came into that state
    error: str = ""  # the last that its source met with, as long as it matters
    detail: str = ""  # what is wrong with it
    title: str = ""  # what people call it, where its name is a hash


def job_view(spec: JobSpec, nodes: Sequence[NodeStatus] = (), trouble: str = "") -> JobView:
    """A job as it is now; what it waits for, by the nodes that are there and what is wrong with the server."""
    waits = unserved(spec, [frozenset(node.serves) for node in nodes if node.serves])
    if trouble and spec.state == "running":
        waits = [trouble, *waits]
    return JobView(
        job=spec.id,
        stream=spec.stream,
        state=spec.state,
        standing=spec.standing,
        workflow=spec.plan.workflow,
        asks=spec.asks,
        first=spec.asked.first,
        last=spec.asked.last,
        stages=tuple(
            StageView(
                name=stage.name,
                id=stage.id,
                capability=stage.capability,
                implementation=stage.rung.rung,
                lower=tuple(rung.rung for rung in stage.lower),
            )
            for stage in spec.plan.stages
        ),
        submitted_at=time_of_day(spec.submitted_ns),
        detail=spec.detail or (f"waits: {'; '.join(waits)}" if waits else ""),
        latency_s=spec.latency_s,
        weight=spec.weight,
    )


def faulty_job(entry: Faulty) -> JobView:
    """An entry of a job that is passed over."""
    return JobView(
        job=entry.key,
        stream="",
        state=UNREADABLE,
        standing=False,
        workflow="",
        asks=(),
        first=0,
        last=None,
        stages=(),
        submitted_at="",
        detail=f"its entry cannot be used: {entry.cause}",
    )


async def stream_views(registry: Registry, ledger: Ledger, only: str = "") -> list[StreamView]:
    """Every stream that was declared, by name; or only one."""
    jobs = [job for job in await registry.jobs() if job.state == "running"]
    sources = await registry.source_states()
    views = []
    for name, spec in sorted((await registry.streams()).items()):
        if only not in ("", name):
            continue
        detail = ""
        keys = sorted(subjects.keys_of(await ledger.subjects(subjects.media_of(name))))
        try:
            noted = await ledger.look(subjects.media_of(name))
        except Permanent as error:  # its chunks are gone, or were never there
            noted, detail = None, f"its newest record cannot be read: {error}"
        record = None
        try:
            record = decode_media(noted.record.data) if noted is not None else None
        except Malformed as error:
            detail = f"its newest record cannot be read: {error}"
        fed_by = await holder_of(registry.leases, lease_of(name))
        source = sources.get(name)
        is_known = fed_by is not None and source is not None and source.node == fed_by
        end_ns = 0
        match record:
            case Segment():
                end_ns = record.start_ns + record.duration_ns
            case EndOfStream():
                end_ns = record.duration_ns
        views.append(
            StreamView(
                stream=name,
                policy=spec.policy,
                state="ended" if isinstance(record, EndOfStream) else _state(source if is_known else None, fed_by),
                num_segments=len(keys),
                first=keys[0].first if keys else None,
                last=keys[-1].last if keys else None,
                end_s=round(end_ns / SECOND_NS, 3),
                idle_s=None if noted is None else max(0.0, round((time.time_ns() - noted.stored_ns) / SECOND_NS, 3)),
                gaps=await count_gaps(ledger, name),
                num_jobs=sum(job.stream == name for job in jobs),
                segment_s=spec.segment_s,
                max_lag_s=spec.max_lag_s if spec.policy == "live" else None,
                source=public_url(spec.url) if spec.url else "",
                fed_by=fed_by,
                since=time_of_day(source.since_ns) if source is not None and is_known else "",
                error=source.error if source is not None and not isinstance(record, EndOfStream) else "",
                detail=detail,
                title=spec.title,
            )
        )
    for entry in await registry.faulty():
        if entry.kind == "stream" and only in ("", entry.key):
            views.append(_faulty_stream(entry))
    return views


def _state(source: SourceState | None, fed_by: str | None) -> str:
    if source is not None:
        return source.state
    return "connecting" if fed_by else "idle"


def _faulty_stream(entry: Faulty) -> StreamView:
    return StreamView(
        stream=entry.key,
        policy="",
        state=UNREADABLE,
        num_segments=0,
        first=None,
        last=None,
        end_s=0.0,
        idle_s=None,
        gaps={},
        num_jobs=0,
        segment_s=0.0,
        max_lag_s=None,
        detail=f"its entry cannot be used: {entry.cause}",
    )
