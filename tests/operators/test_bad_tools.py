"""Tools that mean harm, or are broken: what they do ends nothing, holds nobody up, and tells no secret."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import anyio
import pytest
import toy_tools
from scripted_endpoint import refuses, serving

from operators.control.calls import Caller
from operators.control.tools import tools
from operators.language.structured import Growing, inlined
from operators.language.toolbox import Toolbox
from streams.errors import Permanent, Transient, UserError

TESTS = Path(__file__).parent.parent
PLAIN = "S3CRET-777-planted"
KEY = 'S3CRET-"777-planted'
pytestmark = pytest.mark.anyio


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PENSTOCK_TOOLS", str(tmp_path / "tools.toml"))
    monkeypatch.setenv("TOY_KEY", KEY)
    return tmp_path / "tools.toml"


@pytest.fixture(autouse=True)
def _held() -> Iterator[None]:
    toy_tools.HELD.clear()
    yield
    toy_tools.HELD.set()


def function(file: Path, place: str, more: str = "") -> Caller:
    name = place.rpartition(":")[2].lower()
    file.write_text(f'[[tool]]\nname = "{name}"\npython = "{place}"\n{more}\n')
    return Caller(name)


async def wrong(caller: Caller, kind: type[Exception] = Permanent, **arguments: Any) -> str:
    with anyio.fail_after(30), pytest.raises(kind) as caught:
        await caller.call(arguments)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- functions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("leaves", "tool: leaves raised SystemExit: 3"),
        ("leaves_later", "tool: leaves_later raised SystemExit: 3"),
        ("cancels", "tool: cancels raised CancelledError"),
        ("awaits_what_is_canceled", "tool: awaits_what_is_canceled raised CancelledError"),
        ("says_nothing_of_it", "tool: says_nothing_of_it raised Unspeakable"),
        ("strange_hint", "tool: strange_hint does not say what it takes: "),
        ("too_large_a_number", "tool: too_large_a_number gave back what JSON does not have: "),
    ],
)
async def test_whatever_a_function_raises_is_a_failure_of_the_tool(file: Path, name: str, why: str) -> None:
    assert (await wrong(function(file, f"toy_tools:{name}"))).startswith(why)


async def test_who_cancels_a_call_is_heard(file: Path) -> None:
    caller = function(file, "toy_tools:hangs")
    with anyio.move_on_after(0.2) as scope:
        await caller.call({})
    assert scope.cancelled_caught


async def test_a_module_that_hangs_as_it_is_imported_holds_nobody_up(file: Path) -> None:
    caller = function(file, "toy_hanging_module:never", "timeout_s = 0.3")
    began_s = monotonic()
    assert (await wrong(caller, Transient)).startswith("timeout: never")
    assert monotonic() - began_s < 20
    toy_tools.HELD.set()


async def test_whatever_can_be_called_is_a_function(file: Path) -> None:
    assert await function(file, "toy_tools:adder").call({"one": 1}) == 2
    assert await function(file, "toy_tools:add_two").call({"one": 1}) == 3
    assert await function(file, "toy_tools:takes_arguments").call({"x": {"x": 7}}) == 7
    assert await function(file, "toy_tools:numbers").call({}) == {"nan": None, "n": 7, "3": "three"}


async def test_no_more_calls_are_under_way_than_may_be_whatever_a_function_hides(file: Path) -> None:
    caller = function(file, "toy_tools:wrapped_later", "max_in_flight = 2")
    most: list[int] = []

    async def one() -> None:
        most.append(await caller.call({}))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(one)
    assert max(most) <= 2


# --- servers -------------------------------------------------------------------------------------------------------


def server(file: Path, how: str, more: str = "timeout_s = 10") -> Caller:
    command = json.dumps([sys.executable, str(TESTS / "bad_mcp_server.py"), how, str(file.parent)])
    file.write_text(f'[[tool]]\nname = "tool"\nmcp = {command}\nenv = {{ TOY_KEY = "${{TOY_KEY}}" }}\n{more}\n')
    return Caller("tool")


@pytest.mark.parametrize("how", ["bomb", "itself", "redos"])
async def test_a_schema_that_is_a_trap_is_taken_for_any_object(file: Path, how: str) -> None:
    caller = server(file, how)
    began_s = monotonic()
    with anyio.fail_after(30):
        box = await Toolbox.opened({"tool": caller}, ["tool"], 2)
        assert len(json.dumps(box.schema({"type": "object"}))) < 100_000
        assert len(box.told()) < 5_000
        assert await caller.call({"x": "a" * 40 + "!"}) == "my key is ..."
    assert monotonic() - began_s < 20


def test_what_is_in_one_piece_is_bounded() -> None:
    wide = {"type": "object", "properties": {f"p{at}": {"type": "string"} for at in range(5000)}}
    assert inlined(wide) == {"type": "object"}
    named = {"type": "object", "properties": {"title": {"type": "string", "title": "A title"}}}
    assert inlined(named) == {"type": "object", "properties": {"title": {"type": "string"}}}


async def test_what_a_server_says_of_its_tool_cannot_leave_its_fence(file: Path) -> None:
    with anyio.fail_after(30):
        box = await Toolbox.opened({"tool": server(file, "fence")}, ["tool"], 2)
    assert "<" not in box.told()
    assert ">" not in box.told()


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("names", "tool: tool: its server has no tool 'tool'; it has x..."),
        ("malformed_list", "tool: tool: what its server says is not as it should be"),
        ("malformed_result", "tool: tool: what its server says is not as it should be"),
        ("breaks_its_word", "tool: tool: what its server says is not as it should be"),
    ],
)
async def test_what_a_server_breaks_is_told_without_its_key(
    file: Path, how: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert (await wrong(server(file, how))).startswith(why)
    assert KEY not in caplog.text


async def test_a_server_that_says_its_key_says_it_to_nobody(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with anyio.fail_after(30):
        assert await server(file, "writes_its_key").call({}) == "my key is ..."
    assert KEY not in caplog.text


async def test_one_that_hangs_as_it_starts_is_started_anew_by_who_asks_next(file: Path) -> None:
    caller = server(file, "hangs_at_first", "timeout_s = 3")
    assert (await wrong(caller, Transient)).startswith("timeout: tool")
    with anyio.fail_after(30):
        assert await caller.call({}) == "my key is ..."


async def test_one_that_writes_without_end_is_let_go(file: Path) -> None:
    caller = server(file, "endless", "timeout_s = 1")
    assert (await wrong(caller, Transient)).startswith(("timeout: tool", "upstream: tool"))
    (pid,) = map(int, (file.parent / "pids").read_text().split())
    with anyio.fail_after(40):
        while is_running(pid):  # noqa: ASYNC110 - another process
            await anyio.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel to end a child with its parent: Linux")
def test_a_server_ends_with_who_started_it_however_that_ends(file: Path) -> None:
    server(file, "closes_its_mouth", "timeout_s = 3")
    code = """
        import anyio, os
        from operators.control.calls import Caller
        async def main():
            try:
                await Caller("tool").call({})
            except Exception as error:
                print(error, flush=True)
            os._exit(0)
        anyio.run(main)
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.stdout.startswith(("upstream: tool", "timeout: tool")), done.stderr
    (pid,) = map(int, (file.parent / "pids").read_text().split())
    until_s = monotonic() + 10
    while is_running(pid):
        assert monotonic() < until_s


def web(file: Path, url: str) -> None:
    file.write_text(f'[[tool]]\nname = "web"\nurl = "{url}"\nkey = "${{TOY_KEY}}"\n')


# --- services ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        "p" * 290 + PLAIN,
        json.dumps({"said": PLAIN}),
        json.dumps({"said": PLAIN}).replace("-", "\\u002d"),
    ],
)
async def test_a_key_is_not_told_in_part_or_in_other_words(
    file: Path, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_KEY", PLAIN)
    async with serving(refuses(400, body)) as there:
        web(file, there.url)
        said = await wrong(Caller("web"))
    assert said.startswith("tool: web: HTTP 400: ")
    assert "S3CR" not in said
    assert "planted" not in said


def test_of_two_secrets_the_longer_goes_first(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A", "abc123")
    monkeypatch.setenv("B", "abc123-long-secret-tail")
    file.write_text('[[tool]]\nname = "m"\nmcp = ["x"]\nenv = { A = "${A}", B = "${B}" }\n')
    assert tools()[0].without_secrets("it is abc123-long-secret-tail, or abc123") == "it is ..., or ..."


def test_what_is_no_schema_is_said_when_the_file_is_read(file: Path) -> None:
    file.write_text('[[tool]]\nname = "w"\nurl = "http://h/x"\narguments = { g = { type = "strin" } }\n')
    with pytest.raises(UserError, match="argument 'g' of 'w' is no JSON Schema: 'strin' is not valid"):
        tools()


def test_what_a_model_would_call_with_is_no_draft_of_an_answer() -> None:
    growing = Growing("answer")
    said = '{"tool": "h", "arguments": {"answer": "password is hunter2"}}'
    assert "".join(growing.add(said[at : at + 7]) for at in range(0, len(said), 7)) == ""
