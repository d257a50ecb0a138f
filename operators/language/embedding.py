"""Sentences as vectors, by all-MiniLM-L6-v2: equal meaning, whatever the words, comes near in angle.

BERT with 6 layers, 12 heads and 384 dimensions; a text is the mean of its tokens' vectors, of length 1, so that the
cosine of two is their inner product. Computed with NumPy: at 20 tokens a model of 22 M weights needs no other runtime.

Each text is computed by itself, never padded into a batch: so its vector does not depend on what it came with, to the
last bit, and what is known of a text is kept and used again.
Source: Devlin et al., BERT, arXiv 1810.04805; Wang et al., MiniLM, arXiv 2002.10957; Reimers and Gurevych,
Sentence-BERT, arXiv 1908.10084. Abramowitz and Stegun 7.1.26 for erf, to 1.5e-7.
"""

import json
import mmap
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from operators import weights

NAME = "all-minilm-l6-v2"
MAX_TOKENS = 256
MAX_KEPT = 20_000  # vectors, of 1.5 kB
NUM_HEADS = 12
EPSILON = 1e-12

Array = NDArray[np.float32]


class Embedder:
    """Made by `load`; may be used by several threads."""

    def __init__(self, folder: Path) -> None:
        """Reads `model.safetensors` and `tokenizer.json`."""
        from tokenizers import Tokenizer

        self._tensors = _safetensors(folder / "model.safetensors")
        self._size = self._tensors["embeddings.word_embeddings.weight"].shape[1]
        self._layers = sorted({name.rpartition(".attention.self.query")[0] for name in self._tensors} - {""})
        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._kept: OrderedDict[str, Array] = OrderedDict()
        self._keeping = threading.Lock()

    def vectors(self, texts: list[str]) -> Array:
        """float32 [len(texts), size], each of length 1."""
        return np.stack([self._vector(text) for text in texts]) if texts else np.zeros((0, self._size), np.float32)

    def _vector(self, text: str) -> Array:
        with self._keeping:
            if text in self._kept:
                self._kept.move_to_end(text)
                return self._kept[text]
        made = self._embedded(text)
        with self._keeping:
            self._kept[text] = made
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return made

    def _embedded(self, text: str) -> Array:
        ids = np.asarray(self._tokenizer.encode(text).ids)
        tensors = self._tensors
        x = tensors["embeddings.word_embeddings.weight"][ids]
        x = x + tensors["embeddings.position_embeddings.weight"][: len(ids)]
        x = self._normalised(x + tensors["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for layer in self._layers:
            x = self._through(x, layer)
        mean = x.mean(axis=0)
        vector: Array = (mean / max(float(np.linalg.norm(mean)), EPSILON)).astype(np.float32)
        return vector

    def _through(self, x: Array, layer: str) -> Array:
        """One layer. x: float32 [tokens, size]."""
        query, key, value = (
            self._linear(x, f"{layer}.attention.self.{part}").reshape(len(x), NUM_HEADS, -1).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 2, 1) / np.float32(np.sqrt(self._size / NUM_HEADS))
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        heads = scores / scores.sum(axis=-1, keepdims=True) @ value
        attended = self._linear(heads.transpose(1, 0, 2).reshape(len(x), self._size), f"{layer}.attention.output.dense")
        x = self._normalised(x + attended, f"{layer}.attention.output.LayerNorm")
        wide = _gelu(self._linear(x, f"{layer}.intermediate.dense"))
        return self._normalised(x + self._linear(wide, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")

    def _linear(self, x: Array, name: str) -> Array:
        return x @ self._tensors[f"{name}.weight"].T + self._tensors[f"{name}.bias"]

    def _normalised(self, x: Array, name: str) -> Array:
        x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(EPSILON))
        return x * self._tensors[f"{name}.weight"] + self._tensors[f"{name}.bias"]


def load() -> Embedder:
    """Raises Permanent where the weights are not on this machine, or are not what the manifest says."""
    return Embedder(weights.folder_of(NAME))


def _gelu(x: Array) -> Array:
    z = np.abs(x) * np.float32(np.sqrt(0.5))
    t = 1 / (1 + np.float32(0.3275911) * z)
    terms = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
    polynomial = np.zeros_like(t)
    for term in reversed(terms):
        polynomial = (polynomial + np.float32(term)) * t
    erf = np.copysign(1 - polynomial * np.exp(-z * z), x)
    gelu: Array = x * (1 + erf) / 2
    return gelu


def _safetensors(path: Path) -> dict[str, Array]:
    """The tensors of a file, float32, as views of its pages: a length, a JSON header that says where each begins and
    ends, and the bytes. Names are given without a prefix for the whole model."""
    with path.open("rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    size = int.from_bytes(pages[:8], "little")
    header = json.loads(pages[8 : 8 + size])
    header.pop("__metadata__", None)
    found: dict[str, Array] = {}
    for name, said in header.items():
        if said["dtype"] != "F32":
            continue  # positions, which are counted here
        begin, end = said["data_offsets"]
        flat = np.frombuffer(pages, np.float32, (end - begin) // 4, 8 + size + begin)
        found[name.removeprefix("bert.")] = flat.reshape(said["shape"])
    return found
