"""Pictures as planes, for tests of what is made of them."""

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from operators.media.pixels import Planes


def fenced(values: NDArray[Any], pitch: int) -> NDArray[Any]:
    """A plane whose rows are `pitch` bytes apart and whose last sample is the last byte of a memory page, with a page
    after it that nobody may read."""
    rows = values.reshape(len(values), -1)
    row_bytes = rows.shape[1] * values.dtype.itemsize
    num_bytes = pitch * (len(rows) - 1) + row_bytes
    size = -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + mmap.PAGESIZE)
    whole = np.frombuffer(memory, np.uint8)
    forbid(whole.ctypes.data + size)
    start = size - num_bytes
    whole[:size] = 0xA5  # what stands between rows must not be seen either
    inner = values.strides[1:] if values.ndim == 2 else (2 * values.dtype.itemsize, values.dtype.itemsize)
    plane = np.ndarray(values.shape, values.dtype, whole, start, (pitch, *inner))
    plane[...] = values
    return plane


def forbid(address: int) -> None:
    """Reading the page at an address ends the process."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), 0):
        raise OSError(ctypes.get_errno(), "mprotect")


def noise(
    width: int, height: int, seed: int = 0, kind: Any = np.uint8, extra: tuple[int, int] | None = None, **more: Any
) -> Planes:
    """Samples of any value: the hardest there is for a filter. With `extra`, planes in fenced memory whose pitch is so
    many samples more than a row of luma and of chroma has."""
    chance = np.random.default_rng(seed)
    shift = 0 if kind == np.uint8 else 6
    most = 256 if kind == np.uint8 else 1024
    luma = (chance.integers(0, most, (height, width)) << shift).astype(kind)
    chroma = (chance.integers(0, most, (-(-height // 2), -(-width // 2), 2)) << shift).astype(kind)
    if extra is not None:
        size = luma.dtype.itemsize
        luma = fenced(luma, (width + extra[0]) * size)
        chroma = fenced(chroma, (chroma.shape[1] * 2 + extra[1]) * size)
    return Planes(luma, chroma, **more)


def of_420(frame: Any) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Luma and interleaved chroma of a yuv420p frame of PyAV."""
    luma, blue, red = (
        np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
        for plane in frame.planes
    )
    return luma, np.stack((blue, red), axis=-1)
