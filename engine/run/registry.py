"""The registry: desired and actual state, in KV, where every node and client finds it.

| bucket | key | what |
|---|---|---|
| `penstock_jobs` | job id | a `JobSpec` with its state |
| `penstock_streams` | stream | a `StreamSpec`: its policy, and where nodes get it from |
| `penstock_nodes` | node id | a `NodeStatus`; forgotten when the node has not said anything for NODE_TTL_S |
| `penstock_sources` | stream | a `SourceState`: what its source is doing, since when, and its last error |
| `penstock_progress` | job id | how far the job is answered, said now and then by the node that answers it |
| `penstock_leases` | what is held | the node that feeds a stream; forgotten when not renewed for LEASE_TTL_S |

Values are JSON. The registry is read whole and often, for it is small; watching it gives hints only.
"""

import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

import anyio
import msgspec
import structlog

from engine.decide.watching import SourceState
from engine.spec.entries import Faulty, named, sound_job, sound_progress
from engine.spec.jobs import BUCKET, JobProgress, JobSpec, Progress
from engine.spec.stream import StreamSpec, checked, within_bounds
from streams.decoding import from_json, printable
from streams.errors import LinkError, Malformed, PenstockError, UserError
from streams.media.addresses import kind_of
from streams.media.references import as_if_filled_in
from streams.records import Record
from streams.subjects import token
from streams.wire.kv import Bucket, Held, open_bucket
from streams.wire.link import Link
from streams.wire.retention import replicas_of

log = structlog.get_logger(__name__)
T = TypeVar("T")

STREAMS, NODES, LEASES, SOURCES, PROGRESS = (
    f"penstock_{name}" for name in ("streams", "nodes", "leases", "sources", "progress")
)
BUCKETS = (BUCKET, STREAMS, NODES, LEASES, SOURCES, PROGRESS)
NODE_TTL_S = 6.0
LEASE_TTL_S = 10.0
LOOK_S = 5.0  # how often the registry is read though nothing hints that it has changed
LOOK_AGAIN_S = 0.1  # after a hint, which may come before what it hints at can be read
MAX_FORGETTING = 8  # at a time
KEEP_JOBS = 500  # of those that have ended, the newest
MAX_TRIES = 20  # of changing an entry that others change, too


def _sound_stream(key: str, value: bytes) -> StreamSpec:
    """The entry of a stream. Its file or device need not be on this machine. Raises Malformed."""
    spec = from_json(value, StreamSpec)
    named(key, spec.name)
    try:
        within_bounds(spec)
        if "://" in spec.url and not spec.url.lower().startswith("file:"):
            kind_of(as_if_filled_in(spec.url))
    except UserError as error:
        raise Malformed(str(error)) from error
    return spec


class NodeStatus(Record, frozen=True, omit_defaults=False):
    """What a node says of itself."""

    id: str
    host: str
    pid: int
    num_cores: int
    has_gpu: bool = False
    num_workers: int = 1  # that it keeps now
    http: str = ""
    started_at: str = ""  # RFC 3339
    serves: tuple[str, ...] = ()  # what its workers can run: capability/implementation/version/device
    rungs: tuple[str, ...] = ()  # those of them that lack nothing there: capability/rung/device
    signs: str = ""  # what tells the key that it signs webhooks with from others; empty: it signs none
    models: dict[str, str] = msgspec.field(default_factory=dict)  # language models it serves, and their state
    min_workers: int = 0  # that it keeps at least, and at most, as the load is; both 0: as many as it has
    max_workers: int = 0


def _sound_node(key: str, value: bytes) -> NodeStatus:
    status = from_json(value, NodeStatus)
    named(key, status.id)
    return status


def _sound_source(key: str, value: bytes) -> SourceState:
    state = from_json(value, SourceState)
    named(key, state.stream)
    return state


class _Entries(Generic[T]):
    """One bucket, read whole: what can be relied on, and what is set aside, each said once in the log."""

    def __init__(self, bucket: Bucket, kind: str, sound: Callable[[str, bytes], T]) -> None:
        self.bucket = bucket
        self.faulty: dict[str, Faulty] = {}
        self._kind = kind
        self._sound = sound
        self._kept: Mapping[str, Held] = {}  # as it was read last: most entries never change
        self._found: dict[str, T] = {}  # what of it can be relied on

    async def all(self) -> Mapping[str, T]:
        """By key; the same object as before while nothing has changed."""
        kept = await self.bucket.all()
        before = self._kept
        if kept is before:
            return self._found
        gone = before.keys() - kept.keys()
        found = {key: value for key, value in self._found.items() if key not in gone}
        faulty = {key: value for key, value in self.faulty.items() if key not in gone}
        for held in kept.values():
            known = before.get(held.key)
            if known is held or known == held:
                continue
            found.pop(held.key, None)
            faulty.pop(held.key, None)
            try:
                found[held.key] = self._sound(held.key, held.value)
            except Malformed as error:
                faulty[held.key] = Faulty(kind=self._kind, key=printable(held.key), cause=str(error))
                log.warning("set_aside", kind=self._kind, key=held.key, cause=str(error))
        self._kept, self._found, self.faulty = kept, found, faulty
        return found

    def revision(self, key: str) -> int:
        """Of an entry that was there when all were read last."""
        return self._kept[key].revision

    def read(self, held: Held) -> T:
        """Raises Malformed."""
        if (cause := self.cause(held)) is not None:
            raise Malformed(f"{self._kind} {held.key}: its entry cannot be used: {cause}")
        return self._sound(held.key, held.value)

    def cause(self, held: Held) -> str | None:
        """What is wrong with an entry; None where nothing is."""
        try:
            self._sound(held.key, held.value)
        except Malformed as error:
            return str(error)
        return None


class Registry:
    """Made by `open_registry`."""

    def __init__(
        self,
        link: Link,
        jobs: Bucket,
        streams: Bucket,
        nodes: Bucket,
        leases: Bucket,
        sources: Bucket,
        progress: Bucket,
    ) -> None:
        self.link = link
        self.leases = leases
        self._jobs = _Entries(jobs, "job", sound_job)
        self._in_order: tuple[Mapping[str, JobSpec], list[JobSpec]] = {}, []
        self._streams = _Entries(streams, "stream", _sound_stream)
        self._nodes = _Entries(nodes, "node", _sound_node)
        self._sources = _Entries(sources, "source", _sound_source)
        self._progress = _Entries(progress, "progress", lambda key, value: sound_progress(value))

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        entries: tuple[_Entries[Any], ...] = (self._jobs, self._streams, self._nodes, self._sources, self._progress)
        return (*(each.bucket for each in entries), self.leases)

    # --- jobs --------------------------------------------------------------------------------------------------

    async def jobs(self) -> list[JobSpec]:
        """Every job that can be relied on, the oldest first; of the others `faulty` tells."""
        found = await self._jobs.all()
        if found is not self._in_order[0]:
            self._in_order = found, sorted(found.values(), key=lambda job: (job.submitted_ns, job.id))
        return list(self._in_order[1])

    async def faulty(self) -> list[Faulty]:
        """The entries that are passed over, of jobs and of streams, and what is wrong with each."""
        for entries in (self._jobs, self._streams):
            await entries.all()
        return [*self._jobs.faulty.values(), *self._streams.faulty.values()]

    async def job(self, id: str) -> JobSpec:
        """Raises UserError where there is no such job, Malformed where its entry cannot be relied on."""
        return (await self._held_job(id))[0]

    async def _held_job(self, id: str) -> tuple[JobSpec, int]:
        held = await self._jobs.bucket.get(token(id))
        if held is None:
            raise UserError(f"no job {id!r}: `penstock jobs list` shows those there are")
        return self._jobs.read(held), held.revision

    async def add_job(self, spec: JobSpec) -> JobSpec:
        """The job as it stands: where it was asked for twice, with one key, as it was made first. Raises UserError
        where there is another job of that id."""
        if await self._jobs.bucket.create(spec.id, msgspec.json.encode(spec)) is not None:
            return spec
        standing = await self.job_of_key(spec.id, spec.key)
        if standing is None:
            raise UserError(f"there is a job {spec.id!r} already: give another id")
        return standing

    async def job_of_key(self, id: str, key: str) -> JobSpec | None:
        """The job of that id, if it was asked for with this key."""
        held = await self._jobs.bucket.get(token(id)) if key else None
        if held is None or self._jobs.cause(held) is not None:
            return None
        job = self._jobs.read(held)
        return job if job.key == key else None

    async def change_job(self, id: str, change: Callable[[JobSpec], JobSpec]) -> JobSpec:
        """Apply a change, again if another was made meanwhile; what the job is now."""
        for _ in range(MAX_TRIES):
            before, revision = await self._held_job(id)
            after = change(before)
            if after == before:
                return before
            if await self._jobs.bucket.update(id, msgspec.json.encode(after), revision) is not None:
                return after
        raise PenstockError(f"job {id} is being changed by others all the time: try again")

    async def forget_old_jobs(self) -> None:
        """Forget those that ended before the last KEEP_JOBS and have nothing more to send."""
        ended = [job.id for job in await self.jobs() if job.state != "running" and not job.webhook]
        revisions = {id: self._jobs.revision(id) for id in ended[:-KEEP_JOBS]}
        told_of = await self.progress() if revisions else {}
        side_by_side = anyio.Semaphore(MAX_FORGETTING)

        async def forget(id: str, revision: int) -> None:
            async with side_by_side:
                if await self._jobs.bucket.delete(id, revision) and id in told_of:
                    await self._progress.bucket.delete(id)

        async with anyio.create_task_group() as tasks:
            for id, revision in revisions.items():
                tasks.start_soon(forget, id, revision)

    async def forget_faulty_job(self, id: str) -> None:
        """Take an entry away that cannot be relied on; one that can stays."""
        held = await self._jobs.bucket.get(token(id))
        if held is not None and self._jobs.cause(held) is not None:
            await self._jobs.bucket.delete(id, held.revision)

    # --- streams, nodes ----------------------------------------------------------------------------------------

    async def streams(self) -> Mapping[str, StreamSpec]:
        """Those that can be relied on; of the others `faulty` tells."""
        return await self._streams.all()

    async def stream(self, name: str) -> StreamSpec | None:
        """None where there is none, or what stands there cannot be relied on: it may be declared anew."""
        held = await self._streams.bucket.get(token(name))
        return None if held is None or self._streams.cause(held) is not None else self._streams.read(held)

    async def declare(self, spec: StreamSpec) -> None:
        """Say how a stream is to be treated from now on; what is said again changes nothing, and nobody who feeds it
        begins anew. Raises UserError where it cannot be treated so."""
        standing = await self.stream(checked(spec).name)
        spec = msgspec.structs.replace(spec, declared_ns=time.time_ns() if standing is None else standing.declared_ns)
        if standing != spec:
            is_read_as_before = standing is not None and standing.as_read == spec.as_read
            stamped = spec if is_read_as_before else msgspec.structs.replace(spec, declared_ns=time.time_ns())
            await self._streams.bucket.put(spec.name, msgspec.json.encode(stamped))

    async def forget_stream(self, name: str) -> None:
        await self._streams.bucket.delete(token(name))
        await self._sources.bucket.delete(token(name))

    async def source_states(self) -> Mapping[str, SourceState]:
        """By stream; of those whose source has ever been read."""
        return await self._sources.all()

    async def source_state(self, stream: str) -> SourceState | None:
        """None where the stream's source was never read, or what stands there is no state."""
        return (await self.source_states()).get(stream)

    async def say_source(self, state: SourceState) -> None:
        await self._sources.bucket.put(token(state.stream), msgspec.json.encode(state))

    async def progress(self) -> Mapping[str, JobProgress]:
        """How far jobs are answered, at least, by job."""
        return await self._progress.all()

    async def progress_of(self, job: JobSpec) -> Progress:
        """How far a job is answered, at least."""
        held = await self._progress.bucket.get(job.id)
        if held is None or self._progress.cause(held) is not None:
            return {}
        said = self._progress.read(held)
        return said.reached if said.submitted_ns == job.submitted_ns else {}

    async def say_progress(self, job: JobSpec, reached: Progress) -> None:
        said = JobProgress(submitted_ns=job.submitted_ns, reached=reached)
        await self._progress.bucket.put(job.id, msgspec.json.encode(said))

    async def nodes(self) -> list[NodeStatus]:
        return sorted((await self._nodes.all()).values(), key=lambda node: node.id)

    async def say_alive(self, status: NodeStatus) -> None:
        await self._nodes.bucket.put(status.id, msgspec.json.encode(status))

    async def say_gone(self, id: str) -> None:
        await self._nodes.bucket.delete(id)

    @asynccontextmanager
    async def changes(self) -> AsyncIterator[Callable[[], Any]]:
        """Yields what waits until the jobs, streams or nodes may have changed, at most LOOK_S."""
        async with self._changes(self._jobs.bucket, self._streams.bucket, self._nodes.bucket) as wait:
            yield wait

    @asynccontextmanager
    async def source_changes(self) -> AsyncIterator[Callable[[], Any]]:
        """Yields what waits until the state of a source may have changed, at most LOOK_S."""
        async with self._changes(self._sources.bucket) as wait:
            yield wait

    @asynccontextmanager
    async def _changes(self, *buckets: Bucket) -> AsyncIterator[Callable[[], Any]]:
        changed = anyio.Event()

        def note(key: str) -> None:
            changed.set()

        was_hinted = False

        async def wait() -> None:
            nonlocal changed, was_hinted
            with anyio.move_on_after(LOOK_AGAIN_S if was_hinted else LOOK_S):
                await changed.wait()
            was_hinted = changed.is_set()
            changed = anyio.Event()

        said_again = (self._nodes.bucket,)  # each says that it is alive all the time
        ends = [await bucket.watch(note, repeats=bucket not in said_again) for bucket in buckets]
        try:
            yield wait
        finally:
            with anyio.move_on_after(1, shield=True):
                for end in ends:
                    await end()


async def open_registry(link: Link) -> Registry:
    """The registry of the server that `link` is connected to; its buckets are made where they are missing, on as many
    servers as the ledger is."""
    replicas = await replicas_of(link)
    return Registry(
        link,
        await open_bucket(link, BUCKET, num_replicas=replicas),
        await open_bucket(link, STREAMS, num_replicas=replicas),
        await open_bucket(link, NODES, max_age_s=NODE_TTL_S, num_replicas=replicas),
        await open_bucket(link, LEASES, max_age_s=LEASE_TTL_S, num_replicas=replicas),
        await open_bucket(link, SOURCES, num_replicas=replicas),
        await open_bucket(link, PROGRESS, num_replicas=replicas),
    )


@asynccontextmanager
async def following(registry: Registry) -> AsyncIterator[AsyncIterator[tuple[list[JobSpec], list[NodeStatus]]]]:
    """The jobs and the nodes, as they are now and after each change."""
    async with registry.changes() as wait:

        async def desired() -> AsyncIterator[tuple[list[JobSpec], list[NodeStatus]]]:
            while True:
                try:
                    current = await registry.jobs(), await registry.nodes()
                except LinkError as error:
                    log.warning("cannot_read_jobs", error=str(error))
                else:
                    yield current
                await wait()

        yield desired()


def new_id(kind: str) -> str:
    """An id that nothing else has: a letter for the kind of thing, and 48 random bits."""
    return f"{kind}{secrets.token_hex(6)}"
