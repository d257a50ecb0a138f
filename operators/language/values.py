"""Where a passage holds a value of the kind a question expects: times, prices, counts, colours, places, persons.

Each detector looks at the tokens around a candidate and yields (position, strength): 1 where the form is explicit
("12:50", "because"), less where it needs good will ("twelve fifty" as a price). What the question itself says is never
a value.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from operators.language import lexicon as lex
from operators.language.questions import Question
from operators.language.words import Token, stem

Found = Iterator[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Reading:
    """A passage as the detectors read it. `known(token)`: the question speaks of it. `focused(token)`: it names what
    is counted, coloured or labelled. `drawn`: the passage was read from the picture."""

    tokens: Sequence[Token]
    known: Callable[[Token], bool]
    focused: Callable[[Token], bool]
    drawn: bool
    question: Question

    def text(self, i: int) -> str:
        """The lower-case text of token i, "" beyond the ends."""
        return self.tokens[i].text if 0 <= i < len(self.tokens) else ""

    def novel(self, i: int) -> bool:
        """Token i says something that the question does not: a content word or a figure."""
        return (
            0 <= i < len(self.tokens)
            and (self.tokens[i].text not in lex.STOP_WORDS or self.tokens[i].value is not None)
            and not self.known(self.tokens[i])
        )


def find_values(reading: Reading) -> list[tuple[int, float]]:
    """All values of the expected kind, in order of position."""
    return list(_DETECTORS[reading.question.kind](reading))


def _time(r: Reading) -> Found:
    asked = r.question.grain
    grains = {"": {"clock", "day", "month", "year", "span"}, "day": {"day", "month"}}.get(asked, {asked})
    for i, token in enumerate(r.tokens):
        if not r.known(token):
            strengths = (strength for grain, strength in _times_at(r, i, token) if grain in grains)
            yield from ((i, strength) for strength in strengths)


def _times_at(r: Reading, i: int, token: Token) -> Iterator[tuple[str, float]]:
    """What token i is as a time: (grain, strength)."""
    if token.kind == "clock" or token.text in ("noon", "midnight", "midday"):
        yield "clock", 1.0
    if token.kind == "pair" and _is_clock(token):
        yield "clock", 0.9
    if token.kind == "number" and _hour_like(r, i, token):
        yield "clock", 0.75
    if token.text in lex.WEEKDAYS or token.text in ("today", "tomorrow", "yesterday"):
        yield "day", 0.9
    if _is_month(r, i, token):
        yield "month", 0.9
    if _is_year(r, i, token):
        yield "year", 0.9
    if token.text in lex.DAY_PARTS | lex.SEASONS:
        yield "day", 0.75
    if (
        token.kind == "ordinal"
        and r.question.grain == "day"
        and (_is_month_name(r.text(i + 1)) or r.text(i - 1) == "the")
    ):
        yield "day", 0.7
    if token.value is not None and r.text(i - 1) in ("in", "after", "within") and _unit(r, i + 1, lex.TIME_UNITS):
        yield "span", 0.7


def _is_clock(token: Token) -> bool:
    value = token.value or 0.0
    return value < 25 and round(value % 1 * 100) < 60


def _hour_like(r: Reading, i: int, token: Token) -> bool:
    value = token.value or 0.0
    if value > 24:
        return False
    if r.drawn and value % 1 and _is_clock(token) and r.text(i + 1) not in lex.CURRENCIES:
        return "." in token.text and len(token.text.split(".")[-1]) == 2 and r.question.grain == "clock"
    if value % 1:
        return False
    words = {r.text(i - 1), r.text(i + 1)}
    other = r.tokens[i + 1] if i + 1 < len(r.tokens) else None
    if r.drawn and other is not None and other.kind == "number" and (other.value or 99) <= 24:
        return True
    nothing_follows = not r.novel(i + 1)
    return nothing_follows and bool(words & {"at", "until", "till", "from", "by", "before", "after"})


def _is_month_name(text: str) -> bool:
    return text in lex.MONTHS and text not in ("may", "march")


def _is_month(r: Reading, i: int, token: Token) -> bool:
    if _is_month_name(token.text):
        return True
    numbered = any(0 <= j < len(r.tokens) and r.tokens[j].value is not None for j in (i - 1, i + 1))
    return token.text in lex.MONTHS and (numbered or r.text(i - 1) in ("in", "of"))


def _is_year(r: Reading, i: int, token: Token) -> bool:
    value = token.value or 0.0
    if token.kind == "pair":
        return r.question.grain == "year" and 11 <= value < 21
    return token.kind == "number" and 1000 <= value <= 2100 and value % 1 == 0 and not r.novel(i + 1)


def _unit(r: Reading, i: int, units: frozenset[str]) -> bool:
    return 0 <= i < len(r.tokens) and (r.tokens[i].text in units or r.tokens[i].stem in _stems(units))


@cache
def _stems(units: frozenset[str]) -> frozenset[str]:
    return frozenset(stem(unit) for unit in units)


def _figure_with(units: frozenset[str]) -> Callable[[Reading], Found]:
    """A figure before one of the units (an adjective may stand between)."""

    def detect(r: Reading) -> Found:
        for i, token in enumerate(r.tokens):
            figure = token.value is not None or token.text in ("a", "an", "half")
            if figure and not r.known(token) and (_unit(r, i + 1, units) or (token.value and _unit(r, i + 2, units))):
                yield i, 1.0 if token.value is not None else 0.6

    return detect


def _length(r: Reading) -> Found:
    yield from _figure_with(lex.LENGTH_UNITS)(r)
    if r.question.grain == "long":
        for position, strength in _figure_with(lex.TIME_UNITS)(r):
            yield position, strength * 0.95


def _age(r: Reading) -> Found:
    for i, token in enumerate(r.tokens):
        if token.value is not None and not r.known(token) and _unit(r, i + 1, frozenset({"year", "month"})):
            yield i, 1.0 if r.text(i + 2) in ("old", "of") else 0.7


def _frequency(r: Reading) -> Found:
    for i, token in enumerate(r.tokens):
        if token.text in ("every", "each", "per", "once", "twice", "daily", "weekly", "monthly", "yearly", "hourly"):
            near = (_unit(r, j, lex.TIME_UNITS) or r.text(j) in lex.WEEKDAYS for j in range(i + 1, i + 4))
            yield i, 1.0 if token.text.endswith("ly") or token.text == "twice" or any(near) else 0.3
        elif token.value is not None and r.text(i + 1) == "times":
            yield i, 0.9


def _money(r: Reading) -> Found:
    for i, token in enumerate(r.tokens):
        if r.known(token) or token.value is None:
            continue
        if token.kind == "money":
            yield i, 1.0
        elif token.kind == "number" and token.value % 1 and len(token.text.split(".")[-1].split(",")[-1]) == 2:
            yield i, 0.9
        elif token.kind == "pair" and not r.drawn and r.text(i - 1) not in ("at", "until", "from", "till", "by"):
            yield i, 0.75
        elif token.kind == "number" and r.text(i - 1) in ("costs", "cost", "pay", "price"):
            yield i, 0.8


def _count(r: Reading) -> Found:
    for i, token in enumerate(r.tokens):
        value = 12.0 if token.text == "dozen" else token.value
        if value is None or r.known(token) or token.kind not in ("number", "word"):
            continue
        if any(r.focused(r.tokens[j]) for j in range(i + 1, min(i + 4, len(r.tokens))) if _only_words(r, i, j)):
            yield i, 1.0
        elif r.drawn and (len(r.tokens) == 1 or any(r.focused(r.tokens[j]) for j in range(i))):
            yield i, 0.9


def _only_words(r: Reading, i: int, j: int) -> bool:
    between = r.tokens[i + 1 : j]
    return all(token.value is None and (token.text not in lex.STOP_WORDS or token.text == "of") for token in between)


def _quantity(r: Reading) -> Found:
    units = lex.WEIGHT_UNITS | lex.VOLUME_UNITS | lex.LENGTH_UNITS | lex.CURRENCIES | {"%", "percent", "piece", "slice"}
    for i, token in enumerate(r.tokens):
        if token.value is None or r.known(token):
            continue
        if _unit(r, i + 1, units):
            yield i, 1.0
        elif r.text(i + 1) == "of" or any(map(r.focused, r.tokens[i + 1 : i + 3])):
            yield i, 0.8


def _speed(r: Reading) -> Found:
    for i, token in enumerate(r.tokens):
        if token.value is not None and not r.known(token) and _unit(r, i + 1, lex.SPEED_UNITS):
            yield i, 1.0


def _colour(r: Reading) -> Found:
    for i, token in enumerate(r.tokens):
        if token.text not in lex.COLOURS or r.known(token):
            continue
        nouns = [j for j in range(i + 1, min(i + 4, len(r.tokens))) if r.tokens[j].text not in lex.COLOURS | {"and"}]
        if nouns and (r.focused(r.tokens[nouns[0]]) or (len(nouns) > 1 and r.focused(r.tokens[nouns[1]]))):
            adjacent = r.focused(r.tokens[nouns[0]])
            if adjacent or r.text(nouns[0]) not in lex.STOP_WORDS:
                yield i, 1.0 if adjacent else 0.8
                continue
        described = (j for j in range(max(0, i - 5), i) if r.focused(r.tokens[j]))
        ends = i + 1 == len(r.tokens) or r.text(i + 1) in lex.STOP_WORDS
        if ends and any(set(_texts(r, j + 1, i)) & {"is", "are", "was", "were", "in", "painted"} for j in described):
            yield i, 0.95


def _texts(r: Reading, begin: int, end: int) -> list[str]:
    return [token.text for token in r.tokens[max(0, begin) : end]]


def _place(r: Reading) -> Found:
    for i, token in enumerate(r.tokens):
        if token.text in lex.PREPOSITIONS | {"on", "front", "next", "upstairs", "downstairs", "outside", "inside"}:
            j = i + 1
            while r.text(j) in (
                "the",
                "a",
                "an",
                "of",
                "to",
                "our",
                "my",
                "his",
                "her",
                "your",
                "this",
                "that",
                "side",
            ):
                j += 1
            asked = j + 1 < len(r.tokens) and r.tokens[j + 1].kind == "word" and r.known(r.tokens[j + 1])
            timelike = asked or r.text(j) in lex.WEEKDAYS | lex.MONTHS | lex.DAY_PARTS | lex.SEASONS
            if timelike or not r.novel(j) or (r.tokens[j].value is not None and r.tokens[j].kind != "ordinal"):
                continue
            if token.text in ("by", "past", "within", "through", "into", "of"):
                yield i, 0.5
            else:
                yield i, 0.8 if token.text in ("to", "from", "along") else 1.0
        elif token.text in lex.PLACE_NOUNS and (r.drawn or r.tokens[min(i + 1, len(r.tokens) - 1)].value is not None):
            yield i, 0.9 if not r.known(token) or r.novel(i + 1) else 0.0
        elif token.kind == "code" and "@" in token.text:
            yield i, 0.9


def _reason(r: Reading) -> Found:
    for i, token in enumerate(r.tokens):
        following = r.text(i + 1)
        if token.text == "because" or (token.text, following) in (("due", "to"), ("owing", "to"), ("so", "that")):
            yield i, 1.0
        elif token.text in ("reason", "otherwise") or (token.text, following) == ("in", "order"):
            yield i, 0.9
        elif _unit(r, i, lex.CAUSING) and (
            r.novel(i - 1) or (r.text(i - 1) in ("has", "have", "had") and r.novel(i - 2))
        ):
            yield i, 0.8
        elif token.text in ("since", "therefore") and r.novel(i + 1) | r.novel(i + 2):
            yield i, 0.7


def _person(r: Reading) -> Found:
    shouting = all(token.capital for token in r.tokens if token.kind == "word")
    figures = any(token.value is not None for token in r.tokens)
    for i, token in enumerate(r.tokens):
        if token.kind != "word" or not r.novel(i):
            continue
        before = r.text(i - 1)
        introduced = before in lex.TITLES | {"named", "called", "by"} or _texts(r, i - 2, i) == ["name", "is"]
        written = token.capital and not _is_calendar(token)
        if introduced or (before in ("the", "a") and r.text(i - 2) == "by"):
            yield i, 1.0
        elif token.text in lex.ROLES | lex.TITLES or (written and i and not shouting):
            yield i, 0.9
        elif written and r.drawn and not figures:
            yield i, 0.85 if len(r.tokens) in (2, 3) and all(map(r.novel, range(len(r.tokens)))) else 0.7
        elif i + 1 < len(r.tokens) and _acts(r, i):
            yield i, 0.85


def _is_calendar(token: Token) -> bool:
    return token.text in lex.WEEKDAYS | lex.MONTHS


def _acts(r: Reading, i: int) -> bool:
    """Token i is the word right before the verb that was asked for: its subject, for all a lower-case text tells."""
    verb = r.question.verb
    return bool(verb) and any(
        r.tokens[j].stem == verb and all(text in lex.STOP_WORDS for text in _texts(r, i + 1, j))
        for j in range(i + 1, min(i + 3, len(r.tokens)))
    )


def _label(r: Reading) -> Found:
    labelled = any(noun in _stems(lex.LABELLED) for noun in r.question.focus)
    seen = False
    for i, token in enumerate(r.tokens):
        if not r.focused(token):
            continue
        seen = True
        after = r.tokens[i + 1] if i + 1 < len(r.tokens) else None
        if after and not r.known(after) and (after.value is not None or after.kind == "code" or len(after.text) == 1):
            yield i + 1, 1.0
        elif not labelled and (r.novel(i - 1) or (r.novel(i - 2) and r.text(i - 1) in ("and", "or"))):
            yield i - 1, 0.85
        elif not labelled and (r.novel(i + 1) or r.novel(i + 2)):
            yield i + 1, 0.8
    if not seen and not labelled:
        known = [i for i, token in enumerate(r.tokens) if r.known(token)]
        yield from ((i, 0.88 if i + 1 in known else 0.75) for i in range(len(r.tokens)) if r.novel(i))


def _contact(r: Reading) -> Found:
    for i, token in enumerate(r.tokens):
        if r.known(token):
            continue
        if token.kind == "code":
            yield i, 1.0
        elif token.value is not None and token.kind == "number":
            yield i, 0.9 if r.novel(i) and (token.value >= 100 or r.drawn) else 0.6
        elif r.drawn and not token.value:
            yield i, 0.4


def _anything(r: Reading) -> Found:
    yield from ((i, 1.0) for i in range(len(r.tokens)) if r.novel(i))


def _everything(r: Reading) -> Found:
    yield from ((i, 1.0) for i in range(min(1, len(r.tokens))))


_DETECTORS: dict[str, Callable[[Reading], Found]] = {
    "person": _person,
    "time": _time,
    "duration": _figure_with(lex.TIME_UNITS),
    "frequency": _frequency,
    "money": _money,
    "count": _count,
    "quantity": _quantity,
    "length": _length,
    "weight": _figure_with(lex.WEIGHT_UNITS),
    "age": _age,
    "heat": _figure_with(lex.HEAT_UNITS),
    "speed": _speed,
    "place": _place,
    "colour": _colour,
    "reason": _reason,
    "label": _label,
    "contact": _contact,
    "text": _everything,
    "yes_no": _everything,
    "subject": _anything,
    "anything": _anything,
}
