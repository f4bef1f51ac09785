"""Tokens per second of every family at one size, next to llama.cpp on the same file; and what a window saves.

    python benchmarks/bench_families.py                          # writes docs/benchmarks/families.json, .md and .png
    python benchmarks/bench_families.py --quick                  # fewer repetitions, prints only
    python benchmarks/bench_families.py --family gemma2 --family phi3 --quick
    python benchmarks/bench_families.py --tiny --quick           # small models: a minute or two

Every family of the registry, with random weights, is written as a GGUF file in F16 that llorch and llama.cpp read. One
family after the other: its engines are processes of their own (engines.py), their logits are compared, and they take
turns. Then one Mistral with and without a window goes to 4,096 positions, in llorch alone.
"""

import contextlib
import functools
import json
import math
import os
import tempfile
from pathlib import Path

import common
import engines
import model_files
import models
from models import Contender

from llorch.models import registry
from llorch.models.shapes import write_random

WORKLOADS = ("prefill 512", "decode")
LEAST = {"prefill 512": 1.2, "decode": 1.0}  # times llama.cpp's tokens/s, by OURS
FLOAT32, OURS, LLAMA_CPP = "llorch, float32", "llorch, bfloat16", "llama.cpp, F16"
COLOURS = {FLOAT32: common.SKY, OURS: common.BLUE, LLAMA_CPP: common.ORANGE}
POSITIONS, WINDOW = 4096, 1024
NO_WINDOW, WINDOWED = "no window", f"a window of {WINDOW:,}"


# ---- the models ------------------------------------------------------------------------------------------------


def entries_of(kind, tiny, **more):
    """config.json of a model_type: one size for all, by GPT-2's names and those of the others."""
    layers, width, heads, groups, gated = (3, 256, 4, 2, 512) if tiny else (12, 768, 12, 4, 2048)
    plain = gated * 3 // 2  # two matrices of this width are as much as three of `gated`
    entries = {
        **{"model_type": kind, "vocab_size": 1024 if tiny else 32000, "bos_token_id": 1, "eos_token_id": 2},
        **{"n_layer": layers, "n_embd": width, "n_head": heads, "n_inner": plain, "n_positions": 1024},
        **{"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": gated},
        **{"num_attention_heads": heads, "num_key_value_heads": groups, "head_dim": width // heads},
        "max_position_embeddings": 1024,
    }
    own = {
        "gpt_neox": {"num_key_value_heads": heads, "intermediate_size": plain},
        "starcoder2": {"intermediate_size": plain},
        "mistral": {"sliding_window": None},
        "phi3": {"sliding_window": 2047},  # its files have one; more than is measured here
        "granite": {  # the numbers of a Granite 3.0 of 8B parameters, which has 1 / head_dim too
            **{"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": 16.0},
            "attention_multiplier": 1 / (width // heads),
        },
        "gemma2": {"query_pre_attn_scalar": width // heads},
        "gemma3_text": {"query_pre_attn_scalar": width // heads},
    }
    return entries | own.get(kind, {}) | more


def wanted(options):
    """The families, in the registry's order."""
    found = {family.model_types[0]: family for family in registry.families() if family.kind == "decoder"}
    if unknown := set(options.family or ()) - found.keys():
        raise SystemExit(f"--family {', '.join(sorted(unknown))}: it must be one of {', '.join(found)}")
    return [family for kind, family in found.items() if kind in (options.family or found)]


def contenders(path):
    """llama.cpp rounds what it multiplies, keys and values to 16 bits too. The tolerances are Gemma 3's, whose random
    norms of queries and keys make attention sharp; all others are ten times as near."""
    found = {
        FLOAT32: ("llorch", 1e-4, "float32", "float32"),
        OURS: ("llorch", 1.5, "bfloat16", "bfloat16"),
        LLAMA_CPP: ("llama.cpp", 0.2, None, None),
    }
    return [
        Contender(name, kind, lambda: path, tolerance, COLOURS[name], option, kept)
        for name, (kind, tolerance, option, kept) in found.items()
    ]


# ---- measure ---------------------------------------------------------------------------------------------------


def measure_family(family, options):
    """Everything about one family but its targets, and the bytes that each engine reads for a token."""
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary)
        config = family.config(entries_of(family.model_types[0], options.tiny))
        write_random(folder, config, family)
        path = model_files.write_gguf(folder, folder / "F16.gguf", "F16")
        (folder / "model.safetensors").unlink()
        found = contenders(path)
        running, missing, _ = models.start(found, options.threads, options.engine, stack)
        missing = {name: why.replace(f"{folder}/", "") for name, why in missing.items()}
        if not running:
            raise SystemExit(f"no engine runs {family.name}: {missing}")
        print("  comparing logits", flush=True)
        distances = models.compare(found, running, path, models.PROMPT)
        workloads = {key: models.WORKLOADS[key] for key in WORKLOADS}
        return {
            "name": family.name,
            "model_type": family.model_types[0],
            "architecture": family.architectures[0],
            "parameters": sum(math.prod(shape) for shape in family.graph(config).shapes().values()),
            "missing": missing,
            "distances": distances,
            "bytes": {one.name: model_files.bytes_a_token(path, one.kept) for one in found if one.name in running},
            "sections": models.sections(running, workloads, 2 if options.quick else 3),
        }


def measure_window(options):
    """The same Mistral with a window and without, whose logits must be the same bits until the window is full."""
    family = next(family for family in registry.families() if "mistral" in family.model_types)
    entries = entries_of("mistral", options.tiny, max_position_embeddings=2 * POSITIONS)
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        paths = {name: Path(temporary, name) for name in (NO_WINDOW, WINDOWED)}
        for path in paths.values():
            path.mkdir()
        write_random(paths[NO_WINDOW], family.config(entries), family)
        os.link(paths[NO_WINDOW] / "model.safetensors", paths[WINDOWED] / "model.safetensors")
        (paths[WINDOWED] / "config.json").write_text(json.dumps(entries | {"sliding_window": WINDOW}))
        running = {
            name: stack.enter_context(models.Engine("llorch", path, options.threads, "bfloat16"))
            for name, path in paths.items()
        }
        prompt = engines.ids(WINDOW + 1)
        without, windowed = (running[name].array("logits", prompt) for name in (NO_WINDOW, WINDOWED))
        common.check_bits("inside the window", windowed[:WINDOW], without[:WINDOW])
        if not (windowed[WINDOW] != without[WINDOW]).any():
            raise SystemExit("the window changes nothing")
        workloads = {
            "prefill": (f"prefill, {POSITIONS:,} tokens", ("prefill", POSITIONS)),
            "decode": (f"decode behind {POSITIONS:,} tokens", ("decode", 1, POSITIONS, 32)),
        }
        return {"sections": models.sections(running, workloads, 1 if options.quick else 2)}


def targets(result):
    found = []
    for family in result["families"]:
        for workload, least in LEAST.items():
            title = f"{family['name']}: {workload}, 16-bit weights, beside llama.cpp"
            one = models.ratio_target(family, title, workload, OURS, workload, LLAMA_CPP, least)
            found.append({"family": family["name"], "workload": workload} | one)
    return found


# ---- show ------------------------------------------------------------------------------------------------------


def show_rate(part, name):
    row = next((row for row in part["rows"] if row["name"] == name), None)
    return "" if row is None else "{:.1f} [{:.1f}, {:.1f}]".format(row["tokens_per_s"], *row["quartiles"])


def show_ratio(part, name, base, least=0.0):
    rates = {row["name"]: row["tokens_per_s"] for row in part["rows"]}
    if not {name, base} <= rates.keys():
        return ""
    ratio = rates[name] / rates[base]
    return f"{ratio:.2f} x" if ratio >= least else f"**{ratio:.2f} x**"


def workload_table(result, k):
    """Tokens per second of one workload, a line a family."""
    part = result["families"][0]["sections"][k]
    key = part["key"]
    heads = [*COLOURS, f"{OURS}, beside llama.cpp"]
    if key == "decode":
        heads.append("memory allows with 16-bit weights")
    lines = ["", f"**{part['title']}** ({part['repetitions']} repetitions)", ""]
    lines += [f"| | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    for family in result["families"]:
        part = family["sections"][k]
        cells = [show_rate(part, name) or family["missing"][name] for name in COLOURS]
        cells.append(show_ratio(part, OURS, LLAMA_CPP, LEAST[key]))
        if key == "decode":
            limit = family["limits"].get(OURS)
            cells.append(f"{limit['tokens_per_s']:.1f}" if limit else "")
        lines += [f"| {family['name']} | {' | '.join(cells)} |"]
    met = [t["met"] for t in result["targets"] if t["workload"] == key and t["met"] is not None]
    lines += [
        "",
        f"Target: at least {LEAST[key]} x llama.cpp. Met by {sum(met)} of {len(met)} families; bold: not met.",
    ]
    return lines


def distance_table(result):
    lines = [
        "",
        "| | GGUF's architecture | parameters, millions | logits, from llorch's float32: bfloat16 | llama.cpp |",
    ]
    lines += ["| --- | --- | ---: | ---: | ---: |"]
    for family in result["families"]:
        cells = [family["architecture"], f"{family['parameters'] / 1e6:.1f}"]
        for name in (OURS, LLAMA_CPP):
            found = family["distances"].get(name)
            cells.append(models.show_distance(found["rms"]) if found else "")
        lines += [f"| {family['name']} | {' | '.join(cells)} |"]
    return [
        *lines,
        "",
        f"Distances are root mean squares in standard deviations of the logits, over all positions of "
        f"{len(models.PROMPT)} tokens. llorch's own are the same bits at once and token by token.",
    ]


def window_table(window):
    lines = ["", f"**What a window saves at {POSITIONS:,} positions**: Mistral in llorch, bfloat16", ""]
    lines += [f"| | {NO_WINDOW} | {WINDOWED} | with the window |", "| --- | ---: | ---: | ---: |"]
    for part in window["sections"]:
        cells = [show_rate(part, NO_WINDOW), show_rate(part, WINDOWED), show_ratio(part, WINDOWED, NO_WINDOW)]
        lines += [f"| {part['title']} ({part['repetitions']} repetitions) | {' | '.join(cells)} |"]
    return lines


def report(result):
    size = "{layers} layers of width {width}, {heads} heads of 64 and {groups} of keys and values".format(
        **result["size"]
    )
    note = (
        f"Random weights, {size} (GPT-2 and GPT-NeoX, which don't group: as many), feed-forward layers of "
        f"{result['size']['gated']:,}, or {result['size']['plain']:,} without a gate, {result['size']['tokens']:,} "
        f"tokens, embedding and head tied as each family has them by default; {result['threads']} threads, tokens per "
        f"second; decoding starts behind {models.DEPTH} tokens. llorch and llama.cpp read the same GGUF file in F16; "
        "llorch keeps its values as float32, or rounded to bfloat16."
    )
    lines = common.head_lines(result, note)[:1]
    for k in range(len(WORKLOADS)):
        lines += workload_table(result, k)
    lines += (window_table(result["window"]) if result["window"] else []) + distance_table(result)
    return "\n".join([*lines, "", *common.peak_lines(result["peaks"])]) + "\n"


def plot(result, path):
    """A panel for each workload, a group of bars for each family."""
    families = result["families"]
    drawn, axes = common.figure(len(WORKLOADS), (14, 2.2 + 0.24 * len(families) * (len(COLOURS) + 1)), [1, 1])
    bars = {}
    for k, axis in enumerate(axes):
        y, ticks, most = 0, [], 0.0
        for family in families:
            part, start = family["sections"][k], y
            for row in part["rows"]:
                name, value = row["name"], row["tokens_per_s"]
                bar = axis.barh(y, value, 0.86, color=COLOURS[name], edgecolor="#444444", linewidth=0.5)
                bars.setdefault(name, bar)
                box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
                axis.text(value * 1.012, y, f"{value:,.0f}", va="center", fontsize=9, bbox=box, zorder=5)
                limit = family["limits"][name]["tokens_per_s"] if part["key"] == "decode" else 0
                if limit:
                    axis.plot([limit] * 2, [y - 0.45, y + 0.45], color="black", linewidth=1.5)
                most = max(most, value, limit)
                y += 1
            ticks.append(((start + y - 1) / 2, family["name"]))
            y += 0.8
        common.group_axis(axis, ticks)
        axis.set_ylim(y - 0.9, -0.9)
        axis.set_xlim(0, most * 1.12)
        axis.set_title(part["title"], loc="left", fontweight="bold")
        axis.set_xlabel("tokens/s" + ("; | what memory allows" if part["key"] == "decode" else ""))
    common.save(drawn, result, bars, path, top=1 - 0.4 / drawn.get_figheight())


# ---- the run ---------------------------------------------------------------------------------------------------


def add_arguments(parser):
    parser.add_argument("--family", action="append", metavar="NAME", help="only this model_type (repeatable)")
    parser.add_argument("--tiny", action="store_true", help="small models instead")
    models.add_arguments(parser)


def main():
    options = common.arguments(__doc__, add_arguments)
    families = wanted(options)
    sizes = entries_of("", options.tiny)
    result = common.describe(options.quick, **models.versions(["llama-cpp-python"])) | {
        "threads": options.threads,
        "size": {
            "layers": sizes["n_layer"],
            "width": sizes["n_embd"],
            "heads": sizes["n_head"],
            "groups": sizes["num_key_value_heads"],
            "gated": sizes["intermediate_size"],
            "plain": sizes["n_inner"],
            "tokens": sizes["vocab_size"],
        },
    }
    common.set_threads(options.threads)
    steps = {"the machine's own peaks": lambda: common.peaks(options.quick)}
    steps |= {family.name: functools.partial(measure_family, family, options) for family in families}
    windowed = any("mistral" in family.model_types for family in families)
    if windowed:
        steps["a window"] = lambda: measure_window(options)
    steps["the peaks again"] = lambda: common.peaks(options.quick)
    before, *found, after = common.in_steps(steps)
    result |= {"window": found.pop() if windowed else None, "families": found, "peaks": common.higher(before, after)}
    bandwidth = result["peaks"]["read"][str(min(options.threads, 2))]
    for family in found:
        gb = {name: count / 1e9 for name, count in family.pop("bytes").items()}
        family["limits"] = {name: {"gb": one, "tokens_per_s": bandwidth / one} for name, one in gb.items()}
    result["targets"] = targets(result)
    common.publish("families", result, report(result), plot, options)


if __name__ == "__main__":
    main()
