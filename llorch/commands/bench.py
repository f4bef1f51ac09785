"""`llorch bench`."""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import llorch
from llorch.commands import common
from llorch.models.shapes import SHAPES, write_random
from llorch.text.protocol import context_of

if TYPE_CHECKING:
    from llorch.text.causal_lm import CausalLM

TOGETHER = 8
DEPTH = 128  # tokens that a sequence has when its decoding is timed
STEPS = 16


@click.command("bench", short_help="Tokens and bytes of weights per second: reading prompts, and writing.")
@common.model_option(None, f" Without it and --shape: {common.EMBEDDED}.")
@click.option("--shape", type=click.Choice(list(SHAPES)), help="Random weights in this size of GPT-2 instead.")
@click.option("--repetitions", type=click.IntRange(1), default=5, show_default=True)
@common.json_option
@common.dtype_option
@common.compute_option
@common.threads_option
def command(
    model: str | None, shape: str | None, repetitions: int, as_json: bool, dtype: str | None, compute: str
) -> None:
    """Tokens per second: reading prompts (prefill), and writing with one sequence and with several (decode).

    Writing reads all weights for every token, or for one token of each sequence: GB/s says how fast.
    """
    if model and shape:
        raise click.UsageError("--model and --shape exclude each other")
    with ExitStack() as stack:
        if shape:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            with common.failures(), common.progress(f"making random weights of shape {shape}") as progress:
                write_random(Path(folder), SHAPES[shape], progress=progress)
            engine = common.load(folder, dtype, compute)
        else:
            engine = common.load(model or common.EMBEDDED, dtype, compute)
        rows = measure(engine, repetitions)
    head = {
        "model": shape or model or common.EMBEDDED,
        "dtype": engine.dtype,
        "compute": engine.compute,
        "bytes": engine.nbytes,
        "bytes a step": engine.step_nbytes,
        "isa": llorch.isa(),
        "threads": llorch.get_num_threads(),
    }
    if as_json:
        common.echo(json.dumps(head | {"rows": rows}, indent=1))
        return
    common.echo(", ".join(f"{name} {value}" for name, value in head.items()))
    for row in rows:
        rates = f"{row['tokens_per_s']:>10.1f} tokens/s  [{row['least']:.1f}, {row['most']:.1f}]"
        common.echo(f"{row['what']:<28}{rates}" + (f"  {row['GB_per_s']:.1f} GB/s" if "GB_per_s" in row else ""))


def measure(model: "CausalLM", repetitions: int) -> list[dict[str, Any]]:
    """Medians of tokens per second, the least and the most beside; of decoding, GB/s of weights too."""
    context, vocabulary = context_of(model), model.config.vocab_size
    depth = min(DEPTH, context // 2)
    steps = min(STEPS, context - depth)

    def ids(count: int, first: int) -> list[int]:
        return [(first + 7 * i) % vocabulary for i in range(count)]

    def prefill(length: int) -> Callable[[], float]:
        def run() -> float:
            cache = model.new_cache(length)
            begin = time.perf_counter()
            model.step([ids(length, 1)], [cache])
            return length / (time.perf_counter() - begin)

        return run

    def decode(count: int) -> Callable[[], float]:
        caches = [model.new_cache(depth + steps) for _ in range(count)]
        model.step([ids(depth, i) for i in range(count)], caches)

        def run() -> float:
            for cache in caches:
                cache.truncate(depth)
            begin = time.perf_counter()
            tokens = list(range(count))
            for _ in range(steps):
                logits = model.step([[token % vocabulary] for token in tokens], caches)
                tokens = llorch.argmax(logits).tolist()
            return count * steps / (time.perf_counter() - begin)

        return run

    # Each with the tokens that a step makes, None for a step of many.
    jobs: list[tuple[str, int | None, Callable[[], Callable[[], float]]]] = [
        (f"prefill, {length} tokens", None, partial(prefill, length)) for length in (128, 512) if length <= context
    ]
    jobs += [(f"decode, {common.many(count, 'sequence')}", count, partial(decode, count)) for count in (1, TOGETHER)]
    rows, done, of = [], 0, len(jobs) * (repetitions + 1)
    with common.progress("measuring") as progress:
        for what, together, prepare in jobs:
            run = prepare()
            rates = []
            for repetition in range(-1, repetitions):  # the first is not counted
                rate = run()
                if repetition >= 0:
                    rates.append(rate)
                done += 1
                progress(done, of)
            rate = statistics.median(rates)
            row: dict[str, Any] = {"what": what, "tokens_per_s": rate, "least": min(rates), "most": max(rates)}
            if together is not None:
                row["GB_per_s"] = model.step_nbytes * rate / together / 1e9
            rows.append(row)
    return rows
