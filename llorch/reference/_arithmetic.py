"""The arithmetic under the oracle: fma, sum64, and the way between 16 and 32 bits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

FINEST = 2.0**-126  # below it float32's numbers are equally spaced
TOGETHER = 1 << 15  # values of chains that are looked at together: they stay in a processor's cache
WORTH_STEPS = 8  # fewer at a time aren't faster than one by one


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
    s = np.atleast_1d(p + c.astype(np.float64))
    doubtful = _doubtful(s)
    if doubtful is not None:
        error, bits = _error(s, p, c, doubtful), s[doubtful].view(np.int64)
        step = np.where((error > 0) == (bits > 0), np.int64(1), np.int64(-1))
        s[doubtful] = np.where((error != 0) & ((bits & 1) == 0), bits + step, bits).view(np.float64)
    y: Array = s.astype(np.float32)
    return y if c.ndim or p.ndim else y[0]


def _doubtful(s: Array) -> tuple[Array, ...] | None:
    """Places of sums in float64 that may not be rounded to float32, unless they are exact; None: there are none."""
    last = s.view(np.int64) << 35  # 29 bits; halfway they are a 1 and zeros, which is the least integer now
    halfway = np.int64(-(2**63))
    size = abs(s)
    if not s.size or (last.min() > halfway and size.min() >= FINEST):  # where one is NaN it looks more closely
        return None
    return np.nonzero((last == halfway) | (size < FINEST))


def _error(s: Array, p: Array, c: Array, at: tuple[Array, ...]) -> Array:
    """What s = p + c, rounded to float64, is off at these places: exact, by two-sum. p and c broadcast to s."""
    s, p, c = (x[at] for x in np.broadcast_arrays(s, p, c))
    z, zz = c.astype(np.float64), s - p
    error: Array = (p - (s - zz)) + (z - zz)
    return error


def chain(left: Array, right: Array, seen: Sequence[slice] | None = None) -> Array:
    """p = fma(left[k], right[k], p) for one k after the other, from +0.0, in float32.

    left, right : float64 (k, ...), of values of float32, of shapes that broadcast to (k, *p.shape). seen : for every k
    where p is changed, a slice of its second axis, which is left's; None: everywhere. NumPy's warnings are the caller's
    to switch off.

    Of short chains side by side many steps are looked at together: sums are rounded to float64 and then to float32, and
    where that may have been wrong (see `fused`), which it hardly ever was, they are computed once more.
    """
    steps, *shape = np.broadcast_shapes(left.shape, right.shape)
    p = np.zeros(shape, np.float32)
    together = max(TOGETHER // max(p.size, 1), 1)
    for first in range(0, steps, together):
        part = slice(first, first + together)
        quick = _chain_together(left[part], right[part], p, seen and seen[part]) if together >= WORTH_STEPS else None
        p = _chain_one_by_one(left[part], right[part], p, seen and seen[part]) if quick is None else quick
    return p


def _chain_one_by_one(left: Array, right: Array, p: Array, seen: Sequence[slice] | None) -> Array:
    for k in range(len(left)):
        if seen is None:
            p = fused(left[k] * right[k], p)
        else:
            p[:, seen[k]] = fused(left[k][:, seen[k]] * right[k], p[:, seen[k]])
    return p


def _chain_together(left: Array, right: Array, p: Array, seen: Sequence[slice] | None) -> Array | None:
    """None where rounding twice may have been wrong."""
    products = left * right
    if seen is not None:
        sees = np.zeros(products.shape[:1] + products.shape[2:3], bool)
        for k, i in enumerate(seen):
            sees[k, i] = True
        products = np.where(sees[:, None, :, None], products, -0.0)  # p + -0.0 is p, also where that is a zero
    sums, values = np.zeros(products.shape), np.zeros((len(products) + 1, *p.shape), np.float32)
    values[0] = p
    for k, product in enumerate(products):
        sums[k] = product + values[k]
        values[k + 1] = sums[k]
    doubtful = _doubtful(sums)
    if doubtful is not None and _error(sums, products, values[:-1], doubtful).any():
        return None
    p = values[-1]
    return p


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
