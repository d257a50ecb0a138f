"""Endpoints: where language models are, as a file of the machine's owner says. No workflow, plan or log holds an
address or a key; a plan names a model, and whoever computes looks up where that is.

The file is $PENSTOCK_ENDPOINTS, else penstock/endpoints.toml in $XDG_CONFIG_HOME or ~/.config:

    [[endpoint]]
    model = "Qwen/Qwen3-8B"           # as the endpoint calls it, and as plans and answers do
    url = "http://127.0.0.1:8000/v1"  # anything that speaks OpenAI's chat completions
    key = "${OPENAI_API_KEY}"         # or "${file:/run/secrets/key}"
    quality = 0.7                     # of questions to recordings, the share it answers rightly: bench/answers.py
    max_in_flight = 32

One with `serve`, a command, is served by this machine's nodes (operators.language.served).
"""

import os
import re
import tomllib
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from engine.spec.operator import Settings
from streams.errors import UserError
from streams.media.references import is_reference, secret

PLACE = "PENSTOCK_ENDPOINTS"
MAX_BYTES = 1 << 20
OVERHEAD_TOKENS = 400  # of what is asked, beside the passages

Name = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$")]

Word = Annotated[str, Meta(min_length=1, max_length=4096, pattern="^[^\\x00]*$")]


class Endpoint(Settings, frozen=True):
    """A model somewhere. Times in seconds, prices in any one currency for a million tokens."""

    model: Name
    url: Annotated[str, Meta(min_length=8, max_length=2000)]
    key: Annotated[str, Meta(max_length=4096)] = ""  # a reference, not the key
    quality: Annotated[float, Meta(ge=0, le=1)] = 0.5
    max_in_flight: Annotated[int, Meta(ge=1, le=64)] = 16
    first_token_s: Annotated[float, Meta(gt=0, le=600)] = 60.0
    answer_s: Annotated[float, Meta(gt=0, le=1800)] = 120.0  # for an answer, with all that is asked again
    max_tokens: Annotated[int, Meta(ge=16, le=100_000)] = 512  # of an answer
    context_tokens: Annotated[int, Meta(ge=512, le=10_000_000)] = 4096
    is_constrained: bool = True  # it keeps to a JSON schema; else what it says is looked through for JSON
    serve: Annotated[tuple[Word, ...], Meta(max_length=200)] = ()
    start_s: Annotated[float, Meta(gt=0, le=3600)] = 600.0  # until a server that is started here is up

    @property
    def headers(self) -> dict[str, str]:
        """With the key. Raises UserError, without any value, where what the key refers to is not there, or is none."""
        key = secret(self.key).strip()
        if not re.fullmatch(r"[\x21-\x7e]*", key):
            raise UserError(f"what {self.key} refers to is no key: it has other characters than a header may")
        return {"Authorization": f"Bearer {key}"} if key else {}

    def without_secrets(self, text: str) -> str:
        """A text that may have come from the endpoint, with neither key nor address."""
        try:
            key = secret(self.key).strip()
        except UserError:
            key = ""
        for what in (key, self.url, urlsplit(self.url).netloc, urlsplit(self.url).hostname or ""):
            text = text.replace(what, "...") if what else text
        return text


class _File(msgspec.Struct, forbid_unknown_fields=True):
    endpoint: list[Endpoint] = []


def place() -> Path:
    """Where the file is, or would be."""
    if named := os.environ.get(PLACE):
        return Path(named)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "penstock" / "endpoints.toml"


def endpoints() -> tuple[Endpoint, ...]:
    """All of them; none where there is no file. Raises UserError for one that is wrong."""
    path = place()
    try:
        stamp = path.stat().st_mtime_ns
    except OSError:
        if os.environ.get(PLACE):
            raise UserError(f"{path}, which ${PLACE} names, is not there") from None
        return ()
    return _read(path, stamp)


def endpoint_of(model: str) -> Endpoint | None:
    """The first one that has the model."""
    return next((each for each in endpoints() if each.model == model), None)


def is_here(host: str) -> bool:
    """Whether only this machine can connect to that."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@lru_cache(maxsize=8)
def _read(path: Path, stamp: int) -> tuple[Endpoint, ...]:
    try:
        with path.open("rb") as file:
            found = msgspec.convert(tomllib.loads(file.read(MAX_BYTES).decode()), _File).endpoint
    except (OSError, ValueError, RecursionError) as error:
        why = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: {why}; docs/models.md says what belongs there") from None
    for each in found:
        try:
            parts = urlsplit(each.url)
            _ = parts.port
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"{path}: the url of {each.model!r} is no http(s) address")
        if parts.username or parts.password or parts.query:
            raise UserError(f"{path}: the url of {each.model!r} holds more than a place: a key belongs in key")
        if each.serve and (parts.scheme != "http" or not is_here(parts.hostname)):
            raise UserError(f"{path}: {each.model!r} is to be served here, so its url is http://127.0.0.1:PORT/v1")
        if each.key and not is_reference(each.key):
            raise UserError(f'{path}: the key of {each.model!r} stands there itself: write key = "${{NAME}}"')
    first: dict[str, Endpoint] = {}
    places: dict[str, str] = {}
    for each in found:
        if each.max_tokens + OVERHEAD_TOKENS >= each.context_tokens:
            raise UserError(
                f"{path}: {each.model!r} has no room for a passage: context_tokens must be over max_tokens +"
                f" {OVERHEAD_TOKENS}"
            )
        place_of = urlsplit(each.url).netloc
        if each.serve and place_of in places:
            raise UserError(f"{path}: {each.model!r} and {places[place_of]!r} are to be served in one place")
        if each.serve and each.model not in first:
            places[place_of] = each.model
        first.setdefault(each.model, each)
    return tuple(first.values())
