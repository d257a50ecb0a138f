"""Subtitles of what was said: cues that can be read while it is said, as SRT or WebVTT. Pure.

A cue ends with a sentence, at a pause of PAUSE_NS, and before it would hold more than MAX_CHARS characters (two lines
of 42) or last longer than MAX_NS. It is shown as long as it is said, and at least MIN_NS where the next leaves room.
Source for lengths: BBC Subtitle Guidelines (two lines, 160 to 180 words a minute); W3C, WebVTT.
"""

import textwrap
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from operators.heard import Speech
from operators.language.sentences import Timed, ends_sentence, timed_words

LINE_CHARS, MAX_LINES = 42, 2
MAX_CHARS = LINE_CHARS * MAX_LINES
MAX_NS, MIN_NS, PAUSE_NS = 7_000_000_000, 1_000_000_000, 1_000_000_000


class Cue(NamedTuple):
    """What is shown, and when, in media time."""

    start_ns: int
    end_ns: int
    text: str


def cues_of(utterances: Iterable[Speech]) -> list[Cue]:
    """In order of time, none over the next."""
    words = [
        Timed(word.start_ns, max(word.start_ns, word.end_ns), shown)
        for said in sorted(utterances, key=lambda said: (said.start_ns, said.end_ns))
        for word in timed_words(said)
        if (shown := _printable(word.text))
    ]
    words.sort(key=lambda word: word.start_ns)
    cues: list[Cue] = []
    open_: list[Timed] = []
    for word in words:
        if open_ and (_is_full(open_, word) or ends_sentence(open_[-1].text)):
            cues.append(_cue(open_))
            open_ = []
        open_.append(word)
    if open_:
        cues.append(_cue(open_))
    next_ns = [*(cue.start_ns for cue in cues), 1 << 62][1:]
    return [
        cue._replace(end_ns=min(max(cue.end_ns, cue.start_ns + MIN_NS), max(before_ns, cue.start_ns + 1)))
        for cue, before_ns in zip(cues, next_ns, strict=True)
    ]


def srt(cues: Sequence[Cue]) -> str:
    """SubRip, UTF-8, with "\\n" at the end of lines."""
    return "".join(
        f"{number}\n{_span(cue, ',')}\n{lines_of(cue.text.replace('-->', '->'))}\n\n"
        for number, cue in enumerate(cues, 1)
    )


def vtt(cues: Sequence[Cue]) -> str:
    """WebVTT."""
    return "WEBVTT\n\n" + "".join(f"{_span(cue, '.')}\n{_escaped(lines_of(cue.text))}\n\n" for cue in cues)


def _is_full(open_: Sequence[Timed], word: Timed) -> bool:
    text = " ".join(each.text for each in (*open_, word))
    is_long = (
        len(textwrap.wrap(text, LINE_CHARS)) > MAX_LINES
        or max(each.end_ns for each in (*open_, word)) - open_[0].start_ns > MAX_NS
    )
    return is_long or word.start_ns - open_[-1].end_ns >= PAUSE_NS


def _cue(words: Sequence[Timed]) -> Cue:
    return Cue(words[0].start_ns, max(word.end_ns for word in words), " ".join(word.text for word in words))


def lines_of(text: str) -> str:
    """As it is shown, in lines of LINE_CHARS."""
    return "\n".join(textwrap.wrap(text, LINE_CHARS))


def _printable(text: str) -> str:
    return "".join(char for char in text if char.isprintable())


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _span(cue: Cue, point: str) -> str:
    return f"{_clock(cue.start_ns, point)} --> {_clock(cue.end_ns, point)}"


def _clock(at_ns: int, point: str) -> str:
    milliseconds = max(0, at_ns) // 1_000_000
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{point}{milliseconds:03}"
