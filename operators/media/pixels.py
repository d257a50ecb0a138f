"""What a model takes of decoded pictures: how YUV becomes a tensor, as values, geometry and a slow, plain reference.

`prepared` is the meaning; `operators/media/kernels/prepare.cu` computes the same on a device, and tests hold it to
this.

**Samples.** A picture is luma Y [H, W] and interleaved chroma [ceil(H/2), ceil(W/2), 2]: uint8 (NV12), or uint16 with
10 bits in the high bits (P010, code << 6). With Y, Cb, Cr in steps of 8 bits (P010 of limited range: uint16 / 256; of
full range: code * 255 / 1023):

    limited range   y = (Y - 16) / 219    pb = (Cb - 128) / 224    pr = (Cr - 128) / 224
    full range      y = Y / 255           pb = (Cb - 128) / 255    pr = (Cr - 128) / 255     (128: 2^(bits - 1))
    R = y + 2 (1 - Kr) pr     B = y + 2 (1 - Kb) pb     G = (y - Kr R - Kb B) / (1 - Kr - Kb)

times 255. Kr, Kb are 0.299, 0.114 (BT.601), 0.2126, 0.0722 (BT.709), 0.2627, 0.0593 (BT.2020, non-constant
luminance).
Source: ITU-T H.273 (07/2024), 8.3 (MatrixCoefficients); ITU-R BT.601-7, BT.709-6, BT.2020-2.

**Coordinates.** They are continuous: luma sample k covers [k, k + 1] and stands at k + 1/2. Chroma sample k stands at
luma 2k + 1/2 where it is co-sited with even columns (siting "left", the default of MPEG-2, H.264 and HEVC, and
"top_left" for both axes) and at 2k + 1 where it stands between them ("centre": JPEG, MPEG-1). So luma X is chroma X/2
+ 1/4, or X/2.
Source: ITU-T H.273, Chroma420SampleLocType 0, 1, 2.

**Geometry.** A crop, a rectangle of luma coordinates, is turned clockwise by a multiple of 90 degrees and laid on the
filled part of the output: all of it ("stretch", where that changes the aspect by no more than `max_stretch`), or the
largest part of the crop's aspect, its sides rounded half up and at least 1 ("letterbox"), in the middle (an odd line of
padding goes right or below) or at the top left. A crop chooses where to sample: at its edges the filter still reads the
picture beside it, as Pillow's `resize(box=...)` does.

**Resampling.** With the step s (samples of the plane from one output to the next, on each axis), output i stands at c
= start + (i + 1/2) s, and takes sample x of 0 .. n - 1 with the weight

    w(x) = max(0, 1 - |x + 1/2 - c| / r) / sum of the same over all x,    r = max(1, s)

a triangle as wide as it must be not to alias when shrinking, plain bilinear when enlarging, normalised at the
borders. This is Pillow's BILINEAR without reducing_gap, and torch's `interpolate(mode="bilinear", antialias=True)`.
Source: Pillow, src/libImaging/Resample.c, precompute_coeffs.

Colour conversion before clipping is affine and the weights sum to one, so both planes are resampled straight onto the
output grid and converted there, once for each output; then clipped to 0 .. 255, unrounded. (A converter that clips or
rounds before it resamples differs where colours leave the cube.) Then (value - mean) / std, in float32, rounded to
nearest even where the result is narrower. What is not filled is the pad colour, normalised likewise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

MAX_SIDE = 32_768  # of a picture or an output, in samples
LUMA_WEIGHTS = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}  # Kr, Kb

Real = NDArray[np.float64]


@dataclass(frozen=True)
class Colour:
    """How samples mean colour. The defaults are those of HD video that does not say."""

    matrix: Literal["bt601", "bt709", "bt2020"] = "bt709"
    full_range: bool = False
    siting: Literal["left", "centre", "top_left"] = "left"

    @property
    def shift(self) -> tuple[float, float]:
        """What is added to X/2 and Y/2 to get chroma coordinates."""
        return 0.0 if self.siting == "centre" else 0.25, 0.25 if self.siting == "top_left" else 0.0


@dataclass(frozen=True)
class Crop:
    """A rectangle of luma coordinates."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, eq=False)
class Planes:
    """One decoded picture and what is wanted of it, in host or device memory.

    `luma`: uint8 or uint16 [H, W]; `chroma`: the same type [ceil(H/2), ceil(W/2), 2]. Rows are contiguous and any
    positive number of bytes apart. Raises ValueError where the shapes are others or the crop is not in the picture."""

    luma: Any
    chroma: Any
    colour: Colour = Colour()
    crop: Crop | None = None  # None: the whole picture
    rotation: int = 0  # degrees clockwise that make the crop upright; Track.rotation counts counter-clockwise

    def __post_init__(self) -> None:
        kind = self.luma.dtype
        if kind not in (np.uint8, np.uint16) or self.chroma.dtype != kind:
            raise ValueError(f"planes of {kind} and {self.chroma.dtype}: both must be uint8 or both uint16")
        if self.luma.ndim != 2 or not all(0 < side <= MAX_SIDE for side in self.luma.shape):
            raise ValueError(f"luma of shape {self.luma.shape}: it must be [height, width], of 1 to {MAX_SIDE} each")
        halves = (-(-self.height // 2), -(-self.width // 2), 2)
        if tuple(self.chroma.shape) != halves:
            raise ValueError(f"chroma of shape {self.chroma.shape}: for luma {self.luma.shape} it must be {halves}")
        if self.rotation % 90:
            raise ValueError(f"a rotation of {self.rotation} degrees: it must be a multiple of 90")
        inside = self.cropped
        if not (
            min(inside.x, inside.y) >= 0
            and min(inside.width, inside.height) > 0
            and inside.x + inside.width <= self.width
            and inside.y + inside.height <= self.height
        ):
            raise ValueError(f"{inside} is not within a picture of {self.width}x{self.height}")

    @property
    def height(self) -> int:
        return int(self.luma.shape[0])

    @property
    def width(self) -> int:
        return int(self.luma.shape[1])

    @property
    def cropped(self) -> Crop:
        return self.crop or Crop(0.0, 0.0, float(self.width), float(self.height))

    @property
    def num_turns(self) -> int:
        """Quarter turns clockwise, 0 to 3."""
        return self.rotation // 90 % 4


@dataclass(frozen=True)
class TensorSpec:
    """What a model takes. `mean`, `std` and `pad` are of R, G, B, whatever the order, in steps of 0 to 255."""

    width: int
    height: int
    fit: Literal["stretch", "letterbox"] = "stretch"
    place: Literal["centre", "top_left"] = "centre"  # of what a letterbox shows
    max_stretch: float = math.inf  # of one side against the other: beyond it a letterbox
    pad: tuple[float, float, float] = (114.0, 114.0, 114.0)
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (255.0, 255.0, 255.0)
    order: Literal["rgb", "bgr"] = "rgb"
    layout: Literal["nchw", "nhwc"] = "nchw"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if not all(0 < side <= MAX_SIDE for side in (self.width, self.height)):
            raise ValueError(f"an output of {self.width}x{self.height}: both must be 1 to {MAX_SIDE}")
        if 0.0 in self.std or not all(map(math.isfinite, (*self.pad, *self.mean, *self.std))):
            raise ValueError("pad, mean and std must be finite, and no std 0")

    @property
    def kind(self) -> type[np.float32] | type[np.float16] | type[np.uint16]:
        """The type of NumPy: uint16 holds the bits of bfloat16."""
        return {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}[self.dtype]  # type: ignore[return-value]

    def shape(self, num: int) -> tuple[int, int, int, int]:
        """Of the tensor of a batch."""
        size = (self.height, self.width)
        return (num, 3, *size) if self.layout == "nchw" else (num, *size, 3)


@dataclass(frozen=True)
class Filled:
    """The part of the output that shows the picture, in pixels of the output."""

    left: int
    top: int
    width: int
    height: int


def filled(width: float, height: float, spec: TensorSpec) -> Filled:
    """Where an upright picture of a size goes."""
    stretch = spec.width / spec.height * height / width
    if spec.fit == "stretch" and max(stretch, 1 / stretch) <= spec.max_stretch:
        return Filled(0, 0, spec.width, spec.height)
    scale = min(spec.width / width, spec.height / height)
    shown_width = min(spec.width, max(1, math.floor(width * scale + 0.5)))
    shown_height = min(spec.height, max(1, math.floor(height * scale + 0.5)))
    if spec.place == "top_left":
        return Filled(0, 0, shown_width, shown_height)
    return Filled((spec.width - shown_width) // 2, (spec.height - shown_height) // 2, shown_width, shown_height)


@dataclass(frozen=True)
class Axis:
    """How one axis of a plane falls on the grid: output i stands at `start` + (i + 1/2) `step`, in samples."""

    start: float
    step: float
    num: int  # samples there are
    num_out: int  # outputs on the grid

    @property
    def reach(self) -> float:
        return max(1.0, self.step)


@dataclass(frozen=True)
class Grid:
    """The outputs of a picture before it is turned: `shown` is where they come to lie after it."""

    shown: Filled
    luma: tuple[Axis, Axis]  # x, y
    chroma: tuple[Axis, Axis]


def grid(planes: Planes, spec: TensorSpec) -> Grid:
    """How a picture falls on its outputs."""
    crop = planes.cropped
    upright = (crop.height, crop.width) if planes.num_turns % 2 else (crop.width, crop.height)
    shown = filled(*upright, spec)
    size = (shown.height, shown.width) if planes.num_turns % 2 else (shown.width, shown.height)
    luma, chroma = [], []
    for start, length, num_out, num, num_chroma, shift in zip(
        (crop.x, crop.y),
        (crop.width, crop.height),
        size,
        planes.luma.shape[::-1],
        planes.chroma.shape[1::-1],
        planes.colour.shift,
        strict=True,
    ):
        luma.append(Axis(start, length / num_out, int(num), num_out))
        chroma.append(Axis(start / 2 + shift, length / num_out / 2, int(num_chroma), num_out))
    return Grid(shown, (luma[0], luma[1]), (chroma[0], chroma[1]))


@dataclass(frozen=True)
class Conversion:
    """From samples as they are stored to R, G, B of 0 to 255, before clipping: what Y is multiplied with (in all), Cr
    in R, Cb and Cr in G, Cb in B, and what is added to each."""

    y: float
    red_cr: float
    green_cb: float
    green_cr: float
    blue_cb: float
    added: tuple[float, float, float]


def conversion(planes: Planes) -> Conversion:
    colour = planes.colour
    kr, kb = LUMA_WEIGHTS[colour.matrix]
    kg = 1 - kr - kb
    bits, unit = (8, 1) if planes.luma.dtype == np.uint8 else (10, 64)
    most = 2**bits - 1 if colour.full_range else 0
    zero = unit * (0 if colour.full_range else 16 * 2 ** (bits - 8))
    middle = unit * 2 ** (bits - 1)
    y = 255 / unit / (most or 219 * 2 ** (bits - 8))
    c = 255 / unit / (most or 224 * 2 ** (bits - 8))
    red_cr, blue_cb = 2 * (1 - kr) * c, 2 * (1 - kb) * c
    green_cb, green_cr = -kb / kg * blue_cb, -kr / kg * red_cr
    red, green, blue = (-zero * y - middle * product for product in (red_cr, green_cb + green_cr, blue_cb))
    return Conversion(y, red_cr, green_cb, green_cr, blue_cb, (red, green, blue))


# --- the reference ---------------------------------------------------------------------------------------


def prepared(pictures: Sequence[Planes], spec: TensorSpec) -> NDArray[Any]:
    """float32 or float16 [N, 3, H, W] or [N, H, W, 3], C-contiguous, host memory; for bfloat16 its bits as uint16.

    Computed in float64 and rounded to float32, then to what is asked for. Of pictures in host memory."""
    out = np.empty(spec.shape(len(pictures)), spec.kind)
    for index, picture in enumerate(pictures):
        image = np.empty((spec.height, spec.width, 3))
        image[:] = spec.pad
        shown = grid(picture, spec).shown
        image[shown.top : shown.top + shown.height, shown.left : shown.left + shown.width] = colours(picture, spec)
        scaled = ((image - spec.mean) / spec.std)[..., :: 1 if spec.order == "rgb" else -1].astype(np.float32)
        laid_out = scaled.transpose(2, 0, 1) if spec.layout == "nchw" else scaled
        with np.errstate(over="ignore"):  # past 65504 float16 is infinite, as it is on a device
            out[index] = bfloat16_bits(laid_out) if spec.dtype == "bfloat16" else laid_out
    return out


def colours(picture: Planes, spec: TensorSpec) -> Real:
    """What is shown of a picture: float64 [h, w, 3], RGB, 0 to 255, upright."""
    falls = grid(picture, spec)
    luma = _resampled(picture.luma[..., None], falls.luma)[..., 0]
    cb, cr = np.moveaxis(_resampled(picture.chroma, falls.chroma), -1, 0)
    to = conversion(picture)
    red = to.y * luma + to.red_cr * cr + to.added[0]
    green = to.y * luma + to.green_cb * cb + to.green_cr * cr + to.added[1]
    blue = to.y * luma + to.blue_cb * cb + to.added[2]
    return np.rot90(np.clip(np.stack((red, green, blue), axis=-1), 0.0, 255.0), -picture.num_turns)


def weights(axis: Axis) -> Real:
    """float64 [outputs, samples]: what each output takes of each sample."""
    centres = axis.start + (np.arange(axis.num_out) + 0.5) * axis.step
    distances = np.abs(np.arange(axis.num) + 0.5 - centres[:, None])
    triangles = np.maximum(0.0, 1.0 - distances / axis.reach)
    return np.asarray(triangles / triangles.sum(axis=1, keepdims=True))


def bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Of finite values, rounded to nearest even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def _resampled(plane: NDArray[Any], axes: tuple[Axis, Axis]) -> Real:
    across, down = (weights(axis) for axis in axes)
    narrow = np.einsum("ux,yxc->yuc", across, plane.astype(np.float64), optimize=True)
    return np.asarray(np.einsum("vy,yuc->vuc", down, narrow, optimize=True))
