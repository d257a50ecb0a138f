"""What asking a language model costs beside the model, and whether a real one keeps its word.

- `overhead`: 32 questions in flight at an endpoint on this machine that answers at once with 64 tokens; peer: a bare
  httpx client, kept open, that sends the same and reads the lines. Median of the difference, rounds interleaved.
- `token`: from a token's being sent by that endpoint to its being handed on, one question at a time.
- with `--url` and `--model`, of a real endpoint (vLLM): 64 questions in flight, each held to a schema: how many are
  whole and valid; then 64 more of which half are canceled: whether the engine is idle again (`/metrics`).

    endpoint.py [--url http://127.0.0.1:8000/v1 --model NAME]
"""

import argparse
import statistics
import sys
import time
from collections import Counter
from importlib import import_module
from typing import Any

import anyio
import httpx
import msgspec
from measure import ROOT, at_most, keep, say

from operators.language.chat import completed
from operators.language.endpoints import Endpoint
from operators.language.reading import ROLE, Said, asked_of
from operators.language.retrieval import Piece
from operators.language.structured import read, schema_of
from streams.errors import PenstockError

sys.path.insert(0, str(ROOT / "tests"))
scripted: Any = import_module("scripted_endpoint")

NUM_IN_FLIGHT, NUM_ROUNDS, NUM_TOKENS, NUM_REAL = 32, 9, 64, 64
IDLE_S = 30.0
SHOWN = [
    Piece("speech", 0, 10**9, "The train to Porto leaves at nine twenty from platform two.", range(1)),
    Piece("speech", 20 * 10**9, 21 * 10**9, "Breakfast is served until ten and costs eleven euros.", range(1, 2)),
]
ASKS = (
    "When does the train to Porto leave?",
    "What does breakfast cost?",
    "Which platform?",
    "Until when is breakfast?",
)


async def sixty_four(request: Any, send: Any) -> None:
    await send(scripted.HEAD)
    for number in range(NUM_TOKENS):
        await send(scripted.piece(f"{time.perf_counter():.7f};"[:18] if request.body["seed"] == 0 else f"{number} "))
    await send(scripted.DONE)


async def bare(client: httpx.AsyncClient, url: str, body: bytes) -> None:
    async with client.stream("POST", f"{url}/chat/completions", content=body) as response:
        async for _ in response.aiter_lines():
            pass


async def in_flight(ask: Any, num: int) -> float:
    """The median of what each of so many at once takes, s."""
    took_s: list[float] = []

    async def one() -> None:
        began_s = time.perf_counter()
        await ask()
        took_s.append(time.perf_counter() - began_s)

    async with anyio.create_task_group() as tasks:
        for _ in range(num):
            tasks.start_soon(one)
    return statistics.median(took_s)


async def overhead() -> dict[str, Any]:
    async with scripted.serving(sixty_four) as there, httpx.AsyncClient() as client:
        endpoint = Endpoint(model="toy", url=there.url)
        messages = [{"role": "user", "content": "?"}]
        body = msgspec.json.encode({"model": "toy", "messages": messages, "stream": True, "seed": 1})
        ours, peers = [], []
        for _ in range(NUM_ROUNDS):
            ours.append(await in_flight(lambda: completed(endpoint, messages), NUM_IN_FLIGHT))
            peers.append(await in_flight(lambda: bare(client, there.url, body), NUM_IN_FLIGHT))
        late_s: list[float] = []
        for _ in range(20):
            await completed(
                endpoint, messages, emit=lambda text: late_s.append(time.perf_counter() - float(text.strip(";")))
            )
    say(f"ours {ours}, bare {peers}")
    return {
        "in_flight": NUM_IN_FLIGHT,
        "bare_ms": round(1e3 * statistics.median(peers), 2),
        "penstock_ms": round(1e3 * statistics.median(ours), 2),
        "more_ms_p50": at_most(1e3 * statistics.median(o - p for o, p in zip(ours, peers, strict=True)), 5.0),
        "token_ms_p50": at_most(1e3 * statistics.median(late_s), 5.0),
    }


async def real(url: str, model: str) -> dict[str, Any]:
    endpoint = Endpoint(model=model, url=url, answer_s=300.0, first_token_s=120.0)
    came: Counter[str] = Counter()

    async def ask(number: int) -> None:
        messages = [
            {"role": "system", "content": ROLE},
            {"role": "user", "content": asked_of(f"{ASKS[number % len(ASKS)]} ({number})", SHOWN)},
        ]
        try:
            read(Said, await completed(endpoint, messages, schema_of(Said)))
        except PenstockError as error:
            came[str(error).partition(":")[0]] += 1
            say(f"{number}: {error}")
        else:
            came["valid"] += 1

    began_s = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for number in range(NUM_REAL):
            tasks.start_soon(ask, number)
    took_s = time.perf_counter() - began_s
    whole = dict(came)
    say(f"{whole} in {took_s:.1f} s")
    came.clear()
    async with anyio.create_task_group() as kept, anyio.create_task_group() as canceled:
        for number in range(NUM_REAL):
            (canceled if number % 2 else kept).start_soon(ask, number)
        await anyio.sleep(1.0)
        canceled.cancel_scope.cancel()
    began_s = time.perf_counter()
    with anyio.move_on_after(IDLE_S):
        while await num_running(url):  # noqa: ASYNC110 - another process brings it about
            await anyio.sleep(0.1)
    return {
        "model": model,
        "in_flight": NUM_REAL,
        "came_to": whole,
        "took_s": round(took_s, 1),
        "of_those_not_canceled": dict(came),
        "running_after": await num_running(url),
        "idle_after_s": round(time.perf_counter() - began_s, 1),
    }


async def num_running(url: str) -> float:
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"{url.removesuffix('/v1')}/metrics")).text
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting{")
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(names))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url")
    parser.add_argument("--model", default="")
    asked = parser.parse_args()
    figures: dict[str, Any] = {"overhead": anyio.run(overhead)}
    figures["real"] = anyio.run(real, asked.url, asked.model) if asked.url else "not measured: no --url"
    keep("endpoint", figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
