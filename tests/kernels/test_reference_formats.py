"""The oracle of block-quantised formats against gguf-py's, bit for bit, and by hand; relu, gate, cast, add_rms_norm."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from helpers import SPECIALS, assert_same_bits, normal, rng, same_bits
from weight_blocks import SCALES

from llorch import reference
from llorch.reference._formats import SIZES

VECTORS = np.load(Path(__file__).parent.parent / "data" / "format_vectors.npz")

HOSTILE = np.float16([0, 1, 0.01, 2.0**-24, 2.0**-15, 65504, np.inf, np.nan])


def blocks(name, count, seed):
    """Random blocks, the first with every pair of hostile scales: subnormal, infinite, NaN, negative."""
    data = rng(seed).integers(0, 256, (count, SIZES[name][1]), dtype=np.uint8)
    scales = np.concatenate([HOSTILE, -HOSTILE])
    for place, offset in enumerate(SCALES.get(name, ())):
        values = np.repeat(scales, 16) if place == 0 else np.tile(scales, 16)
        data[:256, offset : offset + 2] = values.view(np.uint8).reshape(256, 2)
    return data


@pytest.mark.parametrize("name", SIZES)
def test_values_are_those_of_gguf(name):
    gguf = pytest.importorskip("gguf")
    values, length = SIZES[name]
    data = blocks(name, 2048, seed=1).reshape(64, 32 * length)
    with np.errstate(all="ignore"):
        wanted = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name])
    assert_same_bits(reference.dequantize(data.reshape(-1), name, (64, 32 * values)), wanted, name)


@pytest.mark.parametrize("name", SIZES)
def test_published_values(name):
    """What gguf-py gave, kept: see tests/data/make_vectors.py."""
    data, wanted = VECTORS[f"{name}/blocks"], VECTORS[f"{name}/values"]
    assert_same_bits(reference.dequantize(data, name, wanted.shape), wanted, name)


@pytest.mark.parametrize("name", SIZES)
def test_a_wrong_value_is_seen(name):
    """Negative control: any bit of a block that is turned shows in its values, and only in its own."""
    values, length = SIZES[name]
    data = blocks(name, 300, seed=2)[256:258].reshape(-1)
    if name not in ("F32", "F16", "BF16", "MXFP4"):  # an ordinary scale: beside an infinity a bit may not count
        for offset in SCALES[name]:
            for first in (0, length):
                data[first + offset : first + offset + 2] = np.float16([0.11]).view(np.uint8)
    elif name == "MXFP4":
        data[0] = data[length] = 120
    else:
        data = np.float32([1.5, 2.5] if name == "F32" else [0]).astype(np.float32).view(np.uint8)
        if name != "F32":
            dtype = np.float16 if name == "F16" else ml_dtypes.bfloat16
            data = np.array([1.5, 2.5], dtype).view(np.uint8).copy()
    before = reference.dequantize(data, name, (2 * values,))
    unseen = 0
    for at in range(8 * length):
        turned = data.copy()
        turned[length + at // 8] ^= 1 << at % 8
        after = reference.dequantize(turned, name, (2 * values,))
        assert_same_bits(after[:values], before[:values], f"{name}, bit {at}")
        unseen += same_bits(after, before)
    codes = [c for byte in data[length + 1 :] for c in (byte & 15, byte >> 4)]
    assert unseen == (sum(c in (0, 8) for c in codes) if name == "MXFP4" else 0), name  # a zero of MXFP4 has no sign


def test_by_hand():
    half = lambda *v: np.float16(v).view(np.uint8).tolist()  # noqa: E731
    q = list(range(16))
    low_high = [a | (15 - a) << 4 for a in q]
    for name, data, wanted in (
        ("Q8_0", half(0.5) + [b % 256 for b in range(-16, 16)], [0.5 * b for b in range(-16, 16)]),
        ("Q4_0", half(-2) + low_high, [-2 * (a - 8) for a in q] + [-2 * (7 - a) for a in q]),
        ("Q4_1", half(2, -3) + low_high, [2 * a - 3 for a in q] + [2 * (15 - a) - 3 for a in q]),
        ("Q5_0", [*half(1), 255, 255, 0, 0, *low_high], [a for a in q] + [15 - a - 16 for a in q]),
        ("Q5_1", [*half(1, 0.25), 0, 0, 1, 0, *low_high], [a + 0.25 for a in q] + [31.25, *(15.25 - a for a in q[1:])]),
        ("MXFP4", [128] + [a | 1 << 4 for a in q],
         [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12] + [1.0] * 16),
    ):  # fmt: skip
        got = reference.dequantize(np.uint8(data), name, (32,))
        assert got.tolist() == [float(v) for v in wanted], name


def test_ends_of_mxfp4():
    """The smallest exponent is exact, as a subnormal number; the largest passes into infinity; zero has no sign."""
    small = reference.dequantize(np.uint8([0] + [0x91] * 16), "MXFP4", (32,))
    assert_same_bits(small, np.float32([2.0**-128] * 16 + [-(2.0**-128)] * 16))
    large = reference.dequantize(np.uint8([255] + [0xA1] * 16), "MXFP4", (32,))
    assert_same_bits(large, np.float32([2.0**127] * 16 + [-np.inf] * 16))
    zero = reference.dequantize(np.uint8([255] + [0x80] * 16), "MXFP4", (32,))
    assert_same_bits(zero, np.zeros(32, np.float32))


@pytest.mark.parametrize(
    ("data", "name", "shape", "error", "message"),
    [
        (np.zeros(34, np.uint8), "IQ4_NL", (32,), ValueError, "format is 'IQ4_NL', it must be one of F32"),
        (np.zeros(34, np.uint8), "Q8_0", (33,), ValueError, r"shape is \(33,\).*multiple of 32"),
        (np.zeros(33, np.uint8), "Q8_0", (32,), ValueError, "data has 33 bytes, Q8_0 of shape .* takes 34"),
        (np.zeros(34, np.int8), "Q8_0", (32,), TypeError, "data is int8"),
        (np.zeros((1, 34), np.int8), "Q8_0", (32,), TypeError, r"data is int8 with shape \(1, 34\), it must be uint8"),
        (np.zeros(4, np.uint8), "F32", (), ValueError, r"shape is \(\)"),
    ],
)
def test_refuses(data, name, shape, error, message):
    with pytest.raises(error, match=message):
        reference.dequantize(data, name, shape)


def test_nothing():
    for name, (values, _) in SIZES.items():
        assert reference.dequantize(np.zeros(0, np.uint8), name, (0, values)).shape == (0, values)


# ---- relu, gate, cast, add_rms_norm ---------------------------------------------------------------------

TYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_relu(dtype):
    x = reference.cast(np.concatenate([SPECIALS, np.float32([-3, 5, 1e-3])]), dtype)
    wanted = np.array([v if v > 0 or np.isnan(v) else 0.0 for v in x.astype(np.float64)], np.float32).astype(dtype)
    assert_same_bits(reference.relu(x), wanted)


ONE = {
    "silu": reference.silu,
    "gelu": reference.gelu,
    "gelu_tanh": lambda x: reference.gelu(x, approximate="tanh"),
    "relu": reference.relu,
    "sigmoid": reference.sigmoid,
    "tanh": reference.tanh,
}


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", ONE)
def test_gate_is_one_product_rounded_once(name, dtype):
    g, u = normal(40, 33, scale=3).astype(dtype), normal(40, 33, seed=1).astype(dtype)
    wide = ONE[name](g.astype(np.float32)) * u.astype(np.float32)
    assert_same_bits(reference.gate(g, u, activation=name), wide.astype(dtype), name)
    out = np.zeros_like(g)
    assert reference.gate(g, u, activation=name, out=out) is out
    assert_same_bits(out, wide.astype(dtype), name)
    if dtype != np.float32 and name != "relu":  # negative control: the activation rounded first is something else
        assert not same_bits(wide.astype(dtype), ONE[name](g) * u)


def test_gate_refuses():
    g = normal(3, 4)
    with pytest.raises(ValueError, match=r"activation must be one of .*, got 'swiglu'"):
        reference.gate(g, g, activation="swiglu")
    with pytest.raises(ValueError, match=r"u has shape \(3, 3\)"):
        reference.gate(g, g[:, :3], activation="silu")
    with pytest.raises(TypeError, match="u is float16"):
        reference.gate(g, g.astype(np.float16), activation="silu")


def test_cast():
    x = np.concatenate([SPECIALS, normal(1000, scale=100), np.float32([65519, 65520, 1 + 2.0**-11, 1 + 2.0**-8])])
    for dtype in TYPES:
        with np.errstate(all="ignore"):
            wanted = x.astype(dtype)
        assert_same_bits(reference.cast(x, dtype), wanted, str(dtype))
        assert_same_bits(reference.cast(wanted, np.float32), wanted.astype(np.float32), str(dtype))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_add_rms_norm_is_its_two_steps(dtype):
    x, residual, w = (normal(9, 77, seed=i).astype(dtype) for i in range(3))
    with np.errstate(all="ignore"):
        h = (x.astype(np.float32) + residual.astype(np.float32)).astype(dtype)
    y, total = reference.add_rms_norm(x, residual, w[0], eps=1e-6)
    assert_same_bits(total, h)
    assert_same_bits(y, reference.rms_norm(h, w[0], eps=1e-6))
    out, sum_out = np.zeros_like(x), np.zeros_like(x)
    got = reference.add_rms_norm(x, residual, w[0], eps=1e-6, out=out, sum_out=sum_out)
    assert got[0] is out and got[1] is sum_out
    assert_same_bits(out, y)
    assert_same_bits(sum_out, h)
