"""linear and PackedLinear: kernels against the oracle, the oracle against independent vectors and the text."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from helpers import assert_same_bits, at_offset, normal, num_threads, same_bits

import llorch
from llorch import reference
from llorch.testing import bits

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


# ---- kernels ----------------------------------------------------------------------------------------

DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
# Every number of rows in a tile, several tiles, several blocks of rows; every seam of K; whole and broken panels.
CASES = [(M, K, N) for M, N in ((1, 33), (2, 64), (3, 65), (4, 1), (5, 90), (6, 16), (7, 17), (12, 48), (13, 31))
         for K in (0, 1, 127, 128, 129, 256, 257, 300)] + [(1, 300, 1100), (130, 300, 70), (260, 140, 20)]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_on_the_independent_vectors(isa, shape):
    x, weight, bias = (VECTORS[f"linear/{shape}/{name}"] for name in ("x", "weight", "bias"))
    assert_same_bits(llorch.linear(x, weight, bias), VECTORS[f"linear/{shape}/y"])
    assert_same_bits(llorch.PackedLinear(weight)(x), VECTORS[f"linear/{shape}/y_no_bias"])


def test_oracle(isa):
    for M, K, N in CASES:
        if isa == "generic" and M > 12:
            continue  # minutes without an fma instruction; the other sets take these
        x, w, b = normal(M, K), normal(K, N, seed=1), normal(N, seed=2)
        wanted = reference.linear(x, w, b)
        columns = np.ascontiguousarray(w.T)
        for what, got in (
            ("rows", llorch.linear(x, w, b)),
            ("columns", llorch.linear(x, columns.T, b)),
            ("gaps", llorch.linear(x, np.repeat(w, 2, 1)[:, ::2], b)),
            ("packed", llorch.PackedLinear(w, b)(x)),
            ("packed, transposed", llorch.PackedLinear(columns, b, transposed=True)(x)),
        ):
            assert_same_bits(got, wanted, f"{what}, {M, K, N}")


@pytest.mark.parametrize("name", ("float16", "bfloat16"))
def test_16_bits(isa, name):
    for M, K, N in ((1, 300, 70), (2, 130, 33), (4, 129, 17), (9, 300, 40)):
        x, b = normal(M, K), normal(N, seed=2)
        w = normal(K, N, seed=1).astype(DTYPES[name])
        wanted = reference.linear(x, w, b)
        packed = llorch.PackedLinear(w.astype(np.float32), b, dtype=name)
        assert_same_bits(packed(x), wanted)
        assert_same_bits(llorch.linear(x, w, b), wanted)
        narrow = x.astype(DTYPES[name])
        assert_same_bits(packed(narrow), reference.linear(narrow, w, b))
        assert_same_bits(packed.column(N - 1), reference.widen(w)[:, N - 1])
        assert_same_bits(packed.row(K - 1), reference.widen(w)[K - 1])
        assert packed.nbytes == (N + 15) // 16 * 16 * K * 2


@pytest.mark.parametrize("activation", (None, "gelu", "gelu_tanh", "silu"))
def test_fused_forms_are_the_steps(isa, activation):
    step = {
        None: lambda y: y,
        "gelu": reference.gelu,
        "gelu_tanh": lambda y: reference.gelu(y, approximate="tanh"),
        "silu": reference.silu,
    }[activation]
    for M, K, N in ((1, 200, 70), (7, 300, 33)):
        x, w, b, h = normal(M, K), normal(K, N, seed=1, scale=0.1), normal(N, seed=2), normal(M, N, seed=3)
        wanted = step(reference.linear(x, w, b))
        for product in (lambda *a, w=w, b=b, **k: llorch.linear(a[0], w, b, **k), llorch.PackedLinear(w, b)):
            assert_same_bits(product(x, activation=activation), wanted)
            into = h.copy()
            assert product(x, activation=activation, residual=into, out=into) is into
            assert_same_bits(into, h + wanted)


def test_batch_invariant(isa):
    x, w, b = normal(40, 300), normal(300, 70, seed=1), normal(70, seed=2)
    packed = llorch.PackedLinear(w, b)
    alone = np.stack([packed(row) for row in x])
    for batch in (1, 2, 3, 5, 6, 7, 13, 40):
        for start in (0, 40 - batch):
            part = x[start : start + batch]
            assert_same_bits(packed(part), alone[start : start + batch])
            assert_same_bits(llorch.linear(part, w, b), alone[start : start + batch])


def test_an_order_that_depends_on_the_batch_would_be_seen():
    """Negative control: the same comparison on a product that splits K in two when there are many rows."""
    x, w = normal(8, 512), normal(512, 16, seed=1)
    alone = np.concatenate([reference.linear(row[None], w) for row in x])
    split = reference.linear(x[:, :256], w[:256]) + reference.linear(x[:, 256:], w[256:])
    assert not same_bits(split, alone)


@pytest.mark.parametrize("threads", (2, 3, 8))
def test_thread_invariant(threads):
    for M, K, N in ((1, 1024, 5000), (12, 1024, 1024), (200, 300, 1000), (3000, 64, 64)):
        x, w = normal(M, K), normal(K, N, seed=1)
        packed = llorch.PackedLinear(w)
        with num_threads(1):
            wanted = packed(x)
        with num_threads(threads):
            assert_same_bits(packed(x), wanted)
            assert_same_bits(llorch.linear(x, w), wanted)


def test_alignment_and_nothing_outside_out(isa):
    M, K, N = 7, 130, 37
    x, w, b = normal(M, K), normal(K, N, seed=1), normal(N, seed=2)
    wanted = reference.linear(x, w, b)
    for offset in (0, 1, 4, 20, 33):
        room = np.full(M * N + 64, 7.0, np.float32)
        out = room[32 : 32 + M * N].reshape(M, N)
        llorch.linear(*(at_offset(a, offset) for a in (x, w, b)), out=out)
        assert_same_bits(out, wanted)
        assert (room[:32] == 7).all() and (room[32 + M * N :] == 7).all()


def test_a_nan_stays_in_its_row_and_column(isa):
    x, w = normal(8, 140), normal(140, 40, seed=1)
    clean = llorch.linear(x, w)
    x[3, 7], w[9, 20] = np.nan, np.inf
    spoilt = llorch.linear(x, w)
    changed = bits(spoilt) != bits(clean)
    assert changed[3].all() and changed[:, 20].all()
    changed[3] = changed[:, 20] = False
    assert not changed.any()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: llorch.linear(normal(2, 3), normal(4, 5)), ValueError, r"x has shape \(2, 3\).*the 4 rows of weight"),
        (lambda: llorch.linear(normal(2, 3), normal(3)), ValueError, r"weight has shape \(3,\), it must be \(K, N\)"),
        (lambda: llorch.linear(normal(2, 3), normal(3, 5), normal(4)), ValueError, r"bias has shape \(4,\).*\(5,\)"),
        (lambda: llorch.linear(normal(2, 3), np.ones((3, 5))), TypeError, "weight is float64"),
        (lambda: llorch.linear(normal(2, 3), normal(3, 5), activation="relu6"), ValueError, "activation.*'relu6'"),
        (lambda: llorch.linear(normal(2, 3), normal(3, 5), residual=normal(2, 4)), ValueError, "residual has shape"),
        (lambda: llorch.linear(normal(2, 3), normal(3, 5), out=normal(2, 4)), ValueError, "out has shape"),
        (lambda: llorch.PackedLinear(normal(3, 5), dtype="int8"), ValueError, "dtype must be.*'int8'"),
        (lambda: llorch.PackedLinear(normal(3, 5)).row(3), IndexError, "k is 3, the weight has 3 rows"),
        (lambda: llorch.PackedLinear(normal(3, 5)).column(-1), IndexError, "n is -1, the weight has 5 columns"),
    ],
)
def test_message(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_overlap_of_out_is_refused():
    base = normal(100)
    x, w = base[:9].reshape(3, 3), base[20:29].reshape(3, 3)
    for out, name in ((x, "x"), (base[4:13].reshape(3, 3), "x"), (w, "weight")):
        with pytest.raises(ValueError, match=f"out overlaps {name}"):
            llorch.linear(x, w, out=out)
