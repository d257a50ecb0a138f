"""The embedding, against a plain reference."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_towers import write_tensors
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from operators import weights
from operators.language import embedding
from operators.language.embedding import Embedder

SIZE, WIDE, WORDS = (
    24,
    48,
    ["[UNK]", "[CLS]", "[SEP]", "the", "train", "leaves", "at", "nine", "when", "?", "rain", "##s"],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights by chance, of two layers of 24 numbers, in the files' own formats."""
    folder = tmp_path_factory.mktemp("small")
    by_chance = np.random.default_rng(7)
    shapes = {"embeddings.word_embeddings.weight": (len(WORDS), SIZE)}
    shapes |= {
        "embeddings.position_embeddings.weight": (512, SIZE),
        "embeddings.token_type_embeddings.weight": (2, SIZE),
    }
    shapes |= {f"embeddings.LayerNorm.{what}": (SIZE,) for what in ("weight", "bias")}
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        sizes = {f"attention.self.{part}": (SIZE, SIZE) for part in ("query", "key", "value")}
        sizes |= {
            "attention.output.dense": (SIZE, SIZE),
            "intermediate.dense": (WIDE, SIZE),
            "output.dense": (SIZE, WIDE),
        }
        for name, (rows, columns) in sizes.items():
            shapes |= {f"{layer}.{name}.weight": (rows, columns), f"{layer}.{name}.bias": (rows,)}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{layer}.{name}.weight": (SIZE,), f"{layer}.{name}.bias": (SIZE,)}
    tensors = {name: by_chance.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    write_tensors(folder / "model.safetensors", tensors)
    tokenizer = Tokenizer(models.WordPiece({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer.save(str(folder / "tokenizer.json"))
    np.savez(folder / "tensors.npz", **tensors)
    return folder


def by_hand(tensors: Any, ids: Sequence[int]) -> list[float]:
    """BERT as it is written down, number by number."""

    def linear(x: list[float], name: str) -> list[float]:
        rows, bias = tensors[f"{name}.weight"].tolist(), tensors[f"{name}.bias"].tolist()
        return [sum(a * b for a, b in zip(row, x, strict=True)) + c for row, c in zip(rows, bias, strict=True)]

    def normalised(x: list[float], name: str) -> list[float]:
        mean = sum(x) / len(x)
        deviation = math.sqrt(sum((each - mean) ** 2 for each in x) / len(x) + 1e-12)
        weight, bias = tensors[f"{name}.weight"].tolist(), tensors[f"{name}.bias"].tolist()
        return [(each - mean) / deviation * w + b for each, w, b in zip(x, weight, bias, strict=True)]

    def plus(*some: list[float]) -> list[float]:
        return [sum(each) for each in zip(*some, strict=True)]

    tables = [tensors[f"embeddings.{kind}_embeddings.weight"].tolist() for kind in ("word", "position", "token_type")]
    xs = [
        normalised(plus(tables[0][id], tables[1][at], tables[2][0]), "embeddings.LayerNorm")
        for at, id in enumerate(ids)
    ]
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        parts = {k: [linear(x, f"{layer}.attention.self.{k}") for x in xs] for k in ("query", "key", "value")}
        heard: list[list[float]] = [[] for _ in xs]
        for head in range(12):
            own = slice(2 * head, 2 * head + 2)
            for at, query in enumerate(parts["query"]):
                scores = [
                    math.exp(sum(a * b for a, b in zip(query[own], key[own], strict=True)) / math.sqrt(2))
                    for key in parts["key"]
                ]
                for number in range(2 * head, 2 * head + 2):
                    values = [value[number] for value in parts["value"]]
                    heard[at].append(sum(s * v for s, v in zip(scores, values, strict=True)) / sum(scores))
        output = f"{layer}.attention.output"
        xs = [
            normalised(plus(x, linear(h, f"{output}.dense")), f"{output}.LayerNorm")
            for x, h in zip(xs, heard, strict=True)
        ]
        wide = [linear(x, f"{layer}.intermediate.dense") for x in xs]
        bent = [[each * (1 + math.erf(each / math.sqrt(2))) / 2 for each in x] for x in wide]
        out = [plus(x, linear(b, f"{layer}.output.dense")) for x, b in zip(xs, bent, strict=True)]
        xs = [normalised(each, f"{layer}.output.LayerNorm") for each in out]
    mean = [sum(column) / len(xs) for column in zip(*xs, strict=True)]
    length = math.sqrt(sum(each * each for each in mean))
    return [each / length for each in mean]


TEXTS = ["The train leaves at nine", "when?", "rains the", "", "words that nobody knows"]


def test_a_vector_is_what_the_model_says_number_by_number(folder: Path) -> None:
    tensors = np.load(folder / "tensors.npz")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    vectors = Embedder(folder).vectors(TEXTS)
    for text, vector in zip(TEXTS, vectors, strict=True):
        np.testing.assert_allclose(vector, by_hand(tensors, tokenizer.encode(text).ids), atol=2e-6)


def test_a_vector_does_not_depend_on_what_it_comes_with(folder: Path) -> None:
    embedder = Embedder(folder)
    together = embedder.vectors(TEXTS)
    alone = [Embedder(folder).vectors([text])[0] for text in reversed(TEXTS)]
    assert all((a == b).all() for a, b in zip(together, reversed(alone), strict=True))
    assert embedder.vectors([]).shape == (0, SIZE)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-6)


def test_long_texts_are_cut_and_not_all_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "MAX_KEPT", 3)
    embedder = Embedder(folder)
    long = " ".join(["train"] * 5000)
    assert embedder.vectors([long, *TEXTS]).shape == (len(TEXTS) + 1, SIZE)
    assert len(embedder._kept) == 3


@pytest.mark.skipif(weights.find(embedding.NAME) is None, reason=f"there are no weights of {embedding.NAME} here")
def test_the_real_weights_give_the_published_cosines() -> None:
    """Source: the model's page of Sentence-Transformers, to four places."""
    food, bread, baby = embedding.load().vectors(
        ["A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby."]
    )
    assert [round(float(food @ other), 3) for other in (bread, baby)] == [0.755, -0.105]
