"""The oracle of 16-bit integer arithmetic: against the text of docs/numerics.md, its edges, its distance from exact."""

import ml_dtypes
import numpy as np
import pytest
from helpers import assert_same_bits, normal, rng, same_bits
from weight_blocks import blocks, special_blocks

from llorch import reference
from llorch.reference._formats import INTEGERS, SIZES, integers
from llorch.reference._integers import nearest, round_to_integers

# the integers of each format
RANGES = {
    "Q8_0": (-128, 127), "Q4_0": (-8, 7), "Q4_1": (0, 15), "Q5_0": (-16, 15), "Q5_1": (0, 31), "Q2_K": (0, 3),
    "Q3_K": (-4, 3), "Q4_K": (0, 15), "Q5_K": (0, 31), "Q6_K": (-32, 31),
}  # fmt: skip


def weight(format, K, N, seed=0):
    """Ordinary blocks of N rows of K values, and their values, float64 (N, K)."""
    data = blocks(format, N * K // SIZES[format][0], seed).reshape(-1)
    return data, reference.dequantize(data, format, (N, K)).astype(np.float64)


def hostile_rows(K):
    """Rows (9, K) of x: ordinary, huge, tiny, zero, about 2^-96, one value, a NaN or an infinity in the last block."""
    x = normal(9, K)
    x[1] *= np.float32(5e37)
    x[2] *= np.float32(1e-30)
    x[3] = -0.0
    x[4, ::2], x[4, 1::2] = 2.0**-96, -(2.0**-97)
    x[5, :], x[5, K // 2] = 0, -3
    x[6, -1], x[7, -1], x[8, -1] = np.nan, -np.inf, np.inf
    return x


def fma(a, b, c):
    return reference.fma(*(np.float32([v]) for v in (a, b, c)))[0]


def text(x, w, D, M, bias):
    """The definition in docs/numerics.md for one row x (K,) and column: w (parts, values), D and M (parts,)."""
    y = np.float32(bias)
    part = w.shape[1]
    for first in range(0, len(x), 128):
        block = x[first : first + 128]
        a = np.abs(block).max()
        if not np.isfinite(block).all():
            q, s = [0] * len(block), np.float32(np.nan)
        elif a < 2.0**-96:
            q, s = [0] * len(block), np.float32(0)
        else:
            r, s = np.float32(32767) / a, a / np.float32(32767)
            q = [round(float(v * r)) for v in block]  # ties to even
        p = np.float32(0)
        for k in range(0, len(block), part):
            i = (first + k) // part
            S = sum(a * int(b) for a, b in zip(q[k : k + part], w[i], strict=True))
            p = fma(np.float32(S), D[i], p)
            if M is not None:
                p = fma(np.float32(sum(q[k : k + part])), M[i], p)
        y = fma(p, s, y)
    return y


@pytest.mark.parametrize("format", INTEGERS)
def test_it_is_the_text(format):
    values = SIZES[format][0]
    for K in (values, 5 * values if values == 32 else 2 * values):
        count = 3 * K // values
        special = special_blocks(format)
        for data in (
            blocks(format, count),
            np.resize(special[::-1], (count, special.shape[1])),
            np.resize(special, (count, special.shape[1])),
        ):
            with np.errstate(all="ignore"):
                w, D, M = integers(data, format)
            w, D = w.reshape(3, -1, w.shape[2]), D.reshape(3, -1)
            M = None if M is None else M.reshape(3, -1)
            x, bias = hostile_rows(K), np.float32([-0.0, 1.5, 0])
            with np.errstate(all="ignore"):
                wanted = [[text(row, w[n], D[n], None if M is None else M[n], bias[n]) for n in range(3)] for row in x]
            got = reference.linear_int16(x, data.reshape(-1), format, 3, bias)
            assert_same_bits(got, np.float32(wanted), f"{format}, K={K}")
            assert np.isnan(got[6:]).all()


@pytest.mark.parametrize("format", INTEGERS)
def test_integers_are_those_of_the_format(format):
    """D * w + M, their sum, is in test_reference_formats.py beside gguf-py's values."""
    data = blocks(format, 400)
    w, D, M = integers(data, format)
    assert (w.min(), w.max()) == RANGES[format]
    assert (M is not None) == (format in ("Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K"))
    assert w.shape[2] == (16 if format in ("Q2_K", "Q3_K", "Q6_K") else 32)
    exact = D.astype(np.float64) * w + (-0.0 if M is None else M.astype(np.float64))
    assert_same_bits(exact.astype(np.float32).ravel(), reference.dequantize(data.reshape(-1), format, (w.size,)))


def test_halves_go_to_the_even_integer():
    x = np.float32([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 32766.5, 0.49999997, 0.50000006, -0.0, 3])
    assert nearest(x).tolist() == [0, 2, 2, 0, -2, -2, 32766, 0, 1, 0, 3]
    q, s = round_to_integers(np.concatenate([x, np.float32([32767])])[None])
    assert q[0].tolist() == [0, 2, 2, 0, -2, -2, 32766, 0, 1, 0, 3, 32767] and s.tolist() == [[1]]


def test_the_largest_value_is_32767():
    """Also where 32767 / a is rounded up: 16 bits hold every q."""
    a = np.exp2(rng(1).uniform(-95, 127, 200_000)).astype(np.float32)
    q, s = round_to_integers(np.stack([a, -a], 1))
    assert (q == [32767, -32767]).all()
    assert (abs(s[:, 0].astype(np.float64) * 32767 / a - 1) <= 2.0**-24).all()


def test_blocks_of_x_nearer_to_zero_than_2_to_the_minus_96():
    """They count as zeros: +0 is added to the bias, and a D that is infinite gives NaN."""
    data = blocks("Q8_0", 8).reshape(-1)
    x, bias = np.full((1, 256), 2.0**-97, np.float32), np.float32([-0.0])
    assert_same_bits(reference.linear_int16(x, data, "Q8_0", 1, bias), np.float32([[0]]))
    x[0, 200] = 2.0**-96
    assert reference.linear_int16(x, data, "Q8_0", 1)[0, 0] != 0
    assert_same_bits(reference.linear_int16(x[:, :0], data[:0], "Q8_0", 1, bias), bias[None])
    data[:2] = np.float16([np.inf]).view(np.uint8)
    assert np.isnan(reference.linear_int16(x, data, "Q8_0", 1)).all()


@pytest.mark.parametrize("format", INTEGERS)
def test_distance_from_exact(format):
    """Within the bound of docs/numerics.md; 8 bits for each 32 k, with the same sums, aren't."""
    K, N = 1024, 40
    data, values = weight(format, K, N)
    w, D, M = integers(data.reshape(-1, SIZES[format][1]), format)
    size = abs(D.astype(np.float64) * w) + (0 if M is None else abs(M.astype(np.float64)))
    size, values = size.reshape(N, K), w.astype(np.float64) * D + (0 if M is None else M.astype(np.float64))
    values = values.reshape(N, K)
    for x in (normal(6, K), normal(6, K, seed=1) ** 5, normal(6, K, seed=2, shift=30)):
        wide = x.astype(np.float64)
        a = abs(wide).reshape(6, K // 128, 128).max(axis=-1).repeat(128, axis=-1)
        q, s = round_to_integers(x)
        rounded = abs(q * s.astype(np.float64).repeat(128, axis=-1))
        y = reference.linear_int16(x, data, format, N)
        terms = rounded @ size.T
        bound = 1.02 * 2.0**-16 * (a @ abs(values).T) + (17 + K // 128) * 2.0**-24 * terms
        error = abs(y - wide @ values.T)
        assert (error <= bound).all() and error.max() > bound.max() / 1e4

        a = abs(wide).reshape(6, K // 32, 32).max(axis=-1, keepdims=True) / 127
        eight = (np.rint(wide.reshape(6, K // 32, 32) / a) * a).reshape(6, K)
        assert np.sqrt(((eight @ values.T - wide @ values.T) ** 2).mean()) > 50 * np.sqrt((error**2).mean())
        assert not (abs(eight @ values.T - wide @ values.T) <= bound).all()


@pytest.mark.parametrize("format", ("Q4_1", "Q2_K", "Q6_K"))
def test_a_row_does_not_know_its_batch_and_another_order_is_seen(format):
    x, bias = normal(6, 512), normal(5, seed=2)
    data, values = weight(format, 512, 5)
    wanted = reference.linear_int16(x.reshape(2, 3, 512), data, format, 5, bias)
    assert wanted.shape == (2, 3, 5)
    wanted = wanted.reshape(6, 5)
    for i in range(6):
        assert_same_bits(reference.linear_int16(x[i], data, format, 5, bias), wanted[i])
    # negative controls: the bias last, blocks of x that begin elsewhere, float32 activations, other activations
    assert not same_bits(reference.linear_int16(x, data, format, 5) + bias, wanted)
    half = data.reshape(5, 2, -1)
    parts = [np.ascontiguousarray(half[:, i]).reshape(-1) for i in (1, 0)]
    last = reference.linear_int16(x[:, 256:], parts[0], format, 5, bias)
    assert not same_bits(reference.linear_int16(x[:, :256], parts[1], format, 5) + last, wanted)
    assert not same_bits(reference.linear(x, values.T.astype(np.float32), bias), wanted)


def test_what_stands_around_the_product():
    """16-bit x widens; activation and residual come after, in float32, and y is rounded once."""
    data, _ = weight("Q4_0", 96, 7)
    assert_same_bits(reference.linear_int16(X[:, :32], DATA.reshape(6, 18), "q4_0", 6),
                     reference.linear_int16(X[:, :32], DATA, "Q4_0", 6))  # fmt: skip
    for kind in (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)):
        x, h, bias = normal(4, 96).astype(kind), normal(4, 7, seed=1).astype(kind), normal(7, seed=2).astype(kind)
        y = reference.linear_int16(x.astype(np.float32), data, "Q4_0", 7, bias.astype(np.float32))
        wanted = reference.narrow(reference.silu(y) + h.astype(np.float32), kind)
        got = reference.linear_int16(x, data, "Q4_0", 7, bias, activation="silu", residual=h)
        assert_same_bits(got, wanted, str(kind))


X, DATA = normal(2, 64), blocks("Q4_0", 6).reshape(-1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: f(X, DATA, "MXFP4", 3), ValueError, "format is 'MXFP4', it must be one of Q8_0, .*: a block of int"),
        (lambda f: f(X, DATA, "F16", 3), ValueError, "format is 'F16'"),
        (lambda f: f(X[:, :63], DATA, "Q4_0", 3), ValueError, r"x has shape \(2, 63\).*multiple of 32"),
        (lambda f: f(X, DATA, "Q4_0", 4), ValueError, "blocks has 108 bytes, 4 rows of 64 values take 144"),
        (lambda f: f(X, DATA.view(np.int8), "Q4_0", 3), TypeError, "blocks is int8"),
        (lambda f: f(X, DATA, "Q4_0", 3, normal(4)), ValueError, r"bias has shape \(4,\), it must be \(3,\)"),
        (lambda f: f(X, DATA, "Q4_0", 3, activation="relu6"), ValueError, "activation must be.*got 'relu6'"),
        (lambda f: f(X, DATA, "Q4_0", 3, residual=X), ValueError, r"residual has shape \(2, 64\), it must be \(2, 3\)"),
        (lambda f: f(X.astype(np.float64), DATA, "Q4_0", 3), TypeError, "x is float64"),
    ],
)
def test_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call(reference.linear_int16)
