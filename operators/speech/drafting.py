"""DRAFT_CAPTIONS: words as they are said, from guesses in a row. Pure.

Words on which two guesses in a row agree are settled, and are not changed any more (LocalAgreement-2); the rest of the
newest guess is shown behind them and may still change, but for what ends with the audio: it is half heard. A word that
is about to leave what is listened to is settled as it is. Words are the same whatever their case and
punctuation. Of a guess only what begins behind the last settled word counts; where the two overlap by a little, words
that were settled are not settled twice.
Source: Liu, Spanakis and Niehues 2020, "Low-Latency Sequence-to-Sequence Speech Recognition and Translation by Partial
Hypothesis Selection"; Macháček, Dabre and Bojar 2023, "Turning Whisper into Real-Time Transcription System",
arXiv 2307.14743.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from engine.spec.operator import Fold, Inputs, Operator, Rung, Scope, Settings
from operators.capabilities import DRAFT_CAPTIONS
from operators.heard import Agreement, Draft, Drafts, Guess, GuessedWord

SLACK_NS = 100_000_000  # by which two guesses may differ on when a word is
HALF_HEARD_NS = 600_000_000  # of the audio's end: what ends later is shown only where it is settled
LEAVING_NS = 1_500_000_000  # before a word is no longer listened to
NUM_REPEATED = 5  # words at a seam that may be said again


class Drafting(Operator):
    """Settles what guesses agree on."""

    capability = DRAFT_CAPTIONS
    name = "local-agreement"
    scope: ClassVar[Scope] = Fold()
    runs_in = "loop"

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return (Rung("local-agreement", 1.0, Settings()),)

    def process(self, batch: Sequence[Inputs]) -> Sequence[Drafts]:
        return [drafted(item.previous or Drafts(), item.here("guess")) for item in batch]


def drafted(before: Drafts, guess: Guess) -> Drafts:
    """What is settled and shown with one more guess."""
    settled, now = agreed(before.agreement, guess)
    shown = [word for word in now.open if word.end_ns <= guess.until_ns - HALF_HEARD_NS]
    observations = [_draft(each, is_settled) for each, is_settled in ((settled, True), (shown, False)) if each]
    return Drafts(observations=tuple(observations), agreement=now)


def agreed(before: Agreement, guess: Guess) -> tuple[Sequence[GuessedWord], Agreement]:
    """The words that are settled with one more guess, and how things stand then."""
    words = _behind(before, guess)
    num = 0
    for one, other in zip(before.open, words, strict=False):
        if not same(one.text, other.text):
            break
        num += 1
    while guess.is_full and num < len(words) and words[num].end_ns < guess.since_ns + LEAVING_NS:
        num += 1
    settled, open_ = words[:num], words[num:]
    return settled, Agreement(
        open=tuple(open_),
        last=(*before.last, *(word.text for word in settled))[-NUM_REPEATED:],
        settled_ns=settled[-1].end_ns if settled else before.settled_ns,
    )


def _behind(before: Agreement, guess: Guess) -> Sequence[GuessedWord]:
    """What of a guess is not settled yet."""
    words = [word for word in guess.words if word.start_ns >= before.settled_ns - SLACK_NS]
    for num in range(min(len(before.last), len(words)), 0, -1):
        is_near = words[num - 1].start_ns < before.settled_ns - SLACK_NS // 2
        if is_near and all(map(same, before.last[-num:], (word.text for word in words[:num]))):
            return words[num:]
    return words


def _draft(words: Sequence[GuessedWord], is_settled: bool) -> Draft:
    return Draft(start_ns=words[0].start_ns, end_ns=words[-1].end_ns, **said_in(words), is_settled=is_settled)


def said_in(words: Sequence[GuessedWord]) -> dict[str, Any]:
    """The text of words, and how surely they were heard."""
    sure = sum(word.probability for word in words) / len(words)
    return {"text": " ".join(word.text for word in words), "confidence": round(sure, 4)}


def same(one: str, other: str) -> bool:
    """Whether two words are, whatever their case and punctuation."""
    return _plain(one) == _plain(other)


def _plain(word: str) -> str:
    return "".join(letter for letter in word.casefold() if letter.isalnum()) or word
