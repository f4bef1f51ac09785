"""Writes tests/data/norm_vectors.npz as check_vectors.c reads it: python make_cases.py CASES"""

import struct
import sys
from pathlib import Path

import numpy as np

OUTPUTS = {  # name: op, weight, bias, eps
    "y": (0, 1, 1, 1e-5),
    "y_plain": (0, 0, 0, 1e-5),
    "y_weight": (0, 1, 0, 1e-5),
    "y_bias": (0, 0, 1, 1e-5),
    "y_eps0": (0, 1, 1, 0.0),
    "rms": (1, 1, 0, 1e-5),
    "rms_eps0": (1, 1, 0, 0.0),
}

vectors = np.load(Path(__file__).parent.parent / "data" / "norm_vectors.npz")
with open(sys.argv[1], "wb") as file:
    for n in (1, 5, 64, 65, 200, 768, 1024):
        x, weight, bias = (vectors[f"layer_norm/{n}/{name}"] for name in ("x", "weight", "bias"))
        for output, (op, has_weight, has_bias, eps) in OUTPUTS.items():
            y = vectors[f"layer_norm/{n}/{output}"]
            file.write(struct.pack("<5If", op, len(x), n, has_weight, has_bias, eps))
            for array, there in (
                (x, 1),
                (weight, has_weight),
                (bias, has_bias),
                (y, 1),
            ):
                if there:
                    file.write(np.ascontiguousarray(array, "<f4").tobytes())
