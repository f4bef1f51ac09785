"""What the checkpoints share: stored data, inputs whose bits no machine changes, and the rows most of them have."""

from __future__ import annotations

import importlib.resources
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from llorch.testing import differing_bits
from llorch.validate.kernels import Array, Check, at_most, sha256, status

ORACLE = "Oracle: llorch.reference (NumPy), bit for bit"
EXACT = "Exact result: llorch's error"
PUBLISHED = "Published values of 2025-10-08"


def load(name: str) -> dict[str, Any]:
    """One of the JSON files in llorch/validate/kernels/data."""
    data = importlib.resources.files("llorch.validate.kernels").joinpath("data", name)
    content: dict[str, Any] = json.loads(data.read_text(encoding="utf-8"))
    return content


def wave(
    index: Sequence[int] | range, step: float, amplitude: float, function: Callable[[float], float] = math.sin
) -> Array:
    """float32 function(index * step) * amplitude, the same bits on every machine.

    Both products are rounded to float32; the sine comes from the math module in float64 and is rounded once (NumPy's
    own float32 sine depends on its dispatch). The checkpoints store the hashes of their inputs all the same.
    """
    angle = np.array(index, dtype=np.float32) * np.float32(step)
    values: Array = np.array([function(float(a)) for a in angle], np.float64).astype(np.float32) * np.float32(amplitude)
    return values


def normal(random: np.random.Generator, *shape: int, scale: float = 1.0) -> Array:
    values: Array = random.standard_normal(shape).astype(np.float32) * np.float32(scale)
    return values


def largest(difference: Array) -> float:
    """The largest of absolute differences as a float, 0 of none; infinite where one is not finite."""
    return float(difference.max(initial=0)) if np.isfinite(difference).all() else math.inf


def bit_check(group: str, name: str, what: str, got: Array, want: Array) -> Check:
    """A row that passes if every value of `got` has the encoding of `want`'s."""
    differ = differing_bits(got, want)
    text = f"{differ:,} of {got.size:,} values differ"
    return Check(group, name, status(differ == 0), what, text, "0", data={"differing": differ, "values": int(got.size)})


def hash_checks(key: str, found: dict[str, Array], group: str = ORACLE) -> Iterator[Check]:
    """A row for each of the arrays, by its name: its hash is the one in data/expected.json below `key`."""
    expected = load("expected.json")[key]
    for name, values in found.items():
        want, value = expected[f"{name.replace(' ', '_')}_sha256"], sha256(values)
        yield Check(
            group,
            f"SHA-256 of the {name}",
            status(value == want),
            f"The {name} has the hash that is stored in the package: two machines agree without talking.",
            f"{value[:16]}...",
            "the stored one",
            "" if value == want else f"wanted {want}, got {value}",
            data={"sha256": value, "expected": want},
        )


def published_check(name: str, what: str, ours: Array, values: Array, exact: Array, tolerance: float) -> Check:
    """A row of published values [n]; `ours` and `exact` are llorch's and the exact result in their places."""
    worst = largest(np.abs(ours.astype(np.float64) - values))
    return Check(
        PUBLISHED,
        name,
        status(worst <= tolerance),
        what,
        f"largest difference {worst:.1e}",
        at_most(tolerance),
        data={"largest_difference": worst, "published_from_exact": float(np.max(np.abs(exact - values)))},
    )


def error_check(name: str, what: str, error: Array, exact: Array, bound: float, group: str = EXACT) -> Check:
    """A row of llorch's absolute errors from the exact result, both [...] float64."""
    ulp = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    worst, in_ulp, large = largest(error), largest(error / ulp), largest((error / ulp)[ulp >= 2.0**-24])
    return Check(
        group,
        name,
        status(worst <= bound),
        what,
        f"{worst:.1e}, {in_ulp:.1f} ULP ({large:.1f} if |y|>=0.5)"
        if in_ulp < 100
        else f"{worst:.1e}, {large:.1f} ULP where |y|>=0.5"
        if large
        else f"{worst:.1e}, all of |y|<0.5",
        at_most(bound),
        "In units in the last place the largest are at outputs near zero, whose own unit is small.",
        data={"largest_error": worst, "largest_ulp": in_ulp, "largest_ulp_from_0.5": large},
    )
