"""Captions: what was said in a segment, in cues."""

from operators.heard import Speech, Transcript
from operators.speech.captioning import Captioning
from penstock.testing import run

S = 10**9


def test_each_segment_has_its_own_cues_in_two_lines_at_most() -> None:
    long = " ".join(f"word{n}" for n in range(30)) + "."
    first = Transcript(
        observations=(
            Speech(start_ns=0, end_ns=9 * S, text=long, confidence=0.5),
            Speech(start_ns=9 * S, end_ns=10 * S, text="Short.", confidence=0.9),
        )
    )
    some, none = run(Captioning, {"speech": [first, Transcript()]})
    texts = [cue.text for cue in some.observations]
    assert " ".join(" ".join(texts).split()) == f"{long} Short."
    assert all(len(line) <= 42 for text in texts for line in text.split("\n"))
    assert all(text.count("\n") <= 1 for text in texts)
    assert [cue.confidence for cue in some.observations][-1] == 0.9
    assert {cue.confidence for cue in some.observations[:-1]} == {0.5}
    assert none.observations == ()
