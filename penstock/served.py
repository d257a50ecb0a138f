"""The language models that a node serves itself: their servers are kept running while the node is."""

from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import anyio
import msgspec

from engine.spec.catalogue import installed
from engine.spec.operator import Operator
from engine.spec.plan import Plan
from operators.language.asking import AsksModel, ModelKnobs
from operators.language.endpoints import Endpoint, endpoints
from operators.language.served import Served, ServedState

Serve = Callable[[Collection[Endpoint]], None]


class Told(Protocol):
    """Where the states of the servers go, by model."""

    def __call__(self, states: Mapping[str, ServedState]) -> None: ...


def to_serve(models: Collection[str] | None = None) -> list[Endpoint]:
    """Those that this machine is to serve; of these `models` only, if they are given. Raises UserError for a file of
    endpoints that is wrong."""
    every = {each.model: each for each in reversed(endpoints())}  # of two of a name the first counts
    return [each for each in every.values() if each.serve and (models is None or each.model in models)]


def models_of(plan: Plan) -> set[str]:
    """The language models that a plan asks."""
    asked = set()
    for stage in plan.stages:
        operators = installed().implementations(stage.capability)
        if issubclass(operators.get(stage.rung.implementation, Operator), AsksModel):
            knobs = msgspec.convert(stage.rung.knobs, ModelKnobs)
            asked |= {knobs.model, *knobs.then}
    return asked


@asynccontextmanager
async def serving(store: Path, tell: Told = lambda states: None) -> AsyncIterator[Serve]:
    """What is called with endpoints has their servers run, each once, until this is left."""
    states: dict[str, ServedState] = {}

    def note(state: ServedState) -> None:
        states[state.model] = state
        tell(dict(states))

    async with anyio.create_task_group() as tasks:

        def serve(wanted: Collection[Endpoint]) -> None:
            for endpoint in wanted:
                if endpoint.model not in states:
                    server = Served(endpoint, log_of(store, endpoint.model), note)
                    note(server.state)
                    tasks.start_soon(server.run)

        try:
            yield serve
        finally:
            tasks.cancel_scope.cancel()


def log_of(store: Path, model: str) -> Path:
    """Where a server's own words go. A model's name may be no file's."""
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in model)[:80]
    return store / "models" / f"{plain}-{sha256(model.encode()).hexdigest()[:8]}.log"


def said_of(states: Mapping[str, ServedState]) -> dict[str, str]:
    """In words, for those who look at a node."""
    return {
        model: state.state + (f": {state.detail}" if state.detail else "") + ("" if state.is_ours else " (another's)")
        for model, state in sorted(states.items())
    }
