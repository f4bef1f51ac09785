"""linear and PackedLinear: kernels against the oracle, the oracle against independent vectors and the text."""

import copy
import pickle
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from helpers import (
    SPECIALS,
    Guarded,
    assert_same_bits,
    at_offset,
    in_threads,
    isas,
    normal,
    num_threads,
    rng,
    same_bits,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import llorch
from llorch import PackedLinear, _core, reference
from llorch.testing import bits, use_isa

VECTORS = np.load(Path(__file__).parent.parent / "data" / "linear_vectors.npz")
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


@pytest.mark.parametrize("block", (64, 256, 1024))
def test_other_blocks_would_be_seen(block):
    """Negative control: without blocks of 128 the bits are others; so are NumPy's."""
    x, w = normal(1, 1024), normal(1024, 3, seed=1)
    wanted = reference.linear(x, w)
    assert not same_bits(np.concatenate([text(x[0], w[:, n], 0.0, block) for n in range(3)])[None], wanted)
    assert not same_bits(x @ w, wanted)


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
KINDS = tuple(DTYPES.values())
ACTIVATIONS = (None, "gelu", "gelu_tanh", "silu")

# Rows: every height of a tile (2, 6, 12 rows), few rows that are not packed (12, of 16 bits 2), several tiles, several
# blocks of 120 rows, from 97 on a plain weight is packed first. K: blocks of 128, depths of 128 and 256; steps of 8 and
# 16. N: panels of 16, strips of 512, groups of 4 panels.
SEAMS_M = (*range(1, 15), 18, 19, 23, 24, 25, 95, 96, 97, 119, 120, 121, 239, 241)
SEAMS_K = (0, 1, 15, 16, 17, 31, 32, 33, 127, 128, 129, 255, 256, 257, 300)
SEAMS_N = (1, 2, 15, 16, 17, 31, 33, 47, 63, 64, 65, 90, 127, 128, 129)
CASES = (
    [(M, K, N) for M, N in ((1, 33), (2, 64), (3, 65), (4, 1), (5, 90), (6, 16), (7, 17), (12, 48), (13, 31))
     for K in SEAMS_K]
    + [(M, 140, 33) for M in SEAMS_M] + [(M, 260, 16) for M in (1, 2, 24, 120, 241)]
    + [(M, 33, N) for M in (1, 2, 3, 7, 97) for N in SEAMS_N]
    + [(M, K, N) for M in range(3, 14) for K, N in ((139, 529), (17, 1024))]
    + [(1, 300, 1100), (2, 129, 513), (97, 129, 513), (130, 300, 70), (260, 140, 20), (300, 7, 3)]
)  # fmt: skip


def layouts(w):
    """The same weight in other places of memory: each as (what, array)."""
    columns = np.ascontiguousarray(w.T)
    gaps = np.zeros((2 * w.shape[0], 3 * w.shape[1]), w.dtype)
    gaps[::2, ::3] = w
    wide = np.zeros((w.shape[0], w.shape[1] + 5), w.dtype)
    wide[:, 5:] = w
    return (("rows", w), ("columns", columns.T), ("gaps", gaps[::2, ::3]), ("part of rows", wide[:, 5:]),
            ("rows backwards", w[::-1].copy()[::-1]), ("columns backwards", w[:, ::-1].copy()[:, ::-1]),
            ("odd address", at_offset(w, 33)))  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_on_the_independent_vectors(isa, shape):
    x, weight, bias = (VECTORS[f"linear/{shape}/{name}"] for name in ("x", "weight", "bias"))
    assert_same_bits(llorch.linear(x, weight, bias), VECTORS[f"linear/{shape}/y"])
    assert_same_bits(PackedLinear(weight)(x), VECTORS[f"linear/{shape}/y_no_bias"])


def test_oracle():
    for M, K, N in CASES:
        x, w, b = normal(M, K), normal(K, N, seed=1), normal(N, seed=2)
        wanted, columns, placed = reference.linear(x, w, b), np.ascontiguousarray(w.T), layouts(w)
        for isa in isas():
            for what, weight in placed:
                assert_same_bits(llorch.linear(x, weight, b), wanted, f"{isa}, {what}, {M, K, N}")
            assert_same_bits(PackedLinear(w, b)(x), wanted, f"{isa}, packed, {M, K, N}")
            transposed = PackedLinear(columns, b, transposed=True)
            assert_same_bits(transposed(x), wanted, f"{isa}, packed, transposed, {M, K, N}")


@pytest.mark.parametrize("kept", DTYPES)
@pytest.mark.parametrize("given_as", DTYPES)
def test_packed_from_every_type_to_every_type(isa, given_as, kept):
    """A wider weight is rounded once when it is packed; products have the bits of the rounded weight."""
    shapes = (1, 300, 70), (2, 130, 33), (4, 129, 17), (9, 300, 40), (16, 130, 70)
    for M, K, N in (*shapes, (25, 257, 64), (97, 40, 20), (49, 1101, 40), (130, 1101, 520)):
        x, b = normal(M, K), normal(N, seed=2)
        w = normal(K, N, seed=1).astype(DTYPES[given_as])
        rounded = reference.narrow(reference.widen(w), DTYPES[kept])
        wanted = reference.linear(x, rounded, b)
        for packed in (PackedLinear(w, b, dtype=kept), PackedLinear(w.T.copy(), b, dtype=kept, transposed=True),
                       *(PackedLinear(v, b, dtype=kept) for _, v in layouts(w)[2:])):  # fmt: skip
            assert packed.dtype == kept and packed.shape == (K, N)
            rows = K + K % 2 if kept == "bfloat16" else K  # in pairs
            assert packed.nbytes == (N + 15) // 16 * 16 * rows * DTYPES[kept].itemsize
            assert_same_bits(packed(x), wanted, f"{M, K, N}")
        for k in {0, K // 2, K - 1}:
            assert_same_bits(packed.row(k), reference.widen(rounded)[k])
        for n in {0, 15, N // 2, N - 1}:
            assert_same_bits(packed.column(n), reference.widen(rounded)[:, n])


@pytest.mark.parametrize("transposed", (False, True))
@pytest.mark.parametrize("kept", DTYPES)
@pytest.mark.parametrize("given_as", DTYPES)
def test_packed_in_parts(isa, given_as, kept, transposed):
    """What the loader does: columns and rows from one file and another, some at a time. The control has them
    two rows off."""
    K, N = 45, 53
    w = normal(K, N, seed=1).astype(DTYPES[given_as])

    def filled(*rows):
        packed = _core._packed_reserve(K, N, kept)
        for first, end in ((32, 53), (0, 16), (16, 32)):
            for at, row, stop in rows:
                part = w[row:stop, first:end]
                _core._packed_fill(packed, first, (part.T if transposed else part).copy(), transposed, at)
        return packed(x)

    x = normal(3, K)
    wanted = PackedLinear(w, dtype=kept)(x)
    assert_same_bits(filled((16, 16, 30), (0, 0, 16), (30, 30, 45)), wanted)
    assert_same_bits(filled((0, 0, 45)), wanted)
    assert not same_bits(filled((0, 2, 18), (16, 16, 45)), wanted)


@pytest.mark.parametrize(
    ("K", "N", "row", "column"),
    (
        (8, 16, 1, 0), (9, 16, 0, 0), (8, 16, 14, 0), (8, 16, 0, 8), (8, 33, 0, 0), (20, 8, 0, 0), (20, 16, 0, 32),
        (8, 16, 22, 0), (2, 16, 2**64 - 2, 0), (20, 16, 0, 2**64 - 16),
    ),
)  # fmt: skip
def test_parts_that_do_not_fit(K, N, row, column):
    packed = _core._packed_reserve(20, 32, "bfloat16")
    with pytest.raises(ValueError, match=rf"weight has shape \({K}, {N}\), it doesn't fit .* at row {row} and column"):
        _core._packed_fill(packed, column, normal(K, N), False, row)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_fused_forms_are_the_steps(isa, activation):
    step = {
        None: lambda y: y,
        "gelu": llorch.gelu,
        "gelu_tanh": lambda y: llorch.gelu(y, approximate="tanh"),
        "silu": llorch.silu,
    }[activation]
    for M, K, N in ((1, 200, 70), (2, 300, 33), (7, 300, 33), (100, 20, 17)):
        x, w, b, h = normal(M, K), normal(K, N, seed=1, scale=0.1), normal(N, seed=2), normal(M, N, seed=3)
        wanted = step(llorch.linear(x, w, b))
        for product in (lambda *a, w=w, b=b, **k: llorch.linear(a[0], w, b, **k), PackedLinear(w, b)):
            assert_same_bits(product(x, activation=activation), wanted)
            into = h.copy()
            assert product(x, activation=activation, residual=into, out=into) is into
            assert_same_bits(into, h + wanted)
            assert_same_bits(product(x, activation=activation, residual=h), h + wanted)


def test_fused_16_bits_are_rounded_once():
    """Not after the product, not after the activation: by steps in 16 bits the bits are others."""
    x, w, h = normal(8, 200), normal(200, 70, seed=1, scale=0.1), normal(8, 70, seed=3)
    for kind in KINDS[1:]:
        x, h = x.astype(kind), h.astype(kind)
        once = llorch.linear(x, w, activation="gelu", residual=h)
        wanted = reference.gelu(reference.linear(reference.widen(x), w)) + reference.widen(h)
        assert_same_bits(once, reference.narrow(wanted, kind))
        steps = reference.narrow(reference.widen(llorch.gelu(llorch.linear(x, w))) + reference.widen(h), kind)
        assert not same_bits(once, steps)


@st.composite
def products(draw):
    """Everything that linear takes: shapes at seams, types, layouts, bias, activation, residual."""
    M, N = draw(st.sampled_from((*range(1, 15), 25, 97))), draw(st.sampled_from(SEAMS_N))
    K = draw(st.sampled_from(SEAMS_K) if M < 20 else st.integers(0, 40))
    seed = draw(st.integers(0, 999))
    kind, wide = draw(st.sampled_from(KINDS)), draw(st.sampled_from(KINDS))
    x, w = normal(M, K, seed=seed).astype(kind), normal(K, N, seed=seed + 1, scale=0.1).astype(wide)
    if draw(st.booleans()):  # values whose sums overflow, vanish or aren't numbers
        r = rng(seed)
        for a in (x, w):
            if a.size:
                with np.errstate(all="ignore"):
                    places = r.integers(0, a.size, 3)
                    a.reshape(-1)[places] = SPECIALS[r.integers(0, len(SPECIALS), 3)].astype(a.dtype)
    b = normal(N, seed=seed + 2).astype(draw(st.sampled_from(KINDS))) if draw(st.booleans()) else None
    if b is not None and draw(st.booleans()):
        b = np.repeat(b, 2)[::2]
    h = normal(M, N, seed=seed + 3).astype(kind) if draw(st.booleans()) else None
    x = draw(st.sampled_from((x, np.repeat(x, 2, axis=-1)[:, ::2], x[::-1].copy()[::-1], np.asfortranarray(x),
                              at_offset(x, 35))))  # fmt: skip
    return x, draw(st.sampled_from(layouts(w)))[1], b, {"activation": draw(st.sampled_from(ACTIVATIONS)), "residual": h}


@settings(max_examples=400)
@given(products(), st.integers(0, 63))
def test_oracle_any(product, offset):
    x, w, b, more = product
    wanted = reference.linear(x, w, b, **more)
    packed = PackedLinear(w, b, dtype={kind: name for name, kind in DTYPES.items()}[w.dtype])
    for name in llorch.available_isas():
        with use_isa(name):
            assert_same_bits(llorch.linear(x, w, b, **more), wanted, name)
            assert_same_bits(packed(x, **more), wanted, f"{name}, packed")
            out = at_offset(np.full(wanted.shape, np.nan).astype(wanted.dtype), offset)
            assert packed(x, out=out, **more) is out
            assert_same_bits(out.copy(), wanted, f"{name}, packed, out at offset {offset}")


@settings(max_examples=200)
@given(products(), st.integers(1, 3), st.randoms(use_true_random=False))
def test_a_row_knows_no_other(product, threads, random):
    """The rows in another order, cut into any batches, by any number of threads, plain and packed."""
    x, w, b, more = product
    packed = PackedLinear(w, b, dtype={kind: name for name, kind in DTYPES.items()}[w.dtype])
    wanted = llorch.linear(x, w, b, **more)
    order = list(range(len(x)))
    random.shuffle(order)
    h = more.pop("residual")
    with num_threads(threads):
        start = 0
        while start < len(order):
            rows = order[start : start + random.choice((1, 2, 3, 6, 13, 97))]
            start += len(rows)
            part = {**more, "residual": None if h is None else h[rows]}
            assert_same_bits(llorch.linear(x[rows], w, b, **part), wanted[rows], f"rows {rows}")
            assert_same_bits(packed(x[rows], **part), wanted[rows], f"rows {rows}, packed")
            if h is None:
                assert_same_bits(packed(x[rows[0]], **more), wanted[rows[0]], "one axis")


def test_batch_invariant(isa):
    x, w, b = normal(250, 300), normal(300, 70, seed=1), normal(70, seed=2)
    for kept in DTYPES:
        packed = PackedLinear(w, b, dtype=kept)
        alone = np.stack([packed(row) for row in x])
        for batch in (1, 2, 3, 5, 6, 7, 12, 13, 40, 96, 97, 121, 250):
            for start in (0, 250 - batch):
                part = x[start : start + batch]
                assert_same_bits(packed(part), alone[start : start + batch], f"{batch} rows, {kept}")
                if kept == "float32":
                    assert_same_bits(llorch.linear(part, w, b), alone[start : start + batch], f"{batch} rows")
        assert_same_bits(packed(x.reshape(5, 1, 50, 300)), alone.reshape(5, 1, 50, 70))


def test_batch_invariance_check_can_fail():
    """Negative control: a product that splits K in two when there are many rows has other bits."""
    x, w = normal(8, 512), normal(512, 16, seed=1)
    alone = np.concatenate([reference.linear(row[None], w) for row in x])
    split = reference.linear(x[:, :256], w[:256]) + reference.linear(x[:, 256:], w[256:])
    assert not same_bits(split, alone)


@pytest.mark.parametrize("threads", (2, 3, 8))
def test_thread_invariant(threads):
    """Also by rows, with tiles in parts and uneven ones, by blocks, and with x for each thread alone."""
    shapes = (1, 1024, 5000), (2, 1024, 3000), (12, 1024, 1024), (200, 300, 1000), (3000, 64, 64), (150, 1100, 1030)
    for M, K, N in (*shapes, (130, 384, 384), (505, 70, 600), (1037, 40, 530), (34, 1536, 390)):
        x, w = normal(M, K), normal(K, N, seed=1)
        h = normal(M, N, seed=2)
        for kept in DTYPES:
            packed = PackedLinear(w, dtype=kept)
            with num_threads(1):
                wanted = packed(x)
                fused = packed(x, activation="silu", residual=h)
            with num_threads(threads):
                assert_same_bits(packed(x), wanted, f"{M, K, N}, {kept}")
                assert_same_bits(packed(x, activation="silu", residual=h), fused, f"{M, K, N}, {kept}, fused")
                half, added = x.astype(np.float16), h.astype(np.float16)
                with num_threads(1):
                    wanted_half = packed(half, residual=added)
                assert_same_bits(packed(half, residual=added, out=added), wanted_half, "float16, into the residual")
                into = h.copy()
                assert_same_bits(packed(x, activation="silu", residual=into, out=into), fused, "into the residual")
                plain = llorch.linear(x, reference.narrow(w, DTYPES[kept]))
                assert_same_bits(plain, wanted, f"{M, K, N}, plain {kept}")
                assert_same_bits(PackedLinear(w, dtype=kept)(x), wanted, f"{M, K, N}, packed by {threads}")


def test_threads_that_share_few_rows_add_a_residual_once(isa):
    """Few columns and a long way along k: threads take tiles, and out is the residual."""
    for M, K, N in ((12, 6000, 16), (7, 9001, 16), (12, 2000, 65)):
        x, w, residual = normal(M, K), normal(K, N, seed=1), normal(M, N, seed=2)
        with num_threads(1):
            wanted = llorch.linear(x, w) + residual
        for threads in (2, 3):
            out = residual.copy()
            with num_threads(threads):
                llorch.linear(x, w, residual=out, out=out)
            assert_same_bits(out, wanted)


def test_threads_sharing_their_input_and_weight():
    x, w, b = normal(5, 300), normal(300, 70, seed=1), normal(70, seed=2)
    packed = PackedLinear(w, b, dtype="bfloat16")
    wanted = packed(x).tobytes(), llorch.linear(x, w, b).tobytes()
    wrong = []

    def work():
        for _ in range(300):
            if (packed(x).tobytes(), llorch.linear(x, w, b).tobytes()) != wanted:
                wrong.append(1)

    in_threads(work)
    assert not wrong


# ---- places ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_alignment_and_nothing_outside_out(isa, kind):
    for M, K, N in ((1, 130, 37), (2, 70, 20), (7, 130, 37), (97, 5, 3)):
        x, w, b = normal(M, K).astype(kind), normal(K, N, seed=1).astype(kind), normal(N, seed=2)
        h = normal(M, N, seed=3).astype(kind)
        wanted, fused = reference.linear(x, w, b), reference.linear(x, w, b, residual=h)
        for offset in range(64) if M in (1, 7) else (0, 1, 3, 4, 34, 63):
            room = np.full(wanted.nbytes + 128, 0xA5, np.uint8)
            out = room[offset : offset + wanted.nbytes].view(kind).reshape(M, N)
            placed = [at_offset(a, offset * f % 64) for f, a in ((1, x), (3, w), (5, b), (7, h))]
            llorch.linear(*placed[:3], out=out)
            assert_same_bits(out.copy(), wanted, f"offset {offset}")
            assert_same_bits(PackedLinear(*placed[1:3], dtype=str(kind))(placed[0]), wanted, f"offset {offset}")
            llorch.linear(*placed[:3], residual=placed[3], out=out)
            assert_same_bits(out.copy(), fused, f"offset {offset}")
            assert (room[:offset] == 0xA5).all() and (room[offset + wanted.nbytes :] == 0xA5).all()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's mmap")
def test_nothing_outside_the_inputs_is_read_or_written(isa):
    for M, K, N in ((1, 1, 1), (1, 130, 37), (2, 129, 16), (3, 5, 17), (7, 300, 33), (13, 33, 65), (97, 17, 20)):
        for kind in KINDS:
            x, w, b, h = (normal(*s, seed=i).astype(kind) for i, s in enumerate(((M, K), (K, N), (N,), (M, N))))
            wanted = reference.linear(x, w, b, residual=h)
            with Guarded() as guarded:
                for weight in (guarded.copy(w), guarded.copy(w.T).T):
                    x, b, h, out = (guarded.copy(a) for a in (x, b, h, h))
                    assert_same_bits(llorch.linear(x, weight, b, residual=h, out=out).copy(), wanted, f"{M, K, N}")
                    packed = PackedLinear(weight, b, dtype=str(kind))
                    assert_same_bits(packed(x, residual=out, out=guarded.copy(h)).copy(), packed(x, residual=out))


def test_strides(isa):
    w, b = normal(40, 33, seed=1), normal(33, seed=2)
    packed = PackedLinear(w, b)
    base = normal(6, 4, 80)
    for x in (base[:, :, :40], base[:, :, ::2], base[::-1, ::2, 39::-1], base[:, :, :40].transpose(1, 0, 2),
              np.broadcast_to(base[0, 0, :40], (5, 40)), np.broadcast_to(base[:, :1, :1], (6, 3, 40)),
              base[:0, :, :40], base[:, 0, :40], base[0, 0, :40], np.asfortranarray(base[:, :, :40])):  # fmt: skip
        wanted = reference.linear(x.copy(), w, b)
        assert_same_bits(llorch.linear(x, w, b), wanted, f"strides {x.strides}")
        assert_same_bits(packed(x), wanted, f"strides {x.strides}")
        out = np.full((*wanted.shape, 2), 7, np.float32)[..., 0]
        assert packed(x, out=out) is out
        assert_same_bits(out.copy(), wanted, f"strided out, {x.strides}")
        assert (out.base[..., 1] == 7).all()
    x = base[0, :, :40]
    for weight in (np.broadcast_to(w[:, :1], (40, 33)), np.broadcast_to(w[:1], (40, 33)), np.broadcast_to(w[0, 0], (40, 33)),  # noqa: E501
                   w[:, :1], w[:, 32:]):  # fmt: skip
        for bias in (b[: weight.shape[1]], np.broadcast_to(b[:1], weight.shape[1:]), b[::-1][: weight.shape[1]]):
            wanted = reference.linear(x, weight.copy(), bias.copy())
            assert_same_bits(llorch.linear(x, weight, bias), wanted, f"weight at strides {weight.strides}")
            assert_same_bits(PackedLinear(weight, bias)(x), wanted, f"weight at strides {weight.strides}")
    residual = np.broadcast_to(normal(33, seed=5), (4, 33))
    assert_same_bits(packed(x, residual=residual), packed(x) + residual)
    gaps = np.repeat(normal(4, 33, seed=6), 2, axis=1)[:, ::2]
    wanted = packed(x) + gaps
    assert packed(x, residual=gaps, out=gaps) is gaps
    assert_same_bits(gaps.copy(), wanted, "residual is a strided out")


def test_shapes():
    for M, K, N in ((0, 3, 5), (4, 0, 5), (4, 3, 0), (0, 0, 0), (0, 0, 5), (4, 0, 0)):
        x, w, b = normal(M, K), normal(K, N, seed=1), normal(N, seed=2)
        for bias in (b, None):
            assert_same_bits(llorch.linear(x, w, bias), reference.linear(x, w, bias), f"{M, K, N}")
            assert_same_bits(PackedLinear(w, bias)(x), reference.linear(x, w, bias), f"{M, K, N}")
    nothing = PackedLinear(normal(0, 3))
    assert nothing.column(2).shape == (0,) and PackedLinear(normal(3, 0)).row(2).shape == (0,)


# ---- values ------------------------------------------------------------------------------------------


def every_way(x, w, b=None):
    """What has to be the same: each as (what, result)."""
    yield from ((what, llorch.linear(x, weight, b)) for what, weight in layouts(w))
    yield "packed", PackedLinear(w, b)(x)
    for kept in DTYPES:
        narrow = reference.narrow(w, DTYPES[kept])
        if same_bits(reference.widen(narrow), w):
            yield f"packed {kept}", PackedLinear(w, b, dtype=kept)(x)
            yield f"plain {kept}", llorch.linear(x, narrow, b)


@pytest.mark.parametrize("M", (1, 2, 7, 97))
def test_special_values(isa, M):
    inf, nan = np.inf, np.nan
    for x, w, b, wanted in (
        ([3e38, 3e38], [1, 1], 0, inf),  # overflow
        ([3e38, 3e38, -3e38], [1, 1, 1], 0, inf),  # in order: the sum stays there
        ([3e38, -3e38, 3e38], [1, 1, 1], 0, 3e38),
        ([2.0**100], [2.0**100], 0, inf),
        ([2.0**100], [2.0**100], -inf, nan),
        ([0.0], [inf], 0, nan),
        ([inf], [0.0], 0, nan),
        ([inf, -inf], [1, 1], 0, nan),
        ([inf, inf], [1, -1], 0, nan),
        ([inf, inf], [1, 2], 5, inf),
        ([nan], [0.0], 0, nan),
        ([0.0], [nan], 0, nan),
        ([1], [1], nan, nan),
        ([1], [1], -inf, -inf),
        ([2.0**-140], [1], 0, 2.0**-140),  # subnormals are kept
        ([2.0**-149], [0.5], 0, 0.0),  # halfway to zero: even
        ([2.0**-149], [0.75], 0, 2.0**-149),
        ([2.0**-80], [2.0**-69], 0, 2.0**-149),
        ([1 + 2.0**-12], [1 + 2.0**-12], -1, 2.0**-11),  # the block is rounded before the bias is added,
        ([1, 1 + 2.0**-12], [-1, 1 + 2.0**-12], 0, 2.0**-11 + 2.0**-24),  # within it there is one rounding
        ([-0.0], [1], -0.0, 0.0),  # a block begins at +0
        ([2.0**-100], [-(2.0**-100)], -0.0, -0.0),  # a product that vanishes
        ([2.0**-100], [-(2.0**-100)], 0.0, 0.0),
        ([], [], -0.0, -0.0),
    ):
        x, w = np.tile(np.float32(x), (M, 1)), np.repeat(np.float32(w)[:, None], 21, axis=1)
        bias, wanted = np.full(21, b, np.float32), np.full((M, 21), wanted, np.float32)
        assert_same_bits(reference.linear(x, w, bias), wanted, f"oracle, {x[0]}, {w[:, 0]}, {b}")
        for what, got in every_way(x, w, bias):
            assert_same_bits(got, wanted, f"{what}, {x[0]}, {w[:, 0]}, {b}")


@pytest.mark.parametrize("M", (1, 2, 3, 13))
def test_blocks_end_where_they_should(isa, M):
    """-0 and overflow in a second and third block, where a block's sum meets the sum so far."""
    x = np.zeros((M, 300), np.float32)
    w = np.zeros((300, 20), np.float32)
    x[:, [5, 130, 131, 260]] = 2.0**-100, 3e38, 3e38, 1
    w[[5, 130, 131, 260]] = np.float32([-(2.0**-100), 1, -1, 1])[:, None]
    assert_same_bits(llorch.linear(x, w, np.full(20, -1, np.float32)), np.zeros((M, 20), np.float32))
    x[:, 131] = -3e38
    for b in (-0.0, 3e38):
        bias = np.full(20, b, np.float32)
        for what, got in every_way(x, w, bias):
            assert_same_bits(got, reference.linear(x, w, bias), f"{what}, {b}")
            assert np.isinf(got).all()


def test_scales(isa):
    """Products and sums that are subnormal, that vanish and that overflow."""
    for scale in (1e-25, 1e-21, 1e-19, 1e18, 1e19):
        for M in (1, 2, 13):
            x, w, b = normal(M, 300, scale=scale), normal(300, 33, seed=1, scale=scale), normal(33, seed=2, scale=1e-40)
            wanted = reference.linear(x, w, b)
            for what, got in every_way(x, w, b):
                assert_same_bits(got, wanted, f"{what}, {scale}")


@pytest.mark.parametrize("kept", DTYPES)
def test_every_16_bit_weight(isa, kept):
    """All 65,536 encodings, widened by each of the ways a weight takes; and rounded where a wider one is packed."""
    kind = DTYPES[kept]
    every = (np.arange(65536, dtype=np.uint16).view(kind) if kept != "float32" else
             np.arange(0, 2**32, 65537, dtype=np.uint64).astype(np.uint32).view(np.float32))[None]  # fmt: skip
    with np.errstate(invalid="ignore"):  # some of them are signalling NaNs
        for M in (1, 2, 5, 25):
            wanted = np.tile(reference.widen(every) + np.float32(0), (M, 1))
            one = np.ones((M, 1), np.float32)
            assert_same_bits(llorch.linear(one, every), wanted, f"plain, M={M}")
            assert_same_bits(llorch.linear(one, np.asfortranarray(every)), wanted, f"columns, M={M}")
            assert_same_bits(PackedLinear(every, dtype=kept)(one), wanted, f"packed, M={M}")
    wide = np.concatenate([normal(9000, scale=s) for s in (1, 1e-6, 1e-8, 3e4, 1e37)])[None]
    assert_same_bits(PackedLinear(wide, dtype=kept).row(0), reference.widen(reference.narrow(wide, kind))[0])


def test_a_nan_stays_in_its_row_and_column(isa):
    x, w = normal(8, 140), normal(140, 40, seed=1)
    clean = llorch.linear(x, w)
    x[3, 7], w[9, 20] = np.nan, np.inf
    for what, spoilt in every_way(x, w):
        changed = bits(spoilt) != bits(clean)
        assert changed[3].all() and changed[:, 20].all(), what
        changed[3] = changed[:, 20] = False
        assert not changed.any(), what


# ---- errors ------------------------------------------------------------------------------------------

X, W, B = normal(2, 3), normal(3, 5), normal(5)
PACKED = PackedLinear(W, B)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: llorch.linear(X, normal(4, 5)), ValueError, r"x has shape \(2, 3\).*the 4 rows of weight"),
        (lambda: llorch.linear(np.float32(1), W), ValueError, r"x has shape \(\), its last axis must be the 3 rows"),
        (lambda: llorch.linear(X, normal(3)), ValueError, r"weight has shape \(3,\), it must be \(K, N\)"),
        (lambda: llorch.linear(X, W[None]), ValueError, r"weight has shape \(1, 3, 5\), it must be \(K, N\)"),
        (lambda: llorch.linear(X, W, normal(4)), ValueError, r"bias has shape \(4,\).*\(5,\).*each column of weight"),
        (lambda: llorch.linear(X, W, normal(1, 5)), ValueError, r"bias has shape \(1, 5\), it must be \(5,\)"),
        (lambda: llorch.linear(X, W.astype(np.float64)), TypeError, r"weight is float64.*weight\.astype\(np\.float32\)"),  # noqa: E501
        (lambda: llorch.linear(X.astype(np.float64), W), TypeError, "x is float64"),
        (lambda: llorch.linear(X, W, B.astype(np.float64)), TypeError, "bias is float64"),
        (lambda: llorch.linear(X, W, residual=np.ones((2, 5))), TypeError, "residual is float64"),
        (lambda: llorch.linear(X, W.astype(np.int8)), TypeError, "weight has elements of type int8"),
        (lambda: llorch.linear(X, W.tolist()), TypeError, "weight must be an array.*got list"),
        (lambda: llorch.linear(None, W), TypeError, "x must be an array.*got NoneType"),
        (lambda: llorch.linear(X, W, activation="relu6"), ValueError, "activation must be None or one.*got 'relu6'"),
        (lambda: llorch.linear(X, W, activation=["gelu"]), ValueError, r"activation must be.*got \['gelu'\]"),
        (lambda: llorch.linear(X, W, residual=normal(2, 4)), ValueError, r"residual has shape \(2, 4\).*\(2, 5\)"),
        (lambda: llorch.linear(X, W, residual=B), ValueError, r"residual has shape \(5,\).*\(2, 5\)"),
        (lambda: llorch.linear(X, W, residual=normal(2, 5).astype(np.float16)), TypeError, "residual is float16.*of x, float32"),  # noqa: E501
        (lambda: llorch.linear(X, W, out=normal(2, 4)), ValueError, r"out has shape \(2, 4\), it must be \(2, 5\)"),
        (lambda: llorch.linear(X, W, out=np.empty((2, 5), np.float16)), TypeError, "out is float16.*of x, float32"),
        (lambda: llorch.linear(X, W, out=np.broadcast_to(np.float32(0), (2, 5))), ValueError, "out is read-only"),
        (lambda: llorch.linear(X, W, B, "gelu"), TypeError, "positional"),
        (lambda: llorch.linear(X[:, :1], np.broadcast_to(np.float32(1), (1, 2**24 + 1))), ValueError, r"weight has shape.*2\*\*24"),  # noqa: E501
        (lambda: PACKED(normal(2, 4)), ValueError, r"x has shape \(2, 4\), its last axis must be the 3 rows of weight"),
        (lambda: PACKED(X, residual=normal(2, 4)), ValueError, "residual has shape"),
        (lambda: PACKED(X, out=normal(2, 4)), ValueError, "out has shape"),
        (lambda: PACKED(X, activation=1), ValueError, "activation must be.*got 1"),
        (lambda: PackedLinear(W, dtype="int8"), ValueError, "dtype must be 'float32', 'float16', .* got 'int8'"),
        (lambda: PackedLinear(W, normal(3)), ValueError, r"bias has shape \(3,\), it must be \(5,\).*each output"),
        (lambda: PackedLinear(W, normal(5), transposed=True), ValueError, r"bias has shape \(5,\), it must be \(3,\)"),
        (lambda: PackedLinear(B), ValueError, r"weight has shape \(5,\), it must be \(K, N\)"),
        (lambda: PackedLinear(W.astype(np.float64)), TypeError, "weight is float64"),
        (lambda: PACKED.row(3), IndexError, "k is 3, the weight has 3 rows"),
        (lambda: PACKED.row(2**70), IndexError, "the weight has 3 rows"),
        (lambda: PACKED.column(-1), IndexError, "n is -1, the weight has 5 columns"),
        (lambda: PACKED.column(1.0), TypeError, "n must be an int, got float"),
        (lambda: pickle.dumps(PACKED), TypeError, "PackedLinear can't be pickled or copied: make one from the weight"),
        (lambda: copy.copy(PACKED), TypeError, "can't be pickled or copied"),
    ],
)  # fmt: skip
def test_message(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: reference.linear(X, W, activation="relu6"), ValueError, "activation must be.*got 'relu6'"),
        (lambda: reference.linear(X, W, residual=B), ValueError, r"residual has shape \(5,\), it must be \(2, 5\)"),
        (lambda: reference.linear(X, W, out=B), ValueError, r"out has shape \(5,\), it must be \(2, 5\)"),
        (lambda: reference.linear(X, W, residual=np.ones((2, 5))), TypeError, "residual is float64"),
    ],
)
def test_message_of_the_oracle(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_overlaps_of_out_are_refused_and_nothing_is_written():
    base = normal(200)
    before = base.copy()
    x, w, b, h = base[:9].reshape(3, 3), base[20:29].reshape(3, 3), base[40:43], base[60:69].reshape(3, 3)
    packed = PackedLinear(w, b)
    for out, message in (
        (x, "out overlaps x, it must share no memory"),
        (base[4:13].reshape(3, 3), "out overlaps x"),
        (w, "out overlaps weight"),
        (base[12:21].reshape(3, 3), "out overlaps weight"),
        (base[42:51].reshape(3, 3), "out overlaps bias"),
        (base[61:70].reshape(3, 3), "out overlaps residual in part"),
        (h[::-1], "out overlaps residual in part"),
        (np.lib.stride_tricks.as_strided(base[100:], (3, 3), (8, 4)), "out overlaps itself"),
        (np.lib.stride_tricks.as_strided(base[100:], (3, 3), (0, 4)), "out overlaps itself"),
    ):
        with pytest.raises(ValueError, match=message):
            llorch.linear(x, w, b, residual=h, out=out)
        if "weight" not in message and "bias" not in message:
            with pytest.raises(ValueError, match=message):
                packed(x, residual=h, out=out)
    assert (base == before).all()


def test_what_a_packed_weight_says():
    w, b = normal(20, 33), normal(33, seed=1)
    packed = PackedLinear(w, b, dtype="bfloat16")
    assert (packed.shape, packed.in_features, packed.out_features, packed.dtype) == ((20, 33), 20, 33, "bfloat16")
    assert repr(packed) == "PackedLinear(20, 33, dtype='bfloat16', bias)"
    assert_same_bits(packed.bias, b)
    assert not packed.bias.flags.writeable and PackedLinear(w).bias is None
    wanted = packed(w[:, :20])
    w[:], b[:] = 0, 0  # it has copies
    assert not same_bits(packed(w[:, :20]), wanted) and packed.row(3).any() and packed.bias.any()
    with pytest.raises(TypeError, match="made once"):  # what another thread may be reading stays
        packed.__init__(normal(4, 2))
    assert packed.shape == (20, 33)


def test_a_class_that_gives_out_a_weight_that_is_there():
    """What it is stays."""
    there = PackedLinear(normal(32, 16))

    class Cached(PackedLinear):
        def __new__(cls, *arguments, **named):
            return there

    with pytest.raises(TypeError, match="made once"):
        Cached.from_blocks(bytes(18 * 16), "Q4_0", 32, 16, compute="int16")
    assert (there.dtype, there.compute) == ("float32", "float32")
    assert_same_bits(there(normal(3, 32)), reference.linear(normal(3, 32), normal(32, 16)))


def test_weights_that_are_made_again_while_x_comes_in():
    """x may be any object, and run any code."""

    class Meddler:
        def __dlpack__(self, **keywords):
            with pytest.raises(TypeError, match="made once"):
                packed.__init__(normal(2000, 1))
            return X.__dlpack__(**keywords)

        def __dlpack_device__(self):
            return X.__dlpack_device__()

    packed = PackedLinear(W, B)
    assert_same_bits(np.asarray(packed(Meddler())), reference.linear(X, W, B))
