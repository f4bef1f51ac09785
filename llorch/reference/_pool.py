"""What makes a sentence's embedding of its positions, as specified."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llorch.reference._arithmetic import narrow, sum64, widen

Array = NDArray[Any]

SMALLEST = np.float32(1e-12)  # a row that is shorter is divided by this


def mean_pool(x: Array, lengths: Sequence[int], *, skip: int = 0, out: Array | None = None) -> Array:
    """The mean of each sequence's rows, those in x (T, n) one below the other. See `llorch.mean_pool`.

    The lane of sum64 is the row's place in what is pooled, modulo 64.
    """
    v = widen(x)
    y = np.zeros((len(lengths), v.shape[1]), np.float32)
    start = 0
    for i, length in enumerate(lengths):
        rows = v[start + skip : start + length]
        with np.errstate(all="ignore"):
            y[i] = sum64(rows.T)[:, 0] / np.float32(len(rows))
        start += length
    y = narrow(y, x.dtype)
    if out is None:
        return y
    out[...] = y
    return out


def normalize(x: Array, *, out: Array | None = None) -> Array:
    """Each row of x (..., n) divided by its length. See `llorch.normalize`."""
    n = x.shape[-1]
    v = widen(x).reshape(x.size // n if n else 0, n)
    with np.errstate(all="ignore"):
        r = np.sqrt(sum64(v, square=True))
        t = v / np.where(r < SMALLEST, SMALLEST, r)  # a NaN stays
    y = narrow(t, x.dtype).reshape(x.shape)
    if out is None:
        return y
    out[...] = y
    return out
