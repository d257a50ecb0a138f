"""Evidence cut into passages: spoken sentences and rows of on-screen text, each with its interval.

Speech: utterances less than MAX_PAUSE_S apart are joined (recognisers cut at pauses, and segments cut anywhere), then
punctuated text is cut into sentences, and a run without punctuation at its longest pauses. Screen: a line read again
and again while it is visible becomes one line over the union of its intervals, told apart from a changed line by its
figures; lines visible together form a block, lines of a block at the same height a row, read from left to right.
"""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from operators.capabilities import Speech, TextLine
from operators.language.words import Token, tokenise

MAX_PAUSE_S = 0.35
MAX_SENTENCE_WORDS = 40
MAX_UNSEEN_S = 15.0  # a line that is away for longer than this has been shown twice

_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*$")
_ABBREVIATION = re.compile(r"^(?:\w|mr|mrs|ms|dr|prof|st|no|vs|etc|tel|approx|[a-z]\.[a-z])\.$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Passage:
    """The unit that can be an answer. `tokens` of a row include the headings of its columns, `text` does not.
    `block` and `row` place a row on the screen (-1 for speech)."""

    kind: str  # "speech" or "text"
    start_ns: int
    end_ns: int
    text: str
    tokens: tuple[Token, ...]
    block: int = -1
    row: int = -1


@dataclass(frozen=True, slots=True)
class _Timed:
    start_ns: int
    end_ns: int
    text: str


def spoken_sentences(utterances: Iterable[Speech]) -> list[Passage]:
    """The sentences of a transcript in order of time. O(n log n)."""
    ordered = sorted(utterances, key=lambda said: (said.start_ns, said.end_ns, said.text))
    sentences: list[Passage] = []
    run: list[_Timed] = []
    for said in ordered:
        words = _timed_words(said)
        if not words:
            continue
        if run and (words[0].start_ns - run[-1].end_ns >= MAX_PAUSE_S * 1e9 or _ends_sentence(run[-1].text)):
            sentences.extend(_sentences(run))
            run = []
        run.extend(words)
    sentences.extend(_sentences(run))
    return sentences


def _timed_words(said: Speech) -> list[_Timed]:
    """The words of an utterance with their times; where they are unknown, spread evenly over its letters."""
    pieces = said.text.split()
    if len(pieces) == len(said.words):
        return [_Timed(word.start_ns, word.end_ns, piece) for word, piece in zip(said.words, pieces, strict=True)]
    total = sum(map(len, pieces))
    span, done = said.end_ns - said.start_ns, 0
    timed: list[_Timed] = []
    for piece in pieces:
        start = said.start_ns + span * done // total
        done += len(piece)
        timed.append(_Timed(start, said.start_ns + span * done // total, piece))
    return timed


def _ends_sentence(word: str) -> bool:
    return not word[-1].isalnum() and bool(_SENTENCE_END.search(word)) and not _ABBREVIATION.match(word)


def _sentences(words: Sequence[_Timed]) -> Iterable[Passage]:
    begin = 0
    for i, word in enumerate(words):
        if i + 1 == len(words) or _ends_sentence(word.text):
            yield from _short_enough(words[begin : i + 1])
            begin = i + 1


def _short_enough(words: Sequence[_Timed]) -> Iterable[Passage]:
    """The words as one passage, or, where they are too many, halved at the longest pause in their middle."""
    if len(words) <= MAX_SENTENCE_WORDS:
        text = " ".join(word.text for word in words)
        yield Passage("speech", words[0].start_ns, max(word.end_ns for word in words), text, tokenise(text))
        return
    third = len(words) // 3
    cut = max(range(third, 2 * third + 1), key=lambda i: (words[i].start_ns - words[i - 1].end_ns, -i))
    yield from _short_enough(words[:cut])
    yield from _short_enough(words[cut:])


# --- screen text -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Line:
    """One line of text over the time it is visible."""

    key: str
    start_ns: int
    end_ns: int
    box: tuple[float, float, float, float]
    readings: Counter[str]
    figures: tuple[str, ...]

    @property
    def text(self) -> str:
        """The reading seen most often, the first of equals in alphabetical order."""
        return min(self.readings.items(), key=lambda item: (-item[1], item[0]))[0]


_CONFUSED = str.maketrans("oil|sb", "011158")  # what OCR takes for one another


def screen_rows(lines: Iterable[TextLine]) -> list[Passage]:
    """The rows of on-screen text in order of time, then from top to bottom."""
    rows: list[Passage] = []
    for number, block in enumerate(_blocks(_merged(lines))):
        table = _rows(block)
        headings = _headings(table)
        for row_number, row in enumerate(table):
            text = " ".join(line.text for line in row)
            tokens = tuple(
                token
                for line in row
                for part in ([_heading(line, headings), line.text] if row_number else [line.text])
                for token in tokenise(part)
            )
            start, end = min(line.start_ns for line in row), max(line.end_ns for line in row)
            rows.append(Passage("text", start, end, text, tokens, number, row_number))
    return rows


def _merged(lines: Iterable[TextLine]) -> list[_Line]:
    seen: list[_Line] = []
    latest: dict[str, _Line] = {}  # by key
    open_lines: list[_Line] = []
    ordered = sorted(lines, key=lambda line: (line.start_ns, line.end_ns, line.box[1], line.box[0], line.text))
    for line in ordered:
        key = "".join(filter(str.isalnum, line.text.lower())).translate(_CONFUSED)
        if not key:
            continue
        known = latest.get(key)
        if known is None or not _still_there(known, line):
            open_lines = [other for other in open_lines if _still_there(other, line)]
            known = next((other for other in open_lines if _same_line(other, line, key)), None)
        if known is None:
            known = _Line(key, line.start_ns, line.end_ns, line.box, Counter(), _figures(line.text))
            seen.append(known)
            open_lines.append(known)
        known.end_ns = max(known.end_ns, line.end_ns)
        known.readings[" ".join(line.text.split())] += 1
        latest[key] = known
    return seen


def _still_there(known: _Line, line: TextLine) -> bool:
    return line.start_ns - known.end_ns <= MAX_UNSEEN_S * 1e9


def _same_line(known: _Line, line: TextLine, key: str) -> bool:
    """At the same place, read a little differently, and not another reading of the same frame."""
    if abs(known.box[0] - line.box[0]) > 0.05 or abs(known.box[1] - line.box[1]) > 0.05:
        return False
    if line.start_ns < known.end_ns or len(key) < 5 or abs(len(key) - len(known.key)) > 2:
        return False
    if known.figures != _figures(line.text):
        return False
    return SequenceMatcher(None, known.key, key, autojunk=False).ratio() >= 0.8


def _figures(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\d+", text))


def _blocks(lines: Sequence[_Line]) -> list[list[_Line]]:
    """Lines whose intervals overlap by at least half of the longer one belong together."""
    blocks: list[list[_Line]] = []
    for line in sorted(lines, key=lambda line: (line.start_ns, line.end_ns, line.box[1], line.box[0])):
        for block in reversed(blocks[-8:]):
            first = block[0]
            overlap = min(first.end_ns, line.end_ns) - max(first.start_ns, line.start_ns)
            if 2 * overlap >= max(first.end_ns - first.start_ns, line.end_ns - line.start_ns):
                block.append(line)
                break
        else:
            blocks.append([line])
    return blocks


def _rows(block: Sequence[_Line]) -> list[list[_Line]]:
    """A block from top to bottom; two lines share a row where half of the lower one's height overlaps."""
    rows: list[list[_Line]] = []
    for line in sorted(block, key=lambda line: (line.box[1] + line.box[3] / 2, line.box[0])):
        if rows:
            _, y, _, height = rows[-1][0].box
            overlap = min(y + height, line.box[1] + line.box[3]) - max(y, line.box[1])
            if overlap > 0.5 * min(height, line.box[3]) and overlap > 0:
                rows[-1].append(line)
                continue
        rows.append([line])
    return [sorted(row, key=lambda line: line.box[0]) for row in rows]


def _headings(table: Sequence[Sequence[_Line]]) -> Sequence[_Line]:
    """The first row, where it holds several cells without figures and the rows below have figures."""
    if len(table) < 2 or len(table[0]) < 2 or any(_has_figures(cell) for cell in table[0]):
        return ()
    return table[0] if any(_has_figures(cell) for row in table[1:] for cell in row if len(row) > 1) else ()


def _has_figures(line: _Line) -> bool:
    return any(map(str.isdigit, line.text))


def _heading(cell: _Line, headings: Sequence[_Line]) -> str:
    """The heading above a cell, "" where there is none."""
    x, _, width, _ = cell.box
    over = (line for line in headings if line.box[0] < x + width and x < line.box[0] + line.box[2])
    return next((line.text for line in over), "")


# --- time ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cuts:
    """The instants at which a new camera take opens, in order."""

    times_ns: tuple[int, ...] = ()

    def same_shot(self, a: Passage, b: Passage) -> bool:
        """Some shot shows (or is heard while saying) a part of both."""
        first, last = (
            bisect_right(self.times_ns, a.start_ns),
            bisect_right(self.times_ns, max(a.start_ns, a.end_ns - 1)),
        )
        other_first = bisect_right(self.times_ns, b.start_ns)
        other_last = bisect_right(self.times_ns, max(b.start_ns, b.end_ns - 1))
        return first <= other_last and other_first <= last
