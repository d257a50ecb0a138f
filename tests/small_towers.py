"""CLIP and SigLIP as small as they can be, with weights by a formula: `tests/data/make_towers.py` has another library
compute with the same."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZE, WIDE, SHARED, NUM_WORDS, MAX_TOKENS, SIDE, PATCH = 128, 96, 48, 40, 16, 32, 8
NUM_PATCHES = (SIDE // PATCH) ** 2
LAYERS = 2
WORDS = "a photo of . red green wall dog the empty scene picture"
TEXTS = {"clip": [[2, 7, 9, 3], [2, 30, 3], [2, *range(4, 17), 3]], "siglip": [[8, 11, 12], [31], list(range(4, 19))]}


def shapes(kind: str) -> dict[str, tuple[int, ...]]:
    """By the names that the hub's files have."""
    found: dict[str, tuple[int, ...]] = {}
    for tower in ("text_model", "vision_model"):
        for number in range(LAYERS):
            at = f"{tower}.encoder.layers.{number}"
            found |= {f"{at}.{name}.weight": (SIZE,) for name in ("layer_norm1", "layer_norm2")}
            found |= {f"{at}.self_attn.{name}_proj.weight": (SIZE, SIZE) for name in ("q", "k", "v", "out")}
            found |= {f"{at}.mlp.fc1.weight": (WIDE, SIZE), f"{at}.mlp.fc2.weight": (SIZE, WIDE)}
    found |= {"text_model.final_layer_norm.weight": (SIZE,), "vision_model.post_layernorm.weight": (SIZE,)}
    found |= {"text_model.embeddings.token_embedding.weight": (NUM_WORDS, SIZE)}
    found |= {"text_model.embeddings.position_embedding.weight": (MAX_TOKENS, SIZE)}
    found |= {"vision_model.embeddings.patch_embedding.weight": (SIZE, 3, PATCH, PATCH)}
    if kind == "clip":
        found["vision_model.pre_layrnorm.weight"] = (SIZE,)
        found |= {name.replace(".weight", ".bias"): (shape[0],) for name, shape in found.items() if "embed" not in name}
        found |= {"vision_model.embeddings.class_embedding": (SIZE,), "logit_scale": ()}
        found["vision_model.embeddings.position_embedding.weight"] = (NUM_PATCHES + 1, SIZE)
        return found | {f"{name}_projection.weight": (SHARED, SIZE) for name in ("text", "visual")}
    head = "vision_model.head"
    found |= {f"{head}.mlp.fc1.weight": (WIDE, SIZE), f"{head}.mlp.fc2.weight": (SIZE, WIDE)}
    found |= {f"{head}.layernorm.weight": (SIZE,), f"{head}.attention.out_proj.weight": (SIZE, SIZE)}
    found["text_model.head.weight"] = (SIZE, SIZE)
    is_table = ("token_embedding", "position_embedding")
    found |= {
        name.replace(".weight", ".bias"): (shape[0],)
        for name, shape in found.items()
        if not any(each in name for each in is_table)
    }
    found |= {f"{head}.probe": (1, 1, SIZE), f"{head}.attention.in_proj_weight": (3 * SIZE, SIZE)}
    found |= {f"{head}.attention.in_proj_bias": (3 * SIZE,), "logit_scale": (1,), "logit_bias": (1,)}
    found["vision_model.embeddings.position_embedding.weight"] = (NUM_PATCHES, SIZE)
    return found


def by_formula(num: int, seed: int) -> NDArray[np.float64]:
    """Numbers of -1/2 .. 1/2 that look like chance, the same everywhere: a multiplicative hash."""
    k = np.arange(num, dtype=np.uint64) * 2_654_435_761 + seed * 40_503 + 12_345
    for shift, product in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        k &= 0xFFFFFFFF
        k ^= k >> np.uint64(shift)
        k *= np.uint64(product)
    return (k & 0xFFFFFFFF) / 2.0**32 - 0.5


def weights(kind: str) -> dict[str, NDArray[np.float32]]:
    found: dict[str, NDArray[np.float32]] = {}
    for seed, (name, shape) in enumerate(sorted(shapes(kind).items())):
        values = by_formula(int(np.prod(shape)), seed)
        if "norm" in name and name.endswith("weight"):
            values = 1 + values
        elif name.startswith("logit"):
            values = np.array([2.5 if name == "logit_scale" else -3.0])
        else:
            values = values * 0.4
        found[name] = values.reshape(shape).astype(np.float32)
    return found


def pixels() -> NDArray[np.float32]:
    """float32 [2, 3, SIDE, SIDE], as a tower takes them."""
    return (4 * by_formula(2 * 3 * SIDE * SIDE, 999)).astype(np.float32).reshape(2, 3, SIDE, SIDE)


def write_tensors(path: Path, tensors: Mapping[str, NDArray[np.float32]], counted: str = "") -> None:
    """In the format that the hub's are in; `counted` is a tensor of whole numbers, which nobody needs."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [len(data), len(data) + tensor.nbytes]}
        data += tensor.tobytes()
    if counted:
        header[counted] = {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}
    said = json.dumps(header).encode()
    path.write_bytes(len(said).to_bytes(8, "little") + said + data)


def write(kind: str, folder: Path) -> Path:
    """In the files' own formats."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "model.safetensors", weights(kind), "text_model.embeddings.position_ids")
    words = ["<unk>", "</s>", "<start>", "<end>", *WORDS.split()]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    around = ("<start> $A <end>", [("<start>", 2), ("<end>", 3)]) if kind == "clip" else ("$A </s>", [("</s>", 1)])
    tokenizer.post_processor = processors.TemplateProcessing(single=around[0], special_tokens=around[1])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
