"""Modules by llorch.torch.exact next to the PyTorch modules that they are copies of, on 2 threads each.

    python benchmarks/bench_torch.py                      # writes docs/benchmarks/torch.json, .md and .png
    python benchmarks/bench_torch.py --quick              # fewer repetitions, prints only
    python benchmarks/bench_torch.py --only blocks        # measures these, and takes the others from the last run

Every linear layer of MiniLM and GPT-2 Medium, transformers' block of each, and what else is in a block by itself: 16,
128 and 512 tokens. Between samples, threads get 50 ms to stop spinning.
"""

import json

import common
import torch
import transformers
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

import llorch
import llorch.torch

OURS, THEIRS = "llorch.torch.exact", "PyTorch"
ROWS = (16, 128, 512)
LINEAR = {
    "MiniLM": ((384, 384), (384, 1536), (1536, 384)),
    "GPT-2 Medium": ((1024, 1024), (1024, 3072), (1024, 4096), (4096, 1024), (1024, 50257)),
}
WIDTHS = {"MiniLM": (384, 12, 1536), "GPT-2 Medium": (1024, 16, 4096)}
REPETITIONS, SAMPLE, REST = 7, 0.015, 0.05
KINDS = {"linear": "Linear", "blocks": "block", "others": "around them"}


def block(model):
    width, heads, inner = WIDTHS[model]
    if model == "MiniLM":
        c = transformers.BertConfig(hidden_size=width, num_attention_heads=heads, intermediate_size=inner)
        c._attn_implementation = "sdpa"
        return BertLayer(c)
    c = transformers.GPT2Config(n_embd=width, n_head=heads, n_inner=inner)
    c._attn_implementation = "sdpa"
    return GPT2Block(c, layer_idx=0)


class Attention(torch.nn.Module):
    """scaled_dot_product_attention of rows of (T, 3 E)."""

    def __init__(self, heads, causal):
        super().__init__()
        self.heads, self.causal = heads, causal

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in x.chunk(3, -1))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)


def modules(kind, model):
    """(what it is, the module, values in a row) of a kind."""
    width, heads, inner = WIDTHS[model]
    if kind == "linear":
        for K, N in LINEAR[model]:
            yield f"{K} to {N}", torch.nn.Linear(K, N), K
    elif kind == "blocks":
        yield type(block(model)).__name__, block(model), width
    else:
        yield "LayerNorm", torch.nn.LayerNorm(width), width
        gelu = "none" if model == "MiniLM" else "tanh"
        yield f"GELU, {gelu}" if gelu == "tanh" else "GELU", torch.nn.GELU(approximate=gelu), inner
        yield "attention", Attention(heads, model != "MiniLM"), 3 * width


def measured(kind, quick):
    sections = []
    for model in LINEAR:
        for what, module, width in modules(kind, model):
            module.eval()
            exact = llorch.torch.exact(module, strict=True)
            for rows in ROWS[:1] if what.endswith("50257") else ROWS:  # a model makes logits of the last row alone
                x = torch.randn(1, rows, width)
                got, wanted = (m(x)[0] if isinstance(m(x), tuple) else m(x) for m in (exact, module))
                common.check_near(what, got, wanted)
                contenders = {OURS: ("m(x)", {"m": exact, "x": x}), THEIRS: ("m(x)", {"m": module, "x": x})}
                samples = common.interleaved(contenders, 3 if quick else REPETITIONS, SAMPLE, REST)
                key = f"{kind} {model} {what} {rows}"
                part = common.section(key, key, THEIRS, samples, kind=kind, model=model, what=what, tokens=rows)
                sections.append(part)
    return sections


def ratio(part):
    return 1 / part["rows"][0]["ratio"]


def targets(parts):
    found = []
    for kind in ("linear", "blocks"):
        for model in LINEAR:
            ratios = [ratio(p) for p in parts if (p["kind"], p["model"]) == (kind, model)]
            slowest = f"{model}, {KINDS[kind]}: the slowest of {len(ratios)} beside PyTorch"
            found.append(common.at_least(slowest, min(ratios, default=None), 1.0))
    return found


def markdown(result):
    note = (
        "Times of one call, 2 threads each; the last column is how many times as fast as PyTorch. Between samples the "
    )
    note += "threads of both rest, so that neither waits by spinning while the other works."
    lines = common.head_lines(result, note) + common.target_lines(result["targets"])
    lines += ["", "| | tokens | llorch.torch.exact | PyTorch | |", "| --- | ---: | ---: | ---: | ---: |"]
    for p in result["sections"]:
        ours, theirs = (
            "{} [{}, {}]".format(*map(common.show_time, (row["median_s"], *row["quartiles_s"]))) for row in p["rows"]
        )
        name = f"{p['model']}, {p['what']}" if p["kind"] != "linear" else f"{p['model']}, Linear {p['what']}"
        lines.append(f"| {name} | {p['tokens']} | {ours} | {theirs} | {ratio(p):.2f} x |")
    return "\n".join(lines) + "\n"


def plot(result, path):
    parts = result["sections"]
    names = list(dict.fromkeys((p["model"], p["kind"], p["what"]) for p in parts))
    drawn, axes = common.figure(2, (13, 0.42 * len(names) + 2), [1, 1])
    colours = dict(zip(ROWS, (common.SKY, common.BLUE, common.BLACK), strict=True))
    bars, box = {}, {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    for axis, model in zip(axes, LINEAR, strict=True):
        y, ticks = 0.0, []
        for name in [n for n in names if n[0] == model]:
            mine = [p for p in parts if (p["model"], p["kind"], p["what"]) == name]
            for p in mine:
                label = f"{p['tokens']} tokens"
                bars[label] = axis.barh(y, ratio(p), 0.86, color=colours[p["tokens"]])
                axis.text(ratio(p) + 0.02, y, f"{ratio(p):.2f}", va="center", fontsize=9, bbox=box, zorder=5)
                y += 1
            ticks.append((y - 0.5 - len(mine) / 2, f"Linear {name[2]}" if name[1] == "linear" else name[2]))
            y += 0.7
        axis.axvline(1, color="black", linestyle="--", linewidth=1)
        common.group_axis(axis, ticks)
        axis.set_xlim(0, max(ratio(p) for p in parts if p["model"] == model) + 0.4)
        axis.set_xlabel("times as fast as PyTorch (dashed: as fast)")
        axis.set_title(model, loc="left", fontweight="bold")
    common.save(drawn, result, bars, path)


def main():
    options = common.arguments(
        __doc__,
        lambda parser: parser.add_argument("--only", choices=KINDS, action="append", help="measure these alone"),
    )
    common.set_threads(2)
    torch.manual_seed(0)
    chosen = options.only or list(KINDS)
    before = common.DOCS / "torch.json"
    known = json.loads(before.read_text())["sections"] if options.only and before.exists() else []
    with torch.inference_mode():
        new = dict(
            zip(chosen, common.in_steps({k: lambda k=k: measured(k, options.quick) for k in chosen}), strict=True)
        )
    parts = [p for k in KINDS for p in new.get(k, [q for q in known if q["kind"] == k])]
    result = common.describe(options.quick, transformers=transformers.__version__)
    result |= {"targets": targets(parts), "sections": parts}
    common.publish("torch", result, markdown(result), plot, options)


if __name__ == "__main__":
    main()
