"""ANSWER_QUESTION by quoting: the passage of the evidence that is nearest to the question, or none.

Nothing is made up: the answer is what was said or shown, as it was recognised, with what was seen while it was said, or
said while it was seen, beside it. See operators.language.retrieval for what a passage is, how near one is by meaning or
by words, and how sure an answer is; operators.language.embedding for the model of meaning. A rung's quality is the
share of questions that it answers rightly on scenes that nothing was chosen on (bench/scenes/unseen, by
bench/answers.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import msgspec

from engine.spec.operator import Device, Inputs, Machine, Operator, Reduce, Rung, Scope, Settings
from operators import weights
from operators.capabilities import ANSWER_QUESTION, NOT_IN_THE_VIDEO, AnswerParams, Reply, Support
from operators.language import embedding
from operators.language.retrieval import (
    Found,
    Piece,
    Vectors,
    emptiness,
    nearest,
    passages_of,
    sureness,
    without_what_leads_up,
)
from streams.records import MediaInfo

By = Literal["meaning", "words"]


@dataclass(frozen=True, slots=True)
class Scale:
    """What scores mean: the weights of being sure of the best and of there being none, how sure an answer has to be,
    and the score that what is quoted beside it has to have."""

    sure: tuple[float, float, float]
    none: tuple[float, float]
    threshold: float
    beside: float


SCALES: dict[By, Scale] = {  # fitted by bench/answers.py on bench/scenes/seen
    "meaning": Scale((-4.85, 6.59, 4.75), (4.64, -9.75), 0.25, 0.3),
    "words": Scale((-4.49, 18.18, 0.0), (1.94, -12.77), 0.25, 0.1),
}
BESIDE_IT = {"speech": "said", "text": "on screen"}
NEAR_NS = 3_000_000_000
NUM_RIVALS = 6
PERHAPS = 0.1  # how sure what is shown in place of an answer has to be
MAX_SIGN_WORDS = 8  # of what is shown together and quoted whole


class QuoteKnobs(Settings, frozen=True):
    by: By = "meaning"


class Nearest(Operator):
    """What operators that find the nearest of some passages have in common."""

    Knobs = QuoteKnobs
    knobs: QuoteKnobs
    _vectors: Vectors | None = None

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return (Rung("minilm", 0.44, QuoteKnobs()), Rung("bm25", 0.21, QuoteKnobs(by="words")))

    @classmethod
    def missing(cls, knobs: QuoteKnobs, machine: Machine, media: MediaInfo | None) -> str | None:
        return weights.lacking(embedding.NAME) if knobs.by == "meaning" else None

    def load(self, device: Device) -> None:
        if self.knobs.by == "meaning":
            self._vectors = embedding.load().vectors


class Quoting(Nearest):
    """Quotes the passage nearest to the question, where it is sure enough that it answers."""

    capability = ANSWER_QUESTION
    name = "quoting"
    version = 3  # of evidence of all kinds, and what can be counted in it
    scope: ClassVar[Scope] = Reduce()
    runs_in = "thread"
    timeout_s = 120.0  # of an hour that is new to it each sentence is embedded once

    @classmethod
    def cannot(cls, knobs: QuoteKnobs, params: AnswerParams) -> str | None:
        return "quoting calls no tools" if params.tools else None

    def process(self, batch: Sequence[Inputs]) -> Sequence[msgspec.Struct]:
        return [self._reply(item) for item in batch]

    def found(self, question: str, pieces: Sequence[Piece]) -> list[Found]:
        """The passages that may answer, the best first; what only bears it out is left away."""
        near = nearest(question, pieces, self._vectors, NUM_RIVALS)
        return [each for each in near if each is near[0] or not _is_beside(each.piece, near[0].piece)]

    def _reply(self, item: Inputs) -> Reply:
        question: str = item.params.question
        scale, pieces = SCALES[self.knobs.by], passages_of(item)
        found = self.found(question, pieces)
        sure = sureness(found, scale.sure)
        if sure < scale.threshold:
            empty = round(emptiness(found, scale.none), 4)
            perhaps = (_support(found[0].piece),) if sure >= PERHAPS else ()
            return Reply(question=question, answer=NOT_IN_THE_VIDEO, confidence=empty, perhaps=perhaps)
        best = without_what_leads_up(question, found[0].piece, self._vectors)
        beside = self._beside(question, best, [piece for piece in pieces if _is_beside(piece, best)])
        supports = tuple(map(_support, (best, *beside)))
        return Reply(question=question, answer=_quoted(best, beside), confidence=round(sure, 4), evidence=supports)

    def _beside(self, question: str, best: Piece, at_once: Sequence[Piece]) -> list[Piece]:
        """What of this is quoted beside the best: what is nearest to the question or to both, for the board that shows
        when it leaves says where it goes, too; and all that is shown with it, if that is little."""
        if not at_once:
            return []
        sentence = nearest(question, best.parts or [best], self._vectors, 1)[0].piece
        asked = (question, f"{question} {sentence.text}")
        near = [found for ask in asked for found in nearest(ask, at_once, self._vectors, 1)]
        if max(each.score for each in near) < SCALES[self.knobs.by].beside:
            return []
        closest = near[-1].piece
        sign = [piece for piece in at_once if piece.block == closest.block >= 0]
        is_short = sum(len(piece.text.split()) for piece in sign) <= MAX_SIGN_WORDS
        return sign if sign and is_short else [closest]


def _is_beside(one: Piece, other: Piece) -> bool:
    """Whether one was seen while the other was said: it bears it out, and is no other answer."""
    is_near = one.start_ns <= other.end_ns + NEAR_NS and other.start_ns <= one.end_ns + NEAR_NS
    return {one.kind, other.kind} == BESIDE_IT.keys() and is_near


def _quoted(best: Piece, beside: Sequence[Piece]) -> str:
    if not beside:
        return best.text
    return f"{best.text} [{BESIDE_IT[beside[0].kind]}: {' / '.join(piece.text for piece in beside)}]"


def _support(piece: Piece) -> Support:
    return Support(kind=piece.kind, start_ns=piece.start_ns, end_ns=piece.end_ns, text=piece.text)
