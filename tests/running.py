"""Jobs as nodes run them, in this event loop: submitted to the bucket, served by workers that follow it, and fed and
answered by whoever brings the file."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec

from engine.decide.answer import Answer
from engine.decide.retry import RetryPolicy
from engine.node.feeding import Source
from engine.node.submission import submit_whole
from engine.node.whole_file import answers_about
from engine.run.assignment import Assignment
from engine.run.registry import open_registry
from engine.run.telemetry import Telemetry
from engine.run.worker import Worker
from engine.spec.catalogue import Catalogue
from engine.spec.jobs import JobSpec
from engine.spec.plan import Plan
from engine.spec.stream import StreamSpec
from streams.records import MediaMessage
from streams.wire.ledger import Ledger

POLICY = RetryPolicy(first_delay_s=0.01, max_delay_s=0.02)


@asynccontextmanager
async def asked(ledger: Ledger, plan: Plan, stream: str) -> AsyncIterator[JobSpec]:
    """A job over a whole stream that somebody else brings; it is canceled in the end."""
    registry = await open_registry(ledger.link)
    spec = await submit_whole(registry, ledger, plan, StreamSpec(name=stream))
    yield spec
    await registry.change_job(spec.id, lambda spec: msgspec.structs.replace(spec, state="canceled"))


@asynccontextmanager
async def workers(ledger: Ledger, catalogue: Catalogue, num: int = 1) -> AsyncIterator[None]:
    """Workers that do what the bucket's jobs ask for."""
    async with anyio.create_task_group() as tasks:
        for number in range(num):
            assignment = Assignment(url="", name=f"w{number}", num_cores=2, ack_wait_s=5, retry=POLICY)
            tasks.start_soon(Worker(ledger, assignment, catalogue, Telemetry("test")).run)
        yield
        tasks.cancel_scope.cancel()


def whole(read: Callable[[], Iterator[MediaMessage]]) -> Source:
    """A source that is read from its beginning each time."""
    return Source(read=lambda resume, stop, tell: read(), goes_on=False, waits=True, is_named=True)


async def answered(
    ledger: Ledger,
    catalogue: Catalogue,
    plan: Plan,
    stream: str,
    read: Callable[[], Iterator[MediaMessage]],
    **how: Any,
) -> list[Answer]:
    """The answers about what `read` gives, by whatever workers there are."""
    registry = await open_registry(ledger.link)
    traces = Telemetry("test")
    return await answers_about(registry, ledger, catalogue, plan, StreamSpec(name=stream), whole(read), traces, **how)
