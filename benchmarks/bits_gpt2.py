"""Whose logits keep their bits: transformers' GPT-2 and llorch's on the same prompts, computed in different ways.

    python benchmarks/bits_gpt2.py                     # the embedded model; writes docs/benchmarks/gpt2_bits.md
    python benchmarks/bits_gpt2.py --model FOLDER      # another model beside it (repeatable)

60 prompts, written by the embedded model itself from seeds 0 to 59, so that everybody has the same. Each is computed at
once, and then token by token with the cache, together with all others, and on another number of threads.
"""

import argparse
import importlib.metadata
import warnings
from pathlib import Path

import common
import numpy as np
import torch
import transformers

import llorch
from llorch.testing import differing_bits

EMBEDDED = "shakespeare-1m"
LENGTHS = (4, 40)  # new tokens of the shortest and the longest prompt
ONE, OTHER = 1, 2  # threads


def prompts_of(count):
    """Verse: "ROMEO:" and what the embedded model makes of it, longer and longer."""
    model = llorch.GPT2.from_pretrained(EMBEDDED)
    lengths = np.linspace(*LENGTHS, count).round().astype(int).tolist()
    return ["ROMEO:" + model.generate("ROMEO:", n, temperature=1.0, seed=i) for i, n in enumerate(lengths)]


class Llorch:
    name = "llorch"

    def __init__(self, folder):
        self.model = llorch.GPT2.from_pretrained(folder, dtype="float32")

    def at_once(self, ids):
        return self.model.forward(ids)

    def cached(self, ids):
        cache = self.model.new_cache()
        return np.concatenate([self.model.step([[id]], [cache]) for id in ids])

    def together(self, prompts):
        """The last position's logits of each."""
        return list(self.model.step(prompts, [self.model.new_cache() for _ in prompts]))


class Transformers:
    name = "transformers"

    def __init__(self, folder):
        self.model = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()

    def at_once(self, ids):
        return self.model(torch.tensor([ids]), use_cache=False).logits[0].numpy()

    def cached(self, ids):
        past, rows = None, []
        for id in ids:
            out = self.model(torch.tensor([[id]]), past_key_values=past, use_cache=True)
            past = out.past_key_values
            rows.append(out.logits[0].numpy())
        return np.concatenate(rows)

    def together(self, prompts):
        """As transformers generates in batches: padded on the left, and masked."""
        width = max(map(len, prompts))
        tokens, mask = torch.zeros((2, len(prompts), width), dtype=torch.int64)
        for row, ids in enumerate(prompts):
            tokens[row, width - len(ids) :] = torch.tensor(ids)
            mask[row, width - len(ids) :] = 1
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        return list(self.model(tokens, attention_mask=mask, position_ids=positions).logits[:, -1].numpy())


def changes(pairs):
    """How many prompts have logits with other bits or another likeliest token, and the largest difference."""
    bits = sum(differing_bits(got, wanted) > 0 for got, wanted in pairs)
    tokens = sum((got.argmax(-1) != wanted.argmax(-1)).any() for got, wanted in pairs)
    return {"bits": bits, "tokens": tokens, "largest": max(float(np.abs(a - b).max()) for a, b in pairs)}


def measure(folder, texts):
    """{"llorch": {way: changes}, "transformers": ..} and how far the two are from each other."""
    found, plain = {}, {}
    for make in (Llorch, Transformers):
        common.set_threads(ONE)
        engine = make(folder)
        if make is Llorch:
            tokenizer, context = engine.model.tokenizer, engine.model.config.n_positions
            prompts = [tokenizer.encode(text)[:context] for text in texts]
        whole = plain[engine.name] = [engine.at_once(ids) for ids in prompts]
        last = [logits[-1] for logits in whole]
        ways = {
            "again": list(zip(map(engine.at_once, prompts), whole, strict=True)),
            "token by token, with the cache": list(zip(map(engine.cached, prompts), whole, strict=True)),
            f"all {len(prompts)} in one batch": list(zip(engine.together(prompts), last, strict=True)),
        }
        common.set_threads(OTHER)
        ways[f"on {OTHER} threads instead of {ONE}"] = list(zip(map(engine.at_once, prompts), whole, strict=True))
        found[engine.name] = {way: changes(pairs) for way, pairs in ways.items()}
    apart = changes(list(zip(plain["llorch"], plain["transformers"], strict=True)))
    return {"ways": found, "apart": apart["largest"], "lengths": [min(map(len, prompts)), max(map(len, prompts))]}


def table(model, count, result):
    low, high = result["lengths"]
    lines = [
        "",
        f"**{model}**: {count} prompts of {low} to {high} tokens; all positions' logits, in the batch the last "
        f"one's. The two engines are {result['apart']:.1e} apart at most.",
        "",
        "| compared with each prompt alone, at once | prompts whose bits change | whose likeliest token changes | "
        "largest difference |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, ways in result["ways"].items():
        for way, change in ways.items():
            largest = f"{change['largest']:.1e}" if change["largest"] else "0"
            lines += [f"| {name}, {way} | {change['bits']} of {count} | {change['tokens']} | {largest} |"]
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", default=[], help="a folder with a GPT-2, beside the embedded one")
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--docs", type=Path, default=common.DOCS, metavar="DIR", help="where gpt2_bits.md goes")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.simplefilter("ignore", FutureWarning)  # of a new name for past_key_values, which older versions lack
    texts = prompts_of(options.prompts)
    about = common.describe(False, transformers=importlib.metadata.version("transformers"))
    lines = ["# Whose logits keep their bits", ""]
    lines += [f"{about['date']}: {about['cpu']}, {about['cores']} cores, instruction set {about['isa']}; "]
    lines[-1] += ", ".join(f"{k} {v}" for k, v in about["versions"].items()) + ". Made by `benchmarks/bits_gpt2.py`."
    failed = False
    for k, model in enumerate([EMBEDDED, *options.model], 1):
        print(f"[{k}/{len(options.model) + 1}] {model}", flush=True)
        folder = llorch.GPT2.from_pretrained(model).path
        result = measure(folder, texts)
        lines += table(Path(model).name, len(texts), result)
        failed |= any(change["bits"] for change in result["ways"]["llorch"].values())
    options.docs.mkdir(parents=True, exist_ok=True)
    text = "\n".join(lines) + "\n"
    (options.docs / "gpt2_bits.md").write_text(text, encoding="utf-8")
    print(text)
    if failed:
        raise SystemExit("llorch's own bits changed")


if __name__ == "__main__":
    main()
