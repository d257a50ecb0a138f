"""Many files: a job for each, some at once, whatever becomes of the others.

What was computed stays in the store, so after an interruption the same call goes on where it was: a file whose answers
are there costs a look. A file that cannot be read, or whose job fails, is told with its reason and stops none.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import structlog

from engine.decide.answer import Answer
from engine.node.worker_processes import node
from engine.run.registry import Registry
from engine.run.telemetry import Telemetry, configure_logging_once
from engine.spec.plan import Plan
from engine.spec.workflow import Workflow
from penstock.places import default_store
from penstock.running import Options, about_file, link_of, local_file, opened, planned_for, work_of, workflow_for
from penstock.served import models_of, serving, to_serve
from streams.errors import PenstockError, UserError, first_error
from streams.media.addresses import files_of
from streams.wire.ledger import Ledger

log = structlog.get_logger(__name__)

MAX_ERROR = 2000  # characters
NUM_AT_ONCE = 3  # one is decoded while another is heard and a third is answered
MAX_FILES = 100_000


class Outcome(msgspec.Struct, frozen=True):
    """What became of a file. `error` is empty where all its questions have an answer, which may be that there is
    none."""

    input: str
    stream: str = ""
    error: str = ""
    took_s: float = 0.0
    answers: tuple[Answer, ...] = ()

    @property
    def is_done(self) -> bool:
        return not self.error

    @property
    def num_gaps(self) -> int:
        return sum(len(answer.gaps) for answer in self.answers)


def files_among(inputs: Iterable[str]) -> list[Path]:
    """The files that are meant, each once: of a folder its media files, in the order of their names. Raises UserError
    for what is neither."""
    found: dict[Path, None] = {}
    for each in inputs:
        found |= dict.fromkeys(files_of(each) or [local_file(each)])
    if len(found) > MAX_FILES:
        raise UserError(f"{len(found)} files: give at most {MAX_FILES}")
    return list(found)


async def run_many(
    workflow: Workflow,
    files: Sequence[Path],
    asks: Sequence[str] = (),
    options: Options | None = None,
    on_done: Callable[[Outcome], None] = lambda outcome: None,
    on_plan: Callable[[Plan], None] = lambda plan: None,
) -> list[Outcome]:
    """What became of each file, in the order given; `on_done` is told as it comes, `on_plan` how each is answered.
    Raises UserError for a bad workflow or option, LinkError without NATS."""
    chosen = options or Options()
    configure_logging_once(chosen.log_level)
    asked = workflow_for(workflow, asks, chosen)
    traces = Telemetry("penstock", chosen.trace_file)
    outcomes: dict[int, Outcome] = {}
    try:
        log_file = (chosen.store or default_store()) / "workers.log"
        async with (
            serving(log_file.parent) as serve_models,
            node(chosen.num_workers, log_file) as workers,
            link_of(chosen) as link,
        ):
            workers.assign(work_of(link.url, chosen))
            ledger, registry = await opened(link)

            def note_plan(plan: Plan) -> None:
                serve_models(to_serve(models_of(plan)))
                on_plan(plan)

            one = partial(_answered, asked, asks, registry, ledger, chosen, traces, note_plan)
            left = iter(enumerate(files))

            async def take() -> None:
                for number, path in left:  # which all take from
                    outcomes[number] = await one(path)
                    on_done(outcomes[number])

            async with anyio.create_task_group() as tasks:
                for _ in range(NUM_AT_ONCE):
                    tasks.start_soon(take)
            workers.stop()
    except BaseExceptionGroup as group:
        raise first_error(group) from group
    finally:
        traces.close()
    return [outcomes[number] for number in range(len(files))]


async def _answered(
    workflow: Workflow,
    asks: Sequence[str],
    registry: Registry,
    ledger: Ledger,
    options: Options,
    traces: Telemetry,
    on_plan: Callable[[Plan], None],
    path: Path,
) -> Outcome:
    began_s = time.monotonic()
    stream = ""
    try:
        plan, stream = await planned_for(workflow, path, options)
        on_plan(plan)
        answers = await about_file(registry, ledger, plan, stream, path, options, traces, asks)
    except Exception as error:
        cause = first_error(error) if isinstance(error, ExceptionGroup) else error
        if not isinstance(cause, PenstockError):
            log.error("not_answered", file=str(path), exc_info=cause)
        said = str(cause) if isinstance(cause, PenstockError) else f"{type(cause).__name__}: {cause}"
        return Outcome(str(path), stream, error=" ".join(said.split())[:MAX_ERROR], took_s=_since(began_s))
    return Outcome(str(path), stream, took_s=_since(began_s), answers=tuple(answers))


def _since(began_s: float) -> float:
    return round(time.monotonic() - began_s, 3)
