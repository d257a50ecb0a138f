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
from mcp import ClientSession, StdioServerParameters, stdio_client
from media_zoo import make
from served import serving

from penstock.mcp_server import MAX_CHARS, TOOLS, Ask, Tool, arguments_of
from streams.errors import UserError

pytestmark = pytest.mark.anyio
CAPTIONS = ((0.1, 1.9, "The train to Porto leaves at nine twenty."), (2.1, 3.9, "Breakfast costs eleven euros."))
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
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    said = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}).encode() + b"\n"
    for ends in ("signal", "end of input", "no JSON"):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write((b"\xff nonsense\n" if ends == "no JSON" else b"") + said)
        process.stdin.flush()
        while "result" not in (answer := json.loads(process.stdout.readline())):  # nonsense is answered, too
            pass
        assert answer["result"]["serverInfo"]["name"] == "penstock"
        if ends == "signal":
            process.send_signal(signal.SIGINT)
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


async def test_a_long_transcript_comes_in_pieces() -> None:
    from operators.capabilities import Speech

    said = [Speech(start_ns=n * 10**9, end_ns=(n + 1) * 10**9, text="x" * 1000) for n in range(100)]

    class Some:
        async def transcript(self, stream: str) -> list[Speech]:
            return said

    transcript, got, start_s = BY_NAME["transcript"], 0, 0.0
    for _ in range(10):
        piece = await transcript.work(Some(), arguments_of(transcript, {"stream": "a", "start_s": start_s}))  # type: ignore[arg-type]
        assert sum(len(line["text"]) for line in piece["lines"]) <= MAX_CHARS
        got += len(piece["lines"])
        if "next_start_s" not in piece:
            break
        start_s = piece["next_start_s"]
    assert got == len(said)
