"""linear on a block-quantised weight in the arithmetic of 16-bit integers, as specified."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llorch.reference._arithmetic import fma, widen
from llorch.reference._formats import INTEGERS, SIZES, integers, named
from llorch.reference._linear import BLOCK, begin, finish

Array = NDArray[Any]

LARGEST = np.float32(32767)
SMALLEST = np.float32(2.0**-96)  # a block whose values are all nearer to zero counts as zeros: LARGEST / a stays finite


def round_to_integers(x: Array) -> tuple[Array, Array]:
    """x (rows, K) float32 as q * s: integers q (rows, K), int64 of at most 16 bits, and s, float32 (rows, blocks).

    A block is 128 consecutive k, the last may be shorter. One with a NaN or an infinity has the s NaN.
    """
    rows, K = x.shape
    q = np.zeros((rows, K), np.int64)
    s = np.zeros((rows, (K + BLOCK - 1) // BLOCK), np.float32)
    with np.errstate(all="ignore"):
        for i in range(s.shape[1]):
            block = x[:, i * BLOCK : (i + 1) * BLOCK]
            a = np.zeros((rows, 1), np.float32)
            finite = np.isfinite(a)
            for k in range(block.shape[1]):
                value = abs(block[:, k : k + 1])
                a = np.where(value > a, value, a)
                finite = finite & np.isfinite(value)
            r = LARGEST / a
            q[:, i * BLOCK : (i + 1) * BLOCK] = np.where(finite & (a >= SMALLEST), nearest(block * r), np.float32(0))
            scale = np.where(a >= SMALLEST, a / LARGEST, np.float32(0))
            s[:, i : i + 1] = np.where(finite, scale, np.float32(np.nan))
    return q, s


def nearest(x: Array) -> Array:
    """The integer nearest to x, ties to even, in float32; abs(x) < 2^22."""
    shift = np.float32(12582912)  # 2^23 + 2^22: from 2^23 to 2^24 the numbers of float32 are the integers
    return x + shift - shift


def linear_int16(
    x: Array,
    blocks: Array,
    format: str,
    N: int,
    bias: Array | None = None,
    *,
    activation: str | None = None,
    residual: Array | None = None,
) -> Array:
    """activation(x (..., K) @ weight + bias (N,)) + residual (..., N) by 16-bit integers, in the type of x.

    blocks are the weight as GGUF stores it: bytes, uint8 of any shape, N rows of K values in blocks of `format`, one of
    INTEGERS. ValueError names the argument whose shape or length doesn't fit, or another format; TypeError one of
    another type. See `llorch.PackedLinear`, compute="int16".
    """
    try:
        format = named(format, INTEGERS)
    except ValueError as error:
        raise ValueError(f"{error}: a block of integers") from None
    if blocks.dtype != np.uint8:
        raise TypeError(f"blocks is {blocks.dtype} with shape {blocks.shape}, it must be uint8")
    values, length = SIZES[format]
    if x.ndim == 0 or x.shape[-1] % values:
        raise ValueError(f"x has shape {x.shape}, its last axis must be a multiple of {values}, the values of a block")
    K = x.shape[-1]
    if blocks.size != N * (K // values) * length:
        raise ValueError(f"blocks has {blocks.size} bytes, {N} rows of {K} values take {N * (K // values) * length}")
    y = begin(x, N, bias, activation, residual)
    q, s = round_to_integers(widen(x).reshape(y.shape[0], K))
    with np.errstate(all="ignore"):
        w, D, M = integers(np.ascontiguousarray(blocks).reshape(N * (K // values), length), format)
        part = w.shape[2]
        w, D = w.reshape(N, K).astype(np.int64), D.reshape(N, K // part)
        for first in range(0, K, BLOCK):
            p = np.zeros(y.shape, np.float32)
            for start in range(first, min(first + BLOCK, K), part):
                S = np.zeros(y.shape, np.int64)
                T = np.zeros((y.shape[0], 1), np.int64)
                for k in range(start, start + part):
                    S = S + q[:, k : k + 1] * w[:, k]
                    T = T + q[:, k : k + 1]
                p = fma(S.astype(np.float32), D[:, start // part], p)
                if M is not None:
                    p = fma(T.astype(np.float32), M.reshape(N, K // part)[:, start // part], p)
            y = fma(p, s[:, first // BLOCK : first // BLOCK + 1], y)
    return finish(y, x, activation, residual)
