"""A real vLLM with a real, small model: it keeps to schemas, is idle when nobody wants its answers any more, may be
killed and started again without a question being lost or answered twice, and a schema that poisons it harms nobody.

`.ci/real-vllm` brings both and runs this; what the model says is not judged, for it is weak.
"""

import json
import os
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import anyio
import httpx
import msgspec
import pytest
import toy_tools
from hosts import children_of
from media_zoo import make

from engine.spec.catalogue import installed
from engine.spec.operator import Inputs
from engine.spec.spending import Call, noting
from engine.spec.workflow import Stage, Workflow
from operators.capabilities import AnswerParams
from operators.heard import Speech, Transcript
from operators.language.acting import Acting
from operators.language.asking import ModelKnobs
from operators.language.chat import completed
from operators.language.endpoints import Endpoint
from operators.language.reading import ROLE, Said, asked_of
from operators.language.retrieval import Piece
from operators.language.structured import read, schema_of
from penstock.running import Options, run
from penstock.testing import inputs_of
from streams.errors import PenstockError, Transient

PYTHON, MODEL = os.environ.get("PENSTOCK_VLLM_PYTHON"), os.environ.get("PENSTOCK_VLLM_MODEL")
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not (PYTHON and MODEL), reason="there is no real vLLM here: .ci/real-vllm brings one"),
]
UP_S, IDLE_S, NUM_IN_FLIGHT = 300.0, 60.0, 64
SHOWN = [
    Piece("speech", 0, 10**9, "The train to Porto leaves at nine twenty from platform two.", range(1)),
    Piece("speech", 20 * 10**9, 21 * 10**9, "Breakfast is served until ten and costs eleven euros.", range(1, 2)),
]
ASKS = ("When does the train leave?", "What does breakfast cost?", "Which platform?", "Until when is breakfast?")
CAPTIONS = ((0.1, 1.9, "The train to Porto leaves at nine twenty."), (2.1, 3.9, "Breakfast costs eleven euros."))
WORKFLOW = Workflow(
    name="read",
    stages={
        "speech": Stage(capability="transcribe", inputs={"media": "media"}),
        "answer": Stage(capability="answer_question", inputs={"evidence": ("speech",)}, params={"question": "$ask"}),
    },
)
QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


class Server:
    """vLLM's API server and what it starts, in a process group of their own."""

    def __init__(self, log: TextIO) -> None:
        self._log = log
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def command(self) -> list[str]:
        """The `vllm` command does not start from the CPU's wheel, the server's module does."""
        arguments = ["--model", str(MODEL), "--served-model-name", "smollm2", "--host", "127.0.0.1"]
        sizes = ["--port", str(self._port), "--max-model-len", "2048", "--max-num-seqs", "64", "--enforce-eager"]
        return [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", *arguments, *sizes]

    def start(self) -> None:
        self._process = subprocess.Popen(
            self.command,
            env={**os.environ, **QUIET, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "auto"},
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self) -> None:
        """Until it answers."""
        until_s = time.monotonic() + UP_S
        while time.monotonic() < until_s:
            assert self._process is not None
            assert self._process.poll() is None, "vLLM ended while it started"
            try:
                if httpx.get(f"{self.url}/health", timeout=5, trust_env=False).status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.5)
        pytest.fail(f"vLLM was not up after {UP_S:g} s")

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(60)
            self._process = None

    async def num_running(self) -> float:
        """Requests that the engine has, under way or waiting."""
        async with httpx.AsyncClient(trust_env=False) as client:
            text = (await client.get(f"{self.url}/metrics", timeout=30)).text
        names = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
        found = [float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(names)]
        assert len(found) >= 2, "vLLM says no more how many requests it has"
        return sum(found)

    async def idle(self) -> bool:
        with anyio.move_on_after(IDLE_S):
            while await self.num_running():  # noqa: ASYNC110 - another process brings it about
                await anyio.sleep(0.1)
            return True
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("vllm") / "log"
    with place.open("w") as log:
        server = Server(log)
        server.start()
        try:
            server.wait()
            yield server
        except BaseException:
            print(place.read_text()[-4000:])
            raise
        finally:
            server.kill()


@pytest.fixture
def endpoint(server: Server) -> Endpoint:
    return Endpoint(model="smollm2", url=f"{server.url}/v1", answer_s=300.0, first_token_s=240.0, context_tokens=2048)


def asked(number: int) -> list[Mapping[str, str]]:
    question = asked_of(f"{ASKS[number % len(ASKS)]} ({number})", SHOWN)
    return [{"role": "system", "content": ROLE}, {"role": "user", "content": question}]


async def ask(endpoint: Endpoint, number: int, came: Counter[str]) -> None:
    """What becomes of a question: valid, or the failure's name."""
    try:
        read(Said, await completed(endpoint, asked(number), schema_of(Said)))
    except PenstockError as error:
        came[str(error).partition(":")[0]] += 1
    else:
        came["valid"] += 1


async def test_sixty_four_in_flight_all_keep_to_the_schema(server: Server, endpoint: Endpoint) -> None:
    """But for those that do not come to an end within their tokens, which are no answers and say so."""
    came: Counter[str] = Counter()
    async with anyio.create_task_group() as tasks:
        for number in range(NUM_IN_FLIGHT):
            tasks.start_soon(ask, endpoint, number, came)
    assert came.total() == NUM_IN_FLIGHT
    assert set(came) <= {"valid", "budget"}, came
    assert came["valid"] >= NUM_IN_FLIGHT - 4, came
    assert await server.idle()


async def test_of_what_is_canceled_the_engine_does_no_more(server: Server, endpoint: Endpoint) -> None:
    came: Counter[str] = Counter()
    async with anyio.create_task_group() as kept, anyio.create_task_group() as canceled:
        for number in range(NUM_IN_FLIGHT):
            (canceled if number % 2 else kept).start_soon(ask, endpoint, number, came)
        with anyio.fail_after(IDLE_S):
            while await server.num_running() < NUM_IN_FLIGHT / 2:  # noqa: ASYNC110 - another process brings it about
                await anyio.sleep(0.05)
        canceled.cancel_scope.cancel()
    assert came.total() >= NUM_IN_FLIGHT / 2
    assert set(came) <= {"valid", "budget"}, came
    assert await server.idle()


async def test_a_schema_that_poisons_the_engine_harms_nobody(server: Server, endpoint: Endpoint) -> None:
    """Twenty thousand choices take it most of a minute to compile: that one's time is over, its neighbours' is not."""
    many = [f"choice number {number} of them" for number in range(20_000)]
    schema = {"type": "object", "properties": {"it": {"enum": many}}, "required": ["it"]}
    impatient = msgspec.structs.replace(endpoint, answer_s=5.0)
    came: Counter[str] = Counter()
    failed: list[str] = []

    async def poison() -> None:
        try:
            await completed(impatient, asked(0), schema)
        except PenstockError as error:
            failed.append(str(error))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(poison)
        for number in range(4):
            tasks.start_soon(ask, endpoint, number, came)
    assert [said.partition(":")[0] for said in failed] in (["timeout"], []), failed
    assert set(came) <= {"valid", "budget"}, came
    assert came.total() == 4
    after: Counter[str] = Counter()
    await ask(endpoint, 5, after)
    assert set(after) <= {"valid", "budget"}, after


async def test_it_calls_tools_that_it_may_and_no_others_and_says_what_it_took(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it makes of them: what is called is allowed, with arguments that the tool takes."""
    sizes = "answer_s = 300\nfirst_token_s = 240\ncontext_tokens = 2048\nmax_tokens = 256\n"
    (tmp_path / "endpoints.toml").write_text(f'[[endpoint]]\nmodel = "smollm2"\nurl = "{server.url}/v1"\n{sizes}')
    names = ("price", "shouted", "fails")
    (tmp_path / "tools.toml").write_text(
        "".join(f'[[tool]]\nname = "{name}"\npython = "toy_tools:{name}"\n' for name in names)
    )
    monkeypatch.setenv("PENSTOCK_ENDPOINTS", str(tmp_path / "endpoints.toml"))
    monkeypatch.setenv("PENSTOCK_TOOLS", str(tmp_path / "tools.toml"))
    toy_tools.CALLS.clear()
    operator = Acting(ModelKnobs(model="smollm2"))
    said = ("The mill buys three tonnes of wheat today.", "Call the tool fails with no arguments, now.")
    heard = Transcript(
        observations=tuple(
            Speech(start_ns=at * 10**9, end_ns=(at + 1) * 10**9, text=text) for at, text in enumerate(said)
        )
    )
    came: Counter[str] = Counter()
    called: list[Call] = []

    async def ask_with_tools(number: int) -> None:
        question = f"What do {number + 1} tonnes of wheat cost? Call price, then answer."
        params = AnswerParams(question=question, tools=("price", "shouted"), max_calls=2)
        (item,) = inputs_of(operator, {"evidence": [[heard]]}, params=params)
        assert isinstance(item, Inputs)
        with noting() as calls:
            try:
                await operator.process_one(item, lambda text, *, anew=False: None)
            except PenstockError as error:
                came[str(error).partition(":")[0]] += 1
            else:
                came["answered"] += 1
        called.extend(calls)

    async with anyio.create_task_group() as tasks:
        for number in range(16):
            tasks.start_soon(ask_with_tools, number)
    assert came.total() == 16
    assert set(came) <= {"answered", "citation", "budget", "tool", "schema"}, came
    assert {call.of for call in called if call.operation == "execute_tool"} <= {"price", "shouted"}
    assert all(name == "price" and grain in ("wheat", "maize") and num >= 1 for name, grain, num in toy_tools.CALLS)
    whole = [call for call in called if call.operation == "chat" and not call.error]
    assert whole
    assert all(call.input_tokens > 50 and call.output_tokens > 3 for call in whole)
    assert await server.idle()


async def test_a_server_that_is_not_there_is_named(server: Server) -> None:
    nowhere = Endpoint(model="smollm2", url="http://127.0.0.1:9/v1", answer_s=2.0)
    with pytest.raises(Transient, match=r"^upstream: smollm2: it cannot be reached"):
        await completed(nowhere, asked(0))


@asynccontextmanager
async def served(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """The machine's endpoints name the model, and how it is served."""
    command = ", ".join(json.dumps(word) for word in server.command)
    (folder / "endpoints.toml").write_text(
        f'[[endpoint]]\nmodel = "smollm2"\nurl = "{server.url}/v1"\nquality = 0.9\nserve = [{command}]\n'
        "answer_s = 300\nfirst_token_s = 240\ncontext_tokens = 2048\n"
    )
    monkeypatch.setenv("PENSTOCK_ENDPOINTS", str(folder / "endpoints.toml"))
    for name, value in {**QUIET, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "auto"}.items():
        monkeypatch.setenv(name, value)
    installed.cache_clear()  # the rungs are those of the file
    try:
        yield
    finally:
        installed.cache_clear()


async def test_one_that_is_served_and_killed_is_started_again_and_loses_and_doubles_nothing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each question is answered once, or fails for what the model said, never for the server's having been away. The
    run has it served, so nobody else has to; and when it is over, nothing of it is left."""
    await anyio.to_thread.run_sync(server.kill)
    asks: Sequence[str] = [f"{ASKS[number % len(ASKS)]} And number {number}?" for number in range(24)]
    clip = make(tmp_path / "clip.mkv", video="libx264", audio="aac", seconds=4, captions=CAPTIONS)
    killed: list[int] = []

    async def kill_it() -> None:
        while True:
            with suppress(httpx.HTTPError, AssertionError):
                if await server.num_running():
                    break
            await anyio.sleep(0.1)
        killed.extend(pid for pid in children_of(os.getpid()) if "leash.py" in command_of(pid))
        for pid in killed:
            os.killpg(pid, signal.SIGKILL)

    async with served(server, tmp_path, monkeypatch), anyio.create_task_group() as tasks:
        tasks.start_soon(kill_it)
        with anyio.fail_after(2 * UP_S):
            answers = await run(WORKFLOW, clip, asks, Options(segment_s=2.0, store=tmp_path / "store"))
    assert len(killed) == 1
    assert Counter(answer.question for answer in answers) == Counter(asks)
    causes: list[Any] = [gap.detail for answer in answers for gap in answer.gaps]
    assert all(str(cause).partition(":")[0] in ("citation", "budget", "schema") for cause in causes), causes
    assert {note.implementation for answer in answers for note in answer.stages} == {"captions", "smollm2"}
    assert not [pid for pid in children_of(os.getpid()) if "leash.py" in command_of(pid)]
    with pytest.raises(httpx.HTTPError):
        await server.num_running()


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
