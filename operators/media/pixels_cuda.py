"""Prepares batches of pictures on a CUDA device: one upload of what is wanted, one launch of `kernels/prepare.cu`.

What the kernel is told (a record for each picture, one for the tensor) and how it is launched follow from the
pictures and the spec by pure functions, so all but the calls of CuPy is tested without a device.

**Whole weights.** Along rows the kernel sums in 32 bits: 255 * sum of weights must fit. A triangle of reach r whose
peak is p sums to at most p (r + 1), so p = 2^24 / (r + 2), and no more than 16 bits.

**Tiles.** A block holds the rows that its 64 x h outputs need, filtered, in shared memory: floor((k - 1) s + 2 r) + 1
for k outputs down at step s, of luma and half as many pairs of chroma. A lower tile reads rows again that others
read: (h s + 2 r) / (h s) times each. So h is the largest at which these rows fit and the batch has blocks enough for
all multiprocessors. A picture whose rows do not fit at the lowest is summed without holding.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from operators.media.pixels import Axis, Colour, Crop, Grid, Planes, TensorSpec, conversion, grid

SOURCE = Path(__file__).parent / "kernels" / "prepare.cu"
THREADS = 256
TILE_WIDTH = 64
LOG2_HEIGHTS = (4, 3, 2, 1)
MAX_SHARED_BYTES = 48 * 1024 - 256  # what every device gives a block without being asked, less the tile's own record
BLOCKS_A_MULTIPROCESSOR = 2  # at least, before tiles are made lower
MAX_PICTURES = 65_535
MAX_SLOTS = 4

AXIS = np.dtype(
    [
        ("first_q32", "i8"),
        ("step_q32", "i8"),
        ("reach_q32", "i8"),
        ("slope", "f4"),
        ("peak", "f4"),
        ("num", "i4"),
        ("unused", "i4"),
    ]
)
PLANE = np.dtype([("samples", "u8"), ("pitch", "i8"), ("x", AXIS), ("y", AXIS), ("is_aligned", "i4"), ("unused", "i4")])
PICTURE = np.dtype(
    [
        ("luma", PLANE),
        ("chroma", PLANE),
        ("products", "f4", 5),
        ("added", "f4", 3),
        ("shown", "i4", 4),
        ("num_turns", "i4"),
        ("sample_bytes", "i4"),
    ]
)
TARGET = np.dtype(
    [
        ("picture_stride", "i8"),
        ("row_stride", "i8"),
        ("pixel_stride", "i8"),
        ("channel", "i8", 3),
        ("gain", "f4", 3),
        ("bias", "f4", 3),
        ("pad", "f4", 3),
        ("width", "i4"),
        ("height", "i4"),
        ("dtype", "i4"),
    ]
)
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Launch:
    """How the kernel is launched for a batch."""

    blocks: tuple[int, int, int]
    log2_height: int  # of a tile
    shared_bytes: int


def described(pictures: Sequence[Planes], spec: TensorSpec) -> NDArray[Any]:
    """A record of PICTURE for each."""
    told = b"".join(_told(*_form(picture), spec)[0] for picture in pictures)
    records = np.frombuffer(told, PICTURE).copy()
    for name in "luma", "chroma":
        planes = [getattr(picture, name) for picture in pictures]
        found = np.array([(address_of(plane), pitch_of(plane)) for plane in planes], np.uint64).reshape(-1, 2)
        records[name]["samples"], records[name]["pitch"] = found.T
        records[name]["is_aligned"] = (found % 4 == 0).all(axis=1)
    return records


def _form(picture: Planes) -> tuple[tuple[int, int], np.dtype[Any], Colour, Crop | None, int]:
    """All of a picture but where it is."""
    return (picture.height, picture.width), picture.luma.dtype, picture.colour, picture.crop, picture.rotation


@functools.lru_cache(maxsize=4096)
def _told(
    size: tuple[int, int], kind: Any, colour: Colour, crop: Crop | None, rotation: int, spec: TensorSpec
) -> tuple[bytes, tuple[int, ...]]:
    """The record of a picture that is nowhere yet, and what its rows take of shared memory for each of LOG2_HEIGHTS.
    Most pictures are like others before them, and this takes longer than to prepare one."""
    luma = np.broadcast_to(np.zeros((), kind), size)
    chroma = np.broadcast_to(np.zeros((), kind), (-(-size[0] // 2), -(-size[1] // 2), 2))
    picture = Planes(luma, chroma, colour, crop, rotation)
    falls, to = grid(picture, spec), conversion(picture)
    record = np.zeros((), PICTURE)
    for plane, axes in (("luma", falls.luma), ("chroma", falls.chroma)):
        for name, axis in zip("xy", axes, strict=True):
            one = record[plane][name]
            one["first_q32"] = round((axis.start + axis.step / 2) * 2**32)
            one["step_q32"], one["reach_q32"] = round(axis.step * 2**32), round(axis.reach * 2**32)
            one["slope"], one["peak"], one["num"] = 1 / axis.reach, peak(axis), axis.num
    record["products"] = (to.y, to.red_cr, to.green_cb, to.green_cr, to.blue_cb)
    record["added"] = to.added
    record["shown"] = (falls.shown.left, falls.shown.top, falls.shown.width, falls.shown.height)
    record["num_turns"], record["sample_bytes"] = picture.num_turns, luma.dtype.itemsize
    return record.tobytes(), tuple(_held_bytes(picture, falls, log2_height) for log2_height in LOG2_HEIGHTS)


def _held_bytes(picture: Planes, falls: Grid, log2_height: int) -> int:
    across, down = TILE_WIDTH, int(2**log2_height)
    if picture.num_turns % 2:
        across, down = down, across
    num_luma, num_chroma = _max_rows(falls.luma[1], down), _max_rows(falls.chroma[1], down)
    return 4 * (across + 1) * (num_luma + num_luma % 2 + 2 * num_chroma)


def target(spec: TensorSpec) -> NDArray[Any]:
    """The one record of TARGET: strides count elements, and what goes by channel goes by R, G, B."""
    record = np.zeros(1, TARGET)
    size = spec.width * spec.height
    channel, pixel, row = (size, 1, spec.width) if spec.layout == "nchw" else (1, 3, 3 * spec.width)
    record["picture_stride"], record["row_stride"], record["pixel_stride"] = 3 * size, row, pixel
    record["channel"] = [channel * place for place in ((0, 1, 2) if spec.order == "rgb" else (2, 1, 0))]
    mean, std = np.array(spec.mean), np.array(spec.std)
    record["gain"], record["bias"], record["pad"] = 1 / std, -mean / std, (np.array(spec.pad) - mean) / std
    record["width"], record["height"], record["dtype"] = spec.width, spec.height, DTYPES.index(spec.dtype)
    return record


def launch(pictures: Sequence[Planes], spec: TensorSpec, num_multiprocessors: int = 132) -> Launch:
    """How to launch a batch on a device of so many multiprocessors. Raises ValueError where it is too large."""
    if len(pictures) > MAX_PICTURES:
        raise ValueError(f"a batch of {len(pictures)} pictures: at most {MAX_PICTURES} are prepared at once")
    needs = [need for picture in pictures if (need := held_bytes(picture, spec))[-1] <= MAX_SHARED_BYTES]
    for place, log2_height in enumerate(LOG2_HEIGHTS):
        blocks = (-(-spec.width // TILE_WIDTH), -(-spec.height // 2**log2_height), len(pictures))
        shared_bytes = max((need[place] for need in needs), default=0)
        is_busy = math.prod(blocks) >= BLOCKS_A_MULTIPROCESSOR * num_multiprocessors
        if log2_height == LOG2_HEIGHTS[-1] or (is_busy and shared_bytes <= MAX_SHARED_BYTES):
            return Launch(blocks, log2_height, shared_bytes)
    raise AssertionError("there is a lowest tile")


def held_bytes(picture: Planes, spec: TensorSpec) -> tuple[int, ...]:
    """Of shared memory, for the rows that any tile of a picture needs, for each of LOG2_HEIGHTS."""
    return _told(*_form(picture), spec)[1]


def peak(axis: Axis) -> float:
    """The largest whole weight."""
    return float(min(65_535, int(2**24 / (axis.reach + 2))))


def _max_rows(axis: Axis, num_out: int) -> int:
    span = (min(num_out, axis.num_out) - 1) * axis.step + 2 * axis.reach
    return min(axis.num, math.floor(span + 1e-6) + 1)  # places are rounded to 2^-32


def address_of(plane: Any) -> int:
    """Of its first sample, wherever it is."""
    interface = getattr(plane, "__cuda_array_interface__", None) or plane.__array_interface__
    return int(interface["data"][0])


def pitch_of(plane: Any) -> int:
    """Bytes from one row to the next. Raises ValueError where samples do not follow one another."""
    wanted = plane.dtype.itemsize
    for side, stride in zip(plane.shape[:0:-1], plane.strides[:0:-1], strict=True):
        if side > 1 and stride != wanted:
            raise ValueError(f"a plane {plane.shape} of strides {plane.strides}: its rows must be contiguous")
        wanted *= side
    pitch = int(plane.strides[0]) if plane.shape[0] > 1 else wanted
    if pitch < wanted or pitch % plane.dtype.itemsize:
        raise ValueError(f"a plane {plane.shape} of strides {plane.strides}: its rows must be contiguous and apart")
    return pitch


# --- the device ------------------------------------------------------------------------------------------


def missing() -> str | None:
    """Why nothing can be prepared on a device here; None where it can."""
    try:
        import cupy
    except ImportError:
        return "CuPy is not installed"
    try:
        return None if cupy.cuda.runtime.getDeviceCount() else "there is no CUDA device"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"there is no CUDA device: {error}"


@functools.cache
def kernel(device: int) -> Any:
    """The kernel, compiled by NVRTC for a device, once."""
    import cupy

    with cupy.cuda.Device(device):
        return cupy.RawModule(code=SOURCE.read_text(), options=("-std=c++17",)).get_function("prepare")


@dataclass(eq=False)
class _Slot:
    """Memory for what one launch is told, and what that launch reads, until `done`."""

    num_bytes: int
    pinned: Any
    told: Any  # uint8 [num_bytes], device memory
    done: Any
    read: Sequence[Planes] = field(default=())


class Preparing:
    """Prepares batches on one device, in the order in which it is asked; of one thread at a time."""

    def __init__(self, device: int = 0) -> None:
        import cupy

        self._cupy = cupy
        self._device = cupy.cuda.Device(device)
        self._kernel = kernel(device)
        self._num_multiprocessors = int(self._device.attributes["MultiProcessorCount"])
        self._slots: list[_Slot] = []  # least recently used first
        with self._device:
            self._stream = cupy.cuda.Stream(non_blocking=True)

    def prepared(self, pictures: Sequence[Planes], spec: TensorSpec, out: Any = None) -> Any:
        """What `operators.media.pixels.prepared` returns, in device memory: cupy [N, 3, H, W] or [N, H, W, 3].

        Returns at once. It begins after what the current stream and the default stream were given before, and the
        current stream goes on after it: so the result can be used there, and `pictures` and `out` may come from there.
        Planes are kept alive until they were read. `out`, where it is given, has the shape and type of the result and
        is C-contiguous."""
        cupy = self._cupy
        with self._device:
            if out is None:
                out = cupy.empty(spec.shape(len(pictures)), spec.kind)
            elif out.shape != spec.shape(len(pictures)) or out.dtype != spec.kind or not out.flags.c_contiguous:
                raise ValueError(f"out is {out.dtype} {out.shape}: it must be C-contiguous {spec.shape(len(pictures))}")
            if not pictures:
                return out
            how = launch(pictures, spec, self._num_multiprocessors)
            records, one = described(pictures, spec), target(spec)
            current = cupy.cuda.get_current_stream()
            slot = self._slot(records.nbytes + one.nbytes)
            slot.pinned[: records.nbytes] = records.view(np.uint8)
            slot.pinned[records.nbytes : records.nbytes + one.nbytes] = one.view(np.uint8)
            for stream in (current, cupy.cuda.Stream.null):
                self._stream.wait_event(stream.record())
            with self._stream:
                address = int(slot.told.data.ptr)
                slot.told.data.copy_from_host_async(slot.pinned.ctypes.data, records.nbytes + one.nbytes, self._stream)
                told = (np.uint64(address), np.uint64(address + records.nbytes), out)
                numbers = (np.int32(how.log2_height), np.int32(how.shared_bytes))
                self._kernel(how.blocks, (THREADS,), (*told, *numbers), shared_mem=how.shared_bytes)
            slot.read = tuple(pictures)
            slot.done.record(self._stream)
            current.wait_event(slot.done)
            self._slots.append(slot)
        return out

    def wait(self) -> None:
        """Until all that was asked for is there; lets go of every picture."""
        self._stream.synchronize()
        for slot in self._slots:
            slot.read = ()

    def _slot(self, num_bytes: int) -> _Slot:
        """One that is not in use, taken out of those there are."""
        cupy = self._cupy
        for slot in self._slots:
            if slot.done.done:
                slot.read = ()
        if self._slots and (not self._slots[0].read or len(self._slots) == MAX_SLOTS):
            slot = self._slots.pop(0)
            slot.done.synchronize()
            slot.read = ()
            if slot.num_bytes >= num_bytes:
                return slot
        size = 4096 * -(-num_bytes // 4096)
        pinned = np.frombuffer(cupy.cuda.alloc_pinned_memory(size), np.uint8, size)
        with self._stream:
            told = cupy.empty(size, np.uint8)
        return _Slot(size, pinned, told, cupy.cuda.Event(disable_timing=True))
