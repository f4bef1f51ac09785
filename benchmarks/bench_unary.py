"""Times and errors of llorch's functions of one variable next to PyTorch and NumPy, on a million values.

    python benchmarks/bench_unary.py             # writes docs/benchmarks/unary.json, unary.md and unary.png
    python benchmarks/bench_unary.py --quick     # fewer repetitions, prints only

llorch's results are the float32 nearest to the true ones; how many of the others' are not, and by how many units in
the last place the worst is off, stands beside the times. A small array shows the arithmetic, a large one the memory.
"""

import functools

import common
import numpy as np
from common import BLUE, GREY, RED, TORCH, interleaved, section, set_threads, torch

import llorch
from llorch.testing import differing_bits

LLORCH = "llorch, out="
MILLION, SMALL = 1 << 20, 1 << 14
FUNCTIONS = {
    "exp": llorch.exp,
    "tanh": llorch.tanh,
    "erf": llorch.erf,
    "sigmoid": llorch.sigmoid,
    "silu": llorch.silu,
    "gelu": llorch.gelu,
    "gelu_tanh": functools.partial(llorch.gelu, approximate="tanh"),
}
TARGETS = ("gelu_tanh", "gelu", "exp", "tanh")


def torch_function(name):
    """f(x, out=), where PyTorch's public form has no out the operator under it."""
    aten = torch.ops.aten
    return {
        "exp": torch.exp,
        "tanh": torch.tanh,
        "erf": torch.erf,
        "sigmoid": torch.sigmoid,
        "silu": aten.silu.out,
        "gelu": functools.partial(aten.gelu.out, approximate="none"),
        "gelu_tanh": functools.partial(aten.gelu.out, approximate="tanh"),
    }[name]


def numpy_function(name):
    return {"exp": np.exp, "tanh": np.tanh}.get(name)


def ordered(values):
    """Integers in the order of the float32: neighbours differ by one."""
    encodings = values.view(np.int32).astype(np.int64)
    return np.where(encodings < 0, -(encodings & 0x7FFFFFFF), encodings)


def bench(name, size, threads, quick):
    set_threads(threads)
    x = np.random.default_rng(0).standard_normal(size, np.float32)
    out, other = np.zeros_like(x), np.zeros_like(x)
    few = np.linspace(0, size - 1, 2000).astype(int)
    FUNCTIONS[name](x, out=out)
    oracle = getattr(llorch.reference, name.removesuffix("_tanh") if name == "gelu_tanh" else name)
    approximate = {"approximate": "tanh"} if name == "gelu_tanh" else {}
    if wrong := differing_bits(out[few], oracle(x[few], **approximate)):
        raise SystemExit(f"{name}: {wrong} of {few.size} elements differ from the oracle")
    contenders = {LLORCH: ("f(x, out=out)", {"f": FUNCTIONS[name], "x": x, "out": out.copy()})}
    results = {}
    if torch:
        tx, to = torch.from_numpy(x), torch.from_numpy(np.zeros_like(x))
        contenders[TORCH] = ("f(x, out=out)", {"f": torch_function(name), "x": tx, "out": to})
        results[TORCH] = torch_function(name)(tx, out=to).numpy().copy()
    if numpy_function(name):
        contenders["NumPy"] = ("f(x, out=out)", {"f": numpy_function(name), "x": x, "out": other})
        results["NumPy"] = numpy_function(name)(x)
    samples = interleaved(contenders, 7 if quick else 51, 0.01, rest=0.1 if threads > 1 else 0.0)
    distances = {library: np.abs(ordered(y) - ordered(out)) for library, y in results.items()}
    errors = {k: {"misrounded": float(np.mean(d > 0)), "ulp": int(d.max())} for k, d in distances.items()}
    values = "a million" if size == MILLION else f"{size:,}"
    title = f"{name}, {values} values, {threads} thread{'s' if threads > 1 else ''}"
    key = f"{name}x{size}x{threads}"
    return section(key, title, TORCH, samples, 8 * size, function=name, size=size, threads=threads, errors=errors)


def targets(parts):
    found = []
    for name in TARGETS:
        row = common.row_of(parts, f"{name}x{MILLION}x1", LLORCH)
        measured = "not measured" if row["ratio"] is None else f"{row['ratio']:.2f} x"
        target = f"{name}, a million values: at most 2 x PyTorch's time"
        met = None if row["ratio"] is None else row["ratio"] <= 2.0
        found.append({"target": target, "measured": measured, "met": met})
    return found


def markdown(result):
    note = "Standard normal values; GB/s count reading x and writing y."
    lines = common.head_lines(result, note) + common.target_lines(result["targets"])
    lines += ["", "Results that are not the float32 nearest to the true one (llorch: none), and the worst of them:", ""]
    lines += ["| | library | misrounded | units in the last place |", "| --- | --- | ---: | ---: |"]
    for part in result["sections"]:
        if part["size"] == MILLION and part["threads"] == 1:
            lines += [
                f"| {part['function']} | {library} | {e['misrounded']:.2%} | {e['ulp']} |"
                for library, e in part["errors"].items()
            ]
    for part in result["sections"]:
        lines += common.section_lines(part)
    return "\n".join(lines) + "\n"


def plot(result, path):
    colours = {LLORCH: BLUE, TORCH: RED, "NumPy": GREY}
    parts = [p for p in result["sections"] if p["threads"] == 1 and all(r["ratio"] is not None for r in p["rows"])]
    drawn, axes = common.figure(2, (13, 9), [1, 1])
    for axis, size in zip(axes, (SMALL, MILLION), strict=True):
        groups = [(p["function"], p, p["rows"]) for p in parts if p["size"] == size]
        bars = common.time_panel(axis, groups, colours, {}, 3)
        axis.set_title(f"{size:,} values, 1 thread", loc="left", fontweight="bold")
        axis.axvline(2, color="#555555", linestyle=":", linewidth=1)
    common.save(drawn, result, bars, path)


def main():
    options = common.arguments(__doc__)
    shapes = [(name, size, 1) for size in (MILLION, SMALL) for name in FUNCTIONS] + [
        (name, MILLION, 2) for name in TARGETS
    ]
    parts = common.in_steps(
        {
            f"{name}, {size:,} values, threads: {threads}": functools.partial(bench, name, size, threads, options.quick)
            for name, size, threads in shapes
        }
    )
    result = common.describe(options.quick) | {"targets": targets(parts), "sections": parts}
    common.publish("unary", result, markdown(result), plot, options)


if __name__ == "__main__":
    main()
