"""The demo: a clip that comes along, its questions, and the workflow that answers them; and a reading in a natural
voice, to be heard."""

import re
from functools import cache
from pathlib import Path

import msgspec

from engine.spec.workflow import Stage, Workflow, load_workflow
from operators.judging import num_wrong_words as num_wrong_words
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


class Reading(msgspec.Struct, frozen=True):
    """What is read, and where the recording is from."""

    source: str
    text: str


class _Truth(msgspec.Struct, frozen=True):
    questions: tuple[Question, ...]


def clip() -> Path:
    return _example("station.mp4")


def workflow() -> Workflow:
    return load_workflow(_example("video_qa.toml"))


@cache
def questions() -> tuple[Question, ...]:
    return msgspec.json.decode(_example("station.json").read_bytes(), type=_Truth).questions


def recording() -> Path:
    return _example("reading.ogg")


def hearing() -> Workflow:
    return Workflow(name="hearing", stages={"speech": Stage(capability="transcribe", inputs={"media": "media"})})


@cache
def reading() -> Reading:
    return msgspec.json.decode(_example("reading.json").read_bytes(), type=Reading)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def _example(name: str) -> Path:
    for place in PLACES:
        if (place / name).is_file():
            return place / name
    raise PenstockError(f"{name} is not installed with penstock; reinstall the package, or run from a checkout")
