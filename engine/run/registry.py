"""The registry: desired and actual state, in KV, where every node and client finds it.

| bucket | key | what |
|---|---|---|
| `penstock_jobs` | job id | a `JobSpec` with its state |
| `penstock_streams` | stream | a `StreamSpec`: its policy, and where nodes get it from |
| `penstock_nodes` | node id | a `NodeStatus`; forgotten when the node has not said anything for NODE_TTL_S |
| `penstock_leases` | what is held | the node that feeds a stream; forgotten when not renewed for LEASE_TTL_S |

Values are JSON. The registry is read whole and often, for it is small; watching it gives hints only.
"""

import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal, TypeVar

import anyio
import msgspec
import structlog

from engine.spec.jobs import BUCKET, JobSpec
from streams.errors import LinkError, PenstockError, UserError
from streams.media.addresses import kind_of
from streams.records import Record
from streams.subjects import token
from streams.wire.kv import Bucket, open_bucket
from streams.wire.link import Link

log = structlog.get_logger(__name__)
T = TypeVar("T")

NODE_TTL_S = 6.0
LEASE_TTL_S = 10.0
LOOK_S = 5.0  # how often the registry is read though nothing hints that it has changed
KEEP_JOBS = 500  # of those that have ended, the newest
MAX_TRIES = 20  # of changing an entry that others change, too

Policy = Literal["durable", "live"]


class StreamSpec(Record, frozen=True):
    """A stream: how it is treated, and where nodes get it from, if it is they who do."""

    name: str
    policy: Policy = "durable"
    segment_s: float = 5.0
    max_lag_s: float = 10.0  # live: what is older when its turn comes becomes a gap
    gop_s: float | None = None  # transcode to pictures that begin anew this often
    url: str = ""  # nodes read it from there; empty: a client brings it. May hold credentials: never shown
    declared_ns: int = 0  # Unix time


BOUNDS = {"segment_s": (0.2, 60.0), "max_lag_s": (1e-6, 86400.0), "gop_s": (0.1, 60.0)}  # of what a stream may be


def _between(name: str) -> msgspec.Meta:
    """For those who read the schema; who breaks the bounds is told so by `checked`."""
    least, most = BOUNDS[name]
    return msgspec.Meta(extra_json_schema={"minimum": least, "maximum": most})


class StreamSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How somebody wants a stream treated. With a `url`, nodes read it from there."""

    policy: Policy = "live"
    segment_s: Annotated[float, _between("segment_s")] = 5.0
    max_lag_s: Annotated[float, _between("max_lag_s")] = 10.0
    gop_s: Annotated[float, _between("gop_s")] | None = None
    url: str = ""

    def spec(self, name: str) -> StreamSpec:
        """Of a stream of that name."""
        return StreamSpec(name=name, **{field: getattr(self, field) for field in StreamSettings.__struct_fields__})


def checked(spec: StreamSpec) -> StreamSpec:
    """Raises UserError where a stream cannot be treated so."""
    for name, (least, most) in BOUNDS.items():
        value = getattr(spec, name)
        if value is not None and not least <= value <= most:
            raise UserError(f"{name}: {value:g}: give between {least:g} and {most:g} seconds")
    if spec.url:
        kind_of(spec.url)
    token(spec.name)
    return spec


class NodeStatus(Record, frozen=True, omit_defaults=False):
    """What a node says of itself."""

    id: str
    host: str
    pid: int
    num_cores: int
    has_gpu: bool = False
    num_workers: int = 1
    http: str = ""
    started_at: str = ""  # RFC 3339


class Registry:
    """Made by `open_registry`."""

    def __init__(self, link: Link, jobs: Bucket, streams: Bucket, nodes: Bucket, leases: Bucket) -> None:
        self.link = link
        self.leases = leases
        self._jobs = jobs
        self._streams = streams
        self._nodes = nodes

    # --- jobs --------------------------------------------------------------------------------------------------

    async def jobs(self) -> list[JobSpec]:
        """Every job, the oldest first; what cannot be read is passed over with a word in the log."""
        return sorted(await _read_all(self._jobs, JobSpec), key=lambda job: (job.submitted_ns, job.id))

    async def job(self, id: str) -> JobSpec:
        """Raises UserError where there is no such job."""
        held = await self._jobs.get(token(id))
        if held is None:
            raise UserError(f"no job {id!r}: `penstock jobs list` shows those there are")
        return msgspec.json.decode(held.value, type=JobSpec)

    async def add_job(self, spec: JobSpec) -> None:
        if await self._jobs.create(spec.id, msgspec.json.encode(spec)) is None:
            raise UserError(f"there is a job {spec.id!r} already: give another id")

    async def change_job(self, id: str, change: Callable[[JobSpec], JobSpec]) -> JobSpec:
        """Apply a change, again if another was made meanwhile; what the job is now."""
        for _ in range(MAX_TRIES):
            held = await self._jobs.get(token(id))
            if held is None:
                raise UserError(f"no job {id!r}: `penstock jobs list` shows those there are")
            before = msgspec.json.decode(held.value, type=JobSpec)
            after = change(before)
            if after == before:
                return before
            if await self._jobs.update(id, msgspec.json.encode(after), held.revision) is not None:
                return after
        raise PenstockError(f"job {id} is being changed by others all the time: try again")

    async def forget_old_jobs(self, jobs: Sequence[JobSpec]) -> None:
        """Of these, the oldest first, forget those that ended before the last KEEP_JOBS and have nothing more to
        send."""
        ended = [job for job in jobs if job.state != "running" and not job.webhook]
        for job in ended[:-KEEP_JOBS]:
            held = await self._jobs.get(job.id)  # another may have forgotten it, and its id be in use again
            if held is not None and msgspec.json.decode(held.value, type=JobSpec) == job:
                await self._jobs.delete(job.id, held.revision)

    # --- streams, nodes ----------------------------------------------------------------------------------------

    async def streams(self) -> dict[str, StreamSpec]:
        return {spec.name: spec for spec in await _read_all(self._streams, StreamSpec)}

    async def stream(self, name: str) -> StreamSpec | None:
        held = await self._streams.get(token(name))
        return None if held is None else msgspec.json.decode(held.value, type=StreamSpec)

    async def declare(self, spec: StreamSpec) -> None:
        """Say how a stream is to be treated from now on; what is said again changes nothing, and nobody who feeds it
        begins anew. Raises UserError where it cannot be treated so."""
        standing = await self.stream(checked(spec).name)
        if standing is None or msgspec.structs.replace(standing, declared_ns=spec.declared_ns) != spec:
            stamped = msgspec.structs.replace(spec, declared_ns=time.time_ns())
            await self._streams.put(spec.name, msgspec.json.encode(stamped))

    async def forget_stream(self, name: str) -> None:
        await self._streams.delete(token(name))

    async def nodes(self) -> list[NodeStatus]:
        return sorted(await _read_all(self._nodes, NodeStatus), key=lambda node: node.id)

    async def say_alive(self, status: NodeStatus) -> None:
        await self._nodes.put(status.id, msgspec.json.encode(status))

    async def say_gone(self, id: str) -> None:
        await self._nodes.delete(id)

    @asynccontextmanager
    async def changes(self) -> AsyncIterator[Callable[[], Any]]:
        """Yields what waits until the registry may have changed, at most LOOK_S."""
        changed = anyio.Event()

        def note(key: str) -> None:
            changed.set()

        async def wait() -> None:
            nonlocal changed
            with anyio.move_on_after(LOOK_S):
                await changed.wait()
            changed = anyio.Event()

        ends = [await bucket.watch(note) for bucket in (self._jobs, self._streams, self._nodes)]
        try:
            yield wait
        finally:
            with anyio.move_on_after(1, shield=True):
                for end in ends:
                    await end()


async def open_registry(link: Link) -> Registry:
    """The registry of the server that `link` is connected to; its buckets are made where they are missing."""
    return Registry(
        link,
        await open_bucket(link, BUCKET),
        await open_bucket(link, "penstock_streams"),
        await open_bucket(link, "penstock_nodes", max_age_s=NODE_TTL_S),
        await open_bucket(link, "penstock_leases", max_age_s=LEASE_TTL_S),
    )


@asynccontextmanager
async def following(link: Link) -> AsyncIterator[AsyncIterator[list[JobSpec]]]:
    """The jobs, as they are now and after each change."""
    registry = await open_registry(link)
    async with registry.changes() as wait:

        async def jobs() -> AsyncIterator[list[JobSpec]]:
            while True:
                try:
                    current = await registry.jobs()
                except LinkError as error:
                    log.warning("cannot_read_jobs", error=str(error))
                else:
                    yield current
                await wait()

        yield jobs()


def new_id(kind: str) -> str:
    """An id that nothing else has: a letter for the kind of thing, and 48 random bits."""
    return f"{kind}{secrets.token_hex(6)}"


async def _read_all(bucket: Bucket, kind: type[T]) -> list[T]:
    found = []
    for held in (await bucket.all()).values():
        try:
            found.append(msgspec.json.decode(held.value, type=kind))
        except msgspec.DecodeError as error:
            log.warning("cannot_read_entry", key=held.key, error=str(error))
    return found
