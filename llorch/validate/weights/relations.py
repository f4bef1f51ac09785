"""What was done to a tensor on its way from one file to the other.

Nothing is guessed from the look of the numbers: each candidate is applied to the one tensor, and named only where every
value of the other then agrees, within what its format may do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llorch.validate.ladder.distance import Array
from llorch.validate.weights.files import Part
from llorch.validate.weights.values import Fit, Map, Values, fit

MOST_ROWS = 1 << 16  # whose order is looked for
SKETCH = 48  # random projections of a row, by which another's is found
SOLVED = 1.05  # bounds: a factor that is solved for from rounded values is rounded itself
FEW = 8  # rows from which on a factor for each column says something


@dataclass(frozen=True)
class Relation:
    """verdict : "permuted", "transposed", "fused", "scaled", "shifted", "part" or "repeated". says : in words. fit : of
    what it makes of the one tensor, beside the other. found : its numbers: a factor, an order."""

    verdict: str
    says: str
    fit: Fit
    found: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Move:
    """Values in other places. key : for machines, "pairs", "halves", "transposed"."""

    key: str
    verdict: str
    says: str
    apply: Map


# ---- ways to lay a layer out --------------------------------------------------------------------------------------


def _by_head(f: Map, part: Part, width: int) -> Map:
    """f of (heads, width, ...), the first values of each head of a part's rows."""

    def apply(x: Array) -> Array:
        y = x.copy()
        rows = y[part.first : part.first + part.count].reshape(part.heads, part.count // part.heads, -1)
        rows[:, :width] = f(rows[:, :width])
        y[part.first : part.first + part.count] = rows.reshape(part.count, *x.shape[1:])
        return y

    return apply


def to_pairs(x: Array) -> Array:
    """(heads, width, ...) from halves to pairs side by side."""
    return x.reshape(x.shape[0], 2, x.shape[1] // 2, -1).swapaxes(1, 2).reshape(x.shape)


def to_halves(x: Array) -> Array:
    return x.reshape(x.shape[0], x.shape[1] // 2, 2, -1).swapaxes(1, 2).reshape(x.shape)


def _chained(maps: Sequence[Map]) -> Map:
    def apply(x: Array) -> Array:
        for one in maps:
            x = one(x)
        return x

    return apply


def rotations(parts: Sequence[Part]) -> Iterator[Move]:
    """Rotated pairs, head by head: in halves to side by side, and back."""
    turned = [part for part in parts if part.rotated]
    if not turned:
        return
    names = " and ".join(part.name.rpartition(".")[2].removesuffix("_norm") for part in turned)
    for whole in (True, False):
        widths = [part.count // part.heads if whole else part.rotated for part in turned]
        if not whole and widths == [part.count // part.heads for part in turned]:
            continue
        if any(width % 2 for width in widths):
            continue
        for key, f in (("pairs", to_pairs), ("halves", to_halves)):
            maps = [_by_head(f, part, width) for part, width in zip(turned, widths, strict=True)]
            yield Move(key, "permuted", names, _chained(maps))


def orders(parts: Sequence[Part]) -> Iterator[Move]:
    """The parts of a fused layer in another order, or by heads."""
    if len(parts) < 2:
        return
    short = [part.name.rpartition(".")[2] for part in parts]
    for order in itertools.permutations(range(len(parts))):
        if order == tuple(range(len(parts))):
            continue

        def apply(x: Array, order: tuple[int, ...] = order) -> Array:
            return np.concatenate([x[parts[i].first : parts[i].first + parts[i].count] for i in order])

        yield Move("order", "permuted", f"in the order {', '.join(short[i] for i in order)}", apply)
    if len(parts) == 3 and all(part.heads for part in parts) and parts[1].heads == parts[2].heads:
        G, share = parts[1].heads, parts[0].heads // parts[1].heads
        D = parts[1].count // G
        counts = [share, 1, 1]

        def together(x: Array) -> Array:
            cut = [
                x[part.first : part.first + part.count].reshape(G, n * D, -1)
                for part, n in zip(parts, counts, strict=True)
            ]
            return np.concatenate(cut, axis=1).reshape(x.shape)

        def apart(x: Array) -> Array:
            rows = x.reshape(G, (share + 2) * D, -1)
            cut = np.split(rows, [share * D, (share + 1) * D], axis=1)
            return np.concatenate([one.reshape(-1, *x.shape[1:]) for one in cut])

        yield Move("by_head", "permuted", "head by head, each with its query, key and value side by side", together)
        yield Move("by_part", "permuted", "first all queries, where A has them head by head", apart)
    elif len(parts) == 2 and parts[0].count == parts[1].count:
        n = parts[0].count
        yield Move(
            "interleaved", "permuted", "row by row of the two in turns",
            lambda x: x.reshape(2, n, -1).swapaxes(0, 1).reshape(x.shape),
        )  # fmt: skip
        yield Move(
            "apart", "permuted", "one after the other, where A has them row by row in turns",
            lambda x: x.reshape(n, 2, -1).swapaxes(0, 1).reshape(x.shape),
        )  # fmt: skip


def repeats(parts: Sequence[Part], rows: int) -> Iterator[Move]:
    """Heads of keys or values once for each query of their group."""
    if len(parts) != 1 or not parts[0].heads or rows <= parts[0].count or rows % parts[0].count:
        return
    heads, times = parts[0].heads, rows // parts[0].count

    def one_by_one(x: Array) -> Array:
        return np.repeat(x.reshape(heads, -1, *x.shape[1:]), times, axis=0).reshape(rows, *x.shape[1:])

    yield Move("repeated", "repeated", f"each head {times} times, one behind the other", one_by_one)
    if heads > 1:
        yield Move(
            "tiled", "repeated", f"all heads {times} times over", lambda x: np.tile(x, (times, *[1] * (x.ndim - 1)))
        )


# ---- what explains b by a -----------------------------------------------------------------------------------------


def explain(a: Values, b: Values, parts: Sequence[Part]) -> Relation | None:
    """What makes b of a, the first of these that does; None for nothing known."""
    if not (a.finite and b.finite) or not a.x.size or not b.x.size:
        return None
    return _moved(a, b, parts) or _changed(a, b) or _whole_and_part(a, b)


def _try(a: Values, b: Values, move: Move) -> Relation | None:
    try:
        moved = a.moved(move.apply)
    except ValueError:  # a shape that it isn't for
        return None
    if moved.x.shape != b.x.shape:
        return None
    if not fit(moved, b, early=True).holds:
        return None
    return Relation(move.verdict, move.says, fit(moved, b), {"move": move.key})


def _moved(a: Values, b: Values, parts: Sequence[Part]) -> Relation | None:
    layouts = [*rotations(parts), *orders(parts)]
    straight = [*layouts, *repeats(parts, b.x.shape[0])]
    for move in straight:
        if found := _try(a, b, move):
            return found
    for outer in rotations(parts):  # a fused layer by heads, and its pairs side by side
        for inner in orders(parts):
            both = Move(f"{outer.key} {inner.key}", "permuted", "", _chained([outer.apply, inner.apply]))
            if found := _try(a, b, both):
                says = f"{inner.says}; rotated pairs of {outer.says} {outer.key}"
                return Relation("permuted", says, found.fit, {"move": both.key})
    if a.x.ndim == 2:
        turn = Move("transposed", "transposed", "rows and columns exchanged", lambda x: np.ascontiguousarray(x.T))
        if found := _try(a, b, turn):
            return found
        for move in straight:
            both = Move(f"{move.key} transposed", "transposed", "", _chained([move.apply, turn.apply]))
            if found := _try(a, b, both):
                says = f"rows and columns exchanged, and {_pairs(move)}"
                return Relation("transposed", says, found.fit, {"move": both.key})
        if len(parts) > 1 and all(part.count == a.x.shape[1] for part in parts):  # squares

            def each(x: Array) -> Array:
                return np.concatenate([x[part.first : part.first + part.count].T for part in parts])

            if found := _try(a, b, Move("each transposed", "transposed", "each part with rows and columns", each)):
                return found
    return _ordered(a, b, parts)


def _pairs(move: Move) -> str:
    return f"rotated pairs of {move.says} {move.key}" if move.key in ("pairs", "halves") else move.says


def _ordered(a: Values, b: Values, parts: Sequence[Part]) -> Relation | None:
    """Rows, or columns, or values of a vector, in an order that is found by matching them."""
    if a.x.shape != b.x.shape or not 2 <= max(a.x.shape) <= MOST_ROWS:
        return None
    if a.x.ndim == 1:
        if np.unique(a.x).size < a.x.size / 2 or a.x.size < FEW:
            return None  # so many values alike that any order of others might do
        sorted_ = np.empty(a.x.size, int)
        sorted_[np.argsort(b.x, kind="stable")] = np.argsort(a.x, kind="stable")
        if a.grid is not None and b.grid is not None and not fit(a, b).wrong > a.x.size / 2:
            return None
        return _in_order(a, b, sorted_, "values", parts, lambda x: x[sorted_])
    if a.x.ndim != 2:
        return None
    order = _match(a.x, b.x)
    if order is not None and (found := _in_order(a, b, order, "rows", parts, lambda x: x[order])):
        return found
    order = _match(a.x.T, b.x.T)
    if order is not None:
        return _in_order(a, b, order, "columns", parts, lambda x: np.ascontiguousarray(x[:, order]))
    return None


def _in_order(a: Values, b: Values, order: Array, what: str, parts: Sequence[Part], f: Map) -> Relation | None:
    found = _try(a, b, Move("order", "permuted", "", f))
    if found is None:
        return None
    widths = {part.count // part.heads for part in parts if part.heads and part.heads > 1}
    says = describe(order, what, sorted(widths))
    return Relation("permuted", says, found.fit, {"move": what, "order": [int(i) for i in order]})


def _match(a: Array, b: Array) -> Array | None:
    """For each row of b the one of a that is like it; None where they can't be paired one to one."""
    with np.errstate(over="ignore", invalid="ignore"):
        mix = np.random.default_rng(0).standard_normal((a.shape[1], min(SKETCH, a.shape[1]))).astype(np.float32)
        one, other = a @ mix, b @ mix
        total = float(np.sum(one.astype(np.float64) ** 2)), float(np.sum(other.astype(np.float64) ** 2))
    if not all(map(math.isfinite, total)) or not 0.5 < (total[0] + 1e-300) / (total[1] + 1e-300) < 2:
        return None
    squares = np.sum(one * one, axis=1)
    order = np.empty(len(b), int)
    step = max(1, (1 << 22) // len(a))
    for first in range(0, len(b), step):
        near = squares - 2 * (other[first : first + step] @ one.T)
        order[first : first + step] = np.argmin(near, axis=1)
    return order if np.unique(order).size == len(order) else None


def describe(order: Array, what: str, widths: Sequence[int] = ()) -> str:
    """An order in words. widths : of heads, which may have moved as a whole."""
    n = len(order)
    if np.array_equal(order, np.arange(n)[::-1]):
        return f"{what} in reverse order"
    moved = np.flatnonzero(order != np.arange(n))
    if len(moved) == 2:
        return f"{what} {moved[0]} and {moved[1]} are exchanged"
    for width in widths:
        if n % width == 0 and n > width:
            blocks = order.reshape(-1, width)
            heads = blocks[:, 0] // width
            if np.array_equal(blocks, heads[:, None] * width + np.arange(width)):
                return f"heads in the order {_list(heads)}"
            if np.array_equal(blocks - blocks[0], np.arange(n).reshape(-1, width) - np.arange(width)):
                return f"in each head, {what} in the order {_list(blocks[0])}"
    shift = int(order[0])
    if np.array_equal(order, (np.arange(n) + shift) % n):
        return f"{what} are turned around by {min(shift, n - shift)}"
    first = int(moved[0])
    kind = what.removesuffix("s")
    return f"{what} in another order: {len(moved):,} of {n:,} moved, the first is {kind} {first}, once {order[first]}"


def _list(numbers: Array) -> str:
    return ", ".join(str(int(i)) for i in numbers[:8]) + (" ..." if len(numbers) > 8 else "")


def _changed(a: Values, b: Values) -> Relation | None:
    """A constant factor or offset, 1 + w, or a factor for each row or column."""
    if a.x.shape != b.x.shape:
        return None
    x, y = a.x.astype(np.float64), b.x.astype(np.float64)
    square = float(np.sum(x * x))
    if square > 0 and y.any():
        factor = float(np.sum(x * y) / square)
        nearby = float(np.float32(factor))
        for value in dict.fromkeys((round(factor, 6), round(factor, 3), nearby, factor)):
            if value and abs(value - factor) <= 1e-3 * abs(factor) and _is(a, b, value):
                found = fit(a.changed(value), b)
                return Relation("scaled", f"every value times {_number(value)}", found, {"factor": value})
    if x.size >= FEW:
        offset = float(np.mean(y - x))
        for value in dict.fromkeys((round(offset), round(offset, 3), offset)):
            if value and abs(value - offset) <= 1e-3 * abs(offset) and _is(a, b, 1.0, value):
                found = fit(a.changed(1.0, value), b)
                named = {1.0: "1 + w, where A has w", -1.0: "w, where A has 1 + w"}
                words = named.get(float(value), f"every value plus {_number(value)}")
                return Relation("shifted", words, found, {"offset": float(value)})
    if x.ndim == 2 and min(x.shape) >= FEW:
        for axis, what in ((0, "column"), (1, "row")):
            with np.errstate(all="ignore"):
                factors = np.sum(x * y, axis=axis, keepdims=True) / np.sum(x * x, axis=axis, keepdims=True)
            factors = np.where(np.isfinite(factors), factors, 0.0)
            if factors.all() and _is(a, b, np.broadcast_to(factors, x.shape)):
                found = fit(a.changed(np.broadcast_to(factors, x.shape)), b)
                ends = f"{_number(float(factors.min()))} to {_number(float(factors.max()))}"
                says = f"every {what} times a factor of its own, {ends}: a norm or a scale folded in"
                return Relation("scaled", says, found, {"factors": what})
    return None


def _is(a: Values, b: Values, factor: Array | float, offset: float = 0.0) -> bool:
    times = 1.0 if a.blocks is None and b.blocks is None else SOLVED
    return fit(a.changed(factor, offset), b, early=True, times=times).holds


def _number(x: float) -> str:
    return f"{x:.6g}"


def _whole_and_part(a: Values, b: Values) -> Relation | None:
    """The rows of one among those of the other, as a padded vocabulary has them."""
    if a.x.ndim != b.x.ndim or a.x.shape[1:] != b.x.shape[1:] or a.x.shape[0] == b.x.shape[0]:
        return None
    longer, shorter, where = (a, b, "A") if len(a.x) > len(b.x) else (b, a, "B")
    n, extra = len(shorter.x), len(longer.x) - len(shorter.x)
    for first in dict.fromkeys((0, extra, *range(1, min(extra, 8)))):
        part = longer.rows(first, first + n)
        if fit(part, shorter, early=True).holds:
            left = longer.x[n:] if first == 0 else longer.x[:first]
            empty = "" if left.any() else " of zeros"
            place = "behind" if first == 0 else "before"
            if first and first + n < len(longer.x):
                place = "around"
            says = f"{where} has {extra:,} more rows{empty} {place} these"
            return Relation("part", says, fit(part, shorter), {"first": first, "rows": n})
    return None
