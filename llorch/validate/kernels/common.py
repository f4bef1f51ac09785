"""What the suites share: checks and how they run, stored data, inputs whose bits no machine changes, and the rows that
most of them have."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llorch.testing import differing_bits

Status = Literal["pass", "fail", "skip", "info"]  # info: shown, no promise hangs on it
Array = NDArray[Any]


@dataclass(frozen=True)
class Check:
    """One row of the table: what was measured, and the bound that decided its status."""

    group: str
    name: str
    status: Status
    what: str  # one sentence, for the report
    measured: str
    bound: str = ""
    detail: str = ""
    data: dict[str, Any] = field(default_factory=dict)  # JSON values: numbers, hashes, versions


@dataclass(frozen=True)
class Part:
    """A part of a suite that runs on its own; one that raises becomes a failed check."""

    group: str
    title: str
    checks: Callable[[], Iterable[Check]]


def run(parts: Sequence[Part], started: Callable[[Part], None] = lambda part: None) -> Iterator[Check]:
    """Runs the parts in order and yields their checks; `started` is called before each part."""
    for part in parts:
        started(part)
        try:
            yield from part.checks()
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            what = "The part itself raised an exception."
            yield Check(part.group, part.title, "fail", what, f"could not run: {message}")


def status(holds: object) -> Status:
    return "pass" if holds else "fail"


def at_most(bound: float) -> str:
    return f"<= {bound:.0e}".replace("e-0", "e-")


def sha256(values: Array) -> str:
    """SHA-256 of the values as little-endian float32 in C order."""
    return hashlib.sha256(np.ascontiguousarray(values, dtype="<f4").tobytes()).hexdigest()


def first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0] if lines else ""


# ---- stored data and inputs ------------------------------------------------------------------------------------

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
    own float32 sine depends on its dispatch). The hashes of the inputs are stored all the same.
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


# ---- rows ------------------------------------------------------------------------------------------------------


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
