"""Finds when and where something moves, from small grey frames: the cheapest look at a picture there is.

A frame I(t) is compared with those before it, up to REACH_S back, so that what is slow is seen too. Of the difference d
its median is taken away (a cloud passes, a camera adapts its exposure), then it is blurred over 3 x 3 pixels, and what
exceeds

    max(MIN_STEP, NOISE * 1.4826 * median |d|)        in steps of 0..255

is what moved: the second term is NOISE standard deviations of what the sensor and the codec do to a picture at rest
(the median absolute deviation of a normal distribution is sigma / 1.4826). Patches of it below MIN_PATCH of the frame
are noise. Frames in which something moved, no further apart than BETWEEN_S, are one movement; its box holds all of it.

A frame is compared with the one before it however long ago that was, also where that is the last of the segment before;
only the stream's first has none. Quality: measured on nothing labelled.
Source: Rousseeuw and Croux, Alternatives to the Median Absolute Deviation (1993), for 1.4826.
"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from engine.spec.operator import Inputs, Machine, Map, Operator, Rung, Scope, Settings
from operators.capabilities import DETECT_MOTION
from operators.media.pictures import FrameSpec, frames, no_pictures
from operators.seen import Bounds, Motion, Movement
from streams.records import MediaInfo

WIDTH = 160
REACH_S = 0.8
BETWEEN_S = 1.0
MIN_STEP, NOISE = 10.0, 6.0
MIN_PATCH = 0.0006  # of the frame: a person of a thirtieth of its height and half as wide
MOVES = "something moves"

Grey = NDArray[np.uint8]


class MotionKnobs(Settings, frozen=True):
    interval_ms: Annotated[int, Meta(ge=40, le=10_000)] = 200  # from one frame that is looked at to the next


class DetectMotion(Operator):
    """Movement in small grey frames."""

    capability = DETECT_MOTION
    name = "difference"
    scope: ClassVar[Scope] = Map(before=1)
    max_batch = 8
    Knobs = MotionKnobs
    knobs: MotionKnobs

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return (Rung("difference", 0.5, MotionKnobs()),)

    @classmethod
    def missing(cls, knobs: MotionKnobs, machine: Machine, media: MediaInfo | None) -> str | None:
        return no_pictures(media)

    def demands(self) -> tuple[Any, ...]:
        return (self._spec,)

    @property
    def _spec(self) -> FrameSpec:
        return FrameSpec(interval_ns=self.knobs.interval_ms * 1_000_000, max_width=WIDTH, pixels="gray8")

    def process(self, batch: Sequence[Inputs]) -> Sequence[Motion]:
        return [self._motion(item) for item in batch]

    def _motion(self, item: Inputs) -> Motion:
        before, here = None, None
        for entry in item.around("media"):
            if entry.index == item.last:
                here = frames(entry.value, self._spec)
            elif entry.value is not None:
                before = frames(entry.value, self._spec)
        if here is None:
            raise LookupError("the segment itself is not among its media")
        times, images = here.times_ns.tolist(), here.images
        if before is None or not len(before.times_ns) or before.images.shape[1:] != images.shape[1:]:
            return Motion(observations=movements(times, images))
        earlier = before.times_ns.tolist()
        together = np.concatenate([before.images, images])
        return Motion(observations=movements([*earlier, *times], together, first=len(earlier)))


def movements(times_ns: Sequence[int], images: Grey, first: int = 0) -> tuple[Movement, ...]:
    """When and where something moved, from the `first`-th frame on. images: uint8 [N, H, W], of these times."""
    found: list[Movement] = []
    for number, at_ns in list(enumerate(times_ns))[first:]:
        back = [at for at in range(number) if at_ns - times_ns[at] <= REACH_S * 1e9 or at == number - 1]
        looks = [moved(images[other], images[number]) for other in sorted({*back[:1], *back[-1:]})]
        seen = [look for look in looks if look is not None]
        if not seen:
            continue
        box, share = _around([each for each, _ in seen]), max(share for _, share in seen)
        if found and at_ns - found[-1].end_ns <= BETWEEN_S * 1e9:
            before = found.pop()
            found.append(_movement(before.start_ns, at_ns, _around([before.box, box]), max(before.share, share)))
        else:
            found.append(_movement(at_ns, at_ns, box, share))
    return tuple(found)


def _movement(start_ns: int, end_ns: int, box: Bounds, share: float) -> Movement:
    return Movement(start_ns=start_ns, end_ns=end_ns, text=MOVES, box=box, share=share)


def moved(before: Grey, after: Grey) -> tuple[Bounds, float] | None:
    """A box around what moved between two frames, in fractions of the frame, and what share of it did; None where
    nothing did. uint8 [H, W] each."""
    import cv2  # long to load

    change = after.astype(np.float32) - before
    change -= np.median(change)
    noise = 1.4826 * float(np.median(np.abs(change)))
    is_moved = np.abs(cv2.blur(change, (3, 3))) > max(MIN_STEP, NOISE * noise)
    if not is_moved.any():
        return None
    _, _, patches, _ = cv2.connectedComponentsWithStats(is_moved.astype(np.uint8), connectivity=8)
    height, width = before.shape
    large = patches[1:][patches[1:, cv2.CC_STAT_AREA] >= max(2.0, MIN_PATCH * height * width)]
    if not len(large):
        return None
    boxes = [(x / width, y / height, w / width, h / height) for x, y, w, h, _ in large.tolist()]
    return _around(boxes), round(float(large[:, cv2.CC_STAT_AREA].sum()) / (height * width), 4)


def _around(boxes: Sequence[Bounds]) -> Bounds:
    """The smallest box that holds them."""
    left, top = min(box[0] for box in boxes), min(box[1] for box in boxes)
    right, bottom = max(box[0] + box[2] for box in boxes), max(box[1] + box[3] for box in boxes)
    return round(left, 4), round(top, 4), round(right - left, 4), round(bottom - top, 4)
