"""layer_norm, rms_norm and add_layer_norm: bit for bit the oracle, whatever the shape, place or company of a row."""

import functools
from pathlib import Path

import numpy as np
import pytest
from helpers import LONG, SEAMS, SPECIALS, assert_same_bits, at_offset, normal, num_threads, rng, same_bits
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import llorch
from llorch import reference
from llorch.testing import use_isa

VECTORS = np.load(Path(__file__).parent.parent / "data" / "norm_vectors.npz")
CASES = {  # output in the vectors: function, arguments, eps
    "y": ("layer_norm", ("x", "weight", "bias"), None),
    "y_plain": ("layer_norm", ("x",), None),
    "y_weight": ("layer_norm", ("x", "weight"), None),
    "y_bias": ("layer_norm", ("x", None, "bias"), None),
    "y_eps0": ("layer_norm", ("x", "weight", "bias"), 0.0),
    "rms": ("rms_norm", ("x", "weight"), None),
    "rms_eps0": ("rms_norm", ("x", "weight"), 0.0),
}


def everything(x, weight, bias, eps=1e-5):
    """Every public function with every choice of weight and bias, next to its oracle."""
    residual = (x * np.float32(0.5)).astype(x.dtype)[::-1] if x.ndim > 1 else x
    for w in (weight, None):
        for b in (bias, None):
            arguments = f"weight={w is not None}, bias={b is not None}, eps={eps}, shape={x.shape}"
            yield (f"layer_norm {arguments}", llorch.layer_norm(x, w, b, eps=eps),
                   reference.layer_norm(x, w, b, eps=eps))  # fmt: skip
            got, wanted = (m.add_layer_norm(x, residual, w, b, eps=eps) for m in (llorch, reference))
            yield f"add_layer_norm {arguments}", got[0], wanted[0]
            yield f"add_layer_norm sum {arguments}", got[1], wanted[1]
        yield f"rms_norm {arguments}", llorch.rms_norm(x, w, eps=eps), reference.rms_norm(x, w, eps=eps)


@pytest.mark.parametrize("n", (1, 5, 64, 65, 200, 768, 1024))
@pytest.mark.parametrize("module", (llorch, reference), ids=("kernels", "oracle"))
def test_vectors_of_an_independent_oracle(isa, n, module):
    for output, (function, names, eps) in CASES.items():
        arguments = [name and VECTORS[f"layer_norm/{n}/{name}"] for name in names]
        keywords = {} if eps is None else {"eps": eps}
        got = getattr(module, function)(*arguments, **keywords)
        assert_same_bits(got, VECTORS[f"layer_norm/{n}/{output}"], f"{output}, n={n}")


@pytest.mark.parametrize("n", SEAMS)
def test_oracle(isa, n):
    for eps in (1e-5, 0.0, 1e-12, 3.0):
        for what, got, wanted in everything(normal(5, n, seed=n), normal(n, seed=1), normal(n, seed=2), eps):
            assert_same_bits(got, wanted, what)


def test_oracle_long_row(isa):
    for what, got, wanted in everything(normal(2, LONG), normal(LONG, seed=1), normal(LONG, seed=2)):
        assert_same_bits(got, wanted, what)


floats = st.one_of(
    st.floats(width=32, allow_nan=True, allow_infinity=True),
    st.sampled_from([float(v) for v in SPECIALS]),
    st.floats(-1, 1, width=32),
)


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=70), elements=floats),
    st.sampled_from((0.0, 1e-5, 1e-30, 1e-45, 0.7)),
)
def test_oracle_any_values(x, eps):
    n = x.shape[-1]
    weight, bias = normal(n, seed=3), normal(n, seed=4)
    for name in llorch.available_isas():
        with use_isa(name):
            for what, got, wanted in everything(x, weight, bias, eps):
                assert_same_bits(got, wanted, f"{name}: {what}")


@given(st.integers(1, 400), st.integers(1, 9), st.integers(0, 2**32 - 1), st.sampled_from((1e-30, 1.0, 1e19, 3e38)))
def test_oracle_any_shape(n, rows, seed, scale):
    x = (rng(seed).uniform(-1, 1, (rows, n)) * scale).astype(np.float32)
    for what, got, wanted in everything(x, normal(n, seed=3), normal(n, seed=4)):
        assert_same_bits(got, wanted, what)


def test_all_instruction_sets_agree():
    x, w, b = normal(37, 1029), normal(1029, seed=1), normal(1029, seed=2)
    results = {}
    for name in llorch.available_isas():
        with use_isa(name):
            results[name] = llorch.layer_norm(x, w, b)
    assert "generic" in results and len(results) >= 2
    for name, y in results.items():
        assert_same_bits(y, results["generic"], name)


# ---- a row's bits depend on that row ---------------------------------------------------------------


@pytest.mark.parametrize("n", (5, 64, 768, 1024, 3000))
def test_batch_invariant(isa, n):
    x, w, b = normal(513, n, seed=n), normal(n, seed=1), normal(n, seed=2)
    alone = np.stack([llorch.layer_norm(row, w, b) for row in x])
    for batch in (1, 2, 3, 4, 7, 64, 513):
        for start in (0, 1, 513 - batch):
            part = llorch.layer_norm(x[start : start + batch], w, b)
            assert_same_bits(part, alone[start : start + batch], f"batch of {batch} from {start}")


def sequential_norm(x):
    """Negative control: LayerNorm whose sum depends on the batch: rows are added down a different tree in a batch."""
    x = np.atleast_2d(x)
    total = x.sum(axis=1, keepdims=True) if len(x) == 1 else np.cumsum(x, axis=1, dtype=np.float32)[:, -1:]
    d = x - total / np.float32(x.shape[1])
    return d / np.sqrt((d * d).mean(axis=1, keepdims=True) + np.float32(1e-5))


def test_batch_invariance_check_can_fail():
    x = normal(64, 1024)
    alone = np.concatenate([sequential_norm(row) for row in x])
    assert not same_bits(sequential_norm(x), alone)


@pytest.mark.parametrize("dtype", (np.float32, np.float16))
def test_alignment_invariant(isa, dtype):
    for n in (5, 64, 300, 1024):
        x, w, b = normal(9, n).astype(dtype), normal(n, seed=1), normal(n, seed=2)
        wanted = reference.layer_norm(x, w, b)
        for offset in (*range(0, 64, 4), 1, 2, 3, 33):
            out = at_offset(np.zeros_like(x), (offset * 5) % 64)
            placed = [at_offset(a, (offset * k) % 64) for k, a in ((1, x), (3, w), (7, b))]
            assert_same_bits(llorch.layer_norm(*placed, out=out), wanted, f"n={n}, offset {offset}")


def test_nothing_outside_out_is_written(isa):
    for n in SEAMS:
        for offset in (0, 4, 20):
            room = np.full(3 * n + 64, 7.0, np.float32)
            out = room[32 + offset : 32 + offset + 3 * n].reshape(3, n)
            llorch.layer_norm(normal(3, n), normal(n), normal(n), out=out)
            assert (room[: 32 + offset] == 7).all() and (room[32 + offset + 3 * n :] == 7).all()


@pytest.mark.parametrize("threads", (1, 2, 3, 8))
def test_thread_invariant(threads):
    for shape in ((3000, 1024), (100_003, 5), (257, 4096)):
        x, w, b = normal(*shape), normal(shape[1], seed=1), normal(shape[1], seed=2)
        with num_threads(1):
            wanted = llorch.layer_norm(x, w, b)
        with num_threads(threads):
            assert_same_bits(llorch.layer_norm(x, w, b), wanted, f"{threads} threads, {shape}")


@pytest.mark.parametrize("run", range(3))
def test_run_invariant(run):
    x = normal(33, 1024)
    first = llorch.layer_norm(x)
    for _ in range(100):
        assert_same_bits(llorch.layer_norm(x), first)


# ---- layouts ----------------------------------------------------------------------------------------


def test_strides(isa):
    base = normal(6, 8, 130)
    w, b = normal(65, seed=1), normal(65, seed=2)
    for view in (base[:, :, :65], base[:, :, 65:], base[::2, 1::3, :65], base[:, :, ::2], base[::-1, ::-1, 129:64:-1],
                 base.transpose(1, 0, 2)[:, :, :65], np.broadcast_to(base[0, 0, :65], (4, 3, 65)),
                 np.asfortranarray(base[:, :, :65])):  # fmt: skip
        wanted = reference.layer_norm(view.copy(), w, b)
        assert_same_bits(llorch.layer_norm(view, w, b), wanted, f"strides {view.strides}")
        assert_same_bits(llorch.rms_norm(view, w), reference.rms_norm(view.copy(), w))
        n, s = llorch.add_layer_norm(view, view, w, b)
        assert_same_bits(s, view + view)
        assert_same_bits(n, reference.layer_norm(view + view, w, b))


def test_strided_out_weight_and_bias(isa):
    x = normal(4, 5, 66)
    w, b = normal(132, seed=1)[::2], normal(66, seed=2)[::-1]
    wanted = reference.layer_norm(x, w.copy(), b.copy())
    for make in (lambda: np.zeros((4, 5, 140), np.float32)[:, :, :66],
                 lambda: np.zeros((4, 5, 132), np.float32)[:, :, ::2],
                 lambda: np.zeros((5, 4, 66), np.float32).transpose(1, 0, 2),
                 lambda: np.zeros((4, 5, 66), np.float32)[::-1, :, ::-1]):  # fmt: skip
        out = make()
        assert llorch.layer_norm(x, w, b, out=out) is out
        assert_same_bits(out, wanted, f"out strides {out.strides}")
        parent = out.base
        assert np.count_nonzero(parent) == np.count_nonzero(out), "wrote between the elements of out"


def test_in_place(isa):
    for n in (3, 64, 300, 9000):
        x, w, b = normal(7, n), normal(n, seed=1), normal(n, seed=2)
        for function, arguments in (("layer_norm", (w, b)), ("rms_norm", (w,))):
            y = x.copy()
            getattr(llorch, function)(y, *arguments, out=y)
            assert_same_bits(y, getattr(reference, function)(x, *arguments))
        h, r = x.copy(), normal(7, n, seed=9)
        wanted = reference.add_layer_norm(x, r, w, b)
        out, total = llorch.add_layer_norm(h, r, w, b, out=h, sum_out=r)
        assert out is h and total is r
        assert_same_bits(h, wanted[0])
        assert_same_bits(r, wanted[1])


def test_columns_side_by_side_are_no_overlap():
    both = normal(5, 128)
    wanted = reference.layer_norm(both[:, :64].copy())
    llorch.layer_norm(both[:, :64], out=both[:, 64:])
    assert_same_bits(both[:, 64:], wanted)


def test_shapes():
    for shape in ((7,), (0, 5), (3, 0), (2, 0, 5), (0,), (1, 1, 1), (2, 3, 4, 5)):
        x = normal(*shape)
        for got, wanted in ((llorch.layer_norm(x), reference.layer_norm(x)),
                            (llorch.rms_norm(x), reference.rms_norm(x)),
                            (llorch.add_layer_norm(x, x)[0], reference.add_layer_norm(x, x)[0])):  # fmt: skip
            assert_same_bits(got, wanted, f"shape {shape}")


# ---- values -----------------------------------------------------------------------------------------


def test_nan_and_infinity_stay_in_their_row(isa):
    for n in (1, 5, 64, 100, 1024):
        clean = normal(9, n)
        for value in (np.nan, np.inf, -np.inf):
            for column in {0, n // 2, n - 1}:
                x = clean.copy()
                x[4, column] = value
                for function in (llorch.layer_norm, llorch.rms_norm, lambda x, r=clean: llorch.add_layer_norm(x, r)[0]):
                    y, z = function(x), function(clean)
                    assert np.isnan(y[4]).all()
                    assert_same_bits(np.delete(y, 4, 0), np.delete(z, 4, 0))


@pytest.mark.parametrize("scale", (1e20, 1e38, 3.4e38, 1e-30, 1e-42))
def test_range_rule(isa, scale):
    x = (rng(7).uniform(-1, 1, (5, 771)) * scale).astype(np.float32)
    for what, got, wanted in everything(x, normal(771, seed=1), normal(771, seed=2), 0.0):
        assert_same_bits(got, wanted, what)
        if "sum" not in what and "add" not in what:
            assert np.isfinite(got).all()
    assert 0.9 < llorch.layer_norm(x, eps=0.0).std() < 1.1


def test_specials(isa):
    for n in (2, 3, 12, 64, 70):
        x = np.resize(SPECIALS, (len(SPECIALS), n))
        for eps in (0.0, 1e-5):
            for what, got, wanted in everything(x, np.resize(SPECIALS, n), np.resize(SPECIALS[::-1], n), eps):
                assert_same_bits(got, wanted, what)
    constant = np.full((3, 64), 5.0, np.float32)
    assert np.isnan(llorch.layer_norm(constant, eps=0.0)).all()
    assert_same_bits(llorch.layer_norm(constant), np.zeros((3, 64), np.float32))
    assert_same_bits(llorch.layer_norm(-constant, eps=0.0), reference.layer_norm(-constant, eps=0.0))


def test_changed_order_of_the_sum_is_seen():
    """Negative control of all of the above: the same values of a row in other lanes give other bits, once they are back
    in their places."""

    def moved(x):  # half of each block of 64 lanes to the other half of the row; its own inverse is `back`
        return x.reshape(8, 16, 2, 32).transpose(0, 2, 1, 3).reshape(8, 1024)

    def back(x):
        return x.reshape(8, 2, 16, 32).transpose(0, 2, 1, 3).reshape(8, 1024)

    x = normal(8, 1024)
    assert_same_bits(back(moved(x)), x)
    for norm in (llorch.layer_norm, llorch.rms_norm):
        assert not same_bits(back(norm(moved(x))), norm(x))


def test_add_is_the_two_steps(isa):
    for n in SEAMS:
        x, r, w, b = normal(3, n), normal(3, n, seed=6), normal(n, seed=1), normal(n, seed=2)
        y, h = llorch.add_layer_norm(x, r, w, b)
        assert_same_bits(h, x + r)
        assert_same_bits(y, llorch.layer_norm(h, w, b))


STREAM = (32 << 20) // 4  # values from which outputs are stored around the caches


@functools.cache
def larger_than_the_caches(n):
    """Rows, not to be changed; the numbers of those that aren't ordinary; and those whose result is looked up."""
    rows = STREAM // n + 9
    x, hard = normal(rows, n), rng(n).choice(rows, 40, replace=False)
    x[hard[:20]] *= np.float32(1e30)
    x[hard[20:30], 3] = np.inf
    x[[0, -1]] *= np.float32(1e30)
    return x, np.concatenate([hard, hard - 1, [0, 1, rows - 2, rows - 1]])


@pytest.mark.parametrize("threads", (1, 2))
@pytest.mark.parametrize("n, offset", ((257, 0), (1000, 16), (1024, 4), (1024, 0)))
def test_output_larger_than_the_caches(isa, n, offset, threads):
    """Streamed rows share their lines with their neighbours, also with rows that are NaN or done in float64."""
    x, some = larger_than_the_caches(n)
    rows, x = len(x), at_offset(x, offset)
    weight, bias = normal(n, seed=1), normal(n, seed=2)
    out = at_offset(np.full((rows, n), 7, np.float32), offset)
    with num_threads(threads):
        llorch.layer_norm(x, weight, bias, out=out)
    step = STREAM // n // 3
    for i in range(0, rows, step):  # rows in parts are small enough not to be streamed
        assert_same_bits(out[i : i + step], llorch.layer_norm(x[i : i + step], weight, bias), f"rows from {i}")
    assert_same_bits(out[some], reference.layer_norm(x[some], weight, bias), "oracle")
    llorch.rms_norm(x, weight, out=out)
    assert_same_bits(out[some], reference.rms_norm(x[some], weight), "rms_norm")
