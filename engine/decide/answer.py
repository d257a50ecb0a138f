"""Answers: what a job's last stages found, as the user gets it. Pure.

An answer joins the reply with what it rests on: the implementation of every stage, the gaps it had to do without, what
it cost and the trace that explains it. It travels as JSON.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from engine.spec.entries import MAX_TIME_NS
from engine.spec.jobs import JobSpec
from engine.spec.plan import Plan
from engine.spec.spending import all_of
from streams.records import NOT_IN_THE_VIDEO, Evidence, Gap, Record, Reply, Result, Segment, Spent, Support, encode

SECOND_NS = 1_000_000_000
SEEN = frozenset({"text", "picture", "object", "track", "event", "count", "motion"})  # kinds of evidence
NOTHING = ""  # what an output says that found nothing


class EvidenceItem(Record, frozen=True):
    kind: str
    start_s: float
    end_s: float
    text: str
    captured_at: str | None = None  # the time of day of start_s, where the source tells (RFC 3339)
    snapshot: str | None = None  # of what was seen: where a node's HTTP has the picture of start_s


class StageNote(Record, frozen=True):
    """Which implementation a stage ran on; several, where it changed meanwhile."""

    stage: str
    capability: str
    implementation: str
    instead_of: str = ""  # the best, where the load had it run on another


class GapNote(Record, frozen=True):
    """What was missing when the answer was made."""

    stage: str
    first: int
    last: int
    cause: str
    detail: str = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What `penstock.answers.<job>.<stream>` carries."""

    job: str
    stream: str
    question: str
    answer: str
    confidence: float
    evidence: tuple[EvidenceItem, ...]
    stages: tuple[StageNote, ...]
    gaps: tuple[GapNote, ...]
    latency_s: float  # from the job's start to the answer; of a standing job, from the storing of the last segment
    compute_s: float  # spent on this job's stages, in this run or an earlier one whose results were used
    trace_id: str
    output: Any = None  # of a last stage that does not answer questions: what it found; of evidence its observations
    first: int = 0  # the segments it looked at
    last: int = 0
    partial: bool = False  # a draft: over the beginning of the range only
    perhaps: tuple[EvidenceItem, ...] = ()  # what came nearest where nothing answers
    spent: Spent | None = None  # what was asked of language models and tools for it, as compute_s counts


def upstream_of(plan: Plan, stage_id: str) -> list[str]:
    """A stage and all it was made from, in the plan's order."""
    wanted = {stage_id}
    for stage in reversed(plan.stages):
        if stage.id in wanted:
            wanted |= set(stage.sources)
    return [stage.id for stage in plan.stages if stage.id in wanted]


def snapshot_of(stream: str, media_ns: int) -> str:
    """Where a node's HTTP has what a stream shows at a moment (docs/protocol.md)."""
    return f"/v1/streams/{stream}/snapshot?at={media_ns / SECOND_NS:.3f}s"


def time_of_day(unix_ns: int) -> str:
    """RFC 3339, in milliseconds; of a time that no clock shows, the last or the first that one does."""
    unix_ns = min(max(unix_ns, 0), MAX_TIME_NS)
    moment = datetime.fromtimestamp(unix_ns // SECOND_NS, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{unix_ns % SECOND_NS // 1_000_000:03d}Z"


def wall_clock(segment: Segment) -> Callable[[int], str] | None:
    """What turns media time (ns) into the time of day, by a segment that says when it was captured."""
    if not segment.captured_ns:
        return None
    origin_ns = segment.captured_ns - segment.start_ns
    return lambda media_ns: time_of_day(origin_ns + media_ns)


def make_answer(
    spec: JobSpec,
    record: Result | Gap,
    output: msgspec.Struct | None,
    used: Mapping[str, Iterable[Result | Gap]],
    flaws: Iterable[str],
    latency_s: float,
    trace_id: str,
    captured_at: Callable[[int], str] | None = None,
    first: int | None = None,
) -> Answer:
    """The answer from a last stage's record, which looked at segments from `first` on; `used` holds the records of the
    stages it was made from, by stage id, and `flaws` what was wrong with the media as it was read."""
    plan = spec.plan
    stages = [plan.stage(id) for id in upstream_of(plan, record.stage)]
    names = {stage.id: stage.name for stage in plan.stages}
    everything = [record, *(item for records in used.values() for item in records)]
    gaps = [item for item in everything if isinstance(item, Gap)]
    measured = [item.measured for item in everything if isinstance(item, Result) and item.measured]
    reply = output if isinstance(output, Reply) else None
    rungs = {stage.id: {rung.rung for rung in stage.rungs} for stage in stages}
    ran_on: dict[str, dict[str, None]] = {}  # by stage, in the order in which they come
    for item in everything:
        if isinstance(item, Result) and item.implementation in rungs.get(item.stage, ()):
            ran_on.setdefault(item.stage, {})[item.implementation] = None

    def shown(items: Iterable[Support]) -> tuple[EvidenceItem, ...]:
        return tuple(
            EvidenceItem(
                kind=item.kind,
                start_s=round(item.start_ns / SECOND_NS, 3),
                end_s=round(item.end_ns / SECOND_NS, 3),
                text=item.text,
                captured_at=captured_at(item.start_ns) if captured_at else None,
                snapshot=snapshot_of(record.stream, item.start_ns) if item.kind in SEEN else None,
            )
            for item in items
        )

    question = str(plan.stage(record.stage).params.get("question", ""))
    return Answer(
        job=spec.id,
        stream=record.stream,
        question=reply.question if reply else question,
        answer=reply.answer if reply else "",
        confidence=reply.confidence if reply else 0.0,
        evidence=shown(reply.evidence if reply else ()),
        stages=tuple(
            StageNote(
                stage=stage.name,
                capability=stage.capability,
                implementation=", ".join(ran_on.get(stage.id, ())) or stage.rung.rung,
                instead_of=stage.rung.rung if set(ran_on.get(stage.id, ())) - {stage.rung.rung} else "",
            )
            for stage in stages
        ),
        gaps=tuple(
            GapNote(stage="media", first=record.last, last=record.last, cause="source_lost", detail=flaw)
            for flaw in flaws
        )
        + _lost(spec)
        + tuple(
            GapNote(
                stage=names.get(gap.stage, gap.stage),
                first=gap.first,
                last=gap.last,
                cause=gap.cause,
                detail=gap.detail,
            )
            for gap in gaps
        ),
        latency_s=round(latency_s, 4),
        compute_s=round(sum(each.compute_s for each in measured), 4),
        trace_id=trace_id,
        output=None if reply else _told(output),
        first=record.first if first is None else first,
        last=record.last,
        perhaps=shown(reply.perhaps if reply else ()),
        spent=all_of([each.spent for each in measured if each.spent]),
    )


def _told(output: msgspec.Struct | None) -> Any:
    """What a last stage found that answers no question: of evidence the observations, for what is beside them is for
    other stages, or for its own next output."""
    if isinstance(output, Evidence):
        return {"observations": msgspec.to_builtins(output.observations)}
    return None if output is None else msgspec.to_builtins(output)


def _lost(spec: JobSpec) -> tuple[GapNote, ...]:
    if spec.lost is None or spec.lost.last is None:
        return ()
    detail = "fell out of retention before it was asked for"
    return (GapNote(stage="media", first=spec.lost.first, last=spec.lost.last, cause="dropped", detail=detail),)


def digest(output: msgspec.Struct | None) -> str:
    """What an output says, without how surely: two windows that find the same say the same. Nothing found says
    NOTHING."""
    match output:
        case Reply(answer=answer, evidence=evidence):
            if answer == NOT_IN_THE_VIDEO:
                return NOTHING
            content: Any = [answer, sorted((item.kind, item.start_ns, item.text) for item in evidence)]
        case Evidence(observations=()) | None:
            return NOTHING
        case Evidence():
            content = output.said()
        case _:
            content = output
    return hashlib.sha256(encode(content)).hexdigest()[:16]
