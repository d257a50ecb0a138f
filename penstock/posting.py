"""Posting: one POST of JSON to a receiver that somebody named, signed where there is a key.

| header | what |
|---|---|
| `Penstock-Signature` | `t=<Unix time>,v1=<hex HMAC-SHA256 of "<t>.<body>">`, by $PENSTOCK_WEBHOOK_SECRET, if set |

A receiver checks the signature over the bytes as they came and refuses an old `t`. Redirects are not followed.
"""

import hashlib
import hmac
import logging
import os
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple

import anyio
import httpx

from engine.spec.webhook_url import SECRET

logging.getLogger("httpx").setLevel(logging.WARNING)  # it would write whole URLs into the log

USER_AGENT = "penstock"
MAX_REPLY_BYTES = 65536  # of a response: read so that the connection can be used again
SLOWLY = 200_000  # rounds: a word that is easy to guess is not to be found by its fingerprint


class Reply(NamedTuple):
    """What came of an attempt."""

    status: int  # 0: there was none
    asked_s: float  # the pause it asks for
    reason: str  # what it was, in words


class Posting:
    """How a node posts. Without a `secret`, $PENSTOCK_WEBHOOK_SECRET is it; without either, nothing is signed."""

    def __init__(self, request_s: float, secret: str | None = None) -> None:
        self._request_s = request_s
        self._secret = (os.environ.get(SECRET, "") if secret is None else secret).encode()
        self._ssl: ssl.SSLContext | None = None

    @asynccontextmanager
    async def client(self, proxy: str | None) -> AsyncIterator[httpx.AsyncClient]:
        """Connects by itself, or through a proxy that judges where to."""
        if self._ssl is None:
            self._ssl = httpx.create_ssl_context()
        async with httpx.AsyncClient(
            verify=self._ssl,
            proxy=proxy,
            trust_env=proxy is None,
            headers={"Content-Type": "application/json", "User-Agent": USER_AGENT},
            follow_redirects=False,
            timeout=self._request_s,
            limits=httpx.Limits(max_connections=1),
        ) as client:
            yield client

    async def post(self, client: httpx.AsyncClient, url: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        """One attempt."""
        headers = dict(headers)
        if self._secret:
            headers["Penstock-Signature"] = signature(self._secret, int(time.time()), body)
        try:
            with anyio.fail_after(self._request_s):
                async with client.stream("POST", url, content=body, headers=headers) as response:
                    num_bytes = 0
                    async for piece in response.aiter_raw():
                        num_bytes += len(piece)
                        if num_bytes > MAX_REPLY_BYTES:
                            break
        except TimeoutError:
            return Reply(0, 0.0, f"no answer within {self._request_s:g} s")
        except (httpx.HTTPError, httpx.InvalidURL) as error:  # their text may hold the URL
            return Reply(0, 0.0, type(error).__name__)
        asked = response.headers.get("retry-after", "")
        asked_s = float(asked) if asked.isdecimal() and asked.isascii() else 0.0
        return Reply(response.status_code, asked_s, str(response.status_code))


def signature(secret: bytes, unix_s: int, body: bytes) -> str:
    """What `Penstock-Signature` says of a body at a time."""
    digest = hmac.new(secret, b"%d." % unix_s + body, hashlib.sha256)
    return f"t={unix_s},v1={digest.hexdigest()}"


def fingerprint(secret: str | None = None) -> str:
    """What tells two keys apart and says nothing else of them; nothing where there is no key."""
    key = os.environ.get(SECRET, "") if secret is None else secret
    return hashlib.pbkdf2_hmac("sha256", key.encode(), b"penstock webhooks", SLOWLY)[:4].hex() if key else ""
