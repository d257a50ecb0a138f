"""A language model behind HTTP: a whole answer, or a failure that has a name, whatever the endpoint does."""

import gzip
import re
from pathlib import Path

import anyio
import pytest
from conftest import Eventually
from scripted_endpoint import (
    DONE,
    HEAD,
    Act,
    Request,
    Send,
    a_line_without_end,
    goes_away,
    never_ends,
    piece,
    refuses,
    says,
    says_nothing,
    serving,
)

from operators.language.chat import completed
from operators.language.endpoints import Endpoint
from streams.errors import Permanent, Transient

pytestmark = pytest.mark.anyio
ASKED = [{"role": "user", "content": "When?"}]
KEY = "sk-planted-7f3a"


def endpoint(url: str, **more: object) -> Endpoint:
    return Endpoint(model="toy", url=url, **{"answer_s": 20.0, "first_token_s": 10.0, **more})  # type: ignore[arg-type]


async def test_an_answer_is_whole_and_comes_in_pieces() -> None:
    pieces: list[str] = []
    async with serving(says("At nine, from platform two.")) as there:
        said = await completed(endpoint(there.url), ASKED, {"type": "object"}, pieces.append)
    assert said == "".join(pieces) == "At nine, from platform two."
    assert len(pieces) > 2
    (request,) = there.requests
    assert request.head.startswith("POST /v1/chat/completions HTTP/1.1")
    assert request.body["messages"] == ASKED
    assert (request.body["temperature"], request.body["stream"], request.body["max_tokens"]) == (0, True, 512)
    assert request.body["response_format"]["json_schema"]["schema"] == {"type": "object"}


async def test_one_that_keeps_to_no_schema_is_not_asked_to() -> None:
    async with serving(says("nine")) as there:
        await completed(endpoint(there.url, is_constrained=False), ASKED, {"type": "object"})
    assert "response_format" not in there.requests[0].body


async def breaks_inside(request: Request, send: Send) -> None:
    await send(HEAD + piece("half") + b'data: {"error": {"message": "EngineCore died"}}\n\ndata: [DONE]\n\n')


async def says_done_only(request: Request, send: Send) -> None:
    await send(HEAD + piece("half") + b"data: [DONE]\n\n")


async def says_html(request: Request, send: Send) -> None:
    await send(HEAD + b"data: <html>\n\n")


async def packed(request: Request, send: Send) -> None:
    body = gzip.compress(gzip.compress(bytes(10_000_000)))
    head = HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip, gzip\r\n\r\n")
    await send(head + body)


BAD: dict[str, tuple[Act, type[Exception], str]] = {
    "silent": (says_nothing, Transient, "timeout: toy: nothing came for 0.2 s"),
    "endless": (never_ends, Permanent, "budget: toy said over"),
    "a line": (a_line_without_end, Permanent, "budget: toy sent a line of over"),
    "cut off": (goes_away, Transient, "upstream: toy broke off after 11 characters"),
    "dies": (breaks_inside, Transient, "upstream: toy failed while it answered"),
    "done is no success": (says_done_only, Transient, "upstream: toy broke off after 4 characters"),
    "html": (says_html, Transient, "upstream: toy sent what is no piece of an answer"),
    "too long": (says("and", piece(finish_reason="length")), Permanent, "budget: toy was not done after 512 tokens"),
    "filtered": (says("", piece(finish_reason="content_filter")), Permanent, "refusal: toy ended with 'content"),
    "refused": (says("", piece(delta={"refusal": "I cannot."}) + DONE), Permanent, "refusal: toy: I cannot."),
    "400": (refuses(400, '{"error": "bad\\nschema"}'), Permanent, "refusal: toy: HTTP 400"),
    "401": (refuses(401, f"no such key {KEY}"), Permanent, "refusal: toy: HTTP 401: is its key right?"),
    "302": (refuses(302, "see http://127.0.0.1/v1", Location="http://127.0.0.1/"), Permanent, "refusal: .*HTTP 302"),
    "echoes": (refuses(400, f"Received API Key = {KEY} at 127.0.0.1"), Permanent, "refusal: toy: HTTP 400: Received"),
    "refuses so": (says("", piece(delta={"refusal": f"not with {KEY}"}) + DONE), Permanent, "refusal: toy: not"),
    "packed": (packed, Transient, "upstream: toy packs its answer"),
    "524": (refuses(524), Transient, "(upstream|timeout): toy.*HTTP 524"),
    "busy": (refuses(429, Retry_After="30"), Transient, "upstream: toy: HTTP 429"),
    "down": (refuses(503, Retry_After="soon"), Transient, r"(upstream|timeout): toy.*HTTP 503"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
async def test_what_goes_wrong_has_a_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    act, kind, said = BAD[name]
    monkeypatch.setenv("TOY_KEY", KEY)
    waits = {"first_token_s": 0.2} if name == "silent" else {"answer_s": 1.0} if name in ("down", "524") else {}
    async with serving(act) as there:
        with pytest.raises(kind, match=f"^{said}") as caught:
            await completed(endpoint(there.url, key="${TOY_KEY}", **waits), ASKED)
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)
    assert "127.0.0.1" not in str(caught.value)


async def test_who_is_busy_is_asked_again() -> None:
    async with serving(refuses(429, Retry_After="0.01"), refuses(503, Retry_After="0"), says("nine")) as there:
        assert await completed(endpoint(there.url), ASKED) == "nine"
    assert len(there.requests) == 3


async def test_who_is_not_there_is_not_asked_for_longer_than_an_answer_may_take() -> None:
    async with serving(says("nine")) as there:
        pass
    with pytest.raises(Transient, match=r"^(upstream|timeout): toy.*cannot be reached") as caught:
        await completed(endpoint(there.url, answer_s=1.0), ASKED)
    assert there.url not in str(caught.value)


async def test_canceled_the_endpoint_hears_of_it(eventually: Eventually) -> None:
    async with serving(never_ends) as there, anyio.create_task_group() as tasks:
        tasks.start_soon(completed, endpoint(there.url, max_tokens=100_000), ASKED)
        await eventually(lambda: there.num_open == 1)
        tasks.cancel_scope.cancel()
    assert there.num_open == 0


async def test_the_key_is_in_the_request_and_nowhere_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    with caplog.at_level("DEBUG"):
        async with serving(says("nine")) as there:
            asked = endpoint(there.url, key=f"${{file:{tmp_path / 'key'}}}")
            await completed(asked, ASKED)
    assert re.search(rf"(?i)^authorization: Bearer {KEY}\r?$", there.requests[0].head, re.MULTILINE)
    assert KEY not in repr(asked) + caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize("key", ["sk-7f3a\u2014x", "sk 7f3a", "sk-7f3a\x00x"])
async def test_what_is_no_key_is_said_and_not_shown(key: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(key)
    asked = endpoint("http://127.0.0.1:9/v1", key=f"${{file:{tmp_path / 'key'}}}")
    with pytest.raises(Transient, match=r"^upstream: toy: its key: .* refers to is no key") as caught:
        await completed(asked, ASKED)
    assert "7f3a" not in str(caught.value)


async def test_a_key_that_is_not_there_is_said() -> None:
    with pytest.raises(Transient, match=r"^upstream: toy: its key: \$\{NO_SUCH_KEY\}: there is no such variable"):
        await completed(endpoint("http://127.0.0.1:9/v1", key="${NO_SUCH_KEY}"), ASKED)
