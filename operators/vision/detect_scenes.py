"""Finds where one camera take ends and the next begins, from small frames.

A frame's *signature* s(t) is its mean colour in each of 16 x 9 blocks: blind to noise and small objects, sharp enough
to tell two takes apart. With the change d(t) = mean |s(t) - s(t-1)|, in 0..255, a frame opens a new take

- by a cut, where d(t) > MIN_CHANGE and d(t) > PEAK times the second largest change within NEARBY_S: camera movement and
  moving objects change every frame, so theirs is no peak. If the old picture is back within FLASH_S it was a flash;
- by a fade, where pictures return after a blank stretch (the spread of s is under BLANK) that followed other pictures;
- by a dissolve, where s(t) is the mean of the pictures REACH_S before and after it, both steady, unlike and not blank.

Segments are judged alone and in parallel, and no frame is decoded twice: a halo over the media would decode everything
twice where segments are spread over workers, and a fold would forbid spreading them. So what opens a segment is not
known in it, and its first shot has `cut` set in the first segment of the stream only. Instead each output carries a
glimpse of its first and last picture, and `cut_between` judges the boundary by the rule for cuts; a stage that needs it
reads the scenes with a halo of one, which costs a kilobyte and no pixels. A fade or dissolve across a boundary is
missed.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.spec.operator import Inputs, Media, Operator, Rung, Settings
from operators.capabilities import DETECT_SCENES
from operators.media.pictures import FrameSpec, frames
from operators.seen import Glimpse, Scenes, Shot

SMALL_FRAMES = FrameSpec(interval_ns=40_000_000, max_width=160)
BLOCKS = (16, 9)

MIN_CHANGE = 7.0
PEAK = 2.5
NEARBY_S = 0.4
FLASH_S = 0.2
MIN_SHOT_S = 0.12
BLANK = 3.0
REACH_S = 0.6
MIN_DISSOLVE = 12.0

Signatures = npt.NDArray[np.float32]
Times = npt.NDArray[np.int64]


class DetectScenes(Operator):
    """Camera takes, by change of content."""

    capability = DETECT_SCENES
    name = "content"

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        """Quality: the share of cuts found among those made in the tests, less what real footage will cost."""
        return (Rung("content", 0.9, Settings()),)

    def demands(self) -> tuple[Any, ...]:
        return (SMALL_FRAMES,)

    def process(self, batch: Sequence[Inputs]) -> Sequence[Scenes]:
        return [_scenes(inputs.here("media")) for inputs in batch]


def _scenes(media: Media) -> Scenes:
    small = frames(media, SMALL_FRAMES)
    if not len(small.times_ns):
        return Scenes()
    segment = media.segment
    seen = signatures(small.images)
    opens = [int(small.times_ns[frame]) for frame in take_openings(seen, small.times_ns)]
    starts = [segment.start_ns, *opens]
    ends = [*opens, segment.start_ns + segment.duration_ns]
    cuts = [segment.index == 0] + [True] * len(opens)
    return Scenes(
        observations=tuple(
            Shot(start_ns=start, end_ns=end, cut=cut) for start, end, cut in zip(starts, ends, cuts, strict=True)
        ),
        opening=_glimpse(seen, small.times_ns, 0),
        closing=_glimpse(seen, small.times_ns, -1),
    )


def cut_between(before: Scenes, after: Scenes) -> bool:
    """Whether a cut stands at the boundary between two neighbouring segments; false where either has no pictures."""
    if before.closing is None or after.opening is None:
        return False
    last, first = (
        np.frombuffer(glimpse.colours, np.uint8).astype(np.float32) for glimpse in (before.closing, after.opening)
    )
    return _is_peak(float(np.mean(np.abs(first - last))), [*before.closing.changes, *after.opening.changes])


def take_openings(seen: Signatures, times_ns: Times) -> list[int]:
    """The frames that open a new take, in order; never the first frame.

    seen: float32 [N, blocks, 3], times_ns: int64 [N], strictly rising.
    """
    openings = sorted({*_cuts(seen, times_ns), *_fades(seen), *_dissolves(seen, times_ns)})
    kept: list[int] = []
    for frame in openings:
        if not kept or times_ns[frame] - times_ns[kept[-1]] >= MIN_SHOT_S * 1e9:
            kept.append(frame)
    return kept


def signatures(images: npt.NDArray[np.uint8]) -> Signatures:
    """images: uint8 [N, H, W, 3] -> mean colours, float32 [N, blocks, 3]."""
    import cv2

    blocks = [cv2.resize(image, BLOCKS, interpolation=cv2.INTER_AREA) for image in images]
    return np.stack(blocks).reshape(len(images), -1, 3).astype(np.float32)


def changes(seen: Signatures) -> npt.NDArray[np.float64]:
    """Mean absolute difference of each frame to the one before it; 0 for the first. float64 [N]."""
    return np.concatenate(([0.0], np.abs(np.diff(seen, axis=0)).mean(axis=(1, 2), dtype=np.float64)))


def _cuts(seen: Signatures, times_ns: Times) -> list[int]:
    change = changes(seen)
    cuts: list[int] = []
    flash_over = 0
    for frame in np.flatnonzero(change > MIN_CHANGE):
        nearby = _within(times_ns, frame, NEARBY_S)
        if frame < flash_over or not _is_peak(change[frame], change[nearby[nearby != frame]]):
            continue
        later = np.arange(frame + 1, np.searchsorted(times_ns, times_ns[frame] + FLASH_S * 1e9, side="right"))
        back = later[_difference(seen[later], seen[frame - 1]) < change[frame] / 4]
        if len(back):
            flash_over = int(back[0]) + 1
        else:
            cuts.append(int(frame))
    return cuts


def _is_peak(change: float, nearby: Sequence[float] | npt.NDArray[np.float64]) -> bool:
    second = sorted(nearby)[-2] if len(nearby) > 1 else 0.0
    return change > MIN_CHANGE and change > PEAK * second


def _fades(seen: Signatures) -> list[int]:
    blank = _blank(seen)
    returns = np.flatnonzero(blank[:-1] & ~blank[1:]) + 1
    return [int(frame) for frame in returns if not blank[:frame].all()]


def _blank(seen: Signatures) -> npt.NDArray[np.bool_]:
    """Which pictures are of one colour, be they black or white: bool [N]."""
    return np.asarray(seen.std(axis=1).mean(axis=1) < BLANK, np.bool_)


def _dissolves(seen: Signatures, times_ns: Times) -> list[int]:
    blank = _blank(seen)
    found: list[tuple[float, int]] = []
    for frame in range(len(seen)):
        span = _within(times_ns, frame, REACH_S)
        before, after = int(span[0]), int(span[-1])
        if times_ns[after] - times_ns[before] < 1.8 * REACH_S * 1e9 or blank[before] or blank[after]:
            continue
        steps = _within(times_ns, before, 0.1), _within(times_ns, after, 0.1)
        total = float(_difference(seen[before], seen[after]))
        if total < MIN_DISSOLVE or _alike(seen[before], seen[after]):
            continue
        bent = float(_difference(seen[frame], (seen[before] + seen[after]) / 2))
        moving = max(float(_difference(seen[step[0]], seen[step[-1]])) for step in steps)
        if bent < total / 8 and moving < total / 8:
            found.append((bent / total, frame))
    return _best_of_each_group(found, times_ns)


def _best_of_each_group(found: list[tuple[float, int]], times_ns: Times) -> list[int]:
    """Of candidates (badness, frame) less than REACH_S apart, the best."""
    best: list[int] = []
    for _, frame in sorted(found):
        if all(abs(times_ns[frame] - times_ns[other]) >= REACH_S * 1e9 for other in best):
            best.append(frame)
    return best


def _alike(a: Signatures, b: Signatures) -> bool:
    """Whether two pictures show the same pattern, be it lighter or darker."""
    x, y = a.ravel() - a.mean(), b.ravel() - b.mean()
    return bool((x * y).sum() > 0.8 * np.sqrt((x * x).sum() * (y * y).sum()))


def _difference(a: Signatures, b: Signatures) -> npt.NDArray[np.float32]:
    """Mean absolute difference over the last two axes."""
    return np.asarray(np.abs(a - b).mean(axis=(-2, -1)), np.float32)


def _within(times_ns: Times, frame: int | np.intp, reach_s: float) -> npt.NDArray[np.intp]:
    """The frames within `reach_s` of a frame, itself included."""
    reach_ns = int(reach_s * 1e9)
    return np.flatnonzero(np.abs(times_ns - times_ns[frame]) <= reach_ns)


def _glimpse(seen: Signatures, times_ns: Times, frame: int) -> Glimpse:
    near = np.sort(changes(seen)[_within(times_ns, frame, NEARBY_S)])
    largest = [0.0, 0.0, *near][-2:]
    return Glimpse(
        colours=np.rint(seen[frame]).astype(np.uint8).tobytes(), changes=(float(largest[0]), float(largest[1]))
    )
