"""Functions that tests call as tools."""

import asyncio
import functools
import math
import threading
from typing import Annotated, Any, Literal

import anyio
import msgspec
from msgspec import Meta

CALLS: list[Any] = []
HELD = threading.Event()


def price(grain: Literal["wheat", "maize"], tonnes: Annotated[int, Meta(ge=1)] = 1) -> dict[str, Any]:
    """What a kind of grain costs today. In dollars."""
    CALLS.append(("price", grain, tonnes))
    return {"text": f"{tonnes} t of {grain} cost {tonnes * {'wheat': 240, 'maize': 180}[grain]} dollars"}


async def shouted(text: str) -> str:
    """The same, louder."""
    await anyio.lowlevel.checkpoint()
    return text.upper()


def everything(**given: Any) -> Any:
    """Gives back what it was given."""
    CALLS.append(given)
    return given


def lines(text: str, prefix: str = "-") -> list[str]:
    return [f"{prefix} {line}" for line in text.splitlines()]


def fails(text: str = "") -> None:
    raise RuntimeError("it is broken")


def hangs() -> None:
    HELD.wait(60)


def too_much() -> str:
    return "x" * (1 << 21)


def not_json() -> Any:
    return object()


class Graph:
    """As an agent of a library would be called."""

    def invoke(self, question: str, evidence: list[dict[str, Any]]) -> dict[str, Any]:
        said = [each["text"] for each in evidence if "wheat" in each["text"].lower()]
        return {"text": said[0] if said else "nobody said", "confidence": 0.6, "asked": question}


graph = Graph()
not_a_function = 7


def leaves(text: str = "") -> None:
    raise SystemExit(3)


async def leaves_later(text: str = "") -> None:
    raise SystemExit(3)


async def cancels(text: str = "") -> None:
    raise asyncio.CancelledError


async def awaits_what_is_canceled() -> None:
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("not even that")


def says_nothing_of_it() -> None:
    raise Unspeakable


def strange_hint(x: 5 = 3) -> int:  # type: ignore[valid-type]
    return x


class Arguments(msgspec.Struct):
    x: int


def takes_arguments(x: Arguments) -> int:
    return x.x


class Adder:
    def __call__(self, one: int, other: int = 1) -> int:
        return one + other


adder = Adder()
add_two = functools.partial(adder, other=2)

MOST = [0, 0]


def wrapped_later() -> Any:
    """A coroutine behind what looks like a function."""

    async def work() -> int:
        MOST[0] += 1
        MOST[1] = max(MOST)
        await anyio.sleep(0.01)
        MOST[0] -= 1
        return MOST[1]

    return work()


def numbers() -> dict[str, Any]:
    return {"nan": math.nan, "n": 7, 3: "three"}


def too_large_a_number() -> int:
    return 1 << 64
