"""Block-quantised weights: the oracle's values and gguf-py's, bit for bit, and PackedLinear.from_blocks of them."""

import sys

import ml_dtypes
import numpy as np
import pytest
from helpers import Guarded, assert_same_bits, isas, normal, num_threads, refusals, rng, same_bits
from weight_blocks import BLOCKS, blocks, special_blocks

import llorch
from llorch import reference
from llorch.reference._formats import SIZES

DTYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("format", SIZES)
def test_dequantize_is_the_oracle(format):
    values, size = SIZES[format]
    data = rng(7).integers(0, 256, (40, 6 * size), np.uint8) if values == 1 else blocks(format, 240).reshape(40, -1)
    shape = (8, 5, 6 * values)
    with np.errstate(invalid="ignore"):
        wanted = reference.dequantize(data.ravel(), format, shape)
    assert_same_bits(llorch.dequantize(data, format, shape), wanted)
    assert_same_bits(llorch.dequantize(data.tobytes(), format, shape), wanted, "bytes")
    assert llorch.dequantize(b"", format, (0, values)).shape == (0, values)


@pytest.mark.parametrize("format", BLOCKS)
def test_dequantize_of_special_scales_is_the_oracle(format):
    data = special_blocks(format)
    shape = (len(data), SIZES[format][0])
    assert_same_bits(llorch.dequantize(data, format, shape), reference.dequantize(data.ravel(), format, shape))


@pytest.mark.parametrize("format", BLOCKS)
def test_beside_gguf(format):
    """Its own values, bit for bit, of ordinary and of special blocks; any NaN equals any NaN."""
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[format]
    assert gguf.GGML_QUANT_SIZES[kind] == SIZES[format]
    for data in (blocks(format, 500, seed=3), special_blocks(format)):
        with np.errstate(all="ignore"):
            wanted = gguf.quants.dequantize(data, kind)
        assert_same_bits(llorch.dequantize(data, format, wanted.shape), wanted, format)


@pytest.mark.parametrize("format", BLOCKS)
def test_a_changed_byte_is_seen(format):
    """Negative control: every byte of a block matters, to the values that it should."""
    data = blocks(format, 1, seed=5)
    wanted = llorch.dequantize(data, format, (SIZES[format][0],))
    for at in range(data.shape[1]):
        other = data.copy()
        other[0, at] ^= 0xFF
        assert not same_bits(llorch.dequantize(other, format, wanted.shape), wanted), f"byte {at}"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
@pytest.mark.parametrize("format", SIZES)
def test_nothing_past_the_end_is_read(format):
    values, size = SIZES[format]
    data = blocks(format, 3, seed=2) if format in BLOCKS else rng(1).integers(0, 100, (3, size), np.uint8)
    with Guarded() as memory:
        got = llorch.dequantize(memory.copy(data), format, (3 * values,))
        assert_same_bits(got, reference.dequantize(data.ravel(), format, (3 * values,)))


# ---- packed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", SIZES)
def test_a_product_has_the_bits_of_linear_on_the_values(format):
    values = SIZES[format][0]
    for K, N in ((values, 1), (3 * values, 16), (2 * values, 37), (max(values, 512), 100)):
        K = K if values > 1 else K + 67
        data = (rng(K, N).standard_normal((N, K)).astype(np.float32) if format == "F32" else
                rng(K, N).standard_normal((N, K)).astype(np.float16) if format == "F16" else
                rng(K, N).standard_normal((N, K)).astype(ml_dtypes.bfloat16).view(np.uint16) if format == "BF16" else
                blocks(format, N * K // values, seed=K + N))  # fmt: skip
        w = reference.dequantize(np.ascontiguousarray(data).reshape(-1).view(np.uint8), format, (N, K))
        bias, x = normal(N, seed=9), normal(3, K, seed=8)
        for kept in DTYPES:
            rounded = reference.narrow(w, kept).T
            wanted = reference.linear(x, rounded, bias)
            for name in isas():
                packed = llorch.PackedLinear.from_blocks(data, format, K, N, bias, dtype=kept.name)
                assert packed.shape == (K, N) and packed.dtype == kept.name
                for rows in (1, 3):
                    assert_same_bits(packed(x[:rows]), wanted[:rows], f"{K} x {N}, {kept}, {name}")
                assert_same_bits(packed.column(N - 1), reference.widen(rounded[:, N - 1]))
                assert_same_bits(packed.row(K - 1), reference.widen(rounded[K - 1]))
                assert_same_bits(llorch.embedding(packed, [0, N - 1]), reference.embedding(rounded.T, [0, N - 1]))
    assert not same_bits(packed(x), llorch.PackedLinear.from_blocks(data, format, K, N, bias * 2)(x))


def test_packing_is_thread_invariant_and_in_the_contracts_environment():
    data = blocks("Q4_K", 4 * 700, seed=4)
    x = normal(2, 1024)
    results = []
    for threads in (1, 2, 3):
        with num_threads(threads):
            results.append(llorch.PackedLinear.from_blocks(data, "Q4_K", 1024, 700)(x))
    for y in results[1:]:
        assert_same_bits(y, results[0])


Q4 = blocks("Q4_0", 4)
REFUSED = [
    (lambda: llorch.dequantize(Q4, "Q4_2", (4, 32)), ValueError, "format is 'Q4_2', it must be one of F32, F16"),
    (lambda: llorch.dequantize(Q4, "IQ2_XS", (4, 32)), ValueError, "format is 'IQ2_XS'"),
    (lambda: llorch.dequantize(Q4, None, (4, 32)), ValueError, "format is None"),
    (lambda: llorch.dequantize(Q4, "Q4_0", (4, 31)), ValueError, r"\(4, 31\), its last length must be a multiple"),
    (lambda: llorch.dequantize(Q4, "Q4_0", ()), ValueError, r"shape is \(\)"),
    (lambda: llorch.dequantize(Q4, "Q4_0", (3, 32)), ValueError, r"72 bytes, Q4_0 of shape \(3, 32\) takes 54"),
    (lambda: llorch.dequantize(Q4, "Q4_0", (-4, 32)), ValueError, "a length of shape must be at least 0"),
    (lambda: llorch.dequantize(Q4[:, ::2], "Q4_0", (2, 32)), TypeError, "bytes .* got ndarray that isn't contiguous"),
    (lambda: llorch.dequantize(Q4, "Q4_0", 128), TypeError, "shape must be a tuple of int, got int"),
    (lambda: llorch.dequantize(Q4, "Q4_0", (2**24, 2**24, 2**16)), ValueError, "more values than there can be"),
    (lambda: llorch.dequantize(Q4, "Q4_0", (2**24, 2**16)), ValueError, "data has 72 bytes, Q4_0 of shape"),
    (lambda: llorch.dequantize([1, 2], "Q4_0", (2, 32)), TypeError, "data must be contiguous bytes.*got list"),
    (lambda: llorch.PackedLinear.from_blocks(Q4, "Q4_0", 33, 4), ValueError, "K is 33, it must be a multiple of 32"),
    (lambda: llorch.PackedLinear.from_blocks(Q4, "Q4_0", 32, 5), ValueError, "data has 72 bytes, .* takes 90"),
    (lambda: llorch.PackedLinear.from_blocks(Q4, "Q4_0", 32, 4, dtype="int8"), ValueError, "dtype must be"),
    (lambda: llorch.PackedLinear.from_blocks(Q4, "Q4_0", 32, 4, np.ones(5, np.float32)), ValueError, "bias has shape"),
    (lambda: llorch.PackedLinear.from_blocks(Q4, "Q4_0", 32.0, 4), TypeError, "K must be an int"),
]  # fmt: skip

test_refused = refusals(REFUSED)
