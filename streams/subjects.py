"""Subjects: build them, parse them, refuse what is not one.

A subject names a computation and its place in the stream. Tokens are `[A-Za-z0-9_-]`.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal, NamedTuple

import msgspec

from streams.errors import UserError

PREFIX = "penstock"
END = "end"

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,128}")
MAX_INDEX = 10**9 - 1  # of a segment: years of short ones
_KEY = re.compile(r"(0|[1-9][0-9]{0,8})(?:-(0|[1-9][0-9]{0,8}))?")


class Key(NamedTuple):
    """Which output of a stage: one segment (first == last) or a range of them, both ends included."""

    first: int
    last: int

    @staticmethod
    def of(index: int) -> "Key":
        return _new_key(Key, (index, index))

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


_new_key = tuple.__new__  # what `Key(first, last)` comes to, at half its cost: there are several for each output


class Address(msgspec.Struct, frozen=True, gc=False):
    """A parsed subject. `source` is "media" or a stage id; `key` is None for the end of a stream."""

    kind: Literal["media", "results", "dead"]
    source: str
    stream: str
    key: Key | None


@lru_cache(maxsize=4096)
def token(text: str) -> str:
    """`text` if it can stand as one token of a subject; UserError otherwise."""
    if not _TOKEN.fullmatch(text):
        raise UserError(f"{text!r} cannot be part of a subject: use 1 to 128 of A-Z a-z 0-9 _ -")
    return text


def media(stream: str, index: int) -> str:
    return f"{PREFIX}.media.{stream}.{index}"


def media_end(stream: str) -> str:
    return f"{PREFIX}.media.{stream}.{END}"


def media_of(stream: str) -> str:
    """All segments of a stream, and its end."""
    return f"{PREFIX}.media.{stream}.*"


def result(stage: str, stream: str, key: Key) -> str:
    return f"{PREFIX}.results.{stage}.{stream}.{key}"


def results_of(stage: str, stream: str) -> str:
    return f"{PREFIX}.results.{stage}.{stream}.*"


def dead(stage: str, stream: str, key: Key) -> str:
    return f"{PREFIX}.dead.{stage}.{stream}.{key}"


def dead_of(stream: str) -> str:
    return f"{PREFIX}.dead.*.{stream}.*"


def gap(cause: str, stage: str, stream: str, key: Key) -> str:
    return f"{PREFIX}.gaps.{cause}.{stage}.{stream}.{key}"


def gaps_of(stream: str) -> str:
    return f"{PREFIX}.gaps.*.*.{stream}.*"


def answers(job: str, stream: str) -> str:
    return f"{PREFIX}.answers.{job}.{stream}"


def partials(job: str, stream: str) -> str:
    return f"{PREFIX}.partials.{job}.{stream}"


def signals(worker: str) -> str:
    """What a worker says of itself; "*" for every worker."""
    return f"{PREFIX}.signals.{worker}"


def everything_of(stream: str) -> list[str]:
    """Patterns for all that is stored of a stream."""
    name = token(stream)
    kinds = ("media.{}.>", "bulk.{}.>", "results.*.{}.>", "answers.*.{}", "dead.*.{}.>", "gaps.*.*.{}.>")
    return [f"{PREFIX}.{kind.format(name)}" for kind in kinds]


def stream_in(subject: str) -> str:
    """The stream that a stored record is about, by its subject; empty where it names none."""
    match subject.split(".")[1:]:
        case ["media", stream, _] | ["results" | "dead", _, stream, _] | ["gaps", _, _, stream, _]:
            return stream
        case ["answers", _, stream] | ["bulk", stream, _, _]:
            return stream
    return ""


def event(stream: str) -> str:
    """What a stream's source is doing, as it changes."""
    return f"{PREFIX}.events.{token(stream) if stream != '*' else '*'}"


def ingest(stream: str) -> str:
    """Media bytes from any client; "*" for every stream."""
    return f"{PREFIX}.ingest.{stream}"


def parse_key(text: str) -> Key:
    """`7` or `0-16`. Raises UserError on anything else."""
    if len(text) < 19 and text.isdecimal() and text.isascii() and (text[0] != "0" or text == "0"):
        return Key.of(int(text))
    match = _KEY.fullmatch(text)
    if match is None:
        raise UserError(f"{text!r} is neither a segment number nor a range first-last")
    first = int(match[1])
    last = first if match[2] is None else int(match[2])
    if last < first or (match[2] is not None and last == first):
        raise UserError(f"{text!r} is not a range: the last segment must come after the first")
    return Key(first, last)


def parse(subject: str) -> Address:
    """What a media, results or dead-letter subject names. Raises UserError on any other subject."""
    head, _, last = subject.rpartition(".")
    kind, source, stream = _head(head)
    if kind == "media":
        return Address(kind, source, stream, None if last == END else _segment(last))
    return Address(kind, source, stream, parse_key(last))


@lru_cache(maxsize=4096)
def _head(head: str) -> tuple[Literal["media", "results", "dead"], str, str]:
    """All of a subject but its last token, which is the same for all outputs of a stage."""
    match head.split("."):
        case [prefix, "media", stream] if prefix == PREFIX:
            return "media", "media", token(stream)
        case [prefix, "results", stage, stream] if prefix == PREFIX:
            return "results", token(stage), token(stream)
        case [prefix, "dead", stage, stream] if prefix == PREFIX:
            return "dead", token(stage), token(stream)
    raise UserError(f"{head!r} is not how a subject of penstock's media, results or dead letters begins")


def keys_of(subjects: Iterable[str]) -> set[Key]:
    """The keys that subjects end in; the end of a stream has none, and what is nothing of ours is passed over."""
    found = set()
    for subject in subjects:
        try:
            key = parse(subject).key
        except UserError:
            continue
        if key is not None:
            found.add(key)
    return found


def _segment(text: str) -> Key:
    key = parse_key(text)
    if key.first != key.last:
        raise UserError(f"{text!r} is a range; media has one subject for each segment")
    return key
