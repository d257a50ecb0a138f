"""How soon words are shown as they are said, and how many of what is shown are others later, on recordings that nobody
here made (those of speech.py).

A recording comes in segments as it would live. A word is said when it ends, by the same model where it need not hurry;
it is shown with the first draft that has it, which is there when its segment has ended and the guess and the draft are
computed. To that come the milliseconds that the engine adds (live.py). What is revised is what a draft showed and the
next does not, up to where they are the same:

    revised = sum over drafts n of (words shown by n - those at its beginning that n + 1 shows too) / words in the end

(normalized erasure; source: Arivazhagan et al. 2020, "Re-translation versus Streaming for Simultaneous Translation").

    drafts.py [--sizes tiny.en base] [--segments 1 0.5] [--cities two_cities.wav]

What is shown, and when (HALF_HEARD_NS, PADDING_S), was chosen on `cities`.
"""

import statistics
import sys
import time
import wave
from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from measure import at_least, at_most, keep, say
from speech import CITIES, asked_for, in_a_row, reference

from operators.heard import Drafts
from operators.speech.drafting import drafted as settled_with
from operators.speech.guessing import Guessing
from operators.speech.whisper import Whisper
from penstock.demo import num_wrong_words, words
from penstock.testing import inputs_of, loaded, run, segments_of

WITHIN_S = 1.5
SILENCE_S = 2.0
EARLY_S = 0.3  # by which two models may differ on when a word ends
REVISED = 0.1
SECOND_NS = 1_000_000_000


def said_when(size: str, path: Path) -> list[tuple[str, float]]:
    """The words of a recording, each with when it ends, as they are transcribed where nobody has to hurry."""
    outputs = run(Whisper, {"media": segments_of(path, 10.0)}, knobs={"size": size})
    timed = [word for output in outputs for speech in output.observations for word in speech.words]
    return [(plain, word.end_ns / SECOND_NS) for word in timed for plain in words(word.text)[:1]]


def drafted(size: str, path: Path, segment_s: float) -> list[tuple[float, float, list[str]]]:
    """Of each draft when it is there (media time), what it took to compute, and all that is shown then."""
    guessing = loaded(Guessing, knobs={"size": size, "beam_size": 1})
    before, settled = Drafts(), list[str]()
    found = []
    for item in inputs_of(guessing, {"media": segments_of(path, segment_s)}):
        began_s = time.perf_counter()
        (guess,) = guessing.process([item])  # type: ignore[list-item]
        before = settled_with(before, guess)  # type: ignore[arg-type]
        took_s = time.perf_counter() - began_s
        shown = list[str]()
        for each in before.observations:
            (settled if each.is_settled else shown).extend(words(each.text))
        found.append((guess.until_ns / SECOND_NS, took_s, [*settled, *shown]))  # type: ignore[attr-defined]
    return found


def going_on(path: Path) -> Path:
    """With silence behind it, as a stream goes on when somebody has said something."""
    with wave.open(str(path), "rb") as one:
        how, frames = one.getparams(), one.readframes(one.getnframes())
    with wave.open(str(path), "wb") as longer:
        longer.setparams(how)
        longer.writeframes(frames + bytes(int(SILENCE_S * how.framerate) * how.sampwidth * how.nchannels))
    return path


def delays_s(said: Sequence[tuple[str, float]], drafts: Sequence[tuple[float, float, list[str]]]) -> list[float]:
    """From the end of each word to the first draft that has it; words that none has are left out."""
    first: dict[int, float] = {}
    for until_s, took_s, shown in drafts:
        heard = [word for word, end_s in said if end_s <= until_s + EARLY_S]
        matcher = SequenceMatcher(None, heard, shown, autojunk=False)
        for at, _, num in matcher.get_matching_blocks():
            for index in range(at, at + num):
                first.setdefault(index, until_s + took_s - said[index][1])
    return list(first.values())


def revised(drafts: Sequence[list[str]]) -> float:
    erased = 0
    for one, other in pairwise(drafts):
        same = next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
        erased += len(one) - (min(len(one), len(other)) if same is None else same)
    return erased / max(1, len(drafts[-1]))


def measured(size: str, segment_s: float, path: Path, text: Sequence[str]) -> dict[str, Any]:
    said, drafts = said_when(size, path), drafted(size, path, segment_s)
    delays = [float(delay) for delay in delays_s(said, drafts)]
    in_time = sum(delay <= WITHIN_S for delay in delays) / len(said)
    tenths = statistics.quantiles(delays, n=10)
    found = {
        "num_words": len(said),
        "shown": round(len(delays) / len(said), 3),
        "shown_within_1.5_s": at_least(in_time, 0.9),
        "delay_p50_s": round(statistics.median(delays), 3),
        "delay_p90_s": round(tenths[-1], 3),
        "revised": at_most(revised([shown for *_, shown in drafts]), REVISED),
        "compute_p50_s": round(statistics.median(took_s for _, took_s, _ in drafts), 3),
        "compute_share": round(sum(took_s for _, took_s, _ in drafts) / drafts[-1][0], 3),
        "word_errors": round(num_wrong_words(list(text), drafts[-1][2]) / len(text), 4),
    }
    say(f"{size}, {segment_s:g} s: {found}")
    return found


def main() -> int:
    asked = asked_for(__doc__ or "", segments=[1.0, 0.5])
    if asked is None:
        return 2
    said = reference()
    with TemporaryDirectory() as folder:
        row = in_a_row(list(said), Path(folder) / "row.wav")
        sets = {"librivox": (going_on(row), [word for each in said.values() for word in each])}
        if asked.cities is not None:
            sets["cities"] = (going_on(in_a_row([asked.cities], Path(folder) / "cities.wav")), words(CITIES))
        figures = {
            f"{name}, {size}, {segment_s:g} s": measured(size, segment_s, path, text)
            for name, (path, text) in sets.items()
            for size in asked.sizes
            for segment_s in asked.segments
        }
    keep(
        "drafts", {"recordings": "LibriVox, by Debian's pocketsphinx-testdata; Dickens, by moonshine-voice", **figures}
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
