"""Penstock as an agent meets it: the protocol's own client on stdin and stdout, against a real node."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from mcp import Client, ClientSession, StdioServerParameters, stdio_client
from media_zoo import make
from served import serving

import penstock
from operators.heard import Speech
from penstock.mcp_server import MAX_CHARS, TOOLS, Ask, Tool, arguments_of, server_of
from streams.errors import UserError

pytestmark = pytest.mark.anyio
CAPTIONS = ((0.1, 1.9, "The train to Porto leaves at nine twenty."), (2.1, 3.9, "Breakfast costs eleven euros."))
HELLO = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
SAID = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": HELLO}).encode()
BY_NAME = {tool.name: tool for tool in TOOLS}


@asynccontextmanager
async def agent(store: Path) -> AsyncIterator[ClientSession]:
    parameters = StdioServerParameters(
        command=sys.executable, args=["-m", "penstock", "mcp", "--store", str(store)], env=dict(os.environ)
    )
    async with stdio_client(parameters) as (read, write), ClientSession(read, write) as session:
        with anyio.fail_after(60):
            await session.initialize()
        yield session


async def call(session: ClientSession, name: str, **arguments: Any) -> Any:
    with anyio.fail_after(60):
        result = await session.call_tool(name, arguments)
    (text,) = result.content
    assert not result.is_error, text
    assert json.loads(text.text) == result.structured_content  # type: ignore[union-attr]
    return result.structured_content


async def refused(session: ClientSession, name: str, **arguments: Any) -> str:
    with anyio.fail_after(60):
        result = await session.call_tool(name, arguments)
    assert result.is_error
    (text,) = result.content
    return str(text.text)  # type: ignore[union-attr]


async def test_an_agent_finds_asks_and_watches(tmp_path: Path) -> None:
    clip = make(tmp_path / "hotel.mkv", video="libx264", audio="aac", seconds=4, captions=CAPTIONS)
    store = tmp_path / "store"
    with serving(store):
        push = [sys.executable, "-m", "penstock", "push", str(clip), "--stream", "hotel", "--store", str(store)]
        await anyio.run_process([*push, "--segment", "2s"])
        async with agent(store) as session:
            tools = (await session.list_tools()).tools
            assert [tool.name for tool in tools] == list(BY_NAME)
            (stream,) = (await call(session, "list_streams"))["streams"]
            assert (stream["stream"], stream["state"], stream["num_segments"]) == ("hotel", "ended", 2)

            answer = (await call(session, "ask", stream="hotel", question="When does the train leave?"))["answer"]
            assert "nine twenty" in answer["answer"]
            assert answer["evidence"][0]["start_s"] < 2

            (hit, *_) = (await call(session, "search", text="What does breakfast cost?", num=1))["hits"]
            assert hit["stream"] == "hotel"
            assert "eleven euros" in hit["text"]
            heard = await call(session, "transcript", stream="hotel", start_s=2.0)
            assert [line["text"] for line in heard["lines"]] == ["Breakfast costs eleven euros."]

            watch = await call(session, "watch", stream="hotel", question="What does breakfast cost?", start="0s")
            came = await call(session, "answers", job=watch["job"], wait_s=60)
            assert came["answers"]
            assert (await call(session, "answers", job=watch["job"], after=came["next"], wait_s=0))["answers"] == []
            await call(session, "unwatch", job=watch["job"])
            assert watch["job"] not in {job["job"] for job in (await call(session, "list_jobs"))["jobs"]}


async def test_what_is_wrong_is_said_to_the_agent_which_goes_on(tmp_path: Path) -> None:
    """Also where no node runs yet: an agent's host starts this once, whenever it likes."""
    async with agent(tmp_path) as session:
        assert "no Penstock runs here" in await refused(session, "list_streams")
        assert "there is no tool 'rm'" in await refused(session, "rm")
        assert "missing required field `question`" in await refused(session, "ask", stream="a")
        assert "unknown field `path`" in await refused(session, "search", text="a", path="/etc/passwd")
        assert "no Penstock runs here" in await refused(session, "list_jobs")


def test_it_ends_when_it_is_interrupted_and_when_its_host_goes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "penstock", "mcp", "--store", str(tmp_path)]
    for ends in ("signal", "end of input", "no JSON"):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write((b"\xff nonsense\n" if ends == "no JSON" else b"") + SAID + b"\n")
        process.stdin.flush()
        while "result" not in (answer := json.loads(process.stdout.readline())):  # nonsense is answered, too
            pass
        assert answer["result"]["serverInfo"]["name"] == "penstock"
        if ends == "signal":
            process.send_signal(signal.SIGINT)
            process.wait(timeout=30)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == (130 if ends == "signal" else 0), errors
        assert b"Traceback" not in errors


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_a_tool_says_what_it_takes_without_references(tool: Tool) -> None:
    described = tool.described()
    assert described.input_schema["type"] == "object"
    assert "$ref" not in json.dumps(described.input_schema)
    assert set(described.input_schema.get("required", ())) <= set(described.input_schema["properties"])
    for field in msgspec.structs.fields(tool.takes):
        assert "description" in json.dumps(described.input_schema["properties"][field.name]), field.name


def test_arguments_have_bounds() -> None:
    ask = BY_NAME["ask"]
    assert arguments_of(ask, {"stream": "a", "question": "b"}) == Ask("a", "b")
    for wrong in ({"stream": "a"}, {"stream": "a", "question": "b" * 3000}, {"stream": 1, "question": "b"}):
        with pytest.raises(UserError, match=r"^ask: "):
            arguments_of(ask, wrong)


class Some:
    """A client that heard this."""

    def __init__(self, said: list[Speech]) -> None:
        self._said = said

    async def transcript(self, stream: str) -> list[Speech]:
        return self._said


@pytest.mark.parametrize("overlap_s", [0, 1, 50])
async def test_a_long_transcript_comes_in_pieces_each_line_once(overlap_s: int) -> None:
    said = [
        Speech(start_ns=n * 10**9 // 3, end_ns=(n + 1 + overlap_s) * 10**9 // 3, text=f"{n} " + "x" * 1000)
        for n in range(100)
    ]
    said[0] = msgspec.structs.replace(said[0], end_ns=100 * 10**9)  # two who speak at once
    transcript, after, got = BY_NAME["transcript"], 0, list[str]()
    for _ in range(10):
        arguments = arguments_of(transcript, {"stream": "a", "after": after})
        piece = await transcript.work(Some(said), arguments)  # type: ignore[arg-type]
        assert sum(len(line["text"]) for line in piece["lines"]) <= MAX_CHARS
        got += [line["text"] for line in piece["lines"]]
        if "next" not in piece:
            break
        after = piece["next"]
    assert got == [each.text for each in said]


async def test_a_failure_that_nobody_expected_is_told_in_one_line() -> None:
    class Broken:
        async def streams(self) -> list[Any]:
            raise RuntimeError("/secret/path sk-123")

    @asynccontextmanager
    async def connected() -> AsyncIterator[Any]:
        yield Broken()

    async with Client(server_of(connected)) as client:
        result = await client.call_tool("list_streams", {})
    assert result.is_error
    assert result.content[0].text == "list_streams failed (RuntimeError): its log says why"  # type: ignore[union-attr]


async def test_a_line_that_is_too_long_is_passed_over_and_stdin_may_be_a_file(tmp_path: Path) -> None:
    lines = [b'{"x": "' + b"y" * (9 << 20) + b'"}', SAID, b""]
    (tmp_path / "in").write_bytes(b"\n".join(lines))
    command = [sys.executable, "-m", "penstock", "mcp", "--store", str(tmp_path)]
    with (tmp_path / "in").open("rb") as file:
        done = await anyio.run_process(command, stdin=file, check=False)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
    assert b"is passed over" in done.stderr
    assert json.loads(done.stdout.splitlines()[0])["result"]["serverInfo"]["name"] == "penstock"


async def test_answers_that_are_there_need_no_waiting_and_what_cannot_be_read_is_passed_over(nats_url: str) -> None:
    from engine.run.registry import open_registry
    from streams import subjects
    from streams.wire.ledger import open_ledger
    from streams.wire.link import connect as connect_link

    async with penstock.connect(nats_url) as client, connect_link(nats_url) as link:
        ledger, _ = await open_ledger(link), await open_registry(link)
        where = subjects.answers("j1", "s")
        good = {
            "job": "j1", "stream": "s", "question": "", "answer": "yes", "confidence": 1, "evidence": [], "stages": [],
            "gaps": [], "latency_s": 0, "compute_s": 0, "trace_id": "",
        }  # fmt: skip
        deep: Any = 1
        for _ in range(300):
            deep = [deep]
        js = link.client.jetstream()
        await js.publish(where, json.dumps(good).encode())
        await js.publish(where, b"nonsense")
        await js.publish(where, b"x", headers={"Penstock-Bulk": "a." + "0" * 40 + ".1"})
        await js.publish(where, json.dumps({**good, "output": deep}).encode())
        await js.publish(where, json.dumps({**good, "answer": "last"}).encode())
        found = await client.next_answers("j1", wait_s=0)
        assert [answer.answer for answer in found.answers][0 :: len(found.answers) - 1] == ["yes", "last"]
        told = await BY_NAME["answers"].work(client, arguments_of(BY_NAME["answers"], {"job": "j1", "wait_s": 0}))
        assert msgspec.json.encode(told)
        assert (await client.next_answers("j1", found.next, 0)).answers == []
        with pytest.raises(UserError):
            await client.next_answers("no-such-job", wait_s=0)
        del ledger
