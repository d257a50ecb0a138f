"""Graphs that are written here are computed as NumPy computes them."""

import numpy as np
import pytest

from operators.onnx_graph import Graph

CHANCE = np.random.default_rng(3)
WIDE = CHANCE.normal(size=(300, 40)).astype(np.float32)
BIAS = CHANCE.normal(size=300).astype(np.float32)


@pytest.mark.parametrize("num", [1, 7, 200])
def test_a_product_a_shape_and_a_mean(num: int) -> None:
    graph = Graph(x=("n", 40))
    wide = graph.add("Gemm", "x", graph.weight("w", WIDE), graph.weight("b", BIAS), transB=1)
    apart = graph.add("Transpose", graph.add("Reshape", wide, graph.constant("apart", 0, 3, -1)), perm=(1, 0, 2))
    mean = graph.add("ReduceMean", apart, graph.constant("axes", 1), keepdims=0)
    x = CHANCE.normal(size=(num, 40)).astype(np.float32)
    (found,) = graph.session(mean, num_threads=1).run(None, {"x": x})
    right = (x @ WIDE.T + BIAS).reshape(num, 3, 100).transpose(1, 0, 2).mean(axis=1)
    np.testing.assert_allclose(found, right, atol=1e-4)


def test_a_weight_that_is_named_twice_is_one_and_numbers_of_all_kinds_arrive() -> None:
    graph = Graph(x=(2, 3))
    one = graph.weight("one", np.ones(3, np.float32))
    same = graph.weight("one", np.zeros(3, np.float32))
    normalised = graph.add("LayerNormalization", graph.add("Add", "x", same), one, axis=-1, epsilon=0.5)
    x = np.asarray([[1, 2, 6], [0, 0, 0]], np.float32)
    (found,) = graph.session(normalised, num_threads=1).run(None, {"x": x})
    right = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 0.5)
    np.testing.assert_allclose(found, right, atol=1e-6)
