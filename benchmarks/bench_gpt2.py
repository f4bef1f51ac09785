"""Tokens per second of GPT-2 next to transformers, CTranslate2 and llama.cpp, as shares of what memory allows.

    python benchmarks/bench_gpt2.py                              # writes docs/benchmarks/gpt2.json, gpt2.md and .png
    python benchmarks/bench_gpt2.py --shape tiny --quick         # seconds; prints only
    python benchmarks/bench_gpt2.py --engine llorch --engine llama.cpp

The checkpoint has random weights in the shape of GPT-2 Medium and is made in a temporary folder. Every engine that is
installed is a process of its own (engines.py); they take turns, and their logits are compared first.
"""

import dataclasses
import functools
import gzip
import json
import shutil
import tempfile
from pathlib import Path

import common
import model_files
import models
from models import Contender

import llorch
from llorch.models.shapes import SHAPES, write_random

TOKENIZERS = Path(__file__).resolve().parent.parent / "tests" / "data" / "gpt2_tokenizer"


def contenders(folder):
    """llama.cpp takes gelu from a table of 16-bit values and keeps keys and values in 16 bits, in "f32" too."""

    def there():
        return folder

    def gguf(format):
        return model_files.write_gguf(folder, folder / f"model-{format}.gguf", format)

    found = [
        Contender(f"llorch, {dtype}", "llorch", there, tolerance, colour, dtype, dtype)
        for dtype, tolerance, colour in (
            ("float32", 1e-4, common.SKY), ("bfloat16", 0.2, common.BLUE), ("float16", 0.02, common.GREEN)
        )
    ]  # fmt: skip
    found.append(Contender("transformers, float32", "transformers", there, 1e-4, common.RED, None, "float32"))
    found += [
        Contender(f"CTranslate2, {dtype}", "CTranslate2", there, tolerance, colour, dtype, dtype)
        for dtype, tolerance, colour in (("float32", 1e-4, common.YELLOW), ("int8", 2.0, common.GREY))
    ]
    found += [
        Contender(f"llama.cpp, {format.lower()}", "llama.cpp", functools.partial(gguf, format), 0.06, colour)
        for format, colour in (("F32", common.ORANGE), ("F16", common.PURPLE))
    ]
    return found


def targets(result):
    """What llorch wants to reach, as ratios of tokens per second in this run."""
    best = max(
        (name for name in ("llorch, bfloat16", "llorch, float16") if models.rate(result, "decode", name)),
        key=lambda name: models.rate(result, "decode", name),
        default="llorch, bfloat16",
    )
    target = functools.partial(models.ratio_target, result)
    found = [
        target("decode, float32, beside llama.cpp", "decode", "llorch, float32", "decode", "llama.cpp, f32", 1.1),
        target("decode, 16-bit, beside llama.cpp's f16", "decode", best, "decode", "llama.cpp, f16", 1.25),
    ]
    for workload in ("prefill 128", "prefill 512"):
        title = f"{workload}, float32, beside llama.cpp"
        found.append(target(title, workload, "llorch, float32", workload, "llama.cpp, f32", 1.1))
    found.append(
        target("8 sequences together, beside one", "together", "llorch, float32", "decode", "llorch, float32", 4.0)
    )
    return found


def report(result):
    note = (
        f"GPT-2 of shape {result['shape']}, random weights, {result['threads']} threads, tokens per second; decoding "
        f"starts behind {models.DEPTH} tokens."
    )
    lines = common.head_lines(result, note) + models.table(result) + models.limit_table(result)
    lines += ["", *common.peak_lines(result["peaks"])]
    if result["shape"] == "medium":
        lines += ["", *common.target_lines(result["targets"])]
    return "\n".join(lines) + "\n"


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
    models.add_arguments(parser)


def main():
    options = common.arguments(__doc__, add_arguments)
    config = dataclasses.replace(SHAPES[options.shape], n_positions=1024)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)

        def reference():
            write_random(folder, config)
            add_tokenizer(folder, config)
            return folder

        engines = contenders(folder)
        result = models.run(engines, reference, options) | {"shape": options.shape}
    result["targets"] = targets(result)
    colours = {one.name: one.colour for one in engines}
    common.publish("gpt2", result, report(result), functools.partial(models.plot, colours), options)


if __name__ == "__main__":
    main()
