"""The values of a weight as GGUF files store it: a format says what each one is in float32, and nothing else.

A block of most formats has integers w, with a scale D and in some formats an addend M for each 16 or 32 of them, a
part of the block: its values are D * w + M. d and m (dmin) are the block's scale and minimum, float16, widened exactly.
D, M and D * w are exact in float32: 11 bits of d by at most 7 of a part's own scale and 5 of w, in Q8_0 by 7 of w. So
the sum is all that is rounded, once as by an fma. Bits are counted from the lowest.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llorch.reference._arithmetic import widen

Array = NDArray[Any]

# values and bytes of a block
SIZES = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q8_0": (32, 34),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "MXFP4": (32, 17),
}


def dequantize(data: Array, format: str, shape: Any) -> Array:
    """The float32 values, in the given shape, of data: bytes, uint8 of any shape, blocks of `format` one after another.

    format is a key of SIZES, in lower case too. A block's values lie along the last axis, whose length is a multiple of
    theirs. ValueError for another format, shape or length.
    """
    format = named(format, SIZES)
    if data.dtype != np.uint8:
        raise TypeError(f"data is {data.dtype} with shape {data.shape}, it must be uint8")
    values, length = SIZES[format]
    count = 1
    for n in shape:
        count *= n
    if len(shape) == 0 or shape[-1] % values:
        raise ValueError(f"shape is {shape}, its last length must be a multiple of {values}, the values of a block")
    if data.size != count // values * length:
        raise ValueError(f"data has {data.size} bytes, {format} of shape {shape} takes {count // values * length}")
    blocks = np.ascontiguousarray(data).reshape(count // values, length)
    with np.errstate(all="ignore"):
        return _values(blocks, format).reshape(shape)


def named(format: str, of: Iterable[str]) -> str:
    """One of these names of formats, which may be given in lower case. ValueError for another."""
    if not isinstance(format, str) or format.upper() not in of:
        raise ValueError(f"format is {format!r}, it must be one of {', '.join(of)}")
    return format.upper()


def _values(blocks: Array, format: str) -> Array:
    if format == "F32":
        return blocks.view(np.float32).astype(np.float32)  # no view of data
    if format == "F16":
        return _half(blocks)
    if format == "BF16":
        return (blocks.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    if format == "MXFP4":
        return _mxfp4(blocks)
    w, D, M = integers(blocks, format)
    y = D * w.astype(np.float32)
    return y if M is None else y + M


# what `integers` takes
INTEGERS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")


def integers(blocks: Array, format: str) -> tuple[Array, Array, Array | None]:
    """w, D and M of blocks, uint8 (blocks, bytes of a block), of a format in INTEGERS.

    w is int32 (blocks, parts, values of a part), each from -128 to 127. D and M are float32 (blocks, parts, 1); M is
    None in a format without.
    """
    M = None
    if format == "Q8_0":
        w, D = _signed(blocks[:, 2:]), _half(blocks[:, :2])
    elif format == "Q4_0":
        w, D = _nibbles(blocks[:, 2:]) - np.int32(8), _half(blocks[:, :2])
    elif format == "Q4_1":
        w, D, M = _nibbles(blocks[:, 4:]), _half(blocks[:, :2]), _half(blocks[:, 2:4])
    elif format == "Q5_0":
        w, D = _nibbles(blocks[:, 6:]) + _fifth(blocks[:, 2:6]) - np.int32(16), _half(blocks[:, :2])
    elif format == "Q5_1":
        w, D, M = _nibbles(blocks[:, 8:]) + _fifth(blocks[:, 4:8]), _half(blocks[:, :2]), _half(blocks[:, 2:4])
    elif format == "Q2_K":
        w, D, M = _q2_k(blocks)
    elif format == "Q3_K":
        w, D = _q3_k(blocks)
    elif format == "Q6_K":
        w, D = _q6_k(blocks)
    else:
        w, D, M = _q45_k(blocks)
    count, parts = D.shape
    w, D = w.reshape(count, parts, w.shape[1] // parts), D.reshape(count, parts, 1)
    return w, D, None if M is None else M.reshape(count, parts, 1)


def _half(pairs: Array) -> Array:
    """Two bytes a row as float16, widened: (blocks, 1)."""
    return widen(np.ascontiguousarray(pairs).view(np.float16))


def _signed(b: Array) -> Array:
    return np.ascontiguousarray(b).view(np.int8).astype(np.int32)


def _nibbles(b: Array) -> Array:
    """Values 0 .. 15 of a block: the lower halves of all its bytes, then the upper ones."""
    return _fields(b, 4, b.shape[1])


def _fifth(b: Array) -> Array:
    """16 where bit j of a block's 32 is set, for its value j."""
    q = np.zeros((b.shape[0], 32), np.int32)
    for j in range(32):
        q[:, j] = (b[:, j // 8] >> np.uint8(j % 8)) & np.uint8(1)
    return q * np.int32(16)


def _fields(b: Array, bits: int, run: int) -> Array:
    """Fields of `bits` bits: the lowest of `run` bytes, then the next of the same bytes, .., then of the next bytes."""
    count = 8 // bits
    q = np.zeros((b.shape[0], b.shape[1] // run, count, run), np.int32)
    grouped = b.reshape(b.shape[0], b.shape[1] // run, run)
    for j in range(count):
        q[:, :, j] = (grouped >> np.uint8(bits * j)) & np.uint8((1 << bits) - 1)
    return q.reshape(b.shape[0], b.shape[1] * count)


# ---- K-quants: 256 values, in parts of 16 or 32 with scales of their own -----------------------------------


def _scaled(half: Array, scales: Array) -> Array:
    """A block's float16 number times that of each part: (blocks, parts)."""
    return _half(half) * scales.astype(np.float32)


def _q2_k(blocks: Array) -> tuple[Array, Array, Array]:
    """16 bytes: scale (4 bits), minimum (4 bits) of each 16 values; 64 bytes: q; d; dmin."""
    packed = blocks[:, :16]
    D, minima = _scaled(blocks[:, 80:82], packed & np.uint8(15)), _scaled(blocks[:, 82:84], packed >> np.uint8(4))
    return _fields(blocks[:, 16:80], 2, 32), D, -minima


def _q3_k(blocks: Array) -> tuple[Array, Array]:
    """32 bytes: a bit that is 0 where 4 is taken off; 64 bytes: two bits; 12 bytes: scales less 32; d."""
    w = _fields(blocks[:, 32:96], 2, 32) + _fields(blocks[:, :32], 1, 32) * np.int32(4) - np.int32(4)
    packed = blocks[:, 96:108]
    sc = _fields(packed[:, :8], 4, 8) + _fields(packed[:, 8:], 2, 4) * np.int32(16)
    return w, _scaled(blocks[:, 108:110], sc - np.int32(32))


def _q45_k(blocks: Array) -> tuple[Array, Array, Array]:
    """d; dmin; 12 bytes: scale and minimum, 6 bits each, of 32 values; Q5_K: 32 bytes: fifth bits; 128 bytes: q."""
    packed, w = blocks[:, 4:16], _fields(blocks[:, -128:], 4, 32)
    if blocks.shape[1] == 176:
        w = w + _fields(blocks[:, 16:48], 1, 32) * np.int32(16)
    first, second, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    sc, mn = (np.zeros((blocks.shape[0], 8), np.uint8) for _ in range(2))
    sc[:, :4], mn[:, :4] = first & np.uint8(63), second & np.uint8(63)
    sc[:, 4:] = (rest & np.uint8(15)) | ((first >> np.uint8(6)) << np.uint8(4))
    mn[:, 4:] = (rest >> np.uint8(4)) | ((second >> np.uint8(6)) << np.uint8(4))
    return w, _scaled(blocks[:, :2], sc), -_scaled(blocks[:, 2:4], mn)


def _q6_k(blocks: Array) -> tuple[Array, Array]:
    """128 bytes: four bits; 64 bytes: two more; 16 bytes: signed scales of each 16 values; d. q is less 32."""
    q = _fields(blocks[:, :128], 4, 64) + _fields(blocks[:, 128:192], 2, 32) * np.int32(16)
    return q - np.int32(32), _scaled(blocks[:, 208:210], _signed(blocks[:, 192:208]))


# ---- MXFP4 --------------------------------------------------------------------------------------------

FLOAT4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # then the same negative, but zero has no sign


def _mxfp4(blocks: Array) -> Array:
    """A byte e, then 16 bytes of 4-bit floats: 2^(e - 127) times the float. No e is a NaN; too large is an infinity."""
    code = _nibbles(blocks[:, 1:]).astype(np.uint8)
    value = np.zeros(code.shape, np.float64)
    for i in range(1, 8):
        value = np.where(code == i, FLOAT4[i], np.where(code == i + 8, -FLOAT4[i], value))
    power = ((blocks[:, :1].astype(np.int64) - np.int64(127) + np.int64(1023)) << np.int64(52)).view(np.float64)
    return (power * value).astype(np.float32)
