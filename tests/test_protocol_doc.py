"""docs/protocol.md and docs/protocol.schema.json say what the code does; and who knows only them and NATS gets along.

The schemas are made from the code: `python tests/test_protocol_doc.py` writes them. The document is written by hand;
its tables of fields, examples, subjects, headers and limits are compared with the code here. Marks such as
`<!-- fields Answer -->` say what the next table or example is of.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, get_args

import anyio
import anyio.to_thread
import msgspec
import nats
import nats.errors
import pytest
from clips import first_seconds
from nats.aio.client import Client as Nats

from engine.decide.answer import Answer
from engine.decide.decisions import Decision
from engine.decide.signals import SERVICE_BOUNDS_S, WorkerSignals
from engine.decide.watching import SourceState
from engine.node import answering, intake, submission
from engine.node import endpoints as services
from engine.node.endpoints import Ask, Call, Declare, Filter, Nothing, OfStream, Output, Services, Which
from engine.node.intake import Taken
from engine.node.searching import Hit, Search
from engine.node.submission import JobRequest, Submitted
from engine.node.tasks import Duties
from engine.node.views import JobView, StreamView
from engine.run import registry
from engine.run.assignment import Assignment
from engine.run.registry import NodeStatus, open_registry
from engine.run.telemetry import Telemetry
from engine.run.worker import Worker
from engine.spec import stream
from engine.spec.catalogue import installed
from engine.spec.operator import Machine
from engine.spec.workflow import Stage, Workflow
from operators.heard import Transcript
from operators.seen import Scenes, ScreenText
from penstock import posting, webhooks
from streams import subjects
from streams.records import Gap, GapCause
from streams.wire import keeper, ledger, retention, service
from streams.wire.ledger import open_ledger
from streams.wire.link import connect
from streams.wire.service import serve

DOCS = Path(__file__).parent.parent / "docs"
SCHEMAS = DOCS / "protocol.schema.json"
TEXT = (DOCS / "protocol.md").read_text(encoding="utf-8") if (DOCS / "protocol.md").exists() else ""

Reply = msgspec.defstruct
EMPTY = Reply("Empty", [])
JOBS, STREAMS, NODES, OUTPUTS, HITS = (
    Reply(title, [(key, list[each])])  # type: ignore[valid-type]
    for title, key, each in [
        ("Jobs", "jobs", JobView),
        ("Streams", "streams", StreamView),
        ("Nodes", "nodes", NodeStatus),
        ("Outputs", "outputs", Output),
        ("Hits", "hits", Hit),
    ]
)
SERVICES: dict[str, tuple[type, type]] = {
    "penstock.jobs.submit": (JobRequest, Submitted),
    "penstock.jobs.list": (Filter, JOBS),
    "penstock.jobs.show": (Which, JobView),
    "penstock.jobs.cancel": (Which, JobView),
    "penstock.streams.list": (OfStream, STREAMS),
    "penstock.streams.declare": (Declare, EMPTY),
    "penstock.streams.forget": (OfStream, EMPTY),
    "penstock.nodes.list": (Nothing, NODES),
    "penstock.ask.<stream>": (Ask, Answer),
    "penstock.search": (Search, HITS),
    "penstock.operators.<capability>": (Call, OUTPUTS),
}
MESSAGES: dict[str, type] = {
    "penstock.answers.<job>.<stream>": Answer,
    "penstock.partials.<job>.<stream>": Answer,
    "penstock.gaps.<cause>.<stage>.<stream>.<segment>": Gap,
    "penstock.signals.<worker>": WorkerSignals,
    "penstock.decisions.<worker>": Decision,
    "penstock.events.<stream>": SourceState,
}
MEDIA = subjects.ingest("<stream>")  # its requests are bytes; this is the reply
FOUND = {"transcribe": Transcript, "detect_scenes": Scenes, "read_text": ScreenText}
KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        *(kind for pair in SERVICES.values() for kind in pair),
        *(Taken, Workflow),
        *MESSAGES.values(),
        *FOUND.values(),
    )
}


# --- the schemas -------------------------------------------------------------------------------------------------


def schemas() -> dict[str, Any]:
    """What docs/protocol.schema.json holds."""
    refs, defs = msgspec.json.schema_components(list(KINDS.values()), ref_template="#/$defs/{name}")
    by_name = dict(zip(KINDS, refs, strict=True))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Penstock: what crosses NATS as JSON",
        "requests": {
            subject: {"request": by_name[request.__name__], "reply": by_name[reply.__name__]}
            for subject, (request, reply) in SERVICES.items()
        },
        "media": {MEDIA: {"reply": by_name["Taken"]}},
        "messages": {subject: by_name[kind.__name__] for subject, kind in MESSAGES.items()},
        "outputs": {capability: by_name[kind.__name__] for capability, kind in FOUND.items()},
        "$defs": defs,
    }


def on_one_line(schema: Any) -> Any:
    """Descriptions without the indentation of their docstrings, which Python keeps up to 3.12 and takes away since."""
    match schema:
        case dict():
            return {
                name: " ".join(value.split())
                if name == "description" and isinstance(value, str)
                else on_one_line(value)
                for name, value in schema.items()
            }
        case list():
            return [on_one_line(each) for each in schema]
    return schema


def written(made: dict[str, Any]) -> str:
    return json.dumps(on_one_line(made), indent=2, ensure_ascii=False) + "\n"


def test_the_schemas_are_those_of_the_code() -> None:
    assert SCHEMAS.read_text(encoding="utf-8") == written(schemas()), "run `python tests/test_protocol_doc.py`"


# --- the document ------------------------------------------------------------------------------------------------


def marked(what: str) -> Iterator[tuple[str, str]]:
    """What stands behind marks of a kind: the name in the mark, and the block behind it."""
    for mark in re.finditer(rf"<!-- {what} (\w+) -->\n+(?:```\w+\n(.*?)\n```|((?:\|[^\n]*\n)+))", TEXT, re.DOTALL):
        yield mark[1], mark[2] or mark[3]


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|\n ").split(" | ")] for line in table.splitlines()[2:]]


def type_as_told(schema: dict[str, Any]) -> str:
    """A JSON schema, as the document's tables have it."""
    if "anyOf" in schema:
        return " or ".join(type_as_told(each) for each in schema["anyOf"])
    if "$ref" in schema:
        return f"`{schema['$ref'].rpartition('/')[2]}`"
    if "enum" in schema:
        return " or ".join(f"`{value or json.dumps(value)}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"array of {type_as_told(schema['items'])}"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"object of {type_as_told(schema['additionalProperties'])}"
    return str(schema.get("type", "any"))


def rows_of(name: str) -> list[list[str]]:
    """Field, type and default of a type, as its table must have them."""
    schema = schemas()["$defs"][name]
    return [
        [
            f"`{field}`",
            type_as_told(of),
            f"`{json.dumps(of['default'])}`" if "default" in of and field not in schema["required"] else "required",
        ]
        for field, of in schema["properties"].items()
    ]


def test_every_field_stands_in_a_table() -> None:
    tables = dict(marked("fields"))
    lists = {kind.__name__ for kind in (EMPTY, Nothing, JOBS, STREAMS, NODES, OUTPUTS, HITS)}
    outputs = set(msgspec.json.schema_components(FOUND.values())[1])
    assert set(tables) == set(schemas()["$defs"]) - lists - outputs
    for name, table in tables.items():
        assert sorted(row[:3] for row in rows(table)) == sorted(rows_of(name)), name


def test_every_example_is_one() -> None:
    shown = list(marked("example"))
    asked_and_told = {kind.__name__ for pair in SERVICES.values() for kind in pair} | {"Taken"}
    assert {name for name, _ in shown} >= asked_and_told - {"Empty"}
    for name, text in shown:
        given = json.loads(text)
        decoded: Any = msgspec.json.decode(text, type=KINDS[name])
        if KINDS[name].__struct_config__.forbid_unknown_fields:  # type: ignore[attr-defined]  # a request says less
            continue
        assert json.loads(msgspec.json.encode(decoded)) == given, name


def test_subjects_are_those_of_the_code() -> None:
    key: Any = "<segment>"
    all_of_them = {
        *SERVICES,
        *MESSAGES,
        MEDIA,
        subjects.answers("<job>", "<stream>"),
        subjects.partials("<job>", "<stream>"),
        subjects.signals("<worker>"),
        "penstock.events.<stream>",
        subjects.gap("<cause>", "<stage>", "<stream>", key),
        subjects.media("<stream>", key),
        subjects.media_end("<stream>"),
        subjects.result("<stage>", "<stream>", key),
        subjects.dead("<stage>", "<stream>", key),
        "penstock.bulk.<stream>.<digest>.<number>",
    }
    assert {endpoint.subject for endpoint in Services(*[None] * 5).endpoints().values()} == {  # type: ignore[arg-type]
        re.sub("<.*>", "*", subject) for subject in SERVICES
    }
    for subject in all_of_them:
        assert f"`{subject}`" in TEXT, subject
    shapes = {tuple(subject.split(".")[1:2]): subject.count(".") for subject in all_of_them}
    for subject in re.findall(r"(?<![\w/@-])penstock\.[a-z]+\.[\w.<>*${}-]*[\w<>*}]", TEXT):
        expected = shapes[tuple(subject.split(".")[1:2])]
        assert subject.count(".") == expected or subject.endswith(">"), subject


def test_headers_are_those_of_the_code() -> None:
    ours = {intake.OFFSET, intake.POLICY, intake.SEGMENT, intake.MAX_LAG, answering.PROGRESS, ledger.BULK}
    refusals = {service.CODE, service.ERROR, service.OFFER, service.BEAT}
    theirs = {
        *ledger.EXPECT_EMPTY,
        *(f"Nats-{name}" for name in ("Stream", "Subject", "Sequence", "Time-Stamp")),
        *("Penstock-Job", "Penstock-Stream", "Penstock-Signature"),  # of webhooks
    }
    assert set(re.findall(r"\b(?:Penstock|Nats)(?:-[A-Z][a-z]+)+\b", TEXT)) == ours | refusals | theirs
    assert f"`{ledger.TRACEPARENT}`" in TEXT


def test_limits_and_lists_are_those_of_the_code() -> None:
    kept, pace = retention.Retention(), webhooks.Pace()
    (limits,) = (rows(table) for name, table in marked("limits") if name == "all")
    assert {row[0]: float(row[1].split()[0].replace(",", "")) for row in limits} == {
        "name of a stream or job": 128,
        "questions in one job": submission.MAX_ASKS,
        "a standing question looks back": submission.MAX_WINDOW_S,
        "`timeout_s`": services.MAX_WAIT_S,
        "requests under way at one service of one node": service.MAX_IN_FLIGHT,
        "text of an error": service.MAX_LINE,
        "`segment_s`": stream.BOUNDS["segment_s"][1],
        "silence of a sender": intake.SILENCE_S,
        "bytes published without a reply that wait": intake.MAX_WAITING_BYTES / 2**20,
        "ended jobs that are remembered": registry.KEEP_JOBS,
        "age of what is kept": kept.max_age_s / 86400,
        "answers kept": kept.max_results_bytes / 2**30,
        "gap notes kept": kept.max_results_bytes / 16 / 2**20,
        "media kept": kept.max_media_bytes / 2**30,
        "attempt at a webhook": pace.request_s,
        "pause between two attempts": pace.max_pause_s,
        "age of an answer that a webhook still gets": pace.max_age_s / 3600,
        "message, on the embedded server": int(re.findall(r"max_payload: (\d+)MB", keeper.CONFIGURATION)[0]),
    }
    (causes,) = (rows(table) for name, table in marked("causes") if name == "Gap")
    assert [row[0].strip("`") for row in causes] == list(get_args(GapCause))
    (codes,) = (rows(table) for name, table in marked("codes") if name == "all")
    assert [row[0].strip("`") for row in codes] == [
        service.WRONG,
        service.TOO_LARGE,
        service.CANNOT_BE,
        service.FAILED,
        service.NOT_NOW,
    ]


def test_the_bounds_of_service_times_are_as_told() -> None:
    assert ", ".join(f"{bound:g}" for bound in SERVICE_BOUNDS_S) in TEXT


def test_the_signature_of_a_webhook_is_as_told() -> None:
    (secret,) = re.findall(r"with the secret `(.*?)`", TEXT)
    ((told, t),) = re.findall(r"^Penstock-Signature: (t=(\d+),v1=\w+)$", TEXT, re.MULTILINE)
    (key,) = re.findall(r"^Idempotency-Key: (\w+)-\d+$", TEXT, re.MULTILINE)
    answers = [msgspec.json.decode(text, type=Answer) for name, text in marked("example") if name == "Answer"]
    (sent,) = (answer for answer in answers if answer.job == key)
    assert posting.signature(secret.encode(), int(t), msgspec.json.encode(sent)) == told
    assert f"`${posting.SECRET}`" in TEXT


def test_what_is_served_over_http_is_listed() -> None:
    routes = pytest.importorskip("penstock.http.routes")
    (table,) = (rows(table) for name, table in marked("routes") if name == "all")
    told = {(row[0].strip("`").split(" ")[0], row[0].strip("`").split(" ")[1]) for row in table}
    served = {
        (method, re.sub(r"\{(\w+):\w+\}", r"{\1}", path))
        for handler in routes.HANDLERS
        for path in handler.paths
        for method in handler.http_methods
        if method not in ("OPTIONS", "HEAD")
    }
    assert told == served | {("GET", "/openapi.json")}


# --- a client that knows the document only -----------------------------------------------------------------------

SCENES = Workflow(name="scenes", stages={"scenes": Stage(capability="detect_scenes", inputs={"media": "media"})})


@pytest.fixture
async def node(nats_url: str) -> AsyncIterator[str]:
    """What serves the protocol; the URL of its NATS server."""
    async with connect(nats_url) as link, anyio.create_task_group() as tasks:
        stored, known = await open_ledger(link), await open_registry(link)
        catalogue, traces = installed(), Telemetry("test")
        assignment = Assignment(url=nats_url, num_cores=2)
        status = NodeStatus(id="n1", host="here", pid=1, num_cores=2)
        tasks.start_soon(Worker(stored, assignment, catalogue, traces).run)
        tasks.start_soon(Duties(known, stored, catalogue, traces, status).run)
        tasks.start_soon(intake.Intake(known, stored, traces, status.id).run)
        served = Services(known, stored, catalogue, Machine(num_cores=2), SCENES)
        async with serve(link, "penstock", "0.1.0", served.endpoints()):
            yield nats_url
        tasks.cancel_scope.cancel()


@pytest.fixture
async def client(node: str) -> AsyncIterator[Nats]:
    connection = await nats.connect(node)
    yield connection
    await connection.close()


async def asked(client: Nats, subject: str, request: Any) -> Any:
    """The reply; of a refusal, its code and its line."""
    reply = await client.request(subject, json.dumps(request).encode(), timeout=30)
    said = reply.headers or {}
    if "Nats-Service-Error-Code" in said:
        return int(said["Nats-Service-Error-Code"]), said["Nats-Service-Error"]
    return json.loads(reply.data)


async def piece_sent(client: Nats, stream: str, piece: bytes, headers: dict[str, str]) -> tuple[Any, str]:
    """The reply, and the error in its header."""
    while True:
        try:
            reply = await client.request(f"penstock.ingest.{stream}", piece, timeout=30, headers=headers)
            return json.loads(reply.data), (reply.headers or {}).get("Nats-Service-Error", "")
        except nats.errors.NoRespondersError:  # no node listens yet
            await anyio.sleep(0.05)


async def sent(client: Nats, stream: str, clip: Path, segment_s: float) -> int:
    """The number of segments. Each piece is sent twice, as where the reply to the first got lost."""
    data = await anyio.Path(clip).read_bytes()
    headers = {"Penstock-Policy": "durable", "Penstock-Segment": str(segment_s)}
    for start in range(0, len(data), 100_000):
        piece = data[start : start + 100_000]
        for _ in range(2):
            said = await piece_sent(client, stream, piece, {**headers, "Penstock-Offset": str(start)})
            assert said == ({"offset": start + len(piece)}, "")
    ahead = f"a piece at {len(data) + 1} while {len(data)} is due: send what is missing"
    assert await piece_sent(client, stream, b"x", {"Penstock-Offset": str(len(data) + 1)}) == (
        {"offset": len(data), "error": ahead},
        ahead,
    )
    end, error = await piece_sent(client, stream, b"", {"Penstock-Offset": str(len(data))})
    assert (error, end["offset"]) == ("", len(data))
    return int(end["num_segments"])


async def next_answer(client: Nats, subject: str, seq: int) -> tuple[int, Any] | None:
    wanted = json.dumps({"seq": seq, "next_by_subj": subject}).encode()
    reply = await client.request("$JS.API.DIRECT.GET.PENSTOCK_ANSWERS", wanted, timeout=5)
    said = reply.headers or {}
    if said.get("Status") == "404":
        return None
    return int(said["Nats-Sequence"]), json.loads(reply.data)


@pytest.mark.anyio
async def test_from_bytes_to_answers_with_a_nats_client_only(client: Nats, tmp_path: Path) -> None:
    with anyio.fail_after(60):
        num_segments = await sent(client, "clip", first_seconds(tmp_path / "clip.mkv", 8.0), 2.0)
        (found,) = (await asked(client, "penstock.streams.list", {"stream": "clip"}))["streams"]
        assert (found["state"], found["num_segments"]) == ("ended", num_segments)
        assert num_segments >= 3
        submitted = await asked(client, "penstock.jobs.submit", {"id": "look", "stream": "clip", "start": "0:00"})
        assert submitted["new"] == ["scenes"]
        seen: dict[int, Any] = {}
        while True:
            state = (await asked(client, "penstock.jobs.show", {"job": "look"}))["state"]
            while item := await next_answer(client, "penstock.answers.look.*", max(seen, default=0) + 1):
                seen[item[0]] = item[1]
            if state != "running":
                break
            await anyio.sleep(0.05)
    assert [answer["first"] for answer in seen.values()] == list(range(num_segments))
    for answer in seen.values():
        msgspec.convert(answer["output"], Scenes)
    again = await asked(client, "penstock.operators.detect_scenes", {"stream": "clip", "start": "0:00"})
    assert [output["output"] for output in again["outputs"]] == [answer["output"] for answer in seen.values()]
    assert await asked(client, "penstock.streams.forget", {"stream": "clip"}) == {}
    assert await asked(client, "penstock.streams.list", {}) == {"streams": []}


@pytest.mark.anyio
async def test_requests_and_refusals_are_as_told(client: Nats) -> None:
    for subject, (kind, _) in SERVICES.items():
        code, line = await asked(client, subject.replace("<", "").replace(">", ""), {"no such key": 1})
        fields = ", ".join(kind.__struct_fields__) or "none"  # type: ignore[attr-defined]
        assert (code, line.partition("; its keys are")[2].strip()) == (400, fields), subject
    kept = json.loads((await client.request("$JS.API.STREAM.NAMES", b"")).data)["streams"]
    assert {name for name in kept if not name.startswith("KV_")} == set(re.findall(r"`(PENSTOCK_[A-Z]+)`", TEXT))
    assert {name[3:] for name in kept if name.startswith("KV_")} == set(re.findall(r"`(penstock_[a-z]+)`", TEXT))
    told = [(json.loads(text), line) for _, text, line in REFUSALS]
    assert len(told) >= 3
    for (subject, _, line), (request, _) in zip(REFUSALS, told, strict=True):
        assert await asked(client, subject, request) == (400, line)


REFUSALS = re.findall(r"\| `(penstock\.[\w.-]+)` \| `(\{.*?\})` \| 400 `` (.*?) `` \|", TEXT)


@pytest.mark.anyio
async def test_the_program_in_the_document_runs(node: str, tmp_path: Path) -> None:
    """Where the npm package that it needs is in NODE_PATH."""
    modules = Path(os.environ.get("NODE_PATH") or "nowhere")
    if shutil.which("node") is None or not (modules / "nats").is_dir():
        pytest.skip("needs node, and the npm package nats in NODE_PATH")
    (program,) = re.findall(r"```js\n(.*?)\n```", TEXT, re.DOTALL)
    (tmp_path / "client.mjs").write_text(program)
    (tmp_path / "node_modules").symlink_to(modules)
    clip = first_seconds(tmp_path / "clip.mkv", 8.0)
    command = ["node", "client.mjs", "clip", str(clip), "look"]
    environment = {**os.environ, "PENSTOCK_NATS": node}

    def run() -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert len((await anyio.to_thread.run_sync(run)).splitlines()) >= 1
    assert await anyio.to_thread.run_sync(run) == ""  # it knows what it has seen


if __name__ == "__main__":
    SCHEMAS.write_text(written(schemas()), encoding="utf-8")
