"""Lets through of evidence what is asked for: by words, by how sure it is, and each thing once.

It is what stands between a cheap stage and the gate (`when`) of a dear one: of all that was detected, a car; of all
events, each of a kind once in ten minutes. Words are compared as they are written but for capitals, whole, anywhere in
the text. What is the same is what says the same with its numbers left out: "person 3 enters the yard" is "person 4
enters the yard" again.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import ClassVar

from engine.spec.operator import Fold, Inputs, Operator, Rung, Scope, Settings
from operators.capabilities import FILTER_EVIDENCE, FilterParams, Selection
from streams.records import Observation

MAX_TOLD = 1000  # things that are remembered, the latest of them
LATE_S = 60.0  # by which a later segment's observations may begin before an earlier one's end

_NUMBER = re.compile(r"\d+")
_WORD = re.compile(r"\w+")


class FilterEvidence(Operator):
    """What of evidence is asked for."""

    capability = FILTER_EVIDENCE
    name = "words"
    scope: ClassVar[Scope] = Fold()
    runs_in = "loop"
    max_batch = 64

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return (Rung("words", 1.0, Settings()),)  # it follows from what is asked

    def process(self, batch: Sequence[Inputs]) -> Sequence[Selection]:
        return [_selected(item) for item in batch]


def _selected(item: Inputs) -> Selection:
    found: list[Observation] = []
    for (entry,) in item.ports["evidence"]:
        found += getattr(entry.value, "observations", ())
    return selected(found, item.params, item.previous)


def selected(found: Iterable[Observation], params: FilterParams, before: Selection | None) -> Selection:
    """What is let through of a segment, given what was before."""
    told = dict(before.told) if before is not None else {}
    kept: list[Observation] = []
    for each in sorted(found, key=lambda each: (each.start_ns, each.end_ns, each.text)):
        if each.confidence < params.min_confidence or not _says(each.text, params):
            continue
        what = hashlib.blake2b(_NUMBER.sub("#", each.text).encode(), digest_size=12).hexdigest()
        last_ns = told.pop(what, None)
        told[what] = each.end_ns if last_ns is None else max(last_ns, each.end_ns)
        if not params.once_in_s or last_ns is None or each.start_ns - last_ns >= params.once_in_s * 1e9:
            kept.append(
                Observation(start_ns=each.start_ns, end_ns=each.end_ns, text=each.text, confidence=each.confidence)
            )
    since_ns = max(told.values(), default=0) - round((params.once_in_s + LATE_S) * 1e9)
    recent = ((last_ns, what) for what, last_ns in told.items() if last_ns > since_ns)
    latest = sorted(recent)[-MAX_TOLD:] if params.once_in_s else []
    return Selection(observations=tuple(kept), told=tuple((what, last_ns) for last_ns, what in latest))


def _says(text: str, params: FilterParams) -> bool:
    said = f" {_folded(text)} "
    if any(f" {_folded(word)} " in said for word in params.has_not):
        return False
    return not params.has or any(f" {_folded(word)} " in said for word in params.has)


def _folded(text: str) -> str:
    return " ".join(_WORD.findall(text.casefold()))
