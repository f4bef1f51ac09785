"""PackedLinear of blocks that stay blocks, in both arithmetics: kernels against the oracle."""

import functools
import itertools
import sys

import ml_dtypes
import numpy as np
import pytest
from helpers import Guarded, assert_same_bits, at_offset, isas, normal, num_threads, rng, same_bits
from weight_blocks import BLOCKS, SCALES, blocks, special_blocks

import llorch
from llorch import PackedLinear, _core, reference
from llorch.reference._formats import INTEGERS, SIZES

KINDS = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
# every format in each arithmetic that it has
WAYS = [(format, "float32") for format in BLOCKS] + [(format, "int16") for format in INTEGERS]
every_way = pytest.mark.parametrize(("format", "compute"), WAYS, ids=[f"{f}-{c}" for f, c in WAYS])

# (blocks along K, N, rows): blocks of 128 k that end early, groups of blocks, depths of 512 and more; panels of 16
# columns, some together; tiles of 1 to 12 rows and more, several
CASES = {
    32: ((1, 17, 13), (2, 1, 5), (3, 100, 4), (4, 33, 25), (5, 15, 12), (9, 17, 5), (20, 33, 130), (37, 17, 14)),
    256: ((1, 100, 4), (2, 1, 5), (3, 33, 130), (4, 33, 25), (5, 15, 14), (9, 17, 1)),
}
ROWS = (*range(1, 15), 24, 25, 130)


def weight(format, K, N, seed=0):
    """Blocks (N, K / values, bytes). Of each seven columns some have scales that are zero, subnormal, negative, very
    large, infinite or NaN, or integers that are all the largest or all the smallest."""
    values, size = SIZES[format]
    data = blocks(format, N * K // values, seed).reshape(N, K // values, size)
    (finite, others), r = special_of(format), rng(seed, K, N)
    scales = [part for at in SCALES[format] for part in (at, at + 1)]
    for n in range(N):
        if n % 7 == 1:
            data[n] = finite[r.integers(0, len(finite), K // values)]
        elif n % 7 == 4:  # one is enough
            data[n, r.integers(0, K // values)] = others[r.integers(0, len(others))]
        elif n % 7 in (3, 5):
            kept = data[n][:, scales]
            data[n] = 255 if n % 7 == 3 else 0
            data[n][:, scales] = kept
            if format == "MXFP4":
                data[n, :, 0] = 120
    return data


@functools.cache
def special_of(format):
    """Special blocks, those that have finite values alone and the others."""
    special = special_blocks(format)
    values = reference.dequantize(special.reshape(-1), format, (len(special), SIZES[format][0]))
    finite = np.isfinite(values).all(axis=1)
    return special[finite], special[~finite]


def rows_of(M, K, seed=0):
    """x (M, K): ordinary rows, and among them huge, tiny, zero and mixed ones, and a NaN or an infinity."""
    x, r = normal(M, K, seed=seed), rng(seed, M, K)
    for m in range(M):
        if m % 5 == 1:
            x[m] *= np.float32((5e37, 1e-30, 2e-28)[m // 5 % 3])
        if m % 5 == 3:
            x[m, : K // 2] *= np.float32((1e-33, 1e30, 0)[m // 5 % 3])
        if m % 10 == 4:
            x[m] = np.where(x[m] > 0, np.float32(0), np.float32(-0.0))
        if m % 10 == 9:
            x[m, r.integers(0, K)] = (np.nan, np.inf, -np.inf)[m // 10 % 3]
    return x


def oracle(x, data, format, bias=None, compute="float32", **more):
    N, K = len(data), x.shape[-1]
    if compute == "int16":
        return reference.linear_int16(x, data.reshape(-1), format, N, bias, **more)
    return reference.linear(x, reference.dequantize(data.reshape(-1), format, (N, K)).T, bias, **more)


def pack(data, format, bias=None, compute="float32", **more):
    K = data.shape[1] * SIZES[format][0]
    return PackedLinear.from_blocks(data, format, K, len(data), bias, compute=compute, **more)


@every_way
def test_oracle(format, compute):
    values = SIZES[format][0]
    for count, N, most in CASES[values]:
        K = count * values
        data, x, bias = weight(format, K, N), rows_of(most, K), None if count == 2 else normal(N, seed=2)
        wanted = oracle(x, data, format, bias, compute)
        for name in isas():
            packed = pack(data, format, bias, compute)
            for rows in ROWS:
                if rows <= most:  # of the last rows, where the special ones are
                    got = packed(x[most - rows :])
                    assert_same_bits(got, wanted[most - rows :], f"{name}, {rows} rows, {K} x {N}")
            for m in range(min(most, 6)):
                assert_same_bits(packed(x[m]), wanted[m], f"{name}, row {m} alone, {K} x {N}")


def test_the_special_blocks_and_rows_are_there():
    """What weight() and rows_of() promise."""
    for format in BLOCKS:
        data = weight(format, 512, 33)
        values = reference.dequantize(data.reshape(-1), format, (33, 512))
        assert not np.isfinite(values).all() and (np.isfinite(values).all(axis=1).sum() > 20), format
        special = special_of(format)[0]
        values = abs(reference.dequantize(special.reshape(-1), format, (len(special), SIZES[format][0])))
        assert (values == 0).any() and (values > 1e4).any(), format
        assert ((values > 0) & (values < 1e-5)).any(), format
    x = rows_of(130, 160)
    assert np.isnan(x).any() and np.isinf(x).any() and (x == 0).all(axis=1).any()
    size = abs(x[np.isfinite(x).all(axis=1)]).max(axis=1)
    assert size.max() > 1e38 and ((size > 0) & (size < 2.0**-96)).any()


@pytest.mark.parametrize("format", INTEGERS)
def test_edges_of_16_bits(format):
    """Blocks of x whose largest value is 2^-96, or just less; values halfway between integers; the largest of all."""
    K, N = 256, 17
    data = blocks(format, N * K // SIZES[format][0], seed=11).reshape(N, -1, SIZES[format][1])
    x = np.zeros((7, K), np.float32)
    x[0, 5], x[0, 200] = 2.0**-96, np.nextafter(np.float32(2.0**-96), np.float32(0))
    x[1, 127], x[1, 128] = -np.nextafter(np.float32(2.0**-96), np.float32(0)), -(2.0**-96)
    x[2] = np.arange(K) - 127.5
    x[2, [0, 128]] = 32767, -32767
    x[3] = np.finfo(np.float32).max
    x[3, ::3] *= -1
    x[4] = np.where(rng(1).integers(0, 2, K), np.float32(1e-30), np.float32(-1e30))
    x[5, 0], x[5, 255] = 1e-45, 1
    x[6, 100] = np.inf  # of one block alone
    wanted = oracle(x, data, format, normal(N), "int16")
    for name in isas():
        packed = pack(data, format, normal(N), "int16")
        assert_same_bits(packed(x), wanted, name)
        for m in range(7):
            assert_same_bits(packed(x[m]), wanted[m], f"{name}, row {m}")
    assert np.isnan(wanted[6]).all() and np.isfinite(wanted[[0, 1, 2, 4, 5]]).all()


@pytest.mark.parametrize("format", INTEGERS)
def test_the_largest_sums(format):
    """Every integer of x and of the weight is as large as can be, of either sign of x: no sum leaves its 32 bits."""
    K, N = 256, 17
    data = weight(format, K, N)
    column = 3  # whose integers are all the largest
    assert (np.delete(data[column], [part for at in SCALES[format] for part in (at, at + 1)], axis=1) == 255).all()
    scales = [part for at in SCALES[format] for part in (at, at + 1)]
    data[:] = data[column]
    if format == "Q8_0":  # signed bytes
        data[:] = 127
    data[:, :, scales] = np.tile(np.frombuffer(np.float16(0.5).tobytes(), np.uint8), len(SCALES[format]))
    x = np.ones((4, K), np.float32) * np.float32([[1], [-1], [0.5], [-3]])
    wanted = oracle(x, data, format, compute="int16")
    assert abs(wanted).min() > 1
    for name in isas():
        packed = pack(data, format, compute="int16")
        for m in range(len(x)):
            assert_same_bits(packed(x[m]), wanted[m], f"{name}, row {m} alone")
        assert_same_bits(packed(x), wanted, name)


@every_way
def test_types_fused_forms_and_places(format, compute):
    K, N = 160 if SIZES[format][0] == 32 else 512, 21
    data, clean = weight(format, K, N, seed=3), blocks(format, N * K // SIZES[format][0], seed=3)
    clean = clean.reshape(data.shape)
    for i, kind in enumerate(KINDS):
        with np.errstate(all="ignore"):
            x, h = rows_of(4, K, seed=i).astype(kind), normal(4, N, seed=4).astype(kind)
        bias = normal(N, seed=5).astype(KINDS[i - 1])
        activation = ("gelu", "silu", "gelu_tanh")[i]
        wanted = oracle(x, data, format, bias, compute)
        fused = oracle(x, clean, format, None, compute, activation=activation, residual=h)
        gaps = np.zeros((4, 2 * K), kind)
        gaps[:, ::2] = x
        places = (x, gaps[:, ::2], np.asfortranarray(x), at_offset(x, 35), x[::-1].copy()[::-1])
        for name in isas():
            packed, plain = pack(data, format, bias, compute), pack(clean, format, None, compute)
            for place in places:
                assert_same_bits(packed(place), wanted, f"{name}, {kind}, strides {place.strides}")
                assert_same_bits(packed(place[1]), wanted[1], f"{name}, {kind}, a row at strides {place.strides}")
            assert_same_bits(plain(x, activation=activation, residual=h), fused, f"{name}, {kind}, fused")
            into = np.repeat(h, 2, axis=1)[:, ::2]
            assert plain(x[None], activation=activation, residual=into[None], out=into[None]) is not None
            assert_same_bits(into.copy(), fused, f"{name}, {kind}, into the residual")


@every_way
def test_batch_invariant(format, compute):
    K = 4 * SIZES[format][0] + 512
    data, x = blocks(format, 40 * K // SIZES[format][0], seed=6).reshape(40, -1, SIZES[format][1]), normal(61, K)
    for name in isas():
        packed = pack(data, format, None, compute)
        alone = np.stack([packed(row) for row in x])
        for batch in (2, 3, 6, 7, 13, 40, 61):
            for start in (0, 61 - batch):
                assert_same_bits(
                    packed(x[start : start + batch]), alone[start : start + batch], f"{name}, {batch} rows"
                )
        assert_same_bits(packed(x[:60].reshape(5, 3, 4, K)), alone[:60].reshape(5, 3, 4, 40), name)


@every_way
def test_another_order_is_seen(format, compute):
    """Negative control: NumPy's product, a sum over K in two parts, the other arithmetic, neighbouring columns."""
    K = 2 * SIZES[format][0] + 512
    data, x = blocks(format, 5 * K // SIZES[format][0], seed=6).reshape(5, -1, SIZES[format][1]), normal(7, K)
    got = pack(data, format, None, compute)(x)
    assert_same_bits(got, oracle(x, data, format, None, compute))
    assert not same_bits(x @ reference.dequantize(data.reshape(-1), format, (5, K)).T, got)
    half = data.shape[1] // 2
    parts = [
        pack(np.ascontiguousarray(data[:, part]), format, None, compute) for part in (slice(half), slice(half, None))
    ]
    at = half * SIZES[format][0]
    assert not same_bits(parts[0](x[:, :at]) + parts[1](x[:, at:]), got)
    if format in INTEGERS:
        assert not same_bits(oracle(x, data, format, None, "int16" if compute == "float32" else "float32"), got)
    assert not same_bits(pack(data[::-1].copy(), format, None, compute)(x), got)


@every_way
def test_thread_invariant(format, compute):
    K = 512
    data = blocks(format, 1300 * K // SIZES[format][0], seed=7).reshape(1300, -1, SIZES[format][1])
    for M, N in ((1, 1300), (4, 700), (20, 700), (25, 520), (50, 520), (200, 530), (150, 70), (205, 100), (300, 16)):
        x, h, part = normal(M, K), normal(M, N, seed=1), np.ascontiguousarray(data[:N])
        with num_threads(1):
            packed = pack(part, format, None, compute)
            wanted, fused = packed(x), packed(x, activation="silu", residual=h)
        for threads in (2, 3):
            with num_threads(threads):
                assert_same_bits(packed(x), wanted, f"{M} rows, {N} columns")
                assert_same_bits(packed(x, activation="silu", residual=h), fused, f"{M} rows, {N} columns, fused")
                assert_same_bits(pack(part, format, None, compute)(x), wanted, f"packed by {threads}")


@pytest.mark.parametrize("format", ["Q8_0", "Q4_1", "Q6_K"])
def test_rows_one_after_another(format):
    """A row of integers lies in one of two places in turn, and the other one is written to for the next."""
    layers = []
    for K, N in ((256, 1000), (3584, 80), (1536, 300), (4096, 80), (512, 560)):
        data = blocks(format, N * K // SIZES[format][0], seed=K).reshape(N, -1, SIZES[format][1])
        x = normal(7, K)
        layers.append((pack(data, format, None, "int16"), x, oracle(x, data, format, None, "int16")))
    order = rng(3).integers(0, len(layers), 60)
    with num_threads(2):
        for number, row in zip(order, itertools.cycle(range(7))):
            packed, x, wanted = layers[number]
            assert_same_bits(packed(x[row : row + 1]), wanted[row : row + 1], f"{packed.in_features} values, row {row}")


@pytest.mark.parametrize("format", BLOCKS)
def test_values_come_back(format):
    """Rows, columns, the embedding, and what is widened when it is packed."""
    values = SIZES[format][0]
    for count, N in ((1, 1), (3, 17), (5, 37)):
        K = count * values
        data, x = weight(format, K, N, seed=8), normal(3, K)
        w = reference.dequantize(data.reshape(-1), format, (N, K))
        ids = [N - 1, 0, N // 2]
        for name in isas():
            packed = pack(data, format)
            for n in {0, 1 % N, 15 % N, 16 % N, N - 1}:
                assert_same_bits(packed.column(n), w[n], f"{name}, column {n}")
            for k in {0, 1, 17, 31, K // 2 + 1, K - 1}:
                assert_same_bits(packed.row(k), np.ascontiguousarray(w[:, k]), f"{name}, row {k}")
            assert_same_bits(llorch.embedding(packed, ids), w[ids], name)
            assert_same_bits(packed(x), pack(data, format, dtype="float32")(x), f"{name}, widened")
    if format in INTEGERS:
        assert_same_bits(pack(data, format, None, "int16").column(N - 1), w[N - 1])


@pytest.mark.parametrize("format", BLOCKS)
def test_memory(format):
    """The bits of the file, and 3 % more at most; columns in panels of 16."""
    values, size = SIZES[format]
    for K, N in ((576, 1536), (1536, 576), (768, 768), (1024, 4096), (4096, 64), (5120, 160)):
        if K % values == 0:
            packed = _core._packed_reserve(K, N, format.lower())
            assert K * N // values * size <= packed.nbytes <= 1.03 * (K * N // values * size), f"{K} x {N}"


@pytest.mark.parametrize("format", BLOCKS)
def test_packed_in_parts(format):
    """What the loader does: columns from one file and another, some at a time; or all of them widened."""
    K, N = 2 * SIZES[format][0], 53
    data, x = weight(format, K, N, seed=9), normal(2, K)
    wanted = oracle(x, data, format)
    for dtype in (format.lower(), "float32"):
        packed = _core._packed_reserve(K, N, dtype)
        for first, end in ((32, 53), (0, 16), (16, 32)):
            rows = data[first:end].reshape(end - first, -1)
            _core._packed_fill_blocks(packed, first, np.ascontiguousarray(rows), format)
        assert packed.dtype == dtype
        assert_same_bits(packed(x), wanted, dtype)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
@every_way
def test_nothing_past_the_end_is_read(format, compute):
    K, N = 3 * SIZES[format][0], 19
    data, x = weight(format, K, N, seed=10), normal(13, K)
    wanted = oracle(x, data, format, None, compute)
    with Guarded() as memory:
        packed = pack(memory.copy(data), format, None, compute)
        for rows in (1, 2, 5, 13):
            for name in isas():
                out = memory.copy(np.zeros((rows, N), np.float32))
                packed(memory.copy(x[:rows]), out=out)
                assert_same_bits(out.copy(), wanted[:rows], f"{name}, {rows} rows")


def test_sizes_of_nothing():
    for K, N, M in ((32, 0, 2), (0, 3, 2), (0, 20, 5), (32, 3, 0)):
        for compute in ("float32", "int16"):
            bias = np.full(N, -0.0, np.float32)
            packed = PackedLinear.from_blocks(bytes(N * K // 32 * 18), "Q4_0", K, N, bias, compute=compute)
            wanted = np.zeros((M, N), np.float32) if K else np.tile(bias, (M, 1))
            assert_same_bits(packed(np.zeros((M, K), np.float32)), wanted, f"{M, K, N}")


def test_what_a_packed_weight_says():
    for format in BLOCKS:
        K = SIZES[format][0]
        data = blocks(format, 3).reshape(3, 1, -1)
        packed = pack(data, format)
        assert (packed.dtype, packed.compute, packed.shape) == (format.lower(), "float32", (K, 3))
        wanted = packed(normal(1, K))
        data[:] = 0  # it has a copy
        assert_same_bits(packed(normal(1, K)), wanted, format)
    packed = pack(blocks("Q4_1", 3).reshape(3, 1, -1), "Q4_1", normal(3), "int16")
    assert (packed.dtype, packed.compute) == ("q4_1", "int16")
    assert "q4_1" in repr(packed) and "int16" in repr(packed)


Q4, KQ, MX = blocks("Q4_0", 4), blocks("Q6_K", 2), blocks("MXFP4", 4)


def test_names_of_formats_in_lower_case():
    """What a packed weight calls itself is a format, too."""
    packed = PackedLinear.from_blocks(Q4, "q4_0", 32, 4)
    again = PackedLinear.from_blocks(Q4, packed.dtype, 32, 4, dtype="Q4_0")
    assert again.dtype == packed.dtype == "q4_0"
    values = llorch.dequantize(Q4, "q4_0", (4, 32))
    for blocks_again in (llorch.quantize(values, "q4_0"), reference.quantize(values, "q4_0")):
        assert blocks_again.shape == (4, 18)
        for dequantize in (llorch.dequantize, reference.dequantize):
            assert_same_bits(
                dequantize(blocks_again, "q4_0", (4, 32)), dequantize(blocks_again.reshape(-1), "Q4_0", (4, 32))
            )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f(Q4, "Q4_0", 33, 4), "K is 33, it must be a multiple of 32, the values of a block of Q4_0"),
        (lambda f: f(KQ, "Q6_K", 128, 4), "K is 128, it must be a multiple of 256, the values of a block of Q6_K"),
        (lambda f: f(MX, "MXFP4", 32, 4, compute="int16"), "compute='int16' needs .*mxfp4"),
        (lambda f: f(Q4, "Q4_0", 32, 4, dtype="float32", compute="int16"), "compute='int16' needs .*float32"),
        (lambda f: f(bytes(128), "F32", 32, 1, compute="int16"), "compute='int16' needs .*float32"),
        (lambda f: PackedLinear(normal(32, 4), compute="int16"), "compute='int16' needs .*float32"),
        (lambda f: PackedLinear(normal(32, 4), dtype="bfloat16", compute="int16"), "compute='int16' needs .*bfloat16"),
        (lambda f: f(Q4, "Q4_0", 32, 4, compute="int8"), "compute must be 'float32' or 'int16', got 'int8'"),
        (lambda f: f(Q4, "Q4_0", 32, 4, compute=None), "compute must be 'float32' or 'int16', got None"),
        (lambda f: f(Q4, "Q4_0", 32, 4, dtype="q4_2"), "dtype must be .*'q4_0'.*got 'q4_2'"),
        (lambda f: f(Q4, "q4_2", 32, 4), "format is 'q4_2', it must be one of F32"),
        (lambda f: f(Q4, None, 32, 4), "format is None, it must be one of F32"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(PackedLinear.from_blocks)
