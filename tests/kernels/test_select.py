"""embedding and argmax: exact, and what they refuse."""

import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from helpers import LONG, SEAMS, Guarded, assert_same_bits, at_offset, normal, num_threads, rng
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import llorch
from llorch import reference
from llorch.testing import use_isa

DTYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


# ---- embedding --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_embedding_is_the_oracle(isa, dtype):
    for E in (1, 5, 16, 67, 768):
        table = normal(50, E).astype(dtype)
        for ids in (3, [0, 49, 49, 1], np.array([[1, 2], [3, 4]], np.uint8), np.arange(50)[::-1], np.int16(7), (1, 2),
                    np.zeros((0,), np.int64), np.zeros((2, 0), np.int32), [], np.array([5], np.uint64)):  # fmt: skip
            assert_same_bits(
                llorch.embedding(table, ids), reference.embedding(table, np.asarray(ids, np.int64)), f"{ids}"
            )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_embedding_of_any_layout(dtype):
    table = normal(40, 140).astype(dtype)
    ids = rng(1).integers(0, 40, (3, 7))
    for view in (table[:, ::2], table[::-1, 3:], table[:, ::-1], np.asfortranarray(table), table.T[:, :40][:40]):
        assert_same_bits(llorch.embedding(view, ids), reference.embedding(view.copy(), ids), f"strides {view.strides}")
    with num_threads(2):
        many = rng(2).integers(0, 40, 3000)
        assert_same_bits(llorch.embedding(table, many), reference.embedding(table, many))


@pytest.mark.parametrize("kept", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_embedding_of_a_packed_table(isa, dtype, kept):
    """The LM head that is tied to it: the columns of a weight that was packed with transposed=True."""
    for V, E in ((50, 67), (16, 16), (1, 300), (33, 1)):
        table = normal(V, E, seed=4).astype(dtype)
        head = llorch.PackedLinear(table, dtype=kept.name, transposed=True)
        ids = rng(6).integers(0, V, (2, 9))
        wanted = reference.embedding(reference.narrow(reference.widen(table), kept), ids)
        assert_same_bits(llorch.embedding(head, ids), wanted, f"{V} x {E}")
        with pytest.raises(IndexError, match=rf"ids\[1\] is {V}, the table has {V} rows"):
            llorch.embedding(head, [0, V])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_embedding_of_every_value_at_every_address(isa, dtype):
    """All 65,536 encodings of 16 bits; of float32 some of all kinds. They are widened and not computed with."""
    every = (np.arange(65536, dtype=np.uint16).view(dtype) if dtype.itemsize == 2 else
             np.arange(0, 2**32, 65537, dtype=np.uint64).astype(np.uint32).view(np.float32)[:65536])  # fmt: skip
    with np.errstate(invalid="ignore"):  # some are signalling NaNs
        for table in (every.reshape(512, 128), every.reshape(-1, 1), every.reshape(512, 128)[:, ::3]):
            rows = rng(5).permutation(len(table))
            assert_same_bits(llorch.embedding(table, rows), reference.embedding(table, rows))
        table = every[20000:20400].reshape(10, 40)
        for offset in range(64):
            ids = at_offset(np.array([9, 0, 5]), offset)
            assert_same_bits(llorch.embedding(at_offset(table, offset), ids), reference.embedding(table, [9, 0, 5]))


@pytest.mark.parametrize("threads", (1, 2, 3, 8))
def test_embedding_is_thread_invariant(threads):
    for dtype in DTYPES:
        table, ids = normal(300, 700).astype(dtype), rng(6).integers(0, 300, 1000)
        with num_threads(threads):
            assert_same_bits(llorch.embedding(table, ids), reference.embedding(table, ids))
            assert_same_bits(llorch.embedding(table[:, ::2], ids), reference.embedding(table[:, ::2], ids))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's mmap")
def test_nothing_outside_the_inputs_is_read(isa):
    for dtype in DTYPES:
        for n in (1, 3, 15, 16, 17, 33, 100, 1030):
            x = normal(3, n).astype(dtype)
            with Guarded() as guarded:
                there = guarded.copy(x)
                assert_same_bits(llorch.embedding(there, [2, 0]), reference.embedding(x, [2, 0]))
                assert np.array_equal(llorch.argmax(there), reference.argmax(x))


TABLE = normal(10, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: llorch.embedding(TABLE, 10), IndexError, r"ids is 10, the table has 10 rows"),
        (lambda: llorch.embedding(TABLE, [1, 2, -1, 11]), IndexError, r"ids\[2\] is -1, the table has 10 rows"),
        (lambda: llorch.embedding(TABLE, [[1, 2], [30, 11]]), IndexError, r"ids\[1, 0\] is 30"),
        (lambda: llorch.embedding(TABLE, np.array([2**63], np.uint64)), IndexError, r"ids\[0\] is 9223372036854775808"),
        (lambda: llorch.embedding(TABLE[:0], [0]), IndexError, r"ids\[0\] is 0, the table has 0 rows"),
        (lambda: llorch.embedding(TABLE, [1.0]), TypeError, "ids must be integers, got float64"),
        (lambda: llorch.embedding(TABLE, [1, True]), TypeError, r"ids\[1\] is a bool, ids must be integers"),
        (lambda: llorch.embedding(TABLE, [[1, 2], (3, np.True_)]), TypeError, r"ids\[1, 1\] is a bool"),
        (lambda: llorch.embedding(TABLE, True), TypeError, "ids must be integers, got bool"),
        (lambda: llorch.embedding(TABLE, "1"), TypeError, "ids must be integers, got str"),
        (lambda: llorch.embedding(TABLE[0], [0]), ValueError, r"table has shape \(4,\), it must be \(V, E\)"),
        (lambda: llorch.embedding(TABLE.astype(np.float64), [0]), TypeError, "table is float64"),
        (lambda: llorch.argmax(np.float32(1)), ValueError, "logits has no axis"),
        (lambda: llorch.argmax(TABLE[:, :0]), ValueError, r"logits has shape \(10, 0\): an empty row"),
        (lambda: llorch.argmax(np.float32([1, np.nan, np.nan])), ValueError, r"logits\[1\] is NaN"),
        (lambda: llorch.argmax(np.float32([[[1, 2]], [[3, np.nan]]])), ValueError, r"logits\[1, 0, 1\] is NaN"),
        (lambda: llorch.argmax(TABLE.astype(np.float64)), TypeError, "logits is float64"),
    ],
)
def test_message(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_the_first_bad_id_is_named_and_no_other_row_is_read():
    ids = np.zeros(5000, np.int64)
    ids[[4000, 4001]] = 2**40, -5
    with pytest.raises(IndexError, match=r"ids\[4000\] is 1099511627776"):
        llorch.embedding(TABLE, ids)


# ---- argmax -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_argmax_is_the_oracle(isa, dtype):
    for n in (*SEAMS, 3, 9, 31, 33, 1023, 1025, 2047, LONG):
        x = normal(3, n, seed=n).astype(dtype)
        got = llorch.argmax(x)
        assert got.dtype == np.int64 and got.shape == (3,)
        assert (got == np.argmax(x.astype(np.float32), axis=1)).all(), n
        if n < 2000:
            assert (got == reference.argmax(x)).all(), n


def test_argmax_at_every_place(isa):
    for n in (1, 7, 16, 33, 64, 100, 1030):
        for at in range(n) if n < 1000 else (0, 1, 1021, 1023, 1024, 1029):
            x = np.full(n, -1, np.float32)
            x[at:] = -0.5  # the lowest of equals
            assert llorch.argmax(x) == at
            x[at] = np.inf
            assert llorch.argmax(x) == at
            x[at:] = np.nan
            with pytest.raises(ValueError, match=rf"logits\[{at}\] is NaN"):
                llorch.argmax(x)


def test_argmax_of_special_values(isa):
    low, inf = np.float32(-3.4028235e38), np.inf
    for x, wanted in (([-inf, -inf], 0), ([-inf, low], 1), ([-0.0, 0.0], 0), ([0.0, -0.0], 0), ([-1, -0.0, 0.0], 1),
                      ([inf, inf], 0), ([1e-45, 3e-45], 1), ([0, 1e-45], 1), ([low] * 5, 0)):  # fmt: skip
        got = llorch.argmax(np.float32(x))
        assert got == wanted and type(got) is int, f"{x}"
        assert reference.argmax(np.float32(x)) == wanted
        long = np.full(1500, -np.inf, np.float32)
        long[-len(x) :] = x
        assert llorch.argmax(long) == (wanted + 1500 - len(x) if max(x) > -inf else 0)


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=40), elements=st.floats(-2, 2, width=16)))
def test_argmax_any(x):
    for name in llorch.available_isas():
        with use_isa(name):
            assert np.array_equal(llorch.argmax(x), np.argmax(x, axis=-1))


def test_argmax_of_any_layout():
    x = normal(5, 6, 300)
    for view in (x[:, ::2], x[..., ::3], x[..., ::-1], x.transpose(2, 0, 1), np.broadcast_to(x[0, 0], (4, 300))):
        assert np.array_equal(llorch.argmax(view), np.argmax(view, axis=-1))
    assert llorch.argmax(x[:0]).shape == (0, 6)
    big = normal(40, 20000)
    with num_threads(2):
        assert np.array_equal(llorch.argmax(big), big.argmax(axis=1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_argmax_at_every_address_and_of_16_bits(isa, dtype):
    x = normal(2, 77).astype(dtype)
    for offset in range(64):
        assert np.array_equal(llorch.argmax(at_offset(x, offset)), reference.argmax(x))
    for at in (0, 1, 16, 40, 76):
        y = x.copy()
        y[1, at] = np.inf
        assert llorch.argmax(y)[1] == at
        y[1, at] = np.nan
        with pytest.raises(ValueError, match=rf"logits\[1, {at}\] is NaN"):
            llorch.argmax(y)


@pytest.mark.parametrize("threads", (1, 2, 3, 8))
def test_argmax_is_thread_and_batch_invariant(threads):
    x = normal(300, 3000).astype(np.float16).astype(np.float32)  # with ties
    wanted = [llorch.argmax(row) for row in x]
    with num_threads(threads):
        for batch in (1, 2, 7, 300):
            assert llorch.argmax(x[:batch]).tolist() == wanted[:batch]
            assert llorch.argmax(x[-batch:]).tolist() == wanted[-batch:]
    x[200, 2999] = np.nan
    with num_threads(threads), pytest.raises(ValueError, match=r"logits\[200, 2999\] is NaN"):
        llorch.argmax(x)


MEDDLED = """
import threading, time, numpy as np, llorch
x, ids, stop = np.zeros(1 << 14, np.float32), np.zeros(1 << 15, np.int64), time.monotonic() + 1.5
llorch.set_num_threads(1)

def write(i=0):
    while time.monotonic() < stop:
        i += 1
        {writes}

writer = threading.Thread(target=write)
writer.start()
while time.monotonic() < stop:
    try:
        {call}
    except (IndexError, ValueError):
        pass
writer.join()
"""


def test_inputs_that_another_thread_writes_to():
    """Any result or error will do, but nothing outside the inputs is read. The two run at once, each for its 1.5 s."""
    begun = [
        subprocess.Popen([sys.executable, "-P", "-c", MEDDLED.format(writes=writes, call=call)], stderr=subprocess.PIPE)
        for writes, call in (
            ("x[:] = i", "llorch.argmax(x)"),
            ("ids[:] = i % 2 << 40", "llorch.embedding(x.reshape(-1, 8), ids)"),
        )
    ]
    for one in begun:
        _, said = one.communicate(timeout=60)
        assert one.returncode == 0, said.decode() or f"the process ended by signal {-one.returncode}"
