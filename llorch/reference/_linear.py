"""The inner product of every matrix product, and linear, as specified."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llorch.reference._arithmetic import chain, narrow, widen
from llorch.reference._gate import ACTIVATIONS

Array = NDArray[Any]

BLOCK = 128


def dot128(a: Array, b: Array, init: Array) -> Array:
    """init + a @ b in float32: a (M, K), b (K, N), init (M, N); result (M, N).

    A block of 128 consecutive k is one chain of fma from +0.0; the blocks are added to init in order.
    """
    y = init
    with np.errstate(all="ignore"):
        for first in range(0, a.shape[1], BLOCK):
            left, right = (part.astype(np.float64) for part in (a.T[first : first + BLOCK], b[first : first + BLOCK]))
            y = y + chain(left[:, :, None], right[:, None, :])
    return y


def linear(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    activation: str | None = None,
    residual: Array | None = None,
    out: Array | None = None,
) -> Array:
    """activation(x (..., K) @ weight (K, N) + bias (N,)) + residual (..., N), in the type of x. See `llorch.linear`.

    ValueError names the argument whose shape doesn't fit; TypeError one that isn't float32, float16 or bfloat16.
    """
    if weight.ndim != 2:
        raise ValueError(f"weight has shape {weight.shape}, it must be (K, N)")
    if x.ndim == 0 or x.shape[-1] != weight.shape[0]:
        raise ValueError(f"x has shape {x.shape}, its last axis must be the {weight.shape[0]} rows of weight")
    K, N = weight.shape
    init = begin(x, N, bias, activation, residual)
    if out is not None and out.shape != (*x.shape[:-1], N):
        raise ValueError(f"out has shape {out.shape}, it must be {(*x.shape[:-1], N)}")
    y = dot128(widen(x).reshape(init.shape[0], K), widen(weight, "weight"), init)
    y = finish(y, x, activation, residual)
    if out is None:
        return y
    out[...] = y
    return out


def begin(x: Array, N: int, bias: Array | None, activation: str | None, residual: Array | None) -> Array:
    """Where the sums of a product begin, (rows of x, N): the bias. The errors of what comes besides x and weight."""
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"activation must be None or one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if bias is not None and bias.shape != (N,):
        raise ValueError(f"bias has shape {bias.shape}, it must be {(N,)}, one value for each column of weight")
    if residual is not None and residual.dtype != x.dtype:
        raise TypeError(f"residual is {residual.dtype}, it must have the type of x, {x.dtype}")
    if residual is not None and residual.shape != (*x.shape[:-1], N):
        raise ValueError(f"residual has shape {residual.shape}, it must be {(*x.shape[:-1], N)}")
    rows = 1
    for length in x.shape[:-1]:
        rows *= length
    init = np.zeros((rows, N), np.float32)  # +0.0 without bias
    if bias is not None:
        init[:] = widen(bias, "bias")
    return init


def finish(y: Array, x: Array, activation: str | None, residual: Array | None) -> Array:
    """activation(y) + residual, (..., N), in the type of x; y is (rows of x, N).

    In float32 to the end: a 16-bit result is rounded once.
    """
    if activation is not None:
        function = ACTIVATIONS[activation]
        y = function(y)
    if residual is not None:
        with np.errstate(all="ignore"):
            y = y + widen(residual, "residual").reshape(y.shape)
    return narrow(y, x.dtype).reshape(*x.shape[:-1], y.shape[1])
