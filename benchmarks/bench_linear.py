"""Times of llorch.linear and llorch.PackedLinear next to PyTorch and NumPy, as shares of the machine's own peaks.

    python benchmarks/bench_linear.py             # writes docs/benchmarks/linear.json, linear.md and linear.png
    python benchmarks/bench_linear.py --quick     # fewer repetitions, prints only

The shapes are GPT-2 medium's. A few rows (decoding) read every weight once for little arithmetic: so that the weights
come from memory, as they do when a model's other layers lie between, each call takes the next of several weights.
"""

import os

os.environ.pop("OPENBLAS_CORETYPE", None)  # before NumPy is imported: its BLAS shall choose its own kernels

import functools
import itertools

import common
import numpy as np
from common import check_bits, check_near, interleaved, section, set_threads, torch

import llorch
from llorch.validate.kernels.qkv import STORAGE, stored

LINEAR, ADDMM, TORCH_LINEAR, NUMPY = "llorch.linear", "PyTorch addmm", "PyTorch F.linear", "NumPy matmul"
PACKED = {dtype: f"llorch.PackedLinear, {dtype}" for dtype in STORAGE}
FROM_MEMORY = 160 << 20  # bytes of weights to go through before one comes round again: five times a large cache
# M, K, N, threads, whether the weights come from memory
SHAPES = (
    (510, 1024, 4096, 1, False),
    (510, 1024, 4096, 2, False),
    (510, 4096, 1024, 1, False),
    (510, 4096, 1024, 2, False),
    (12, 1024, 4096, 1, True),
    (8, 1024, 4096, 1, True),
    (4, 1024, 4096, 1, True),
    (2, 1024, 4096, 1, True),
    (1, 1024, 4096, 1, True),
    (1, 1024, 4096, 2, True),
    (1, 1024, 50257, 1, True),
    (1, 1024, 50257, 2, True),
)


def check_product(what, y, x, weight, bias):
    """Some rows and columns of y against the oracle, the first and the last among them."""
    rows = np.unique(np.linspace(0, len(x) - 1, 3).astype(int))
    columns = np.unique(np.linspace(0, len(bias) - 1, 192).astype(int))
    wanted = llorch.reference.linear(x[rows], np.ascontiguousarray(weight[:, columns]), bias[columns])
    check_bits(what, y[np.ix_(rows, columns)], wanted)


def contenders_of(x, weight, bias, out, copies):
    """{name: (statement, globals)} and {name: bytes of its weight}, every result compared."""
    contenders, sizes = {}, {}

    def turns(make):
        """The next of so many copies at each call, each somewhere else in memory."""
        return itertools.cycle([make() for _ in range(copies)]).__next__

    def add(name, statement, size, **env):
        contenders[name], sizes[name] = (statement, env), size

    weights = turns(weight.copy)  # for all that take (K, N)
    add(LINEAR, "f(x, w(), b, out=out)", weight.nbytes, f=llorch.linear, x=x, w=weights, b=bias, out=out)
    llorch.linear(x, weight, bias, out=out)
    check_product(LINEAR, out, x, weight, bias)
    for dtype, name in PACKED.items():
        size = weight.nbytes // (1 if dtype == "float32" else 2)
        # 16-bit weights are half as large: twice as many fill the same memory
        packed = [llorch.PackedLinear(weight, bias, dtype=dtype) for _ in range(copies * weight.nbytes // size)]
        add(name, "f()(x, out=out)", size, f=itertools.cycle(packed).__next__, x=x, out=out)
        check_product(name, packed[0](x), x, stored(weight, dtype), bias)
    if torch:
        tx, tb, to = (torch.from_numpy(array) for array in (x, bias, np.zeros_like(out)))
        tall = [torch.from_numpy(weights()) for _ in range(copies)]
        wide = [w.t().contiguous() for w in tall]
        add(
            ADDMM,
            "f(b, x, w(), out=out)",
            weight.nbytes,
            f=torch.addmm,
            b=tb,
            x=tx,
            w=itertools.cycle(tall).__next__,
            out=to,
        )
        add(
            TORCH_LINEAR,
            "f(x, w(), b)",
            weight.nbytes,
            f=torch.nn.functional.linear,
            x=tx,
            w=itertools.cycle(wide).__next__,
            b=tb,
        )
        check_near(ADDMM, torch.addmm(tb, tx, tall[0]).numpy(), out)
        check_near(TORCH_LINEAR, torch.nn.functional.linear(tx, wide[0], tb).numpy(), out)
    other = np.zeros_like(out)
    add(
        NUMPY,
        "g(f(x, w(), out=out), b, out=out)",
        weight.nbytes,
        g=np.add,
        f=np.matmul,
        x=x,
        w=weights,
        b=bias,
        out=other,
    )
    check_near(NUMPY, x @ weight + bias, out)
    return contenders, sizes


def bench(m, k, n, threads, memory, quick):
    set_threads(threads)
    rng = np.random.default_rng(0)
    x, bias = rng.standard_normal((m, k), np.float32), rng.standard_normal(n, np.float32)
    weight = rng.standard_normal((k, n), np.float32) * np.float32(k**-0.5)
    copies = -(-FROM_MEMORY // weight.nbytes) if memory else 1
    contenders, sizes = contenders_of(x, weight, bias, np.zeros((m, n), np.float32), copies)
    if m > 12:  # 16-bit weights are for decoding
        contenders = {name: c for name, c in contenders.items() if name not in (PACKED["float16"], PACKED["bfloat16"])}
    samples = interleaved(contenders, 5 if quick else 31, 0.02, rest=0.1 if threads > 1 else 0.0)
    plural = "s" if threads > 1 else ""
    place = ", weights from memory" if memory else ""
    title = f"[{m}, {k}] x [{k}, {n}], {threads} thread{plural}{place}"
    label = f"{m} row{'s' if m > 1 else ''}\n{k} to {n}\n{threads} thread{plural}"
    traffic = {name: size + x.nbytes + bias.nbytes for name, size in sizes.items()}
    work = {"flops": 2 * m * k * n, "traffic": traffic, "threads": threads}
    work["limit"] = "read" if memory and m <= 4 else "fma"
    return section(f"{m}x{k}x{n}x{threads}", title, [ADDMM, TORCH_LINEAR], samples, label=label, work=work)


def targets(parts):
    found = []
    for k, n, threads in ((1024, 4096, 1), (1024, 4096, 2), (4096, 1024, 1), (4096, 1024, 2)):
        for name in (LINEAR, PACKED["float32"]):
            value = common.faster(parts, f"510x{k}x{n}x{threads}", name)
            what = f"{name}, 510 rows, {k} to {n}, {threads} thread{'s' if threads > 1 else ''}, beside PyTorch"
            found.append(common.at_least(what, value, 1.0))
    for name in (LINEAR, PACKED["float32"]):
        value = common.faster(parts, "12x1024x4096x1", name)
        found.append(common.at_least(f"{name}, 12 rows, beside PyTorch", value, 1.8))
    for threads in (1, 2):
        rows = {d: common.row_of(parts, f"1x1024x50257x{threads}", PACKED[d]) for d in STORAGE}
        wide = rows["float32"]
        what = f"one row, 1024 to 50257, {threads} thread{'s' if threads > 1 else ''}"
        share = wide["rates"]["read"]["share"]
        found.append(common.at_least(f"{what}, share of the peak of reading", share, 0.95, "of it"))
        for dtype in ("bfloat16", "float16"):
            value = wide["median_s"] / rows[dtype]["median_s"]
            found.append(common.at_least(f"{what}, {dtype} weights beside float32", value, 1.8))
    return found


def plot(result, path):
    colours = dict(zip(PACKED.values(), (common.BLUE, common.GREEN, common.PURPLE), strict=True))
    colours |= {LINEAR: common.SKY, ADDMM: common.RED, TORCH_LINEAR: common.ORANGE, NUMPY: common.GREY}
    common.share_plot(result, path, colours, limit=3)


if __name__ == "__main__":
    common.run_with_peaks(
        __doc__,
        "linear",
        {
            f"[{m}, {k}] x [{k}, {n}], threads: {threads}": functools.partial(bench, m, k, n, threads, memory)
            for m, k, n, threads, memory in SHAPES
        },
        "Times are relative to the faster of PyTorch's two calls. 16-bit weights are widened to float32 exactly.",
        plot,
        targets,
    )
