"""ANSWER_QUESTION without a model: the passage of the evidence that answers, quoted with its interval.

What is not there cannot be made up: the answer is a spoken sentence or a row of on-screen text as it was recognised, or
NOT_IN_THE_VIDEO. The rung's quality, 0.5, is a judgement: below what a language model over the same evidence gives. On
the held-out questions of tests/data/questions.json, with simulated recognisers, 60 of 64 replies are right.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import ClassVar

import msgspec

from engine.spec.operator import Inputs, Operator, Reduce, Rung, Scope, Settings
from operators.capabilities import (
    ANSWER_QUESTION,
    NOT_IN_THE_VIDEO,
    Reply,
    Scenes,
    ScreenText,
    Shot,
    Speech,
    Support,
    TextLine,
    Transcript,
)
from operators.language.passages import Cuts, Passage, screen_rows, spoken_sentences
from operators.language.questions import parse_question
from operators.language.ranking import THRESHOLD, Finding, Ranking
from operators.vision.detect_scenes import cut_between


class ExtractiveAnswer(Operator):
    """Answers by quoting the passage that covers the question and holds a value of the expected kind.

    Confidence of an answer is its score (see operators.language.ranking), so it is at least THRESHOLD; confidence of
    NOT_IN_THE_VIDEO is 1 - the best score, so the nearer a passage came to answering the lower it is.
    """

    capability = ANSWER_QUESTION
    name = "extractive"
    scope: ClassVar[Scope] = Reduce()
    runs_in = "thread"
    timeout_s = 30.0

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return (Rung("extractive", 0.5, Settings()),)

    def process(self, batch: Sequence[Inputs]) -> Sequence[msgspec.Struct]:
        return [_reply(item) for item in batch]


def _reply(item: Inputs) -> Reply:
    question: str = item.params.question
    finding = Ranking(*_read(item)).best(parse_question(question))
    score = finding.score if finding else 0.0
    if finding is None or score < THRESHOLD:
        return Reply(question=question, answer=NOT_IN_THE_VIDEO, confidence=round(1.0 - score, 4))
    return Reply(
        question=question,
        answer=finding.passage.text,
        confidence=round(min(1.0, score), 4),
        evidence=tuple(_supports(finding)),
    )


def _supports(finding: Finding) -> Iterator[Support]:
    for passage in (finding.passage, *finding.contexts):
        yield Support(kind=passage.kind, start_ns=passage.start_ns, end_ns=passage.end_ns, text=passage.text)


def _read(item: Inputs) -> tuple[list[Passage], Cuts]:
    """The passages and cuts of all sources, whatever their order; gaps are passed over."""
    speech: list[Speech] = []
    lines: list[TextLine] = []
    shots: list[Shot] = []
    for entry in (entry for source in item.ports["evidence"] for entry in source):
        match entry.value:
            case Transcript(observations=utterances):
                speech.extend(utterances)
            case ScreenText(observations=seen):
                lines.extend(seen)
            case Scenes(observations=takes):
                shots.extend(takes)
    times_ns = {shot.start_ns for shot in shots if shot.cut} | set(_boundary_cuts(item))
    return spoken_sentences(speech) + screen_rows(lines), Cuts(tuple(sorted(times_ns)))


def _boundary_cuts(item: Inputs) -> Iterator[int]:
    """The cuts between neighbouring segments, which neither of the two can see alone."""
    for source in item.ports["evidence"]:
        for before, after in pairwise(source):
            match before.value, after.value:
                case Scenes() as left, Scenes(observations=(first, *_)) as right if cut_between(left, right):
                    yield first.start_ns
