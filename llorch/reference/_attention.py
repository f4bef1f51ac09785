"""Softmax, attention, embedding and argmax, as specified."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llorch.reference._arithmetic import chain, narrow, sum64, widen
from llorch.reference._linear import BLOCK
from llorch.reference._unary import exp, tanh

Array = NDArray[Any]


def softmax(x: Array, *, out: Array | None = None) -> Array:
    """Softmax over the last axis of x (..., n). See `llorch.softmax`."""
    if x.ndim == 0:
        raise ValueError("x has no axis to take the softmax over: its shape is (), it must be (..., n)")
    n = x.shape[-1]
    v = widen(x).reshape(x.size // n if n else 0, n)
    e = _weights(v)
    with np.errstate(all="ignore"):
        y = narrow(e / sum64(e), x.dtype).reshape(x.shape)
    if out is None:
        return y
    out[...] = y
    return out


def _weights(s: Array) -> Array:
    """exp(s - max) of each row of s (rows, n). Which value the maximum has beside a NaN is of no account."""
    if s.shape[1] == 0:
        return s
    with np.errstate(all="ignore"):
        m = s[:, :1]
        for t in range(1, s.shape[1]):
            column = s[:, t : t + 1]
            m = np.where(column > m, column, m)
        return exp(s - m)


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    position_bias: Array | None = None,
    out: Array | None = None,
) -> Array:
    """Attention of q (..., H, Tq, D) to k, v (..., H_kv, Tk, D), H a multiple of H_kv. See `llorch.attention`."""
    if q.ndim < 2 or k.ndim < 2:
        raise ValueError(f"q has shape {q.shape} and k {k.shape}, they must be (..., H, Tq, D) and (..., H_kv, Tk, D)")
    if k.dtype != q.dtype or v.dtype != q.dtype:
        raise TypeError(f"k is {k.dtype} and v is {v.dtype}, they must have the type of q, {q.dtype}")
    if k.shape != v.shape or k.ndim != q.ndim or k.shape[:-3] != q.shape[:-3] or k.shape[-1] != q.shape[-1]:
        raise ValueError(f"q has shape {q.shape}, k {k.shape} and v {v.shape}: k and v must be (..., H_kv, Tk, D)")
    H, H_kv = (x.shape[-3] if x.ndim > 2 else 1 for x in (q, k))
    if H and (H_kv == 0 or H % H_kv):
        raise ValueError(f"q has {H} heads, k and v have {H_kv}: the first must be a multiple of the second")
    (Tq, D), Tk = q.shape[-2:], k.shape[-2]
    shape = () if position_bias is None else position_bias.shape
    if position_bias is not None and (len(shape) != 2 or shape[0] != H or shape[1] % 2 == 0):
        raise ValueError(f"position_bias has shape {shape}, it must be ({H}, 2 R + 1)")
    if Tk < Tq and (causal or window is not None or position_bias is not None):
        raise ValueError(f"k has {Tk} positions, fewer than the {Tq} queries: query i is at position Tk - Tq + i")
    if Tk == 0 and Tq:
        raise ValueError("k has no positions")
    if window is not None and window < 1:
        raise ValueError(f"window is {window}, it must be at least 1: a query sees its own position")
    if softcap is not None and not (np.isfinite(np.float32(softcap)) and np.float32(softcap) > 0):
        raise ValueError(f"softcap is {softcap}, it must be a finite number above 0")
    if q.size == 0:
        y = np.zeros(q.shape, q.dtype)
    else:
        with np.errstate(all="ignore"):
            factor = np.float32(np.float64(1) / np.sqrt(np.float64(D)) if scale is None else scale)
            cap = None if softcap is None else np.float32(softcap)
        # every head beside the keys and values it reads
        rows = [i // H * H_kv + i % H // (H // H_kv) for i in range(q.size // (Tq * D))]
        a = widen(q).reshape(len(rows), Tq, D)
        b, c = (widen(x).reshape(x.size // (Tk * D), Tk, D)[rows] for x in (k, v))
        bias = None if position_bias is None else _biases(widen(position_bias, "position_bias"), Tq, Tk)
        if bias is not None:
            bias = bias[[i % H for i in range(len(rows))]]
        y = narrow(_heads(a, b, c, factor, cap, bias, _seen(Tq, Tk, causal, window)), q.dtype).reshape(q.shape)
    if out is None:
        return y
    out[...] = y
    return out


def _seen(Tq: int, Tk: int, causal: bool, window: int | None) -> list[slice]:
    """For every position t the queries that see it. Query i is at p = Tk - Tq + i, where p - window < t <= p, or, not
    causal, abs(t - p) <= window."""
    if not causal and window is None:
        return [slice(0, Tq) for t in range(Tk)]
    before = Tk - Tq
    behind = 0 if causal else window or 0
    last = [Tk if window is None else t + window if causal else t + window + 1 for t in range(Tk)]
    return [slice(max(t - behind - before, 0), max(min(last[t] - before, Tq), 0)) for t in range(Tk)]


def _biases(table: Array, Tq: int, Tk: int) -> Array:
    """(heads, Tq, Tk): of the key at t for query i at p = Tk - Tq + i, table (heads, 2 R + 1) at the distance t - p."""
    R = table.shape[1] // 2
    places = [[R + min(max(t - p, -R), R) for t in range(Tk)] for p in range(Tk - Tq, Tk)]
    biases: Array = table[:, np.asarray(places, np.int64).reshape(Tq, Tk)]
    return biases


def _heads(
    q: Array,
    k: Array,
    v: Array,
    factor: np.float32,
    cap: np.float32 | None,
    bias: Array | None,
    seen: list[slice],
) -> Array:
    """Attention of q (heads, Tq, D) to k and v (heads, Tk, D), bias (heads, Tq, Tk), all float32.

    A position is looked at only by the queries that see it, seen[t]: for the others it doesn't exist.
    """
    (heads, Tq, D), Tk = q.shape, k.shape[1]
    with np.errstate(all="ignore"):
        # s_t = dot128(q, k_t) * scale
        s = np.zeros((heads, Tq, Tk), np.float32)
        for first in range(0, D, BLOCK):
            left, right = (x[:, :, first : first + BLOCK].transpose(2, 0, 1).astype(np.float64) for x in (q, k))
            s = s + chain(left[:, :, :, None], right[:, :, None, :])
        s = s * factor
        if cap is not None:
            s = cap * tanh(s / cap)
        if bias is not None:
            s = s + bias

        # m = max s_t, e_t = exp(s_t - m)
        m = np.zeros((heads, Tq), np.float32) - np.float32(np.inf)
        for t, i in zip(range(Tk), seen, strict=True):
            m[:, i] = np.where(s[:, i, t] > m[:, i], s[:, i, t], m[:, i])
        e = exp(s - m[:, :, None])

        # Z = sum64(e): lane t mod 64
        lanes = np.zeros((heads, Tq, 64), np.float32)
        for t, i in zip(range(Tk), seen, strict=True):
            lanes[:, i, t % 64] = lanes[:, i, t % 64] + e[:, i, t]
        Z = sum64(lanes.reshape(heads * Tq, 64)).reshape(heads, Tq, 1)

        # o_d = dot128(e, v_d), a block of positions at a time
        o = np.zeros((heads, Tq, D), np.float32)
        left, right = e.transpose(2, 0, 1).astype(np.float64), v.transpose(1, 0, 2).astype(np.float64)
        for first in range(0, Tk, BLOCK):
            block = slice(first, first + BLOCK)
            o = o + chain(left[block, :, :, None], right[block, :, None, :], seen[block])
        return o / Z


def embedding(table: Array, ids: Any) -> Array:
    """Rows of table (V, E) by number, as float32 (*ids.shape, E). See `llorch.embedding`."""
    if table.ndim != 2:
        raise ValueError(f"table has shape {table.shape}, it must be (V, E)")
    places = np.asarray(ids)
    if ((places < 0) | (places >= table.shape[0])).any():
        raise IndexError(f"ids must be in [0, {table.shape[0]})")
    rows: Array = widen(table, "table")[places]
    return rows


def argmax(logits: Array) -> Any:
    """The lowest place of the largest value along the last axis. See `llorch.argmax`."""
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits has shape {logits.shape}, it must be (..., n) with n >= 1")
    v = widen(logits, "logits")
    if (v != v).any():
        raise ValueError("logits has a NaN: there is no largest value")
    if v.ndim == 1:  # the same for one row, without an array for every comparison
        largest = 0
        for j in range(1, len(v)):
            if v[j] > v[largest]:
                largest = j
        return largest
    most = v[..., 0]
    place = np.zeros(most.shape, np.int64)
    for j in range(1, v.shape[-1]):
        more = v[..., j] > most
        most = np.where(more, v[..., j], most)
        place = np.where(more, np.int64(j), place)
    return place
