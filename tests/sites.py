"""A node without its processes, and what its HTTP is tried with."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import anyio
import anyio.abc
import av
import clips
import httpx
import msgspec
import toys

from engine.decide.retry import RetryPolicy
from engine.node.endpoints import Services
from engine.node.gate import Gate
from engine.node.searching import Index
from engine.node.tasks import Duties, Sink
from engine.run.assignment import Assignment
from engine.run.registry import NodeStatus, Registry, open_registry
from engine.run.telemetry import Telemetry
from engine.run.worker import Worker
from engine.spec.access import Access
from engine.spec.catalogue import Catalogue
from engine.spec.operator import Capability, Inputs, Machine, Media, Operator, Port, Rung, Settings
from engine.spec.workflow import Stage, Workflow
from penstock.http import Limits, serve_http
from penstock.tokens import Auth
from streams import subjects
from streams.records import EndOfStream, Record, encode
from streams.wire.ledger import Ledger, open_ledger
from streams.wire.link import connect


class Counted(Record, frozen=True):
    num_packets: int


class CountParams(Settings, frozen=True):
    weight: int = 1
    kinds: tuple[str, ...] = ("video", "audio", "subtitle")


class CountPackets(Operator):
    """How many packets a segment carries: an operator for real media that is quick and has parameters."""

    capability = Capability("count_packets", {"media": Port(Media)}, Counted, CountParams)
    name = "loop"
    runs_in = "loop"
    num_computed: ClassVar[int] = 0

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return [Rung("count_packets-loop", 0.5, Settings())]

    def process(self, batch: Sequence[Inputs]) -> Sequence[msgspec.Struct]:
        return [self._one(item) for item in batch]

    def _one(self, item: Inputs) -> Counted:
        CountPackets.num_computed += 1
        segment = item.here("media").segment
        counted = [packet for packet in segment.packets if segment.tracks[packet.track].kind in item.params.kinds]
        return Counted(num_packets=len(counted) * item.params.weight)


CATALOGUE = Catalogue([*toys.ALL, CountPackets])
TOTAL = Workflow(
    name="total",
    stages={
        "read": Stage(capability="toy_read", inputs={"media": "media"}),
        "total": Stage(capability="toy_total", inputs={"numbers": ("read",)}),
    },
)
OF_THIS_MACHINE = Access(networks=("127.0.0.0/8",))
EACH = Workflow(name="each", stages={"read": TOTAL.stages["read"]})


class Site:
    """What runs, and a client of its HTTP."""

    def __init__(self, ledger: Ledger, registry: Registry, services: Services, http: httpx.AsyncClient) -> None:
        self.ledger = ledger
        self.registry = registry
        self.services = services
        self.http = http
        self.url = str(http.base_url).removesuffix("/")

    async def publish(self, values: Sequence[int], first: int = 0, stream: str = "s", end: bool = False) -> None:
        for index, value in enumerate(values, first):
            await self.ledger.put(subjects.media(stream, index), encode(toys.toy_segment(stream, index, value)))
        if end:
            last = EndOfStream(stream=stream, num_segments=first + len(values), duration_ns=10**9 * len(values))
            await self.ledger.put(subjects.media_end(stream), encode(last))

    async def submit(self, workflow: Workflow = EACH, **asked: Any) -> str:
        """The id of a job on what is published."""
        request = {"stream": "s", "drafts": False, "workflow": msgspec.to_builtins(workflow), **asked}
        response = await self.http.post("/v1/jobs", json=request)
        assert response.status_code == 201, response.text
        return str(response.json()["job"])

    async def stored(self, stream: str) -> list[bytes]:
        """A stream's media, as they are stored."""
        keys = subjects.keys_of(await self.ledger.subjects(subjects.media_of(stream)))
        names = [subjects.media(stream, key.first) for key in sorted(keys)]
        found = await self.ledger.get_many(names)
        return [found[name].data for name in names]


@asynccontextmanager
async def site(
    nats_url: str,
    *,
    works: bool = True,
    sink: Callable[[Ledger, Gate], Sink] | None = None,
    access: Access = OF_THIS_MACHINE,
    index: Index | None = None,
    **limits: Any,
) -> AsyncIterator[Site]:
    """A node that works and answers jobs, if it is to, and serves HTTP."""
    gate = Gate(access)
    async with connect(nats_url) as link, gate.open(), anyio.create_task_group() as tasks:
        ledger, registry = await open_ledger(link), await open_registry(link)
        services = Services(registry, ledger, CATALOGUE, Machine(num_cores=2), TOTAL, gate, index)
        if works:
            policy = RetryPolicy(first_delay_s=0.01, max_delay_s=0.02)
            assignment = Assignment(url=nats_url, num_cores=2, ack_wait_s=5, retry=policy)
            tasks.start_soon(Worker(ledger, assignment, CATALOGUE, Telemetry("test")).run)
            sinks = [sink(ledger, gate)] if sink is not None else []
            status = NodeStatus(id="n1", host="here", pid=1, num_cores=2)
            tasks.start_soon(Duties(registry, ledger, CATALOGUE, Telemetry("test"), status, sinks, gate).run)
        async with (
            serving(services, registry, ledger, **limits) as url,
            httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client,
        ):
            yield Site(ledger, registry, services, client)
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def serving(
    services: Services,
    registry: Registry,
    ledger: Ledger,
    *,
    place: str = "127.0.0.1:0",
    auth: Auth = "auto",
    token: str | None = None,
    **limits: Any,
) -> AsyncIterator[str]:
    """HTTP on a port of its own; its URL."""
    async with anyio.create_task_group() as tasks:

        async def serve(*, task_status: anyio.abc.TaskStatus[str]) -> None:
            await serve_http(
                place,
                services,
                registry,
                ledger,
                catalogue=CATALOGUE,
                limits=Limits(**limits),
                auth=auth,
                token=token,
                task_status=task_status,
            )

        yield await tasks.start(serve)
        tasks.cancel_scope.cancel()


def remuxed(path: Path, seconds: float, **options: str) -> Path:
    """The start of the demo's clip, without its captions, in the container that the path's suffix names."""
    with av.open(str(clips.STATION)) as source, av.open(str(path), "w", options=options) as copy:
        taken = [stream for stream in source.streams if stream.type in ("video", "audio")]
        copies = {stream.index: copy.add_stream_from_template(stream) for stream in taken}
        for packet in source.demux(taken):
            if packet.pts is not None and packet.time_base is not None and packet.pts * packet.time_base < seconds:
                packet.stream = copies[packet.stream_index]
                copy.mux(packet)
    return path
