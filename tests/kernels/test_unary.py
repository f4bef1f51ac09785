"""exp, tanh, erf, sigmoid, silu, gelu: correctly rounded, bit for bit the oracle, whatever the place of a value."""

import functools
import math
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from helpers import SPECIALS, Guarded, assert_same_bits, at_offset, normal, num_threads, rng, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import llorch
from llorch import reference
from llorch.testing import bits, use_isa

ROOT = Path(__file__).parent.parent.parent
DATA = Path(__file__).parent.parent / "data"
VECTORS = np.load(DATA / "unary_vectors.npz")
BF16 = np.dtype(ml_dtypes.bfloat16)
NAMES = ("exp", "tanh", "erf", "sigmoid", "silu", "gelu", "gelu_tanh")


def function(module, name):
    return functools.partial(module.gelu, approximate="tanh") if name == "gelu_tanh" else getattr(module, name)


def encodings(*arguments):
    return np.arange(*arguments, dtype=np.uint64).astype(np.uint32).view(np.float32)


def sweep(seed):
    """Inputs of all kinds: every exponent, subnormal ones, around 0 and +-1, where results vanish, ordinary ones."""
    r = rng(seed)
    return np.concatenate(
        [
            SPECIALS,
            encodings(r.integers(0, 65521), 2**32, 65521),
            encodings(0, 2000),
            encodings(2**31, 2**31 + 2000),
            r.integers(0, 2**23, 1000).astype(np.uint32).view(np.float32),
            r.uniform(-110, 92, 20000).astype(np.float32),
            r.standard_normal(20000).astype(np.float32),
            (r.standard_normal(20000) * 5).astype(np.float32),
        ]
    )


# The vectors' independent oracle rounded these six as if x/2 were the exact result. It is x/2 and a trifle more in the
# direction of +infinity (x sigmoid(x) = x/2 + x^2/4 - ..), so the middle between 0 and the smallest number is passed.
SMALLEST = np.float32(2.0**-149)
CORRECTED = {"silu", "gelu", "gelu_tanh"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("module", (llorch, reference), ids=("kernels", "oracle"))
def test_vectors_of_an_independent_oracle(isa, name, module):
    x, wanted = VECTORS["unary/x"], VECTORS[f"unary/{name}"].copy()
    if name in CORRECTED:
        wanted[bits(x) == bits(SMALLEST)] = SMALLEST
        wanted[bits(x) == bits(-SMALLEST)] = -0.0
        assert np.count_nonzero(bits(wanted) != bits(VECTORS[f"unary/{name}"])) == 2
    assert_same_bits(function(module, name)(x), wanted, name)


def test_smallest_subnormals_by_inequality():
    """The corrected six, without any oracle: 1/2 < sigmoid(x) and Phi(x) < 1 for x > 0, and 0 < .. < 1/2 for x < 0."""
    for name in CORRECTED:
        for module in (llorch, reference):
            # x > 0: x/2 < f(x) < x, above the middle 2^-150: up. x < 0: x/2 < f(x) < 0: to zero, which keeps its sign
            got = function(module, name)(np.array([SMALLEST, -SMALLEST], np.float32))
            assert_same_bits(got, np.array([SMALLEST, -0.0], np.float32), name)


def hard_cases(name):
    """The inputs whose true results are closest to the middle of two float32, and the thresholds; outputs by MPFR."""
    lines = (DATA / "unary_hard" / f"{name}.txt").read_text().split("\n")[:-1]
    columns = zip(*[map(float.fromhex, line.split()) for line in lines], strict=True)
    x, wanted = (np.array(column, np.float32) for column in columns)
    assert len(x) >= 60
    return x, wanted


@pytest.mark.parametrize("name", NAMES)
def test_hard_cases(isa, name):
    x, wanted = hard_cases(name)
    assert_same_bits(function(llorch, name)(x), wanted, name)
    assert_same_bits(function(reference, name)(x), wanted, f"oracle, {name}")


def plain(name, x):
    """The textbook formula in the arithmetic of x's own type."""
    number = x.dtype.type

    def erf(v):
        if x.dtype == np.float64:
            return np.array([math.erf(float(u)) for u in v])
        total = term = v = np.clip(v, number(-3), number(3))
        for n in range(1, 40):
            term = term * -(v * v) / number(n)
            total = total + term / number(2 * n + 1)
        return total * number(2 / math.sqrt(math.pi))

    with np.errstate(all="ignore"):
        one = number(1)
        if name == "exp":
            return np.exp(x)
        if name == "tanh":
            return one - 2 / (np.exp(2 * x) + one) if x.dtype == np.float32 else np.tanh(x)
        if name == "erf":
            return erf(x)
        if name == "gelu":
            return number(0.5) * x * (one + erf(x * number(math.sqrt(0.5))))
        twice = {"sigmoid": x, "silu": x}.get(name)
        if twice is None:
            twice = number(math.sqrt(8 / math.pi)) * (x + number(0.044715) * x * x * x)
        return (one if name == "sigmoid" else x) / (one + np.exp(-twice))


@pytest.mark.parametrize("name", NAMES)
def test_float32_arithmetic_would_be_seen(name):
    """Negative control: in float32 the formula of every function has other bits for ordinary values."""
    x = normal(20000, scale=2)
    got, right = plain(name, x), function(llorch, name)(x)
    assert got.dtype == np.float32 and np.allclose(got, right, rtol=1e-3, atol=1e-3)
    assert np.count_nonzero(bits(got) != bits(right)) > 1000


@pytest.mark.parametrize("name", NAMES)
def test_hard_cases_need_more_than_float64(name):
    """Negative control: float64 that is off by 2^-46, and then rounded, gets most of the hard cases wrong.

    Of ordinary values hardly one shows it: the hard cases see what no random test would.
    """

    def wrong(x, right):
        with np.errstate(all="ignore"):
            wide = plain(name, x.astype(np.float64))
            below, above = ((wide * (1 + sign * 2.0**-46)).astype(np.float32) for sign in (-1, 1))
        return np.count_nonzero((bits(below) != bits(right)) | (bits(above) != bits(right))) / len(x)

    x, right = hard_cases(name)
    ordinary = normal(20000, scale=2)
    assert wrong(x, right) > 0.5
    assert wrong(ordinary, function(reference, name)(ordinary)) < 0.01


@pytest.mark.parametrize("name", NAMES)
def test_oracle(isa, name):
    x = sweep(1)
    assert_same_bits(function(llorch, name)(x), function(reference, name)(x), name)


@settings(max_examples=20)
@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=40),
        elements=st.one_of(
            st.floats(width=32), st.floats(-20, 20, width=32), st.sampled_from(list(map(float, SPECIALS)))
        ),
    )
)
def test_oracle_any_values(x):
    for isa in llorch.available_isas():
        with use_isa(isa):
            for name in NAMES:
                assert_same_bits(function(llorch, name)(x), function(reference, name)(x), f"{isa} {name}")


@pytest.mark.parametrize("dtype", (np.dtype(np.float16), BF16), ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_16_bit_value(isa, name, dtype):
    x = np.arange(65536, dtype=np.uint16).view(dtype)
    got = function(llorch, name)(x)
    assert got.dtype == dtype
    assert_same_bits(got, function(reference, name)(x), name)
    with np.errstate(all="ignore"):  # widened before, narrowed after: the float32 result, rounded once
        assert_same_bits(got, reference.narrow(function(llorch, name)(reference.widen(x)), dtype), name)


# ---- values ------------------------------------------------------------------------------------------

INF, NAN = np.inf, np.nan
EDGES = (  # input, then exp, tanh, erf, sigmoid, silu, gelu, gelu_tanh
    (0.0, 1, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0),
    (-0.0, 1, -0.0, -0.0, 0.5, -0.0, -0.0, -0.0),
    (INF, INF, 1, 1, 1, INF, INF, INF),
    (-INF, 0.0, -1, -1, 0.0, -0.0, -0.0, -0.0),
    (NAN,) + (NAN,) * 7,
    (3e38, INF, 1, 1, 1, 3e38, 3e38, 3e38),
    (-3e38, 0.0, -1, -1, 0.0, -0.0, -0.0, -0.0),
    (-200, 0.0, -1, -1, 0.0, -0.0, -0.0, -0.0),
    (2.0**-140, 1, 2.0**-140, 578 * 2.0**-149, 0.5, 2.0**-141, 2.0**-141, 2.0**-141),  # 512 * 2 / sqrt(pi) = 577.7
    (-3 * 2.0**-149, 1, -3 * 2.0**-149, -3 * 2.0**-149, 0.5, -(2.0**-149), -(2.0**-149), -(2.0**-149)),  # -1.5, less
    (3 * 2.0**-149, 1, 3 * 2.0**-149, 3 * 2.0**-149, 0.5, 2.0**-148, 2.0**-148, 2.0**-148),  # 1.5, more
)


@pytest.mark.parametrize("module", (llorch, reference), ids=("kernels", "oracle"))
def test_edges(isa, module):
    for x, *wanted in EDGES:
        for name, y in zip(NAMES, wanted, strict=True):
            for n in (1, 3, 8, 21):
                got = function(module, name)(np.full(n, x, np.float32))
                assert_same_bits(got, np.full(n, y, np.float32), f"{name}({x})")


@pytest.mark.parametrize("name", NAMES)
def test_a_value_for_itself(isa, name):
    """A result doesn't depend on its neighbours, also where they take the slow path."""
    x = np.resize(np.float32([1, NAN, -3, 1e-45, 50, -1e-44, INF, 2, -104.3, -0.0, -95]), 97)
    alone = np.concatenate([function(llorch, name)(v[None]) for v in x])
    assert_same_bits(function(llorch, name)(x), alone, name)


# ---- places ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_lengths_and_nothing_else_written(isa, name):
    f, g = function(llorch, name), function(reference, name)
    for n in range(131):
        x = normal(n, seed=n, scale=3)
        room = np.full(n + 64, 7.0, np.float32)
        f(x, out=room[32 : 32 + n])
        assert_same_bits(room[32 : 32 + n], g(x), f"n={n}")
        assert (room[:32] == 7).all() and (room[32 + n :] == 7).all()


@pytest.mark.parametrize("dtype", (np.float32, np.float16, BF16), ids=str)
def test_alignment_invariant(isa, dtype):
    x = normal(77, scale=2).astype(dtype)
    for name in NAMES:
        wanted = function(reference, name)(x)
        for offset in range(64):
            out = at_offset(np.zeros_like(x), (offset * 5) % 64)
            assert_same_bits(function(llorch, name)(at_offset(x, offset), out=out), wanted, f"offset {offset}")


@pytest.mark.parametrize("name", NAMES)
def test_strides_and_shapes(isa, name):
    f, g = function(llorch, name), function(reference, name)
    base = normal(6, 8, 130, scale=3)
    for view in (base, base[:, :, :65], base[::2, 1::3, 5:], base[:, :, ::2], base[::-1, ::-1, ::-1],
                 base.transpose(2, 0, 1), np.broadcast_to(base[0, 0], (4, 3, 130)), np.asfortranarray(base), base[3],
                 base[3, 4, 5:6], base[0, 0, 0], base[:0], base[:, :0], base[:, :, :0]):  # fmt: skip
        view = np.asarray(view)
        wanted = g(view.copy())
        got = f(view)
        assert_same_bits(got, wanted, f"shape {view.shape}, strides {view.strides}")
        assert isinstance(got, np.ndarray) and got.flags.c_contiguous
        out = np.zeros((*view.shape, 2), np.float32)[..., 0]
        assert f(view, out=out) is out
        assert_same_bits(out, wanted, f"strided out, shape {view.shape}")
        assert np.count_nonzero(out.base[..., 1]) == 0


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's mmap")
@pytest.mark.parametrize("dtype", (np.dtype(np.float32), np.dtype(np.float16), BF16), ids=str)
def test_nothing_outside_is_read_or_written(isa, dtype):
    for n in (1, 3, 7, 8, 15, 16, 17, 31, 33, 100):
        x = normal(n, scale=3).astype(dtype)
        for name in NAMES:
            with Guarded() as guarded:
                y = function(llorch, name)(guarded.copy(x), out=guarded.copy(x))
                assert_same_bits(y.copy(), function(reference, name)(x), f"{name}, n={n}")


@pytest.mark.parametrize("name", NAMES)
def test_in_place(isa, name):
    for make in (
        lambda: normal(1000, scale=3),
        lambda: normal(20, 300, scale=3)[:, :77],
        lambda: normal(30, 4)[:, ::2],
    ):
        x = make()
        wanted = function(reference, name)(x.copy())
        assert function(llorch, name)(x, out=x) is x
        assert_same_bits(x, wanted)


@pytest.mark.parametrize("threads", (1, 2, 3, 8))
def test_thread_invariant(threads):
    x = normal(3, 70001, scale=4)
    gaps = normal(5000, 40, scale=4)[:, :33]
    for name in NAMES:
        f = function(llorch, name)
        with num_threads(1):
            wanted = f(x), f(gaps)
        with num_threads(threads):
            assert_same_bits(f(x), wanted[0], f"{name}, {threads} threads")
            assert_same_bits(f(gaps), wanted[1], f"{name}, {threads} threads, rows with gaps")


def test_run_invariant():
    x = normal(5000, scale=3)
    for name in NAMES:
        first = function(llorch, name)(x)
        for _ in range(20):
            assert_same_bits(function(llorch, name)(x), first)


def test_other_buffers():
    x = normal(6)
    assert_same_bits(llorch.exp(memoryview(x)), reference.exp(x))
    readonly = x.copy()
    readonly.flags.writeable = False
    assert_same_bits(llorch.gelu(readonly), reference.gelu(x))
    assert_same_bits(llorch.tanh(np.float32(0.5)), reference.tanh(np.array(0.5, np.float32)))


# ---- errors ------------------------------------------------------------------------------------------

X = normal(3, 8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: f(X.astype(np.float64)), TypeError, r"x is float64.*x\.astype\(np\.float32\)"),
        (lambda f: f(X.astype(np.int32)), TypeError, "x has elements of type int32"),
        (lambda f: f([1.0, 2.0]), TypeError, "x must be an array.*got list"),
        (lambda f: f(1.0), TypeError, "x must be an array.*got float"),
        (lambda f: f(X, out=np.empty((3, 7), np.float32)), ValueError, r"out has shape \(3, 7\).*\(3, 8\)"),
        (lambda f: f(X[0, 0], out=np.empty(1, np.float32)), ValueError, r"out has shape \(1,\).*\(\)"),
        (lambda f: f(X, out=np.empty((3, 8), np.float16)), TypeError, "out is float16.*float32"),
        (lambda f: f(X, out=np.broadcast_to(np.float32(0), (3, 8))), ValueError, "out is read-only"),
        (lambda f: f(X, out=[0.0] * 24), TypeError, "out must be an array"),
        (lambda f: f(X, X), TypeError, "positional"),
        (lambda f: f(), TypeError, "x|positional"),
    ],
)
def test_message(name, call, error, message):
    with pytest.raises(error, match=message):
        call(function(llorch, name))


@pytest.mark.parametrize("module", (llorch, reference), ids=("kernels", "oracle"))
def test_approximate(module):
    for wrong in ("Tanh", "erf", None, 1, b"tanh"):
        with pytest.raises(ValueError, match='approximate must be "none" or "tanh", got '):
            module.gelu(X, approximate=wrong)
    assert_same_bits(module.gelu(X, approximate="none"), module.gelu(X))
    assert not same_bits(module.gelu(X, approximate="tanh"), module.gelu(X))


def test_overlaps_are_refused_and_nothing_is_written():
    base = normal(100)
    before = base.copy()
    x = base[:24].reshape(3, 8)
    window = np.lib.stride_tricks.as_strided
    for out, message in (
        (base[8:32].reshape(3, 8), "out overlaps x in part"),
        (base[1:25].reshape(3, 8), "out overlaps x in part"),
        (base[:24].reshape(3, 8)[::-1], "out overlaps x in part"),
        (window(base, (3, 8), (16, 4)), "out overlaps itself"),
    ):
        for name in NAMES:
            with pytest.raises(ValueError, match=message):
                function(llorch, name)(x, out=out)
    assert (base == before).all()


# ---- the exhaustive check ----------------------------------------------------------------------------


def test_exhaustive_check_finds_a_wrong_bit():
    """The tool runs here on a small share; its control spoils one bit and must see it. What it proved is in docs/."""
    if not (ROOT / "tools" / "exhaustive.py").exists():
        pytest.skip("the tools aren't part of this copy")
    if not shutil.which("gcc") or not Path("/usr/include/mpfr.h").exists():
        pytest.skip("needs gcc and MPFR")
    command = [sys.executable, ROOT / "tools" / "exhaustive.py", "--spoil", "--share", "64"]
    got = subprocess.run(command, capture_output=True, text=True)
    assert got.returncode == 0, got.stdout + got.stderr
    assert got.stdout.count("0 wrong as it is, 1 with one bit spoilt") == len(NAMES) * len(llorch.available_isas())
