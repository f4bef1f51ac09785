"""Times and errors of llorch's norms next to PyTorch, ONNX Runtime, NumPy and a plain copy, in one run.

    python benchmarks/bench_norm.py             # writes docs/benchmarks/norm.json, norm.md and norm.png
    python benchmarks/bench_norm.py --quick     # fewer repetitions, prints only

Every repetition times each contender once, in a rotating order, so that what else the machine does hits all alike;
the tables hold medians. Results are compared before anything is timed. A peer that is not installed is left out.
"""

from concurrent.futures import ThreadPoolExecutor

import common
import numpy as np
from common import (
    COPY,
    COPY2,
    LLORCH,
    LLORCH_NEW,
    NUMPY,
    ORT,
    ORT_BOUND,
    TORCH,
    check_bits,
    check_near,
    interleaved,
    median_of,
    section,
    set_threads,
    torch,
)

import llorch

try:
    import onnx
    import onnxruntime
except ImportError:
    onnx = onnxruntime = None
try:
    import ml_dtypes
except ImportError:
    ml_dtypes = None

EPS = 1e-5


def textbook(x, w, b):
    """LayerNorm as it is written in a textbook, in the type of x."""
    d = x - x.mean(-1, keepdims=True)
    return d / np.sqrt((d * d).mean(-1, keepdims=True) + np.float32(EPS)) * w + b


def exact(x, w, b):
    """Two passes in long double, of the same float32 eps that every library uses."""
    x, w, b = (v.astype(np.longdouble) for v in (x, w, b))
    d = x - x.mean(-1, keepdims=True)
    return d / np.sqrt((d * d).mean(-1, keepdims=True) + np.longdouble(np.float32(EPS))) * w + b


def ort_session(n, threads):
    """An ONNX Runtime session of one LayerNormalization node."""
    h, f32 = onnx.helper, onnx.TensorProto.FLOAT
    node = h.make_node("LayerNormalization", ["x", "w", "b"], ["y"], axis=-1, epsilon=EPS)
    shapes = {"x": ["m", n], "w": [n], "b": [n]}
    inputs = [h.make_tensor_value_info(k, f32, v) for k, v in shapes.items()]
    graph = h.make_graph([node], "norm", inputs, [h.make_tensor_value_info("y", f32, ["m", n])])
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def ort_binding(session, x, w, b, out):
    """Inputs and output of a session bound to the caller's arrays, nothing copied or allocated by a run."""
    binding = session.io_binding()
    for name, value in (("x", x), ("w", w), ("b", b)):
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value))
    binding.bind_output("y", "cpu", 0, np.float32, out.shape, out.ctypes.data)
    return binding


def arrays(m, n, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((m, n), np.float32)
    return x, 1 + rng.standard_normal(n, np.float32) / 10, rng.standard_normal(n, np.float32) / 10, np.zeros_like(x)


def float32_peers(m, n, threads, *, numpy=True, new=True):
    """The contenders of a float32 shape, compared with each other, and the arrays they work on."""
    set_threads(threads)
    x, w, b, out = arrays(m, n)
    env = {"f": llorch.layer_norm, "x": x, "w": w, "b": b, "out": out}
    contenders = {LLORCH: ("f(x, w, b, out=out)", env)}
    if new:
        contenders[LLORCH_NEW] = ("f(x, w, b)", env)
    llorch.layer_norm(x, w, b, out=out)
    rows = np.unique(np.linspace(0, m - 1, 12).astype(int))
    check_bits(f"layer_norm [{m},{n}]", out[rows], llorch.reference.layer_norm(x[rows], w, b))
    if torch:
        tx, tw, tb = map(torch.from_numpy, (x, w, b))
        contenders[TORCH] = (
            "f(x, shape, w, b, eps)",
            {"f": torch.nn.functional.layer_norm, "x": tx, "shape": (n,), "w": tw, "b": tb, "eps": EPS},
        )
        check_near(TORCH, torch.nn.functional.layer_norm(tx, (n,), tw, tb, EPS)[rows].numpy(), out[rows])
    if onnxruntime:
        session, ort_out = ort_session(n, threads), np.zeros_like(x)
        binding = ort_binding(session, x, w, b, ort_out)
        feeds = {"x": x, "w": w, "b": b}
        contenders[ORT] = ("f(names, feeds)", {"f": session.run, "names": ["y"], "feeds": feeds})
        contenders[ORT_BOUND] = (
            "f(binding)",
            {"f": session.run_with_iobinding, "binding": binding, "keep": (x, w, b, ort_out)},
        )
        check_near(ORT, session.run(["y"], feeds)[0][rows], out[rows])
        session.run_with_iobinding(binding)
        check_near(ORT_BOUND, ort_out[rows], out[rows])
    if numpy:
        contenders[NUMPY] = ("f(x, w, b)", {"f": textbook, "x": x, "w": w, "b": b})
        check_near(NUMPY, textbook(x[rows], w, b), out[rows])
    return contenders, x, out


def bench_cache(quick):
    contenders, _, _ = float32_peers(512, 1024, 1)
    samples = interleaved(contenders, 15 if quick else 101, 0.004)
    return section("cache", "[512, 1024] float32, in cache, 1 thread", TORCH, samples)


def bench_call(quick):
    contenders, _, _ = float32_peers(1, 768, 1)
    samples = interleaved(contenders, 15 if quick else 101, 0.004)
    return section("call", "[1, 768] float32, whole call from Python", TORCH, samples)


def bench_memory(quick, threads):
    contenders, x, out = float32_peers(32768, 1024, threads, numpy=False, new=False)
    reference_out = np.zeros_like(x)
    contenders[COPY] = ("f(out, x)", {"f": np.copyto, "out": out, "x": x})
    baseline = COPY
    with ThreadPoolExecutor(1) as pool:
        if threads == 2:
            half = len(x) // 2

            def copy2():
                other = pool.submit(np.copyto, out[half:], x[half:])
                np.copyto(out[:half], x[:half])
                other.result()

            contenders[COPY2] = ("f()", {"f": copy2})
            baseline = COPY2
            w, b = contenders[LLORCH][1]["w"], contenders[LLORCH][1]["b"]
            llorch.layer_norm(x, w, b, out=out)
            llorch.set_num_threads(1)
            llorch.layer_norm(x, w, b, out=reference_out)
            llorch.set_num_threads(2)
            check_bits("2 threads against 1", out, reference_out)
        samples = interleaved(contenders, 5 if quick else 31, 0.0, rest=0.02 if threads > 1 else 0.0)
    plural = "s" if threads > 1 else ""
    title = f"[32768, 1024] float32, from memory, {threads} thread{plural}"
    return section(f"memory{threads}", title, baseline, samples, traffic=2 * x.nbytes)


def bench_others(quick):
    """16-bit rows, rms_norm and add_layer_norm against PyTorch: for information."""
    set_threads(1)
    parts, repetitions, (m, n) = [], 9 if quick else 51, (512, 1024)
    x, w, b, out = arrays(m, n)
    residual, total = arrays(m, n, seed=1)[0], np.zeros_like(x)
    sub = slice(0, 8)
    kinds = [("float16", np.float16, 4e-3)] + ([("bfloat16", ml_dtypes.bfloat16, 4e-2)] if ml_dtypes else [])
    for kind, dtype, tolerance in kinds:
        hx, hw, hb = (v.astype(dtype) for v in (x, w, b))
        hout = np.zeros_like(hx)
        llorch.layer_norm(hx, hw, hb, out=hout)
        check_bits(f"layer_norm {kind}", hout[sub], llorch.reference.layer_norm(hx[sub], hw, hb))
        contenders = {LLORCH: ("f(x, w, b, out=out)", {"f": llorch.layer_norm, "x": hx, "w": hw, "b": hb, "out": hout})}
        if torch:
            tx, tw, tb = (torch.from_numpy(v.astype(np.float32)).to(getattr(torch, kind)) for v in (hx, hw, hb))
            env = {"f": torch.nn.functional.layer_norm, "x": tx, "shape": (n,), "w": tw, "b": tb, "eps": EPS}
            contenders[TORCH] = ("f(x, shape, w, b, eps)", env)
            got = torch.nn.functional.layer_norm(tx, (n,), tw, tb, EPS)
            check_near(f"{TORCH} {kind}", got.float().numpy(), hout.astype(np.float32), tolerance)
        samples = interleaved(contenders, repetitions, 0.004)
        parts.append(section(kind, f"layer_norm [512, 1024] {kind}, 1 thread", TORCH, samples))

    llorch.rms_norm(x, w, out=out)
    check_bits("rms_norm", out[sub], llorch.reference.rms_norm(x[sub], w))
    contenders = {LLORCH: ("f(x, w, out=out)", {"f": llorch.rms_norm, "x": x, "w": w, "out": out})}
    if torch:
        tx, tw, tb, tr = map(torch.from_numpy, (x, w, b, residual))
        env = {"f": torch.nn.functional.rms_norm, "x": tx, "shape": (n,), "w": tw, "eps": EPS}
        contenders[TORCH] = ("f(x, shape, w, eps)", env)
        check_near(f"{TORCH} rms_norm", torch.nn.functional.rms_norm(tx, (n,), tw, EPS).numpy(), out)
    samples = interleaved(contenders, repetitions, 0.004)
    parts.append(section("rms", "rms_norm [512, 1024] float32, 1 thread", TORCH, samples))

    add_out = np.zeros_like(x)
    llorch.add_layer_norm(x, residual, w, b, out=add_out, sum_out=total)
    for got, wanted in zip((add_out, total), llorch.reference.add_layer_norm(x[sub], residual[sub], w, b), strict=True):
        check_bits("add_layer_norm", got[sub], wanted)
    env = {"f": llorch.add_layer_norm, "x": x, "r": residual, "w": w, "b": b, "out": add_out, "total": total}
    contenders = {LLORCH: ("f(x, r, w, b, out=out, sum_out=total)", env)}
    if torch:
        env = {"f": torch.nn.functional.layer_norm, "x": tx, "r": tr, "shape": (n,), "w": tw, "b": tb, "eps": EPS}
        contenders[TORCH] = ("s = x + r; f(s, shape, w, b, eps)", env)
        check_near(f"{TORCH} add", torch.nn.functional.layer_norm(tx + tr, (n,), tw, tb, EPS).numpy(), add_out)
    samples = interleaved(contenders, repetitions, 0.004)
    parts.append(section("add", "add_layer_norm [512, 1024] float32, 1 thread", TORCH, samples))
    return parts


def errors():
    """Largest absolute error of each library against long double, by input class."""
    set_threads(1)
    n, rng = 1024, np.random.default_rng(20240607)
    normal = rng.standard_normal((64, n))
    outliers = normal.copy()
    outliers[:, [7, 401, 900]] *= 300
    index = np.arange(2 * n, dtype=np.float64).reshape(2, n)
    inputs = {
        "checkpoint 1, sine": np.sin(index * 0.001) * 0.5,
        "normal": normal,
        "100 + normal": 100 + normal,
        "10000 + normal": 10000 + normal,
        "3 channels x 300": outliers,
        "1e-4 x normal": 1e-4 * normal,
    }
    w, b = np.ones(n, np.float32), np.zeros(n, np.float32)
    functions = {"llorch": lambda x: llorch.layer_norm(x, w, b, eps=EPS)}
    if torch:
        tw, tb = torch.from_numpy(w), torch.from_numpy(b)
        functions[TORCH] = lambda x: torch.nn.functional.layer_norm(torch.from_numpy(x), (n,), tw, tb, EPS).numpy()
    if onnxruntime:
        session = ort_session(n, 1)
        functions[ORT] = lambda x: session.run(["y"], {"x": x, "w": w, "b": b})[0]
    functions[NUMPY] = lambda x: textbook(x, w, b)
    table = {}
    for name, values in inputs.items():
        x = values.astype(np.float32)
        wanted = exact(x, w, b)
        check_bits(f"errors, {name}", llorch.layer_norm(x[:2], w, b), llorch.reference.layer_norm(x[:2], w, b))
        table[name] = {k: float(np.max(np.abs(f(x).astype(np.longdouble) - wanted))) for k, f in functions.items()}
    return table


def targets(parts, error_table):
    """(target, measured, met) for each thing to reach; met is None where a peer is missing."""
    by_key, found = {p["key"]: p for p in parts}, []

    def ratio(key, name, other, limit, what):
        mine, peer = median_of(by_key[key], name), median_of(by_key[key], other)
        if peer is None:
            found.append((what, "peer not installed", None))
        else:
            found.append((what, f"{mine / peer:.3f} x", mine <= limit * peer))

    ratio("cache", LLORCH, TORCH, 0.5, "[512, 1024] in cache, 1 thread: at most 0.5 x PyTorch")
    for name, limit in ((LLORCH, 1.0), (LLORCH_NEW, 1.5)):
        us = median_of(by_key["call"], name) * 1e6
        how = "with `out`" if name == LLORCH else "without `out`"
        found.append((f"[1, 768] whole call {how}: at most {limit} us", f"{us:.2f} us", us <= limit))
    ratio("memory1", LLORCH, COPY, 1.1, "[32768, 1024] from memory, 1 thread: at most 1.1 x the copy")
    ratio("memory2", LLORCH, COPY2, 1.1, "[32768, 1024] from memory, 2 threads: at most 1.1 x the copy on 2 threads")
    worst = {name: row["llorch"] / min(v for k, v in row.items() if k != "llorch") for name, row in error_table.items()}
    name = max(worst, key=worst.get)
    what = "Largest error, every class: at most 1.33 x the best peer"
    found.append((what, f"{worst[name]:.2f} x ({name})", worst[name] <= 4 / 3))
    value = error_table["10000 + normal"]["llorch"]
    found.append(("Largest error, 10000 + normal: at most 1e-6", f"{value:.1e}", value <= 1e-6))
    return [{"target": t, "measured": m, "met": met} for t, m, met in found]


def markdown(result):
    note = "PyTorch and ONNX Runtime without a bound output return a new array, which is part of their time."
    lines = common.head_lines(result, note) + common.target_lines(result["targets"])
    for part in result["sections"]:
        lines += common.section_lines(part)
    libraries = list(next(iter(result["errors"].values())))
    lines += ["", "**Largest absolute error of layer_norm against long double** (n = 1024, weight 1, bias 0, eps 1e-5)"]
    lines += ["", f"| input | {' | '.join(libraries)} |", f"| --- |{' ---: |' * len(libraries)}"]
    for name, row in result["errors"].items():
        best = min(row.values())
        cells = [f"**{v:.1e}**" if v == best else f"{v:.1e}" for v in row.values()]
        lines += [f"| {name} | {' | '.join(cells)} |"]
    return "\n".join(lines) + "\n"


def plot(result, path):
    colours = {
        LLORCH: common.BLUE,
        LLORCH_NEW: common.SKY,
        TORCH: common.RED,
        ORT: common.ORANGE,
        ORT_BOUND: common.YELLOW,
        NUMPY: common.GREY,
        COPY: common.BLACK,
        COPY2: common.BLACK,
    }
    labels = {COPY: "np.copyto", COPY2: "np.copyto", LLORCH: "llorch, out=", LLORCH_NEW: "llorch"}
    drawn, (left, right) = common.figure(2, (12, 9.5), [1.1, 1])

    parts = {p["key"]: p for p in result["sections"]}
    heads = {
        "cache": "[512, 1024] in cache\n1 thread",
        "call": "[1, 768]\nwhole call",
        "memory1": "[32768, 1024]\nfrom memory\n1 thread",
        "memory2": "[32768, 1024]\nfrom memory\n2 threads",
    }
    groups = []
    for key, head in heads.items():
        rows = [r for r in parts[key]["rows"] if r["ratio"] is not None]
        if key == "memory2":
            rows = [r for r in rows if r["name"] != COPY]
        if rows:
            groups.append((head, parts[key], rows))
    bars = common.time_panel(left, groups, colours, labels, 4.2)

    classes, y, ticks = result["errors"], 0.0, []
    smallest = min(v for row in classes.values() for v in row.values())
    floor = 10 ** np.floor(np.log10(smallest) - 0.3)
    for name, row in classes.items():
        start = y
        for library, value in row.items():
            colour = colours[LLORCH if library == "llorch" else library]
            right.barh(y, value - floor, 0.86, left=floor, color=colour, edgecolor="#444444", linewidth=0.5)
            right.text(value * 1.15, y, f"{value:.1e}", va="center")
            y += 1
        ticks.append(((start + y - 1) / 2, name.replace(", ", "\n").replace(" x 300", "\nx 300")))
        y += 0.9
    right.set_xscale("log")
    right.set_xlim(floor, max(v for row in classes.values() for v in row.values()) * 30)
    common.group_axis(right, ticks)
    right.set_xlabel("largest absolute error against long double (log scale)")
    right.set_title("Error, by kind of input", loc="left", fontweight="bold")

    common.save(drawn, result, bars, path)


def main():
    options = common.arguments(__doc__)
    quick = options.quick
    *parts, others, table = common.in_steps(
        {
            "in cache": lambda: bench_cache(quick),
            "whole call": lambda: bench_call(quick),
            "from memory, 1 thread": lambda: bench_memory(quick, 1),
            "from memory, 2 threads": lambda: bench_memory(quick, 2),
            "16-bit rows, rms_norm, add_layer_norm": lambda: bench_others(quick),
            "errors": errors,
        }
    )
    parts += others
    result = common.describe(quick, **{"ONNX Runtime": onnxruntime and onnxruntime.__version__})
    result |= {"targets": targets(parts, table), "sections": parts, "errors": table}
    common.publish("norm", result, markdown(result), plot, options)


if __name__ == "__main__":
    main()
