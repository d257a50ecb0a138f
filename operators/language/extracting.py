"""SUMMARIZE by extraction: the sentences that say most of what all say, word for word, and no two that say the same.

A sentence is central where many are like it that are central themselves (LexRank): the stationary distribution of a
walk from sentence to sentence, that goes on with probability D to a sentence by how like it is, and else begins anew:
anywhere, or, of a summary that is to be about something, by how near that is.

    p = (1 - D) b + D M p,   M[i, j] = like(i, j) / sum_i like(i, j),   like = max(0, cosine)

Chosen one after the other (maximal marginal relevance): the one with the highest
LAMBDA * p / max p - (1 - LAMBDA) * its likeness to the one chosen that is most like it. Likeness is of words, by
tf * idf: by the embeddings of operators.language.embedding, at 200 times the cost, no more of what is asked about a
recording stands in its summary (bench/summaries.py). What was said counts, and what was shown where nothing was said.
Of more than MAX_AT_ONCE sentences, the most central of each MAX_AT_ONCE first.

D is LexRank's; LAMBDA is the usual 0.7, fitted to nothing.
Source: Erkan and Radev 2004, LexRank, arXiv 1109.2128; Otterbacher, Erkan and Radev 2005, for `about`; Carbonell and
Goldstein 1998 for marginal relevance.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from engine.spec.operator import Inputs, Operator, Reduce, Rung, Scope, Settings
from operators.capabilities import SUMMARIZE, Point, SummarizeParams, Summary
from operators.language.reading import support_of
from operators.language.retrieval import Piece, observed, screen_pieces, units_of, words_of

D = 0.85
LAMBDA = 0.7
MAX_AT_ONCE = 1000
MAX_STEPS, CLOSE = 200, 1e-9
MIN_WORDS = 5  # of a sentence that says something by itself

Array = NDArray[np.float64]


class Extracting(Operator):
    """Picks the sentences that say most of what all say."""

    capability = SUMMARIZE
    name = "extracting"
    scope: ClassVar[Scope] = Reduce()
    runs_in = "thread"

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        """Quality: of the questions to bench/scenes/unseen, the share whose answer stands in a summary of a fifth of
        the sentences. As many of the first sentences have 0.21, of the longest 0.28 (bench/summaries.py)."""
        return (Rung("central", 0.28, Settings()),)

    def process(self, batch: Sequence[Inputs]) -> Sequence[Summary]:
        return [self._summary(item) for item in batch]

    def _summary(self, item: Inputs) -> Summary:
        params: SummarizeParams = item.params
        chosen = most_central(sentences_of(item), params.max_points, params.about)
        return Summary(
            observations=tuple(
                Point(
                    start_ns=piece.start_ns,
                    end_ns=piece.end_ns,
                    text=piece.text,
                    confidence=round(piece.heard, 4),
                    evidence=(support_of(piece),),
                )
                for piece in chosen
            )
        )


def sentences_of(item: Inputs) -> list[Piece]:
    """What was said, in sentences; what was shown, where nothing was said."""
    speech, lines = observed(item)
    said = units_of(speech)
    return said or screen_pieces(lines)


def most_central(pieces: Sequence[Piece], num: int, about: str) -> list[Piece]:
    """The `num` sentences that say most, in order of time."""
    full = [piece for piece in pieces if len(piece.text.split()) >= MIN_WORDS] or list(pieces)
    while len(full) > MAX_AT_ONCE:
        parts = [full[at : at + MAX_AT_ONCE] for at in range(0, len(full), MAX_AT_ONCE)]
        share = MAX_AT_ONCE // len(parts)
        full = [piece for part in parts for piece in _chosen(part, max(1, share), about)]
    return _chosen(full, num, about)


def _chosen(pieces: Sequence[Piece], num: int, about: str) -> list[Piece]:
    if len(pieces) <= num:
        return list(pieces)
    texts = [piece.meaning for piece in pieces]
    found = tf_idf([*texts, about])
    like = np.maximum(0.0, found[:-1] @ found[:-1].T)
    central = centrality(like, np.maximum(0.0, found[:-1] @ found[-1]) if about else None)
    worth = np.round(central / central.max(), 6)
    chosen: list[int] = []
    nearest = np.zeros(len(pieces))
    for _ in range(num):
        scores = np.round(LAMBDA * worth - (1 - LAMBDA) * nearest, 6)
        scores[chosen] = -np.inf
        best = int(np.argmax(scores))  # of equals the first
        chosen.append(best)
        nearest = np.maximum(nearest, like[best])
    return [pieces[at] for at in sorted(chosen)]


def centrality(like: Array, begin: Array | None = None) -> Array:
    """How central each sentence is, by how like they are. like: float64 [n, n], symmetric, not negative; begin: float64
    [n], where a walk begins anew, not negative; anywhere if it is not given. Sums to 1."""
    num = len(like)
    sums = like.sum(axis=0)
    moves = np.where(sums > 0, like / np.where(sums > 0, sums, 1.0), 1.0 / num)  # from one like none: anywhere
    total = 0.0 if begin is None else float(begin.sum())
    start: Any = np.full(num, 1.0 / num) if begin is None or total <= 0 else begin / total
    found = np.full(num, 1.0 / num)
    for _ in range(MAX_STEPS):
        after = (1 - D) * start + D * (moves @ found)
        if float(np.abs(after - found).max()) < CLOSE:
            break
        found = after
    result: Array = after
    return result


def tf_idf(texts: Sequence[str]) -> Array:
    """A vector of length 1 for each text, by its words; of length 0 for one without. float64 [texts, words]."""
    counts = [Counter(words_of(text)) for text in texts]
    held = Counter(word for words in counts for word in words)
    at = {word: place for place, word in enumerate(sorted(held))}
    found = np.zeros((len(texts), max(1, len(at))))
    for row, words in enumerate(counts):
        for word, num in words.items():
            found[row, at[word]] = num * math.log(1 + len(texts) / held[word])
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    normalised: Array = found / np.where(lengths > 0, lengths, 1.0)
    return normalised
