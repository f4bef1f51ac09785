"""Writes rope_vectors.npz (by mpmath) and format_vectors.npz (by gguf-py): python tests/data/make_vectors.py

Neither uses llorch: they are what others say its tables and formats are. Needs mpmath and gguf.
"""

from pathlib import Path

import gguf
import mpmath
import numpy as np

HERE = Path(__file__).parent
BASES = (10000.0, 500000.0, 1e6)
R = 64
POSITIONS = (0, 1, 2, 3, 5, 31, 127, 128, 511, 2047, 4095, 8191, 16383, 32767, 65535, 100003, 131071)
NAMES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "MXFP4")


def nearest(x):
    """The float32 nearest to x: float64's nearest first, and the neighbours looked at."""
    guess = np.float32(float(x))
    near = (guess, np.nextafter(guess, np.float32(np.inf)), np.nextafter(guess, np.float32(-np.inf)))
    return min(near, key=lambda y: abs(mpmath.mpf(float(y)) - x))


def rope():
    mpmath.mp.prec = 400
    tables = {"positions": np.array(POSITIONS, np.int64), "bases": np.array(BASES)}
    for base in BASES:
        f = [mpmath.mpf(base) ** (-mpmath.mpf(2 * i) / R) for i in range(R // 2)]
        for name, function in (("cos", mpmath.cos), ("sin", mpmath.sin)):
            rows = [[nearest(function(p * v)) for v in f] for p in POSITIONS]
            tables[f"{base:.0f}/{name}"] = np.array(rows, np.float32)
    np.savez_compressed(HERE / "rope_vectors.npz", **tables)


def formats():
    tables = {}
    generator = np.random.default_rng(20261125)
    for name in NAMES:
        kind = gguf.GGMLQuantizationType[name]
        values, length = gguf.GGML_QUANT_SIZES[kind]
        data = generator.integers(0, 256, (1, max(12, 256 // values) * length), dtype=np.uint8)
        with np.errstate(all="ignore"):
            tables[f"{name}/values"] = gguf.quants.dequantize(data, kind)[0]
        tables[f"{name}/blocks"] = data[0]
    np.savez_compressed(HERE / "format_vectors.npz", **tables)


if __name__ == "__main__":
    rope()
    formats()
