"""Attention under a mask, as calls of `llorch.attention`.

A masked key doesn't exist for its query: the query's keys are those that it sees, numbered from 0 in their order. So
a sequence has the same bits alone and padded, on either side. A mask is taken apart once, as all layers have the same
one: into pieces of successive queries that see the same keys, or each one key more than the one before. What a query's
own row of the mask says decides alone how it is computed.
"""

import math
import threading
from typing import Any, NamedTuple

import numpy as np
import torch

import llorch
from llorch.torch.arrays import array

Array = np.ndarray[Any, Any]


class Piece(NamedTuple):
    """Queries that one call takes."""

    first: int
    end: int
    keys: slice | Array | None  # which of them the last query sees; None where the mask's numbers are to be added
    causal: bool  # each query sees one key more than the one before
    even: bool = False  # all scores are masked alike: each key has the same weight


# Sequences from one to another, their head, or None for all that have the same pieces, and the pieces
Plan = list[tuple[int, int, int | None, list[Piece]]]


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    scale: float | None,
) -> torch.Tensor:
    """Attention by `llorch.attention`; arguments as of torch.nn.functional.scaled_dot_product_attention.

    A masked key doesn't exist for its query: its keys are numbered from the first that it sees.
    """
    if q.ndim == 4 and mask is None and q.shape[0] == k.shape[0] and k.shape == v.shape and 0 not in k.shape:
        Tq, Tk = q.shape[2], k.shape[2]
        if q.shape[3] == k.shape[3] and (not is_causal or Tq == Tk) and q.numel():  # what most calls are
            y = torch.empty((q.shape[0], Tq, q.shape[1], q.shape[3]), dtype=q.dtype).transpose(1, 2)
            llorch.attention(array(q), array(k), array(v), scale=scale, causal=is_causal, out=array(y))
            return y
    if q.ndim < 4:
        missing = (None,) * (4 - q.ndim)
        given = mask if mask is None or mask.ndim <= 2 else mask.reshape((1,) * (4 - mask.ndim) + tuple(mask.shape))
        return attention(q[missing], k[missing], v[missing], given, is_causal, scale)[(0,) * (4 - q.ndim)]
    if q.ndim > 4 or q.shape[0] != k.shape[0] or k.shape[:-2] != v.shape[:-2]:
        return _leading(q, k, v, mask, is_causal, scale)
    B, H, Tq, D = q.shape
    Tk, width = k.shape[-2], v.shape[-1]
    y = torch.empty((B, Tq, H, width), dtype=q.dtype).transpose(1, 2)  # as what follows wants it
    if Tk == 0 or y.numel() == 0:
        return y.zero_()
    if width != D:  # products with zeros, and columns that nobody looks at
        scale = 1 / D**0.5 if scale is None else scale
        q, k, v = (torch.nn.functional.pad(t, (0, max(D, width) - t.shape[-1])) for t in (q, k, v))
        room = torch.empty((B, H, Tq, max(D, width)), dtype=q.dtype)
    else:
        room = y
    queries, keys, values, out = array(q), array(k), array(v), array(room)
    if mask is None:
        plan: Plan = [(0, B, None, _unmasked(Tq, Tk, is_causal))]
        added = None
    else:
        wanted = (B, H, Tq, Tk)
        if mask.ndim > 4 or any(n not in (1, m) for n, m in zip(mask.shape[::-1], wanted[::-1], strict=False)):
            raise ValueError(f"attn_mask has shape {tuple(mask.shape)}, it must broadcast to {wanted}")
        added, plan = _planned(mask, B, Tq, Tk)
    for first, end, head, pieces in plan:
        part = slice(first, end)
        heads = of_keys = slice(None)
        numbers: Any = added if added is None or len(added) == 1 else added[part]
        if head is not None:
            group = head // (H // keys.shape[1])
            heads, of_keys = slice(head, head + 1), slice(group, group + 1)
            numbers = numbers[:, heads]
        _in_pieces(
            queries[part, heads], keys[part, of_keys], values[part, of_keys], numbers, pieces, scale, out[part, heads]
        )
    if room is not y:
        y.copy_(room[..., :width])
    return y


def _leading(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, is_causal: bool, scale: float | None
) -> torch.Tensor:
    """Of tensors whose leading axes aren't one, the same for all."""
    leading = torch.broadcast_shapes(q.shape[:-3], k.shape[:-3], v.shape[:-3])
    count = math.prod(leading)
    q, k, v = (t.expand(*leading, *t.shape[-3:]).reshape(count, *t.shape[-3:]) for t in (q, k, v))
    if k.shape[1] != v.shape[1]:
        heads = max(k.shape[1], v.shape[1])
        k, v = (t.expand(-1, heads, -1, -1) for t in (k, v))
    if mask is not None and mask.ndim > 3:
        mask = mask.expand(*leading, *mask.shape[-3:]).reshape(count, *mask.shape[-3:])
    y = attention(q, k, v, mask, is_causal, scale)
    return y.reshape(*leading, *y.shape[1:])


def _unmasked(Tq: int, Tk: int, is_causal: bool) -> list[Piece]:
    """PyTorch's causal mask: query i sees the keys 0 .. i."""
    if not is_causal:
        return [Piece(0, Tq, slice(0, Tk), False)]
    stairs = min(Tq, Tk)
    pieces = [Piece(0, stairs, slice(0, stairs), True)]
    return pieces if Tq <= Tk else [*pieces, Piece(Tk, Tq, slice(0, Tk), False)]


def _in_pieces(q: Array, k: Array, v: Array, added: Any, pieces: list[Piece], scale: float | None, out: Array) -> None:
    end = 0
    for piece in pieces:
        out[:, :, end : piece.first] = 0  # queries that see nothing
        end = piece.end
        queries = q[:, :, piece.first : end]
        if piece.keys is None:
            rows = slice(None) if added.shape[2] == 1 else slice(piece.first, end)
            for b in range(len(q)):
                _add(queries[b], k[b], v[b], added[b % len(added), :, rows], scale, out[b, :, piece.first : end])
            continue
        if piece.even:
            queries = np.zeros(queries.shape, queries.dtype)
        llorch.attention(
            queries,
            k[:, :, piece.keys],
            v[:, :, piece.keys],
            scale=scale,
            causal=piece.causal,
            out=out[:, :, piece.first : end],
        )
    out[:, :, end:] = 0


def _add(q: Array, k: Array, v: Array, mask: Array, scale: float | None, out: Array) -> None:
    """Of one sequence, where the mask (1 or H, 1 or Tq, Tk) is any numbers, added to the scores: every query of every
    head is a head of its own, with its row of the mask as the bias of each distance."""
    (H, Tq, D), Tk = q.shape, k.shape[1]
    bias = np.zeros((H, Tq, 2 * Tk - 1), np.float32)
    bias[..., :Tk] = mask  # the one query is at Tk - 1: the distance of key t is t - (Tk - 1)
    rows = llorch.attention(
        np.ascontiguousarray(q).reshape(H * Tq, 1, D),
        k,
        v,
        scale=scale,
        causal=False,
        position_bias=bias.reshape(H * Tq, -1),
        out=np.empty((H * Tq, 1, D), q.dtype),
    )
    out[...] = rows.reshape(H, Tq, D)


# ---- masks --------------------------------------------------------------------------------------------------

_last = threading.local()  # the mask of the last call, and what came of it


def _planned(mask: torch.Tensor, B: int, Tq: int, Tk: int) -> tuple[Array, Plan]:
    """The mask as float32 (1 or B, 1 or H, 1 or Tq, Tk) to add, and its plan."""
    shape = (B, Tq, Tk)
    known = getattr(_last, "known", None)
    if known is not None and known[0] == shape and known[1].dtype == mask.dtype and torch.equal(known[1], mask):
        found: tuple[Array, Plan] = known[2]
        return found
    found = _plan(mask, *shape)
    _last.known = shape, mask.clone(), found
    return found


def _plan(mask: torch.Tensor, B: int, Tq: int, Tk: int) -> tuple[Array, Plan]:
    if mask.ndim < 4:
        mask = mask.reshape((1,) * (4 - mask.ndim) + tuple(mask.shape))
    if mask.shape[-1] != Tk:
        mask = mask.expand(*mask.shape[:-1], Tk)
    lowest = -np.inf
    if mask.dtype is torch.bool:
        added = np.where(array(mask), np.float32(0), np.float32(-np.inf))
    else:
        lowest = torch.finfo(mask.dtype).min
        added = array(mask).astype(np.float32)
    for axis in (1, 2, 0):  # what is the same for all heads, queries or sequences
        if added.shape[axis] > 1 and np.array_equal(
            np.broadcast_to(added.take([0], axis), added.shape), added, equal_nan=False
        ):
            added = added.take([0], axis)
    plans: Plan = []
    for b in range(len(added)):
        last = b + 1 if len(added) > 1 else B
        of_heads = [_pieces(rows, Tq, lowest) for rows in added[b]]
        if any(not _same(of_heads[0], pieces) for pieces in of_heads[1:]):
            plans += [(b, last, head, pieces) for head, pieces in enumerate(of_heads)]
        elif plans and plans[-1][2] is None and _same(plans[-1][3], of_heads[0]):
            plans[-1] = (plans[-1][0], last, None, of_heads[0])
        else:
            plans.append((b, last, None, of_heads[0]))
    return added, plans


def _same(a: list[Piece], b: list[Piece]) -> bool:
    def comparable(pieces: list[Piece]) -> Any:
        return [p._replace(keys=p.keys.tolist()) if isinstance(p.keys, np.ndarray) else p for p in pieces]

    return bool(comparable(a) == comparable(b))


def _pieces(added: Array, Tq: int, lowest: float) -> list[Piece]:
    """Of a mask (1 or Tq, Tk). lowest: the number that hides, beside -infinity."""
    plain = ((added == 0) | (added == -np.inf) | (added == lowest)).all(1)
    if len(added) == 1 and not plain[0]:
        return [Piece(0, Tq, None, False)]
    seen = (added == 0) & plain[:, None]
    hidden = plain & ~seen.any(1)
    seen |= (added > -np.inf) & hidden[:, None]  # a query that sees nothing has what is hidden least: all alike
    if len(seen) == 1:
        keys = _places(seen[0])
        return [] if keys is None else [Piece(0, Tq, keys, False, bool(hidden[0]))]
    counts = seen.sum(1)
    some = counts > 0
    columns = None
    first, last = seen.argmax(1), seen.shape[1] - 1 - seen[:, ::-1].argmax(1)
    if (some & (last - first + 1 != counts)).any():
        columns = np.flatnonzero(seen[~hidden].any(0))  # keys that nobody sees don't count
        rest = seen[:, columns]
        if columns.size:
            first, last = rest.argmax(1), rest.shape[1] - 1 - rest[:, ::-1].argmax(1)
    own = hidden | (some & (last - first + 1 != counts))  # queries whose keys have holes: equal ones in one call
    pieces: list[Piece] = []
    i = 0
    while i < Tq:
        j = i + 1
        if not plain[i]:
            while j < Tq and not plain[j]:
                j += 1
            pieces.append(Piece(i, j, None, False))
            i = j
            continue
        if not some[i]:
            i = j
            continue
        if own[i]:
            while j < Tq and hidden[j] == hidden[i] and np.array_equal(seen[j], seen[i]):
                j += 1
            pieces.append(Piece(i, j, _places(seen[i]), False, bool(hidden[i])))
            i = j
            continue
        step = None
        while j < Tq and some[j] and not own[j] and first[j] == first[i]:
            grown = int(counts[j] - counts[j - 1])
            if grown not in (0, 1) or (step is not None and grown != step):
                break
            step = grown
            j += 1
        begin, end = int(first[i]), int(first[i] + counts[j - 1])
        pieces.append(Piece(i, j, slice(begin, end) if columns is None else columns[begin:end], step == 1))
        i = j
    return pieces


def _places(seen: Array) -> slice | Array | None:
    """Where a row is true: a range if it is one, None if it is nowhere."""
    places = np.flatnonzero(seen)
    if not places.size:
        return None
    begin, end = int(places[0]), int(places[-1]) + 1
    return slice(begin, end) if end - begin == places.size else places
