"""CONVERSE by knowing: what is asked is replied to with the statement of what is known that is nearest, word for word.

How near and how sure is as in operators.language.quoting, whose scale it takes. A question that nothing answers is told
so; what is no question is replied to where something known is near, and else not at all: nobody is answered "I do not
know that" who says thank you.
"""

from collections.abc import Sequence
from typing import ClassVar

from engine.spec.operator import Fold, Inputs, Scope
from operators.capabilities import CONVERSE, ConverseParams
from operators.heard import Speech, Transcript, Turn, Turns
from operators.language.quoting import SCALES, Nearest, QuoteKnobs
from operators.language.retrieval import Piece, nearest, sureness
from operators.language.turns import Heard, is_question, turns_of

MAX_HISTORY = 10  # turns


class Knowing(Nearest):
    """Replies with what it was told to know. Its rungs' qualities are those of quoting, which finds in the same way."""

    capability = CONVERSE
    name = "knowing"
    scope: ClassVar[Scope] = Fold()

    @classmethod
    def cannot(cls, knobs: QuoteKnobs, params: ConverseParams) -> str | None:
        return "knowing calls no tools" if params.tools else None

    def process(self, batch: Sequence[Inputs]) -> Sequence[Turns]:
        return [self._turns(item) for item in batch]

    def _turns(self, item: Inputs) -> Turns:
        heard: Transcript = item.here("speech")
        before: Turns = item.previous or Turns()
        ended, pending = turns_of(before.pending, heard.observations)
        turns = [self._turn(each, item.params) for each in ended]
        return with_turns(before, turns, pending)

    def _turn(self, heard: Heard, params: ConverseParams) -> Turn:
        known = [Piece("text", at, at, text, range(at, at + 1)) for at, text in enumerate(params.knows) if text.strip()]
        found = nearest(heard.text, known, self._vectors, 2)
        scale = SCALES[self.knobs.by]
        sure = sureness(found, scale.sure)
        if sure >= scale.threshold:
            return turn_of(heard, found[0].piece.text, sure * heard.confidence)
        return turn_of(heard, params.otherwise if is_question(heard.text) else "", heard.confidence)


def turn_of(heard: Heard, reply: str, confidence: float) -> Turn:
    return Turn(
        start_ns=heard.start_ns, end_ns=heard.end_ns, heard=heard.text, text=reply, confidence=round(confidence, 4)
    )


def with_turns(before: Turns, turns: Sequence[Turn], pending: Sequence[Speech]) -> Turns:
    """A segment's output, with what the next one has to know."""
    history = (*before.history, *((turn.heard, turn.text) for turn in turns))[-MAX_HISTORY:]
    return Turns(observations=tuple(turns), pending=tuple(pending), history=history)
