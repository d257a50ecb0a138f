"""Tools: what the owner's file may say, and what comes of a call of each kind, good or bad."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import toy_tools
from scripted_endpoint import Act, Request, Send, refuses, says_nothing, serving

from operators.control.calls import Caller
from operators.control.tools import tools
from streams.errors import Permanent, Transient, UserError

HERE = Path(__file__).parent.parent
ONE = '[[tool]]\nname = "price"\npython = "toy_tools:price"\n'
WEB = '[[tool]]\nname = "web"\nurl = "http://127.0.0.1:9/x"\n'


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PENSTOCK_TOOLS", str(tmp_path / "tools.toml"))
    return tmp_path / "tools.toml"


@pytest.fixture(autouse=True)
def _held() -> Iterator[None]:
    toy_tools.HELD.clear()
    yield
    toy_tools.HELD.set()


def test_tools_have_names_and_without_a_file_there_are_none(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(ONE + WEB)
    assert [each.name for each in tools()] == ["price", "web"]
    monkeypatch.delenv("PENSTOCK_TOOLS")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert tools() == ()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[[tool]\n", "Expected"),
        ("[[tools]]\n", "unknown field `tools`"),
        (ONE.replace("price", "Price", 1), "name"),
        (ONE + ONE, "two tools are called 'price'"),
        ('[[tool]]\nname = "nothing"\n', "exactly one of python, url and mcp"),
        (ONE + 'url = "http://h/x"\n', "exactly one of python, url and mcp"),
        (ONE.replace("toy_tools:price", "toy_tools"), "not module:function"),
        (ONE + 'key = "${KEY}"\n', "a key and no url"),
        (ONE + "arguments = { grain = { type = 'string' } }\n", "says itself what it takes"),
        (WEB + 'key = "sk-123"\n', r'write key = "\$\{NAME\}"'),
        (WEB.replace("http:", "ftp:"), "no http"),
        (WEB.replace("127", "me:sk-123@127"), "a key belongs in key"),
        (WEB + "optional = ['grain']\n", "no argument 'grain'"),
        (WEB + "env = { A = '${B}' }\n", "only the command of an MCP server"),
        ('[[tool]]\nname = "m"\nmcp = ["x"]\nenv = { A = "sk-123" }\n', r'write A = "\$\{NAME\}"'),
    ],
)
def test_what_is_wrong_is_one_line_without_the_key(file: Path, text: str, why: str) -> None:
    file.write_text(text)
    with pytest.raises(UserError, match=why) as caught:
        tools()
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)
    assert "sk-123" not in str(caught.value)


# --- functions -----------------------------------------------------------------------------------------------------


async def called(name: str, **arguments: Any) -> Any:
    with anyio.fail_after(60):
        return await Caller(name).call(arguments)


async def wrong(name: str, kind: type[Exception] = Permanent, **arguments: Any) -> str:
    with pytest.raises(kind) as caught:
        await called(name, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def functions(file: Path, *names: str, more: str = "") -> None:
    told = (f'[[tool]]\nname = "{name.replace(".", "_")}"\npython = "toy_tools:{name}"\n{more}\n' for name in names)
    file.write_text("\n".join(told))


@pytest.mark.anyio
async def test_a_function_is_called_by_its_hints(file: Path) -> None:
    functions(file, "price", "shouted")
    takes = await Caller("price").takes()
    assert takes.about == "What a kind of grain costs today."
    assert takes.schema["properties"]["grain"]["enum"] == ["maize", "wheat"]
    assert takes.schema["required"] == ["grain"]
    assert await called("price", grain="wheat", tonnes=2) == {"text": "2 t of wheat cost 480 dollars"}
    assert await called("shouted", text="quiet") == "QUIET"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({}, "'grain' is a required property"),
        ({"grain": "oats"}, "'oats' is not one of"),
        ({"grain": "wheat", "tonnes": 0}, "tonnes: 0 is less than the minimum"),
        ({"grain": "wheat", "tonnes": "2"}, "tonnes: '2' is not of type"),
        ({"grain": "wheat", "to": "me"}, "Additional properties are not allowed"),
    ],
)
async def test_what_a_function_does_not_take_it_is_not_called_with(
    file: Path, arguments: dict[str, Any], why: str
) -> None:
    functions(file, "price")
    toy_tools.CALLS.clear()
    said = await wrong("price", **arguments)
    assert said.startswith("tool: price")
    assert why in said
    assert toy_tools.CALLS == []


@pytest.mark.anyio
async def test_what_goes_wrong_in_a_function_has_a_name(file: Path) -> None:
    functions(file, "fails", "hangs", "too_much", "not_json", "not_a_function", "nothing", more="timeout_s = 0.2")
    assert await wrong("fails") == "tool: fails raised RuntimeError: it is broken"
    assert await wrong("hangs", Transient) == "timeout: hangs gave nothing back within 0.2 s"
    assert "2097154 bytes; 1048576 at most" in await wrong("too_much")
    assert (await wrong("not_json")).startswith("tool: not_json gave back what JSON does not have")
    assert await wrong("not_a_function") == "tool: toy_tools:not_a_function is no function"
    assert "cannot be loaded: AttributeError" in await wrong("nothing")
    assert (await wrong("unheard_of")).startswith("tool: no tool 'unheard_of' is named in ")


@pytest.mark.anyio
async def test_functions_that_do_not_come_back_take_no_more_than_their_places(file: Path) -> None:
    functions(file, "hangs", more="timeout_s = 0.1\nmax_in_flight = 2")
    caller, others = Caller("hangs"), set(toy_tools.threading.enumerate())  # of tests before, that hang as well
    for _ in range(4):
        with anyio.fail_after(60), pytest.raises(Transient, match="timeout: hangs"):
            await caller.call({})
    more = set(toy_tools.threading.enumerate()) - others
    assert sum(thread.name.startswith("AnyIO") for thread in more) <= 4


# --- services ------------------------------------------------------------------------------------------------------


def answers(body: str, kind: str = "application/json") -> Act:
    async def act(request: Request, send: Send) -> None:
        lines = ["HTTP/1.1 200 OK", f"Content-Type: {kind}", f"Content-Length: {len(body.encode())}"]
        await send("\r\n".join([*lines, "Connection: close", "", body]).encode())

    return act


def service(file: Path, url: str, more: str = "") -> None:
    file.write_text(
        f'[[tool]]\nname = "web"\nurl = "{url}/price"\nkey = "${{TOY_KEY}}"\noptional = ["tonnes"]\n{more}\n'
        '[tool.arguments]\ngrain = { type = "string", maxLength = 10 }\ntonnes = { type = "integer" }\n'
    )


@pytest.mark.anyio
async def test_a_service_is_posted_its_arguments_with_the_key(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_KEY", "sk-planted")
    acts = answers('{"dollars": 240}'), answers("so much", "text/plain; charset=utf-8"), answers("")
    async with serving(*acts) as there:
        service(file, there.url)
        assert await called("web", grain="wheat") == {"dollars": 240}
        assert await called("web", grain="wheat", tonnes=2) == "so much"
        assert await called("web", grain="wheat") is None
        assert [request.body for request in there.requests][:2] == [{"grain": "wheat"}, {"grain": "wheat", "tonnes": 2}]
        assert "Bearer sk-planted" in there.requests[0].head
        assert there.requests[0].head.startswith("POST /v1/price ")
        assert "maxLength" in str((await Caller("web").takes()).schema)
        assert "'grain' is a required property" in await wrong("web")
        assert "is too long" in await wrong("web", grain="wheat" * 3)
        assert len(there.requests) == 3, "what it does not take it is not sent"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("act", "kind", "why"),
    [
        (refuses(503), Transient, "upstream: web: HTTP 503"),
        (refuses(429, Retry_After="1"), Transient, "upstream: web: HTTP 429"),
        (refuses(400, "no such grain: sk-planted"), Permanent, "tool: web: HTTP 400: no such grain: ..."),
        (refuses(401, "sk-planted"), Permanent, "tool: web: HTTP 401"),
        (refuses(302, Location="http://127.0.0.1:1/"), Permanent, "tool: web: HTTP 302"),
        (answers("{"), Permanent, "tool: web answers with what is no JSON: "),
        (answers("x" * (1 << 20) + "yz"), Permanent, "tool: web answers with over 1048576 bytes"),
        (says_nothing, Transient, "timeout: web"),
    ],
)
async def test_what_goes_wrong_at_a_service_has_a_name(
    file: Path, monkeypatch: pytest.MonkeyPatch, act: Act, kind: type[Exception], why: str
) -> None:
    monkeypatch.setenv("TOY_KEY", "sk-planted")
    async with serving(act) as there:
        service(file, there.url, "timeout_s = 0.5")
        said = await wrong("web", kind, grain="wheat")
    assert said.startswith(why)
    assert "sk-planted" not in said
    assert "127.0.0.1" not in said


@pytest.mark.anyio
async def test_who_is_not_there_is_told_without_the_address(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service(file, "http://127.0.0.1:9")
    assert "${TOY_KEY}: there is no such variable" in await wrong("web", Transient, grain="wheat")
    monkeypatch.setenv("TOY_KEY", "sk-planted")
    assert await wrong("web", Transient, grain="wheat") == "upstream: web cannot be reached: ConnectError"


# --- MCP servers ---------------------------------------------------------------------------------------------------


def servers(file: Path, *names: str, more: str = "") -> None:
    command = json.dumps([sys.executable, str(HERE / "toy_mcp_server.py")])
    rest = f'mcp = {command}\n{more}\nenv = {{ TOY_KEY = "${{TOY_KEY}}" }}\n'
    file.write_text("\n".join(f'[[tool]]\nname = "{name}"\n{rest}' for name in names))


def hurry(file: Path) -> None:
    """The first tool has less time than before."""
    file.write_text(file.read_text().replace("timeout_s = 10", "timeout_s = 0.3", 1))
    os.utime(file, ns=(1, 1))


def command(file: Path, name: str, *words: str) -> None:
    file.write_text(f'[[tool]]\nname = "{name}"\nmcp = {json.dumps(words)}\ntimeout_s = 0.3\n')


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_KEY", "sk-planted")
    monkeypatch.setenv("ANOTHER_KEY", "sk-other")


@pytest.mark.anyio
@pytest.mark.usefixtures("key")
async def test_a_tool_of_an_mcp_server_is_called_and_the_server_kept(file: Path) -> None:
    servers(file, "price", "secret", "process_id", "not_there")
    takes = await Caller("price").takes()
    assert takes.about.startswith("What a kind of grain costs.")
    assert takes.names == {"grain", "tonnes"}
    assert await called("price", grain="wheat", tonnes=3) == 720
    assert await called("secret") == "...", "it has its key, and nobody is told"
    assert await called("process_id") == await called("process_id"), "one server for all of its tools"
    assert "price: 'grain' is a required property" in await wrong("price")
    assert (await wrong("price", grain="oats")).startswith("tool: price: ")
    assert "its server has no tool 'not_there'; it has price, secret" in await wrong("not_there")


@pytest.mark.anyio
@pytest.mark.usefixtures("key")
async def test_an_mcp_server_that_is_gone_is_started_again(file: Path) -> None:
    servers(file, "process_id", "dies", "sleepy", more="timeout_s = 20")
    first = await called("process_id")
    assert (await wrong("dies", Transient)).startswith("upstream: dies: the connection to its server broke")
    second = await called("process_id")
    assert second != first
    os.kill(second, signal.SIGKILL)
    with anyio.fail_after(60):
        while True:
            try:
                third = await called("process_id")
            except Transient:  # who asks as it goes
                continue
            break
    assert third not in (first, second)


@pytest.mark.anyio
@pytest.mark.usefixtures("key")
async def test_an_mcp_server_that_says_nothing_or_is_none_holds_nobody_up(file: Path, tmp_path: Path) -> None:
    servers(file, "sleepy", "process_id", more="timeout_s = 10")
    await called("process_id")
    hurry(file)
    assert await wrong("sleepy", Transient) == "timeout: sleepy gave nothing back within 0.3 s"
    assert isinstance(await called("process_id"), int)
    command(file, "none", "/does/not/exist")
    assert (await wrong("none", Transient)).startswith("upstream: none: its server is not up: ")
    command(file, "mute", "sleep", "60")
    assert await wrong("mute", Transient) == "timeout: mute did not say within 0.3 s what it takes"


def test_who_asks_no_mcp_server_does_not_wait_for_its_library() -> None:
    code = "import sys; from engine.spec.catalogue import installed; installed(); sys.exit('mcp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
