"""A graph for ONNX Runtime, written node by node, whose weights stay where they are: in memory, or in pages of a file.

Only what is needed of ONNX's protocol buffers is written: it is one message, and the package that writes all of them
brings two others and thirty megabytes. Numbers of fields are those of onnx.proto.
Source: ONNX IR specification and onnx/onnx.proto (IR version 9, opset 20); Protocol Buffers, "Encoding".
"""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

IR_VERSION, OPSET = 9, 20
FLOAT, INT64 = 1, 7  # of elements
EXTERNAL = 1
FIXED, BYTES, FLOAT32 = 0, 2, 5  # wire types

Value = str  # the name of one


class Graph:
    """What is computed from `inputs`: float32, of such names and shapes, in which a word is a size that may vary."""

    def __init__(self, **inputs: Sequence[int | str]) -> None:
        self._inputs = inputs
        self._nodes: list[bytes] = []
        self._tensors: list[bytes] = []
        self._weights: dict[Value, NDArray[np.float32]] = {}
        self._constants: set[Value] = set()

    def add(self, kind: str, *inputs: Value, **attributes: float | int | str | Sequence[int]) -> Value:
        """A node of one of ONNX's operators; its output."""
        output = f"v{len(self._nodes)}"
        parts = [_bytes(1, name.encode()) for name in inputs] + [_bytes(2, output.encode()), _bytes(4, kind.encode())]
        parts += [_bytes(5, _attribute(name, value)) for name, value in attributes.items()]
        self._nodes.append(b"".join(parts))
        return output

    def weight(self, name: Value, array: NDArray[np.float32]) -> Value:
        """A tensor that is left where it is; given again by the same name, it is the same."""
        if name not in self._weights:
            self._weights[name] = np.ascontiguousarray(array, np.float32)
            where = _bytes(13, _bytes(1, b"location") + _bytes(2, b"memory"))
            self._tensors.append(_tensor(name, array.shape, FLOAT) + where + _int(14, EXTERNAL))
        return name

    def constant(self, name: Value, *numbers: int) -> Value:
        """A vector of whole numbers, such as a shape; given again by the same name, it is the same."""
        if name not in self._constants:
            self._constants.add(name)
            data = np.asarray(numbers, "<i8").tobytes()
            self._tensors.append(_tensor(name, (len(numbers),), INT64) + _bytes(9, data))
        return name

    def session(self, output: Value, num_threads: int) -> onnxruntime.InferenceSession:
        """What computes `output`, on the processor. The weights have to live as long: they are the session's own."""
        parts = [_bytes(1, node) for node in self._nodes] + [_bytes(2, b"graph")]
        parts += [_bytes(5, tensor) for tensor in self._tensors]
        parts += [_bytes(11, _info(name, shape)) for name, shape in self._inputs.items()]
        parts.append(_bytes(12, _info(output, ())))
        model = _int(1, IR_VERSION) + _bytes(7, b"".join(parts)) + _bytes(8, _int(2, OPSET))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
        options.log_severity_level = 3
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in self._weights.values()]
        options.add_external_initializers(list(self._weights), values)
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _attribute(name: str, value: Any) -> bytes:
    kind: int
    if isinstance(value, float):
        kind, said = 1, _varint(2 << 3 | FLOAT32) + struct.pack("<f", value)
    elif isinstance(value, int):
        kind, said = 2, _int(3, value)
    elif isinstance(value, str):
        kind, said = 3, _bytes(4, value.encode())
    else:
        kind, said = 7, b"".join(_int(8, each) for each in value)
    return _bytes(1, name.encode()) + said + _int(20, kind)


def _tensor(name: Value, shape: Sequence[int], kind: int) -> bytes:
    return b"".join(_int(1, size) for size in shape) + _int(2, kind) + _bytes(8, name.encode())


def _info(name: Value, shape: Sequence[int | str]) -> bytes:
    """Of an input or output of float32; one without a shape may have any."""
    sizes = b"".join(_bytes(1, _int(1, size) if isinstance(size, int) else _bytes(2, size.encode())) for size in shape)
    kind = _int(1, FLOAT) + (_bytes(2, sizes) if shape else b"")
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, kind))


def _int(field: int, number: int) -> bytes:
    return _varint(field << 3 | FIXED) + _varint(number & (1 << 64) - 1)


def _bytes(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | BYTES) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])
