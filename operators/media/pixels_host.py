"""Prepares decoded pictures for a model in host memory, by libswscale: what `operators.media.pixels` means.

libswscale's BILINEAR is the same triangle, as wide as it must be when shrinking, on the planes themselves, and its
planar RGB is what a tensor of NCHW holds; so a picture goes from the decoder's planes to the model's size in one pass
and is normalised there. It rounds to whole steps of 0..255: against the reference it is 0.25 off on average and 0.5 for
999 of 1000 values, more at the picture's edges and where it is enlarged.

What a stream does not say of its colours is assumed: BT.709 from HD_HEIGHT lines on, BT.601 below; limited range.
"""

from typing import Any, Literal, cast

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

from operators.media.pixels import TensorSpec, bfloat16_bits, filled

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


class HostPreparing:
    """For pictures one by one, of one stream: a scaler is set up once for those alike. Not for several threads."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def prepare(self, frame: VideoFrame, spec: TensorSpec, out: NDArray[Any], num_turns: int = 0) -> None:
        """Write a picture, turned clockwise by so many quarters, as the model takes it, into `out`: of `spec.kind`,
        [3, H, W] or [H, W, 3], C-contiguous."""
        upright = (frame.height, frame.width) if num_turns % 2 else (frame.width, frame.height)
        shown = filled(*upright, spec)
        size = (shown.height, shown.width) if num_turns % 2 else (shown.width, shown.height)
        planes = self._colours(frame, *size)
        planar = out if (spec.layout, spec.dtype) == ("nchw", "float32") else _buffer(spec)
        rows, columns = slice(shown.top, shown.top + shown.height), slice(shown.left, shown.left + shown.width)
        is_whole = (shown.width, shown.height) == (spec.width, spec.height)
        for channel, plane in enumerate(planes if spec.order == "rgb" else planes[::-1]):
            of = channel if spec.order == "rgb" else 2 - channel
            gain, bias = np.float32(1 / spec.std[of]), np.float32(-spec.mean[of] / spec.std[of])
            if not is_whole:
                planar[channel] = np.float32(spec.pad[of]) * gain + bias
            part = planar[channel, rows, columns]
            np.multiply(np.rot90(plane, -num_turns), gain, out=part)
            np.add(part, bias, out=part)
        if planar is not out:
            placed = planar if spec.layout == "nchw" else planar.transpose(1, 2, 0)
            out[:] = bfloat16_bits(placed) if spec.dtype == "bfloat16" else placed

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


def _buffer(spec: TensorSpec) -> NDArray[np.float32]:
    return np.empty((3, spec.height, spec.width), np.float32)
