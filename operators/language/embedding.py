"""Sentences as vectors, by all-MiniLM-L6-v2: equal meaning, whatever the words, comes near in angle.

BERT with 6 layers, 12 heads and 384 dimensions; a text is the mean of its tokens' vectors, of length 1, so that the
cosine of two is their inner product. Computed by ONNX Runtime, which lays the weights out once: NumPy does so at each
product, and takes three times as long for a question.

Each text is computed by itself, never padded into a batch: so its vector does not depend on what it came with, to the
last bit, and what is known of a text is kept and used again.
Source: Devlin et al., BERT, arXiv 1810.04805; Wang et al., MiniLM, arXiv 2002.10957; Reimers and Gurevych,
Sentence-BERT, arXiv 1908.10084.
"""

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from operators import safetensors, weights
from operators.onnx_graph import Graph, Value
from operators.safetensors import Array

NAME = "all-minilm-l6-v2"
MAX_TOKENS = 256
MAX_KEPT = 8_000  # vectors, of 1.5 kB
NUM_HEADS = 12
EPSILON = 1e-12
ATTENTION = ("query", "key", "value")


class Embedder:
    """Made by `load`; may be used by several threads."""

    def __init__(self, folder: Path) -> None:
        """Reads `model.safetensors` and `tokenizer.json`."""
        from tokenizers import Tokenizer

        found = safetensors.tensors(folder / "model.safetensors")
        self._tensors = {name.removeprefix("bert."): tensor for name, tensor in found.items()}
        self._size = self._tensors["embeddings.word_embeddings.weight"].shape[1]
        self._layers = sorted({name.rpartition(".attention.self.query")[0] for name in self._tensors} - {""})
        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._session = self._made()
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
        words, places = (self._tensors[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "position"))
        x = words[ids] + places[: len(ids)] + self._tensors["embeddings.token_type_embeddings.weight"][0]
        (mean,) = self._session.run(None, {"x": x})
        vector: Array = (mean / max(float(np.linalg.norm(mean)), EPSILON)).astype(np.float32)
        return vector

    def _made(self) -> onnxruntime.InferenceSession:
        """From what is looked up for each token, float32 [tokens, size], to the mean of what comes of them, [size]."""
        graph = Graph(x=("tokens", self._size))
        apart, together = graph.constant("apart", 0, NUM_HEADS, -1), graph.constant("together", 0, self._size)
        x = self._normalised(graph, "x", "embeddings.LayerNorm")
        for layer in self._layers:
            query, key, value = (
                graph.add("Transpose", graph.add("Reshape", part, apart), perm=(1, 0, 2))
                for part in (self._linear(graph, x, f"{layer}.attention.self.{each}") for each in ATTENTION)
            )
            scores = graph.add("MatMul", query, graph.add("Transpose", key, perm=(0, 2, 1)))
            scale = graph.weight("scale", np.full(1, np.sqrt(self._size / NUM_HEADS), np.float32))
            shares = graph.add("Softmax", graph.add("Div", scores, scale), axis=-1)
            heads = graph.add("Transpose", graph.add("MatMul", shares, value), perm=(1, 0, 2))
            attended = self._linear(graph, graph.add("Reshape", heads, together), f"{layer}.attention.output.dense")
            x = self._normalised(graph, graph.add("Add", x, attended), f"{layer}.attention.output.LayerNorm")
            wide = graph.add("Gelu", self._linear(graph, x, f"{layer}.intermediate.dense"))
            narrow = self._linear(graph, wide, f"{layer}.output.dense")
            x = self._normalised(graph, graph.add("Add", x, narrow), f"{layer}.output.LayerNorm")
        mean = graph.add("ReduceMean", x, graph.constant("tokens", 0), keepdims=0)
        return graph.session(mean, num_threads=1)

    def _linear(self, graph: Graph, x: Value, name: str) -> Value:
        weight, bias = (graph.weight(f"{name}.{part}", self._tensors[f"{name}.{part}"]) for part in ("weight", "bias"))
        return graph.add("Gemm", x, weight, bias, transB=1)

    def _normalised(self, graph: Graph, x: Value, name: str) -> Value:
        scale, bias = (graph.weight(f"{name}.{part}", self._tensors[f"{name}.{part}"]) for part in ("weight", "bias"))
        return graph.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=EPSILON)


def load() -> Embedder:
    """Raises Permanent where the weights are not on this machine, or are not what the manifest says."""
    return Embedder(weights.folder_of(NAME))
