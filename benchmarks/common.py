"""What the benchmarks share: measuring in turns, the machine's own peaks, tables, plots and the command line.

Every repetition times each contender once, in a rotating order, so that what else the machine does hits all alike;
the tables hold medians. Results are compared before anything is timed.
"""

import argparse
import ctypes
import datetime
import functools
import gc
import itertools
import json
import os
import statistics
import subprocess
import tempfile
import time
import timeit
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import llorch
from llorch.testing import differing_bits

try:
    import torch
except ImportError:
    torch = None
try:
    import threadpoolctl
except ImportError:
    threadpoolctl = None
try:
    from rich.console import Console
    from rich.markdown import Markdown
except ImportError:
    Console = None

DOCS = Path(__file__).resolve().parent.parent / "docs" / "benchmarks"
LLORCH, LLORCH_NEW = "llorch, `out=`", "llorch"
TORCH, ORT, ORT_BOUND, NUMPY = "PyTorch", "ONNX Runtime", "ONNX Runtime, bound output", "NumPy, textbook"
COPY, COPY2 = "np.copyto, 1 thread", "np.copyto, 2 Python threads"

# Okabe and Ito's colours, told apart with every kind of colour vision.
BLUE, SKY, RED, ORANGE, YELLOW = "#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#F0E442"
GREEN, PURPLE, GREY, BLACK = "#009E73", "#CC79A7", "#999999", "#000000"


# ---- compare ---------------------------------------------------------------------------------------------------


def check_bits(what, got, wanted):
    if wrong := differing_bits(got, wanted):
        raise SystemExit(f"{what}: {wrong} of {wanted.size} elements differ from the oracle")


def check_near(what, got, wanted, tolerance=1e-3):
    worst = float(np.max(np.abs(np.asarray(got, np.float64) - np.asarray(wanted, np.float64))))
    if not worst <= tolerance:
        raise SystemExit(f"{what}: {worst:.3g} away from llorch")


# ---- measure ---------------------------------------------------------------------------------------------------


def set_threads(threads):
    """Of llorch, PyTorch and, where threadpoolctl is installed, NumPy's BLAS."""
    llorch.set_num_threads(threads)
    if torch:
        torch.set_num_threads(threads)
    if threadpoolctl:
        threadpoolctl.threadpool_limits(threads, user_api="blas")


WARM = 0.03  # seconds


def interleaved(contenders, repetitions, sample_seconds, rest=0.0, between=()):
    """Seconds per call: {name: [one value per repetition]} of {name: (statement, globals)}. between : functions
    that are called before each sample.

    Before each sample one call that is not counted warms the caches for its own contender. With `rest`, as many seconds
    before it let the other libraries' thread pools stop spinning, and then it is called for WARM seconds: a core that
    slept is slow to come back, and a program that uses two doesn't let them sleep.
    """
    timers = {name: timeit.Timer(stmt, globals=env) for name, (stmt, env) in contenders.items()}
    loops = {}
    for name, timer in timers.items():
        timer.timeit(2)
        once = min(timer.timeit(3) for _ in range(3)) / 3
        loops[name] = max(1, round(sample_seconds / once))
    names, samples = list(timers), {name: [] for name in timers}
    gc.collect()
    for repetition in range(repetitions):
        k = repetition % len(names)
        for name in names[k:] + names[:k]:
            for other in between:
                other()
            if rest:
                time.sleep(rest)
            awake = time.perf_counter() + WARM if rest else 0.0
            timers[name].timeit(1)
            while time.perf_counter() < awake:
                timers[name].timeit(1)
            samples[name].append(timers[name].timeit(loops[name]) / loops[name])
    return samples


def section(key, title, baseline, samples, traffic=None, **more):
    """One table: median, quartiles and ratio of the medians for each contender.

    baseline: the name of a contender, or several: the fastest of them counts. traffic: the bytes that a call moves.
    more: JSON values that go into the section as they are.
    """
    bases = [baseline] if isinstance(baseline, str) else baseline
    medians = {name: statistics.median(samples[name]) for name in bases if name in samples}
    name = min(medians, key=medians.get, default=None)
    base = medians.get(name)
    rows = []
    for contender, values in samples.items():
        low, median, high = np.percentile(values, [25, 50, 75]).tolist()
        row = {"name": contender, "median_s": median, "quartiles_s": [low, high]}
        row["ratio"] = median / base if base else None
        if traffic:
            row["gb_per_s"] = traffic / median / 1e9
        rows.append(row)
    repetitions = len(next(iter(samples.values())))
    return {"key": key, "title": title, "baseline": name or bases[0], "repetitions": repetitions, "rows": rows} | more


def add_shares(parts, peaks):
    """GFLOP/s and GB/s of every row, and their shares of the measured peaks.

    Every part has "work": {"flops": of a call, "traffic": {contender: bytes}, "threads", "limit": "fma" or "read", the
    one of the two whose share the plot shows}.
    """
    for part in parts:
        work = part["work"]
        for row in part["rows"]:
            seconds = row["median_s"] * 1e9
            rates = {"fma": work["flops"] / seconds, "read": work["traffic"][row["name"]] / seconds}
            row["rates"] = {
                kind: {"value": value, "share": value / peaks[kind][str(work["threads"])]}
                for kind, value in rates.items()
            }


def row_of(parts, key, name):
    """The row of a contender in the section of that key, or None."""
    return next((row for part in parts if part["key"] == key for row in part["rows"] if row["name"] == name), None)


def at_least(what, value, least, unit="x"):
    """A target: value (None: not measured) is to reach least."""
    measured = "not measured" if value is None else f"{value:.2f} {unit}"
    target = f"{what}: at least {least} {unit}"
    return {"target": target, "measured": measured, "met": None if value is None else value >= least}


def faster(parts, key, name):
    """How many times as fast as its section's baseline, or None."""
    row = row_of(parts, key, name)
    return 1 / row["ratio"] if row and row["ratio"] else None


def median_of(part, name):
    return next((r["median_s"] for r in part["rows"] if r["name"] == name), None)


# ---- the machine -----------------------------------------------------------------------------------------------

HELPER = r"""
#include <sched.h>
#include <stdatomic.h>
/* One side, 0 or 1, of n messages to another thread and back. */
static _Alignas(128) atomic_long turn;
void messages(long side, long n) {
    long looks = 0;
    for (long i = side; i < 2 * n; i += 2) {
        while (atomic_load_explicit(&turn, memory_order_acquire) != i)
            if (++looks % 65536 == 0) sched_yield();
        atomic_store_explicit(&turn, i + 1 < 2 * n ? i + 1 : 0, memory_order_release);
    }
}
#if defined(__x86_64__)
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2,fma")))
#define AVX512 __attribute__((target("avx512f")))
#define VNNI __attribute__((target("avx512f,avx512vnni")))
AVX2 static float read8(const float *p, long n) {
    __m256 s[8];
    for (int j = 0; j < 8; j++) s[j] = _mm256_setzero_ps();
    for (long i = 0; i + 64 <= n; i += 64)
        for (int j = 0; j < 8; j++) s[j] = _mm256_add_ps(s[j], _mm256_load_ps(p + i + 8 * j));
    for (int j = 1; j < 8; j++) s[0] = _mm256_add_ps(s[0], s[j]);
    return _mm256_cvtss_f32(s[0]);
}
/* 12 independent chains: latency 4 times 2 units on every x86 of the last ten years, with some to spare. Where a loop
 * over them stays a loop, they are stored in every round. */
#define REGISTERS _Pragma("GCC unroll 12")
#define CHAINS(vector, set, fmadd, low)                                             \
    vector a = set(0.9999f), b = set(1e-6f), s[12];                                  \
    REGISTERS for (int j = 0; j < 12; j++) s[j] = set((float)j);                     \
    for (long i = 0; i < n; i++)                                                     \
        REGISTERS for (int j = 0; j < 12; j++) s[j] = fmadd(s[j], a, b);             \
    float r = 0;                                                                     \
    REGISTERS for (int j = 0; j < 12; j++) r += low(s[j]);                           \
    return r;
AVX2 static float fma8(long n) { CHAINS(__m256, _mm256_set1_ps, _mm256_fmadd_ps, _mm256_cvtss_f32) }
AVX512 static float fma16(long n) { CHAINS(__m512, _mm512_set1_ps, _mm512_fmadd_ps, _mm512_cvtss_f32) }
/* Pairs of 16-bit integers: as many multiplications an instruction as `pairs` says. */
#define INTEGERS(vector, set, madd, low)                                            \
    vector a = set(0x00030005), s[12];                                               \
    REGISTERS for (int j = 0; j < 12; j++) s[j] = set(j);                            \
    for (long i = 0; i < n; i++)                                                     \
        REGISTERS for (int j = 0; j < 12; j++) s[j] = madd(s[j], a);                 \
    int r = 0;                                                                       \
    REGISTERS for (int j = 0; j < 12; j++) r += low(s[j]);                           \
    return r;
/* One after the other: with all products first there are too few registers. */
AVX2 static inline __m256i MADD8(__m256i s, __m256i a) {
    s = _mm256_add_epi32(s, _mm256_madd_epi16(s, a));
    __asm__ volatile("" : "+x"(s));
    return s;
}
#define MADD16(s, a) _mm512_dpwssd_epi32(s, a, a)
#define LOW16(s) _mm_cvtsi128_si32(_mm512_castsi512_si128(s))
AVX2 static int madd8(long n) { INTEGERS(__m256i, _mm256_set1_epi32, MADD8, _mm256_cvtsi256_si32) }
VNNI static int madd16(long n) { INTEGERS(__m512i, _mm512_set1_epi32, MADD16, LOW16) }
static int vnni(void) { return __builtin_cpu_supports("avx512vnni"); }
int pairs(void) { return vnni() ? 32 : __builtin_cpu_supports("avx2") ? 16 : 0; }
int madd_chains(long n) { return vnni() ? madd16(n) : madd8(n); }
int lanes(void) { return __builtin_cpu_supports("avx512f") ? 16 : __builtin_cpu_supports("fma") ? 8 : 0; }
float read_all(const float *p, long n) { return read8(p, n); }
float fma_chains(long n) { return lanes() == 16 ? fma16(n) : fma8(n); }
#elif defined(__aarch64__)
#include <arm_neon.h>
int lanes(void) { return 4; }
float read_all(const float *p, long n) {
    float32x4_t s[8];
    for (int j = 0; j < 8; j++) s[j] = vdupq_n_f32(0);
    for (long i = 0; i + 32 <= n; i += 32)
        for (int j = 0; j < 8; j++) s[j] = vaddq_f32(s[j], vld1q_f32(p + i + 4 * j));
    for (int j = 1; j < 8; j++) s[0] = vaddq_f32(s[0], s[j]);
    return vaddvq_f32(s[0]);
}
float fma_chains(long n) {
    float32x4_t a = vdupq_n_f32(0.9999f), s[12];
    for (int j = 0; j < 12; j++) s[j] = vdupq_n_f32((float)j);
    for (long i = 0; i < n; i++)
        _Pragma("GCC unroll 12") for (int j = 0; j < 12; j++) s[j] = vfmaq_f32(a, s[j], a);
    float r = 0;
    for (int j = 0; j < 12; j++) r += vaddvq_f32(s[j]);
    return r;
}
int pairs(void) { return 4; }
int madd_chains(long n) {
    int16x4_t a = vdup_n_s16(3);
    int32x4_t s[12];
    for (int j = 0; j < 12; j++) s[j] = vdupq_n_s32(j);
    for (long i = 0; i < n; i++)
        _Pragma("GCC unroll 12") for (int j = 0; j < 12; j++) s[j] = vmlal_s16(s[j], a, a);
    int r = 0;
    for (int j = 0; j < 12; j++) r += vaddvq_s32(s[j]);
    return r;
}
#else
int lanes(void) { return 0; }
int pairs(void) { return 0; }
int madd_chains(long n) { return (int)n; }
float read_all(const float *p, long n) { return p[n - 1]; }
float fma_chains(long n) { return (float)n; }
#endif
"""
BUFFER = 256 << 20  # bytes, many times every cache
ROUNDS = 10_000_000  # of 12 instructions
KINDS = {"read": "reading from memory, GB/s", "fma": "fma, GFLOP/s", "madd": "16-bit integers, GOP/s"}


@functools.cache
def helper():
    """HELPER, compiled once, or None where there is no gcc or no vector unit that it knows."""
    with tempfile.TemporaryDirectory() as folder:  # a library that is loaded needs no file
        source, library = Path(folder, "peak.c"), Path(folder, "peak.so")
        source.write_text(HELPER)
        command = ["gcc", "-O3", "-fno-math-errno", "-shared", "-fPIC", str(source), "-o", str(library)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        code = ctypes.CDLL(str(library))
    code.read_all.argtypes, code.read_all.restype = [ctypes.c_void_p, ctypes.c_long], ctypes.c_float
    code.fma_chains.argtypes, code.fma_chains.restype = [ctypes.c_long], ctypes.c_float
    code.madd_chains.argtypes, code.madd_chains.restype = [ctypes.c_long], ctypes.c_int
    code.messages.argtypes, code.messages.restype = [ctypes.c_long, ctypes.c_long], None
    return code if code.lanes() else None


def times_of(jobs, repetitions):
    """Seconds in which all jobs, a thread each, are done, of each repetition."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        times = []
        for _ in range(repetitions):
            start = time.perf_counter()
            list(pool.map(lambda job: job(), jobs))
            times.append(time.perf_counter() - start)
    return times


@functools.cache
def room():
    """BUFFER bytes to read, one for all who measure that; written, so that every page exists."""
    memory = np.ones(BUFFER + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + BUFFER].view(np.float32)


def jobs_of(kind, threads):
    """A job a thread of what gives a peak, and the bytes or operations of all of them; None where it can't be told."""
    code = helper()
    if kind == "read":
        pieces = np.split(room(), threads)
        if code:
            return [lambda p=p: code.read_all(p.ctypes.data, p.size) for p in pieces], BUFFER
        return [lambda p=p: p.max() for p in pieces], BUFFER
    if code:
        chains, lanes = (code.fma_chains, code.lanes()) if kind == "fma" else (code.madd_chains, code.pairs())
        return ([lambda: chains(ROUNDS)] * threads, ROUNDS * 12 * 2 * lanes * threads) if lanes else None
    if kind == "madd":
        return None
    matrix = np.ones((1024, 1024), np.float32)
    return [lambda: matrix @ matrix] * threads, 2 * 1024**3 * threads


class InTurns:
    """A peak by the turns that it takes with something else: what the machine gives in the same minute. A virtual
    machine's memory, and its clock, change by a quarter from one to the next.

    Every call is a turn. rates : GB/s, GFLOP/s or GOP/s of each.
    """

    def __init__(self, kind, threads):
        self.jobs, self.work = jobs_of(kind, threads) or ([], 0)
        self.rates = []

    def __call__(self):
        if self.jobs:
            self.rates += [self.work / seconds / 1e9 for seconds in times_of(self.jobs, 3)[1:]]

    def median(self):
        return statistics.median(self.rates) if self.rates else None


class RoundTrip:
    """A message from one core to another and back, in turns with something else. It takes several times as long where
    they don't share a cache, and a virtual machine's cores share one in some minutes and in others not.

    Every call is a turn. times : ns of each.
    """

    MESSAGES, FAR = 2000, 200

    def __init__(self):
        code = helper() if llorch.get_num_threads() > 1 else None
        self.jobs = [functools.partial(code.messages, side, self.MESSAGES) for side in (0, 1)] if code else []
        self.times = []

    def __call__(self):
        if self.jobs:
            self.times.append(min(times_of(self.jobs, 3)) / self.MESSAGES * 1e9)

    def summary(self):
        """Median and quartiles, and in how many turns of all they were FAR apart."""
        if not self.times:
            return None
        low, median, high = np.percentile(self.times, [25, 50, 75]).tolist()
        far = sum(time > self.FAR for time in self.times)
        return {"median_ns": median, "quartiles_ns": [low, high], "far": far, "turns": len(self.times)}


def peaks(quick=False):
    """What this machine can do at most, on 1 and on 2 threads: GB/s read from memory, GFLOP/s of float32 fma, and GOP/s
    of multiplying 16-bit integers and adding the products, two operations each.

    Measured by a few lines of C with the widest vectors, or, where those can't be compiled, by NumPy's maximum and
    matrix product, which are less than the peak, and no integers. "how" says which. Of arithmetic the best repetition
    counts. Of reading the median does: the memory of a virtual machine may be half as fast again for a tenth of a
    second, and then nothing can hold that for a whole run.
    """
    repetitions = 3 if quick else 15
    found, code = {}, helper()
    if not code:
        set_threads(1)
    for kind, threads in itertools.product(KINDS, (1, 2)):
        if found_jobs := jobs_of(kind, threads):
            jobs, work = found_jobs
            times = times_of(jobs, repetitions * (3 if kind == "read" else 1))
            seconds = statistics.median(times) if kind == "read" else min(times)
            found.setdefault(kind, {})[str(threads)] = work / seconds / 1e9
    lanes = code.lanes() if code else 0
    found["how"] = f"C, vectors of {lanes} float32" if code else "NumPy's maximum and matrix product"
    return found


def higher(first, second):
    """The higher of two measurements of the peaks, as a busy neighbour lowers them."""
    best = {kind: {t: max(first[kind][t], second[kind][t]) for t in first[kind]} for kind in KINDS if kind in first}
    return best | {"how": first["how"]}


def describe(quick, **others):
    """Date, machine and versions, as every result begins. others: the versions of more libraries, by name."""
    config = llorch.config()
    version = "from its source tree" if "unknown" in config["llorch"] else config["llorch"]
    versions = {"llorch": version, "PyTorch": torch and torch.__version__} | others
    versions |= {"NumPy": np.__version__, "Python": config["python"]}
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": config["cpu"],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "isa": llorch.isa(),
        "versions": {k: v for k, v in versions.items() if v},
        "quick": quick,
    }


# ---- show ------------------------------------------------------------------------------------------------------


def show_time(seconds):
    if seconds < 1e-5:
        return f"{seconds * 1e6:.2f} us"
    return f"{seconds * 1e6:.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def base_name(part):
    return {COPY: "the copy", COPY2: "the copy"}.get(part["baseline"], part["baseline"])


def head_lines(result, note):
    """The first paragraph of every report."""
    return [
        f"{result['date']}: {result['cpu']}, {result['cores']} cores, instruction set {result['isa']}; "
        + ", ".join(f"{k} {v}" for k, v in result["versions"].items())
        + ". Medians of interleaved repetitions, quartiles in brackets; every result compared before it was timed. "
        + note,
        "",
    ]


def peak_lines(found):
    """What the shares are of."""
    lines = ["| this machine's own peak, measured in the same run | 1 thread | 2 threads |", "| --- | ---: | ---: |"]
    for kind, what in KINDS.items():
        if kind in found:
            how = found["how"] if kind == "fma" else "the median; of the others the best" if kind == "read" else ""
            lines.append(f"| {what}{how and f' ({how})'} | {found[kind]['1']:.0f} | {found[kind]['2']:.0f} |")
    return lines


def target_lines(targets):
    words = {True: "met", False: "**not met**", None: "not measured"}
    lines = ["| target | measured | |", "| --- | ---: | --- |"]
    return lines + [f"| {t['target']} | {t['measured']} | {words[t['met']]} |" for t in targets]


def section_lines(part):
    """The table of one section."""
    rows = part["rows"]
    columns = [("time", [show_time(row["median_s"]) for row in rows])]
    columns += [("quartiles", ["[{}, {}]".format(*map(show_time, row["quartiles_s"])) for row in rows])]
    if "gb_per_s" in rows[0]:
        columns += [("GB/s, read + write", [f"{row['gb_per_s']:.1f}" for row in rows])]
    if "rates" in rows[0]:
        for kind, head in (("fma", "GFLOP/s"), ("read", "GB/s read")):
            rates = [row["rates"][kind] for row in rows]
            columns += [(f"{head} (of peak)", [f"{rate['value']:.1f} ({rate['share']:.0%})" for rate in rates])]
    ratios = [f"{row['ratio']:.2f}" if row["ratio"] is not None else "" for row in rows]
    columns += [(f"relative to {base_name(part)}", ratios)]
    lines = ["", f"**{part['title']}** ({part['repetitions']} repetitions)", ""]
    lines += [f"| | {' | '.join(head for head, _ in columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    for k, row in enumerate(rows):
        lines += [f"| {row['name']} | {' | '.join(cells[k] for _, cells in columns)} |"]
    return lines


def figure(columns, size, ratios):
    """A figure of side by side panels in the style of all plots, on no screen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    return plt.subplots(1, columns, figsize=size, width_ratios=ratios)


def group_axis(axis, ticks):
    """One label a group of bars, the first group on top."""
    axis.set_yticks([t for t, _ in ticks], [t for _, t in ticks])
    axis.tick_params(axis="y", length=0)
    axis.invert_yaxis()


def time_panel(axis, groups, colours, labels, limit):
    """Bars of the times relative to the baseline, cut at `limit`. groups: [(text, section, rows)].

    Returns one bar a contender, for the legend.
    """
    y, ticks, seen = 0.0, [], {}
    for text, part, rows in groups:
        start = y
        for row in rows:
            shown = min(row["ratio"], limit)
            bar = axis.barh(y, shown, 0.86, color=colours[row["name"]], edgecolor="#444444", linewidth=0.5)
            seen.setdefault(labels.get(row["name"], row["name"]), bar)
            if row["ratio"] > limit:
                axis.text(limit - 0.3, y, "//", va="center", ha="center", color="white", fontweight="bold")
            label = f"{row['ratio']:.2f} x  {show_time(row['median_s'])}"
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
            axis.text(shown + 0.07, y, label, va="center", bbox=box, zorder=5)
            y += 1
        axis.plot([1, 1], [start - 0.5, y - 0.5], color="black", linestyle="--", linewidth=1)
        ticks.append(((start + y - 1) / 2, f"{text}\n1 = {base_name(part)}"))
        y += 0.9
    group_axis(axis, ticks)
    axis.set_xlim(0, limit + 1.9)
    axis.set_xticks(range(int(limit) + 1))
    axis.set_xlabel("time relative to the dashed line; bars marked // are cut")
    axis.set_title("Time", loc="left", fontweight="bold")
    return seen


def share_panel(axis, parts, colours, label=None):
    """Bars of every row's share of the peak that limits its section. label: what of a section stands beside its bars;
    otherwise the kind of the peak."""
    y, ticks, widest = 0.0, [], 1.0
    units = {"fma": "GFLOP/s", "read": "GB/s"}
    for part in parts:
        start, kind = y, part["work"]["limit"]
        for row in part["rows"]:
            rate = row["rates"][kind]
            axis.barh(y, rate["share"], 0.86, color=colours[row["name"]], edgecolor="#444444", linewidth=0.5)
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
            text = f"{rate['share']:.0%}  {rate['value']:.0f} {units[kind]}"
            axis.text(rate["share"] + 0.02, y, text, va="center", bbox=box, zorder=5)
            widest = max(widest, rate["share"])
            y += 1
        ticks.append(((start + y - 1) / 2, part[label] if label else kind))
        y += 0.9
    group_axis(axis, ticks)
    axis.set_xlim(0, widest + 0.45)
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    axis.axvline(1, color="black", linestyle="--", linewidth=1)
    axis.set_xlabel("share of the machine's measured peak: fma, or reading from memory")
    axis.set_title("Rate", loc="left", fontweight="bold")


def save(drawn, result, bars, path, columns=4, top=0.94):
    """Legend, the line on machine and versions, and the file."""
    drawn.legend(list(bars.values()), list(bars), loc="upper center", ncols=columns, frameon=False)
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items() if k != "Python")
    foot = f"{result['cpu']}, {result['cores']} cores, {result['isa']}. {versions}. {result['date']}"
    drawn.text(0.5, 0.008, foot, ha="center", color="#555555")
    drawn.tight_layout(rect=(0, 0.025, 1, top))
    drawn.savefig(path, dpi=100)


def share_plot(result, path, colours, labels=None, limit=4.2):
    """The plot of a benchmark whose sections have rates: times and shares, group beside group."""
    parts = [p for p in result["sections"] if all(row["ratio"] is not None for row in p["rows"])]
    rows = sum(len(p["rows"]) + 1 for p in parts)
    height = 1.5 + 0.32 * rows
    drawn, (left, right) = figure(2, (14, height), [1.25, 1])
    for axis in (left, right):
        axis.margins(y=0.5 / rows)
    bars = time_panel(left, [(p["label"], p, p["rows"]) for p in parts], colours, labels or {}, limit)
    share_panel(right, parts, colours)
    save(drawn, result, bars, path, top=1 - 0.4 / height)


# ---- the command line ------------------------------------------------------------------------------------------


def arguments(doc, add=lambda parser: None):
    """The options of all benchmarks; `add` gives the parser more of them."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions; prints, writes nothing by itself")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to FILE too")
    parser.add_argument("--docs", type=Path, metavar="DIR", help="where the three files go (docs/benchmarks)")
    add(parser)
    options = parser.parse_args()
    if torch:
        torch.set_grad_enabled(False)
    return options


def in_steps(steps):
    """What each of {name: function} returns, with a line of progress before it."""
    results = []
    for k, (name, step) in enumerate(steps.items(), 1):
        print(f"[{k}/{len(steps)}] {name}", flush=True)
        results.append(step())
    return results


def run_with_peaks(doc, operation, steps, note, plot, targets):
    """The whole of a benchmark whose rows are shares of the peaks, which are measured before and after it.

    steps: {name: function of `quick` that returns a section with its "work"}; note: for the report's first paragraph;
    targets: function of the sections, once they have their rates.
    """
    options = arguments(doc)
    before, *parts, after = in_steps(
        {"the machine's own peaks": lambda: peaks(options.quick)}
        | {name: lambda step=step: step(options.quick) for name, step in steps.items()}
        | {"the peaks again": lambda: peaks(options.quick)}
    )
    result = describe(options.quick) | {"peaks": higher(before, after), "sections": parts}
    add_shares(parts, result["peaks"])
    result["targets"] = targets(parts)
    lines = head_lines(result, note) + peak_lines(result["peaks"]) + ["", *target_lines(result["targets"])]
    for part in parts:
        lines += section_lines(part)
    publish(operation, result, "\n".join(lines) + "\n", plot, options)


def publish(operation, result, text, plot, options, whole=True):
    """Prints the report; writes <operation>.json, .md and .png: to --docs, or to DOCS if the run was whole and no quick
    one."""
    if Console:
        Console().print(Markdown(text))
    else:
        print(text)
    numbers = json.dumps(result, indent=1) + "\n"
    if options.json:
        options.json.write_text(numbers)
    docs = options.docs or (DOCS if whole and not options.quick else None)
    if docs:
        docs.mkdir(parents=True, exist_ok=True)
        (docs / f"{operation}.json").write_text(numbers)
        (docs / f"{operation}.md").write_text(text)
        try:
            plot(result, docs / f"{operation}.png")
        except ImportError:
            print(f"matplotlib is not installed: no {operation}.png (pip install matplotlib)")
