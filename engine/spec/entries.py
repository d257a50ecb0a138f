"""What stands in the registry's buckets: from bytes that any NATS client can write to what can be relied on.

An entry is sound where all who use it can: its key is what it calls itself, and can stand in a subject; a job's stages
read only what comes before them, so there is no cycle; each has its spans. Everything else raises Malformed, with what
is wrong with it. Pure.
"""

from collections.abc import Iterable

from engine.spec.jobs import JobProgress, JobSpec, Span
from engine.spec.objective import LEAST_WEIGHT, MOST_WEIGHT
from engine.spec.operator import Map, Scope, Window
from engine.spec.workflow import MEDIA
from streams import subjects
from streams.decoding import from_json, shown
from streams.errors import Malformed, UserError
from streams.records import Record
from streams.subjects import MAX_INDEX

MAX_SIZE = 10**5  # of a window, or a halo
MAX_STAGES = 1000
MAX_TIME_NS = 253402300799 * 10**9  # the last second of the year 9999


class Faulty(Record, frozen=True, omit_defaults=False):
    """An entry that was set aside, and why."""

    kind: str  # "job", "stream" or "node"
    key: str
    cause: str


def sound_progress(value: bytes) -> JobProgress:
    """Raises Malformed."""
    progress = from_json(value, JobProgress)
    reached = progress.reached.values()
    if len(reached) > MAX_STAGES or not all(0 <= each.next <= MAX_INDEX + 1 for each in reached):
        raise Malformed("it says of no stage a segment that there can be")
    return progress


def sound_job(key: str, value: bytes) -> JobSpec:
    """Raises Malformed."""
    job = from_json(value, JobSpec)
    named(key, job.id)
    _token("stream", job.stream)
    stages = job.plan.stages
    if not 0 < len(stages) <= MAX_STAGES:
        raise Malformed(f"it has {len(stages)} stages: from 1 to {MAX_STAGES} can be run")
    before = {MEDIA}
    for stage in stages:
        _token("stage", stage.id)
        if stage.id in before:
            raise Malformed(f"stage {shown(stage.id)} comes twice")
        for source in stage.sources:
            if source not in before:
                raise Malformed(f"stage {shown(stage.id)} reads {shown(source)}, which does not come before it")
        before.add(stage.id)
        _scope(stage.id, stage.scope)
        _spans(stage.id, job.spans.get(stage.id, ()))
    for id in job.plan.answers:
        if id not in before - {MEDIA}:
            raise Malformed(f"its answers are of stage {shown(id)}, which it does not have")
    if not job.plan.answers:
        raise Malformed("none of its stages gives its answers")
    for span in (job.asked, *([job.lost] if job.lost else [])):
        _span("asked", span)
    if job.prompt_from is not None:
        _index("prompt_from", job.prompt_from)
    if any(not 0 <= round < 2**63 for round in job.rounds.values()):
        raise Malformed("rounds: give whole numbers from 0 to 2**63 - 1")
    if not 0 <= job.submitted_ns <= MAX_TIME_NS:
        raise Malformed(f"submitted_ns: {job.submitted_ns}: no clock shows that")
    if not 0 <= job.max_lag_s <= 86400:
        raise Malformed(f"max_lag_s: {job.max_lag_s:g}: give from 0 to 86400 seconds")
    if not 0 <= job.latency_s <= 86400:
        raise Malformed(f"latency_s: {job.latency_s:g}: give from 0 to 86400 seconds")
    if not LEAST_WEIGHT <= job.weight <= MOST_WEIGHT:
        raise Malformed(f"weight: {job.weight:g}: give from {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}")
    return job


def named(key: str, name: str) -> None:
    """Raises Malformed unless an entry is called as its key, and can be so called."""
    _token("key", key)
    if name != key:
        raise Malformed(f"it calls itself {shown(name)}")


def _token(what: str, text: str) -> None:
    try:
        subjects.token(text)
    except UserError as error:
        raise Malformed(f"{what} {shown(text)} cannot be part of a subject: use 1 to 128 of A-Z a-z 0-9 _ -") from error


def _scope(id: str, scope: Scope) -> None:
    match scope:
        case Map(before, after):
            sizes: Iterable[int] = (before, after)
            least = 0
        case Window(size):
            sizes, least = (size,), 1
        case _:
            return
    if not all(least <= size <= MAX_SIZE for size in sizes):
        raise Malformed(f"stage {shown(id)} looks at {max(sizes)} segments: from {least} to {MAX_SIZE} can be")


def _spans(id: str, spans: tuple[Span, ...]) -> None:
    if not spans:
        raise Malformed(f"spans: none of stage {shown(id)}")
    for span in spans:
        _span(f"spans of {shown(id)}", span)


def _span(where: str, span: Span) -> None:
    _index(where, span.first)
    if span.last is not None:
        _index(where, span.last)
        if span.last < span.first:
            raise Malformed(f"{where}: {span.first} to {span.last} is no range")


def _index(where: str, index: int) -> None:
    if not 0 <= index <= MAX_INDEX:
        raise Malformed(f"{where}: {index} is no segment: from 0 to {MAX_INDEX}")
