"""linear: the oracle against independent vectors and against the text, value by value."""

from pathlib import Path

import numpy as np
import pytest
from helpers import assert_same_bits, normal, same_bits

from llorch import reference

VECTORS = np.load(Path(__file__).parent / "data" / "linear_vectors.npz")
SHAPES = sorted({name.split("/")[1] for name in VECTORS.files})


@pytest.mark.parametrize("shape", SHAPES)
def test_vectors_of_an_independent_oracle(shape):
    x, weight, bias = (VECTORS[f"linear/{shape}/{name}"] for name in ("x", "weight", "bias"))
    assert_same_bits(reference.linear(x, weight, bias), VECTORS[f"linear/{shape}/y"])
    assert_same_bits(reference.linear(x, weight), VECTORS[f"linear/{shape}/y_no_bias"])


def test_the_vectors_reach_a_second_block():
    assert any(int(shape.split("x")[1]) > 128 for shape in SHAPES)


def text(x, w, init, block=128):
    """The definition in docs/numerics.md, value by value."""
    y = np.float32([init])
    for first in range(0, len(x), block):
        p = np.float32([0])
        for k in range(first, min(first + block, len(x))):
            p = reference.fma(x[k : k + 1], w[k : k + 1], p)
        y = y + p
    return y


@pytest.mark.parametrize("K", (0, 1, 127, 128, 129, 300))
def test_dot128_is_the_text(K):
    x, w, bias = normal(3, K), normal(K, 2, seed=1), normal(2, seed=2)
    wanted = np.array([[text(row, w[:, n], bias[n])[0] for n in range(2)] for row in x])
    assert_same_bits(reference.linear(x, w, bias), wanted)


def test_one_chain_would_be_seen():
    """Negative control: without the blocks the bits are others."""
    x, w = normal(1, 1024), normal(1024, 1, seed=1)
    chain = text(x[0], w[:, 0], 0.0, block=1024)
    assert not same_bits(reference.linear(x, w)[0], chain)


def test_signed_zeros_of_the_bias():
    """y = init + p: -0.0 stays only where the block's sum is -0.0 too, and a block begins at +0.0."""
    bias = np.float32([-0.0, 0.0])
    assert_same_bits(
        reference.linear(np.zeros((1, 4), np.float32), np.ones((4, 2), np.float32), bias), np.float32([[0, 0]])
    )
    assert_same_bits(reference.linear(np.zeros((1, 0), np.float32), np.zeros((0, 2), np.float32), bias), bias[None])


def test_a_row_does_not_know_its_batch():
    x, w, bias = normal(7, 200), normal(200, 5, seed=1), normal(5, seed=2)
    together = reference.linear(x.reshape(7, 1, 200), w, bias)
    assert together.shape == (7, 1, 5)
    for i in range(7):
        assert_same_bits(together[i, 0], reference.linear(x[i], w, bias))


@pytest.mark.parametrize(
    "arguments, message",
    (
        ((normal(2, 3), normal(4, 5)), r"x has shape \(2, 3\), its last axis must be the 4 rows of weight"),
        ((normal(2, 3), normal(3)), r"weight has shape \(3,\), it must be \(K, N\)"),
        ((normal(2, 3), normal(3, 5), normal(4)), r"bias has shape \(4,\), it must be \(5,\)"),
    ),
)
def test_wrong_shapes(arguments, message):
    with pytest.raises(ValueError, match=message):
        reference.linear(*arguments)


def test_float64_is_refused():
    with pytest.raises(TypeError, match="weight is float64"):
        reference.linear(normal(2, 3), np.ones((3, 4)))
