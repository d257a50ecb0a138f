"""Asking: a language model of this machine's endpoints, for operators that need one. What it says has to be of a type
and to stand a check; what does not is asked for once more, with what was wrong, and is then a failure with a name
(operators.language.chat)."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import anyio
import msgspec

from engine.spec.operator import Machine, Operator, Rung, Settings
from operators.language.chat import completed, failure
from operators.language.endpoints import OVERHEAD_TOKENS, Endpoint, endpoint_of, endpoints, place
from operators.language.served import until_up
from operators.language.structured import Growing, read, schema_of
from streams.errors import Permanent, Transient, UserError
from streams.records import MediaInfo

CHARS_A_TOKEN = 3  # of English, at least
NUM_TRIES = 2
SEEN_S = 5.0  # for which a server that has answered is believed to be up
MAX_REPEATED = 2000  # characters of what was wrong, shown to the model

S = TypeVar("S", bound=msgspec.Struct)
T = TypeVar("T")


class ModelKnobs(Settings, frozen=True):
    model: str = ""


def room_of(endpoint: Endpoint) -> int:
    """Characters of what is shown to a model, beside its role."""
    return CHARS_A_TOKEN * (endpoint.context_tokens - endpoint.max_tokens - OVERHEAD_TOKENS)


class Model:
    """A model, for one instance of an operator."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._limit: anyio.CapacityLimiter | None = None
        self._seen_s = -math.inf  # when it answered last, in the event loop's time

    def endpoint(self) -> Endpoint:
        """Where it is now. Raises Transient, named `upstream`."""
        try:
            found = endpoint_of(self._name)
        except UserError as error:  # its owner is at it
            raise failure("upstream", str(error)) from error
        if found is None:
            raise failure("upstream", f"no endpoint of {self._name!r} is named in {place()} any more")
        return found

    async def told(
        self,
        endpoint: Endpoint,
        role: str,
        request: str,
        kind: type[S],
        made_of: Callable[[S], T],
        emit: Callable[[str], None] = lambda text: None,
    ) -> T:
        """What is made of its answer. `made_of` raises Permanent, named, where that does not stand."""
        if self._limit is None:
            self._limit = anyio.CapacityLimiter(endpoint.max_in_flight)
        if anyio.current_time() > self._seen_s + SEEN_S and not await until_up(endpoint):
            raise failure("upstream", f"{endpoint.model}: its server is not up after {endpoint.start_s:g} s")
        async with self._limit:
            with anyio.move_on_after(endpoint.answer_s):
                try:
                    told = await _tried(endpoint, role, request, kind, made_of, emit)
                except Transient:
                    self._seen_s = -math.inf  # whoever asks next waits for it, if it is started here
                    raise
                self._seen_s = anyio.current_time()
                return told
        self._seen_s = -math.inf
        raise failure("timeout", f"{endpoint.model} gave no answer that holds within {endpoint.answer_s:g} s")


class AsksModel(Operator):
    """What operators that ask a language model have in common: each model of the machine's endpoints is a rung."""

    runs_in = "async"
    max_in_flight = 64  # an endpoint's own limit is below that
    timeout_s = 3600.0  # each endpoint has its own

    Knobs = ModelKnobs
    knobs: ModelKnobs

    def __init__(self, knobs: ModelKnobs) -> None:
        super().__init__(knobs)
        self._model = Model(knobs.model)

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        """The best first; where there is none, one that says what is missing."""
        there = [Rung(each.model, each.quality, ModelKnobs(model=each.model)) for each in endpoints()]
        return sorted(there, key=lambda rung: -rung.quality) or [Rung("language-model", 0.0, ModelKnobs())]

    @classmethod
    def missing(cls, knobs: ModelKnobs, machine: Machine, media: MediaInfo | None) -> str | None:
        if endpoint_of(knobs.model) is None:
            return f"{place()} names no endpoint{knobs.model and f' of {knobs.model}'} (docs/models.md)"
        return None


async def _tried(
    endpoint: Endpoint,
    role: str,
    request: str,
    kind: type[S],
    made_of: Callable[[S], T],
    emit: Callable[[str], None],
) -> T:
    asked: list[Mapping[str, str]] = [{"role": "system", "content": role}, {"role": "user", "content": request}]
    messages = asked
    for left in reversed(range(NUM_TRIES)):
        text = await completed(endpoint, messages, schema_of(kind), partial(_pass, emit, Growing()))
        try:
            return made_of(read(kind, text))
        except Permanent as wrong:
            if not left:
                raise
            messages = [
                *asked,
                {"role": "assistant", "content": text[:MAX_REPEATED]},
                {"role": "user", "content": f"That cannot be used ({wrong}). Reply again, with JSON only."},
            ]
    raise AssertionError  # the last try returns or raises


def _pass(emit: Callable[[str], None], growing: Growing, piece: str) -> None:
    if grown := growing.add(piece):
        emit(grown)
