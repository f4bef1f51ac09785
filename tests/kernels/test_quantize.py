"""quantize: the oracle's bytes, gguf-py's where it has the format, and llama.cpp's error where it has not."""

import ctypes
import importlib.util
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from helpers import Guarded, assert_same_bits, at_offset, in_threads, normal, num_threads, refusals, rng
from weight_blocks import BLOCKS

import llorch
from llorch import reference
from llorch.reference._formats import SIZES

K_QUANTS = [name for name in BLOCKS if SIZES[name][0] == 256]


def assert_same_bytes(got, wanted, context=""):
    assert got.dtype == wanted.dtype == np.uint8 and got.shape == wanted.shape, (
        f"{context}: {got.shape}, {wanted.shape}"
    )
    different = np.argwhere(got != wanted)
    assert not len(different), f"{context}: {len(different)} of {got.size} bytes differ, the first at {different[0]}"


def hard_rows(columns):
    """Rows that a search for scales could stumble over, some of one value, or of one sign."""
    x = normal(24, columns, seed=1, scale=0.02)
    x[0] = 0
    x[1] = -0.0
    x[2, :] = 0.0123
    x[3, :] = -0.0123
    x[4] = np.abs(x[4])
    x[5] = -np.abs(x[5])
    x[6] = 0
    x[6, columns // 2] = -3.0
    x[7] *= np.float32(1e-7)  # float16 scales end here
    x[8] *= np.float32(1e-30)
    x[9] *= np.float32(1e-42)  # subnormal
    x[10] *= np.float32(1e5)
    x[11] += np.float32(1)
    x[12] -= np.float32(1)
    x[13, ::32] *= np.float32(1e6)
    x[14] = rng(4).integers(-8, 8, columns)  # ties
    x[15] = np.tile(np.float32([0.5, -0.5]), columns // 2)
    x[16, 1::2] = 0
    x[17] = np.sign(x[17])
    x[18] = x[18] ** 3
    x[19, : columns // 2] *= np.float32(1e-4)
    x[20] = np.ldexp(np.float32(1), rng(5).integers(-60, 3, columns))
    x[21] = np.arange(columns)
    x[22] = -np.arange(columns) / np.float32(columns)
    return x


@pytest.mark.parametrize("format", BLOCKS)
def test_the_oracles_bytes(isa, format):
    values, size = SIZES[format]
    x = hard_rows(768)
    wanted = reference.quantize(x, format)
    assert_same_bytes(llorch.quantize(x, format), wanted, isa)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        narrow = normal(6, 512, seed=2).astype(dtype)
        assert_same_bytes(llorch.quantize(narrow, format), reference.quantize(narrow, format), str(dtype))
    assert llorch.quantize(x[:0], format).shape == (0, 768 // values * size)
    assert llorch.quantize(x[:, :0], format).shape == (24, 0)
    assert_same_bytes(llorch.quantize(x[13], format), wanted[13], "a row")
    assert_same_bytes(llorch.quantize(x.reshape(2, 3, 4, 768), format).reshape(24, -1), wanted, "four axes")


@pytest.mark.parametrize("format", BLOCKS)
def test_a_longer_row_and_blocks_alone(format):
    """A block's bytes depend on nothing around it; neither do they on how many there are, odd or even."""
    x = normal(1, 2048 + 768, seed=3)
    values, size = SIZES[format]
    got = llorch.quantize(x, format)
    assert_same_bytes(got, reference.quantize(x, format))
    for i in (0, 1, got.shape[1] // size - 1):
        alone = llorch.quantize(x[:, i * values : (i + 1) * values], format)
        assert_same_bytes(got[:, i * size : (i + 1) * size], alone, f"block {i}")
    other = x.copy()
    other[0, values] += np.float32(0.5)  # negative control: this one does
    changed = np.flatnonzero(llorch.quantize(other, format)[0] != got[0])
    assert changed.size and size <= changed.min() and changed.max() < 2 * size


@pytest.mark.parametrize("format", BLOCKS)
def test_layout_threads_and_callers(format):
    x = normal(90, 512, seed=4)
    wanted = llorch.quantize(x, format)
    assert_same_bytes(llorch.quantize(at_offset(x, 1), format), wanted, "no alignment")
    assert_same_bytes(llorch.quantize(np.asfortranarray(x), format), wanted, "columns")
    assert_same_bytes(llorch.quantize(np.repeat(x, 2, axis=0)[::2], format), wanted, "strides")
    with Guarded() as memory:
        assert_same_bytes(llorch.quantize(memory.copy(x), format), wanted, "the end of memory")
    for threads in (1, 2, 3):
        with num_threads(threads):
            assert_same_bytes(llorch.quantize(x, format), wanted, f"{threads} threads")
    results = []
    in_threads(lambda: results.append(llorch.quantize(x, format)))
    assert len(results) == 4
    for got in results:
        assert_same_bytes(got, wanted, "several callers")


@pytest.mark.parametrize("format", [name for name in BLOCKS if name not in K_QUANTS])
def test_the_bytes_of_gguf(format):
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[format]
    x = np.concatenate([normal(200, 256, seed=5), normal(40, 256, seed=6, scale=1e-5), hard_rows(256)])
    x = x[(np.abs(x).max(axis=1) > 1e-30) | (x == 0).all(axis=1)]  # there 1 / d is infinite, and its q any
    x = x[~(np.signbit(x) & (x == 0)).any(axis=1)]  # which zero NumPy's min takes depends on its instructions
    assert len(x) > 250
    with np.errstate(all="ignore"):
        wanted = gguf.quants.quantize(x, kind)
    assert_same_bytes(llorch.quantize(x, format), wanted, format)


def lost(x, y):
    return float(np.sqrt(((x - y).astype(np.float64) ** 2).sum() / (x.astype(np.float64) ** 2).sum()))


# What each loses of Gaussian weights, root mean square, as measured; of four times the finest format the coarsest.
LOST = {"Q8_0": 0.0054, "Q6_K": 0.0173, "Q5_K": 0.0346, "Q5_1": 0.0380, "Q5_0": 0.0428, "Q4_K": 0.0698, "Q4_1": 0.0783,
        "Q4_0": 0.0861, "MXFP4": 0.1142, "Q3_K": 0.1440, "Q2_K": 0.2605}  # fmt: skip


@pytest.mark.parametrize("format", BLOCKS)
def test_little_is_lost(format):
    x = normal(256, 256, seed=7, scale=0.02)
    y = llorch.dequantize(llorch.quantize(x, format), format, x.shape)
    assert 0.97 * LOST[format] < lost(x, y) < 1.01 * LOST[format]
    again = llorch.dequantize(llorch.quantize(y, format), format, x.shape)
    assert lost(y, again) < (0.35 if format in K_QUANTS else 0.01) * LOST[format]


def ggml():
    """llama.cpp's own quantiser, from the library beside llama-cpp-python."""
    found = importlib.util.find_spec("llama_cpp")
    if found is None or found.origin is None:
        pytest.skip("llama-cpp-python is not installed")
    libraries = sorted((Path(found.origin).parent / "lib").glob("libggml-base.so*"))
    if not libraries:
        pytest.skip("llama-cpp-python has no libggml-base: not installed as expected")
    quantize = ctypes.CDLL(str(libraries[0])).ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    return quantize


@pytest.mark.llama_cpp
@pytest.mark.parametrize("format", BLOCKS)
def test_beside_llama_cpp(format):
    """The same bytes, or of a K-quant no more error than its own search leaves."""
    gguf = pytest.importorskip("gguf")
    x = normal(64, 512, seed=8, scale=0.02)
    got = llorch.quantize(x, format)
    theirs = np.zeros_like(got)
    ggml()(int(gguf.GGMLQuantizationType[format]), x.ctypes.data, theirs.ctypes.data, 0, *x.shape, None)
    if format not in K_QUANTS:
        assert_same_bytes(got, theirs, format)
        return
    ours, wanted = (lost(x, llorch.dequantize(data, format, x.shape)) for data in (got, theirs))
    assert 0.8 * wanted < ours < 0.99 * wanted, f"{format}: {ours}, llama.cpp {wanted}"


@pytest.mark.parametrize("format", BLOCKS)
def test_what_has_no_number_is_refused(format):
    x = normal(40, 512, seed=9)
    for value in (np.nan, np.inf, -np.inf):
        for at in ((0, 0), (39, 511), (7, 300)):
            wrong = x.copy()
            wrong[at] = value
            with pytest.raises(
                ValueError, match=rf"weights\[{at[0]}, {at[1]}\] is {value}, {format} has finite values"
            ):
                llorch.quantize(wrong, format)
            with pytest.raises(ValueError, match="infinite or NaN"):
                reference.quantize(wrong, format)
    x[30, 3] = x[21, 5] = np.nan  # the first of several, whichever thread meets it
    for threads in (1, 3):
        with num_threads(threads), pytest.raises(ValueError, match=r"weights\[21, 5\] is nan"):
            llorch.quantize(np.tile(x, (1, 8)), format)
    with pytest.raises(ValueError, match=r"weights\[1, 5, 3\] is nan"):
        llorch.quantize(x.reshape(2, 20, 512)[:, ::-1][:, 9:15].copy()[:, ::-1], format)


@pytest.mark.parametrize("format", BLOCKS)
def test_the_largest_values(format):
    """Up to what the scales hold weights are stored; what is above is refused, and not stored as infinities."""
    row = normal(1, 256, seed=10)
    row /= np.abs(row).max()
    for exponent in range(12, 128):
        x = row * np.float32(2.0**exponent)
        try:
            wanted = reference.quantize(x, format)
        except ValueError as error:
            assert "too large" in str(error)
            with pytest.raises(ValueError, match=rf"weights\[0, :\] has values as large as .* too large .* {format}"):
                llorch.quantize(x, format)
            assert exponent > 15
            break
        assert_same_bytes(llorch.quantize(x, format), wanted, f"2^{exponent}")
        assert np.isfinite(llorch.dequantize(wanted, format, x.shape)).all()
    else:
        assert format == "MXFP4"


@pytest.mark.parametrize("format", BLOCKS)
def test_a_weight_that_is_packed_into_blocks(format):
    """Along K, however the weight lies; and by both arithmetics."""
    weight, bias, x = normal(512, 21, seed=11), normal(21, seed=12), normal(3, 512, seed=13)
    data = reference.quantize(np.ascontiguousarray(weight.T), format)
    wanted = reference.linear(x, reference.dequantize(data.reshape(-1), format, (21, 512)).T, bias)
    dtype = format.lower()
    for packed in (
        llorch.PackedLinear(weight, bias, dtype=dtype),
        llorch.PackedLinear(np.asfortranarray(weight), bias, dtype=dtype),
        llorch.PackedLinear(weight.T, bias, dtype=dtype, transposed=True),
        llorch.PackedLinear(weight.T.copy(), bias, dtype=dtype, transposed=True),
        llorch.PackedLinear(np.repeat(weight, 2, axis=1)[:, ::2], bias, dtype=dtype),
    ):
        assert (packed.dtype, packed.shape) == (dtype, (512, 21))
        assert_same_bits(packed(x), wanted, format)
    if format != "MXFP4":
        got = llorch.PackedLinear(weight, bias, dtype=dtype, compute="int16")(x)
        assert_same_bits(got, reference.linear_int16(x, data.reshape(-1), format, 21, bias), format)
    narrow = weight.astype(np.float16)
    data = reference.quantize(np.ascontiguousarray(narrow.T), format).reshape(-1)
    wanted = reference.linear(x, reference.dequantize(data, format, (21, 512)).T)
    assert_same_bits(llorch.PackedLinear(narrow, dtype=dtype)(x), wanted, "float16")
    weight[300, 7] = np.nan
    for given, transposed in ((weight, False), (weight.T, True)):
        place = "7, 300" if transposed else "300, 7"
        with pytest.raises(ValueError, match=rf"weight\[{place}\] is nan, {format} has finite values only"):
            llorch.PackedLinear(given, dtype=dtype, transposed=transposed)


REFUSED = [
    (
        lambda: llorch.PackedLinear(normal(48, 2), dtype="q4_0"),
        ValueError,
        "K is 48, .* of 32, the values of .* of Q4_0",
    ),
    (
        lambda: llorch.PackedLinear(normal(96, 2), dtype="q6_k"),
        ValueError,
        "K is 96, .* of 256, the values of .* of Q6_K",
    ),
    (
        lambda: llorch.quantize(normal(2, 48), "Q4_0"),
        ValueError,
        r"weights has shape \(2, 48\), its last .* of 32, .* Q4_0",
    ),
    (lambda: llorch.quantize(normal(2, 96), "Q4_K"), ValueError, r"a multiple of 256, the values of a block of Q4_K"),
    (lambda: llorch.quantize(np.float32(1), "Q4_K"), ValueError, r"weights has shape \(\)"),
    (lambda: llorch.quantize(normal(2, 32), "F16"), ValueError, "format is 'F16', it must be one of Q8_0, Q4_0"),
    (lambda: llorch.quantize(normal(2, 32), "q4_2"), ValueError, "format is 'q4_2'"),
    (lambda: llorch.quantize(normal(2, 32), None), ValueError, "format is None"),
    (lambda: llorch.quantize(np.ones((2, 32)), "Q4_0"), TypeError, "weights is float64"),
    (lambda: llorch.quantize([1.0] * 32, "Q4_0"), TypeError, "weights must be an array"),
    (lambda: reference.quantize(normal(2, 48), "Q4_0"), ValueError, r"\(2, 48\)"),
    (lambda: reference.quantize(normal(2, 32), "F16"), ValueError, "format is 'F16'"),
    (lambda: reference.quantize(np.ones((2, 32)), "Q4_0"), TypeError, "weights is float64"),
]

test_refused = refusals(REFUSED)
