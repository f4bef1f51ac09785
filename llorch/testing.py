"""Tools for tests of llorch and of programs that use it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from llorch import _core

__all__ = ["bits", "differing_bits", "use_isa"]


@contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Run every kernel of the process by the instruction set `name` inside the block.

    ValueError if this build doesn't know it, RuntimeError if the machine can't run it.
    """
    before = _core.isa()
    _core._select_isa(name)
    try:
        yield
    finally:
        _core._select_isa(before)


def bits(a: Any) -> np.ndarray[Any, Any]:
    """The encodings of a's elements as unsigned integers, all NaNs as one, for comparison: -0 is not +0."""
    a = np.ascontiguousarray(a)
    encoding: np.ndarray[Any, Any] = a.view(np.dtype(f"u{a.dtype.itemsize}")).copy()
    encoding[a != a] = np.iinfo(encoding.dtype).max
    return encoding


def differing_bits(got: Any, wanted: Any) -> int:
    """How many elements of two arrays of one shape and type have another encoding (any NaN equals any NaN)."""
    got, wanted = np.asarray(got), np.asarray(wanted)
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        raise ValueError(
            f"got is {got.dtype} {got.shape}, wanted is {wanted.dtype} {wanted.shape}: they can't be compared by bits"
        )
    return int(np.count_nonzero(bits(got) != bits(wanted)))
