"""Services: what any node answers when it is asked over NATS. Requests and replies are JSON.

| subject | request | reply |
|---|---|---|
| `penstock.jobs.submit` | `JobRequest` | `Submitted` |
| `penstock.jobs.list` | `{"stream"?, "state"?}` | `{"jobs": [JobView]}` |
| `penstock.jobs.show`, `penstock.jobs.cancel` | `{"job"}` | `JobView` |
| `penstock.streams.list` | | `{"streams": [StreamView]}` |
| `penstock.streams.declare` | `Declare`, with `url` for nodes to read it | `{}` |
| `penstock.streams.forget` | `{"stream"}` | `{}` |
| `penstock.nodes.list` | | `{"nodes": [NodeStatus]}` |
| `penstock.ask.<stream>` | `{"question", "start"?, "end"?, "timeout_s"?}` | an `Answer` |
| `penstock.search` | `{"text", "streams"?, "num"?, "timeout_s"?}` | `{"hits": [Hit]}` |
| `penstock.operators.<capability>` | `{"stream", "params"?, "start"?, "end"?, "timeout_s"?}` | `{"outputs": [...]}` |
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import anyio
import anyio.to_thread
import msgspec
import structlog

from engine.decide.answer import Answer
from engine.node.gate import Gate
from engine.node.searching import Hit, Index, Search, Searching
from engine.node.submission import JobRequest, Submitted, submit
from engine.node.views import JobView, StreamView, faulty_job, job_view, stream_views
from engine.run.profiles import Profiles
from engine.run.registry import NodeStatus, Registry
from engine.spec.catalogue import Catalogue
from engine.spec.compose import compose
from engine.spec.jobs import JobSpec, State
from engine.spec.operator import Machine
from engine.spec.stream import StreamSettings, StreamSpec
from engine.spec.workflow import Workflow
from streams import subjects
from streams.decoding import from_json
from streams.errors import Malformed, PenstockError, Transient, UserError
from streams.subjects import PREFIX
from streams.wire.follow import follow
from streams.wire.ledger import Ledger, Stored
from streams.wire.service import Endpoint, Request

log = structlog.get_logger(__name__)
T = TypeVar("T")

MAX_WAIT_S = 600.0


class Which(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    job: str


class Filter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    stream: str = ""
    state: State | Literal[""] = ""


class OfStream(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    stream: str = ""


class Nothing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No keys."""


class Declare(StreamSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A stream that nodes are to read, or how one that clients bring is to be treated."""

    name: str


class Ask(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    question: str
    start: str = ""
    end: str = ""
    timeout_s: float = 60.0


class Call(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    stream: str
    params: dict[str, Any] = msgspec.field(default_factory=dict)
    start: str = ""
    end: str = ""
    timeout_s: float = 60.0


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """What a capability found in one segment, or in a range of them."""

    first: int
    last: int
    output: Any
    gap: str = ""


class Services:
    """The answers of one node; any other's are the same."""

    def __init__(
        self,
        registry: Registry,
        ledger: Ledger,
        catalogue: Catalogue,
        machine: Machine,
        question_workflow: Workflow,
        gate: Gate | None = None,
        index: Index | None = None,
        profiles: Profiles | None = None,
    ) -> None:
        self._profiles = profiles
        self._gate = gate or Gate()
        self._searching = None if index is None else Searching(registry, ledger, catalogue, index)
        self._registry = registry
        self._ledger = ledger
        self._catalogue = catalogue
        self._machine = machine
        self._question_workflow = question_workflow

    def endpoints(self) -> dict[str, Endpoint]:
        """By the name that `$SRV.INFO` shows."""

        def endpoint(subject: str, kind: type[T], handle: Callable[[T, str], Awaitable[Any]], about: str) -> Endpoint:
            async def answer(request: Request) -> bytes:
                last_token = request.subject.rpartition(".")[2]
                return msgspec.json.encode(await handle(_read(request.data, kind), last_token))

            return Endpoint(subject=subject, handler=answer, description=about)

        return {
            "jobs-submit": endpoint(f"{PREFIX}.jobs.submit", JobRequest, self._submit, "submit a job"),
            "jobs-list": endpoint(f"{PREFIX}.jobs.list", Filter, self._list, "list jobs"),
            "jobs-show": endpoint(f"{PREFIX}.jobs.show", Which, self._show, "show one job"),
            "jobs-cancel": endpoint(f"{PREFIX}.jobs.cancel", Which, self._cancel, "cancel a job"),
            "streams-list": endpoint(f"{PREFIX}.streams.list", OfStream, self._streams, "list streams"),
            "streams-declare": endpoint(f"{PREFIX}.streams.declare", Declare, self._declare, "declare a stream"),
            "streams-forget": endpoint(f"{PREFIX}.streams.forget", OfStream, self._forget, "forget a stream"),
            "nodes-list": endpoint(f"{PREFIX}.nodes.list", Nothing, self._nodes, "list nodes"),
            "ask": endpoint(f"{PREFIX}.ask.*", Ask, self._ask, "answer a question over a range of a stream"),
            "search": endpoint(f"{PREFIX}.search", Search, self._search, "search in what was said and shown"),
            "operators": endpoint(f"{PREFIX}.operators.*", Call, self._call, "run one capability over a stream"),
        }

    async def submit(self, request: JobRequest, *, confined: bool = False) -> Submitted:
        """`confined`: for somebody whom the node opens only what its `[access]` allows. Raises UserError with what
        would be right."""
        if confined and request.webhook:
            self._gate.check_webhook(request.webhook)
        parts = (self._registry, self._ledger, self._catalogue, self._machine)
        return await submit(*parts, request, self._question_workflow, self._profiles, confined=confined)

    async def declare(self, spec: StreamSpec, *, confined: bool = False) -> None:
        """As `submit`: say how a stream is to be treated, and where nodes read it, if it is they who do."""
        if confined and spec.url:
            await anyio.to_thread.run_sync(self._gate.check, spec.url)
        if confined and spec.webhook:
            self._gate.check_webhook(spec.webhook)
        await self._registry.declare(msgspec.structs.replace(spec, confined=confined))

    async def cancel(self, job: str) -> JobView:
        """A job that has ended stays as it is; an entry that cannot be used is taken away. Raises UserError where there
        is none."""

        def canceled(spec: JobSpec) -> JobSpec:
            return spec if spec.state != "running" else msgspec.structs.replace(spec, state="canceled")

        try:
            return job_view(await self._registry.change_job(job, canceled))
        except Malformed:
            found = (await self._faulty_jobs(job))[0]
            await self._registry.forget_faulty_job(job)
            return found

    async def jobs(self, stream: str = "", state: State | Literal[""] = "") -> list[JobView]:
        """Those on a stream and in a state, where these are given; the oldest first."""
        jobs = await self._registry.jobs()
        nodes = await self._registry.nodes()
        trouble = self._ledger.link.trouble()
        views = [
            job_view(job, nodes, trouble) for job in jobs if stream in ("", job.stream) and state in ("", job.state)
        ]
        return views if stream or state else views + await self._faulty_jobs()

    async def _faulty_jobs(self, id: str = "") -> list[JobView]:
        faulty = await self._registry.faulty()
        return [faulty_job(entry) for entry in faulty if entry.kind == "job" and id in ("", entry.key)]

    async def _submit(self, request: JobRequest, _: str) -> Submitted:
        return await self.submit(request, confined=not self._gate.trusts_registry)

    async def _list(self, wanted: Filter, _: str) -> Mapping[str, list[JobView]]:
        return {"jobs": await self.jobs(wanted.stream, wanted.state)}

    async def _show(self, which: Which, _: str) -> JobView:
        try:
            nodes = await self._registry.nodes()
            return job_view(await self._registry.job(which.job), nodes, self._ledger.link.trouble())
        except Malformed:
            return (await self._faulty_jobs(which.job))[0]

    async def _cancel(self, which: Which, _: str) -> JobView:
        return await self.cancel(which.job)

    async def forget(self, stream: str) -> None:
        """Nodes stop reading a stream, it is no longer listed, and what is stored of it is deleted: media, results,
        answers, gaps and dead letters. Raises UserError where there is none, or jobs run on it."""
        faulty = {entry.key for entry in await self._registry.faulty() if entry.kind == "stream"}
        if stream not in faulty and await self._registry.stream(stream) is None:
            raise UserError(f"no stream {stream!r}: `penstock streams` shows those there are")
        running = [job.id for job in await self._registry.jobs() if (job.stream, job.state) == (stream, "running")]
        if running:
            raise UserError(f"jobs run on stream {stream!r}: `penstock jobs cancel` first {', '.join(running[:5])}")
        await self._registry.forget_stream(stream)
        for pattern in subjects.everything_of(stream):
            await self._ledger.purge(pattern)
        if self._searching is not None:
            try:
                await self._searching.forget(stream)
            except (Transient, UserError) as error:  # the next search drops what is not in the ledger
                log.warning("index_not_cleared", stream=stream, error=str(error))

    async def _forget(self, which: OfStream, _: str) -> Mapping[str, str]:
        await self.forget(which.stream)
        return {}

    async def _streams(self, wanted: OfStream, _: str) -> Mapping[str, list[StreamView]]:
        return {"streams": await stream_views(self._registry, self._ledger, wanted.stream)}

    async def _declare(self, wanted: Declare, _: str) -> Mapping[str, str]:
        await self.declare(wanted.spec(wanted.name), confined=not self._gate.trusts_registry)
        return {}

    async def _nodes(self, _: Nothing, __: str) -> Mapping[str, list[NodeStatus]]:
        return {"nodes": await self._registry.nodes()}

    async def _ask(self, ask: Ask, stream: str) -> Answer:
        check_wait(ask.timeout_s)
        request = JobRequest(stream=stream, asks=(ask.question,), start=ask.start, end=ask.end)
        job = await self.submit(request)
        with _within(ask.timeout_s, f"no answer within {ask.timeout_s:g} s; job {job.job} goes on: follow its answers"):
            async for answer in _answers(follow(self._ledger, subjects.answers(job.job, stream))):
                return answer
        raise PenstockError(f"job {job.job} has no answer")

    async def search(self, wanted: Search) -> list[Hit]:
        """The passages of all streams, or of those named, that are nearest to a text. Raises UserError for a stream of
        which nothing can be found, or where nothing is searched."""
        if self._searching is None:
            raise UserError("this node keeps no index to search in")
        check_wait(wanted.timeout_s)
        with _within(
            wanted.timeout_s, f"not searched within {wanted.timeout_s:g} s; what was taken in is kept: try again"
        ):
            return await self._searching.find(wanted)

    async def _search(self, wanted: Search, _: str) -> Mapping[str, list[Hit]]:
        return {"hits": await self.search(wanted)}

    async def _call(self, call: Call, capability: str) -> Mapping[str, list[Output]]:
        return {"outputs": await self.call(capability, call)}

    async def call(self, capability: str, call: Call) -> list[Output]:
        """Run one capability, and whatever it needs, over a range of a stream; what it finds, in order."""
        check_wait(call.timeout_s)
        workflow = compose(self._catalogue, capability, call.params)
        job = await self.submit(JobRequest(stream=call.stream, workflow=workflow, start=call.start, end=call.end))
        with _within(call.timeout_s, f"not finished within {call.timeout_s:g} s; job {job.job} goes on"):
            await self._finished(job.job)
            every = self._ledger.every(subjects.answers(job.job, call.stream))
            answers = [answer async for answer in _answers(every)]
        return [_output(answer, capability) for answer in answers]

    async def _finished(self, id: str) -> None:
        """Wait until a job has ended. Raises PenstockError where it failed."""
        async with self._registry.changes() as wait:
            while (spec := await self._registry.job(id)).state == "running":
                await wait()
        if spec.state != "done":
            raise PenstockError(f"job {id} was {spec.state}: {spec.detail or 'somebody ended it'}")


async def _answers(records: AsyncIterator[Stored]) -> AsyncIterator[Answer]:
    """Those records that are answers; anyone can publish there."""
    async for stored in records:
        try:
            answer = from_json(stored.data, Answer)
        except Malformed as error:
            log.warning("foreign_answer", subject=stored.subject, seq=stored.seq, error=str(error))
            continue
        yield answer


def _output(answer: Answer, capability: str) -> Output:
    gaps = [gap.detail or gap.cause for gap in answer.gaps if gap.stage == capability]
    found = answer.output if answer.output is not None else msgspec.to_builtins(answer)
    return Output(first=answer.first, last=answer.last, output=None if gaps else found, gap="; ".join(gaps))


def check_wait(timeout_s: float) -> None:
    """Raises UserError for a time that nobody waits."""
    if not 0 < timeout_s <= MAX_WAIT_S:
        raise UserError(f"timeout_s: {timeout_s:g}: give above 0 and at most {MAX_WAIT_S:g} seconds")


@contextmanager
def _within(timeout_s: float, otherwise: str) -> Iterator[None]:
    """Raises Transient where the time is up."""
    try:
        with anyio.fail_after(timeout_s):
            yield
    except TimeoutError as error:
        raise Transient(otherwise) from error


def _read(data: bytes, kind: type[T]) -> T:
    """A request's JSON. Raises UserError with the keys that would be right."""
    try:
        return from_json(data or b"{}", kind)
    except Malformed as error:
        allowed = ", ".join(kind.__struct_fields__) or "none"  # type: ignore[attr-defined]
        raise UserError(f"request: {error}; its keys are {allowed}") from error
