"""The kernel that prepares pictures computes what the reference says: its own lines, compiled for this host.

Reading a byte behind a plane ends the process: planes end where memory that may not be read begins."""

import ctypes
import itertools
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from planes import noise

from operators.media import pixels_cuda
from operators.media.pixels import Colour, Crop, Planes, TensorSpec, prepared

STEPS = TensorSpec(64, 64, std=(1.0, 1.0, 1.0))  # in steps of 0 to 255
TOLERANCE = 0.01  # of those, in float32: weights of 16 bits along rows, float32 down columns
NARROW = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}  # half an ulp, relative
INSIDE = """
#include "{source}"
extern "C" int num_held(const Picture *pictures, int log2_height, int shared_bytes, int x, int y, int z) {{
    int num = 0;
    for (int i = 0; i < x * y * z; ++i) {{
        const Place place = {{i % x, i / x % y, i / (x * y), 0}};
        const Tile tile = tile_of(pictures[place.block_z], place, log2_height, shared_bytes);
        num += tile.is_held || !tile.num_u;
    }}
    return num;
}}
extern "C" void rounded(const float *values, unsigned short *halves, unsigned short *brains, int num) {{
    for (int i = 0; i < num; ++i) halves[i] = float16_of(values[i]), brains[i] = bfloat16_of(values[i]);
}}
extern "C" void sizes(int *found) {{
    found[0] = sizeof(Axis), found[1] = sizeof(Plane), found[2] = sizeof(Picture), found[3] = sizeof(Target);
    found[4] = THREADS, found[5] = TILE_WIDTH;
}}
"""


def built(folder: Path, *options: str) -> ctypes.CDLL:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++")
    source, library = folder / "inside.cpp", folder / "inside.so"
    source.write_text(INSIDE.format(source=pixels_cuda.SOURCE))
    words = [
        compiler,
        "-std=c++17",
        "-O1",
        "-fno-strict-aliasing",
        "-Wall",
        "-Wno-parentheses",
        "-Wno-unknown-pragmas",
        "-Werror",
    ]
    words += ["-fsanitize=undefined", "-fno-sanitize-recover=undefined", "-static-libubsan", *options]
    done = subprocess.run(
        [*words, "-shared", "-fPIC", source, "-o", library], capture_output=True, text=True, check=False
    )
    if done.returncode and "san" in done.stderr:
        pytest.skip(f"g++ has no such sanitizer: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return built(tmp_path_factory.mktemp("kernel"))


def pointer(values: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(values.ctypes.data)


def run(
    library: ctypes.CDLL, pictures: Sequence[Planes], spec: TensorSpec, how: pixels_cuda.Launch | None = None
) -> NDArray[Any]:
    how = how or pixels_cuda.launch(pictures, spec)
    out = np.full(spec.shape(len(pictures)), 0x7B7B, spec.kind)
    records, one = pixels_cuda.described(pictures, spec), pixels_cuda.target(spec)
    library.prepare(pointer(records), pointer(one), pointer(out), how.log2_height, how.shared_bytes, *how.blocks)
    return out


def values_of(tensor: NDArray[Any]) -> NDArray[np.float64]:
    """Whatever the type, as numbers."""
    if tensor.dtype == np.uint16:
        tensor = (tensor.astype(np.uint32) << 16).view(np.float32)
    return tensor.astype(np.float64)


def check(found: NDArray[Any], pictures: Sequence[Planes], spec: TensorSpec) -> None:
    wanted = values_of(prepared(pictures, TensorSpec(**{**vars(spec), "dtype": "float32"})))
    allowed = TOLERANCE / min(map(abs, spec.std)) + NARROW[spec.dtype] * np.abs(wanted)
    wrong = np.abs(values_of(found) - wanted) > allowed
    assert not wrong.any(), (np.argwhere(wrong)[:3], values_of(found)[wrong][:3], wanted[wrong][:3])


EVERYTHING = list(
    itertools.product(("float32", "float16", "bfloat16"), ("nchw", "nhwc"), ("rgb", "bgr"), ("stretch", "letterbox"))
)


@pytest.mark.parametrize(("dtype", "layout", "order", "fit"), EVERYTHING)
def test_a_mixed_batch_in_every_form(library: ctypes.CDLL, dtype: Any, layout: Any, order: Any, fit: Any) -> None:
    spec = TensorSpec(
        70,
        45,
        fit,
        mean=(123.675, 116.28, 103.53),
        std=(58.395, 57.12, 57.375),
        order=order,
        layout=layout,
        dtype=dtype,
    )
    pictures = [
        noise(96, 54, 1, extra=(0, 0)),
        noise(33, 61, 2, extra=(7, 3), colour=Colour("bt601", True, "centre"), rotation=90),
        noise(141, 17, 3, np.uint16, extra=(2, 2), colour=Colour("bt2020", siting="top_left"), rotation=180),
        noise(20, 20, 4, np.uint16, extra=(5, 3), colour=Colour(full_range=True), rotation=270),
        noise(200, 120, 5, extra=(56, 56), crop=Crop(10.25, 3.5, 90.5, 111.0)),
    ]
    check(run(library, pictures, spec), pictures, spec)


@pytest.mark.parametrize("scale", [1 / 20, 1 / 7.3, 1 / 3, 0.5, 0.77, 1.0, 1.5, 8.0])
@pytest.mark.parametrize("rotation", [0, 90])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_every_scale(library: ctypes.CDLL, scale: float, rotation: int, kind: Any) -> None:
    shown = (72, 40) if scale <= 1 else (160, 90)
    picture = noise(round(shown[0] / scale), round(shown[1] / scale), 6, kind, extra=(4, 4), rotation=rotation)
    spec = TensorSpec(*shown, std=(1.0, 1.0, 1.0))
    check(run(library, [picture], spec), [picture], spec)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_what_shared_memory_cannot_hold_is_summed_all_the_same(library: ctypes.CDLL, kind: Any) -> None:
    picture = noise(700, 2400, 7, kind, extra=(0, 0))
    spec = TensorSpec(9, 4, std=(1.0, 1.0, 1.0))
    how = pixels_cuda.launch([picture], spec)
    assert how.shared_bytes == 0
    check(run(library, [picture], spec, how), [picture], spec)


def test_one_that_cannot_be_held_does_not_keep_others_from_it(library: ctypes.CDLL) -> None:
    pictures = [noise(90, 3000, 8), noise(128, 128, 9)]
    how = pixels_cuda.launch(pictures, STEPS, num_multiprocessors=1)
    assert held(library, pictures, STEPS, how) >= how.blocks[0] * how.blocks[1]
    check(run(library, pictures, STEPS, how), pictures, STEPS)


def held(library: ctypes.CDLL, pictures: Sequence[Planes], spec: TensorSpec, how: pixels_cuda.Launch) -> int:
    """How many tiles are held, or empty."""
    records = pixels_cuda.described(pictures, spec)
    return int(library.num_held(pointer(records), how.log2_height, how.shared_bytes, *how.blocks))


SIDES = st.integers(1, 150)
PICTURES = st.builds(
    noise,
    SIDES,
    SIDES,
    st.integers(0, 9),
    st.sampled_from([np.uint8, np.uint16]),
    st.tuples(st.integers(0, 9), st.integers(0, 9)),
    colour=st.builds(
        Colour,
        st.sampled_from(["bt601", "bt709", "bt2020"]),
        st.booleans(),
        st.sampled_from(["left", "centre", "top_left"]),
    ),
    rotation=st.sampled_from([0, 90, 180, 270]),
)


@st.composite
def cropped(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Planes:
    picture = draw(PICTURES)
    x, y = draw(st.floats(0, picture.width - 1)), draw(st.floats(0, picture.height - 1))
    width, height = draw(st.floats(0.5, picture.width - x)), draw(st.floats(0.5, picture.height - y))
    crop = Crop(x, y, min(width, picture.width - x), min(height, picture.height - y))
    return Planes(picture.luma, picture.chroma, picture.colour, crop, picture.rotation)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    pictures=st.lists(st.one_of(PICTURES, cropped()), min_size=1, max_size=3),
    spec=st.builds(
        TensorSpec,
        st.integers(1, 140),
        st.integers(1, 90),
        st.sampled_from(["stretch", "letterbox"]),
        st.sampled_from(["centre", "top_left"]),
        std=st.just((1.0, 1.0, 1.0)),
        order=st.sampled_from(["rgb", "bgr"]),
        layout=st.sampled_from(["nchw", "nhwc"]),
    ),
    num_multiprocessors=st.sampled_from([1, 132]),
)
def test_any_batch(library: ctypes.CDLL, pictures: list[Planes], spec: TensorSpec, num_multiprocessors: int) -> None:
    how = pixels_cuda.launch(pictures, spec, num_multiprocessors)
    place = pixels_cuda.LOG2_HEIGHTS.index(how.log2_height)
    if all(pixels_cuda.held_bytes(each, spec)[place] <= how.shared_bytes for each in pictures):
        assert held(library, pictures, spec, how) == np.prod(how.blocks)
    check(run(library, pictures, spec, how), pictures, spec)


def test_held_or_not_is_nearly_the_same(library: ctypes.CDLL) -> None:
    pictures = [noise(150, 100, 10), noise(61, 83, 11, np.uint16, rotation=90)]
    how = pixels_cuda.launch(pictures, STEPS)
    apart = np.abs(
        run(library, pictures, STEPS, how)
        - run(library, pictures, STEPS, pixels_cuda.Launch(how.blocks, how.log2_height, 0))
    )
    assert apart.max() < 1e-3


def test_halves_are_rounded_to_nearest_even(library: ctypes.CDLL) -> None:
    chance = np.random.default_rng(12)
    values = chance.integers(0, 2**32, 20_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    edges = [0.0, -0.0, 65504.0, 65519.996, 65520.0, 1e9, 6.1e-5, 5.96e-8, 2.98e-8, 2.981e-8, 1.0009766, 1.00048828125]
    values = np.concatenate((values[np.isfinite(values)], np.array([*edges, *(-each for each in edges)], np.float32)))
    halves, brains = np.zeros(len(values), np.uint16), np.zeros(len(values), np.uint16)
    library.rounded(pointer(values), pointer(halves), pointer(brains), len(values))
    with np.errstate(over="ignore"):
        assert (halves == values.astype(np.float16).view(np.uint16)).all()
    near = values.astype(np.float64)
    grid = values.view(np.uint32) & 0xFFFF0000
    below, above = grid.view(np.float32).astype(np.float64), (grid + 0x10000).view(np.float32).astype(np.float64)
    got = (brains.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    inside = np.isfinite(above)
    is_below = (np.abs(near - below) < np.abs(above - near)) | (
        (np.abs(near - below) == np.abs(above - near)) & (grid >> 16 & 1 == 0)
    )
    assert (got == np.where(is_below, below, above))[inside].all()


def test_records_are_laid_out_alike(library: ctypes.CDLL) -> None:
    found = (ctypes.c_int * 6)()
    library.sizes(found)
    records = (pixels_cuda.AXIS, pixels_cuda.PLANE, pixels_cuda.PICTURE, pixels_cuda.TARGET)
    assert list(found) == [*(each.itemsize for each in records), pixels_cuda.THREADS, pixels_cuda.TILE_WIDTH]


def test_a_batch_of_none(library: ctypes.CDLL) -> None:
    assert pixels_cuda.launch([], STEPS).blocks[2] == 0
    assert run(library, [], STEPS).shape == (0, 3, 64, 64)


def test_a_large_batch_has_high_tiles_and_a_small_one_blocks_for_all() -> None:
    picture, spec = noise(1920, 1080), TensorSpec(640, 640, "letterbox")
    assert pixels_cuda.launch([picture] * 16, spec).log2_height == 4
    alone = pixels_cuda.launch([picture], TensorSpec(224, 224))
    assert alone.log2_height < 4
    assert pixels_cuda.launch([noise(3840, 2160)] * 16, spec).shared_bytes <= pixels_cuda.MAX_SHARED_BYTES


def test_whole_weights_do_not_overflow() -> None:
    for reach in (1.0, 1.7, 3.0, 254.0, 254.1, 300.0, 5000.0, 32768.0):
        axis = pixels_cuda.Axis(0.0, reach, 1 << 20, 1)
        assert 255 * (pixels_cuda.peak(axis) * (reach + 1) + reach + 1) < 2**32


def test_planes_whose_samples_do_not_follow_one_another_are_refused() -> None:
    luma = np.zeros((8, 16), np.uint8)
    for plane in (luma[:, ::2], luma[::-1], luma.T, np.zeros((4, 4, 4), np.uint8)[..., :2]):
        with pytest.raises(ValueError, match="contiguous"):
            pixels_cuda.pitch_of(plane)
    assert pixels_cuda.pitch_of(luma[:, :5]) == 16
    assert pixels_cuda.pitch_of(luma[:1]) == 16
    with pytest.raises(ValueError, match="at most 65535"):
        pixels_cuda.launch([noise(2, 2)] * 65_536, STEPS)


@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90", "sm_120"])
def test_the_device_compiler_takes_it_and_nothing_spills(tmp_path: Path, architecture: str) -> None:
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("there is no nvcc")
    known = subprocess.run([compiler, "--list-gpu-code"], capture_output=True, text=True, check=False).stdout.split()
    if architecture not in known:
        pytest.skip(f"this nvcc does not know {architecture}")
    words = [compiler, "-std=c++17", f"-arch={architecture}", "-cubin", "-Xptxas", "-v", str(pixels_cuda.SOURCE)]
    done = subprocess.run([*words, "-o", str(tmp_path / "k.cubin")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in done.stderr
    (registers,) = re.findall(r"Used (\d+) registers", done.stderr)
    assert int(registers) <= 64  # four blocks of 256 threads on a multiprocessor
