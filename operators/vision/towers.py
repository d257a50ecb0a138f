"""Pictures and words as vectors of one space, by CLIP or SigLIP: what a picture shows comes near to what it is called.

Each is two transformers, one for pictures and one for words; a vector has length 1, so that the cosine of two is their
inner product. Which of the two some weights are is told by what is in them.

| | CLIP | SigLIP |
|---|---|---|
| picture | patches and one place more, whose vector counts | patches, which one learned question attends to |
| words | each sees those before it; the last's vector counts | each sees all of 64 places; the last's vector counts |
| how sure | exp(s) cos, softmax over what it may be called | sigmoid(exp(s) cos + b) |

A picture is stretched to the square that the model takes, as SigLIP's are: a middle cut out of it, as CLIP's was when
it was trained, would not see a camera's sides. Each is computed by itself: so a vector does not depend on what it came
with. CLIP's softmax needs something else that a picture could be called: OTHERWISE.

Weights are read where they lie (safetensors, float32), by the names of their publishers; ONNX Runtime computes.
Source: Radford et al., CLIP, arXiv 2103.00020; Zhai et al., SigLIP, arXiv 2303.15343; their published configurations.
"""

import math
import string
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from operators import safetensors
from operators.media.pixels import TensorSpec
from operators.media.taking import Tensors
from operators.onnx_graph import Graph, Value
from operators.safetensors import Array

HEAD_SIZE = 64  # of all that are published
ASKED = "a photo of {}."
OTHERWISE = ("a photo.", "a blurry picture.", "a picture of something else.", "an empty scene.")
CLIP_MEAN, CLIP_STD = (122.771, 116.746, 104.094), (68.501, 66.632, 70.323)  # of 0 .. 255
HALF = (127.5, 127.5, 127.5)
LOWEST = float(np.finfo(np.float32).min)


class Towers:
    """The two of some weights; each is made ready when it is first asked."""

    def __init__(self, folder: Path, num_threads: int = 1) -> None:
        """Reads `model.safetensors` and `tokenizer.json`."""
        from tokenizers import Tokenizer

        self._weights = safetensors.tensors(folder / "model.safetensors")
        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._num_threads = num_threads
        self.is_siglip = "vision_model.head.probe" in self._weights
        self._epsilon = 1e-6 if self.is_siglip else 1e-5
        self._sees: Any = None
        self._reads: Any = None
        self._otherwise: Array | None = None

    @property
    def takes(self) -> TensorSpec:
        patch = self._weights["vision_model.embeddings.patch_embedding.weight"].shape[2]
        num_patches = len(self._weights["vision_model.embeddings.position_embedding.weight"]) - (not self.is_siglip)
        return takes(patch * math.isqrt(num_patches), is_siglip=self.is_siglip)

    def of_pictures(self, pictures: Tensors) -> Array:
        """float32 [N, size], each of length 1, of pictures brought to what `takes` says."""
        if self._sees is None:
            self._sees = self._picture_tower()
        found = [self._sees.run(None, {"x": pixels})[0].reshape(-1) for pixels in pictures.batches(1)]
        return _unit(np.stack(found)) if found else np.zeros((0, 0), np.float32)

    def of_words(self, text: str) -> Array:
        """float32 [size], of length 1."""
        return self.of_ids(self._ids(text))

    def of_ids(self, ids: NDArray[np.integer[Any]]) -> Array:
        """As `of_words`, of tokens."""
        if self._reads is None:
            self._reads = self._word_tower()
        tables = (self._weights[f"text_model.embeddings.{kind}_embedding.weight"] for kind in ("token", "position"))
        words, places = tables
        feeds = {"x": words[ids] + places[: len(ids)]}
        if not self.is_siglip:
            feeds["mask"] = np.triu(np.full((len(ids), len(ids)), LOWEST, np.float32), 1)
        vector: Array = _unit(self._reads.run(None, feeds)[0].reshape(1, -1))[0]
        return vector

    def sureness(self, pictures: Array, words: Array) -> Array:
        """How sure it is that each picture shows what the words say: float32 [N], 0..1."""
        scale = math.exp(float(self._weights["logit_scale"].reshape(-1)[0]))
        asked = scale * (pictures @ words)
        if self.is_siglip:
            asked = asked + float(self._weights["logit_bias"].reshape(-1)[0])
            return np.asarray(1 / (1 + np.exp(-asked.astype(np.float64))), np.float32)
        if self._otherwise is None:
            self._otherwise = np.stack([self.of_words(each) for each in OTHERWISE])
        others = scale * (pictures @ self._otherwise.T)
        most = np.maximum(asked, others.max(axis=1))
        of_it = np.exp(asked - most)
        return np.asarray(of_it / (of_it + np.exp(others - most[:, None]).sum(axis=1)), np.float32)

    def _ids(self, text: str) -> NDArray[np.int64]:
        max_tokens = len(self._weights["text_model.embeddings.position_embedding.weight"])
        if self.is_siglip:  # as its own tokenizer does; the token that ends a text also fills what is left
            text = " ".join(text.translate(str.maketrans("", "", string.punctuation)).lower().split())
            end = self._tokenizer.token_to_id("</s>")
            ids = [each for each in self._tokenizer.encode(text).ids if each != end][: max_tokens - 1]
            return np.array(ids + [end] * (max_tokens - len(ids)))
        ids = self._tokenizer.encode(" ".join(text.split())).ids
        return np.array(ids if len(ids) <= max_tokens else [*ids[: max_tokens - 1], ids[-1]])

    # --- the graphs ----------------------------------------------------------------------------------------------

    def _picture_tower(self) -> Any:
        side = self.takes.width
        graph = Graph(x=(1, 3, side, side))
        at = "vision_model.embeddings"
        patches = self._weights[f"{at}.patch_embedding.weight"]
        size, patch = patches.shape[0], patches.shape[2]
        parts = [graph.weight(name, self._weights[name]) for name in self._names(f"{at}.patch_embedding")]
        x = graph.add("Conv", "x", *parts, kernel_shape=(patch, patch), strides=(patch, patch))
        x = graph.add("Transpose", graph.add("Reshape", x, graph.constant("flat", size, -1)), perm=(1, 0))
        if not self.is_siglip:
            first = graph.weight(f"{at}.class_embedding", self._weights[f"{at}.class_embedding"].reshape(1, size))
            x = graph.add("Concat", first, x, axis=0)
        places = f"{at}.position_embedding.weight"
        x = graph.add("Add", x, graph.weight(places, self._weights[places]))
        if not self.is_siglip:
            x = self._normalised(graph, x, "vision_model.pre_layrnorm")
        x = self._layers(graph, x, "vision_model", size, None)
        if self.is_siglip:
            x = self._normalised(graph, x, "vision_model.post_layernorm")
            return self._session(graph, self._attended(graph, x, size))
        x = self._normalised(graph, graph.add("Gather", x, graph.constant("first", 0)), "vision_model.post_layernorm")
        return self._session(graph, self._linear(graph, x, "visual_projection"))

    def _attended(self, graph: Graph, x: Value, size: int) -> Value:
        """What a learned question finds in the patches."""
        at = "vision_model.head"
        weight, bias = (self._weights[f"{at}.attention.in_proj_{kind}"] for kind in ("weight", "bias"))
        probe = self._weights[f"{at}.probe"].reshape(1, size)
        asked = graph.weight("asked", probe @ weight[:size].T + bias[:size])
        key, value = (
            graph.add(
                "Gemm",
                x,
                graph.weight(f"{at}.{number}", weight[number * size : (number + 1) * size]),
                graph.weight(f"{at}.{number}.bias", bias[number * size : (number + 1) * size]),
                transB=1,
            )
            for number in (1, 2)
        )
        found = self._heads(graph, asked, key, value, size, None)
        found = self._linear(graph, found, f"{at}.attention.out_proj")
        return graph.add("Add", found, self._mlp(graph, self._normalised(graph, found, f"{at}.layernorm"), f"{at}.mlp"))

    def _word_tower(self) -> Any:
        size = self._weights["text_model.embeddings.token_embedding.weight"].shape[1]
        inputs: dict[str, tuple[str | int, ...]] = {"x": ("tokens", size)}
        mask = None
        if not self.is_siglip:
            inputs["mask"], mask = ("tokens", "tokens"), "mask"
        graph = Graph(**inputs)
        x = self._layers(graph, "x", "text_model", size, mask)
        x = self._normalised(graph, x, "text_model.final_layer_norm")
        last = graph.add("Gather", x, graph.constant("last", -1))
        return self._session(
            graph, self._linear(graph, last, "text_model.head" if self.is_siglip else "text_projection")
        )

    def _session(self, graph: Graph, output: Value) -> Any:
        return graph.session(output, self._num_threads)

    def _layers(self, graph: Graph, x: Value, tower: str, size: int, mask: Value | None) -> Value:
        num = sum(
            name.startswith(f"{tower}.encoder.layers.") and name.endswith(".mlp.fc1.bias") for name in self._weights
        )
        for number in range(num):
            at = f"{tower}.encoder.layers.{number}"
            looked = self._normalised(graph, x, f"{at}.layer_norm1")
            query, key, value = (self._linear(graph, looked, f"{at}.self_attn.{part}_proj") for part in "qkv")
            found = self._heads(graph, query, key, value, size, mask)
            x = graph.add("Add", x, self._linear(graph, found, f"{at}.self_attn.out_proj"))
            x = graph.add("Add", x, self._mlp(graph, self._normalised(graph, x, f"{at}.layer_norm2"), f"{at}.mlp"))
        return x

    def _heads(self, graph: Graph, query: Value, key: Value, value: Value, size: int, mask: Value | None) -> Value:
        num = size // HEAD_SIZE
        apart, together = graph.constant("apart", 0, num, HEAD_SIZE), graph.constant("together", 0, size)
        query, key, value = (
            graph.add("Transpose", graph.add("Reshape", each, apart), perm=(1, 0, 2)) for each in (query, key, value)
        )
        scores = graph.add("MatMul", query, graph.add("Transpose", key, perm=(0, 2, 1)))
        scale = graph.weight("scale", np.full(1, math.sqrt(HEAD_SIZE), np.float32))
        scores = graph.add("Div", scores, scale)
        if mask is not None:
            scores = graph.add("Add", scores, mask)
        found = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), value)
        return graph.add("Reshape", graph.add("Transpose", found, perm=(1, 0, 2)), together)

    def _mlp(self, graph: Graph, x: Value, name: str) -> Value:
        wide = self._linear(graph, x, f"{name}.fc1")
        if self.is_siglip:
            wide = graph.add("Gelu", wide, approximate="tanh")
        else:  # x sigmoid(1.702 x)
            steep = graph.weight("steep", np.full(1, 1.702, np.float32))
            wide = graph.add("Mul", wide, graph.add("Sigmoid", graph.add("Mul", wide, steep)))
        return self._linear(graph, wide, f"{name}.fc2")

    def _linear(self, graph: Graph, x: Value, name: str) -> Value:
        return graph.add("Gemm", x, *(graph.weight(each, self._weights[each]) for each in self._names(name)), transB=1)

    def _normalised(self, graph: Graph, x: Value, name: str) -> Value:
        scale, bias = (graph.weight(each, self._weights[each]) for each in self._names(name))
        return graph.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=self._epsilon)

    def _names(self, name: str) -> list[str]:
        return [each for each in (f"{name}.weight", f"{name}.bias") if each in self._weights]


def takes(side: int, *, is_siglip: bool) -> TensorSpec:
    """What the tower for pictures takes."""
    mean, std = (HALF, HALF) if is_siglip else (CLIP_MEAN, CLIP_STD)
    return TensorSpec(side, side, mean=mean, std=std)


def _unit(vectors: NDArray[Any]) -> Array:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)
