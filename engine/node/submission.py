"""Submission: from a request to a job, with what it shares with others.

A request says what is to be found out about which stretch of a stream. Here it becomes a plan, spans of segments, and a
word on what is computed already or being computed for others, and what is new.
"""

import math
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated

import anyio.to_thread
import msgspec

from engine.decide.feasible import Known, why_not
from engine.decide.lacking import MAX_VIEW
from engine.decide.running_graph import running_stages
from engine.decide.sharing import is_covered, lacks
from engine.node.recovery import lost, stored_of
from engine.node.stretches import Kept, index_at, kept_of, segment_of
from engine.run.gaps import put_gaps
from engine.run.profiles import Profiles
from engine.run.registry import Registry, new_id
from engine.spec.catalogue import Catalogue
from engine.spec.choosing import NOT_JUDGED, Pace
from engine.spec.jobs import JobSpec, Span, spans_of
from engine.spec.objective import Objective, Weight, objective_of
from engine.spec.operator import Machine, Map, OfRanges
from engine.spec.plan import Plan, make_plan, on_rung
from engine.spec.profile import OnRung, Profile
from engine.spec.stream import StreamSpec
from engine.spec.webhook_url import check_webhook
from engine.spec.workflow import Workflow
from streams import subjects
from streams.errors import Infeasible, UserError
from streams.records import MediaInfo, Record
from streams.subjects import Key
from streams.wire.ledger import Ledger
from streams.wire.retention import RESULTS

MAX_WINDOW_S = 3600.0  # that a standing question looks back
MAX_ASKS = 100
MAX_ASK = 2000  # characters
MAX_KEY = 128
MAX_SLO = 2


class JobRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client asks for. Without a workflow, it is the one that answers questions."""

    stream: str
    workflow: Workflow | None = None
    asks: Annotated[
        tuple[Annotated[str, msgspec.Meta(extra_json_schema={"maxLength": MAX_ASK})], ...],
        msgspec.Meta(extra_json_schema={"maxItems": MAX_ASKS}),
    ] = ()
    standing: bool = False
    window_s: float = 60.0  # standing: how far back an answer looks
    start: str = ""  # of the range: "-10m", "1:05", a time of day; empty: where the stream begins, standing: now
    end: str = ""  # the same; empty: now for a live stream, its end for a durable one
    webhook: str = ""
    slo: Annotated[tuple[str, ...], msgspec.Meta(extra_json_schema={"maxItems": MAX_SLO})] = ()  # "latency<2s", ..
    weight: Weight = 1.0  # standing: 2 has twice the share of 1
    drafts: bool = False  # publish what the beginnings of the range say, which is computed as well
    id: str = ""
    key: Annotated[str, msgspec.Meta(max_length=MAX_KEY)] = ""  # asked twice with one key and id, it is one job


class Submitted(Record, frozen=True, omit_defaults=False):
    """What became of a request."""

    job: str
    stream: str
    standing: bool
    shared: tuple[str, ...]  # names of the stages that others need as well, or whose results are there
    new: tuple[str, ...]
    first: int  # the segments its answers are about
    last: int | None
    notices: tuple[str, ...] = ()


async def submit(
    registry: Registry,
    ledger: Ledger,
    catalogue: Catalogue,
    machine: Machine,
    request: JobRequest,
    question_workflow: Workflow,
    profiles: Profiles | None = None,
    *,
    confined: bool = False,
) -> Submitted:
    """Make the job and put it into the registry; its answers are sent only where nodes connect for others, if it is
    `confined`. Raises UserError with what would be right, Infeasible where its objective cannot be held by `profiles`.
    """
    if request.id and (standing := await registry.job_of_key(request.id, request.key)) is not None:
        return _told(standing, standing.spans)  # it is asked for once more, and the stream may have gone on meanwhile
    if len(request.asks) > MAX_ASKS:
        raise UserError(f"{len(request.asks)} questions in one job: ask at most {MAX_ASKS}, in several jobs")
    for ask in request.asks:
        if len(ask) > MAX_ASK:
            raise UserError(f"a question of {len(ask)} characters: ask in at most {MAX_ASK}")
    if request.webhook:
        check_webhook(request.webhook)
    stream = await _known_stream(registry, ledger, request.stream)
    objective = _objective(request, stream)
    media = await kept_of(ledger, stream.name)
    window = _window(request, stream) if request.standing else None
    info = await _info(ledger, stream.name, media)
    workflow = (request.workflow or question_workflow).for_asks(request.asks)
    lag_s = stream.max_lag_s if stream.policy == "live" else 0.0
    pace = Pace(stream.segment_s, min(lag_s, objective.latency_s or lag_s))
    nodes = await registry.nodes()
    elsewhere = {rung for node in nodes for rung in node.rungs}
    judged = NOT_JUDGED
    if profiles is not None and objective.quality < 1:
        judged = await anyio.to_thread.run_sync(profiles.judged)
    how = info, window, elsewhere, pace, objective.quality, judged
    plan = await anyio.to_thread.run_sync(make_plan, workflow, catalogue, machine, *how)
    _check_waits(plan, pace, objective)
    if profiles is not None and len(nodes) <= 1:  # what machines of others take is not known here
        await anyio.to_thread.run_sync(_check_feasible, plan, profiles, pace, objective, machine)
    asked = await _asked(ledger, request, stream, media)
    spans = spans_of(plan, asked, drafts=request.drafts and not request.standing)
    shared, rounds = await _shared(registry, ledger, plan, stream.name, spans, media)
    live = stream.policy == "live"
    spec = JobSpec(
        id=subjects.token(request.id) if request.id else new_id("j"),
        stream=stream.name,
        plan=plan,
        spans=spans,
        asked=asked,
        standing=request.standing,
        asks=request.asks,
        prompt_from=media.next if live and request.standing else None,
        max_lag_s=stream.max_lag_s if live else 0.0,
        latency_s=objective.latency_s,
        weight=request.weight,
        rounds=rounds,
        submitted_ns=time.time_ns(),
        lost=Span(first=0, last=media.first - 1) if media.first > 0 and _reaches_back(request, asked, media) else None,
        webhook=request.webhook,
        confined=confined,
        key=request.key,
    )
    await _tell_lost(ledger, spec, media.first)
    return _told(await registry.add_job(spec), shared)


def _told(job: JobSpec, shared: Collection[str]) -> Submitted:
    return Submitted(
        job=job.id,
        stream=job.stream,
        standing=job.standing,
        shared=tuple(stage.name for stage in job.plan.stages if stage.id in shared),
        new=tuple(stage.name for stage in job.plan.stages if stage.id not in shared),
        first=job.asked.first,
        last=job.asked.last,
        notices=job.plan.notices,
    )


async def submit_whole(
    registry: Registry, ledger: Ledger, plan: Plan, stream: StreamSpec, asks: Sequence[str] = (), id: str = ""
) -> JobSpec:
    """Make a job over a whole stream that its submitter brings, from the first segment to the end, whatever of it is
    stored by now, and put it into the registry."""
    job, name = subjects.token(id) if id else new_id("j"), subjects.token(stream.name)
    spans = spans_of(plan, Span(first=0))
    media = await kept_of(ledger, name)
    _, rounds = await _shared(registry, ledger, plan, name, spans, media)
    now_ns = time.time_ns()
    spec = JobSpec(id=job, stream=name, plan=plan, spans=spans, asks=tuple(asks), rounds=rounds, submitted_ns=now_ns)
    await registry.add_job(spec)
    return spec


async def _shared(
    registry: Registry,
    ledger: Ledger,
    plan: Plan,
    stream: str,
    spans: Mapping[str, Sequence[Span]],
    media: Kept,
) -> tuple[set[str], dict[str, int]]:
    """The ids of the stages that others ask for as well or that lack nothing, and a new round for each that is none of
    these: an earlier job may have had its inputs delivered and acknowledged, and its outputs have gone since. The
    number only has to be one that no earlier job was given."""
    ids = {stage.id for stage in plan.stages}
    running = {s.id: s for s in running_stages([j for j in await registry.jobs() if _runs_on(j, stream)], ids)}
    stored = await stored_of(ledger, stream, ids)
    num_segments = None if media.end is None else media.end.num_segments
    shared = {
        s.id
        for s in plan.stages
        if is_covered(running.get(s.id), spans[s.id])
        or not lacks(spans[s.id], stored[s.id], num_segments, reduces=isinstance(s.scope, OfRanges))
    }
    round = await ledger.last_stored(RESULTS)
    return shared, {s.id: round for s in plan.stages if s.id not in shared}


def _runs_on(job: JobSpec, stream: str) -> bool:
    return job.state == "running" and job.stream == stream


async def _known_stream(registry: Registry, ledger: Ledger, name: str) -> StreamSpec:
    """Raises UserError where nobody has declared or stored such a stream."""
    spec = await registry.stream(name)
    if spec is None and await ledger.get(subjects.media_of(subjects.token(name))) is not None:
        spec = StreamSpec(name=name)  # of a file that a command has read
    if spec is None:
        there = ", ".join(sorted(await registry.streams())) or "none yet"
        raise UserError(f"no stream {name!r}; there are: {there}. `penstock push URL --stream {name}` brings one")
    return spec


def _objective(request: JobRequest, stream: StreamSpec) -> Objective:
    if len(request.slo) > MAX_SLO:
        raise UserError(f"{len(request.slo)} bounds in slo: give latency and quality, once each")
    objective = objective_of(request.slo)
    if request.slo and not (request.standing and stream.policy == "live"):
        raise UserError("slo: only a standing job on a live stream has a latency: give `standing`, or leave `slo` away")
    if request.weight != 1 and not (request.standing and stream.policy == "live"):
        raise UserError("weight: it is among live streams, of a standing job: give `standing`, or leave `weight` away")
    return objective


def _check_waits(plan: Plan, pace: Pace, objective: Objective) -> None:
    """Raises UserError where a stage waits for more of the stream than answers may take."""
    for stage in plan.stages:
        waits_s = stage.scope.after * pace.segment_s if isinstance(stage.scope, Map) else 0.0
        if objective.latency_s and waits_s >= objective.latency_s:
            waits = f"{stage.name!r} on {stage.rung.rung} waits for {waits_s:g} s more of the stream"
            raise UserError(f"slo latency<{objective.latency_s:g}s: {waits}: give more, or shorter segments")


def _check_feasible(plan: Plan, profiles: Profiles, pace: Pace, objective: Objective, machine: Machine) -> None:
    """Raises Infeasible where no control could hold the latency, by what was measured on segments as long as these."""
    if not objective.latency_s:
        return
    known = Known(
        {
            stage.id: [_certain(profiles, on_rung(stage.capability, rung), pace.segment_s) for rung in stage.rungs]
            for stage in plan.stages
            if isinstance(stage.scope, Map)  # what looks back over more takes what it finds there
        }
    )
    why = why_not(plan, known, objective.latency_s, pace.segment_s, machine.num_cores)
    if why:
        clips = {each.media for found in known.profiles.values() for each in found if each is not None}
        raise Infeasible(
            f"slo {why}. That is by profiles of {', '.join(sorted(clips))}: `penstock profile --like` a clip of yours"
            " measures anew"
        )


def _certain(profiles: Profiles, on: OnRung, segment_s: float) -> Profile | None:
    """What was measured of a rung on segments of that length, but where it has worked faster here since."""
    profile, seen = profiles.of(on, segment_s=segment_s), profiles.seen(on)
    if profile is None or (seen is not None and seen.base_s + seen.per_item_s < profile.alone_s):
        return None
    return profile


def _window(request: JobRequest, stream: StreamSpec) -> int:
    if not 0 < request.window_s <= MAX_WINDOW_S:
        raise UserError(f"a window of {request.window_s:g} s: give above 0 and at most {MAX_WINDOW_S:g} s")
    return math.ceil(request.window_s / stream.segment_s)


async def _info(ledger: Ledger, stream: str, media: Kept) -> MediaInfo | None:
    """What a stream carries, as its newest segment has it; None where there is none."""
    segment = await segment_of(ledger, stream, media.kept[-1]) if media.kept else None
    if segment is None:
        return None
    codecs: dict[str, tuple[str, ...]] = {}
    for track in segment.tracks:
        codecs[track.kind] = (*codecs.get(track.kind, ()), track.codec)
    return MediaInfo(codecs=codecs)


# --- which stretch ---------------------------------------------------------------------------------------------


async def _asked(ledger: Ledger, request: JobRequest, stream: StreamSpec, media: Kept) -> Span:
    """The segments that answers are wanted for."""
    live = stream.policy == "live"
    if request.standing:
        if request.end:
            raise UserError("a standing question has no end: leave `end` (--to) away, or ask it once")
        first = await index_at(ledger, stream.name, media, request.start, live) if request.start else media.next
        if media.end is not None and first >= media.end.num_segments:
            raise UserError(f"stream {stream.name!r} has ended: ask once, or of its past with `start` (--from)")
        return Span(first=first)
    first = await index_at(ledger, stream.name, media, request.start, live) if request.start else media.first
    last: int | None = None
    if request.end:
        last = await index_at(ledger, stream.name, media, request.end, live)
    elif live or (request.start and media.end is None):
        last = media.next - 1
    if last is not None and last - first >= MAX_VIEW:
        raise UserError(f"a range of {last - first + 1} segments: ask about at most {MAX_VIEW} at once")
    if last is not None and last < first:
        what = "nothing of it is stored yet" if not media.kept else "the range ends before it begins"
        raise UserError(f"no segment of {stream.name!r} in that range: {what}")
    return Span(first=first, last=last)


# --- what there is already -------------------------------------------------------------------------------------


def _reaches_back(request: JobRequest, asked: Span, media: Kept) -> bool:
    """Whether more was asked for than is kept."""
    return asked.first <= media.first and not (request.standing and not request.start)


async def _tell_lost(ledger: Ledger, spec: JobSpec, first_kept: int) -> None:
    """Store a gap for every output asked for whose media are gone: nobody could compute it."""
    gaps = [
        lost(stage.id, spec.stream, key)
        for stage in spec.plan.stages
        if not isinstance(stage.scope, OfRanges)
        for span in spec.spans[stage.id]
        for key in map(Key.of, range(span.first, min(first_kept, first_kept if span.last is None else span.last + 1)))
    ]
    await put_gaps(ledger, gaps)
