"""HTTP services as tools: the arguments are POSTed as JSON, and JSON comes back, or text."""

import ssl
from collections.abc import Mapping
from functools import cache
from typing import Any

import httpx
import msgspec

from operators import owned
from operators.control.tools import Tool
from operators.failures import failure
from streams.decoding import from_json
from streams.errors import Malformed, UserError

CONNECT_S = 10.0
BUSY = frozenset({408, 409, 425, 429, *range(500, 600)})
TELLING = frozenset({400, 404, 409, 413, 422})
MAX_DETAIL = 300


async def called(tool: Tool, arguments: Mapping[str, Any], max_bytes: int) -> Any:
    """What it answers. Raises Transient or Permanent, named, with neither its address nor its key."""
    try:
        key = owned.bearer(tool.key)
    except UserError as error:
        raise failure("upstream", f"{tool.name}: its key: {error}") from error
    headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity", **key}
    timeout = httpx.Timeout(min(CONNECT_S, tool.timeout_s), read=tool.timeout_s)
    try:
        async with (
            httpx.AsyncClient(verify=_tls(), timeout=timeout, trust_env=False, follow_redirects=False) as client,
            client.stream("POST", tool.url, content=msgspec.json.encode(arguments), headers=headers) as response,
        ):
            body = bytearray()
            async for part in response.aiter_raw():
                body += part
                if len(body) > max_bytes:
                    raise failure("tool", f"{tool.name} answers with over {max_bytes} bytes")
    except httpx.TimeoutException as error:
        raise failure("timeout", f"{tool.name}: nothing came for {tool.timeout_s:g} s") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:  # their text may hold the address
        raise failure("upstream", f"{tool.name} cannot be reached: {type(error).__name__}") from error
    status = response.status_code
    if status in BUSY:
        raise failure("upstream", f"{tool.name}: HTTP {status}")
    if not 200 <= status < 300:
        detail = bytes(body[:MAX_DETAIL]).decode(errors="replace") if status in TELLING else ""
        raise failure("tool", f"{tool.name}: HTTP {status}{detail and f': {tool.without_secrets(detail)}'}")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise failure("tool", f"{tool.name} packs its answer, which was not asked for")
    return _read(tool, bytes(body), response.headers.get("Content-Type", ""))


def _read(tool: Tool, body: bytes, kind: str) -> Any:
    if not body.strip():
        return None
    if kind.partition(";")[0].strip() in ("text/plain", "text/markdown"):
        return body.decode(errors="replace")
    try:
        return from_json(body, Any)
    except Malformed as error:
        raise failure("tool", f"{tool.name} answers with what is no JSON: {error}") from error


@cache
def _tls() -> ssl.SSLContext:
    """Made once: it reads the system's certificates."""
    return httpx.create_ssl_context()
