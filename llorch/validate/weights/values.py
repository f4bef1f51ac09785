"""A tensor's values as the graph's steps take them, and what its format may have done to them; whether two agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from llorch.validate.ladder.distance import Array
from llorch.validate.weights import formats
from llorch.validate.weights.formats import Grid

CHUNK = 1 << 20  # values that are compared at a time: what float64 copies of them take is bounded
NOISE = 2.0**-22  # relative: what a product or a sum in float32 rounds
WEIGHED = 4.0  # bounds: what a quantiser with an importance matrix leaves, which weighs some values against others

Map = Callable[[Array], Array]


@dataclass(frozen=True)
class Values:
    """x : float32; matrices (out, in). blocks : the bytes of a format of blocks, row by row as x lies, uint8 (rows,
    bytes); None for plain numbers, or where x was made from several tensors or moved: `grid` is then as it was made.
    """

    x: Array
    format: str
    blocks: Array | None = None
    made: Grid | None = None

    @property
    def grid(self) -> Grid | None:
        """Of all values: four arrays of float64 of their shape."""
        if self.blocks is not None:
            return formats.of_blocks(self.blocks, self.format, self.x.shape, self.x)
        return self.made if self.made is not None else formats.of_plain(self.x, self.format)

    def rows(self, first: int, end: int) -> Values:
        """Some of the first axis."""
        blocks = None if self.blocks is None or self.x.ndim < 2 else self.blocks[first:end]
        if self.blocks is not None and blocks is None:
            return self.moved(lambda array: array[first:end])
        made = None if self.made is None else Grid(*(part[first:end] for part in _parts(self.made)))
        return Values(self.x[first:end], self.format, blocks, made)

    def moved(self, f: Map) -> Values:
        """With its values in other places; f : of an array."""
        if self.blocks is None and self.made is None:  # what rounding did to a plain number, its value tells
            return Values(f(self.x), self.format)
        grid = self.grid
        made = None if grid is None else Grid(*(f(part) for part in _parts(grid)))
        return Values(f(self.x), self.format, None, made)

    def changed(self, factor: Array | float, offset: float = 0.0) -> Values:
        """factor * x + offset."""
        grid, wide = self.grid, self.x.astype(np.float64) * factor + offset
        size = np.abs(factor)
        if grid is None:
            half = np.zeros(wide.shape)
            ends = np.full(wide.shape, -np.inf), np.full(wide.shape, np.inf)
            grid = Grid(half, *ends, half)
        else:
            ends = np.minimum(grid.low * factor, grid.high * factor), np.maximum(grid.low * factor, grid.high * factor)
            grid = Grid(grid.half * size, ends[0] + offset, ends[1] + offset, grid.cut * size)
        noise = NOISE * np.maximum(np.abs(wide), abs(offset))
        made = Grid(grid.half + noise, grid.low, grid.high, grid.cut)
        return Values(wide, self.format, None, made)

    def chunks(self) -> Iterator[tuple[int, Values]]:
        """Its rows, some at a time, and the first of each."""
        if self.x.ndim == 0 or not self.x.size:
            yield 0, self
            return
        step = max(1, CHUNK // max(1, self.x[0].size))
        for first in range(0, len(self.x), step):
            yield first, self.rows(first, first + step)

    @cached_property
    def finite(self) -> bool:
        return bool(np.isfinite(self.x).all())


def joined(parts: list[Values]) -> Values:
    """Several tensors, one below the other."""
    if len(parts) == 1:
        return parts[0]
    alike = {part.format for part in parts}
    format = alike.pop() if len(alike) == 1 else "+".join(sorted({part.format for part in parts}))
    x = np.concatenate([part.x for part in parts])
    if all(part.blocks is not None for part in parts) and "+" not in format and x.ndim > 1:
        return Values(x, format, np.concatenate([part.blocks for part in parts if part.blocks is not None]))
    if all(part.grid is None for part in parts) or (format in formats.BITS):
        return Values(x, format)
    grids = [part.grid or _exact(part.x) for part in parts]
    return Values(x, format, None, Grid(*(np.concatenate(each) for each in zip(*map(_parts, grids), strict=True))))


def _parts(grid: Grid) -> tuple[Array, Array, Array, Array]:
    return grid.half, grid.low, grid.high, grid.cut


def _exact(x: Array) -> Grid:
    zero = np.zeros(x.shape)
    return Grid(zero, np.full(x.shape, -np.inf), np.full(x.shape, np.inf), zero)


# ---- two of them ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """What was found of two tensors of one shape.

    equal : all values are. rounded : the values of one are the other's, rounded once to its type. worst : the largest
    distance in bounds of the formats (1: all of it), infinite where nothing may differ. wrong : values beyond it, of
    how many; first : the first of them, with both values. largest : the largest distance; relative : L2.
    """

    equal: bool
    worst: float
    wrong: int
    size: int
    first: tuple[int, ...] = ()
    theirs: tuple[float, float] = (0.0, 0.0)
    largest: float = 0.0
    relative: float = 0.0

    @property
    def holds(self) -> bool:
        return not self.wrong


def same_bits(a: Values, b: Values) -> bool:
    if a.format != b.format or a.x.shape != b.x.shape:
        return False
    if a.blocks is not None and b.blocks is not None:
        return np.array_equal(a.blocks, b.blocks)
    return np.array_equal(a.x.view(np.uint32), b.x.view(np.uint32))


def distances(a: Values, b: Values) -> tuple[Array, Array]:
    """|a - b| of each value, and how large it may be by the two formats."""
    x, y = a.x.astype(np.float64), b.x.astype(np.float64)
    with np.errstate(invalid="ignore"):
        d = np.abs(x - y)
    d = np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0.0, np.where(np.isnan(d), np.inf, d))
    allowed = np.zeros(d.shape)
    one, other = a.grid, b.grid
    for grid, value, others in ((one, y, other), (other, x, one)):
        if grid is not None:
            beyond = grid.beyond(value)
            give = grid.cut if others is None else grid.cut + others.half
            allowed = allowed + grid.half + np.where(beyond <= give * 1.01, beyond, 0.0)
    return d, allowed


def fit(a: Values, b: Values, *, early: bool = False, times: float = 1.0) -> Fit:
    """Whether b has a's values, but for what the formats of both may do to them. early : stops at the first rows that
    don't. times : of the bound, for quantisers that weigh."""
    equal, worst, wrong, largest = True, 0.0, 0, 0.0
    first: tuple[int, ...] = ()
    pair = 0.0, 0.0
    squares = [0.0, 0.0]
    for (start, one), (_, other) in zip(a.chunks(), b.chunks(), strict=True):
        d, allowed = distances(one, other)
        if not d.size:
            continue
        bad = d > allowed * times
        equal = equal and not d.any()
        with np.errstate(all="ignore"):
            ratio = np.where(d > 0, d / allowed, 0.0)
        worst, largest = max(worst, float(ratio.max())), max(largest, float(d.max()))
        if bad.any() and not first:
            at = tuple(int(i) for i in np.unravel_index(int(np.argmax(bad)), bad.shape))
            pair = float(one.x[at]), float(other.x[at])
            first = (start + at[0], *at[1:]) if at else ()
        wrong += int(bad.sum())
        with np.errstate(all="ignore"):
            squares[0] += float(np.sum(d * d))
            squares[1] += float(np.sum(np.square(one.x, dtype=np.float64)))
        if early and wrong:
            break
    size = float(np.sqrt(squares[1]))
    apart = float(np.sqrt(squares[0])) / size if size else (float("inf") if squares[0] else 0.0)
    return Fit(equal, worst, wrong, a.x.size, first, pair, largest, apart)
