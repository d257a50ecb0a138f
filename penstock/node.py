"""A node: its workers, and what it does for jobs, streams and clients, on a NATS server of its own or a given one."""

import math
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import structlog

from engine.decide.answer import time_of_day
from engine.decide.reconcile import devices_of, offers
from engine.node.endpoints import Services
from engine.node.expiry import Expiry
from engine.node.fleet import Workforce
from engine.node.gate import Gate
from engine.node.intake import Intake
from engine.node.submission import JobRequest
from engine.node.tasks import Duties
from engine.node.upkeep import keep_up
from engine.node.worker_processes import node
from engine.node.workers_heard import WorkersHeard
from engine.run import heap
from engine.run.assignment import Assignment
from engine.run.journal import Journal, tell_stories
from engine.run.profiles import Profiles
from engine.run.registry import NodeStatus, Registry, new_id, open_registry
from engine.run.telemetry import Telemetry, product_version
from engine.spec.access import Access, checked_access
from engine.spec.catalogue import installed
from engine.spec.choosing import runnable
from engine.spec.objective import Weight
from engine.spec.operator import Machine
from engine.spec.stream import StreamSettings, within_bounds
from engine.spec.workflow import load_workflow
from operators.language.served import ServedState
from penstock import demo
from penstock.cli.tables import Running
from penstock.event_webhooks import EventWebhooks
from penstock.places import default_store, index_of, this_machine
from penstock.posting import fingerprint
from penstock.served import said_of, serving, to_serve
from penstock.tokens import Auth, known_token
from penstock.webhooks import Webhooks
from streams.decoding import from_toml
from streams.errors import Malformed, UserError
from streams.subjects import token
from streams.wire.ledger import open_ledger
from streams.wire.link import connect
from streams.wire.outbox import Outbox
from streams.wire.retention import Retention, retain
from streams.wire.server import embedded
from streams.wire.service import serve as serve_endpoints
from streams.wire.store import full_disk

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """How a node runs; every option has a default that works on a laptop."""

    url: str | None = None  # of a NATS server; None: an embedded one over `store`
    store: Path = field(default_factory=default_store)
    nats_port: int | None = None  # of the embedded server; None: any that is free
    http: str | None = "127.0.0.1:8080"  # None: no HTTP
    http_auth: Auth = "auto"  # whether HTTP asks for the token; auto: off loopback
    num_workers: int = 1  # at most
    min_workers: int | None = None  # at least, as the load is; None: always as many
    config: Path | None = None
    trace_file: Path | None = None
    log_level: str = "warning"


class ConfiguredJob(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A standing job that a configuration asks for, under its own name: submitted once, and not again when it has
    ended."""

    stream: str
    workflow: str = ""  # a file beside the configuration; empty: the one that answers questions
    asks: tuple[str, ...] = ()
    window_s: float = 60.0
    webhook: str = ""
    slo: tuple[str, ...] = ()
    weight: Weight = 1.0


class ConfiguredStream(StreamSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A stream that nodes read."""

    url: str


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """penstock.toml."""

    streams: dict[str, ConfiguredStream] = msgspec.field(default_factory=dict)
    jobs: dict[str, ConfiguredJob] = msgspec.field(default_factory=dict)
    access: Access = Access()  # what the node opens for clients
    retention: Retention | None = None  # None: as it is, or the defaults where nothing is there yet


async def serve(options: ServeOptions, on_ready: Callable[[Running], None] = lambda running: None) -> None:
    """Run a node until canceled. Raises UserError for a bad configuration or a port in use, LinkError without NATS."""
    config = load_config(options.config) if options.config else Config()
    models, states = to_serve(), dict[str, ServedState]()
    machine = this_machine()
    profiles = Profiles.beside(options.store, machine.num_cores)
    id = new_id("n")
    least = options.num_workers if options.min_workers is None else options.min_workers
    traces = Telemetry("penstock-node", options.trace_file, id)
    closed = ExitStack()
    closed.callback(traces.close)
    try:
        async with (
            node(least, options.store / "workers.log") as workers,
            _nats(options) as url,
            connect(url, name=id, trouble=_trouble(options)) as link,
        ):
            ledger = await open_ledger(link, config.retention)
            if config.retention is not None:
                await retain(link, config.retention)
            registry = await open_registry(link)
            own = {name: await _url_of(stream, options.config) for name, stream in config.streams.items()}
            gate = Gate(config.access, trusts_registry=options.url is None, own=own)
            for why in installed().set_aside:
                log.warning("operator_set_aside", why=why)
            from operators.language.index import open_index  # long to load

            index = await anyio.to_thread.run_sync(open_index, index_of(options.store, options.url))
            closed.callback(index.close)
            services = Services(registry, ledger, installed(), machine, demo.workflow(), gate, index, profiles)
            workers.assign(
                Assignment(
                    url=url,
                    store="" if options.url else str(options.store),
                    name=id,
                    node=id,
                    profiles=str(profiles.folder),
                    machine=profiles.machine,
                    num_cores=max(1, machine.num_cores // options.num_workers),
                    has_gpu=machine.has_gpu,
                    trace_file=str(options.trace_file.absolute()) if options.trace_file else "",
                    log_level=options.log_level,
                )
            )
            webhooks = Webhooks(ledger, traces=traces, gate=gate, registry=registry)
            told_by = EventWebhooks(registry, gate=gate)
            heard, outbox, journal = WorkersHeard(link), Outbox(ledger), Journal(id)
            workforce = Workforce(registry, heard, journal)
            async with gate.open(), anyio.create_task_group() as tasks:
                http = None
                if options.http is not None:
                    from penstock.http import serve_http  # long to load, and not every node has it

                    token = known_token(options.store)
                    http = await tasks.start(
                        partial(
                            serve_http,
                            traces=traces,
                            auth=options.http_auth,
                            token=token,
                            models=states,
                            heard=heard,
                            workforce=workforce,
                        ),
                        options.http,
                        services,
                        registry,
                        ledger,
                    )
                status = NodeStatus(
                    id=id,
                    host=socket.gethostname(),
                    pid=os.getpid(),
                    num_cores=machine.num_cores,
                    has_gpu=machine.has_gpu,
                    num_workers=least,
                    min_workers=least,
                    max_workers=options.num_workers,
                    http=http or "",
                    started_at=time_of_day(time.time_ns()),
                    serves=tuple(sorted(offers(installed(), devices_of(machine)))),
                    signs=fingerprint(),
                )
                duties = Duties(registry, ledger, installed(), traces, status, [webhooks.send], gate, told_by.send)
                tasks.start_soon(keep_up, link, config.retention)
                tasks.start_soon(duties.run)
                tasks.start_soon(heard.run)
                tasks.start_soon(outbox.run)
                tasks.start_soon(tell_stories, journal, link, outbox)
                tasks.start_soon(workforce.run, duties, workers)
                tasks.start_soon(Expiry(registry, ledger, id).run)
                tasks.start_soon(_say_rungs, duties, machine)
                tasks.start_soon(Intake(registry, ledger, traces, id).run)
                async with (
                    serving(options.store, partial(_say_models, duties, states)) as serve_models,
                    serve_endpoints(link, "penstock", product_version(), services.endpoints()),
                ):
                    serve_models(models)
                    await _configure(config, options.config, registry, services)
                    heap.settle()
                    on_ready(Running(id, url, http, None if options.url else options.store))
                    await anyio.sleep_forever()
    finally:
        closed.close()


def _say_models(duties: Duties, known: dict[str, ServedState], states: Mapping[str, ServedState]) -> None:
    known.update(states)
    duties.status = msgspec.structs.replace(duties.status, models=said_of(states))


async def _say_rungs(duties: Duties, machine: Machine) -> None:
    """Say what can run here, once every implementation has been asked what it lacks; a hub may be slow to answer."""
    try:
        rungs = await anyio.to_thread.run_sync(runnable, installed(), machine)
    except Exception as error:  # of an implementation that is not ours
        log.error("cannot_say_rungs", exc_info=error)
        return
    duties.status = msgspec.structs.replace(duties.status, rungs=tuple(rungs))


@asynccontextmanager
async def _nats(options: ServeOptions) -> AsyncIterator[str]:
    if options.url is not None:
        yield options.url
        return
    async with embedded(options.store, port=options.nats_port) as url:
        yield url


def _trouble(options: ServeOptions) -> Callable[[], str]:
    return (lambda: "") if options.url else partial(full_disk, options.store)


async def _configure(config: Config, path: Path | None, registry: Registry, services: Services) -> None:
    """Bring the registry to what the configuration asks for; what it does not name stays as it is."""
    for name, stream in config.streams.items():
        url = await _url_of(stream, path)
        await registry.declare(msgspec.structs.replace(stream, url=url).spec(name))
    ids = {job.id for job in await registry.jobs()}  # one that was canceled stays so
    for name, job in config.jobs.items():
        if name in ids:
            continue
        workflow = load_workflow(path.parent / job.workflow) if path and job.workflow else None
        await services.submit(
            JobRequest(
                id=name,
                stream=job.stream,
                workflow=workflow,
                asks=job.asks,
                standing=True,
                window_s=job.window_s,
                webhook=job.webhook,
                slo=job.slo,
                weight=job.weight,
            )
        )


async def _url_of(stream: ConfiguredStream, path: Path | None) -> str:
    """A file is named from where the configuration is."""
    here = path.parent / stream.url if path else Path(stream.url)
    return str(here.resolve()) if await anyio.to_thread.run_sync(os.path.exists, here) else stream.url


def _check_streams(config: Config, path: Path) -> None:
    """Raises UserError where one cannot be so named or treated; its source need not be there."""
    for name, stream in config.streams.items():
        try:
            token(name)
            within_bounds(stream.spec(name))
        except UserError as error:
            raise UserError(f"{path}: streams.{name}: {error}") from error
    if config.retention is not None and not math.isfinite(config.retention.max_age_s):
        raise UserError(f"{path}: retention.max_age_s: {config.retention.max_age_s:g}: give seconds")


def load_config(path: Path) -> Config:
    """Read penstock.toml. Raises UserError with the file, the place and what would be right."""
    try:
        table: Any = from_toml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from error
    except Malformed as error:
        raise UserError(f"{path}: not valid TOML: {error}") from error
    try:
        config = msgspec.convert(table, Config)
        checked_access(config.access)
        _check_streams(config, path)
        return config
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at ")
        allowed = {
            "streams": ConfiguredStream.__struct_fields__,
            "jobs": ConfiguredJob.__struct_fields__,
            "retention": Retention.__struct_fields__,
            "access": Access.__struct_fields__,
        }
        part = next((name for name in allowed if f".{name}" in where), "")
        keys = ", ".join(allowed.get(part, Config.__struct_fields__))
        place = where.strip("`").removeprefix("$.") or "the file"
        raise UserError(f"{path}: {place}: {what[:1].lower()}{what[1:]}; the keys there are {keys}") from error
