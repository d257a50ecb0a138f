"""What a question asks for: the kind of answer expected, its focus, and the terms evidence must speak of.

The kind comes from an ordered table of patterns over the lower-case question; the terms are its content words less
those the kind already implies ("cost" in a question for money). `base` is a term's weight before rarity.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal

from operators.language.lexicon import (
    ANY_TEXT_WORDS,
    AUXILIARIES,
    LABELLED,
    LIGHT_WORDS,
    PICTURE_WORDS,
    PREPOSITIONS,
    SPEECH_WORDS,
    STOP_WORDS,
    VIDEO_WORDS,
    WEEKDAYS,
    word_set,
)
from operators.language.words import Token, stem, tokenise

Kind = Literal[
    "person", "time", "duration", "frequency", "money", "count", "quantity", "length", "weight", "age", "heat", "speed",
    "place", "colour", "reason", "label", "contact", "text", "yes_no", "subject", "anything",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Term:
    """A content word of the question."""

    stem: str
    base: float
    named: bool = False  # a name or a figure: it may not be replaced by something similar
    modifier: str = ""  # the stem of the content word right before it, "" where there is none
    preposition: str = ""  # the preposition that leads to it
    negated: bool = False
    describes: str = ""  # the stem of the name it goes with: "train" in "the train to York", "the York train"


@dataclass(frozen=True, slots=True)
class Question:
    """A parsed question. `focus`: stems of the noun that is counted, coloured or labelled. `verb`: for "who" questions
    the stem of what was done. `grain`: for times "clock", "day", "month", "year" or ""; "long" where
    a length may be one of time."""

    kind: Kind
    terms: tuple[Term, ...]
    focus: tuple[str, ...] = ()
    verb: str = ""
    grain: str = ""
    wants: Literal["speech", "text", ""] = ""  # where the question says the answer is to be found


_MONEY_WORDS = "cost|costs|price|prices|priced|pay|charge|charged|fee|fare|expensive|spend|earn|worth"
_TIME_WORDS = "time|day|date|month|year|hour|weekday|season|o'clock"
_WHICH = r"(?:what|which)"
_PATTERNS: tuple[tuple[str, Kind], ...] = (
    (rf"\b{_WHICH} (?:\w+ )?(?:does|do|did|is|was|can i read|can you read|stands|it says?).*\b(?:sign|board|screen"
     r"|poster|banner|notice|label|plate|panel)\b.*\b(?:say|says|read|show|shows|display)\b", "text"),
    (rf"\b{_WHICH} is (?:written|printed|shown|displayed|to be read)\b", "text"),
    (rf"\bhow (?:much|expensive)\b.*\b(?:{_MONEY_WORDS})\b|\b{_WHICH}\b.*\b(?:{_MONEY_WORDS})\b|\bhow expensive\b"
     r"|\bhow much (?:is|are|was|were)\b|\bhow much money\b", "money"),
    (r"\bhow many\b", "count"),
    (r"\bhow much\b.*\bweigh", "weight"),
    (r"\bhow much\b", "quantity"),
    (r"\bhow (?:long|wide|high|tall|deep|far|thick|broad|big|large)\b", "length"),
    (r"\bhow heavy\b|\bwhat\b.*\bweigh", "weight"),
    (r"\bhow old\b|\bwhat age\b", "age"),
    (r"\bhow (?:hot|cold|warm)\b|\bwhat (?:is the )?temperature\b", "heat"),
    (r"\bhow (?:fast|quick|quickly)\b|\b(?:what|which) (?:is the )?(?:speed|top speed)\b|\bspeed limit\b", "speed"),
    (r"\bhow often\b|\bhow frequently\b", "frequency"),
    (rf"\bwhen\b|\b{_WHICH} (?:\w+ )?(?:{_TIME_WORDS})\b", "time"),
    (r"\bwhere\b", "place"),
    (rf"\bwhy\b|\bhow come\b|\b{_WHICH} reason\b|\bwhat is the reason\b|\bwhat for\b", "reason"),
    (rf"\b{_WHICH} (?:\w+ )?(?:number|address|email|website|password|code)\b|\bwhat(?: is|'s) the (?:\w+ )?"
     r"(?:phone|telephone|number|address|email|website|password|code)\b", "contact"),
    (r"\bwho\b|\bwhose\b|\bwhom\b", "person"),
    (rf"\b{_WHICH}\b.*\b(?:called|named)\b|\b{_WHICH}(?: is|'s| was) (?:the |his |her )?(?:\w+ )?name\b", "person"),
    (rf"\b{_WHICH} (?:colou?rs?|shade)\b|\bwhat is the colou?r\b", "colour"),
    (rf"\b{_WHICH} (?!is\b|are\b|was\b|were\b|do\b|does\b|did\b|has\b|have\b|had\b|can\b|could\b|will\b|would\b"
     r"|should\b|must\b|may\b|shall\b|might\b|kind\b|sort\b|type\b|happens?\b|happened\b|else\b)\w+", "label"),
    (r"^\W*(?:is|are|was|were|do|does|did|can|could|will|would|must|should|has|have|had|may)\b", "yes_no"),
)  # fmt: skip
_IMPLIED = {
    "money": f"{_MONEY_WORDS}|much|money|buy",
    "time": f"{_TIME_WORDS}",
    "duration": "long|time|last|take",
    "length": "long|wide|high|tall|deep|far|thick|broad|big|large|length|height|width|depth",
    "weight": "heavy|weigh|weight",
    "age": "old|age",
    "heat": "hot|cold|warm|temperature|degrees",
    "speed": "fast|quick|quickly|speed|limit|go|drive|maximum|top",
    "frequency": "often|frequently",
    "colour": "colour|color|colours|colors|shade|painted",
    "reason": "reason",
    "person": "name|called|named|person",
    "quantity": "much",
    "count": "many",
    "contact": "number|address|call|phone|dial|ring|reach|contact",
    "text": "say|says|read|written|show|shows|display",
}  # fmt: skip
_IMPLIED_STEMS = {kind: frozenset(map(stem, words.split("|"))) for kind, words in _IMPLIED.items()}


def parse_question(text: str) -> Question:
    """Read a question. Never fails; without any content word the terms are empty."""
    low = " ".join(text.lower().replace("’", "'").split())
    tokens = tokenise(text)
    kind: Kind = next((kind for pattern, kind in _PATTERNS if re.search(pattern, low)), "anything")
    if kind == "length" and re.search(r"\bhow long\b", low) and not re.search(r"\bhow long (?:is|are|was|were)\b", low):
        kind = "duration"
    position = next((i for i, token in enumerate(tokens) if token.text in _ASKING), 0)
    grain = _grain(low) if kind == "time" else "long" if re.search(r"\bhow long\b", low) else ""
    if kind == "anything" and position + 1 < len(tokens) and tokens[position + 1].text not in AUXILIARIES:
        kind = "subject"
    focus = _focus(kind, tokens, position)
    terms = tuple(_terms(kind, tokens, focus, low))
    verb = ""
    if kind == "person" and re.search(r"\bwho\b", low):
        rest = [token for token in tokens[position + 1 :] if token.text not in AUXILIARIES]
        first_noun = next((i for i, token in enumerate(tokens) if i > position and token.text in AUXILIARIES), None)
        if rest and (first_noun is None or tokens[-1].stem != rest[0].stem) and rest[0].text not in STOP_WORDS:
            verb = rest[0].stem
    wants = _wanted_modality(low)
    if terms and all(term.stem in _ANY_TEXT_STEMS for term in terms) and (wants == "text" or set(focus) & _TEXT_STEMS):
        return Question("text", (), wants="text")
    return Question(kind, terms, focus, verb, grain, wants)


_ANY_TEXT_STEMS = {stem(word) for word in ANY_TEXT_WORDS} | ANY_TEXT_WORDS
_TEXT_STEMS = {stem(word) for word in ("text", "texts", "words", "writing")}
_ASKING = word_set("who whose whom what which when where why how")


def _grain(low: str) -> str:
    match = re.search(r"\b(?:what|which) (?:\w+ )?(time|hour|o'clock|day|weekday|date|month|year)\b", low)
    word = match.group(1) if match else ""
    return {"time": "clock", "hour": "clock", "o'clock": "clock", "weekday": "day", "date": "day"}.get(word, word)


def _focus(kind: Kind, tokens: tuple[Token, ...], position: int) -> tuple[str, ...]:
    """The noun behind "how many" or "which": the content words up to the next auxiliary, three at most."""
    if kind == "colour":
        return tuple(
            token.stem
            for token in tokens
            if token.text not in STOP_WORDS and token.stem not in _IMPLIED_STEMS["colour"]
        )
    if kind not in ("count", "label", "quantity"):
        return ()
    begin = position + (2 if kind in ("count", "quantity") else 1)
    behind = tokens[begin : begin + 5]
    end = next((i for i, token in enumerate(behind) if token.text in AUXILIARIES | _BREAKS), len(behind))
    if end == len(behind) or behind[min(end, len(behind) - 1)].text in _BREAKS:
        end = min(end, 1)
    nouns = [token.stem for token in behind[:end] if token.text not in STOP_WORDS]
    return tuple(nouns[:3])


_BREAKS = word_set("in of on at for to from with i you we they he she it before after")


def _terms(kind: Kind, tokens: tuple[Token, ...], focus: tuple[str, ...], low: str) -> list[Term]:
    implied = _IMPLIED_STEMS.get(kind, frozenset())
    terms: list[Term] = []
    seen: set[str] = set()
    last, preposition = "", ""
    for i, token in enumerate(tokens):
        if token.text in PREPOSITIONS:
            preposition, last = token.text, ""
            continue
        if token.text in STOP_WORDS or (token.kind == "word" and len(token.text) < 2):
            last = "" if token.text not in ("s",) else last
            preposition = preposition if token.text in ("the", "a", "an", "my", "your", "his", "her") else ""
            continue
        if token.stem in implied:
            last = ""
            continue
        named = token.kind != "word" or (token.capital and i > 0) or token.text in WEEKDAYS
        base = 1.3 if named else 1.0
        if token.text in LIGHT_WORDS or stem(token.text) in _LIGHT_STEMS:
            base = 0.35
        if token.text in VIDEO_WORDS:
            base = 0.15
        if kind == "count" and token.stem in focus:
            base = 1.0
        if token.text in PICTURE_WORDS | SPEECH_WORDS and _wanted_modality(low):
            base = 0.2
        if kind == "label" and token.stem in focus:
            base = 0.6 if token.text in LABELLED or token.stem in _LABELLED_STEMS else 0.3
        if token.stem not in seen:
            negated = i > 0 and (tokens[i - 1].text == "not" or tokens[i - 1].text.endswith("n't"))
            names = [t.stem for t in terms[-1:] if t.named and last == t.stem]
            terms.append(
                Term(
                    token.stem,
                    base,
                    named,
                    last if base >= 1.0 else "",
                    preposition,
                    negated,
                    names[0] if names else "",
                )
            )
            if named and preposition and len(terms) > 1 and tokens[i - 2].stem == terms[-2].stem:
                terms[-2] = replace(terms[-2], describes=token.stem)
            seen.add(token.stem)
        last, preposition = (token.stem if token.kind == "word" else ""), ""
    return terms


_LABELLED_STEMS = frozenset(stem(word) for word in LABELLED)
_LIGHT_STEMS = frozenset(stem(word) for word in LIGHT_WORDS)


def _wanted_modality(low: str) -> Literal["speech", "text", ""]:
    if re.search(r"\b(?:on|the|a) (?:\w+ )?(?:sign|board|screen|poster|banner|label|panel|plate|slide|card)\b", low):
        return "text"
    if re.search(r"\b(?:written|printed|shown|displayed)\b", low):
        return "text"
    if re.search(r"\b(?:does|did|do|speaker|voice|is) .*\b(?:say|said|mention|announce|announced)\b", low):
        return "speech"
    return ""
