"""Words as the ranking compares them: tokens with stems, and numbers written out turned into figures.

Speech recognisers write "seven forty five", screens "7:45"; both become one token with the stem `#7:45`. Stems come
from a suffix stripper: irregular forms, then plural, -ing, -ed, -ly, final e and doubled consonants.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from operators.language.lexicon import CURRENCIES, IRREGULAR, SMALL_CURRENCIES


class Token(NamedTuple):
    """One word or figure. `kind` is "word", "code" (B12, an address), "number", "ordinal", "clock", "money" or "pair"
    (two figures said in a row, "twelve fifty": a time, a price or a year). `value` is the figure; of a clock the hour
    and minute as hour + minute / 100; None for words."""

    text: str
    stem: str
    kind: str = "word"
    value: float | None = None
    capital: bool = False


_RAW = re.compile(
    r"[\w.+-]+@[\w.-]*\w|\d+(?:[.,:]\d+)*|[^\W\d_]+\d\w*|[^\W\d_]+(?:['’][^\W\d_]+)*|[£$€%°]",
)
_SMALL = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen"""
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_ORDINALS = "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"
_NUMBERS = {word: value for value, word in enumerate(_SMALL.split())} | {
    word: 10 * value for value, word in enumerate(_TENS.split(), 2)
}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 1000000}
_ORDINAL_VALUES = {word: value for value, word in enumerate(_ORDINALS.split()) if value}
_NUMERIC = frozenset(_NUMBERS) | frozenset(_SCALES)
_FIGURES = _NUMERIC | CURRENCIES | {"half", "quarter"}


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """The stem of a lower-case word: equal for forms of one word in nearly all cases, not itself a word."""
    word = word.replace("’", "'").split("'")[0] or word
    base = IRREGULAR.get(word, word)
    if len(base) <= 3:
        return base
    if base.endswith("ies") and len(base) > 4:
        base = base[:-3] + "y"
    elif base.endswith(("sses", "xes", "ches", "shes", "zes", "oes")):
        base = base[:-2]
    elif base.endswith("s") and not base.endswith(("ss", "us", "is")):
        base = base[:-1]
    for suffix in ("ing", "ed", "ly"):
        root = base[: -len(suffix)]
        if base.endswith(suffix) and len(root) >= 3 and any(letter in "aeiouy" for letter in root):
            base = root
            break
    if base.endswith("e") and len(base) > 3:
        base = base[:-1]
    if len(base) > 3 and base[-1] == base[-2]:
        base = base[:-1]
    return base[:-1] + "i" if base.endswith("y") and len(base) > 3 else base


def tokenise(text: str) -> tuple[Token, ...]:
    """The tokens of a text, figures folded. Linear in its length; never fails."""
    raw = [match.group() for match in _RAW.finditer(text)]
    low = [piece.lower() for piece in raw]
    tokens: list[Token] = []
    i = 0
    while i < len(raw):
        word = low[i]
        if word in _FIGURES or word[0].isdecimal():
            i = _read_figure(low, i, tokens)
        elif word in _ORDINAL_VALUES:
            value = _ORDINAL_VALUES[word]
            tokens.append(Token(word, f"#{value}.", "ordinal", value))
            i += 1
        else:
            tokens.append(_word(raw[i]))
            i += 1
    return tuple(tokens)


@lru_cache(maxsize=65536)
def _word(raw: str) -> Token:
    word = raw.lower()
    code = any(letter.isdigit() or letter == "@" for letter in word)
    return Token(word, stem(word), "code" if code else "word", None, raw[0].isupper())


def _read_figure(low: Sequence[str], i: int, tokens: list[Token]) -> int:
    """Append the figure that begins at word i and return the index behind it."""
    if low[i] in CURRENCIES:
        if low[i] in "£$€" and i + 1 < len(low) and low[i + 1][0].isdecimal():
            amount = _digits(low[i + 1])
            if amount.value is not None:
                tokens.append(_money(amount.value))
                return i + 2
        tokens.append(Token(low[i], stem(low[i])))
        return i + 1
    clock = _spoken_clock(low, i)
    if clock is not None:
        tokens.append(_clock(*clock[:2]))
        return clock[2]
    if low[i] in ("half", "quarter"):
        tokens.append(Token(low[i], stem(low[i])))
        return i + 1
    figures, after = ([_digits(low[i])], i + 1) if low[i][0].isdecimal() else _number_words(low, i)
    last = figures[-1]
    tokens.extend(figures[:-1])
    tokens.append(last)
    if last.value is None:
        return after
    return _read_unit(low, after, tokens)


def _read_unit(low: Sequence[str], i: int, tokens: list[Token]) -> int:
    """Let what stands behind the last figure say what it is: a.m., o'clock, pounds (fifty), th."""
    figure, value = tokens[-1], tokens[-1].value or 0.0
    word = low[i] if i < len(low) else ""
    following = low[i + 1] if i + 1 < len(low) else ""
    half = word if word in ("am", "pm") else word + following if word + following in ("am", "pm") else ""
    if half and 1 <= value < 13:
        hour, minute = int(value), round(value % 1 * 100)
        tokens[-1] = _clock(hour % 12 + 12 if half == "pm" else hour % 12, minute)
        return i + (1 if word == half else 2)
    if word in ("o'clock", "oclock", "o’clock") and value < 25:
        tokens[-1] = _clock(int(value), 0)
        return i + 1
    if word in ("st", "nd", "rd", "th") and figure.kind == "number":
        tokens[-1] = Token(figure.text + word, f"#{int(value)}.", "ordinal", value)
        return i + 1
    if word in CURRENCIES and word not in "£$" and figure.kind in ("number", "pair"):
        if word in SMALL_CURRENCIES:
            tokens[-1] = _money(value / 100)
            return i + 1
        cents, after = _number_words(low, i + 1) if following in _NUMERIC else ([], i + 1)
        if len(cents) == 1 and (cents[0].value or 100) < 100:
            tokens[-1] = _money(value + (cents[0].value or 0) / 100)
            return after
        tokens[-1] = _money(value)
        return i + 1
    return i


_DIGITS = re.compile(r"\d+(?:[.,:]\d+)*")


def _digits(text: str) -> Token:
    if len(text) > 15 or not _DIGITS.fullmatch(text):
        return Token(text, text, "code")
    parts = re.split(r"[.,:]", text)
    if ":" in text:
        if len(parts) >= 2 and int(parts[0]) < 25 and int(parts[1]) < 60:
            return _clock(int(parts[0]), int(parts[1]))
        return Token(text, text, "code")
    if len(parts) > 1 and all(len(part) == 3 for part in parts[1:]):
        return _number(int("".join(parts)))
    if len(parts) == 2:
        return Token(text, f"#{float(f'{parts[0]}.{parts[1]}'):g}", "number", float(f"{parts[0]}.{parts[1]}"))
    return Token(text, text, "code") if len(parts) > 2 else _number(int(text))


def _number_words(low: Sequence[str], i: int) -> tuple[list[Token], int]:
    """Read number words from i on: the figures they say, and the index behind them."""
    values: list[int] = []
    room = part = 0  # the last value still takes a smaller number, below `room`; `part` is what it took last
    oh = False  # a spoken zero: "seven oh five"
    while i < len(low):
        word, following = low[i], low[i + 1] if i + 1 < len(low) else ""
        if word in _SCALES and values:
            scale = _SCALES[word]
            values[-1] += part * (scale - 1) if scale == 100 else values[-1] * (scale - 1)
            room = scale
        elif word in _NUMBERS or word in _SCALES:
            value = _NUMBERS.get(word, _SCALES.get(word, 0))
            if values and 0 < value < room:
                values[-1] += value
            else:
                values.append(value)
            part, room = value, 10 if value >= 20 else _SCALES.get(word, 0)
        elif word in ("oh", "o") and values and following in _NUMBERS:
            oh, room = True, 0
        elif not (word == "and" and room >= 100 and following in _NUMBERS):
            break
        i += 1
    if len(values) == 1 and i + 1 < len(low) and low[i] == "point" and low[i + 1] in _NUMBERS:
        decimal = values[0] + _NUMBERS[low[i + 1]] / 10
        return [Token(f"{decimal:g}", f"#{decimal:g}", "number", decimal)], i + 2
    if len(values) == 2 and values[0] < 100 and (oh or 10 <= values[1] < 100):
        return [_pair(*values)], i
    if len(values) > 2 and all(value < 10 for value in values):
        return [_number(int("".join(map(str, values[:15]))))], i
    return [_number(value) for value in values], i


def _spoken_clock(low: Sequence[str], i: int) -> tuple[int, int, int] | None:
    """ "half past seven", "ten to nine", "a quarter to eight": (hour, minute, index behind it)."""
    minute = {"half": 30, "quarter": 15, "five": 5, "ten": 10, "twenty": 20}.get(low[i], 0)
    after = i + 1
    if low[i] == "twenty" and low[after : after + 1] == ["five"]:
        minute, after = 25, after + 1
    if after < len(low) and low[after] in ("minute", "minutes"):
        after += 1
    words = low[after : after + 2]
    if not minute or len(words) < 2 or words[0] not in ("past", "to") or (i and low[i - 1] in ("from", "between")):
        return None
    hour = _NUMBERS.get(words[1], 0)
    if not 1 <= hour <= 12:
        return None
    return (hour, minute, after + 2) if words[0] == "past" else ((hour - 1) or 12, 60 - minute, after + 2)


def _number(value: int) -> Token:
    return Token(str(value), f"#{value}", "number", value)


def _pair(first: int, second: int) -> Token:
    if second >= 10 and (first in (19, 20) or (11 <= first < 19 and second >= 60)):
        return _number(first * 100 + second)
    return Token(f"{first}:{second:02}", f"#{first}:{second:02}", "pair", first + second / 100)


def _clock(hour: int, minute: int) -> Token:
    return Token(f"{hour}:{minute:02}", f"#{hour}:{minute:02}", "clock", hour + minute / 100)


def _money(amount: float) -> Token:
    return Token(f"{amount:.2f}", f"#{amount:g}", "money", amount)
