"""How much of what is asked about a recording a summary still tells.

Each scene of bench/scenes is summarised to a fifth of its sentences. A question that has an answer is told where one of
its answers stands in the summary; the questions were written apart from what summarises, and nothing was chosen on
them. The peers are as many of the first sentences, of the longest, and of sentences drawn at random (mean of 50 draws,
seeded); the limit is the whole transcript. As this counts facts that somebody asked for, central sentences need not
win: what is said once is often asked about.

    summaries.py [--scenes unseen|seen] [--model NAME]

`--model` has a language model of this machine's endpoints write the summary instead (docs/models.md).
"""

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

from answers import Question, questions
from measure import keep

from engine.spec.operator import Device, Settings
from operators.heard import Transcript
from operators.language.asking import ModelKnobs
from operators.language.extracting import Extracting
from operators.language.retrieval import units_of
from operators.language.writing import Writing
from penstock.testing import loaded, run

SHARE = 5  # sentences for each of a summary
MAX_POINTS = 20
NUM_DRAWS = 50


def told(asked: Sequence[Question], text: str) -> int:
    return sum(each.is_right(text) for each in asked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--scenes", choices=("unseen", "seen"), default="unseen")
    parser.add_argument("--model", default="")
    options = parser.parse_args()
    scenes: dict[str, list[Question]] = {}
    for each in questions(options.scenes):
        if each.answers:
            scenes.setdefault(each.scene, []).append(each)
    if options.model:
        operators: dict[str, Any] = {options.model: loaded(Writing, ModelKnobs(model=options.model), Device())}
    else:
        operators = {"central": loaded(Extracting, Settings(), Device())}
    found = dict.fromkeys([*operators, "first", "longest", "random", "everything"], 0.0)
    took_s: dict[str, list[float]] = {name: [] for name in operators}
    num_sentences, num = 0, sum(map(len, scenes.values()))
    chance = random.Random(1)
    for asked in scenes.values():
        sentences = [unit.text for unit in units_of(asked[0].speech)]
        num_points = min(MAX_POINTS, max(1, len(sentences) // SHARE))
        num_sentences += len(sentences)
        for name, operator in operators.items():
            began_s = time.perf_counter()
            evidence = {"evidence": [[Transcript(observations=asked[0].speech)]]}
            (summary,) = run(operator, evidence, params={"max_points": num_points})
            took_s[name].append(time.perf_counter() - began_s)
            found[name] += told(asked, " ".join(point.text for point in summary.observations))
        longest = sorted(sentences, key=lambda sentence: -len(sentence.split()))[:num_points]
        found["longest"] += told(asked, " ".join(longest))
        found["first"] += told(asked, " ".join(sentences[:num_points]))
        draws = [told(asked, " ".join(chance.sample(sentences, num_points))) for _ in range(NUM_DRAWS)]
        found["random"] += statistics.fmean(draws)
        found["everything"] += told(asked, " ".join(sentences))
    keep(
        "summaries" + ("-model" if options.model else ""),
        {
            "scenes": options.scenes,
            "num_scenes": len(scenes),
            "num_sentences": num_sentences,
            "questions": num,
            "told": {name: round(each / num, 3) for name, each in found.items()},
            "ms_a_summary": {name: round(1e3 * statistics.median(some), 1) for name, some in took_s.items()},
        },
    )


if __name__ == "__main__":
    main()
