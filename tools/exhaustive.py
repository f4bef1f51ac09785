"""Compares llorch's functions of one variable with MPFR for every float32 there is.

    python tools/exhaustive.py                # all seven on every instruction set of this machine: some 30 minutes
    python tools/exhaustive.py --function exp --isa generic --share 16     # every 16th input
    python tools/exhaustive.py --spoil        # the control: one wrong bit must be found

Writes docs/exhaustive.json and docs/exhaustive.md, and after a full run without a misrounding the hardest inputs into
tests/data/unary_hard/. An interrupted run goes on where it was (build/exhaustive.state.json). Needs gcc and MPFR
(apt: libmpfr-dev). How an output is judged: tools/exhaustive/check.c.
"""

import argparse
import ctypes
import datetime
import functools
import itertools
import json
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

import llorch
from llorch.testing import differing_bits, use_isa

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / "build" / "exhaustive.state.json"
RESULT = ROOT / "docs" / "exhaustive.json"
HARD = ROOT / "tests" / "data" / "unary_hard"
CHUNK = 1 << 22
ROOM, HARDEST = 16, 80
FUNCTIONS = {
    "exp": llorch.exp,
    "tanh": llorch.tanh,
    "erf": llorch.erf,
    "sigmoid": llorch.sigmoid,
    "silu": llorch.silu,
    "gelu": llorch.gelu,
    "gelu_tanh": functools.partial(llorch.gelu, approximate="tanh"),
}
CODES = {name: code for code, name in enumerate(FUNCTIONS)}  # as check.c's enum


class Wrong(ctypes.Structure):
    _fields_ = (("x", ctypes.c_float), ("y", ctypes.c_float), ("wanted", ctypes.c_float))


class Hard(ctypes.Structure):
    _fields_ = (("x", ctypes.c_float), ("wanted", ctypes.c_float), ("distance", ctypes.c_double))


def build():
    """check.c, compiled and loaded."""
    with tempfile.TemporaryDirectory() as directory:
        library = Path(directory) / "check.so"
        source = ROOT / "tools" / "exhaustive" / "check.c"
        flags = ["-O2", "-std=gnu11", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        subprocess.run(["gcc", *flags, source, "-o", library, "-lmpfr", "-lgmp", "-lm"], check=True)
        checker = ctypes.CDLL(str(library))
    checker.set_up()
    checker.check.restype = ctypes.c_uint64
    checker.wanted_of.restype = ctypes.c_float
    checker.wanted_of.argtypes = [ctypes.c_int, ctypes.c_float]
    return checker


def check(checker, function, first, step, y):
    """(wrong ones, their number, inputs float64 leaves open, hardest of these) of y = f(first, first + step, ..)."""
    wrongs, hards = (Wrong * ROOM)(), (Hard * HARDEST)()
    open_, found = ctypes.c_uint64(), ctypes.c_uint64()
    count = checker.check(
        ctypes.c_int(CODES[function]),
        ctypes.c_uint32(first),
        ctypes.c_uint32(step),
        ctypes.c_void_p(y.ctypes.data),
        ctypes.c_uint64(len(y)),
        wrongs,
        ctypes.c_uint64(ROOM),
        ctypes.byref(open_),
        hards,
        ctypes.c_uint64(HARDEST),
        ctypes.byref(found),
    )
    shown = [[w.x.hex(), w.y.hex(), w.wanted.hex()] for w in wrongs[: min(count, ROOM)]]
    return shown, count, open_.value, [[h.distance, h.x.hex(), h.wanted.hex()] for h in hards[: found.value]]


def inputs(index, share):
    """The first and all of the encodings [index CHUNK, (index + 1) CHUNK), every share-th, from a changing offset."""
    first = index * CHUNK + index * 7 % share
    return first, np.arange(first, (index + 1) * CHUNK, share, dtype=np.uint64).astype(np.uint32).view(np.float32)


def compute(function, index, share):
    x = inputs(index, share)[1]
    return FUNCTIONS[function](x, out=np.empty_like(x))


def spoilt(y):
    """With the last bit of one result that is a number turned."""
    y.view(np.uint32)[np.flatnonzero(np.isfinite(y))[len(y) // 3]] ^= 1
    return y


def judge(checker, function, index, share, outputs):
    """`check` of each instruction set's outputs of a chunk. Equal ones are judged once."""
    judged = []
    for y in outputs:
        same = [k for k, other in enumerate(outputs[: len(judged)]) if not differing_bits(y, other)]
        judged.append(judged[same[0]] if same else check(checker, function, inputs(index, share)[0], share, y))
    return judged


def edges(checker, function):
    """Inputs around the thresholds: where the wanted result becomes 0, a normal number, its limit or infinity."""

    def wanted(encoding):
        return np.float32(checker.wanted_of(CODES[function], float(np.uint32(encoding).view(np.float32))))

    def kind(encoding):
        v, x = wanted(encoding), np.uint32(encoding).view(np.float32)
        return bool(v == 0), bool(abs(v) < np.float32(2.0**-126)), bool(np.isinf(v)), bool(abs(v) == 1), bool(v == x)

    found = set()
    for sign in (0, 1 << 31):
        # magnitudes on a coarse grid; between two whose kind differs, the place by bisection
        grid = [sign + e for e in [1, *range(1 << 16, 0x7F800000, 1 << 16), 0x7F7FFFFF]]
        for low, high in itertools.pairwise(grid):
            if kind(low) != kind(high):
                while high - low > 1:
                    middle = (low + high) // 2
                    low, high = (middle, high) if kind(middle) == kind(low) else (low, middle)
                found |= {low - 1, low, high, high + 1}
    numbers = [np.uint32(e).view(np.float32) for e in sorted(found) if e & 0x7FFFFFFF <= 0x7F800000]
    return [(float(x), checker.wanted_of(CODES[function], float(x))) for x in numbers]


def load(path):
    return json.loads(path.read_text()) if path.exists() else {}


def save(path, value):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=1, allow_nan=True) + "\n")


def run(checker, function, isas, share, threads):
    """One result for each instruction set."""
    key = f"{function} {' '.join(isas)} 1/{share}"
    state = load(STATE)
    empty = {"next": 0, "parts": [{"inputs": 0, "wrong": 0, "open": 0, "shown": [], "hardest": []} for _ in isas]}
    all_ = state.setdefault(key, empty)
    chunks = (1 << 32) // CHUNK
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeRemainingColumn(),
    )
    with ThreadPoolExecutor(threads) as pool, Progress(*columns) as progress:
        task = progress.add_task(key, total=chunks, completed=all_["next"])
        while all_["next"] < chunks:
            batch = range(all_["next"], min(all_["next"] + 4 * threads, chunks))
            outputs = []
            for isa in isas:  # one after the other: the choice is the whole process's
                with use_isa(isa):
                    outputs.append(list(pool.map(lambda index: compute(function, index, share), batch)))
            judged = pool.map(lambda index, *ys: judge(checker, function, index, share, ys), batch, *outputs)
            for results in judged:
                for part, (shown, count, open_, hards) in zip(all_["parts"], results, strict=True):
                    part["wrong"] += count
                    part["open"] += open_
                    part["shown"] = (part["shown"] + shown)[:ROOM]
                    part["hardest"] = sorted(part["hardest"] + hards)[:HARDEST]
                    part["inputs"] += CHUNK // share
            all_["next"] = batch.stop
            progress.update(task, completed=all_["next"])
            save(STATE, state)
    del state[key]
    save(STATE, state)
    common = {"function": function, "share": share, "date": str(datetime.date.today()), "machine": machine()}
    return [common | {"isa": isa} | part for isa, part in zip(isas, all_["parts"], strict=True)]


def machine():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return "unknown"


def write_hard(checker, result):
    """tests/data/unary_hard/<function>.txt: input and output, one pair a line, hardest first, then the thresholds."""
    HARD.mkdir(parents=True, exist_ok=True)
    function = result["function"]
    pairs = [f"{x} {y}" for _, x, y in result["hardest"]]
    pairs += [f"{x.hex()} {y.hex()}" for x, y in edges(checker, function)]
    (HARD / f"{function}.txt").write_text("\n".join(pairs) + "\n")


def markdown(results):
    lines = [
        "# The exhaustive check",
        "",
        "Every float32 as input of each function, the output compared with the correctly rounded one: by float64 where",
        "that decides, by MPFR where it doesn't (`tools/exhaustive/check.c`). `python tools/exhaustive.py` repeats it.",
        "",
        "*open*: inputs whose result float64 leaves open by 2^-42. It is the kernels' margin too: for about as many they",  # noqa: E501
        "take the double-double path. (AVX-512's exp and silu try pairs of float32 first, and float64 where those leave it",  # noqa: E501
        "open.) *Hardest*: the input whose true value is closest to the middle of two float32, among those of at least",
        "2^-30, and how close, relative to the value.",
        "",
        "| function | instruction set | inputs | misrounded | open | hardest | distance | date | machine |",
        "| --- | --- | ---: | ---: | ---: | --- | ---: | --- | --- |",
    ]
    for r in results:
        distance, x, _ = r["hardest"][0] if r["hardest"] else (float("nan"), "", "")
        lines.append(
            f"| {r['function']} | {r['isa']} | {r['inputs']:,} | {r['wrong']} | {r['open']:,} | `{x}` |"
            f" 2^{distance:.1f} | {r['date']} | {r['machine']} |"
        )
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--function", action="append", choices=FUNCTIONS, help="default: all; may be repeated")
    parser.add_argument("--isa", action="append", choices=llorch.available_isas(), help="default: all; may be repeated")
    parser.add_argument("--share", type=int, default=1, help="take every SHARE-th input")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--spoil", action="store_true", help="spoil one result of each function; succeed if it is found"
    )
    arguments = parser.parse_args()
    checker = build()
    llorch.set_num_threads(1)
    functions, isas = arguments.function or list(FUNCTIONS), arguments.isa or list(llorch.available_isas())
    share, index = arguments.share, 0x3F800000 // CHUNK
    if arguments.spoil:
        for function, isa in itertools.product(functions, isas):
            with use_isa(isa):
                outputs = [compute(function, index, share), spoilt(compute(function, index, share))]
            clean, found = (count for _, count, *_ in judge(checker, function, index, share, outputs))
            print(f"{function}, {isa}: {clean} wrong as it is, {found} with one bit spoilt")
            if (clean, found) != (0, 1):
                raise SystemExit("the control failed")
        return
    failed = False
    for function in functions:
        for result in run(checker, function, isas, share, arguments.threads):
            print("{function} {isa}: {wrong} of {inputs} misrounded, {open} open".format(**result))
            for x, y, wanted in result["shown"]:
                print(f"  x {x} got {y} wanted {wanted}")
            failed |= result["wrong"] > 0
            results = load(RESULT).get("results", [])
            same = ("function", "isa", "share")
            results = [r for r in results if any(r[k] != result[k] for k in same)] + [result]
            results.sort(key=lambda r: (r["share"], r["isa"], CODES[r["function"]]))
            save(RESULT, {"results": results})
            RESULT.with_suffix(".md").write_text(markdown(results))
            if share == 1 and not result["wrong"]:
                write_hard(checker, result)
    if failed:
        raise SystemExit("misrounded results: see above")


if __name__ == "__main__":
    main()
