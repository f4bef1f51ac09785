"""What the benchmarks of whole models share: engines as processes (engines.py), their logits, tokens per second, plots.

A benchmark lists contenders and workloads; `run` starts every engine that is installed, compares their logits, and lets
them take turns.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import common
import engines
import model_files
import numpy as np

import llorch

DEPTH = 64  # tokens before the first that is timed
WORKLOADS = {
    "decode": ("decode, 1 sequence", ("decode", 1, DEPTH, 32)),
    "prefill 128": ("prefill, 128 tokens", ("prefill", 128)),
    "prefill 512": ("prefill, 512 tokens", ("prefill", 512)),
    "together": ("decode, 8 sequences", ("decode", 8, DEPTH, 16)),
}
PROMPT = engines.ids(64, 3)
EXACT = ("float32", "file")  # options of llorch that give every value as the file has it
REST = 0.3  # seconds in which the last engine's threads go to sleep
COPYING = "a copy of the file"
PACKAGES = ("transformers", "ctranslate2", "llama-cpp-python")


@dataclass(frozen=True)
class Contender:
    """An engine on a file.

    kind, option : of engines.py. make : gives the path of its file. tolerance : how far a logit may be from llorch's in
    float32, in standard deviations of all logits. kept : the type of its weights in memory, None: as in the file.
    """

    name: str
    kind: str
    make: Callable[[], Path]
    tolerance: float
    colour: str
    option: str | None = None
    kept: str | None = None


# ---- engines ---------------------------------------------------------------------------------------------------


class Engine:
    """One process of engines.py, or of another script of such engines; its methods are asked for by name."""

    def __init__(self, kind, path, threads, option=None, script=engines.__file__):
        root = str(Path(llorch.__file__).resolve().parent.parent)
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, script, kind, str(path), str(threads), *([option] if option else [])]
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment
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

    def array(self, *request):
        """The answer to a request for an array, or None."""
        file = self.ask(*request)
        return file and np.load(file)

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.log.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def start(contenders, threads, wanted, stack, script=engines.__file__):
    """{name: Engine}, {name: why it is missing} and {name: path}."""
    running, absent, paths = {}, {}, {}
    for one in contenders:
        if wanted and not any(one.name.startswith(prefix) for prefix in wanted):
            absent[one.name] = "not asked for"
        elif packages := engines.missing(one.kind):
            absent[one.name] = f"not installed: {', '.join(packages)}"
        else:
            print(f"  loading {one.name}", flush=True)
            try:
                paths[one.name] = one.make()
                running[one.name] = stack.enter_context(Engine(one.kind, paths[one.name], threads, one.option, script))
            except RuntimeError as error:
                absent[one.name] = f"doesn't run: {error}"
    return running, absent, paths


def compare(contenders, running, path, prompt):
    """How far each engine's logits are, in standard deviations of llorch's float32 ones, from those ("rms", "largest";
    "argmax" counts the positions where another token is ahead), and from its own token by token ("stepped", None where
    it can't step). One that is too far away ends the run.

    llorch's own must have the same bits at once and token by token.
    """
    wanted = llorch.CausalLM.from_pretrained(path, dtype="float32").forward(prompt)
    unit, distances = float(wanted.std()), {}
    for one in contenders:
        if one.name not in running:
            continue
        engine = running[one.name]
        got = engine.array("logits", prompt)
        stepped = engine.array("stepped", prompt)
        if one.kind == "llorch":
            common.check_bits(f"{one.name}, token by token", stepped, got)
        if one.kind == "llorch" and one.option in EXACT:
            common.check_bits(one.name, got, wanted)
        common.check_near(one.name, got, wanted, one.tolerance * unit)
        away = np.abs(got.astype(np.float64) - wanted) / unit
        distances[one.name] = {
            "rms": float(np.sqrt((away * away).mean())),
            "largest": float(away.max()),
            "argmax": int((got.argmax(axis=1) != wanted.argmax(axis=1)).sum()),
            "stepped": None if stepped is None else float(np.abs(stepped.astype(np.float64) - got).max() / unit),
        }
    return distances


# ---- measure ---------------------------------------------------------------------------------------------------


def measure(running, request, repetitions, between=()):
    """{name: seconds of each repetition}; the engines take turns, each is run once before it counts. between :
    functions that are called before each turn."""
    names, samples = list(running), {name: [] for name in running}
    for name in names:
        running[name].ask(*request)
    for repetition in range(repetitions):
        k = repetition % len(names)
        for name in names[k:] + names[:k]:
            for other in between:
                other()
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


def sections(running, workloads, repetitions, between=None):
    """A section for each of {key: (title, request)}, with a row for each engine. between : by key, functions
    that are called before each turn."""
    found = []
    for key, (title, request) in workloads.items():
        print(f"  {title}", flush=True)
        samples = measure(running, request, repetitions, (between or {}).get(key, ()))
        found.append(section_of(key, title, request, samples))
    return found


def section_of(key, title, request, samples):
    """samples : by engine, seconds of each repetition."""
    rows = [row_of(name, request, values) for name, values in samples.items()]
    return {"key": key, "title": title, "repetitions": max(map(len, samples.values())), "rows": rows}


class Copying:
    """In an engine's place: its process only reads the file into new memory."""

    def __init__(self, engine):
        self.engine = engine

    def ask(self, what):
        return self.engine.ask("copy" if what == "load" else what)


class LlamaBench:
    """In an engine's place: another build of llama.cpp or a fork of it, by the llama-bench that comes with it, which
    times itself. Decoding starts with an empty cache.

    command : the program and arguments of its own, a list
    """

    def __init__(self, command, path, threads):
        self.command = [*command, "-m", str(path), "-t", str(threads), "-r", "1", "-o", "json"]

    def ask(self, what, *arguments):
        """Seconds of ("prefill", length) or of ("decode", 1, depth, steps)."""
        prompt, new = (arguments[0], 0) if what == "prefill" else (0, arguments[2])
        try:
            done = subprocess.run([*self.command, "-p", str(prompt), "-n", str(new)], capture_output=True, text=True)
        except OSError as error:
            raise RuntimeError(f"{self.command[0]}: {error.strerror}") from error
        if done.returncode:
            raise RuntimeError(f"{self.command[0]}: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
        try:
            return json.loads(done.stdout)[0]["avg_ns"] / 1e9
        except (ValueError, LookupError, TypeError) as error:
            raise RuntimeError(f"{self.command[0]} doesn't answer as llama-bench does: {done.stdout[:80]!r}") from error


def start_llama_bench(commands, path, threads):
    """{name: LlamaBench}, and {name: why it is missing}."""
    running, absent = {}, {}
    for name, command in commands:
        engine = LlamaBench(command, path, threads)
        try:
            engine.ask("prefill", 1)
        except RuntimeError as error:
            absent[name] = f"doesn't run: {error}"
            print(f"  {name} {absent[name]}", flush=True)
        else:
            running[name] = engine
    return running, absent


def named_command(text):
    """An argument "NAME=COMMAND": the name, and the command's words."""
    name, _, command = text.partition("=")
    words = shlex.split(command)
    if not name or not words:
        raise argparse.ArgumentTypeError(f"{text!r} isn't NAME=COMMAND")
    if not shutil.which(words[0]):
        raise argparse.ArgumentTypeError(f"there is no program {words[0]}")
    return name, words


def loading(running, repetitions, copying=None):
    """{name: bytes of the file, median and quartiles of the seconds}; the file is in the page cache. copying : the
    engine whose file is also only copied, in turns with the others, as COPYING."""
    found, every = {}, dict(running)
    if copying in running:
        every[COPYING] = Copying(running[copying])
    for name, values in measure(every, ("load",), repetitions).items():
        low, median, high = np.percentile(values, [25, 50, 75]).tolist()
        found[name] = {"bytes": every[name].ask("file_bytes"), "median_s": median, "quartiles_s": [low, high]}
    return found


def rate(result, workload, name):
    section = next((s for s in result["sections"] if s["key"] == workload), {"rows": []})
    return next((row["tokens_per_s"] for row in section["rows"] if row["name"] == name), None)


def ratio_target(result, title, workload, name, base, other, least):
    """A target: tokens/s of `name` in `workload` are to be `least` times those of `other` in `base`."""
    ours, theirs = rate(result, workload, name), rate(result, base, other)
    ratio = ours / theirs if ours and theirs else None
    measured = "" if ratio is None else f"{ratio:.2f} x ({ours:.1f} and {theirs:.1f} tokens/s)"
    return {
        "target": f"{title}: at least {least} x", "measured": measured, "met": None if ratio is None else ratio >= least
    }  # fmt: skip


# ---- show ------------------------------------------------------------------------------------------------------


def table(result):
    """Tokens per second and distances, a line an engine."""
    heads = [section["title"] for section in result["sections"]]
    heads += ["logits, from llorch's float32: root mean square", "largest", "its own, at once and token by token"]
    lines = [f"| | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    for name, distance in result["distances"].items():
        cells = []
        for section in result["sections"]:
            row = next((row for row in section["rows"] if row["name"] == name), None)
            cells.append(
                "" if row is None else "{:.1f} [{:.1f}, {:.1f}]".format(row["tokens_per_s"], *row["quartiles"])
            )
        cells += [show_distance(distance[key]) for key in ("rms", "largest", "stepped")]
        lines += [f"| {name} | {' | '.join(cells)} |"]
    for name, why in result["missing"].items():
        lines += [f"| {name} |{' |' * (len(heads) - 1)} {why} |"]
    lines += ["", f"Distances are in standard deviations of the logits, over all positions of {len(PROMPT)} tokens."]
    return lines


def show_distance(value):
    return "no such call" if value is None else "same bits" if value == 0 else f"{value:.1e}"


def limit_table(result):
    lines = ["", "Reading the weights once from memory limits decoding one sequence:", ""]
    lines += ["| | GB a token | at most, tokens/s | reached |", "| --- | ---: | ---: | ---: |"]
    for name, limit in result["limits"].items():
        got = rate(result, "decode", name)
        lines += [f"| {name} | {limit['gb']:.3f} | {limit['tokens_per_s']:.1f} | {got / limit['tokens_per_s']:.0%} |"]
    return lines


def load_table(result):
    lines = [
        "",
        "Loading a file that is in the page cache (llama.cpp maps it, and reads what it needs later):",
        "",
    ]
    lines += ["| | MB of file | seconds | GB of file a second |", "| --- | ---: | ---: | ---: |"]
    for name, load in result["loading"].items():
        low, high = load["quartiles_s"]
        rate = load["bytes"] / load["median_s"] / 1e9
        lines += [
            f"| {name} | {load['bytes'] / 1e6:.0f} | {load['median_s']:.3f} [{low:.3f}, {high:.3f}] | {rate:.2f} |"
        ]
    return lines


def plot(colours, result, path):
    """A panel for each workload, a bar for each engine; in the last one how far an engine is from itself."""
    sections, names = result["sections"], list(result["distances"])
    panels = len(sections) + 1
    drawn, axes = common.figure(panels, (16, 1.9 + 0.42 * len(names)), [1] * panels)
    bars = {}
    for axis, section in zip(axes, sections, strict=False):
        most = max(row["tokens_per_s"] for row in section["rows"])
        for y, row in enumerate(section["rows"]):
            value = row["tokens_per_s"]
            bar = axis.barh(y, value, 0.84, color=colours[row["name"]], edgecolor="#444444", linewidth=0.5)
            bars.setdefault(row["name"], bar)
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
            text = f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
            axis.text(value + 0.03 * most, y, text, va="center", bbox=box, zorder=5)
            limit = result["limits"].get(row["name"]) if section["key"] == "decode" else None
            if limit:
                axis.plot([limit["tokens_per_s"]] * 2, [y - 0.45, y + 0.45], color="black", linewidth=1.5)
                most = max(most, limit["tokens_per_s"])
        axis.set_xlim(0, most * 1.25)
        axis.locator_params(axis="x", nbins=4)
        axis.set_yticks([])
        axis.invert_yaxis()
        axis.set_title(section["title"], loc="left", fontweight="bold")
        axis.set_xlabel("tokens/s" + ("; | what memory allows" if section["key"] == "decode" else ""))
    distance_panel(axes[-1], {name: result["distances"][name]["stepped"] for name in names}, colours)
    common.save(drawn, result, bars, path, top=1 - 0.35 * (-(-len(bars) // 4)) / drawn.get_figheight())


def distance_panel(axis, distances, colours):
    """Bars on a logarithmic axis; nothing but a word for what has the same bits or can't step."""
    found = [value for value in distances.values() if value]
    low, high = min(found, default=1e-6) / 10, max(found, default=1.0)
    axis.set_xscale("log")
    axis.set_xlim(low, high * 300)
    for y, (name, value) in enumerate(distances.items()):
        if value:
            axis.barh(y, value - low, 0.84, left=low, color=colours[name], edgecolor="#444444", linewidth=0.5)
        axis.text((value or low) * 1.5, y, show_distance(value), va="center")
    axis.set_ylim(len(distances) - 0.5, -0.5)
    axis.set_yticks([])
    axis.set_title("at once or token by token", loc="left", fontweight="bold")
    axis.set_xlabel("its logits differ, standard deviations")


# ---- the run ---------------------------------------------------------------------------------------------------


def add_arguments(parser):
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--engine", action="append", help="only engines whose name begins so (repeatable)")


def versions(packages):
    """Of those that are installed, by name."""
    found = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def run(contenders, reference, options, *, prompt=PROMPT, load=False):
    """Everything that is measured: the result of a benchmark, but its targets.

    reference : function that gives the path of the model that llorch's float32 logits are of. load : whether loading is
    measured.
    """
    repetitions = 3 if options.quick else 7
    result = common.describe(options.quick, **versions(PACKAGES)) | {"threads": options.threads}
    with contextlib.ExitStack() as stack:
        print("[1/4] the machine's own peaks", flush=True)
        before = common.peaks(options.quick)
        print("[2/4] the files, and the engines", flush=True)
        path = reference()
        common.set_threads(options.threads)
        running, result["missing"], paths = start(contenders, options.threads, options.engine, stack)
        if not running:
            raise SystemExit(f"no engine runs: {result['missing']}")
        print("[3/4] comparing logits", flush=True)
        result["distances"] = compare(contenders, running, path, prompt)
        print("[4/4] measuring", flush=True)
        result["sections"] = sections(running, WORKLOADS, repetitions)
        if load:
            print("  loading", flush=True)
            result["loading"] = loading(running, repetitions)
    result["peaks"] = common.higher(before, common.peaks(options.quick))
    bandwidth = result["peaks"]["read"][str(min(options.threads, 2))]
    result["limits"] = {}
    for one in contenders:
        if one.name in running:
            gb = model_files.bytes_a_token(paths[one.name], one.kept) / 1e9
            result["limits"][one.name] = {"gb": gb, "tokens_per_s": bandwidth / gb}
    return result
