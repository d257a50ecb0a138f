"""How well speech is heard in segments, on recordings that nobody here made.

Debian's `pocketsphinx-testdata` has five utterances of a LibriVox reading with their words; they are heard each by
itself, and one behind the other. The wheel `moonshine-voice` (PyPI) has the beginning of Dickens's Tale of Two Cities,
read by somebody else. The limit is the same model over each file in one pass by faster-whisper itself, with its own
defaults but for what makes it say the same twice (temperature 0): what is heard in segments may have half a point more
of word errors, at any length of segments. `live` is what is heard in the short cells of a stream that may not wait.

    word errors = insertions + deletions + substitutions, of all reference words (Levenshtein), lower case, unpunctuated

    speech.py [--sizes tiny.en base] [--cities two_cities.wav]

Needs the recordings (`apt-get install pocketsphinx-testdata`; two_cities.wav is in the wheel, of which nothing else is
needed) and weights (`penstock models list`).
"""

import argparse
import re
import sys
import time
import wave
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from measure import at_most, keep, say

from operators.speech.whisper import Whisper, is_here, verified_weights
from penstock.demo import num_wrong_words, words
from penstock.testing import run, segments_of

RECORDINGS = Path("/usr/share/pocketsphinx/test/data/librivox")
SEGMENTS_S = (1.0, 2.0, 5.0, 10.0)
LIVE_S = 2.0
MORE = 0.005  # of word errors
CITIES = """
It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness,
it was the epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the season of Darkness,
it was the spring of hope, it was the winter of despair, we had everything before us, we had nothing before us, we were
all going direct to Heaven, we were all going direct the other way -- in short, the period was so far like the present
period, that some of its noisiest authorities insisted on its being received, for good or for evil, in the superlative
degree of comparison only."""


def reference() -> dict[Path, list[str]]:
    """What is said in each recording."""
    lines = (RECORDINGS / "transcription").read_text().splitlines()
    said = [match for line in lines if (match := re.fullmatch(r"<s> (.*) </s> \((\S+)\)", line.strip()))]
    return {RECORDINGS / f"{match[2]}.wav": words(match[1]) for match in said}


def in_one_pass(size: str, path: Path) -> list[str]:
    import faster_whisper

    model = faster_whisper.WhisperModel(str(verified_weights(size)), device="cpu", compute_type="int8")
    passages, _ = model.transcribe(str(path), language="en", beam_size=5, temperature=0.0)
    return words(" ".join(passage.text for passage in passages))


def in_segments(size: str, path: Path, segment_s: float, cells: str = "whole") -> list[str]:
    outputs = run(Whisper, {"media": segments_of(path, segment_s)}, knobs={"size": size, "cells": cells})
    return words(" ".join(speech.text for output in outputs for speech in output.observations))


def in_a_row(paths: Sequence[Path], place: Path) -> Path:
    """Recordings of one kind, one behind the other with half a second between them."""
    with wave.open(str(place), "wb") as all_:
        for path in paths:
            with wave.open(str(path), "rb") as one:
                if not all_.getnframes():
                    all_.setparams(one.getparams())
                all_.writeframes(one.readframes(one.getnframes()))
                all_.writeframes(bytes(one.getframerate() // 2 * one.getsampwidth() * one.getnchannels()))
    return place


def measured(size: str, said: Mapping[Path, Sequence[str]]) -> dict[str, Any]:
    num_words = sum(map(len, said.values()))
    whole = sum(num_wrong_words(text, in_one_pass(size, path)) for path, text in said.items()) / num_words
    found: dict[str, Any] = {"num_words": num_words, "one_pass": round(whole, 4)}
    for segment_s in SEGMENTS_S:
        began_s = time.perf_counter()
        errors = sum(num_wrong_words(text, in_segments(size, path, segment_s)) for path, text in said.items())
        took_s = time.perf_counter() - began_s
        found[f"{segment_s:g}_s"] = at_most(errors / num_words, whole + MORE)
        found[f"{segment_s:g}_s_took_s"] = round(took_s, 2)
        say(f"{size}, segments of {segment_s:g} s: {errors} of {num_words} words wrong; one pass {whole:.3f}")
    live = sum(num_wrong_words(text, in_segments(size, path, LIVE_S, "short")) for path, text in said.items())
    found["live"] = round(live / num_words, 4)
    say(f"{size}, live: {live} of {num_words} words wrong")
    return found


def asked_for(about: str, **more: list[float]) -> argparse.Namespace | None:
    """What is to be measured; `more` are lists of numbers with what they are by default. None where it cannot be."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["tiny.en", "base"])
    parser.add_argument("--cities", type=Path)
    for name, default in more.items():
        parser.add_argument(f"--{name}", nargs="+", type=float, default=default)
    asked = parser.parse_args()
    if not RECORDINGS.is_dir():
        say("cannot be run here: apt-get install pocketsphinx-testdata")
        return None
    if missing := [size for size in asked.sizes if not is_here(size)]:
        say(f"cannot be run here: no weights of Whisper {', '.join(missing)}: penstock models list")
        return None
    return asked


def main() -> int:
    asked = asked_for(__doc__ or "")
    if asked is None:
        return 2
    said = reference()
    with TemporaryDirectory() as folder:
        row = in_a_row(list(said), Path(folder) / "row.wav")
        sets: dict[str, Mapping[Path, Sequence[str]]] = {"each": said, "in_a_row": {row: [*chain(*said.values())]}}
        if asked.cities is not None:
            sets["cities"] = {asked.cities: words(CITIES)}
        figures = {size: {name: measured(size, one) for name, one in sets.items()} for size in asked.sizes}
    keep(
        "speech", {"recordings": "LibriVox, by Debian's pocketsphinx-testdata; Dickens, by moonshine-voice", **figures}
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
