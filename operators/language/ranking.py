"""Which passage answers a question, and whether any does.

Every passage u that could answer gets the score

    score(u) = coverage(u) * value(u) * agreement(u),   each in 0..1

    coverage = sum_t w_t * m_t(u) / sum_t w_t            over the question's terms t
    m_t(u)   = max(match of t in u, max_c link(u, c) * match of t in c)   over the contexts c of u
    w_t      = base_t * (0.6 + 0.4 * idf_t),  idf_t = log(1 + N / df_t) / log(1 + N);  1.6 * base_t where df_t = 0

A match is 1 for an equal stem and less for a synonym or a misread or misheard word. The contexts of a passage are its
*moment*: the sentences around it, the rows around it and what is seen or heard at the same time in the same shot; the
link says how surely c speaks of the same thing as u. `value` is the strength of the best value of the expected kind.
`agreement` falls where u speaks of another one of the things asked for ("return ticket" for "platform ticket", "to
Leeds" for "to York"). The best passage answers if its score reaches THRESHOLD; N passages cost O(N) to index and the
work per candidate is bounded.

Source: the coverage and rarity terms follow BM25 (Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework")
with term frequency saturated at once, since passages are one sentence long.
"""

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise

from operators.language.lexicon import (
    HOMOPHONES,
    HYPONYMS,
    POINTING_WORDS,
    PREPOSITIONS,
    PRONOUNS,
    STOP_WORDS,
    STOPPING,
    SYNONYMS,
)
from operators.language.passages import Cuts, Passage
from operators.language.questions import Question, Term
from operators.language.values import Reading, find_values
from operators.language.words import Token, stem

THRESHOLD = 0.6
MAX_CANDIDATES = 96
MAX_CONTEXTS = 24
UNTYPED = ("anything", "subject", "text", "yes_no")  # kinds that any passage holds a value of
NEAR_NS = 3_000_000_000

_GROUPS: dict[str, set[str]] = defaultdict(set)
for _line in SYNONYMS.splitlines():
    _stems = {stem(word) for word in _line.split()}
    for _stem in _stems:
        _GROUPS[_stem] |= _stems


_HYPONYMS = {stem(word): {stem(other) for other in others.split()} for word, others in HYPONYMS.items()}
_STOPPING = sorted(map(stem, STOPPING))
_HOMOPHONES: dict[str, set[str]] = {}
for _line in HOMOPHONES.splitlines():
    _HOMOPHONES |= {stem(word): {stem(other) for other in _line.split()} for word in _line.split()}


@dataclass(frozen=True, slots=True)
class Finding:
    """A passage with its score and the passages that say what it does not say itself."""

    passage: Passage
    score: float
    contexts: tuple[Passage, ...]


class Ranking:
    """All passages of a range, indexed. Passages in order of time; `cuts` bound what counts as the same moment."""

    def __init__(self, passages: Sequence[Passage], cuts: Cuts) -> None:
        self._passages = sorted(passages, key=lambda p: (p.start_ns, p.end_ns, p.kind, p.block, p.row, p.text))
        self._cuts = cuts
        self._postings: dict[str, list[int]] = defaultdict(list)
        for i, passage in enumerate(self._passages):
            for word in {token.stem for token in passage.tokens}:
                self._postings[word].append(i)
        self._speech = [i for i, p in enumerate(self._passages) if p.kind == "speech"]
        self._rows = [i for i, p in enumerate(self._passages) if p.kind == "text"]
        self._pools = {kind: self._timed(pool) for kind, pool in (("speech", self._speech), ("text", self._rows))}
        self._contexts = cache(self._moment)
        self._blocks: dict[int, list[int]] = defaultdict(list)
        for i in self._rows:
            self._blocks[self._passages[i].block].append(i)

    def best(self, question: Question) -> Finding | None:
        """The best-scoring passage, whatever its score; None where nothing scores at all. Earlier wins a draw."""
        if not self._passages or not (question.terms or question.kind == "text"):
            return None
        matches = {term.stem: self._matches(term) for term in question.terms}
        weights = {term.stem: self._weight(term, matches[term.stem], question.kind) for term in question.terms}
        worth = cache(lambda i: self._value(self._passages[i], question))
        findings = (
            self._score(i, question, matches, weights, worth) for i in self._candidates(matches, weights, question)
        )
        if not question.terms:  # any text will do: what was shown longest is what matters most
            return max(findings, key=lambda f: (f.passage.end_ns - f.passage.start_ns, f.score), default=None)
        return max(findings, key=lambda f: (f.score, -f.passage.start_ns), default=None)

    # --- terms ---------------------------------------------------------------------------------------------------

    def _matches(self, term: Term) -> dict[int, float]:
        """How well each passage matches the term: {index of passage: 0..1}, absent where it does not."""
        found: dict[int, float] = {}
        for word, strength in self._alike(term):
            for i in self._postings.get(word, ()):
                found[i] = max(found.get(i, 0.0), strength)
        for i in self._split_in_two(term.stem):
            found[i] = max(found.get(i, 0.0), 0.9)
        return found

    def _split_in_two(self, word: str) -> Iterator[int]:
        """The passages that write a compound as two words: "fork lift"."""
        for first in [word[:end] for end in range(3, len(word) - 2) if word[:end] in self._postings]:
            for i in self._postings[first]:
                tokens = self._passages[i].tokens
                if any(a.text == first and b.stem == word[len(first) :] for a, b in pairwise(tokens)):
                    yield i

    def _alike(self, term: Term) -> Iterator[tuple[str, float]]:
        yield term.stem, 1.0
        if not term.named:
            for synonym in _GROUPS.get(term.stem, ()):
                yield synonym, 0.85
            for word in _HYPONYMS.get(term.stem, ()):
                yield word, 0.85
            for word in _STOPPING if term.negated else ():
                yield word, 0.85
            for word in _HOMOPHONES.get(term.stem, ()):
                yield word, 0.8
        if len(term.stem) < 5 or term.stem[0] == "#":
            return
        for word in self._postings:
            if word != term.stem and word[:1] == term.stem[:1] and len(word) >= 4:
                likeness = _likeness(term.stem, word)
                if likeness:
                    yield word, likeness
            elif len(word) >= 8 and len(term.stem) >= 5 and (word.endswith(term.stem) or term.stem in word[:-3]):
                yield word, 0.7

    def _weight(self, term: Term, matches: dict[int, float], kind: str) -> float:
        if not matches:
            return term.base * self._absence(term, kind)
        num = len(self._passages)
        return term.base * (0.6 + 0.4 * math.log(1 + num / len(matches)) / math.log(1 + num))

    @staticmethod
    def _absence(term: Term, kind: str) -> float:
        """How much more a term weighs for being absent from the whole range. Where a noun is counted the figure stands
        at it, so the other words matter less."""
        if term.base < 1 or (kind in ("count", "quantity") and not term.named):
            return 1.0
        return 1.6

    # --- candidates --------------------------------------------------------------------------------------------

    def _candidates(
        self, matches: dict[str, dict[int, float]], weights: dict[str, float], question: Question
    ) -> list[int]:
        """The passages that match most themselves or in a passage at the same time."""
        if not question.terms:
            return self._rows[:MAX_CANDIDATES]
        own: dict[int, float] = defaultdict(float)
        for word, found in matches.items():
            for i, strength in found.items():
                own[i] += weights[word] * strength
        leading = sorted(own, key=lambda i: (-own[i], i))[:MAX_CANDIDATES]
        reach = dict.fromkeys(leading)
        for i in leading[: MAX_CANDIDATES // 4]:
            reach.update(dict.fromkeys(c for c, _ in self._contexts(i)))
        return list(reach)

    def _moment(self, i: int) -> list[tuple[int, float]]:
        """The passages of the same moment, with the strength of their link to passage i; the strongest first."""
        passage = self._passages[i]
        links: list[tuple[int, float]] = []
        if passage.kind == "speech":
            links.extend(self._sentences_around(i))
            links.extend((j, self._across(j, i)) for j in self._during("text", passage))
        else:
            links.extend(self._rows_around(i))
            for j in self._during("speech", passage):
                link = self._across(i, j)
                links.append((j, link))
                if _points(self._passages[j]):
                    links.extend((before, link * strength) for before, strength in self._sentences_around(j, (-1,)))
        links.sort(key=lambda link: (-link[1], link[0]))
        return [link for link in links[:MAX_CONTEXTS] if link[1] > 0]

    def _sentences_around(self, i: int, steps: Sequence[int] = (-2, -1, 1)) -> Iterator[tuple[int, float]]:
        place = bisect_left(self._speech, i)
        refers = any(token.text in PRONOUNS for token in self._passages[i].tokens[:6])
        links = {-2: 0.6 if refers else 0.0, -1: 0.85 if refers else 0.35, 1: 0.25}
        for step in steps:
            if 0 <= place + step < len(self._speech):
                other = self._speech[place + step]
                if _distance(self._passages[i], self._passages[other]) <= 2 * NEAR_NS:
                    yield other, links[step]

    def _rows_around(self, i: int) -> Iterator[tuple[int, float]]:
        row = self._passages[i]
        figures = any(token.value is not None for token in row.tokens)
        for j in self._blocks[row.block]:
            other = self._passages[j]
            labels = not any(token.value is not None for token in other.tokens)
            if other.row == row.row - 1 and labels and figures:
                yield j, 0.9
            elif other.row == 0 and labels:
                yield j, 0.8
            elif j != i and len(self._blocks[row.block]) == 2 and labels:
                yield j, 0.85
            elif j != i:
                yield j, 0.45 if abs(other.row - row.row) == 1 and labels != figures else 0.25

    def _timed(self, pool: Sequence[int]) -> tuple[Sequence[int], list[int], list[int]]:
        """A pool with its starts and the latest end so far, both rising, so that a stretch of time is found in it."""
        ends = accumulate((self._passages[i].end_ns for i in pool), max)
        return pool, [self._passages[i].start_ns for i in pool], list(ends)

    def _during(self, kind: str, passage: Passage) -> list[int]:
        """The passages of a kind that hold within a few seconds of the passage."""
        pool, starts, ends = self._pools[kind]
        begin = bisect_left(ends, passage.start_ns - NEAR_NS)
        end = bisect_right(starts, passage.end_ns + NEAR_NS)
        return [j for j in pool[begin:end] if _distance(passage, self._passages[j]) <= NEAR_NS]

    def _across(self, row: int, sentence: int) -> float:
        """How surely a row and a sentence speak of the same thing."""
        shown, said = self._passages[row], self._passages[sentence]
        link = 0.92 if _points(said) else 0.6
        if _content(shown.tokens) & _content(said.tokens):
            link = max(link, 0.85)
        if not self._cuts.same_shot(shown, said):
            link -= 0.2
        return link

    # --- scores ------------------------------------------------------------------------------------------------

    def _score(
        self,
        i: int,
        question: Question,
        matches: dict[str, dict[int, float]],
        weights: dict[str, float],
        worth: Callable[[int], float],
    ) -> Finding:
        passage = self._passages[i]
        contexts = self._contexts(i)
        reached, total = 0.0, 0.0
        used: dict[int, None] = {}
        for term in question.terms:
            found, weight = matches[term.stem], weights[term.stem]
            own = found.get(i, 0.0)
            helper, helped = max(
                ((c, link * found.get(c, 0.0)) for c, link in contexts), key=lambda pair: pair[1], default=(i, 0.0)
            )
            if term.named and (helped < 0.5 or (question.kind not in UNTYPED and worth(helper) >= 0.9)):
                helped = 0.0  # what bears the name holds a value of its own: the name is not about this passage
            if helped > own:
                used[helper] = None
            if passage.kind == "text" and i in matches.get(term.describes, ()):
                weight *= 0.4  # a row that bears the name need not say what it is the name of
            reached += weight * max(own, helped)
            total += weight
        coverage = reached / total if total else 1.0
        agreement = _agreement(passage, question, matches, i)
        if question.wants and question.wants != passage.kind:
            agreement *= 0.85
        for c, link in contexts:
            if self._passages[c].kind != passage.kind and link >= 0.6 and c not in used:
                covered = sum(weights[t] * found.get(c, 0.0) for t, found in matches.items())
                if total and covered >= 0.6 * total:
                    used[c] = None
                    break
        return Finding(passage, coverage * worth(i) * agreement, tuple(self._passages[c] for c in sorted(used)))

    def _value(self, passage: Passage, question: Question) -> float:
        asked = {word for term in question.terms for word in (term.stem, *_GROUPS.get(term.stem, ()))}
        own = {term.stem for term in question.terms}
        focus = {word for noun in question.focus for word in (noun, *_GROUPS.get(noun, ()), *_HYPONYMS.get(noun, ()))}
        reading = Reading(
            passage.tokens,
            lambda token: token.stem in (asked if question.kind == "person" else own),
            lambda token: token.stem in focus or (token.stem not in asked and _near_any(token.stem, focus)),
            passage.kind == "text",
            question,
        )
        value = max((strength for _, strength in find_values(reading)), default=0.0)
        return value * 0.75 if passage.kind == "speech" and value < 1 and _points(passage) else value


def _agreement(passage: Passage, question: Question, matches: dict[str, dict[int, float]], i: int) -> float:
    """Less than 1 where the passage has another modifier or another goal than the question."""
    agreement = 1.0
    tokens = passage.tokens
    for term in question.terms:
        own = i in matches[term.stem]
        if own and term.modifier and term.modifier in matches and i not in matches[term.modifier]:
            places = [j for j, token in enumerate(tokens) if token.stem == term.stem]
            if any(j and _is_content(tokens[j - 1]) for j in places):
                agreement *= 0.6
        if term.named and term.preposition and not own and passage.kind == "speech":
            goals = (j for j, token in enumerate(tokens) if token.text == term.preposition and j + 1 < len(tokens))
            if any(_is_content(tokens[j + 1]) for j in goals):
                agreement *= 0.6
    return agreement


def _points(passage: Passage) -> bool:
    """The speaker points at the picture: "is written on the board", "behind me"."""
    words = [token.text for token in passage.tokens]
    return any(word in POINTING_WORDS for word in words) or any(
        (a, b) in (("behind", "me"), ("beside", "me")) for a, b in pairwise(words)
    )


def _content(tokens: Iterable[Token]) -> set[str]:
    return {token.stem for token in tokens if _is_content(token) and len(token.text) > 2}


def _is_content(token: Token) -> bool:
    return token.text not in STOP_WORDS and token.text not in PREPOSITIONS and token.kind in ("word", "code")


def _near_any(word: str, words: Iterable[str]) -> bool:
    return any(_likeness(other, word) > 0 for other in words if len(other) >= 5 and word[:1] == other[:1])


def _distance(a: Passage, b: Passage) -> int:
    """Nanoseconds between two intervals, 0 where they overlap."""
    return max(0, a.start_ns - b.end_ns, b.start_ns - a.end_ns)


def _likeness(a: str, b: str) -> float:
    """0.75 for words one edit apart (two where both are long), as recognisers confuse them; else 0."""
    allowed = 2 if min(len(a), len(b)) >= 8 else 1
    return 0.75 if a != b and _within(a, b, allowed) else float(a == b)


def _within(a: str, b: str, allowed: int) -> bool:
    """Whether a becomes b by at most `allowed` insertions, deletions or substitutions."""
    if abs(len(a) - len(b)) > allowed:
        return False
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (letter != other))
        if min(row) > allowed:
            return False
    return row[-1] <= allowed
