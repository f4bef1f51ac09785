"""softmax: bit for bit the oracle, whatever the shape, place or company of a row."""

import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from helpers import LONG, SEAMS, SPECIALS, Guarded, assert_same_bits, at_offset, normal, num_threads, same_bits
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import llorch
from llorch import reference
from llorch.testing import use_isa

VECTORS = np.load(Path(__file__).parent.parent / "data" / "attention_vectors.npz")
DTYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("module", (llorch, reference), ids=("kernels", "oracle"))
def test_vectors_of_an_independent_oracle(isa, module):
    assert_same_bits(module.softmax(VECTORS["softmax/x"]), VECTORS["softmax/y"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_oracle(isa, dtype):
    for n in (*SEAMS, 3, 7, 9, 63, 65, 129, 191):
        x = normal(3, n, seed=n, scale=5).astype(dtype)
        assert_same_bits(llorch.softmax(x), reference.softmax(x), f"n={n}")


def test_oracle_long_row(isa):
    x = normal(2, LONG, scale=8)
    y = llorch.softmax(x)
    assert_same_bits(y, reference.softmax(x))
    assert abs(y.sum(axis=1, dtype=np.float64) - 1).max() < 1e-6


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=70),
        elements=st.one_of(
            st.floats(width=32), st.sampled_from([float(v) for v in SPECIALS]), st.floats(-9, 9, width=32)
        ),
    )
)
def test_oracle_any_values(x):
    wanted = reference.softmax(x)
    for name in llorch.available_isas():
        with use_isa(name):
            assert_same_bits(llorch.softmax(x), wanted, name)


def test_specials(isa):
    nan = np.nan
    for x, wanted in (
        ([0, -np.inf], [1, 0]),
        ([-np.inf, -np.inf], [nan, nan]),
        ([np.inf, 0], [nan, nan]),
        ([np.inf, np.inf], [nan, nan]),
        ([nan, 0], [nan, nan]),
        ([3.4e38, -3.4e38], [1, 0]),
        ([-0.0, 0.0], [0.5, 0.5]),
        ([1e-45], [1]),
    ):
        assert_same_bits(llorch.softmax(np.float32(x)), np.float32(wanted), f"{x}")
        for n in (70, 130):  # the same in company of values that weigh nothing
            row = np.full(n, -np.inf, np.float32)
            row[-len(x) :] = x
            assert_same_bits(llorch.softmax(row), reference.softmax(row), f"{x}, n={n}")


def test_batch_invariant(isa):
    for n in (5, 64, 700):
        x = normal(65, n, scale=3)
        alone = np.stack([llorch.softmax(row) for row in x])
        for batch in (1, 2, 3, 7, 65):
            for start in (0, 65 - batch):
                assert_same_bits(llorch.softmax(x[start : start + batch]), alone[start : start + batch])


def test_batch_invariance_check_can_fail():
    """Negative control: a sum that runs across the rows of a batch has other bits."""
    x = np.exp(normal(64, 700))
    alone = np.concatenate([np.cumsum(row[None], axis=1, dtype=np.float32)[:, -1] for row in x])
    assert not same_bits(x.sum(axis=1), alone)


@pytest.mark.parametrize("threads", (1, 2, 3, 8))
def test_thread_invariant(threads):
    for shape in ((700, 100), (3, LONG)):
        x = normal(*shape)
        with num_threads(1):
            wanted = llorch.softmax(x)
        with num_threads(threads):
            assert_same_bits(llorch.softmax(x), wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_place_invariant_in_place_and_nothing_else_written(isa, dtype):
    for n in (1, 5, 64, 131):
        x = normal(3, n).astype(dtype)
        wanted = reference.softmax(x)
        for offset in range(64):
            placed = at_offset(x, offset)
            out = at_offset(np.zeros_like(x), (offset * 5) % 64)
            assert llorch.softmax(placed, out=out) is out
            assert_same_bits(out.copy(), wanted, f"n={n}, offset {offset}")
            assert llorch.softmax(placed, out=placed) is placed
            assert_same_bits(placed.copy(), wanted, f"in place, n={n}, offset {offset}")
        room = np.full(3 * n + 64, 7).astype(dtype)
        llorch.softmax(x, out=room[32:-32].reshape(3, n))
        assert (room[:32] == 7).all() and (room[-32:] == 7).all()


def test_strides_and_shapes(isa):
    base = normal(4, 6, 70)
    for view in (base[:, ::2, :33], base[:, :, ::2], base[::-1, :, ::-1], base.transpose(2, 0, 1),
                 np.broadcast_to(base[0, 0], (3, 70))):  # fmt: skip
        assert_same_bits(llorch.softmax(view), reference.softmax(view.copy()), f"strides {view.strides}")
    out = np.zeros((4, 6, 140), np.float32)[:, :, ::2]
    llorch.softmax(base, out=out)
    assert_same_bits(out.copy(), reference.softmax(base))
    for shape in ((0,), (0, 5), (3, 0), (2, 0, 5), (1,)):
        x = normal(*shape)
        assert_same_bits(llorch.softmax(x), reference.softmax(x), f"shape {shape}")


@given(
    st.integers(1, 140),
    st.integers(1, 20),
    st.sampled_from(DTYPES),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
def test_a_row_knows_no_other(n, rows, dtype, threads, random):
    """In another order, in any batches; 16 bits are the float32 result of the widened row, rounded once."""
    x = normal(rows, n, seed=n, scale=6).astype(dtype)
    wanted = llorch.softmax(x)
    assert_same_bits(wanted, reference.narrow(llorch.softmax(reference.widen(x)), dtype))
    order = list(range(rows))
    random.shuffle(order)
    with num_threads(threads):
        start = 0
        while start < rows:
            part = order[start : start + random.randint(1, 7)]
            start += len(part)
            assert_same_bits(llorch.softmax(x[part]), wanted[part])


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's mmap")
def test_nothing_outside_is_read_or_written(isa):
    for n in (1, 5, 15, 16, 17, 33, 64, 100, 131):
        for dtype in DTYPES:
            x = normal(3, n).astype(dtype)
            with Guarded() as guarded:
                y = llorch.softmax(guarded.copy(x), out=guarded.copy(x))
                assert_same_bits(y.copy(), reference.softmax(x), f"n={n}, {dtype}")


def test_threads_sharing_their_input():
    x = normal(5, 300)
    wanted = llorch.softmax(x).tobytes()
    wrong = []
    workers = [
        threading.Thread(target=lambda: wrong.extend(1 for _ in range(500) if llorch.softmax(x).tobytes() != wanted))
        for _ in range(4)
    ]
    for t in workers:
        t.start()
    for t in workers:
        t.join()
    assert not wrong


X = normal(3, 8)
WINDOW = np.lib.stride_tricks.as_strided(normal(8), (3, 1, 4), (4, 4, 4))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: llorch.softmax(X.astype(np.float64)), TypeError, "x is float64"),
        (lambda: llorch.softmax(np.float32(1)), ValueError, r"x has no axis to take the softmax over"),
        (lambda: llorch.softmax(X, out=np.empty((3, 7), np.float32)), ValueError, r"out has shape \(3, 7\).*\(3, 8\)"),
        (lambda: llorch.softmax(X, out=np.empty((3, 8), np.float16)), TypeError, "out is float16.*float32"),
        (lambda: llorch.softmax(X, out=X[::-1]), ValueError, "out overlaps x in part"),
        (lambda: llorch.softmax(WINDOW[:, 0], out=WINDOW[:, 0]), ValueError, "out overlaps itself"),
        (lambda: llorch.softmax([1.0]), TypeError, "x must be an array.*got list"),
        (lambda: llorch.softmax(X, X), TypeError, "positional"),
        (lambda: llorch.softmax(X, out=np.broadcast_to(np.float32(0), (3, 8))), ValueError, "out is read-only"),
        (lambda: llorch.softmax(np.broadcast_to(np.float32(1), (1, 2**24 + 1))), ValueError, r"2\*\*24"),
    ],
)
def test_message(call, error, message):
    with pytest.raises(error, match=message):
        call()
