"""What is served under /v1, and whether this node is well: handlers that read as what they do."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import Annotated, Any, Literal, get_origin

import anyio
import anyio.to_thread
import msgspec
from litestar import Request, Response, delete, get, post, put
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, FromQuery, HeaderParameter, JSONBody, QueryParameter
from litestar.response.base import ASGIResponse

from engine.decide.answer import Answer
from engine.decide.reconcile import unserved
from engine.decide.signals import WorkerSignals
from engine.decide.watching import SourceState
from engine.node.endpoints import MAX_WAIT_S, Output
from engine.node.searching import Hit, Search
from engine.node.submission import JobRequest, Submitted
from engine.node.views import JobView, StreamView, job_view, stream_views
from engine.run.registry import NodeStatus
from engine.spec.jobs import JobSpec, State
from engine.spec.operator import Capability, Media
from engine.spec.stream import Policy, StreamSettings
from penstock.http import document, events, metrics, pictures, uploads
from penstock.http.face import Face
from penstock.http.problems import Refusal, documented
from penstock.http.uploads import Uploaded
from streams.errors import LinkError, PenstockError, UserError
from streams.records import Record
from streams.subjects import token

Given = NamedDependency[Face]
JobState = Annotated[State | None, QueryParameter(name="state", description="only jobs in this state")]
LastEventId = Annotated[
    str | None, HeaderParameter(name="Last-Event-ID", description="go on behind this event, as browsers do")
]
After = Annotated[int | None, QueryParameter(ge=-1, description="as Last-Event-ID; 0: all that are kept, -1: from now")]
CutLength = Annotated[float | None, QueryParameter(ge=0.2, le=60, description="target length of a segment")]
Patience = Annotated[float, QueryParameter(gt=0, le=MAX_WAIT_S, description="how long to wait for the outputs")]

MISSING, TAKEN = HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT
INFEASIBLE = HTTPStatus(422)  # whose name is another one from Python 3.13 on
UPLOAD = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.INSUFFICIENT_STORAGE)
LATE = HTTPStatus.GATEWAY_TIMEOUT
EVENTS = ResponseSpec(
    Answer, generate_examples=False, description="the data of each event", media_type=events.MEDIA_TYPE
)


class PortView(Record, frozen=True, omit_defaults=False):
    name: str
    type: str
    many: bool
    optional: bool


class RungView(Record, frozen=True, omit_defaults=False):
    rung: str
    implementation: str
    version: int
    quality: float
    runs_in: str
    missing: str | None  # why it cannot run here


class OperatorView(Record, frozen=True, omit_defaults=False):
    """A capability: what it reads and gives, its parameters (JSON Schema), and what can do it, best first."""

    capability: str
    inputs: tuple[PortView, ...]
    output: str
    params: dict[str, Any]
    rungs: tuple[RungView, ...]


MAX_DETAIL = 50


class Health(Record, frozen=True):
    status: Literal["up", "ready"]
    num_nodes: int | None = None
    detail: tuple[str, ...] = ()  # what was set aside, and jobs that wait for what no node has


# --- jobs ----------------------------------------------------------------------------------------------------------


@post("/v1/jobs", responses=documented(INFEASIBLE, LATE), summary="Submit a job")
async def submit_job(face: Given, data: JSONBody[JobRequest]) -> Response[Submitted]:
    """Without a workflow, it is the one that answers questions. What a job shares with others is not computed twice."""
    with face.soon():
        submitted = await face.services.submit(data, confined=True)
    return Response(submitted, headers={"Location": f"/v1/jobs/{submitted.job}"})


@get("/v1/jobs", responses=documented(LATE), summary="List jobs")
async def list_jobs(face: Given, stream: FromQuery[str] = "", job_state: JobState = None) -> dict[str, list[JobView]]:
    with face.soon():
        return {"jobs": await face.services.jobs(stream, job_state or "")}


@get("/v1/jobs/{job:str}", responses=documented(MISSING, LATE), summary="Show a job")
async def show_job(face: Given, job: FromPath[str]) -> JobView:
    with face.soon():
        return job_view(await _job(face, job), trouble=face.ledger.link.trouble())


@delete("/v1/jobs/{job:str}", status_code=200, responses=documented(MISSING, LATE), summary="Cancel a job")
async def cancel_job(face: Given, job: FromPath[str]) -> JobView:
    """What it found so far is kept. A job that has ended stays as it is."""
    with face.soon(), _missing():
        return await face.services.cancel(job)


@get(
    "/v1/jobs/{job:str}/answers",
    responses={**documented(MISSING, LATE), 200: EVENTS},
    operation_class=document.AnswersOperation,
    summary="A job's answers",
)
async def answers_of_job(
    face: Given,
    request: Request[Any, Any, Any],
    job: FromPath[str],
    last_event_id: LastEventId = None,
    after: After = None,
) -> ASGIResponse:
    """As Server-Sent Events: `answer` for each, its id the sequence to go on behind, and `end` when the job has ended.
    With `Accept: application/json`, those there are now, as a list."""
    with face.soon():
        spec = await _job(face, job)
        subject = events.answers_of(spec.id, spec.stream)
        behind = await events.resumes_after(face, subject, last_event_id, after)
    if request.accept.best_match([events.MEDIA_TYPE, "application/json"]) == "application/json":
        return events.AnswerList(face, subject, behind)
    return events.AnswerEvents(face, subject, behind, spec.id)


@get("/v1/answers", responses={**documented(LATE), 200: EVENTS}, summary="Answers of jobs and streams, as they come")
async def answers(
    face: Given,
    job: FromQuery[str] = "",
    stream: FromQuery[str] = "",
    last_event_id: LastEventId = None,
    after: After = None,
) -> ASGIResponse:
    """As Server-Sent Events, without end: `answer` for each, its id the sequence to go on behind."""
    subject = events.answers_of(job, stream)
    with face.soon():
        behind = await events.resumes_after(face, subject, last_event_id, after)
    return events.AnswerEvents(face, subject, behind)


# --- streams -------------------------------------------------------------------------------------------------------


@get("/v1/streams", responses=documented(LATE), summary="List streams")
async def list_streams(face: Given) -> dict[str, list[StreamView]]:
    with face.soon():
        return {"streams": await stream_views(face.registry, face.ledger)}


@get("/v1/streams/{stream:str}", responses=documented(MISSING, LATE), summary="Show a stream")
async def show_stream(face: Given, stream: FromPath[str]) -> StreamView:
    with face.soon():
        return await _stream(face, stream)


@put("/v1/streams/{stream:str}", responses=documented(LATE), summary="Declare a stream")
async def declare_stream(face: Given, stream: FromPath[str], data: JSONBody[StreamSettings]) -> StreamView:
    """Say how a stream is to be treated from now on, and where nodes are to read it, if it is they who do."""
    with face.soon():
        await face.services.declare(data.spec(token(stream)), confined=True)
        return await _stream(face, stream)


@delete("/v1/streams/{stream:str}", responses=documented(MISSING, LATE), summary="Forget a stream")
async def forget_stream(face: Given, stream: FromPath[str]) -> None:
    """Nodes stop reading it, and it is no longer listed; what is stored of it stays until it falls out."""
    with face.soon(), _missing():
        await face.services.forget(stream)


@post(
    "/v1/streams/{stream:str}/media",
    responses=documented(TAKEN, LATE, *UPLOAD),
    operation_class=document.MediaOperation,
    summary="Upload media to a stream",
)
async def upload_media(
    face: Given,
    request: Request[Any, Any, Any],
    stream: FromPath[str],
    policy: FromQuery[Policy | None] = None,
    segment_s: CutLength = None,
) -> Uploaded:
    """The body is the bytes of a container, chunked or not, as long as it likes: MP4, Matroska, MPEG-TS, FLV, Ogg, WAV
    and others. It is cut into segments as it comes and held back as the stream is; its end ends the stream. An MP4 or
    MOV file with its index at the end has to be there as a whole first: it is spooled to the node's disk. An upload
    to a durable stream that broke off may be sent again from its beginning."""
    return await uploads.upload(face, request, stream, policy, segment_s)


# --- operators -----------------------------------------------------------------------------------------------------


@get("/v1/operators", responses=documented(), summary="List capabilities, and what can do them here")
async def list_operators(face: Given) -> dict[str, list[OperatorView]]:
    return {"operators": await anyio.to_thread.run_sync(_operators, face)}


@post(
    "/v1/operators/{capability:str}",
    status_code=200,
    responses=documented(MISSING, TAKEN, LATE, *UPLOAD),
    operation_class=document.CallOperation,
    summary="Run one capability on a media file",
)
async def run_operator(
    face: Given, request: Request[Any, Any, Any], capability: FromPath[str], timeout_s: Patience = 60.0
) -> dict[str, list[Output]]:
    """The body is a media file; the query holds the capability's parameters. What it finds, for each segment or for the
    whole. The same file is not cut twice, and what was computed of it is not computed again while it is kept."""
    if capability not in face.catalogue.capabilities:
        there = ", ".join(sorted(face.catalogue.capabilities)) or "none"
        raise Refusal(MISSING, f"no capability {capability!r} is installed; there are: {there}")
    params = _params(face.catalogue.capability(capability), request.query_params.dict())
    return {"outputs": await uploads.run_on(face, request, capability, params, timeout_s)}


@post("/v1/search", status_code=200, responses=documented(LATE), summary="Search in what was said and shown")
async def search(face: Given, data: JSONBody[Search]) -> dict[str, list[Hit]]:
    """Passages of all streams, or of those named, by meaning and by words, the nearest first."""
    return {"hits": await face.services.search(data)}


# --- the node ------------------------------------------------------------------------------------------------------


@get("/v1/nodes", responses=documented(LATE), summary="List nodes")
async def list_nodes(face: Given) -> dict[str, list[NodeStatus]]:
    with face.soon():
        return {"nodes": await face.registry.nodes()}


@get("/v1/signals", responses=documented(), summary="What the workers say of themselves")
async def list_signals(face: Given) -> dict[str, list[WorkerSignals]]:
    """Queues, service times, lag and memory of each worker this node has heard within the last seconds, as of then."""
    return {"workers": face.workers.now}


@get("/metrics", media_type=metrics.MEDIA_TYPE, summary="The same for Prometheus")
async def show_metrics(face: Given) -> Response[bytes]:
    """Without what sources do, where NATS does not say."""
    sources: list[SourceState] = []
    with anyio.move_on_after(face.limits.ready_s), suppress(PenstockError):
        sources = list((await face.registry.source_states()).values())
    wanted = None if face.workforce is None else face.workforce.wanted
    told = metrics.exposition(face.workers.now, sources, face.models.values(), wanted)
    return Response(told, media_type=metrics.MEDIA_TYPE)


@get("/healthz", summary="Whether this process is up")
async def healthz() -> Health:
    return Health(status="up")


@get("/readyz", responses=documented(), summary="Whether what is asked can be done: NATS stores, and workers are there")
async def readyz(face: Given, request: Request[Any, Any, Any]) -> Health:
    is_stranger = request.scope.get("state", {}).get("is_stranger", False)
    try:
        health = await _readiness(face)
    except LinkError as error:
        raise LinkError("not ready: ask with the token, or see its log") if is_stranger else error from error
    return Health(status=health.status) if is_stranger else health


async def _readiness(face: Face) -> Health:
    """Raises LinkError where it is not ready."""
    await face.prove()
    try:
        with anyio.fail_after(face.limits.ready_s):
            nodes = [node for node in await face.registry.nodes() if node.num_workers or node.max_workers]
            aside = [f"{entry.kind} {entry.key}: {entry.cause}" for entry in await face.registry.faulty()]
            offered = [frozenset(node.serves) for node in nodes if node.serves]
            for job in await face.registry.jobs():
                aside += [f"job {job.id} waits: {what}" for what in unserved(job, offered)]
    except (TimeoutError, LinkError) as error:
        raise LinkError(f"NATS does not answer within {face.limits.ready_s:g} s") from error
    if not nodes:
        raise LinkError("no node with workers is alive: start `penstock serve`")
    return Health(status="ready", num_nodes=len(nodes), detail=tuple(aside[:MAX_DETAIL]))


HANDLERS = (
    submit_job,
    list_jobs,
    show_job,
    cancel_job,
    answers_of_job,
    answers,
    list_streams,
    show_stream,
    declare_stream,
    forget_stream,
    upload_media,
    pictures.snapshot,
    list_operators,
    search,
    run_operator,
    list_nodes,
    list_signals,
    show_metrics,
    healthz,
    readyz,
)


# --- how -----------------------------------------------------------------------------------------------------------


@contextmanager
def _missing() -> Iterator[None]:
    """What the user got wrong is that there is no such thing."""
    try:
        yield
    except UserError as error:
        raise Refusal(MISSING, str(error)) from error


async def _job(face: Face, id: str) -> JobSpec:
    with _missing():
        return await face.registry.job(id)


async def _stream(face: Face, name: str) -> StreamView:
    for view in await stream_views(face.registry, face.ledger, name):
        return view
    there = ", ".join(sorted(await face.registry.streams())) or "none yet"
    raise Refusal(MISSING, f"no stream {name!r}; there are: {there}")


def _operators(face: Face) -> list[OperatorView]:
    views = []
    for name, capability in sorted(face.catalogue.capabilities.items()):
        rungs = tuple(
            RungView(
                rung=offer.rung.name,
                implementation=offer.operator.name,
                version=offer.operator.version,
                quality=offer.rung.quality,
                runs_in=offer.operator.runs_in,
                missing=offer.missing(face.machine, None),
            )
            for offer in face.catalogue.offers(name)
        )
        views.append(
            OperatorView(
                capability=name,
                inputs=tuple(
                    PortView(
                        name=port,
                        type="media" if issubclass(Media, what.type) else what.type.__name__,
                        many=what.many,
                        optional=what.optional,
                    )
                    for port, what in capability.inputs.items()
                ),
                output=capability.output.__name__,
                params=msgspec.json.schema(capability.params),
                rungs=rungs,
            )
        )
    return views


def _params(capability: Capability, query: Mapping[str, list[str]]) -> dict[str, Any]:
    """A query as parameters of a capability, by their types. Raises UserError with those there are."""
    kinds = {field.name: field.type for field in msgspec.structs.fields(capability.params)}
    given = {
        name: values if get_origin(kinds.get(name)) in (list, tuple, set, frozenset) else values[-1]
        for name, values in query.items()
        if name != "timeout_s" or name in kinds
    }
    try:
        params = msgspec.convert(given, capability.params, strict=False)
    except msgspec.ValidationError as error:
        there = ", ".join(kinds) or "none"
        raise UserError(f"parameters of {capability.name!r}: {error}; there are: {there}") from error
    return {name: value for name, value in msgspec.to_builtins(params).items() if name in given}
