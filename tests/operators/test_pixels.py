"""What a model takes of decoded pictures, held to those who have long done each part: Pillow and libswscale."""

from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from planes import noise, of_420

from operators.media.pixels import Colour, Crop, Filled, Planes, TensorSpec, colours, filled, prepared

GREY = Colour(full_range=True)
SIDES = st.integers(1, 40)


def steps(width: int, height: int, **more: Any) -> TensorSpec:
    """A spec whose values are in steps of 0 to 255."""
    return TensorSpec(width, height, std=(1.0, 1.0, 1.0), **more)


def grey(luma: NDArray[Any], **more: Any) -> Planes:
    height, width = luma.shape
    return Planes(luma, np.full((-(-height // 2), -(-width // 2), 2), 128, np.uint8), GREY, **more)


@pytest.mark.parametrize("size", [(64, 48), (200, 150), (13, 7), (1, 1), (31, 96), (9, 48), (301, 2)])
@pytest.mark.parametrize("box", [None, (3.25, 2.5, 80.75, 40.0), (10, 10, 11, 11)])
def test_resampling_is_that_of_pillow(size: tuple[int, int], box: Any) -> None:
    luma = np.random.default_rng(1).integers(0, 256, (48, 96), dtype=np.uint8)
    real = Image.fromarray(luma).convert("F")
    wanted = np.asarray(real.resize(size, Image.Resampling.BILINEAR, box=box))
    crop = Crop(box[0], box[1], box[2] - box[0], box[3] - box[1]) if box else None
    found = prepared([grey(luma, crop=crop)], steps(*size))[0]
    assert np.abs(found - wanted).max() < 2e-4  # Pillow's sums are in float32
    rounded = np.asarray(Image.fromarray(luma).resize(size, Image.Resampling.BILINEAR, box=box))
    assert np.abs(found - rounded).max() < 1.2  # it rounds twice, to bytes


MATRICES: dict[Any, Any] = {"bt601": Colorspace.ITU601, "bt709": Colorspace.ITU709, "bt2020": Colorspace.BT2020}


@pytest.mark.parametrize("matrix", ["bt601", "bt709", "bt2020"])
@pytest.mark.parametrize("full_range", [False, True])
def test_colours_are_those_of_libswscale(matrix: Any, full_range: bool) -> None:
    """Smooth pictures: how chroma is enlarged is not what is asked here. Of its ways that to float is the best: off by
    half a step where chroma is constant, by up to 1.5 where it is not. Another matrix or range is off by more."""
    down, across = np.mgrid[0:96, 0:128]
    frame = av.VideoFrame(128, 96, "yuv420p")
    slopes = (60 + across + down / 2, 100 + across[::2, ::2] / 4 + down[::2, ::2] / 8, 150 - across[::2, ::2] / 4)
    for plane, values in zip(frame.planes, slopes, strict=True):
        rows = np.zeros((plane.height, plane.line_size), np.uint8)
        rows[:, : plane.width] = values
        plane.update(rows.tobytes())
    frame.color_range = ColorRange.JPEG if full_range else ColorRange.MPEG
    frame.colorspace = MATRICES[matrix]
    done = frame.reformat(format="gbrpf32le", src_colorspace=MATRICES[matrix], interpolation="BILINEAR")
    wanted = done.to_ndarray().astype(float) * 255
    picture = Planes(*of_420(frame), Colour(matrix, full_range))
    apart = np.abs(colours(picture, steps(128, 96)) - wanted)
    assert apart.max() < 1.6
    assert apart.mean() < 0.65
    for other in (Colour(each, full) for each in MATRICES for full in (False, True)):
        if other != picture.colour:
            assert (
                np.abs(colours(Planes(picture.luma, picture.chroma, other), steps(128, 96)) - wanted).mean()
                > 1.3 * apart.mean()
            )


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", ["bt601", "bt709", "bt2020"])
def test_black_white_and_primaries(kind: Any, full_range: bool, matrix: Any) -> None:
    """White is 255, black 0; and a colour put into Y, Cb, Cr by the definition comes out again."""
    colour = Colour(matrix, full_range)
    kr, kb = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}[matrix]
    for red, green, blue in ((0, 0, 0), (1, 1, 1), (0.75, 0.25, 0.5), (0.2, 0.8, 0.1)):
        y = kr * red + (1 - kr - kb) * green + kb * blue
        pb, pr = (blue - y) / (2 - 2 * kb), (red - y) / (2 - 2 * kr)
        bits = 8 if kind == np.uint8 else 10
        most, unit = 2**bits - 1, 2 ** (bits - 8)
        middle = 128 * unit
        codes = (
            (y * most, middle + pb * most, middle + pr * most)
            if full_range
            else (16 * unit + 219 * unit * y, middle + 224 * unit * pb, middle + 224 * unit * pr)
        )
        whole = np.rint(codes).astype(kind) << (0 if bits == 8 else 6)
        picture = Planes(np.full((2, 2), whole[0]), np.array([[whole[1:]]]), colour)
        found = prepared([picture], steps(2, 2))[0, :, 0, 0]
        assert np.abs(found - 255 * np.array((red, green, blue))).max() < 2.0 / unit  # codes are whole


@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 255), st.sampled_from([0, 90, 180, 270]))
@settings(max_examples=40, deadline=None)
def test_a_constant_stays_one(width: int, height: int, out_width: int, out_height: int, value: int, turn: int) -> None:
    found = prepared([grey(np.full((height, width), value, np.uint8), rotation=turn)], steps(out_width, out_height))
    assert np.abs(found - value).max() < 1e-4


@given(st.integers(1, 20), SIDES, SIDES, SIDES, st.booleans())
@settings(max_examples=40, deadline=None)
def test_what_is_mirrored_comes_out_mirrored(
    half: int, height: int, out_width: int, out_height: int, wide: bool
) -> None:
    picture = noise(2 * half, height, kind=np.uint16 if wide else np.uint8, colour=Colour(siting="centre"))
    mirrored = Planes(picture.luma[:, ::-1], picture.chroma[:, ::-1], picture.colour)
    one, other = (prepared([each], steps(out_width, out_height)) for each in (picture, mirrored))
    assert np.abs(one - other[..., ::-1]).max() < 1e-3


@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from(["centre", "top_left"]), st.sampled_from([0, 90, 180, 270]))
@settings(max_examples=60, deadline=None)
def test_a_letterbox_is_a_stretch_into_what_is_filled(
    width: int, height: int, out_width: int, out_height: int, place: Any, turn: int
) -> None:
    picture = noise(width, height, rotation=turn)
    spec = steps(out_width, out_height, fit="letterbox", place=place, pad=(1.0, 2.0, 3.0))
    shown = filled(*((height, width) if turn % 180 else (width, height)), spec)
    found = prepared([picture], spec)[0]
    part = np.s_[:, shown.top : shown.top + shown.height, shown.left : shown.left + shown.width]
    assert (found[part] == prepared([picture], steps(shown.width, shown.height))[0]).all()
    found[part] = np.array((1.0, 2.0, 3.0))[:, None, None]
    assert (found == np.array((1.0, 2.0, 3.0))[:, None, None]).all()


@pytest.mark.parametrize(
    ("size", "out", "place", "wanted"),
    [
        ((1920, 1080), (640, 640), "centre", Filled(0, 140, 640, 360)),
        ((1080, 1920), (640, 640), "centre", Filled(140, 0, 360, 640)),
        ((1920, 1080), (640, 640), "top_left", Filled(0, 0, 640, 360)),
        ((100, 33), (50, 50), "centre", Filled(0, 16, 50, 17)),  # 16.5 is rounded up; of 33 lines one more is below
        ((4000, 2), (640, 640), "centre", Filled(0, 319, 640, 1)),
        ((7, 7), (640, 640), "centre", Filled(0, 0, 640, 640)),
    ],
)
def test_what_a_letterbox_fills(size: tuple[int, int], out: tuple[int, int], place: Any, wanted: Filled) -> None:
    assert filled(*size, TensorSpec(*out, "letterbox", place)) == wanted
    assert filled(*size, TensorSpec(*out)) == Filled(0, 0, *out)


@given(SIDES, SIDES, st.sampled_from([90, 180, 270, 360, -90]))
@settings(max_examples=30, deadline=None)
def test_a_rotation_is_that_of_what_was_not_turned(width: int, height: int, turn: int) -> None:
    picture = noise(width, height)
    turned = Planes(picture.luma, picture.chroma, rotation=turn)
    upright = steps(12, 17) if turn % 180 == 0 else steps(17, 12)
    straight = prepared([picture], steps(12, 17))
    assert (prepared([turned], upright) == np.rot90(straight, -turn // 90, axes=(2, 3))).all()


@pytest.mark.parametrize("full_range", [False, True])
def test_ten_bits_are_eight_with_more_behind_the_point(full_range: bool) -> None:
    eight = noise(33, 21, colour=Colour(full_range=full_range))
    scale = 1023 / 255 if full_range else 4.0
    middle = 128 * scale - 512  # chroma's middle is 512
    luma = (np.rint(eight.luma * scale).astype(np.uint16) << 6).astype(np.uint16)
    chroma = (np.rint(eight.chroma * scale - middle).clip(0, 1023).astype(np.uint16) << 6).astype(np.uint16)
    one, other = (prepared([each], steps(16, 16)) for each in (eight, Planes(luma, chroma, eight.colour)))
    assert np.abs(one - other).max() < (0.4 if full_range else 1e-4)  # codes are whole: half of one in Y, and in chroma


@pytest.mark.parametrize(("siting", "at"), [("left", 8.5), ("centre", 9.0), ("top_left", 8.5)])
def test_chroma_stands_where_its_siting_says(siting: Any, at: float) -> None:
    """The middle of one chroma sample, enlarged 8 times."""
    chroma = np.full((8, 8, 2), 128, np.uint8)
    chroma[4, 4, 1] = 228
    planes = Planes(np.full((16, 16), 128, np.uint8), chroma, Colour(full_range=True, siting=siting))
    red = colours(planes, steps(128, 128))[..., 0] - 128
    places = (np.arange(128) + 0.5) / 8
    assert (red.sum(0) * places).sum() / red.sum() == pytest.approx(at)
    assert (red.sum(1) * places).sum() / red.sum() == pytest.approx(8.5 if siting == "top_left" else 9.0)


def test_forms_are_the_same_numbers() -> None:
    pictures = [noise(40, 30), noise(17, 5, 1)]
    means = {"mean": (1.0, 2.0, 3.0), "std": (10.0, 20.0, 30.0)}
    plain = prepared(pictures, steps(20, 10))
    rgb = prepared(pictures, TensorSpec(20, 10, **means))
    assert rgb.dtype == np.float32
    assert np.abs(rgb - (plain - np.reshape((1, 2, 3), (3, 1, 1))) / np.reshape((10, 20, 30), (3, 1, 1))).max() < 1e-5
    assert (prepared(pictures, TensorSpec(20, 10, **means, order="bgr")) == rgb[:, ::-1]).all()
    assert (prepared(pictures, TensorSpec(20, 10, **means, layout="nhwc")) == rgb.transpose(0, 2, 3, 1)).all()
    assert (prepared(pictures, TensorSpec(20, 10, **means, dtype="float16")) == rgb.astype(np.float16)).all()
    brain = prepared(pictures, TensorSpec(20, 10, **means, dtype="bfloat16"))
    as_float = (brain.astype(np.uint32) << 16).view(np.float32)
    assert (np.abs(as_float - rgb) <= np.abs(rgb) * 2.0**-8).all()
    assert prepared([], steps(20, 10)).shape == (0, 3, 10, 20)


def test_what_cannot_be_is_refused() -> None:
    luma, chroma = np.zeros((5, 7), np.uint8), np.zeros((3, 4, 2), np.uint8)
    Planes(luma, chroma)
    for crop in (
        Crop(-1, 0, 2, 2),
        Crop(0, 0, 7.5, 2),
        Crop(0, 0, 0, 2),
        Crop(0, 4, 2, 2),
        Crop(0, 0, float("nan"), 1),
    ):
        with pytest.raises(ValueError, match="is not within"):
            Planes(luma, chroma, crop=crop)
    for bad, what in (
        ((luma, chroma[:2]), r"must be \(3, 4, 2\)"),
        ((luma, chroma.astype(np.uint16)), "both"),
        ((luma.astype(np.float32), chroma.astype(np.float32)), "both"),
        ((luma[:0], chroma[:0]), "1 to"),
    ):
        with pytest.raises(ValueError, match=what):
            Planes(*bad)
    with pytest.raises(ValueError, match="multiple of 90"):
        Planes(luma, chroma, rotation=45)
    with pytest.raises(ValueError, match="no std 0"):
        TensorSpec(2, 2, std=(1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match="1 to"):
        TensorSpec(0, 2)
