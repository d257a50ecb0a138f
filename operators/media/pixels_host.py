"""Prepares decoded pictures for a model in host memory, by libswscale: what `operators.media.pixels` means.

libswscale's BILINEAR is the same triangle, as wide as it must be when shrinking, on the planes themselves, and its
planar RGB is what a tensor of NCHW holds; so a picture goes from the decoder's planes to the model's size in one pass.
It is kept so, in whole steps of 0..255, a quarter of the memory of what the model takes, and normalised batch by batch
ahead of the model. Against the reference it is 0.25 steps off on average and 0.5 for 999 of 1000 values, more at the
picture's edges and where it is enlarged.

What a stream does not say of its colours is assumed: BT.709 from HD_HEIGHT lines on, BT.601 below; limited range.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeVar, cast

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

from operators.media.pixels import TensorSpec, bfloat16_bits, filled

T = TypeVar("T")

HD_HEIGHT = 720
HOW = Interpolation.BILINEAR | Interpolation.ACCURATE_RND
_MATRICES: dict[int, Literal["bt601", "bt709", "bt2020"]] = {
    1: "bt709",
    5: "bt601",
    6: "bt601",
    9: "bt2020",
    10: "bt2020",
}
_FULL = int(ColorRange.JPEG)
_SPACES = {"bt601": Colorspace.ITU601, "bt709": Colorspace.ITU709, "bt2020": 9}  # FFmpeg's AVCOL_SPC_BT2020_NCL


def matrix_of(frame: VideoFrame) -> Literal["bt601", "bt709", "bt2020"]:
    """How its samples mean colour, as it says, or by its height."""
    return _MATRICES.get(int(frame.colorspace), "bt709" if frame.height >= HD_HEIGHT else "bt601")


def is_full_range(frame: VideoFrame) -> bool:
    return int(frame.color_range) == _FULL or frame.format.name.startswith("yuvj")


class HostScaling:
    """For pictures one by one, of one stream: a scaler is set up once for those alike. Not for several threads."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def scale(self, frame: VideoFrame, spec: TensorSpec, out: NDArray[np.uint8], num_turns: int = 0) -> None:
        """Write a picture, turned clockwise by so many quarters, as the model takes it but for normalisation, into
        `out`: uint8 [3, H, W] in `spec.order`, what is not filled of the pad colour, rounded."""
        upright = (frame.height, frame.width) if num_turns % 2 else (frame.width, frame.height)
        shown = filled(*upright, spec)
        size = (shown.height, shown.width) if num_turns % 2 else (shown.width, shown.height)
        if (shown.width, shown.height) != (spec.width, spec.height):
            out[:] = np.clip(np.rint(in_order(spec.pad, spec)), 0, 255)[:, None, None]
        part = out[:, shown.top : shown.top + shown.height, shown.left : shown.left + shown.width]
        for channel, plane in enumerate(in_order(self._colours(frame, *size), spec)):
            part[channel] = np.rot90(plane, -num_turns)

    def _colours(self, frame: VideoFrame, width: int, height: int) -> list[NDArray[np.uint8]]:
        """Red, green and blue, uint8 [height, width] each."""
        said: dict[str, Any] = {}
        if not frame.format.is_rgb:
            matrix = _SPACES[matrix_of(frame)]
            range = ColorRange.JPEG if is_full_range(frame) else ColorRange.MPEG
            said = {"src_colorspace": matrix, "dst_colorspace": matrix, "src_color_range": range}
        scaled = self._reformatter.reformat(frame, width, height, "gbrp", interpolation=HOW, threads=1, **said)
        green, blue, red = (
            np.frombuffer(cast(Any, plane), np.uint8).reshape(-1, plane.line_size)[:height, :width]
            for plane in scaled.planes
        )
        return [red, green, blue]


def in_order(colours: Sequence[T], spec: TensorSpec) -> Sequence[T]:
    """Of red, green and blue, in the order of the tensor's channels."""
    return colours if spec.order == "rgb" else colours[::-1]


def normalised(scaled: NDArray[np.uint8], spec: TensorSpec, out: NDArray[np.float32] | None = None) -> NDArray[Any]:
    """What the model takes, of `spec.kind`, [N, 3, H, W] or [N, H, W, 3]; written into `out`, float32 [N, 3, H, W],
    where that is what it takes. scaled: uint8 [N, 3, H, W], as `HostScaling` makes them."""
    planar = np.empty(scaled.shape, np.float32) if out is None else out
    for channel, (mean, std) in enumerate(zip(in_order(spec.mean, spec), in_order(spec.std, spec), strict=True)):
        part = planar[:, channel]
        np.multiply(scaled[:, channel], np.float32(1 / std), out=part)
        np.add(part, np.float32(-mean / std), out=part)
    placed = planar if spec.layout == "nchw" else np.ascontiguousarray(planar.transpose(0, 2, 3, 1))
    if spec.dtype == "bfloat16":
        return bfloat16_bits(placed)
    return placed if spec.dtype == "float32" else placed.astype(np.float16)
