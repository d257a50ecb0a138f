"""Ensembles: models asked one after the other until one is sure, and one asked several times, of which most agree. Pure
but for asking.

A question that the first model is sure of costs no other; whoever asks the last one gets what it says. A model that
fails leaves it to those behind it, and, where none of them answers, to the surest answer there was before.
Source: Chen, Zaharia and Zou 2023, "FrugalGPT" (a cascade of models with a threshold).

Of several samples at a temperature, the answer that most have in common is the most likely to be right; how many that
are is how sure one can be. Samples that fail agree with none.
Source: Wang et al. 2022, "Self-Consistency Improves Chain of Thought Reasoning in Language Models".
"""

from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import anyio

from streams.errors import Permanent, Transient

TEMPERATURE = 0.7

M = TypeVar("M")
T = TypeVar("T")


async def first_sure(
    models: Sequence[M], sure: float, ask: Callable[[M], Awaitable[T]], sure_of: Callable[[T], float]
) -> T:
    """The first output that is sure enough, else the surest, the later of equals. Raises what the last model that
    failed raised, where all did."""
    best: tuple[float, T] | None = None
    failed: Exception | None = None
    for model in models:
        try:
            output = await ask(model)
        except (Permanent, Transient) as error:
            failed = error
            continue
        if (how_sure := sure_of(output)) >= sure:
            return output
        if best is None or how_sure >= best[0]:
            best = how_sure, output
    if best is None:
        assert failed is not None
        raise failed
    return best[1]


def samplings(num: int) -> list[Mapping[str, Any]]:
    """How a model is asked so many times: each time with another seed, so that it can be done again."""
    return [{"temperature": TEMPERATURE, "seed": seed} for seed in range(num)]


async def all_of(asked: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """What came of each, side by side, in order; without those that failed. Where all did, raises what the first of
    them raised that may pass, or else the first."""
    found: dict[int, T] = {}
    failed: dict[int, Exception] = {}

    async def one(at: int, ask: Callable[[], Awaitable[T]]) -> None:
        try:
            found[at] = await ask()
        except (Permanent, Transient) as error:
            failed[at] = error

    async with anyio.create_task_group() as tasks:
        for at, ask in enumerate(asked):
            tasks.start_soon(one, at, ask)
    if not found:
        errors = [failed[at] for at in sorted(failed)]
        raise next((error for error in errors if isinstance(error, Transient)), errors[0])
    return [found[at] for at in sorted(found)]


def plurality(outputs: Sequence[T], key: Callable[[T], Hashable], weight: Callable[[T], float]) -> tuple[T, list[T]]:
    """The weightiest of those that most have in common, and all of these; of equally many, those of more weight, and
    of equal weight whose first came first."""
    groups: dict[Hashable, list[T]] = {}
    for output in outputs:
        groups.setdefault(key(output), []).append(output)
    most = max(groups.values(), key=lambda group: (len(group), sum(map(weight, group))))
    return max(most, key=weight), most
