"""One answer of a language model behind OpenAI's chat completions: streamed, bounded, and either whole or a failure.

What goes wrong has a name, which stands first in the error: `timeout`, `upstream` (it cannot be reached, is too busy,
broke off or says that it failed), `refusal`, `budget` (more text than was asked for), `schema` (operators.language.
structured) or `citation` (operators.language.reading). The first two are Transient: they may pass.

A stream that ends with `[DONE]` and no `finish_reason`, or that carries an error between its pieces, as vLLM's does
when its engine dies, is no answer. Who is too busy (408, 409, 425, 429, 5xx) is asked again after what it says or with
backoff, as long as the endpoint's time for an answer lasts. Canceled, the connection is closed, by which the engine
knows to stop.
"""

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anyio
import httpx
import msgspec

from engine.spec.spending import Call, note
from operators.failures import failure
from operators.language.endpoints import Endpoint
from operators.posting import BUSY, CONNECT_S, TELLING, tls, told
from streams.decoding import from_json
from streams.errors import Malformed, UserError

logging.getLogger("httpx").setLevel(logging.WARNING)  # it would write every address into the log

GREEDY: Mapping[str, Any] = {"temperature": 0, "seed": 0}
FIRST_PAUSE_S, MAX_PAUSE_S = 0.25, 20.0
MAX_LINE_BYTES = 1 << 20
MAX_TOKENS = 1 << 40  # that are believed
CHARS_A_TOKEN = 16  # at most, of what is believed to have been asked for
SECONDS = re.compile(r"\d{1,5}(\.\d{1,6})?", re.ASCII)


class _Delta(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None


class _Piece(msgspec.Struct):
    choices: list[_Choice] = []
    error: Any = None
    usage: Any = None


class Heard:
    """What has come of one answer."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.usage: Any = None  # as the endpoint counts

    def num(self, of: str) -> int:
        """Tokens; 0 where it does not say."""
        said = self.usage.get(of) if isinstance(self.usage, dict) else None
        return said if isinstance(said, int) and 0 <= said <= MAX_TOKENS else 0


class Busy(Exception):
    """It may be asked again, after so many seconds where it said so."""

    def __init__(self, why: str, pause_s: float | None) -> None:
        super().__init__(why)
        self.pause_s = pause_s


async def completed(
    endpoint: Endpoint,
    messages: Sequence[Mapping[str, Any]],
    schema: Mapping[str, Any] | None = None,
    emit: Callable[[str], None] = lambda text: None,
    sampling: Mapping[str, Any] = GREEDY,
) -> str:
    """What the model says, whole; `emit` is called with each piece as it comes. With a `schema` it is held to that,
    where the endpoint does so. Each request is noted, with what it took (engine.spec.spending). Raises Transient or
    Permanent, named as said above."""
    request = _request(endpoint, messages, schema, sampling)
    pause_s = FIRST_PAUSE_S
    why = ""
    with anyio.move_on_after(endpoint.answer_s) as scope:
        while True:
            try:
                return await _noted(endpoint, request, emit)
            except Busy as busy:
                why = str(busy)
                pause_s = min(MAX_PAUSE_S, 2 * pause_s)
                wait_s = pause_s if busy.pause_s is None else max(busy.pause_s, FIRST_PAUSE_S)
                if anyio.current_time() + wait_s > scope.deadline:
                    raise failure("upstream", f"{endpoint.model}: {why}") from None
            await anyio.sleep(wait_s)
    raise failure("timeout", f"{endpoint.model} gave no answer within {endpoint.answer_s:g} s{why and f' ({why})'}")


async def _noted(endpoint: Endpoint, request: Mapping[str, Any], emit: Callable[[str], None]) -> str:
    began_ns, heard, error = time.time_ns(), Heard(), "canceled"
    try:
        await _attempt(endpoint, request, heard, emit)
        error = ""
    except Exception as failed:
        error = str(failed)
        raise
    finally:
        tokens = heard.num("prompt_tokens"), heard.num("completion_tokens")
        price = (tokens[0] * endpoint.price_in + tokens[1] * endpoint.price_out) / 1e6
        note(Call("chat", endpoint.model, began_ns, time.time_ns(), *tokens, price, error))
    return "".join(heard.text)


def _request(
    endpoint: Endpoint,
    messages: Sequence[Mapping[str, Any]],
    schema: Mapping[str, Any] | None,
    sampling: Mapping[str, Any],
) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "model": endpoint.model,
        "messages": list(messages),
        "max_tokens": endpoint.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        **sampling,
    }
    if schema is not None and endpoint.is_constrained:
        asked["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": dict(schema), "strict": True},
        }
    return asked


async def _attempt(endpoint: Endpoint, request: Mapping[str, Any], heard: Heard, emit: Callable[[str], None]) -> None:
    """Raises Busy where it may be asked again at once."""
    try:
        headers = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream",
            "Accept-Encoding": "identity",  # what is packed has no bound
            **endpoint.headers,
        }
    except UserError as error:
        raise failure("upstream", f"{endpoint.model}: its key: {error}") from error
    limits = httpx.Timeout(CONNECT_S, read=endpoint.first_token_s)
    place = f"{endpoint.url.rstrip('/')}/chat/completions"
    try:
        async with (
            httpx.AsyncClient(verify=tls(), timeout=limits, trust_env=False, follow_redirects=False) as client,
            client.stream("POST", place, content=msgspec.json.encode(request), headers=headers) as response,
        ):
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise failure("upstream", f"{endpoint.model} packs its answer, which was not asked for")
            if response.status_code != 200:
                raise await _refused(endpoint, response)
            await _read(endpoint, response, heard, emit)
    except httpx.TimeoutException as error:
        raise failure("timeout", f"{endpoint.model}: nothing came for {_waited_s(error, endpoint):g} s") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:  # their text may hold the address
        if heard.text:
            said = len("".join(heard.text))
            raise failure("upstream", f"{endpoint.model} broke off after {said} characters") from error
        raise Busy(f"it cannot be reached: {type(error).__name__}", None) from error


def _waited_s(error: httpx.TimeoutException, endpoint: Endpoint) -> float:
    return CONNECT_S if isinstance(error, httpx.ConnectTimeout) else endpoint.first_token_s


async def _refused(endpoint: Endpoint, response: httpx.Response) -> Exception:
    body = bytearray()
    async for part in response.aiter_raw():
        body += part
        if len(body) > 4096:
            break
    said = f"HTTP {response.status_code}"
    if response.status_code in BUSY:
        asked = response.headers.get("Retry-After", "")
        return Busy(said, float(asked) if SECONDS.fullmatch(asked) else None)
    if response.status_code in (401, 403):
        return failure("refusal", f"{endpoint.model}: {said}: is its key right?")  # what it says may repeat the key
    detail = told(body, endpoint.without_secrets) if response.status_code in TELLING else "its url may be wrong"
    return failure("refusal", f"{endpoint.model}: {said}: {detail}")


async def _read(endpoint: Endpoint, response: httpx.Response, heard: Heard, emit: Callable[[str], None]) -> None:
    num_chars, finished = 0, ""
    async for line in _lines(endpoint, response):
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            break
        try:
            piece = from_json(data, _Piece)
        except Malformed as error:
            raise failure("upstream", f"{endpoint.model} sent what is no piece of an answer: {error}") from error
        if piece.error:
            raise failure("upstream", f"{endpoint.model} failed while it answered")
        heard.usage = piece.usage or heard.usage
        for choice in piece.choices[:1]:
            if choice.delta.refusal:
                raise failure("refusal", f"{endpoint.model}: {endpoint.without_secrets(choice.delta.refusal)}")
            if choice.delta.content:
                heard.text.append(choice.delta.content)
                num_chars += len(choice.delta.content)
                emit(choice.delta.content)
            finished = finished or choice.finish_reason or ""
        if num_chars > endpoint.max_tokens * CHARS_A_TOKEN:
            raise failure(
                "budget", f"{endpoint.model} said over {num_chars} characters, {endpoint.max_tokens} tokens asked"
            )
    if finished == "stop":
        return
    if finished == "length":
        raise failure("budget", f"{endpoint.model} was not done after {endpoint.max_tokens} tokens")
    if finished:
        raise failure("refusal", f"{endpoint.model} ended with {finished!r}")
    raise failure("upstream", f"{endpoint.model} broke off after {num_chars} characters")


async def _lines(endpoint: Endpoint, response: httpx.Response) -> Any:
    """Bounded, whatever is sent."""
    open_ = bytearray()
    async for part in response.aiter_raw():
        open_ += part
        if b"\n" not in part:
            if len(open_) > MAX_LINE_BYTES:
                raise failure("budget", f"{endpoint.model} sent a line of over {MAX_LINE_BYTES} bytes")
            continue
        *lines, rest = bytes(open_).split(b"\n")
        open_ = bytearray(rest)
        for line in lines:
            yield line.rstrip(b"\r")
    if open_:
        yield bytes(open_)
