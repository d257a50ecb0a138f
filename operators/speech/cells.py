"""Where speech is cut for a recogniser that was trained on long stretches: into cells, wherever the segments begin.

A stream's media time is laid out in cells of about L seconds. Cell c is heard from cut c to cut c + 1, and cut c is the
quietest moment near c L:

    cut_c = argmin over h of  mean(|x|^2 over the SMOOTHING_S around hop h),   ties: nearest to c L

over those h whose surroundings lie within R of c L.

No cut depends on how the stream was segmented, so neither does what is heard. Segments that reach into the same cell
hear the same samples and so the same words, and each word is said by the segment in which its sentence begins: none is
lost or said twice. To know the cells of a segment takes the audio L + 2 R before it and after it; where there is none,
at the ends of the stream and beside a gap, the audio's own end is the cut.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, floor

import numpy as np

from operators.speech.regions import HOP, RATE, Clip, quietest

SMOOTHING_S = 0.3  # longer than the silence within a "t": half as many words are wrong at the seams as with 0.15


@dataclass(frozen=True, slots=True)
class Grid:
    """Cells of `length_s`, cut up to `search_s` from where they would be; both whole numbers of hops of 10 ms."""

    length_s: float
    search_s: float

    @property
    def reach_s(self) -> float:
        """How far around a segment its cells may lie."""
        return self.length_s + 2 * self.search_s

    def cells(self, audio: Clip, first: int, end: int) -> Iterator[Clip]:
        """Those that reach into the samples from `first` to before `end`, in order. `audio` is all that is known."""
        length = round(self.length_s * RATE)
        cut = self._cut(audio, first // length - 1)
        for number in range(first // length - 1, end // length + 2):
            following = self._cut(audio, number + 1)
            if cut < end and following > first and cut < following:
                yield audio.between(cut, following)
            cut = following

    def may_hold(self, first_s: float, end_s: float) -> range:
        """The numbers of all cells that can reach into this time, wherever their cuts come to lie."""
        first = floor((first_s - self.search_s) / self.length_s)
        return range(first, ceil((end_s + self.search_s) / self.length_s))

    def _cut(self, audio: Clip, number: int) -> int:
        nominal = number * round(self.length_s * RATE)
        steps = round((self.search_s - SMOOTHING_S / 2) * RATE) // HOP  # what is looked at lies within the reach
        hops = nominal + np.arange(-steps, steps + 1) * HOP
        hops = hops[(audio.first <= hops) & (hops <= audio.end)]
        if not len(hops):
            return audio.first if nominal < audio.first else audio.end
        return quietest(audio, hops, nominal, SMOOTHING_S)
