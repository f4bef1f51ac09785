"""mean_pool and normalize: bit for bit the oracle, whatever lies beside a sequence or a row."""

import sys

import ml_dtypes
import numpy as np
import pytest
from helpers import (
    SEAMS,
    SPECIALS,
    Guarded,
    assert_same_bits,
    at_offset,
    in_threads,
    normal,
    num_threads,
    refusals,
    same_bits,
)
from hypothesis import given
from hypothesis import strategies as st

import llorch
from llorch import reference
from llorch.testing import use_isa

DTYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
LENGTHS = (1, 2, 5, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200)


def sum64_by_hand(v):
    """The contract's text, value by value."""
    p = [np.float32(0)] * 64
    for i, value in enumerate(v):
        p[i % 64] = p[i % 64] + value
    for h in (32, 16, 8, 4, 2, 1):
        for j in range(h):
            p[j] = p[j] + p[j + h]
    return p[0]


def test_the_oracle_is_the_contract():
    x = normal(200, 3)
    for T in (1, 63, 64, 65, 200):
        wanted = np.float32([[sum64_by_hand(x[:T, j]) / np.float32(T) for j in range(3)]])
        assert_same_bits(reference.mean_pool(x[:T], [T]), wanted, f"T={T}")
    squares = np.float32([3, 4, -12, 84])  # squares and sums are exact
    assert_same_bits(reference.normalize(squares), squares / np.float32(85))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mean_pool_is_the_oracle(isa, dtype):
    for n in (1, 3, 15, 16, 17, 33, 384):
        x = normal(sum(LENGTHS), n, seed=n).astype(dtype)
        assert_same_bits(llorch.mean_pool(x, LENGTHS), reference.mean_pool(x, LENGTHS), f"n={n}")
    x, lengths = normal(90, 20).astype(dtype), [4, 70, 16]
    wanted = reference.mean_pool(x, lengths, skip=3)
    assert_same_bits(llorch.mean_pool(x, lengths, skip=3), wanted)
    assert_same_bits(llorch.mean_pool(np.concatenate([x[3:4], x[7:74], x[77:]]), [1, 67, 13]), wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_normalize_is_the_oracle(isa, dtype):
    for n in SEAMS:
        x = normal(3, n, seed=n).astype(dtype)
        assert_same_bits(llorch.normalize(x), reference.normalize(x), f"n={n}")
    every = np.arange(65536, dtype=np.uint16).view(dtype) if dtype.itemsize == 2 else SPECIALS
    with np.errstate(all="ignore"):
        for row in (every, every[:, None]):
            assert_same_bits(llorch.normalize(row), reference.normalize(row))


def test_edges(isa):
    nan, inf = np.nan, np.inf
    for x, wanted in (
        ([0, -0.0], [0, -0.0]),
        ([inf, 1, -2], [nan, 0, -0.0]),
        ([nan, 1], [nan, nan]),
        ([2e19, 3e19], [0, 0]),  # the squares overflow
        ([1e-13, 0], [np.float32(1e-13) / np.float32(1e-12), 0]),
        ([1e-45], [np.float32(1e-45) / np.float32(1e-12)]),
        ([-5], [-1]),
    ):
        assert_same_bits(llorch.normalize(np.float32(x)), np.float32(wanted), f"{x}")
    rows = np.float32([[-0.0, nan, inf, inf, 3e38], [-0.0, 1, 1, -inf, 3e38]])
    assert_same_bits(llorch.mean_pool(rows, [2]), np.float32([[0, nan, inf, nan, inf]]))
    assert_same_bits(llorch.mean_pool(rows[:1], [1]), np.float32([[0, nan, inf, inf, 3e38]]))
    for shape, lengths in (((0, 5), []), ((3, 0), [2, 1])):
        x = np.zeros(shape, np.float32)
        assert llorch.mean_pool(x, lengths).shape == (len(lengths), shape[1])
    for shape in ((0,), (0, 5), (3, 0), (2, 0, 5)):
        assert llorch.normalize(np.zeros(shape, np.float32)).shape == shape


@given(
    st.lists(st.integers(1, 150), min_size=1, max_size=8),
    st.integers(1, 40),
    st.sampled_from(DTYPES),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
def test_a_sequence_knows_no_other(lengths, n, dtype, threads, random):
    """In any order, on any threads, and alone; on every instruction set."""
    x = normal(sum(lengths), n, seed=len(lengths)).astype(dtype)
    parts = np.split(x, np.cumsum(lengths)[:-1])
    wanted = np.concatenate([reference.mean_pool(part, [len(part)]) for part in parts])
    order = list(range(len(lengths)))
    random.shuffle(order)
    shuffled = np.concatenate([parts[i] for i in order])
    with num_threads(threads):
        for name in llorch.available_isas():
            with use_isa(name):
                assert_same_bits(llorch.mean_pool(x, lengths), wanted, name)
                assert_same_bits(llorch.mean_pool(shuffled, [lengths[i] for i in order]), wanted[order], name)
                assert_same_bits(llorch.normalize(wanted[order]), llorch.normalize(wanted)[order], name)


def test_a_mean_that_knows_its_neighbours_would_be_seen():
    """Negative control: NumPy's sum of the same rows has other bits with zeros behind them, as its order hangs on how
    many there are. (Lanes that began elsewhere would change nothing: the tree is the same from any lane on.)"""
    x = normal(64, 33, 40)
    alone = np.stack([row[:, : i % 33 + 5].copy().sum(axis=1) for i, row in enumerate(x)])
    padded = x * (np.arange(40) < np.arange(64)[:, None, None] % 33 + 5).astype(np.float32)
    assert not same_bits(padded.sum(axis=2), alone)


def test_threads():
    x = normal(9000, 100)
    lengths = [1, 4000, *[50] * 99, 49]
    with num_threads(1):
        mean, length = llorch.mean_pool(x, lengths), llorch.normalize(x)
    for threads in (2, 3, 8):
        with num_threads(threads):
            assert_same_bits(llorch.mean_pool(x, lengths), mean, f"{threads} threads")
            assert_same_bits(llorch.normalize(x), length, f"{threads} threads")
    wrong = []

    def work():
        wrong.extend(1 for _ in range(20) if not same_bits(llorch.mean_pool(x[:900], [400, 500]), some))

    some = llorch.mean_pool(x[:900], [400, 500])
    in_threads(work)
    assert not wrong


def test_layouts_and_places(isa):
    base = normal(20, 140)
    for view in (base[:, ::2], base[::-1, ::-1], base.T[:20], np.broadcast_to(base[0], (20, 140))):
        assert_same_bits(llorch.mean_pool(view, [7, 13]), reference.mean_pool(view.copy(), [7, 13]))
        assert_same_bits(llorch.normalize(view), reference.normalize(view.copy()))
    x, wanted = base[:, :67].copy(), reference.normalize(base[:, :67].copy())
    means = reference.mean_pool(x, [7, 13])
    for offset in range(0, 64, 4):
        placed = at_offset(x, offset)
        out = np.full((2, 134), 7, np.float32)
        assert_same_bits(llorch.mean_pool(placed, [7, 13], out=out[:, ::2]).copy(), means, f"offset {offset}")
        assert (out[:, 1::2] == 7).all()
        assert llorch.normalize(placed, out=placed) is placed
        assert_same_bits(placed.copy(), wanted, f"in place, offset {offset}")


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's mmap")
def test_nothing_past_the_end_is_touched(isa):
    for n in (1, 5, 17, 67):
        for dtype in DTYPES:
            x = normal(9, n).astype(dtype)
            with Guarded() as memory:
                got = llorch.mean_pool(memory.copy(x), [4, 5], out=memory.copy(x[:2]))
                assert_same_bits(got.copy(), reference.mean_pool(x, [4, 5]))
                got = llorch.normalize(memory.copy(x), out=memory.copy(x))
                assert_same_bits(got.copy(), reference.normalize(x))


X = normal(6, 8)
REFUSED = [
    (lambda: llorch.mean_pool(X, [2, 3]), ValueError, "lengths sum to 5, they must sum to the 6 rows of x"),
    (lambda: llorch.mean_pool(X, [6, 0]), ValueError, r"lengths\[1\] is 0, it must be at least 1"),
    (lambda: llorch.mean_pool(X, [7, -1]), ValueError, r"lengths\[1\] is -1"),
    (lambda: llorch.mean_pool(X, [4, 2], skip=2), ValueError, r"lengths\[1\] is 2, it must be at least 3.*skip leaves"),
    (lambda: llorch.mean_pool(X, [6], skip=-1), ValueError, "skip must be at least 0.*got -1"),
    (lambda: llorch.mean_pool(X, [6], skip=1.0), TypeError, "skip must be an int, got float"),
    (lambda: llorch.mean_pool(X, 6), TypeError, "lengths must be ints, one a sequence, got int"),
    (lambda: llorch.mean_pool(X, [5, True]), TypeError, r"lengths\[1\] must be an int, got bool"),
    (lambda: llorch.mean_pool(X, [6], skip=True), TypeError, "skip must be an int, got bool"),
    (lambda: llorch.mean_pool(X, [6.0]), TypeError, r"lengths\[0\] must be an int, got float"),
    (lambda: llorch.mean_pool(X[0], [6]), ValueError, r"x has shape \(8,\), it must be \(T, n\)"),
    (lambda: llorch.mean_pool(X.astype(np.float64), [6]), TypeError, "x is float64"),
    (lambda: llorch.mean_pool(X, [6], out=X[:1]), ValueError, "out overlaps x"),
    (lambda: llorch.mean_pool(X, [6], out=np.zeros((2, 8), np.float32)), ValueError, r"out has shape \(2, 8\)"),
    (lambda: llorch.normalize(np.float32(1)), ValueError, "x has no axis to normalise over"),
    (lambda: llorch.normalize(X, out=X[::-1]), ValueError, "out overlaps x in part"),
    (lambda: llorch.normalize([1.0]), TypeError, "x must be an array.*got list"),
]  # fmt: skip

test_refused = refusals(REFUSED)
