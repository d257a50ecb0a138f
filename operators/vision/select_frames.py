"""Chooses of a segment the moments whose pictures are worth a dear look.

Without evidence they are `num` moments evenly apart, in the middle of equal parts. With evidence, the middles of what
it found, the surest first, each worth

    confidence * min(1, distance to the nearest one chosen / (length of the segment / num))

and none that is worth less than MIN_WORTH of the best; where it found nothing, the middle of the segment. So with
scenes it is a picture of each take, with motion where something moves, with what matches a question where that does: a
quiet stretch costs one picture, and none where a gate (`when`) is shut.

Quality: none measured; more pictures show more.
Source: Chohan et al., Murakkab, arXiv 2508.18298, for the number of frames as the first knob of a video's question;
Carbonell and Goldstein, Maximal Marginal Relevance (1998), for weighing what something is worth by what is there.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated

from msgspec import Meta

from engine.spec.operator import Inputs, Operator, Rung, Settings
from operators.capabilities import SELECT_FRAMES
from operators.seen import Moment, Moments
from streams.records import Evidence, Observation

MIN_WORTH = 0.25
MAX_CANDIDATES = 500  # of a segment, the surest


QUALITIES = {8: 0.9, 4: 0.8, 2: 0.7, 1: 0.6}  # by how many


class SelectKnobs(Settings, frozen=True):
    num: Annotated[int, Meta(ge=1, le=64)] = 4  # pictures of a segment, at most


class SelectFrames(Operator):
    """Moments worth a look."""

    capability = SELECT_FRAMES
    name = "worth"
    runs_in = "loop"
    max_batch = 64
    Knobs = SelectKnobs
    knobs: SelectKnobs

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return tuple(Rung(f"{num}-frames", quality, SelectKnobs(num=num)) for num, quality in QUALITIES.items())

    def process(self, batch: Sequence[Inputs]) -> Sequence[Moments]:
        return [self._moments(item) for item in batch]

    def _moments(self, item: Inputs) -> Moments:
        segment = item.here("media").segment
        if not any(track.kind == "video" for track in segment.tracks):
            return Moments()
        start_ns, end_ns = segment.start_ns, segment.start_ns + segment.duration_ns
        if "evidence" not in item.ports:
            return Moments(observations=evenly(start_ns, end_ns, self.knobs.num))
        found = (entry.value for (entry,) in item.ports["evidence"] if isinstance(entry.value, Evidence))
        observations = [each for evidence in found for each in evidence.observations]
        return Moments(observations=worth_a_look(observations, start_ns, end_ns, self.knobs.num))


def evenly(start_ns: int, end_ns: int, num: int) -> tuple[Moment, ...]:
    """The middles of `num` equal parts."""
    length_ns = end_ns - start_ns
    times = sorted({start_ns + length_ns * (2 * part + 1) // (2 * num) for part in range(num)})
    return tuple(Moment(start_ns=at_ns, end_ns=at_ns, text="evenly") for at_ns in times)


def worth_a_look(found: Iterable[Observation], start_ns: int, end_ns: int, num: int) -> tuple[Moment, ...]:
    """The moments of a segment that what was found in it says are worth most, at most `num`, in order of time."""
    inside = [_middle(each, start_ns, end_ns) for each in found if each.start_ns < end_ns and each.end_ns >= start_ns]
    left = sorted(set(inside), key=lambda each: (-each.confidence, each.start_ns, each.text))[:MAX_CANDIDATES]
    if not left or not left[0].confidence > 0:
        return evenly(start_ns, end_ns, 1)
    apart_ns = max(1.0, (end_ns - start_ns) / num)
    least = MIN_WORTH * left[0].confidence
    worth = [each.confidence for each in left]
    chosen: list[Moment] = []
    while left and len(chosen) < num and (most := max(worth)) >= least:
        best = worth.index(most)
        worth.pop(best)
        chosen.append(left.pop(best))
        at_ns = chosen[-1].start_ns
        near = (min(1.0, abs(each.start_ns - at_ns) / apart_ns) for each in left)
        worth = [min(before, each.confidence * by) for before, each, by in zip(worth, left, near, strict=True)]
    return tuple(sorted(chosen, key=lambda each: each.start_ns))


def _middle(found: Observation, start_ns: int, end_ns: int) -> Moment:
    """Of what of it lies in the segment."""
    at_ns = (max(found.start_ns, start_ns) + min(found.end_ns, end_ns)) // 2
    return Moment(start_ns=at_ns, end_ns=at_ns, text=found.text or "something was found", confidence=found.confidence)
