"""What was found of one tensor of the ladder: whether it is within its tolerance, where it is furthest off.

NumPy's warnings are the caller's to switch off, as in `distance`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from llorch.validate.ladder import distance
from llorch.validate.ladder.distance import Aligned, Array
from llorch.validate.ladder.rungs import Tensor

SUMMED = 4.0  # of what a sum in float32 may round: theirs has another order, and other values
Status = Literal["ok", "diverges", "absent"]


@dataclass(frozen=True)
class Row:
    """What was found of one tensor.

    source : their name for it. against : what it was compared with, if that isn't ours. worst : where the largest
    difference is. errors : of the tensor's own unit: absolute, in ULP of float32, relative L2.
    """

    tensor: Tensor
    status: Status
    source: str = ""
    note: str = ""
    against: str = ""
    absolute: float = 0.0
    ulp: float = 0.0
    relative: float = 0.0
    worst: tuple[int, ...] = ()
    theirs: float = 0.0
    ours: float = 0.0
    wrong: int = 0  # values beyond the tolerance
    size: int = 0
    tolerance: float | None = None  # where it isn't the tensor's own
    sums: str = ""  # in words, where the values that are there agree, and their sum doesn't

    @property
    def allowed(self) -> float:
        """The tolerance that was used, before it is scaled."""
        return self.tensor.tolerance if self.tolerance is None else self.tolerance

    @property
    def how(self) -> str:
        """The divergence in words."""
        if self.sums or (self.note and not self.size):
            return self.sums or self.note
        where = f" at {list(self.worst)}" if self.worst else ""
        whole = self.tensor.dtype == "int64"
        values = f"{_number(self.theirs, whole)}, {self.against or 'ours'} has {_number(self.ours, whole)}"
        sizes = "" if whole else f"; {self.ulp:.3g} ULP there; relative L2 {self.relative:.1e}"
        share = f"{self.wrong:,} of {self.size:,} values"
        return f"{share} differ, most{where}: {values}" + ("" if whole else f" ({self.absolute:.1e} apart{sizes})")


def _number(x: float, whole: bool) -> str:
    """whole: a token id, which in a wrong dump may be anything."""
    if whole:
        return str(int(x) if x.is_integer() else x)
    return f"{x:.6g}"


def limits(tensor: Tensor, ours: Array, finite: Array, tolerance: float) -> Array:
    """What each value may be off: the tolerance, times the root mean square of a row where that is more than 1."""
    limit: Array = np.full(ours.shape, tolerance)
    if tensor.rung.scaled and tolerance and ours.ndim:
        squares = np.where(finite, ours, 0.0) ** 2
        count = np.maximum(finite.sum(axis=-1, keepdims=True), 1)
        limit = limit * np.maximum(1.0, np.sqrt(squares.sum(axis=-1, keepdims=True) / count))
    return limit


def measure(tensor: Tensor, read: Aligned, want: Array, tolerance: float | None = None, against: str = "") -> Row:
    """The row of one array beside what it should be, in the tensor's shape."""
    tolerance = tensor.tolerance if tolerance is None else tolerance
    theirs, ours, finite = distance.comparable(read, tensor, want)
    d = distance.differences(theirs, ours)
    if not d.size:
        return Row(tensor, "ok", read.source, read.note, against, tolerance=tolerance)
    worst, count, sums, largest = d, 0, "", float(d.max())
    if read.total is not None or not largest <= tolerance:  # which no limit is below
        limit = limits(tensor, ours, finite, tolerance)
        wrong = d > limit
        count = int(wrong.sum())
        worst = np.where(wrong, d / np.maximum(limit, 1e-300), 0) if count else d
        sums = "" if count or read.total is None else _sums(read.total, ours, limit)
    at = np.unravel_index(int(np.argmax(worst)) if largest else 0, d.shape)
    unit = float(distance.ulp(ours[at])) if largest and finite[at] else 1.0
    return Row(
        tensor,
        "diverges" if count or sums else "ok",
        read.source,
        read.note,
        against,
        float(d[at]),
        float(d[at] / unit),
        distance.relative(theirs, ours) if d[at] else 0.0,
        tuple(int(i) for i in at),
        float(theirs[at]),
        float(ours[at]),
        count,
        int(np.isfinite(read.values).sum()) if read.partial else d.size,
        tolerance,
        sums,
    )


def _sums(theirs: float, ours: Array, limit: Array) -> str:
    """How a sum in float32, of all values one after the other, isn't that of ours; "" where it may be."""
    if not np.isfinite(ours).all():
        return ""
    steps = np.cumsum(ours.reshape(-1))
    rounded = SUMMED * float(np.abs(steps).sum()) * 2.0**-24
    mine, allowed = float(steps[-1]), float(limit.sum()) + rounded + 1e-6 * (1 + abs(float(steps[-1])))
    if abs(theirs - mine) <= allowed:
        return ""
    return f"the values shown agree, but all sum up to {theirs:.6g}, ours to {mine:.6g} (at most {allowed:.1e} apart)"
