"""Guesses of speech, for tests of what is made of them."""

from operators.heard import Guess, GuessedWord

S = 1_000_000_000
WORD_NS = S // 2  # a word takes half a second here


def guess(
    text: str, first: int = 0, until_s: float | None = None, since_s: float = 0.0, is_full: bool = False
) -> Guess:
    """Words from the number `first` on, each half a second behind the other."""
    words = tuple(
        GuessedWord((first + at) * WORD_NS, (first + at + 1) * WORD_NS, word) for at, word in enumerate(text.split())
    )
    until_ns = words[-1].end_ns + S if until_s is None and words else round((until_s or 0) * S)
    return Guess(since_ns=round(since_s * S), until_ns=until_ns, words=words, is_full=is_full)
