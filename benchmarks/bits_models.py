"""Whose logits keep their bits: llorch's, transformers' and llama.cpp's for prompts computed in different ways.

    python benchmarks/bits_models.py                   # the embedded model and SmolLM2; writes docs/benchmarks/bits.*
    python benchmarks/bits_models.py --model PATH      # other models beside the embedded one (repeatable)
    python benchmarks/bits_models.py --prompts 12      # fewer prompts; --every 1: as many for the other models

PATH is a folder or a GGUF file. transformers gets a folder of the file's values, llama.cpp the GGUF file, or one in F32
made of the folder. 60 prompts, written by the embedded model itself from seeds 0 to 59, so that everybody has the same,
every fourth of them for other models. Each is computed at once by one thread, and then again, token by token with the
cache, together with all others, and by two threads. Some 5 minutes on two cores, most of them token by token.
"""

import importlib.metadata
import tempfile
import time
import warnings
from pathlib import Path

import common
import engines
import model_files
import numpy as np

import llorch
from llorch.files import open_model
from llorch.testing import differing_bits

EMBEDDED = "shakespeare-1m"
LENGTHS = (4, 160)  # new tokens of the shortest and the longest prompt
ONE, OTHER = 1, 2  # threads
EVERY = 4  # of the prompts, one goes to models beside the embedded one, for which a token takes a hundred times as long
COLOURS = {"llorch": common.BLUE, "transformers": common.RED, "llama.cpp": common.ORANGE}


class ManySequences(engines.LlamaCpp):
    """Room for all prompts in one batch."""

    ROOM, SEQUENCES = 8192, 64


def prompts_of(count):
    """Verse: "ROMEO:" and what the embedded model makes of it, longer and longer."""
    model = llorch.CausalLM.from_pretrained(EMBEDDED)
    lengths = np.linspace(*LENGTHS, count).round().astype(int).tolist()
    return ["ROMEO:" + model.generate("ROMEO:", n, temperature=1.0, seed=i) for i, n in enumerate(lengths)]


def makers(path, folder):
    """{name: function that makes an engine on a model's files}; those whose packages are there."""

    def hugging_face():
        return path if path.is_dir() else model_files.write_folder(path, folder / "float32")

    def gguf():
        return model_files.write_gguf(path, folder / "F32.gguf") if path.is_dir() else path

    found = {
        "llorch": lambda: engines.Llorch(path, ONE, "float32"),
        "transformers": lambda: engines.Transformers(hugging_face(), ONE),
        "llama.cpp": lambda: ManySequences(gguf(), ONE),
    }
    return {name: make for name, make in found.items() if not engines.missing(name)}


def changes(pairs):
    """How many prompts have logits with other bits or another likeliest token, and the largest difference.

    pairs is looked through once, so that one prompt's logits at a time need to be there.
    """
    bits, tokens, largest = 0, 0, 0.0
    for got, wanted in pairs:
        bits += differing_bits(got, wanted) > 0
        tokens += int((got.argmax(-1) != wanted.argmax(-1)).any())
        largest = max(largest, float(np.abs(got - wanted).max()))
    return {"bits": bits, "tokens": tokens, "largest": largest}


def measure(path, texts, folder):
    """{"ways": {engine: {way: changes}}, "apart": {engine: its largest distance from llorch}, "lengths"}."""
    found, apart, ours = {}, {}, []
    for name, make in makers(path, folder).items():
        start = time.perf_counter()
        engine = make()
        if name == "llorch":
            tokenizer, context = engine.model.tokenizer, engine.model.config.context
            prompts = [tokenizer.encode(text)[:context] for text in texts]
        whole = [np.array(engine.logits(ids)) for ids in prompts]
        last = [logits[-1] for logits in whole]
        found[name] = {
            "again": changes(zip(map(engine.logits, prompts), whole, strict=True)),
            "token by token, with the cache": changes(zip(map(engine.stepped, prompts), whole, strict=True)),
            f"all {len(prompts)} in one batch": changes(zip(engine.together(prompts), last, strict=True)),
        }
        engine.use(OTHER)
        on_others = changes(zip(map(engine.logits, prompts), whole, strict=True))
        found[name][f"on {OTHER} threads instead of {ONE}"] = on_others
        if name == "llorch":
            ours = whole
        else:
            apart[name] = changes(zip(whole, ours, strict=True))["largest"]
        print(f"  {name}: {time.perf_counter() - start:.0f} s", flush=True)
    return {
        "ways": found,
        "apart": apart,
        "lengths": [min(map(len, prompts)), max(map(len, prompts))],
        "prompts": len(prompts),
    }


def table(found, written):
    low, high = found["lengths"]
    count = found["prompts"]
    some = f"{count} prompts" if count == written else f"{count} of these {written} prompts,"
    apart = " and ".join(f"{distance:.1e} from those of {name}" for name, distance in found["apart"].items())
    lines = [
        "",
        f"**{found['model']}**: {some} of {low} to {high} tokens; all positions' logits, in the batch the "
        "last one's." + (f" llorch's logits are at most {apart}." if apart else ""),
        "",
        "| compared with each prompt alone, at once | prompts whose bits change | whose likeliest token changes | "
        "largest difference |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, ways in found["ways"].items():
        for way, change in ways.items():
            largest = f"{change['largest']:.1e}" if change["largest"] else "0"
            lines += [f"| {name}, {way} | {change['bits']} of {count} | {change['tokens']} | {largest} |"]
    return lines


def report(result):
    lines = ["# Whose logits keep their bits", ""]
    lines += [f"{result['date']}: {result['cpu']}, {result['cores']} cores, instruction set {result['isa']}; "]
    lines[-1] += ", ".join(f"{k} {v}" for k, v in result["versions"].items()) + ". Made by `benchmarks/bits_models.py`."
    for found in result["models"]:
        lines += table(found, result["models"][0]["prompts"])
    return "\n".join(lines) + "\n"


def plot(result, path):
    """The share of prompts whose bits change: a panel a model, a group a way."""
    drawn, axes = common.figure(len(result["models"]), (14, 5.6), [1] * len(result["models"]))
    bars = {}
    for axis, found in zip(np.atleast_1d(axes), result["models"], strict=True):
        y, ticks, count = 0.0, [], found["prompts"]
        for way in found["ways"]["llorch"]:
            start = y
            for name, ways in found["ways"].items():
                changed = ways[way]["bits"]
                bars[name] = axis.barh(
                    y, changed / count, 0.86, color=COLOURS[name], edgecolor="#444444", linewidth=0.5
                )
                axis.text(changed / count + 0.01, y, f"{changed} of {count}", va="center")
                y += 1
            ticks.append(((start + y - 1) / 2, way.replace(", ", ",\n")))
            y += 0.9
        common.group_axis(axis, ticks)
        axis.set_xlim(0, 1.2)
        axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
        axis.set_xlabel("prompts whose logits have other bits than alone, at once")
        axis.set_title(found["model"], loc="left", fontweight="bold")
    common.save(drawn, result, bars, path, top=0.92)


def main():
    def add(parser):
        parser.add_argument("--model", action="append", help="a folder or a GGUF file, beside the embedded model")
        parser.add_argument("--prompts", type=int, default=60, help="of the embedded model (60)")
        parser.add_argument("--every", type=int, default=EVERY, help=f"of these, for other models ({EVERY})")

    options = common.arguments(__doc__, add)
    warnings.simplefilter("ignore", FutureWarning)  # of a new name for past_key_values, which older versions lack
    others = [model_files.smollm2()] if options.model is None else options.model
    texts = prompts_of(6 if options.quick else options.prompts)
    versions = {}
    for package in ("transformers", "llama-cpp-python"):
        if package not in [name for kind in engines.KINDS for name in engines.missing(kind)]:
            versions[package] = importlib.metadata.version(package)
    result = common.describe(options.quick, **versions) | {"models": []}
    for k, model in enumerate([EMBEDDED, *others], 1):
        print(f"[{k}/{len(others) + 1}] {model}", flush=True)
        path = open_model(model).path
        with tempfile.TemporaryDirectory() as folder:
            found = measure(
                path, texts if model == EMBEDDED else texts[options.every - 1 :: options.every], Path(folder)
            )
        result["models"].append({"model": path.stem if path.is_file() else path.name} | found)
    common.publish("bits", result, report(result), plot, options)
    if any(change["bits"] for found in result["models"] for change in found["ways"]["llorch"].values()):
        raise SystemExit("llorch's own bits changed")


if __name__ == "__main__":
    main()
