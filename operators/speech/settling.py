"""SETTLE_SPEECH: what was said to an end, a moment after it was said, from guesses in a row. Pure.

The words that guesses agree on (operators.speech.drafting) are held until what they say has come to an end: with a
sentence, or with SILENCE_S behind them in which nothing is heard. So whoever replies need not wait for what a
recogniser with more patience would like to hear first (seconds), and has what it would say but for a few words of 100.
What is said when a stream ends is settled by nobody any more: that is for streams that go on.
"""

from collections.abc import Sequence
from typing import ClassVar

from engine.spec.operator import Fold, Inputs, Operator, Rung, Scope, Settings
from operators.capabilities import SETTLE_SPEECH
from operators.heard import Guess, GuessedWord, Phrases, Speech, Word
from operators.language.sentences import ends_sentence
from operators.speech.drafting import agreed, said_in

SILENCE_NS = 600_000_000
MAX_HELD = 60  # words: who goes on for longer without an end is told of all the same


class Settling(Operator):
    """Tells what was said when it is over."""

    capability = SETTLE_SPEECH
    name = "settled"
    scope: ClassVar[Scope] = Fold()
    runs_in = "loop"

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return (Rung("settled", 1.0, Settings()),)

    def process(self, batch: Sequence[Inputs]) -> Sequence[Phrases]:
        return [settled(item.previous or Phrases(), item.here("guess")) for item in batch]


def settled(before: Phrases, guess: Guess) -> Phrases:
    """What has come to an end with one more guess."""
    words, now = agreed(before.agreement, guess)
    said: list[Speech] = []
    held: list[GuessedWord] = list(before.held)
    for word in words:
        if held and word.start_ns - held[-1].end_ns >= SILENCE_NS:
            said.append(_speech(held))
            held = []
        held.append(word)
        if ends_sentence(word.text) or len(held) >= MAX_HELD:
            said.append(_speech(held))
            held = []
    if held and not now.open and guess.until_ns - held[-1].end_ns >= SILENCE_NS:
        said.append(_speech(held))
        held = []
    return Phrases(observations=tuple(said), agreement=now, held=tuple(held))


def _speech(words: Sequence[GuessedWord]) -> Speech:
    return Speech(
        start_ns=words[0].start_ns,
        end_ns=words[-1].end_ns,
        **said_in(words),
        words=tuple(Word(word.start_ns, word.end_ns, word.text) for word in words),
    )
