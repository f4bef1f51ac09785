"""Writes the cases of check_vectors.c: python make_cases.py CASES

The float32 cases are tests/data/*.npz, which an independent oracle made, and the hard cases, which MPFR made; what is
not in there (16 bits, fused forms, places) comes from llorch.reference, which needs no compiled code.
"""

import struct
import sys
import types
from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np

ROOT = Path(__file__).parent.parent.parent
DATA = ROOT / "tests" / "data"
package = types.ModuleType("llorch")  # the package without its core, which isn't built here
package.__path__ = [str(ROOT / "llorch")]
sys.modules["llorch"] = package
sys.path.insert(0, str(ROOT / "tests"))
import weight_blocks  # noqa: E402

from llorch import reference  # noqa: E402
from llorch.reference import _rope  # noqa: E402
from llorch.reference._formats import INTEGERS, SIZES  # noqa: E402
from llorch.reference._unary import ONE  # noqa: E402

# the numbers of check_vectors.c
NORM, LINEAR, UNARY, SOFTMAX, ATTENTION, ARGMAX, EMBEDDING, GATE, CAST, ROPE = range(10)
TABLE, BLOCKS, POOL, PRODUCTS, QUANTIZE = range(10, 15)
DTYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))  # and of llorch.h
OPERATIONS = (None, "exp", "tanh", "erf", "sigmoid", "silu", "gelu", "gelu_tanh", "relu")  # and of llorch.h
rng = np.random.default_rng(20261125)


def normal(*shape, scale=1.0):
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def write(family, numbers, *arrays, eps=0.0):
    file.write(struct.pack("<8If", family, *numbers, *[0] * (7 - len(numbers)), eps))
    for array in arrays:
        if array is not None:
            file.write(np.ascontiguousarray(array).tobytes())


def norm():
    vectors = np.load(DATA / "norm_vectors.npz")
    outputs = {  # name: is rms_norm, weight, bias, eps
        "y": (0, 1, 1, 1e-5),
        "y_plain": (0, 0, 0, 1e-5),
        "y_weight": (0, 1, 0, 1e-5),
        "y_bias": (0, 0, 1, 1e-5),
        "y_eps0": (0, 1, 1, 0.0),
        "rms": (1, 1, 0, 1e-5),
        "rms_eps0": (1, 1, 0, 0.0),
    }
    for n in (1, 5, 64, 65, 200, 768, 1024):
        x, weight, bias = (vectors[f"layer_norm/{n}/{name}"] for name in ("x", "weight", "bias"))
        for output, (rms, has_weight, has_bias, eps) in outputs.items():
            arrays = x, weight if has_weight else None, bias if has_bias else None, vectors[f"layer_norm/{n}/{output}"]
            write(NORM, (rms, len(x), n, has_weight, has_bias), *arrays, eps=eps)
        residual = normal(*x.shape)
        y = reference.add_layer_norm(x, residual, weight, bias)[0]
        write(NORM, (2, len(x), n, 1, 1), x, weight, bias, residual, y, eps=1e-5)
        write(NORM, (3, len(x), n, 1, 0), x, weight, residual, reference.add_rms_norm(x, residual, weight)[0], eps=1e-5)


def linear():
    vectors = np.load(DATA / "linear_vectors.npz")
    for shape in sorted({name.split("/")[1] for name in vectors.files}):
        x, weight, bias, y, plain = (vectors[f"linear/{shape}/{s}"] for s in ("x", "weight", "bias", "y", "y_no_bias"))
        sizes = (*x.shape, weight.shape[1])
        write(LINEAR, (*sizes, 0, 1), x, weight, bias, y)
        write(LINEAR, (*sizes, 0, 0), x, weight, plain)
    activations = (None, "gelu", "gelu_tanh", "silu")
    # tiles of 1 .. 6 rows, several tiles, a weight that is packed first; blocks and depths; broken panels
    for M, K, N in ((1, 300, 70), (2, 129, 20), (3, 128, 33), (7, 257, 16), (13, 300, 47), (97, 40, 18), (4, 0, 5)):
        x, weight = normal(M, K), normal(K, N, scale=0.1)
        bias, residual = normal(N), normal(M, N)
        if K:
            weight[0, :3] = 1e-6, 1e-40, 7e4  # subnormal and too large for float16
        for number, kept in enumerate(DTYPES):
            rounded = reference.narrow(weight, kept)
            activation = (M + number) % 4
            more = {"activation": activations[activation], "residual": residual if number != 1 else None}
            y = reference.linear(x, rounded, bias, **more)
            numbers = (M, K, N, number, 1, OPERATIONS.index(activations[activation]), int(number != 1))
            write(LINEAR, numbers, x, weight, rounded if number else None, bias, more["residual"], y)
    tiny, bias = normal(2, 200, scale=1e-22), np.full(20, -0.0, np.float32)
    bias[::3] = np.nan, *[1e-40] * 6
    for x in (tiny, np.resize(tiny, (9, 200)), np.resize(np.float32([3e38, -3e38, np.inf, 1]), (3, 200))):
        weight = normal(200, 20, scale=1e-22)
        write(LINEAR, (*x.shape, 20, 0, 1), x, weight, bias, reference.linear(x, weight, bias))


def unary():
    vectors = np.load(DATA / "unary_vectors.npz")
    for number, name in enumerate(OPERATIONS):
        if name in (None, "relu"):  # relu is nobody's vectors but the oracle's
            continue
        more = {"approximate": "tanh"} if name == "gelu_tanh" else {}
        function = getattr(reference, name.removesuffix("_tanh"))
        x, y = vectors["unary/x"], vectors[f"unary/{name}"]
        if number > 4:  # without the smallest subnormals, on which those vectors are wrong (test_unary.py)
            kept = abs(x) != np.float32(2.0**-149)
            x, y = x[kept], y[kept]
        write(UNARY, (number, len(x), 0), x, y)
        rows = [line.split() for line in (DATA / "unary_hard" / f"{name}.txt").read_text().splitlines()]
        x, y = (np.array([float.fromhex(value) for value in column], np.float32) for column in zip(*rows, strict=True))
        write(UNARY, (number, len(x), 0), x, y)
        for dtype in (1, 2):
            x = rng.permutation(65536).astype(np.uint16)[:3001].view(DTYPES[dtype])
            write(UNARY, (number, len(x), dtype), x, function(x, **more))


def relu_gate_and_cast():
    for dtype, kind in enumerate(DTYPES):
        with np.errstate(all="ignore"):
            x = np.concatenate([normal(500), np.float32([0, -0.0, np.nan, np.inf, -np.inf, 1e-45, -1e-45])]).astype(
                kind
            )
            write(UNARY, (OPERATIONS.index("relu"), len(x), dtype), x, reference.relu(x))
            for rows, n in ((1, 700), (3, 65), (4, 1)):
                g, u = normal(rows, n, scale=4).astype(kind), normal(rows, n).astype(kind)
                for op in ("silu", "gelu_tanh", "relu"):
                    y = reference.gate(g, u, activation=op)
                    write(GATE, (OPERATIONS.index(op), rows, n, dtype), g, u, y)
            bits = rng.permutation(65536).astype(np.uint16)[:3001]
            x = bits.view(kind) if dtype else (bits.astype(np.uint32) << np.uint32(16) | bits).view(np.float32)
            for number, to in enumerate(DTYPES):
                write(CAST, (len(x), dtype, number), x, reference.cast(x, to))


def rope():
    for base, R, first, count in ((10000.0, 64, 0, 40), (500000.0, 80, 131000, 72)):
        f = [Fraction(v, ONE) for v in _rope._frequencies(R, base, None)[0]]
        high = np.array([float(v) for v in f])
        low = np.array([float(v - Fraction(h)) for v, h in zip(f, high.tolist(), strict=True)])
        cos, sin = reference.rope_table(R, np.arange(first, first + count), base=base)
        write(TABLE, (R // 2, first, count), high, low, sin, cos)
        for dtype, kind in enumerate(DTYPES):
            for D in (R, R + 5):
                x = normal(3, count, D).astype(kind)
                write(ROPE, (3, count, D, R, dtype), x, cos, sin, reference.rope(x, cos, sin))


# as formats.h numbers them
FORMATS = ["F32", "F16", "BF16", *[name for name, (values, _) in SIZES.items() if values > 1]]


def formats():
    """Random blocks, scales and all."""
    for number, name in enumerate(FORMATS):
        values, size = SIZES[name]
        if values > 1:
            for K, N in ((values, 4), (512, 18)):
                blocks = rng.integers(0, 256, N * K // values * size, np.uint8)
                y = reference.dequantize(blocks, name, (N, K))
                write(BLOCKS, (number, K, N, blocks.size // 2), blocks, y)
                x = normal(N, K) * np.exp2(rng.integers(-20, 4, (N, 1))).astype(np.float32)
                x[::7], x[1::7] = 0, abs(x[1::7])
                write(QUANTIZE, (number, K, N), x, reference.quantize(x, name))


def products():
    """Weights that stay blocks, in both arithmetics: ordinary, of random bytes, and where products vanish."""
    for number, name in enumerate(FORMATS):
        values, size = SIZES[name]
        if values == 1:
            continue
        tiny, deep = 2.0**-20, 544 if values == 32 else 768
        for M, K, N, scale in (
            (1, values, 18, 0.01),
            (1, 5 * values, 70, None),
            (3, 5 * values, 20, tiny),
            (13, deep, 34, 0.01),
        ):
            x, bias = normal(M, K, scale=2.0**-90 if scale == tiny else 1), None if scale == tiny else normal(N)
            x[:, :3] = 0, -0.0, 2.0**-100
            count = N * K // values
            blocks = weight_blocks.blocks(name, count, M, scale or 0)
            if scale is None:
                blocks[:] = rng.integers(0, 256, (count, size), np.uint8)
            numbers = number, M, K, N
            w = reference.dequantize(blocks.reshape(-1), name, (N, K))
            more = blocks.size // 2, int(bias is not None)
            write(PRODUCTS, (*numbers, 0, *more), blocks, x, bias, reference.linear(x, w.T, bias))
            if name in INTEGERS:
                y = reference.linear_int16(x, blocks.reshape(-1), name, N, bias)
                write(PRODUCTS, (*numbers, 1, *more), blocks, x, bias, y)


def softmax_and_attention():
    vectors = np.load(DATA / "attention_vectors.npz")
    write(SOFTMAX, (*vectors["softmax/x"].shape, 0), vectors["softmax/x"], vectors["softmax/y"])
    special = np.float32(
        [[0, -np.inf, 3], [np.inf, 0, 0], [np.nan, 1, 2], [-np.inf] * 3, [3e38, -3e38, 1], [-90, 0, -104]]
    )
    for dtype, kind in enumerate(DTYPES):
        with np.errstate(over="ignore"):
            rows = [x.astype(kind) for x in (normal(3, 200, scale=9), normal(2, 64), special)]
        for x in rows:
            write(SOFTMAX, (*x.shape, dtype), x, reference.softmax(x))
    for shape in sorted({name.split("/")[1] for name in vectors.files if name.startswith("attention/")}):
        heads, T, D = map(int, shape.split("x"))
        arrays = (vectors[f"attention/{shape}/{name}"] for name in "qkvy")
        write(ATTENTION, (heads, T, T, D, heads, 0, 1), *arrays)
    for heads, kv_heads, Tq, Tk, D, window, causal, softcap, reach in (
        (2, 2, 1, 1, 1, None, True, None, None),
        (1, 1, 1, 300, 16, None, True, None, None),
        (2, 2, 13, 140, 17, None, True, None, None),
        (1, 1, 30, 30, 64, None, True, None, None),
        (6, 2, 1, 200, 16, None, True, None, None),
        (3, 1, 40, 150, 20, None, True, 2.5, None),
        (4, 2, 20, 300, 16, 1, True, None, None),
        (2, 1, 33, 290, 24, 100, True, 30.0, None),
        (2, 2, 1, 400, 16, 130, True, None, None),
        (1, 1, 30, 30, 64, None, False, None, None),
        (4, 2, 19, 190, 12, None, False, 1.5, None),
        (4, 2, 150, 150, 16, 20, False, None, None),
        (3, 3, 50, 50, 32, None, False, None, 9),
        (2, 1, 40, 290, 17, 100, False, 2.5, 70),
        (2, 2, 1, 140, 8, None, True, None, 200),
    ):
        q, k, v = normal(heads, Tq, D), normal(kv_heads, Tk, D), normal(kv_heads, Tk, D)
        if causal:
            v[:, -1, 0] = np.nan  # only the last query sees it
            v[:, : max(Tk - Tq - (window or Tk) + 1, 0)] = np.nan  # no query sees these
        bias = None if reach is None else normal(heads, 2 * reach + 1)
        y = reference.attention(q, k, v, window=window, causal=causal, softcap=softcap, position_bias=bias)
        mask = window or 0, int(causal) + 2 * (0 if reach is None else 2 * reach + 1)
        write(ATTENTION, (heads, Tq, Tk, D, kv_heads, *mask), q, k, v, bias, y, eps=softcap or 0.0)


def argmax_and_embedding():
    for n in (1, 5, 64, 1100):
        x = normal(7, n)
        x[1] = -np.inf
        x[2, n // 2] = x[2, -1] = np.inf
        x[3] = np.resize(np.float32([0.0, -0.0, 1e-45]), n)
        x[4, n * 2 // 3 :] = np.nan
        places = [-1 - int(np.isnan(row).argmax()) if np.isnan(row).any() else reference.argmax(row) for row in x]
        write(ARGMAX, x.shape, x, np.float32(places))
    for dtype, kind in enumerate(DTYPES):
        table = (rng.permutation(65536).astype(np.uint16)[:3000].view(kind) if dtype else normal(3000)).reshape(30, 100)
        with np.errstate(invalid="ignore"):
            write(EMBEDDING, (30, 100, dtype), table, reference.embedding(table, range(29, -1, -1)))


def pool():
    for dtype, kind in enumerate(DTYPES):
        for lengths, skip, n in (([1, 64], 0, 33), ([130], 0, 20), ([5, 70], 3, 17)):
            x = normal(sum(lengths), n).astype(kind)
            y = reference.mean_pool(x, lengths, skip=skip)
            write(POOL, (len(x), n, dtype, len(lengths), skip, *lengths), x, y)
        special = np.float32([[0, -0.0, 0], [np.inf, 1, -2], [np.nan, 1, 2], [2e19, 3e19, 1], [1e-13, 1e-45, 0]])
        with np.errstate(over="ignore"):
            rows = [x.astype(kind) for x in (normal(3, 200), normal(2, 64, scale=1e-20), special)]
        for x in rows:
            write(POOL, (*x.shape, dtype, 0, 2**32 - 1), x, reference.normalize(x))


cases = (norm, linear, unary, relu_gate_and_cast, rope, formats, softmax_and_attention, argmax_and_embedding, pool,
         products)  # fmt: skip
with open(sys.argv[1], "wb") as file:
    for case in cases:
        case()
