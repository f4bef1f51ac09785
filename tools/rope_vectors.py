"""Writes tests/data/rope_vectors.json: python tools/rope_vectors.py. Needs mpmath; nothing of llorch's is used.

cos(p base^(-2i/R)) and its sine in 400 bits, rounded once to the nearest float32: bases, positions up to 131,071 and
pairs from the fastest to the slowest.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from mpmath import mp, mpf

POSITIONS = [0, 1, 2, 3, 10, 127, 128, 1000, 2047, 4096, 8191, 32768, 65537, 100003, 131070, 131071]


def nearest(value: mpf) -> float:
    """The float32 next to value; none of these is a tie."""
    middle = np.float32(float(value))
    near = [np.nextafter(middle, np.float32(-np.inf)), middle, np.nextafter(middle, np.float32(np.inf))]
    return float(min(near, key=lambda y: abs(mpf(float(y)) - value)))


def table(base: float, R: int) -> dict[str, Any]:
    pairs = sorted({0, 1, 2, R // 8, R // 4, R // 2 - 2, R // 2 - 1})
    rows: dict[str, Any] = {"base": base, "R": R, "pairs": pairs, "positions": POSITIONS}
    for name, function in (("cos", mp.cos), ("sin", mp.sin)):
        angles = [[p * mp.power(mpf(base), mpf(-2 * i) / R) for i in pairs] for p in POSITIONS]
        rows[name] = [[nearest(function(angle)).hex() for angle in row] for row in angles]
    return rows


def main() -> None:
    mp.prec = 400
    about = "cos and sin of p * base**(-2 i / R), rounded once to float32: tools/rope_vectors.py, by mpmath in 400 bits"
    tables = [table(base, R) for base in (10000.0, 500000.0, 1e6) for R in (64, 80, 128)]
    path = Path(__file__).parent.parent / "tests" / "data" / "rope_vectors.json"
    path.write_text(json.dumps({"about": about, "tables": tables}, indent=None, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
