"""Reads weights in the safetensors format, in place: as views of the file's pages.

A file is a length, a JSON header that says of each tensor its type, its shape and where its bytes begin and end, and
those bytes.
Source: huggingface.co/docs/safetensors, Format.
"""

import json
import mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def tensors(path: Path) -> dict[str, Array]:
    """The float32 tensors of a file by name; others, such as counted positions, are left out."""
    with path.open("rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    size = int.from_bytes(pages[:8], "little")
    header = json.loads(pages[8 : 8 + size])
    header.pop("__metadata__", None)
    found: dict[str, Array] = {}
    for name, said in header.items():
        if said["dtype"] != "F32":
            continue
        begin, end = said["data_offsets"]
        flat = np.frombuffer(pages, np.float32, (end - begin) // 4, 8 + size + begin)
        found[name] = flat.reshape(said["shape"])
    return found
