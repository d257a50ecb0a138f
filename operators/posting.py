"""One POST to what the owner of this machine named: whole, bounded, or a failure with a name and no secret in it."""

import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

import httpx
import msgspec

from operators.failures import Failing, failure

CONNECT_S = 10.0
BUSY = frozenset({408, 409, 425, 429, *range(500, 600)})
TELLING = frozenset({400, 404, 409, 413, 422})  # of which the owner needs to know what was wrong
MAX_DETAIL, MAX_LOOKED_AT = 300, 65_536


class Answered(NamedTuple):
    """A body, and what it says it is."""

    body: bytes
    kind: str  # such as "application/json"


async def posted(
    name: str,
    url: str,
    *,
    headers: Mapping[str, str],
    timeout_s: float,
    max_bytes: int,
    refused: Failing,
    harmless: Callable[[str], str],
    **what: Any,
) -> Answered:
    """What is answered with a status of 2xx; `what` is what httpx sends (content, or data and files). Raises Transient
    for who cannot be reached, is too busy or says nothing; Permanent, named `refused`, for who will not. `harmless`
    takes secrets out of what is told."""
    limits = httpx.Timeout(min(CONNECT_S, timeout_s), read=timeout_s, write=timeout_s)
    asked = {"Accept-Encoding": "identity", **headers}  # what is packed has no bound
    body = bytearray()
    try:
        async with (
            httpx.AsyncClient(verify=tls(), timeout=limits, trust_env=False, follow_redirects=False) as client,
            client.stream("POST", url, headers=asked, **what) as response,
        ):
            async for part in response.aiter_raw():
                body += part
                if len(body) > max_bytes:
                    raise failure(refused, f"{name} answers with over {max_bytes} bytes")
    except httpx.TimeoutException as error:
        raise failure("timeout", f"{name}: nothing came for {timeout_s:g} s") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:  # their text may hold the address
        raise failure("upstream", f"{name} cannot be reached: {type(error).__name__}") from error
    status = response.status_code
    if status in BUSY:
        raise failure("upstream", f"{name}: HTTP {status}")
    if not 200 <= status < 300:
        detail = told(body, harmless) if status in TELLING else ""
        raise failure(refused, f"{name}: HTTP {status}{detail and f': {detail}'}")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise failure(refused, f"{name} packs its answer, which was not asked for")
    return Answered(bytes(body), response.headers.get("Content-Type", "").partition(";")[0].strip())


def told(body: bytes | bytearray, harmless: Callable[[str], str]) -> str:
    """The beginning of what somebody answers who will not. Secrets go first: of one that is cut, a part would stay; and
    in JSON one may be written otherwise."""
    text = bytes(body[:MAX_LOOKED_AT]).decode(errors="replace")
    with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        text = msgspec.json.encode(msgspec.json.decode(body)).decode()
    return harmless(text)[:MAX_DETAIL]


@cache
def tls() -> ssl.SSLContext:
    """Made once: it reads the system's certificates."""
    return httpx.create_ssl_context()
