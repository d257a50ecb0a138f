"""A job over a whole file that its submitter brings: it is submitted, fed, answered and followed here.

Workers that follow the bucket compute it: those of this process, and whatever other nodes share the server. These may
answer it as well; the ledger keeps each answer once. Whoever else asks about the same file at once shares its stream:
one feeds it, under the stream's lease.

When this is left the job has ended: done, or failed or canceled by what ended it.
"""

import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

import anyio
import msgspec

from engine.decide.answer import Answer
from engine.node.feeding import Source, feed
from engine.node.progress import Progress, show_progress
from engine.node.submission import submit_whole
from engine.node.tasks import Duties
from engine.run.registry import NodeStatus, Registry, new_id
from engine.run.telemetry import Telemetry
from engine.spec.catalogue import Catalogue
from engine.spec.jobs import BUCKET, JobSpec, State
from engine.spec.plan import Plan
from engine.spec.stream import StreamSpec
from streams import subjects
from streams.errors import PenstockError, UserError, first_error
from streams.wire.follow import follow
from streams.wire.ledger import Ledger

END_S = 1.0  # at most, to say that a job has ended


async def answers_about(
    registry: Registry,
    ledger: Ledger,
    catalogue: Catalogue,
    plan: Plan,
    stream: StreamSpec,
    source: Source,
    traces: Telemetry,
    *,
    asks: Sequence[str] = (),
    id: str = "",
    on_progress: Callable[[Progress], None] | None = None,
    on_answer: Callable[[Answer], None] = lambda answer: None,
) -> list[Answer]:
    """The answers, in the order they were found. `source` reads the whole file each time. Raises UserError if it cannot
    be read or holds nothing, PenstockError if the job was ended by somebody else."""
    spec = await submit_whole(registry, ledger, plan, stream, asks, id)
    status = NodeStatus(id=new_id("n"), host=socket.gethostname(), pid=os.getpid(), num_cores=1)
    duties = Duties(registry, ledger, catalogue, traces, status)
    ended: tuple[State, str] = ("canceled", "")
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_bring, registry, ledger, stream, source, status.id, traces)
            tasks.start_soon(duties.answer, spec)
            if on_progress is not None:
                tasks.start_soon(show_progress, ledger, spec, on_progress)
            answers = await _followed(registry, ledger, spec, on_answer)
            tasks.cancel_scope.cancel()
        return answers
    except Exception as error:
        cause = first_error(error)
        ended = ("failed", str(cause))
        raise cause from error
    finally:
        with anyio.move_on_after(END_S, shield=True), suppress(PenstockError):
            await registry.change_job(spec.id, lambda job: job.ended(*ended))


async def _bring(
    registry: Registry, ledger: Ledger, stream: StreamSpec, source: Source, holder: str, traces: Telemetry
) -> None:
    end = await feed(registry, ledger, stream, source, holder, traces)
    if end is None:
        raise PenstockError(f"the source of {stream.name} stopped without saying that it ended")
    if end.num_segments == 0:
        raise UserError("the input has no segment: it holds neither video nor audio that can be read")
    if await registry.stream(stream.name) is None:
        await registry.declare(stream)  # so that it is listed; no node reads it, for it has no URL


async def _followed(
    registry: Registry, ledger: Ledger, spec: JobSpec, on_answer: Callable[[Answer], None]
) -> list[Answer]:
    now = spec

    async def is_over() -> bool:
        nonlocal now
        now = await registry.job(spec.id)
        return now.state != "running"

    answers: list[Answer] = []
    every = subjects.answers(spec.id, spec.stream)
    async for stored in follow(ledger, every, is_over=is_over, hint=f"$KV.{BUCKET}.{spec.id}"):
        answer = msgspec.json.decode(stored.data, type=Answer)
        answers.append(answer)
        on_answer(answer)
    if now.state != "done":
        raise PenstockError(f"job {spec.id} was {now.state}: {now.detail or 'somebody ended it'}")
    return answers
