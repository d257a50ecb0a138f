"""How fast decoded pictures become what a model takes, on a CUDA device, and whether they are right.

The kernel of operators/media/kernels/prepare.cu is first held to the reference on small batches of every form; a wrong
one is not timed. Then batches are timed by CUDA events, in turn with the limit and the peer, so that what else the
device does meets all alike. Each round has other pictures, so that they do not stand in the device's cache:

    bytes     those that must be read (both planes) and written (the tensor)
    limit     a copy within the device that reads and writes as many bytes together
    peer      torch, where it can be imported: the same from the same planes by its own operators, in float16

    gpu.py [--runs 31] [--pictures 16]

Where there is no device it says so: "measured" is false, and nothing is kept.
"""

import argparse
import importlib
import importlib.util
import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from measure import at_least, keep, say

from operators.media import pixels_cuda
from operators.media.pixels import Colour, Crop, Planes, TensorSpec, conversion, grid, prepared

SHARE_OF_COPY = 0.7  # of the speed of a copy
MAX_ERROR = {"float32": 0.02, "float16": 0.09, "bfloat16": 0.53}  # steps of 0 to 255: half an ulp at 255, and 0.02
NUM_SETS = 4  # of pictures: more than a device's cache holds
WARM_UP = 5
HD, UHD, SMALL, PAL = (1920, 1080), (3840, 2160), (1280, 720), (720, 576)
BATCHES = {"1080p to 640": (HD,), "4K to 640": (UHD,), "mixed to 640": (HD, SMALL, UHD, PAL)}
SPEC = TensorSpec(640, 640, "letterbox", dtype="float16")
FORMS: tuple[tuple[Any, ...], ...] = (
    ("float32", "float16", "bfloat16"),
    ("nchw", "nhwc"),
    ("stretch", "letterbox"),
    ("rgb", "bgr"),
)


def picture(width: int, height: int, seed: int, kind: Any = np.uint8, **more: Any) -> Planes:
    """Noise, in host memory."""
    chance = np.random.default_rng(seed)
    sizes = (height, width), (-(-height // 2), -(-width // 2), 2)
    luma, chroma = (chance.integers(0, 1024, size, np.uint16) for size in sizes)
    luma, chroma = (luma << 6, chroma << 6) if kind == np.uint16 else (luma >> 2, chroma >> 2)
    return Planes(luma.astype(kind), chroma.astype(kind), **more)


def on_device(cupy: Any, host: Planes, pitch: int = 256) -> Planes:
    """The same, with rows that begin at multiples of so many bytes, as decoders lay them."""

    def plane(values: Any) -> Any:
        rows = values.reshape(len(values), -1)
        size = values.dtype.itemsize
        whole = cupy.zeros((len(rows), -(-rows.shape[1] * size // pitch) * pitch // size), values.dtype)
        whole[:, : rows.shape[1]] = cupy.asarray(rows)
        strides = (whole.strides[0], *((size,) if values.ndim == 2 else (2 * size, size)))
        return cupy.ndarray(values.shape, values.dtype, whole.data, strides)

    return Planes(plane(host.luma), plane(host.chroma), host.colour, host.crop, host.rotation)


def errors(cupy: Any, preparing: pixels_cuda.Preparing) -> dict[str, float]:
    """The largest of each type, in steps of 0 to 255, over every form, turn, colour and kind of scale."""
    pictures = [
        picture(640, 360, 1),
        picture(333, 517, 2, colour=Colour("bt601", True, "centre"), rotation=90),
        picture(800, 90, 3, np.uint16, colour=Colour("bt2020", siting="top_left"), rotation=180),
        picture(50, 41, 4, np.uint16, colour=Colour(full_range=True), rotation=270),
        picture(1280, 720, 5, crop=Crop(100.5, 3.25, 700.0, 650.5)),
        picture(100, 4000, 6),
    ]
    there = [on_device(cupy, each, 256 if at % 2 else 2) for at, each in enumerate(pictures)]
    worst = dict.fromkeys(MAX_ERROR, 0.0)
    for dtype, layout, fit, order in itertools.product(*FORMS):
        form: dict[str, Any] = {"fit": fit, "layout": layout, "order": order, "std": (1.0, 1.0, 1.0)}
        found = cupy.asnumpy(preparing.prepared(there, TensorSpec(190, 130, dtype=dtype, **form)))
        if dtype == "bfloat16":
            found = (found.astype(np.uint32) << 16).view(np.float32)
        wanted = prepared(pictures, TensorSpec(190, 130, **form))
        worst[dtype] = max(worst[dtype], float(np.abs(found.astype(np.float32) - wanted).max()))
    return {dtype: round(worst[dtype], 5) for dtype in worst}


def by_torch(torch: Any, pictures: Sequence[Planes], spec: TensorSpec) -> Any:
    """What one writes who has only torch's operators: half floats, chroma enlarged, converted, shrunk, padded."""
    resized = torch.nn.functional.interpolate
    half: dict[str, Any] = {"dtype": torch.float16, "device": "cuda"}
    mean, std, pad = (torch.tensor(values, **half)[:, None, None] for values in (spec.mean, spec.std, spec.pad))
    out = ((pad - mean) / std).expand(len(pictures), 3, spec.height, spec.width).contiguous()
    for at, each in enumerate(pictures):
        to, shown = conversion(each), grid(each, spec).shown
        luma = torch.from_dlpack(each.luma).to(torch.float16)[None, None]
        chroma = torch.from_dlpack(each.chroma).to(torch.float16).permute(2, 0, 1)[None]
        chroma = resized(chroma, size=luma.shape[2:], mode="bilinear")
        rows = [[to.y, 0.0, to.red_cr], [to.y, to.green_cb, to.green_cr], [to.y, to.blue_cb, 0.0]]
        matrix, added = torch.tensor(rows, **half), torch.tensor(to.added, **half)
        rgb = torch.nn.functional.conv2d(torch.cat((luma, chroma), 1), matrix[:, :, None, None], added).clamp_(0, 255)
        small = resized(rgb, size=(shown.height, shown.width), mode="bilinear", antialias=True)
        part = out[at, :, shown.top : shown.top + shown.height, shown.left : shown.left + shown.width]
        part.copy_((small[0] - mean) / std)
    return out


def timed_ms(cupy: Any, actions: dict[str, Callable[[int], Any]], runs: int) -> dict[str, float]:
    """The median of each, in turn, by events of the default stream."""
    took: dict[str, list[float]] = {name: [] for name in actions}
    for run in range(WARM_UP + runs):
        for name, action in actions.items():
            before, after = cupy.cuda.Event(), cupy.cuda.Event()
            before.record()
            action(run % NUM_SETS)
            after.record()
            after.synchronize()
            if run >= WARM_UP:
                took[name].append(cupy.cuda.get_elapsed_time(before, after))
    return {name: statistics.median(some) for name, some in took.items()}


def launched(cupy: Any, sets: Sequence[Sequence[Planes]], num_multiprocessors: int) -> Callable[[int], Any]:
    """The kernel alone, told beforehand."""
    kernel, how = pixels_cuda.kernel(0), pixels_cuda.launch(sets[0], SPEC, num_multiprocessors)
    out = cupy.empty(SPEC.shape(len(sets[0])), SPEC.kind)
    target = cupy.asarray(pixels_cuda.target(SPEC).view(np.uint8))
    told = [cupy.asarray(pixels_cuda.described(each, SPEC).view(np.uint8)) for each in sets]
    numbers = (np.int32(how.log2_height), np.int32(how.shared_bytes))

    def launch(at: int) -> None:
        kernel(how.blocks, (pixels_cuda.THREADS,), (told[at], target, out, *numbers), shared_mem=how.shared_bytes)

    return launch


def measured(cupy: Any, torch: Any, preparing: Any, sizes: Any, num: int, options: Any) -> dict[str, Any]:
    """One batch."""
    sets = [
        [
            on_device(cupy, picture(width, height, seed))
            for _, (width, height) in zip(range(num), itertools.cycle(sizes), strict=False)
        ]
        for seed in range(NUM_SETS)
    ]
    out = cupy.empty(SPEC.shape(num), SPEC.kind)
    moved = sum(each.luma.nbytes + each.chroma.nbytes for each in sets[0]) + out.nbytes
    copies = [cupy.zeros(moved // 2, np.uint8) for _ in range(NUM_SETS + 1)]
    processors = int(cupy.cuda.Device().attributes["MultiProcessorCount"])
    actions: dict[str, Callable[[int], Any]] = {
        "kernel": launched(cupy, sets, processors),
        "copy": lambda at: cupy.copyto(copies[at], copies[at + 1]),
        "prepared": lambda at: preparing.prepared(sets[at], SPEC, out),
    }
    if torch is not None:
        actions["torch"] = lambda at: by_torch(torch, sets[at], SPEC)
    took_ms = timed_ms(cupy, actions, options.runs)
    began_s = time.perf_counter()
    for at in range(NUM_SETS):
        preparing.prepared(sets[at], SPEC, out)
    asked_ms = 1e3 * (time.perf_counter() - began_s) / NUM_SETS
    preparing.wait()
    return {
        "pictures": num,
        "megabytes": round(moved / 1e6, 1),
        "ms": {name: round(value, 4) for name, value in took_ms.items()},
        "host_ms": round(asked_ms, 3),
        "gigabytes_a_second": {name: round(moved / 1e6 / value, 1) for name, value in took_ms.items()},
        "share_of_copy": round(took_ms["copy"] / took_ms["kernel"], 3),
        "times_torch": round(took_ms["torch"] / took_ms["kernel"], 1) if torch is not None else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=31)
    parser.add_argument("--pictures", type=int, default=16)
    options = parser.parse_args()
    if reason := pixels_cuda.missing():
        say(f"not measured: {reason}")
        print(json.dumps({"benchmark": "gpu", "measured": False, "reason": reason}))
        return
    import cupy

    torch: Any = importlib.import_module("torch") if importlib.util.find_spec("torch") else None
    preparing = pixels_cuda.Preparing()
    found = errors(cupy, preparing)
    say("error, of 255: " + ", ".join(f"{name} {value}" for name, value in found.items()))
    if wrong := [name for name, value in found.items() if not value <= MAX_ERROR[name]]:
        raise SystemExit(f"the kernel is wrong in {', '.join(wrong)}: nothing is timed")
    batches = {}
    say(f"{'batch':<14}{'MB':>8}{'kernel':>10}{'copy':>10}{'torch':>10}{'GB/s':>9}{'of copy':>9}{'host ms':>9}")
    for name, sizes in BATCHES.items():
        one = batches[name] = measured(cupy, torch, preparing, sizes, options.pictures, options)
        times = "".join(f"{one['ms'].get(each, float('nan')):>10.4f}" for each in ("kernel", "copy", "torch"))
        speed = one["gigabytes_a_second"]["kernel"]
        say(f"{name:<14}{one['megabytes']:>8}{times}{speed:>9}{one['share_of_copy']:>9}{one['host_ms']:>9}")
    properties = cupy.cuda.runtime.getDeviceProperties(0)
    keep(
        "gpu",
        {
            "measured": True,
            "device": properties["name"].decode(),
            "compute_capability": f"{properties['major']}.{properties['minor']}",
            "cupy": cupy.__version__,
            "torch": torch.__version__ if torch is not None else None,
            "max_error_of_255": found,
            "batches": batches,
            "targets": {name: at_least(one["share_of_copy"], SHARE_OF_COPY) for name, one in batches.items()},
        },
    )


if __name__ == "__main__":
    main()
