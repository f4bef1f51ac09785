"""LayerNorm and RMSNorm, each alone and with a residual sum before it, as specified."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llorch.reference._arithmetic import fma, narrow, sum64, widen

Array = NDArray[Any]

SMALLEST = 2.0**-100  # below this, var + eps is computed again from float64 elements


def layer_norm(
    x: Array, weight: Array | None = None, bias: Array | None = None, *, eps: float = 1e-5, out: Array | None = None
) -> Array:
    """LayerNorm over the last axis of x (..., n); weight and bias (n,). See `llorch.layer_norm`."""
    v = _rows(x)
    n = np.float32(v.shape[1])
    e = np.float64(np.float32(eps))
    with np.errstate(all="ignore"):
        # float32 elements; a row's handful of scalars in float64
        mean = sum64(v) / n
        d = v - mean
        D = sum64(d)
        Q = sum64(d, square=True)
        c = D.astype(np.float64) / np.float64(n)  # what rounding left in mean
        var = Q.astype(np.float64) / np.float64(n) - c * c
        var = np.where(var > 0, var, np.float64(0)) + e
        r = np.float64(1) / np.sqrt(var)
        s = -(c * r)
        t = fma(d, r.astype(np.float32), s.astype(np.float32))

        # range rule
        redo = ~(np.isfinite(mean) & np.isfinite(D) & np.isfinite(Q) & (var >= SMALLEST))[:, 0]
        t[redo] = _wide_layer_norm(v[redo], e)
    return _finish(t, weight, bias, x, out)


def _wide_layer_norm(v: Array, e: np.float64) -> Array:
    """t of rows v (rows, n) with float64 elements, no fma; NaN for a row that isn't finite."""
    w = v.astype(np.float64)
    n = np.float64(v.shape[1])
    mean = sum64(w) / n
    d = w - mean
    D = sum64(d)
    Q = sum64(d, square=True)
    c = D / n
    var = Q / n - c * c
    var = np.where(var > 0, var, np.float64(0))
    r = np.float64(1) / np.sqrt(var + e)
    t = ((d - c) * r).astype(np.float32)
    return np.where(np.isfinite(v).all(axis=1, keepdims=True), t, np.float32(np.nan))


def rms_norm(x: Array, weight: Array | None = None, *, eps: float = 1e-5, out: Array | None = None) -> Array:
    """RMSNorm over the last axis of x (..., n); weight (n,). See `llorch.rms_norm`."""
    v = _rows(x)
    n = np.float64(v.shape[1])
    e = np.float64(np.float32(eps))
    with np.errstate(all="ignore"):
        Q = sum64(v, square=True)
        var = Q.astype(np.float64) / n + e
        r = np.float64(1) / np.sqrt(var)
        t = v * r.astype(np.float32)

        redo = ~(np.isfinite(Q) & (var >= SMALLEST))[:, 0]
        w = v[redo].astype(np.float64)
        r = np.float64(1) / np.sqrt(sum64(w, square=True) / n + e)
        wide = (w * r).astype(np.float32)
        t[redo] = np.where(np.isfinite(w).all(axis=1, keepdims=True), wide, np.float32(np.nan))
    return _finish(t, weight, None, x, out)


def add_layer_norm(
    x: Array,
    residual: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    eps: float = 1e-5,
    out: Array | None = None,
    sum_out: Array | None = None,
) -> tuple[Array, Array]:
    """(layer_norm(h), h) with h = x + residual, added in float32 and rounded to their type."""
    with np.errstate(all="ignore"):
        h = narrow(widen(x) + widen(residual, "residual"), x.dtype)
    y = layer_norm(h, weight, bias, eps=eps, out=out)
    if sum_out is not None:
        sum_out[...] = h
        h = sum_out
    return y, h


def add_rms_norm(
    x: Array,
    residual: Array,
    weight: Array | None = None,
    *,
    eps: float = 1e-5,
    out: Array | None = None,
    sum_out: Array | None = None,
) -> tuple[Array, Array]:
    """(rms_norm(h), h) with h = x + residual, added in float32 and rounded to their type."""
    with np.errstate(all="ignore"):
        h = narrow(widen(x) + widen(residual, "residual"), x.dtype)
    y = rms_norm(h, weight, eps=eps, out=out)
    if sum_out is not None:
        sum_out[...] = h
        h = sum_out
    return y, h


def _rows(x: Array) -> Array:
    """x (..., n) as float32 (rows, n)."""
    if x.ndim == 0:
        raise ValueError("x has no axis to normalise over: its shape is (), it must be (..., n)")
    n = x.shape[-1]
    return widen(x).reshape(x.size // n if n else 0, n)


def _finish(t: Array, weight: Array | None, bias: Array | None, x: Array, out: Array | None) -> Array:
    """y = fma(t, weight, bias), or what is left of it, rounded to the type of x."""
    with np.errstate(all="ignore"):
        if weight is not None and bias is not None:
            w, b = np.broadcast_arrays(widen(weight, "weight"), widen(bias, "bias"))
            t = fma(t, w, b)
        elif weight is not None:
            t = t * widen(weight, "weight")
        elif bias is not None:
            t = t + widen(bias, "bias")
    y = narrow(t, x.dtype).reshape(x.shape)
    if out is None:
        return y
    out[...] = y
    return out
