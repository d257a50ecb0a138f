"""SUMMARIZE by extraction: the sentences that say most of what all say, word for word, and no two that say the same.

A sentence is central where many are like it that are central themselves (LexRank): the stationary distribution of a
walk from sentence to sentence, that goes on with probability D to a sentence by how like it is, and else begins anew:
anywhere, or, of a summary that is to be about something, by how near that is.

    p = (1 - D) b + D M p,   M[i, j] = like(i, j) / sum_i like(i, j),   like = max(0, cosine)

Chosen one after the other (maximal marginal relevance): the one with the highest
LAMBDA * p / max p - (1 - LAMBDA) * its likeness to the one chosen that is most like it, and none that is SAME as one
that is chosen. Likeness is of words, by
tf * idf: by the embeddings of operators.language.embedding, at 200 times the cost, no more of what is asked about a
recording stands in its summary (bench/summaries.py). What was said counts, and what was shown where little was said.
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
from operators.language.retrieval import Piece, observed, screen_pieces, told_pieces, units_of, words_of
from operators.language.tallies import KIND

D = 0.85
LAMBDA = 0.7
MAX_AT_ONCE = 1000
MAX_STEPS, CLOSE = 200, 1e-9
MIN_WORDS = 5  # of a sentence that says something by itself
MUCH = 30  # words of speech, beside which what is shown does not count
SAME = 0.8  # how like two sentences are that say the same

Array = NDArray[np.float64]


class Extracting(Operator):
    """Picks the sentences that say most of what all say."""

    capability = SUMMARIZE
    name = "extracting"
    version = 3  # of evidence of all kinds, and what can be counted in it
    scope: ClassVar[Scope] = Reduce()
    runs_in = "thread"

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        """Quality: of the questions to bench/scenes/unseen, the share whose answer stands in a summary of a fifth of
        the sentences. As many of the first sentences have 0.21, of the longest 0.28; in bench/scenes/seen it is 0.21
        against 0.19 and 0.29 (bench/summaries.py)."""
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
    """What was said, in sentences, in order of time; with what was shown and what else was found, where little was
    said."""
    speech, lines, told, counted = observed(item)
    told += [each for each in counted if each[0] == KIND]
    said = units_of(speech)
    if sum(len(piece.text.split()) for piece in said) >= MUCH:
        return said
    return sorted([*said, *screen_pieces(lines), *told_pieces(told)], key=lambda piece: (piece.start_ns, piece.kind))


def most_central(pieces: Sequence[Piece], num: int, about: str) -> list[Piece]:
    """The `num` sentences that say most, in order of time; fewer where the others say the same, and none where nothing
    is about that."""
    return sorted(by_weight(pieces, num, about), key=lambda piece: (piece.start_ns, piece.kind, piece.units.start))


def by_weight(pieces: Sequence[Piece], num: int, about: str) -> list[Piece]:
    """The same, those that say most first."""
    full = [piece for piece in pieces if len(piece.text.split()) >= MIN_WORDS]
    if len(full) < num:
        full = list(pieces)
    while len(full) > MAX_AT_ONCE:
        parts = [full[at : at + MAX_AT_ONCE] for at in range(0, len(full), MAX_AT_ONCE)]
        share = max(1, MAX_AT_ONCE // len(parts))
        chosen = {id(piece) for part in parts for piece in _chosen(part, share, about)}
        full = [piece for piece in full if id(piece) in chosen]
    return _chosen(full, num, about)


def _chosen(pieces: Sequence[Piece], num: int, about: str) -> list[Piece]:
    if not pieces:
        return []
    found = tf_idf([*(piece.meaning for piece in pieces), about])
    like = np.maximum(0.0, found[:-1] @ found[:-1].T)
    np.fill_diagonal(like, 1.0)
    near = np.maximum(0.0, found[:-1] @ found[-1])
    if about.strip() and not near.any():
        return []
    central = centrality(like, near if about.strip() else None)
    worth = np.round(central / central.max(), 6)
    chosen: list[int] = []
    nearest = np.zeros(len(pieces))
    while len(chosen) < num:
        scores = np.round(LAMBDA * worth - (1 - LAMBDA) * nearest, 6)
        scores[nearest >= SAME] = scores[chosen] = -np.inf
        best = int(np.argmax(scores))  # of equals the first
        if scores[best] == -np.inf:
            break
        chosen.append(best)
        nearest = np.maximum(nearest, like[best])
    return [pieces[at] for at in chosen]


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
    """A vector for each text, by its words, so that inner products of two are cosines. Words of one text only count for
    its length, and have no place of their own. float64 [texts, words]."""
    counts = [Counter(words_of(text)) for text in texts]
    held = Counter(word for words in counts for word in words)
    at = {word: place for place, word in enumerate(sorted(word for word, num in held.items() if num > 1))}
    found = np.zeros((len(texts), max(1, len(at))))
    for row, words in enumerate(counts):
        weights = {word: num * math.log(1 + len(texts) / held[word]) for word, num in words.items()}
        length = math.sqrt(math.fsum(weight * weight for weight in weights.values()))
        for word, weight in weights.items():
            if word in at:
                found[row, at[word]] = weight / length
    return found
