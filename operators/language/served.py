"""Served: the language models that a node serves itself, each by a server of its own (`vllm serve`, `llama-server`)
that it starts, looks after and starts again.

    [[endpoint]]
    model = "Qwen/Qwen3-8B"
    url = "http://127.0.0.1:8100/v1"
    serve = ["vllm", "serve", "{model}", "--host", "{host}", "--port", "{port}", "--gpu-memory-utilization", "0.6"]

A server is up when it says so on `/health`, if it has such a page, and lists the model. One that ends, or that gives
no sign of life NUM_SILENT times, is ended with all it started and started again, after a pause that doubles up to
MAX_PAUSE_S, without end, and is short again once it was up for STEADY_S. Where one is up already, or is being started,
another node of this machine has it, and it is left alone. It never outlives the node (`operators.language.leash`). How
busy it says it is (`vllm:num_requests_running` and the like) is read on the way.
"""

import fcntl
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import httpx
import msgspec
import structlog

from operators.language import leash
from operators.language.endpoints import Endpoint
from operators.weights import cache_folder
from streams.decoding import from_json
from streams.errors import Malformed, UserError

log = structlog.get_logger(__name__)

LOOK_S = 1.0  # while it starts
CHECK_S = 5.0
PROBE_S = 10.0  # for an answer
NUM_SILENT = 3
FIRST_PAUSE_S, MAX_PAUSE_S = 1.0, 60.0
STEADY_S = 60.0  # up for so long, it is started again at once
GRACE_S = 10.0
MAX_PAGE_BYTES, MAX_METRICS_BYTES = 1 << 20, 1 << 19
MAX_LOG_BYTES = 16 << 20
QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
GAUGES = {
    "vllm:num_requests_running": "num_running",
    "vllm:num_requests_waiting": "num_waiting",
    "vllm:kv_cache_usage_perc": "cache_used",
}

State = Literal["starting", "up", "down"]


class Load(msgspec.Struct, frozen=True):
    """How busy a server says it is; None where it does not say."""

    num_running: float | None = None
    num_waiting: float | None = None
    cache_used: float | None = None  # share of the memory for what is under way


class ServedState(msgspec.Struct, frozen=True):
    """A model's server, as it stands. `detail` says why it is down."""

    model: str
    state: State
    detail: str = ""
    is_ours: bool = True
    num_starts: int = 0
    load: Load = Load()


class _Model(msgspec.Struct):
    id: str = ""


class _Models(msgspec.Struct):
    data: list[_Model] = []


class _NotThis(Exception):
    """Something else answers where the server should be."""


async def probe(client: httpx.AsyncClient, endpoint: Endpoint, *, is_known: bool = False) -> bool:
    """Whether the server is up. Raises _NotThis where what is there does not have the model; of one that is known to
    have it that is not asked again."""
    try:
        status, _ = await _page(client, endpoint, f"{_root(endpoint)}/health", 0)
        if status not in (200, 404, 405, 501):
            return False
        if is_known and status == 200:
            return True
        status, body = await _page(client, endpoint, f"{endpoint.url.rstrip('/')}/models", MAX_PAGE_BYTES)
        if status != 200:
            return status in (401, 403)  # it is there, and does not tell everybody
        there = [model.id for model in from_json(body, _Models).data]
    except (httpx.HTTPError, httpx.InvalidURL, Malformed, TimeoutError, ValueError):
        return False
    if endpoint.model not in there:
        raise _NotThis(f"what answers there has {', '.join(there[:4]) or 'no model'}")
    return True


async def until_up(endpoint: Endpoint) -> bool:
    """Wait for a server that a node has started; false where it is not up within `start_s`. One that nobody here serves
    is asked at once."""
    if not endpoint.serve:
        return True
    with anyio.move_on_after(endpoint.start_s):
        async with _client() as client:
            while True:
                with suppress(_NotThis):
                    if await probe(client, endpoint):
                        return True
                await anyio.sleep(LOOK_S)
    return False


class Served:
    """One server. `on_change` is called with each new state."""

    def __init__(
        self, endpoint: Endpoint, log_file: Path, on_change: Callable[[ServedState], None] = lambda state: None
    ) -> None:
        self.endpoint = endpoint
        self.state = ServedState(endpoint.model, "starting")
        self._log_file = log_file
        self._on_change = on_change

    async def run(self) -> None:
        """Until canceled; the server is ended then."""
        pause_s = FIRST_PAUSE_S
        async with _client() as client:
            while True:
                try:
                    why, was_up_s = await self._kept(client)
                except Exception as error:  # it ends nobody else
                    log.error("model_server_lost", model=self.endpoint.model, exc_info=error)
                    why, was_up_s = f"{type(error).__name__}: {error}", 0.0
                if why:
                    self._say("down", why)
                    log.warning("model_server_ended", model=self.endpoint.model, why=self.state.detail)
                    pause_s = FIRST_PAUSE_S if was_up_s > STEADY_S else min(2 * pause_s, MAX_PAUSE_S)
                await anyio.sleep(pause_s if why else LOOK_S)

    async def _kept(self, client: httpx.AsyncClient) -> tuple[str, float]:
        """Stay with it as long as it is up, whoever started it: why it is no more, and for how long it was up. Nothing
        where another node of this machine is about to start it."""
        try:
            is_there = await probe(client, self.endpoint)
        except _NotThis as error:
            return str(error), 0.0
        if is_there:
            self._say("up", is_ours=False)
            return await self._while_up(client, None)
        with _turn(self.endpoint) as is_mine:
            if is_mine:
                return await self._served(client)
        self._say("starting", is_ours=False)
        return "", 0.0

    async def _served(self, client: httpx.AsyncClient) -> tuple[str, float]:
        self._say("starting", num_starts=self.state.num_starts + 1, is_ours=True)
        try:
            process = await anyio.to_thread.run_sync(self._start)
        except (OSError, ValueError) as error:
            return f"it cannot be started: {getattr(error, 'strerror', None) or error}", 0.0
        try:
            with anyio.move_on_after(self.endpoint.start_s) as starting:
                while process.poll() is None and not await self._is_there(client):
                    await anyio.sleep(LOOK_S)
                    self._bound_log()
            if process.poll() is not None:
                return self._ended(process), 0.0
            if starting.cancelled_caught:
                return f"it was not up after {self.endpoint.start_s:g} s", 0.0
            self._say("up")
            why, was_up_s = await self._while_up(client, process)
            return (self._ended(process) if process.poll() is not None else why), was_up_s
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_end, process)

    async def _is_there(self, client: httpx.AsyncClient, *, is_known: bool = False) -> bool:
        try:
            return await probe(client, self.endpoint, is_known=is_known)
        except _NotThis:
            return False  # its own server will say that there is no place

    async def _while_up(
        self, client: httpx.AsyncClient, process: "subprocess.Popen[bytes] | None"
    ) -> tuple[str, float]:
        began_s, num_silent = anyio.current_time(), 0
        while num_silent < NUM_SILENT:
            with anyio.move_on_after(CHECK_S) as passing:
                while process is None or process.poll() is None:  # noqa: ASYNC110 - nobody says when it ends
                    await anyio.sleep(0.2)
            if not passing.cancelled_caught:
                break
            num_silent = 0 if await self._is_there(client, is_known=True) else num_silent + 1
            if num_silent == 0:
                self._say(self.state.state, self.state.detail, load=await _load(client, self.endpoint))
            self._bound_log()
        why = "the server that was there is gone" if process is None else "it gave no sign of life"
        return why, anyio.current_time() - began_s

    def _start(self) -> "subprocess.Popen[bytes]":
        self._log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._log_file.open("ab") as errors:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", leash.__file__, f"{GRACE_S:g}", *command_of(self.endpoint)],
                stdin=subprocess.PIPE,
                stdout=errors,
                stderr=errors,
                env={**QUIET, **os.environ},
                start_new_session=True,
            )

    def _bound_log(self) -> None:
        """What it writes is appended, so what is there can be cut off."""
        with suppress(OSError):
            if self._log_file.stat().st_size > MAX_LOG_BYTES:
                os.truncate(self._log_file, 0)

    def _ended(self, process: "subprocess.Popen[bytes]") -> str:
        return f"it ended (exit {process.returncode}): {last_words(self._log_file)}"

    def _say(self, state: State, detail: str = "", **more: object) -> None:
        plain = "".join(char if char.isprintable() else "\ufffd" for char in self.endpoint.without_secrets(detail))
        changed = msgspec.structs.replace(self.state, state=state, detail=plain[:500], **({"load": Load()} | more))
        if changed != self.state:
            self.state = changed
            self._on_change(changed)


@contextmanager
def _turn(endpoint: Endpoint) -> Iterator[bool]:
    """Whether this process is the one of this user's that starts what is to listen there, as long as this is held."""
    place = cache_folder().parent / f"served-{urlsplit(endpoint.url).port or 80}.lock"
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with place.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


def command_of(endpoint: Endpoint) -> Sequence[str]:
    """What starts its server."""
    parts = urlsplit(endpoint.url)
    known = {"{model}": endpoint.model, "{host}": parts.hostname or "", "{port}": str(parts.port or 80)}
    return [re.sub(r"\{\w+\}", lambda found: known.get(found[0], found[0]), word) for word in endpoint.serve]


def last_words(log_file: Path) -> str:
    """What a server's log ends with."""
    try:
        with log_file.open("rb") as file:
            file.seek(max(0, log_file.stat().st_size - 8192))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        lines = []
    said = [line.strip() for line in lines if line.strip()]
    return said[-1][:300] if said else "it left no word"


def _end(process: "subprocess.Popen[bytes]") -> None:
    """The leash's end is the command's, with all it started; should the leash be gone or hang, its group is killed."""
    assert process.stdin is not None
    with suppress(OSError):
        process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S + leash.KILL_S + 2)
    with suppress(OSError):  # a group outlives its leader, and its number is not given away before
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


async def _load(client: httpx.AsyncClient, endpoint: Endpoint) -> Load:
    """By the gauges of vLLM; of one that has several engines, their sum, and the fullest."""
    try:
        status, body = await _page(client, endpoint, f"{_root(endpoint)}/metrics", MAX_METRICS_BYTES)
    except (httpx.HTTPError, TimeoutError, ValueError):
        return Load()
    values: dict[str, list[float]] = {}
    for line in body.decode(errors="replace").splitlines() if status == 200 else ():
        name = GAUGES.get(line.partition("{")[0].partition(" ")[0])
        with suppress(ValueError):
            if name is not None:
                values.setdefault(name, []).append(float(line.rsplit(" ", 1)[-1]))
    return Load(**{name: max(found) if name == "cache_used" else sum(found) for name, found in values.items()})


def _root(endpoint: Endpoint) -> str:
    return f"http://{urlsplit(endpoint.url).netloc}"


async def _page(client: httpx.AsyncClient, endpoint: Endpoint, url: str, max_bytes: int) -> tuple[int, bytes]:
    """The status, and as much of the body as is wanted."""
    client.cookies.clear()  # nobody asked for any
    try:
        headers = endpoint.headers
    except UserError:  # who asks it something will say so
        headers = {}
    with anyio.fail_after(PROBE_S):
        async with client.stream("GET", url, headers={**headers, "Accept-Encoding": "identity"}) as response:
            body = bytearray()
            if max_bytes:
                async for part in response.aiter_raw():
                    body += part
                    if len(body) > max_bytes:
                        break
            return response.status_code, bytes(body)


_client = partial(  # which speaks to this machine, without TLS
    httpx.AsyncClient, timeout=PROBE_S, trust_env=False, follow_redirects=False, verify=False
)
