"""Endpoints: where language models are, as a file of the machine's owner says. No workflow, plan or log holds an
address or a key; a plan names a model, and whoever computes looks up where that is.

The file is $PENSTOCK_ENDPOINTS, else penstock/endpoints.toml in $XDG_CONFIG_HOME or ~/.config:

    [[endpoint]]
    model = "Qwen/Qwen3-8B"           # as the endpoint calls it, and as plans and answers do
    url = "http://127.0.0.1:8000/v1"  # anything that speaks OpenAI's chat completions
    key = "${OPENAI_API_KEY}"         # or "${file:/run/secrets/key}"
    quality = 0.7                     # of questions to recordings, the share it answers rightly: bench/answers.py
    max_in_flight = 32

    [[ensemble]]                      # models asked as one: until one is sure, each as often as it says
    name = "careful"
    models = ["SmolLM2", "Qwen/Qwen3-8B"]
    sure = 0.7
    quality = 0.75

One with `serve`, a command, is served by this machine's nodes (operators.language.served).
"""

from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, NamedTuple
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from engine.spec.operator import Settings
from operators import owned
from streams.errors import UserError

PLACE = "PENSTOCK_ENDPOINTS"
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
    hears: bool = False  # it transcribes speech (/audio/transcriptions), and does nothing else
    sees: bool = False  # it takes pictures as well as words
    price_in: Annotated[float, Meta(ge=0, le=1e9)] = 0.0
    price_out: Annotated[float, Meta(ge=0, le=1e9)] = 0.0
    serve: Annotated[tuple[Word, ...], Meta(max_length=200)] = ()
    start_s: Annotated[float, Meta(gt=0, le=3600)] = 600.0  # until a server that is started here is up

    @property
    def headers(self) -> dict[str, str]:
        """With the key. Raises UserError, without any value, where what the key refers to is not there, or is none."""
        return owned.bearer(self.key)

    def without_secrets(self, text: str) -> str:
        """A text that may have come from the endpoint, with neither key nor address."""
        return owned.without_secrets(text, self.key, self.url)


class Ensemble(Settings, frozen=True):
    """Models that are asked as one: one after the other, until the confidence of an answer is at least `sure`; each
    `samples` times, of which most agree."""

    name: Name
    models: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=8)]
    sure: Annotated[float, Meta(ge=0, le=1)] = 0.7
    samples: Annotated[int, Meta(ge=1, le=32)] = 1
    quality: Annotated[float, Meta(ge=0, le=1)] = 0.5


class _File(msgspec.Struct, forbid_unknown_fields=True):
    endpoint: list[Endpoint] = []
    ensemble: list[Ensemble] = []


class There(NamedTuple):
    """What the file says."""

    endpoints: tuple[Endpoint, ...] = ()
    ensembles: tuple[Ensemble, ...] = ()


def place() -> Path:
    """Where the file is, or would be."""
    return owned.place(PLACE, "endpoints.toml")


def endpoints() -> tuple[Endpoint, ...]:
    """All of them; none where there is no file. Raises UserError for one that is wrong."""
    return _there().endpoints


def ensembles() -> tuple[Ensemble, ...]:
    """All of them, likewise."""
    return _there().ensembles


def _there() -> There:
    path = place()
    stamp = owned.stamp(PLACE, path)
    return There() if stamp is None else _read(path, stamp)


def that_answer() -> tuple[Endpoint, ...]:
    """Those that language models are behind."""
    return tuple(each for each in endpoints() if not each.hears)


def that_see() -> tuple[Endpoint, ...]:
    """Those that take pictures."""
    return tuple(each for each in endpoints() if each.sees and not each.hears)


def that_hear() -> tuple[Endpoint, ...]:
    """Those that transcribe speech."""
    return tuple(each for each in endpoints() if each.hears)


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
def _read(path: Path, stamp: int) -> There:
    file = owned.read(path, _File)
    found = file.endpoint
    for each in found:
        owned.check_address(path, each.model, each.url, each.key)
        parts = urlsplit(each.url)
        if each.serve and (parts.scheme != "http" or not is_here(parts.hostname or "")):
            raise UserError(f"{path}: {each.model!r} is to be served here, so its url is http://127.0.0.1:PORT/v1")
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
    names = set(first)
    for ensemble in file.ensemble:
        if ensemble.name in names:
            raise UserError(f"{path}: {ensemble.name!r} is the name of two: a name stands for one")
        names.add(ensemble.name)
        if strange := [model for model in ensemble.models if model not in first or first[model].hears]:
            raise UserError(f"{path}: the ensemble {ensemble.name!r} has {strange[0]!r}, which no endpoint answers as")
    return There(tuple(first.values()), tuple(file.ensemble))
