"""Tokens per second of GPT-2 next to transformers, CTranslate2 and llama.cpp, as shares of what memory allows.

    python benchmarks/bench_gpt2.py                              # writes docs/benchmarks/gpt2.json, gpt2.md and .png
    python benchmarks/bench_gpt2.py --shape tiny --quick         # seconds; prints only
    python benchmarks/bench_gpt2.py --engine llorch --engine llama.cpp

The checkpoint has random weights in the shape of GPT-2 Medium and is made in a temporary folder. Every engine that is
installed is a process of its own (gpt2_engines.py); they take turns, and their logits are compared first.
"""

import contextlib
import dataclasses
import gzip
import importlib.metadata
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
import gpt2_engines as engines
import numpy as np

import llorch
from llorch.models.loading import shapes
from llorch.models.shapes import SHAPES, write_random

DEPTH = 64  # tokens before the first that is timed
WORKLOADS = {
    "decode": ("decode, 1 sequence", ("decode", 1, DEPTH, 32)),
    "prefill 128": ("prefill, 128 tokens", ("prefill", 128)),
    "prefill 512": ("prefill, 512 tokens", ("prefill", 512)),
    "together": ("decode, 8 sequences", ("decode", 8, DEPTH, 16)),
}
PROMPT = engines.ids(64, 3)
# How far a logit may be from llorch's in float32, in standard deviations of the logits. llama.cpp takes gelu from a
# table of 16-bit values and keeps keys and values in 16 bits, in "f32" too.
TOLERANCE = {"float32": 1e-4, "f32": 0.03, "f16": 0.03, "float16": 0.01, "bfloat16": 0.1, "int8": 0.4}
REST = 0.3  # seconds in which the last engine's threads go to sleep
TOKENIZERS = Path(__file__).resolve().parent.parent / "tests" / "data" / "gpt2_tokenizer"


# ---- engines ---------------------------------------------------------------------------------------------------


class Engine:
    """One process of gpt2_engines.py."""

    def __init__(self, name, folder, threads):
        script = Path(__file__).with_name("gpt2_engines.py")
        root = str(Path(llorch.__file__).resolve().parent.parent)
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
            "HF_HUB_OFFLINE": "1",
        }
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, str(script), name, str(folder), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
        )
        self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.log.seek(0)
            lines = self.log.read().strip().splitlines()
            raise RuntimeError(lines[-1] if lines else f"ended with status {self.process.returncode}")
        return json.loads(line)

    def ask(self, *request):
        with contextlib.suppress(BrokenPipeError):  # answer() says why
            print(json.dumps(request), file=self.process.stdin, flush=True)
        return self.answer()

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.log.close()


def start(folder, threads, wanted):
    """{name: Engine} and {name: why it is missing}."""
    running, absent = {}, {}
    for name in engines.PACKAGES:
        if wanted and not any(name.startswith(prefix) for prefix in wanted):
            absent[name] = "not asked for"
        elif packages := engines.missing(name):
            absent[name] = f"not installed: {', '.join(packages)}"
        else:
            print(f"  loading {name}", flush=True)
            try:
                running[name] = Engine(name, folder, threads)
            except RuntimeError as error:
                absent[name] = f"doesn't run: {error}"
    return running, absent


def compare(running, folder):
    """Largest distance of each engine's logits from llorch's in float32; an engine that is too far away ends the run.

    llorch's own are first compared with themselves: at once, token by token, and the row of `forward`.
    """
    model = llorch.GPT2.from_pretrained(folder, dtype="float32")
    wanted = model.forward(PROMPT)[-1]
    cache = model.new_cache()
    for token in PROMPT:
        stepped = model.step([[token]], [cache])[0]
    common.check_bits("llorch, token by token", stepped, wanted)
    distances = {}
    for name, engine in running.items():
        path = Path(folder, "logits.npy")
        engine.ask("logits", PROMPT, str(path))
        got = np.load(path)
        if name == "llorch, float32":
            common.check_bits(name, got, wanted)
        kind = name.rpartition(" ")[2]
        common.check_near(name, got, wanted, TOLERANCE[kind] * float(wanted.std()))
        distances[name] = float(np.abs(got - wanted).max())
    return distances


# ---- measure ---------------------------------------------------------------------------------------------------


def measure(running, request, repetitions):
    """{name: seconds of each repetition}; the engines take turns, each is run once before it counts."""
    names, samples = list(running), {name: [] for name in running}
    for name in names:
        running[name].ask(*request)
    for repetition in range(repetitions):
        k = repetition % len(names)
        for name in names[k:] + names[:k]:
            time.sleep(REST)
            samples[name].append(running[name].ask(*request))
    return samples


def tokens_of(request):
    """How many tokens a request is about."""
    return request[1] if request[0] == "prefill" else request[1] * request[3]


def row_of(name, request, values):
    rates = sorted(tokens_of(request) / value for value in values)
    low, high = np.percentile(rates, [25, 75]).tolist()
    return {"name": name, "tokens_per_s": statistics.median(rates), "quartiles": [low, high]}


def bytes_a_token(name, config):
    """What has to be read for one token: every weight but the rows of wte and wpe that aren't looked up."""
    parameters = sum(math.prod(shape) for shape in shapes(config).values()) - config.n_positions * config.n_embd
    return parameters * {"int8": 1, "float32": 4, "f32": 4}.get(name.rpartition(" ")[2], 2)


def rate(result, workload, name):
    section = next((s for s in result["sections"] if s["key"] == workload), {"rows": []})
    return next((row["tokens_per_s"] for row in section["rows"] if row["name"] == name), None)


def targets(result):
    """What llorch wants to reach, as ratios of tokens per second in this run."""
    best = max(
        (name for name in ("llorch, bfloat16", "llorch, float16") if rate(result, "decode", name)),
        key=lambda name: rate(result, "decode", name),
        default="llorch, bfloat16",
    )
    wanted = [
        ("decode, float32: at least 1.1 x llama.cpp", "decode", "llorch, float32", "decode", "llama.cpp, f32", 1.1),
        ("decode, 16-bit: at least 1.25 x llama.cpp's f16", "decode", best, "decode", "llama.cpp, f16", 1.25),
    ]
    for workload in ("prefill 128", "prefill 512"):
        title = f"{workload}, float32: at least 1.1 x llama.cpp"
        wanted.append((title, workload, "llorch, float32", workload, "llama.cpp, f32", 1.1))
    title = "8 sequences together: at least 4 x one"
    wanted.append((title, "together", "llorch, float32", "decode", "llorch, float32", 4.0))
    lines = []
    for title, workload, name, base, other, least in wanted:
        ours, theirs = rate(result, workload, name), rate(result, base, other)
        ratio = ours / theirs if ours and theirs else None
        measured = "" if ratio is None else f"{ratio:.2f} x ({ours:.1f} and {theirs:.1f} tokens/s)"
        lines.append({"target": title, "measured": measured, "met": None if ratio is None else ratio >= least})
    return lines


# ---- show ------------------------------------------------------------------------------------------------------


def report(result):
    note = (
        f"GPT-2 of shape {result['shape']}, random weights, {result['threads']} threads, tokens per second; decoding "
        f"starts behind {DEPTH} tokens."
    )
    lines = common.head_lines(result, note)
    lines += [f"| | {' | '.join(s['title'] for s in result['sections'])} | logits, from llorch's float32 |"]
    lines += [f"| --- |{' ---: |' * (len(result['sections']) + 1)}"]
    for name in engines.PACKAGES:
        cells = []
        for section in result["sections"]:
            row = next((row for row in section["rows"] if row["name"] == name), None)
            cells.append(
                "" if row is None else "{:.1f} [{:.1f}, {:.1f}]".format(row["tokens_per_s"], *row["quartiles"])
            )
        if name in result["distances"]:
            distance = result["distances"][name]
            lines += [f"| {name} | {' | '.join(cells)} | {'same bits' if distance == 0 else f'{distance:.1e}'} |"]
    for name, why in result["missing"].items():
        lines += [f"| {name} |{' |' * len(result['sections'])} {why} |"]
    lines += ["", "Reading the weights once from memory limits decoding one sequence:", ""]
    lines += ["| | GB a token | at most, tokens/s | reached |", "| --- | ---: | ---: | ---: |"]
    for name, limit in result["limits"].items():
        got = rate(result, "decode", name)
        lines += [f"| {name} | {limit['gb']:.2f} | {limit['tokens_per_s']:.1f} | {got / limit['tokens_per_s']:.0%} |"]
    lines += ["", *common.peak_lines(result["peaks"])]
    if result["shape"] == "medium":
        lines += ["", *common.target_lines(result["targets"])]
    return "\n".join(lines) + "\n"


COLOURS = dict(zip(engines.LLORCH, (common.SKY, common.BLUE, common.GREEN), strict=True)) | {
    engines.TRANSFORMERS: common.RED,
    "CTranslate2, float32": common.YELLOW,
    "CTranslate2, int8": common.GREY,
    "llama.cpp, f32": common.ORANGE,
    "llama.cpp, f16": common.PURPLE,
}


def plot(result, path):
    """A panel for each workload, a bar for each engine."""
    sections = result["sections"]
    drawn, axes = common.figure(len(sections), (14, 1.8 + 0.42 * len(result["distances"])), [1] * len(sections))
    bars = {}
    for axis, section in zip(np.atleast_1d(axes), sections, strict=True):
        most = max(row["tokens_per_s"] for row in section["rows"])
        for y, row in enumerate(section["rows"]):
            value = row["tokens_per_s"]
            bar = axis.barh(y, value, 0.84, color=COLOURS[row["name"]], edgecolor="#444444", linewidth=0.5)
            bars.setdefault(row["name"], bar)
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
            text = f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
            axis.text(value + 0.03 * most, y, text, va="center", bbox=box, zorder=5)
            limit = result["limits"].get(row["name"]) if section["key"] == "decode" else None
            if limit:
                axis.plot([limit["tokens_per_s"]] * 2, [y - 0.45, y + 0.45], color="black", linewidth=1.5)
                most = max(most, limit["tokens_per_s"])
        axis.set_xlim(0, most * 1.2)
        axis.set_yticks([])
        axis.invert_yaxis()
        axis.set_title(section["title"], loc="left", fontweight="bold")
        axis.set_xlabel("tokens/s" + ("; | what memory allows" if section["key"] == "decode" else ""))
    common.save(drawn, result, bars, path, top=0.84)


# ---- the run ---------------------------------------------------------------------------------------------------


def add_tokenizer(folder, config):
    """CTranslate2 takes its tokens as text, so it wants a vocabulary of the right size."""
    if config.vocab_size == 50257:
        for name in ("vocab.json", "merges.txt"):
            (folder / name).write_bytes(gzip.decompress((TOKENIZERS / f"{name}.gz").read_bytes()))
        entries = {"tokenizer_class": "GPT2Tokenizer"} | dict.fromkeys(
            ("bos_token", "eos_token", "unk_token"), "<|endoftext|>"
        )
        (folder / "tokenizer_config.json").write_text(json.dumps(entries))
    else:
        embedded = Path(llorch.__file__).parent / "data" / "shakespeare-1m"
        for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
            shutil.copy(embedded / name, folder)


def add_arguments(parser):
    parser.add_argument("--shape", choices=("tiny", "small", "medium", "large", "xl"), default="medium")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--engine", action="append", help="only engines whose name begins so (repeatable)")


def main():
    options = common.arguments(__doc__, add_arguments)
    config = dataclasses.replace(SHAPES[options.shape], n_positions=1024)
    repetitions = 3 if options.quick else 7
    versions = {}
    for package in ("transformers", "ctranslate2", "llama-cpp-python"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    result = common.describe(options.quick, **versions) | {"shape": options.shape, "threads": options.threads}
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary)
        print("[1/4] the machine's own peaks", flush=True)
        before = common.peaks(options.quick)
        print("[2/4] the checkpoint, and the engines", flush=True)
        write_random(folder, config)
        add_tokenizer(folder, config)
        common.set_threads(options.threads)
        running, result["missing"] = start(folder, options.threads, options.engine)
        for engine in running.values():
            stack.callback(engine.close)
        print("[3/4] comparing logits", flush=True)
        result["distances"] = compare(running, folder)
        print("[4/4] measuring", flush=True)
        result["sections"] = []
        for key, (title, request) in WORKLOADS.items():
            print(f"  {title}", flush=True)
            samples = measure(running, request, repetitions)
            rows = [row_of(name, request, values) for name, values in samples.items()]
            result["sections"].append({"key": key, "title": title, "repetitions": repetitions, "rows": rows})
    result["peaks"] = common.higher(before, common.peaks(options.quick))
    bandwidth = result["peaks"]["read"][str(min(options.threads, 2))]
    result["limits"] = {}
    for name in running:
        gb = bytes_a_token(name, config) / 1e9
        result["limits"][name] = {"gb": gb, "tokens_per_s": bandwidth / gb}
    result["targets"] = targets(result)
    common.publish("gpt2", result, report(result), plot, options)


if __name__ == "__main__":
    main()
