"""Makes tests/data/towers.json: what Hugging Face's transformers compute of the small CLIP and SigLIP of
tests/small_towers.py. Run with an environment that has torch and transformers:

    PYTHONPATH=tests python tests/data/make_towers.py
"""

import json
from pathlib import Path
from typing import Any

import small_towers as small
import torch
import transformers
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

SHARED: dict[str, Any] = {
    "hidden_size": small.SIZE,
    "intermediate_size": small.WIDE,
    "num_attention_heads": small.SIZE // 64,
    "num_hidden_layers": small.LAYERS,
}
TEXT: dict[str, Any] = SHARED | {
    "vocab_size": small.NUM_WORDS,
    "max_position_embeddings": small.MAX_TOKENS,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "pad_token_id": 1,
}
VISION: dict[str, Any] = SHARED | {"image_size": small.SIDE, "patch_size": small.PATCH}


def model_of(kind: str) -> Any:
    if kind == "clip":
        parts = {"text_config": TEXT, "vision_config": VISION}
        made = CLIPModel(CLIPConfig(**parts, projection_dim=small.SHARED))
    else:
        made = SiglipModel(SiglipConfig(text_config=TEXT | {"projection_size": small.SIZE}, vision_config=VISION))
    made.load_state_dict({name: torch.from_numpy(each.copy()) for name, each in small.weights(kind).items()})
    return made.eval()


def main() -> None:
    told: dict[str, Any] = {"transformers": transformers.__version__}
    for kind in ("clip", "siglip"):
        model = model_of(kind)
        pictures, words, logits = [], [], []
        with torch.no_grad():
            for ids in small.TEXTS[kind]:
                full = ids if kind == "clip" else ids[: small.MAX_TOKENS - 1]
                padded = full + [1] * (0 if kind == "clip" else small.MAX_TOKENS - len(full))
                found = model(input_ids=torch.tensor([padded]), pixel_values=torch.from_numpy(small.pixels()))
                words.append(found.text_embeds[0].tolist())
                logits.append(found.logits_per_image[:, 0].tolist())
                pictures = found.image_embeds.tolist()
        told[kind] = {"pictures": pictures, "words": words, "logits": logits}
    Path(__file__).with_name("towers.json").write_text(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
