"""gate, relu, cast, add_rms_norm: the bits of the oracle and of the steps, what they refuse, and controls."""

import sys

import ml_dtypes
import numpy as np
import pytest
from helpers import SEAMS, SPECIALS, Guarded, assert_same_bits, at_offset, normal, num_threads, refusals, same_bits
from weight_blocks import blocks

import llorch
from llorch import PackedLinear, _core, reference
from llorch.testing import use_isa

DTYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "sigmoid", "tanh", "exp", "erf")


def pair(*shape, dtype=np.float32):
    g, u = normal(*shape, seed=1, scale=3), normal(*shape, seed=2)
    return g.astype(dtype), u.astype(dtype)


def specials(dtype):
    with np.errstate(over="ignore"):
        values = np.concatenate([SPECIALS, np.float32([1e-40, -87.5, 5, -5])]).astype(dtype)
    return [a.ravel() for a in np.meshgrid(values, values)]


# ---- gate -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gate_is_the_oracle(isa, activation, dtype):
    for n in (1, 7, 16, 33, 64, 513, 1030):
        g, u = pair(3, n, dtype=dtype)
        wanted = reference.gate(g, u, activation=activation)
        assert_same_bits(llorch.gate(g, u, activation=activation), wanted, f"n {n}")
        for place in (0, 1):
            own = [g.copy(), u.copy()]
            assert llorch.gate(*own, activation=activation, out=own[place]) is own[place]
            assert_same_bits(own[place], wanted, f"n {n}, out is {'gu'[place]}")
    g, u = specials(dtype)
    with np.errstate(all="ignore"):
        assert_same_bits(llorch.gate(g, u, activation=activation), reference.gate(g, u, activation=activation))


def test_gate_has_the_bits_of_the_steps_in_float32(isa):
    g, u = pair(5, 700)
    assert_same_bits(llorch.gate(g, u, activation="silu"), llorch.silu(g) * u)
    assert_same_bits(llorch.gate(g, u, activation="gelu_tanh"), llorch.gelu(g, approximate="tanh") * u)


def test_gate_rounds_16_bits_once():
    """Negative control: the steps in float16 round in between."""
    g, u = pair(20, 300, dtype=np.float16)
    steps = llorch.silu(g) * u
    assert not same_bits(llorch.gate(g, u, activation="silu"), steps)
    assert not same_bits(llorch.gate(g, u, activation="silu"), llorch.gate(u, g, activation="silu"))


def test_gate_of_any_layout_threads_and_address(isa):
    g, u = pair(40, 2, 90)
    wanted = reference.gate(g, u, activation="gelu")
    rows = np.concatenate([g, u], -1)
    assert_same_bits(llorch.gate(rows[..., :90], rows[..., 90:], activation="gelu"), wanted, "halves of a row")
    both = rows.copy()
    llorch.gate(both[..., :90], both[..., 90:], activation="gelu", out=both[..., :90])
    assert_same_bits(both[..., :90].copy(), wanted, "over the gate's half")
    backwards = llorch.gate(g[::-1, :, ::-1], u[::-1, :, ::-1], activation="gelu")
    assert_same_bits(backwards, np.ascontiguousarray(wanted[::-1, :, ::-1]), "backwards")
    assert_same_bits(llorch.gate(g.T, u.T, activation="gelu"), np.ascontiguousarray(wanted.T), "transposed")
    many = pair(300, 700)
    with num_threads(1):
        alone = llorch.gate(*many, activation="silu")
    for threads in (2, 3):
        with num_threads(threads):
            assert_same_bits(llorch.gate(*many, activation="silu"), alone, f"{threads} threads")
            wide = np.zeros((300, 701), np.float32)[:, 1:]
            assert_same_bits(llorch.gate(*many, activation="silu", out=wide).copy(), alone, f"{threads} threads, gaps")
    for offset in range(0, 64, 4):
        got = llorch.gate(at_offset(g, offset), at_offset(u, 64 - offset), activation="gelu")
        assert_same_bits(got, wanted, f"offset {offset}")
    assert llorch.gate(np.float32(1), np.float32(2), activation="relu") == 2
    assert llorch.gate(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32), activation="relu").shape == (0, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_nothing_past_the_end_is_touched(isa):
    for n in (1, 5, 17, 513):
        g, u = pair(1, n)
        with Guarded() as memory:
            got = llorch.gate(memory.copy(g), memory.copy(u), activation="silu", out=memory.copy(g))
            assert_same_bits(got.copy(), reference.gate(g, u, activation="silu"))
            half = memory.copy(np.zeros((1, n), np.float16))
            assert_same_bits(llorch.cast(memory.copy(g), "float16", out=half).copy(), g.astype(np.float16))


G, U = pair(2, 6)
REFUSED = [
    (lambda: llorch.gate(G, U, activation="swiglu"), ValueError, "activation must be one of gelu, .*got 'swiglu'"),
    (lambda: llorch.gate(G, U, activation=None), ValueError, "activation must be one of"),
    (lambda: llorch.gate(G, U, activation=["silu"]), ValueError, "activation must be one of"),
    (lambda: llorch.gate(G.astype(np.float64), U, activation="silu"), TypeError, "g is float64"),
    (lambda: llorch.gate(G, U.astype(np.float16), activation="silu"), TypeError, "u is float16, .* the type of g"),
    (lambda: llorch.gate(G, U[:1], activation="silu"), ValueError, r"u has shape \(1, 6\), it must be \(2, 6\)"),
    (lambda: llorch.gate(G, U, activation="silu", out=U[:1]), ValueError, r"out has shape \(1, 6\)"),
    (lambda: llorch.cast(G, "int8"), ValueError, "dtype must be 'float32', 'bfloat16' or 'float16', got 'int8'"),
    (lambda: llorch.cast(G, np.float64), ValueError, "got 'float64'"),
    (lambda: llorch.cast(G.astype(np.int32), "float16"), TypeError, "x has elements of type int32"),
    (lambda: llorch.cast(G, "float16", out=G), TypeError, "out is float32, it must be float16"),
    (lambda: llorch.cast(G, "float32", out=G), ValueError, "out overlaps x"),
    (lambda: llorch.cast(G, "float16", out=np.zeros(3, np.float16)), ValueError, r"out has shape \(3,\)"),
    (lambda: llorch.relu(G, out=U[:1]), ValueError, "out has shape"),
]  # fmt: skip

test_refused = refusals(REFUSED)


def test_out_may_not_overlap_in_part():
    room = np.zeros((3, 6), np.float32)
    with pytest.raises(ValueError, match="out overlaps g in part"):
        llorch.gate(room[1:], U, activation="silu", out=room[:-1])
    with pytest.raises(ValueError, match="out overlaps u in part"):
        llorch.gate(G, room[1:], activation="silu", out=room[:-1])


# ---- relu -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_relu_is_the_oracle(isa, dtype):
    for n in (1, 15, 64, 1000):
        x = normal(3, n).astype(dtype)
        assert_same_bits(llorch.relu(x), reference.relu(x), f"n {n}")
    every = np.arange(65536, dtype=np.uint16).view(dtype) if dtype.itemsize == 2 else SPECIALS
    with np.errstate(invalid="ignore"):
        assert_same_bits(llorch.relu(every), reference.relu(every))
    assert same_bits(llorch.relu(np.float32([-0.0, 0.0])), np.zeros(2, np.float32))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_linear_applies_every_function(isa, activation):
    x, w, b = normal(3, 40), normal(40, 33), normal(33)
    for rows in (1, 3):
        wanted = reference.linear(x[:rows], w, b, activation=activation)
        assert_same_bits(llorch.linear(x[:rows], w, b, activation=activation), wanted)
        assert_same_bits(llorch.PackedLinear(w, b)(x[:rows], activation=activation), wanted)


# ---- cast -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cast_is_the_oracle(isa, dtype, to):
    every = (np.arange(65536, dtype=np.uint16).view(dtype) if dtype.itemsize == 2 else
             np.arange(0, 2**32, 32749, dtype=np.uint64).astype(np.uint32).view(np.float32))  # fmt: skip
    with np.errstate(all="ignore"):
        wanted = reference.cast(every, to)
        for name in (to, to.name, to.type):
            assert_same_bits(llorch.cast(every, name), wanted)
        for n in SEAMS[:12]:
            x = every[20000 : 20000 + 3 * n].reshape(3, n)
            assert_same_bits(llorch.cast(x, to), reference.cast(x, to), f"n {n}")
            assert_same_bits(llorch.cast(x[:, ::-1], to), reference.cast(x[:, ::-1].copy(), to), f"n {n}, backwards")
        out = np.zeros((2, 300), to)[:, 1:]
        x = every[30000:30598].reshape(2, 299)
        assert llorch.cast(x, to, out=out) is out
        assert_same_bits(out.copy(), reference.cast(x, to))
        large = np.resize(every, (200, 1000))
        for threads in (1, 2, 3):
            with num_threads(threads):
                assert_same_bits(llorch.cast(large, to), reference.cast(large, to), f"{threads} threads")


def test_truncation_would_be_seen():
    """Negative control: the upper half of the bits is not the nearest bfloat16."""
    x = normal(1000)
    cut = (x.view(np.uint32) >> np.uint32(16)).astype(np.uint16).view(ml_dtypes.bfloat16)
    assert not same_bits(llorch.cast(x, "bfloat16"), cut)
    assert same_bits(llorch.cast(x, "bfloat16"), x.astype(ml_dtypes.bfloat16))


# ---- add_rms_norm -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_add_rms_norm_is_the_oracle_and_the_steps(isa, dtype):
    for n in SEAMS[:16]:
        x, r, w = normal(5, n).astype(dtype), normal(5, n, seed=1).astype(dtype), normal(n, seed=2)
        for weight in (w, None):
            got, wanted = llorch.add_rms_norm(x, r, weight), reference.add_rms_norm(x, r, weight)
            for g, v in zip(got, wanted, strict=True):
                assert_same_bits(g, v, f"n {n}")
        h = llorch.add_rms_norm(x, r, w)[1]
        assert_same_bits(llorch.rms_norm(h, w), llorch.add_rms_norm(x, r, w)[0], f"n {n}, steps")
        own = [x.copy(), r.copy()]
        llorch.add_rms_norm(*own, w, out=own[0], sum_out=own[1])
        assert_same_bits(own[0], reference.add_rms_norm(x, r, w)[0], "over x")
        assert_same_bits(own[1], h, "over residual")


def test_add_rms_norm_of_rows_that_overflow_and_of_many(isa):
    x, r = normal(4, 300, scale=1e20), normal(4, 300, scale=1e20, seed=1)
    x[1], r[1] = 1e-30, 1e-31
    x[2, 3] = np.inf
    for eps in (0.0, 1e-6):
        for g, v in zip(llorch.add_rms_norm(x, r, eps=eps), reference.add_rms_norm(x, r, eps=eps), strict=True):
            assert_same_bits(g, v, f"eps {eps}")
    x, r, w = normal(700, 300), normal(700, 300, seed=1), normal(300)
    with num_threads(1):
        alone = llorch.add_rms_norm(x, r, w)
    with num_threads(3):
        for g, v in zip(llorch.add_rms_norm(x, r, w), alone, strict=True):
            assert_same_bits(g, v)
    assert_same_bits(llorch.add_rms_norm(x[5:6], r[5:6], w)[0], alone[0][5:6])
    assert not same_bits(llorch.add_rms_norm(x, r, w)[0], llorch.add_layer_norm(x, r, w)[0])
    with pytest.raises(ValueError, match="out overlaps sum_out"):
        room = np.empty((700, 300), np.float32)
        llorch.add_rms_norm(x, r, w, out=room, sum_out=room)


def test_sets_agree():
    g, u = pair(50, 300)
    results = {}
    for name in llorch.available_isas():
        with use_isa(name):
            results[name] = llorch.gate(g, u, activation="silu"), llorch.add_rms_norm(g, u)[0], llorch.relu(g)
    for name, found in results.items():
        for one, other in zip(found, results["generic"], strict=True):
            assert_same_bits(one, other, name)


# ---- a layer that makes gate and up, with their product ----------------------------------------------------


def gated(x, packed, activation, **entries):
    """activation(g) * u of [g u] = x @ weight + bias, by a plan of one layer, whose input are rows of a table."""
    F = packed.out_features // 2
    layer = {"op": "linear", "x": (1, 0), "y": (0, 0), "n": F, "weight": packed, "function": activation, "gated": True}
    table = {"op": "embedding", "y": (1, 0), "n": x.shape[1], "weight": x}
    plan = _core.Plan([table, layer | entries], [F, x.shape[1]], 0, 1)
    return plan.run([np.arange(len(x))], None, True, len(x), None)


def kinds_of(K, N):
    """Packed weights (K, N) of every way to compute, with a bias."""
    w, bias = normal(K, N, seed=3, scale=0.1), normal(N, seed=4)
    yield from (PackedLinear(w.astype(dtype), bias) for dtype in DTYPES)
    for format, compute in (("Q8_0", "float32"), ("Q4_1", "int16"), ("Q6_K", "int16")):
        size = K // (256 if format == "Q6_K" else 32)
        yield PackedLinear.from_blocks(blocks(format, N * size, seed=5), format, K, N, bias, compute=compute)


@pytest.mark.parametrize(("M", "F"), [(1, 48), (2, 16), (3, 80), (13, 272), (25, 32), (130, 64)])
def test_a_gated_layer_has_the_bits_of_the_steps(isa, M, F):
    x = normal(M, 256, seed=6)
    for weight in kinds_of(256, 2 * F):
        h = weight(x)
        for activation in ("silu", "gelu_tanh", None):
            wanted = reference.gate(h[:, :F], h[:, F:], activation=activation) if activation else h[:, :F] * h[:, F:]
            assert_same_bits(gated(x, weight, activation), wanted, f"{weight.dtype}, {activation}")
        assert not same_bits(gated(x, weight, "silu"), reference.gate(h[:, F:], h[:, :F], activation="silu"))


@pytest.mark.parametrize(("M", "F"), [(1, 1600), (5, 800), (33, 1040), (150, 528), (400, 80), (1100, 528)])
def test_a_gated_layer_of_any_threads(M, F):
    """As many rows and columns as are divided in each way, and made in several parts."""
    x = normal(M, 256, seed=6)
    for weight in kinds_of(256, 2 * F):
        with num_threads(1):
            h = weight(x)
        wanted = llorch.gate(h[:, :F], h[:, F:], activation="silu")
        for threads in (1, 2, 3):
            with num_threads(threads):
                assert_same_bits(gated(x, weight, "silu"), wanted, f"{weight.dtype}, {threads} threads")


def test_a_gated_layer_of_special_values(isa):
    """NaN, infinities and zeros of both sides meet as in the steps: they are the bias, beside a weight of zeros."""
    g, u = (np.resize(values, -(-len(values) // 16) * 16) for values in specials(np.dtype(np.float32)))
    for M in (1, 3):
        x, weight = normal(M, 4), PackedLinear(np.zeros((4, 2 * len(g)), np.float32), np.concatenate([g, u]))
        with np.errstate(all="ignore"):
            wanted = reference.gate(
                np.tile(g + np.float32(0), (M, 1)), np.tile(u + np.float32(0), (M, 1)), activation="silu"
            )
            assert np.isinf(wanted).any() and np.isnan(wanted).any()
            assert_same_bits(gated(x, weight, "silu"), wanted)


def test_what_no_gated_layer_is():
    x, weight = normal(3, 32), PackedLinear(normal(32, 64))
    for more in ({"n": 16}, {"n": 64}, {"x2": (0, 0)}, {"weight": np.ones((64, 32), np.float32)}):
        with pytest.raises(ValueError, match=r"a gated layer of \d+ values has whole panels of 16"):
            gated(x, weight, "silu", **more)
    with pytest.raises(ValueError, match="a gated layer of 24 values"):
        gated(x, PackedLinear(normal(32, 48)), "silu")
