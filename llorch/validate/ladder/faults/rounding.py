"""Faults of precision: one tensor, all of them, weights, or what goes into matrix products, in fewer bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from llorch.validate.ladder.distance import Array
from llorch.validate.ladder.faults.change import (
    EIGHT_BITS,
    ROUNDED,
    Fault,
    Part,
    as_ggml,
    bfloat16,
    eight_bits,
    eight_bits_by_row,
    every_weight,
    float16,
    rounded,
    setting,
    several,
    tap,
    weight,
)

INTO_PRODUCTS: dict[str, tuple[str, Callable[[Array], Array]]] = {
    "q8_0": ("8-bit blocks of 32, as llama.cpp has them beside quantised weights", eight_bits),
    "int8": ("8-bit integers with a scale for each row", eight_bits_by_row),
    "float16": ("float16, or TF32, which has as many bits", float16),
    "bfloat16": ("bfloat16", bfloat16),
}


def of(part: Part) -> Iterator[Fault]:
    shown = [step for step in part.steps if step.rung]
    if not shown:
        return
    for name, rounding in ROUNDED.items():
        if part.where == "block":
            first = shown[0].name
            says = f"activations are rounded to {name}"
            yield from part.fault(
                f"activations-{name}", says, first, tap(part, "*", rounded(name)), grid=rounding, every=True
            )
            all_weights = every_weight(part, rounding)
            first = next(step.name for step in part.steps if step.weight)
            yield from part.fault(f"weights-{name}", f"weights were rounded to {name}", first, all_weights)
        for step in shown:
            if step.op != "cache":
                what = step.name or "the block's output"
                change = tap(part, step.name, rounded(name))
                yield from part.fault(
                    f"{step.name or 'output'}-{name}", f"{what} is {name}", step.name, change, faint=True, grid=rounding
                )
    place = "head-" if part.where == "after" else ""
    formats = {*(part.network.after if part.where == "after" else part.network.blocks[0]).formats.values()}
    of_ggml = not formats.isdisjoint(EIGHT_BITS) and part.where != "before"
    if of_ggml and (linear := part.of_op("linear")):
        says = "what goes into linear layers is rounded to blocks of 8 bits, as llama.cpp has them beside each format"
        change = setting(part, beside=as_ggml)
        yield from part.fault(f"{place}inputs-ggml-q8_0", says, linear[0].name, change, faint=bool(place))
    if part.where != "before":
        for name, (words, fewer) in INTO_PRODUCTS.items():
            linear = part.of_op("linear")
            if linear and not (name == "q8_0" and of_ggml):
                says = f"what goes into linear layers is rounded to {words}"
                change = setting(part, entering=fewer)
                yield from part.fault(f"{place}inputs-{name}", says, linear[0].name, change, faint=bool(place))
                if name in ROUNDED:
                    says = f"matrix products are in {words}: what goes into linear layers and their weights"
                    weights = [weight(part, f"{step.weight}.weight", fewer) for step in linear]
                    both = several(change, *weights)
                    yield from part.fault(f"{place}products-{name}", says, linear[0].name, both, faint=bool(place))
