"""One call from a workflow and a file to answers: finds or starts NATS, plans, runs workers, waits."""

import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import anyio
import anyio.to_thread

from engine.decide.answer import Answer
from engine.node.feeding import Resume, Source, Tell
from engine.node.progress import Progress
from engine.node.savings import Saving, savings
from engine.node.whole_file import answers_about
from engine.node.worker_processes import node
from engine.run.assignment import Assignment
from engine.run.profiles import Profiles
from engine.run.registry import Registry, open_registry
from engine.run.telemetry import Telemetry, configure_logging_once
from engine.spec.catalogue import installed
from engine.spec.choosing import Pace
from engine.spec.plan import Plan, make_plan
from engine.spec.stream import BOUNDS, StreamSpec
from engine.spec.workflow import Workflow
from penstock.places import default_store, this_machine, title_of
from penstock.served import models_of, serving, to_serve
from streams.errors import UserError, first_error
from streams.media.probe import probe
from streams.media.segmenter import segments, stream_id
from streams.records import MediaMessage
from streams.wire.ledger import Ledger, open_ledger
from streams.wire.link import Link, connect
from streams.wire.server import embedded
from streams.wire.store import full_disk


@dataclass(frozen=True, slots=True)
class Options:
    """How to run; every one has a default that works on a laptop."""

    segment_s: float = 5.0
    url: str | None = None  # of a NATS server; None: an embedded one over `store`
    store: Path | None = None  # None: `default_store()`
    trace_file: Path | None = None
    num_workers: int = 1
    groups: str = "fused"  # or "apart": every stage in a group of its own
    ack_wait_s: float = 10.0
    log_level: str = "warning"


async def run(
    workflow: Workflow,
    input: str | Path,
    asks: Sequence[str] = (),
    options: Options | None = None,
    *,
    on_plan: Callable[[Plan], None] = lambda plan: None,
    on_progress: Callable[[Progress], None] | None = None,
    on_answer: Callable[[Answer], None] = lambda answer: None,
    on_saving: Callable[[Saving], None] | None = None,
) -> list[Answer]:
    """Answers to `asks` about the file `input`, in the order they were found. `on_saving` is told in the end what each
    stage that has a gate (`when`) was spared.

    Raises UserError for a bad workflow, input or option, LinkError without NATS, PenstockError if it cannot go on.
    """
    chosen = options or Options()
    configure_logging_once(chosen.log_level)
    asked = workflow_for(workflow, asks, chosen)
    path = local_file(str(input))
    traces = Telemetry("penstock", chosen.trace_file)
    try:
        return await _run(asked, asks, path, chosen, traces, on_plan, on_progress, on_answer, on_saving)
    except BaseExceptionGroup as group:
        raise first_error(group) from group
    finally:
        traces.close()


def workflow_for(workflow: Workflow, asks: Sequence[str], options: Options) -> Workflow:
    """The workflow with what is asked. Raises UserError for what cannot be run so."""
    least_s, most_s = BOUNDS["segment_s"]
    if not least_s <= options.segment_s <= most_s:
        raise UserError(f"a segment of {options.segment_s:g} s: give between {least_s:g} and {most_s:g} s")
    return workflow.for_asks(asks)


async def _run(
    workflow: Workflow,
    asks: Sequence[str],
    path: Path,
    options: Options,
    traces: Telemetry,
    on_plan: Callable[[Plan], None],
    on_progress: Callable[[Progress], None] | None,
    on_answer: Callable[[Answer], None],
    on_saving: Callable[[Saving], None] | None,
) -> list[Answer]:
    log_file = (options.store or default_store()) / "workers.log"
    planned = anyio.Event()
    found: list[tuple[Plan, str]] = []

    async def plan_it() -> None:
        found.append(await planned_for(workflow, path, options))
        planned.set()

    async with (
        anyio.create_task_group() as tasks,
        serving(log_file.parent) as serve_models,
        node(options.num_workers, log_file) as workers,
    ):
        tasks.start_soon(plan_it)  # while the server and the workers start
        async with link_of(options) as link:
            workers.assign(work_of(link.url, options))
            ledger, registry = await opened(link)
            await planned.wait()
            ((plan, stream),) = found
            on_plan(plan)
            serve_models(to_serve(models_of(plan)))
            try:
                shown = {"on_progress": on_progress, "on_answer": on_answer}
                answers = await about_file(registry, ledger, plan, stream, path, options, traces, asks, **shown)
                if on_saving is not None:
                    for saving in await savings(ledger, plan, stream):
                        on_saving(saving)
            finally:
                workers.stop()  # while the server is left
    return answers


async def about_file(
    registry: Registry,
    ledger: Ledger,
    plan: Plan,
    stream: str,
    path: Path,
    options: Options,
    traces: Telemetry,
    asks: Sequence[str],
    **shown: Any,
) -> list[Answer]:
    """A file's answers; `shown` is who is told as they come, as of `answers_about`."""
    spec = StreamSpec(name=stream, segment_s=options.segment_s, title=title_of(path))
    source = _source(path, stream, options.segment_s)
    return await answers_about(registry, ledger, installed(), plan, spec, source, traces, asks=asks, **shown)


async def opened(link: Link) -> tuple[Ledger, Registry]:
    """Both at once: on a new server all they consist of is made."""
    ledgers: list[Ledger] = []

    async def open_it() -> None:
        ledgers.append(await open_ledger(link))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(open_it)
        registry = await open_registry(link)
    return ledgers[0], registry


def _source(path: Path, stream: str, segment_s: float) -> Source:
    """The file, from its beginning each time it is read."""

    def read(resume: Resume, stop: threading.Event, tell: Tell) -> Iterator[MediaMessage]:
        return segments(str(path), stream=stream, target_s=segment_s)

    return Source(read=read, goes_on=False, waits=True, is_named=True)


def work_of(url: str, options: Options) -> Assignment:
    machine = this_machine()
    profiles = Profiles.beside(options.store or default_store(), machine.num_cores)
    return Assignment(
        url=url,
        store="" if options.url else str(options.store or default_store()),
        profiles=str(profiles.folder),
        machine=profiles.machine,
        num_cores=max(1, machine.num_cores // options.num_workers),
        has_gpu=machine.has_gpu,
        ack_wait_s=options.ack_wait_s,
        trace_file=str(options.trace_file.absolute()) if options.trace_file else "",
        log_level=options.log_level,
    )


async def planned_for(workflow: Workflow, path: Path, options: Options) -> tuple[Plan, str]:
    info = await anyio.to_thread.run_sync(probe, str(path))
    planned = partial(make_plan, workflow, installed(), this_machine(), info, pace=Pace(options.segment_s))
    plan = await anyio.to_thread.run_sync(planned)
    if options.groups == "apart":
        plan = plan.regrouped([[stage.id] for stage in plan.stages])
    return plan, await anyio.to_thread.run_sync(stream_id, path, options.segment_s)


@asynccontextmanager
async def link_of(options: Options) -> AsyncIterator[Link]:
    if options.url is not None:
        async with connect(options.url) as link:
            yield link
        return
    store = options.store or default_store()
    async with embedded(store) as url, connect(url, trouble=partial(full_disk, store)) as link:
        yield link


def local_file(input: str) -> Path:
    try:
        parts = urlsplit(input)
    except ValueError as error:
        raise UserError(f"{input} is no file and no URL: give the path of a video or audio file") from error
    if parts.scheme == "file":
        input = unquote(parts.path)
    elif parts.scheme and "://" in input:
        raise UserError(
            f"{parts.scheme}:// is no file, and `run` reads nothing else: `penstock push URL --stream NAME` brings it "
            "to a node (`penstock serve`), and `penstock ask NAME QUESTION` asks about it"
        )
    path = Path(input)
    if not os.path.exists(path):  # noqa: PTH110 - which has no opinion on names too long
        raise UserError(f"no file {input}: give the path of a video or audio file")
    if not path.is_file():
        raise UserError(f"{input} is not a file: give the path of a video or audio file")
    return path
