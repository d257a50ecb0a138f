"""Bad text of users, thrown at what reads it: workflows and configurations in TOML, requests in JSON, moments, URLs,
questions and what is answered from."""

import argparse
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import bad_making as making
import msgspec
from bad_records import CATALOGUE, WORKFLOW
from bad_toml import CONFIG_TOML, WORKFLOW_TOML, spoilt_toml
from bad_watch import Case, Defect, Outcome, one_line
from bad_wire import Drawn, Target
from measure import ROOT

from engine.node.endpoints import Ask, Call, Declare, Filter, OfStream, Which, _read, check_wait
from engine.node.gate import Gate
from engine.node.stretches import parse_moment
from engine.node.submission import JobRequest, _window
from engine.spec.access import Access, checked_access
from engine.spec.compose import compose
from engine.spec.jobs import JobSpec, Span, spans_of
from engine.spec.operator import Entry, Inputs, Machine
from engine.spec.plan import make_plan
from engine.spec.stream import StreamSpec, checked
from engine.spec.webhook_url import check_webhook, public_webhook
from engine.spec.workflow import Workflow, load_workflow
from operators.heard import Speech, Transcript, Word
from operators.language.quoting import QuoteKnobs, Quoting
from operators.seen import Scenes, ScreenText, Shot, TextLine
from penstock.cli.main import _count, _duration_s
from penstock.http.bodies import must_seek
from penstock.http.hosts import is_ours
from penstock.node import load_config
from penstock.running import local_file
from streams.errors import Malformed, UserError
from streams.media.addresses import place_of, public_url
from streams.subjects import token
from streams.wire.retention import Retention, wanted_bytes
from streams.wire.retention import _config as _stream_config

MACHINE = Machine(num_cores=2)
STREAM = StreamSpec(name="s")
NAMES = frozenset({"localhost", "here"})
OPEN = Access(paths=("/srv/recordings",), networks=("192.168.7.0/24",))
QUESTION = "When does Martin's train to the lake leave, and from which platform?"
SAID = "martin is taking the train to the lake at ten past eight"

FIELDS = {Ask: Ask(question=QUESTION, start="-10m", end="now", timeout_s=5.0), Filter: Filter(stream="s", state="done")}


# --- what is handed on -------------------------------------------------------------------------------------------


def _planned(workflow: Workflow, asks: tuple[str, ...]) -> None:
    plan = make_plan(workflow.for_asks(asks) if asks else workflow, CATALOGUE, MACHINE)
    job = JobSpec(id="j", stream="s", plan=plan, spans=spans_of(plan, Span(first=0, last=7), drafts=True))
    msgspec.json.encode(job)


def _workflow(data: bytes) -> None:
    """As `penstock run` reads it."""
    _planned(load_workflow(_file(data)), ("Who?", "When?"))


def _config(data: bytes) -> None:
    """As `penstock serve` reads it."""
    path = _file(data)
    config = load_config(path)
    for name, stream in config.streams.items():
        checked(stream.spec(name))
    for name, job in config.jobs.items():
        request = JobRequest(id=name, stream=job.stream, asks=job.asks, standing=True, window_s=job.window_s)
        _requested(request, load_workflow(path.parent / job.workflow) if job.workflow else WORKFLOW)
        if job.webhook:
            check_webhook(job.webhook)
    if config.retention is not None:
        _retained(config.retention)
    config.access.allows("192.168.7.1")


def _retained(retention: Retention) -> None:
    """As it is told the server, which has bounds of its own."""
    told = _stream_config("media", retention.max_media_bytes, retention)
    wanted_bytes(retention)
    for name, least in (("max_age", 0), ("max_bytes", -1), ("num_replicas", 0)):
        if not least <= told[name] < 2**63:
            raise Defect("status", f"{name}: {told[name]!r} is taken, and no server takes it", "node.py load_config")


def _requested(request: JobRequest, workflow: Workflow) -> None:
    """As a node takes it, as far as that can be done without the server."""
    if request.webhook:
        check_webhook(request.webhook)
        Gate(OPEN).check_webhook(request.webhook)
    if request.standing:
        _window(request, STREAM)
    for moment in (request.start, request.end):
        if moment:
            parse_moment(moment, 10**18)
    if request.id:
        token(request.id)
    token(request.stream)
    _planned(workflow, request.asks)


def _submitted(data: bytes) -> None:
    request = _read(data, JobRequest)
    _requested(request, request.workflow or WORKFLOW)


def _declared(data: bytes) -> None:
    wanted = _read(data, Declare)
    spec = wanted.spec(wanted.name)
    if spec.url:
        Gate(OPEN).check(spec.url)
    msgspec.json.encode(checked(spec))


def _asked(data: bytes) -> None:
    ask = _read(data, Ask)
    check_wait(ask.timeout_s)
    _requested(JobRequest(stream="s", asks=(ask.question,), start=ask.start, end=ask.end), WORKFLOW)


def _called(data: bytes) -> None:
    call = _read(data, Call)
    check_wait(call.timeout_s)
    _planned(compose(CATALOGUE, "bad_read", call.params), ())


def _small(data: bytes) -> None:
    for kind in (Filter, Which, OfStream):
        try:
            _read(data, kind)
        except UserError as error:
            one_line(error)
    _read(data, Filter)


# --- words -------------------------------------------------------------------------------------------------------


def _moment(data: bytes) -> None:
    said = _words(data)
    for read in (_duration_s, _count):
        try:
            read(said)
        except Exception as error:
            if not isinstance(error, ValueError | argparse.ArgumentTypeError):  # argparse takes both
                raise
    parse_moment(said, 10**18)


def _url(data: bytes) -> None:
    """As a source, as a webhook and as a file."""
    said = _words(data)
    gate = Gate(OPEN)
    public_url(said)
    for read in (check_webhook, public_webhook, gate.check_webhook, gate.check, local_file):
        try:
            read(said)
        except UserError as error:
            one_line(error)
    place = place_of(said)
    place.name.encode("utf-8", "surrogateescape")


def _address(data: bytes) -> None:
    said = _words(data)
    OPEN.allows(said)
    is_ours(said, NAMES)
    checked_access(Access(networks=(said,)))


def _answered(data: bytes) -> None:
    """A question, and what is answered from, by words."""
    question, _, seen = _words(data).encode("utf-8", "replace").decode().partition("\n")
    words = tuple(Word(index * 10**8, (index + 1) * 10**8, word) for index, word in enumerate(seen.split()))
    speech = Transcript(observations=(Speech(start_ns=0, end_ns=5 * 10**9, text=seen[:4000], words=words[:400]),))
    line = TextLine(start_ns=0, end_ns=5 * 10**9, text=seen[:4000], box=(0.1, 0.1, 0.5, 0.1))
    shot = Shot(start_ns=0, end_ns=5 * 10**9, cut=True)
    found = (speech, ScreenText(observations=(line,)), Scenes(observations=(shot,)))
    params = Quoting.capability.params(question=question[:2000])
    ports = {"evidence": tuple((Entry(0, each, None),) for each in found)}
    (reply,) = _quoting().process([Inputs("s", 0, 0, params, ports)])
    msgspec.msgpack.encode(reply)


@cache
def _quoting() -> Quoting:
    return Quoting(QuoteKnobs(by="words"))


def _words(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


@cache
def _folder() -> Path:
    return Path(
        tempfile.mkdtemp(prefix=f"penstock-bad-{os.getpid()}-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    )


def _file(data: bytes) -> Path:
    path = _folder() / "given.toml"
    path.write_bytes(data)
    (_folder() / "w.toml").write_bytes(WORKFLOW_TOML)
    return path


# --- making them -------------------------------------------------------------------------------------------------


def _json(good: Any) -> Callable[[Random], bytes]:
    tree = msgspec.to_builtins(good)
    return lambda chance: making.as_json(chance, tree)


def _text(*good: str) -> Callable[[Random], bytes]:
    return lambda chance: making.text(chance, chance.choice(good)).encode("utf-8", "surrogatepass")


def _conversation(chance: Random) -> bytes:
    question, seen = chance.choice(
        ((QUESTION, SAID), ("Who?", "PLATFORM 14"), ("What costs $2.80?", "COFFEE $2.80 08:10"))
    )
    if chance.random() < 0.5:
        question = making.text(chance, question).replace("\n", " ")
    else:
        seen = making.text(chance, seen) * chance.choice((1, 1, 30))
    return f"{question}\n{seen}".encode("utf-8", "replace")


REQUEST = JobRequest(
    stream="s",
    workflow=WORKFLOW,
    asks=("Who?", "When?"),
    standing=False,
    start="-10m",
    end="2026-11-21T08:00:00Z",
    webhook="https://user:pass@example.org:8443/answers?x=1",
    id="visit-42",
)
DECLARE = Declare(name="door", policy="live", gop_s=2.0, url="rtsp://user:secret@camera.example:554/1")
URLS = (
    *(
        "rtsp://u:p@camera.example:554/x?y=1",
        "srt://1.2.3.4:9000?mode=listener&passphrase=x",
        "udp://:5000",
        "file:///srv/a.mp4",
    ),
    *(
        "device:/dev/video0",
        "device:alsa:default",
        "https://example.org/a.m3u8?t=1#f",
        "rtmp://h/app?listen=1",
        "/srv/a.mp4",
    ),
)
TARGETS: dict[str, Target] = {
    "workflow": Target(8, spoilt_toml(WORKFLOW_TOML, (ROOT / "examples" / "video_qa.toml").read_bytes()), _workflow),
    "config": Target(12, spoilt_toml(CONFIG_TOML), _config),
    "submit": Target(6, _json(REQUEST), _submitted),
    "declare": Target(3, _json(DECLARE), _declared),
    "ask": Target(2, _json(FIELDS[Ask]), _asked),
    "call": Target(2, _json(Call(stream="s", params={"question": "x", "weight": 2}, start="1:05")), _called),
    "small": Target(1, _json(FIELDS[Filter]), _small),
    "moment": Target(3, _text("-10m", "1:02:03.5", "65s", "now", "2026-11-21T08:00:00+01:00"), _moment),
    "url": Target(4, _text(*URLS), _url),
    "address": Target(
        2, _text("192.168.7.0/24", "::ffff:10.0.0.1", "64:ff9b::1", "fe80::1%eth0", "[::1]:80", "here:1"), _address
    ),
    "answered": Target(3, _conversation, _answered),
    "boxes": Target(
        1, lambda chance: making.data(chance, b"\0\0\0\x20ftypisom" + b"\0" * 20 + b"\0\0\0\x08mdat"), must_seek
    ),
}


class Texts(Drawn):
    """Workflows, configurations, requests and words."""

    name = "texts"
    targets = TARGETS

    def open(self) -> None:
        _folder.cache_clear()

    def throw(self, case: Case) -> Outcome:
        try:
            TARGETS[case.target].throw(case.data)
        except (Malformed, UserError) as error:
            one_line(error)
            return "refused"
        return "accepted"

    def check(self) -> None: ...

    def close(self) -> None:
        for path in _folder().iterdir():
            path.unlink()
        _folder().rmdir()
