"""Retrieval: which passages of the evidence are near a question, best first. Pure, given vectors.

A passage of speech is MAX_UNITS units behind one another: what answers often stands beside what is asked about. A unit
is a sentence, or, of text without punctuation, what a recogniser or a caption gave in one piece, joined until it has
MIN_WORDS. A passage of the screen is a row. How near it is, by meaning where there are vectors, and else by words:

    by meaning:  cosine(vector of the question, vector of the passage) + OF_WORDS * coverage
    coverage  =  sum of idf_t over the question's words t that the passage has / sum of idf_t over all of them
    by words:    BM25 over what it is of a passage that has each word without end, so from 0 to 1

with idf_t = log(1 + (N - df_t + 0.5) / (df_t + 0.5)), t in df_t of N passages, and BM25's usual K1 and B. So by meaning
first, and by the very words among passages of like meaning. Passages that share a unit say the same: the best stands
for all. How sure one can be that the best one answers is a logistic function of its score and of its lead over the
next, that nothing answers is one of its score; over what was heard or read badly nobody can be surer than it was heard.
MAX_UNITS, OF_WORDS and the weights were chosen on bench/scenes/seen, where each question was asked of another scene as
well (`bench/answers.py --fit`).
Source: Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond".
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from engine.spec.operator import Inputs
from operators.heard import Captions, Drafts, Speech, Transcript
from operators.language.screen import screen_rows
from operators.language.sentences import ends_sentence, timed_words
from operators.language.tallies import tallies
from operators.lately import Lately
from operators.seen import Event, Objects, Scenes, ScreenText, TextLine, TrackedObject, Tracks
from streams.records import Evidence, Observation

MAX_UNITS = 3
MIN_WORDS = 8
MAX_WORDS = 40  # of a unit
MAX_QUOTE_WORDS = 60  # of a passage, but for a unit that is longer
OF_WORDS = 0.3
K1, B = 1.2, 0.75
NUM_KNOWN = 8  # passages of so many ranges
MAX_PAUSE_NS = 1_500_000_000  # a passage does not reach over a longer silence

Vectors = Callable[[list[str]], NDArray[np.float32]]
Scores = NDArray[np.float64]


class Observed(NamedTuple):
    """What was said and read; what else was found that says something in words, with its kind; and what follows from
    what was seen (`tallies`)."""

    speech: list[Speech]
    lines: list[TextLine]
    told: list[tuple[str, Observation]]
    counted: list[tuple[str, Observation]]


@dataclass(frozen=True, slots=True)
class Piece:
    """A passage that may answer. `units` are those of its kind that it covers, by number; `heard` is how surely it was
    heard or read, 0..1."""

    kind: str  # of evidence
    start_ns: int
    end_ns: int
    text: str
    units: range
    heard: float = 1.0
    asked_as: str = ""  # what it is looked for by, where that is more than its text
    block: int = -1  # of the screen: rows that are shown together
    parts: tuple["Piece", ...] = ()  # its units, where they are several

    @property
    def meaning(self) -> str:
        return self.asked_as or self.text

    def shares(self, other: "Piece") -> bool:
        return self.kind == other.kind and self.units.start < other.units.stop and other.units.start < self.units.stop


@dataclass(frozen=True, slots=True)
class Found:
    """A passage and how near it is."""

    piece: Piece
    score: float


# --- passages ----------------------------------------------------------------------------------------------------


def observed(item: Inputs) -> Observed:
    """What all sources of evidence found, whatever their order; gaps are passed over."""
    found = Observed([], [], [], [])
    tracks: list[TrackedObject] = []
    events: list[Event] = []
    for entry in (entry for source in item.ports["evidence"] for entry in source):
        match entry.value:
            case Transcript(observations=utterances):
                found.speech.extend(utterances)
            case ScreenText(observations=seen):
                found.lines.extend(seen)
            case Tracks(observations=followed):
                tracks.extend(followed)
            case Objects() | Scenes() | Captions() | Drafts() | None:  # no words, or speech's once more
                pass
            case Evidence(kind=kind, observations=others):
                found.told.extend((kind, each) for each in others if each.text.strip())
                events.extend(each for each in others if isinstance(each, Event))
    found.counted.extend(tallies(tracks, events))
    return found


def pieces_of(item: Inputs) -> list[Piece]:
    """Every passage of all sources."""
    speech, lines, told, counted = observed(item)
    return spoken_pieces(speech) + screen_pieces(lines) + told_pieces([*told, *counted])


def spoken_pieces(utterances: Iterable[Speech]) -> list[Piece]:
    """Every passage of a transcript, in order of time."""
    units = units_of(utterances)
    pieces: list[Piece] = []
    reached = 0
    for first in range(len(units)):
        last = first
        while last + 1 < min(first + MAX_UNITS, len(units)) and _goes_on(units[first : last + 2]):
            last += 1
        if last >= reached:  # else the passage before says all of it
            reached = last + 1
            pieces.append(_passage(units[first : last + 1]))
    return pieces


def _goes_on(units: Sequence[Piece]) -> bool:
    """Whether the last of these belongs to the passage of those before it."""
    before, last = units[-2:]
    is_short = sum(len(unit.text.split()) for unit in units) <= MAX_QUOTE_WORDS
    return is_short and last.start_ns - before.end_ns <= MAX_PAUSE_NS


def _passage(units: Sequence[Piece]) -> Piece:
    words = [len(unit.text.split()) for unit in units]
    return Piece(
        "speech",
        units[0].start_ns,
        max(unit.end_ns for unit in units),
        " ".join(unit.text for unit in units),
        range(units[0].units.start, units[-1].units.stop),
        sum(num * unit.heard for num, unit in zip(words, units, strict=True)) / sum(words),
        parts=tuple(units) if len(units) > 1 else (),
    )


def without_what_leads_up(question: str, piece: Piece, vectors: Vectors | None) -> Piece:
    """The end of a passage that is nearest to the question. What answers stands in the sentence that is near or behind
    it, so nothing is cut off there: of 46 right passages of bench/scenes/seen 46 stay right, cut at either end 37."""
    if not piece.parts:
        return piece
    return nearest(question, [_passage(piece.parts[at:]) for at in range(len(piece.parts))], vectors, 1)[0].piece


def units_of(utterances: Iterable[Speech]) -> list[Piece]:
    """What is said in one piece: sentences, or of text without punctuation what was given in one."""
    units: list[Piece] = []
    open_: list[tuple[str, int, int, float]] = []

    def close() -> None:
        if open_:
            text = " ".join(word for word, *_ in open_)
            heard = sum(each[3] for each in open_) / len(open_)
            number = len(units)
            units.append(Piece("speech", open_[0][1], max(e[2] for e in open_), text, range(number, number + 1), heard))
            open_.clear()

    ordered = sorted(utterances, key=lambda said: (said.start_ns, said.end_ns, said.text))
    is_written = any(ends_sentence(word) for said in ordered for word in said.text.split())
    for said in ordered:
        if open_ and (said.start_ns - open_[-1][2] > MAX_PAUSE_NS or (is_written and said.text[:1].isupper())):
            close()  # a recogniser that writes sentences may end one without a stop
        for word in timed_words(said):
            open_.append((word.text, word.start_ns, word.end_ns, said.confidence))
            if ends_sentence(word.text) or len(open_) >= MAX_WORDS:
                close()
        if len(open_) >= MIN_WORDS and not any(map(ends_sentence, said.text.split())):
            close()
    close()
    return units


def screen_pieces(lines: Sequence[TextLine]) -> list[Piece]:
    """The rows of on-screen text; each is looked for with the headings of its columns."""
    heard = sum(line.confidence for line in lines) / len(lines) if lines else 1.0
    return [
        Piece("text", row.start_ns, row.end_ns, row.text, range(number, number + 1), heard, row.meaning, row.block)
        for number, row in enumerate(screen_rows(lines))
    ]


def told_pieces(told: Iterable[tuple[str, Observation]]) -> list[Piece]:
    """What else was found, such as an event or what a tool gave back: each by itself."""
    ordered = sorted(told, key=lambda each: (each[0], each[1].start_ns, each[1].end_ns, each[1].text))
    return [
        Piece(kind, each.start_ns, each.end_ns, " ".join(each.text.split()), range(at, at + 1), each.confidence)
        for at, (kind, each) in enumerate(ordered)
    ]


# --- how near ----------------------------------------------------------------------------------------------------


class Words:
    """The words of texts, and which texts have each."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._num = len(texts)
        self._lengths = np.zeros(len(texts))
        postings: dict[str, tuple[list[int], list[int]]] = {}
        for at, text in enumerate(texts):
            counted = Counter(words_of(text))
            self._lengths[at] = counted.total()
            for word, num in counted.items():
                places, nums = postings.setdefault(word, ([], []))
                places.append(at)
                nums.append(num)
        self._postings = {
            word: (np.asarray(places), np.asarray(nums, np.float64)) for word, (places, nums) in postings.items()
        }
        self._usual = float(self._lengths.mean()) if len(texts) else 1.0

    def coverage(self, question: str) -> Scores:
        """For each text, the share of the question's words that it has, by how rare each is."""
        rarity = self._rarity(question)
        found = np.zeros(self._num)
        for word, rare in rarity.items():
            if word in self._postings:
                found[self._postings[word][0]] += rare
        total = math.fsum(rarity.values())
        return found / total if total else found

    def bm25(self, question: str) -> Scores:
        """For each text, of the most that there can be."""
        rarity = self._rarity(question)
        found = np.zeros(self._num)
        for word, rare in rarity.items():
            if word in self._postings:
                places, nums = self._postings[word]
                lengths = self._lengths[places] / (self._usual or 1.0)
                found[places] += rare * nums / (nums + K1 * (1 - B + B * lengths))
        total = math.fsum(rarity.values())
        return found / total if total else found

    def _rarity(self, question: str) -> dict[str, float]:
        """The question's words, and how rare each is among the texts."""
        words = sorted(set(words_of(question)))
        held = {word: len(self._postings[word][0]) if word in self._postings else 0 for word in words}
        return {word: math.log(1 + (self._num - held[word] + 0.5) / (held[word] + 0.5)) for word in words}


class Passages(Sequence[Piece]):
    """Passages, with what is the same for every question that is put to them."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._pieces = tuple(pieces)
        self._vectors: NDArray[np.float32] | None = None

    @overload
    def __getitem__(self, at: int) -> Piece: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Piece]: ...
    def __getitem__(self, at: int | slice) -> Piece | Sequence[Piece]:
        return self._pieces[at]

    def __len__(self) -> int:
        return len(self._pieces)

    @cached_property
    def words(self) -> Words:
        return Words([piece.meaning for piece in self._pieces])

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        return np.asarray([piece.start_ns for piece in self._pieces], np.int64)

    def vectors(self, vectors: Vectors) -> NDArray[np.float32]:
        """Of what each means. There is one model of meaning."""
        if self._vectors is None:
            self._vectors = vectors([piece.meaning for piece in self._pieces])
        return self._vectors


class _Same:
    """Equal to what was made of the very same values, which it keeps."""

    def __init__(self, values: tuple[Any, ...]) -> None:
        self._values = values
        self._hash = hash(tuple(map(id, values)))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Same) or len(self._values) != len(other._values):
            return False
        return all(one is another for one, another in zip(self._values, other._values, strict=True))


_known: Lately[Passages] = Lately(NUM_KNOWN)


def passages_of(item: Inputs) -> Passages:
    """Every passage of all sources. Those of what was looked at lately are known: questions come by the dozen, to the
    same evidence."""
    values = tuple(entry.value for source in item.ports["evidence"] for entry in source)
    return _known.get(_Same(values), lambda: Passages(pieces_of(item)))


def nearest(question: str, pieces: Sequence[Piece], vectors: Vectors | None, num: int = 3) -> list[Found]:
    """The `num` passages that are nearest to a question, of which no two share a unit; the earlier of equals first. By
    words where there are no vectors."""
    if not pieces:
        return []
    passages = pieces if isinstance(pieces, Passages) else Passages(pieces)
    if vectors is None:
        scores = passages.words.bm25(question)
    else:
        scores = passages.vectors(vectors) @ vectors([question])[0] + OF_WORDS * passages.words.coverage(question)
    scores = np.round(scores, 5)
    found: list[Found] = []
    for at in np.lexsort((passages.starts, -scores)):  # which leaves equals as they are
        piece = passages[int(at)]
        if not any(piece.shares(each.piece) for each in found):
            found.append(Found(piece, float(scores[at])))
            if len(found) == num:
                break
    return found


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


# --- how sure ----------------------------------------------------------------------------------------------------


def sureness(found: Sequence[Found], weights: tuple[float, float, float]) -> float:
    """That the first of these answers: by a constant, its score and its lead."""
    if not found:
        return 0.0
    constant, of_score, of_lead = weights
    return _logistic(constant + of_score * found[0].score + of_lead * lead(found)) * min(1.0, found[0].piece.heard)


def emptiness(found: Sequence[Found], weights: tuple[float, float]) -> float:
    """That nothing answers: by a constant and the score of the first of these."""
    return _logistic(weights[0] + weights[1] * found[0].score) if found else 1.0


def lead(found: Sequence[Found]) -> float:
    """Of the first over the next."""
    return found[0].score - (found[1].score if len(found) > 1 else 0.0)


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-max(-60.0, min(60.0, x))))
