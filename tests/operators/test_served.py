"""A model's server, as a node keeps it: a real process of its own, and a child of that."""

import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import msgspec
import pytest
from media_zoo import make

from engine.spec.catalogue import installed
from engine.spec.workflow import Stage, Workflow
from operators.language import served
from operators.language.endpoints import PLACE, Endpoint, endpoints
from operators.language.served import Load, Served, ServedState, command_of, last_words, until_up
from penstock.running import Options, run
from streams.errors import UserError

pytestmark = pytest.mark.anyio
TOY = Path(__file__).parents[1] / "toy_model_server.py"
WORKFLOW = Workflow(
    name="read",
    stages={
        "speech": Stage(capability="transcribe", inputs={"media": "media"}),
        "answer": Stage(capability="answer_question", inputs={"evidence": ("speech",)}, params={"question": "$ask"}),
    },
)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"LOOK_S": 0.05, "CHECK_S": 0.4, "PROBE_S": 1.0, "FIRST_PAUSE_S": 0.05}.items():
        monkeypatch.setattr(served, name, seconds)
    monkeypatch.setattr(served, "GRACE_S", 1.0)


@pytest.fixture
def endpoint(tmp_path: Path) -> Endpoint:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = (sys.executable, str(TOY), "{host}", "{port}", "{model}", str(tmp_path))
    return Endpoint(model="m", url=f"http://127.0.0.1:{port}/v1", serve=serve, start_s=30.0)


class Seen:
    """What is said of a server."""

    def __init__(self) -> None:
        self.states: list[ServedState] = []

    async def until(self, wanted: Callable[[ServedState], bool], since: int = -1) -> ServedState:
        """The first state of that kind, from the one that stands on."""
        num = max(0, len(self.states) + since)
        with anyio.fail_after(30):
            while not any(map(wanted, self.states[num:])):  # noqa: ASYNC110 - another process brings it about
                await anyio.sleep(0.01)
        return next(filter(wanted, self.states[num:]))


@asynccontextmanager
async def kept(endpoint: Endpoint, folder: Path) -> AsyncIterator[Seen]:
    """A server that is kept; entered when it is up or has failed."""
    seen = Seen()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Served(endpoint, folder / "log", seen.states.append).run)
        try:
            await seen.until(lambda state: state.state != "starting")
            yield seen
        finally:
            tasks.cancel_scope.cancel()


def pids(folder: Path) -> list[int]:
    """Of the server and its child."""
    return [int(pid) for pid in (folder / "pids").read_text().split()]


def fields_of(pid: int) -> list[str]:
    """Of /proc/PID/stat, from the state on."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def is_alive(pid: int) -> bool:
    try:
        return fields_of(pid)[0] != "Z"
    except OSError:
        return False


async def gone(numbers: list[int]) -> None:
    with anyio.fail_after(30):
        while any(is_alive(pid) for pid in numbers):  # noqa: ASYNC110 - another process brings it about
            await anyio.sleep(0.02)


async def test_it_is_started_and_ends_with_all_it_started(endpoint: Endpoint, tmp_path: Path) -> None:
    async with kept(endpoint, tmp_path) as seen:
        up = await seen.until(lambda state: state.load != Load())
        assert (up.state, up.num_starts, up.is_ours) == ("up", 1, True)
        assert up.load == Load(num_running=5, num_waiting=1, cache_used=0.5)
        assert all(map(is_alive, pids(tmp_path)))
    await gone(pids(tmp_path))


@pytest.mark.parametrize("how", ["killed", "leash killed", "end", "sick", "frozen"])
async def test_it_is_started_again(endpoint: Endpoint, tmp_path: Path, how: str) -> None:
    async with kept(endpoint, tmp_path) as seen:
        before = pids(tmp_path)
        if how == "killed":
            os.kill(before[0], signal.SIGKILL)
        elif how == "leash killed":
            os.kill(int(fields_of(before[0])[1]), signal.SIGKILL)
        else:
            (tmp_path / how).touch()
        down = await seen.until(lambda state: state.state == "down")
        with suppress(FileNotFoundError):
            (tmp_path / how).unlink()
        await seen.until(lambda state: state.state == "up" and state.num_starts >= 2)
        await gone(before[:1] if how == "leash killed" else before)  # nobody is left who knows of the other
        if how == "leash killed":
            os.kill(before[1], signal.SIGKILL)
    said = {"killed": "exit 137", "end": "exit 3): it was told to end \ufffd[31m at ...", "leash killed": "exit -9"}
    assert said.get(how, "no sign of life") in down.detail


async def test_one_that_is_there_already_is_left_alone(endpoint: Endpoint, tmp_path: Path) -> None:
    """Another node of this machine has it; when that goes, this one serves it."""
    first, scope = Seen(), anyio.CancelScope()

    async def serve() -> None:
        with scope:
            await Served(endpoint, tmp_path / "first.log", first.states.append).run()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve)
        await first.until(lambda state: state.state == "up")
        async with kept(endpoint, tmp_path) as second:
            assert (second.states[-1].state, second.states[-1].is_ours) == ("up", False)
            assert (tmp_path / "starts").read_text() == "x"
            scope.cancel()
            await second.until(lambda state: state.state == "up" and state.is_ours)
            assert (tmp_path / "starts").read_text() == "xx"


async def test_two_who_want_it_at_once_start_it_once(endpoint: Endpoint, tmp_path: Path) -> None:
    (tmp_path / "slow").touch()
    states = Seen(), Seen()
    async with anyio.create_task_group() as tasks:
        for number, seen in enumerate(states):
            tasks.start_soon(Served(endpoint, tmp_path / f"log{number}", seen.states.append).run)
        with anyio.fail_after(30):
            while not (tmp_path / "starts").exists():  # noqa: ASYNC110 - another process brings it about
                await anyio.sleep(0.01)
        await states[1].until(lambda state: state.state == "starting", since=-10)
        (tmp_path / "slow").unlink()
        for seen in states:
            await seen.until(lambda state: state.state == "up")
        assert (tmp_path / "starts").read_text() == "x"
        assert sorted(seen.states[-1].is_ours for seen in states) == [False, True]
        tasks.cancel_scope.cancel()


async def test_something_else_in_its_place_is_not_taken_for_it(endpoint: Endpoint, tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    async with await anyio.open_process(list(command_of(endpoint))) as process:
        with anyio.fail_after(30):
            while not is_answered(endpoint):  # noqa: ASYNC110 - another process brings it about
                await anyio.sleep(0.02)
        try:
            async with kept(endpoint, tmp_path) as seen:
                assert (seen.states[-1].state, seen.states[-1].detail) == ("down", "what answers there has another")
                assert not await until_up(msgspec.structs.replace(endpoint, start_s=0.3))
                assert (tmp_path / "starts").read_text() == "x"
        finally:
            process.kill()
            os.kill(pids(tmp_path)[1], signal.SIGKILL)


def is_answered(endpoint: Endpoint) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", int(endpoint.url.rsplit(":", 1)[1].removesuffix("/v1")))) == 0


async def test_its_log_has_an_end(endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "MAX_LOG_BYTES", 1000)
    async with kept(endpoint, tmp_path):
        (tmp_path / "log").write_bytes(b"x" * 5000)
        with anyio.fail_after(30):
            while (tmp_path / "log").stat().st_size > 1000:  # noqa: ASYNC110 - a look every now and then brings it about
                await anyio.sleep(0.01)


async def test_one_that_cannot_start_says_why_and_is_tried_again(endpoint: Endpoint, tmp_path: Path) -> None:
    wrong = msgspec.structs.replace(endpoint, serve=("/no/such/command",))
    async with kept(wrong, tmp_path) as seen:
        assert seen.states[-1].detail == "it ended (exit 127): /no/such/command: No such file or directory"
        await seen.until(lambda state: state.num_starts >= 3)


async def test_it_does_not_outlive_whoever_started_it(endpoint: Endpoint, tmp_path: Path) -> None:
    code = (
        "import anyio, sys; from pathlib import Path; from operators.language.endpoints import Endpoint\n"
        "from operators.language import served; from operators.language.served import Served; served.GRACE_S = 0.5\n"
        f"endpoint = Endpoint(model='m', url={endpoint.url!r}, serve={endpoint.serve!r})\n"
        f"served = Served(endpoint, Path({str(tmp_path / 'log')!r}), lambda state: print(state.state, flush=True))\n"
        "anyio.run(served.run)"
    )
    async with await anyio.open_process([sys.executable, "-c", code]) as process:
        assert process.stdout is not None
        said = b""
        with anyio.fail_after(30):
            while b"up" not in said:
                said += await process.stdout.receive()
        process.kill()
        await process.wait()
    await gone(pids(tmp_path))


async def test_whoever_asks_waits_until_it_is_up(endpoint: Endpoint, tmp_path: Path) -> None:
    (tmp_path / "slow").touch()
    assert not await until_up(msgspec.structs.replace(endpoint, start_s=0.2))
    assert await until_up(msgspec.structs.replace(endpoint, serve=()))  # somebody else's: it is asked at once
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Served(endpoint, tmp_path / "log").run)
        with anyio.move_on_after(0.3) as early:
            await until_up(endpoint)
        assert early.cancelled_caught
        (tmp_path / "slow").unlink()
        assert await until_up(endpoint)
        tasks.cancel_scope.cancel()


async def test_a_run_that_asks_it_has_it_served(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve = ", ".join(f'"{word}"' for word in endpoint.serve)
    file = tmp_path / "endpoints.toml"
    file.write_text(f'[[endpoint]]\nmodel = "m"\nurl = "{endpoint.url}"\nquality = 0.9\nserve = [{serve}]\n')
    monkeypatch.setenv(PLACE, str(file))
    installed.cache_clear()
    captions = ((0.1, 1.9, "The train to Porto leaves at nine twenty."),)
    clip = make(tmp_path / "a.mkv", video="libx264", audio="aac", seconds=2, captions=captions)
    try:
        with anyio.fail_after(60):
            (answer,) = await run(WORKFLOW, clip, ["When does it leave?"], Options(store=tmp_path / "store"))
    finally:
        installed.cache_clear()
    assert (answer.answer, answer.gaps) == ("at nine twenty", ())
    await gone(pids(tmp_path))


def test_its_command_is_filled_in(endpoint: Endpoint) -> None:
    port = endpoint.url.rsplit(":", 1)[1].removesuffix("/v1")
    assert list(command_of(endpoint))[2:5] == ["127.0.0.1", port, "m"]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://192.168.1.5:8000/v1", "is to be served here"),
        ("http://127.0.0.1:99999/v1", "is no http"),
        ('http://127.0.0.1:8000/v1"\nserve = ["a\\u0000b"]#', "serve"),
        (
            'http://127.0.0.1:8000/v1"\nserve = ["a"]\n[[endpoint]]\nmodel = "n"\nurl = "http://127.0.0.1:8000/v1',
            "to be served in one place",
        ),
    ],
)
def test_only_this_machines_are_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, said: str) -> None:
    file = tmp_path / "endpoints.toml"
    serve = "" if "#" in url else 'serve = ["vllm", "serve"]\n'
    file.write_text(f'[[endpoint]]\nmodel = "m"\nurl = "{url}"\n{serve}')
    monkeypatch.setenv(PLACE, str(file))
    with pytest.raises(UserError, match=said):
        endpoints()


def test_the_last_words_of_a_log_are_found(tmp_path: Path) -> None:
    assert last_words(tmp_path / "none") == "it left no word"
    (tmp_path / "log").write_bytes(b"a\n" + b"x" * 20_000 + b"\n  out of memory \n\n")
    assert last_words(tmp_path / "log") == "out of memory"
