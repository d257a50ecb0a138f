"""CAPTION: speech in cues that can be read while it is said, each segment's by itself (operators.speech.subtitles)."""

import statistics
from collections.abc import Sequence

from engine.spec.operator import Inputs, Operator, Rung, Settings
from operators.capabilities import CAPTION
from operators.heard import Captions, Speech, Transcript
from operators.speech.subtitles import cues_of, lines_of
from streams.records import Observation


class Captioning(Operator):
    """Cuts what was said into cues of two lines at most."""

    capability = CAPTION
    name = "cues"
    runs_in = "loop"
    max_batch = 64

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return (Rung("cues", 1.0, Settings()),)  # there is no other

    def process(self, batch: Sequence[Inputs]) -> Sequence[Captions]:
        return [_captions(item.here("speech")) for item in batch]


def _captions(heard: Transcript) -> Captions:
    return Captions(
        observations=tuple(
            Observation(
                start_ns=cue.start_ns,
                end_ns=cue.end_ns,
                text=lines_of(cue.text),
                confidence=_heard(heard.observations, cue.start_ns, cue.end_ns),
            )
            for cue in cues_of(heard.observations)
        )
    )


def _heard(utterances: Sequence[Speech], start_ns: int, end_ns: int) -> float:
    """How surely what a cue shows was heard: the mean of the utterances it is of."""
    of = [said.confidence for said in utterances if said.start_ns < end_ns and said.end_ns > start_ns]
    return round(statistics.fmean(of or [said.confidence for said in utterances]), 4)
