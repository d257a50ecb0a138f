"""The demo: a clip that comes along, its questions, and the workflow that answers them."""

from functools import cache
from pathlib import Path

import msgspec

from engine.spec.workflow import Workflow, load_workflow
from streams.errors import PenstockError

HERE = Path(__file__).parent
PLACES = (HERE / "examples", HERE.parent / "examples")  # in an installed wheel, in a checkout


class Question(msgspec.Struct, frozen=True):
    """A question of the clip's ground truth."""

    question: str
    accepted: tuple[str, ...] = ()
    start_s: float | None = None
    end_s: float | None = None
    answerable: bool = True
    needs: tuple[str, ...] = ()


class _Truth(msgspec.Struct, frozen=True):
    questions: tuple[Question, ...]


def clip() -> Path:
    return _example("station.mp4")


def workflow() -> Workflow:
    return load_workflow(_example("video_qa.toml"))


@cache
def questions() -> tuple[Question, ...]:
    return msgspec.json.decode(_example("station.json").read_bytes(), type=_Truth).questions


def _example(name: str) -> Path:
    for place in PLACES:
        if (place / name).is_file():
            return place / name
    raise PenstockError(f"{name} is not installed with penstock; reinstall the package, or run from a checkout")
