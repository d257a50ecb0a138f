"""What the decoder's pictures become for a model in host memory, held to the reference; and that a decode gives it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from av.video.frame import VideoFrame
from media_zoo import make
from planes import of_420

from engine.spec.operator import Media
from operators.media.pictures import FrameSpec, frames, tensors
from operators.media.pixels import Colour, Filled, Planes, TensorSpec, prepared
from operators.media.pixels_host import HostScaling, is_full_range, matrix_of, normalised
from operators.media.taking import tensors_of
from operators.testing.film import segments_of

STEPS = TensorSpec(64, 48, std=(1.0, 1.0, 1.0))
MS = 1_000_000


def smooth(width: int, height: int, format: str = "yuv420p") -> VideoFrame:
    """Waves that no filter disturbs much."""
    x, y = np.meshgrid(np.arange(width) / width, np.arange(height) / height)
    image = np.stack([np.sin(3 * x + y), np.cos(2 * y), np.sin(2 * x - 3 * y)], axis=2) * 90 + 128
    frame = VideoFrame.from_ndarray(image.astype(np.uint8), format="rgb24")
    made = frame.reformat(format=format, dst_colorspace="ITU601")
    made.colorspace = 2  # it does not say
    return made


def planes_of(frame: VideoFrame, **said: Any) -> Planes:
    """As NV12."""
    return Planes(*of_420(frame.reformat(format="yuv420p")), Colour(said.pop("matrix", "bt601")), **said)


def taken(frame: VideoFrame, spec: TensorSpec, num_turns: int = 0) -> Any:
    scaled = np.empty((1, 3, spec.height, spec.width), np.uint8)
    HostScaling().scale(frame, spec, scaled[0], num_turns)
    return normalised(scaled, spec)


@pytest.mark.parametrize("size", [(320, 240), (322, 180), (131, 97), (64, 48)])
@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
@pytest.mark.parametrize("num_turns", [0, 1, 2, 3])
def test_it_is_what_the_reference_says(size: tuple[int, int], fit: Any, num_turns: int) -> None:
    spec = TensorSpec(64, 48, fit=fit, std=(1.0, 1.0, 1.0))
    frame = smooth(*size)
    expected = prepared([planes_of(frame, rotation=90 * num_turns)], spec)
    error = np.abs(taken(frame, spec, num_turns) - expected)
    assert error.mean() < 0.9
    assert error.max() < 6  # at edges, and where chroma is enlarged


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_it_is_laid_out_as_the_model_takes_it(order: Any, layout: Any, dtype: Any) -> None:
    spec = TensorSpec(
        64,
        48,
        fit="letterbox",
        pad=(10.0, 20.0, 30.0),
        mean=(123.0, 116.0, 103.0),
        std=(58.0, 57.0, 56.0),
        order=order,
        layout=layout,
        dtype=dtype,
    )
    frame = smooth(400, 200)
    made, expected = taken(frame, spec), prepared([planes_of(frame)], spec)
    assert (made.shape, made.dtype) == (expected.shape, expected.dtype)
    if dtype == "bfloat16":
        made, expected = ((each.astype(np.uint32) << 16).view(np.float32) for each in (made, expected))
    assert np.abs(made.astype(float) - expected.astype(float)).max() < 4 / 56


def test_colours_are_read_as_they_are_meant() -> None:
    """Without a word, BT.709 from 720 lines on."""
    low, high = smooth(320, 240), smooth(1280, 720)
    assert (matrix_of(low), matrix_of(high)) == ("bt601", "bt709")
    for frame, matrix, other in ((low, "bt601", "bt709"), (high, "bt709", "bt601")):
        made = taken(frame, STEPS)
        right, wrong = (
            np.abs(made - prepared([planes_of(frame, matrix=each)], STEPS)).mean() for each in (matrix, other)
        )
        assert right < 0.6 < wrong
    low.colorspace = 1
    assert matrix_of(low) == "bt709"
    low.colorspace = 9
    assert np.abs(taken(low, STEPS) - prepared([planes_of(low, matrix="bt2020")], STEPS)).mean() < 0.6
    full = smooth(320, 240, "yuvj420p")
    assert is_full_range(full)
    assert not is_full_range(low)
    colours = full.reformat(64, 48, "rgb24").to_ndarray().transpose(2, 0, 1).astype(float)
    assert np.abs(taken(full, STEPS)[0] - colours).mean() < 1.5


def test_pictures_at_hand_are_taken_as_they_are() -> None:
    images = np.zeros((2, 48, 64, 3), np.uint8)
    images[0, ..., 0], images[1, ..., 2] = 255, 77
    made = tensors_of(images, STEPS)
    (values,) = made.batches(16)
    assert values[0, :, 20, 20].tolist() == [255, 0, 0]
    assert values[1, :, 20, 20].tolist() == [0, 0, 77]
    assert (made.size, made.shown) == ((64, 48), Filled(0, 0, 64, 48))
    assert [len(batch) for batch in tensors_of(np.concatenate([images] * 4), STEPS).batches(3)] == [3, 3, 2]
    assert list(tensors_of(images[:0], STEPS).batches(4)) == []


def test_what_is_too_far_from_the_aspect_is_not_stretched() -> None:
    spec = TensorSpec(100, 100, max_stretch=2.0, place="top_left")
    assert tensors_of(np.zeros((1, 100, 199, 3), np.uint8), spec).shown == Filled(0, 0, 100, 100)
    assert tensors_of(np.zeros((1, 100, 201, 3), np.uint8), spec).shown == Filled(0, 0, 100, 50)
    assert tensors_of(np.zeros((1, 400, 100, 3), np.uint8), spec).shown == Filled(0, 0, 25, 100)


# --- decoded -------------------------------------------------------------------------------------------------


def test_one_decode_gives_pictures_and_tensors(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", video="libx264", options={"g": "20", "bf": "2"}, size=(96, 80), rotate=90)
    (piece, *_) = segments_of(path, 1.0)
    tensor = FrameSpec(interval_ns=300 * MS, tensor=TensorSpec(40, 48, fit="letterbox"))
    plain = FrameSpec(interval_ns=300 * MS)
    together = FrameSpec.decode(piece, [tensor, plain, FrameSpec(interval_ns=1000 * MS, tensor=TensorSpec(16, 16))])
    made, seen = tensors(Media(piece, together), tensor), frames(Media(piece, together), plain)
    assert made.times_ns.tolist() == seen.times_ns.tolist()
    assert (made.size, made.shown) == ((80, 96), Filled(0, 0, 40, 48))
    (batch,) = made.batches(100)
    assert batch.shape == (len(seen.times_ns), 3, 48, 40)
    assert np.array_equal(made.scaled, tensors(Media(piece), tensor).scaled)
    for values, image in zip(batch, seen.images, strict=True):
        assert values[:, -8:-2, 2:8].min() > 0.8  # the block, which stood top left, is at the lower left
        assert image[-16:-4, 4:16].min() > 200
    with pytest.raises(ValueError, match="read-only"):
        made.scaled[0] = 0


def test_without_video_there_is_none(tmp_path: Path) -> None:
    (heard, *_) = segments_of(make(tmp_path / "a.wav", audio="pcm_s16le"), 1.0)
    none = tensors(Media(heard), FrameSpec(tensor=STEPS))
    assert (none.scaled.shape, none.size) == ((0, 3, 48, 64), (0, 0))


def test_of_a_damaged_film_the_pictures_that_can_be_had(tmp_path: Path) -> None:
    import msgspec

    (piece, *_) = segments_of(make(tmp_path / "a.avi", video="mjpeg", pix_fmt="yuvj420p"), 10.0)
    packets = list(piece.packets)
    packets[25] = msgspec.structs.replace(packets[25], data=b"\0" * 40)
    damaged = msgspec.structs.replace(piece, packets=tuple(packets))
    every = tensors(Media(damaged), FrameSpec(tensor=STEPS))
    assert len(every.times_ns) == len(packets) - 1
    some = tensors(Media(damaged), FrameSpec(interval_ns=1000 * MS, tensor=STEPS))
    assert some.times_ns.tolist() == [0, 1040 * MS, 2000 * MS]
    assert len(some.scaled) == 3
