"""Where speech is cut: each segment is given a region of audio that begins and ends in a pause, and its utterances.

Segment boundaries fall where the video has a keyframe, which may be in the middle of a word. The boundary b between
two neighbours is therefore moved to the quietest moment near it:

    b' = argmin over h of  mean(|x|^2 over the SMOOTHING_S around hop h),   |h - b| <= SEARCH_S,  ties: nearest to b

The search goes no further than the middle of either neighbour, so regions never overlap, and it reads nothing but the
two neighbours, so both compute the same b'. Regions tile the audio: no word is lost, doubled or transcribed twice.

Utterances are the stretches of a region whose level (dBFS over 10 ms hops, smoothed) is above

    max(FLOOR_DB, quiet + 0.35 (loud - quiet)),   quiet, loud: 10th and 95th percentile of the level

joined over pauses shorter than PAUSE_S, kept if longer than MIN_SPEECH_S, widened by MARGIN_S on both sides and, where
longer than MAX_UTTERANCE_S, cut at their quietest moment. A region whose level hardly varies holds no speech: a
talker's syllables alone make 20 dB.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.spec.operator import Inputs, Media
from operators.media.sound import AudioSpec, audio

SPEECH_AUDIO = AudioSpec(sample_rate=16_000)
RATE = SPEECH_AUDIO.sample_rate  # samples per second
HOP = RATE // 100

SEARCH_S = 1.5
SMOOTHING_S = 0.15
PAUSE_S = 0.35
MIN_SPEECH_S = 0.08
MARGIN_S = 0.15
MAX_UTTERANCE_S = 20.0
FLOOR_DB = -55.0
MIN_RANGE_DB = 8.0

Samples = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Clip:
    """Mono audio on the stream's sample grid: samples[k], int16, is heard at media time (first + k) / RATE."""

    first: int
    samples: Samples

    @property
    def end(self) -> int:
        return self.first + len(self.samples)

    def between(self, first: int, end: int) -> "Clip":
        """The part of it from sample `first` to before `end`."""
        return Clip(first, self.samples[first - self.first : end - self.first])


def time_ns(sample: int) -> int:
    """Media time of a sample."""
    return sample * 1_000_000_000 // RATE


def owned_clip(media: Media) -> Clip:
    """The audio a segment owns, as long as the segment: silence stands where it has none. Raises what `audio` does."""
    segment = media.segment
    first, end = (
        -(-time * RATE // 1_000_000_000) for time in (segment.start_ns, segment.start_ns + segment.duration_ns)
    )
    samples = np.zeros(end - first, np.int16)
    heard = audio(media, SPEECH_AUDIO)
    begin = max(0, round(heard.start_ns * RATE / 1_000_000_000) - first)
    heard_samples = heard.samples[: len(samples) - begin]
    samples[begin : begin + len(heard_samples)] = heard_samples
    return Clip(first, samples)


def region_of(inputs: Inputs) -> Clip:
    """The audio that this output answers for, decoded from the segment and its neighbours."""
    return _region_in(_clips(inputs), inputs.last)


def around(inputs: Inputs) -> tuple[Clip, Clip]:
    """The audio of this output's own segment, and all that is known around it, as far as it goes without a gap."""
    clips, here = _clips(inputs), inputs.last
    parts = [clips[here]]
    for index in range(here - 1, min(clips) - 1, -1):
        if index not in clips or clips[index].end != parts[0].first:
            break
        parts.insert(0, clips[index])
    for index in range(here + 1, max(clips) + 1):
        if index not in clips or clips[index].first != parts[-1].end:
            break
        parts.append(clips[index])
    return clips[here], Clip(parts[0].first, np.concatenate([part.samples for part in parts]))


def _clips(inputs: Inputs) -> dict[int, Clip]:
    entries = inputs.around("media")
    return {entry.index: owned_clip(entry.value) for entry in entries if isinstance(entry.value, Media)}


def _region_in(clips: Mapping[int, Clip], here: int) -> Clip:
    return region(clips.get(here - 1), clips[here], clips.get(here + 1))


def region(before: Clip | None, here: Clip, after: Clip | None) -> Clip:
    """`here`, with its boundaries moved into pauses. A missing or detached neighbour leaves its boundary in place."""
    parts = [here]
    first, end = here.first, here.end
    if before is not None and before.end == here.first:
        first = moved_boundary(before, here)
        parts.insert(0, before)
    if after is not None and here.end == after.first:
        end = moved_boundary(here, after)
        parts.append(after)
    joined = Clip(parts[0].first, np.concatenate([part.samples for part in parts]))
    return joined.between(first, end)


def moved_boundary(left: Clip, right: Clip) -> int:
    """The sample where the region of `left` ends and that of `right`, its neighbour, begins."""
    nominal = right.first
    search = round(SEARCH_S * RATE)
    lowest = nominal - min(search, len(left.samples) // 2)
    highest = nominal + min(search, len(right.samples) // 2)
    both = Clip(left.first, np.concatenate((left.samples, right.samples)))
    candidates = np.arange(nominal - (nominal - lowest) // HOP * HOP, highest + 1, HOP)
    return quietest(both, candidates, nominal, SMOOTHING_S)


def quietest(audio: Clip, candidates: npt.NDArray[np.int64], nominal: int, smoothing_s: float) -> int:
    """Of some moments, samples in ascending order, the one around which `smoothing_s` of the audio are quietest; of
    equals the one nearest to `nominal`."""
    reach = round(smoothing_s * RATE / 2)
    near = audio.between(max(audio.first, int(candidates[0]) - reach), min(audio.end, int(candidates[-1]) + reach))
    total = np.concatenate(([0], np.cumsum(near.samples.astype(np.int64) ** 2)))
    begins = np.clip(candidates - reach - near.first, 0, len(near.samples))
    ends = np.clip(candidates + reach - near.first, 0, len(near.samples))
    power = (total[ends] - total[begins]) / np.maximum(ends - begins, 1)
    return int(min(zip(power, np.abs(candidates - nominal), candidates, strict=True))[2])


def utterances(clip: Clip) -> tuple[Clip, ...]:
    """The stretches of a region in which somebody may be speaking, in order and not overlapping."""
    level = level_db(clip.samples)
    if not len(level):
        return ()
    quiet, loud = np.percentile(level, (10, 95))
    if loud < FLOOR_DB or loud - quiet < MIN_RANGE_DB:
        return ()
    loud_hops = level > max(FLOOR_DB, quiet + 0.35 * (loud - quiet))
    spoken = [
        (begin, end)
        for begin, end in _joined(_runs(loud_hops), round(PAUSE_S * RATE / HOP))
        if end - begin >= round(MIN_SPEECH_S * RATE / HOP)
    ]
    cut = [piece for begin, end in spoken for piece in _cut_up(level, begin, end)]
    return tuple(clip.between(begin, end) for begin, end in _widened(cut, clip))


def level_db(samples: Samples) -> npt.NDArray[np.float64]:
    """Level in dB of full scale, float64 [hops], each hop 10 ms, smoothed over three; -100 for digital silence."""
    num_hops = len(samples) // HOP
    power = np.mean((samples[: num_hops * HOP].reshape(num_hops, HOP) / 32768.0) ** 2, axis=1)
    padded = np.pad(power, 1, mode="edge") if num_hops else np.zeros(2)
    smooth = (padded[:-2] + padded[1:-1] + padded[2:]) / 3
    return np.asarray(10 * np.log10(smooth + 1e-10), np.float64)


def _runs(flags: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """[begin, end) of each stretch of true flags."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False]))))
    return [(int(begin), int(end)) for begin, end in edges.reshape(-1, 2)]


def _joined(runs: Iterable[tuple[int, int]], max_gap: int) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for begin, end in runs:
        if joined and begin - joined[-1][1] < max_gap:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((begin, end))
    return joined


def _cut_up(level: npt.NDArray[np.float64], begin: int, end: int) -> list[tuple[int, int]]:
    """[begin, end) in pieces of at most MAX_UTTERANCE_S, cut at the quietest hop of their middle half."""
    max_hops = round(MAX_UTTERANCE_S * RATE / HOP)
    if end - begin <= max_hops:
        return [(begin, end)]
    quarter = (end - begin) // 4
    middle = begin + quarter + int(np.argmin(level[begin + quarter : end - quarter]))
    return [*_cut_up(level, begin, middle), *_cut_up(level, middle, end)]


def _widened(pieces: list[tuple[int, int]], clip: Clip) -> Iterable[tuple[int, int]]:
    """Pieces in hops of the clip -> [first, end) in samples with margins, inside the clip and not overlapping."""
    margin = round(MARGIN_S * RATE)
    bounds = [(clip.first + begin * HOP, clip.first + end * HOP) for begin, end in pieces]
    for position, (begin, end) in enumerate(bounds):
        lowest = (bounds[position - 1][1] + begin) // 2 if position else clip.first
        highest = (end + bounds[position + 1][0]) // 2 if position + 1 < len(bounds) else clip.end
        yield max(begin - margin, lowest), min(end + margin, highest)
