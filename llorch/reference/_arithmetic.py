"""The arithmetic under the oracle: fma, sum64, and the way between 16 and 32 bits."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

FINEST = 2.0**-126  # below it float32's numbers are equally spaced


def fma(a: Array, b: Array, c: Array) -> Array:
    """a * b + c in float32, rounded once to nearest even. a and b may be of shapes that broadcast to that of c."""
    with np.errstate(all="ignore"):
        return fused(a.astype(np.float64) * b.astype(np.float64), c)


def fused(p: Array, c: Array) -> Array:
    """p + c in float32, rounded once to nearest even: p is a product of two float32, which is exact in float64.

    To round to float64 first and then to float32 is wrong only where the first ends halfway between two float32: by
    its last 29 bits, or anywhere below FINEST. There the sum is rounded to odd: where it isn't exact, the neighbour
    whose last bit is 1 is taken, and with 29 bits to spare the second rounding can't meet a false tie (Boldo,
    Melquiond, "Emulation of a FMA and correctly rounded sums", 2008). NumPy's warnings are the caller's to switch off.
    """
    z = c.astype(np.float64)
    s = p + z
    bits = s.view(np.int64)
    if (((bits & 0x1FFFFFFF) == 0x10000000) | ((s > -FINEST) & (s < FINEST))).any():
        zz = s - p
        error = (p - (s - zz)) + (z - zz)  # two-sum: s + error is exact; NaN where s isn't finite
        inexact = ((error < 0) | (error > 0)) & ((bits & 1) == 0)
        step = np.where((error > 0) == (s > 0), np.int64(1), np.int64(-1))
        s = np.where(inexact, bits + step, bits).view(np.float64)
    return s.astype(np.float32)


def sum64(v: Array, *, square: bool = False) -> Array:
    """Sum of each row of v (rows, n) in 64 strided lanes and a halving tree, in v's own type; shape (rows, 1).

    square: the sum of v * v, by fma in float32, by a rounded product in float64.
    """
    rows, n = v.shape
    p = np.zeros((rows, 64), v.dtype)  # +0.0: a partial sum is never -0.0
    with np.errstate(all="ignore"):
        for i in range(0, n, 64):
            block = v[:, i : i + 64]
            lanes = p[:, : block.shape[1]]
            if not square:
                lanes[:] = lanes + block
            elif v.dtype == np.float32:
                lanes[:] = fma(block, block, lanes)
            else:
                lanes[:] = lanes + block * block
        for h in (32, 16, 8, 4, 2, 1):
            p = p[:, :h] + p[:, h : 2 * h]
    return p


def widen(x: Array, name: str = "x") -> Array:
    """float32, float16 or bfloat16 as float32, exactly. TypeError for any other type."""
    if x.dtype == np.float32:
        return x
    if x.dtype == np.float16:
        return x.astype(np.float32)
    if x.dtype.name == "bfloat16":  # the upper half of a float32
        return (x.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    raise TypeError(f"{name} is {x.dtype}, it must be float32, float16 or bfloat16")


def narrow(y: Array, dtype: np.dtype[Any]) -> Array:
    """float32 rounded once, to nearest even, to dtype (float32, float16 or bfloat16)."""
    if dtype == np.float32:
        return y
    if dtype == np.float16:
        with np.errstate(all="ignore"):
            return y.astype(np.float16)
    bits = np.ascontiguousarray(y).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(y != y, np.uint32(0x7FC0), rounded).astype(np.uint16).view(dtype)
