"""Asking: a language model of this machine's endpoints, for operators that need one. What it says has to be of a type
and to stand a check; what does not is asked for once more, with what was wrong, and is then a failure with a name
(operators.failures). Where the owner of the machine put several together, or has one asked several times, that is done
here as well (operators.language.ensembles)."""

import math
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypeVar

import anyio
import msgspec

from engine.spec.operator import Emit, Inputs, Machine, Operator, Rung, Settings
from operators.failures import failure
from operators.language import ensembles
from operators.language.chat import GREEDY, completed
from operators.language.drafts import Draft, unseen
from operators.language.endpoints import OVERHEAD_TOKENS, Endpoint, endpoint_of, place, that_answer
from operators.language.endpoints import ensembles as ensembles_here
from operators.language.served import until_up
from operators.language.structured import read, schema_of
from streams.errors import Permanent, Transient, UserError
from streams.records import MediaInfo

CHARS_A_TOKEN = 3  # of English, at least
NUM_TRIES = 2
MAX_TURNS = 64  # of an exchange
SEEN_S = 5.0  # for which a server that has answered is believed to be up
MAX_REPEATED = 2000  # characters of what a model said, shown to it again

Content = str | Sequence[Mapping[str, Any]]  # of a message: text, or parts of it and pictures

S = TypeVar("S", bound=msgspec.Struct)
T = TypeVar("T")


class ModelKnobs(Settings, frozen=True):
    """`then`: models that are asked where those before were not `sure`; each as often as there are `samples`."""

    model: str = ""
    then: tuple[str, ...] = ()
    sure: float = 0.0
    samples: int = 1


@dataclass(frozen=True, slots=True)
class Again:
    """What a model is told, to say something else."""

    text: str


Step = Callable[[str], Awaitable[T | Again]]  # what is made of what a model said, or what it is told then


def room_of(endpoint: Endpoint) -> int:
    """Characters of what is shown to a model, beside its role."""
    return CHARS_A_TOKEN * (endpoint.context_tokens - endpoint.max_tokens - OVERHEAD_TOKENS)


class Model:
    """A model, for one instance of an operator."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._limit: anyio.CapacityLimiter | None = None
        self._seen_s = -math.inf  # when it answered last, in the event loop's time

    def endpoint(self) -> Endpoint:
        """Where it is now. Raises Transient, named `upstream`."""
        try:
            found = endpoint_of(self.name)
        except UserError as error:  # its owner is at it
            raise failure("upstream", str(error)) from error
        if found is None:
            raise failure("upstream", f"no endpoint of {self.name!r} is named in {place()} any more")
        return found

    async def exchange(
        self,
        endpoint: Endpoint,
        role: str,
        request: Content,
        schema: Callable[[], Mapping[str, Any]],
        step: Step[T],
        draft: Draft,
        sampling: Mapping[str, Any] = GREEDY,
    ) -> T:
        """What `step` makes of what it says in the end, within the endpoint's time for an answer; `schema` is asked
        anew for what it may say next. Raises Transient or Permanent, named, as `step` does."""
        if self._limit is None:
            self._limit = anyio.CapacityLimiter(endpoint.max_in_flight)
        if anyio.current_time() > self._seen_s + SEEN_S and not await until_up(endpoint):
            raise failure("upstream", f"{endpoint.model}: its server is not up after {endpoint.start_s:g} s")
        messages: list[Mapping[str, Any]] = [
            {"role": "system", "content": role},
            {"role": "user", "content": request},
        ]
        async with self._limit:
            with anyio.move_on_after(endpoint.answer_s):
                try:
                    for _ in range(MAX_TURNS):
                        draft.begin()
                        text = await completed(endpoint, messages, schema(), draft.add, sampling)
                        made = await step(text)
                        self._seen_s = anyio.current_time()
                        if not isinstance(made, Again):
                            return made
                        messages += [
                            {"role": "assistant", "content": text[:MAX_REPEATED]},
                            {"role": "user", "content": made.text},
                        ]
                except Transient:
                    self._seen_s = -math.inf  # whoever asks next waits for it, if it is started here
                    raise
                raise failure("budget", f"{endpoint.model} came to no end in {MAX_TURNS} turns")
        self._seen_s = -math.inf
        raise failure("timeout", f"{endpoint.model} gave no answer that holds within {endpoint.answer_s:g} s")

    async def told(
        self,
        endpoint: Endpoint,
        role: str,
        request: Content,
        kind: type[S],
        made_of: Callable[[S], T],
        draft: Draft,
        sampling: Mapping[str, Any] = GREEDY,
    ) -> T:
        """What is made of its answer. `made_of` raises Permanent, named, where that does not stand."""
        step = once_more(lambda text: made_of(read(kind, text)))
        return await self.exchange(endpoint, role, request, lambda: schema_of(kind), step, draft, sampling)


def once_more(made_of: Callable[[str], T]) -> Step[T]:
    """What is made of what a model says, where it stands, and of the next, once, where it does not."""
    left = NUM_TRIES

    async def step(text: str) -> T | Again:
        nonlocal left
        try:
            return made_of(text)
        except Permanent as wrong:
            left -= 1
            if not left:
                raise
            return Again(f"That cannot be used ({wrong}). Reply again, with JSON only.")

    return step


class AsksModel(Operator):
    """What operators that ask a language model have in common: each model of the machine's endpoints is a rung, and so
    is each ensemble of them."""

    runs_in = "async"
    max_in_flight = 64
    timeout_s = 3600.0  # each endpoint has its own
    votes: ClassVar[bool] = False  # whether several answers to the same can be held against each other
    shows: ClassVar[str] = ""  # which field of what a model says is shown as it comes

    Knobs = ModelKnobs
    knobs: ModelKnobs

    def __init__(self, knobs: ModelKnobs) -> None:
        super().__init__(knobs)
        self._models = tuple(map(Model, (knobs.model, *knobs.then)))

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        """The best first; where there is none, one that says what is missing."""
        there = [Rung(each.model, each.quality, ModelKnobs(model=each.model)) for each in that_answer()]
        for each in ensembles_here():
            if each.samples == 1 or cls.votes:
                knobs = ModelKnobs(each.models[0], each.models[1:], each.sure, each.samples)
                there.append(Rung(each.name, each.quality, knobs))
        return sorted(there, key=lambda rung: -rung.quality) or [Rung("language-model", 0.0, ModelKnobs())]

    @classmethod
    def missing(cls, knobs: ModelKnobs, machine: Machine, media: MediaInfo | None) -> str | None:
        for model in (knobs.model, *knobs.then):
            if endpoint_of(model) is None:
                return f"{place()} names no endpoint{model and f' of {model}'} (docs/models.md)"
        return None

    @classmethod
    def in_flight(cls, knobs: ModelKnobs) -> int:
        endpoint = endpoint_of(knobs.model)
        most = cls.max_in_flight if endpoint is None else endpoint.max_in_flight
        return max(1, most // knobs.samples)

    async def process_one(self, inputs: Inputs, emit: Emit) -> msgspec.Struct:
        draft = Draft(emit, self.shows)

        async def ask(model: Model) -> Any:
            if self.knobs.samples == 1:
                return await self.ask(model, inputs, draft, GREEDY)
            sampled = [
                partial(self.ask, model, inputs, unseen(), sampling)
                for sampling in ensembles.samplings(self.knobs.samples)
            ]
            return self.voted(await ensembles.all_of(sampled), self.knobs.samples)

        output: msgspec.Struct = await ensembles.first_sure(self._models, self.knobs.sure, ask, self.sure_of)
        return output

    @abstractmethod
    async def ask(self, model: Model, inputs: Inputs, draft: Draft, sampling: Mapping[str, Any]) -> Any:
        """The output, as one model gives it. Raises Transient or Permanent, named."""

    @classmethod
    def sure_of(cls, output: Any) -> float:
        """How sure it is, 0..1, or below for never: whether another model is asked as well, where there is one."""
        return 1.0

    @classmethod
    def voted(cls, outputs: Sequence[Any], num: int) -> Any:
        """What most of the outputs say, of `num` that were asked for."""
        raise NotImplementedError(f"{cls.__name__} has no vote")
