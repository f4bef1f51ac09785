"""What rounding to a format may do to a value, and no more.

A plain type rounds to half of its unit in the last place. A format of blocks has a grid of its own in every block: the
largest and the smallest value that its quants can say, and the step between two of them. A value within that range
comes out at most half a step away; one beyond it comes out at the end of the range, as quantisers cut off what would
make the steps of all others coarser. How far beyond is bounded too, or anything would pass.

The grid is read from the blocks themselves: they are dequantised with all quants at one end, and at the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from llorch import _core
from llorch.files.tensor import BLOCKS
from llorch.validate.ladder.distance import Array

SCALE = (
    2.0**-11
)  # relative: what rounding a block's scale to float16 moves its values, where quants were made before it
TINY = 2.0**-25  # the same of a scale that is subnormal there
BITS = {"F16": 11, "BF16": 8}  # of a significand
ROUNDED = 0.625  # of a unit: what rounding a sub-block's scale moves it, and the search for the best one a little more
SMALLEST = {"F16": 2.0**-24, "BF16": 2.0**-133}


class Layout(NamedTuple):
    """Of a block: where its quants are (bytes), what all of them are at both ends of the range, how many levels there
    are; of K-quants the bytes of the super-block's scale and minimum, and the largest quant.

    cut : how far beyond the range a value may have been, in ranges. ggml's quantisers search for the scale that gives
    the least squares, by weights of their own or an importance matrix, and MXFP4 has powers of two alone.
    """

    first: int
    end: int
    low: int
    high: int
    levels: int
    cut: float
    d: int | None = None
    dmin: int | None = None
    largest: int = 0


LAYOUTS = {
    "Q8_0": Layout(2, 34, 0x80, 0x7F, 256, 0.01),
    "Q4_0": Layout(2, 18, 0x00, 0xFF, 16, 0.25),
    "Q4_1": Layout(4, 20, 0x00, 0xFF, 16, 0.25),
    "Q5_0": Layout(2, 22, 0x00, 0xFF, 32, 0.25),
    "Q5_1": Layout(4, 24, 0x00, 0xFF, 32, 0.25),
    "Q2_K": Layout(16, 80, 0x00, 0xFF, 4, 0.75, 80, 82, 3),
    "Q3_K": Layout(0, 96, 0x00, 0xFF, 8, 0.75, 108, None, 4),
    "Q4_K": Layout(16, 144, 0x00, 0xFF, 16, 0.25, 0, 2, 15),
    "Q5_K": Layout(16, 176, 0x00, 0xFF, 32, 0.25, 0, 2, 31),
    "Q6_K": Layout(0, 192, 0x00, 0xFF, 64, 0.25, 208, None, 32),
    "MXFP4": Layout(1, 17, 0xFF, 0x77, 0, 0.17),
}


@dataclass(frozen=True)
class Grid:
    """For each value of a tensor: half of the step there; the ends of its block's range; how far beyond these a value
    may have been."""

    half: Array
    low: Array
    high: Array
    cut: Array

    def beyond(self, x: Array) -> Array:
        """How far x is beyond the range."""
        far: Array = np.maximum(np.maximum(self.low - x, x - self.high), 0)
        return far


def of_plain(values: Array, format: str) -> Grid | None:
    """The grid of a type of plain numbers; None for float32, which rounds nothing."""
    if format not in BITS:
        return None
    size = np.abs(values.astype(np.float64))
    with np.errstate(all="ignore"):
        exponent = np.floor(np.log2(np.where(size > 0, size, 1.0)))
    half = np.maximum(2.0 ** (exponent - BITS[format]), SMALLEST[format] / 2)
    wide = np.float64(np.inf)
    return Grid(half, np.full_like(half, -wide), np.full_like(half, wide), np.zeros_like(half))


def of_blocks(rows: Array, format: str, shape: tuple[int, ...], values: Array) -> Grid:
    """The grid of rows of blocks as bytes, uint8 (rows, bytes of a row), whose values these are."""
    layout = LAYOUTS[format]
    width, length = BLOCKS[format][:2]
    blocks = rows.reshape(-1, length)
    ends = []
    for fill in (layout.low, layout.high):
        changed = blocks.copy()
        changed[:, layout.first : layout.end] = fill
        ends.append(_core.dequantize(changed.reshape(rows.shape), format, shape).astype(np.float64))
    low, high = np.minimum(*ends), np.maximum(*ends)
    if layout.levels:
        half = (high - low) / (layout.levels - 1) / 2
    else:  # E2M1: steps of 1/2 up to 2, of 1 up to 4, of 2 up to 6, which is the end of the range
        unit = high / 6
        size = np.abs(values)
        half = np.where(size >= 4 * unit, 1.0, np.where(size >= 2 * unit, 0.5, 0.25)) * unit
    half = half + SCALE * (np.abs(low) + (high - low)) + TINY * max(layout.levels, 12)
    cut = layout.cut * (high - low)
    if layout.d is not None:  # scales and minima are rounded to a few bits of the super-block's
        unit = np.abs(_halves(blocks, layout.d)) * layout.largest * ROUNDED
        if layout.dmin is not None:
            unit = unit + np.abs(_halves(blocks, layout.dmin)) * ROUNDED
        cut = cut + np.repeat(unit, width).reshape(shape)
    return Grid(half, low, high, cut)


def _halves(blocks: Array, at: int) -> Array:
    found: Array = np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float64).reshape(-1)
    return found
