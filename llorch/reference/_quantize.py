"""float32 values as blocks of integers with scales: the bytes that `dequantize` takes.

Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 and MXFP4 are rounded as ggml's own reference does. For a K-quant each sub-block's scale
and minimum are those of least squares for some roundings of its values, of which the best is kept; both are then
rounded to multiples of the block's d and dmin, and of the neighbours of these the best is kept. Every sum is over a
sub-block's values, from the first to the last, in float32.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llorch.reference._arithmetic import narrow, widen
from llorch.reference._formats import SIZES, named

Array = NDArray[Any]

NEGLIGIBLE = np.float32(2.0**-40)  # a range, or a magnitude, below this is none: float16 begins at 2^-24
TOO_LARGE = np.float32(2.0**40)  # for a K-quant, whose largest value is 2^28
BOUNDLESS = np.float32(2.0**120)  # more than any sum of squares
HALF = np.dtype(np.float16)


def quantize(weights: Array, format: str) -> Array:
    """The blocks of weights (..., K), float32, float16 or bfloat16: uint8 (..., bytes of a row).

    format is a key of SIZES whose blocks have more than one value, in lower case too; K is a multiple of that.
    ValueError for another format or shape, and for weights that are infinite, NaN, or too large for its scales.
    """
    blocked = [name for name in SIZES if SIZES[name][0] > 1]
    format = named(format, blocked)
    values, length = SIZES[format]
    if weights.ndim == 0 or weights.shape[-1] % values:
        raise ValueError(f"weights has shape {weights.shape}, its last length must be a multiple of {values}")
    x = np.ascontiguousarray(widen(weights, "weights")).reshape(weights.size // values, values)
    if not np.isfinite(x).all():
        raise ValueError("weights has values that are infinite or NaN")
    with np.errstate(all="ignore"):
        blocks = _blocks(x, format)
    return blocks.reshape(*weights.shape[:-1], weights.shape[-1] // values * length)


def _blocks(x: Array, format: str) -> Array:
    if format == "Q8_0":
        return _q8_0(x)
    if format in ("Q4_0", "Q5_0"):
        return _around_zero(x, 8 if format == "Q4_0" else 16)
    if format in ("Q4_1", "Q5_1"):
        return _above_minimum(x, 15 if format == "Q4_1" else 31)
    if format == "Q2_K":
        return _q2_k(x)
    if format == "Q3_K":
        return _q3_k(x)
    if format in ("Q4_K", "Q5_K"):
        return _q45_k(x, 15 if format == "Q4_K" else 31)
    if format == "Q6_K":
        return _q6_k(x)
    return _mxfp4(x)


def _zeros(count: int) -> Array:
    return np.zeros(count, np.float32)


def _magnitude(x: Array) -> Array:
    return np.where(x < 0, -x, x + np.float32(0))  # of -0 too


def _largest(x: Array) -> Array:
    """Of each row the first value of the largest magnitude: (rows,)."""
    most = _zeros(x.shape[0])
    for j in range(x.shape[1]):
        most = np.where(_magnitude(x[:, j]) > _magnitude(most), x[:, j], most)
    return np.where(most == 0, x[:, 0], most)  # the sign of a zero


def _scale(d: Array) -> tuple[Array, Array]:
    """(blocks,) as float16, two bytes a row, and widened again. ValueError where one is too large."""
    halves = narrow(np.ascontiguousarray(d), HALF)
    if not np.isfinite(halves).all():
        raise ValueError("weights has values that are too large for float16 scales")
    return halves.view(np.uint8).reshape(d.size, 2), widen(halves)


def _reciprocal(d: Array) -> Array:
    """1 / d, or 0 where that is infinite: (blocks, 1)."""
    r = np.float32(1) / d
    return np.where(np.isfinite(r), r, np.float32(0)).astype(np.float32).reshape(d.size, 1)


def _joined(count: int, length: int, *parts: Array) -> Array:
    """Parts (blocks, bytes) side by side: (blocks, length)."""
    blocks, at = np.zeros((count, length), np.uint8), 0
    for part in parts:
        blocks[:, at : at + part.shape[1]] = part
        at += part.shape[1]
    return blocks


# ---- blocks of 32 values ------------------------------------------------------------------------------


def _q8_0(x: Array) -> Array:
    d = _magnitude(_largest(x)) / np.float32(127)
    t = x * _reciprocal(d)
    whole = t.astype(np.int64)
    rest = t - whole.astype(np.float32)  # exact; ties go away from zero
    q = whole + (rest >= np.float32(0.5)) - (rest <= np.float32(-0.5))
    return _joined(len(x), 34, _scale(d)[0], q.astype(np.int8).view(np.uint8))


def _nibbles(q: Array) -> Array:
    """The lower halves of 16 bytes are values 0 .. 15, the upper ones 16 .. 31."""
    return (q[:, :16] & np.uint8(15)) | ((q[:, 16:] & np.uint8(15)) << np.uint8(4))


def _fifth_bits(q: Array) -> Array:
    """Bit 4 of each value, bit j of 32 that of value j; none for values below 16."""
    return _fields(q >> np.uint8(4), 1, 1)


def _rounded(t: Array, levels: int) -> Array:
    q = t.astype(np.int64)  # towards zero
    return np.where(q > levels, np.int64(levels), q).astype(np.uint8)


def _around_zero(x: Array, half: int) -> Array:
    d = _largest(x) / np.float32(-half)
    q = _rounded(x * _reciprocal(d) + np.float32(half + 0.5), 2 * half - 1)
    parts = (_nibbles(q),) if half == 8 else (_fifth_bits(q), _nibbles(q))
    return _joined(len(x), 18 if half == 8 else 22, _scale(d)[0], *parts)


def _above_minimum(x: Array, levels: int) -> Array:
    low = high = x[:, 0]
    for j in range(1, 32):
        low, high = np.where(x[:, j] < low, x[:, j], low), np.where(x[:, j] > high, x[:, j], high)
    d = (high - low) / np.float32(levels)
    scales = _scale(d)[0], _scale(low)[0]  # before q, which they bound
    q = _rounded((x - low.reshape(len(x), 1)) * _reciprocal(d) + np.float32(0.5), levels)
    parts = (_nibbles(q),) if levels == 15 else (_fifth_bits(q), _nibbles(q))
    return _joined(len(x), 20 if levels == 15 else 24, *scales, *parts)


def _mxfp4(x: Array) -> Array:
    """A power of two 2^(e - 127), then 4-bit floats: as many as the midpoints between them that |x| is above."""
    exponent = np.ascontiguousarray(_magnitude(_largest(x))).view(np.uint32) >> np.uint32(23)
    e = np.where(exponent > 2, exponent - np.uint32(2), np.uint32(0))
    power = np.where(e > 1, (e - np.uint32(1)) << np.uint32(23), np.uint32(0x00200000) << (e & np.uint32(1)))
    unit = power.astype(np.uint32).view(np.float32).reshape(len(x), 1)  # 2^(e - 128)
    code = np.zeros(x.shape, np.uint8)
    for midpoint in (0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0):
        code = code + (_magnitude(x) > unit * np.float32(midpoint)).astype(np.uint8)
    code = np.where((code > 0) & (x < 0), code + np.uint8(8), code)
    return _joined(len(x), 17, e.astype(np.uint8).reshape(len(x), 1), _nibbles(code))


# ---- K-quants: 256 values, in sub-blocks of 16 or 32 with scales of their own -------------------------


def _nearest(t: Array, low: float, high: float) -> Array:
    """The nearest integer, ties to even, in [low, high]."""
    t = np.where(t < low, np.float32(low), np.where(t > high, np.float32(high), t))
    shift = np.float32(3 * 2.0**22)
    return (t + shift) - shift


def _divide(a: Array, b: Array) -> Array:
    """a / b; 0 for b <= 0."""
    return np.where(b > 0, a / np.where(b > 0, b, np.float32(1)), np.float32(0))


def _fit_above(x: Array, levels: int) -> tuple[Array, Array]:
    """scale and minimum of sub-blocks (count, values): x is about scale q - minimum, q in [0, levels], minimum >= 0.

    q = nearest((x - low) r + o), r = (levels + c) / range, o = t - c / 2: for steps wider and narrower than the range
    asks for, and moved, the scale and base of v = x - low = scale q + base by least squares. gain is by how much the
    sum of squares of v falls.
    """
    count, J = x.shape[0], np.float32(x.shape[1])
    low = _zeros(count)
    high = x[:, 0]
    for j in range(x.shape[1]):
        low, high = np.where(x[:, j] < low, x[:, j], low), np.where(x[:, j] > high, x[:, j], high)
    span, below = high - low, np.float32(0) - low
    v = x - low.reshape(count, 1)
    sum_v, best, scale = (_zeros(count) for _ in range(3))
    minimum = below
    for j in range(x.shape[1]):
        sum_v = sum_v + v[:, j]
    counts = span >= NEGLIGIBLE
    for i in range(25):
        c = np.float32(i // 5 - 3) * np.float32(0.5)
        o = np.float32(i % 5 - 2) * np.float32(0.25) - c * np.float32(0.5)
        r = (np.float32(levels) + c) / np.where(counts, span, np.float32(1))
        q1, q2, qv = (_zeros(count) for _ in range(3))
        for j in range(x.shape[1]):
            q = _nearest(v[:, j] * r + o, 0, levels)
            q1, q2, qv = q1 + q, q2 + q * q, qv + q * v[:, j]
        determinant = J * q2 - q1 * q1  # exact; 0 where all q are one
        base = _divide(q2 * sum_v - q1 * qv, determinant)
        base = np.where(base > below, below, base)  # the minimum isn't negative
        rest = qv - base * q1
        d = _divide(rest, q2)
        gain = base * (np.float32(2) * sum_v - J * base) + d * (np.float32(2) * rest - d * q2)
        better = counts & (d > 0) & (gain > best)
        scale, minimum = np.where(better, d, scale), np.where(better, below - base, minimum)
        best = np.where(better, gain, best)
    return scale, minimum


def _fit_around(x: Array, half: int) -> Array:
    """scale of sub-blocks (count, values): x is about scale q, q in [-half, half - 1]."""
    most = _largest(x)
    counts = _magnitude(most) >= NEGLIGIBLE
    best, scale = (_zeros(x.shape[0]) for _ in range(2))
    for i in range(9):
        c = np.float32(i - 4) * np.float32(0.25)
        r = np.where(counts, -(np.float32(half) + c) / np.where(counts, most, np.float32(1)), np.float32(0))
        q2, qx = (_zeros(x.shape[0]) for _ in range(2))
        for j in range(x.shape[1]):
            q = _nearest(x[:, j] * r, -half, half - 1)
            q2, qx = q2 + q * q, qx + q * x[:, j]
        d = _divide(qx, q2)
        gain = d * qx
        scale, best = np.where(gain > best, d, scale), np.where(gain > best, gain, best)
    return scale


def _round(x: Array, scale: Array, minimum: Array, low: int, high: int) -> tuple[Array, Array]:
    """q of sub-blocks (count, values), and the sum of squares of what x = scale q - minimum loses."""
    r = np.where(scale != 0, np.float32(1) / np.where(scale != 0, scale, np.float32(1)), np.float32(0))
    q = np.zeros(x.shape, np.float32)
    lost = _zeros(x.shape[0])
    for j in range(x.shape[1]):
        q[:, j] = _nearest((x[:, j] + minimum) * r, low, high)
        away = x[:, j] - (scale * q[:, j] - minimum)
        lost = lost + away * away
    return q, lost


def _in_units(a: Array, b: Array, low: int, high: int) -> Array:
    return np.where(b != 0, _nearest(a / np.where(b != 0, b, np.float32(1)), low, high), np.float32(0))


def _sought(x: Array, subs: int, low: int, high: int, least: int, most: int) -> tuple[Array, ...]:
    """Of blocks (count, 256): d and dmin as bytes; sc in [least, most] and mn, a column a sub-block; q in [low, high],
    less low."""
    if not (_magnitude(x) < TOO_LARGE).all():
        raise ValueError("weights has values that are too large for float16 scales")
    count = len(x)
    parts = x.reshape(count * subs, 256 // subs)
    above = low == 0
    scale, minimum = _fit_above(parts, high) if above else (_fit_around(parts, -low), _zeros(len(parts)))

    def of_blocks(scales: Array, units: int) -> tuple[Array, Array]:
        halves, wide = _scale(_largest(scales.reshape(count, subs)) / np.float32(units))
        return halves, (np.zeros((count, subs), np.float32) + wide.reshape(count, 1)).reshape(count * subs)

    d_bytes, d = of_blocks(scale, most if above else least)
    dmin_bytes, dmin = of_blocks(minimum, most)
    sc, mn = _in_units(scale, d, least, most), _in_units(minimum, dmin, 0, most)
    best, best_sc, best_mn = _zeros(len(parts)) + BOUNDLESS, sc, mn
    for to_sc in (0, -1, 1):
        for to_mn in (0, -1, 1) if above else (0,):
            try_sc, try_mn = _nearest(sc + np.float32(to_sc), least, most), _nearest(mn + np.float32(to_mn), 0, most)
            lost = _round(parts, d * try_sc, dmin * try_mn, low, high)[1]
            better = lost < best
            best_sc, best_mn = np.where(better, try_sc, best_sc), np.where(better, try_mn, best_mn)
            best = np.where(better, lost, best)
    q = _round(parts, d * best_sc, dmin * best_mn, low, high)[0]
    sc, mn, q = (a.astype(np.int64).reshape(count, a.size // count if count else 0) for a in (best_sc, best_mn, q))
    return d_bytes, dmin_bytes, sc, mn.astype(np.uint8), (q - np.int64(low)).astype(np.uint8)


def _fields(q: Array, bits: int, run: int) -> Array:
    """The lowest bits of q, packed: of `run` bytes the lowest fields, then the next of the same bytes, .., as
    `dequantize` takes them apart."""
    each = 8 // bits
    grouped = q.reshape(q.shape[0], q.shape[1] // (each * run), each, run) & np.uint8((1 << bits) - 1)
    packed = np.zeros((q.shape[0], q.shape[1] // (each * run), run), np.uint8)
    for j in range(each):
        packed = packed | (grouped[:, :, j] << np.uint8(bits * j))
    return packed.reshape(q.shape[0], q.shape[1] // each)


def _q2_k(x: Array) -> Array:
    d, dmin, sc, mn, q = _sought(x, 16, 0, 3, 0, 15)
    return _joined(len(x), 84, sc.astype(np.uint8) | (mn << np.uint8(4)), _fields(q, 2, 32), d, dmin)


def _q3_k(x: Array) -> Array:
    d, _, sc, _, q = _sought(x, 16, -4, 3, -32, 31)
    u = (sc + np.int64(32)).astype(np.uint8)
    scales = _fields(u, 4, 8), _fields(u >> np.uint8(4), 2, 4)
    return _joined(len(x), 110, _fields(q >> np.uint8(2), 1, 32), _fields(q, 2, 32), *scales, d)


def _q45_k(x: Array, levels: int) -> Array:
    d, dmin, signed, mn, q = _sought(x, 8, 0, levels, 0, 63)
    sc = signed.astype(np.uint8)
    packed = (
        sc[:, :4] | ((sc[:, 4:] >> np.uint8(4)) << np.uint8(6)),
        mn[:, :4] | ((mn[:, 4:] >> np.uint8(4)) << np.uint8(6)),
        (sc[:, 4:] & np.uint8(15)) | ((mn[:, 4:] & np.uint8(15)) << np.uint8(4)),
    )
    fifth = () if levels == 15 else (_fields(q >> np.uint8(4), 1, 32),)
    return _joined(len(x), 144 if levels == 15 else 176, d, dmin, *packed, *fifth, _fields(q, 4, 32))


def _q6_k(x: Array) -> Array:
    d, _, sc, _, q = _sought(x, 16, -32, 31, -128, 127)
    scales = sc.astype(np.int8).view(np.uint8)
    return _joined(len(x), 210, _fields(q, 4, 64), _fields(q >> np.uint8(4), 2, 32), scales, d)
