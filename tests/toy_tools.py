"""Functions that tests call as tools."""

import threading
from typing import Annotated, Any, Literal

import anyio
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
