"""Block-quantised weights for the tests: bytes as GGUF files have them. Needs no compiled code: tests/c uses it too."""

import numpy as np

from llorch.reference._formats import SIZES

BLOCKS = [name for name, (values, _) in SIZES.items() if values > 1]
# where a block's float16 scales lie
SCALES = {
    "Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "MXFP4": (),
}  # fmt: skip
# zero, subnormal, ordinary, largest, infinite, NaN; negative ones too
SPECIAL = np.array([0x0000, 0x8000, 0x0001, 0x83FF, 0x2ABC, 0xABCD, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00], np.uint16)


def blocks(format, count, seed=0, scale=0.01):
    """Random bytes with ordinary scales."""
    _, size = SIZES[format]
    rng = np.random.default_rng([20261126, seed, count])
    data = rng.integers(0, 256, (count, size), np.uint8)
    for at in SCALES.get(format, ()):
        scales = (rng.standard_normal((count, 1)) * scale).astype(np.float16)
        data[:, at : at + 2] = scales.view(np.uint8)
    if format == "MXFP4":
        data[:, 0] = 120 + data[:, 0] % 12
    return data


def special_blocks(format):
    """Every pair of special scales; of MXFP4 every exponent."""
    places = SCALES[format]
    if not places:
        data = blocks(format, 256, seed=1)
        data[:, 0] = np.arange(256)
        return data
    pairs = np.array(np.meshgrid(*[SPECIAL] * len(places))).reshape(len(places), -1)
    data = blocks(format, pairs.shape[1], seed=1)
    for at, scales in zip(places, pairs, strict=True):
        data[:, at : at + 2] = scales.astype(np.uint16).view(np.uint8).reshape(-1, 2)
    return data
