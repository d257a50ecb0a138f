"""Views: what people and programs are shown of jobs and streams. Credentials are never in them."""

import time

from engine.decide.answer import time_of_day
from engine.node.feeding import lease_of
from engine.run.gaps import count_gaps
from engine.run.registry import Registry
from engine.spec.jobs import JobSpec
from streams import subjects
from streams.media.addresses import public_url
from streams.records import EndOfStream, Record, Segment, decode_media
from streams.wire.lease import holder_of
from streams.wire.ledger import Ledger

SECOND_NS = 1_000_000_000


class StageView(Record, frozen=True, omit_defaults=False):
    name: str
    id: str
    capability: str
    implementation: str


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


class StreamView(Record, frozen=True, omit_defaults=False):
    """A stream as it is now."""

    stream: str
    policy: str
    state: str  # "fed", "idle" or "ended"
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


def job_view(spec: JobSpec) -> JobView:
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
            StageView(name=stage.name, id=stage.id, capability=stage.capability, implementation=stage.rung.rung)
            for stage in spec.plan.stages
        ),
        submitted_at=time_of_day(spec.submitted_ns),
        detail=spec.detail,
    )


async def stream_views(registry: Registry, ledger: Ledger, only: str = "") -> list[StreamView]:
    """Every stream that was declared, by name; or only one."""
    jobs = [job for job in await registry.jobs() if job.state == "running"]
    views = []
    for name, spec in sorted((await registry.streams()).items()):
        if only not in ("", name):
            continue
        keys = sorted(subjects.keys_of(await ledger.subjects(subjects.media_of(name))))
        noted = await ledger.look(subjects.media_of(name))
        record = decode_media(noted.record.data) if noted is not None else None
        fed_by = await holder_of(registry.leases, lease_of(name))
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
                state="ended" if isinstance(record, EndOfStream) else "fed" if fed_by else "idle",
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
            )
        )
    return views
