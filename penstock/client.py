"""The Python client: a connection to running nodes.

    async with penstock.connect() as p:
        job = await p.run("What does a coffee cost?", inputs=["station.mp4"])
        async for answer in job.answers():
            print(answer.answer)

Jobs, answers and lists go by what docs/protocol.md describes. To push, it cuts media itself and stores the segments, as
a node does; a client in another language sends bytes instead.
"""

import os
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import anyio
import anyio.abc
import anyio.to_thread
import msgspec

from engine.decide.answer import Answer
from engine.decide.decisions import Decision
from engine.decide.redundancy.findings import Redundancy
from engine.decide.redundancy.report import find_redundancy
from engine.decide.watching import SourceState
from engine.node.costs import measured_costs
from engine.node.endpoints import Declare, Filter, Nothing, OfStream
from engine.node.feeding import feed, policy_for, source_of, treated
from engine.node.recalling import decisions, following_decisions
from engine.node.recording import Recorder
from engine.node.searching import Hit, Search
from engine.node.submission import JobRequest, Submitted
from engine.node.views import JobView, StreamView
from engine.run.registry import NodeStatus, Registry, new_id, open_registry
from engine.run.telemetry import Telemetry, configure_logging_once
from engine.spec.catalogue import installed
from engine.spec.jobs import BUCKET, State
from engine.spec.recording import Recording
from engine.spec.stream import Policy
from engine.spec.workflow import Workflow
from operators.heard import Speech
from penstock.own_server import server_of
from penstock.places import NATS_URL, default_store, title_of
from penstock.transcripts import heard_in, streams_heard
from streams import subjects
from streams.decoding import from_json
from streams.errors import Malformed, UserError, first_error
from streams.media.references import filled_in
from streams.media.segmenter import stream_id
from streams.records import EndOfStream, Gap, Segment
from streams.subjects import PREFIX
from streams.wire.asking import ask
from streams.wire.follow import follow
from streams.wire.ledger import Ledger, open_ledger
from streams.wire.link import connect as connect_link

T = TypeVar("T")


class Answers(NamedTuple):
    """Some answers of a job, one after the other. `next` is where to go on; `is_over` says that none will come."""

    answers: list[Answer]
    next: int
    is_over: bool


REQUEST_TIMEOUT_S = 20.0
MAX_BETWEEN = 1000  # decisions that are told and come as well


class Job:
    """A job that was submitted."""

    def __init__(self, client: "Client", submitted: Submitted) -> None:
        self.id = submitted.job
        self.stream = submitted.stream
        self.submitted = submitted
        self._client = client

    async def answers(self) -> AsyncIterator[Answer]:
        """Each answer once, from the first, until the job has ended; a standing job's go on with its stream."""
        async for answer in self._client.answers(job=self.id, stream=self.stream, until_done=True):
            yield answer

    async def drafts(self) -> AsyncIterator[Answer]:
        """Of a job submitted with drafts, what may still change, as it comes (`partial` is true); some may be missed.
        Does not end by itself."""
        async for answer in self._client.drafts(self.id, self.stream):
            yield answer

    async def cancel(self) -> JobView:
        return await self._client.cancel(self.id)


class Client:
    """Made by `connect`."""

    def __init__(self, ledger: Ledger, registry: Registry, tasks: anyio.abc.TaskGroup) -> None:
        self._ledger = ledger
        self._link = ledger.link
        self._registry = registry
        self._tasks = tasks
        self._traces = Telemetry("penstock-client")

    # --- jobs --------------------------------------------------------------------------------------------------

    async def run(
        self, question: str | Sequence[str], inputs: Sequence[str | Path], workflow: Workflow | None = None
    ) -> Job:
        """Ask about one input: the name of a stream, or a file, which is sent along while the job runs. Raises
        UserError for anything else."""
        if len(inputs) != 1:
            raise UserError(f"{len(inputs)} inputs: a job is about one; submit one for each")
        asks = (question,) if isinstance(question, str) else tuple(question)
        input = str(inputs[0])
        if not await anyio.Path(input).is_file():
            return await self.submit(input, asks, workflow)
        stream = await anyio.to_thread.run_sync(stream_id, Path(input), 5.0)
        first_stored = anyio.Event()

        async def push() -> None:
            try:
                title = title_of(Path(input))
                await self.push(input, stream, "durable", title=title, on_record=lambda record: first_stored.set())
            finally:
                first_stored.set()

        if not await self._is_complete(stream):
            self._tasks.start_soon(push)
            await first_stored.wait()  # what its tracks are decides what can be computed
        return await self.submit(stream, asks, workflow)

    async def submit(
        self,
        stream: str,
        asks: Sequence[str] = (),
        workflow: Workflow | None = None,
        *,
        standing: bool = False,
        window_s: float = 60.0,
        start: str = "",
        end: str = "",
        webhook: str = "",
        drafts: bool = False,
        id: str = "",
        slo: Sequence[str] = (),
        weight: float = 1.0,
    ) -> Job:
        """Submit a job. Without a workflow it is the one that answers questions. `slo`: of a standing job on a live
        stream, such as "latency<2s" and "quality>=good"; `weight`: of one, 2 for twice the share of what there is not
        room for. Raises UserError for what is wrong with it."""
        request = JobRequest(
            stream=stream,
            workflow=workflow,
            asks=tuple(asks),
            standing=standing,
            window_s=window_s,
            start=start,
            end=end,
            webhook=webhook,
            drafts=drafts,
            slo=tuple(slo),
            weight=weight,
            id=id or new_id("j"),
            key=secrets.token_hex(12),  # it may be asked twice, where a node goes down
        )
        return Job(self, await self._ask("jobs.submit", request, Submitted))

    async def jobs(self, stream: str = "", state: State | Literal[""] = "") -> list[JobView]:
        found = await self._ask("jobs.list", Filter(stream=stream, state=state), dict[str, list[JobView]])
        return found["jobs"]

    async def job(self, id: str) -> JobView:
        return await self._ask("jobs.show", {"job": id}, JobView)

    async def cancel(self, id: str) -> JobView:
        return await self._ask("jobs.cancel", {"job": id}, JobView)

    async def ask(self, stream: str, question: str, start: str = "", end: str = "", timeout_s: float = 60.0) -> Answer:
        """One question over a range of a stream, waited for."""
        request = {"question": question, "start": start, "end": end, "timeout_s": timeout_s}
        return await self._ask(f"ask.{subjects.token(stream)}", request, Answer, timeout_s + REQUEST_TIMEOUT_S)

    async def search(self, text: str, streams: Sequence[str] = (), num: int = 10, timeout_s: float = 60.0) -> list[Hit]:
        """The passages of what was said and shown that are nearest to a text, in all streams or in these."""
        request = Search(text=text, streams=tuple(streams), num=num, timeout_s=timeout_s)
        return (await self._ask("search", request, dict[str, list[Hit]], timeout_s + REQUEST_TIMEOUT_S))["hits"]

    async def answers(
        self, job: str = "", stream: str = "", after: int = 0, until_done: bool = False
    ) -> AsyncIterator[Answer]:
        """Answers as they come, of one job, one stream or all; from the first that is kept, or with `after=-1` from
        now. `until_done` ends with the job."""
        every = subjects.answers(subjects.token(job) if job else "*", subjects.token(stream) if stream else "*")
        unknown: list[UserError] = []  # a job that ended long ago is forgotten, and its answers are not
        is_over = partial(self._is_over, job, unknown) if until_done else None
        num_given = 0
        async for stored in follow(self._ledger, every, after, is_over, f"$KV.{BUCKET}.{job}" if until_done else ""):
            try:
                answer = from_json(stored.data, Answer)
            except Malformed:  # anyone can publish there
                continue
            num_given += 1
            yield answer
        if unknown and not num_given:
            raise unknown[0]

    async def next_answers(self, job: str, after: int = 0, wait_s: float = 30.0, num: int = 20) -> Answers:
        """Up to `num` answers of a job behind where another call ended, waited for where there is none yet; after
        `wait_s`, or where the job has ended, perhaps none. Raises UserError for a job that is not there."""
        unknown: list[UserError] = []
        is_over = partial(self._is_over, job, unknown)
        every = subjects.answers(subjects.token(job), "*")
        has_ended = await is_over()  # asked before it is looked
        found = await self._stored_answers(every, after, num)
        if not found.answers and not has_ended and wait_s > 0:
            news = follow(self._ledger, every, found.next, is_over, f"$KV.{BUCKET}.{job}")
            async with aclosing(news):
                with anyio.move_on_after(wait_s):
                    async for _ in news:
                        break
            has_ended = await is_over()
            found = await self._stored_answers(every, found.next, num)
        if unknown and not found.answers and not found.next:
            raise unknown[0]
        return found._replace(is_over=has_ended and len(found.answers) < num)

    async def _stored_answers(self, every: str, after: int, num: int) -> Answers:
        """Those that are stored behind a sequence; what is none, or cannot be read, is passed over."""
        found: list[Answer] = []
        seq = after
        while len(found) < num:
            noted = await self._ledger.next(every, seq + 1)
            if noted is None:
                break
            seq = noted.record.seq
            with suppress(Malformed):  # anyone can publish there
                found.append(from_json(noted.record.data, Answer))
        return Answers(found, seq, False)

    async def drafts(self, job: str, stream: str) -> AsyncIterator[Answer]:
        """Partial answers of a job, over core NATS: some may be missed. Does not end by itself."""
        send, receive = anyio.create_memory_object_stream[Answer](64)

        async def on_message(message: Any) -> None:
            try:
                draft = from_json(message.data, Answer)
            except Malformed:  # anyone can publish there
                return
            try:
                send.send_nowait(draft)
            except anyio.WouldBlock:
                receive.receive_nowait()  # a draft that nobody read makes room for a newer one
                send.send_nowait(draft)

        watch = await self._link.subscribe(subjects.partials(subjects.token(job), subjects.token(stream)), on_message)
        try:
            async with receive:
                async for answer in receive:
                    yield answer
        finally:
            send.close()
            await self._link.unsubscribe(watch)

    # --- streams -----------------------------------------------------------------------------------------------

    async def transcript(self, stream: str) -> Sequence[Speech]:
        """What was heard in a stream, by its name or its file's, in order of time. Raises UserError where nobody has
        listened to it yet."""
        stages = await streams_heard(self._registry)
        titles = {name: spec.title for name, spec in (await self._registry.streams()).items()}
        meant = next((name for name in sorted(stages) if stream in (name, titles.get(name))), None)
        if meant is None:
            raise UserError(f"nothing was heard in a stream {stream!r}: a job that transcribes it comes first")
        return await heard_in(self._ledger, stages[meant], meant)

    async def streams(self, stream: str = "") -> list[StreamView]:
        found = await self._ask("streams.list", OfStream(stream=stream), dict[str, list[StreamView]])
        return found["streams"]

    async def nodes(self) -> list[NodeStatus]:
        return (await self._ask("nodes.list", Nothing(), dict[str, list[NodeStatus]]))["nodes"]

    async def declare(self, declared: Declare) -> None:
        """Say how a stream is to be treated and, with a URL, have nodes read it from there."""
        await self._ask("streams.declare", declared, dict[str, str])

    async def forget(self, stream: str) -> None:
        """Have nodes stop reading a stream, and have it listed no longer; what is stored of it is deleted."""
        await self._ask("streams.forget", OfStream(stream=stream), dict[str, str])

    async def push(
        self,
        url: str,
        stream: str,
        policy: Policy | None = None,
        *,
        segment_s: float | None = None,
        max_lag_s: float | None = None,
        gop_s: float | None = None,
        title: str = "",
        on_record: Callable[[Segment | Gap], None] = lambda record: None,
        on_state: Callable[[SourceState], None] = lambda state: None,
    ) -> EndOfStream | None:
        """Read a source here and bring it to a stream; its end, or None where it stopped without one. What is not given
        of how the stream is treated is as it stands; of a new one, a source that goes on while nobody listens is live,
        any other durable. Raises UserError for a source that cannot be read."""
        standing = await self._registry.stream(stream)
        otherwise = policy_for(filled_in(url))
        spec = treated(standing, stream, policy, otherwise, segment_s=segment_s, max_lag_s=max_lag_s, gop_s=gop_s)
        spec = msgspec.structs.replace(spec, title=title or spec.title)
        source = source_of(spec, filled_in(url))
        await self._registry.declare(spec)
        holder = new_id("c")
        try:
            parts = (self._registry, self._ledger, spec, source, holder, self._traces)
            return await feed(*parts, on_record=on_record, on_state=on_state)
        except UserError:
            if standing is None and await self._ledger.get(subjects.media_of(stream)) is None:
                await self._registry.forget_stream(stream)  # nothing ever came of it
            raise

    async def decisions(self, stream: str = "", loop: str = "") -> list[Decision]:
        """What the control loops of the workers decided of late, in order; of one stream and of all together, or of
        all; by one loop, or by each."""
        return await decisions(self._link, stream, loop)

    async def follow_decisions(self, stream: str = "", loop: str = "") -> AsyncIterator[Decision]:
        """The same, and then what is decided, as it comes."""
        async with following_decisions(self._link, stream) as coming:
            told = await decisions(self._link, stream, loop)
            for decision in told:
                yield decision
            known = {msgspec.json.encode(each) for each in told[-MAX_BETWEEN:]}  # it may be told and come
            async for decision in coming:
                if loop in ("", decision.loop) and msgspec.json.encode(decision) not in known:
                    yield decision

    async def recording(self, seconds: float, stream: str = "") -> Recording:
        """What came on live streams in the last seconds and what was done of it, for `penstock replay`. Raises
        UserError where there is nothing to record."""
        nodes = await self._registry.nodes()
        num_cores = max(1, sum(node.num_cores for node in nodes))
        now_ns = self._ledger.clock.now_ns()
        return await Recorder(self._registry, self._ledger, installed()).record(seconds, num_cores, now_ns, stream)

    async def redundancy(self) -> list[Redundancy]:
        """What the running jobs compute twice for no reason, the most costly first."""
        jobs = [job for job in await self._registry.jobs() if job.state == "running"]
        costs = await measured_costs(self._ledger, jobs)
        return find_redundancy(jobs, await self._registry.streams(), installed(), costs)

    # --- how ---------------------------------------------------------------------------------------------------

    async def _is_complete(self, stream: str) -> bool:
        return await self._ledger.get(subjects.media_end(stream)) is not None

    async def _is_over(self, job: str, unknown: list[UserError]) -> bool:
        try:
            return (await self._registry.job(job)).state != "running"
        except UserError as error:
            unknown[:] = [error]
            return True

    async def _ask(self, subject: str, request: Any, kind: type[T], timeout_s: float = REQUEST_TIMEOUT_S) -> T:
        reply = await ask(self._link, f"{PREFIX}.{subject}", msgspec.json.encode(request), timeout_s=timeout_s)
        return from_json(reply, kind)


@asynccontextmanager
async def connect(url: str | None = None, *, store: Path | None = None) -> AsyncIterator[Client]:
    """A client of the nodes on a NATS server: the one at `url`, else $PENSTOCK_NATS, else the one that a node on this
    machine has started for its store. Raises LinkError where none is there."""
    configure_logging_once()
    place = url or os.environ.get(NATS_URL) or await server_of(store or default_store())
    try:
        async with connect_link(place, name="penstock-client") as link:
            ledger, registry = await open_ledger(link), await open_registry(link)
            async with anyio.create_task_group() as tasks:
                yield Client(ledger, registry, tasks)
                tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:  # whoever uses the client knows nothing of its tasks
        raise first_error(group) from group
