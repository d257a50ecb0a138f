"""On-screen text as a reader sees it: rows, each over the time it is shown.

A line read again and again while it is visible becomes one line over the union of its intervals, told apart from a
changed line by its figures; lines visible together form a block, lines of a block at the same height a row, read from
left to right. Where the first row of a block names columns, a row below is read with the names of its own.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import NamedTuple

from operators.seen import TextLine

MAX_UNSEEN_S = 15.0  # a line that is away for longer than this has been shown twice


class Row(NamedTuple):
    """A row, and which block it is of. `meaning` has the headings of its columns, `text` does not."""

    start_ns: int
    end_ns: int
    text: str
    meaning: str
    block: int


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


def screen_rows(lines: Iterable[TextLine]) -> list[Row]:
    """In order of time, then from top to bottom."""
    rows: list[Row] = []
    for number, block in enumerate(_blocks(_merged(lines))):
        table = _rows(block)
        headings = _headings(table)
        for row_number, row in enumerate(table):
            over = headings if row_number else ()
            read = [part for line in row for part in (_heading(line, over), line.text)]
            rows.append(
                Row(
                    start_ns=min(line.start_ns for line in row),
                    end_ns=max(line.end_ns for line in row),
                    text=" ".join(line.text for line in row),
                    meaning=" ".join(filter(None, read)),
                    block=number,
                )
            )
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
