"""How far one tensor is from another: in values, in units in the last place, relative to its size, in bits.

Infinities and NaN are as good as other values here. NumPy's warnings of them are switched off by who calls, once for a
whole comparison: to do it for every tensor took a tenth of the time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llorch.validate.ladder.rungs import Tensor

Array = NDArray[Any]
DECIMALS = 0.5e-4  # what four decimals round off
MASKED = -9000.0  # a score at or below this is masked: engines add -1e4, -1e10, the most negative float or -inf


@dataclass
class Aligned:
    """Their tensor in llorch's shape.

    source : their name for it. note : how it was read, where that isn't as it stood. last : only the last position is
    there. fits : False if no reading has llorch's shape; values are as they came then. passed : other tensors of theirs
    for the same, which have other values. unread : the shape of one with more values than any reading could take; it
    isn't read, values are empty. partial : some of the values are known alone, to four decimals; the others are NaN.
    total : the sum of all, where it is known. padded : positions of padding behind the prompt's, which were left out.
    """

    values: Array
    source: str
    note: str = ""
    last: bool = False
    fits: bool = True
    passed: list[str] = field(default_factory=list)
    unread: tuple[int, ...] | None = None
    partial: bool = False
    total: float | None = None
    padded: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """As it came, where it doesn't fit."""
        return self.values.shape if self.unread is None else self.unread


def comparable(read: Aligned, tensor: Tensor, ours: Array) -> tuple[Array, Array, Array]:
    """Theirs and ours in float64, and where they count: masked scores are -inf in both, absent ones count as masked.

    ours may be any array of the tensor's shape, such as what a faulty oracle gives.
    """
    if read.last and ours.ndim >= 2:
        ours = ours[..., -1:, :]
    theirs, mine = (a.astype(np.float64, copy=False) for a in (read.values, ours))  # what it can't hold is infinite
    if not read.fits:  # ours may be a faulty oracle's, whose shape is theirs but for axes of 1
        lean = [tuple(n for n in a.shape if n != 1) for a in (theirs, mine)]
        if lean[0] == lean[1]:
            theirs = theirs.reshape(mine.shape)
    if read.partial and theirs.shape == mine.shape:  # what isn't shown is ours, what is may be rounded
        d = theirs - mine
        near = mine + np.copysign(np.maximum(np.abs(d) - DECIMALS, 0), d)
        theirs = np.where(np.isnan(theirs), mine, np.where(np.isfinite(d), near, theirs))
    if tensor.axes == "HTS":
        masked = mine <= MASKED
        theirs = np.where(theirs <= MASKED, -np.inf, theirs)
        if theirs.shape == mine.shape:  # an engine that never computes a masked score may leave 0 or NaN there
            theirs = np.where(masked & ((theirs == 0) | np.isnan(theirs)), -np.inf, theirs)
        mine = np.where(masked, -np.inf, mine)
    return theirs, mine, np.isfinite(mine)


def differences(theirs: Array, ours: Array) -> Array:
    """|theirs - ours|: 0 where both are the same infinity or NaN, infinite where one alone isn't finite."""
    d: Array = np.abs(theirs - ours)
    if np.isfinite(d.sum()):
        return d
    same = (theirs == ours) | (np.isnan(theirs) & np.isnan(ours))
    return np.where(same, 0.0, np.where(np.isnan(d), np.inf, d))


def relative(theirs: Array, ours: Array) -> float:
    """The root of the sum of squares of the differences, to that of ours (finite ones); infinite for other shapes."""
    if theirs.shape != ours.shape:
        return float("inf")
    apart, mine = (theirs - ours).reshape(-1), ours.reshape(-1)
    squares, whole = float(apart @ apart), float(mine @ mine)
    if 0 < whole < math.inf and 0 <= squares < math.inf:
        return math.sqrt(squares / whole)
    size = float(np.sqrt(np.sum(np.square(ours, where=np.isfinite(ours), out=np.zeros(ours.shape)))))
    distance = float(np.sqrt(np.sum(np.square(differences(theirs, ours)))))
    return distance / size if size else (0.0 if distance == 0 else float("inf"))


def same_bits(a: Array, b: Array) -> bool:
    return a.shape == b.shape and not differences(a.astype(np.float64), b.astype(np.float64)).any()


def ulp(ours: Array) -> Array:
    """The unit in the last place of float32 at each of ours, float64."""
    unit: Array = np.spacing(np.abs(ours).astype(np.float32)).astype(np.float64)
    return unit
