"""The live service as tests run it: a node without its processes, with toy operators whose results are known."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import msgspec
import toys

from engine.decide.answer import Answer
from engine.decide.retry import RetryPolicy
from engine.node.endpoints import Services
from engine.node.submission import JobRequest, Submitted
from engine.node.tasks import Duties
from engine.run.assignment import Assignment
from engine.run.journal import STORY
from engine.run.registry import NodeStatus, Registry, open_registry
from engine.run.telemetry import Telemetry
from engine.run.worker import Worker
from engine.spec.catalogue import Catalogue
from engine.spec.operator import Machine
from engine.spec.stream import StreamSpec
from engine.spec.workflow import Stage, Workflow
from streams import subjects
from streams.records import EndOfStream, encode
from streams.wire.follow import follow
from streams.wire.ledger import Ledger, open_ledger
from streams.wire.link import connect

CATALOGUE = Catalogue(toys.ALL)
MACHINE = Machine(num_cores=2)
SEGMENT_S = 1.0

TOTAL = Workflow(
    name="total",
    stages={
        "read": Stage(capability="toy_read", inputs={"media": "media"}),
        "near": Stage(capability="toy_near", inputs={"media": "media"}),
        "total": Stage(capability="toy_total", inputs={"numbers": ("read",)}),
    },
)
READ_TOTAL = Workflow(name="read_total", stages={name: TOTAL.stages[name] for name in ("read", "total")})


class Service:
    """A node without its processes: a worker, its duties and its services, in this event loop."""

    def __init__(self, ledger: Ledger, registry: Registry, url: str, tasks: anyio.abc.TaskGroup) -> None:
        self.ledger = ledger
        self.registry = registry
        self.services = Services(registry, ledger, CATALOGUE, MACHINE, TOTAL)
        self._url = url
        self._tasks = tasks

    def work(self) -> None:
        policy = RetryPolicy(first_delay_s=0.01, max_delay_s=0.02)
        assignment = Assignment(url=self._url, num_cores=2, ack_wait_s=5, retry=policy)
        self._tasks.start_soon(Worker(self.ledger, assignment, CATALOGUE, Telemetry("test")).run)

    def stand_by(self, id: str = "n1") -> anyio.CancelScope:
        status = NodeStatus(id=id, host="here", pid=1, num_cores=2)
        scope = anyio.CancelScope()

        async def duties() -> None:
            with scope:
                await Duties(self.registry, self.ledger, CATALOGUE, Telemetry("test"), status).run()

        self._tasks.start_soon(duties)
        return scope

    async def submit(self, stream: str = "s", workflow: Workflow = READ_TOTAL, **asked: Any) -> Submitted:
        return await self.services.submit(JobRequest(stream=stream, workflow=workflow, **asked))

    async def answers(self, job: Submitted, num: int) -> list[Answer]:
        found = []
        with anyio.fail_after(20):
            async for stored in follow(self.ledger, subjects.answers(job.job, job.stream)):
                found.append(msgspec.json.decode(stored.data, type=Answer))
                if len(found) == num:
                    return found
        raise AssertionError("following does not end")

    async def told(self, stream: str) -> list[dict[str, Any]]:
        """What the worker remembers of a stream."""
        reply = await self.ledger.link.client.request(STORY, msgspec.json.encode({"stream": stream}), timeout=5)
        found: list[dict[str, Any]] = msgspec.json.decode(reply.data)
        return found

    async def publish(
        self, values: Sequence[int], first: int = 0, stream: str = "s", end: bool = False, due_ns: int = 0
    ) -> None:
        for index, value in enumerate(values, first):
            segment = encode(toys.toy_segment(stream, index, value))
            await self.ledger.put(subjects.media(stream, index), segment, "", due_ns)
        if end:
            last = EndOfStream(stream=stream, num_segments=first + len(values))
            await self.ledger.put(subjects.media_end(stream), encode(last))

    async def declare(self, **spec: Any) -> None:
        await self.registry.declare(StreamSpec(**{"name": "s", "segment_s": SEGMENT_S, **spec}))


@asynccontextmanager
async def running_service(url: str) -> AsyncIterator[Service]:
    async with connect(url) as link, anyio.create_task_group() as tasks:
        service = Service(await open_ledger(link), await open_registry(link), url, tasks)
        await service.declare(policy="live", max_lag_s=30.0)
        yield service
        tasks.cancel_scope.cancel()
