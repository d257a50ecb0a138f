"""How well questions are answered by quoting, on scenes that were written before what answers them.

bench/scenes has ten transcripts of other genres than our examples, half of them as a recogniser writes, each with
questions it answers and questions it does not. `seen` is for choosing settings, `unseen` for measuring only. A quote
is right where one of the question's own answers stands in it. The peer is BM25 over the same passages, which needs no
weights and is a rung as well.

    right: answered with a right quote, of the questions that have an answer
    refused: of those that have none
    calibration error: mean distance of confidence from being right, over ten equal ranges of confidence, weighted

    answers.py [--scenes seen|unseen] [--fit] [--wrong] [--model NAME]

`--model` puts the questions to a language model of this machine's endpoints instead (docs/models.md), which reads the
passages: its answer is right where one of the question's own answers stands in it, and what fails is counted by name.
`--fit` prints the weights of confidence that suit these scenes; `--wrong` what was quoted instead, for people.
"""

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from measure import ROOT, at_least, at_most, keep, say

from engine.spec.operator import Device
from operators.capabilities import NOT_IN_THE_VIDEO
from operators.heard import Speech, Transcript
from operators.language import retrieval
from operators.language.asking import ModelKnobs
from operators.language.quoting import SCALES, By, QuoteKnobs, Quoting
from operators.language.reading import Reading
from operators.language.retrieval import Found, Piece, spoken_pieces
from penstock.testing import loaded, run
from streams.errors import Permanent, Transient

SEGMENT_S = 5.0
NUM_SHOWN = 3


class Question(NamedTuple):
    scene: str
    style: str
    ask: str
    answers: tuple[str, ...]
    speech: tuple[Speech, ...]

    def is_right(self, quote: str) -> bool:
        folded = " ".join(quote.lower().split())
        return any(" ".join(answer.lower().split()) in folded for answer in self.answers)


def questions(folder: str) -> list[Question]:
    found: list[Question] = []
    for path in sorted((ROOT / "bench" / "scenes" / folder).glob("*.json")):
        scene = json.loads(path.read_text())
        speech = tuple(
            Speech(start_ns=round(each["start_s"] * 1e9), end_ns=round(each["end_s"] * 1e9), text=each["text"])
            for each in scene["segments"]
        )
        found += [
            Question(scene["name"], scene["style"], each["ask"], tuple(each["answers"]), speech)
            for each in scene["questions"]
        ]
    return found


Search = Callable[[str, Sequence[Piece]], list[Found]]


def ranked(asked: Sequence[Question], search: Search) -> dict[str, Any]:
    """How often a right quote is first, and among three, before any is refused."""
    places = []
    for each in asked:
        if each.answers:
            found = search(each.ask, spoken_pieces(each.speech))[:NUM_SHOWN]
            places.append(next((at for at, one in enumerate(found) if each.is_right(one.piece.text)), NUM_SHOWN))
    return {
        "num": len(places),
        "first": round(sum(place == 0 for place in places) / len(places), 3),
        "among_three": round(sum(place < NUM_SHOWN for place in places) / len(places), 3),
    }


def replied(asked: Sequence[Question], operator: Any, show: bool) -> dict[str, Any]:
    """What the operator replies, refusals and all."""
    right, refused, wrongly_refused, sure, took_s = 0, 0, 0, list[tuple[float, bool]](), list[float]()
    failed: Counter[str] = Counter()
    for each in asked:
        segments: dict[int, list[Speech]] = {}
        for said in each.speech:
            segments.setdefault(int(said.start_ns / 1e9 / SEGMENT_S), []).append(said)
        evidence = [Transcript(observations=tuple(segments.get(at, ()))) for at in range(max(segments) + 1)]
        began_s = time.perf_counter()
        try:
            (reply,) = run(operator, {"evidence": [evidence]}, params={"question": each.ask})
        except (Permanent, Transient) as error:  # of a language model
            failed[str(error).partition(":")[0]] += 1
            if show:
                say(f"{each.scene}: {each.ask!r} -> {error}")
            continue
        took_s.append(time.perf_counter() - began_s)
        is_refused = reply.answer == NOT_IN_THE_VIDEO
        is_right = not each.answers if is_refused else each.is_right(reply.answer)
        right += bool(each.answers) and is_right
        refused += not each.answers and is_refused
        wrongly_refused += bool(each.answers) and is_refused
        sure.append((reply.confidence, is_right))
        if show and not is_right:
            say(f"{each.scene}: {each.ask!r} -> {reply.answer!r} ({reply.confidence}), of {each.answers}")
    answerable = sum(bool(each.answers) for each in asked)
    shares = {"right": right, "refused_though_answerable": wrongly_refused} if answerable else {}
    return {
        **{name: round(num / answerable, 3) for name, num in shares.items()},
        "refused": round(refused / (len(asked) - answerable), 3),
        **({"failed": dict(failed)} if failed else {}),
        "calibration_error": round(calibration_error(sure), 3),
        "ms_a_question": round(1e3 * statistics.median(took_s), 1) if took_s else None,
    }


def calibration_error(sure: Sequence[tuple[float, bool]]) -> float:
    """Source: Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599."""
    ranges: dict[int, list[tuple[float, bool]]] = {}
    for confidence, is_right in sure:
        ranges.setdefault(min(9, int(confidence * 10)), []).append((confidence, is_right))
    return sum(
        abs(statistics.fmean(c for c, _ in some) - statistics.fmean(r for _, r in some)) * len(some) / len(sure)
        for some in ranges.values()
    )


def elsewhere(asked: Sequence[Question]) -> list[Question]:
    """The same questions asked of the scene behind theirs, which answers none of them."""
    scenes = {each.scene: each.speech for each in asked}
    names = sorted(scenes)
    behind = dict(zip(names, [*names[1:], names[0]], strict=True))
    return [each._replace(scene=behind[each.scene], speech=scenes[behind[each.scene]], answers=()) for each in asked]


def fitted(asked: Sequence[Question], search: Search) -> tuple[list[float], list[float]]:
    """The weights of being right, by score and lead, and of there being no answer, by score; each question asked of
    its scene and of another."""
    rows, is_right, is_none = [], [], []
    for each in [*asked, *elsewhere(asked)]:
        found = search(each.ask, spoken_pieces(each.speech))
        rows.append([1.0, found[0].score, retrieval.lead(found)])
        is_right.append(each.is_right(found[0].piece.text))
        is_none.append(not each.answers)
    sure, none = regressed(np.array(rows), is_right), regressed(np.array(rows)[:, :2], is_none)
    return sure if sure[2] > 0 else [*regressed(np.array(rows)[:, :2], is_right), 0.0], none  # a lead never harms


def regressed(x: Any, y: Sequence[bool]) -> list[float]:
    """Logistic regression by Newton's steps, with a little ridge."""
    weights = np.zeros(x.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ weights))
        hessian = (x * (p * (1 - p))[:, None]).T @ x + 1e-3 * np.eye(len(weights))
        weights += np.linalg.solve(hessian, x.T @ (np.array(y, float) - p) - 1e-3 * weights)
    return [round(float(weight), 2) for weight in weights]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", choices=("seen", "unseen"), default="unseen")
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--wrong", action="store_true")
    parser.add_argument("--model")
    options = parser.parse_args()
    asked = questions(options.scenes)
    if options.model:
        reader = loaded(Reading, ModelKnobs(model=options.model), Device())
        replies = replied(asked, reader, options.wrong)
        keep(f"answers-{options.scenes}-model", {"scenes": options.scenes, "model": options.model, "replies": replies})
        return
    kinds: tuple[By, ...] = ("meaning", "words")
    operators = {by: loaded(Quoting, QuoteKnobs(by=by), Device()) for by in kinds}
    styles = sorted({each.style for each in asked})
    figures: dict[str, Any] = {"scenes": options.scenes, "num": len(asked)}
    for by, operator in operators.items():
        assert isinstance(operator, Quoting)
        if options.fit:
            say(f"by {by}, fitted to {options.scenes}: {fitted(asked, operator.found)}; in use: {SCALES[by]}")
        figures[by] = {
            "threshold": SCALES[by].threshold,
            **ranked(asked, operator.found),
            **{style: ranked([each for each in asked if each.style == style], operator.found) for style in styles},
            "replies": replied(asked, operator, options.wrong and by == "meaning"),
            "of_another_scene": replied(elsewhere(asked), operator, False),
        }
        say(f"by {by}: {figures[by]}")
    both = replied([*asked, *elsewhere(asked)], operators["meaning"], False)
    replies = figures["meaning"]["replies"]
    targets = {
        "first": at_least(figures["meaning"]["first"], 0.70),
        "among_three": at_least(figures["meaning"]["among_three"], 0.88),
        "right": at_least(replies["right"], 0.55),
        "refused": at_least(replies["refused"], 0.75),
        "calibration_error": at_most(replies["calibration_error"], 0.10),
        "calibration_error_with_another_scene": at_most(both["calibration_error"], 0.10),
    }
    keep(f"answers-{options.scenes}", figures | {"targets": targets})


if __name__ == "__main__":
    main()
