"""From bytes and words that others wrote to values: every function here is total.

What comes from a wire, a bucket or a header may be anything, by a newer version, by mistake or by malice. Whatever it
is, a function here returns what was asked for or raises `Malformed`, and nothing else: not what msgspec lets through
(UnicodeDecodeError for a string, RecursionError for 100,000 levels), not what Python raises for a number of 5,000
digits. Nothing is allocated that is much larger than the bytes that came.
"""

import math
import re
import tomllib
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import msgspec

from streams.errors import Malformed

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

MAX_REASON = 200  # characters; msgspec repeats what it was given
MAX_INT = 2**63 - 1
_DIGITS = re.compile(r"[0-9]{1,19}")
_SECONDS = re.compile(r"[0-9]{1,12}(\.[0-9]{0,12})?")


class Decoder(Protocol[T_co]):
    """msgspec's decoders, of JSON and of msgpack. Built once for what is decoded often."""

    def decode(self, data: Any, /) -> T_co: ...


def decoded(decoder: Decoder[T], data: bytes | str | msgspec.Raw) -> T:
    """What the bytes say. Raises Malformed."""
    try:
        return decoder.decode(data)
    except Exception as error:
        raise Malformed(reason(error)) from error


def from_json(data: bytes | str, kind: type[T]) -> T:
    """A value of that type. Raises Malformed."""
    value: T = decoded(_json_decoder(kind), data)  # type: ignore[arg-type]
    return value


def from_toml(text: str) -> dict[str, Any]:
    """What a TOML file says. Raises Malformed."""
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise Malformed("it is nested too deeply") from error
    except Exception as error:  # tomllib's own, and what Python raises for a number of 5,000 digits
        raise Malformed(reason(error).partition("; use sys.")[0]) from error


def converted(value: Any, kind: Any) -> Any:
    """What was decoded already, as a value of that type. Raises Malformed."""
    try:
        return msgspec.convert(value, kind)
    except Exception as error:
        raise Malformed(reason(error)) from error


def whole_number(text: str, most: int = MAX_INT) -> int:
    """A number from 0 to `most`, in decimal digits. Raises Malformed."""
    if len(text) < 19 and text.isdecimal() and text.isascii() and most == MAX_INT:  # nearly always
        return int(text)
    if not _DIGITS.fullmatch(text) or int(text) > most:
        raise Malformed(f"{shown(text)} is no whole number from 0 to {most}")
    return int(text)


def seconds(text: str) -> float:
    """A finite number of seconds, such as `2.5` or `2.5s`. Raises Malformed."""
    number = text.removesuffix("s")
    if not _SECONDS.fullmatch(number) or not math.isfinite(float(number)):
        raise Malformed(f"{shown(text)} are no seconds: give a number such as 2.5")
    return float(number)


def shown(text: str, max_length: int = 40) -> str:
    """What somebody wrote, as it can stand in a message: quoted, on one line, short."""
    quoted = repr(text if len(text) <= max_length else f"{text[:max_length]}...")
    most = 3 * max_length  # a character may be ten when quoted
    return quoted if len(quoted) <= most else f"{quoted[:most]}...{quoted[-1]}"


def printable(text: str, max_length: int = 128) -> str:
    """What somebody wrote, as it can stand in a table: on one line, short."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text[:max_length])


def reason(error: BaseException) -> str:
    """Why it could not be decoded, on one line."""
    return " ".join(str(error).split())[:MAX_REASON] or type(error).__name__


@lru_cache(maxsize=256)
def _json_decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)
